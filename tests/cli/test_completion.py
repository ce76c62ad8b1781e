import os
import shutil
import subprocess
import sys

import pytest

from llmrl.cli.completion import SHELLS
from llmrl.cli.main import COMMANDS, main


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_names_every_command_and_is_one_the_shell_can_read(shell, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["completion", shell])
    script = capsys.readouterr().out
    assert not exit_.value.code
    assert all(command in script for command in COMMANDS)
    if (program := shutil.which(shell)) is not None:
        subprocess.run([program, "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize(("words", "says"), [(["completion", "bsh"], "nearest: 'bash'"), (["completion"], "bash, zsh")])
def test_another_shell_is_refused(words, says, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(words)
    assert exit_.value.code == 2
    assert says in capsys.readouterr().err


COMPLETED = """
eval "$(llmrl completion bash)"
complete_line() {
    COMP_LINE="$1" COMP_POINT=${#1}
    COMP_WORDS=($1) COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    _llmrl_completion
    echo "${COMPREPLY[*]}"
}
complete_line "llmrl tr"
complete_line "llmrl train env=cartpole_"
complete_line "llmrl train ppo.learning_r"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_completes_commands_choices_and_keys(tmp_path):
    program = tmp_path / "llmrl"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m llmrl "$@"\n')
    program.chmod(0o755)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.run(
        ["bash", "-c", COMPLETED], env={**os.environ, **path}, capture_output=True, text=True, check=True
    )
    assert process.stdout.splitlines() == ["train", "env=cartpole_continuous", "ppo.learning_rate="]
