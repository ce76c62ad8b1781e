"""Advice for a task that hardly speaks: a source's word on what to do next, while the task has said too little."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from llmrl.ops.losses import held_constant
from llmrl.rewards.base import words
from llmrl.types import RewardTransform, Rollout, Scalar, Signal


class AdviceState(NamedTuple):
    """What has been heard so far; written only by ``observe``.

    Attributes:
        heard: how often the task has spoken.
        seen: steps seen.
        age: rollouts seen.
        sparse: 1 where the task hardly spoke at first, else 0.
    """

    heard: Scalar
    seen: Scalar
    age: Scalar
    sparse: Scalar


class Following(NamedTuple):
    """How far a source's word is followed: ``observe(state, rollout) -> state``, ``share(phi, state) -> f``, [m]."""

    observe: Callable[..., AdviceState]
    share: Callable[..., Float[Array, " m"]]
    num_aux: int
    judged: bool

    def init(self) -> AdviceState:
        """Before the first rollout."""
        return AdviceState(jnp.zeros(()), jnp.zeros(()), jnp.zeros(()), jnp.ones(()))

    def evidence(self) -> dict[str, PyTree]:
        """What phi holds for it, for the outer level to write; see ``learner.confirmation.confirmed``."""
        return {"advice": jnp.zeros(self.num_aux)} if self.judged else {}


def following(
    num_aux: int,
    *,
    prior: float | Scalar = 1.0,
    patience: float | Scalar = 10.0,
    decay: float | Scalar = 0.02,
    rarity: float | Scalar = 0.005,
    judged: bool = True,
) -> Following:
    """f, from 0 to ``prior``, for each source.

    In a sparse task nothing can be learned about a source before the first success, and without a source there may
    never be one. While the task is silent, exploring alone comes first, for ``patience`` rollouts; then f = prior (1 -
    decay)^(age - patience), so that a misleading source is followed ever less. From the task's first word on, f = prior
    e, where e, from 0 to 1, is how far the task's words have borne out the source's. A task that speaks on at least
    ``rarity`` of the steps in that time can judge learned weights, and is left to them: f = 0.

    Args:
        num_aux: number of sources, m.
        prior: largest f.
        patience: silent rollouts before a source is followed.
        decay: share of f lost per silent rollout from then on.
        rarity: share of steps on which a task may speak to count as sparse.
        judged: whether the outer level writes e into phi; if not, the task's first word ends the advice.
    """

    def observe(state: AdviceState, rollout: Rollout) -> AdviceState:
        heard, age = state.heard + words(rollout), state.age + 1.0
        seen = state.seen + rollout.steps.reward.size
        sparse = jnp.where(age <= patience, (heard < rarity * seen).astype(jnp.float32), state.sparse)
        return AdviceState(heard, seen, age, sparse)

    def share(phi, state: AdviceState) -> Float[Array, " m"]:
        waited = state.age - patience
        silent = jnp.where(waited > 0, (1.0 - decay) ** jnp.maximum(waited, 0.0), 0.0)
        borne_out = held_constant(phi["evidence"]["advice"]) if judged else jnp.zeros(num_aux)
        return prior * jnp.where(state.heard > 0, borne_out * state.sparse, silent)

    return Following(observe, share, num_aux, judged)


def advice(followed: Following, source: int = 0, name: str = "") -> RewardTransform:
    """r = f r_m, credited to the steps since the source's last word.

    What makes following dangerous is not the source's word on a step but the sum of its words: whatever pays each time
    can be collected for ever. So the stream's discount is 0 wherever the source speaks: a word counts for what led to
    it, and nothing can be collected. In a grid, an agent that is paid for every step towards the goal walks into the
    goal, where one that adds the same numbers up hovers before it.

    Args:
        followed: decides f.
        source: m.
        name: of the source, for reports.

    Returns:
        A transform whose phi holds e as ``evidence``.
    """

    def share(phi, state: AdviceState) -> Scalar:
        return followed.share(phi, state)[source]

    def apply(signal: Signal, phi, state: AdviceState, rollout: Rollout) -> Signal:
        word = rollout.steps.aux[..., source]
        return Signal(share(phi, state) * word, jnp.where(word != 0, 0.0, signal.discount))

    return RewardTransform(
        init=lambda key: ({"evidence": followed.evidence()} if followed.judged else {}, followed.init()),
        apply=apply,
        observe=lambda state, phi, signal, rollout: followed.observe(state, rollout),
        report=lambda phi, state, rollout: {f"trust_prior/{name}": share(phi, state)},
    )
