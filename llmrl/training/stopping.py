"""Being asked to stop: by a scheduler's signal, by Ctrl-C, by a reader that closes the pipe. Host only.

A scheduler's signal is heeded once what has been trained is on the disk. The others end the process at once.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import connection
from typing import Any, NoReturn, TypeAlias

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


class Unheard(SystemExit):
    """The reader of what is printed has closed the pipe, as ``| head`` does.

    It leaves the process with 141, as a shell would report it; being no ``Exception`` it marks no run as failed.
    """

    def __init__(self):
        super().__init__(141)


@contextmanager
def closed_pipes_end_quietly() -> Iterator[None]:
    """Ends the process without a word where standard output or standard error is a closed pipe."""
    try:
        try:
            yield
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
    except (BrokenPipeError, Unheard):
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except BrokenPipeError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # or Python complains again while it exits
        raise Unheard from None


@contextmanager
def second_interrupt_kills() -> Iterator[None]:
    """Raises ``KeyboardInterrupt`` at the first Ctrl-C, as Python does; the second one ends the process at once.

    Python would raise at the second one too, and print a traceback of whatever it was about to close. An interrupt that
    Python cannot raise, in a destructor or while it collects garbage, also ends the process at once.
    """

    def interrupt(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        raise KeyboardInterrupt

    def dropped(unraisable: Any) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        others(unraisable)

    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, interrupt)
    others, sys.unraisablehook = sys.unraisablehook, dropped
    try:
        yield
    finally:
        sys.unraisablehook = others
        if signal.getsignal(signal.SIGINT) is interrupt:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def end_interrupted() -> NoReturn:
    """Leaves an interrupted process as the system would have it: killed by SIGINT, which a shell reports as 130.

    Python is not left to close everything first: beside the threads of jax that are still at work, it may crash.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        signal.raise_signal(signal.SIGINT)
    sys.exit(130)


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
    """Has this process, which another one spawned, asked to stop once its parent has ended for any reason: its result
    would not be read."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
