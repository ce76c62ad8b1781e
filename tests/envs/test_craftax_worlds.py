"""Worlds from the pool are worlds like any other: a two-sample test on what they are made of and on what is seen first.

Slow: a hundred worlds are made, and the game is compiled twice.
"""

import functools

import jax
import numpy as np
import pytest

pytest.importorskip("craftax")

from llmrl.envs import crafter_codes as codes
from llmrl.envs import make
from llmrl.learner.resets import full_pool, make_resets, refilled, start_all

pytestmark = pytest.mark.slow

N, T = 16, 4
ENV = make("craftax_classic", aux=(), horizon=1, steps_per_reset=1)
"""Every step ends an episode, so that every step hands out a world."""
LEVEL = 0.01
IN_MAP = ("water", "tree", "stone", "coal", "iron", "diamond", "sand", "lava", "path")
IN_VIEW = ("grass", "water", "tree", "stone", "sand")


@functools.cache
def pooled():
    """States and observations that episodes began with, [T N, ...]."""

    def play(key):
        start_key, first_key, pool_key, step_key = jax.random.split(key, 4)
        env_state, _ = start_all(ENV, start_key, N)
        worlds = refilled(ENV, full_pool(ENV, first_key, T, N), jax.numpy.int32(T * N), pool_key, at_once=1)
        resets = make_resets(ENV, pool_key, T, N, worlds)

        def step(carry, keys):
            env_state, carried = carry
            action = jax.numpy.zeros(N, jax.numpy.int32)
            env_state, obs, _, carried = resets.advance(keys, env_state, action, (), carried)
            return (env_state, carried), (env_state, obs)

        keys = jax.random.split(step_key, (T, N))
        (_, carried), began = jax.lax.scan(step, (env_state, resets.start), keys)
        return began, resets.finish(carried)[1]

    began, statistics = jax.jit(play)(jax.random.key(0))
    assert statistics.worlds_made == T * N and statistics.worlds_shared == 0
    return jax.tree.map(lambda x: np.asarray(x).reshape(T * N, *x.shape[2:]), began)


@functools.cache
def plain():
    """As many that were reset by themselves."""
    began = jax.jit(lambda keys: jax.lax.map(ENV.reset, keys))(jax.random.split(jax.random.key(1), T * N))
    return jax.tree.map(np.asarray, began)


def made_of(began):
    """Statistic -> one number per world."""
    state, obs = began
    blocks, seen = state.world.map.reshape(T * N, -1), obs[:, codes.BLOCK]
    found = {f"{name} in the world": (blocks == codes.BLOCKS.index(name)).sum(axis=1) for name in IN_MAP}
    found |= {f"{name} in view": (seen == codes.BLOCKS.index(name)).sum(axis=1) for name in IN_VIEW}
    found["creatures in view"] = (obs[:, codes.MOB] > 0).sum(axis=1)
    for mobs in ("cows", "zombies", "skeletons"):
        found[mobs] = getattr(state.world, mobs).mask.sum(axis=1)
    return found


def p_value(a, b, draws=4000):
    """Of equal distributions, by the larger of two statistics under random relabelling: the difference of means, and
    the largest difference of the two distribution functions, each as a share of its own null distribution."""
    random = np.random.default_rng(0)
    both = np.concatenate([a, b]).astype(np.float64)
    points = np.unique(both)
    labels = np.arange(len(both)) < len(a)
    relabelled = np.stack([labels, *(random.permutation(labels) for _ in range(draws))])
    below = both[:, None] <= points
    first, second = (mask.astype(np.float64) for mask in (relabelled, ~relabelled))
    means = np.abs((first @ both) / len(a) - (second @ both) / len(b))
    gaps = np.abs((first @ below) / len(a) - (second @ below) / len(b)).max(axis=1)
    ranks = [(values[:, None] <= np.sort(values)[None, :]).mean(axis=1) for values in (means, gaps)]
    smallest = np.minimum(*ranks)
    return float((smallest <= smallest[0]).mean())


def test_worlds_from_the_pool_do_not_differ_from_worlds_of_their_own():
    ours, others = made_of(pooled()), made_of(plain())
    found = {name: p_value(ours[name], others[name]) for name in ours}
    assert min(found.values()) > LEVEL / len(found), found


def test_the_test_would_notice_a_difference():
    """A sample that is shifted by its deviation, and one that has the same mean and is too narrow."""
    for name in ("water in the world", "tree in the world"):
        values = made_of(plain())[name].astype(np.float64)
        assert p_value(values[: T * N // 2], values[T * N // 2 :] + values.std()) < LEVEL
        assert p_value(values, values.mean() + 0.1 * (values - values.mean())) < LEVEL


def test_every_episode_begins_at_time_zero_in_a_world_of_its_own():
    state, obs = jax.tree.map(jax.numpy.asarray, pooled())
    assert np.all(state.time == 0) and not np.any(state.unlocked)
    np.testing.assert_array_equal(obs, state.seen)
    assert len({np.asarray(world).tobytes() for world in state.world.map}) == T * N
