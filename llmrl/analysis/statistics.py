"""Statistics over seeds: means with bootstrap intervals, ratios of methods, areas under learning curves.

The seed is the unit: episodes of one seed share a policy and say nothing about another training run. Where scores come
from several tasks, the bootstrap is stratified: seeds are drawn within each task, tasks are not drawn at all.

Reference: Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float, Int

Scores: TypeAlias = Float[np.ndarray, "*tasks seeds"]
"""One number per seed, [seeds], or per task and seed, [tasks, seeds]."""


class Interval(NamedTuple):
    """An estimate and its confidence interval.

    Attributes:
        value: the statistic of the scores themselves.
        low: lower end of the interval.
        high: upper end of the interval.
    """

    value: float
    low: float
    high: float


def interquartile_mean(scores: Scores) -> float:
    """Mean of the middle half of all scores: steadier than the mean, less wasteful than the median.

    A quarter of the scores, rounded down, is left out at either end.

    Args:
        scores: [seeds] or [tasks, seeds]; NaN where a seed has no score, left out.
    """
    return float(trimmed_means(np.atleast_2d(np.asarray(scores, np.float64))[None])[0])


def mean_interval(scores: Scores, confidence: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval:
    """Mean over seeds and tasks with a stratified bootstrap interval.

    Args:
        scores: [seeds] or [tasks, seeds]; NaN where a seed has no score, left out.
        confidence: share of the bootstrap's distribution inside the interval.
        resamples: bootstrap samples.
        seed: of the bootstrap, so that a report says the same twice.
    """
    return interval(task_means, scores, confidence, resamples, seed)


def interquartile_interval(scores: Scores, confidence: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval:
    """Interquartile mean over seeds and tasks with a stratified bootstrap interval; arguments as ``mean_interval``."""
    return interval(trimmed_means, scores, confidence, resamples, seed)


def interval(
    statistic: Callable[[Float[np.ndarray, "samples tasks seeds"]], Float[np.ndarray, " samples"]],
    scores: Scores,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """A statistic with its percentile interval from a stratified bootstrap.

    Args:
        statistic: maps scores [samples, tasks, seeds] to one number per sample, [samples].
        scores: [seeds] or [tasks, seeds].
        confidence, resamples, seed: as for ``mean_interval``.
    """
    strata = np.atleast_2d(np.asarray(scores, np.float64))
    drawn = np.take_along_axis(strata[None], draws(strata.shape, resamples, seed), axis=-1)
    return percentiles(float(statistic(strata[None])[0]), statistic(drawn), confidence)


def ratio_interval(
    numerator: Float[np.ndarray, "*tasks seeds"],
    denominator: Float[np.ndarray, "*other_tasks other_seeds"],
    paired: bool | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Ratio of two methods' means, mean(numerator) / mean(denominator), with a bootstrap interval over seeds.

    Args:
        numerator: scores of one method, [seeds] or [tasks, seeds].
        denominator: scores of the other, on the same tasks.
        paired: whether column i of both comes from the same seed, so that both are drawn together; None pairs wherever
            the shapes agree.
        confidence, resamples, seed: as for ``mean_interval``.

    Raises:
        ValueError: the tasks differ in number, or ``paired`` is asked of scores of different shapes.
    """
    a, b = (np.atleast_2d(np.asarray(scores, np.float64)) for scores in (numerator, denominator))
    if len(a) != len(b) or (paired and a.shape != b.shape):
        raise ValueError(f"scores of two methods must match, got shapes {a.shape} and {b.shape} with paired={paired}")
    paired = a.shape == b.shape if paired is None else paired
    draws_a = draws(a.shape, resamples, seed)
    draws_b = draws_a if paired else draws(b.shape, resamples, seed + 1)
    sampled = task_means(np.take_along_axis(a[None], draws_a, axis=-1)) / task_means(
        np.take_along_axis(b[None], draws_b, axis=-1)
    )
    return percentiles(float(task_means(a[None])[0] / task_means(b[None])[0]), sampled, confidence)


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


def draws(shape: tuple[int, ...], resamples: int, seed: int) -> Int[np.ndarray, "resamples *tasks seeds"]:
    """Which seeds each bootstrap sample takes: as many as there are, with replacement, in every task by itself."""
    return np.random.default_rng(seed).integers(shape[-1], size=(resamples, *shape))


def percentiles(value: float, sampled: Float[np.ndarray, " samples"], confidence: float) -> Interval:
    """The interval between the tails of a bootstrapped statistic; NaN where it never had a value."""
    tail = 50.0 * (1.0 - confidence)
    if not np.isfinite(sampled).any():
        return Interval(value, float("nan"), float("nan"))
    low, high = np.nanpercentile(sampled, [tail, 100.0 - tail])
    return Interval(value, float(low), float(high))


def trimmed_means(scores: Float[np.ndarray, "samples tasks seeds"]) -> Float[np.ndarray, " samples"]:
    """The interquartile mean of each sample's scores, all tasks together."""
    ordered = np.sort(scores.reshape(len(scores), -1), axis=-1)  # NaNs come last
    known = np.sum(~np.isnan(ordered), axis=-1, keepdims=True)
    cut, place = known // 4, np.arange(ordered.shape[-1])
    return known_mean(np.where((place >= cut) & (place < known - cut), ordered, np.nan))


def task_means(scores: Float[np.ndarray, "samples tasks seeds"]) -> Float[np.ndarray, " samples"]:
    """The mean over tasks of each sample's means over seeds."""
    return known_mean(known_mean(scores))


def known_mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis without NaNs; NaN, and no warning, where nothing is left."""
    known = ~np.isnan(values)
    count = known.sum(axis=-1)
    total = np.where(known, values, 0.0).sum(axis=-1)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
