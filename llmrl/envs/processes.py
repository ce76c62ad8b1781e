"""Games in processes of their own: spawned, asked all at once, and named where one of them ends."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, TypeAlias

from llmrl.settings.errors import CannotRun, UserError, end_of

Exchange: TypeAlias = Callable[[str, Sequence[int], Iterable[Any]], list[Any]]
"""``(command, places, arguments) -> answers``, one per place."""

Answer: TypeAlias = Callable[[str, list[tuple[int, Any]]], list[Any]]
"""What a process does with its part of an exchange: ``(command, [(place, argument), ...]) -> answers``."""


@contextlib.contextmanager
def opened_processes(make: Callable[[], Answer], number: int, what: str) -> Iterator[Exchange]:
    """That many processes; place p is answered for in process p modulo ``number``.

    Processes are spawned, never forked: a fork of a process that runs jax may hang.

    Args:
        make: makes what answers, in each process; it can be pickled.
        number: of processes.
        what: what they play, as errors call it.
    """
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    try:
        for _ in range(number):
            ours, theirs = context.Pipe()
            process = context.Process(target=_answer, args=(theirs, make), daemon=True)
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)

        def exchange(command: str, places: Sequence[int], arguments: Iterable[Any]) -> list[Any]:
            orders: dict[int, list] = {}
            for place, argument in zip(places, arguments, strict=True):
                orders.setdefault(place % len(pipes), []).append((int(place), argument))
            for number, order in orders.items():
                with _named_where_ended(processes[number], what):
                    pipes[number].send((command, order))
            answers: dict[int, Any] = {}
            for number, order in orders.items():
                with _named_where_ended(processes[number], what):
                    answered = _received(pipes[number], what)
                answers.update(zip([place for place, _ in order], answered, strict=True))
            return [answers[place] for place in places]

        yield exchange
    finally:
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.join(timeout=10)
            process.terminate()


@contextlib.contextmanager
def _named_where_ended(process: BaseProcess, what: str) -> Iterator[None]:
    """Says how a game process ended, where its pipe says only that it is closed."""
    try:
        yield
    except (EOFError, ConnectionError) as error:
        process.join(timeout=10)
        raise CannotRun(f"game process {process.pid}, which plays {what}, {end_of(process.exitcode or 0)}") from error


def _received(pipe: Connection, what: str) -> list[Any]:
    answer = pipe.recv()
    if isinstance(answer, UserError):
        raise answer
    if isinstance(answer, Exception):
        raise CannotRun(f"a process that plays {what} failed: {answer!r}") from answer
    return answer


def _answer(pipe: Connection, make: Callable[[], Answer]) -> None:
    """The loop of a game process: it answers until its pipe is closed."""
    answer = None
    with contextlib.suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        while True:
            order = pipe.recv()
            try:
                answer = make() if answer is None else answer
                answered = answer(*order)
            except Exception as error:
                answered = error
            pipe.send(answered)
