"""gymnax's own functions and ours, stepped side by side."""

import functools

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces

from llmrl.envs import from_gymnax, step_with_reset
from llmrl.envs.gymnax_env import gymnax_env
from llmrl.types import Box, Discrete

KEY = jax.random.key(0)


@pytest.fixture
def their_promotion():
    """Stepping gymnax itself needs the implicit promotions that the other tests forbid."""
    with jax.numpy_dtype_promotion("standard"):
        yield


# MNISTBandit downloads its pictures when it is built.
IDS = [id for id in gymnax.registered_envs if "MNIST" not in id]


def sample(space, key):
    if isinstance(space, Discrete):
        return jax.random.randint(key, (), 0, space.num)
    return 1.5 * jax.random.normal(key, (space.dim,))


STEPPED = ["Pendulum-v1", "MountainCarContinuous-v0", "FourRooms-misc", "PointRobot-misc", "Catch-bsuite"]


@pytest.mark.parametrize("id", STEPPED)
def test_a_trajectory_equals_gymnax(id, their_promotion):
    ours = gymnax_env(id)
    theirs, params = gymnax.make(id)
    space = theirs.action_space(params)
    num = 12

    def ours_step(state, key):
        return ours.step(key, state, sample(ours.spec.action, key))

    def their_step(state, key):
        action = sample(ours.spec.action, key)
        if isinstance(ours.spec.action, Box):
            action = space.low + (jnp.clip(action, -1.0, 1.0) + 1.0) * (space.high - space.low) / 2.0
        obs, state, reward, terminated, _ = theirs.step_env(key, state, action, params)
        return state, (obs, reward, terminated, theirs.is_truncated(state, params))

    keys = jax.random.split(KEY, num)
    state, first_obs = ours.reset(KEY)
    their_obs, their_state = theirs.reset_env(KEY, params)
    np.testing.assert_array_equal(first_obs, jnp.asarray(their_obs, jnp.float32).reshape(-1))
    _, result = jax.jit(lambda s: jax.lax.scan(ours_step, s, keys))(state)
    _, (obs, reward, terminated, truncated) = jax.jit(lambda s: jax.lax.scan(their_step, s, keys))(their_state)
    np.testing.assert_allclose(result.obs, obs.reshape(num, -1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result.reward, reward, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(result.terminated, jnp.broadcast_to(terminated, (num,)))
    np.testing.assert_array_equal(result.truncated, truncated)


@pytest.mark.parametrize("id", IDS)
def test_every_id_keeps_the_protocol(id):
    """Shapes and dtypes only, so it is traced and never compiled; a state that drifts could not be scanned."""
    with jax.numpy_dtype_promotion("strict"):
        env = gymnax_env(id)
        action = jax.eval_shape(functools.partial(sample, env.spec.action), KEY)
        state, obs = jax.eval_shape(env.reset, KEY)
        next_state, result = jax.eval_shape(env.step, KEY, state, action)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(lambda x: (x.shape, x.dtype), next_state)
    assert obs.shape == result.obs.shape == env.spec.obs_shape and len(env.spec.obs_shape) == 1
    assert obs.dtype == result.obs.dtype == result.reward.dtype == jnp.float32
    assert result.terminated.dtype == result.truncated.dtype == jnp.bool_
    assert result.reward.shape == result.terminated.shape == result.truncated.shape == ()
    assert isinstance(env.spec.horizon, int)
    jax.eval_shape(jax.vmap(functools.partial(step_with_reset, env)), *batched((KEY, state, action, state, obs)))


def batched(tree):
    key, *rest = tree
    stack = jax.tree.map(lambda x: jax.ShapeDtypeStruct((3, *x.shape), x.dtype), rest)
    return jax.eval_shape(lambda: jax.random.split(key, 3)), *stack


@pytest.mark.parametrize("horizon", [1, 5])
def test_our_horizon_truncates_exactly(horizon):
    env = gymnax_env("Pendulum-v1", horizon=horizon)
    assert env.spec.horizon == horizon
    state, _ = env.reset(KEY)
    step = jax.jit(env.step)
    ends = []
    for _ in range(horizon):
        state, result = step(KEY, state, jnp.zeros((1,)))
        ends.append(bool(result.truncated))
        assert not bool(result.terminated)
    assert ends == [False] * (horizon - 1) + [True]


def test_gymnax_s_horizon_is_the_default():
    assert gymnax_env("Pendulum-v1").spec.horizon == 200
    assert gymnax_env("Pendulum-v1", max_steps_in_episode=7).spec.horizon == 7


def test_reaching_the_goal_terminates_and_does_not_truncate():
    env = gymnax_env("MountainCar-v0")
    state, _ = env.reset(KEY)
    _, result = env.step(KEY, state.replace(position=jnp.float32(0.49), velocity=jnp.float32(0.07)), jnp.asarray(2))
    assert bool(result.terminated) and not bool(result.truncated)


def test_parameters_reach_the_physics():
    state, _ = gymnax_env("Pendulum-v1").reset(KEY)
    heavy, light = [gymnax_env("Pendulum-v1", g=g).step(KEY, state, jnp.zeros((1,)))[1].obs for g in (10.0, 1.0)]
    assert float(jnp.abs(heavy - light).max()) > 1e-3


@pytest.mark.parametrize("action", [-1.0, -0.3, 0.0, 1.0, 9.0])
def test_actions_are_clipped_and_stretched_to_the_native_bounds(action):
    env = gymnax_env("PointRobot-misc")
    assert env.spec.action == Box(2, -1.0, 1.0)
    state, _ = env.reset(KEY)
    reached, _ = env.step(KEY, state, jnp.asarray([action, 0.0]))
    np.testing.assert_allclose(reached.last_action, [0.1 * min(action, 1.0), 0.0], rtol=1e-6, atol=1e-9)


def test_integer_observations_become_one_hot():
    env = gymnax_env("FrozenLake-misc")
    assert env.spec.obs_shape == (16,)
    assert env.reset(KEY)[1].tolist() == [1.0] + [0.0] * 15


def test_scales_come_from_meaningful_bounds_only():
    assert gymnax_env("Pendulum-v1").spec.obs_scale == (1.0, 1.0, 8.0)
    assert gymnax_env("CartPole-v1").spec.obs_scale == pytest.approx((4.8, 1.0, 0.41887903, 1.0))
    assert gymnax_env("Breakout-MinAtar").spec.obs_scale == 1.0


def test_an_environment_object_of_one_s_own():
    env, params = gymnax.make("DeepSea-bsuite", size=5)
    ours = from_gymnax(env, params, name="deep")
    assert (ours.spec.name, ours.spec.obs_shape, ours.spec.horizon) == ("deep", (25,), 5)


@pytest.mark.parametrize("space", [spaces.Box(-np.inf, 1.0, (2,)), spaces.Tuple(())])
def test_spaces_that_we_cannot_serve_are_refused(space, monkeypatch):
    env, params = gymnax.make("Pendulum-v1")
    monkeypatch.setattr(env, "action_space", lambda params: space)
    with pytest.raises(ValueError, match="Pendulum-v1: action space"):
        from_gymnax(env, params)


@pytest.mark.parametrize(
    ("id", "kwargs", "says"),
    [
        ("pendulum", {}, "unknown gymnax environment 'pendulum'; nearest: 'Pendulum-v1'"),
        ("Pendulum-v1", {"max_torqe": 1.0}, "unknown parameter of Pendulum-v1 'max_torqe'; nearest: 'max_torque'"),
        ("Pendulum-v1", {"horizn": 1}, "nearest: 'horizon'"),
        ("Pendulum-v1", {"horizon": -1}, "horizon must be a positive integer, got -1"),
    ],
)
def test_refusals(id, kwargs, says):
    with pytest.raises(ValueError, match=says):
        gymnax_env(id, **kwargs)
