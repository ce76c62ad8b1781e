"""Auxiliary rewards that are known only once a rollout is complete: a language model's scores, goals, what is new.

Answers are a table. They are looked up for all steps at once, and states without one are counted, so that the host can
ask about the most frequent.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, UInt32

from llmrl.language import Table
from llmrl.types import Rollout, Scalar

NO_KEY = np.uint32(0xFFFFFFFF)
"""Fills the rows without an answer. It is the largest key, so that it is sorted last, and no state has it."""

Suggested: TypeAlias = Callable[[Array, Array], tuple[Array, Array]]
"""``(state keys, events) -> (similarity of each event to a goal suggested there, whether anything is known there)``."""

MISSES = 256
"""Different states reported as not yet answered, between two visits of the host; a model answers fewer in that time."""

MEMORY = 0.99
"""What the running mean of the scores keeps per rollout."""


# --- all sources ------------------------------------------------------------------------------------------------------


class Late(NamedTuple):
    """An auxiliary source whose values depend on the whole rollout and on all before it, as pure functions.

    Attributes:
        init: ``key -> memory``.
        score: ``(memory, rollout, words, asked=None) -> (values [t, n], memory, {metric: scalar})``, for every rollout
            once and in order; ``words`` is what a language model has said, in whatever form the source takes it. Where
            ``asked`` is given, the values are those of its steps, each in place of the rollout's own and after the
            rollout's past.
        restarted: ``memory -> memory`` for fresh episodes: what was learned stays, what belongs to the running episodes
            begins anew, in as many environments as the source was made for.
    """

    init: Callable[[PRNGKeyArray], PyTree]
    score: Callable[..., tuple[Float[Array, "t n"], PyTree, dict[str, Scalar]]]
    restarted: Callable[[PyTree], PyTree]


class LateSource(NamedTuple):
    """A source that is filled in once a rollout is complete.

    Attributes:
        name: the source's.
        column: its place among the auxiliary sources.
        factor: on its values.
        source: its functions.
    """

    name: str
    column: int
    factor: float | Scalar
    source: Late


class SourceMemory(NamedTuple):
    """What the sources that are filled in after a rollout remember.

    Attributes:
        heard: what the language source has noted; None where there is none.
        late: memories of the other sources.
    """

    heard: Heard | None
    late: tuple[PyTree, ...]


class Sources(NamedTuple):
    """The sources that are filled in once a rollout is complete.

    Attributes:
        language: a language model's scores, or a part that only counts states without an answer; None where no model is
            asked.
        late: the others.
        num_events: what a step can do, in a captioner's words; 0 without one.
        suggested: who suggests goals by rule; None where a table of answers does.
    """

    language: Language | None
    late: tuple[LateSource, ...] = ()
    num_events: int = 0
    suggested: Suggested | None = None

    def init(self, key: PRNGKeyArray) -> SourceMemory:
        """Memories of sources that have heard and seen nothing yet."""
        keys = jax.random.split(key, len(self.late))
        late = tuple(each.source.init(k) for each, k in zip(self.late, keys, strict=True))
        return SourceMemory(self.language.init() if self.language is not None else None, late)

    def answers(self, table: Table | None) -> Table:
        """The answers at hand; without a table a single row, whose key no state has."""
        if table is None:
            return Table(jnp.full(1, NO_KEY), jnp.zeros((1, self.num_events)))
        return Table(*map(jnp.asarray, table))

    def suggestions(self, table: Table | None) -> Suggested:
        """Who suggests goals."""
        return self.suggested or partial(lookup, *self.answers(table))

    def annotate(
        self, memory: SourceMemory, rollout: Rollout, table: Table | None, asked: Rollout | None = None
    ) -> tuple[Rollout, SourceMemory, dict[str, Scalar]]:
        """Fill in the auxiliary rewards that are known only once a rollout is complete.

        Args:
            memory: of the sources, before the rollout.
            rollout: what happened.
            table: a language model's answers.
            asked: steps to fill in, each in place of the rollout's own; None fills in the rollout.

        Returns:
            The rollout, or ``asked``, filled in; the sources' memory after it; metrics.
        """
        filled, heard, metrics = rollout if asked is None else asked, memory.heard, {}
        if self.language is not None and heard is not None:
            filled, heard, metrics = self.language.fill(heard, filled, *self.answers(table))
        happened, asked = (filled, None) if asked is None else (rollout, filled)
        suggested, late = self.suggestions(table), []
        for each, before in zip(self.late, memory.late, strict=True):
            values, after, reported = each.source.score(before, happened, suggested, asked)
            aux = filled.steps.aux.at[..., each.column].set(each.factor * values)
            filled = filled._replace(steps=filled.steps._replace(aux=aux))
            # A source may be made of another one's values.
            happened, asked = (filled, None) if asked is None else (happened, filled)
            late.append(after)
            metrics = metrics | reported
        return filled, SourceMemory(heard, tuple(late)), metrics

    def restarted(self, memory: SourceMemory) -> SourceMemory:
        """Memory for fresh episodes: what was learned stays."""
        late = (each.source.restarted(before) for each, before in zip(self.late, memory.late, strict=True))
        return memory._replace(late=tuple(late))

    def attentive(self, heard: Heard | None) -> Heard | None:
        """What the language source has noted, once the host has taken note of what was missed."""
        return heard if self.language is None or heard is None else self.language.forget(heard)


# --- a language model's scores ----------------------------------------------------------------------------------------


class Heard(NamedTuple):
    """What the source has noted.

    Attributes:
        missed: keys of the states that had no answer, most frequent first, [k].
        counts: how often each was visited since the host last asked, [k].
        total: sum of the scores of the visited steps, fading, [].
        weight: number of those steps, fading alike, [].
    """

    missed: UInt32[Array, " k"]
    counts: Int[Array, " k"]
    total: Scalar
    weight: Scalar


class Language(NamedTuple):
    """The source as pure functions.

    Attributes:
        init: ``() -> Heard``.
        forget: ``Heard -> Heard`` without misses, for when the host has taken note of them.
        fill: ``(heard, rollout, keys, scores) -> (rollout, heard, {metric: scalar})``; table as in ``lookup``.
    """

    init: Callable[[], Heard]
    forget: Callable[[Heard], Heard]
    fill: Callable[..., tuple[Rollout, Heard, dict[str, Scalar]]]


def language(column: int | None, factor: float | Scalar = 1.0, center: Any = 0.5, size: int = MISSES) -> Language:
    """r_m = factor (score(state, event) - center), and 0 where there is no answer yet.

    In [0, 1] every score, right or wrong, is also a bonus for staying alive, which hides both its help and its harm;
    hence the centre.

    Args:
        column: the source's place among the auxiliary sources; None only notes what has no answer, for sources that
            make something else of the answers.
        factor: of the source.
        center: what counts as neutral: a number, or "mean" for the running mean of the scores met so far.
        size: how many different states to report as missing.

    Returns:
        The source. Its metrics: ``language_coverage``, the share of the visited steps that had an answer, and
        ``language_score``, the mean of those answers as they were given (NaN where there was none).
    """

    def init() -> Heard:
        nothing = jnp.zeros(size, jnp.int32)
        return Heard(jnp.full(size, NO_KEY), nothing, jnp.zeros(()), jnp.zeros(()))

    def forget(heard: Heard) -> Heard:
        return heard._replace(missed=jnp.full_like(heard.missed, NO_KEY), counts=jnp.zeros_like(heard.counts))

    def fill(
        heard: Heard, rollout: Rollout, keys: UInt32[Array, " r"], scores: Float[Array, "r e"]
    ) -> tuple[Rollout, Heard, dict[str, Scalar]]:
        steps = rollout.steps
        score, known = lookup(keys, scores, steps.state_key, steps.event)
        met, answered = jnp.sum(score), jnp.sum(known.astype(jnp.float32))
        heard = Heard(
            *_missing(heard, jnp.where(known, NO_KEY, steps.state_key).reshape(-1)),
            total=MEMORY * heard.total + met,
            weight=MEMORY * heard.weight + answered,
        )
        neutral = heard.total / jnp.maximum(heard.weight, 1.0) if center == "mean" else center
        reward = jnp.where(known, factor * (score - neutral), 0.0)
        aux = steps.aux if column is None else steps.aux.at[..., column].set(reward)
        metrics = {
            "language_coverage": jnp.mean(known.astype(jnp.float32)),
            "language_score": jnp.where(answered > 0, met / jnp.maximum(answered, 1.0), jnp.nan),
        }
        return rollout._replace(steps=steps._replace(aux=aux)), heard, metrics

    return Language(init, forget, fill)


def _missing(heard: Heard, missed: UInt32[Array, " b"]) -> tuple[UInt32[Array, " k"], Int[Array, " k"]]:
    """The misses so far and those of another rollout."""
    return _noted(heard.missed, heard.counts, missed)


@jax.custom_batching.custom_vmap
def _noted(keys, counts, missed):
    return _if_any(_tallied, keys, counts, missed)


@_noted.def_vmap
def _noted_of_many(axis_size, batched, *operands):
    """Counting costs more than looking up. A branch for each seed would be none; one for all of them is."""
    operands = [x if b else jnp.broadcast_to(x, (axis_size, *x.shape)) for x, b in zip(operands, batched, strict=True)]
    return _if_any(jax.vmap(_tallied), *operands), (True, True)


def _if_any(note, keys, counts, missed):
    return jax.lax.cond(
        jnp.any(missed != NO_KEY), note, lambda keys, counts, missed: (keys, counts), keys, counts, missed
    )


def _tallied(keys, counts, missed):
    return tally(
        jnp.concatenate([keys, missed]),
        jnp.concatenate([counts, jnp.ones(missed.shape, jnp.int32)]),
        keys.shape[0],
    )


# --- tables -----------------------------------------------------------------------------------------------------------


def lookup(
    keys: UInt32[Array, " r"],
    values: Float[Array, "r e"],
    asked: UInt32[Array, "*batch"],
    columns: Int[Array, "*batch"],
) -> tuple[Float[Array, "*batch"], Bool[Array, "*batch"]]:
    """Values of a table by key and column; one binary search per question.

    Args:
        keys: ascending, filled up with ``NO_KEY``, [r].
        values: a row for each key, [r, e].
        asked: keys to look for, [...].
        columns: which value of the row, [...].

    Returns:
        The values, 0 where the key or the column does not exist; and whether the key does; [...] each.
    """
    row = jnp.minimum(jnp.searchsorted(keys, asked), keys.shape[0] - 1)
    known = (keys[row] == asked) & (asked != NO_KEY)
    listed = (columns >= 0) & (columns < values.shape[1])
    return jnp.where(known & listed, values[row, jnp.where(listed, columns, 0)], 0.0), known


def tally(
    keys: UInt32[Array, " b"], counts: Int[Array, " b"], size: int
) -> tuple[UInt32[Array, " size"], Int[Array, " size"]]:
    """Adds up the counts of equal keys and keeps the keys with the highest, in descending order.

    Nothing is lost while there are at most ``size`` different keys. Beyond that the rarest are forgotten, and what is
    tallied once more later on begins at 0 for them.

    Args:
        keys: in any order, equal ones anywhere, [b]; ``NO_KEY`` does not count.
        counts: how often each, [b].
        size: how many keys to keep, at most b.

    Returns:
        Keys and counts, [size] each, filled up with ``NO_KEY`` and 0.
    """
    keys, counts = jax.lax.sort((keys, jnp.where(keys == NO_KEY, 0, counts)), num_keys=1)
    differs = keys[1:] != keys[:-1]
    first, last = jnp.concatenate([jnp.ones(1, bool), differs]), jnp.concatenate([differs, jnp.ones(1, bool)])
    so_far = jnp.cumsum(counts)
    before_run = jax.lax.cummax(jnp.where(first, so_far - counts, 0))
    # A run's sum stands at its end alone, so that every key is kept once.
    sums, places = jax.lax.top_k(jnp.where(last, so_far - before_run, 0), size)
    return jnp.where(sums > 0, keys[places], NO_KEY), sums
