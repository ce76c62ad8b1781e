"""Every notebook runs from top to bottom, at the smallest size."""

import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parent.parent / "scripts" / "notebooks"
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("*.py"))


@pytest.fixture
def run(monkeypatch, tmp_path):
    """A notebook's variables after its last cell."""
    monkeypatch.setenv("LLMRL_SMALL", "1")
    monkeypatch.chdir(tmp_path)

    def all_cells(name):
        with jax.numpy_dtype_promotion("standard"):  # as a reader has it
            return runpy.run_path(str(FOLDER / f"{name}.py"))

    return all_cells


def test_the_implicit_gradient_by_hand_is_the_one_found_by_solving_again_and_lifts_the_return(run):
    cells = run("two_levels_by_hand")
    assert cells["implicit"] == pytest.approx(cells["by_hand"], rel=0.02)
    assert cells["phis"][-1] < 0 < cells["phis"][0]
    assert cells["returns"][-1] > cells["returns"][0] + 0.2


def test_learned_penalties_lower_the_validation_loss_and_spare_useful_features(run):
    cells = run("solvers")
    end = cells["outer_loss"](cells["solve_inner"](cells["phi"]), cells["phi"])
    assert end < cells["first"]
    penalties, useful = np.asarray(cells["penalties"]), cells["USEFUL"]
    assert np.median(penalties[:useful]) < np.median(penalties[useful:])


def test_first_run(run):
    cells = run("first_run")
    assert cells["found"].sources == ("harmful",)


def test_a_language_model_that_is_always_wrong_says_the_opposite(run):
    cells = run("language_reward")
    assert np.all(cells["helpful"].metrics["language_coverage"] == 1.0)
    said = [cells[name].metrics["language_score"].mean() for name in ("helpful", "misleading")]
    assert all(0.0 < score < 1.0 for score in said)


def test_comparing_methods(run):
    cells = run("comparing_methods")
    assert set(cells["curves"]) == {"ppo", "add", "implicit"}


def test_trust_in_your_own_ppo(run):
    cells = run("trust_in_your_own_ppo")
    assert cells["learner"].streams == ("task", "blend", "hint")
    assert set(cells["success"]) == {(way, hint) for way in ("ignore", "believe", "learn") for hint in ("good", "bad")}


def test_no_notebook_is_left_out():
    text = Path(__file__).read_text()
    assert NOTEBOOKS and all(f'"{name}"' in text for name in NOTEBOOKS)
