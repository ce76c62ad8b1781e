"""Lists of runs: what is finished is not trained again, parts of a list are disjoint, one failure stops nobody."""

import functools
from pathlib import Path

import numpy as np
import pytest

from llmrl import metrics, overrides, runs, transfer
from llmrl.studies import Found, Run, carry_out, parse_shard
from llmrl.train import make_environment

RUNS = tuple(
    Run(f"{method}/seed{seed}", (f"method={method}", f"seed={seed}")) for method in ("ppo", "add") for seed in (0, 1)
)
NAMES = [run.name for run in RUNS]
COMPOSE = functools.cache(overrides.compose)


@pytest.fixture(autouse=True)
def composed_once(monkeypatch):
    """The tests ask for the same runs again and again, and composing is the slow part."""
    monkeypatch.setattr(overrides, "compose", COMPOSE)


def finish(config, level=1.0):
    """What training would leave."""
    with runs.open_run(config) as run:
        curve = np.full((config.seeds, 3), level, np.float32)
        metrics.append(run.metrics_path, {"episode_length": curve}, 0, 16)
        metrics.write_summary(run.summary_path, {"steps_per_second": 5.0})
    return Found(metrics.read(run.metrics_path), 5.0)


def fake_train(config):
    """Importable by other processes; notes that it was called, and fails where a file says so."""
    if (Path(config.run_dir).parent / "fail").exists():
        raise ValueError("no luck\nat all")
    with (Path(config.run_dir).parents[1] / "trained").open("a") as file:
        file.write(f"{config.run_dir}\n")
    return finish(config)


def trained(out):
    path = out / "trained"
    return [str(Path(line).relative_to(out)) for line in path.read_text().split()] if path.exists() else []


def test_what_is_finished_is_not_trained_again(tmp_path):
    first = carry_out(RUNS, tmp_path, seeds=2, only="ppo", train=fake_train)
    assert trained(tmp_path) == list(first.results) == list(first.trained) == NAMES[:2]
    second = carry_out(RUNS, tmp_path, seeds=2, train=fake_train)
    assert trained(tmp_path) == list(second.results) == NAMES
    assert second.trained == (NAMES[2], NAMES[3])
    third = carry_out(RUNS, tmp_path, seeds=2, train=fake_train)
    assert third.trained == ()
    assert third.results.keys() == second.results.keys()
    assert third.results[NAMES[0]].curves["episode_length"].shape == (2, 3)


def test_a_run_of_other_settings_is_not_taken_for_finished(tmp_path):
    carry_out(RUNS[:1], tmp_path, seeds=2, train=fake_train)
    assert carry_out(RUNS[:1], tmp_path, seeds=3, train=lambda config: Found({})).trained == (NAMES[0],)


def test_one_failed_run_does_not_stop_the_others(tmp_path):
    (tmp_path / "ppo").mkdir()
    (tmp_path / "ppo" / "fail").touch()
    outcome = carry_out(RUNS, tmp_path, seeds=2, train=fake_train)
    assert outcome.failures == {NAMES[0]: "no luck", NAMES[1]: "no luck"}
    assert list(outcome.results) == NAMES[2:]


def test_shards_are_disjoint_and_together_everything(tmp_path):
    parts = [carry_out(RUNS, tmp_path, seeds=2, shard=(part, 3), train=fake_train).trained for part in (1, 2, 3)]
    assert sorted(name for part in parts for name in part) == sorted(NAMES)
    assert sum(map(len, parts)) == len(trained(tmp_path)) == len(NAMES)


def test_who_needs_a_learned_reward_waits_for_it(tmp_path):
    learner = Run("learner", ("method=scalar", "aux=harmful"))
    fresh = Run("fresh", ("method=frozen", "aux=harmful", "seed=7"), "learner")
    outcome = carry_out((fresh, learner), tmp_path, seeds=2, train=resolving_train)
    assert outcome.trained == ("learner", "fresh") and not outcome.failures
    stored = runs.load_run(tmp_path / "fresh").config
    assert (stored.reward_from, stored.method.reward_of) == (str(tmp_path / "learner"), "scalar")
    # What training has filled in is no difference.
    assert carry_out((fresh, learner), tmp_path, seeds=2, train=resolving_train).trained == ()
    (tmp_path / "learner" / "summary.json").unlink()
    assert carry_out((fresh,), tmp_path, seeds=2, train=resolving_train).trained == ()


def test_without_its_source_a_run_fails_and_the_others_go_on(tmp_path):
    fresh = Run("fresh", ("method=frozen", "aux=harmful"), "learner")
    outcome = carry_out((fresh, RUNS[0]), tmp_path, seeds=2, train=resolving_train)
    assert outcome.trained == (NAMES[0],) and "reward_from" in outcome.failures["fresh"]
    circle = (fresh._replace(reward_from="other"), Run("other", ("method=frozen", "aux=harmful"), "fresh"))
    with pytest.raises(ValueError, match="wait for each other: fresh, other"):
        carry_out(circle, tmp_path / "circle", seeds=2, train=resolving_train)


def resolving_train(config):
    return finish(transfer.resolved(config, lambda other: make_environment(other).spec))


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
def test_impossible_shards_are_refused(text):
    with pytest.raises(ValueError, match="shard"):
        parse_shard(text)


def test_progress_is_over_the_whole_set(tmp_path, capsys):
    carry_out(RUNS[:1], tmp_path, seeds=2, train=fake_train)
    capsys.readouterr()
    carry_out(RUNS, tmp_path, seeds=2, train=fake_train)
    printed = capsys.readouterr().err
    assert "1 of 4 runs are finished already" in printed
    assert f"[1/3] {NAMES[1]}: finished" in printed
    assert "min left" in printed


def test_runs_may_be_trained_by_other_processes(tmp_path, monkeypatch):
    """The trainer travels by its name: a module that the other processes can import too."""
    module = tmp_path / "elsewhere_for_tests.py"
    module.write_text(
        "import os\nimport numpy as np\nfrom llmrl.studies import Found\n\n"
        "def train(config):\n"
        "    if config.seed == 1:\n        raise ValueError('no luck')\n"
        "    return Found({'process': np.array([[os.getpid()]]), 'flags': os.environ['XLA_FLAGS']})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}")
    import elsewhere_for_tests  # pyright: ignore

    outcome = carry_out(RUNS, tmp_path / "out", seeds=2, processes=2, train=elsewhere_for_tests.train)
    assert outcome.failures == {NAMES[1]: "no luck", NAMES[3]: "no luck"}
    assert list(outcome.results) == [NAMES[0], NAMES[2]]
    first, second = (int(found.curves["process"][0, 0]) for found in outcome.results.values())
    assert len({first, second}) == 2  # each in a fresh one
    assert all("device_count" in str(found.curves["flags"]) for found in outcome.results.values())
