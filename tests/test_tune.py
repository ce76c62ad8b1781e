"""Tuning gives every baseline the same grid, and one setting for all environments and sources."""

import importlib.util
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import llmrl
from llmrl.assembly.methods import METHODS
from llmrl.studies import suite_tasks
from llmrl.studies.carry_out import Found, read_finished
from llmrl.studies.figures import FIGURE_METHODS

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


FIRST = ["ppo", "add", "pbrs", "dpba", "pies", "bipars_em", "bipars_mgl", "bipars_imgl", "lirpg", "barfi"]
PEERS = {
    "eipo": 9,
    "select": 9,
    "adops": 9,
    "decoupled": 3,
    "irpo": 9,
    "ranked_potential": 9,
    "thresholded": 9,
}
"""Methods of others that hear a source, and the settings that are tried of each."""


def found(*levels):
    return Found({"episode_length": np.repeat(np.array(levels, np.float32)[:, None], 20, axis=1)})


def rows_of(table):
    header, _, *rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in table.splitlines()]
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_every_program_composes_and_has_its_own_directory(tune):
    assert {*FIGURE_METHODS, *FIRST, *PEERS} - {"implicit"} == set(tune.BASELINES) <= set(METHODS)
    programs = list(tune.programs(FIRST, ["cartpole"], ["harmful", "noise"], 4096))
    runs = [one.run for one in programs]
    assert len({run.name for run in runs}) == len({run.overrides for run in runs}) == len(runs)
    # Outside of a program differ the sources, and factors on them; ppo hears none.
    assert len(runs) == 1 + 2 * (3 + 1 + 1 + 1 + 3 * 3 + 1 + 3)
    seen = set()
    for run in runs:
        if "/noise/" not in run.name and not seen.issuperset(run.overrides):  # combinations of what composes compose
            config = llmrl.compose(*run.overrides)
            assert config.seed == tune.TUNING_SEED and config.total_steps == 4096
            seen.update(run.overrides)


@pytest.mark.parametrize(("method", "settings"), [("pbrs", 3), ("dpba", 9), ("bipars_mgl", 9), ("add", 3), ("ppo", 1)])
def test_a_grid_has_every_combination_and_what_the_method_says_by_itself(tune, method, settings):
    programs = list(tune.programs([method], ["cartpole"], ["harmful"], 4096))
    composed = [(one, llmrl.compose(*one.run.overrides, f"run_dir=out/{one.run.name}")) for one in programs]
    points = [point for one, config in composed for point in tune.points(one, config)]
    assert len({str(point.config.run_dir) for point in points}) == len(points) == settings
    assert len({tuple(point.values.items()) for point in points}) == settings
    own = llmrl.compose(f"method={method}", "aux=harmful" if method != "ppo" else "aux=none")
    tried = [np.allclose(meant(point.config), meant(own), rtol=1e-6) for point in points]
    assert sum(tried) == 1  # the setting of its yaml is one of those
    for point in points:
        assert all(said(point.config, key) == value for key, value in point.values.items())


@pytest.mark.parametrize("method", PEERS)
def test_every_peer_has_a_grid_of_the_same_size_around_its_own_setting(tune, method):
    programs = list(tune.programs([method], ["MountainCar-v0"], ["fair"]))
    composed = [(one, llmrl.compose(*one.run.overrides, f"run_dir=out/{one.run.name}")) for one in programs]
    points = [point for one, config in composed for point in tune.points(one, config)]
    assert len({str(point.config.run_dir) for point in points}) == len(points) == PEERS[method]
    own = llmrl.compose(f"method={method}", "aux=fair")
    tried = [all(math.isclose(said(own, key), value) for key, value in point.values.items()) for point in points]
    assert sum(tried) == 1  # the setting of its yaml is one of those
    for point in points:
        assert all(said(point.config, key) == value for key, value in point.values.items())


def test_the_development_tasks_are_tuned_on_as_the_suite_trains_them(tune):
    assert list(tune.MEASURES) == [task.name for task in suite_tasks.tasks_of("development")]
    for one in tune.programs(["decoupled"], ["development"], ["fair", "harmful"]):
        name, source, *_ = one.run.name.split("/")
        task = suite_tasks.TASKS[name]
        assert {*task.overrides, *task.sources[source], f"total_steps={task.total_steps}"} <= {*one.run.overrides}
    with pytest.raises(ValueError, match="unknown --envs 'cartpol'; nearest: 'cartpole'"):
        list(tune.programs(["add"], ["cartpol"], ["fair"]))


def test_a_return_below_0_is_scored_from_the_least_that_there_is(tune):
    points = [made_up(tune, "add", {"aux.scale": x}, "fair", env="MountainCar-v0") for x in (0.1, 0.3, 1.0)]
    reached = dict(zip([point.config.run_dir for point in points], (-200.0, -150.0, -100.0), strict=True))
    results = {path: Found({"episode_return": np.full((1, 20), level)}) for path, level in reached.items()}
    assert [one.score for one in tune.ranked(points, results)] == [1.0, 0.5, 0.0]


@pytest.mark.parametrize("env", ["keydoor", "crumbs", "moving_goal"])
def test_nothing_is_tuned_on_a_report_task(tune, env, monkeypatch, capsys):
    with pytest.raises(ValueError, match="on which no setting is ever chosen"):
        list(tune.programs(["dpba"], ["cartpole", env], ["harmful"], 4096))
    monkeypatch.setattr(sys, "argv", ["tune.py", "--envs", env])
    with pytest.raises(SystemExit):
        tune.main()
    assert f"{env} is a task of the set report" in capsys.readouterr().err


def said(config, key):
    for part in key.split("."):
        config = getattr(config, part)
    return config


def meant(config):
    """What a setting comes to, however it is said: a source times a factor, under a range of weights."""
    factors = (
        said(config, "aux.scale") * said(config, "method.weight.bound"),
        said(config, "method.potential.coefficient"),
    )
    return *factors, said(config, "method.outer.learning_rate"), said(config, "method.potential.learning_rate")


def made_up(tune, method, values, source, *, env="cartpole"):
    path = f"{env}/{source}/{method}/{values}"
    return tune.Point((env, source), method, values, SimpleNamespace(run_dir=path))


def test_settings_are_ranked_over_all_sources(tune):
    points = [
        made_up(tune, "ppo", {}, "any"),
        *(
            made_up(tune, "dpba", {tune.POTENTIAL: rate, tune.FACTOR: 3.0}, source)
            for rate in (0.001, 0.01)
            for source in ("harmful", "beneficial")
        ),
    ]
    levels = (100, 100), (10, 10), (200, 200), (80, 100), (120, 120)
    results = {point.config.run_dir: found(*level) for point, level in zip(points, levels, strict=True)}
    settings = tune.ranked(points, results)
    cells = tune.cells_of(points)
    rows = rows_of(tune.table_of(settings, cells))
    assert [(row["method"], row["setting"], row["mean of best"]) for row in rows] == [
        ("ppo", "", "0.750"),
        ("dpba", "learning_rate=0.01 coefficient=3", "0.750"),
        ("dpba", "learning_rate=0.001 coefficient=3", "0.550"),
    ]
    assert rows[1]["cartpole/harmful"] == "90.0 / 90.0" and rows[0]["cartpole/harmful"] == "100.0 / 100.0"
    (line,) = tune.best_of(settings).splitlines()
    assert line.split("#")[0].split() == ["dpba:", f"{tune.POTENTIAL}=0.01", f"{tune.FACTOR}=3"]


def test_what_is_not_finished_is_empty_and_has_no_best(tune):
    points = [made_up(tune, "add", {"aux.scale": scale}, "harmful") for scale in (0.3, 1.0)]
    settings = tune.ranked(points, {points[0].config.run_dir: found(5, 5)})
    rows = rows_of(tune.table_of(settings, tune.cells_of(points)))
    assert [(row["mean of best"], row["cartpole/harmful"]) for row in rows] == [("1.000", "5.000 / 5.000"), ("", "")]
    assert math.isnan(settings[1].score) and "add: not finished" in tune.best_of(settings)


@pytest.mark.slow
def test_a_grid_leaves_runs_that_are_found_again(tune, tmp_path):
    (one,) = tune.programs(["pbrs"], ["cartpole"], ["harmful"], 128)
    config = llmrl.compose(*one.run.overrides, "ppo=tiny", "num_chunks=1", "seeds=2", f"run_dir={tmp_path / 'grid'}")
    tune.train_grid(config)
    finished = [read_finished(point.config) for point in tune.points(one, config)]
    assert [run.curves["episode_length"].shape[0] for run in finished if run is not None] == [2, 2, 2]
