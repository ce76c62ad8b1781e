"""Tuning gives every baseline the same grid, and one setting for all sources."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

import llmrl
from llmrl.methods import METHODS

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"


@pytest.fixture(scope="module")
def tune():
    sys.path.insert(0, str(SCRIPTS))  # as for a script, whose folder Python puts there by itself
    try:
        spec = importlib.util.spec_from_file_location("tune_for_tests", SCRIPTS / "tune.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(SCRIPTS))


def found(tune, *levels):
    curves = {"episode_length": np.repeat(np.array(levels, np.float32)[:, None], 20, axis=1)}
    return sys.modules[tune.carry_out.__module__].Found(curves)


def rows_of(table):
    header, _, *rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in table.splitlines()]
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_every_run_composes_and_has_its_own_directory(tune):
    assert set(tune.BASELINES) <= set(METHODS)
    runs = list(tune.tuning_runs(list(tune.BASELINES), ["cartpole"], ["harmful", "noise"], 4096, False))
    assert len({run.name for run in runs}) == len({run.overrides for run in runs}) == len(runs)
    # ppo once; add and pbrs three coefficients, lirpg three rates, dpba and pies both; each with two sources
    assert len(runs) == 1 + 2 * (3 + 3 + 3 + 9 + 9)
    seen = set()
    for run in runs:
        if not seen.issuperset(run.overrides):  # combinations of what composes compose
            config = llmrl.compose(*run.overrides)
            assert config.seed == tune.TUNING_SEED and config.total_steps == 4096
            seen.update(run.overrides)
    config = llmrl.compose(*next(run.overrides for run in runs if "dpba/learning_rate=0.01,coefficient=3" in run.name))
    assert (config.method.potential.learning_rate, config.method.potential.coefficient) == (0.01, 3.0)


def test_settings_are_ranked_over_all_sources(tune):
    runs = list(tune.tuning_runs(["ppo", "pbrs"], ["cartpole"], ["harmful", "beneficial"], 4096, True))
    results = {
        "cartpole/any/ppo/plain": found(tune, 100, 100),
        "cartpole/harmful/pbrs/coefficient=0.3": found(tune, 80, 100),
        "cartpole/beneficial/pbrs/coefficient=0.3": found(tune, 120, 120),
        "cartpole/harmful/pbrs/coefficient=3": found(tune, 10, 10),
        "cartpole/beneficial/pbrs/coefficient=3": found(tune, 200, 200),
    }
    rows = rows_of(tune.table_of(runs, results))
    assert [(row["method"], row["coefficient"], row["mean of best"]) for row in rows] == [
        ("ppo", "", "0.750"),
        ("pbrs", "0.3", "0.750"),
        ("pbrs", "3", "0.550"),
    ]
    assert rows[1]["cartpole/harmful"] == "90.0 / 90.0" and rows[0]["cartpole/harmful"] == "100.0 / 100.0"


def test_what_is_not_finished_is_empty(tune):
    runs = list(tune.tuning_runs(["dpba"], ["cartpole"], ["harmful"], 4096, True))
    rows = rows_of(tune.table_of(runs, {}))
    assert len(rows) == 4
    assert {(row["mean of best"], row["cartpole/harmful"]) for row in rows} == {("0.000", "")}
    assert rows_of(tune.table_of(list(tune.tuning_runs(["ppo"], ["cartpole"], [], 4096, True)), {}))
