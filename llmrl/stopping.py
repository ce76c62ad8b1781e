"""Being asked to stop: a scheduler's signal is heeded once what has been trained is on the disk. Host only."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import connection
from typing import Any, TypeAlias

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What schedulers send ahead of a kill: on preemption, or some time before a job's limit is reached."""

Heed: TypeAlias = Callable[[int], None]
"""``iterations on the disk -> None``; raises ``Stopped`` where a signal has come."""


class Stopped(SystemExit):
    """A run left because it was asked to; everything up to what is named as done is saved.

    It leaves the process with 128 + the signal's number (143 for SIGTERM, 138 for SIGUSR1), as a shell would report it;
    being no ``Exception`` it stops a sweep too, and not only the run that it met.
    """

    def __init__(self, number: int, done: str):
        super().__init__(128 + number)
        self.message = (
            f"{signal.Signals(number).name}: stopped after {done}, all of it saved; the same command goes on from there"
        )

    def __str__(self) -> str:
        return self.message


@contextmanager
def held_signals(enabled: bool = True) -> Iterator[list[int]]:
    """Holds a scheduler's signals back.

    A second signal of the same kind is not held back. Where somebody else handles a signal (submitit, a notebook), or
    outside of the main thread, it is left to them.

    Args:
        enabled: False leaves all signals as they are.

    Yields:
        The signals that have come.
    """
    received: list[int] = []

    def note(number: int, frame: Any) -> None:
        received.append(number)
        signal.signal(number, signal.SIG_DFL)

    ours = enabled and threading.current_thread() is threading.main_thread()
    held = [number for number in SIGNALS if ours and signal.getsignal(number) is signal.SIG_DFL]
    for number in held:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number in held:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def stop_requests(total: int, enabled: bool = True, agreed: Callable[[int], int] = int) -> Iterator[Heed]:
    """Holds a scheduler's signals back until the run can leave without a loss, see ``held_signals``.

    Args:
        total: iterations of the run.
        enabled: False leaves all signals as they are: a run that saves nothing has nothing to wait for.
        agreed: gives every process of the run the largest of their numbers; all of them heed at the same points.

    Yields:
        The function to call wherever leaving costs nothing.
    """
    with held_signals(enabled) as received:

        def heed(iterations: int) -> None:
            if number := agreed(received[0] if received else 0):
                raise Stopped(number, f"iteration {iterations} of {total}")

        yield heed


def stop_with_parent() -> None:
    """Has this process, which another one spawned, asked to stop once that one is gone, however it went: nobody is left
    to wait for what it does."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
