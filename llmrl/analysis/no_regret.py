"""Scores of the no-regret suite: each method in each cell, beside ignoring the cell's source and adding it.

A cell is a task with a source. Let x_i be what seed i of a method reached there, x its mean over seeds, r the mean of
random play, b the mean of the better of ``ppo`` and ``add`` (which of the two, is decided by their means), and t the
largest mean of any method in the cell. Area and end of training are scored apart, each with its own b and t:

    score      (x - r) / (t - r)     0 for random play, 1 for the best method of the cell
    ratio      (x - r) / (b - r)     1 for a method that equals the better of the two simple ones
    gain       (x - p) / (t - r)     p the mean of ``ppo``: what the method makes of the source

Returns may be negative: every difference is from random play, so returns v and a v + c (a > 0) have the same scores.
Where neither ``ppo`` nor ``add`` is significantly above random play, there is nothing to keep: no ratio, and regret is
a difference b - x that is significantly above 0.

Seeds are paired, as seed i is the same draw in every run of a task. r and t count as known. Intervals are Student's t
and Fieller's (``llmrl.analysis.statistics``), with the tasks as strata: all cells of a task share its seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from llmrl.analysis.comparison import IGNORES, NO, TRUSTS, UNDECIDED, YES
from llmrl.analysis.statistics import (
    Interval,
    area_under_curve,
    difference_interval,
    known_mean,
    last_tenth,
    mean_interval,
    ratio_interval,
)

LEAST = 0.97
"""Share of what the better of the two reached above random play that counts as no regret."""

UNKNOWN = Interval(float("nan"), float("nan"), float("nan"))


class Reached(NamedTuple):
    """What each seed of a run reached, in the task's own units.

    Attributes:
        area: mean over training, [seeds].
        end: mean over the last tenth of training, [seeds].
    """

    area: Float[np.ndarray, " seeds"]
    end: Float[np.ndarray, " seeds"]


class Cell(NamedTuple):
    """A task with a source.

    Attributes:
        task: its name.
        source: its name.
        random: what random play reaches, mean over seeds.
        reached: method -> what it reached; ``ppo`` and ``add`` among them.
    """

    task: str
    source: str
    random: float
    reached: Mapping[str, Reached]


class Beside(NamedTuple):
    """One number of a method (area or end) beside the better of the two simple ones.

    Attributes:
        value: its mean over seeds, in the task's units.
        score: (x - r) / (t - r); NaN where no method is above random play.
        gain: (x - p) / (t - r); NaN where the score is.
        ratio: (x - r) / (b - r); NaN where neither of the two is significantly above random play.
        difference: x - b, in the task's units.
    """

    value: float
    score: float
    gain: float
    ratio: Interval
    difference: Interval


class Score(NamedTuple):
    """A method in a cell.

    Attributes:
        area: of the whole training.
        end: of its last tenth.
        verdict: whether there is no regret: ``YES`` where the ratio of the areas is at least ``LEAST`` and the end is
            not significantly below; else ``NO``; ``UNDECIDED`` with too few seeds for an interval.
        clear: whether a ``NO`` is beyond chance: the end or the ratio's interval says so too.
    """

    area: Beside
    end: Beside
    verdict: str
    clear: bool


class Summary(NamedTuple):
    """A method over all cells.

    Attributes:
        cells: in how many it was scored.
        kept: cells without regret.
        clear: cells whose regret is beyond chance.
        score: of its areas, the mean over tasks of the mean over their cells, of those in which any method is above
            random play.
        worst: task and source of the smallest ratio of area or end; empty where there is no ratio.
        worst_ratio: that ratio.
        helped: cells in which adding the source helps: the area of ``add`` is significantly above that of ``ppo``.
        gain_kept: sum of the method's gains in those cells over the sum of those of ``add``, by area.
    """

    cells: int
    kept: int
    clear: int
    score: Interval
    worst: str
    worst_ratio: Interval
    helped: int
    gain_kept: Interval


def reached(curves: Float[np.ndarray, "seeds iterations"]) -> Reached:
    """Area and end of each seed's learning curve."""
    return Reached(area_under_curve(curves), last_tenth(curves))


def scores(cell: Cell) -> dict[str, Score]:
    """Every method of a cell.

    Args:
        cell: with ``ppo`` and ``add`` among its methods.
    """
    areas = _beside({name: one.area for name, one in cell.reached.items()}, cell.random)
    ends = _beside({name: one.end for name, one in cell.reached.items()}, cell.random)
    return {name: Score(areas[name], ends[name], *_verdict(areas[name], ends[name])) for name in cell.reached}


def _beside(values: Mapping[str, Float[np.ndarray, " seeds"]], random: float) -> dict[str, Beside]:
    means = {name: float(known_mean(each)) for name, each in values.items()}
    better = values[max((IGNORES, TRUSTS), key=lambda name: means[name])]
    above = mean_interval(better - random)
    learned = above.value > 0.0 and not above.low <= 0.0
    room = _room(values, random)
    return {
        name: Beside(
            means[name],
            (means[name] - random) / room,
            (means[name] - means[IGNORES]) / room,
            ratio_interval(each - random, better - random) if learned else UNKNOWN,
            difference_interval(each, better),
        )
        for name, each in values.items()
    }


def _room(values: Mapping[str, Float[np.ndarray, " seeds"]], random: float) -> float:
    """t - r; NaN where no method is above random play."""
    room = max(float(known_mean(each)) for each in values.values()) - random
    return room if room > 0.0 else float("nan")


def _verdict(area: Beside, end: Beside) -> tuple[str, bool]:
    if np.isnan(end.difference.high):
        return UNDECIDED, False
    below = end.difference.high < 0.0
    if np.isnan(area.ratio.value):
        lost = area.difference.high < 0.0
        return (NO, True) if below or lost else (YES, False)
    if area.ratio.value >= LEAST and not below:
        return YES, False
    return NO, bool(below or area.ratio.high < LEAST)


# --- over all cells ---------------------------------------------------------------------------------------------------


def summaries(cells: Sequence[Cell]) -> dict[str, Summary]:
    """Every method, over the cells that have it."""
    found = [scores(cell) for cell in cells]
    methods = dict.fromkeys(method for cell in cells for method in cell.reached)
    return {
        method: _summary(
            [cell for cell in cells if method in cell.reached],
            [each[method] for each in found if method in each],
            method,
        )
        for method in methods
    }


def _summary(cells: Sequence[Cell], in_cells: Sequence[Score], method: str) -> Summary:
    found = {f"{cell.task}/{cell.source}": one for cell, one in zip(cells, in_cells, strict=True)}
    ratios = {name: _smaller(one.area.ratio, one.end.ratio) for name, one in found.items()}
    worst = min(ratios, key=lambda name: _order(ratios[name]), default="")
    worst = worst if worst and np.isfinite(ratios[worst].value) else ""
    helping = [cell for cell in cells if helps(cell)]
    learned = [cell for cell in cells if np.isfinite(_scaled(cell, method, cell.random)).any()]
    return Summary(
        len(cells),
        sum(one.verdict == YES for one in found.values()),
        sum(one.clear for one in found.values()),
        mean_interval(_per_task([_scaled(cell, method, cell.random) for cell in learned], learned, known_mean)),
        worst,
        ratios.get(worst, UNKNOWN),
        len(helping),
        _gain_kept(helping, method),
    )


def helps(cell: Cell) -> bool:
    """Whether adding the source helps: the area of ``add`` is significantly above that of ``ppo``."""
    gained = difference_interval(cell.reached[TRUSTS].area, cell.reached[IGNORES].area).low > 0.0
    return gained and bool(np.isfinite(_scaled(cell, TRUSTS, cell.random)).any())


def _gain_kept(helping: Sequence[Cell], method: str) -> Interval:
    def gained(name: str) -> Float[np.ndarray, "tasks seeds"]:
        gains = [_scaled(cell, name, cell.reached[IGNORES].area) for cell in helping]
        return _per_task(gains, helping, lambda of_cells: of_cells.sum(axis=-1))

    return ratio_interval(gained(method), gained(TRUSTS))


def _scaled(cell: Cell, method: str, base: float | Float[np.ndarray, " seeds"]) -> Float[np.ndarray, " seeds"]:
    """Area of each seed above a base, in units of t - r."""
    room = _room({name: one.area for name, one in cell.reached.items()}, cell.random)
    return (cell.reached[method].area - base) / room


def _per_task(
    values: Sequence[Float[np.ndarray, " seeds"]],
    cells: Sequence[Cell],
    over: Callable[[Float[np.ndarray, "seeds cells"]], Float[np.ndarray, " seeds"]],
) -> Float[np.ndarray, "tasks seeds"]:
    """What each cell's seeds have, put together over the cells of each task."""
    tasks = dict.fromkeys(cell.task for cell in cells)
    grouped = [[one for one, cell in zip(values, cells, strict=True) if cell.task == task] for task in tasks]
    return np.stack([over(np.stack(each, axis=-1)) for each in grouped]) if grouped else np.full((1, 1), np.nan)


def _smaller(one: Interval, other: Interval) -> Interval:
    return min(one, other, key=_order)


def _order(interval: Interval) -> float:
    """Unknown values come last."""
    return float(np.nan_to_num(interval.value, nan=np.inf))
