"""Lists of runs: what is finished is not trained again, parts of a list are disjoint, one failure stops nobody."""

import functools
import importlib
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from llmrl.assembly.parts import make_environment
from llmrl.runs import directory as runs
from llmrl.runs import metrics
from llmrl.settings import overrides
from llmrl.studies.carry_out import Found, Run, carry_out, parse_shard
from llmrl.training import transfer
from llmrl.training.stopping import Stopped

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


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """``source -> train``: a trainer that travels by its name, in a module that other processes can import too."""

    def make(body):
        name = f"elsewhere_{tmp_path.name}".replace("-", "_")
        top = "import os, signal, time\nfrom pathlib import Path\nimport numpy as np\n"
        top += "from llmrl.studies.carry_out import Found\n"
        (tmp_path / f"{name}.py").write_text(f"{top}from llmrl.training.stopping import stop_requests\n\n{body}")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path}")
        return importlib.import_module(name).train

    return make


def test_runs_may_be_trained_by_other_processes_and_one_that_fails_or_is_killed_takes_no_other_with_it(
    tmp_path, elsewhere
):
    train = elsewhere(
        "def train(config):\n"
        "    if (config.method.name, config.seed) == ('ppo', 1):\n        raise ValueError('no luck')\n"
        "    if (config.method.name, config.seed) == ('add', 0):\n        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return Found({'process': np.array([[os.getpid()]]), 'flags': os.environ['XLA_FLAGS']})\n"
    )
    outcome = carry_out(RUNS, tmp_path / "out", seeds=2, processes=2, train=train)
    assert outcome.failures == {NAMES[1]: "no luck", NAMES[2]: "its process was killed by SIGKILL"}
    assert sorted(outcome.trained) == sorted(outcome.results) == sorted((NAMES[0], NAMES[3]))
    first, second = (int(found.curves["process"][0, 0]) for found in outcome.results.values())
    assert len({first, second}) == 2  # each in a fresh one
    assert all("device_count" in str(found.curves["flags"]) for found in outcome.results.values())


# Says that it has begun, and ends when it may stop without a loss.
PATIENT = (
    "def train(config):\n"
    "    with stop_requests(9) as heed:\n"
    "        place = Path(config.run_dir)\n"
    "        place.mkdir(parents=True)\n"
    "        while True:\n"
    "            time.sleep(0.02)\n"
    "            try:\n"
    "                heed(4)\n"
    "            except SystemExit:\n"
    "                (place / 'saved').touch()\n"
    "                raise\n"
)


def test_a_signal_is_passed_on_to_all_processes_and_nothing_more_is_begun(tmp_path, elsewhere):
    ask_when_begun = (
        f"{PATIENT}"
        "            if config.seed == 0 and not (place / 'asked').exists():\n"
        "                (place / 'asked').touch()\n"
        "                os.kill(os.getppid(), signal.SIGTERM)\n"
    )
    with pytest.raises(Stopped, match="SIGTERM: stopped after 0 of 4 runs") as stopped:
        carry_out(RUNS, tmp_path / "out", seeds=2, processes=2, train=elsewhere(ask_when_begun))
    assert stopped.value.code == 143
    assert (tmp_path / "out" / NAMES[0] / "saved").exists()
    # The other one may have been told before it had begun; it is gone, too, or it would not have been waited for.
    begun = [name for name in NAMES if (tmp_path / "out" / name).exists()]
    assert set(begun) <= set(NAMES[:2])


def test_who_is_left_alone_stops_by_itself(tmp_path, elsewhere):
    train = elsewhere(PATIENT)
    script = (
        f"from pathlib import Path\nfrom {train.__module__} import train\n"
        "from llmrl.studies.carry_out import Run, carry_out\n"
        f"runs = [Run(name, ('method=ppo',)) for name in {NAMES[:2]}]\n"
        "if __name__ == '__main__':\n"
        f"    carry_out(runs, Path({str(tmp_path / 'out')!r}), seeds=2, processes=2, train=train)\n"
    )
    (tmp_path / "study_for_tests.py").write_text(script)
    with subprocess.Popen([sys.executable, tmp_path / "study_for_tests.py"]) as process:
        begun = [tmp_path / "out" / name for name in NAMES[:2]]
        wait_until(lambda: all(place.exists() for place in begun), process)
        process.kill()
    wait_until(lambda: all((place / "saved").exists() for place in begun))


def wait_until(holds, process=None, seconds=200):
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < seconds
        assert process is None or process.poll() is None
        time.sleep(0.05)
