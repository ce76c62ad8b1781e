"""Fresh starts from a pool, in an environment whose worlds have names and whose episodes last as long as told."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmrl.envs.base import time_step
from llmrl.learner import resets
from llmrl.learner.resets import full_pool, refilled
from llmrl.learner.rollout import collect, reset_all
from llmrl.nets import Policy
from llmrl.ops.distributions import Categorical
from llmrl.types import Discrete, Environment, EnvSpec

T, N, ROLLOUTS = 8, 16, 6


def named_worlds(length, steps_per_reset):
    """A reset draws a name and a length of at most twice ``length``; observations are (name, age)."""

    def observe(state):
        return jnp.stack([state[0], state[2]])

    def reset(key):
        name = jax.random.uniform(key)
        state = name, 1.0 + jnp.floor(2.0 * length * jnp.mod(1000.0 * name, 1.0)), jnp.zeros(())
        return state, observe(state)

    def step(key, state, action):
        state = state[0], state[1], state[2] + 1.0
        return state, time_step(observe(state), 1.0, state[2] >= state[1], False)

    return Environment(EnvSpec("named_worlds", (2,), Discrete(2), 99), reset, step, steps_per_reset=steps_per_reset)


POLICY = Policy(lambda key: (), lambda params, obs: Categorical(jnp.full((*obs.shape[:-1], 2), -jnp.log(2.0))))


@functools.cache
def run(length, steps_per_reset):
    env = named_worlds(length, steps_per_reset)
    once = jax.jit(lambda acting, key: collect(env, POLICY, (), acting, key, T))
    standings, rollouts = [reset_all(env, jax.random.key(0), N, T)], []
    for key in jax.random.split(jax.random.key(1), ROLLOUTS):
        standing, rollout = once(standings[-1], key)
        standings.append(standing)
        rollouts.append(jax.tree.map(np.asarray, rollout.steps))
    return standings, rollouts


def starts(standings, rollouts):
    """Names of the worlds that each rollout's episodes started in."""
    for steps, standing in zip(rollouts, standings[1:], strict=True):
        after = np.concatenate([steps.obs[1:], np.asarray(standing.obs)[None]])
        done = steps.terminated | steps.truncated
        np.testing.assert_array_equal(after[..., 1] == 0, done)  # at time 0, and nowhere else
        yield after[..., 0][done]


@pytest.mark.parametrize("steps_per_reset", [1, 4])
def test_while_there_are_worlds_nobody_shares_one(steps_per_reset):
    standings, rollouts = run(20, steps_per_reset)
    seen: set[float] = set()
    for names, standing in zip(starts(standings, rollouts), standings[1:], strict=True):
        assert standing.pool.worlds_made == len(names)  # as many as were taken, and no more
        assert standing.pool.worlds_shared == 0
        assert len(set(names.tolist())) == len(names)
        assert not seen & set(names.tolist())  # and the next rollout has new ones
        seen |= set(names.tolist())
    assert len(seen) > 10


def test_a_pool_that_runs_dry_says_how_often():
    standings, rollouts = run(2, 32)
    for names, standing in zip(starts(standings, rollouts), standings[1:], strict=True):
        assert standing.pool.worlds_made == 4
        assert len(set(names.tolist())) == 4
        assert standing.pool.worlds_shared == len(names) - 4 > 0
        counts = np.unique(names, return_counts=True)[1]
        assert counts.max() - counts.min() <= 1  # shared evenly


@pytest.mark.parametrize("taken", [0, 3, 8])
@pytest.mark.parametrize("at_once", [1, 3, 16])
def test_worlds_that_were_taken_are_replaced_however_many_are_made_at_once(taken, at_once):
    env = named_worlds(3, 4)
    pool = full_pool(env, jax.random.key(0), 4, 8)
    key = jax.random.key(1)
    (names, *_), obs = refilled(env, pool, jnp.int32(taken), key, at_once)
    expected = [float(env.reset(jax.random.fold_in(key, place))[0][0]) for place in range(taken)]
    np.testing.assert_allclose(names, [*expected, *np.asarray(pool[0][0])[taken:]])
    np.testing.assert_array_equal(obs[:, 0], names)
    seeds = jax.vmap(lambda taken: refilled(env, pool, taken, key, at_once)[0][0])(jnp.int32([taken, 1, 0]))
    np.testing.assert_array_equal(seeds[0], names)
    np.testing.assert_array_equal(seeds[2], pool[0][0])


def test_worlds_are_drawn_as_a_reset_draws_them():
    """Kolmogorov and Smirnov: names are uniform, pool or no pool."""
    for setting in ((20, 4), (2, 1)):
        names = np.sort(np.concatenate(list(starts(*run(*setting)))))
        steps = np.arange(1, len(names) + 1) / len(names)
        assert np.max(np.abs(names - steps)) < 2.0 / np.sqrt(len(names))


def test_the_last_observation_is_the_one_before_the_reset():
    for steps in run(2, 32)[1]:
        np.testing.assert_array_equal(steps.next_obs[..., 0], steps.obs[..., 0])
        np.testing.assert_array_equal(steps.next_obs[..., 1], steps.obs[..., 1] + 1.0)


def test_without_a_pool_there_is_nothing_to_tell():
    assert run(2, None)[0][-1].pool is None


@functools.cache
def rollouts_of_two_seeds(most_bytes):
    """Rollouts of two seeds side by side, and where their environments stood at the end."""
    env = named_worlds(2, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resets, "MOST_BYTES", most_bytes)
        once = jax.jit(jax.vmap(lambda acting, key: collect(env, POLICY, (), acting, key, T)))
        standing = jax.vmap(lambda key: reset_all(env, key, N, T))(jax.random.split(jax.random.key(0), 2))
        found = []
        for key in jax.random.split(jax.random.key(1), 2):
            standing, rollout = once(standing, jax.random.split(key, 2))
            found.append(jax.tree.map(np.asarray, rollout))
    return found, jax.tree.map(np.asarray, (standing.env_state, standing.obs))


def test_starts_are_the_same_whether_they_are_made_beforehand_or_where_an_episode_ends():
    beforehand, where_needed = rollouts_of_two_seeds(2**27), rollouts_of_two_seeds(0)
    jax.tree.map(np.testing.assert_array_equal, where_needed, beforehand)
    assert sum(int((r.steps.terminated | r.steps.truncated).sum()) for r in where_needed[0]) > 2 * N


@pytest.mark.parametrize(("cells", "beforehand"), [(1, True), (2**18 - 8, True), (2**18, False)])
def test_no_rollout_holds_a_large_state_for_every_step(cells, beforehand):
    def reset(key):
        return jnp.zeros(cells), jnp.zeros(2)

    env = Environment(EnvSpec("large", (2,), Discrete(2), 9), reset, lambda key, state, action: (state, None))
    draws = jax.eval_shape(lambda key: resets.make_resets(env, key, T, N).draws, jax.random.key(0))
    assert (jax.tree.leaves(draws)[0].shape == (T, N, cells)) is beforehand
