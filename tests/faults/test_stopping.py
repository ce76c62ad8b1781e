"""A scheduler's signal: the run leaves within a chunk, and the same command ends with the very same numbers (F3)."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

import llmrl
from llmrl.runs import directory as runs
from llmrl.training.loop import train
from llmrl.training.stopping import SIGNALS, Stopped, stop_requests


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_waits_until_leaving_costs_nothing(number):
    with pytest.raises(Stopped) as stopped, stop_requests(total=9) as heed:
        heed(0)
        os.kill(os.getpid(), number)
        saved = True  # whatever has to be done first is still done
        heed(4)
    assert saved
    assert stopped.value.code == 128 + number
    assert f"{number.name}: stopped after iteration 4 of 9" in str(stopped.value)
    assert signal.getsignal(number) is signal.SIG_DFL


def test_a_second_signal_is_not_held_back():
    with stop_requests(total=9):
        os.kill(os.getpid(), signal.SIGUSR1)
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


def test_signals_of_others_are_left_to_them():
    received = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: received.append(number))
    try:
        with stop_requests(total=9) as heed:
            os.kill(os.getpid(), signal.SIGUSR1)
            heed(1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert received == [signal.SIGUSR1]


def test_a_run_in_a_thread_or_in_memory_touches_no_signal():
    seen = []

    def elsewhere():
        with stop_requests(total=9):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    with stop_requests(total=9, enabled=False):
        seen.append(signal.getsignal(signal.SIGTERM))
    assert seen == [signal.SIG_DFL] * 2


def test_a_stopped_run_goes_on_to_the_very_same_numbers(tmp_path, tiny, monkeypatch):
    whole = train(llmrl.compose(*tiny, f"run_dir={tmp_path / 'whole'}"))
    config, record, chunks = llmrl.compose(*tiny, f"run_dir={tmp_path / 'stopped'}"), runs.record, []

    def then_a_signal(run, *chunk):
        if len(chunks) in (1, 3):
            os.kill(os.getpid(), SIGNALS[len(chunks) // 2])
        record(run, *chunk)
        chunks.append(None)

    monkeypatch.setattr(runs, "record", then_a_signal)
    for number, done in zip(SIGNALS, (4, 8), strict=True):
        with pytest.raises(Stopped, match=f"{number.name}: stopped after iteration {done} of 12"):
            train(config)
        assert runs.checkpoint.steps(tmp_path / "stopped" / "checkpoints")[-1] == done
    assert train(config).summary["final"] == whole.summary["final"]
    assert (tmp_path / "stopped" / "metrics.csv").read_bytes() == (tmp_path / "whole" / "metrics.csv").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_the_command_leaves_within_a_chunk_with_a_code_of_its_own(tmp_path, number):
    words = ["train", "env=cartpole", "ppo=tiny", "seeds=1", "total_steps=200000000", "num_chunks=100000"]
    command = [sys.executable, "-m", "llmrl", *words, f"run_dir={tmp_path}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not (tmp_path / "checkpoints").is_dir() and process.poll() is None:
            time.sleep(0.05)
        began = time.monotonic()
        process.send_signal(number)
        said = process.communicate(timeout=60)[1]
    assert time.monotonic() - began < 60
    assert process.returncode == 128 + number
    assert f"llmrl: {number.name}: stopped after iteration" in said.splitlines()[-1]
    assert "Traceback" not in said
