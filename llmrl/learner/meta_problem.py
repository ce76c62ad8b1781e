"""Reinforcement learning as a bi-level problem: both levels' losses and their curvature, as functions of theta and phi.

Each function of this file takes a ``BilevelProblem`` first, then theta (the actor's parameters) and the outer variables
(all streams' parameters and the significances); ``make_problem`` binds the first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from llmrl.bilevel.solvers import fisher, hessian
from llmrl.bilevel.types import Jacobian, LinearOperator, MetaProblem, PastSteps, Scores
from llmrl.learner.problem import (
    Actions,
    InnerProblem,
    InnerUpdate,
    OuterVariables,
    RolloutData,
    actions_of,
    inner_advantage,
    outer_variables,
    policy_objective,
    scores_of,
    task_advantage,
    viewing,
)
from llmrl.ops import surrogates
from llmrl.ops.losses import held_constant
from llmrl.ops.surrogates import Surrogate
from llmrl.trust.blend import with_significance
from llmrl.types import Scalar


class Part(NamedTuple):
    """The part of a batch that curvature is computed on.

    Attributes:
        fraction: its share of the steps.
        samples: its largest number of steps; None sets no bound.
    """

    fraction: float = 1.0
    samples: int | None = None

    def of(self, size: int) -> int:
        """The number of steps in the part, of a batch of so many."""
        share = max(1, round(size * self.fraction)) if self.fraction < 1.0 else size
        return share if self.samples is None else min(share, self.samples)


class ProblemSettings(NamedTuple):
    """How both levels' losses and their curvature are computed.

    Attributes:
        surrogate: of L_aux, a name in ``SURROGATES``; L_prim always uses ``ratio`` (the gradient is the same).
        max_importance_ratio: truncation of importance ratios on old data.
        curvature: ``hessian`` or ``fisher``.
        computed_on: the part of the batch for the curvature.
        unroll_learning_rate: step size of ``inner_step``, and of the past updates.
        penalty: ``phis -> scalar``, the regulariser of phi in L_prim.
    """

    surrogate: str
    max_importance_ratio: float | Scalar
    curvature: str
    computed_on: Part
    unroll_learning_rate: float | Scalar
    penalty: Callable[[Sequence[PyTree]], Scalar]


class BilevelProblem(NamedTuple):
    """One bi-level problem.

    Attributes:
        inner: what defines L_aux.
        settings: how losses and curvature are computed.
        inner_data: experience for L_aux, its curvature and the mixed derivative.
        outer_data: experience for L_prim.
        states: the transforms' states.
        outer_scale: divides the task's advantage, [].
        key: draws the part of the batch for the curvature.
        past: remembered inner updates, oldest first, [b, ...]; None where none are kept.
        outer_gradient: the gradient of L_prim in theta and in the outer variables, at the point where the hypergradient
            is computed; None where it is not known.
    """

    inner: InnerProblem
    settings: ProblemSettings
    inner_data: RolloutData
    outer_data: RolloutData
    states: Sequence[PyTree]
    outer_scale: Scalar
    key: PRNGKeyArray
    past: InnerUpdate | None = None
    outer_gradient: tuple[PyTree, PyTree] | None = None


def make_problem(problem: BilevelProblem) -> MetaProblem:
    """The problem as functions of (theta, outer variables), for any hypergradient; losses are minimised.

    It is made of the actions' scores where the policy can compute them and does not see phis, else of its losses.
    """
    has_scores = problem.inner.policy.scores is not None and problem.inner.view is None
    return (problem_by_scores if has_scores else problem_by_losses)(problem)


def problem_by_losses(problem: BilevelProblem) -> MetaProblem:
    """A problem whose gradients are those of its losses."""
    known = problem.outer_gradient
    return MetaProblem(
        inner_loss=partial(inner_loss, problem),
        outer_loss=partial(outer_loss, problem),
        inner_step=partial(inner_step, problem),
        operator=partial(curvature, problem),
        past=past_steps(problem),
        outer_gradient=None if known is None else lambda theta, variables: known,
    )


def problem_by_scores(problem: BilevelProblem) -> MetaProblem:
    """The same problem, with gradients made of the actions' scores: one pass through the policy serves them all."""
    return problem_by_losses(problem)._replace(
        outer_gradient=partial(outer_gradient_by_scores, problem),
        mixed_product=partial(mixed_product_by_scores, problem),
    )


# --- of losses --------------------------------------------------------------------------------------------------------


def inner_loss(problem: BilevelProblem, theta: PyTree, variables: OuterVariables) -> Scalar:
    """L_aux."""
    return _loss_on(problem, theta, variables, problem.states, problem.inner_data)


def outer_loss(problem: BilevelProblem, theta: PyTree, variables: OuterVariables) -> Scalar:
    """L_prim."""
    objective = policy_objective(problem.inner, surrogates.ratio, problem.settings.max_importance_ratio, False)
    judged, phis = _judged_by_task(problem), variables.phis
    return objective(theta, judged, phis) + problem.settings.penalty(phis)


def inner_step(problem: BilevelProblem, theta: PyTree, variables: OuterVariables) -> PyTree:
    """theta after one step of plain descent on L_aux."""
    return _step_on(problem, theta, variables, problem.states, problem.inner_data)


def past_steps(problem: BilevelProblem) -> PastSteps | None:
    """The remembered updates, each as a function of where it started; None where none are kept."""
    past = problem.past
    if past is None:
        return None

    def step(theta: PyTree, variables: OuterVariables, followed: tuple[PyTree, RolloutData]) -> PyTree:
        return _step_on(problem, theta, variables, *followed)

    variables = outer_variables(past.phis, past.states)
    return PastSteps(step, past.theta, variables, (past.states, past.data), past.taken)


def _loss_on(problem: BilevelProblem, theta, variables: OuterVariables, states, data: RolloutData) -> Scalar:
    return _inner_objective(problem)(theta, _judged_by_blend(problem, variables, states, data), variables.phis)


def _step_on(problem: BilevelProblem, theta, variables: OuterVariables, states, data: RolloutData) -> PyTree:
    gradient = jax.grad(_loss_on, argnums=1)(problem, theta, variables, states, data)
    return jax.tree.map(lambda p, g: p - problem.settings.unroll_learning_rate * g, theta, gradient)


def _inner_surrogate(problem: BilevelProblem) -> Surrogate:
    return surrogates.SURROGATES[problem.settings.surrogate]


def _inner_objective(problem: BilevelProblem) -> Callable[..., Scalar]:
    return policy_objective(problem.inner, _inner_surrogate(problem), problem.settings.max_importance_ratio, True)


def _blended_advantage(problem: BilevelProblem, variables: OuterVariables, states, data: RolloutData):
    states = with_significance(states, variables.significance)
    return inner_advantage(problem.inner, variables.phis, states, data)


def _judged_by_blend(problem: BilevelProblem, variables: OuterVariables, states, data: RolloutData) -> Actions:
    return actions_of(data, _blended_advantage(problem, variables, states, data))


def _judged_by_task(problem: BilevelProblem) -> Actions:
    advantage = task_advantage(problem.inner, problem.outer_data) / problem.outer_scale
    return actions_of(problem.outer_data, advantage)


# --- of scores --------------------------------------------------------------------------------------------------------


def outer_gradient_by_scores(
    problem: BilevelProblem, theta: PyTree, variables: OuterVariables
) -> tuple[PyTree, OuterVariables]:
    """The gradient of L_prim, in theta and in the outer variables."""
    if problem.outer_gradient is not None:
        return problem.outer_gradient
    scores, jacobian = _scored(problem, theta, variables, problem.outer_data)
    loss = _loss_of_log_prob(problem, surrogates.ratio, _judged_by_task(problem))
    direct = jax.grad(lambda of: problem.settings.penalty(of.phis))(variables)
    return jacobian.back(jax.grad(loss)(scores.log_prob)), direct


def mixed_product_by_scores(
    problem: BilevelProblem, theta: PyTree, variables: OuterVariables, x: PyTree
) -> OuterVariables:
    """The gradient in the outer variables of <grad_theta L_aux, x>. The entropy does not depend on them, so it
    contributes nothing."""
    scores, jacobian = _scored(problem, theta, variables, problem.inner_data)
    slopes = jacobian.along(x)

    def slope_along_x(variables):
        judged = _judged_by_blend(problem, variables, problem.states, problem.inner_data)
        loss = _loss_of_log_prob(problem, _inner_surrogate(problem), judged)
        return jax.jvp(loss, (scores.log_prob,), (slopes,))[1]

    return jax.grad(slope_along_x)(variables)


def _scored(problem: BilevelProblem, theta, variables: OuterVariables, data: RolloutData) -> tuple[Scores, Jacobian]:
    scores = scores_of(problem.inner, theta, variables.phis, data)
    assert scores is not None and problem.inner.policy.jacobian is not None
    return scores, problem.inner.policy.jacobian(scores)


def _loss_of_log_prob(
    problem: BilevelProblem, surrogate: Surrogate, actions: Actions
) -> Callable[[Float[Array, "t n"]], Scalar]:
    """A surrogate as a function of the actions' log-probabilities."""
    _, _, behaviour, advantage, episode_end = actions
    return lambda log_prob: surrogate(
        log_prob, behaviour, advantage, episode_end, problem.settings.max_importance_ratio
    )


# --- curvature --------------------------------------------------------------------------------------------------------


def curvature(problem: BilevelProblem, theta: PyTree, variables: OuterVariables) -> LinearOperator:
    """The curvature that the settings name, on a random part of the inner data."""
    return CURVATURES[problem.settings.curvature](problem, theta, variables)


def fisher_information(problem: BilevelProblem, theta: PyTree, variables: OuterVariables) -> LinearOperator:
    """The policy's Fisher information."""
    steps = problem.inner_data.rollout.steps
    obs, action = _drawn(problem, (steps.obs, steps.action))
    scores, jacobian = scores_of(problem.inner, theta, variables.phis, problem.inner_data), None
    if scores is not None and problem.inner.policy.jacobian is not None:
        jacobian = problem.inner.policy.jacobian(_on_one_axis(_drawn(problem, scores)))
    return _fisher(problem, theta, variables.phis, obs, action, jacobian=jacobian)


def loss_hessian(problem: BilevelProblem, theta: PyTree, variables: OuterVariables) -> LinearOperator:
    """The Hessian of L_aux.

    Its diagonal and its factors are those of weighted score outer products alone (the paper's A.1).
    """
    advantage = held_constant(_blended_advantage(problem, variables, problem.states, problem.inner_data))
    part = _drawn(problem, actions_of(problem.inner_data, advantage))
    products = _fisher(problem, theta, variables.phis, part.obs, part.action, weights=-part.advantage.reshape(-1))
    objective = _inner_objective(problem)
    return hessian(lambda point: objective(point, part, variables.phis), theta)._replace(
        diagonal=products.diagonal, factors=products.factors
    )


CURVATURES: dict[str, Callable[[BilevelProblem, PyTree, OuterVariables], LinearOperator]] = {
    "fisher": fisher_information,
    "hessian": loss_hessian,
}


def _fisher(
    problem: BilevelProblem,
    theta: PyTree,
    phis: PyTree,
    obs: Array,
    action: Array,
    weights: Float[Array, " samples"] | None = None,
    jacobian: Jacobian | None = None,
) -> LinearOperator:
    """The weighted second moment of the scores of some actions."""
    policy = viewing(problem.inner.policy, problem.inner.view, phis)

    def log_likelihood(point, obs, action):
        return policy.distribution(point, obs).log_prob(action)

    def scores():
        return jax.vmap(jax.grad(log_likelihood), in_axes=(None, 0, 0))(theta, *_on_one_axis((obs, action)))

    def of_all(point):
        return log_likelihood(point, obs, action).reshape(-1)

    return fisher(of_all, theta, weights, scores, jacobian)


def _drawn(problem: BilevelProblem, data: PyTree) -> PyTree:
    """The part of [t, n, ...] arrays that the curvature is computed on."""
    return subset(data, problem.settings.computed_on, problem.key, problem.settings.surrogate == "dice")


def subset(data: PyTree, part: Part, key: PRNGKeyArray, whole_episodes: bool) -> PyTree:
    """A random part of [t, n, ...] arrays: steps, or whole environments where a surrogate follows episodes.

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


def _on_one_axis(tree: PyTree) -> PyTree:
    """[t, n, ...] to [t n, ...]."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)
