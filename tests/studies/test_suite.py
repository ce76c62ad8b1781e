"""The suite's list of runs, what they cost, and what is shown of them, without training."""

import functools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from llmrl.analysis.no_regret import scores
from llmrl.assembly.methods import METHODS
from llmrl.assembly.parts import make_environment
from llmrl.runs import directory as runs
from llmrl.runs import metrics
from llmrl.settings import overrides
from llmrl.settings.requests import SUITE_SETS
from llmrl.studies import suite_plan
from llmrl.studies.carry_out import Found, carry_out
from llmrl.studies.suite import suite
from llmrl.studies.suite_plan import QUICK_SOURCES, cost, plan
from llmrl.studies.suite_tasks import DEVELOPMENT, REPORT, TASKS

LEVELS = {"random": 20.0, "ppo": 100.0, "add": 60.0, "implicit": 90.0}
SMALL = {"set": DEVELOPMENT, "tasks": ("cartpole",), "sources": ("fair", "harmful"), "methods": ("implicit",)}
COMPOSE = functools.cache(overrides.compose)


@pytest.fixture(autouse=True)
def composed_once(monkeypatch):
    """The tests ask for the same runs again and again, and composing is the slow part."""
    monkeypatch.setattr(overrides, "compose", COMPOSE)


def level_of(config):
    """Adding helps where the source is fair; random play has next to no learning rate."""
    if config.ppo.learning_rate < 1e-6:
        return LEVELS["random"]
    helped = "fair" in config.aux.sources and config.method.name == "add"
    return LEVELS[config.method.name] + (100.0 if helped else 0.0)


@pytest.fixture
def fake_train():
    """Leaves what training would leave; curves at a level of the method's."""
    configs = []

    def train(config):
        configs.append(config)
        with runs.open_run(config) as run:
            noise = np.random.default_rng(len(configs)).normal(size=(config.seeds, 20))
            curve = np.float32(level_of(config) + noise)
            metrics.append(run.metrics_path, {"episode_length": curve, "episode_return": curve}, 0, 2048)
            found = metrics.read(run.metrics_path)
            times = {"compile_seconds": 60.0, "run_seconds": 60.0, "run_iterations": 20}
            metrics.write_summary(run.summary_path, metrics.summary(found, steps_per_iteration=2048, **times))
        return Found(found, 1.0, run.path)

    train.configs = configs
    return train


# --- what is run ------------------------------------------------------------------------------------------------------


def test_every_set_of_tasks_can_be_asked_for():
    assert set(SUITE_SETS) == {task.set for task in TASKS.values()} == {DEVELOPMENT, REPORT}


@pytest.mark.parametrize("which", SUITE_SETS)
def test_what_hears_no_source_is_trained_once_per_task_and_everything_else_once_per_cell(which):
    planned = plan(which)
    names = [run.name for run in planned.runs]
    assert len(set(names)) == len(names)
    assert set(planned.methods) == {name for name, recipe in METHODS.items() if not recipe.needs_more}
    hearing = [method for method in planned.methods if METHODS[method].hears]
    hearing_none = [name for name, recipe in METHODS.items() if not recipe.hears]
    for task in planned.tasks:
        here = {tuple(name.split("/")[1:]) for name in names if name.startswith(f"{task.name}/")}
        deaf = {("any", method) for method in ("random", *hearing_none)}
        assert here == deaf | {(source, method) for source in task.sources for method in hearing}


def test_every_run_of_a_quick_look_composes_as_its_name_says():
    planned = plan(DEVELOPMENT, quick=True)
    assert planned.seeds < plan(DEVELOPMENT).seeds and len(planned.runs) < 40
    seen = set()
    for run in planned.runs:
        task, source, method = run.name.split("/")
        assert TASKS[task].set == DEVELOPMENT and source in ("any", *QUICK_SOURCES)
        if seen.issuperset(run.overrides):  # combinations of what composes compose
            continue
        seen.update(run.overrides)
        config = COMPOSE(*run.overrides)
        assert list(config.aux.sources) == ([] if source == "any" else [source])
        if method == "random":
            assert config.method.name == "ppo" and config.ppo.learning_rate < 1e-6
        else:
            assert config.method.name == method and config.total_steps < TASKS[task].total_steps


def test_parts_of_the_list_have_every_method():
    planned = plan(DEVELOPMENT, methods=("add", "implicit", "scalar", "dpba"))
    for part in range(4):
        assert {run.name.rpartition("/")[2] for run in planned.runs[part::4]} >= {"add", "implicit", "scalar", "dpba"}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"set": DEVELOPMENT, "tasks": ("keydoor",)}, "keydoor is a task of set=report"),
        ({"set": DEVELOPMENT, "tasks": ("cartpol",)}, "nearest: 'cartpole'"),
        ({"set": REPORT, "quick": True}, r"quick=true is for set=development"),
        ({"set": DEVELOPMENT, "quick": True, "tasks": ("place_table",)}, "unknown task of quick=true 'place_table'"),
        ({"set": DEVELOPMENT, "sources": ("harmfull",)}, "nearest: 'harmful'"),
        ({"set": DEVELOPMENT, "methods": ("frozen",)}, "unknown method that needs nothing but a source 'frozen'"),
        ({"set": DEVELOPMENT, "shard": "3/2"}, "shard"),
    ],
)
def test_what_does_not_exist_is_refused_before_anything_is_trained(asked, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        suite(**asked, out=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_the_cost_is_said_before_anything_starts(tmp_path, fake_train, capsys):
    words = suite(**SMALL, seeds=5, dry_run=True, out=str(tmp_path))
    assert not fake_train.configs and "1 task, 2 cells, 3 methods: 6 runs of 5 seeds" in words
    assert "5 million environment steps" in words and "on two CPU cores" in words
    suite(**SMALL, seeds=5, out=str(tmp_path), train=fake_train)
    told = capsys.readouterr().err
    assert told.index("environment steps, about") < told.index("training cartpole/any/random")
    assert cost(plan(**SMALL, seeds=5), tmp_path).endswith("runs that are finished; 0 minutes are left")


def test_the_cost_is_that_of_the_runs_which_are_finished(tmp_path, fake_train):
    """Each took two minutes; what is left takes as many times longer than expected as those did."""
    planned = plan(**SMALL, seeds=5)
    carry_out(planned.runs[:1], tmp_path, seeds=5, train=fake_train)
    expected = [suite_plan._seconds(run, 5 * suite_plan._steps(run)) for run in planned.runs]
    minutes = 2.0 * sum(expected) / expected[0]
    assert f"about {minutes:.0f} minutes by the 1 run that is finished" in cost(planned, tmp_path)


# --- what is shown ----------------------------------------------------------------------------------------------------


def test_one_page_and_one_file_with_every_seed(tmp_path, fake_train, capsys):
    page = suite(**SMALL, seeds=6, out=str(tmp_path), command="llmrl suite x", train=fake_train)
    data = json.loads((tmp_path / "suite.json").read_text())
    assert page == tmp_path / "index.html"
    assert (data["command"], data["failed"], data["missing"], data["seeds"]) == ("llmrl suite x", {}, [], 6)
    assert len(data["runs"]) == len(fake_train.configs) == 6
    assert all(len(run["area"]) == len(run["end"]) == 6 for run in data["runs"].values())
    # What is shown follows from the seeds that are there.
    planned = plan(**SMALL, seeds=6)
    results = carry_out(planned.runs, tmp_path, seeds=6, extra=["devices=auto"], train=fake_train).results
    for cell in suite_plan.cells_of(planned, results):
        assert cell.random == pytest.approx(20.0, abs=0.5)
        for method, score in scores(cell).items():
            (row,) = [one for one in data["cells"] if (one["source"], one["method"]) == (cell.source, method)]
            assert row["verdict"] == score.verdict and row["area"]["ratio"]["value"] == pytest.approx(
                score.area.ratio.value, rel=1e-6
            )
    implicit = data["summary"]["implicit"]
    assert (implicit["cells"], implicit["kept"], implicit["helped"]) == (2, 0, 1)
    assert implicit["worst"] == "cartpole/fair" and implicit["gain_kept"]["value"] == pytest.approx(-1 / 6, abs=0.05)
    assert data["summary"]["add"]["gain_kept"]["value"] == pytest.approx(1.0)
    written = page.read_text()
    assert written.count("data:image/png") == 3 and "Settings may be chosen on this set" in written
    assert (tmp_path / "heat-implicit.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "suite.md").read_text().startswith("    llmrl suite x\n\nSettings may be chosen")
    assert "Settings may be chosen" in capsys.readouterr().err


def test_a_page_of_the_report_set_says_what_it_is_not_for(tmp_path, fake_train, capsys):
    suite(set=REPORT, tasks=("Catch-bsuite",), sources=("fair",), methods=("ppo",), out=str(tmp_path), train=fake_train)
    assert "no setting of any method may be chosen" in capsys.readouterr().err
    assert "no setting of any method may be chosen" in (tmp_path / "index.html").read_text()


def test_failed_runs_are_shown_first_and_the_others_are_scored(tmp_path, fake_train):
    def train(config):
        if config.method.name == "implicit" and "fair" in config.aux.sources:
            with runs.open_run(config):
                raise ValueError("no luck")
        return fake_train(config)

    with pytest.raises(ValueError, match=r"1 of the runs failed.*cartpole/fair/implicit: no luck"):
        suite(**SMALL, seeds=5, out=str(tmp_path), train=train)
    page = (tmp_path / "index.html").read_text()
    assert page.index("no luck") < page.index('<section id="methods">')
    data = json.loads((tmp_path / "suite.json").read_text())
    assert list(data["failed"]) == data["missing"] == ["cartpole/fair/implicit"]
    assert data["summary"]["implicit"]["cells"] == 1
    # Another machine, which has not met the failure itself, shows it too.
    suite(**SMALL, seeds=5, out=str(tmp_path), shard="1/100", train=fake_train)
    assert "no luck" in (tmp_path / "index.html").read_text()
    suite(**SMALL, seeds=5, out=str(tmp_path), train=fake_train)
    assert "no luck" not in (tmp_path / "index.html").read_text()


def test_random_play_without_an_end_is_told_and_nothing_is_scored(tmp_path, fake_train, monkeypatch):
    monkeypatch.setitem(LEVELS, "random", np.nan)
    suite(**SMALL, seeds=5, out=str(tmp_path), train=fake_train)
    data = json.loads((tmp_path / "suite.json").read_text())
    assert list(data["failed"]) == ["cartpole/any/random"] and data["cells"] == []
    assert "no episode of random play has ended" in (tmp_path / "index.html").read_text()


@pytest.mark.parametrize(
    "task", [*TASKS.values(), *plan(DEVELOPMENT, quick=True).tasks], ids=lambda task: f"{task.name}-{task.total_steps}"
)
def test_random_play_has_time_for_whole_episodes(task):
    """Also where PPO collects from so many environments that none of them would see an end."""
    config = COMPOSE(*suite_plan.runs_of(task, ())[0].overrides)
    assert config.num_iterations * config.ppo.num_steps > make_environment(config).spec.horizon


def test_parts_share_a_directory_and_the_last_one_shows_all(tmp_path, fake_train):
    for part in ("1/3", "2/3", "3/3"):
        suite(**SMALL, seeds=5, out=str(tmp_path), shard=part, train=fake_train)
        data = json.loads((tmp_path / "suite.json").read_text())
        assert len(data["missing"]) == 6 - len(fake_train.configs)
    assert len({config.run_dir for config in fake_train.configs}) == len(fake_train.configs) == 6
    assert len(data["cells"]) == 6


def test_what_another_part_finishes_meanwhile_is_on_the_page(tmp_path, fake_train):
    def train(config):
        if not fake_train.configs:
            suite(**SMALL, seeds=5, out=str(tmp_path), shard="2/2", train=fake_train)
        return fake_train(config)

    suite(**SMALL, seeds=5, out=str(tmp_path), shard="1/2", train=train)
    assert json.loads((tmp_path / "suite.json").read_text())["missing"] == []
    assert len({config.run_dir for config in fake_train.configs}) == len(fake_train.configs) == 6


def test_a_suite_that_was_stopped_goes_on(tmp_path, fake_train):
    def stopped(config):
        if len(fake_train.configs) == 4:
            raise KeyboardInterrupt
        return fake_train(config)

    with pytest.raises(KeyboardInterrupt):
        suite(**SMALL, seeds=5, out=str(tmp_path), train=stopped)
    suite(**SMALL, seeds=5, out=str(tmp_path), train=fake_train)
    assert len({config.run_dir for config in fake_train.configs}) == len(fake_train.configs) == 6


KILLED = """
from llmrl.studies import suite_plan
from llmrl.studies.suite_tasks import Task

TINY = Task(
    "gridworld",
    ("env=gridworld", "env.size=3", "env.horizon=8", "ppo=tiny", "num_chunks=4"),
    20_480,
    "development",
    {"helpful_hackable": ("aux=helpful_hackable",)},
)
suite_plan.tasks_of = lambda name: (TINY,)

if __name__ == "__main__":
    from llmrl.studies.suite import suite

    print(suite(set="development", methods=("scalar",), seeds=2, out="out"))
"""


@pytest.mark.slow
def test_a_suite_that_was_killed_goes_on_where_it_was_with_the_same_numbers(tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, str(script)]
    places = {}
    for name in ("whole", "killed"):
        places[name] = tmp_path / name
        places[name].mkdir()
    subprocess.run(command, cwd=places["whole"], env=environment, check=True)
    finished = places["killed"] / "out" / "gridworld" / "any" / "ppo" / "summary.json"
    with subprocess.Popen(command, cwd=places["killed"], env=environment) as process:
        while not (finished.exists() and list((finished.parents[2] / "helpful_hackable").glob("*/checkpoints/*"))):
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
    before = finished.stat().st_mtime_ns
    subprocess.run(command, cwd=places["killed"], env=environment, check=True)
    assert finished.stat().st_mtime_ns == before
    one, other = (json.loads((place / "out" / "suite.json").read_text()) for place in places.values())
    assert one == other
