"""The desk between those who train and those who ask: which states wait, are on their way, are answered, given up."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping

import numpy as np

from llmrl.language.cache import Cache
from llmrl.language.question import FATAL, FINAL, Captioner, Provider, Question, Unanswered, questions
from llmrl.language.spending import Ledger
from llmrl.language.table import PADDING

MAX_ATTEMPTS = 3
"""How often a state is taken up again after failures that pass."""

_log = logging.getLogger(__name__)


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
        if failure.kind in ("unparseable", "no_logprobs", "only_thoughts"):
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
