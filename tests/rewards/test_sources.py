"""The language source: what a dictionary would say, centred; neutral where nobody has answered, and that is counted."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmrl.rewards import language
from llmrl.rewards.sources import NO_KEY
from llmrl.types import Discrete, EnvSpec

SPEC = EnvSpec("words", (2,), Discrete(2), 9, ("random", "language", "harmful"))
ANSWERS = {2: (0.9, 0.1), 5: (0.5, 0.75), 4_000_000_000: (0.0, 1.0)}
COLUMN = 1


def table(answers, capacity=6):
    keys, scores = np.full(capacity, NO_KEY), np.full((capacity, 2), 0.5, np.float32)
    for row, key in enumerate(sorted(answers)):
        keys[row], scores[row] = key, answers[key]
    return jnp.asarray(keys), jnp.asarray(scores)


@pytest.fixture
def heard_of(random_rollout):
    """``(seed, states) -> rollout`` that met these states and either event."""

    def make(seed=0, states=(2, 5, 7, 9, 4_000_000_000)):
        rng = np.random.default_rng(seed)
        met = rng.choice(np.asarray(states, np.uint32), (6, 4))
        return random_rollout(SPEC, 6, 4, seed, state_key=met, event=rng.integers(0, 2, (6, 4)).astype(np.int32))

    return make


def said(rollout, answers):
    """What a dictionary says of every step; None where it says nothing."""
    keys, events = np.asarray(rollout.steps.state_key), np.asarray(rollout.steps.event)
    return [
        [answers[k][e] if k in answers else None for k, e in zip(*row, strict=True)]
        for row in zip(keys.tolist(), events, strict=True)
    ]


@pytest.mark.parametrize("center", [0.5, 0.0, 0.3])
@pytest.mark.parametrize("factor", [1.0, -2.0])
def test_the_reward_is_the_dictionarys_score_less_the_centre(heard_of, center, factor):
    source, rollout = language(COLUMN, factor, center), heard_of()
    filled, _, metrics = source.fill(source.init(), rollout, *table(ANSWERS))
    scores = said(rollout, ANSWERS)
    expected = [[0.0 if score is None else factor * (score - center) for score in row] for row in scores]
    np.testing.assert_allclose(filled.steps.aux[..., COLUMN], expected, atol=1e-6)
    known = [score for row in scores for score in row if score is not None]
    assert 0 < len(known) < 24
    np.testing.assert_allclose(metrics["language_coverage"], len(known) / 24, rtol=1e-6)
    np.testing.assert_allclose(metrics["language_score"], np.mean(known), rtol=1e-6)

    # Nothing else was touched.
    others = [m for m in range(3) if m != COLUMN]
    np.testing.assert_array_equal(filled.steps.aux[..., others], rollout.steps.aux[..., others])
    same = filled._replace(steps=filled.steps._replace(aux=rollout.steps.aux))
    jax.tree.map(np.testing.assert_array_equal, same, rollout)


def test_without_answers_the_source_is_silent(heard_of):
    source = language(COLUMN, center=0.0)
    filled, heard, metrics = source.fill(source.init(), heard_of(), *table({}))
    np.testing.assert_array_equal(filled.steps.aux[..., COLUMN], 0.0)
    assert metrics["language_coverage"] == 0.0 and np.isnan(metrics["language_score"])
    assert heard.counts.sum() == 24


def test_misses_are_counted_over_rollouts_and_forgotten_when_told(heard_of):
    source = language(COLUMN)
    heard, expected = source.init(), Counter()
    for seed in range(3):
        rollout = heard_of(seed, states=(2, 5, 7, 9, 11, 2**32 - 2))
        _, heard, _ = source.fill(heard, rollout, *table(ANSWERS))
        expected += Counter(key for key in rollout.steps.state_key.reshape(-1).tolist() if key not in ANSWERS)
    met = heard.counts > 0
    assert dict(zip(heard.missed[met].tolist(), heard.counts[met].tolist(), strict=True)) == expected
    assert heard.counts.tolist() == sorted(heard.counts.tolist(), reverse=True)
    assert set(heard.missed[~met].tolist()) == {int(NO_KEY)}
    empty = source.init()._replace(total=heard.total, weight=heard.weight)
    jax.tree.map(np.testing.assert_array_equal, source.forget(heard), empty)


def test_few_places_keep_the_most_frequent_misses(heard_of):
    source = language(COLUMN, size=2)
    rollout = heard_of(states=(7, 8, 9, 10))
    _, heard, _ = source.fill(source.init(), rollout, *table({}))
    common = Counter(rollout.steps.state_key.reshape(-1).tolist()).most_common()
    assert heard.counts.tolist() == [count for _, count in common[:2]]


def test_the_running_mean_makes_the_answers_neutral_on_average(heard_of):
    source = language(COLUMN, 1.0, "mean")
    heard = source.init()
    for _ in range(3):  # the same again: its own mean
        rollout = heard_of(0)
        filled, heard, metrics = source.fill(heard, rollout, *table(ANSWERS))
    known = np.asarray([[score is not None for score in row] for row in said(rollout, ANSWERS)])
    assert abs(np.asarray(filled.steps.aux[..., COLUMN])[known].mean()) < 1e-6
    np.testing.assert_array_equal(filled.steps.aux[..., COLUMN][~known], 0.0)
    np.testing.assert_allclose(heard.total / heard.weight, metrics["language_score"], rtol=1e-6)


def test_seeds_share_a_table_and_keep_their_own_misses(heard_of):
    source = language(COLUMN)
    rollouts = [heard_of(seed) for seed in range(2)]
    both = jax.tree.map(lambda *x: jnp.stack(x), *rollouts)
    start = jax.tree.map(lambda x: jnp.stack([x, x]), source.init())
    fill = jax.jit(jax.vmap(source.fill, in_axes=(0, 0, None, None)))
    together = fill(start, both, *table(ANSWERS))
    for seed in range(2):
        alone = source.fill(source.init(), rollouts[seed], *table(ANSWERS))
        one = jax.tree.map(lambda x, seed=seed: x[seed], together)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), one, alone)
    fill(start, both, *table({1: (0.0, 0.0), **ANSWERS}))
    assert fill._cache_size() == 1  # more rows are no new program
