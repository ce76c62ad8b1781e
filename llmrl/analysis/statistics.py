"""Statistics over seeds: means with intervals, ratios of methods, areas under learning curves.

The seed is the unit: episodes of one seed share a policy and say nothing about another training run. Where scores come
from several tasks, seeds vary within each task and tasks do not vary at all.

Intervals are Student's t. A percentile bootstrap of so few seeds is too narrow: of 95 % it covers 84 % at 5 seeds and
90 % at 10. Below ``LEAST_SEEDS`` there is no interval.

References: Student 1908; Welch 1947 for several variances; Tukey and McLaughlin 1963 for trimmed means; Fieller 1954
for ratios; Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice".
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float

from llmrl.settings.errors import BadValue

Scores: TypeAlias = Float[np.ndarray, "*tasks seeds"]
"""One number per seed, [seeds], or per task and seed, [tasks, seeds]."""

LEAST_SEEDS = 5
"""With fewer seeds nothing is said beyond the seeds themselves: no interval and no verdict."""


class Interval(NamedTuple):
    """An estimate and its confidence interval.

    Attributes:
        value: the statistic of the scores themselves.
        low: lower end of the interval; NaN where there is none.
        high: upper end of the interval; NaN where there is none.
    """

    value: float
    low: float
    high: float


class Estimate(NamedTuple):
    """A statistic at some points, and how far it varies from one set of seeds to the next.

    Attributes:
        value: the statistic at each point.
        variance: each task's share of its variance; NaN where a task has fewer than ``LEAST_SEEDS`` scores.
        freedom: degrees of freedom of each of these variances.
    """

    value: Float[np.ndarray, " points"]
    variance: Float[np.ndarray, "points tasks"]
    freedom: Float[np.ndarray, "points tasks"]


def mean_interval(scores: Scores, confidence: float = 0.95) -> Interval:
    """Mean over seeds and tasks with its interval.

    Args:
        scores: [seeds] or [tasks, seeds]; NaN where a seed has no score, left out.
        confidence: how often such intervals contain the mean that infinitely many seeds would have.
    """
    return _only(task_means(_tasks(scores)[None]), confidence)


def interquartile_interval(scores: Scores, confidence: float = 0.95) -> Interval:
    """Mean of the middle half of all scores with its interval; arguments as ``mean_interval``.

    It is steadier than the mean and uses more of the scores than the median. A quarter of them, rounded down, is left
    out at either end.
    """
    return _only(trimmed_means(_tasks(scores)[None]), confidence)


def difference_interval(
    x: Float[np.ndarray, " seeds"], y: Float[np.ndarray, " others"], factor: float = 1.0, confidence: float = 0.95
) -> Interval:
    """mean(x) - factor mean(y) with its interval, seeds paired where there are equally many.

    Args:
        x, y: scores of two methods on one task; NaN where a seed has no score, left out.
        factor: on the second mean.
        confidence: as for ``mean_interval``.
    """
    x, y = np.asarray(x, np.float64), factor * np.asarray(y, np.float64)
    if x.shape == y.shape:
        return mean_interval(x - y, confidence)
    return _only(_joined(task_means(x[None, None]), task_means(y[None, None]), -1.0), confidence)


def ratio_interval(
    numerator: Float[np.ndarray, "*tasks seeds"],
    denominator: Float[np.ndarray, "*other_tasks other_seeds"],
    paired: bool | None = None,
    confidence: float = 0.95,
) -> Interval:
    """Ratio of two methods' means, mean(numerator) / mean(denominator), with its interval (Fieller).

    A ratio r is inside where mean(numerator) - r mean(denominator) is not significantly different from 0. There is no
    interval where the denominator's mean is not significantly different from 0 itself.

    Args:
        numerator: scores of one method, [seeds] or [tasks, seeds].
        denominator: scores of the other, on the same tasks.
        paired: whether column i of both comes from the same seed; None pairs wherever the shapes agree.
        confidence: as for ``mean_interval``.

    Raises:
        ValueError: the tasks differ in number, or ``paired`` is asked of scores of different shapes.
    """
    a, b = _tasks(numerator), _tasks(denominator)
    if len(a) != len(b) or (paired and a.shape != b.shape):
        raise BadValue(f"scores of two methods must match, got shapes {a.shape} and {b.shape} with paired={paired}")
    paired = a.shape == b.shape if paired is None else paired

    def contrast(x: float, y: float) -> Estimate:
        """x mean(a) + y mean(b)."""
        return task_means((x * a + y * b)[None]) if paired else _joined(_scaled(a, x), _scaled(b, y), 1.0)

    over, under = float(contrast(1.0, 0.0).value[0]), float(contrast(0.0, 1.0).value[0])
    ratio = over / under if under else float("nan")
    (reach,) = _quantile(contrast(1.0, -ratio), confidence) ** 2
    var_a, var_b, var_sum = (float(contrast(*of).variance.sum()) for of in ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0)))
    # over^2 - 2 r over under + r^2 under^2 <= reach (var_a - 2 r cov + r^2 var_b), a parabola in r.
    square, middle = under**2 - reach * var_b, over * under - reach * (var_sum - var_a - var_b) / 2.0
    if not square > 0.0:
        return Interval(ratio, float("nan"), float("nan"))
    half = np.sqrt(max(0.0, middle**2 - square * (over**2 - reach * var_a)))
    return Interval(ratio, float(middle - half) / square, float(middle + half) / square)


def missed_share(seeds: int, confidence: float = 0.95) -> float:
    """The largest share of failing seeds that so many seeds without a failure do not exclude.

    At a share p all n seeds are spared with probability (1 - p)^n; the share is excluded where that is below
    1 - ``confidence``. No interval of the spared seeds' scores can tell of such failures.
    """
    return 1.0 - (1.0 - confidence) ** (1.0 / seeds)


def area_under_curve(curves: Float[np.ndarray, "seeds iterations"]) -> Float[np.ndarray, " seeds"]:
    """Mean height of each seed's learning curve: its area, over the length of training.

    Args:
        curves: NaN where an iteration has no value, left out.
    """
    return known_mean(np.asarray(curves, np.float64))


def last_tenth(curves: Float[np.ndarray, "seeds iterations"]) -> Float[np.ndarray, " seeds"]:
    """Mean of the last tenth of each seed's learning curve, at least one iteration: where training ended.

    Args:
        curves: NaN where an iteration has no value, left out.
    """
    curves = np.asarray(curves, np.float64)
    return known_mean(curves[:, -max(1, curves.shape[1] // 10) :])


# --- estimates at many points -----------------------------------------------------------------------------------------


def task_means(scores: Float[np.ndarray, "points tasks seeds"]) -> Estimate:
    """The mean over tasks of the means over seeds, at each point."""
    count = np.sum(~np.isnan(scores), axis=-1)
    share = 1.0 / np.maximum(count * scores.shape[-2], 1)
    return Estimate(known_mean(known_mean(scores)), _variance(scores, count, share), count - 1.0)


def trimmed_means(scores: Float[np.ndarray, "points tasks seeds"]) -> Estimate:
    """The interquartile mean of all tasks' scores together, at each point.

    Its variance is that of the scores, of which those that are left out count as the outermost that are kept.
    """
    together = np.sort(scores.reshape(len(scores), -1), axis=-1)  # NaNs come last
    known = np.sum(~np.isnan(together), axis=-1, keepdims=True)
    cut, place = known // 4, np.arange(together.shape[-1])
    value = known_mean(np.where((place >= cut) & (place < known - cut), together, np.nan))
    low, high = (np.take_along_axis(together, np.maximum(end, 0), axis=-1) for end in (cut, known - cut - 1))
    winsorised = np.clip(scores, low[..., None], high[..., None])
    kept = np.sum(~np.isnan(scores), axis=-1) * (1.0 - 2.0 * cut / np.maximum(known, 1))
    share = 1.0 / np.maximum(known - 2 * cut, 1)
    return Estimate(value, _variance(winsorised, kept, np.broadcast_to(share, kept.shape)), kept - 1.0)


def bounds(estimate: Estimate, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper ends of an estimate's intervals, [points] each; NaN where there is none."""
    half = _quantile(estimate, confidence) * np.sqrt(estimate.variance.sum(axis=-1))
    return estimate.value - half, estimate.value + half


def known_mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis without NaNs; NaN, and no warning, where nothing is left."""
    known = ~np.isnan(values)
    count = known.sum(axis=-1)
    total = np.where(known, values, 0.0).sum(axis=-1)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _tasks(scores: Scores) -> Float[np.ndarray, "tasks seeds"]:
    return np.atleast_2d(np.asarray(scores, np.float64))


def _variance(
    scores: Float[np.ndarray, "points tasks seeds"], kept: np.ndarray, share: np.ndarray
) -> Float[np.ndarray, "points tasks"]:
    """Of a sum of scores, each times ``share``, of which ``kept`` are free to vary; NaN where seeds are too few."""
    deviations = scores - known_mean(scores)[..., None]
    squares = np.where(np.isnan(deviations), 0.0, deviations**2).sum(axis=-1)
    enough = np.sum(~np.isnan(scores), axis=-1) >= LEAST_SEEDS
    return np.where(enough, squares * share**2 * kept / np.maximum(kept - 1.0, 1.0), np.nan)


def _quantile(estimate: Estimate, confidence: float) -> Float[np.ndarray, " points"]:
    """How many standard errors an interval reaches to either side (Welch, where there are several variances)."""
    from scipy.special import stdtrit

    total = estimate.variance.sum(axis=-1)
    parts = np.sum(estimate.variance**2 / np.maximum(estimate.freedom, 1.0), axis=-1)
    freedom = np.divide(total**2, parts, out=np.maximum(estimate.freedom, 1.0).sum(axis=-1), where=parts > 0.0)
    return np.where(np.isnan(total), np.nan, stdtrit(freedom, 0.5 + confidence / 2.0))


def _scaled(scores: Float[np.ndarray, "tasks seeds"], factor: float) -> Estimate:
    return task_means(factor * scores[None])


def _joined(x: Estimate, y: Estimate, sign: float) -> Estimate:
    """x + sign y of independent estimates, with ``sign`` 1 or -1."""
    variance, freedom = (np.concatenate(pair, axis=-1) for pair in zip(x[1:], y[1:], strict=True))
    return Estimate(x.value + sign * y.value, variance, freedom)


def _only(estimate: Estimate, confidence: float) -> Interval:
    low, high = bounds(estimate, confidence)
    return Interval(float(estimate.value[0]), float(low[0]), float(high[0]))
