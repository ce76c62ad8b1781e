"""A user's function is pure, or it is named before training starts."""

import random
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmrl.envs import make, with_captioner
from llmrl.envs.captions import cartpole
from llmrl.envs.tracing import described, traced

COUNT = []
KEPT = {}


def numpys_dice(x):
    return x * np.random.default_rng().random(dtype=np.float32)


def pythons_dice(x):
    return x + jnp.asarray([random.random()], jnp.float32)


def the_clock(x):
    return x * jnp.float32(time.perf_counter_ns() % 1_000_003)


def counting(x):
    COUNT.append(None)
    return x + jnp.float32(len(COUNT))


def remembering(x):
    before = KEPT.get("x", 0.0)
    KEPT["x"] = x
    return x + before


def calling_out(x):
    return jax.experimental.io_callback(lambda y: y, jax.ShapeDtypeStruct((), jnp.float32), x)


@jax.jit
def dice_in_an_array(x):
    return x + jnp.asarray(np.random.default_rng().random(3), jnp.float32).sum()


def in_a_branch(x):
    return jax.lax.cond(x > 0, lambda: jitted_dice(x), lambda: x)


jitted_dice = jax.jit(numpys_dice)
IMPURE = (numpys_dice, pythons_dice, the_clock, counting, remembering)
JITTED = (jitted_dice, jax.jit(pythons_dice), jax.jit(the_clock), jax.jit(counting), dice_in_an_array, in_a_branch)
SCALAR = jax.ShapeDtypeStruct((), jnp.float32)


@pytest.mark.parametrize("function", (*IMPURE, *JITTED))
def test_what_is_not_pure_is_named(function):
    with pytest.raises(ValueError, match=r"my function is not pure: traced .* do better"):
        traced("my function", function, SCALAR, hint="do better")


def rarely(draw):
    """A program that hardly ever differs from one trace to the next."""
    return lambda x: x + 1.0 if draw() < 1e-12 else x


@pytest.mark.parametrize("draw", [np.random.rand, np.random.standard_normal])
def test_numpys_global_generator_may_not_be_drawn_from(draw):
    for function in (rarely(lambda: abs(draw())), jax.jit(rarely(lambda: abs(draw())))):
        with pytest.raises(ValueError, match=r"my function is not pure: it draws from numpy's random.* do better"):
            traced("my function", function, SCALAR, hint="do better")


def test_what_a_type_checker_draws_for_itself_is_no_impurity():
    """beartype chooses by Python's own generator which items of a sequence it looks at."""

    def checked(x):
        random.getrandbits(32)
        return x + 1.0

    assert traced("my function", checked, SCALAR, hint="do better").shape == ()


def test_a_generator_of_its_own_with_a_seed_is_pure():
    def fixed(x):
        np.random.seed(3)
        own = np.random.default_rng(0).random() + random.Random(0).random() + np.random.rand()
        return x + jnp.float32(own)

    assert traced("my function", fixed, SCALAR, hint="do better").shape == ()


def test_what_asks_the_host_is_named():

    with pytest.raises(ValueError, match="my function is not pure: it reads or writes something outside"):
        traced("my function", calling_out, SCALAR, hint="do better")


def learned(x):
    """Constants, randomness from a key, custom derivatives and branches are all pure."""
    table = jnp.asarray(np.arange(3.0), jnp.float32)
    noise = jax.random.normal(jax.random.key(3))
    return jax.nn.relu(x) + table.sum() + noise + jax.lax.cond(x > 0, lambda: x, lambda: -x)


def printing(x):
    jax.debug.print("{}", x)
    return x


@pytest.mark.parametrize("function", [learned, jax.jit(learned), printing])
def test_what_is_pure_passes(function):
    assert traced("my function", function, SCALAR, hint="").shape == ()


def test_an_error_says_where_in_whose_code():
    def takes(x):
        return x.missing

    line = takes.__code__.co_firstlineno + 1
    with pytest.raises(
        ValueError, match=rf"my function failed: AttributeError.*missing.* \(test_tracing\.py, line {line}\)"
    ):
        traced("my function", takes, SCALAR, hint="")


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        ({"speed": "slow"}, r"returned 'slow' as \['speed'\], which is no array"),
        ((1.0, object()), r"returned <object.*> as \[1\]"),
        (np.array(["a", "b"]), r"returned .* which is no array"),
    ],
)
def test_what_is_no_array_is_named_with_its_place(returned, says):
    with pytest.raises(TypeError, match=says):
        traced("my function", lambda x: returned, SCALAR, hint="")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (jax.ShapeDtypeStruct((3,), jnp.int32), "int32[3]"),
        ((jnp.zeros(()), {"x": jnp.zeros((2, 1), jnp.bool_)}), "(float32[], {'x': bool[2, 1]})"),
        (None, "None"),
        ("two\nlines", "'two\\nlines'"),
        ([0.5, "x"], "[0.5, 'x']"),
    ],
)
def test_what_was_returned_in_one_line(value, words):
    assert described(value) == words


def impatient(state, action, next_state):
    return jnp.float32(time.perf_counter_ns() % 1_000_003)


def test_an_impure_source_is_refused_with_its_own_name():
    with pytest.raises(ValueError, match=r"auxiliary function \S*impatient is not pure"):
        make("cartpole", aux=(), aux_function=impatient)


def test_a_captioner_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    (tmp_path / "speechless_for_tests.py").write_text("def broken():\n    raise OSError('no words today')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"captioner speechless_for_tests\.broken failed: OSError: no words today"):
        with_captioner(make("cartpole", aux=()), "speechless_for_tests.broken")


@pytest.mark.parametrize(
    ("captioner", "says"),
    [
        (cartpole()._replace(describe=lambda key: 3), r"describe\(key\) returned 3; expected a text"),
        (cartpole()._replace(describe=lambda key: {}["x"]), r"describe\(key\) failed: KeyError"),
        (cartpole()._replace(state_key=lambda obs: jnp.uint32(time.perf_counter_ns() % 997)), "state_key.* not pure"),
        (cartpole()._replace(state_key=lambda obs: obs[0]), r"state_key\(obs\) returned .*float32.*expected"),
        (cartpole()._replace(event=lambda obs, action, then: action[None]), r"event\(.*\) returned .*expected"),
    ],
)
def test_a_wrong_captioner_is_refused(captioner, says):
    with pytest.raises((ValueError, TypeError), match=says):
        with_captioner(make("cartpole", aux=()), captioner)
