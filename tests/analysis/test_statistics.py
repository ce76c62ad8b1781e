import numpy as np
import pytest

from llmrl.analysis.statistics import (
    area_under_curve,
    bounds,
    difference_interval,
    interquartile_interval,
    last_tenth,
    mean_interval,
    missed_share,
    ratio_interval,
    task_means,
    trimmed_means,
)
from llmrl.analysis.tables import about_seeds, estimate


def interquartile_mean(scores):
    return interquartile_interval(scores).value


def test_interquartile_mean_by_hand():
    assert interquartile_mean(np.array([100.0, 1.0, 2.0, 3.0, 4.0, -50.0, 5.0, 6.0])) == pytest.approx(3.5)
    assert interquartile_mean(np.array([[1.0, 9.0], [2.0, 3.0]])) == pytest.approx(2.5)
    assert interquartile_mean(np.array([7.0])) == 7.0


def test_interquartile_mean_is_the_trimmed_mean():
    trim_mean = pytest.importorskip("scipy.stats").trim_mean
    for size in range(1, 30):
        scores = np.random.default_rng(size).standard_cauchy(size)
        assert interquartile_mean(scores) == pytest.approx(trim_mean(scores, 0.25))
        assert interquartile_mean(np.append(scores, np.nan)) == pytest.approx(interquartile_mean(scores))


def test_interquartile_interval_of_equal_scores_is_a_point_and_strata_are_not_mixed():
    assert interquartile_interval(np.full((2, 5), 3.0)) == (3.0, 3.0, 3.0)
    assert interquartile_interval(np.array([[0.0] * 5, [10.0] * 5])) == (5.0, 5.0, 5.0)


def test_mean_interval_of_equal_scores_is_a_point():
    assert mean_interval(np.full(8, 3.0)) == (3.0, 3.0, 3.0)


# --- coverage ---------------------------------------------------------------------------------------------------------

TRIALS = 20_000


def drawn(kind, seeds):
    """Scores [trials, 1 task, seeds], and their true mean."""
    rng = np.random.default_rng(seeds)
    shape = (TRIALS, 1, seeds)
    if kind == "normal":
        return rng.normal(1.0, 2.0, shape), 1.0
    if kind == "exponential":
        return rng.exponential(size=shape), 1.0
    # One seed in 30 fails; the others are nearly alike.
    return np.where(rng.random(shape) < 1 / 30, 0.0, 1.0) + rng.normal(0.0, 0.01, shape), 29 / 30


def coverage(scores, truth, statistic=task_means):
    low, high = bounds(statistic(scores))
    return np.mean((low <= truth) & (truth <= high))


@pytest.mark.parametrize(("seeds", "skewed"), [(5, 0.87), (8, 0.88), (10, 0.89), (20, 0.91), (30, 0.92)])
def test_intervals_cover_the_truth_about_as_often_as_they_say(seeds, skewed):
    assert coverage(*drawn("normal", seeds)) == pytest.approx(0.95, abs=0.006)
    assert coverage(*drawn("exponential", seeds)) >= skewed
    assert coverage(*drawn("normal", seeds), trimmed_means) >= 0.925
    low, high = np.log(4 / 3), np.log(4.0)  # the quartiles of an exponential
    middle = 2.0 * ((low + 1.0) * 0.75 - (high + 1.0) * 0.25)
    assert coverage(drawn("exponential", seeds)[0], middle, trimmed_means) >= 0.91


@pytest.mark.parametrize("seeds", [5, 8, 10, 20, 30])
def test_what_no_interval_can_tell_is_said_beside_it(seeds):
    """Where one seed in 30 fails, an interval contains the truth when a failure was seen; else the words name it."""
    scores, truth = drawn("failing", seeds)
    seen = 1.0 - (29 / 30) ** seeds
    assert coverage(scores, truth) == pytest.approx(seen, abs=0.02)
    assert missed_share(seeds) >= 1 / 30
    assert f"{missed_share(seeds):.0%} of seeds" in about_seeds(seeds)
    # What is excluded would have shown itself with a probability of 0.95.
    spared = np.random.default_rng(0).random((TRIALS, seeds)) >= missed_share(seeds)
    assert np.mean(spared.all(axis=1)) == pytest.approx(0.05, abs=0.006)


@pytest.mark.parametrize("seeds", [1, 2, 3, 4])
def test_few_seeds_have_a_mean_and_no_interval(seeds):
    scores = np.arange(float(seeds))
    padded = np.append(scores, [np.nan] * 9)
    for of in (mean_interval, interquartile_interval):
        for found in (of(scores), of(padded), of(np.stack([padded, np.arange(seeds + 9.0)]))):
            assert np.isfinite(found.value) and np.isnan(found[1:]).all()
    for found in (ratio_interval(scores + 1.0, scores + 1.0), difference_interval(scores, np.arange(9.0))):
        assert np.isfinite(found.value) and np.isnan(found[1:]).all()
    assert estimate(mean_interval(np.full(seeds, 1.0))) == "1.000"
    assert "need 5" in about_seeds(seeds)


def test_means_differences_and_ratios_are_those_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    x, y, z = rng.normal(5.0, 1.0, 9), rng.normal(4.0, 2.0, 9), rng.normal(4.0, 2.0, 14)
    for found, reference in (
        (mean_interval(x), stats.ttest_1samp(x, 0.0)),
        (difference_interval(x, y), stats.ttest_rel(x, y)),
        (difference_interval(x, z), stats.ttest_ind(x, z, equal_var=False)),
        (difference_interval(x, z, factor=0.9), stats.ttest_ind(x, 0.9 * z, equal_var=False)),
    ):
        np.testing.assert_allclose(found[1:], reference.confidence_interval(0.95))
    for other, test in ((y, stats.ttest_rel), (z, lambda a, b: stats.ttest_ind(a, b, equal_var=False))):
        _, low, high = ratio_interval(x, other)
        inside, outside = (test(x, other * (low + shift * (high - low))).pvalue for shift in (0.02, -0.02))
        assert outside < 0.05 < inside  # a ratio is inside where it is not significantly wrong


def test_strata_are_not_mixed():
    """Two tasks, each with equal scores: nothing varies within a task, so nothing varies at all."""
    value, low, high = mean_interval(np.array([[0.0] * 5, [10.0] * 5]))
    assert value == low == high == 5.0


def test_ratio_of_a_method_with_itself_is_one_when_paired():
    scores = np.random.default_rng(2).uniform(1.0, 2.0, 10)
    np.testing.assert_allclose(ratio_interval(scores, scores), 1.0)
    unpaired = ratio_interval(scores, scores, paired=False)
    assert unpaired.value == pytest.approx(1.0)
    assert unpaired.low < 0.99
    assert unpaired.high > 1.01


def test_pairing_removes_what_both_methods_share():
    rng = np.random.default_rng(3)
    luck = rng.uniform(1.0, 10.0, 30)
    a, b = 1.1 * luck + rng.normal(scale=0.1, size=30), luck
    paired, unpaired = ratio_interval(a, b, paired=True), ratio_interval(a, b, paired=False)
    assert paired.value == unpaired.value == pytest.approx(1.1, abs=0.03)
    assert paired.high - paired.low < 0.1 * (unpaired.high - unpaired.low)


def test_ratio_of_different_numbers_of_seeds_is_unpaired():
    ratio = ratio_interval(np.array([2.0, 4.0, 6.0]), np.array([1.0, 3.0]))
    assert ratio.value == pytest.approx(2.0)
    with pytest.raises(ValueError, match="shapes"):
        ratio_interval(np.ones(3), np.ones(2), paired=True)
    with pytest.raises(ValueError, match="shapes"):
        ratio_interval(np.ones((2, 3)), np.ones(3))


def test_area_is_the_mean_height_and_ignores_what_is_missing():
    np.testing.assert_allclose(area_under_curve(np.array([[1.0, 2.0, 3.0], [np.nan, 4.0, 6.0]])), [2.0, 5.0])
    assert np.isnan(area_under_curve(np.full((1, 3), np.nan))[0])


def test_last_tenth():
    curve = np.arange(40.0)[None]
    assert last_tenth(curve)[0] == pytest.approx(37.5)
    assert last_tenth(curve[:, :3])[0] == 2.0


def test_a_seed_without_a_score_is_left_out():
    assert mean_interval(np.array([1.0, np.nan, 3.0])).value == 2.0
    assert np.isnan(mean_interval(np.full(3, np.nan))).all()
