"""What llmrl refuses on purpose says so by its class, so that the command line need not guess."""

import ast
import builtins
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import llmrl
from llmrl.cli.main import _is_for_user
from llmrl.settings.errors import BadType, BadValue, CannotRun, NotImported, UserError, unknown
from llmrl.settings.overrides import explain

PACKAGE = Path(llmrl.__file__).parent
ROOMS = sorted(room.name for room in PACKAGE.iterdir() if (room / "__init__.py").is_file())
PURE = ("bilevel", "ops")
"""Mathematics that knows no user; the settings keep from it what it would refuse."""
UNDERSTOOD = {"AttributeError", "KeyboardInterrupt", "OSError"}
"""Built-in errors that may be raised anywhere: those of a module's attributes, of the keyboard and of the disk."""


def raised(room):
    """``file:line`` -> name, of every ``raise Name(...)``."""
    for file in sorted((PACKAGE / room).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
                yield f"{file.relative_to(PACKAGE)}:{node.lineno}", node.exc.func.id


@pytest.mark.parametrize("room", [room for room in ROOMS if room not in PURE])
def test_no_built_in_error_is_raised_where_a_user_may_have_caused_it(room):
    assert {where: name for where, name in raised(room) if hasattr(builtins, name) and name not in UNDERSTOOD} == {}


@pytest.mark.parametrize(
    ("kind", "built_in"),
    [(BadValue, ValueError), (BadType, TypeError), (CannotRun, RuntimeError), (NotImported, ImportError)],
)
def test_a_users_error_is_caught_as_the_built_in_one(kind, built_in):
    assert issubclass(kind, UserError) and issubclass(kind, built_in)
    assert _is_for_user(kind("said in one line"))
    assert not _is_for_user(built_in("a bug"))


def test_what_a_compiled_program_calls_back_fails_in_one_line():
    """jax tells of it with the whole traceback as text."""

    def failing(x):
        raise LookupError(f"no place {x}")

    place = jax.ShapeDtypeStruct((), jnp.float32)
    with pytest.raises(jax.errors.JaxRuntimeError) as caught:
        jax.block_until_ready(jax.jit(lambda x: jax.pure_callback(failing, place, x))(jnp.float32(3.0)))
    assert _is_for_user(caught.value)
    says = "a function that the environment or a source calls back in Python failed: LookupError: no place 3.0"
    assert explain(caught.value).startswith(says) and "\n" not in explain(caught.value)
    assert not _is_for_user(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"))


def test_an_unknown_name_is_a_users_error():
    assert isinstance(unknown("solver", "neuman", ["neumann"]), BadValue)
