"""What PPO differentiates is the same network with the same gradient, however wide its layers are; where a reward's
network starts to tell states apart."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llmrl.nets import make_critic, make_features, make_policy, make_reward_net
from llmrl.ops.losses import with_clipped_cotangent
from llmrl.ops.optimizers import own_promotion
from llmrl.types import Box, Discrete, EnvSpec

DISCRETE = EnvSpec("none", (4,), Discrete(2), 10, ("first",))
CONTINUOUS = EnvSpec("none", (4,), Box(2), 10, ("first",))


def close(a, b):
    """To rounding, in units of the largest number of each array: sums are taken in another order."""
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * float(1.0 + jnp.abs(y).max())), a, b)


def directions(tree):
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), tree)


@pytest.mark.parametrize("spec", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])
@pytest.mark.parametrize("hidden", [(16, 16), (3,), (2, 32)], ids=str)
def test_the_policy_of_updates_has_the_gradient_and_curvature_of_the_policy(spec, hidden):
    policy = make_policy(spec, hidden)
    params = directions(policy.init(jax.random.key(0)))
    obs = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5, 4)), jnp.float32)

    def loss(distribution):
        return lambda p: jnp.mean(jnp.sin(distribution(p, obs).entropy() + sum(map(jnp.sum, distribution(p, obs)))))

    plain, quick = loss(policy.distribution), loss(policy.in_updates)
    close(jax.value_and_grad(quick)(params), jax.value_and_grad(plain)(params))
    v = directions(params)
    close(*(jax.jvp(jax.grad(f), (params,), (v,))[1] for f in (quick, plain)))


def test_seeds_side_by_side_are_no_other():
    critic = make_critic(DISCRETE, (16, 16), 3)
    params = jax.vmap(critic.init)(jax.random.split(jax.random.key(0), 2))
    obs = jnp.asarray(np.random.default_rng(0).normal(size=(2, 40, 4)), jnp.float32)

    def slope(p, x):
        return jax.grad(lambda q: jnp.mean(jnp.square(critic.value(q, x) - 1.0)))(p)

    together = jax.vmap(slope)(params, obs)
    for i in range(2):
        close(jax.tree.map(lambda x, i=i: x[i], together), slope(jax.tree.map(lambda x, i=i: x[i], params), obs[i]))


ONE = EnvSpec("none", (1,), Discrete(2), 10, ("first",))


def test_spread_places_the_units_and_leaves_the_output_at_0():
    x = jnp.linspace(-2.0, 2.0, 9)[:, None]
    plain, wide = (make_reward_net(ONE, (64, 8), 1, sees_action=False, spread=spread) for spread in (0.0, 2.0))
    start, spread = (net.init(jax.random.key(0))["params"] for net in (plain, wide))
    np.testing.assert_array_equal(wide.apply({"params": spread}, x, None), 0.0)
    np.testing.assert_allclose(spread["Dense_0"]["kernel"], 2.0 * start["Dense_0"]["kernel"], rtol=1e-6)
    assert not np.any(start["Dense_0"]["bias"]) and 1.4 < np.std(spread["Dense_0"]["bias"]) < 2.6
    jax.tree.map(np.testing.assert_array_equal, spread["Dense_1"], start["Dense_1"])  # only the first layer is placed


LINE = jnp.linspace(-2.0, 2.0, 401)[:, None]


def learned_on_a_line(worth, length, key, spread, clip=None):
    """Weights on ``LINE`` after so many steps of Adam on the sum of what they are worth."""
    adam = own_promotion(optax.adam(2e-3))
    net = make_reward_net(ONE, (32,), 1, sees_action=False, spread=spread)

    def weight(params):
        told = net.apply(params, LINE, None)
        return (told if clip is None else with_clipped_cotangent(told, clip))[..., 0]

    def step(carry, _):
        params, state = carry
        steps, state = adam.update(jax.grad(lambda p: -jnp.mean(worth * weight(p)))(params), state)
        return (optax.apply_updates(params, steps), state), None

    params = net.init(key)
    return weight(jax.lax.scan(step, (params, adam.init(params)), None, length=length)[0][0])


def test_with_spread_a_border_away_from_the_mean_is_learned_in_fewer_steps():
    """A source that is right from one deviation above the mean on."""
    right = jnp.sign(LINE[:, 0] - 1.0)

    def share(spread, key):
        return jnp.mean(jnp.sign(learned_on_a_line(right, 30, key, spread)) == right)

    keys = jax.random.split(jax.random.key(0), 8)
    together, apart = (np.asarray(jax.jit(jax.vmap(lambda k, s=spread: share(s, k)))(keys)) for spread in (0.0, 2.0))
    assert together.max() < 0.78 < apart.min() and apart.mean() > together.mean() + 0.08


def test_where_each_step_has_one_vote_the_louder_side_does_not_move_the_border():
    """A source that is wrong below one deviation under the mean, and costs eight times what it brings above."""
    worth = jnp.where(LINE[:, 0] < -1.0, -8.0, 1.0)

    def border(clip, key):
        return jnp.mean((learned_on_a_line(worth, 100, key, 2.0, clip) < 0).astype(jnp.float32)) * 4.0 - 2.0

    keys = jax.random.split(jax.random.key(0), 8)
    plain, votes = (np.asarray(jax.jit(jax.vmap(lambda k, c=clip: border(c, k)))(keys)) for clip in (None, 0.1))
    assert np.all(plain > votes) and np.abs(votes + 1.0).mean() < 0.5 * np.abs(plain + 1.0).mean()


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int32", "uint32", "float16", "bfloat16", "float32"])
@pytest.mark.parametrize("scale", [2.5, 0.21, 1e6, (0.21, 2.5, 1.0, 3e4)], ids=str)
def test_observations_of_any_dtype_are_divided_by_their_scale(dtype, scale):
    features = make_features(EnvSpec("none", (4,), Discrete(2), 10, obs_scale=scale))
    obs = jnp.asarray([[0, 1, 1, 0], [1, 1, 0, 1]]).astype(dtype)
    found = features.of(obs)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, np.asarray(obs, np.float32) / np.asarray(scale, np.float32))
