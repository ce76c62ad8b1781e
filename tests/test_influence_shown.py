"""One quantity in the table, in metrics.csv, in the report and on the map: how far a source has moved the policy."""

from io import StringIO

import numpy as np
import pytest
from rich.console import Console

import llmrl
from llmrl.analysis.statistics import last_tenth
from llmrl.analysis.trust import shares
from llmrl.results.report.entries import Entry, read
from llmrl.results.report.tables import trust_table
from llmrl.runs import metrics
from llmrl.training.progress import show_summary

SOURCE = "helpful_hackable"


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """A run whose goal is too far away to be met, and whose hint is followed after two rollouts of exploring alone."""
    settings = ("env=gridworld", "env.size=30", "env.horizon=12", "env.observation=coordinates", f"aux={SOURCE}")
    tiny = ("ppo=tiny", "ppo.hidden=[4]", "method.weight.hidden=[4]", "solver=identity")
    path = tmp_path_factory.mktemp("followed") / "run"
    advised = ("method.trust.advice_patience=128", f"run_dir={path}")
    run = ("seeds=1", "total_steps=640", "num_chunks=1", "devices=1", "progress=false")
    return path, llmrl.train(llmrl.compose(*settings, *tiny, *advised, *run))


def test_a_followed_hint_has_moved_the_policy_wherever_it_is_shown(followed):
    path, result = followed
    curves = metrics.read(path / "metrics.csv")
    moved, weight = curves[f"influence/{SOURCE}"], curves[f"weight_mean_active/{SOURCE}"]
    np.testing.assert_array_equal(moved[:, :2], 0.0)
    # All of the policy's step but what the task's own noise is left: f, with no weight at all.
    np.testing.assert_allclose(moved, curves[f"advice_share/{SOURCE}"], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(weight, 0.0)
    assert np.all(moved[:, 3:] > 0.8) and np.all(curves[f"trust_used/{SOURCE}"][:, 3:] == 1.0)

    end = f"{last_tenth(moved)[0]:.3g}"
    table = StringIO()
    show_summary(result.summary, "a run", Console(file=table, width=160))
    (row,) = (line.split() for line in table.getvalue().splitlines() if f"influence/{SOURCE}" in line)
    assert end in row
    (row,) = (line.split() for line in table.getvalue().splitlines() if f"weight_mean_active/{SOURCE}" in line)
    assert "0" in row

    found = llmrl.trust_map(path, num_steps=16, num_envs=4)  # as many steps as a rollout has
    speaks = found.aux[..., 0] != 0
    followed_on = moved[0, -1] * (1.0 - result.config.method.trust.advice_decay)  # a silent rollout later
    np.testing.assert_allclose(found.influence[..., 0][speaks], followed_on, rtol=1e-4)
    assert np.all(shares(found, SOURCE).used == 1.0)
    np.testing.assert_array_equal(found.weight, 0.0)

    entry = read(path)
    assert isinstance(entry, Entry)
    # What training noted, or of older runs the map alone.
    for known, expected, whole in ((entry.curves, moved[0, -1], "80 %"), ({}, followed_on, "-")):
        table = trust_table(found, known)
        row = dict(zip(table.header, table.rows[0], strict=True))
        assert row["influence, end"].startswith(f"{expected:.3f}"), row
        assert row["used"] == f"{whole} / 100 %" and row["ignored"].endswith(" / 0 %"), row
