"""SIGKILL whenever it comes: in the middle of a save (F2), of a run (F1), of a job that is queued again (F18)."""

import json
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import llmrl
from llmrl.runs import checkpoint
from llmrl.runs import directory as runs
from llmrl.training.devices import state_shapes
from llmrl.training.loop import make_trainer

KILLED_WHILE_SAVING = """
    import os, random, signal, sys, time
    from pathlib import Path

    import numpy as np

    import llmrl.runs.checkpoint as checkpoint

    folder, rng = Path(sys.argv[1]), random.Random(0)

    def state(number):
        return {"w": np.full((64, 64), number, np.float32), "number": np.asarray(number, np.int32)}

    kills = 0
    for _ in range(20):
        pid = os.fork()  # no array was made yet, so jax has no threads to lose
        if pid == 0:
            step = max(checkpoint.steps(folder), default=0)
            while True:
                step += 1
                checkpoint.save(folder, step, state(step))
        while len(checkpoint.steps(folder)) < 2:
            time.sleep(0.001)
        time.sleep(rng.uniform(0.0, 0.05))
        os.kill(pid, signal.SIGKILL)
        kills += os.waitpid(pid, 0)[1] == signal.SIGKILL
    print(kills)
"""


def state(number):
    return {"w": np.full((64, 64), number, np.float32), "number": np.asarray(number, np.int32)}


def test_twenty_kills_in_the_middle_of_a_save(tmp_path, child):
    assert child(KILLED_WHILE_SAVING, tmp_path) == "20\n"
    restored, step = checkpoint.restore(tmp_path, state(0))
    np.testing.assert_array_equal(restored["w"], step)
    assert int(restored["number"]) == step
    checkpoint.save(tmp_path, step + 1, state(step + 1))  # a leftover of the same number is in nobody's way
    assert checkpoint.restore(tmp_path, state(0))[1] == step + 1
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(map(str, (step, step + 1)))


CARTPOLE = (
    "env=cartpole",
    "aux=harmful",
    "method=implicit",
    "ppo.num_envs=8",
    "ppo.num_steps=64",
    "seeds=2",
    "total_steps=65536",
    "num_chunks=64",
    "devices=1",
    "progress=false",
)

KILLED_AT_RANDOM = """
    import os, random, signal, sys, time

    import llmrl
    from llmrl.training.loop import train

    whole, killed, *overrides = sys.argv[1:]

    def start(path):
        pid = os.fork()
        if pid == 0:
            train(llmrl.compose(*overrides, f"run_dir={path}"))
            os._exit(0)
        return pid

    def finished(pid):
        _, status, used = os.wait4(pid, 0)
        assert status == 0
        return used.ru_utime + used.ru_stime

    def seconds_used(pid):
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def kill_at(pid, seconds):
        while seconds_used(pid) < seconds:
            if os.waitpid(pid, os.WNOHANG)[0]:
                return False
            time.sleep(0.001)
        os.kill(pid, signal.SIGKILL)
        return os.waitpid(pid, 0)[1] == signal.SIGKILL

    finished(start(whole))
    # The second time everything is compiled; a kill then hits start-up, restoring, training and saving alike. Times are
    # the processor's, so that kills come at the same places however busy the machine is.
    os.system(f"rm -rf {whole}")
    seconds, rng = finished(start(whole)), random.Random(1)
    kills = sum(kill_at(start(killed), rng.uniform(0.2, 0.6) * seconds) for _ in range(20))
    finished(start(killed))
    print(kills)
"""


def final_state(path):
    run = runs.load_run(path)
    return runs.load_state(run, state_shapes(make_trainer(run.config), run.config))[0]


def numbers(tree):
    leaves = [jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in tree]
    return [np.asarray(leaf) for leaf in leaves]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks the kernel how long a process has computed")
def test_twenty_kills_at_random_times_change_nothing(tmp_path, child):
    from llmrl.results.evaluate import evaluate

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    kills = int(child(KILLED_AT_RANDOM, whole, killed, *CARTPOLE))
    assert kills >= 10  # once the run is finished, a process is sooner done than killed
    assert (killed / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    rows = runs.metrics.read(killed / "metrics.csv")
    np.testing.assert_array_equal(rows["iteration"], [np.arange(128)] * 2)
    for a, b in zip(*(numbers(jax.tree.leaves(final_state(path))) for path in (whole, killed)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert evaluate(whole, episodes=8)["final"] == evaluate(killed, episodes=8)["final"]


@pytest.mark.slow
def test_a_job_that_is_queued_again_goes_on(tmp_path, tiny):
    """What a cluster does: the same command in the same directory, whatever became of the first."""

    def job(name):
        words = [*tiny, "total_steps=7680", "num_chunks=60", f"run_dir={tmp_path / name}"]
        return subprocess.Popen([sys.executable, "-m", "llmrl", "train", *words], stdout=subprocess.DEVNULL)

    assert job("whole").wait() == 0
    first = job("queued")
    while not (tmp_path / "queued" / "checkpoints").is_dir():
        time.sleep(0.01)
    first.kill()
    first.wait()
    assert not (tmp_path / "queued" / "summary.json").exists()
    assert job("queued").wait() == 0
    assert (tmp_path / "queued" / "metrics.csv").read_bytes() == (tmp_path / "whole" / "metrics.csv").read_bytes()
    ends = [json.loads((tmp_path / name / "summary.json").read_text())["final"] for name in ("whole", "queued")]
    assert ends[0] == ends[1]


# --- determinism (F15) ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_train_the_same_bits(tmp_path, child):
    script = """
        import sys
        import llmrl
        llmrl.train(llmrl.compose(*sys.argv[1:]))
    """
    short = (*CARTPOLE, "total_steps=8192", "num_chunks=4")
    for name in ("first", "second"):
        child(script, *short, f"run_dir={tmp_path / name}")
    assert (tmp_path / "first" / "metrics.csv").read_bytes() == (tmp_path / "second" / "metrics.csv").read_bytes()
    for a, b in zip(*(numbers(jax.tree.leaves(final_state(tmp_path / n))) for n in ("first", "second")), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_a_seed_alone_is_the_same_seed_among_eight():
    short = (*CARTPOLE, "total_steps=4096", "num_chunks=1")
    alone = llmrl.train(llmrl.compose(*short, "seeds=1")).metrics
    among = llmrl.train(llmrl.compose(*short, "seeds=8")).metrics
    for name in alone:
        np.testing.assert_allclose(alone[name][0], among[name][0], rtol=1e-3, atol=1e-4, err_msg=name)
