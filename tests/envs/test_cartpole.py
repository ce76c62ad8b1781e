"""CartPole against gymnax side by side, and the hints against their definitions on hand-made states."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments.classic_control.cartpole import CartPole, EnvState

from llmrl.envs import cartpole as room
from llmrl.envs import make
from llmrl.types import Box, Discrete

KEY = jax.random.key(0)


@pytest.fixture
def their_promotion():
    """Stepping gymnax itself needs the implicit promotions that the other tests forbid."""
    with jax.numpy_dtype_promotion("standard"):
        yield


LEFT, RIGHT = jnp.asarray(0, jnp.int32), jnp.asarray(1, jnp.int32)


def physical(x=0.0, x_dot=0.0, theta=0.0, theta_dot=0.0, time=0):
    numbers = {"x": x, "x_dot": x_dot, "theta": theta, "theta_dot": theta_dot}
    # By name: gymnax's dataclass inherits `time` as its first field, whatever its own listing suggests.
    return EnvState(time=jnp.asarray(time, jnp.int32), **{k: jnp.asarray(v, jnp.float32) for k, v in numbers.items()})


def random_states(key, num):
    # A little beyond the limits, so that some of the next states are ends.
    low_high = jnp.asarray([2.6, 2.0, 0.23, 2.0])
    x, x_dot, theta, theta_dot = jax.random.uniform(key, (num, 4), jnp.float32, -low_high, low_high).T
    return EnvState(x=x, x_dot=x_dot, theta=theta, theta_dot=theta_dot, time=jnp.zeros((num,), jnp.int32))


# --- physics --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cartpole", "cartpole_continuous"])
def test_one_step_equals_gymnax_from_the_same_state(name, their_promotion):
    num = 64
    state_key, action_key = jax.random.split(KEY)
    states, keys = random_states(state_key, num), jax.random.split(KEY, num)
    env, theirs = make(name, aux=()), CartPole()
    if name == "cartpole":
        actions = native = jax.random.randint(action_key, (num,), 0, 2)
    else:
        # Half of them out of bounds, as a Gaussian policy draws them.
        actions = 2.0 * jax.random.normal(action_key, (num, 1))
        native = (jnp.clip(actions[:, 0], -1.0, 1.0) + 1.0) / 2.0
    next_states, result = jax.jit(jax.vmap(env.step))(keys, states, actions)
    step = jax.jit(jax.vmap(lambda *a: theirs.step_env(*a, theirs.default_params)))
    expected_obs, expected_states, _, expected_terminated, _ = step(keys, states, native)

    jax.tree.map(lambda ours, gymnax: np.testing.assert_allclose(ours, gymnax, rtol=1e-6), next_states, expected_states)
    np.testing.assert_allclose(result.obs, expected_obs, rtol=1e-6)
    assert 0 < int(expected_terminated.sum()) < num
    np.testing.assert_array_equal(result.terminated, expected_terminated)
    np.testing.assert_array_equal(result.reward, -expected_terminated.astype(jnp.float32))


@pytest.mark.parametrize("force", [10.0, 15.0])
def test_a_full_push_equals_the_discrete_action(force, their_promotion):
    continuous = make("cartpole_continuous", aux=(), force=force)
    theirs = CartPole()
    params = theirs.default_params.replace(force_mag=force)
    state = physical(x=0.3, theta=0.05, theta_dot=-0.4)
    for push, action in [(-1.0, 0), (1.0, 1)]:
        reached, _ = continuous.step(KEY, state, jnp.asarray([push]))
        _, expected, *_ = theirs.step_env(KEY, state, action, params)
        np.testing.assert_allclose(jax.tree.leaves(reached), jax.tree.leaves(expected), rtol=1e-6)


def test_reset_equals_gymnax():
    state, obs = make("cartpole", aux=()).reset(KEY)
    expected_obs, expected = CartPole().reset_env(KEY, CartPole().default_params)
    np.testing.assert_array_equal(obs, expected_obs)
    np.testing.assert_array_equal(state.theta, expected.theta)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(state))


def test_specs():
    spec = make("cartpole").spec
    assert (spec.obs_shape, spec.action, spec.horizon) == ((4,), Discrete(2), 200)
    assert spec.obs_scale == (2.4, 2.0, 0.21, 2.0) and len(spec.obs_names) == 4 and spec.aux_names == ("harmful",)
    assert make("cartpole_continuous").spec.action == Box(1, -1.0, 1.0)


# --- rewards and ends -----------------------------------------------------------------------------------------------


FALLS = [{"theta": 0.2, "theta_dot": 2.0}, {"x": 2.39, "x_dot": 2.0}, {"x": -2.39, "x_dot": -2.0}]


@pytest.mark.parametrize("fallen", FALLS)
@pytest.mark.parametrize(("reward", "expected"), [("sparse", (-1.0, 0.0)), ("dense", (1.0, 1.0))])
def test_failing_terminates_and_is_no_success(fallen, reward, expected):
    env = make("cartpole", aux=(), reward=reward)
    _, failed = env.step(KEY, physical(**fallen), RIGHT)
    _, standing = env.step(KEY, physical(), RIGHT)
    assert bool(failed.terminated) and not bool(standing.terminated)
    assert (float(failed.reward), float(standing.reward)) == expected
    # At the last step too: who falls on it has not made it.
    _, late = env.step(KEY, physical(**fallen, time=199), RIGHT)
    assert bool(late.terminated) and bool(late.truncated) and not bool(late.success)


@pytest.mark.parametrize("horizon", [1, 7, 200])
def test_truncated_at_exactly_the_horizon(horizon):
    env = make("cartpole", aux=(), horizon=horizon)
    for time in {0, horizon - 2, horizon - 1} - {-1}:
        _, result = env.step(KEY, physical(time=time), RIGHT)
        assert bool(result.truncated) == bool(result.success) == (time == horizon - 1)
        assert not bool(result.terminated)


def test_a_balancing_episode_lasts_the_horizon():
    """The end-to-end count: reset, steps, and the truncation on step 30 and on no other."""
    env = make("cartpole", aux=("beneficial",), horizon=30)

    def step(carry, key):
        state, obs = carry
        action = (obs[2] + 0.3 * obs[3] > 0.0).astype(jnp.int32)
        state, result = env.step(key, state, action)
        return (state, result.obs), result

    _, results = jax.jit(lambda key: jax.lax.scan(step, env.reset(key), jax.random.split(key, 30)))(KEY)
    assert np.flatnonzero(results.truncated).tolist() == np.flatnonzero(results.success).tolist() == [29]
    assert not bool(results.terminated.any()) and float(jnp.abs(results.reward).sum()) == 0.0


# --- hints ----------------------------------------------------------------------------------------------------------


def aux(name, state, action, next_state=None, **options):
    value = room.AUX_SOURCES[name](**options)(state, action, state if next_state is None else next_state)
    return pytest.approx(float(value), abs=1e-7)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (0.10, 0.05, -0.1),
        (-0.10, -0.05, -0.1),
        (-0.10, 0.05, -0.1),
        (0.10, 0.15, 0.0),
        (-0.10, -0.15, 0.0),
        (0.05, -0.10, 0.0),
        (0.10, 0.10, 0.0),
        (0.10, -0.10, 0.0),
    ],
)
def test_harmful_punishes_a_smaller_angle(before, after, expected):
    assert aux("harmful", physical(theta=before), RIGHT, physical(theta=after)) == expected


@pytest.mark.parametrize("theta", [0.1, -0.1, 0.0, 1e-30])
@pytest.mark.parametrize("push", [1.0, -1.0, 0.0, 1e-30])
def test_beneficial_rewards_a_push_to_the_pole_s_side(theta, push):
    expected = 0.1 if np.sign(theta) == np.sign(push) != 0 else 0.0
    assert aux("beneficial", physical(theta=theta), jnp.asarray([push], jnp.float32)) == expected
    if abs(push) == 1.0:
        assert aux("beneficial", physical(theta=theta), RIGHT if push > 0 else LEFT) == expected


@pytest.mark.parametrize(("x", "sign"), [(1.0, 1.0), (0.0, 1.0), (-1.0, -1.0)])
def test_half_right_is_right_on_the_right(x, sign):
    state = physical(x=x, theta=0.1)
    assert aux("half_right", state, RIGHT) == sign * 0.1
    assert aux("half_right", state, LEFT) == 0.0


@pytest.mark.parametrize(("x", "sign"), [(1.0, 1.0), (0.0, 1.0), (-1.0, -1.0)])
def test_half_right_judges_a_push_as_it_judges_an_action(x, sign):
    for theta, push in [(0.1, 0.3), (-0.1, -0.3), (0.1, -0.3), (-0.1, 0.3), (0.1, 0.0)]:
        expected = sign * 0.1 if theta * push > 0 else 0.0
        assert aux("half_right", physical(x=x, theta=theta), jnp.asarray([push])) == expected


PAID = {"pd_good": (1.0, 0.0), "pd_best": (5.0, -1.0), "pd_bad": (-5.0, 1.0)}
"""For agreeing with the controller, and for not."""


@pytest.mark.parametrize("name", PAID)
@pytest.mark.parametrize("gains", [{}, {"proportional": 0.3, "derivative": 5.0}])
def test_a_controller_judges_by_its_own_push(name, gains):
    states = random_states(KEY, 200)
    p, d = gains.get("proportional", 0.1), gains.get("derivative", 0.1 if name == "pd_good" else 0.5)
    change = CartPole().default_params.tau * np.asarray(states.theta_dot)
    wanted = np.where(p * np.asarray(states.theta) + d * change > 0, 1, 0)
    agrees = {action: np.where(wanted == action, *PAID[name]) for action in (0, 1)}
    source = room.AUX_SOURCES[name](**gains)

    def judged(action):
        return jax.vmap(lambda state: source(state, action, state))(states)

    for action, pushes in [(LEFT, (-1.0, -0.01)), (RIGHT, (1.0, 0.01))]:
        np.testing.assert_array_equal(judged(action), agrees[int(action)])
        for push in pushes:
            np.testing.assert_array_equal(judged(jnp.asarray([push])), agrees[int(action)])
    assert 50 < wanted.sum() < 150


def test_the_controller_holds_the_pole():
    """Who does what the controllers praise survives; with half their damping, not for long."""
    env = make("cartpole", aux=("pd_good", "pd_best"), horizon=500)

    def steps_survived(derivative):
        def step(carry, key):
            state, obs, alive = carry
            action = (0.1 * obs[2] + derivative * 0.02 * obs[3] > 0.0).astype(jnp.int32)
            state, result = env.step(key, state, action)
            return (state, result.obs, alive & ~result.terminated), (alive, result.aux)

        keys = jax.random.split(KEY, 8)
        start = jax.vmap(env.reset)(keys)
        run = jax.vmap(lambda s, o: jax.lax.scan(step, (s, o, jnp.asarray(True)), jax.random.split(KEY, 500))[1])
        alive, praise = run(*start)
        return alive.sum(axis=1), praise[..., 0].min(), praise[..., 1].min()

    (good, praised, _), (best, _, most) = steps_survived(0.1), steps_survived(0.5)
    assert int(good.min()) > 400 and praised == 1.0
    assert int(best.min()) == 500 and most == 5.0
    assert int(steps_survived(0.05)[0].max()) < 200


@pytest.mark.parametrize("name", ["cartpole", "cartpole_continuous"])
def test_noise_is_noise(name):
    """Uniform in [-1, 1], new at every step and for every seed, and about nothing: one state, one action."""
    env = make(name, aux=("noise", "beneficial"))
    state, action = physical(theta=0.1), RIGHT if name == "cartpole" else jnp.asarray([0.5])

    def drawn(seed):
        keys = jax.random.split(jax.random.key(seed), 4000)
        return np.asarray(jax.vmap(lambda key: env.step(key, state, action)[1].aux)(keys))

    values, other = drawn(0)[:, 0], drawn(1)[:, 0]
    assert np.abs(values).max() <= 1.0 and values.min() < -0.99 and values.max() > 0.99
    assert abs(values.mean()) < 4 * 0.577 / np.sqrt(4000) and abs(values.std() - 0.577) < 0.02
    assert np.abs(np.corrcoef(values[1:], values[:-1])[0, 1]) < 4 / np.sqrt(4000)
    assert np.abs(np.corrcoef(values, other)[0, 1]) < 4 / np.sqrt(4000)
    np.testing.assert_array_equal(values, drawn(0)[:, 0])
    np.testing.assert_allclose(drawn(0)[:, 1], 0.1)


def test_magnitudes_scale():
    state = physical(theta=0.1)
    assert aux("beneficial", state, RIGHT, magnitude=2.0) == 2.0
    assert aux("half_right", state, RIGHT, magnitude=2.0) == 2.0
    assert aux("harmful", state, RIGHT, physical(theta=0.05), magnitude=2.0) == -2.0


def test_harmful_pays_for_letting_the_pole_fall_and_beneficial_for_catching_it():
    """On real steps: the better policy by the one is the worse by the other."""

    def total(name, catches):
        env = make("cartpole", aux=(name,), horizon=8)

        def step(carry, key):
            state, obs = carry
            follow = obs[2] + 0.3 * obs[3] > 0.0
            state, result = env.step(key, state, (follow == catches).astype(jnp.int32))
            return (state, result.obs), result.aux[0]

        starts = jax.random.split(KEY, 16)
        run = jax.vmap(lambda key: jax.lax.scan(step, env.reset(key), jax.random.split(key, 8))[1])
        return float(run(starts).mean())

    assert total("harmful", True) < total("harmful", False)
    assert total("beneficial", True) > total("beneficial", False)


@pytest.mark.parametrize("continuous", [False, True])
def test_random_is_fixed_by_its_seed_and_fills_its_range(continuous):
    states = random_states(KEY, 500)
    if continuous:
        actions = jax.random.uniform(KEY, (500, 1), minval=-1.0, maxval=1.0)
    else:
        actions = jax.random.randint(KEY, (500,), 0, 2)

    def values_of(seed):
        noise = room.random(seed=seed)
        return jax.vmap(lambda state, action: noise(state, action, state))(states, actions)

    values, again, other = values_of(0), values_of(0), values_of(1)
    np.testing.assert_array_equal(values, again)
    assert float(jnp.abs(values - other).mean()) > 0.3
    assert float(values.min()) < -0.9 and float(values.max()) > 0.9 and float(jnp.abs(values).max()) <= 1.0
    assert 0.4 < float(values.std()) < 0.8


def test_random_depends_on_the_action():
    state, noise = physical(x=1.0, theta=0.1), room.random(seed=3)
    assert float(noise(state, LEFT, state)) != float(noise(state, RIGHT, state))
    assert float(noise(state, jnp.asarray([0.2]), state)) != float(noise(state, jnp.asarray([0.7]), state))


def test_hints_see_the_clipped_push():
    env = make("cartpole_continuous", aux=("random",))
    state = physical(x=1.0, theta=0.1)
    values = [float(env.step(KEY, state, jnp.asarray([push]))[1].aux[0]) for push in (1.0, 40.0)]
    assert values[0] == values[1]


def test_hints_read_only_what_they_name():
    """A hint needs no gymnax state, only its attributes: a user may call it on her own."""
    bare = SimpleNamespace(theta=jnp.float32(0.1))
    assert aux("beneficial", bare, RIGHT) == 0.1


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("force", [0.0, -1.0, float("nan")])
def test_force_is_positive(force):
    with pytest.raises(ValueError, match="force must be positive, got"):
        make("cartpole_continuous", force=force)


def test_unknown_reward_names_the_nearest():
    with pytest.raises(ValueError, match="unknown reward 'spars'; nearest: 'sparse'"):
        make("cartpole", reward="spars")
