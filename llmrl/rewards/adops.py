"""Bonuses that may not change which actions the task prefers: the critics say where one would, and it is cut there."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from llmrl.rewards.add import add
from llmrl.rewards.base import beyond_task
from llmrl.types import HeadValues, RewardTransform, Scalar, Signal


def adops(*, epsilon: float | Scalar, ramp: float | Scalar) -> RewardTransform:
    """F + zeta F_2, with F = sum_m r_m and ``correction``'s F_2: what the sources pay, cut by the critics.

    A stream of its own: its head V_I values what is paid, the task's head V_E the task. zeta = 1 is ADOPS.
    zeta = min(1, k / ramp) in rollout k = 1, 2, ... is ADOPES: while the critics know little, little is cut.

    Args:
        epsilon: how far an action that the task thinks worse than average stays below average.
        ramp: rollouts over which zeta rises; from 1 downwards it is 1 at once.

    Reference: Forbes et al. 2025, "Action-dependent optimality-preserving reward shaping", section 5.
    """
    bonus = beyond_task(add())

    def corrected(phi, state: Scalar, signal: Signal, task: Signal, values: HeadValues) -> Signal:
        share = jnp.minimum(1.0, state / jnp.maximum(ramp, 1.0))
        return signal._replace(reward=signal.reward + share * correction(signal, task, values, epsilon))

    return RewardTransform(
        init=lambda key: ({}, jnp.zeros(())),
        apply=lambda phi, state, rollout, signal: bonus.apply({}, (), rollout, signal),
        observe=lambda phi, state, rollout, signal: state + 1.0,
        report=lambda phi, state, rollout: {},
        corrected=corrected,
    )


def correction(bonus: Signal, task: Signal, values: HeadValues, epsilon: float | Scalar) -> Float[Array, "t n"]:
    """F_2, the least change of a bonus F after which it turns no judgement of the task around.

        A_E   = r_E + gamma V_E(s') - V_E(s)
        Omega = -A_E + V_I(s) - gamma V_I(s') - F
        F_2   = min(0, Omega - epsilon)  where A_E < 0,   max(0, Omega)  elsewhere

    So A_E + A_I, with A_I = F + F_2 + gamma V_I(s') - V_I(s), is below 0 where A_E is, and not below 0 elsewhere: with
    exact values, the task's best policy stays the best where it is the only one. A_E here is the error of one step, so
    its sign is noise as long as the task's critic is.

    Args:
        bonus: F, and gamma (1 - terminated) of its return.
        task: r_E, and gamma (1 - terminated) of the task's.
        values: V_E and V_I.
        epsilon: above 0.

    Reference: Forbes et al. 2025, section 5 (the version with estimates under the present policy).
    """
    task_advantage = task.reward + task.discount * values.next_task - values.task
    omega = values.own - bonus.discount * values.next_own - bonus.reward - task_advantage
    return jnp.where(task_advantage < 0, jnp.minimum(0.0, omega - epsilon), jnp.maximum(0.0, omega))
