"""Errors that tell the reader what she probably meant, and whether she would rather see where they come from."""

from __future__ import annotations

import errno
import os
import signal
import sysconfig
import traceback
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

_LIBRARIES = (*(sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib")), str(Path(__file__).parents[1]))


class UserError(Exception):
    """Something that its message explains to the user in full: the command line shows that line and no traceback.

    What llmrl refuses on purpose is one of these; any other error is a bug, of llmrl or of a user's own function. Each
    kind is also the built-in error that it would be elsewhere, so that ``except ValueError`` catches a ``BadValue``.
    """


class BadValue(UserError, ValueError):
    """A value that cannot be used."""


class BadType(UserError, TypeError):
    """A thing of another kind than is expected."""


class CannotRun(UserError, RuntimeError):
    """Something outside of llmrl, such as an endpoint or another process, does not do its part."""


class NotImported(UserError, ImportError):
    """A module that cannot be imported."""


def unknown(kind: str, name: object, choices: Iterable[str]) -> BadValue:
    """A ``BadValue`` for a name that is not among the choices, naming the nearest ones; the caller raises it.

    Args:
        kind: what the name should have been, as in "environment".
        name: the value received.
        choices: the names that exist.

    Returns:
        An error that reads "unknown environment 'cartpol'; nearest: 'cartpole' (one of 'cartpole', 'gridworld')".
    """
    choices = tuple(choices)
    # Upper and lower case are the commonest slip, and difflib counts each changed letter as a wrong one.
    by_lower_case = {choice.lower(): choice for choice in choices}
    close = get_close_matches(str(name).lower(), by_lower_case, n=3)
    nearest = "; nearest: " + ", ".join(repr(by_lower_case[match]) for match in close) if close else ""
    existing = "one of " + ", ".join(map(repr, choices)) if choices else "there are none to choose from"
    return BadValue(f"unknown {kind} {name!r}{nearest} ({existing})")


def end_of(code: int) -> str:
    """How a process ended, in words.

    Args:
        code: its exit code; -n where signal n killed it.
    """
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"left with exit code {code}"


OWN_ENVIRONMENT = "one of your own is env=gymnax env.id=my_module.my_function"
"""How an environment of one's own is named, to end an error with."""


def install(extra: str) -> str:
    """How an optional part of llmrl is installed: from a clone, as llmrl is on no package index.

    Args:
        extra: its name in pyproject.toml.

    Returns:
        A command and where it is typed, to end an error with.
    """
    return f"pip install -e '.[{extra}]' in llmrl's own folder"


def brief(path: object, letters: int = 120) -> str:
    """A path, or both ends of one that would fill lines."""
    text = str(path)
    return text if len(text) <= letters else f"{text[: letters // 2]}...{text[-letters // 2 :]}"


def of_the_disk(error: OSError) -> str:
    """What the system has said of a file, without its name."""
    longest = max(map(len, Path(os.fsdecode(error.filename or "")).parts), default=0)
    more = f" ({longest} letters in a row)" if error.errno == errno.ENAMETOOLONG else ""
    return f"{error.strerror}{more}"


def first_line(error: BaseException) -> str:
    """What an error is, the first line of what it says, and where in the user's code it arose."""
    first, *others = str(error).strip().split("\n")
    says = others[-1] if others and of_a_callback(error) else f"{type(error).__name__}: {first}"
    return f"{says.rstrip('.')}{_place(error)}"


def of_a_callback(error: BaseException) -> bool:
    """Whether a function of Python's has failed that a compiled program calls back: a user's, since llmrl has none.

    Its error comes as the text of a whole traceback, which ends with the error itself.
    """
    return type(error).__name__ == "JaxRuntimeError" and "Traceback (most recent" in str(error).partition("\n")[0]


def _place(error: BaseException) -> str:
    """The innermost line of code that is neither a library's nor ours."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_own(frame.filename)]
    return f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""


def _is_own(filename: str) -> bool:
    return Path(filename).is_file() and not filename.startswith(_LIBRARIES)


def debugging() -> bool:
    """Whether LLMRL_DEBUG asks for errors as they are raised, tracebacks and all, instead of one line for the user."""
    return os.environ.get("LLMRL_DEBUG", "") not in ("", "0")
