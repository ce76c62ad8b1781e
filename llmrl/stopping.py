"""Being asked to stop: a scheduler's signal is heeded once what has been trained is on the disk. Host only."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What schedulers send ahead of a kill: on preemption, or some time before a job's limit is reached."""

Heed: TypeAlias = Callable[[int], None]
"""``iterations on the disk -> None``; raises ``Stopped`` where a signal has come."""


class Stopped(SystemExit):
    """A run left because it was asked to; everything up to ``iterations`` is saved.

    It leaves the process with 128 + the signal's number (143 for SIGTERM, 138 for SIGUSR1), as a shell would report it;
    being no ``Exception`` it stops a sweep too, and not only the run that it met.
    """

    def __init__(self, number: int, iterations: int, total: int):
        super().__init__(128 + number)
        self.message = (
            f"{signal.Signals(number).name}: stopped after iteration {iterations} of {total}, all of it saved; "
            "the same command goes on from there"
        )

    def __str__(self) -> str:
        return self.message


@contextmanager
def stop_requests(total: int, enabled: bool = True, agreed: Callable[[int], int] = int) -> Iterator[Heed]:
    """Holds a scheduler's signals back until the run can leave without a loss.

    A second signal of the same kind is not held back. Where somebody else handles a signal (submitit, a notebook), or
    outside of the main thread, it is left to them.

    Args:
        total: iterations of the run.
        enabled: False leaves all signals as they are: a run that saves nothing has nothing to wait for.
        agreed: gives every process of the run the largest of their numbers; all of them heed at the same points.

    Yields:
        The function to call wherever leaving costs nothing.
    """
    received: list[int] = []

    def note(number: int, frame: Any) -> None:
        received.append(number)
        signal.signal(number, signal.SIG_DFL)

    ours = enabled and threading.current_thread() is threading.main_thread()
    held = [number for number in SIGNALS if ours and signal.getsignal(number) is signal.SIG_DFL]
    for number in held:
        signal.signal(number, note)

    def heed(iterations: int) -> None:
        if number := agreed(received[0] if received else 0):
            raise Stopped(number, iterations, total)

    try:
        yield heed
    finally:
        for number in held:
            signal.signal(number, signal.SIG_DFL)
