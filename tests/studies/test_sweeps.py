"""Grids inside one program: a point is the run with its values alone, on the disk as well, whatever interrupts them."""

import shutil
import sys

import jax
import numpy as np
import pytest
from small import compiled_once

import llmrl
from llmrl.results.report.status import status
from llmrl.runs import checkpoint
from llmrl.runs import directory as runs
from llmrl.studies import sweeps as module
from llmrl.studies.sweeps import sweep, tabulate

SETTINGS = (
    "env=gridworld",
    "env.size=3",
    "env.horizon=8",
    "aux=helpful_hackable",
    "method=scalar",
    "method.trust.cross_fitting=false",
    "method.trust.gate=false",
    "solver=identity",
    "ppo=tiny",
    "seeds=2",
    "total_steps=192",
    "num_chunks=3",
    "devices=1",
    "progress=false",
)
"""Three iterations in three chunks."""

GRID = {"scalar_learning_rate": [0.01, 0.3], "ppo.entropy": [0.0, 0.1]}
NAMES = [f"scalar_learning_rate-{rate}-entropy-{entropy}" for rate in (0.01, 0.3) for entropy in (0.0, 0.1)]


@pytest.fixture(scope="module")
@compiled_once()
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("grid") / "grid"
    sweep(llmrl.compose(*SETTINGS, f"run_dir={path}"), GRID)
    return path


@pytest.fixture
def copied(finished, tmp_path):
    """A finished grid to spoil, and what it takes to go on with it; settings know their directory."""
    path = tmp_path / "grid"
    shutil.copytree(finished, path)
    return path, llmrl.compose(*SETTINGS, f"run_dir={path}")


def rows(path):
    return {name: (path / name / "metrics.csv").read_bytes() for name in NAMES}


def refuse(*_):
    raise AssertionError("trained again")


# --- a point is a run -------------------------------------------------------------------------------------------------


def test_a_point_is_the_run_with_its_values_alone(finished):
    alone = llmrl.train(llmrl.compose(*SETTINGS, "method.outer.scalar_learning_rate=0.01", "ppo.entropy=0.1"))
    point = runs.metrics.read(finished / NAMES[1] / "metrics.csv")
    assert set(point) == set(alone.metrics)
    for metric, curves in alone.metrics.items():
        np.testing.assert_allclose(point[metric], curves, rtol=1e-4, atol=1e-5, err_msg=metric)
    assert len(set(rows(finished).values())) == 4


@compiled_once()
def test_a_point_has_a_directory_like_any_other_run(finished):
    assert {path.name for path in finished.iterdir()} == set(NAMES)
    assert [(one.path.name, one.state) for one in status([str(finished)])] == [(name, "finished") for name in NAMES]
    run = runs.load_run(finished / NAMES[1])
    alone = llmrl.compose(
        *SETTINGS, "method.outer.scalar_learning_rate=0.01", "ppo.entropy=0.1", f"run_dir={finished / NAMES[1]}"
    )
    assert run.config == alone
    result = llmrl.train(alone)  # which is finished, and shown
    assert result.summary == runs.read_summary(run)
    assert result.state.params is not None and len(result.state.iteration) == 2


def test_in_memory_and_in_batches_it_is_the_same(finished):
    points = sweep(llmrl.compose(*SETTINGS, "seeds_per_batch=2"), GRID)
    assert [list(point.values.values()) for point in points] == [[0.01, 0.0], [0.01, 0.1], [0.3, 0.0], [0.3, 0.1]]
    for point, name in zip(points, NAMES, strict=True):
        assert point.result.config.ppo.entropy == point.values["ppo.entropy"]
        assert isinstance(jax.tree.leaves(point.result.state.params)[0], jax.Array)
        kept = runs.metrics.read(finished / name / "metrics.csv")
        for metric, curves in point.result.metrics.items():
            # Shares of steps beyond a threshold: where units leave nothing of a source, rounding decides.
            if metric.startswith(("trust_used/", "trust_ignored/", "trust_turned/")):
                continue
            np.testing.assert_allclose(curves, kept[metric], rtol=1e-4, atol=1e-5, err_msg=metric)


# --- going on ---------------------------------------------------------------------------------------------------------


class Interrupted(Exception):
    pass


def interrupted(function, call):
    """``function``, but its ``call``-th call (from 0) raises instead."""
    calls = []

    def failing(*arguments, **options):
        calls.append(None)
        if len(calls) > call:
            raise Interrupted
        return function(*arguments, **options)

    return failing


@compiled_once()
def test_an_interruption_between_two_points_changes_nothing(finished, tmp_path, monkeypatch):
    config = llmrl.compose(*SETTINGS, f"run_dir={tmp_path}")
    stages = [
        (runs, "record", 1, "one point has its first chunk, the others nothing"),
        (runs, "record", 6, "two points are a chunk ahead"),
        (runs.checkpoint, "save", 5, "rows that no checkpoint knows"),
        (runs, "finish", 1, "one point is finished, the others are not"),
    ]
    for room, function, call, _ in stages:
        with monkeypatch.context() as patch:
            patch.setattr(room, function, interrupted(getattr(room, function), call))
            with pytest.raises(Interrupted):
                sweep(config, GRID)
    assert [one.state for one in status([str(tmp_path)])] == ["finished", "failed", "failed", "failed"]
    sweep(config, GRID)
    assert rows(tmp_path) == rows(finished)
    assert {one.state for one in status([str(tmp_path)])} == {"finished"}


@compiled_once()
def test_a_damaged_checkpoint_sets_all_points_back(finished, copied):
    path, config = copied
    for name in NAMES:
        (path / name / "summary.json").unlink()
    (path / NAMES[2] / "checkpoints" / "3" / "manifest").write_text("nonsense")
    with pytest.warns(UserWarning, match="going back to step 2"):
        points = sweep(config, GRID)
    assert rows(path) == rows(finished)
    assert len(points) == 4 and all((path / name / "summary.json").exists() for name in NAMES)


@compiled_once()
def test_finished_points_are_not_trained_again_and_a_grid_may_grow(finished, copied, monkeypatch):
    path, config = copied
    monkeypatch.setattr(sys.modules["llmrl.training.loop"], "compiled_run", refuse)
    points = sweep(config, GRID)
    assert rows(path) == rows(finished)
    assert points[3].result.summary == runs.read_summary(runs.load_run(path / NAMES[3]))

    asked = []
    monkeypatch.setattr(module, "_train", lambda _, __, members: asked.extend(members) or [points[0].result] * 2)
    grown = sweep(config, {**GRID, "ppo.entropy": [0.0, 0.1, 0.2]})
    assert [member.values["ppo.entropy"] for member in asked] == [0.2, 0.2]
    assert len(grown) == 6


def test_points_that_went_on_alone_are_refused_by_name(copied):
    path, config = copied
    for name in NAMES:
        (path / name / "summary.json").unlink()
    checkpoint.rewind(path / NAMES[1] / "checkpoints", 1)
    (path / NAMES[1] / "checkpoints" / "2").mkdir()
    shutil.rmtree(path / NAMES[0] / "checkpoints" / "2")
    with pytest.raises(ValueError, match=f"{NAMES[0]} at 3, {NAMES[1]} at 2"):
        sweep(config, GRID)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "grid", "message"),
    [
        ((), {"ppo.discount": [0.9, 1.5]}, "ppo.discount must lie in [0, 1], got 1.5"),
        ((), {"method.outer.learning_rate": [-1]}, "method.outer.learning_rate must be at least 0, got -1.0"),
        ((), {"ppo.entropy": [float("nan")]}, "ppo.entropy must be a finite number, got nan"),
        (("solver=neumann",), {"solver.max_step_size": [0.5, 0.0]}, "solver.max_step_size must be positive, got 0.0"),
        (("env=crafter", "aux=none", "method=ppo"), {"ppo.entropy": [0, 0.1]}, "--multirun"),
        (("method=frozen", "reward_from=x"), {"ppo.entropy": [0, 0.1]}, "--multirun"),
        (("distributed=true",), {"ppo.entropy": [0, 0.1]}, "it needs distributed=false"),
        (
            ("env=cartpole", "aux=language", "method=add", "llm=recorded", "llm.answers=/nope.jsonl"),
            {"ppo.entropy": [0, 0.1]},
            "/nope.jsonl",
        ),
    ],
)
def test_what_a_single_run_would_refuse_and_what_cannot_be_shared(settings, grid, message, tmp_path):
    kept = [word for word in SETTINGS if not (settings and word.startswith(("env", "aux", "method", "solver")))]
    wanted = ("aux=helpful_hackable", "env=gridworld") if settings == ("solver=neumann",) else ()
    config = llmrl.compose(*kept, *wanted, *settings, f"run_dir={tmp_path / 'grid'}")
    with pytest.raises(ValueError) as error:
        sweep(config, grid)
    assert message in str(error.value)
    assert not (tmp_path / "grid").exists()


def test_a_grid_does_not_move_into_a_run(finished):
    config = llmrl.compose(*SETTINGS, f"run_dir={finished / NAMES[0]}")
    with pytest.raises(ValueError, match="holds a run; a grid needs a directory of its own"):
        sweep(config, GRID)


# --- the table --------------------------------------------------------------------------------------------------------


@compiled_once()
def test_one_table_with_a_row_per_point(copied, capsys, monkeypatch):
    _, config = copied
    monkeypatch.setattr(sys.modules["llmrl.training.loop"], "compiled_run", refuse)
    file = tabulate(config, GRID, command="llmrl train x")
    lines = file.read_text().splitlines()
    assert lines[0] == "    llmrl train x"
    assert lines[2].startswith("| method.outer.scalar_learning_rate | ppo.entropy | success rate, whole training |")
    assert [line.split(" | ")[:2] for line in lines[4:]] == [
        ["| 0.01", "0.0"],
        ["| 0.01", "0.1"],
        ["| 0.3", "0.0"],
        ["| 0.3", "0.1"],
    ]
    printed = capsys.readouterr().out
    assert "4 points x 2 seeds x 192 steps each" in printed
    with pytest.raises(ValueError, match="run_dir"):
        tabulate(llmrl.compose(*SETTINGS), GRID)
