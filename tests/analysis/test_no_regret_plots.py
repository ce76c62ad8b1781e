"""The heat map shows each cell's number in its place."""

import numpy as np
import pytest

from llmrl.analysis.comparison import NO, YES
from llmrl.analysis.no_regret import UNKNOWN, Beside, Score
from llmrl.analysis.no_regret_plots import NO_RATIO, heat_map, lost
from llmrl.analysis.statistics import Interval

TASKS, SOURCES = ("a", "b"), ("fair", "harmful", "loud")


def score(area, end, gain, clear=False):
    ratios = [UNKNOWN if one is None else Interval(one, one, one) for one in (area, end)]
    return Score(*(Beside(0.0, 0.0, gain, one, UNKNOWN) for one in ratios), NO if clear else YES, clear)


def shown(axes):
    """Text of each cell by row and column."""
    return {(int(one.get_position()[1]), int(one.get_position()[0])): one.get_text() for one in axes.texts}


def test_each_number_stands_where_its_task_and_source_do(tmp_path):
    found = {("a", "harmful"): score(0.4, 0.9, -0.2, True), ("b", "fair"): score(1.5, 1.2, 0.7)}
    found |= {("b", "loud"): score(None, None, -0.001)}
    figure = heat_map(found, TASKS, SOURCES, tmp_path / "map.png", failed=[("a", "loud")])
    left, right = figure.axes[:2]
    assert {place: text for place, text in shown(left).items() if text} == {
        (0, 1): "0.60",
        (1, 0): "0.00",
        (1, 2): NO_RATIO,
        (0, 2): "failed",
    }
    assert (shown(right)[0, 1], shown(right)[1, 0], shown(right)[1, 2]) == ("-0.20", "0.70", "0.00")
    assert [one.get_xy() for one in left.patches] == [pytest.approx((1.06, 0.06))] and not right.patches
    # The first task is at the top, in both halves.
    assert left.get_ylim() == right.get_ylim() == (2.0, 0.0)
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


def test_regret_is_the_larger_loss_and_never_negative():
    assert lost(score(0.9, 0.7, 0.0)) == pytest.approx(0.3)
    assert lost(score(1.5, 1.1, 0.0)) == 0.0
    assert lost(score(None, 0.8, 0.0)) == pytest.approx(0.2)
    assert np.isnan(lost(score(None, None, 0.0)))


def test_a_colour_means_the_same_in_every_map():
    maps = [heat_map({("a", "fair"): score(ratio, ratio, 0.5)}, TASKS, SOURCES) for ratio in (0.2, 0.9)]
    limits = [[(axes.collections[0].norm.vmin, axes.collections[0].norm.vmax) for axes in one.axes[:2]] for one in maps]
    assert limits == [[(0.0, 1.0)] * 2] * 2
