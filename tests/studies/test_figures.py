"""The figures' lists of runs, and what becomes of them, without training."""

import functools
from pathlib import Path

import numpy as np
import pytest

from llmrl.assembly.methods import METHODS
from llmrl.runs import directory as runs
from llmrl.runs import metrics
from llmrl.settings import overrides
from llmrl.studies import figure_2, figures
from llmrl.studies.carry_out import Found

LEVELS = {"ppo": 100.0, "add": 30.0, "implicit": 120.0}


COMPOSE = functools.cache(overrides.compose)


@pytest.fixture(autouse=True)
def composed_once(monkeypatch):
    """The tests ask for the same runs again and again, and composing is the slow part."""
    monkeypatch.setattr(overrides, "compose", COMPOSE)


@pytest.fixture
def fake_train():
    """Leaves what training would leave; curves at a level of the method's."""
    configs = []

    def train(config):
        configs.append(config)
        with runs.open_run(config) as run:
            level = LEVELS.get(config.method.name, 50.0)
            noise = np.random.default_rng(0).normal(size=(config.seeds, 20))
            curves = {"episode_length": np.float32(level + noise), "success_rate": np.float32(level + noise) / 200}
            metrics.append(run.metrics_path, curves, 0, 2048)
            found = metrics.read(run.metrics_path)
            times = {"compile_seconds": 60.0, "run_seconds": 60.0, "run_iterations": 20}
            metrics.write_summary(run.summary_path, metrics.summary(found, steps_per_iteration=2048, **times))
        return Found(found)

    train.configs = configs
    return train


def test_every_run_of_the_figure_composes_and_has_its_own_directory():
    planned = figures.plan(helpful=True)
    names = [run.name for run in planned.runs]
    assert len(set(names)) == len(names)
    assert len(names) == len(figures.ENVS) * (3 * (len(planned.methods) - 1) + 1)
    for run in planned.runs:
        config = COMPOSE(*run.overrides)
        env, source, method = run.name.split("/")
        assert (config.env.name, config.method.name) == (env, method)
        assert source == "any" or list(config.aux.sources) == [source]


def test_the_helpful_column_is_a_variant():
    assert figures.plan().columns == ("harmful", "random")
    assert set(figures.plan().runs) < set(figures.plan(helpful=True).runs)


def test_methods_that_do_not_exist_here_are_dropped_and_said(tmp_path, fake_train, capsys, monkeypatch):
    known = {name: METHODS[name] for name in ("ppo", "add", "implicit")}
    monkeypatch.setattr("llmrl.assembly.methods.METHODS", known)
    planned = figures.plan()
    assert set(planned.methods) == set(known)
    assert set(planned.methods) | set(planned.dropped) == set(figures.FIGURE_METHODS)
    figures.figure(1, seeds=2, out=str(tmp_path), train=fake_train)
    assert "dpba" in capsys.readouterr().err
    assert "dpba" in (tmp_path / "figure1.md").read_text()


def test_methods_may_be_chosen_and_unknown_ones_are_refused():
    assert figures.plan(methods=["ppo", "add"]).methods == ("add", "ppo")
    with pytest.raises(ValueError, match="nearest: 'ppo'"):
        figures.plan(methods=["pppo"])
    with pytest.raises(ValueError, match="unknown figure 7"):
        figures.figure(7)
    with pytest.raises(ValueError, match="shard"):
        figures.figure(1, shard="3/2")


def test_a_figure_is_a_picture_and_a_table_and_goes_on_where_it_was(tmp_path, fake_train, monkeypatch):
    monkeypatch.setattr(figures, "ENVS", {"cartpole": "discrete CartPole"})
    chosen = {"methods": ["ppo", "add", "implicit"], "seeds": 4, "out": str(tmp_path), "train": fake_train}
    picture = figures.figure(1, shard="1/2", **chosen)
    half = len(fake_train.configs)
    written = (tmp_path / "figure1.md").read_text()
    assert picture == tmp_path / "figure1.png"
    assert 0 < half < 5
    assert "Not finished yet" in written
    figures.figure(1, shard="2/2", command="llmrl figure 1", **chosen)
    assert len({config.run_dir for config in fake_train.configs}) == len(fake_train.configs) == 5
    written = (tmp_path / "figure1.md").read_text()
    assert f"{5 - half} runs trained by this command" in written
    assert "All 5 runs together: 10.0 minutes" in written
    assert "    llmrl figure 1\n" in written
    assert "Not finished yet" not in written
    row = next(line for line in written.splitlines() if line.startswith("| cartpole | harmful | implicit |"))
    assert row.endswith("| not enough seeds (4/4) |")
    assert picture.read_bytes().startswith(b"\x89PNG")
    figures.figure(1, **chosen)
    assert len(fake_train.configs) == 5


def test_quick_means_few_seeds_and_steps_and_a_directory_of_its_own(tmp_path, fake_train, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture = figures.figure(1, quick=True, methods=["ppo"], train=fake_train)
    assert picture == Path("runs/figures/1_quick/figure1.png")
    assert {config.seeds for config in fake_train.configs} == {figures.QUICK_SEEDS}
    assert {config.total_steps for config in fake_train.configs} == {40960}


def test_failures_are_told_after_everything_else_is_done(tmp_path, fake_train):
    def train(config):
        if config.env.name == "cartpole":
            raise ValueError("no luck")
        return fake_train(config)

    with pytest.raises(ValueError, match=r"1 of the runs failed.*no luck"):
        figures.figure(1, seeds=2, methods=["ppo"], out=str(tmp_path), train=train)
    assert (tmp_path / "figure1.png").exists()
    assert "Failed: cartpole/any/ppo (no luck)" in (tmp_path / "figure1.md").read_text()


def test_panels_are_rows_of_environments_and_columns_of_sources(tmp_path):
    drawn = figures.draw_figure_1(figures.plan(helpful=True), {}, tmp_path / "empty.png")
    titles = [axes.get_title(loc="left") for axes in drawn.axes]
    assert titles[:2] == ["discrete CartPole, harmful reward", "discrete CartPole, random reward"]
    assert titles[3] == "continuous CartPole, harmful reward"
    assert len(titles) == 6


# --- figure 2 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("goals", figure_2.GOALS)
def test_every_run_of_figure_2_composes_and_only_the_guided_hear_goals(goals):
    planned = figures.plan_figure_2(goals)
    assert len({run.name for run in planned.runs}) == len(planned.runs) == 4 * 5
    for run in planned.runs[:5] + planned.runs[5::5]:
        task, method = run.name.split("/")
        config = COMPOSE(*run.overrides, *figure_2.QUICK, "seeds=2")
        assert (config.env.task, config.env.horizon, config.method.name) == (task, 400, method)
        assert list(config.aux.sources) == (["goals"] if method in figure_2.GUIDED else [])
        assert method not in figure_2.GUIDED or config.llm.provider == goals
        assert (config.num_iterations, config.ppo.hidden) == (75, (128, 128))


def test_figure_2_compares_ours_with_the_best_other():
    results = {
        "place_table/implicit": Found(_success(0.7)),
        "place_table/ellm": Found(_success(0.5)),
        "place_table/ppo": Found(_success(0.6)),
    }
    row = next(line for line in figure_2.table(figure_2.METHODS, results).splitlines() if "implicit" in line)
    assert row.endswith("| 0.100 [0.100, 0.100] | 0.100 [0.100, 0.100] (ppo) |")


def _success(level):
    steps = np.broadcast_to(np.arange(1, 21) * 2048.0, (5, 20))
    return {"success_rate": np.full((5, 20), level), "step": steps, "env_steps": steps}


def test_figure_2_is_drawn_from_what_is_there(tmp_path, fake_train):
    chosen = {"methods": ["implicit", "ppo"], "seeds": 2, "out": str(tmp_path), "train": fake_train}
    picture = figures.figure(2, shard="1/2", **chosen)
    assert picture == tmp_path / "figure2.png" and picture.read_bytes().startswith(b"\x89PNG")
    assert len(fake_train.configs) == 4 and "Not finished yet" in (tmp_path / "figure2.md").read_text()
    figures.figure(2, shard="2/2", **chosen)
    assert len(fake_train.configs) == 8
    written = (tmp_path / "figure2.md").read_text()
    assert "Not finished yet" not in written and written.count("| implicit |") == 4


def test_figure_2_refuses_what_it_does_not_have():
    with pytest.raises(ValueError, match="unknown goals of figure 2 'oracel'; nearest: 'oracle'"):
        figures.figure(2, goals="oracel")
    with pytest.raises(ValueError, match="unknown method of figure 2 'add'"):
        figures.figure(2, methods=["add"])
