"""The inner level's problem: its data, its advantages, and the policy's loss as a function of theta and phi."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree, Shaped

from llmrl.bilevel.types import Scores
from llmrl.learner.streams import (
    Values,
    are_scaled,
    blended,
    deviations,
    scaling,
    signals,
    stream_advantage,
    stream_advantages,
    value_rollout,
)
from llmrl.nets import Critic, Policy
from llmrl.ops.losses import held_constant
from llmrl.ops.surrogates import Surrogate
from llmrl.rewards.task import task_signal
from llmrl.trust.blend import significance_in
from llmrl.trust.evidence import Significance
from llmrl.types import Rollout, Scalar, Stream, View


class InnerProblem(NamedTuple):
    """What defines L_aux: everything but theta, phi and data.

    Attributes:
        streams: the reward streams; stream 0 is the bare task.
        policy: the policy whose parameters are theta.
        critic: the critic.
        discount: gamma of the task.
        gae_lambda: lambda.
        entropy: c_H.
        view: what the policy sees in place of the observation; None where that is the observation itself.
    """

    streams: Sequence[Stream]
    policy: Policy
    critic: Critic
    discount: float | Scalar
    gae_lambda: float | Scalar
    entropy: float | Scalar
    view: View | None = None


def viewing(policy: Policy, view: View | None, phis: Sequence[PyTree]) -> Policy:
    """The policy as a function of the environment's own observations, at given parameters of the streams."""
    if view is None:
        return policy
    scores, in_updates = policy.scores, policy.in_updates
    return Policy(
        policy.init,
        lambda theta, obs: policy.distribution(theta, view.of(phis, obs)),
        scores and (lambda theta, obs, action: scores(theta, view.of(phis, obs), action)),
        policy.jacobian,
        in_updates and (lambda theta, obs: in_updates(theta, view.of(phis, obs))),
    )


class RolloutData(NamedTuple):
    """A rollout with its values and advantages.

    Attributes:
        rollout: the rollout.
        values: the critic's values.
        advantage: of the bare task, [t, n]; None where ``task_advantage`` has to compute it.
        scores: of the actions under the policy whose hypergradient is computed, [t, n]; None where ``scores_of`` has to
            compute them.
        least_deviation: PPO divides the blended advantage by its deviation, or by this where it is larger.
    """

    rollout: Rollout
    values: Values
    advantage: Float[Array, "*b t n"] | None = None
    scores: Scores | None = None
    least_deviation: Float[Array, "*b"] | float = 0.0


class Actions(NamedTuple):
    """What the policy's loss reads of a rollout.

    Attributes:
        obs: observations acted on, [t, n, *obs].
        action: actions taken, [t, n] or [t, n, a].
        log_prob: their log-probabilities under the policy that acted, [t, n].
        advantage: [t, n].
        episode_end: whether the episode ended with the step, [t, n].
    """

    obs: Shaped[Array, "t n *obs"]
    action: Shaped[Array, "t n *action"]
    log_prob: Float[Array, "t n"]
    advantage: Float[Array, "t n"]
    episode_end: Bool[Array, "t n"]


class OuterVariables(NamedTuple):
    """What the outer level differentiates in.

    Attributes:
        phis: the streams' parameters.
        significance: what the blend goes by. No gradient step is taken in it: its slopes are evidence.
    """

    phis: Sequence[PyTree]
    significance: Significance = Significance()


class InnerUpdate(NamedTuple):
    """An inner update, in full: where it was taken and all that it was taken on.

    Attributes:
        theta: the actor's parameters before it.
        phis: the streams' parameters that it followed.
        states: the transforms' states that it followed.
        data: its rollout, with the critic's values at that time.
        taken: 1, or 0 where nothing has been remembered yet.
    """

    theta: PyTree
    phis: PyTree
    states: PyTree
    data: RolloutData
    taken: Float[Array, "*b"]


def outer_variables(phis: Sequence[PyTree], states: Sequence[PyTree]) -> OuterVariables:
    """The streams' parameters, and the significances in their states."""
    return OuterVariables(phis, significance_in(states))


def rollout_data(inner: InnerProblem, params, rollout: Rollout, least_deviation: float | Scalar) -> RolloutData:
    """A rollout with the critic's values."""
    values = value_rollout(inner.critic, params.critic, rollout)
    return RolloutData(rollout, values, least_deviation=jnp.asarray(least_deviation, jnp.float32))


def actions_of(data: RolloutData, advantage: Float[Array, "t n"]) -> Actions:
    """A rollout's actions, to be judged by an advantage."""
    steps = data.rollout.steps
    return Actions(steps.obs, steps.action, steps.log_prob, advantage, steps.terminated | steps.truncated)


def deviation(x: Array, eps: float = 1e-8) -> Scalar:
    return held_constant(jnp.std(x) + eps)


def _blended_advantage(inner: InnerProblem, phis, states, data: RolloutData) -> Float[Array, "t n"]:
    all_signals = signals(inner.streams, phis, states, data.rollout, inner.discount, data.values)
    advantages = stream_advantages(all_signals, data.values, data.rollout, inner.gae_lambda)
    factors = None
    if are_scaled(inner.streams):
        unit = deviations(advantages, data.rollout)
        factors = scaling(inner.streams, phis, states, data.rollout, unit)
    return blended(advantages, inner.streams, factors)


def inner_advantage(inner: InnerProblem, phis, states, data: RolloutData) -> Float[Array, "t n"]:
    """The blended advantage as a function of phi, in PPO's units, held constant."""
    advantage = _blended_advantage(inner, phis, states, data)
    return advantage / jnp.maximum(deviation(advantage), data.least_deviation)


def as_one(inner: InnerProblem, phis, states, data: RolloutData) -> RolloutData:
    """Data of which each part is to count in the units of the whole: in a sparse task a half without a success has
    next to no deviation of its own."""
    whole = deviation(_blended_advantage(inner, phis, states, data))
    return data._replace(least_deviation=jnp.maximum(data.least_deviation, whole))


def task_advantage(
    inner: InnerProblem, data: RolloutData, gae_lambda: float | Scalar | None = None
) -> Float[Array, "t n"]:
    """The bare task's advantage, stream 0, by the inner problem's lambda unless another is given."""
    if data.advantage is not None:
        return data.advantage
    gae_lambda = inner.gae_lambda if gae_lambda is None else gae_lambda
    return stream_advantage(task_signal(data.rollout, inner.discount), data.values, 0, data.rollout, gae_lambda)


def policy_objective(inner: InnerProblem, surrogate: Surrogate, max_ratio, with_entropy: bool) -> Callable[..., Scalar]:
    """``(theta, actions, phis) -> loss``; phis matter where the policy sees them."""

    def loss(theta, actions: Actions, phis=()):
        obs, action, behaviour, advantage, episode_end = actions
        distribution = viewing(inner.policy, inner.view, phis).distribution(theta, obs)
        value = surrogate(distribution.log_prob(action), behaviour, advantage, episode_end, max_ratio)
        return value - inner.entropy * jnp.mean(distribution.entropy()) if with_entropy else value

    return loss


def scores_of(inner: InnerProblem, theta: PyTree, phis, data: RolloutData) -> Scores | None:
    """The scores of a rollout's actions, where the policy can tell; one pass forwards and one back, of which outer
    gradient, curvature and mixed term are all made."""
    policy = viewing(inner.policy, inner.view, phis)
    if data.scores is not None or policy.scores is None:
        return data.scores
    # Curvature is among what they are for: see ``implicit_gradient``.
    with jax.default_matmul_precision("highest"):
        return policy.scores(theta, data.rollout.steps.obs, data.rollout.steps.action)
