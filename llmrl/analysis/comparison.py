"""Methods compared: who is better how often, what is lost beside the simple choices, how scores are spread.

References: Wilson 1927 for intervals of a share; Newcombe 2006 for those of a probability of improvement; Zou and
Donner 2008 for means of such intervals over tasks; Agarwal et al. 2021, "Deep reinforcement learning at the edge of the
statistical precipice".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from llmrl.analysis.statistics import (
    LEAST_SEEDS,
    Estimate,
    Interval,
    Scores,
    area_under_curve,
    bounds,
    difference_interval,
    known_mean,
    last_tenth,
    ratio_interval,
    trimmed_means,
)
from llmrl.settings.errors import BadValue


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


def improvement_interval(x: Scores, y: Float[np.ndarray, "*other_tasks others"], confidence: float = 0.95) -> Interval:
    """P(X > Y) + P(X = Y) / 2 for a seed of each method drawn at random, on average over tasks, with its interval.

    Half is what equal methods have; it says how often one is better, not by how much (Mann and Whitney's U over the
    number of pairs). No seed of one method is paired with one of the other.

    Args:
        x: scores of one method, [seeds] or [tasks, seeds]; NaN where a seed has no score, left out.
        y: scores of the other on the same tasks, of as many seeds or others.
        confidence: as for ``mean_interval``.

    Raises:
        ValueError: the tasks differ in number.
    """
    x, y = (np.atleast_2d(np.asarray(scores, np.float64)) for scores in (x, y))
    if len(x) != len(y):
        raise BadValue(f"scores of two methods must be of the same tasks, got {len(x)} and {len(y)} tasks")
    wins = np.array([_wins(*task) for task in zip(x, y, strict=True)])
    ours, theirs = (np.sum(~np.isnan(scores), axis=-1) for scores in (x, y))

    def variance(p: np.ndarray) -> np.ndarray:
        """Of the share of pairs won, where both methods' scores are exponential (Hanley and McNeil 1982)."""
        shared = (1.0 - p) / (2.0 - p) + p / (1.0 + p)
        return p * (1.0 - p) * (1.0 + ((ours + theirs) / 2.0 - 1.0) * shared) / np.maximum(ours * theirs, 1)

    low, high = _over_tasks(wins, *_score_bounds(wins, variance, confidence), np.minimum(ours, theirs))
    return Interval(float(wins.mean()), float(low), float(high))


def _wins(x: Float[np.ndarray, " seeds"], y: Float[np.ndarray, " others"]) -> float:
    """Share of pairs in which x is the larger one; NaN where there is no pair."""
    difference = np.ravel(x[:, None] - y[None])
    return float(known_mean(np.where(np.isnan(difference), np.nan, (np.sign(difference) + 1.0) / 2.0)))


def _score_bounds(
    share: np.ndarray, variance: Callable[[np.ndarray], np.ndarray], confidence: float
) -> tuple[np.ndarray, np.ndarray]:
    """The shares farthest below and above the found one from which it is not significantly different.

    ``variance`` is that of a found share, given the true one. It is asked about the true one, so that there is an
    interval even where all were won.
    """
    from scipy.special import ndtri

    reach = float(ndtri(0.5 + confidence / 2.0)) ** 2

    def farthest(towards: float) -> np.ndarray:
        inside, outside = share, np.full_like(share, towards)
        for _ in range(50):
            middle = (inside + outside) / 2.0
            near = (middle - share) ** 2 <= reach * variance(middle)
            inside, outside = np.where(near, middle, inside), np.where(near, outside, middle)
        return inside

    return farthest(0.0), farthest(1.0)


def _over_tasks(
    share: Float[np.ndarray, "tasks *points"],
    low: Float[np.ndarray, "tasks *points"],
    high: Float[np.ndarray, "tasks *points"],
    seeds: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of the mean over tasks, from each task's; NaN where a task has fewer than ``LEAST_SEEDS`` seeds."""
    value = np.asarray(share.mean(axis=0))
    if np.min(seeds) < LEAST_SEEDS:
        return np.full_like(value, np.nan), np.full_like(value, np.nan)
    below, above = (np.sqrt(np.sum((share - edge) ** 2, axis=0)) / len(share) for edge in (low, high))
    return np.asarray(value - below), np.asarray(value + above)


# --- nothing to regret ------------------------------------------------------------------------------------------------


YES, NO, UNDECIDED = "yes", "no", "not enough seeds"
"""Whether there is nothing to regret."""


class Regret(NamedTuple):
    """What a method has lost, or won, beside the better of its baselines.

    Attributes:
        area: area under its curve over that of the baseline with the largest area; NaN unless both are positive.
        final: its end over that of the baseline with the highest end; NaN unless both are positive.
        differences: its end minus each baseline's, by name.
        verdict: whether there is nothing to regret: ``YES``, ``NO`` or ``UNDECIDED``.
        kept: seeds of the method whose own area and end are within the margin of every baseline's, seed by seed where
            there are equally many, else of its mean.
        seeds: seeds of the method.
    """

    area: Interval
    final: Interval
    differences: dict[str, Interval]
    verdict: str
    kept: int
    seeds: int

    @property
    def words(self) -> str:
        """The verdict, and of how many seeds alone it holds, as in ``yes (28/30)``."""
        return f"{self.verdict} ({self.kept}/{self.seeds})"


def regret(
    method: Float[np.ndarray, "seeds iterations"],
    baselines: dict[str, Float[np.ndarray, "others iterations"]],
    least: float = 0.97,
    confidence: float = 0.95,
) -> Regret:
    """A method beside the better of several baselines, such as ignoring and trusting an auxiliary reward.

    The method may lose a margin in its area and in its end: 1 - ``least`` of the size of a baseline's mean. The verdict
    is yes where the interval of the loss lies within the margin, compared with every baseline. It is no where the
    interval lies beyond the margin, compared with any baseline. Otherwise, and with fewer than ``LEAST_SEEDS`` seeds,
    seeds are not enough to decide.

    Args:
        method: its learning curves.
        baselines: name -> learning curves; seeds are paired where there are equally many.
        least: share of a baseline's mean that counts as no regret.
        confidence: as for ``mean_interval``.

    Raises:
        ValueError: there is no baseline.
    """
    if not baselines:
        raise BadValue("regret needs at least one baseline, got none")
    end = last_tenth(method)
    differences = {
        name: difference_interval(end, last_tenth(curves), confidence=confidence) for name, curves in baselines.items()
    }
    spare, kept = [], np.ones(len(method), bool)
    for score in (area_under_curve, last_tenth):
        for curves in baselines.values():
            ours, theirs = score(method), score(curves)
            factor = 1.0 - (1.0 - least) * float(np.sign(known_mean(theirs)))
            spare.append(difference_interval(ours, theirs, factor, confidence))
            kept &= ours >= factor * (theirs if ours.shape == theirs.shape else known_mean(theirs))
    return Regret(
        _beside_better(area_under_curve, method, baselines, confidence),
        _beside_better(last_tenth, method, baselines, confidence),
        differences,
        verdict(spare),
        int(kept.sum()),
        len(method),
    )


def verdict(spare: list[Interval]) -> str:
    """``YES`` where something is left of every margin, ``NO`` where one is used up, else ``UNDECIDED``.

    Args:
        spare: what is left of each margin, with its interval; one without an interval decides nothing.
    """
    if any(each.high < 0.0 for each in spare):
        return NO
    return YES if all(each.low >= 0.0 for each in spare) else UNDECIDED


def _beside_better(
    score: Callable[[np.ndarray], np.ndarray], method: np.ndarray, baselines: dict[str, np.ndarray], confidence: float
) -> Interval:
    """The ratio to the baseline with the highest mean; which that is, is not drawn again."""
    ours, better = score(method), max((score(curves) for curves in baselines.values()), key=known_mean)
    if not (known_mean(ours) > 0.0 and known_mean(better) > 0.0):
        return Interval(float("nan"), float("nan"), float("nan"))
    return ratio_interval(ours, better, confidence=confidence)


# --- distributions and curves -----------------------------------------------------------------------------------------


def performance_profile(scores: Scores, thresholds: Float[np.ndarray, " points"], confidence: float = 0.95) -> Band:
    """Share of runs that score more than each threshold, with a pointwise band.

    Args:
        scores: [seeds] or [tasks, seeds]; tasks count alike. A NaN is more than nothing.
        thresholds: in the scores' units.
        confidence: as for ``mean_interval``.
    """
    strata = np.atleast_2d(np.asarray(scores, np.float64))
    shares = (strata[..., None] > thresholds).mean(axis=1)
    seeds = strata.shape[1]
    edges = _score_bounds(shares, lambda p: p * (1.0 - p) / seeds, confidence)
    return Band(shares.mean(axis=0), *_over_tasks(shares, *edges, np.asarray(seeds)))


def sample_efficiency(
    curves: Float[np.ndarray, "*tasks seeds points"],
    statistic: Callable[[Float[np.ndarray, "points tasks seeds"]], Estimate] = trimmed_means,
    confidence: float = 0.95,
) -> Band:
    """A statistic (the interquartile mean) of all seeds at each point of training, with a pointwise band.

    Args:
        curves: [seeds, points] of one task, or [tasks, seeds, points].
        statistic: ``trimmed_means`` or ``task_means``.
        confidence: as for ``mean_interval``.
    """
    strata = np.asarray(curves, np.float64)
    strata = strata[None] if strata.ndim == 2 else strata
    found = statistic(np.ascontiguousarray(np.moveaxis(strata, -1, 0)))
    return Band(found.value, *bounds(found, confidence))


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


IGNORES = "ppo"
"""The method that hears no source: it is the baseline of every source."""


TRUSTS = "add"
"""The method that adds every source as it is."""


MEASURES = {
    "cartpole": "episode_length",
    "cartpole_continuous": "episode_length",
    "gridworld": "success_rate",
    "keydoor": "success_rate",
    "crafter": "success_rate",
    "craftax_classic": "success_rate",
}
"""What shows progress where it is not the return."""
