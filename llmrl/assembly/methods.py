"""The paper's table as code: a name, the reward streams it learns from, and how (if at all) it learns them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from llmrl.bilevel import hypergradients, solvers
from llmrl.bilevel.types import MetaGradient, Solver
from llmrl.envs import GOALS
from llmrl.learner.meta import Meta, MetaSettings, OuterLevel, make_meta, outer_optimizer
from llmrl.learner.meta_problem import Part, ProblemSettings
from llmrl.learner.problem import InnerProblem
from llmrl.rewards.add import add, add_one
from llmrl.rewards.adops import adops
from llmrl.rewards.base import beyond_task
from llmrl.rewards.base import frozen as frozen_transform
from llmrl.rewards.bonus import Bonus, intrinsic_stream
from llmrl.rewards.curiosity import icm
from llmrl.rewards.goals import from_source, goals, read_goals, task_and_goals
from llmrl.rewards.intrinsic import intrinsic
from llmrl.rewards.novelty import rnd
from llmrl.rewards.particle import apt
from llmrl.rewards.potential import dpba, pbrs, pies
from llmrl.rewards.task import task
from llmrl.settings.config import Config, NoveltyConfig, OuterConfig, SolverConfig
from llmrl.settings.errors import BadValue, unknown
from llmrl.settings.presets import with_method
from llmrl.trust.advice import advice_rule, advice_stream
from llmrl.trust.blend import Weights, make_weights, mixture
from llmrl.trust.credit import credit_stream
from llmrl.trust.limits import weight_limits
from llmrl.trust.views import beside_weights
from llmrl.types import EnvSpec, RewardTransform, Scalar, Stream, View


class Method(NamedTuple):
    """A recipe: what to learn from, and how to learn it.

    Attributes:
        streams: reward streams; stream 0 is the bare task.
        meta: ``inner problem -> outer level``, or None where nothing is learned about the reward.
        view: what the policy sees in place of the observation; None where that is the observation itself.
    """

    streams: tuple[Stream, ...]
    meta: Callable[[InnerProblem], Meta] | None = None
    view: View | None = None


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
        # Where the operator is damped, updates start from the same damping: they solve that system and no other.
        "sherman_morrison": lambda: solvers.sherman_morrison(
            config.damping if isinstance(config.damping, (int, float)) and config.damping > 0.0 else 1e-3
        ),
        "identity": solvers.identity,
        "dense": solvers.dense,
    }
    if config.name not in factories:
        raise unknown("solver", config.name, factories)
    return factories[config.name]()


def make_gradient(outer: OuterConfig, solver: SolverConfig) -> MetaGradient:
    """The hypergradient that a config names."""
    factories: dict[str, Callable[[], MetaGradient]] = {
        "implicit": lambda: hypergradients.implicit(make_solver(solver), solver.damping, solver.max_ratio),
        "unrolled": lambda: hypergradients.unrolled(outer.unroll_steps),
        "incremental": hypergradients.incremental,
        "explicit": hypergradients.explicit,
    }
    if outer.gradient not in factories:
        raise unknown("hypergradient", outer.gradient, factories)
    return factories[outer.gradient]()


def _penalty(outer: OuterConfig) -> Callable[[Sequence[PyTree]], Scalar]:
    """lambda_phi |phi|^2 + lambda_gamma gamma_eta^2 (the paper's eq. 5)."""

    def penalty(phis):
        total = jnp.zeros(())
        for phi in phis:
            weights = {group: value for group, value in phi.items() if group != "discount"}
            total = total + outer.weight_penalty * optax.tree.norm(weights, squared=True)
            if "discount" in phi:
                total = total + outer.discount_penalty / jnp.square(1.0 + jnp.exp(-phi["discount"]))
        return total

    return penalty


def problem_settings(config: Config) -> ProblemSettings:
    """How a config has the two levels' losses and their curvature computed."""
    outer, solver = config.method.outer, config.solver
    return ProblemSettings(
        surrogate=outer.surrogate,
        max_importance_ratio=outer.max_importance_ratio,
        curvature=solver.curvature,
        computed_on=Part(solver.curvature_fraction, solver.curvature_samples),
        unroll_learning_rate=outer.unroll_learning_rate,
        penalty=_penalty(outer),
    )


def meta_settings(config: Config) -> MetaSettings:
    """When a config has the outer level step, and on which data."""
    outer, trust = config.method.outer, config.method.trust
    return MetaSettings(
        cross_fitting=trust.cross_fitting,
        gate=trust.gate,
        evidence_memory=trust.evidence_memory,
        data=outer.data,
        window=outer.window,
        follows_updates=outer.gradient == "incremental",
        schedule=outer.schedule,
        every=outer.every,
        warmup=outer.warmup,
        converged_kl=outer.converged_kl,
        scale_decay=outer.scale_decay,
        gae_lambda=outer.gae_lambda,
    )


def learned(config: Config) -> Callable[[InnerProblem], Meta]:
    """The outer level that a config describes, for whatever streams have parameters.

    Making it raises a ValueError where the environments cannot be split in the halves that it needs.
    """
    outer, trust = config.method.outer, config.method.trust
    rates = {
        "scalar": outer.scalar_learning_rate,
        "network": outer.learning_rate,
        "offset": outer.learning_rate,
        "discount": outer.discount_learning_rate,
    }

    def meta(inner: InnerProblem) -> Meta:
        if trust.cross_fitting and config.ppo.num_envs % 2:
            raise BadValue(
                f"method={config.method.name} judges each half of the environments by the other half: ppo.num_envs="
                f"{config.ppo.num_envs} is odd; choose an even number, or method.trust.cross_fitting=false"
            )
        optimizer = outer_optimizer(outer.optimiser, rates, outer.max_gradient_norm)
        gradient = make_gradient(outer, config.solver)
        return make_meta(OuterLevel(inner, gradient, optimizer, meta_settings(config), problem_settings(config)))

    return meta


def _beside_task(transform: RewardTransform) -> tuple[Stream, ...]:
    """The bare task, and what a transform pays beyond it: two critic heads, one sum."""
    return Stream(task(), 1.0), Stream(beyond_task(transform), 1.0)


def _weights(config: Config, spec: EnvSpec) -> Weights:
    weight = config.method.weight
    if not spec.aux_names and not weight.offset:
        raise BadValue(
            f"method={config.method.name} learns weights of auxiliary sources, got none; choose some (aux=harmful) or "
            "method=ppo"
        )
    return make_weights(
        spec,
        scalar=weight.scalar,
        network=weight.network,
        bound=weight.bound,
        initial=weight.initial,
        hidden=weight.hidden,
        sees_action=weight.sees_action,
        sees_aux=weight.sees_aux,
        whiten=weight.whiten,
        spread=weight.spread,
        clip_steps=weight.clip_steps,
        residual=weight.residual,
        offset=weight.offset,
        discount=weight.discount,
    )


def _blend(config: Config, spec: EnvSpec) -> tuple[Stream, ...]:
    """The streams of a learned blend, the bare task first."""
    weight, trust = config.method.weight, config.method.trust
    limits = weight_limits(
        len(spec.aux_names),
        units=trust.units,
        ceiling=trust.ceiling,
        ceiling_fall=trust.ceiling_fall,
        ceiling_rise=trust.ceiling_rise,
        setback=trust.setback,
        gae_lambda=config.ppo.gae_lambda,
    )
    rule = None
    if trust.advice:
        rule = advice_rule(
            len(spec.aux_names),
            largest=trust.advice,
            patience=trust.advice_patience,
            decay=trust.advice_decay,
            rarity=trust.advice_rarity,
            events=trust.advice_events,
            fade=trust.advice_fade,
        )
    blend = mixture(spec, _weights(config, spec), limits, rule, judged=trust.evidence)
    # Under a discount of its own the blend is no sum of the task and something else.
    learns_discount = weight.discount
    streams = (Stream(task(), 0.0), Stream(blend, 1.0)) if learns_discount else _beside_task(blend)
    if rule is None:
        return streams
    return (*streams, *(advice_stream(rule, 1, m, name) for m, name in enumerate(spec.aux_names)))


def ppo(config: Config, spec: EnvSpec) -> Method:
    """Ignore the auxiliary sources."""
    return Method((Stream(task(), 1.0),))


def trusting(config: Config, spec: EnvSpec) -> Method:
    """Trust the auxiliary sources: add them with weight 1."""
    return Method(_beside_task(add()))


def implicit(config: Config, spec: EnvSpec) -> Method:
    """Learn how far to trust each source, state by state, along the implicit gradient (Place 2023)."""
    return Method(_blend(config, spec), learned(config))


def credit(config: Config, spec: EnvSpec) -> Method:
    """Follow the auxiliary sources action by action, as much as the task; with weights that an arm may learn."""
    _require_sources(config, spec)
    arms = config.method.arms
    if arms.follow == ("none",):
        return ppo(config, spec)
    learns = "learned" in arms.follow
    weights, judged = _weights(config, spec) if learns else None, config.method.trust.evidence
    stream = credit_stream(spec, config.method.follow, weights, judged=judged)
    return Method((Stream(task(), 1.0), stream), learned(config) if learns else None)


def extrinsic_intrinsic(config: Config, spec: EnvSpec) -> Method:
    """Two policies, one on the task alone and one on its sum with the sources, as far as the task does not suffer."""
    _require_sources(config, spec)
    return Method(_beside_task(add()))


def explorer_and_exploiter(config: Config, spec: EnvSpec) -> Method:
    """Two policies: one on the task and the sources, which acts, and one that learns the task from it."""
    _require_sources(config, spec)
    return Method(_beside_task(add()))


def explorers_of_a_base(config: Config, spec: EnvSpec) -> Method:
    """A base policy that learns the task alone, through explorers that each follow one source (Cho and Tran 2026)."""
    _require_sources(config, spec)
    sources = range(len(spec.aux_names))
    return Method((Stream(task(), 1.0), *(Stream(beyond_task(add_one(m)), 0.0) for m in sources)))


SEVERAL = ("twin", "eipo", "decoupled", "irpo", "select")
"""Methods that train several policies."""


def selected(config: Config, spec: EnvSpec) -> Method:
    """Several methods side by side, one played at a time; the task alone judges them (Zhang et al. 2024)."""
    arms = config.method.select.arms
    if not arms:
        raise BadValue("method.select.arms needs at least one method, as in method.select.arms=[ppo,add]")
    for name in arms:
        if name not in METHODS:
            raise unknown("method.select.arms", name, METHODS)
        whole = name not in (*SEVERAL, "frozen")
        if not whole or make_method(with_method(config, name), spec).view is not None:
            raise BadValue(
                f"method.select.arms takes methods of one policy that sees what the environment shows and needs no "
                f"other run, got {name}"
            )
    return Method((Stream(task(), 1.0),))


def lirpg(config: Config, spec: EnvSpec) -> Method:
    """Learn an intrinsic reward by unrolling one inner step (Zheng et al. 2018)."""
    return Method(_beside_task(intrinsic(spec)), learned(config))


def potential_based(config: Config, spec: EnvSpec) -> Method:
    """Shape with the auxiliary sources themselves as the potential (the baseline of Gupta et al. 2023)."""
    _require_sources(config, spec)
    return Method(_beside_task(pbrs(config.method.potential.coefficient)))


def dynamic_advice(config: Config, spec: EnvSpec) -> Method:
    """Shape with a learned potential that is worth the auxiliary sources (Harutyunyan et al. 2015)."""
    _require_sources(config, spec)
    return Method(_beside_task(dpba(spec, **_potential(config))))


def explicit_shaping(config: Config, spec: EnvSpec) -> Method:
    """The same, fading until the task's own reward is all there is (Behboudian et al. 2020)."""
    _require_sources(config, spec)
    fading = pies(spec, num_iterations=config.num_iterations, decay=config.method.potential.decay, **_potential(config))
    return Method(_beside_task(fading))


def optimality_preserving(config: Config, spec: EnvSpec) -> Method:
    """Add the sources, but cut where they would change which actions the task prefers (Forbes et al. 2025)."""
    _require_sources(config, spec)
    settings = config.method.correction
    bonus = adops(epsilon=settings.epsilon, ramp=settings.ramp * config.num_iterations)
    return Method((Stream(task(), 1.0), Stream(bonus, 1.0)))


def _potential(config: Config) -> dict[str, Any]:
    return {name: value for name, value in vars(config.method.potential).items() if name != "decay"}


def _require_sources(config: Config, spec: EnvSpec) -> None:
    if not spec.aux_names:
        raise BadValue(
            f"method={config.method.name} shapes with auxiliary sources, got none; choose some (aux=harmful) or "
            "method=ppo"
        )


def bipars_em(config: Config, spec: EnvSpec) -> Method:
    """Learn weights of states, along the policy gradient that they have since the policy sees them (Hu et al. 2020)."""
    view = beside_weights(spec, _weights(config, spec), stream=1)
    return Method(_blend(config, spec), learned(config), view)


def frozen(config: Config, spec: EnvSpec) -> Method:
    """Learn from the reward that another run has learned; neither an outer step nor the reward itself changes it.

    What is transferred is the reward alone: the policy sees what the environment shows, whatever the other run's saw.
    """
    name = config.method.reward_of
    if name is None or name == "frozen":
        raise BadValue(f"method=frozen needs method.reward_of, the method that learned the reward, got {name}")
    learner = make_method(replace(config, method=replace(config.method, name=name)), spec)
    if learner.meta is None:
        raise BadValue(f"method={name} learns no reward that could be frozen")
    return Method(tuple(s._replace(transform=frozen_transform(s.transform)) for s in learner.streams))


def _explore(config: Config, name: str, bonus: Bonus) -> Method:
    """The task and a bonus for what is new, each with a critic head of its own (Burda et al. 2018)."""
    novelty, ppo = config.method.novelty, config.ppo
    stream = intrinsic_stream(bonus, novelty.discount, ppo.num_steps, ppo.num_envs, name)
    return Method((Stream(task(), 1.0), Stream(stream, novelty.coefficient)))


def _learning(novelty: NoveltyConfig) -> dict[str, Any]:
    names = ("discount", "learning_rate", "updates", "hidden", "features")
    return {name: getattr(novelty, name) for name in names}


def novelty_of(config: Config, spec: EnvSpec) -> Bonus:
    """What a random network's imitator does not know yet, with a config's settings."""
    return rnd(spec, config.ppo.num_envs, **_learning(config.method.novelty))


def random_network(config: Config, spec: EnvSpec) -> Method:
    """Pay for states that a random network's imitator does not know yet (Burda et al. 2018)."""
    return _explore(config, "rnd", novelty_of(config, spec))


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
    if settings.table is not None:
        bonus = goals(
            read_goals(settings.table), ppo.num_envs, threshold=settings.threshold, ineffective=settings.ineffective
        )
    elif GOALS in spec.aux_names:
        bonus = from_source(spec.aux_names.index(GOALS))
    else:
        raise BadValue(
            f"method={config.method.name} needs suggested goals: aux=goals, or a table of them, "
            "method.goals.table=goals.jsonl"
        )
    stream = task_and_goals(
        bonus,
        ppo.num_steps,
        ppo.num_envs,
        coefficient=settings.coefficient,
        pretraining=settings.pretraining * config.num_iterations,
        keep=settings.keep,
    )
    return Method((Stream(task(), 0.0), Stream(stream, 1.0)))


class Recipe(NamedTuple):
    """How a method is made, and what of a config it looks at.

    Attributes:
        make: ``(config, spec) -> Method``.
        reads: sections of ``config.method`` that it looks at; None where any of them may matter, and the solver.
        hears: whether it looks at the auxiliary sources.
        course: a setting of ``config.method`` that, above 0, sets a course over the whole training.
        needs_more: whether it needs more than a source: another run, or goals.
    """

    make: Callable[[Config, EnvSpec], Method]
    reads: tuple[str, ...] | None = None
    hears: bool = True
    course: str | None = None
    needs_more: bool = False


_SUGGESTED = Recipe(ellm, reads=("goals",), course="goals.pretraining", needs_more=True)

METHODS: dict[str, Recipe] = {
    "ppo": Recipe(ppo, reads=(), hears=False),
    "add": Recipe(trusting, reads=()),
    "implicit": Recipe(implicit),
    "implicit_paper": Recipe(implicit),
    "scalar": Recipe(implicit),
    "credit": Recipe(credit),
    "twin": Recipe(credit),
    "eipo": Recipe(extrinsic_intrinsic, reads=("eipo",)),
    "decoupled": Recipe(explorer_and_exploiter, reads=()),
    "irpo": Recipe(explorers_of_a_base, reads=("irpo",)),
    "select": Recipe(selected),
    "lirpg": Recipe(lirpg),
    "pbrs": Recipe(potential_based, reads=("potential",)),
    "dpba": Recipe(dynamic_advice, reads=("potential",)),
    "pies": Recipe(explicit_shaping, reads=("potential",), course="potential.decay"),
    "adops": Recipe(optimality_preserving, reads=("correction",), course="correction.ramp"),
    "ranked_potential": Recipe(trusting, reads=()),
    "thresholded": Recipe(trusting, reads=()),
    "unrolled": Recipe(implicit),
    "barfi": Recipe(implicit),
    "bipars_em": Recipe(bipars_em),
    "bipars_mgl": Recipe(implicit),
    "bipars_imgl": Recipe(implicit),
    "frozen": Recipe(frozen, needs_more=True),
    "rnd": Recipe(random_network, reads=("novelty",), hears=False),
    "icm": Recipe(curious, reads=("novelty",), hears=False),
    "apt": Recipe(particles, reads=("novelty",), hears=False),
    "ellm": _SUGGESTED,
    "ellm_pretrained": _SUGGESTED,
}
"""Recipes by name; presets of one recipe differ by their yaml alone."""


def make_method(config: Config, spec: EnvSpec) -> Method:
    """The method that a config names."""
    if config.method.name not in METHODS:
        raise unknown("method", config.method.name, METHODS)
    method = METHODS[config.method.name].make(config, spec)
    if config.method.outer.gradient == "explicit" and method.meta is not None and method.view is None:
        raise BadValue(
            "method.outer.gradient=explicit needs a policy that sees what is learned (method=bipars_em), got "
            f"method={config.method.name}"
        )
    return method
