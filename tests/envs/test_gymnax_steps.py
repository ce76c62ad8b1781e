"""What is taken of a gymnax environment: its outermost step, and a state of the same dtypes before and after it."""

import functools
import itertools

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from gymnax.environments import spaces
from gymnax.environments.classic_control.cartpole import CartPole
from gymnax.environments.environment import Environment, EnvParams
from gymnax.wrappers import FlattenObservationWrapper, LegacyStepAPIWrapper, LogWrapper, StickyActionWrapper
from gymnax.wrappers.purerl import GymnaxWrapper

from llmrl.envs import from_gymnax
from llmrl.learner.rollout import collect, reset_all
from llmrl.nets import Policy
from llmrl.ops.distributions import Categorical
from llmrl.results.evaluate import play

KEY = jax.random.key(0)


@struct.dataclass
class State:
    time: int
    seen: jax.Array


class Drifting(Environment):
    """``seen`` is of one dtype after reset and of another after a step."""

    def __init__(self, first, later):
        self.first, self.later = first, later

    def reset_env(self, key, params):
        return jnp.zeros(1), State(0, self.first)

    def step_env(self, key, state, action, params):
        seen = self.later if self.later is None or isinstance(self.later, int | float) else jnp.asarray(self.later)
        return jnp.zeros(1), State(state.time + 1, seen), 0.0, False, {}

    def action_space(self, params):
        return spaces.Discrete(2)

    def observation_space(self, params):
        return spaces.Box(0.0, 1.0, (1,))


NUMBERS = {
    "Python int": 1,
    "Python float": 1.0,
    "Python bool": True,
    **{kind: jnp.ones((), kind) for kind in ("bool", "int8", "uint8", "int32", "uint32", "float16", "float32")},
}
REFUSED = {frozenset(pair) for pair in (("int8", "uint8"), ("int32", "uint32"), ("int8", "uint32"))}


@pytest.mark.parametrize(("first", "later"), list(itertools.product(NUMBERS, NUMBERS)))
def test_a_state_has_the_same_dtypes_before_and_after_a_step(first, later):
    drifting = Drifting(NUMBERS[first], NUMBERS[later])
    if frozenset((first, later)) in REFUSED:
        says = rf"Drifting: leaf .seen of the state is {first}\[\] after reset and {later}\[\] after a step"
        with pytest.raises(ValueError, match=says):
            from_gymnax(drifting, EnvParams())
        return
    env = from_gymnax(drifting, EnvParams())
    state, _ = jax.eval_shape(env.reset, KEY)
    reached, _ = jax.eval_shape(env.step, KEY, state, jnp.int32(0))
    with jax.numpy_dtype_promotion("standard"):
        assert state.seen.dtype == reached.seen.dtype == jnp.result_type(NUMBERS[first], NUMBERS[later])
    assert float(env.reset(KEY)[0].seen) == 1.0


@pytest.mark.parametrize(
    ("first", "later", "says"),
    [
        (KEY, 1.0, "leaf .seen of the state is key<fry>[] after reset and float32[] after a step"),
        (1.0, jnp.zeros(3), "leaf .seen of the state is float32[] after reset and float32[3] after a step"),
        (1.0, None, "Drifting: reset gives a state of structure"),
        (1.0, "word", "Drifting: step failed: TypeError"),
        ("word", 1.0, "Drifting: reset failed: TypeError"),
    ],
)
def test_what_cannot_be_made_alike_is_refused_by_name(first, later, says):
    with pytest.raises(ValueError) as error:
        from_gymnax(Drifting(first, later), EnvParams())
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["max_oxygen", "diver_spawn_speed", "shot_cool_down"])
def test_a_parameter_that_makes_a_float_of_an_integer_does_so_from_the_start(name):
    theirs, params = gymnax.make("Seaquest-MinAtar")
    env = from_gymnax(theirs, params.replace(**{name: getattr(params, name) + 0.5}))
    state, _ = jax.eval_shape(env.reset, KEY)
    reached, _ = jax.eval_shape(env.step, KEY, state, jnp.int32(0))
    assert jax.tree.map(lambda x: x.dtype, state) == jax.tree.map(lambda x: x.dtype, reached)


class Halves(Drifting):
    """An integer at first, in halves from then on; they are the reward."""

    def __init__(self):
        super().__init__(0, None)

    def step_env(self, key, state, action, params):
        seen = state.seen + 0.5
        return jnp.zeros(1), State(state.time + 1, seen), seen, False, {}


def test_what_starts_as_a_python_number_is_collected_and_evaluated_as_the_same_number():
    env = from_gymnax(Halves(), EnvParams(max_steps_in_episode=3))
    policy = Policy(lambda key: (), lambda params, obs: Categorical(jnp.full((*obs.shape[:-1], 2), -jnp.log(2.0))))
    _, rollout = jax.jit(lambda key: collect(env, policy, (), reset_all(env, key, 2, 6), key, 6))(KEY)
    np.testing.assert_array_equal(rollout.steps.reward[:, 0], [0.5, 1.0, 1.5, 0.5, 1.0, 1.5])
    assert float(jax.jit(lambda key: play(env, policy, (), key))(KEY).episode_return) == 3.0


# --- wrappers ---------------------------------------------------------------------------------------------------------


class Tenth(GymnaxWrapper):
    def step(self, key, state, action, params=None):
        obs, state, reward, *others = self._env.step(key, state, action, params)
        return obs, state, 0.1 * reward, *others


class Twice(GymnaxWrapper):
    def step(self, key, state, action, params=None):
        first, second = jax.random.split(key)
        _, state, one, *_ = self._env.step(first, state, action, params)
        obs, state, other, *others = self._env.step(second, state, action, params)
        return obs, state, one + other, *others


class Early(GymnaxWrapper):
    def step(self, key, state, action, params=None):
        obs, state, reward, terminated, truncated, info = self._env.step(key, state, action, params)
        return obs, state, reward, terminated | (obs[0] > 0.03), truncated, info


class Halved(GymnaxWrapper):
    def step_env(self, key, state, action, params):
        obs, state, reward, *others = self._env.step_env(key, state, action, params)
        return obs, state, 0.5 * reward, *others


class Reckless(CartPole):
    def step(self, key, state, action, params=None):
        return super().step(key, state, 1 - action, params)


WRAPPERS = {
    "sticky": functools.partial(StickyActionWrapper, sticky_action_prob=0.5),
    "log": LogWrapper,
    "flat": FlattenObservationWrapper,
    "tenth": Tenth,
    "twice": Twice,
    "early": Early,
    "two": lambda env: LogWrapper(Tenth(env)),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapped_step_equals_gymnax_s_until_the_episode_ends(name):
    wrapped, params = WRAPPERS[name](CartPole()), CartPole().default_params
    env, steps = from_gymnax(wrapped, params, name=name), 8

    def their_step(state, key):
        _, state, reward, terminated, truncated, info = wrapped.step(key, state, 0, params)
        return state, (info["final_observation"], reward, terminated, truncated)

    def our_step(state, key):
        state, result = env.step(key, state, jnp.int32(0))
        return state, (result.obs, result.reward, result.terminated, result.truncated)

    keys = jax.random.split(KEY, steps)
    with jax.numpy_dtype_promotion("standard"):
        _, theirs = jax.jit(lambda state: jax.lax.scan(their_step, state, keys))(wrapped.reset(KEY, params)[1])
    _, ours = jax.jit(lambda state: jax.lax.scan(our_step, state, keys))(env.reset(KEY)[0])
    ended = np.flatnonzero(np.asarray(theirs[2]) | np.asarray(theirs[3]))
    played = (int(ended[0]) if len(ended) else steps) + (name != "twice")  # whose steps may end an episode half-way
    for found, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(found[:played], expected[:played], rtol=1e-6)


def test_a_wrapped_episode_ends_where_it_ended_and_is_not_reset():
    env = from_gymnax(LogWrapper(CartPole()), CartPole().default_params)
    state, result = jax.jit(
        lambda: jax.lax.scan(lambda state, _: env.step(KEY, state, jnp.int32(0)), env.reset(KEY)[0], length=12)
    )()
    result = jax.tree.map(lambda x: x[-1], result)
    assert result.terminated and abs(result.obs[2]) > 0.2
    np.testing.assert_array_equal(
        result.obs, [getattr(state.env_state, n) for n in ("x", "x_dot", "theta", "theta_dot")]
    )


def test_a_wrapper_of_step_env_counts_too():
    env = from_gymnax(Halved(CartPole()), CartPole().default_params)
    assert env.step(KEY, env.reset(KEY)[0], jnp.int32(0))[1].reward == 0.5


def replaced(env, name):
    """The same object with a function of its own; ``step_env`` pays the half."""
    original = getattr(env, name)

    def function(*arguments):
        obs, state, *others = original(*arguments)
        return obs, state, *(0.5 * reward for reward in others[:1]), *others[1:]

    setattr(env, name, function)
    return env


@pytest.mark.parametrize("wrap", [lambda env: env, LogWrapper, Tenth])
def test_a_step_env_of_an_object_s_own_counts_too(wrap):
    plain, half = (from_gymnax(wrap(env), env.default_params) for env in (CartPole(), replaced(CartPole(), "step_env")))
    state, action = plain.reset(KEY)[0], jnp.int32(0)
    assert half.step(KEY, state, action)[1].reward == 0.5 * plain.step(KEY, state, action)[1].reward


@pytest.mark.parametrize(
    ("env", "says"),
    [
        (replaced(CartPole(), "step"), "CartPole-v1: step of this CartPole object was replaced, and would be left out"),
        (replaced(CartPole(), "reset"), "CartPole-v1: reset of this CartPole object was replaced"),
        (Tenth(replaced(CartPole(), "step")), "CartPole-v1: step of this CartPole object was replaced"),
        (replaced(Tenth(CartPole()), "step"), "CartPole-v1: step of this Tenth object was replaced"),
        (LogWrapper(replaced(Halved(CartPole()), "reset")), "CartPole-v1: reset of this Halved object was replaced"),
        (Tenth(replaced(GymnaxWrapper(CartPole()), "step_env")), "wrapper GymnaxWrapper changes step_env and Tenth"),
        (Reckless(), "CartPole-v1: Reckless.step changes what step_env does, and would be left out"),
        (Tenth(Halved(CartPole())), "wrapper Halved changes step_env and Tenth step"),
        (LegacyStepAPIWrapper(CartPole()), "LegacyStepAPIWrapper.step returned 5 values; expected (obs, state, reward"),
    ],
)
def test_steps_that_cannot_be_taken_are_refused(env, says):
    with pytest.raises(ValueError) as error:
        from_gymnax(env, CartPole().default_params)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_nothing_of_the_user_s_wrapper_is_changed():
    wrapped = Tenth(CartPole())
    inner = wrapped._env
    from_gymnax(wrapped, CartPole().default_params)
    assert wrapped._env is inner and "step" not in vars(inner)
