"""APT: equals a brute force over all pairs, has no units, and pays the lonely."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import with_defaults

from llmrl.rewards import apt
from llmrl.rewards.particle import REPRESENTATIONS, particle_entropy
from llmrl.settings.config import REPRESENTATIONS as CONFIGURED
from llmrl.settings.config import NoveltyConfig
from llmrl.types import Discrete, EnvSpec

apt = with_defaults(apt, NoveltyConfig())

SPEC = EnvSpec("none", (3,), Discrete(2), 10)
T, N, K = 8, 4, 5
SMALL = {"neighbors": K, "hidden": (32,), "features": 8}


def brute_force(z, k, mean_so_far=0.0, count=0):
    """(entropy [b], mean distance so far) with loops."""
    nearest = []
    for i, own in enumerate(z):
        nearest.append(sorted(np.linalg.norm(own - other) for j, other in enumerate(z) if j != i)[:k])
    nearest = np.asarray(nearest)
    mean = (mean_so_far * count + nearest.sum()) / (count + nearest.size)
    return np.log(1.0 + np.maximum(nearest / mean - 1e-4, 0.0).mean(axis=1)), mean


def test_the_bonus_is_that_of_all_pairs_over_two_rollouts(random_rollout):
    """Random features, so that what the pairs are measured in is known."""
    bonus = apt(SPEC, T, N, representation="random", discount=0.0, **SMALL)
    encode = REPRESENTATIONS["random"](SPEC, (32,), 8).encode
    state, seen, mean, entropies = bonus.init(jax.random.key(0)), [], 0.0, []
    score = jax.jit(bonus.score)
    for seed in range(2):
        rollout = random_rollout(SPEC, T, N, seed)
        found, after = score(state, rollout)
        jax.tree.map(np.testing.assert_array_equal, after.params, state.params)  # random ones have nothing to learn
        seen.append(np.asarray(rollout.steps.next_obs).reshape(-1, 3))
        everything = np.concatenate(seen)
        white = (seen[-1] - everything.mean(axis=0)) / everything.std(axis=0)
        assert np.abs(white).max() < 5  # none is clipped
        z = np.asarray(encode(state.params, jnp.asarray(white, jnp.float32)))
        entropy, mean = brute_force(z, K, mean, seed * T * N * K)
        entropies.append(entropy)
        # With discount 0 the unit is the entropy's own deviation.
        np.testing.assert_allclose(found.reshape(-1), entropy / np.std(entropies), rtol=1e-3)
        np.testing.assert_allclose(after.distance.mean, mean, rtol=1e-4)
        state = after


@pytest.mark.parametrize("factor", [1e-3, 50.0])
def test_entropy_has_no_units(factor):
    distances = jnp.asarray(np.random.default_rng(0).exponential(size=(6, K)), jnp.float32)
    plain, scaled = (particle_entropy(f * distances, f * jnp.mean(distances)) for f in (1.0, factor))
    np.testing.assert_allclose(scaled, plain, rtol=1e-4)


def test_a_state_with_enough_twins_is_worth_nothing():
    found = particle_entropy(jnp.asarray([[0.0, 0.0], [0.0, 3.0]]), jnp.asarray(1.5))
    assert found[0] == 0 and found[1] > 0


@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_the_lonely_state_pays_most(random_rollout, representation):
    seen = 0.1 * np.random.default_rng(0).normal(size=(T, N, 3)).astype(np.float32)
    seen[5, 1] = 4.0
    bonus = apt(SPEC, T, N, representation=representation, **SMALL)
    paid, _ = jax.jit(bonus.score)(bonus.init(jax.random.key(0)), random_rollout(SPEC, T, N, obs=seen, next_obs=seen))
    assert np.unravel_index(np.argmax(paid), paid.shape) == (5, 1)


def test_fewer_references_give_larger_distances_and_the_same_lonely_one(random_rollout):
    seen = 0.1 * np.random.default_rng(0).normal(size=(T, N, 3)).astype(np.float32)
    seen[5, 1] = 4.0
    rollout = random_rollout(SPEC, T, N, next_obs=seen)
    all_pairs, some = (apt(SPEC, T, N, representation="random", references=r, **SMALL) for r in (2048, 16))
    state = all_pairs.init(jax.random.key(0))
    (_, dense), (paid, sparse) = all_pairs.score(state, rollout), some.score(state, rollout)
    assert sparse.distance.mean > dense.distance.mean
    assert np.unravel_index(np.argmax(paid), paid.shape) == (5, 1)


def test_what_cannot_be_is_refused():
    assert set(REPRESENTATIONS) == set(CONFIGURED)
    with pytest.raises(ValueError, match=r"unknown representation 'invers'; nearest: 'inverse'"):
        apt(SPEC, T, N, representation="invers")
    with pytest.raises(ValueError, match=r"neighbors=12 and 8 references \(4 steps x 2 environments"):
        apt(SPEC, 4, 2)
