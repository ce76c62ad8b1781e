"""Similarity of meaning: cosines of embeddings, from the endpoint or from a model on this machine."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from llmrl.language.providers.endpoint import Endpoint
from llmrl.language.question import Unanswered
from llmrl.language.scoring import Similarity, cosine
from llmrl.settings.errors import BadValue, install

_REMEMBERED = 10_000
"""Texts whose vectors are kept; events and goals come again and again."""


def endpoint_similarity(endpoint: Endpoint, model: str) -> Similarity:
    """Similarity by the endpoint's ``/embeddings``."""

    async def embed(texts: Sequence[str]) -> Float[np.ndarray, "n d"]:
        body = await endpoint.embeddings({"model": model, "input": list(texts), "encoding_format": "float"})
        return read_embeddings(body, len(texts))

    return _remembering(embed)


def local_similarity(model: str) -> Similarity:
    """Similarity by a sentence-transformers model on this machine.

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
