"""What it costs to start, to have more seeds, and to keep them in memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

from llmrl.bench.compiling import MEGABYTE, compiled
from llmrl.bench.processes import child_environment
from llmrl.bench.report import Row, Table
from llmrl.bench.throughput import AIDED, Contestant, compared, sized
from llmrl.bench.timing import ratios
from llmrl.settings.config import Config, MethodConfig
from llmrl.settings.errors import CannotRun
from llmrl.settings.requests import Bench
from llmrl.training.progress import note, plural

SEEDS = (1, 2, 4, 8, 16, 32, 64)
PHASES = ("import", "initial state", "trace and compile", "first iteration")
SCRIPT = Path(__file__).with_name("starting.py")


def seeds(request: Bench) -> Table:
    """From one seed to 64, in steps of all seeds per second: as fast as one seed, times cores, would be free."""
    plain, envs = replace(AIDED, method=MethodConfig(name="ppo")), AIDED.ppo.num_envs
    numbers = SEEDS[:3] if request.quick else SEEDS
    contestants = [Contestant(plural(number, "seed"), "llmrl", sized(plain, number)) for number in numbers]
    rows = compared(contestants, request, f"x {envs} envs", same_total=True)
    return Table(f"plain PPO with more seeds, {os.cpu_count()} cores", "steps/s", contestants[0].name, rows)


def start(request: Bench) -> Table:
    """From the command to the end of the first iteration: without anything compiled before, and again."""
    config = sized(AIDED, AIDED.seeds)
    found: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
    for number in range(request.rounds):
        with tempfile.TemporaryDirectory() as cache:
            for state, rounds in found.items():
                note(f"round {number + 1} of {request.rounds}: {state} start")
                rounds.append(_started(config, cache))
    rows = []
    for phase in ("first result, in all", *PHASES):
        cold, warm = ([seconds[phase] for seconds in found[state]] for state in ("cold", "warm"))
        rows += [Row(f"{phase}, cold", cold, []), Row(f"{phase}, warm", warm, ratios(warm, cold))]
    title = (
        f"start of method={config.method.name}, {plural(config.seeds, 'seed')}; warm: compiled by an earlier process"
    )
    return Table(title, "s", "cold", rows)


def _started(config: Config, cache: str) -> dict[str, float]:
    """Seconds of every phase, in a process of its own."""
    environment = child_environment("llmrl") | {"JAX_COMPILATION_CACHE_DIR": cache}
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    began = time.perf_counter()
    process = subprocess.run(
        [sys.executable, "-P", str(SCRIPT)],
        input=json.dumps(asdict(config)) + "\n",
        capture_output=True,
        text=True,
        env=environment,
    )
    if process.returncode:
        raise CannotRun(f"a start ended with exit code {process.returncode}: {process.stderr.strip()[-300:]}")
    return {"first result, in all": time.perf_counter() - began, **json.loads(process.stdout.splitlines()[-1])}


def memory(request: Bench) -> Table:
    """What the compiler sets aside for one chunk of training, by seeds and environments; nothing is run."""
    methods = {"ppo": replace(AIDED, method=MethodConfig(name="ppo")), "implicit": AIDED}
    envs = AIDED.ppo.num_envs
    rows = []
    for name, config in methods.items():
        needed = {size: compiled(sized(config, *size)).bytes for size in ((1, envs), (2, envs), (1, 2 * envs))}
        one, two, wide = (value / MEGABYTE for value in needed.values())
        rows += [
            Row(f"{name}, 1 seed x {envs} envs", [one], []),
            Row(f"{name}, per further seed", [two - one], []),
            Row(f"{name}, per further environment", [(wide - one) / envs], []),
        ]
    return Table(f"memory, {AIDED.ppo.num_steps} steps per iteration", "MB", "", rows)
