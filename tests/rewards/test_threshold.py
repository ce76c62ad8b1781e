"""Yes or no: what passes the threshold is paid alike, in the source's units, and less the more often it is passed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmrl.ops.conformal import conformal_threshold
from llmrl.rewards import thresholded
from llmrl.types import Discrete, EnvSpec

SPEC = EnvSpec("none", (3,), Discrete(4), 10, ("first", "second"))
ALPHA, T, N = 0.25, 16, 4
SOURCE = thresholded(1, "second", ALPHA)


@pytest.fixture
def make(random_rollout):
    return lambda seed, **fields: random_rollout(SPEC, T, N, seed, **fields)


def after(rollout, memory=None):
    return SOURCE.score(SOURCE.init(jax.random.key(0)) if memory is None else memory, rollout, None)[1]


def test_nothing_is_paid_before_anything_is_calibrated(make):
    values, memory, told = SOURCE.score(SOURCE.init(jax.random.key(0)), make(0), None)
    np.testing.assert_array_equal(values, 0.0)
    assert memory.threshold > 0 and memory.unit > 0 and told["threshold/second"] == 0


def test_what_passes_is_paid_by_the_rollout_before(make):
    first, second = make(0), make(1)
    before, said = np.asarray(first.steps.aux[..., 1]), np.asarray(second.steps.aux[..., 1])
    threshold = float(conformal_threshold(jnp.asarray(before.ravel()), jnp.asarray(before.ravel() > 0), ALPHA))
    frequency, unit = np.mean(before >= threshold), np.mean(before[before > 0])
    values, _, told = SOURCE.score(after(first), second, None)
    expected = unit * np.maximum(0.0, (said >= threshold) - frequency)  # the definition
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(told["threshold_passed/second"], np.mean(said >= threshold), rtol=1e-6)
    other = second._replace(steps=second.steps._replace(aux=second.steps.aux.at[..., 0].add(5.0)))
    np.testing.assert_array_equal(SOURCE.score(after(first), other, None)[0], values)


def test_praise_like_that_of_the_rollout_before_is_left_out_as_often_as_asked(make):
    left_out = []
    for seed in range(40):
        said = np.asarray(make(100 + seed).steps.aux[..., 1])
        left_out.append(np.mean(said[said > 0] < after(make(seed)).threshold))
    assert ALPHA - 0.08 < np.mean(left_out) < ALPHA + 0.05


def test_a_source_that_says_yes_to_everything_says_nothing(make):
    always = make(0, aux=np.ones((T, N, 2), np.float32))
    np.testing.assert_allclose(SOURCE.score(after(always), always, None)[0], 0.0)


@pytest.mark.parametrize("factor", [0.01, 100.0])
def test_units_are_the_sources_own(make, factor):
    first, second = make(0), make(1)

    def scaled(rollout):
        return rollout._replace(steps=rollout.steps._replace(aux=factor * rollout.steps.aux))

    values = SOURCE.score(after(first), second, None)[0]
    louder = SOURCE.score(after(scaled(first)), scaled(second), None)[0]
    np.testing.assert_allclose(louder, factor * values, rtol=1e-5)


def test_a_rollout_without_praise_leaves_the_threshold(make):
    known = after(make(0))
    silent = make(1, aux=-np.ones((T, N, 2), np.float32))
    values, later, _ = SOURCE.score(known, silent, None)
    np.testing.assert_array_equal(values, 0.0)
    assert later.threshold == known.threshold and later.unit == known.unit and later.frequency == 0


def test_other_steps_may_be_asked_about(make):
    known, asked = after(make(0)), make(2)
    values, memory, _ = SOURCE.score(known, make(1), None, asked)
    np.testing.assert_array_equal(values, SOURCE.score(known, asked, None)[0])
    jax.tree.map(np.testing.assert_array_equal, memory, after(make(1), known))
