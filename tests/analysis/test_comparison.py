"""Comparisons: laws, brute force on a fixed table, and rliable's own numbers where rliable is installed."""

import itertools

import numpy as np
import pytest

from llmrl.analysis.comparison import (
    difference_interval,
    improvement_interval,
    performance_profile,
    probability_of_improvement,
    regret,
    sample_efficiency,
    thin,
)
from llmrl.analysis.statistics import interquartile_interval, interquartile_mean, mean_interval, task_means

X = np.array([[0.9, 1.4, 1.1, 0.7, 1.3, 2.0, 0.2, 1.1, 1.0], [3.0, 2.5, 2.5, 4.0, 3.5, 0.1, 2.2, 2.8, 9.0]])
Y = np.array([[1.0, 0.8, 1.1, 0.6, 1.2, 0.3, 0.9], [2.5, 2.4, 2.0, 3.0, 5.0, 1.0, 2.1]])
THRESHOLDS = np.linspace(-1.0, 10.0, 45)


# --- probability of improvement ---------------------------------------------------------------------------------------


def test_equals_have_a_half_and_who_dominates_has_one():
    assert probability_of_improvement(X, X) == 0.5
    assert probability_of_improvement(X + 100.0, X) == 1.0
    assert probability_of_improvement(X - 100.0, X) == 0.0
    assert improvement_interval(X + 100.0, X) == (1.0, 1.0, 1.0)


def test_ties_count_half():
    assert probability_of_improvement(np.array([1.0, 1.0]), np.array([1.0, 1.0, 1.0])) == 0.5
    assert probability_of_improvement(np.array([1.0, 2.0]), np.array([1.0, 0.0])) == pytest.approx(0.875)


def test_one_improves_as_often_as_the_other_does_not():
    assert probability_of_improvement(X, Y) + probability_of_improvement(Y, X) == pytest.approx(1.0)


def test_probability_of_improvement_by_counting_pairs():
    def wins(xs, ys):
        pairs = list(itertools.product(xs, ys))
        return sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)

    assert probability_of_improvement(X, Y) == pytest.approx(np.mean([wins(*task) for task in zip(X, Y, strict=True)]))


def test_methods_must_share_their_tasks_and_a_missing_seed_is_no_loss():
    with pytest.raises(ValueError, match="2 and 1 tasks"):
        probability_of_improvement(X, Y[0])
    assert probability_of_improvement(np.array([2.0, np.nan]), np.array([1.0])) == 1.0


# --- profiles and curves ----------------------------------------------------------------------------------------------


def test_profiles_fall_from_one_to_nothing():
    value, low, high = performance_profile(X, THRESHOLDS)
    for edge in (value, low, high):
        assert np.all(np.diff(edge) <= 0.0)
        assert edge[0] == 1.0
        assert edge[-1] == 0.0
    assert np.all((low <= value) & (value <= high))


def test_profile_by_counting():
    brute = [np.mean([np.mean([score > t for score in task]) for task in X]) for t in THRESHOLDS]
    np.testing.assert_allclose(performance_profile(X, THRESHOLDS).value, brute)


def test_sample_efficiency_is_the_statistic_at_every_point():
    curves = np.random.default_rng(0).normal(size=(2, 9, 5)).cumsum(axis=-1)
    value, low, high = sample_efficiency(curves)
    np.testing.assert_allclose(value, [interquartile_mean(curves[..., i]) for i in range(5)])
    for i in range(5):  # the band is the interval at each point
        assert (low[i], high[i]) == interquartile_interval(curves[..., i], resamples=1000)[1:]
    np.testing.assert_allclose(sample_efficiency(curves[0], task_means).value, curves[0].mean(axis=0))


def test_thin_curves_keep_the_area_and_the_end():
    curves = np.random.default_rng(0).normal(size=(3, 100))
    ends, means = thin(curves, 20)
    assert list(ends) == list(range(5, 101, 5))
    np.testing.assert_allclose(means.mean(axis=1), curves.mean(axis=1))
    np.testing.assert_allclose(thin(curves[:, :7])[1], curves[:, :7])


# --- regret -----------------------------------------------------------------------------------------------------------


def flat(*levels):
    return np.tile(np.array(levels, np.float64)[:, None], (1, 20))


def test_regret_is_measured_against_the_better_baseline():
    baselines = {"ppo": flat(100, 100), "add": flat(10, 12)}
    found = regret(flat(98, 98), baselines)
    np.testing.assert_allclose(found.area, 0.98)
    np.testing.assert_allclose(found.final, 0.98)
    np.testing.assert_allclose(found.differences["ppo"], -2.0)
    assert found.differences["add"].value == pytest.approx(87.0)
    assert not found.kept  # below ppo's end on every seed
    assert regret(flat(99, 103), baselines).kept


def test_who_equals_the_better_baseline_regrets_nothing():
    curves = flat(1, 2, 3, 4)
    found = regret(curves, {"ppo": curves, "add": flat(0, 0, 0, 0)})
    assert found.kept
    assert found.area == found.final == (1.0, 1.0, 1.0)


def test_a_share_of_a_negative_return_means_nothing():
    found = regret(flat(-1.0, -1.0), {"ppo": flat(-0.5, -0.5), "add": flat(-2.0, -2.0)})
    assert np.isnan(found.area).all()
    assert not found.kept
    assert regret(flat(-0.4, -0.4), {"ppo": flat(-0.5, -0.5)}).kept


def test_regret_needs_a_baseline():
    with pytest.raises(ValueError, match="baseline"):
        regret(flat(1.0), {})


def test_differences_are_paired_where_they_can_be():
    luck = np.random.default_rng(0).normal(size=30)
    paired = difference_interval(luck + 1.0, luck)
    np.testing.assert_allclose(paired, 1.0)
    unpaired = difference_interval(luck + 1.0, luck[:20])
    assert unpaired.low < unpaired.value < unpaired.high
    assert unpaired.value == pytest.approx(luck.mean() + 1.0 - luck[:20].mean())


# --- rliable ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rliable():
    try:
        from rliable import library, metrics
    except Exception as error:  # not there, or with versions of its own dependencies that it does not know
        pytest.skip(f"rliable cannot be imported: {error}")
    return library, metrics


def test_rliable_has_the_same_estimates(rliable):
    library, metrics = rliable
    # Its tables are [runs, tasks].
    assert metrics.aggregate_iqm(X.T) == pytest.approx(interquartile_mean(X))
    assert metrics.aggregate_mean(X.T) == pytest.approx(mean_interval(X).value)
    assert metrics.probability_of_improvement(X.T, Y.T) == pytest.approx(probability_of_improvement(X, Y))
    profile = library.create_performance_profile({"x": X.T}, THRESHOLDS, reps=10)[0]["x"]
    np.testing.assert_allclose(profile, performance_profile(X, THRESHOLDS).value)


def test_rliable_has_about_the_same_intervals(rliable):
    """Both are percentile bootstraps, of other random numbers."""
    library, metrics = rliable
    scores = np.random.default_rng(0).normal(size=(3, 20)) + np.array([[0.0], [1.0], [5.0]])
    others = np.random.default_rng(1).normal(size=(3, 20)) + np.array([[0.3], [1.0], [4.5]])
    ours = {
        "iqm": interquartile_interval(scores, resamples=20_000),
        "mean": mean_interval(scores, resamples=20_000),
        "improvement": improvement_interval(scores, others, resamples=20_000),
    }
    tables = {"iqm": scores.T, "mean": scores.T, "improvement": (scores.T, others.T)}
    theirs = {
        "iqm": metrics.aggregate_iqm,
        "mean": metrics.aggregate_mean,
        "improvement": metrics.probability_of_improvement,
    }
    for name, interval in ours.items():
        function = theirs[name]
        _, edges = library.get_interval_estimates(
            {name: tables[name]}, lambda *x, f=function: np.array([f(*x)]), reps=5000
        )
        width = interval.high - interval.low
        np.testing.assert_allclose(interval[1:], edges[name].ravel(), atol=0.06 * width)
