"""Parameters reach their owner as they are written, in the types that it declares."""

import re
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llmrl
from llmrl.envs import make
from llmrl.envs.base import action_shape
from llmrl.envs.gymnax_env import gymnax_env
from llmrl.envs.parameters import fitted, fitted_arguments, fitted_like

IDS = [id for id in gymnax.registered_envs if "MNIST" not in id]


@pytest.mark.parametrize(
    ("value", "declared", "expected"),
    [
        (5, int, 5),
        (5.0, int, 5),
        (5, float, 5.0),
        (0.5, float, 0.5),
        (True, bool, True),
        ("word", str, "word"),
        ([1, 2], list, [1, 2]),
        ([1, 2], tuple[int, ...], (1, 2)),
        ([1, 2.0], list[int], [1, 2]),
        ([1, 2], tuple[float, Any], (1.0, 2)),
        ([[1], []], list[list[float]], [[1.0], []]),
        ([1.5], list[int] | list[float], [1.5]),
        ([], tuple[int, ...], ()),
        ([{"a": 1}], list[dict], [{"a": 1}]),
        ("b", Literal["a", "b"], "b"),
        (1.0, Literal[1, 2], 1),
        (None, Literal["a"] | None, None),
        (5.0, Annotated[int, "any"], 5),
        (None, int | None, None),
        (2, float | int, 2),
        (2, float | str, 2.0),
        (np.float64(2.0), int, 2),
        ({"a": 1}, Any, {"a": 1}),
        (1.5, "int", 1.5),  # that nobody could read
    ],
)
def test_what_fits_stays_or_becomes_the_same_number(value, declared, expected):
    found = fitted("size", value, declared)
    assert type(found) is type(expected) and found == expected


@pytest.mark.parametrize(
    ("value", "declared", "words"),
    [
        (5.5, int, "a whole number"),
        (True, int, "a whole number"),
        (1, bool, "true or false"),
        (1.0, bool, "true or false"),
        ("5", float, "a number"),
        (True, float, "a number"),
        (float("inf"), int, "a whole number"),
        (5, str, "a word"),
        (5, list, "a list"),
        (5, list[int], "a list of whole numbers"),
        (["a"], list[int], "a list of whole numbers"),
        ([True], list[int | None], "a list of whole numbers or null"),
        ([1.5], tuple[int, ...], "a list of whole numbers"),
        ([1, 2, 3], tuple[int, Any], "a list of 2 (a whole number, anything)"),
        ([1, 2], tuple[int, str], "a list of 2 (a whole number, a word)"),
        ([[1], [0.5]], list[list[int]], "a list of lists of whole numbers"),
        ("c", Literal["a", "b"], "one of 'a', 'b'"),
        (True, Literal[1, 2], "one of 1, 2"),
        (3, Annotated[Literal["a"] | None, "any"], "one of 'a' or null"),
        ("x", int | None, "a whole number or null"),
    ],
)
def test_what_does_not_fit_is_refused(value, declared, words):
    with pytest.raises(ValueError, match=re.escape(f"size must be {words}, got {value!r}")):
        fitted("size", value, declared)


@pytest.mark.parametrize("value", [[1.0, 2.0], 3.0, ["a", "b", "c"], [[1], [2], [3]], [0.5, 1, 2]])
def test_an_array_keeps_its_shape_and_loses_no_digits(value):
    with pytest.raises(ValueError, match=r"times must be int32 of shape \[3\], got"):
        fitted_like("times", value, jnp.zeros(3, jnp.int32))


def as_written(default):
    """As a file or a command line holds it."""
    return np.asarray(default).tolist() if isinstance(default, jax.Array) else default


@pytest.mark.parametrize("id", IDS)
def test_no_parameter_at_its_default_changes_anything(id):
    with jax.numpy_dtype_promotion("standard"):
        _, defaults = gymnax.make(id)
    given = {field.name: as_written(getattr(defaults, field.name)) for field in fields(defaults)}
    for name, value in given.items():
        default, found = getattr(defaults, name), fitted_like(name, value, getattr(defaults, name))
        assert type(found) is type(default) and np.array_equal(found, default), name
        assert getattr(found, "dtype", None) == getattr(default, "dtype", None), name

    def programs(env):
        state = jax.eval_shape(env.reset, jax.random.key(0))[0]
        step = jax.make_jaxpr(env.step)(jax.random.key(0), state, action_shape(env.spec.action))
        return str(jax.make_jaxpr(env.reset)(jax.random.key(0))), str(step)

    assert programs(gymnax_env(id, **given)) == programs(gymnax_env(id))


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        (["env.id=Seaquest-MinAtar", "+env.params.ramping=false"], "ramping", False),
        (["env.id=Seaquest-MinAtar", "+env.params.max_oxygen=100"], "max_oxygen", 100),
        (["env.id=Acrobot-v1", "+env.params.available_torque=[-1,0,2]"], "available_torque", [-1, 0, 2]),
        (["env.id=Acrobot-v1", "+env.params.dt=1"], "dt", 1),
        (["env.id=x.y", "+env.params.kind=narrow"], "kind", "narrow"),
        (["env.id=x.y", "+env.params.size=5"], "size", 5),
    ],
)
def test_the_command_line_changes_no_type(words, field, value):
    found = llmrl.compose("env=gymnax", "aux=none", "method=ppo", *words).env.params[field]
    assert type(found) is type(value) and found == value


def world(length: int, kind: str = "wide", *, walls: "list[int] | None" = None, free=1):
    return length, kind, walls, free


def open_world(**anything):
    return anything


def test_a_factory_gets_what_it_declares():
    given = {"length": 12.0, "kind": "narrow", "walls": [1, 2], "free": 0.5}
    assert world(**fitted_arguments("my.world", world, given)) == (12, "narrow", [1, 2], 0.5)
    assert open_world(**fitted_arguments("my.open_world", open_world, {"a": "b"})) == {"a": "b"}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"length": 12.5}, "parameter length of my.world must be a whole number, got 12.5"),
        ({"length": 12, "kind": 3}, "parameter kind of my.world must be a word, got 3"),
        ({"length": 12, "walls": 3}, "parameter walls of my.world must be a list of whole numbers or null, got 3"),
        ({"lenth": 12}, "unknown parameter of my.world 'lenth'; nearest: 'length'"),
        ({"kind": "wide"}, "my.world needs its parameter 'length', got ['kind']"),
    ],
)
def test_and_refuses_the_rest_by_name(given, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        fitted_arguments("my.world", world, given)


@pytest.mark.parametrize("params", [{}, {"size": 9}, {"size": 9.0}])
def test_an_environment_of_ones_own_is_the_same_with_its_default_given(params, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "scripts" / "examples")

    def program(**kwargs):
        env = make("keydoor.keydoor", aux=(), **kwargs)
        state = jax.eval_shape(env.reset, jax.random.key(0))[0]
        return str(jax.make_jaxpr(env.step)(jax.random.key(0), state, jnp.int32(0)))

    assert program(**params) == program()
