"""The rules of the game as a provider: what a language model would say if it were always right."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

from llmrl.language.question import Answer, Provider, Question, Unanswered


def oracle(score: Callable[[int, int], float], name: str = "oracle") -> Provider:
    """A provider that computes its answers.

    Args:
        score: ``(state key, event's index) -> score`` in [0, 1].
        name: its identity.
    """

    def answer_now(question: Question) -> Answer:
        try:
            scores = tuple(float(score(question.key, event)) for event in question.events)
        except Exception as error:
            raise Unanswered("misconfigured", f"the oracle {name} failed: {type(error).__name__}: {error}") from error
        if not all(math.isfinite(each) and 0.0 <= each <= 1.0 for each in scores):
            raise Unanswered("misconfigured", f"the oracle {name} must give scores in [0, 1], got {scores}")
        return Answer(scores, json.dumps(scores))

    return Provider(identity=name, answer_now=answer_now)
