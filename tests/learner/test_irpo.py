"""Explorers and their base policy: the gradient that comes back through steps on a source, and who counts how much."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmrl.learner.irpo import IrpoState, Seen, base_terms, explored, in_parts, noted, nothing_earned, shares
from llmrl.learner.ppo import Batch
from llmrl.nets import make_policy
from llmrl.ops.losses import clipped_policy_loss
from llmrl.types import Box, Discrete, EnvSpec

CLIP = 0.2
EXPLORERS, STEPS, SAMPLES = 2, 3, 6


def problem(action, seed=0):
    """A small policy in float64, what two explorers saw, and what they did afterwards: ratios within the clip."""
    spec, random = EnvSpec("none", (3,), action, 10), np.random.default_rng(seed)
    policy = make_policy(spec, (4,), 0.0)
    with jax.enable_x64(False):
        first = policy.init(jax.random.key(seed))
    theta = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64) + 0.3 * random.normal(size=x.shape), first)

    def steps(*shape):
        obs = random.normal(size=(*shape, 3))
        discrete = isinstance(action, Discrete)
        actions = random.integers(action.num, size=shape) if discrete else random.normal(size=(*shape, action.dim))
        acted = policy.distribution(theta, jnp.asarray(obs)).log_prob(jnp.asarray(actions))
        return obs, actions, np.asarray(acted) + 0.03 * random.normal(size=shape), random.normal(size=shape)

    seen = jax.tree.map(jnp.asarray, Seen(*steps(EXPLORERS, STEPS, SAMPLES)))
    done = jax.tree.map(jnp.asarray, Batch(*steps(EXPLORERS, SAMPLES), np.zeros((EXPLORERS, SAMPLES, 1))))
    return policy, theta, seen, done


@pytest.mark.parametrize("action", [Discrete(3), Box(2)], ids=["discrete", "continuous"])
def test_the_base_policys_gradient_is_that_of_finite_differences(action):
    with jax.enable_x64(True):
        policy, theta, seen, done = problem(action)
        sizes, weights, least = jnp.asarray([0.05, 0.4]), jnp.asarray([0.3, 0.7]), jnp.zeros(EXPLORERS)
        flat, back = jax.flatten_util.ravel_pytree(theta)

        @jax.jit
        def loss(flat, sizes):
            return weights @ base_terms(policy, back(flat), seen, sizes, done, least, CLIP).policy_loss

        slope = jax.jit(jax.grad(loss))
        gradient, units = slope(flat, sizes), 1e-5 * np.eye(flat.size)
        differences = [(loss(flat + unit, sizes) - loss(flat - unit, sizes)) / 2e-5 for unit in units]
        np.testing.assert_allclose(gradient, differences, rtol=1e-6, atol=1e-8)
        without_steps = slope(flat, jnp.zeros(EXPLORERS))
        assert np.linalg.norm(gradient - without_steps) > 0.05 * np.linalg.norm(gradient)


def test_it_is_the_tasks_gradient_times_a_jacobian_for_every_step():
    """(I - eta H_0) ... (I - eta H_(N-1)) g, each factor dense."""
    with jax.enable_x64(True):
        policy, theta, seen, done = problem(Discrete(3), seed=1)
        flat, back = jax.flatten_util.ravel_pytree(theta)
        one, did = (jax.tree.map(lambda x: x[0], tree) for tree in (seen, done))
        size = 0.4

        def of_source(flat, seen):
            log_prob = policy.distribution(back(flat), seen.obs).log_prob(seen.action)
            return clipped_policy_loss(log_prob, seen.log_prob, seen.advantage, CLIP)

        def of_task(flat):
            log_prob = policy.distribution(back(flat), did.obs).log_prob(did.action)
            advantage = (did.advantage - jnp.mean(did.advantage)) / jnp.std(did.advantage)
            return clipped_policy_loss(log_prob, did.log_prob, advantage, CLIP)

        slope, curvature = jax.jit(jax.grad(of_source)), jax.jit(jax.hessian(of_source))
        at, expected = flat, np.eye(flat.size)
        for j in range(STEPS):
            step = jax.tree.map(lambda x, j=j: x[j], one)
            expected = expected @ (np.eye(flat.size) - size * curvature(at, step))
            at = at - size * slope(at, step)
        expected = expected @ jax.grad(of_task)(at)

        def loss(flat):
            return base_terms(policy, back(flat), seen, jnp.full(2, size), done, jnp.zeros(2), CLIP).policy_loss[0]

        there = explored(policy, theta, one, size, CLIP)
        np.testing.assert_allclose(jax.flatten_util.ravel_pytree(there)[0], at, rtol=1e-10)
        np.testing.assert_allclose(jax.grad(loss)(flat), expected, rtol=1e-6, atol=1e-9)


def test_an_explorer_without_steps_or_whose_source_says_nothing_is_the_base_policy():
    with jax.enable_x64(True):
        policy, theta, seen, _ = problem(Discrete(3))
        one = jax.tree.map(lambda x: x[0], seen)
        for nothing in (jax.tree.map(lambda x: x[:0], one), one._replace(advantage=jnp.zeros_like(one.advantage))):
            jax.tree.map(np.testing.assert_array_equal, explored(policy, theta, nothing, 1.0, CLIP), theta)


def test_every_sample_serves_one_step_at_most():
    numbers = jnp.arange(2 * 11).reshape(2, 11)
    seen = in_parts(Seen(numbers[..., None], numbers, numbers.astype(jnp.float32), jnp.ones((2, 11))), 3)
    assert seen.obs.shape == (2, 3, 3, 1) and seen.action.shape == (2, 3, 3)
    for k in range(2):
        assert sorted(seen.action[k].ravel().tolist()) == list(range(11 * k, 11 * k + 9))
    np.testing.assert_array_equal(seen.obs[..., 0], seen.action)


# --- returns and weights ----------------------------------------------------------------------------------------------


def earned(*returns, memory=32.0):
    """After rollouts with so many episodes and so large a mean return of each explorer."""
    state = nothing_earned(len(returns[0][0]))
    for episodes, means in returns:
        state = noted(state, jnp.asarray(episodes, jnp.float32), jnp.asarray(means, jnp.float32), memory)
    return state


def test_a_long_memory_is_the_mean_over_all_episodes_and_a_short_one_the_last_rollouts():
    history = ([2, 4], [1.0, 3.0]), ([6, 0], [5.0, np.nan]), ([1, 4], [np.nan, 1.0])
    np.testing.assert_allclose(earned(*history, memory=1e9).mean, [(2 * 1 + 6 * 5) / 8, 2.0], rtol=1e-5)
    np.testing.assert_allclose(earned(*history, memory=1e-3).mean, [5.0, 1.0], rtol=1e-5)
    assert not np.any(earned(([0, 0], [np.nan, np.nan])).known)


def test_weights_do_not_depend_on_the_tasks_units_and_the_better_explorer_has_the_larger():
    history = ([4, 4, 4], [0.0, 1.0, 0.5]), ([4, 4, 4], [0.2, 0.8, 0.5])
    plain = shares(earned(*history), 0.1)
    np.testing.assert_allclose(jnp.sum(plain), 1.0, rtol=1e-6)
    assert plain[1] > plain[2] > plain[0]
    changed = [(episodes, [7.0 * x - 200.0 for x in means]) for episodes, means in history]
    np.testing.assert_allclose(shares(earned(*changed), 0.1), plain, rtol=1e-3)
    np.testing.assert_allclose(shares(earned(*history), 1e-4), [0.0, 1.0, 0.0], atol=1e-6)


def test_explorers_that_earn_the_same_or_nothing_yet_count_the_same():
    for state in (nothing_earned(3), earned(([4, 4, 4], [2.0, 2.0, 2.0]))):
        np.testing.assert_allclose(shares(state, 0.1), 1 / 3, rtol=1e-6)


def test_the_explorer_that_earns_most_is_handed_over_and_never_the_base_policy():
    seen = Seen(*jnp.zeros((4, 1)))
    assert int(IrpoState(seen, earned(([4, 4], [-5.0, -3.0]))).leader) == 2
    assert int(IrpoState(seen, earned(([0, 4], [np.nan, -3.0]))).leader) == 2
    assert int(IrpoState(seen, nothing_earned(2)).leader) == 1
