"""Estimates of the hypergradient: one on all environments, or two, where each half of them is judged by the other."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
from jaxtyping import PRNGKeyArray, PyTree

from llmrl.bilevel.types import HypergradientInfo, MetaGradient, MetaProblem
from llmrl.learner.memory import exchanged, split_data
from llmrl.learner.meta_problem import BilevelProblem, ProblemSettings, make_problem
from llmrl.learner.problem import (
    InnerProblem,
    InnerUpdate,
    OuterVariables,
    RolloutData,
    as_one,
    outer_variables,
    scores_of,
)
from llmrl.types import Scalar


class Point(NamedTuple):
    """What all estimates of one outer step share.

    Attributes:
        gradient: any of ``llmrl.bilevel.hypergradients``.
        inner: what defines L_aux.
        settings: how losses and curvature are computed.
        theta: the actor's parameters.
        phis: the streams' parameters.
        states: the transforms' states.
        outer_scale: divides the task's advantage, [].
        past: remembered inner updates, [b, ...]; None where none are kept.
    """

    gradient: MetaGradient
    inner: InnerProblem
    settings: ProblemSettings
    theta: PyTree
    phis: Sequence[PyTree]
    states: Sequence[PyTree]
    outer_scale: Scalar
    past: InnerUpdate | None = None


class EstimateKeys(NamedTuple):
    """The keys of one estimate.

    Attributes:
        problem: draws the part of the batch for the curvature.
        gradient: of the hypergradient, e.g. of its solver.
    """

    problem: PRNGKeyArray
    gradient: PRNGKeyArray


def single_estimate(
    point: Point, fresh: RolloutData, remembered: RolloutData | None, key: PRNGKeyArray
) -> tuple[OuterVariables, HypergradientInfo]:
    """One estimate on all environments.

    Args:
        point: where.
        fresh: the fresh rollout, which judges.
        remembered: the rollouts that the inner level learns from; None where it is the fresh one.
        key: a key.

    Returns:
        The gradient and how well it was computed, on a leading axis of size 1.
    """
    fresh = _with_scores(point, fresh)
    found = _estimate(point, fresh if remembered is None else remembered, fresh, key)
    return jax.tree.map(lambda x: x[None], found)


def cross_fitted_estimates(
    point: Point, fresh: RolloutData, remembered: RolloutData | None, key: PRNGKeyArray
) -> tuple[OuterVariables, HypergradientInfo]:
    """Two estimates: the inner level learns from one half of the environments and is judged by the other half.

    Arguments as for ``single_estimate``.

    Returns:
        The gradients and how well they were computed, on a leading axis of size 2.
    """
    mine = jax.vmap(partial(_with_scores, point))(_halves(point, fresh))
    learned_from = mine if remembered is None else _halves(point, remembered)
    keys = jax.random.split(key)
    # Gradients change sides, not data: both uses of a half then begin with the same pass through the policy, which is
    # compiled once.
    known = exchanged(jax.vmap(partial(_own_gradient, point))(mine, keys))
    return jax.vmap(partial(_estimate, point))(learned_from, exchanged(mine), keys, known)


def _estimate(
    point: Point, inner_data: RolloutData, outer_data: RolloutData, key: PRNGKeyArray, known: PyTree = None
) -> tuple[OuterVariables, HypergradientInfo]:
    keys = EstimateKeys(*jax.random.split(key))
    problem = _problem(point, inner_data, outer_data, keys.problem, known)
    return point.gradient(problem, point.theta, outer_variables(point.phis, point.states), keys.gradient)


def _own_gradient(point: Point, data: RolloutData, key: PRNGKeyArray) -> tuple[PyTree, PyTree]:
    """The gradient of the task's loss on some data, in theta and in the outer variables."""
    problem = _problem(point, data, data, key)
    return (problem.outer_gradient or jax.grad(problem.outer_loss, argnums=(0, 1)))(
        point.theta, outer_variables(point.phis, point.states)
    )


def _problem(
    point: Point, inner_data: RolloutData, outer_data: RolloutData, key: PRNGKeyArray, known: PyTree = None
) -> MetaProblem:
    return make_problem(
        BilevelProblem(
            inner=point.inner,
            settings=point.settings,
            inner_data=inner_data,
            outer_data=outer_data,
            states=point.states,
            outer_scale=point.outer_scale,
            key=key,
            past=point.past,
            outer_gradient=known,
        )
    )


def _with_scores(point: Point, data: RolloutData) -> RolloutData:
    return data._replace(scores=scores_of(point.inner, point.theta, point.phis, data))


def _halves(point: Point, data: RolloutData) -> RolloutData:
    """Both halves of the environments, in the advantage's units of the whole."""
    return split_data(as_one(point.inner, point.phis, point.states, data))
