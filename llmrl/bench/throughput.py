"""Environment steps per second: our PPO against rejax's, and methods that learn a reward against our PPO."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import NamedTuple

from llmrl.bench.compiling import MEGABYTE, Compiled, compiled
from llmrl.bench.processes import Worker, missing, worker
from llmrl.bench.report import Row, Table
from llmrl.bench.timing import interleaved, ratios
from llmrl.settings.config import AuxConfig, Config, EnvConfig, MethodConfig, PPOConfig, SolverConfig
from llmrl.settings.presets import with_method
from llmrl.settings.requests import Bench
from llmrl.settings.validation import validate
from llmrl.training.progress import note, plural

PLAIN = Config(
    env=EnvConfig(name="cartpole", horizon=500, reward="dense"),  # gymnax's own CartPole-v1, which rejax trains on
    method=MethodConfig(name="ppo"),
)

AIDED = Config(aux=AuxConfig(sources={"harmful": 1.0}))
"""Every method pays for the auxiliary source here, also the one that ignores it."""

PEERS = ("adops", "ranked_potential", "thresholded", "eipo", "decoupled", "irpo", "select")
"""Methods of others that hear a source."""

METHODS: dict[str, Config] = {
    **{name: with_method(AIDED, name) for name in ("ppo", "add", *PEERS, "twin")},
    "implicit": AIDED,
    "implicit, Neumann K=20, curvature on all": replace(
        AIDED, solver=SolverConfig(name="neumann", num_terms=20, curvature_fraction=1.0)
    ),
    "implicit, Neumann K=20, curvature on 1/4": replace(
        AIDED, solver=SolverConfig(name="neumann", num_terms=20, curvature_fraction=0.25)
    ),
}
REFERENCE = "ppo"
"""What the others are compared with: the first."""


class Contestant(NamedTuple):
    """A program to measure.

    Attributes:
        name: as shown.
        system: a key of ``worker.PROGRAMS``.
        config: its settings.
        python: the interpreter that has the system.
    """

    name: str
    system: str
    config: Config
    python: str = sys.executable


def ppo(request: Bench) -> Table:
    """Plain PPO on CartPole, with the same networks, minibatches and epochs on both sides."""
    against = _available(request)
    rows: list[Row] = []
    for seeds in request.seeds:
        for envs in request.envs:
            config = sized(PLAIN, seeds, envs)
            contestants = [Contestant("llmrl", "llmrl", config)]
            if against:
                contestants.insert(0, Contestant(against, against, config, request.rejax_python))
            rows += compared(contestants, request, f"{plural(seeds, 'seed')} x {envs} envs")
    return Table(f"PPO on CartPole, {_sizes(PLAIN.ppo)}", "steps/s", against or "", rows)


def methods(request: Bench) -> Table:
    """Learning how far to trust a source, against ignoring it."""
    rows: list[Row] = []
    envs = AIDED.ppo.num_envs
    for seeds in request.seeds:
        contestants = [Contestant(name, "llmrl", sized(config, seeds)) for name, config in METHODS.items()]
        needs = {it.name: compiled(it.config) for it in contestants}
        found = compared(contestants, request, f"{plural(seeds, 'seed')} x {envs} envs")
        rows += [_with_needs(row, needs[it.name], needs[REFERENCE]) for row, it in zip(found, contestants, strict=True)]
    solver = AIDED.solver
    defaults = f"{solver.name}, K={solver.num_terms}, {solver.curvature} on {solver.curvature_fraction:g} of the batch"
    return Table(
        f"methods on CartPole, {_sizes(AIDED.ppo)}; implicit by default: {defaults}",
        "steps/s",
        REFERENCE,
        rows,
    )


def _with_needs(row: Row, own: Compiled, reference: Compiled) -> Row:
    """The row, and what compiling its program took and the program needs, each also as a multiple of the reference."""
    seconds, memory = (value / other for value, other in zip(own, reference, strict=True))
    needs = (
        f"one iteration: compiled in {own.seconds:.1f} s ({seconds:.2g} x {REFERENCE}), "
        f"{own.bytes / MEGABYTE:.3g} MB ({memory:.2g} x {REFERENCE})"
    )
    return row._replace(note=f"{needs}; {row.note}")


def sized(config: Config, seeds: int, envs: int | None = None) -> Config:
    """The config for so many seeds of so many environments; None leaves the environments as many as they are.

    Raises:
        ValueError: the sizes do not fit.
    """
    return validate(replace(config, seeds=seeds, ppo=replace(config.ppo, num_envs=envs or config.ppo.num_envs)))


def _available(request: Bench) -> str | None:
    if request.against is None:
        return None
    reason = missing(request.rejax_python, request.against)
    if reason is None:
        return request.against
    note(
        f"{request.against} is left out: {reason}; `make bench-rejax` makes an environment, rejax_python= names another"
    )
    return None


def compared(contestants: Sequence[Contestant], request: Bench, where: str, same_total: bool = False) -> list[Row]:
    """Measure contestants side by side, the first being what the others are compared with.

    Args:
        contestants: what to measure.
        request: how long and how often.
        where: what they have in common, for the rows.
        same_total: whether ``request.steps`` are those of all seeds together, and not of each.
    """
    iterations = {
        it.name: max(1, round(request.steps / it.config.ppo.batch_size / (it.config.seeds if same_total else 1)))
        for it in contestants
    }
    with ExitStack() as running:
        workers: dict[str, Worker] = {}
        for contestant in contestants:
            note(f"{where}: compiling {contestant.name}")
            workers[contestant.name] = running.enter_context(
                worker(contestant.system, asdict(contestant.config), iterations[contestant.name], contestant.python)
            )
        seconds = interleaved({name: it.measure for name, it in workers.items()}, request.rounds)
    steps = {it.name: iterations[it.name] * it.config.ppo.batch_size * it.config.seeds for it in contestants}
    speeds = {name: [steps[name] / each for each in rounds] for name, rounds in seconds.items()}
    reference = speeds[contestants[0].name]
    return [
        Row(
            name=f"{where}, {name}",
            values=values,
            ratios=ratios(values, reference) if len(speeds) > 1 else [],
            note=_about(workers[name]),
        )
        for name, values in speeds.items()
    ]


def _about(it: Worker) -> str:
    device = plural(it.about["devices"], f"{it.about['device']} device")
    versions = ", ".join(f"{name} {version}" for name, version in it.about["versions"].items())
    return f"{device}, ready in {it.about['compile_seconds']:.1f} s, {versions}"


def _sizes(ppo: PPOConfig) -> str:
    widths = " x ".join(str(width) for width in ppo.hidden)
    return f"{ppo.num_steps} steps, {ppo.num_epochs} epochs x {ppo.num_minibatches} minibatches, nets {widths}"
