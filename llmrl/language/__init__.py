"""From words to scores, on the host: prompts, providers, scoring, cache, labelling. Nothing here knows jax.

labeller = open_labeller(config.llm, captioner, environment="cartpole")
labeller.ask({key: count})                    # returns at once
table = merge(table, labeller.collect())      # between two compiled chunks
labeller.close()
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from llmrl.language.asking import Manners
from llmrl.language.batches import fill_from, requests
from llmrl.language.cache import Cache, open_cache
from llmrl.language.labeller import Labeller, fill, make_labeller
from llmrl.language.probe import Probe, probe
from llmrl.language.providers import make_provider, noisy, oracle, recorded
from llmrl.language.question import Captioner, Provider
from llmrl.language.spending import Budget
from llmrl.language.table import Table, build, empty, load, merge, save, size
from llmrl.settings.config import LLMConfig
from llmrl.settings.errors import BadValue

__all__ = [
    "Budget",
    "Cache",
    "Labeller",
    "Manners",
    "Probe",
    "Provider",
    "Table",
    "build",
    "empty",
    "fill",
    "fill_table",
    "fill_table_from",
    "has_answered",
    "load",
    "make_labeller",
    "make_provider",
    "merge",
    "noisy",
    "open_cache",
    "open_labeller",
    "oracle",
    "probe",
    "questions_for",
    "recorded",
    "save",
    "size",
]


def open_labeller(config: LLMConfig, captioner: Captioner, environment: str | None = None) -> Labeller:
    """The labeller that a config describes; it owns its cache.

    Args:
        config: the settings.
        captioner: the environment's words.
        environment: its name, for ``recorded`` without a file.

    Raises:
        ValueError: a setting is wrong, or an API key is missing.
        OSError: the cache cannot be opened.
    """
    stack = ExitStack()
    provider, cache = stack.enter_context(_opened(config, captioner, environment))
    labeller = make_labeller(provider, captioner, cache, **_asking(config))
    stack.callback(labeller.close)
    return labeller._replace(close=stack.close)


def fill_table(
    config: LLMConfig,
    captioner: Captioner,
    keys: Iterable[int],
    limit: int | None = None,
    environment: str | None = None,
    progress: Callable[[dict[str, float]], None] | None = None,
) -> Table:
    """The table that a config describes, filled: blocks until all is answered; see ``fill``."""
    with _opened(config, captioner, environment) as (provider, cache):
        options = _asking(config, max_trips=3)
        return fill(captioner, provider, cache, keys, limit, capacity=config.capacity, progress=progress, **options)


def questions_for(
    config: LLMConfig, captioner: Captioner, keys: Sequence[int], environment: str | None = None
) -> list[dict[str, Any]]:
    """The lines of a batch about some states, without what the cache knows; see ``requests`` in ``batches.py``."""
    with _opened(config, captioner, environment) as (provider, cache):
        return requests(provider, captioner, _needed(cache), keys)


def fill_table_from(
    path: str | Path, config: LLMConfig, captioner: Captioner, keys: Sequence[int], environment: str | None = None
) -> tuple[Table, str]:
    """The table and the cache that a config describes, filled from a batch's results, and how that went; see
    ``fill_from``."""
    with _opened(config, captioner, environment) as (provider, cache):
        return fill_from(Path(path), captioner, provider, _needed(cache), keys, config.neutral)


def _needed(cache: Cache | None) -> Cache:
    if cache is None:
        raise BadValue("this llm=... answers at once: batches are for an endpoint's model, as llm=openai or llm=vllm")
    return cache


def has_answered(config: LLMConfig, captioner: Captioner, environment: str | None = None) -> bool:
    """Whether the cache holds an answer from where a config leads; arguments as for ``open_labeller``."""
    with _opened(config, captioner, environment) as (provider, cache):
        return cache is not None and cache.knows(provider)


@contextmanager
def _opened(
    config: LLMConfig, captioner: Captioner, environment: str | None
) -> Iterator[tuple[Provider, Cache | None]]:
    """The provider, and the cache as long as it is needed; None for a provider that answers at once and needs none."""
    provider = make_provider(config, captioner, environment)
    cache = None if provider.answer is None else open_cache(config.cache)
    try:
        yield provider, cache
    finally:
        if cache is not None:
            cache.close()


def _asking(config: LLMConfig, max_trips: int | None = None) -> dict[str, Any]:
    """What may be spent, and how a config wants an endpoint to be treated."""
    return {
        "budget": Budget(config.max_requests, config.max_tokens, config.max_cost, config.max_seconds),
        "manners": Manners(
            deadline=config.deadline,
            retries=config.retries,
            requests_per_minute=config.requests_per_minute,
            max_trips=max_trips,
        ),
        "concurrency": config.concurrency,
        "neutral": config.neutral,
    }
