"""Completion of commands, groups and keys in a shell: ``eval "$(llmrl completion bash)"``, also ``zsh`` and ``fish``.

The subcommand is completed here; what follows it is Hydra's affair, which knows every group, choice and key.
"""

from __future__ import annotations

from llmrl.settings.errors import unknown

_BASH = """\
_llmrl_completion() {
    local word="${COMP_WORDS[COMP_CWORD]}"
    if [ "$COMP_CWORD" -le 1 ]; then
        COMPREPLY=($(compgen -W "@COMMANDS@" -- "$word"))
        return
    fi
    # Hydra completes one application, so the subcommand is taken for its name.
    local line="${COMP_LINE#*[[:space:]]}"
    local found="$(COMP_LINE="$line" COMP_POINT=${#line} llmrl "${COMP_WORDS[1]}" -sc query=bash 2>/dev/null)"
    COMPREPLY=($(compgen -W "$found" -- "$word"))
}
# As for Hydra's own completion: key=value is one word.
COMP_WORDBREAKS="${COMP_WORDBREAKS//=}"
complete -o nospace -o default -F _llmrl_completion llmrl
"""

_ZSH = """\
_llmrl_completion() {
    if (( CURRENT <= 2 )); then
        compadd -- @COMMANDS@
        return
    fi
    local line="${(j: :)words[2,CURRENT]}"
    local -a found
    found=(${(f)"$(COMP_LINE="$line" COMP_POINT=${#line} llmrl "${words[2]}" -sc query=bash 2>/dev/null)"})
    found=(${=found})
    compadd -S '' -- $found
}
if ! type compdef >/dev/null 2>&1; then autoload -Uz compinit && compinit; fi
compdef _llmrl_completion llmrl
"""

_FISH = """\
function __llmrl_completion
    set -l words (commandline -opc)
    set -l line (string join ' ' $words[2..-1] (commandline -ct))
    set -l point (string length -- "$line")
    env COMP_LINE="$line" COMP_POINT=$point llmrl $words[2] -sc query=bash 2>/dev/null | string split -n ' '
end
complete -c llmrl -f
complete -c llmrl -n 'test (count (commandline -opc)) -eq 1' -a '@COMMANDS@'
complete -c llmrl -n 'test (count (commandline -opc)) -gt 1' -a '(__llmrl_completion)'
"""

SHELLS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def completion(shell: str, commands: tuple[str, ...]) -> str:
    """The script that a shell evaluates to complete ``llmrl``.

    Args:
        shell: one of ``SHELLS``.
        commands: the subcommands.

    Raises:
        ValueError: the shell is not known.
    """
    if shell not in SHELLS:
        raise unknown("shell", shell, SHELLS)
    return SHELLS[shell].replace("@COMMANDS@", " ".join(commands))
