"""Advice for a task that hardly speaks: a source's word on what to do next, while the task has said too little."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from llmrl.ops.losses import held_constant
from llmrl.ops.moments import running_peak
from llmrl.trust.task_voice import spoken_to, words
from llmrl.types import RewardTransform, Rollout, Scalar, Signal, SourceWeights, Stream


class AdviceState(NamedTuple):
    """What has been heard so far; written only by ``observe``.

    Attributes:
        heard: how often the task has spoken.
        seen: steps seen.
        age: rollouts seen.
        sparse: 1 where the task hardly spoke at first, else 0.
        talk: share of a rollout's steps on which each source speaks, the largest so far, slowly forgotten, [m].
        voiced: share of episodes in which the task spoke, of late.
    """

    heard: Scalar
    seen: Scalar
    age: Scalar
    sparse: Scalar
    talk: Float[Array, " m"]
    voiced: Scalar


class Following(NamedTuple):
    """How far a source's word is followed: ``observe(state, rollout) -> state``, ``share(phi, state) -> f``, [m],
    ``needed(phi, state)``, from 0 to 1, how much of it the task still needs, [m], and ``flawless(phi)``, from 0 to 1,
    whether hardly anything but good followed its words, [m]."""

    observe: Callable[..., AdviceState]
    share: Callable[..., Float[Array, " m"]]
    needed: Callable[..., Float[Array, " m"]]
    flawless: Callable[..., Float[Array, " m"]]
    num_aux: int
    judged: bool

    def init(self) -> AdviceState:
        """Before the first rollout."""
        nothing = jnp.zeros(())
        return AdviceState(nothing, nothing, nothing, jnp.ones(()), jnp.zeros(self.num_aux), nothing)

    def evidence(self) -> dict[str, PyTree]:
        """What phi holds for it, for the outer level to write; see ``learner.confirmation.confirmed``."""
        return {group: jnp.zeros(self.num_aux) for group in ("advice", "balance")} if self.judged else {}


def following(
    num_aux: int,
    *,
    prior: float | Scalar = 1.0,
    patience: float | Scalar = 40960.0,
    decay: float | Scalar = 0.02,
    rarity: float | Scalar = 0.005,
    enough: float | Scalar = 8.0,
    fade: float | Scalar = 4.0,
    judged: bool = True,
) -> Following:
    """f, from 0 to ``prior``, for each source.

    In a sparse task nothing can be learned about a source before the first success, and without a source there may
    never be one. While the task is silent, exploring alone comes first, for ``patience`` steps; then f = prior (1 -
    decay)^k after k rollouts more, so that a misleading source is followed ever less. Once the task has spoken
    ``enough`` times, f = prior e, where e, from 0 to 1, is how far the task's words have borne out the source's. Its
    first words may be luck, and bear out nobody: up to then f is the larger of prior e and of what silence would give,
    less an ``enough``-th with every word. But where hardly anything but good has followed a source's words, e, which
    asks for many, need not be waited for, nor the end of exploring alone: after n words of the task f is at least n /
    (n + 1) of what it may be. A task that speaks on at least ``rarity`` of the steps in that time, or up to its
    ``enough``-th word, can judge learned weights, and is left to them: f = 0.

    Where the task speaks in an episode it judges what was done in it, and what a source says is seldom the shortest
    way. So (1 - s)^p of f is followed, s the share of episodes in which the task spoke of late, and p from ``fade``,
    for a source whose words brought as much bad as good, to 0, for one of whose words three in four brought good. On a
    sword in Crafter, with what a language model typically suggests, an agent that follows it to the end makes one in 44
    % of the episodes, and one that outgrows it in 80 %; with goals that are all right it is the other way round.

    Args:
        num_aux: number of sources, m.
        prior: largest f.
        patience: silent steps before a source is followed.
        decay: share of f lost per silent rollout from then on.
        rarity: share of steps on which a task may speak to count as sparse.
        enough: words of the task from which on it alone judges a source; above 0.
        fade: how fast a task that succeeds outgrows advice; 0 never.
        judged: whether the outer level writes e into phi; if not, e is 0.
    """

    def observe(state: AdviceState, rollout: Rollout) -> AdviceState:
        said = words(rollout)
        heard, age = state.heard + said, state.age + 1.0
        seen = state.seen + rollout.steps.reward.size
        # Whoever is followed makes the task speak more often, which would be no sign of a task that is not sparse.
        alone = (seen <= patience) & (state.heard < enough)
        sparse = jnp.where(alone, (heard < rarity * seen).astype(jnp.float32), state.sparse)
        speaking = jnp.mean((rollout.steps.aux != 0).astype(jnp.float32), axis=(0, 1))
        talk = running_peak(state.talk, speaking, TALK_DECAY)
        return AdviceState(heard, seen, age, sparse, talk, _voiced(state.voiced, rollout))

    def share(phi, state: AdviceState) -> Float[Array, " m"]:
        waited = state.age - patience * state.age / jnp.maximum(state.seen, 1.0)  # in rollouts
        silent = jnp.where(waited > 0, (1.0 - decay) ** jnp.maximum(waited, 0.0), 0.0)
        borne_out = held_constant(phi["evidence"]["advice"]) if judged else jnp.zeros(num_aux)
        borne_out = jnp.where(state.heard > 0, borne_out, 0.0)
        likely = state.heard / (state.heard + 1.0) * flawless(phi)
        undecided = jnp.maximum(0.0, 1.0 - state.heard / enough)
        return prior * state.sparse * reduce(jnp.maximum, [undecided * silent, borne_out, likely])

    def good(phi) -> Float[Array, " m"]:
        balance = held_constant(phi["evidence"]["balance"]) if judged else jnp.zeros(num_aux)
        return jnp.minimum(1.0, balance / WELL_BALANCED)

    def flawless(phi) -> Float[Array, " m"]:
        return jnp.maximum(0.0, (good(phi) - HARDLY_BAD) / (1.0 - HARDLY_BAD))

    def needed(phi, state: AdviceState) -> Float[Array, " m"]:
        silent = jnp.maximum(0.0, 1.0 - state.voiced)
        return silent ** (fade * (1.0 - good(phi)))

    return Following(observe, share, needed, flawless, num_aux, judged)


WELL_BALANCED = 0.5
"""Good less bad over both, from which on a source is not outgrown."""
HARDLY_BAD = 0.8
"""Share of that from which on a source counts as one whose words hardly anything but good follows, fully at 1."""
VOICE_MEMORY = 0.9
"""What of ``AdviceState.voiced`` is remembered after a rollout in which episodes ended."""


def _voiced(before: Scalar, rollout: Rollout) -> Scalar:
    ended = jnp.any(rollout.steps.terminated | rollout.steps.truncated)
    return jnp.where(ended, VOICE_MEMORY * before + (1.0 - VOICE_MEMORY) * spoken_to(rollout), before)


TALKATIVE, TALK_DECAY = 0.2, 0.99
"""Share of steps from which on a source is talkative, and what of the largest is remembered after a rollout."""
KEPT = 0.3
"""Of what comes after the word of one that is not, at least."""


def advice(followed: Following, source: int = 0, name: str = "") -> Stream:
    """A stream that pays f r_m, credited above all to the steps since the source's last word.

    What makes following dangerous is not the source's word on a step but the sum of its words: whatever pays each time
    can be collected for ever. So where a source speaks on more than a fifth of the steps, the stream's discount is 0
    wherever it speaks: a word counts for what led to it, and nothing can be collected. In a grid, an agent that is
    paid for every step towards the goal walks into the goal, where one that adds the same numbers up hovers before it.

    A source that speaks rarely, of what is reached once in an episode, leaves little to collect, and what it says first
    is often worth what it makes possible: wood the table, the table the sword. There the discount keeps a part: each
    word counts 0.3 for what led to the one before. Sums of all words are learned more slowly where a source names but
    steps on the way, no sums where it names the goal too; this lies between them in both. Where hardly anything but
    good followed a source's words, the discount keeps more, up to all.

    The policy follows it by steps of their own, f times as long as those on the task, which stay what they are: in one
    gradient the source, which says so much more, would leave the task's next to nothing, as an optimiser that divides
    by the gradient's size makes no longer steps of a longer one, and remembers that size after the source is given up.
    As long as the task has said nothing, though, its own steps are noise of full size, and 1 - f times as long. On a
    15 x 15 grid 12 of 30 seeds found the goal with noise of full size, and all do without.

    Args:
        followed: decides f.
        source: m.
        name: of the source, for reports.

    Returns:
        A stream whose transform's phi holds e as ``evidence``.
    """

    def share(phi, state: AdviceState) -> Scalar:
        return (followed.needed(phi, state) * followed.share(phi, state))[source]

    def kept(phi, state: AdviceState) -> Scalar:
        """Of what comes after the source's word."""
        quiet = jnp.maximum(KEPT, followed.flawless(phi)[source])
        return jnp.where(state.talk[source] > TALKATIVE, 0.0, quiet)

    def apply(signal: Signal, phi, state: AdviceState, rollout: Rollout) -> Signal:
        word = rollout.steps.aux[..., source]
        return Signal(share(phi, state) * word, jnp.where(word != 0, kept(phi, state), 1.0) * signal.discount)

    def weights(phi, state: AdviceState, rollout: Rollout) -> SourceWeights:
        alone = jnp.zeros(followed.num_aux).at[source].set(1.0)
        return SourceWeights(jnp.broadcast_to(share(phi, state) * alone, rollout.steps.aux.shape), alone)

    transform = RewardTransform(
        init=lambda key: ({"evidence": followed.evidence()} if followed.judged else {}, followed.init()),
        apply=apply,
        observe=lambda state, phi, signal, rollout: followed.observe(state, rollout),
        report=lambda phi, state, rollout: {f"advice_share/{name}": share(phi, state)},
        weights=weights,
    )

    def beside(phi, state: AdviceState) -> tuple[Scalar, Scalar]:
        length = share(phi, state)
        return length, jnp.where(state.heard > 0, 0.0, length)

    return Stream(transform, 1.0, beside)
