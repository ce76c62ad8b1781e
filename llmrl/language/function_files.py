"""Files of reward functions: a head of comments that says where they come from, and then the functions.

    # format: llmrl-functions 1
    # environment: cartpole
    # source: handmade
    # date: 2026-11-30
    # prompt: none

    def upright(state, action, next_state):
        \"\"\"Pays for a pole that comes nearer to upright.\"\"\"
        return jnp.abs(state.theta) - jnp.abs(next_state.theta)

What a function may hold is the matter of ``llmrl.language.subset``. Whatever names and texts the head holds is kept.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from llmrl.language.subset import Function, Refused, read_functions
from llmrl.settings.config import EnvConfig
from llmrl.settings.errors import BadValue, unknown

FORMAT = "llmrl-functions 1"
MOST_FUNCTIONS = 16

SHIPPED = Path(__file__).resolve().parent / "functions"
"""Files of functions that come with the library, ``<writer>/<environment>.txt``."""

_LINE = re.compile(r"# ([a-z]+): (.*)")


class FunctionFile(NamedTuple):
    """What a file of functions holds.

    Attributes:
        functions: in their order, with different names; their trees are not checked yet.
        provenance: what its head says: environment, source (a model's name, or ``handmade``), date, prompt.
    """

    functions: tuple[Function, ...]
    provenance: dict[str, str]


def read_file(path: Path) -> FunctionFile:
    """A file of functions.

    Raises:
        ValueError: its head names another format, two functions have one name, or there are none or too many.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        provenance = _head(text)
        if provenance.pop("format", None) != FORMAT:
            raise Refused(f"its first line must read `# format: {FORMAT}`")
        functions = read_functions(text)
        names = [function.name for function in functions]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise Refused(f"{repeated[0]} is there twice")
        if not 0 < len(functions) <= MOST_FUNCTIONS:
            raise Refused(f"it has {len(functions)} functions, expected 1 to {MOST_FUNCTIONS}")
    except (Refused, UnicodeDecodeError) as error:
        raise BadValue(f"{path}: {error}") from None
    return FunctionFile(functions, provenance)


def file_text(functions: Sequence[Function], provenance: Mapping[str, str]) -> str:
    """The text of a file, which ``read_file`` reads back."""
    head = {"format": FORMAT, **provenance}
    lines = "\n".join(f"# {key}: {_one_line(value)}" for key, value in head.items())
    return "\n\n\n".join([lines, *(function.source for function in functions)]) + "\n"


def find(path: str, env: EnvConfig) -> Path:
    """A file of functions by its path, or one that is shipped by who has written it and the environment.

    Raises:
        ValueError: there is no such file.
    """
    if Path(path).is_file():
        return Path(path)
    shipped = {(file.parent.name, file.stem): file for file in sorted(SHIPPED.glob("*/*.txt"))}
    if path not in (writers := dict.fromkeys(who for who, _ in shipped)):
        raise unknown("file of reward functions", path, writers)
    name, known = name_of(env), [name for who, name in shipped if who == path]
    if name not in known:
        raise unknown(f"environment of the functions {path!r}", name, known)
    return shipped[path, name]


def name_of(env: EnvConfig) -> str:
    """What the files of an environment are called."""
    return env.id or env.name


def _head(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in text.splitlines():
        if (match := _LINE.fullmatch(line)) is None:
            break
        found[match[1]] = match[2]
    return found


def _one_line(value: str) -> str:
    """A text as it may stand in a comment; only ASCII is read back."""
    return " ".join(value.split()).encode("ascii", "replace").decode()
