"""Language while training, on the host: what a chunk missed goes to the labeller, what was answered into the table."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from llmrl.assembly.sources import rules_of
from llmrl.envs import GOALS, LANGUAGE
from llmrl.language import (
    Labeller,
    Provider,
    Table,
    empty,
    has_answered,
    make_provider,
    merge,
    open_labeller,
    probe,
    size,
)
from llmrl.rewards import Heard
from llmrl.settings.config import Config, LLMConfig
from llmrl.settings.errors import BadValue, CannotRun
from llmrl.training import hosts
from llmrl.types import Captioner, Environment, HostEnvironment

COUNTERS = ("requests", "answered", "failures", "unparseable", "cache_hits", "tokens", "cost", "pending")
"""What of the labeller's numbers becomes a metric, ``language_<name>``; all but the last only ever grow."""

Counts = dict[str, float]
"""Metric -> number."""

AT_ONCE = 2**17
"""Most states that are answered before training begins, by those who answer at once: more than seconds are too many."""

_log = logging.getLogger(__name__)


class Listener(NamedTuple):
    """A run's connection to its language model.

    Attributes:
        table: the answers at hand when the run begins; None where language is no source.
        exchange: ``(table, misses) -> (table, counts)``, between two chunks; never waits for an answer.
    """

    table: Table | None
    exchange: Callable[[Table | None, Mapping[int, int]], tuple[Table | None, Counts]]


@contextmanager
def listening(
    config: Config,
    env: Environment | HostEnvironment,
    known: Table | None = None,
    before: Mapping[str, float] | None = None,
) -> Iterator[Listener]:
    """Opens the labeller that a config describes, and closes it.

    A provider that answers at once is asked about all states before training begins, where the captioner can list
    them: the table then has a row for each. Where there are more than ``AT_ONCE``, and with every other provider, the
    states that are visited most are asked about first, until ``llm.capacity`` rows are full, and a warning says so.

    Args:
        config: the run's settings.
        env: its environment.
        known: the table of an interrupted run.
        before: what ``exchange`` counted last, before the interruption; it is counted on, and is part of the budget.

    Yields:
        The listener; one that says nothing where no source has words, or goals are suggested by rule.

    Raises:
        ValueError: a setting is wrong, or who answers at once knows none of the captioner's states.
        RuntimeError: as ``check_endpoint``, when nothing has been answered yet.
    """
    if not _asks(config, env):
        yield Listener(None, lambda table, misses: (table, {}))
        return
    captioner: Any = env.captioner  # whose callable fields pyright takes for methods
    before, name = before or {}, recorded_as(config, captioner)
    if known is None:
        check_endpoint(config.llm, captioner, name)
    labeller = open_labeller(_remaining(config.llm, before), captioner, name)

    tell_once = functools.cache(_tell_of_full_table)

    def exchange(table: Table | None, misses: Mapping[int, int]) -> tuple[Table | None, Counts]:
        assert table is not None
        # Whatever finds no room in the table would be paid for in vain.
        room = len(table.keys) - size(table)
        if len(misses) > room:
            tell_once(len(table.keys))
        labeller.ask(dict(sorted(misses.items(), key=lambda miss: -miss[1])[:room]))
        answers = labeller.collect()
        return merge(table, answers) if answers else table, _counts(labeller.stats(), before)

    try:
        table = known
        if table is None:
            provider = provider_of(config, env)
            at_once = provider is not None and provider.answer_now is not None
            keys = _answered_at_once(config.llm, captioner) if at_once else ()
            table = _empty(config.llm, captioner, len(keys))
            if len(keys):
                table = _all_at_once(config, keys, labeller, table)
        yield Listener(table, exchange)
    finally:
        labeller.close()


@contextmanager
def hearing(
    config: Config,
    env: Environment | HostEnvironment,
    known: Table | None = None,
    before: Mapping[str, float] | None = None,
) -> Iterator[Listener]:
    """``listening`` for a run that may have several processes: the first of them asks, all hear the answers."""
    if not (hosts.several() and _asks(config, env)):
        with listening(config, env, known, before) as listener:
            yield listener
        return
    captioner: Any = env.captioner
    with ExitStack() as opened:
        with hosts.together():
            listener = Listener(None, lambda table, misses: (table, {}))
            if hosts.first():
                listener = opened.enter_context(listening(config, env, known, before))
        # The table's size is the first's to know: who answers at once is asked there.
        own = np.int32(0 if listener.table is None else len(listener.table.keys))
        rows: Any = hosts.from_first(own, own)
        like = empty(int(rows), len(captioner.events))

        def exchange(table: Table | None, misses: Mapping[int, int]) -> tuple[Table | None, Counts]:
            with hosts.together():
                table, counts = listener.exchange(table, misses)
            return hosts.from_first(table, like), counts

        yield Listener(hosts.from_first(listener.table, like), exchange)


def _asks(config: Config, env: Environment | HostEnvironment) -> bool:
    """Whether a source has words that somebody has to be asked about; a rule that suggests goals has none."""
    by_rule = rules_of(config, env.captioner) is not None
    return LANGUAGE in config.aux.sources or (GOALS in config.aux.sources and not by_rule)


def provider_of(config: Config, env: Environment | HostEnvironment) -> Provider | None:
    """Who answers for a config's sources; None where no model is asked. Errors as for ``make_provider``."""
    if not _asks(config, env):
        return None
    captioner: Any = env.captioner
    return make_provider(config.llm, captioner, recorded_as(config, captioner))


def _all_at_once(config: Config, keys: Sequence[int], labeller: Labeller, table: Table) -> Table:
    labeller.ask(dict.fromkeys(keys, 1))
    answers = labeller.collect()
    if not answers:
        why = f": {labeller.problem()}" if labeller.problem() else ""
        where = config.env.id or config.env.name
        raise BadValue(
            f"llm.provider={config.llm.provider} has answered none of the {len(keys)} states of {where}{why}"
        )
    return merge(table, answers)


def check_endpoint(llm: LLMConfig, captioner: Any, name: str) -> None:
    """Asks an endpoint one question before a run depends on it, unless the cache shows that it has answered before.

    Args:
        llm: the settings.
        captioner: the environment's words, a ``Captioner``.
        name: as ``recorded_as`` gives it.

    Raises:
        RuntimeError: the endpoint cannot be asked, or its answers cannot be used; the message says what helps.
    """
    # What is wrong with the settings the probe says in better words.
    with suppress(ValueError, OSError):
        if llm.provider in ("openai", "local") and has_answered(llm, captioner, name):
            return
    found = probe(llm)
    if not found.ok:
        raise CannotRun(found.message)


def misses_of(heard: Heard | None) -> dict[int, int]:
    """State key -> visits without an answer, of all seeds together, [seeds, k] each."""
    if heard is None:
        return {}
    keys, counts = np.asarray(heard.missed).reshape(-1), np.asarray(heard.counts).reshape(-1)
    found, where = np.unique(keys[counts > 0], return_inverse=True)
    visits = np.bincount(where, weights=counts[counts > 0], minlength=len(found))
    return {int(key): int(count) for key, count in zip(found, visits, strict=True)}


def recorded_as(config: Config, captioner: Captioner) -> str:
    """The name under which answers about these captions are shipped, if they are."""
    return captioner.name or config.env.id or config.env.name


def _answered_at_once(llm: LLMConfig, captioner: Captioner) -> Sequence[int]:
    """The states to ask about before training begins, all of them or none."""
    keys = () if captioner.keys is None else captioner.keys()
    if len(keys) <= max(AT_ONCE, llm.capacity):
        return keys
    _log.warning(
        "%d states can be listed, more than %d: those that are visited are answered first, up to llm.capacity=%d",
        len(keys),
        max(AT_ONCE, llm.capacity),
        llm.capacity,
    )
    return ()


def _tell_of_full_table(rows: int) -> None:
    _log.warning("the table of answers is full: states that are met from now on stay neutral (llm.capacity=%d)", rows)


def _empty(llm: LLMConfig, captioner: Captioner, at_once: int = 0) -> Table:
    """No more rows than there are states: a shorter table is a faster search. As many as are answered ``at_once``."""
    rows = llm.capacity if captioner.keys is None else min(llm.capacity, len(captioner.keys()))
    return empty(max(rows, at_once), len(captioner.events))


def _counts(stats: Mapping[str, float], before: Mapping[str, float]) -> Counts:
    counts = {f"language_{name}": float(stats[name]) for name in COUNTERS}
    growing = counts.keys() - {"language_pending"}
    return {name: count + (before.get(name, 0.0) if name in growing else 0.0) for name, count in counts.items()}


def _remaining(llm: LLMConfig, before: Mapping[str, float]) -> LLMConfig:
    """The settings with what is left of their budgets."""
    left = {}
    for name in ("requests", "tokens", "cost"):
        budget, spent = getattr(llm, f"max_{name}"), before.get(f"language_{name}", 0.0)
        if budget is not None:
            left[f"max_{name}"] = type(budget)(max(budget - spent, 0))
    return replace(llm, **left)
