"""Tasks side by side, each in a process of its own. Importing needs no jax."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, TypeVar

from llmrl.settings.errors import debugging, end_of
from llmrl.training.stopping import Stopped, held_signals, stop_with_parent

Argument = TypeVar("Argument")
Result = TypeVar("Result")

POLL = 1.0
"""Seconds after which a signal is noticed."""


class Failed(NamedTuple):
    """Why a task has no result, in one line."""

    why: str


def attempt(work: Callable[[Argument], Result], argument: Argument) -> Result | Failed:
    """A task's result, or why it has none; with LLMRL_DEBUG set, errors are raised."""
    from llmrl.settings.overrides import explain

    try:
        return work(argument)
    except Exception as error:
        if debugging():
            raise
        return Failed(explain(error))


def side_by_side(
    work: Callable[[Argument], Result], arguments: Mapping[str, Argument], processes: int
) -> Iterator[tuple[str, Result | Failed]]:
    """Each task's result, or why it has none, as they come.

    Every task has a fresh process, spawned, since jax does not survive a fork: nothing of one is left for the next, and
    one that is killed takes no other with it. A signal to stop is passed on to all that are at work, and waited for.
    Should this process be killed, they stop by themselves, as soon as that costs nothing.

    Args:
        work: importable by name; its results can be pickled.
        arguments: of each task.
        processes: how many at a time; they share the machine's cores.

    Raises:
        Stopped: SIGTERM or SIGUSR1 came.
    """
    cores = max(1, (os.cpu_count() or 1) // processes)
    waiting, num_done = list(arguments.items()), 0
    working: dict[Connection, tuple[str, BaseProcess]] = {}
    try:
        with held_signals() as received:
            while working or (waiting and not received):
                while waiting and len(working) < processes and not received:
                    name, argument = waiting.pop(0)
                    pipe, process = _started(work, argument, cores)
                    working[pipe] = name, process
                if received:
                    _stop(working)
                for pipe in wait(list(working), POLL):
                    assert isinstance(pipe, Connection)
                    name, process = working.pop(pipe)
                    found = _received(pipe, process)
                    if received and isinstance(found, Failed):
                        continue
                    num_done += 1
                    yield name, found
            if received:
                raise Stopped(received[0], f"{num_done} of {len(arguments)} runs and a part of others")
    finally:
        _stop(working)


def _started(work: Callable[[Argument], object], argument: Argument, cores: int) -> tuple[Connection, BaseProcess]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(theirs, work, argument, cores))
    process.start()
    theirs.close()  # so that ours ends where the process does
    return ours, process


def _received(pipe: Connection, process: BaseProcess) -> Any:
    try:
        found = pipe.recv()
    except (EOFError, OSError):  # nothing, or the beginning of something
        found = None
    process.join()
    pipe.close()
    return found if found is not None else Failed(f"its process {end_of(process.exitcode or 0)}")


def _stop(working: Mapping[Connection, tuple[str, BaseProcess]]) -> None:
    """Asks all of them to leave, and waits until they have saved what there is."""
    for _, process in working.values():
        process.terminate()
    for _, process in working.values():
        process.join()


# --- in the other process ---------------------------------------------------------------------------------------------


def _work(pipe: Connection, work: Callable[[Argument], object], argument: Argument, cores: int) -> None:
    _share_cores(cores)
    stop_with_parent()
    try:
        found = attempt(work, argument)
    except KeyboardInterrupt:
        sys.exit(130)
    pipe.send(found)


def _share_cores(cores: int) -> None:
    """Leaves the other processes their cores, and memory where they share a GPU: this one simulates so many devices.
    Said by flag and not by ``config.devices``, so that a run may go on under another number of processes."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_force_host_platform_device_count" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={cores}".strip()
