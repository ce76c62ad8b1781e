"""Suites by name, and the command that runs them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from llmrl.bench.costs import memory, seeds, start
from llmrl.bench.crafter import crafter
from llmrl.bench.language import language
from llmrl.bench.meta_gradients import meta
from llmrl.bench.report import Table, busy_warning, load_average, show, write
from llmrl.bench.scale import scale
from llmrl.bench.throughput import methods, ppo
from llmrl.settings.requests import Bench
from llmrl.training.progress import note

SUITES: dict[str, Callable[[Bench], Table]] = {
    "ppo": ppo,
    "methods": methods,
    "meta": meta,
    "seeds": seeds,
    "start": start,
    "memory": memory,
    "language": language,
    "crafter": crafter,
    "scale": scale,
}


def bench(request: Bench, command: str = "") -> dict[str, Table]:
    """Runs the suites that were asked for; shows each when it is done, and keeps all of them in a file.

    Args:
        request: what to run, validated.
        command: what the user typed, for the file.

    Returns:
        suite -> its result.
    """
    load = load_average()
    if warning := busy_warning(load):
        note(warning)
    if request.quick:
        request = replace(request, rounds=min(request.rounds, 2), steps=request.steps // 8)
    tables: dict[str, Table] = {}
    for name in request.suites:
        note(f"suite {name}")
        tables[name] = SUITES[name](request)
        show(tables[name])
        # After every suite: an interruption costs only the one that was running.
        if request.out is not None:
            write(request.out, tables, command, load)
    if request.out is not None:
        note(f"all measurements: {request.out}")
    return tables
