"""A job of submitit's that is pre-empted or killed ends with the numbers of an undisturbed run (F18)."""

import os
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("hydra_plugins.hydra_submitit_launcher")


def run(words, directory, **options):
    command = [sys.executable, "-m", "llmrl", "train", *words, f"run_dir={directory}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def finished(process):
    told = process.communicate(timeout=600)
    return process.returncode == 0, told


def worker(directory, process):
    """The process that trains there: submitit starts it, and so it is no child of ours."""
    while not (directory / "checkpoints").is_dir():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    return int((directory / ".lock").read_text().split()[1])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGKILL])
def test_a_job_that_is_queued_again_ends_with_the_numbers_of_an_undisturbed_one(tmp_path, tiny, number):
    words = [*tiny, "total_steps=7680", "num_chunks=60"]
    assert finished(run(words, tmp_path / "whole"))[0]
    queued, environment = tmp_path / "queued", {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    words = ["--multirun", *words, "launcher=submitit", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    job = run(words, queued, env=environment)
    trained_by = worker(queued, job)
    os.kill(trained_by, number)
    done, told = finished(job)
    logs = "".join(log.read_text() for log in (tmp_path / "sweep").rglob("*_log.*"))
    if number == signal.SIGUSR2:  # what a scheduler sends ahead of pre-emption: submitit queues the job again by itself
        assert done, (told, logs)
        assert "Requeued job" in logs
    else:
        assert not done and not (queued / "summary.json").exists()
        assert finished(run(words, queued, env=environment))[0]
    assert int((queued / ".lock").read_text().split()[1]) != trained_by
    assert (queued / "metrics.csv").read_bytes() == (tmp_path / "whole" / "metrics.csv").read_bytes()
