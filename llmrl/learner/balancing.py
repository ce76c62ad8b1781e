"""Choosing among learners while they learn: each is played as often as balances what playing it may have cost.

Learner i has been played n_i times, with returns of mean u_i in [0, 1], and is thought to lose at most d_i sqrt(n_i) to
the best return in all. Its potential d_i sqrt(n_i) is kept equal to the others' by playing the lowest; d_i is doubled
once the returns tell that it was too small:

    u_i + d_i / sqrt(n_i) + c b_i < max_j (u_j - c b_j),  b_i = sqrt(ln(K ln(n_i) / delta) / n_i)

Regret. Let d be the least coefficient with which some learner's regret stayed below d sqrt(n) at all its plays. With
probability 1 - delta, T plays of K learners lose at most O((d K + d^2 sqrt(K)) sqrt(T)) to the best return, up to
logarithms. Where returns do not change from play to play, the best learner's coefficient stays d_min, and the loss is
at most

    (K - 1) (d_min sqrt(T) + log2(sqrt(T)) + 2) + 4 c sqrt(K T ln(K ln(T) / delta))

as long as the widths c b hold. Proof of the latter: when learner i was last played without a doubling, it was not told
apart from the best, so its gap is at most d_i / sqrt(n_i) + 2 c (b_i + b_best), and before that play its potential was
not above the best's, d_min sqrt(T) at most. Every later play doubles its potential, so there are at most
log2(sqrt(T)) + 1.

References: Pacchiano, Dann and Gentile 2023, "Data-driven online model selection with regret guarantees", D3RB;
Zhang et al. 2024, "ORSO: accelerating reward design via online reward selection and policy optimization".
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from llmrl.types import Scalar


class BalancingRule(NamedTuple):
    """When a coefficient was too small.

    Attributes:
        confidence: c, factor on the confidence width.
        delta: probability with which the widths may fail.
    """

    confidence: float | Scalar
    delta: float | Scalar


class Balance(NamedTuple):
    """What each learner has been played for.

    Attributes:
        coefficient: d, [k].
        plays: n, [k].
        total: sum of the returns of its plays, [k].
        last: return of its last play, [k].
        lowest: lowest return of any play, []; infinite before the first.
        highest: highest return of any play, []; -infinite before the first.
    """

    coefficient: Float[Array, " k"]
    plays: Float[Array, " k"]
    total: Float[Array, " k"]
    last: Float[Array, " k"]
    lowest: Scalar
    highest: Scalar

    @property
    def known(self) -> Bool[Array, " k"]:
        """Whether it has been played."""
        return self.plays > 0

    @property
    def mean(self) -> Float[Array, " k"]:
        """Mean return of its plays, in the task's units; 0 where it has not been played."""
        return self.total / jnp.maximum(self.plays, 1.0)

    @property
    def scaled(self) -> Float[Array, " k"]:
        """u: the same from 0 to 1, on the range of what has been returned so far; 0 where all was the same."""
        size = self.highest - self.lowest
        found = self.known & (size > 0)
        return jnp.where(found, (self.mean - self.lowest) / jnp.where(found, size, 1.0), 0.0)

    @property
    def leader(self) -> Int[Array, ""]:
        """The learner that is handed over: the one whose last play returned most, as it is that learner today."""
        return jnp.argmax(jnp.where(self.known, self.last, -jnp.inf))


def first_balance(num_learners: int, coefficient: float | Scalar) -> Balance:
    """Nothing has been played; every coefficient is d_min."""
    nothing = jnp.zeros(num_learners)
    least = jnp.full(num_learners, coefficient, jnp.float32)
    return Balance(least, nothing, nothing, nothing, jnp.asarray(jnp.inf), jnp.asarray(-jnp.inf))


def confidence_width(plays: Float[Array, " k"], delta: float | Scalar) -> Float[Array, " k"]:
    """b, with ln(n) at least 1; infinite without a play."""
    doubt = jnp.log(plays.size * jnp.maximum(jnp.log(jnp.maximum(plays, 1.0)), 1.0) / delta)
    return jnp.sqrt(jnp.where(plays > 0, doubt / jnp.maximum(plays, 1.0), jnp.inf))


def noted(state: Balance, learner: Int[Array, ""], returned: Scalar, rule: BalancingRule) -> Balance:
    """The balance after a play: its return among the learner's, and its coefficient doubled where that was too small.

    Args:
        state: before it.
        learner: who was played.
        returned: mean task return of the play's episodes.
        rule: the rule.
    """
    after = state._replace(
        plays=state.plays.at[learner].add(1.0),
        total=state.total.at[learner].add(returned),
        last=state.last.at[learner].set(returned),
        lowest=jnp.minimum(state.lowest, returned),
        highest=jnp.maximum(state.highest, returned),
    )
    width = rule.confidence * confidence_width(after.plays, rule.delta)
    surely = jnp.max(jnp.where(after.known, after.scaled - width, -jnp.inf))
    allowed = after.coefficient / jnp.sqrt(jnp.maximum(after.plays, 1.0))
    too_small = (after.scaled + allowed + width)[learner] < surely
    return after._replace(coefficient=after.coefficient.at[learner].multiply(jnp.where(too_small, 2.0, 1.0)))


def next_learner(key: PRNGKeyArray, state: Balance) -> Int[Array, ""]:
    """Who is played next: the lowest potential, ties at random."""
    potential = state.coefficient * jnp.sqrt(state.plays)
    drawn = jax.random.uniform(key, potential.shape)
    return jnp.argmax(jnp.where(potential <= jnp.min(potential), drawn, -1.0))
