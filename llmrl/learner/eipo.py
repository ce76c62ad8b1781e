"""Extrinsic-intrinsic policy optimisation: follow a bonus only as far as the task does not suffer.

    max over pi_EI of J_E(pi_EI) + J_I(pi_EI),  so that  J_E(pi_EI) >= max over pi_E of J_E(pi_E)

with J_E the discounted return of the task and J_I of the bonus. Under the multiplier alpha, the Max stage improves
pi_EI on what pi_E does, and the Min stage pi_E on what pi_EI does:

    max over pi_EI, min over pi_E of J_E(pi_EI) + J_I(pi_EI) + alpha (J_E(pi_EI) - J_E(pi_E))

Reference: Chen, Hong, Pajarinen and Agrawal 2022, "Redeeming intrinsic rewards via constrained optimization".
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from llmrl.ops.losses import clipped_policy_loss
from llmrl.ops.returns import generalized_advantage
from llmrl.types import Scalar, Signal

TASK, BOTH = 0, 1
"""Numbers of pi_E, which acts in Max stages, and of pi_EI, which acts in Min stages."""


class AlphaRule(NamedTuple):
    """How the multiplier moves.

    Attributes:
        rate: beta.
        clip: largest difference of two policies that counts.
        largest: bound of |alpha|.
    """

    rate: float | Scalar
    clip: float | Scalar
    largest: float | Scalar


class EipoState(NamedTuple):
    """Where the two policies stand between two rollouts.

    Attributes:
        alpha: the multiplier, [].
        acting: number of the policy that acts, and so the stage, [].
        objective: mean U of the stage's last rollout, []; -infinity before its first.
    """

    alpha: Scalar
    acting: Int[Array, ""]
    objective: Scalar

    @property
    def leader(self) -> Int[Array, ""]:
        """The policy that is handed over: pi_EI, which the problem is solved for."""
        return jnp.full_like(self.acting, BOTH)


def first_stage(alpha: float | Scalar) -> EipoState:
    """The start, as in the authors' code: a Min stage."""
    return EipoState(jnp.asarray(alpha, jnp.float32), jnp.asarray(BOTH), jnp.asarray(-jnp.inf))


def relative_reward(
    alpha: Scalar,
    acting: Int[Array, ""],
    reward: Float[Array, "t n 2"],
    advantage: Float[Array, "t n 2"],
) -> Float[Array, "t n"]:
    """U, whose discounted sum under the policy that does not act is that policy's objective.

        Max   U+ = r_E + r_I + alpha A_E,              summed along pi_EI: (1 + alpha) J_E + J_I - alpha J_E(pi_E)
        Min   U- = (1 + alpha) A_E + A_I - r_E - r_I,  summed along pi_E: minus the same

    with the advantages A of the acting policy. By the performance difference lemma, J(pi) - J(mu) is the sum of A^mu
    along pi.

    Args:
        alpha: the multiplier.
        acting: number of the policy that acts.
        reward: r_E and r_I, [t, n, 2].
        advantage: A_E and A_I, [t, n, 2], in the rewards' units.
    """
    task, both = advantage[..., 0], jnp.sum(advantage, axis=-1)
    paid = jnp.sum(reward, axis=-1)
    return jnp.where(acting == TASK, paid + alpha * task, alpha * task + both - paid)


def relative_advantage(
    relative: Float[Array, "t n"],
    acting: Int[Array, ""],
    values: Float[Array, "t n 2"],
    next_values: Float[Array, "t n 2"],
    task: Signal,
    episode_end: Bool[Array, "t n"],
    gae_lambda: float | Scalar,
) -> Float[Array, "t n"]:
    """Advantage of U over the acting policy.

    Along that policy advantages are 0 on average, so U+ is worth V_E + V_I and U- the opposite: the heads that there
    are value U, too.

    Args:
        relative: U, [t, n].
        acting: number of the policy that acts.
        values: its V_E and V_I of the observations acted on, [t, n, 2].
        next_values: the same of the observations after the step, before any reset, [t, n, 2].
        task: the task's signal, for its discount.
        episode_end: terminated or truncated, [t, n].
        gae_lambda: lambda.
    """
    sign = jnp.where(acting == TASK, 1.0, -1.0)
    now, after = (sign * jnp.sum(x, axis=-1) for x in (values, next_values))
    return generalized_advantage(relative, task.discount, now, after, episode_end, gae_lambda)


def task_difference(
    log_prob: Float[Array, " b"], old_log_prob: Float[Array, " b"], advantage: Float[Array, " b"], clip: float | Scalar
) -> Scalar:
    """J_E(pi_EI) - J_E(pi_E) per step by PPO's clipped surrogate, on what pi_E did.

    A_E keeps its size: divided by its deviation it would say nothing about returns. Its mean is 0 in theory and taken
    off, so that equal policies do not differ.

    Args:
        log_prob: of the actions under pi_EI, [b].
        old_log_prob: under pi_E, which acted, [b].
        advantage: A_E of pi_E, [b].
        clip: range of the importance ratio.
    """
    return -clipped_policy_loss(log_prob, old_log_prob, advantage - jnp.mean(advantage), clip)


def next_stage(state: EipoState, objective: Scalar, difference: Scalar, rule: AlphaRule) -> EipoState:
    """The state after a rollout.

    A stage ends once its mean U no longer rises from a rollout to the next. At the end of a Max stage

        alpha <- alpha - beta clip(J_E(pi_EI) - J_E(pi_E), -c, c)

    so that the task counts more where pi_EI is worse at it than pi_E.

    Args:
        state: before it.
        objective: mean U of the rollout.
        difference: J_E(pi_EI) - J_E(pi_E); counts in Max stages.
        rule: how alpha moves.
    """
    ends = objective <= state.objective
    step = rule.rate * jnp.clip(difference, -rule.clip, rule.clip)
    moved = jnp.clip(state.alpha - step, -rule.largest, rule.largest)
    return EipoState(
        alpha=jnp.where(ends & (state.acting == TASK), moved, state.alpha),
        acting=jnp.where(ends, TASK + BOTH - state.acting, state.acting),
        objective=jnp.where(ends, -jnp.inf, objective),
    )
