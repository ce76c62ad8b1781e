"""A full disk: what was saved stays, and the message says where, how much is left and what to do (F6)."""

import errno
import os
import resource
import signal
from contextlib import contextmanager

import numpy as np
import pytest

import llmrl
from llmrl.cli.main import main
from llmrl.runs import checkpoint
from llmrl.runs import directory as runs
from llmrl.training.loop import train


@contextmanager
def no_file_longer_than(size):
    """The kernel refuses to write on, in C++ as in Python: as near to a full disk as one comes without filling it."""
    assert signal.getsignal(signal.SIGXFSZ) is signal.SIG_IGN
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def state(number, size=100_000):
    # Random numbers, since orbax compresses.
    return {"w": np.random.default_rng(number).normal(size=size).astype(np.float32)}


def test_a_checkpoint_that_finds_no_room_leaves_the_last_one(tmp_path):
    checkpoint.save(tmp_path, 5, state(5))
    with no_file_longer_than(50_000), pytest.raises(OSError) as refused:
        checkpoint.save(tmp_path, 10, state(10))
    assert refused.value.errno == errno.EFBIG
    assert str(tmp_path) in str(refused.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["5"]  # nor is half a one in the way
    restored, step = checkpoint.restore(tmp_path, state(0))
    assert step == 5
    np.testing.assert_array_equal(restored["w"], state(5)["w"])
    checkpoint.save(tmp_path, 10, state(10))
    assert checkpoint.restore(tmp_path, state(0))[1] == 10


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


PLACES = {
    "metrics.csv": (runs.metrics, "append", 2),
    "checkpoints": (runs.checkpoint, "save", 2),
    "summary.json": (runs.metrics, "write_summary", 12),
}
"""File -> where it is written, and the iteration that is safe when the second attempt to write it fails."""


@pytest.mark.parametrize("place", PLACES)
def test_wherever_the_disk_is_full_the_run_goes_on_once_there_is_room(tmp_path, tiny, place, monkeypatch, capsys):
    module, name, safe = PLACES[place]
    write, calls = getattr(module, name), []

    def second_time_full(*arguments, **options):
        calls.append(None)
        return (full if safe == 12 or len(calls) == 2 else write)(*arguments, **options)

    words = ["train", *tiny, f"run_dir={tmp_path}"]
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as exit_:
        patch.setattr(module, name, second_time_full)
        main(words)
    said = capsys.readouterr().err
    assert exit_.value.code == 2
    assert said.count("\n") == 1
    for part in (
        os.strerror(errno.ENOSPC),
        str(tmp_path),
        "bytes free",
        f"iteration {safe} and all before it are safe",
    ):
        assert part in said
    assert checkpoint.steps(tmp_path / "checkpoints")[-1] == safe
    again = train(llmrl.compose(*words[1:]))
    assert again.metrics["episode_return"].shape == (2, 12)


def test_other_errors_of_the_disk_are_what_they_are(tmp_path):
    with pytest.raises(PermissionError, match="denied"), runs._told_when_full(tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied")
