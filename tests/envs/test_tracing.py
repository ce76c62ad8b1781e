"""A user's function is pure, or it is named before training starts."""

import random
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmrl.envs import make, with_captioner
from llmrl.envs.captions import cartpole
from llmrl.envs.tracing import traced

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


IMPURE = (numpys_dice, pythons_dice, the_clock, counting, remembering)
SCALAR = jax.ShapeDtypeStruct((), jnp.float32)


@pytest.mark.parametrize("function", IMPURE)
def test_what_is_not_pure_is_named(function):
    with pytest.raises(ValueError, match=r"my function is not pure: traced .* do better"):
        traced("my function", function, SCALAR, hint="do better")


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
