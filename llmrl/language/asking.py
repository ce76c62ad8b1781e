"""Asking with care: one layer of retries inside one deadline, a rate, a budget, and a breaker for endpoints that are
down."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from llmrl.language.question import FATAL, FINAL, PASSING, Answer, Provider, Question, Unanswered
from llmrl.language.spending import Ledger
from llmrl.settings.errors import BadValue

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Manners:
    """How an endpoint is treated.

    Attributes:
        deadline: seconds for one question, all attempts and waits between them included.
        retries: further attempts after one that failed for a passing reason.
        backoff: seconds before the first of them, doubled each time; longer where the endpoint asks for it.
        requests_per_minute: None sets no rate.
        patience: questions in a row that fail before the breaker opens.
        cooldown: seconds it stays open, doubled each time up to ``max_cooldown``.
        max_cooldown: see ``cooldown``.
        max_trips: openings in a row after which nothing more is asked; None tries for ever.
        max_final: unusable answers in a row after which nothing more is asked.
    """

    deadline: float = 30.0
    retries: int = 3
    backoff: float = 0.5
    requests_per_minute: float | None = None
    patience: int = 5
    cooldown: float = 5.0
    max_cooldown: float = 300.0
    max_trips: int | None = None
    max_final: int = 20


class Asker:
    """Asks a provider; lives in one event loop.

    Attributes:
        stopped: why nothing more is asked; None while asking goes on.
    """

    def __init__(
        self,
        provider: Provider,
        ledger: Ledger,
        manners: Manners,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ):
        if provider.answer is None:
            raise BadValue("this provider answers at once: call it without an Asker")
        self._send = provider.answer
        self._provider, self._ledger, self._manners = provider, ledger, manners
        self._clock, self._sleep = clock, sleep
        self._next_slot = 0.0
        self._failed_in_a_row = 0
        self._final_in_a_row = 0
        self._trips = 0
        self._open_until = 0.0
        self.stopped: Unanswered | None = None

    async def ask(self, question: Question) -> Answer:
        """The answer to one question.

        Raises:
            Unanswered: there is none; the kind says whether asking again has any point.
        """
        await self._admission()
        try:
            async with asyncio.timeout(self._manners.deadline):
                answer = await self._attempts(question)
        except TimeoutError:
            failure = Unanswered("timeout", f"no answer within {self._manners.deadline:g} s")
            self._note(failure)
            raise failure from None
        except Unanswered as failure:
            self._note(failure)
            raise
        self._failed_in_a_row = self._final_in_a_row = self._trips = 0
        return answer

    async def _admission(self) -> None:
        """Waits for the breaker to close and for the rate; neither wait counts against a question's deadline."""
        while not self.stopped and (wait := self._open_until - self._clock()) > 0:
            await self._sleep(wait)
        await self._slot()
        if self.stopped:
            raise Unanswered(self.stopped.kind, str(self.stopped))

    async def _slot(self) -> None:
        if self._manners.requests_per_minute is None:
            return
        now = self._clock()
        mine = max(now, self._next_slot)
        self._next_slot = mine + 60.0 / self._manners.requests_per_minute
        if mine > now:
            await self._sleep(mine - now)

    async def _attempts(self, question: Question) -> Answer:
        ends = self._clock() + self._manners.deadline
        failed = 0
        while True:
            try:
                return await self._attempt(question)
            except Unanswered as failure:
                if failure.kind != "adapted":
                    if failure.kind not in PASSING or failed == self._manners.retries:
                        raise
                    wait = self._wait(failed, failure)
                    if self._clock() + wait >= ends:
                        raise  # there is no time left to try again
                    await self._sleep(wait)
                    failed += 1
            await self._slot()

    def _wait(self, failed: int, failure: Unanswered) -> float:
        """Seconds before the next attempt. An endpoint may ask for more than the backoff, never for less."""
        # Half of the backoff is random, so that many clients do not come back at the same moment.
        backoff = self._manners.backoff * 2**failed * random.uniform(0.5, 1.0)
        return max(backoff, failure.retry_after or 0.0)

    async def _attempt(self, question: Question) -> Answer:
        reservation = self._ledger.reserve(self._provider, question)
        answer = None
        try:
            answer = await self._send(question)
            return answer
        finally:
            self._ledger.settle(self._provider, reservation, answer)

    def _note(self, failure: Unanswered) -> None:
        if failure.kind in FATAL:
            self._stop(failure)
        elif failure.kind in FINAL:
            self._failed_in_a_row = 0
            self._final_in_a_row += 1
            if self._final_in_a_row >= self._manners.max_final:
                of_no_use = f"{self._final_in_a_row} answers in a row were of no use; the last one: {failure}"
                self._stop(Unanswered("misconfigured", of_no_use))
        else:
            self._failed_in_a_row += 1
            wanted = failure.retry_after or 0.0
            if self._failed_in_a_row >= self._manners.patience:
                self._trip(failure, wanted)
            elif wanted > self._manners.deadline:
                self._open_until = self._clock() + min(wanted, self._manners.max_cooldown)
                self._say_pause(failure)

    def _trip(self, failure: Unanswered, wanted: float) -> None:
        """Opens the breaker: no request is sent until a pause is over. The next failure opens it again, for longer."""
        if self._clock() < self._open_until:
            return  # those that were on their way when it opened
        cooldown = min(self._manners.cooldown * 2**self._trips, self._manners.max_cooldown)
        self._open_until = self._clock() + max(cooldown, min(wanted, self._manners.max_cooldown))
        self._trips += 1
        self._ledger.count("pauses")
        if self._manners.max_trips is not None and self._trips >= self._manners.max_trips:
            self._stop(failure)
        else:
            self._say_pause(failure)

    def _say_pause(self, failure: Unanswered) -> None:
        _log.warning("asking pauses for %.3g s: %s", self._open_until - self._clock(), failure)

    def _stop(self, reason: Unanswered) -> None:
        if self.stopped is None:
            self.stopped = reason
            _log.warning("asking has stopped: %s", reason)
