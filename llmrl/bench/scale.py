"""Steps per second where there is much to do at once: seeds of CartPole, environments of Craftax-Classic.

Meant for an accelerator, where absolute numbers mean something; on a CPU it runs too, and takes as long as it takes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import jax

from llmrl.bench.crafter import LEARNED, PLAIN, ours_alone, with_envs
from llmrl.bench.report import Row, Table
from llmrl.bench.throughput import AIDED, sized
from llmrl.bench.timing import interleaved, ratios, repeated, spread
from llmrl.bench.worker import llmrl_program
from llmrl.settings.config import Config, MethodConfig
from llmrl.settings.requests import Bench
from llmrl.training.cores import use_compilation_cache
from llmrl.training.progress import note, plural

PPO, TRUSTED, LEARNING, GAME = "ppo", "add", "implicit", "the game alone, random play"
ITERATIONS = 4
"""In one call of a program: a call costs a round trip to the device."""
WISHED_SECONDS, QUICK_SECONDS = 1.0, 0.2

Program = Callable[[], Any]
"""Trains, or plays, on from where its last call ended."""
Made = tuple[Program, int]
"""With it: environment steps in one call."""


def scale(request: Bench) -> Table:
    """Acting, learning and the outer step, as one program each; the source is paid for by all but Crafter's ppo."""
    use_compilation_cache()
    device = jax.devices()[0]  # started here, so that no single program decides how
    groups: dict[str, dict[str, Callable[[], Made]]] = {}
    for seeds in request.scale_seeds:
        config = sized(AIDED, seeds)
        groups[f"CartPole, {plural(seeds, 'seed')} x {config.ppo.num_envs} envs"] = _of_methods(config, config)
    for envs in request.scale_envs:
        plain, aided = with_envs(PLAIN, envs), with_envs(LEARNED, envs)
        groups[f"Craftax-Classic, {envs} envs"] = _of_methods(plain, aided) | {GAME: partial(_game, plain)}
    note(f"compiling {sum(map(len, groups.values()))} programs")
    # XLA compiles on one core, and Python is free in the meantime.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        begun = {
            group: {name: pool.submit(_prepared, make) for name, make in programs.items()}
            for group, programs in groups.items()
        }
        ready = {group: {name: it.result() for name, it in programs.items()} for group, programs in begun.items()}
    rows = [row for group, programs in ready.items() for row in _measured(group, programs, request)]
    title = f"at scale, {plural(len(jax.devices()), device.device_kind)}; steps of all seeds together"
    return Table(title, "steps/s", PPO, rows)


def _of_methods(plain: Config, aided: Config) -> dict[str, Callable[[], Made]]:
    """What ignores the source, what adds it, and what learns how far to trust it."""
    configs = {
        PPO: replace(plain, method=MethodConfig(name="ppo")),
        TRUSTED: replace(aided, method=MethodConfig(name="add")),
        LEARNING: aided,
    }
    return {name: partial(_training, config) for name, config in configs.items()}


def _prepared(make: Callable[[], Made]) -> tuple[Program, int, float]:
    began = time.perf_counter()
    call, steps = make()
    return call, steps, time.perf_counter() - began


def _training(config: Config) -> Made:
    program = llmrl_program(asdict(config), ITERATIONS)
    going_on = _carried(lambda states: program.run(states)[0], program.state)
    return going_on, ITERATIONS * config.seeds * config.ppo.batch_size


def _game(config: Config) -> Made:
    return _carried(*ours_alone(config)), config.ppo.batch_size


def _carried(program: Callable[[Any], Any], state: Any) -> Program:
    """A program of a state, as calls that go on from one another; compiled and begun."""

    def call():
        nonlocal state
        state = program(state)
        return state

    jax.block_until_ready(call())
    return call


def _measured(group: str, programs: Mapping[str, tuple[Program, int, float]], request: Bench) -> list[Row]:
    """The programs of a group take turns."""
    note(f"{group}: {', '.join(programs)}")
    wished = QUICK_SECONDS if request.quick else WISHED_SECONDS
    measures = {name: repeated(call, wished) for name, (call, _, _) in programs.items()}
    taken = interleaved(measures, request.rounds)
    speeds = {name: [programs[name][1] / each for each in rounds] for name, rounds in taken.items()}
    rows = []
    for name, values in speeds.items():
        said = f"compiled in {programs[name][2]:.0f} s"
        if name == LEARNING:
            share = 1 - spread(ratios(values, speeds[TRUSTED])).median
            said = f"{share:.0%} of the time in the outer step; {said}"
        rows.append(Row(f"{group}, {name}", values, ratios(values, speeds[PPO]), said))
        note(f"{name}: {spread(values).median:,.0f} steps/s, {said}")
    return rows
