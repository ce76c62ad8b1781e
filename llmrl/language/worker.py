"""The worker: one thread with an event loop that asks what waits on the desk."""

from __future__ import annotations

import asyncio
import contextlib
import threading

from llmrl.language.asking import Asker, Manners
from llmrl.language.desk import Desk
from llmrl.language.question import Question, Unanswered

_CLOSING_SECONDS = 2.0


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
