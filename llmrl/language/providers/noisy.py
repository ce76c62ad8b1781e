"""Wrong answers on purpose: how much of a language model's error can training bear?"""

from __future__ import annotations

import hashlib

from llmrl.language.question import Provider, Question
from llmrl.settings.errors import BadValue


def noisy(
    provider: Provider, share: float, seed: int = 0, *, unit: str = "state", adversarial: bool = False
) -> Provider:
    """``provider`` with a share of its answers made wrong: 1 - score.

    Which ones is decided by a hash of the seed and the state's key (and the event, for ``unit="answer"``): the same
    ones in every run, whatever is asked in whichever order. The cache keeps the answers as they were given.

    Args:
        provider: who answers.
        share: of answers that are made wrong, in [0, 1].
        seed: which ones.
        unit: ``state`` makes all answers about a state wrong or none, ``answer`` decides for each event anew.
        adversarial: make all of them wrong.
    """
    if not 0.0 <= share <= 1.0:
        raise BadValue(f"share must lie in [0, 1], got {share}")
    if unit not in ("state", "answer"):
        raise BadValue(f"unit must be 'state' or 'answer', got {unit!r}")

    def is_wrong(key: int, event: int) -> bool:
        return adversarial or _uniform(seed, key, event if unit == "answer" else -1) < share

    def distort(question: Question, scores: tuple[float, ...]) -> tuple[float, ...]:
        scores = provider.distort(question, scores)
        return tuple(
            1.0 - score if is_wrong(question.key, event) else score
            for event, score in zip(question.events, scores, strict=True)
        )

    return provider._replace(distort=distort)


def _uniform(*numbers: int) -> float:
    """A number in [0, 1) that depends on these only, the same on every machine."""
    digest = hashlib.blake2b(",".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64
