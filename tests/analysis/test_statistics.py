import itertools

import numpy as np
import pytest

from llmrl.analysis.statistics import (
    area_under_curve,
    interquartile_interval,
    interquartile_mean,
    interval,
    last_tenth,
    mean_interval,
    ratio_interval,
)


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


def test_interquartile_interval_by_brute_force():
    """Every bootstrap sample of four seeds, once: the percentiles that many random samples approach."""
    scores = np.array([1.0, 2.0, 4.0, 8.0])
    every = [np.sort(drawn)[1:3].mean() for drawn in itertools.product(scores, repeat=4)]
    value, low, high = interquartile_interval(scores, resamples=50_000, confidence=0.8)
    assert value == 3.0
    assert (low, high) == tuple(np.percentile(every, [10, 90]))


def test_mean_interval_of_equal_scores_is_a_point():
    assert mean_interval(np.full(8, 3.0)) == (3.0, 3.0, 3.0)


def test_mean_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = [
        low <= 1.0 <= high for _, low, high in (mean_interval(rng.normal(1.0, 2.0, 30), seed=i) for i in range(300))
    ]
    assert 0.89 <= np.mean(covered) <= 0.98  # a percentile bootstrap of 30 seeds is known to be a little narrow


def test_mean_interval_has_the_width_of_the_normal_approximation():
    scores = np.random.default_rng(1).normal(size=400)
    value, low, high = mean_interval(scores, resamples=20_000)
    assert value == pytest.approx(scores.mean())
    assert high - low == pytest.approx(2 * 1.96 * scores.std() / 20, rel=0.03)


def test_strata_are_not_mixed():
    """Two tasks, each with equal scores: nothing varies within a task, so nothing varies at all."""
    value, low, high = mean_interval(np.array([[0.0] * 5, [10.0] * 5]))
    assert value == low == high == 5.0


def test_any_statistic_can_be_resampled():
    scores = np.arange(40.0)
    median = interval(lambda drawn: np.median(drawn, axis=(1, 2)), scores)
    assert median.value == 19.5
    assert median.low < 19.5 < median.high


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
