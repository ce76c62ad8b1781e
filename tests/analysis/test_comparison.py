"""Comparisons: laws, brute force on a fixed table, and rliable's own numbers where rliable is installed."""

import itertools

import numpy as np
import pytest

from llmrl.analysis.comparison import (
    NO,
    UNDECIDED,
    YES,
    improvement_interval,
    performance_profile,
    regret,
    sample_efficiency,
    thin,
)
from llmrl.analysis.statistics import (
    difference_interval,
    interquartile_interval,
    mean_interval,
    task_means,
)

X = np.array([[0.9, 1.4, 1.1, 0.7, 1.3, 2.0, 0.2, 1.1, 1.0], [3.0, 2.5, 2.5, 4.0, 3.5, 0.1, 2.2, 2.8, 9.0]])
Y = np.array([[1.0, 0.8, 1.1, 0.6, 1.2, 0.3, 0.9], [2.5, 2.4, 2.0, 3.0, 5.0, 1.0, 2.1]])
THRESHOLDS = np.linspace(-1.0, 10.0, 45)


# --- probability of improvement ---------------------------------------------------------------------------------------


def improvement(x, y):
    return improvement_interval(x, y).value


def test_equals_have_a_half_and_who_dominates_has_one():
    assert improvement(X, X) == 0.5
    assert improvement(X + 100.0, X) == 1.0
    assert improvement(X - 100.0, X) == 0.0
    value, low, high = improvement_interval(X + 100.0, X)
    assert value == high == 1.0
    assert 0.7 < low < 1.0  # a few seeds of each that all win may still be luck


def test_ties_count_half():
    assert improvement(np.array([1.0, 1.0]), np.array([1.0, 1.0, 1.0])) == 0.5
    assert improvement(np.array([1.0, 2.0]), np.array([1.0, 0.0])) == pytest.approx(0.875)


def test_one_improves_as_often_as_the_other_does_not():
    assert improvement(X, Y) + improvement(Y, X) == pytest.approx(1.0)


def test_probability_of_improvement_by_counting_pairs():
    def wins(xs, ys):
        pairs = list(itertools.product(xs, ys))
        return sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)

    assert improvement(X, Y) == pytest.approx(np.mean([wins(*task) for task in zip(X, Y, strict=True)]))


def test_methods_must_share_their_tasks_and_a_missing_seed_is_no_loss():
    with pytest.raises(ValueError, match="2 and 1 tasks"):
        improvement(X, Y[0])
    assert improvement(np.array([2.0, np.nan]), np.array([1.0])) == 1.0


# --- profiles and curves ----------------------------------------------------------------------------------------------


def test_profiles_fall_from_one_to_nothing():
    value, low, high = performance_profile(X, THRESHOLDS)
    for edge in (value, low, high):
        assert np.all(np.diff(edge) <= 0.0)
    assert (value[0], value[-1]) == (high[0], low[-1]) == (1.0, 0.0)
    assert np.all((low <= value) & (value <= high))


def test_profile_by_counting():
    brute = [np.mean([np.mean([score > t for score in task]) for task in X]) for t in THRESHOLDS]
    np.testing.assert_allclose(performance_profile(X, THRESHOLDS).value, brute)


def test_sample_efficiency_is_the_statistic_at_every_point():
    curves = np.random.default_rng(0).normal(size=(2, 9, 5)).cumsum(axis=-1)
    value, low, high = sample_efficiency(curves)
    np.testing.assert_allclose(value, [interquartile_interval(curves[..., i]).value for i in range(5)])
    for i in range(5):  # the band is the interval at each point
        assert (low[i], high[i]) == interquartile_interval(curves[..., i])[1:]
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
    baselines = {"ppo": flat(*[100] * 5), "add": flat(10, 12, 11, 10, 12)}
    found = regret(flat(*[96] * 5), baselines)
    np.testing.assert_allclose(found.area, 0.96)
    np.testing.assert_allclose(found.final, 0.96)
    np.testing.assert_allclose(found.differences["ppo"], -4.0)
    assert found.differences["add"].value == pytest.approx(85.0)
    assert (found.verdict, found.words) == (NO, "no (0/5)")
    assert regret(flat(*[98] * 5), baselines).verdict == YES  # within the margin of 3
    mixed = regret(flat(99, 103, 60, 104, 102), baselines)
    assert mixed.words == "not enough seeds (4/5)"


def test_who_equals_the_better_baseline_regrets_nothing():
    curves = flat(1, 2, 3, 4, 5)
    found = regret(curves, {"ppo": curves, "add": flat(*[0] * 5)})
    assert found.verdict == YES
    assert found.area == found.final == (1.0, 1.0, 1.0)


def test_a_share_of_a_negative_return_means_nothing():
    found = regret(flat(*[-1.0] * 5), {"ppo": flat(*[-0.5] * 5), "add": flat(*[-2.0] * 5)})
    assert np.isnan(found.area).all()
    assert found.verdict == NO
    assert regret(flat(*[-0.51] * 5), {"ppo": flat(*[-0.5] * 5)}).verdict == YES
    assert regret(flat(*[-0.4] * 5), {"ppo": flat(*[-0.5] * 5)}).verdict == YES


@pytest.mark.parametrize("seeds", [1, 2, 3, 4])
def test_few_seeds_decide_nothing(seeds):
    equal = flat(*[1.0] * seeds)
    assert regret(equal, {"ppo": equal}).words == f"not enough seeds ({seeds}/{seeds})"
    assert regret(0.0 * equal, {"ppo": equal}).verdict == UNDECIDED
    assert regret(flat(*[1.0] * 9), {"ppo": flat(*[1.0] * 9), "add": equal}).verdict == UNDECIDED


def verdicts(loss, seeds, trials=60):
    """How often what is said of a method with this loss, of a mean of 100 and a deviation of 3 over seeds."""
    rng = np.random.default_rng(seeds)
    method, baseline = (rng.normal(mean, 3.0, (trials, seeds, 1)) for mean in (100.0 - loss, 100.0))
    found = [regret(m, {"ppo": b}).verdict for m, b in zip(method, baseline, strict=True)]
    return {verdict: found.count(verdict) / trials for verdict in (YES, NO, UNDECIDED)}


def test_fewer_seeds_make_a_yes_no_easier():
    """A loss of the whole margin, 3, passes no more often than the interval allows, however few seeds there are."""
    few, many = verdicts(3.0, 5), verdicts(3.0, 20)
    assert few[YES] <= 0.1 and many[YES] <= 0.1
    few, many = verdicts(0.0, 5), verdicts(0.0, 20)
    assert few[YES] < 0.5 < 0.75 < many[YES]
    assert few[UNDECIDED] > 0.5 and many[NO] == 0.0


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
    assert metrics.aggregate_iqm(X.T) == pytest.approx(interquartile_interval(X).value)
    assert metrics.aggregate_mean(X.T) == pytest.approx(mean_interval(X).value)
    assert metrics.probability_of_improvement(X.T, Y.T) == pytest.approx(improvement(X, Y))
    profile = library.create_performance_profile({"x": X.T}, THRESHOLDS, reps=10)[0]["x"]
    np.testing.assert_allclose(profile, performance_profile(X, THRESHOLDS).value)


def test_rliable_has_about_the_same_intervals_where_seeds_are_many(rliable):
    """It resamples, which is as good with 100 seeds."""
    library, metrics = rliable
    scores = np.random.default_rng(0).normal(size=(3, 100)) + np.array([[0.0], [1.0], [5.0]])
    others = np.random.default_rng(1).normal(size=(3, 100)) + np.array([[0.3], [1.0], [4.5]])
    ours = {
        "mean": mean_interval(scores),
        "improvement": improvement_interval(scores, others),
    }
    tables = {"mean": scores.T, "improvement": (scores.T, others.T)}
    theirs = {"mean": metrics.aggregate_mean, "improvement": metrics.probability_of_improvement}
    for name, interval in ours.items():
        function = theirs[name]
        _, edges = library.get_interval_estimates(
            {name: tables[name]}, lambda *x, f=function: np.array([f(*x)]), reps=5000
        )
        width = interval.high - interval.low
        np.testing.assert_allclose(interval[1:], edges[name].ravel(), atol=0.08 * width)
