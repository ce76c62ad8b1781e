"""Labelling: states go in as keys, scores come out. Training never waits for it and never sees an exception."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from llmrl.language.asking import Manners
from llmrl.language.cache import Cache
from llmrl.language.desk import Desk
from llmrl.language.question import Captioner, Provider
from llmrl.language.spending import Budget, Ledger
from llmrl.language.table import Table, build
from llmrl.language.worker import Worker
from llmrl.settings.errors import CannotRun

COUNTERS = (
    "requests", "answered", "failures", "unparseable", "given_up", "cache_hits", "pauses", "tokens", "cost", "pending",
    "stopped",
)  # fmt: skip
"""What ``Labeller.stats`` always holds."""


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
    return _open(provider, captioner, cache, budget, manners, concurrency, neutral)[0]


def _open(
    provider: Provider,
    captioner: Captioner,
    cache: Cache | None,
    budget: Budget | None,
    manners: Manners | None,
    concurrency: int,
    neutral: float,
) -> tuple[Labeller, Desk]:
    desk = Desk(provider, captioner, cache, Ledger(budget or Budget()), neutral)
    worker = None if provider.answer is None else Worker(desk, manners or Manners(), concurrency)

    def ask(keys: Mapping[int, int]) -> None:
        try:
            desk.take(keys)
            if worker is not None and desk.has_work():
                worker.wake()
        except Exception as error:
            desk.bug(error)

    def collect() -> dict[int, np.ndarray]:
        return desk.hand_out()

    def stats() -> dict[str, float]:
        problems = cache.problems() if cache else 0
        return {**dict.fromkeys(COUNTERS, 0.0), **desk.counts(), "cache_problems": float(problems)}

    def close() -> None:
        if worker is not None:
            worker.close()

    return Labeller(ask, collect, stats, lambda: None if desk.stopped is None else str(desk.stopped), close), desk


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
    manners = manners or Manners(max_trips=3)
    labeller, desk = _open(provider, captioner, cache, budget, manners, concurrency, neutral)
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
