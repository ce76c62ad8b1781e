"""What may be spent and what was: budgets that hold however many requests are on their way, and all counters."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from llmrl.language.question import Answer, Provider, Question, Unanswered


@dataclass(frozen=True)
class Budget:
    """The most that may be spent; None sets no limit.

    Attributes:
        requests: requests sent, failed ones too.
        tokens: of prompts and answers together.
        cost: in the currency of the provider's prices.
        seconds: from the first request on.
    """

    requests: int | None = None
    tokens: int | None = None
    cost: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Reservation:
    """The most that one attempt can spend."""

    prompt_tokens: int
    answer_tokens: int
    cost: float


class Ledger:
    """Counts under a lock. What an attempt can spend at most is set aside before it is sent, and what it did spend is
    booked afterwards: so a budget of requests is exact, and one of tokens holds unless an endpoint exceeds the length
    of answer that it was asked for."""

    def __init__(self, budget: Budget, clock: Callable[[], float] = time.monotonic):
        self._budget, self._clock = budget, clock
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._tokens = 0
        self._cost = 0.0
        self._reserved_tokens = 0
        self._reserved_cost = 0.0
        self._begun: float | None = None

    def reserve(self, provider: Provider, question: Question) -> Reservation:
        """Sets aside what one attempt can spend at most.

        Raises:
            Unanswered: that would exceed the budget.
        """
        prompt_tokens, answer_tokens = estimate_tokens(question.system + question.user), provider.answer_limit
        cost = price(provider, prompt_tokens, answer_tokens)
        with self._lock:
            self._begun = self._clock() if self._begun is None else self._begun
            wanted = {
                "requests": self._counts["requests"] + provider.requests,
                "tokens": self._tokens + self._reserved_tokens + prompt_tokens + answer_tokens,
                "cost": self._cost + self._reserved_cost + cost,
                "seconds": self._clock() - self._begun,
            }
            for name, value in wanted.items():
                limit = getattr(self._budget, name)
                if limit is not None and value > limit:
                    raise Unanswered("budget", f"the budget of {limit:g} {name} is spent")
            self._counts["requests"] += provider.requests
            self._reserved_tokens += prompt_tokens + answer_tokens
            self._reserved_cost += cost
        return Reservation(prompt_tokens, answer_tokens, cost)

    def settle(self, provider: Provider, reservation: Reservation, answer: Answer | None) -> None:
        """Books what an attempt spent; one that failed is booked with its prompt, which may have been charged."""
        prompt_tokens = answer.prompt_tokens if answer else reservation.prompt_tokens
        answer_tokens = answer.answer_tokens if answer else 0
        with self._lock:
            self._reserved_tokens -= reservation.prompt_tokens + reservation.answer_tokens
            self._reserved_cost -= reservation.cost
            self._tokens += prompt_tokens + answer_tokens
            self._cost += price(provider, prompt_tokens, answer_tokens)

    def count(self, what: str, amount: int = 1) -> None:
        """Adds to a counter."""
        with self._lock:
            self._counts[what] += amount

    def counts(self) -> dict[str, float]:
        """All counters, and what was spent."""
        with self._lock:
            counts = {name: float(count) for name, count in self._counts.items()}
            return {**counts, "tokens": float(self._tokens), "cost": self._cost}


def estimate_tokens(text: str) -> int:
    """About how many tokens a text is: rather too many, English has about four letters in one."""
    return math.ceil(len(text) / 3) + 8


def price(provider: Provider, prompt_tokens: int, answer_tokens: int) -> float:
    """What tokens cost."""
    return (prompt_tokens * provider.prices[0] + answer_tokens * provider.prices[1]) / 1e6
