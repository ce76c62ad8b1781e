"""The outer level: the hypergradient of a rollout's bi-level problem, and a step of phi."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray, PyTree

from llmrl.bilevel.trees import all_finite
from llmrl.bilevel.types import HypergradientInfo, MetaGradient
from llmrl.learner.estimates import Point, cross_fitted_estimates, single_estimate
from llmrl.learner.memory import filled, merge, remember
from llmrl.learner.meta_problem import ProblemSettings
from llmrl.learner.problem import (
    InnerProblem,
    InnerUpdate,
    OuterVariables,
    RolloutData,
    deviation,
    rollout_data,
    task_advantage,
)
from llmrl.ops.moments import running_peak
from llmrl.ops.optimizers import own_promotion
from llmrl.settings.errors import BadValue
from llmrl.trust.blend import significance_in, with_significance
from llmrl.trust.evidence import (
    Significance,
    SourceEvidence,
    event_gains,
    gated_steps,
    no_evidence,
    recorded,
    significance,
)
from llmrl.trust.task_statistics import TaskStatistics, rollout_event_share
from llmrl.types import Rollout, Scalar


class MetaState(NamedTuple):
    """What the outer level keeps.

    Attributes:
        opt_state: of the outer optimiser.
        memory: the kept rollouts, or whole inner updates, [b, ...]; empty for fresh data.
        outer_scale: running largest deviation of the task's advantage.
        since: inner updates since the last outer step.
        evidence: what later rollouts have shown of each source.
    """

    opt_state: PyTree
    memory: PyTree
    outer_scale: Scalar
    since: Scalar
    evidence: SourceEvidence


METRICS = (
    "meta_residual",
    "meta_matvecs",
    "meta_cut",
    "meta_damping",
    "meta_solution_norm",
    "meta_outer_gradient_norm",
    "meta_gradient_norm",
    "meta_gate",
    "meta_skipped",
)
"""What an outer step reports; all 0 where none was due."""


class Meta(NamedTuple):
    """The outer level as pure functions.

    Attributes:
        init: ``(phis, states, params, rollout) -> MetaState``.
        update: ``(phis, state, transform_states, params, rollout, key, iteration, last_kl, least_deviation=0) -> (phis,
            state, transform_states, metrics)``; for the last argument see ``RolloutData``. Of the transforms' states it
            changes the blend's significances alone.
        needs_rollout: whether ``init`` looks at its rollout; without memory it does not.
    """

    init: Callable[..., MetaState]
    update: Callable[..., tuple[tuple[PyTree, ...], MetaState, tuple[PyTree, ...], dict[str, Scalar]]]
    needs_rollout: bool = True


class MetaSettings(NamedTuple):
    """When the outer level steps, on which data, and how a step is checked.

    Attributes:
        cross_fitting: estimate the hypergradient twice, on two halves of the environments, each judged by the other's.
        gate: multiply each group's step by the two estimates' agreement; needs ``cross_fitting``.
        evidence_memory: what the sums of gains keep per outer step.
        data: of the inner level: ``fresh``; ``previous`` (the rollout that trained theta: the paper's Remark 2);
            ``window`` (the last few, the fresh one included); ``past`` (the last few before the fresh one).
        window: rollouts in a ``window``, or in the ``past``.
        follows_updates: whether the gradient follows the inner updates that were taken (``incremental``): then those on
            the rollouts that ``data`` names are remembered in full. Needs old data, and no ``cross_fitting``.
        schedule: ``online`` or ``converged`` (the paper's Algorithm 2).
        every: inner updates between two outer steps; for ``converged`` the most there may be.
        warmup: inner updates before the first outer step.
        converged_kl: an inner update that moves the policy by less counts as converged.
        scale_decay: of the running largest deviation of the task's advantage.
        gae_lambda: lambda of the task's advantage. Below 1 a critic's errors are in it, and both halves agree on those.
    """

    cross_fitting: bool
    gate: bool
    evidence_memory: float | Scalar
    data: str
    window: int
    follows_updates: bool
    schedule: str
    every: int
    warmup: int
    converged_kl: float | Scalar
    scale_decay: float | Scalar
    gae_lambda: float | Scalar

    @property
    def num_kept(self) -> int:
        """Number of rollouts, or inner updates, in memory."""
        return {"fresh": 0, "previous": 1, "window": self.window, "past": self.window}[self.data]


class OuterLevel(NamedTuple):
    """What an outer level is made of.

    Attributes:
        inner: what defines L_aux.
        gradient: any of ``llmrl.bilevel.hypergradients``.
        optimizer: of phi.
        settings: when it steps, and on which data.
        problem: how losses and curvature are computed.
    """

    inner: InnerProblem
    gradient: MetaGradient
    optimizer: optax.GradientTransformation
    settings: MetaSettings
    problem: ProblemSettings


class OuterStep(NamedTuple):
    """What an outer step gives.

    Attributes:
        phis: the streams' parameters after it.
        opt_state: of the outer optimiser.
        evidence: what later rollouts have shown of each source, this one included.
        metrics: see ``METRICS``.
    """

    phis: tuple[PyTree, ...]
    opt_state: PyTree
    evidence: SourceEvidence
    metrics: dict[str, Scalar]


# --- the step ---------------------------------------------------------------------------------------------------------


def outer_optimizer(
    optimiser: str, learning_rates: Mapping[str, float | Scalar], max_gradient_norm: float | Scalar
) -> optax.GradientTransformation:
    """Clip the joint hypergradient, then step each group of parameters at its own rate."""
    scalers = {"amsgrad": optax.scale_by_amsgrad, "adam": optax.scale_by_adam, "sgd": optax.identity}
    by_group: dict[Hashable, optax.GradientTransformation] = {
        group: optax.chain(scalers[optimiser](), optax.scale_by_learning_rate(rate))
        for group, rate in learning_rates.items()
    }

    def labels(phis):
        return tuple({group: jax.tree.map(lambda _, g=group: g, phi[group]) for group in phi} for phi in phis)

    return own_promotion(
        optax.chain(optax.clip_by_global_norm(max_gradient_norm), optax.multi_transform(by_group, labels))
    )


def make_meta(outer: OuterLevel) -> Meta:
    """The outer level as pure functions.

    Raises:
        ValueError: the gradient follows past updates, and the settings do not keep them.
    """
    settings = outer.settings
    if settings.follows_updates and (settings.data not in ("previous", "past") or settings.cross_fitting):
        raise BadValue(
            "a gradient that follows past updates needs data='previous' or 'past' and no cross_fitting, "
            f"got data={settings.data!r} and cross_fitting={settings.cross_fitting}"
        )
    return Meta(partial(first_state, outer), partial(update, outer), settings.num_kept > 0)


def first_state(outer: OuterLevel, phis, states, params, rollout: Rollout | None) -> MetaState:
    """The state before the first outer step, its memory full of one rollout; without memory there need not be one."""
    memory: PyTree = ()
    if outer.settings.num_kept:
        assert rollout is not None
        memory = filled(_entry(outer, phis, states, params, rollout, 0.0, 0.0), outer.settings.num_kept)
    nothing = jnp.zeros(())
    return MetaState(outer.optimizer.init(phis), memory, nothing, nothing, no_evidence(significance_in(states)))


def update(
    outer: OuterLevel,
    phis,
    state: MetaState,
    states,
    params,
    rollout: Rollout,
    key: PRNGKeyArray,
    iteration: Array,
    last_kl: Scalar,
    least_deviation: float | Scalar = 0.0,
) -> tuple[tuple[PyTree, ...], MetaState, tuple[PyTree, ...], dict[str, Scalar]]:
    """Note a rollout, and take an outer step where one is due; arguments and results as ``Meta.update`` says."""
    settings = outer.settings
    if settings.data == "window":  # which holds the fresh rollout at once; ``previous`` and ``past`` do not yet
        state = state._replace(memory=remember(state.memory, rollout))
    fresh = _judged(outer, params, rollout, least_deviation)
    state = _noted(outer, state, fresh)
    due = is_due(settings, state, iteration, last_kl)
    operands = (phis, state, states, params, fresh, key)
    take = partial(step, outer)
    always = settings.schedule == "online" and settings.every == 1 and not settings.warmup
    # Online the iteration is no batched value, so this stays a branch under vmap and costs nothing when not taken.
    done = take(*operands) if always else jax.lax.cond(due, take, no_step, *operands)
    since = jnp.where(due, 0.0, state.since)
    state = state._replace(opt_state=done.opt_state, evidence=done.evidence, since=since)
    states = with_significance(states, significance(done.evidence))
    if settings.data in ("previous", "past"):
        # With the phi and the significances that the inner level is about to follow.
        entry = _entry(outer, done.phis, states, params, rollout, least_deviation, 1.0)
        state = state._replace(memory=remember(state.memory, entry))
    return done.phis, state, states, done.metrics | {"meta_step": jnp.asarray(due, jnp.float32)}


def is_due(settings: MetaSettings, state: MetaState, iteration: Array, last_kl: Scalar) -> Array:
    """Whether this iteration takes an outer step."""
    if settings.schedule == "online":
        due = (iteration + 1) % settings.every == 0
    else:
        due = (last_kl < settings.converged_kl) | (state.since >= settings.every)
    return due & (iteration >= settings.warmup) if settings.warmup else due


def step(outer: OuterLevel, phis, state: MetaState, states, params, fresh: RolloutData, key: PRNGKeyArray) -> OuterStep:
    """One outer step.

    A seed whose estimate is not finite takes no step; the others do not notice. Before the task's first
    reward event there is nothing to learn either: its advantage is the critic's error then, on which both halves agree.
    """
    estimates, info = _estimates(outer, phis, state, states, params, fresh, key)
    mean = jax.tree.map(lambda x: jnp.mean(x, axis=0), estimates)
    finite = jnp.isfinite(optax.tree.norm(mean))
    task: TaskStatistics = states[0]
    usable = finite & (task.event_count > 0)
    mean = jax.tree.map(lambda x: jnp.where(usable, x, 0.0), mean)
    evidence = _recorded(outer, state.evidence, mean.significance, fresh, usable)
    steps, opt_state = outer.optimizer.update(mean.phis, state.opt_state, phis)
    agreed = jnp.ones(())
    if outer.settings.cross_fitting and outer.settings.gate:
        steps, agreed = gated_steps(steps, *(jax.tree.map(lambda x, i=i: x[i], estimates.phis) for i in range(2)))
    steps = jax.tree.map(lambda s: jnp.where(usable, s, 0.0), steps)
    moved = cast(tuple[PyTree, ...], optax.apply_updates(phis, steps))
    return OuterStep(moved, opt_state, evidence, _metrics(info, mean.phis, agreed, finite))


def no_step(phis, state: MetaState, *_) -> OuterStep:
    """What an iteration without an outer step gives in place of one."""
    return OuterStep(phis, state.opt_state, state.evidence, {name: jnp.zeros(()) for name in METRICS})


def _estimates(
    outer: OuterLevel, phis, state: MetaState, states, params, fresh: RolloutData, key: PRNGKeyArray
) -> tuple[OuterVariables, HypergradientInfo]:
    """Estimates of the hypergradient on a leading axis: two with ``cross_fitting``, else one."""
    settings, remembered = outer.settings, None
    past = state.memory if settings.follows_updates else None
    if settings.data != "fresh" and not settings.follows_updates:
        remembered = rollout_data(outer.inner, params, merge(state.memory), fresh.least_deviation)
    point = Point(outer.gradient, outer.inner, outer.problem, params.actor, phis, states, state.outer_scale, past)
    estimates = cross_fitted_estimates if settings.cross_fitting else single_estimate
    return estimates(point, fresh, remembered, key)


def _judged(outer: OuterLevel, params, rollout: Rollout, least_deviation: float | Scalar) -> RolloutData:
    """A rollout with its values and the task's advantage: computed once for all environments, and then split."""
    data = rollout_data(outer.inner, params, rollout, least_deviation)
    return data._replace(advantage=task_advantage(outer.inner, data, outer.settings.gae_lambda))


def _noted(outer: OuterLevel, state: MetaState, fresh: RolloutData) -> MetaState:
    """The state with a rollout's statistics of the task."""
    return state._replace(
        outer_scale=running_peak(
            state.outer_scale, deviation(task_advantage(outer.inner, fresh)), outer.settings.scale_decay
        ),
        since=state.since + 1.0,
    )


def _recorded(
    outer: OuterLevel, evidence: SourceEvidence, slopes: Significance, fresh: RolloutData, usable: Array
) -> SourceEvidence:
    """The evidence with one more rollout's gains, where its gradients are usable and the sums stay finite."""
    worth = event_gains(fresh.rollout.steps.aux, task_advantage(outer.inner, fresh))
    silent = 1.0 - rollout_event_share(fresh.rollout)
    after = recorded(evidence, slopes, worth, silent, outer.settings.evidence_memory)
    sound = usable & all_finite(after)
    return jax.tree.map(lambda new, old: jnp.where(sound, new, old), after, evidence)


def _entry(outer: OuterLevel, phis, states, params, rollout: Rollout, least_deviation, taken: float) -> PyTree:
    """What is remembered of an iteration: its rollout, or its whole inner update."""
    if not outer.settings.follows_updates:
        return rollout
    data = rollout_data(outer.inner, params, rollout, least_deviation)
    return InnerUpdate(params.actor, phis, states, data, jnp.asarray(taken, jnp.float32))


def _metrics(info: HypergradientInfo, mean: PyTree, agreed: Scalar, finite: Array) -> dict[str, Scalar]:
    return {
        "meta_residual": jnp.mean(info.residual_norm),
        "meta_matvecs": jnp.sum(info.num_matvecs).astype(jnp.float32),
        "meta_cut": jnp.mean(info.was_cut),
        "meta_damping": jnp.mean(info.damping),
        "meta_solution_norm": jnp.mean(info.solution_norm),
        "meta_outer_gradient_norm": jnp.mean(info.outer_gradient_norm),
        "meta_gradient_norm": optax.tree.norm(mean),
        "meta_gate": agreed,
        "meta_skipped": jnp.where(finite, 0.0, 1.0),
    }
