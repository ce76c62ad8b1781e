"""The outer level: the hypergradient of a rollout's bi-level problem, and a step of phi."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from llmrl.bilevel.types import HypergradientInfo, MetaGradient
from llmrl.learner.memory import exchanged, filled, merge, remember, split_data
from llmrl.learner.problem import (
    InnerProblem,
    InnerUpdate,
    RolloutData,
    as_one,
    deviation,
    make_problem,
    scores_of,
    task_advantage,
)
from llmrl.learner.streams import value_rollout
from llmrl.ops.moments import running_peak
from llmrl.ops.optimizers import own_promotion
from llmrl.settings.errors import BadValue
from llmrl.trust.evidence import Record, gains_of, gated_steps, learned_alone, recorded, with_evidence, words_worth
from llmrl.trust.task_voice import speaks, spoken_to
from llmrl.types import Rollout, Scalar


class MetaState(NamedTuple):
    """What the outer level keeps.

    Attributes:
        opt_state: of the outer optimiser.
        memory: the kept rollouts, or whole inner updates, [b, ...]; empty for fresh data.
        outer_scale: running largest deviation of the task's advantage.
        since: inner updates since the last outer step.
        record: per stream and group, what the learned weights have been worth since they were learned.
        told: 0 while the task has only ever paid one constant, else 1.
    """

    opt_state: PyTree
    memory: PyTree
    outer_scale: Scalar
    since: Scalar
    record: PyTree
    told: Scalar


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
        update: ``(state, phis, transform_states, params, rollout, key, iteration, last_kl, least_deviation=0) -> (phis,
            state, metrics)``; for the last see ``RolloutData``.
        needs_rollout: whether ``init`` looks at its rollout; without memory it does not.
    """

    init: Callable[..., MetaState]
    update: Callable[..., tuple[tuple[PyTree, ...], MetaState, dict[str, Scalar]]]
    needs_rollout: bool = True


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


def rollout_data(inner: InnerProblem, params, rollout: Rollout, least_deviation: float | Scalar) -> RolloutData:
    """A rollout with the critic's values."""
    values = value_rollout(inner.critic, params.critic, rollout)
    return RolloutData(rollout, values, least_deviation=jnp.asarray(least_deviation, jnp.float32))


def make_estimates(
    inner: InnerProblem, gradient: MetaGradient, cross_fitting: bool, data: str, follows_updates: bool, **problem
) -> Callable[..., tuple[PyTree, HypergradientInfo]]:
    """``(state, phis, states, params, fresh, key) -> (gradients, info)``: estimates of the hypergradient on a leading
    axis, one, or two where each half of the environments is judged by the other. Arguments as for ``make_meta``."""
    from_memory = data != "fresh" and not follows_updates

    def hypergradients(state, phis, states, params, fresh, key):
        """One estimate, or two stacked ones."""

        def problem_of(inner_data, outer_data, key, known=None):
            return make_problem(
                inner,
                inner_data,
                outer_data,
                states,
                state.outer_scale,
                key,
                past=past,
                outer_gradient=known,
                **problem,
            )

        def estimate(inner_data, outer_data, key, known=None):
            problem_key, solve_key = jax.random.split(key)
            return gradient(problem_of(inner_data, outer_data, problem_key, known), params.actor, phis, solve_key)

        def own_gradient(data, key):
            problem = problem_of(data, data, key)
            return (problem.outer_gradient or jax.grad(problem.outer_loss, argnums=(0, 1)))(params.actor, phis)

        def with_scores(data):
            return data._replace(scores=scores_of(inner, params.actor, phis, data))

        past = state.memory if follows_updates else None
        inner_data = fresh
        if from_memory:
            inner_data = rollout_data(inner, params, merge(state.memory), fresh.least_deviation)
        if not cross_fitting:
            fresh = with_scores(fresh)
            inner_data = inner_data if from_memory else fresh
            return jax.tree.map(lambda x: x[None], estimate(inner_data, fresh, key))
        whole = as_one(inner, phis, states, fresh)
        mine, keys = jax.vmap(with_scores)(split_data(whole)), jax.random.split(key)
        learned_from = split_data(as_one(inner, phis, states, inner_data)) if from_memory else mine
        # Gradients change sides, not data: both uses of a half then begin with the same pass through the policy, which
        # is compiled once.
        known = exchanged(jax.vmap(own_gradient)(mine, keys))
        return jax.vmap(estimate)(learned_from, exchanged(mine), keys, known)

    return hypergradients


def make_meta(
    inner: InnerProblem,
    gradient: MetaGradient,
    optimizer: optax.GradientTransformation,
    *,
    cross_fitting: bool = True,
    gate: bool = True,
    evidence_memory: float | Scalar = 0.98,
    data: str = "fresh",
    window: int = 4,
    follows_updates: bool = False,
    schedule: str = "online",
    every: int = 1,
    warmup: int = 0,
    converged_kl: float | Scalar = 1e-3,
    scale_decay: float | Scalar = 0.998,
    gae_lambda: float | Scalar | None = None,
    **problem,
) -> Meta:
    """The outer level.

    Args:
        inner: what defines L_aux.
        gradient: any of ``llmrl.bilevel.hypergradients``.
        optimizer: of phi.
        cross_fitting: estimate the hypergradient twice, on two halves of the environments, each judged by the other's.
        gate: multiply each group's step by the two estimates' agreement; needs ``cross_fitting``.
        evidence_memory: what the record of gains keeps per outer step.
        data: of the inner level: ``fresh``; ``previous`` (the rollout that trained theta: the paper's Remark 2);
            ``window`` (the last few, the fresh one included); ``past`` (the last few before the fresh one).
        window: rollouts in a ``window``, or in the ``past``.
        follows_updates: whether ``gradient`` follows the inner updates that were taken (``incremental``): then those on
            the rollouts that ``data`` names are remembered in full. Needs old data, and no ``cross_fitting``.
        schedule: ``online`` or ``converged`` (the paper's Algorithm 2).
        every: inner updates between two outer steps; for ``converged`` the most there may be.
        warmup: inner updates before the first outer step.
        converged_kl: an inner update that moves the policy by less counts as converged.
        scale_decay: of the running largest deviation of the task's advantage.
        gae_lambda: lambda of the task's advantage; None for the inner problem's. Below 1 a critic's errors are in it,
            and both halves agree on those.
        **problem: options of ``make_problem``.
    """
    kept = {"fresh": 0, "previous": 1, "window": window, "past": window}[data]
    if follows_updates and (data not in ("previous", "past") or cross_fitting):
        raise BadValue(
            "a gradient that follows past updates needs data='previous' or 'past' and no cross_fitting, "
            f"got data={data!r} and cross_fitting={cross_fitting}"
        )

    def entry(phis, states, params, rollout, least_deviation, taken):
        """What is remembered of an iteration."""
        if not follows_updates:
            return rollout
        known = rollout_data(inner, params, rollout, least_deviation)
        return InnerUpdate(params.actor, phis, states, known, jnp.asarray(taken, jnp.float32))

    def init(phis, states, params, rollout):
        memory = filled(entry(phis, states, params, rollout, 0.0, 0.0), kept) if kept else ()
        record = tuple(
            {
                group: Record(jnp.zeros_like(share), jnp.zeros_like(share))
                for group, share in phi.get("evidence", {}).items()
            }
            for phi in phis
        )
        return MetaState(optimizer.init(phis), memory, jnp.zeros(()), jnp.zeros(()), record, jnp.zeros(()))

    hypergradients = make_estimates(inner, gradient, cross_fitting, data, follows_updates, **problem)

    def step(state, phis, states, params, fresh, key):
        estimates, info = hypergradients(state, phis, states, params, fresh, key)
        mean = jax.tree.map(lambda x: jnp.mean(x, axis=0), estimates)
        # A seed whose estimate is not finite takes no step; the others do not notice. Nor is there anything to learn
        # before the task has spoken: its advantage is the critic's own error then, on which both halves agree.
        finite = jnp.isfinite(optax.tree.norm(mean))
        usable = finite & (state.told > 0)
        mean = jax.tree.map(lambda x: jnp.where(usable, x, 0.0), mean)
        worth = words_worth(fresh.rollout.steps.aux, fresh.advantage)
        gains = gains_of(mean, worth, 1.0 - spoken_to(fresh.rollout))
        mean, estimates = learned_alone(mean), learned_alone(estimates)
        steps, opt_state = optimizer.update(mean, state.opt_state, phis)
        agreed = jnp.ones(())
        if cross_fitting and gate:
            steps, agreed = gated_steps(steps, *(jax.tree.map(lambda x, i=i: x[i], estimates) for i in range(2)))
        record = tuple(
            {group: recorded(kept[group], gain[group], evidence_memory) for group in kept}
            for kept, gain in zip(state.record, gains, strict=True)
        )
        record = jax.tree.map(lambda new, old: jnp.where(usable, new, old), record, state.record)
        steps = jax.tree.map(lambda s: jnp.where(usable, s, 0.0), steps)
        moved = with_evidence(cast(tuple[PyTree, ...], optax.apply_updates(phis, steps)), record)
        metrics = {
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
        return moved, (opt_state, record), metrics

    def update(state, phis, states, params, rollout, key, iteration, last_kl, least_deviation=0.0):
        if data == "window":  # which holds the fresh rollout at once; ``previous`` and ``past`` do not yet
            state = state._replace(memory=remember(state.memory, rollout))
        # The critic is asked once, about the whole rollout; halves are taken of its answers.
        fresh = rollout_data(inner, params, rollout, least_deviation)
        advantage = task_advantage(inner, fresh, gae_lambda)
        fresh, now = fresh._replace(advantage=advantage), deviation(advantage)
        state = state._replace(
            outer_scale=running_peak(state.outer_scale, now, scale_decay),
            since=state.since + 1.0,
            told=jnp.maximum(state.told, speaks(rollout)),
        )
        operands = (state, phis, states, params, fresh, key)

        def rest(state, phis, *_):
            return phis, (state.opt_state, state.record), {name: jnp.zeros(()) for name in METRICS}

        if schedule == "online":
            # The iteration is no batched value, so this stays a branch under vmap and costs nothing when not taken.
            due = (iteration + 1) % every == 0
            due = due & (iteration >= warmup) if warmup else due
            always = every == 1 and not warmup
            phis, kept_state, metrics = step(*operands) if always else jax.lax.cond(due, step, rest, *operands)
        else:
            due = (last_kl < converged_kl) | (state.since >= every)
            due = due & (iteration >= warmup) if warmup else due
            phis, kept_state, metrics = jax.lax.cond(due, step, rest, *operands)
        state = state._replace(opt_state=kept_state[0], record=kept_state[1], since=jnp.where(due, 0.0, state.since))
        if data in ("previous", "past"):
            # With the phi that the inner level is about to follow.
            state = state._replace(
                memory=remember(state.memory, entry(phis, states, params, rollout, least_deviation, 1.0))
            )
        return phis, state, metrics | {"meta_step": jnp.asarray(due, jnp.float32)}

    return Meta(init, update, kept > 0)
