"""Rules equal reading them line by line; wrong answers are the same ones whatever is asked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmrl.ops.rules import is_wrong, mix, rule_scores
from llmrl.types import Rules

RANDOM = np.random.default_rng(0)
RULES = Rules(
    np.asarray([0, 0b11, 0b100, 0b100, 0xF0000000], np.uint32),
    np.asarray([0, 0b10, 0b100, 0b000, 0xF0000000], np.uint32),
    np.asarray([1, 2, 2, 0, 3], np.int32),
    np.asarray([0.25, 0.5, 1.0, 1.0, 0.0], np.float32),
)
KEYS = RANDOM.integers(0, 2**32, (50, 4), dtype=np.uint32)
EVENTS = RANDOM.integers(-1, 6, (50, 4)).astype(np.int32)


def read(key, event):
    """(score, whether a line allows the event, whether any line holds), line by line."""
    lines = zip(*(np.asarray(field).tolist() for field in RULES), strict=True)
    holding = [line for line in lines if key & line[0] == line[1]]
    said = [line[3] for line in holding if line[2] == event]
    return max(said, default=0.0), bool(said), bool(holding)


@pytest.mark.parametrize("noise", [0.0, 0.4, 1.0])
def test_scores_are_those_of_the_best_line_that_holds(noise):
    score, known = jax.jit(lambda k, e: rule_scores(RULES, k, e, noise=noise, seed=3))(KEYS, EVENTS)
    wrong = is_wrong(jnp.asarray(KEYS), None, noise, 3)
    assert noise in (0.0, 1.0) or 0 < np.mean(wrong) < 1
    for place in np.ndindex(KEYS.shape):
        right, allowed, holds = read(int(KEYS[place]), int(EVENTS[place]))
        assert score[place] == (1.0 - right if wrong[place] and allowed else right)
        assert known[place] == holds


@pytest.mark.parametrize("each", [False, True])
def test_a_larger_share_makes_more_answers_wrong_and_never_others(each):
    keys = jnp.arange(4000, dtype=jnp.uint32)
    events = (jnp.arange(4000) % 7).astype(jnp.int32) if each else None
    before = np.zeros(4000, bool)
    for share in (0.0, 0.1, 0.5, 0.9, 1.0):
        wrong = np.asarray(is_wrong(keys, events, share, 0))
        assert np.all(wrong[before]) and abs(wrong.mean() - share) < 0.03
        before = wrong
    assert not np.array_equal(is_wrong(keys, events, 0.5, 0), is_wrong(keys, events, 0.5, 1))


def test_a_state_is_wrong_as_a_whole_or_each_answer_by_itself():
    keys = jnp.full(200, 17, jnp.uint32)
    events = jnp.arange(200, dtype=jnp.int32)
    assert 50 < np.sum(is_wrong(keys, events, 0.5, 0)) < 150
    np.testing.assert_array_equal(is_wrong(keys, None, 0.5, 0), is_wrong(keys[:1], None, 0.5, 0)[0])


def test_mixing_loses_nothing():
    assert len(np.unique(mix(jnp.arange(100_000, dtype=jnp.uint32)))) == 100_000
