"""Rewards that remember: a bonus depends on its step, on the rollout around it, and on all that was seen before.

A bonus is scored once, when its rollout is fresh. It may be paid as a stream of its own (``paid``); a column of
``Transition.aux`` filled with it after collection is a source like any other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from llmrl.ops.losses import held_constant
from llmrl.ops.moments import Moments, no_moments, observed
from llmrl.ops.returns import discounted_sum
from llmrl.rewards.sources import Late
from llmrl.settings.errors import BadValue
from llmrl.types import RewardTransform, Rollout, Scalar, Signal


class Bonus(NamedTuple):
    """A reward with a memory, as pure functions.

    Attributes:
        init: ``key -> memory``.
        score: ``(memory, rollout) -> (bonus [t, n], memory)``, for every rollout once and in order. What the memory
            learns of a rollout changes the next one's bonus, never its own.
        report: ``memory -> {metric: scalar}``.
    """

    init: Callable[[PRNGKeyArray], PyTree]
    score: Callable[[PyTree, Rollout], tuple[Float[Array, "t n"], PyTree]]
    report: Callable[[PyTree], dict[str, Scalar]]


def bonus_source(bonus: Bonus, name: str, num_envs: int) -> Late:
    """A bonus whose memory has a ``ReturnScale`` as an auxiliary source; the metric ``{name}_paid`` is its mean."""

    def score(memory: PyTree, rollout: Rollout, words: Any, asked: Rollout | None = None):
        scored, after = bonus.score(memory, rollout)
        values = scored if asked is None else bonus.score(memory, asked)[0]
        # The outer level does not learn the memory: to it, the reward is a number.
        return held_constant(values), after, {f"{name}_paid": jnp.mean(scored), **bonus.report(after)}

    def restarted(memory: PyTree) -> PyTree:
        return memory._replace(scale=memory.scale._replace(past=jnp.zeros(num_envs)))

    return Late(bonus.init, score, restarted)


class BonusState(NamedTuple):
    """A transform's state that holds the fresh rollout's bonus.

    Attributes:
        memory: the bonus's own.
        bonus: what the rollout observed last is paid, [t, n].
        age: rollouts observed.
    """

    memory: PyTree
    bonus: Float[Array, "t n"]
    age: Scalar


def paid(
    bonus: Bonus, pay: Callable[[Signal, Array, Scalar], Signal], num_steps: int, num_envs: int, name: str
) -> RewardTransform:
    """A bonus as a reward transform: ``observe`` scores the fresh rollout, ``apply`` pays what was scored.

    The memory moves on while it scores, so that a second score of the same rollout would be another one.

    Args:
        bonus: the bonus.
        pay: ``(signal, bonus [t, n], rollouts observed) -> signal``.
        num_steps: t.
        num_envs: n.
        name: the metric ``{name}_bonus`` is the mean of what was paid.

    Returns:
        A transform without phi. Its ``apply`` raises a ``ValueError`` for a rollout of another shape, which cannot be
        the one observed last.
    """

    def init(key):
        return {}, BonusState(bonus.init(key), jnp.zeros((num_steps, num_envs)), jnp.zeros(()))

    def observe(phi, state: BonusState, rollout, signal):
        scored, memory = bonus.score(state.memory, rollout)
        # Only ``observe`` writes the memory: to the outer level, the reward is a number.
        return BonusState(memory, held_constant(scored), state.age + 1.0)

    def apply(phi, state: BonusState, rollout, signal: Signal):
        if signal.reward.shape != state.bonus.shape:
            raise BadValue(
                f"this bonus was scored for a rollout of shape {state.bonus.shape}, got one of {signal.reward.shape}; "
                "a method that looks at parts of rollouts has to take it as an auxiliary source"
            )
        return pay(signal, state.bonus, state.age)

    def report(phi, state: BonusState, rollout):
        return {f"{name}_bonus": jnp.mean(state.bonus), **bonus.report(state.memory)}

    return RewardTransform(init, apply, observe, report)


def intrinsic_stream(
    bonus: Bonus, discount: float | Scalar, num_steps: int, num_envs: int, name: str
) -> RewardTransform:
    """A bonus as a non-episodic reward of its own, without the task's: what is new stays new after a death.

    The discount is not zeroed where an episode terminates; the return goes on with the next one
    (``learner.streams``).

    Reference: Burda et al. 2018, "Exploration by random network distillation", section 2.3.
    """

    def pay(signal: Signal, scored: Array, age: Scalar) -> Signal:
        return Signal(scored, jnp.zeros_like(signal.discount) + discount)

    return paid(bonus, pay, num_steps, num_envs, name)


# --- units ------------------------------------------------------------------------------------------------------------


class ReturnScale(NamedTuple):
    """Running deviation of a reward's discounted sum.

    Attributes:
        past: discounted sum of the rewards so far, episodes regardless, [n].
        moments: of that sum over all steps so far.
    """

    past: Float[Array, " n"]
    moments: Moments


def no_scale(num_envs: int) -> ReturnScale:
    """The scale of a reward never seen."""
    return ReturnScale(jnp.zeros(num_envs), no_moments())


def in_units_of_return(
    scale: ReturnScale, reward: Float[Array, "t n"], discount: float | Scalar
) -> tuple[Float[Array, "t n"], ReturnScale]:
    """A reward divided by the deviation of its own discounted sum, y_t = r_t + gamma y_{t-1}, this rollout included.

    Whatever units the reward comes in, the result is the same; its mean stays, since what is always paid is not what
    the deviation measures.

    Reference: Burda et al. 2018, section 2.4.
    """
    with_past = reward.at[0].add(discount * scale.past)
    sums = discounted_sum(with_past[::-1], jnp.zeros_like(reward) + discount)[::-1]
    moments = observed(scale.moments, sums.reshape(-1))
    return reward / jnp.maximum(jnp.sqrt(moments.variance), 1e-8), ReturnScale(sums[-1], moments)


# --- learning ---------------------------------------------------------------------------------------------------------


def one_pass(
    loss: Callable[[PyTree, PyTree], Scalar],
    params: PyTree,
    opt_state: PyTree,
    optimizer: optax.GradientTransformation,
    samples: PyTree,
    updates: int,
) -> tuple[PyTree, PyTree]:
    """Learn from a rollout, each sample once: step j from the time steps j, j + updates, j + 2 updates, ...

    Burda et al. show each sample in each of four epochs with probability 1/4: as often in the mean, and without a draw.

    Args:
        loss: ``(params, samples) -> scalar``.
        params: what learns.
        opt_state: the optimiser's.
        optimizer: the optimiser.
        samples: arrays [t, n, ...]; up to ``updates`` - 1 time steps at the end are left out.
        updates: number of steps, at most t of them.

    Returns:
        Parameters and the optimiser's state afterwards.
    """

    def interleaved(x):
        parts = min(updates, x.shape[0])
        kept = x[: x.shape[0] // parts * parts]
        return jnp.moveaxis(kept.reshape(-1, parts, *x.shape[1:]), 1, 0)

    def step(carry, part):
        params, opt_state = carry
        steps, opt_state = optimizer.update(jax.grad(loss)(params, part), opt_state, params)
        return (optax.apply_updates(params, steps), opt_state), None

    (params, opt_state), _ = jax.lax.scan(step, (params, opt_state), jax.tree.map(interleaved, samples))
    return params, opt_state
