"""Studies: lists of named runs, each in its own directory, of which only those are trained that are not finished yet.

An interrupted study goes on with the same command. It may be shared out: over processes of one machine, each run in a
fresh one, and over machines, each with its own part of the list.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from llmrl.settings.errors import BadValue
from llmrl.studies.processes import Failed, attempt, side_by_side
from llmrl.training.transfer import FILLED_IN

if TYPE_CHECKING:
    import numpy as np

    from llmrl.settings.config import Config


class Run(NamedTuple):
    """One training of many.

    Attributes:
        name: which is its directory too.
        overrides: what ``llmrl.compose`` is told.
        reward_from: for ``method=frozen``, the run of the same list whose learned reward it trains under, and for which
            it waits.
    """

    name: str
    overrides: tuple[str, ...]
    reward_from: str | None = None


class Found(NamedTuple):
    """What a finished run left: curves by name, [seeds, iterations], its speed, and its directory."""

    curves: Mapping[str, np.ndarray]
    steps_per_second: float | None = None
    path: Path | None = None


Results: TypeAlias = dict[str, Found]
"""By the runs' names."""

Train: TypeAlias = "Callable[[Config], Found]"
"""Trains a run that has a directory; importable by name where it is to run in other processes."""


class Outcome(NamedTuple):
    """What a study has, and what went wrong.

    Attributes:
        results: of all finished runs, in the list's order, those of other commands and machines included.
        trained: names of the runs that this call trained.
        failures: name -> one line, of the runs that failed.
    """

    results: Results
    trained: tuple[str, ...]
    failures: dict[str, str]


def parse_shard(text: str) -> tuple[int, int]:
    """``2/4`` as (2, 4): the second of four parts.

    Raises:
        ValueError: it is not written like that, or there is no such part.
    """
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise BadValue(f"shard must be i/n with i from 1 to n, as in 1/4, got {text!r}")
    return int(part), int(parts)


def carry_out(
    runs: Sequence[Run],
    out: Path,
    *,
    seeds: int,
    extra: Sequence[str] = (),
    only: str = "",
    shard: tuple[int, int] = (1, 1),
    processes: int = 1,
    progress: bool = False,
    train: Train | None = None,
    near: Path | None = None,
) -> Outcome:
    """Trains what is not finished and reads all that is. One failed run stops only those that need what it has learned.

    Args:
        runs: the whole list; names differ.
        out: where the runs' directories are.
        seeds: of each run.
        extra: overrides for every run, after its own.
        only: train only runs whose name contains this.
        shard: which part of the list to train, see ``parse_shard``.
        processes: runs trained side by side.
        progress: whether each run shows its own progress too.
        train: how a run is trained; ``train_anew`` where not given.
        near: where finished runs are looked for that may stand in for those that hear no source; nowhere if not given.

    Raises:
        Stopped: SIGTERM or SIGUSR1 came; what was trained until then is on the disk.
    """
    from llmrl.studies.reuse import link_to_equal
    from llmrl.training.progress import note

    configs = {run.name: config_of(run, out, seeds, extra, progress) for run in runs}
    part, parts = shard
    mine = [run.name for run in runs if only in run.name][part - 1 :: parts]
    results = {name: read_finished(config) for name, config in configs.items()}
    for name in mine:
        if near is not None and results[name] is None and link_to_equal(configs[name], near):
            results[name] = read_finished(configs[name])
    missing = {name: configs[name] for name in mine if results[name] is None}
    if len(missing) < len(mine):
        note(f"{len(mine) - len(missing)} of {len(mine)} runs are finished already")

    trained, failures = [], {}
    began = time.monotonic()
    needed = {run.name: run.reward_from for run in runs if run.reward_from}
    for name, outcome in _train_in_turn(missing, needed, processes, train or train_anew):
        if isinstance(outcome, Failed):
            failures[name] = outcome.why
        else:
            results[name] = outcome
            trained.append(name)
        done = len(trained) + len(failures)
        left = (time.monotonic() - began) / done * (len(missing) - done) / 60
        said = f"failed, {failures[name]}" if name in failures else "finished"
        note(
            f"[{done}/{len(missing)}] {name}: {said}" + (f", about {left:.0f} min left" if done < len(missing) else "")
        )
    return Outcome({name: found for name, found in results.items() if found is not None}, tuple(trained), failures)


def config_of(run: Run, out: Path, seeds: int, extra: Sequence[str] = (), progress: bool = False) -> Config:
    """What a study trains for one of its runs; arguments as for ``carry_out``."""
    from llmrl.settings.overrides import compose
    from llmrl.settings.words import quoted

    source = [f"reward_from={quoted(str(out / run.reward_from))}"] if run.reward_from else []
    config = compose(*run.overrides, *source, *extra, f"seeds={seeds}")
    return replace(config, run_dir=str(out / run.name), progress=progress)


def read_finished(config: Config) -> Found | None:
    """What a run of these settings left, or None where it is not finished."""
    from llmrl.assembly.identity import of_one_run
    from llmrl.runs import directory as runs
    from llmrl.runs import metrics

    assert config.run_dir is not None
    if not (Path(config.run_dir) / "summary.json").exists():
        return None
    run = runs.load_run(config.run_dir)
    if config.reward_from is not None:  # training has filled in what its reward looks like
        config = replace(config, method=replace(config.method, **{k: getattr(run.config.method, k) for k in FILLED_IN}))
    # What a run of other settings is, and what to do about it, ``train`` says.
    if run.config.seeds != config.seeds or not of_one_run(run.config, config):
        return None
    return Found(metrics.read(run.metrics_path), runs.read_summary(run)["steps_per_second"], run.path)


def train_anew(config: Config) -> Found:
    """Trains one run of many."""
    import jax

    from llmrl.training.loop import train

    result = train(config)
    jax.clear_caches()  # a study is a hundred programs that are never needed again
    return Found(result.metrics, result.summary["steps_per_second"], Path(str(config.run_dir)))


# --- one after another, or side by side -------------------------------------------------------------------------------


def _train_in_turn(
    configs: Mapping[str, Config], needed: Mapping[str, str], processes: int, train: Train
) -> Iterator[tuple[str, Found | Failed]]:
    """As ``_train_all``, but a run that needs another run's reward starts after that one has ended or failed."""
    waiting = dict(configs)
    while waiting:
        ready = {name: config for name, config in waiting.items() if needed.get(name) not in waiting}
        if not ready:
            raise BadValue(f"runs that wait for each other: {', '.join(waiting)}")
        waiting = {name: config for name, config in waiting.items() if name not in ready}
        yield from _train_all(ready, processes, train)


def _train_all(configs: Mapping[str, Config], processes: int, train: Train) -> Iterator[tuple[str, Found | Failed]]:
    """Each run's result, or why it has none, as they come."""
    from llmrl.training.progress import note

    if processes > 1 and len(configs) > 1:
        yield from side_by_side(train, configs, processes)
        return
    for name, config in configs.items():
        note(f"training {name}")
        yield name, attempt(train, config)
