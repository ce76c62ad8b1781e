"""The paper's table as code: a name, the reward streams it learns from, and how (if at all) it learns them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from llmrl import hypergradients, solvers
from llmrl.config import Config, NoveltyConfig, OuterConfig, SolverConfig
from llmrl.errors import unknown
from llmrl.learner.meta import Meta, make_meta, outer_optimizer
from llmrl.learner.problem import InnerProblem
from llmrl.rewards import (
    Bonus,
    add,
    apt,
    evidence,
    goals,
    icm,
    intrinsic,
    intrinsic_stream,
    make_weights,
    mixture,
    read_goals,
    rnd,
    task,
    task_and_goals,
)
from llmrl.types import EnvSpec, MetaGradient, Scalar, Solver, Stream


class Method(NamedTuple):
    """A recipe: what to learn from, and how to learn it.

    Attributes:
        streams: reward streams; stream 0 is the bare task.
        meta: ``inner problem -> outer level``, or None where nothing is learned about the reward.
    """

    streams: tuple[Stream, ...]
    meta: Callable[[InnerProblem], Meta] | None = None


def make_solver(config: SolverConfig) -> Solver:
    """The solver that a config names."""
    factories: dict[str, Callable[[], Solver]] = {
        "neumann": lambda: solvers.neumann(
            config.num_terms, config.step_size, config.power_iterations, config.max_step_size
        ),
        "neumann_finite_difference": lambda: solvers.neumann_finite_difference(
            config.num_terms, 0.05 if config.step_size == "auto" else config.step_size, relative=config.relative
        ),
        "conjugate_gradient": lambda: solvers.conjugate_gradient(config.num_terms, config.tolerance),
        "diagonal": lambda: solvers.diagonal(config.num_probes),
        "sherman_morrison": lambda: solvers.sherman_morrison(),
        "identity": solvers.identity,
        "dense": solvers.dense,
    }
    if config.name not in factories:
        raise unknown("solver", config.name, factories)
    return factories[config.name]()


def make_gradient(outer: OuterConfig, solver: SolverConfig) -> MetaGradient:
    """The hypergradient that a config names."""
    if outer.gradient == "unrolled":
        return hypergradients.unrolled(outer.unroll_steps)
    return hypergradients.implicit(make_solver(solver), damping=solver.damping, max_ratio=solver.max_ratio)


def _penalty(outer: OuterConfig) -> Callable[[Sequence[PyTree]], Scalar]:
    """lambda_phi |phi|^2 + lambda_gamma gamma_eta^2 (the paper's eq. 5)."""

    def penalty(phis):
        total = jnp.zeros(())
        for phi in phis:
            weights = {group: value for group, value in phi.items() if group not in ("discount", "evidence")}
            total = total + outer.weight_penalty * optax.tree.norm(weights, squared=True)
            if "discount" in phi:
                total = total + outer.discount_penalty / jnp.square(1.0 + jnp.exp(-phi["discount"]))
        return total

    return penalty


def learned(config: Config) -> Callable[[InnerProblem], Meta]:
    """The outer level that a config describes, for whatever streams have parameters."""
    outer, trust, solver = config.method.outer, config.method.trust, config.solver
    rates = {
        "scalar": outer.scalar_learning_rate,
        "network": outer.learning_rate,
        "offset": outer.learning_rate,
        "discount": outer.discount_learning_rate,
        "evidence": 0.0,
    }
    return lambda inner: make_meta(
        inner,
        make_gradient(outer, solver),
        outer_optimizer(outer.optimiser, rates, outer.max_gradient_norm),
        cross_fitting=trust.cross_fitting,
        gate=trust.gate,
        evidence_memory=trust.evidence_memory,
        data=outer.data,
        window=outer.window,
        schedule=outer.schedule,
        every=outer.every,
        converged_kl=outer.converged_kl,
        scale_decay=outer.scale_decay,
        surrogate=outer.surrogate,
        max_importance_ratio=outer.max_importance_ratio,
        curvature=solver.curvature,
        curvature_fraction=solver.curvature_fraction,
        unroll_learning_rate=outer.unroll_learning_rate,
        penalty=_penalty(outer),
    )


def _blend(config: Config, spec: EnvSpec) -> Stream:
    weight, trust = config.method.weight, config.method.trust
    if not spec.aux_names and not weight.offset:
        raise ValueError(
            f"method={config.method.name} learns weights of auxiliary sources, got none; choose some (aux=harmful) or "
            "method=ppo"
        )
    weights = make_weights(
        spec,
        scalar=weight.scalar,
        network=weight.network,
        bound=weight.bound,
        initial=weight.initial,
        hidden=weight.hidden,
        sees_aux=weight.sees_aux,
        offset=weight.offset,
        discount=weight.discount,
        evidence=trust.evidence and trust.cross_fitting,
    )
    limits = evidence(
        len(spec.aux_names),
        units=trust.units,
        prior=trust.prior,
        patience=trust.patience,
        prior_decay=trust.prior_decay,
        ceiling=trust.ceiling,
        ceiling_fall=trust.ceiling_fall,
        ceiling_rise=trust.ceiling_rise,
        setback=trust.setback,
        gae_lambda=config.ppo.gae_lambda,
    )
    return Stream(mixture(spec, weights, limits), 1.0)


def ppo(config: Config, spec: EnvSpec) -> Method:
    """Ignore the auxiliary sources."""
    return Method((Stream(task(), 1.0),))


def trusting(config: Config, spec: EnvSpec) -> Method:
    """Trust the auxiliary sources: add them with weight 1."""
    return Method((Stream(task(), 0.0), Stream(add(), 1.0)))


def implicit(config: Config, spec: EnvSpec) -> Method:
    """Learn how far to trust each source, state by state, along the implicit gradient (Place 2023)."""
    return Method((Stream(task(), 0.0), _blend(config, spec)), learned(config))


def lirpg(config: Config, spec: EnvSpec) -> Method:
    """Learn an intrinsic reward by unrolling one inner step (Zheng et al. 2018)."""
    return Method((Stream(task(), 0.0), Stream(intrinsic(spec), 1.0)), learned(config))


def _explore(config: Config, name: str, bonus: Bonus) -> Method:
    """The task and a bonus for what is new, each with a critic head of its own (Burda et al. 2018)."""
    novelty, ppo = config.method.novelty, config.ppo
    stream = intrinsic_stream(bonus, novelty.discount, ppo.num_steps, ppo.num_envs, name)
    return Method((Stream(task(), 1.0), Stream(stream, novelty.coefficient)))


def _learning(novelty: NoveltyConfig) -> dict[str, Any]:
    names = ("discount", "learning_rate", "updates", "hidden", "features")
    return {name: getattr(novelty, name) for name in names}


def random_network(config: Config, spec: EnvSpec) -> Method:
    """Pay for states that a random network's imitator does not know yet (Burda et al. 2018)."""
    return _explore(config, "rnd", rnd(spec, config.ppo.num_envs, **_learning(config.method.novelty)))


def curious(config: Config, spec: EnvSpec) -> Method:
    """Pay for what a model of the dynamics does not foresee (Pathak et al. 2017)."""
    return _explore(config, "icm", icm(spec, config.ppo.num_envs, **_learning(config.method.novelty)))


def particles(config: Config, spec: EnvSpec) -> Method:
    """Pay for states far from the others of a rollout (Liu and Abbeel 2021)."""
    novelty = config.method.novelty
    bonus = apt(
        spec,
        config.ppo.num_steps,
        config.ppo.num_envs,
        neighbors=novelty.neighbors,
        references=novelty.references,
        representation=novelty.representation,
        **_learning(novelty),
    )
    return _explore(config, "apt", bonus)


def ellm(config: Config, spec: EnvSpec) -> Method:
    """Add a reward for goals that a language model suggests, or pretrain on it (Du et al. 2023)."""
    settings, ppo = config.method.goals, config.ppo
    if settings.table is None:
        raise ValueError(
            f"method={config.method.name} needs a table of suggested goals: method.goals.table=goals.jsonl"
        )
    suggested = goals(
        read_goals(settings.table), ppo.num_envs, threshold=settings.threshold, ineffective=settings.ineffective
    )
    stream = task_and_goals(
        suggested,
        ppo.num_steps,
        ppo.num_envs,
        coefficient=settings.coefficient,
        pretraining=settings.pretraining * config.num_iterations,
        keep=settings.keep,
    )
    return Method((Stream(task(), 0.0), Stream(stream, 1.0)))


METHODS: dict[str, Callable[[Config, EnvSpec], Method]] = {
    "ppo": ppo,
    "add": trusting,
    "implicit": implicit,
    "implicit_paper": implicit,
    "scalar": implicit,
    "lirpg": lirpg,
    "rnd": random_network,
    "icm": curious,
    "apt": particles,
    "ellm": ellm,
    "ellm_pretrained": ellm,
}
"""Recipes by name; presets of one recipe differ by their yaml alone."""


def make_method(config: Config, spec: EnvSpec) -> Method:
    """The method that a config names."""
    if config.method.name not in METHODS:
        raise unknown("method", config.method.name, METHODS)
    return METHODS[config.method.name](config, spec)
