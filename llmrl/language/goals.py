"""Goals that a model suggests in its own words: which ones, and how alike they and an environment's events are."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float

from llmrl.language.prompts import clean
from llmrl.language.question import Unanswered
from llmrl.settings.errors import BadValue, install

MAX_GOALS = 32
MAX_GOAL_LENGTH = 200

_REMEMBERED = 10_000
"""Texts whose vectors are kept; events and goals come again and again."""

Similarity: TypeAlias = Callable[[Sequence[str], Sequence[str]], Awaitable[Float[np.ndarray, "g e"]]]
"""``(goals, phrases) -> how alike each two are``, in [0, 1]."""

_BULLET = re.compile(r"^\s*(?:[-*\u2022\u2013]|\d{1,2}[.)])\s*(.+?)[\s.;,!]*$")


def parse_goals(text: str) -> tuple[str, ...]:
    """Suggested goals, one per bulleted line, in lower case (Du et al. 2023, as their parser does it).

    Lines without a bullet are remarks. A single bullet with "none" or "nothing" suggests no goal.

    Raises:
        Unanswered: there is no bulleted line.
    """
    bullets = [match.group(1) for line in text.splitlines() if (match := _BULLET.match(line))]
    cleaned = (clean(goal, MAX_GOAL_LENGTH).lower() for goal in bullets)
    goals = tuple(dict.fromkeys(filter(None, cleaned)))[:MAX_GOALS]
    if not goals:
        raise Unanswered("unparseable", f"no goals in a list: {text[:60]!r}")
    return () if goals in (("none",), ("nothing",)) else goals


def best_match(similarities: Float[np.ndarray, "g e"], threshold: float) -> tuple[float, ...]:
    """Per event the highest similarity to any goal, 0 below the threshold (Du et al. 2023, section 3.2)."""
    if not np.all(np.isfinite(similarities)):
        raise Unanswered("malformed", "a similarity is not a number")
    highest = np.clip(similarities, 0.0, 1.0).max(axis=0, initial=0.0)
    return tuple(float(score) if score >= threshold else 0.0 for score in highest)


async def spelling(goals: Sequence[str], phrases: Sequence[str]) -> Float[np.ndarray, "g e"]:
    """Similarity of spelling: the share of letters in common, whatever the order of the words; articles and
    punctuation do not count."""
    from rapidfuzz import fuzz, process, utils

    def essential(text):
        return " ".join(word for word in utils.default_process(text).split() if word not in ("a", "an", "the"))

    scores = process.cdist(
        list(goals), list(phrases), scorer=fuzz.token_sort_ratio, processor=essential, dtype=np.float32
    )
    return scores / np.float32(100.0)


def cosine(goals: Float[np.ndarray, "g d"], phrases: Float[np.ndarray, "e d"]) -> Float[np.ndarray, "g e"]:
    """Cosines of embeddings; 0 for a vector without length."""

    def unit(vectors):
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / np.where(norms > 0.0, norms, 1.0)

    return unit(goals) @ unit(phrases).T


# --- embeddings -------------------------------------------------------------------------------------------------------


def endpoint_similarity(ask: Callable[[dict[str, Any]], Awaitable[Any]], model: str) -> Similarity:
    """Similarity of meaning by an endpoint's ``/embeddings``, ``ask: body -> JSON``."""

    async def embed(texts: Sequence[str]) -> Float[np.ndarray, "n d"]:
        body = await ask({"model": model, "input": list(texts), "encoding_format": "float"})
        return read_embeddings(body, len(texts))

    return _remembering(embed)


def local_similarity(model: str) -> Similarity:
    """Similarity of meaning by a sentence-transformers model on this machine.

    Raises:
        ValueError: the extra ``local-llm`` is not installed.
    """
    try:
        from sentence_transformers import SentenceTransformer  # type: ignore[import-not-found]
    except ImportError as error:
        raise BadValue(f"llm.embedding_local needs sentence-transformers: {install('local-llm')}") from error
    encoder = SentenceTransformer(model)

    async def embed(texts: Sequence[str]) -> Float[np.ndarray, "n d"]:
        vectors = await asyncio.to_thread(encoder.encode, list(texts))
        return np.asarray(vectors, np.float32)

    return _remembering(embed)


def _remembering(embed: Callable[[Sequence[str]], Awaitable[Float[np.ndarray, "n d"]]]) -> Similarity:
    known: dict[str, np.ndarray] = {}

    async def similarity(goals: Sequence[str], phrases: Sequence[str]) -> Float[np.ndarray, "g e"]:
        new = [text for text in dict.fromkeys([*goals, *phrases]) if text not in known]
        vectors = dict(zip(new, await embed(new), strict=True)) if new else {}
        if len(known) < _REMEMBERED:
            known.update(vectors)
        vectors = {**known, **vectors}
        try:
            return cosine(np.stack([vectors[goal] for goal in goals]), np.stack([vectors[each] for each in phrases]))
        except ValueError:
            raise Unanswered("malformed", "embeddings of different lengths") from None

    return similarity


def read_embeddings(body: Any, expected: int) -> Float[np.ndarray, "n d"]:
    """The vectors of an answer of ``/embeddings``, in the order of the texts.

    Raises:
        Unanswered: the JSON has another shape, or a number is none.
    """
    data = body.get("data") if isinstance(body, dict) else None
    if not isinstance(data, list) or len(data) != expected or not all(isinstance(each, dict) for each in data):
        raise Unanswered("malformed", f"expected {expected} embeddings")
    ordered = sorted(enumerate(data), key=lambda each: _index(each[1], each[0]))
    rows = [each.get("embedding") for _, each in ordered]
    if not all(_is_vector(row) and len(row) == len(rows[0]) for row in rows):
        raise Unanswered("malformed", "an embedding is no list of numbers, or of another length")
    return np.asarray(rows, np.float32)


def _index(entry: dict[str, Any], otherwise: int) -> int:
    index = entry.get("index")
    return index if type(index) is int else otherwise


def _is_vector(row: Any) -> bool:
    return isinstance(row, list) and bool(row) and all(type(x) in (int, float) and math.isfinite(x) for x in row)
