"""The outer level: the hypergradient of a rollout's bi-level problem, and a step of phi."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from llmrl.learner.problem import Evidence, InnerProblem, deviation, make_problem, task_advantage
from llmrl.learner.streams import value_rollout
from llmrl.ops.optimizers import own_promotion
from llmrl.types import MetaGradient, Rollout, Scalar


class MetaState(NamedTuple):
    """What the outer level keeps.

    Attributes:
        opt_state: of the outer optimiser.
        memory: the kept rollouts, [b, ...]; empty for fresh data.
        outer_scale: running largest deviation of the task's advantage.
        since: inner updates since the last outer step.
        record: per stream and group, how much of the hypergradient both halves confirmed, and how much there was.
    """

    opt_state: PyTree
    memory: PyTree
    outer_scale: Scalar
    since: Scalar
    record: PyTree


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
        init: ``(phis, rollout) -> MetaState``.
        update: ``(state, phis, transform_states, params, rollout, key, iteration, last_kl) -> (phis, state, metrics)``.
    """

    init: Callable[..., MetaState]
    update: Callable[..., tuple[tuple[PyTree, ...], MetaState, dict[str, Scalar]]]


# --- data -----------------------------------------------------------------------------------------------------------


def _halves(tree: PyTree, axis: int) -> PyTree:
    """Split an environments' axis in two: a new leading axis of size 2."""

    def split(x):
        n = x.shape[axis]
        halves = x.reshape(*x.shape[:axis], 2, n // 2, *x.shape[axis + 1 :])
        return jnp.moveaxis(halves, axis, 0)

    return jax.tree.map(split, tree)


def split_rollout(rollout: Rollout) -> Rollout:
    """Two rollouts of half the environments each, stacked on a new leading axis."""
    return Rollout(_halves(rollout.steps, 1), _halves(rollout.final_action, 0))


def _merge_memory(memory: Rollout) -> Rollout:
    """[b, t, n, ...] to [t, n b, ...]: kept rollouts side by side, as if they were more environments.

    An environment's rollouts stay neighbours, so that halves of the whole are halves of the environments.
    """

    def merge(x):
        x = jnp.moveaxis(x, 0, 2)
        return x.reshape(x.shape[0], x.shape[1] * x.shape[2], *x.shape[3:])

    steps = jax.tree.map(merge, memory.steps)
    return Rollout(steps, merge(memory.final_action[:, None])[0])


def _remember(memory: Rollout, rollout: Rollout) -> Rollout:
    return jax.tree.map(lambda kept, new: jnp.concatenate([kept[1:], new[None]]), memory, rollout)


# --- the step ---------------------------------------------------------------------------------------------------------


def agreement(first: PyTree, second: PyTree, group: str) -> PyTree:
    """How far two estimates of one group's gradient agree, from 0 to 1, shaped to multiply the group's step.

    For ``scalar`` each source by itself: 1 where the signs agree, else 0. Otherwise max(0, cosine).
    """
    if group == "scalar":
        return (first * second > 0).astype(first.dtype)
    product = optax.tree.vdot(first, second)
    norms = optax.tree.norm(first) * optax.tree.norm(second)
    return jnp.maximum(0.0, product / jnp.maximum(norms, 1e-12))


class Record(NamedTuple):
    """Running sums of one group's two estimates.

    Attributes:
        common: of their product: what both say.
        power: of their mean square: what each says.
    """

    common: Array
    power: Array


def _products(first: PyTree, second: PyTree, group: str) -> Array:
    """Inner product of two estimates; for ``scalar`` each source by itself."""
    return jnp.asarray(first * second if group == "scalar" else optax.tree.vdot(first, second))


def _recorded(record: Record, first: PyTree, second: PyTree, group: str, memory) -> Record:
    power = 0.5 * (_products(first, first, group) + _products(second, second, group))
    return Record(memory * record.common + _products(first, second, group), memory * record.power + power)


def signal_share(record: Record) -> Array:
    """Share of the averaged estimate's power that is signal, from 0 to 1.

    With independent noise the product of two estimates has the signal's power for its expectation, and their mean
    square that plus the noise's; averaging halves the noise: 2 c / (c + p).
    """
    common = jnp.maximum(record.common, 0.0)
    return 2.0 * common / jnp.maximum(common + record.power, 1e-20)


def _with_evidence(phis, records):
    """phi with each group's signal share in it, where phi has a place for it."""
    return tuple(
        phi | {"evidence": {group: signal_share(record[group]) for group in phi["evidence"]}}
        if "evidence" in phi
        else phi
        for phi, record in zip(phis, records, strict=True)
    )


def _gated(steps: Any, first: Sequence[dict], second: Sequence[dict]):
    """Every group's step times its agreement, and the mean agreement."""
    gated, agreements = [], []
    for step, a, b in zip(steps, first, second, strict=True):
        gates = {group: agreement(a[group], b[group], group) for group in step}
        gated.append({g: jax.tree.map(lambda s, gate=gates[g]: s * gate, step[g]) for g in step})
        agreements += [jnp.mean(gate) for group, gate in gates.items() if group != "evidence"]
    return tuple(gated), jnp.mean(jnp.stack(agreements))


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
    schedule: str = "online",
    every: int = 1,
    converged_kl: float | Scalar = 1e-3,
    scale_decay: float | Scalar = 0.998,
    **problem,
) -> Meta:
    """The outer level.

    Args:
        inner: what defines L_aux.
        gradient: ``implicit(...)`` or ``unrolled(...)``.
        optimizer: of phi.
        cross_fitting: estimate the hypergradient twice, on two halves of the environments, each the other's evidence.
        gate: multiply each group's step by the two estimates' agreement; needs ``cross_fitting``.
        evidence_memory: what the record of confirmed hypergradients keeps per outer step.
        data: ``fresh``, ``previous`` (inner level on the rollout that trained theta: the paper's Remark 2) or
            ``window``.
        window: rollouts in a window, the fresh one included.
        schedule: ``online`` or ``converged`` (the paper's Algorithm 2).
        every: inner updates between two outer steps; for ``converged`` the most there may be.
        converged_kl: an inner update that moves the policy by less counts as converged.
        scale_decay: of the running largest deviation of the task's advantage.
        **problem: options of ``make_problem``.
    """
    kept = {"fresh": 0, "previous": 1, "window": window}[data]

    def init(phis, rollout):
        memory = jax.tree.map(lambda x: jnp.broadcast_to(x, (kept, *x.shape)), rollout) if kept else ()
        record = tuple(
            {
                group: Record(jnp.zeros_like(share), jnp.zeros_like(share))
                for group, share in phi.get("evidence", {}).items()
            }
            for phi in phis
        )
        return MetaState(optimizer.init(phis), memory, jnp.zeros(()), jnp.zeros(()), record)

    def evidence(params, rollout):
        return Evidence(rollout, value_rollout(inner.critic, params.critic, rollout))

    def hypergradients(state, phis, states, params, rollout, key):
        """One estimate, or two stacked ones."""

        def estimate(inner_rollout, outer_rollout, key):
            problem_key, solve_key = jax.random.split(key)
            inner_data = evidence(params, inner_rollout)
            outer_data = inner_data if outer_rollout is inner_rollout else evidence(params, outer_rollout)
            meta_problem = make_problem(
                inner, inner_data, outer_data, states, state.outer_scale, problem_key, **problem
            )
            return gradient(meta_problem, params.actor, phis, solve_key)

        inner_rollout = _merge_memory(state.memory) if kept else rollout
        if not cross_fitting:
            return jax.tree.map(lambda x: x[None], estimate(inner_rollout, rollout, key))
        other = jax.tree.map(lambda x: x[::-1], split_rollout(rollout))
        return jax.vmap(estimate)(split_rollout(inner_rollout), other, jax.random.split(key))

    def step(state, phis, states, params, rollout, key):
        estimates, info = hypergradients(state, phis, states, params, rollout, key)
        mean = jax.tree.map(lambda x: jnp.mean(x, axis=0), estimates)
        # A seed whose estimate is not finite takes no step; the others do not notice.
        finite = jnp.isfinite(optax.tree.norm(mean))
        mean = jax.tree.map(lambda x: jnp.where(finite, x, 0.0), mean)
        steps, opt_state = optimizer.update(mean, state.opt_state, phis)
        agreed, record = jnp.ones(()), state.record
        if cross_fitting:
            first, second = (jax.tree.map(lambda x, i=i: x[i], estimates) for i in range(2))
            if gate:
                steps, agreed = _gated(steps, first, second)
            record = tuple(
                {group: _recorded(kept[group], a[group], b[group], group, evidence_memory) for group in kept}
                for kept, a, b in zip(record, first, second, strict=True)
            )
            record = jax.tree.map(lambda new, old: jnp.where(finite, new, old), record, state.record)
        steps = jax.tree.map(lambda s: jnp.where(finite, s, 0.0), steps)
        moved = _with_evidence(cast(tuple[PyTree, ...], optax.apply_updates(phis, steps)), record)
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

    def update(state, phis, states, params, rollout, key, iteration, last_kl):
        newest = _remember(state.memory, rollout) if kept else state.memory
        # ``previous`` still serves the rollout before this one; a window holds the fresh one at once.
        state = state._replace(memory=newest) if data == "window" else state
        now = deviation(task_advantage(inner, evidence(params, rollout)))
        state = state._replace(
            outer_scale=jnp.maximum(scale_decay * state.outer_scale, jnp.where(jnp.isfinite(now), now, 0.0)),
            since=state.since + 1.0,
        )
        operands = (state, phis, states, params, rollout, key)

        def rest(state, phis, *_):
            return phis, (state.opt_state, state.record), {name: jnp.zeros(()) for name in METRICS}

        if schedule == "online":
            # The iteration is no batched value, so this stays a branch under vmap and costs nothing when not taken.
            due = (iteration + 1) % every == 0
            phis, kept_state, metrics = step(*operands) if every == 1 else jax.lax.cond(due, step, rest, *operands)
        else:
            due = (last_kl < converged_kl) | (state.since >= every)
            phis, kept_state, metrics = jax.lax.cond(due, step, rest, *operands)
        state = state._replace(opt_state=kept_state[0], record=kept_state[1], since=jnp.where(due, 0.0, state.since))
        state = state._replace(memory=newest)
        return phis, state, metrics | {"meta_step": jnp.asarray(due, jnp.float32)}

    return Meta(init, update)
