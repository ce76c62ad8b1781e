"""A user's own code by its dotted path."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from llmrl.settings.errors import BadType, BadValue, NotImported, first_line, unknown


def load_object(path: str, option: str) -> Any:
    """What stands at a dotted path, as in ``my_package.hints.push_right`` or ``my_package.hints:push_right``.

    Args:
        path: module and name, joined by a dot or a colon.
        option: what the path was given for, to say so in errors.

    Returns:
        Whatever it is.

    Raises:
        ValueError: the path has no dot, or the module has no such name (the nearest are named).
        ImportError: the module cannot be imported.
    """
    module_name, _, name = path.replace(":", ".").rpartition(".")
    if not all(part.isidentifier() for part in (*module_name.split("."), name)):
        raise BadValue(f"{option} {path!r}: expected a dotted path such as 'my_package.hints.push_right'")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a script's own exit is none of ours
        where = " (is its folder on PYTHONPATH?)" if isinstance(error, ModuleNotFoundError) else ""
        raise NotImported(f"{option} {path!r}: importing {module_name} failed: {first_line(error)}{where}") from error
    if not hasattr(module, name):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise unknown(f"function in {module_name}", name, public)
    return getattr(module, name)


def load_function(path: str, option: str, expected: str) -> Callable[..., Any]:
    """The function at a dotted path, not yet called; arguments and errors as for ``load_object``.

    Args:
        path, option: as for ``load_object``.
        expected: what the function must be, as errors end.

    Raises:
        TypeError: what stands there cannot be called.
    """
    function = load_object(path, option)
    if not callable(function):
        raise BadType(f"{option} {path!r} is {function!r}; expected {expected}")
    return function
