"""What several studies share: settings, and how a run is measured and compared."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from llmrl.analysis.comparison import regret
from llmrl.analysis.statistics import area_under_curve, last_tenth
from llmrl.analysis.tables import estimate
from llmrl.studies.carry_out import Found, Results

CARTPOLES = ("cartpole", "cartpole_continuous")
CARTPOLE = ("total_steps=204800",)

WRONG = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of a language model's answers that are made wrong."""


def scores(found: Found, measure: str) -> tuple[np.ndarray, np.ndarray]:
    """Area and last tenth of a measure, [seeds] each."""
    return area_under_curve(found.curves[measure]), last_tenth(found.curves[measure])


def regretted(found: Found, method: str, results: Results, simple: Mapping[str, str]) -> list[str]:
    """Cells that compare a method with simple ones, of which the runs are named; none before these are finished."""
    if method in simple or not set(simple.values()) <= results.keys():
        return []
    beside = regret(
        found.curves["episode_length"],
        {other: results[run].curves["episode_length"] for other, run in simple.items()},
    )
    return [estimate(beside.area), *map(estimate, beside.differences.values()), beside.words]
