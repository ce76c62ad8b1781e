"""Methods compared: who is better how often, what is lost beside the simple choices, how scores are spread.

Reference: Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from llmrl.analysis.statistics import (
    Interval,
    Scores,
    area_under_curve,
    draws,
    known_mean,
    last_tenth,
    mean_interval,
    percentiles,
    ratio_interval,
    trimmed_means,
)


class Band(NamedTuple):
    """A curve and its confidence band, [points] each.

    Attributes:
        value: the statistic at each point.
        low: lower edge.
        high: upper edge.
    """

    value: Float[np.ndarray, " points"]
    low: Float[np.ndarray, " points"]
    high: Float[np.ndarray, " points"]


# --- better how often -------------------------------------------------------------------------------------------------


def probability_of_improvement(x: Scores, y: Float[np.ndarray, "*other_tasks others"]) -> float:
    """P(X > Y) + P(X = Y) / 2 for a seed of each method drawn at random, on average over tasks.

    Half is what equal methods have; it says how often one is better, not by how much (Mann and Whitney's U over the
    number of pairs).

    Args:
        x: scores of one method, [seeds] or [tasks, seeds]; NaN where a seed has no score, left out.
        y: scores of the other on the same tasks, of as many seeds or others.

    Raises:
        ValueError: the tasks differ in number.
    """
    x, y = _same_tasks(x, y)
    return float(_improvement(x[None], y[None])[0])


def improvement_interval(
    x: Scores,
    y: Float[np.ndarray, "*other_tasks others"],
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Probability of improvement with a stratified bootstrap interval; the methods' seeds are drawn apart.

    Args:
        x, y: as for ``probability_of_improvement``.
        confidence, resamples, seed: as for ``mean_interval``.
    """
    x, y = _same_tasks(x, y)
    drawn_x = np.take_along_axis(x[None], draws(x.shape, resamples, seed), axis=-1)
    drawn_y = np.take_along_axis(y[None], draws(y.shape, resamples, seed + 1), axis=-1)
    return percentiles(float(_improvement(x[None], y[None])[0]), _improvement(drawn_x, drawn_y), confidence)


def _same_tasks(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y = (np.atleast_2d(np.asarray(scores, np.float64)) for scores in (x, y))
    if len(x) != len(y):
        raise ValueError(f"scores of two methods must be of the same tasks, got {len(x)} and {len(y)} tasks")
    return x, y


def _improvement(
    x: Float[np.ndarray, "samples tasks seeds"], y: Float[np.ndarray, "samples tasks others"]
) -> Float[np.ndarray, " samples"]:
    difference = x[..., :, None] - y[..., None, :]
    wins = np.where(np.isnan(difference), np.nan, (np.sign(difference) + 1.0) / 2.0)
    known = ~np.isnan(wins)
    count = known.sum(axis=(-2, -1))
    won = np.where(known, wins, 0.0).sum(axis=(-2, -1))
    return np.divide(won, count, out=np.full(won.shape, np.nan), where=count > 0).mean(axis=-1)


# --- nothing to regret ------------------------------------------------------------------------------------------------


class Regret(NamedTuple):
    """What a method has lost, or won, beside the better of its baselines.

    Attributes:
        area: area under its curve over that of the baseline with the largest area; NaN unless both are positive.
        final: its end over that of the baseline with the highest end; NaN unless both are positive.
        differences: its end minus each baseline's, by name.
        kept: whether there is nothing to regret.
    """

    area: Interval
    final: Interval
    differences: dict[str, Interval]
    kept: bool


def regret(
    method: Float[np.ndarray, "seeds iterations"],
    baselines: dict[str, Float[np.ndarray, "others iterations"]],
    least: float = 0.97,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Regret:
    """A method beside the better of several baselines, such as ignoring and trusting an auxiliary reward.

    Nothing is regretted where the area is at least ``least`` of the better baseline's, and the end not significantly
    below any baseline's. Which baseline is the better one is decided once, by the means, and not drawn again.

    Args:
        method: its learning curves.
        baselines: name -> learning curves; seeds are paired where there are equally many.
        least: share of the better baseline's area that counts as no regret.
        confidence, resamples, seed: as for ``mean_interval``.

    Raises:
        ValueError: there is no baseline.
    """
    if not baselines:
        raise ValueError("regret needs at least one baseline, got none")
    bootstrap = {"confidence": confidence, "resamples": resamples, "seed": seed}

    def beside_the_better(score: Callable[[np.ndarray], np.ndarray]) -> Interval:
        ours, better = score(method), max((score(curves) for curves in baselines.values()), key=known_mean)
        if not (known_mean(ours) > 0.0 and known_mean(better) > 0.0):
            return Interval(float("nan"), float("nan"), float("nan"))
        return ratio_interval(ours, better, **bootstrap)

    end = last_tenth(method)
    differences = {
        name: difference_interval(end, last_tenth(curves), **bootstrap) for name, curves in baselines.items()
    }
    area = beside_the_better(area_under_curve)
    enough = area.value >= least if np.isfinite(area.value) else _area_not_below(method, baselines, bootstrap)
    kept = bool(enough and all(difference.high >= 0.0 for difference in differences.values()))
    return Regret(area, beside_the_better(last_tenth), differences, kept)


def _area_not_below(method: np.ndarray, baselines: dict[str, np.ndarray], bootstrap: dict) -> bool:
    """Where returns are not positive a share of them means nothing: then the area may not be significantly below."""
    area = area_under_curve(method)
    return all(
        difference_interval(area, area_under_curve(curves), **bootstrap).high >= 0.0 for curves in baselines.values()
    )


def difference_interval(
    x: Float[np.ndarray, " seeds"],
    y: Float[np.ndarray, " others"],
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """mean(x) - mean(y) with a bootstrap interval over seeds, paired where there are equally many.

    Args:
        x, y: scores of two methods on one task; NaN where a seed has no score, left out.
        confidence, resamples, seed: as for ``mean_interval``.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.shape == y.shape:
        return mean_interval(x - y, confidence, resamples, seed)
    sampled = _means(x, resamples, seed) - _means(y, resamples, seed + 1)
    return percentiles(float(known_mean(x) - known_mean(y)), sampled, confidence)


def _means(scores: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    return known_mean(scores[draws(scores.shape, resamples, seed)])


# --- distributions and curves -----------------------------------------------------------------------------------------


def performance_profile(
    scores: Scores,
    thresholds: Float[np.ndarray, " points"],
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Band:
    """Share of runs that score more than each threshold, with a pointwise stratified bootstrap band.

    Args:
        scores: [seeds] or [tasks, seeds]; tasks count alike. A NaN is more than nothing.
        thresholds: in the scores' units.
        confidence, resamples, seed: as for ``mean_interval``.
    """
    strata = np.atleast_2d(np.asarray(scores, np.float64))
    above = (strata[..., None] > thresholds).astype(np.float64)
    drawn = draws(strata.shape, resamples, seed)
    sampled = np.stack(
        [np.take_along_axis(above[None, ..., i], drawn, axis=-1).mean(axis=(1, 2)) for i in range(len(thresholds))]
    )
    low, high = np.percentile(sampled, _tails(confidence), axis=1)
    return Band(above.mean(axis=(0, 1)), low, high)


def sample_efficiency(
    curves: Float[np.ndarray, "*tasks seeds points"],
    statistic: Callable[[Float[np.ndarray, "samples tasks seeds"]], Float[np.ndarray, " samples"]] = trimmed_means,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Band:
    """A statistic (the interquartile mean) of all seeds at each point of training, with a pointwise bootstrap band.

    Args:
        curves: [seeds, points] of one task, or [tasks, seeds, points].
        statistic: maps [samples, tasks, seeds] to [samples].
        confidence, resamples, seed: as for ``mean_interval``; a bootstrap sample takes whole curves.
    """
    strata = np.asarray(curves, np.float64)
    strata = strata[None] if strata.ndim == 2 else strata
    drawn = draws(strata.shape[:2], resamples, seed)
    points = [np.ascontiguousarray(strata[..., i]) for i in range(strata.shape[-1])]
    value = np.array([statistic(point[None])[0] for point in points])
    edges = [_edges(statistic(np.take_along_axis(point[None], drawn, axis=-1)), confidence) for point in points]
    low, high = np.array(edges).reshape(-1, 2).T
    return Band(value, low, high)


def thin(curves: Float[np.ndarray, "seeds iterations"], points: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Curves as means of neighbouring iterations, at most ``points`` of them, for pictures.

    Args:
        curves: learning curves.
        points: at most so many.

    Returns:
        The iterations that the means end at, from 1, [points], and the means, [seeds, points].
    """
    iterations = curves.shape[-1]
    ends = np.unique(np.linspace(0, iterations, min(points, iterations) + 1).round().astype(int))[1:]
    starts = np.concatenate([[0], ends[:-1]])
    means = [area_under_curve(curves[:, a:b]) for a, b in zip(starts, ends, strict=True)]
    return ends, np.stack(means, axis=-1)


def _edges(sampled: np.ndarray, confidence: float) -> tuple[float, float]:
    _, low, high = percentiles(0.0, sampled, confidence)
    return low, high


def _tails(confidence: float) -> Sequence[float]:
    tail = 50.0 * (1.0 - confidence)
    return (tail, 100.0 - tail)
