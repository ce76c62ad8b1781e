"""RND: what is seen again and again pays less, what was never seen pays more, and the target stands still."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import with_defaults

from llmrl.rewards import rnd
from llmrl.settings.config import NoveltyConfig
from llmrl.types import Discrete, EnvSpec

rnd = with_defaults(rnd, NoveltyConfig())

SPEC = EnvSpec("none", (4,), Discrete(2), 10)
T, N = 8, 4
BONUS = rnd(SPEC, N, hidden=(16,), features=8, learning_rate=3e-3)
SCORE = jax.jit(BONUS.score)


def places(seed):
    """Random ones of three places, one-hot; the fourth is never visited."""
    return np.eye(4, dtype=np.float32)[np.random.default_rng(seed).integers(3, size=(T, N))]


@pytest.fixture(scope="module")
def experienced(random_rollout):
    """(errors per rollout, first state, last state): thirty rollouts."""
    first = state = BONUS.init(jax.random.key(0))
    errors = []
    for seed in range(30):
        _, state = SCORE(state, random_rollout(SPEC, T, N, seed, next_obs=places(seed)))
        errors.append(float(state.error))
    return errors, first, state


def test_the_known_pays_less_and_less(experienced):
    errors, _, _ = experienced
    assert np.mean(errors[-5:]) < 0.5 * np.mean(errors[:5])


def test_the_unknown_pays_more_than_the_known(random_rollout, experienced):
    state = experienced[2]
    seen = places(100)
    seen[0, 0] = [0.0, 0.0, 0.0, 1.0]
    bonus, _ = SCORE(state, random_rollout(SPEC, T, N, next_obs=seen))
    assert np.argmax(bonus) == 0 and bonus[0, 0] > 3 * np.mean(bonus)


def test_the_target_never_moves_and_the_predictor_does(experienced):
    _, first, last = experienced
    jax.tree.map(np.testing.assert_array_equal, last.target, first.target)
    assert not np.allclose(jax.tree.leaves(last.predictor)[0], jax.tree.leaves(first.predictor)[0])


def test_a_rollout_is_scored_before_it_is_learned(random_rollout):
    """Two learners of different speed score their first rollout alike, and only the next one differently."""
    fast = rnd(SPEC, N, hidden=(16,), features=8, learning_rate=0.1)
    rollout = random_rollout(SPEC, T, N, next_obs=places(0))
    start = BONUS.init(jax.random.key(0))
    (slow_bonus, slow_state), (fast_bonus, fast_state) = SCORE(start, rollout), fast.score(start, rollout)
    np.testing.assert_allclose(slow_bonus, fast_bonus, rtol=1e-4)
    assert not np.allclose(SCORE(slow_state, rollout)[0], SCORE(fast_state, rollout)[0], rtol=1e-2)


def test_what_was_seen_is_carried_on(random_rollout, experienced):
    _, first, last = experienced
    assert (first.moments.samples, last.moments.samples) == (0, 30 * T * N)
    assert (first.scale.moments.samples, last.scale.moments.samples) == (0, 30 * T * N)
    rollout = random_rollout(SPEC, T, N, next_obs=places(50))
    assert not np.allclose(SCORE(first, rollout)[0], SCORE(last, rollout)[0])


def test_units_of_observations_do_not_matter(random_rollout):
    """Whitening: the same places in other units are the same novelty."""
    start = BONUS.init(jax.random.key(0))
    bonus, other = (
        SCORE(start, random_rollout(SPEC, T, N, next_obs=np.float32(factor) * places(0)))[0] for factor in (1.0, 100.0)
    )
    np.testing.assert_allclose(bonus, other, rtol=1e-2)


def test_neither_action_nor_reward_nor_end_is_looked_at(random_rollout):
    """The observation before any reset alone decides."""
    start, seen = BONUS.init(jax.random.key(0)), places(0)
    bonus, other = (SCORE(start, random_rollout(SPEC, T, N, seed, next_obs=seen))[0] for seed in range(2))
    np.testing.assert_array_equal(bonus, other)
    assert np.all(jnp.isfinite(bonus))
