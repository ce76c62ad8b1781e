"""What a hypergradient costs, in units of one gradient of the policy's loss on the same batch.

Measured in this process, one program after another, on policies that have trained for a moment: at their first
parameters a policy's curvature is nearly that of its entropy alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import PRNGKeyArray, PyTree

from llmrl.assembly.methods import problem_settings
from llmrl.assembly.parts import build, make_environment
from llmrl.bench.peers import root_vjp
from llmrl.bench.report import Row, Table
from llmrl.bench.timing import interleaved, ratios, repeated, spread
from llmrl.bilevel import trees
from llmrl.bilevel.hypergradients import implicit, unrolled
from llmrl.bilevel.solvers import conjugate_gradient, fisher, hessian, neumann
from llmrl.bilevel.types import HypergradientInfo, MetaGradient, MetaProblem, Solver
from llmrl.learner.meta_problem import BilevelProblem, Part, ProblemSettings, make_problem
from llmrl.learner.problem import (
    Actions,
    InnerProblem,
    RolloutData,
    actions_of,
    inner_advantage,
    outer_variables,
    policy_objective,
)
from llmrl.learner.rollout import collect
from llmrl.learner.streams import value_rollout
from llmrl.ops.surrogates import ratio
from llmrl.settings.config import AuxConfig, Config, SolverConfig
from llmrl.settings.requests import Bench
from llmrl.training.cores import use_compilation_cache
from llmrl.training.devices import seed_mesh
from llmrl.training.loop import compiled_run, initial_states, make_trainer
from llmrl.training.progress import note
from llmrl.types import Scalar

AIDED = Config(aux=AuxConfig(sources={"harmful": 1.0}), devices=1)
SETTINGS = problem_settings(AIDED)
UNIT = "policy gradient"
DAMPING = 0.1

Call = Callable[["Sample"], Any]
"""What is compiled and measured, a function of a sample."""


class Sample(NamedTuple):
    """A batch and everything that a hypergradient on it needs.

    Attributes:
        theta: the actor's parameters.
        phis: all streams' parameters.
        states: the transforms' states.
        data: the rollout and its values.
        actions: what ``policy_objective`` takes, its advantage computed.
        outer_scale: what divides the task's advantage, [].
        direction: a random v, structured like theta.
        key: for solvers and subsets.
    """

    theta: PyTree
    phis: tuple[PyTree, ...]
    states: tuple[PyTree, ...]
    data: RolloutData
    actions: Actions
    outer_scale: Scalar
    direction: PyTree
    key: PRNGKeyArray


class Variant(NamedTuple):
    """A hypergradient to measure.

    Attributes:
        name: as shown.
        gradient: the hypergradient.
        curvature: ``hessian`` or ``fisher``.
        fraction: share of the batch that curvature is computed on.
        like: the variant that its direction is compared with, if any.
    """

    name: str
    gradient: MetaGradient
    curvature: str = "hessian"
    fraction: float = 1.0
    like: str | None = None


def _pair(name: str, gradient: MetaGradient, curvature: str) -> list[Variant]:
    whole = f"{name}, {curvature}"
    return [
        Variant(whole, gradient, curvature),
        Variant(f"{whole} on 1/4", gradient, curvature, 0.25, like=whole),
    ]


def _guarded(solver: Solver) -> MetaGradient:
    """The implicit gradient as training has it."""
    return implicit(solver, DAMPING, SolverConfig().max_ratio)


VARIANTS = (
    *_pair("neumann K=10", _guarded(neumann(10, step_size=0.5)), "hessian"),
    *_pair("neumann K=10", _guarded(neumann(10, step_size=0.5)), "fisher"),
    *_pair("neumann K=10, automatic step", _guarded(neumann(10)), "hessian"),
    *_pair("neumann K=10, automatic step", _guarded(neumann(10)), "fisher"),
    Variant("conjugate_gradient 10, hessian", _guarded(conjugate_gradient(10))),
    Variant("conjugate_gradient 10, fisher", _guarded(conjugate_gradient(10)), "fisher"),
    Variant("unrolled 10", unrolled(10, recompute=False)),
    Variant("unrolled 10, each step computed again on the way back", unrolled(10)),
)


def meta(request: Bench) -> Table:
    """Curvature products and hypergradients on 4-64-64-2 policies and batches of 2048 steps."""
    rollouts, seconds = (2, 0.05) if request.quick else (8, 0.25)
    variants = list(VARIANTS)
    if find_spec("jaxopt") is None:
        note("jaxopt is left out: it is not installed; `pip install jaxopt`")
    else:
        variants.append(Variant("jaxopt's root_vjp, conjugate gradients 10", root_vjp(10, DAMPING)))
    return measured(AIDED, variants, request.rounds, rollouts=rollouts, iterations=20, seconds=seconds)


def measured(
    config: Config, variants: Sequence[Variant], rounds: int, *, rollouts: int, iterations: int, seconds: float
) -> Table:
    """Cost of parts and variants, and how well they agree with what they stand for.

    Args:
        config: sizes of batch and networks, and the method that makes the problem.
        variants: hypergradients; one that another is ``like`` comes before it.
        rounds: measurements of each.
        rollouts: batches, of as many policies, on which directions are compared; the first is the one for timing.
        iterations: how long the policies train before.
        seconds: of one measurement.
    """
    use_compilation_cache()
    inner, samples = problems(config, rollouts, iterations)
    calls = {**parts(inner), **{variant.name: hypergradient(inner, variant) for variant in variants}}
    programs = {name: jax.jit(call).lower(samples[0]).compile() for name, call in calls.items()}
    found = {variant.name: [programs[variant.name](sample) for sample in samples] for variant in variants}
    notes = {variant.name: _note(variant, found) for variant in variants}

    times = interleaved(
        {name: repeated(lambda run=run: run(samples[0]), seconds) for name, run in programs.items()}, rounds
    )
    notes = {name: _with_memory(notes.get(name, ""), program) for name, program in programs.items()}
    rows = [
        Row(name, [1e3 * each for each in times[name]], ratios(times[name], times[UNIT]), notes[name])
        for name in programs
    ]
    size = sum(leaf.size for leaf in jax.tree.leaves(samples[0].theta))
    title = f"cost of a hypergradient, policy of {size} parameters, batch of {config.ppo.batch_size} steps"
    return Table(title, "ms", UNIT, rows)


# --- what is measured -------------------------------------------------------------------------------------------------


def parts(inner: InnerProblem) -> dict[str, Call]:
    """The unit, the unit once more (how much a ratio may be trusted), and what hypergradients are made of."""
    objective = policy_objective(inner, ratio, SETTINGS.max_importance_ratio, True)

    def policy_gradient(sample: Sample):
        return jax.grad(objective)(sample.theta, sample.actions)

    def blended_gradient(sample: Sample):
        return jax.grad(_problem(inner, sample, SETTINGS).inner_loss)(
            sample.theta, outer_variables(sample.phis, sample.states)
        )

    def hessian_product(sample: Sample):
        return hessian(lambda theta: objective(theta, sample.actions), sample.theta)(sample.direction)

    def fisher_product(sample: Sample):
        obs, action = sample.actions.obs, sample.actions.action

        def log_likelihood(theta):
            return inner.policy.distribution(theta, obs).log_prob(action).reshape(-1)

        return fisher(log_likelihood, sample.theta)(sample.direction)

    return {
        UNIT: policy_gradient,
        f"{UNIT}, the same again": policy_gradient,
        f"{UNIT}, blending included": blended_gradient,
        "Hessian product": hessian_product,
        "Fisher product": fisher_product,
    }


def hypergradient(inner: InnerProblem, variant: Variant) -> Call:
    """A variant on a whole batch, its residual measured as in training."""

    def call(sample: Sample) -> tuple[PyTree, HypergradientInfo]:
        settings = SETTINGS._replace(curvature=variant.curvature, computed_on=Part(variant.fraction))
        problem = _problem(inner, sample, settings)
        return variant.gradient(problem, sample.theta, outer_variables(sample.phis, sample.states), sample.key)

    return call


def _problem(inner: InnerProblem, sample: Sample, settings: ProblemSettings) -> MetaProblem:
    data = sample.data
    return make_problem(BilevelProblem(inner, settings, data, data, sample.states, sample.outer_scale, sample.key))


# --- what it is measured on -------------------------------------------------------------------------------------------


def problems(config: Config, rollouts: int, iterations: int) -> tuple[InnerProblem, list[Sample]]:
    """The inner problem of a config, and a batch of each of several policies after some training."""
    config = replace(config, seeds=rollouts)
    trainer, mesh = make_trainer(config), seed_mesh(config)
    states = initial_states(trainer, config, mesh)
    states, _ = compiled_run(trainer, states, mesh, iterations)(states, np.int32(0))

    env = make_environment(config)
    inner = build(config, env).inner

    def sample(state) -> Sample:
        rollout_key, direction_key, key = jax.random.split(state.key, 3)
        actor = state.params.actor
        _, rollout = collect(env, inner.policy, actor, state.acting, rollout_key, config.ppo.num_steps)
        data = RolloutData(rollout, value_rollout(inner.critic, state.params.critic, rollout))
        advantage = inner_advantage(inner, state.phis, state.transform_states, data)
        direction = trees.normal_like(direction_key, actor)
        scale = state.meta_state.outer_scale
        return Sample(
            actor, state.phis, state.transform_states, data, actions_of(data, advantage), scale, direction, key
        )

    one = jax.jit(sample)
    return inner, [one(jax.tree.map(lambda x, i=i: x[i], states)) for i in range(rollouts)]


# --- what is said of it -----------------------------------------------------------------------------------------------


def cosine(a: PyTree, b: PyTree) -> float:
    """Cosine of the angle between two pytrees; NaN where either is 0 and has no direction."""
    norms = optax.tree.norm(a) * optax.tree.norm(b)
    return float(optax.tree.vdot(a, b) / norms) if norms > 0 else float("nan")


def _with_memory(note: str, program: jax.stages.Compiled) -> str:
    """A program's note, and what it needs beside its arguments and results."""
    found = program.memory_analysis()
    memory = "" if found is None else f"{found.temp_size_in_bytes / 2**20:.1f} MB"
    return ", ".join(filter(None, [note, memory]))


def _note(variant: Variant, found: dict[str, list[tuple[PyTree, HypergradientInfo]]]) -> str:
    infos = [info for _, info in found[variant.name]]
    products = max(int(info.num_matvecs) for info in infos)
    words = []
    if products:
        words += [
            f"{products} products",
            f"residual {spread([float(info.residual_norm) for info in infos]).median:.2g}",
        ]
    if variant.like is not None:
        pairs = zip(found[variant.name], found[variant.like], strict=True)
        # A batch without a single failure says nothing about phi, so it has no direction to compare either.
        cosines = [value for (mine, _), (whole, _) in pairs if not math.isnan(value := cosine(mine, whole))] or [
            math.nan
        ]
        mean, lowest = np.mean(cosines), np.min(cosines)
        words.append(f"cosine with the whole batch's {mean:.3f} (lowest {lowest:.3f})")
    return ", ".join(words)
