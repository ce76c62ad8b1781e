"""Labelling: states go in as keys, scores come out. Training never waits for it and never sees an exception.

The ``Desk`` knows which states wait, are on their way, are answered or given up; the ``Worker`` asks what waits there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from llmrl.language.asking import Asker, Manners
from llmrl.language.cache import Cache
from llmrl.language.question import FATAL, FINAL, UNREADABLE, Captioner, Provider, Question, Unanswered, questions
from llmrl.language.spending import Budget, Ledger
from llmrl.language.table import PADDING, Table, build
from llmrl.settings.errors import CannotRun

COUNTERS = (
    "requests", "answered", "failures", "unparseable", "given_up", "cache_hits", "pauses", "tokens", "cost", "pending",
    "stopped",
)  # fmt: skip
"""What ``Labeller.stats`` always holds."""

MAX_ATTEMPTS = 3
"""How often a state is taken up again after failures that pass."""

_CLOSING_SECONDS = 2.0

_log = logging.getLogger(__name__)


class Labeller(NamedTuple):
    """Answers questions in the background. None of these functions waits for a network, and none raises.

    Attributes:
        ask: ``(state key -> how often it was missed) -> None``; the most frequent are asked about first. A state that
            was answered, is waiting, or has no answer is not asked about again.
        collect: ``() -> {state key: scores [e]}``, what was answered since the last call.
        stats: ``() -> {name: number}``, see ``COUNTERS``.
        problem: ``() -> str | None``: why nothing more is asked, in words; None while all goes on.
        close: ``() -> None``; whatever is on its way is dropped.
    """

    ask: Callable[[Mapping[int, int]], None]
    collect: Callable[[], dict[int, np.ndarray]]
    stats: Callable[[], dict[str, float]]
    problem: Callable[[], str | None]
    close: Callable[[], None]


def make_labeller(
    provider: Provider,
    captioner: Captioner,
    cache: Cache | None = None,
    budget: Budget | None = None,
    *,
    manners: Manners | None = None,
    concurrency: int = 8,
    neutral: float = 0.5,
) -> Labeller:
    """A labeller that asks ``provider`` about the states of ``captioner``.

    A provider that answers at once (recorded, oracle) does so inside ``ask``, and so does the cache: a run whose
    answers are all at hand is as reproducible as one without a language model.

    Args:
        provider: who answers.
        captioner: the environment's words.
        cache: answers given before; not used by providers that answer at once.
        budget: the most that may be spent.
        manners: how an endpoint is treated.
        concurrency: requests on their way at the same time.
        neutral: score of an event whose answer was unusable while others about the same state were not.
    """
    desk = Desk(provider, captioner, cache, Ledger(budget or Budget()), neutral)
    return _labeller_at(desk, manners or Manners(), concurrency)


def _labeller_at(desk: Desk, manners: Manners, concurrency: int) -> Labeller:
    worker = None if desk.provider.answer is None else Worker(desk, manners, concurrency)

    def ask(keys: Mapping[int, int]) -> None:
        try:
            desk.take(keys)
            if worker is not None and desk.has_work():
                worker.wake()
        except Exception as error:
            desk.bug(error)

    def stats() -> dict[str, float]:
        problems = desk.cache.problems() if desk.cache else 0
        return {**dict.fromkeys(COUNTERS, 0.0), **desk.counts(), "cache_problems": float(problems)}

    def close() -> None:
        if worker is not None:
            worker.close()

    return Labeller(ask, desk.hand_out, stats, lambda: None if desk.stopped is None else str(desk.stopped), close)


def fill(
    captioner: Captioner,
    provider: Provider,
    cache: Cache | None,
    keys: Iterable[int],
    limit: int | None = None,
    *,
    capacity: int = 4096,
    neutral: float = 0.5,
    budget: Budget | None = None,
    manners: Manners | None = None,
    concurrency: int = 8,
    progress: Callable[[dict[str, float]], None] | None = None,
) -> Table:
    """Asks about many states and waits for the answers; an interrupted or failed call loses nothing that was answered.

    Args:
        captioner: the environment's words.
        provider: who answers.
        cache: answers given before, and those given now.
        keys: states, the most important first.
        limit: at most so many of them; None takes all that fit into the table.
        capacity: rows of the table.
        neutral: as for ``make_labeller``.
        budget: the most that may be spent; where it ends the call, the table holds what there is.
        manners: how an endpoint is treated.
        concurrency: requests on their way at the same time.
        progress: called with the labeller's counters now and then.

    Raises:
        RuntimeError: the endpoint cannot be asked at all; the message says why.
    """
    chosen = list(dict.fromkeys(int(key) for key in keys))[: min(capacity, limit if limit is not None else capacity)]
    desk = Desk(provider, captioner, cache, Ledger(budget or Budget()), neutral)
    labeller = _labeller_at(desk, manners or Manners(max_trips=3), concurrency)
    answers: dict[int, np.ndarray] = {}
    try:
        labeller.ask({key: len(chosen) - rank for rank, key in enumerate(chosen)})
        while True:
            stats = labeller.stats()
            answers |= labeller.collect()
            if progress is not None:
                progress(stats)
            if not stats["pending"]:  # what is on its way when a budget ends was paid for, and is waited for
                break
            time.sleep(0.02)
        answers |= labeller.collect()
    finally:
        labeller.close()
    reason = desk.stopped or (None if answers else desk.last_failure)
    if reason is not None and reason.kind != "budget":
        raise CannotRun(f"{len(answers)} of {len(chosen)} states were answered: {reason}")
    ranked = {key: answers[key] for key in chosen if key in answers}
    return build(ranked, capacity, len(captioner.events))


class Desk:
    """The state that trainer and worker share, all of it under one lock."""

    def __init__(self, provider: Provider, captioner: Captioner, cache: Cache | None, ledger: Ledger, neutral: float):
        self.provider, self.captioner, self.cache, self.ledger = provider, captioner, cache, ledger
        self._neutral = neutral
        self._lock = threading.Lock()
        self._waiting: dict[int, int] = {}
        self._asked: dict[int, list[Question]] = {}
        self._on_the_way: set[int] = set()
        self._attempts: dict[int, int] = {}
        self._settled: set[int] = set()
        self._finished: dict[int, np.ndarray] = {}
        self._said: set[str] = set()
        self.stopped: Unanswered | None = None
        self.last_failure: Unanswered | None = None

    def take(self, keys: Mapping[int, int]) -> None:
        """Answers what can be answered at once, and lets the rest wait."""
        for key, count in sorted(keys.items(), key=lambda item: (-item[1], item[0])):
            key = int(key)
            with self._lock:
                if key in self._waiting:
                    self._waiting[key] += int(count)
                if key in self._waiting or key in self._on_the_way or key in self._settled or key == PADDING:
                    continue
            if not self._at_once(key) and self.stopped is None:
                with self._lock:
                    self._waiting[key] = int(count)

    def _at_once(self, key: int) -> bool:
        """Whether a state is settled without asking anybody: by a provider on this machine, or by the cache."""
        try:
            asked = questions(self.provider, self.captioner, key)
        except Exception as error:  # the environment's own function
            self.fail(key, Unanswered("failed", f"no words for state {key}: {_summary(error)}"))
            return True
        found: list[tuple[float, ...] | Unanswered] = []
        for question in asked:
            if self.provider.answer_now is not None:
                found.append(self._answer_now(question))
            elif (scores := self.cached(question)) is not None:
                found.append(scores)
            else:
                with self._lock:
                    self._asked[key] = asked
                return False
        if self.provider.answer_now is None:
            self.ledger.count("cache_hits", len(asked))
        self.finish(key, asked, found)
        return True

    def _answer_now(self, question: Question) -> tuple[float, ...] | Unanswered:
        assert self.provider.answer_now is not None
        try:
            return self.provider.answer_now(question).scores
        except Unanswered as failure:
            return failure

    def cached(self, question: Question) -> tuple[float, ...] | None:
        """The scores that a question got before, as they were."""
        answer = self.cache.get(self.provider, question) if self.cache else None
        return answer.scores if answer else None

    def has_work(self) -> bool:
        with self._lock:
            return bool(self._waiting) and self.stopped is None

    def next_state(self) -> tuple[int, list[Question]] | None:
        """The most frequent state that waits, and what to ask about it."""
        with self._lock:
            if not self._waiting or self.stopped is not None:
                return None
            key = max(self._waiting, key=lambda key: (self._waiting[key], -key))
            del self._waiting[key]
            self._on_the_way.add(key)
            return key, self._asked[key]

    def finish(self, key: int, asked: list[Question], found: list[tuple[float, ...] | Unanswered]) -> None:
        """Puts a state's answers together. One that failed for a passing reason makes the whole state wait again; one
        that was unusable leaves its events neutral, unless all were."""
        failures = [answer for answer in found if isinstance(answer, Unanswered)]
        for failure in failures:
            self._note(failure)
        passing = [failure for failure in failures if failure.kind not in FINAL]
        if passing or len(failures) == len(found):
            self.fail(key, (passing or failures)[0], noted=True)
            return
        row = np.full(len(self.captioner.events), self._neutral, np.float32)
        for question, answer in zip(asked, found, strict=True):
            if not isinstance(answer, Unanswered):
                row[list(question.events)] = self.provider.distort(question, answer)
        with self._lock:
            self._on_the_way.discard(key)
            self._settled.add(key)
            self._asked.pop(key, None)
            self._finished[key] = row
        self.ledger.count("answered")

    def fail(self, key: int, failure: Unanswered, noted: bool = False) -> None:
        """A state without an answer: it waits again, or is given up."""
        if not noted:
            self._note(failure)
        with self._lock:
            self._on_the_way.discard(key)
            self._attempts[key] = self._attempts.get(key, 0) + 1
            if failure.kind in FATAL or self.stopped is not None:
                return
            if failure.kind not in FINAL and self._attempts[key] < MAX_ATTEMPTS:
                self._waiting[key] = 1
                return
            self._settled.add(key)
            self._asked.pop(key, None)
        self.ledger.count("given_up")

    def _note(self, failure: Unanswered) -> None:
        if failure.kind in FATAL:
            self.stop(failure)
        if failure.kind == "budget":
            return
        self.last_failure = failure
        self.ledger.count("failures")
        if failure.kind in UNREADABLE:
            self.ledger.count("unparseable")
        if failure.kind not in self._said:
            self._said.add(failure.kind)
            _log.warning("a question stays without an answer (further ones of this kind are only counted): %s", failure)

    def stop(self, reason: Unanswered) -> None:
        with self._lock:
            self.stopped = self.stopped or reason
            self._waiting.clear()

    def bug(self, error: BaseException) -> None:
        """An unforeseen exception: labelling ends, training goes on."""
        self.ledger.count("failures")
        with self._lock:
            self._on_the_way.clear()
        self.stop(Unanswered("failed", f"labelling broke down: {_summary(error)}"))
        _log.warning("%s", self.stopped)

    def hand_out(self) -> dict[int, np.ndarray]:
        with self._lock:
            finished, self._finished = self._finished, {}
            return finished

    def counts(self) -> dict[str, float]:
        with self._lock:
            pending = len(self._waiting) + len(self._on_the_way)
        return {**self.ledger.counts(), "pending": float(pending), "stopped": float(self.stopped is not None)}


def _summary(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"


class Worker:
    """Asks in a thread of its own, begun with the first question."""

    def __init__(self, desk: Desk, manners: Manners, concurrency: int):
        self._desk, self._manners, self._concurrency = desk, manners, concurrency
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._main: asyncio.Task[None] | None = None
        self._work_came = asyncio.Event()
        self._closed = False

    def wake(self) -> None:
        with self._lock:
            if self._closed:
                return
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="llmrl-labeller", daemon=True)
                self._thread.start()
            elif self._loop is not None and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._work_came.set)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            thread, loop, main = self._thread, self._loop, self._main
        if loop is not None and main is not None:
            with contextlib.suppress(RuntimeError):  # it has ended by itself
                loop.call_soon_threadsafe(main.cancel)
        if thread is not None:
            thread.join(_CLOSING_SECONDS)

    def _run(self) -> None:
        try:
            asyncio.run(self._work())
        except asyncio.CancelledError:
            pass
        except BaseException as error:
            self._desk.bug(error)

    async def _work(self) -> None:
        with self._lock:
            self._loop, self._main = asyncio.get_running_loop(), asyncio.current_task()
            if self._closed:
                return
        provider, events = self._desk.provider, self._desk.captioner.events
        asker = Asker(provider, self._desk.ledger, self._manners)
        slots = asyncio.Semaphore(self._concurrency)
        # As many states at a time as fill the slots and no more, so that the most frequent are done first.
        lines = -(-self._concurrency // (1 if provider.open_question else len(events)))
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(lines):
                    group.create_task(self._line(asker, slots))
        finally:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(provider.close(), _CLOSING_SECONDS / 2)

    async def _line(self, asker: Asker, slots: asyncio.Semaphore) -> None:
        """Takes up one state after the other."""
        while asker.stopped is None and self._desk.stopped is None:
            state = self._desk.next_state()
            if state is None:
                self._work_came.clear()
                await self._work_came.wait()
                continue
            key, asked = state
            found = await asyncio.gather(*(self._one(asker, slots, question) for question in asked))
            self._desk.finish(key, asked, list(found))
            self._work_came.set()  # for a state that waits again
        if asker.stopped is not None:
            self._desk.stop(asker.stopped)

    async def _one(self, asker: Asker, slots: asyncio.Semaphore, question: Question) -> tuple[float, ...] | Unanswered:
        async with slots:
            # Another process may have asked in the meantime.
            if (scores := self._desk.cached(question)) is not None:
                self._desk.ledger.count("cache_hits")
                return scores
            try:
                answer = await asker.ask(question)
            except Unanswered as failure:
                return failure
            if self._desk.cache is not None:
                self._desk.cache.put(self._desk.provider, question, answer)
            return answer.scores
