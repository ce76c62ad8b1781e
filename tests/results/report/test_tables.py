"""What the tables of a report say of a run's curves."""

from pathlib import Path

import numpy as np

from llmrl.results.report.entries import Entry
from llmrl.results.report.tables import arms_table
from llmrl.settings.config import ArmsConfig, AuxConfig, Config, MethodConfig


def entry(curves):
    method = MethodConfig(name="twin", arms=ArmsConfig(follow=("none", "all")))
    return Entry(Path("run"), Config(method=method, aux=AuxConfig(sources={"fair": 1.0})), curves, None, None)


def test_who_acted_is_told_of_every_policy_of_runs_with_several():
    share = np.repeat([[0.5, 0.25, 0.25, 0.0]], 2, axis=0)
    curves = {
        "arm_share/0": 1.0 - share,
        "arm_share/1": share,
        "arm_return/0": np.tile([0.0, 1.0, 2.0, 3.0], (2, 1)),
        "arm_return/1": np.ones((2, 4)),
        "arm_error/0": np.full((2, 4), 0.5),
        "arm_error/1": np.full((2, 4), 0.25),
        "arm_copied": np.array([[0, 1, 0, 1], [0, 0, 0, 0]]),
        "certificate": np.array([[0, 0, 0, 1], [0, 0, 0, 0]]),
    }
    runs = {"twin": entry(curves), "ppo": entry({})}
    found = arms_table(runs)
    first = ["0: the task alone", "50 %", "75 %", "75 %", "100 %", "3.000", "0.500", "1.000", "yes 1, not yet known 1"]
    second = ["1: fair", "50 %", "25 %", "25 %", "0 %", "1.000", "0.250", "", ""]
    assert found.rows == [["twin", *first], ["twin", *second]]
    assert arms_table({"ppo": entry({})}) is None
