"""Reinforcement learning as a bi-level problem: losses, curvature and data, as functions of theta and phi."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from llmrl.bilevel.solvers import fisher, hessian
from llmrl.bilevel.types import Jacobian, LinearOperator, MetaProblem, PastSteps, Scores
from llmrl.learner.streams import Values, blended, signals, stream_advantage, stream_advantages
from llmrl.nets import Critic, Policy
from llmrl.ops import surrogates
from llmrl.ops.losses import held_constant
from llmrl.ops.surrogates import Surrogate
from llmrl.rewards.base import task_signal
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


def deviation(x: Array, eps: float = 1e-8) -> Scalar:
    return held_constant(jnp.std(x) + eps)


def _blended_advantage(inner: InnerProblem, phis, states, data: RolloutData) -> Float[Array, "t n"]:
    all_signals = signals(inner.streams, phis, states, data.rollout, inner.discount)
    advantages = stream_advantages(all_signals, data.values, data.rollout, inner.gae_lambda)
    return blended(advantages, inner.streams)


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


class Part(NamedTuple):
    """Of a batch, what curvature is computed on: a share of it, and at most so many steps."""

    fraction: float = 1.0
    samples: int | None = None

    def of(self, size: int) -> int:
        """How many of so many steps."""
        share = max(1, round(size * self.fraction)) if self.fraction < 1.0 else size
        return share if self.samples is None else min(share, self.samples)


def _subset(data, part: Part, key: PRNGKeyArray, whole_episodes: bool):
    """A random part of [t, n] arrays: steps, or whole environments where a surrogate follows episodes.

    Steps are drawn evenly along each environment's time, from a random one on (systematic sampling): neighbours in time
    are alike, so an eighth of them tells as much as a quarter drawn one by one. Each is as likely as any other.
    """
    t, n = jax.tree.leaves(data)[0].shape[:2]
    size = part.of(t * n)
    if size == t * n:
        return data
    if whole_episodes:
        chosen = jax.random.permutation(key, n)[: max(1, round(size / t))]
        return jax.tree.map(lambda x: x[:, chosen], data)
    along_time = (jax.random.randint(key, (), 0, t * n) + (t * n // size) * jnp.arange(size)) % (t * n)
    chosen = along_time % t * n + along_time // t
    return jax.tree.map(lambda x: x.reshape(t * n, *x.shape[2:])[chosen][:, None], data)


def policy_objective(inner: InnerProblem, surrogate: Surrogate, max_ratio, with_entropy: bool) -> Callable[..., Scalar]:
    """``(theta, (obs, action, behaviour_log_prob, advantage, episode_end), phis) -> loss``; phis matter where the
    policy sees them."""

    def loss(theta, data, phis=()):
        obs, action, behaviour, advantage, episode_end = data
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


def _arrays(data: RolloutData, advantage: Float[Array, "t n"]):
    steps = data.rollout.steps
    return steps.obs, steps.action, steps.log_prob, advantage, steps.terminated | steps.truncated


def make_problem(
    inner: InnerProblem,
    inner_data: RolloutData,
    outer_data: RolloutData,
    states: Sequence[PyTree],
    outer_scale: Scalar,
    key: PRNGKeyArray,
    *,
    surrogate: str = "ratio",
    max_importance_ratio: float | Scalar = 2.0,
    curvature: str = "hessian",
    curvature_fraction: float = 1.0,
    curvature_samples: int | None = None,
    unroll_learning_rate: float | Scalar = 0.1,
    penalty: Callable[[Sequence[PyTree]], Scalar] = lambda phis: jnp.zeros(()),
    past: InnerUpdate | None = None,
    outer_gradient: tuple[PyTree, PyTree] | None = None,
) -> MetaProblem:
    """Reinforcement learning as a bi-level problem over (theta = the actor's parameters, phi = all streams'
    parameters).

    Args:
        inner: what defines L_aux.
        inner_data: experience for L_aux, its curvature and the mixed derivative.
        outer_data: experience for L_prim.
        states: the transforms' states.
        outer_scale: divides the task's advantage.
        key: draws the part of the batch that curvature is computed on.
        surrogate: of L_aux; L_prim always uses ``ratio`` (the gradient is the same).
        max_importance_ratio: truncation for old data.
        curvature: ``hessian`` or ``fisher``.
        curvature_fraction: see ``key``.
        curvature_samples: steps of that part at most; None sets no bound.
        unroll_learning_rate: step size of ``inner_step``, and of the past updates.
        penalty: regulariser of phi, part of L_prim.
        past: remembered inner updates, oldest first, [b, ...].
        outer_gradient: the gradient of L_prim in theta and in phi at the point where a hypergradient will be asked for,
            where somebody has it already.

    Returns:
        The problem; its losses are minimised.
    """
    inner_surrogate = surrogates.SURROGATES[surrogate]
    computed_on = Part(curvature_fraction, curvature_samples)
    inner_objective = policy_objective(inner, inner_surrogate, max_importance_ratio, True)
    outer_objective = policy_objective(inner, surrogates.ratio, max_importance_ratio, False)
    advantage_outer = task_advantage(inner, outer_data) / outer_scale

    def loss_on(theta, phis, data, states):
        return inner_objective(theta, _arrays(data, inner_advantage(inner, phis, states, data)), phis)

    def step_on(theta, phis, data, states):
        gradient = jax.grad(loss_on)(theta, phis, data, states)
        return jax.tree.map(lambda p, g: p - unroll_learning_rate * g, theta, gradient)

    def inner_loss(theta, phis):
        return loss_on(theta, phis, inner_data, states)

    def outer_loss(theta, phis):
        return outer_objective(theta, _arrays(outer_data, advantage_outer), phis) + penalty(phis)

    def inner_step(theta, phis):
        return step_on(theta, phis, inner_data, states)

    def past_step(theta, phis, data):
        on, then = data
        return step_on(theta, phis, on, then)

    def operator(theta, phis) -> LinearOperator:
        advantage = held_constant(inner_advantage(inner, phis, states, inner_data))
        part = _subset(_arrays(inner_data, advantage), computed_on, key, surrogate == "dice")
        obs, action, _, advantage_part, _ = part
        policy = viewing(inner.policy, inner.view, phis)

        def log_likelihood(point):
            return policy.distribution(point, obs).log_prob(action).reshape(-1)

        def one_log_likelihood(point, one_obs, one_action):
            return policy.distribution(point, one_obs).log_prob(one_action)

        samples = _on_one_axis((obs, action))

        def scores():
            return jax.vmap(jax.grad(one_log_likelihood), in_axes=(None, 0, 0))(theta, *samples)

        if curvature == "fisher":
            known = scores_of(inner, theta, phis, inner_data)
            jacobian = None
            if known is not None and policy.jacobian is not None:
                chosen = _subset(known, computed_on, key, surrogate == "dice")
                jacobian = policy.jacobian(_on_one_axis(chosen))
            return fisher(log_likelihood, theta, scores=scores, jacobian=jacobian)
        # Score outer products alone make the diagonal and the factors (the paper's A.1); the products know the whole
        # Hessian.
        products = fisher(log_likelihood, theta, weights=-advantage_part.reshape(-1), scores=scores)
        return hessian(lambda point: inner_objective(point, part, phis), theta)._replace(
            diagonal=products.diagonal, factors=products.factors
        )

    steps = None
    if past is not None:
        steps = PastSteps(past_step, past.theta, past.phis, (past.data, past.states), past.taken)

    def scored(theta, phis, data) -> tuple[Scores, Jacobian]:
        scores = scores_of(inner, theta, phis, data)
        assert scores is not None and inner.policy.jacobian is not None
        return scores, inner.policy.jacobian(scores)

    def from_scores(theta, phis):
        if outer_gradient is not None:
            return outer_gradient
        scores, jacobian = scored(theta, phis, outer_data)
        _, _, behaviour, advantage, ends = _arrays(outer_data, advantage_outer)
        slopes = jax.grad(surrogates.ratio)(scores.log_prob, behaviour, advantage, ends, max_importance_ratio)
        return jacobian.back(slopes), jax.grad(penalty)(phis)

    def mixed_product(theta, phis, x):
        """The entropy has no part in it, as phi is not in the policy."""
        scores, jacobian = scored(theta, phis, inner_data)
        slopes = jacobian.along(x)

        def slope_along_x(p):
            _, _, behaviour, advantage, ends = _arrays(inner_data, inner_advantage(inner, p, states, inner_data))

            def loss(log_prob):
                return inner_surrogate(log_prob, behaviour, advantage, ends, max_importance_ratio)

            return jax.jvp(loss, (scores.log_prob,), (slopes,))[1]

        return jax.grad(slope_along_x)(phis)

    # Where the policy sees phi, its own gradients are not all.
    apart = inner.view is None and inner.policy.scores is not None
    known = from_scores if apart else (None if outer_gradient is None else (lambda theta, phis: outer_gradient))
    return MetaProblem(inner_loss, outer_loss, inner_step, operator, steps, known, mixed_product if apart else None)


def _on_one_axis(tree: PyTree) -> PyTree:
    """[t, n, ...] to [t n, ...]."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)
