"""The runs of a report: found below directories, read as far as they can be read, and sorted into what compares."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llmrl import metrics, runs
from llmrl.config import AuxConfig, Config, LLMConfig
from llmrl.studies import FILLED_IN

IGNORES = "ppo"
"""The method that hears no source: it is the baseline of every source."""
TRUSTS = "add"
"""The method that adds every source as it is."""

MEASURES = {
    "cartpole": "episode_length",
    "cartpole_continuous": "episode_length",
    "gridworld": "success_rate",
    "crafter": "success_rate",
    "craftax_classic": "success_rate",
}
"""What shows progress where it is not the return."""

NO_SETTING = {"run_dir", "resume", "progress", "devices", "seeds_per_batch", "num_chunks", "seed", "seeds", "track"}
NO_SETTING |= {"distributed", "coordinator", "num_processes", "process_id"}
"""Settings that do not make two runs different methods; runs that differ in seeds alone are put together."""

ANSWERS = ("provider", "answers", "function", "model", "prompt", "score", "threshold", "embedding_model", "temperature")
ANSWERS += ("noise", "noise_seed", "noise_unit", "adversarial", "neutral")
"""Settings of ``llm`` that decide what is answered: with other ones it is another source, not another method."""

USUAL = LLMConfig()


class Entry(NamedTuple):
    """A run directory that could be read.

    Attributes:
        path: the directory.
        config: its settings.
        curves: name -> [seeds, iterations].
        summary: of a finished run, else None.
        evaluation: what the last evaluation found, or None.
    """

    path: Path
    config: Config
    curves: dict[str, np.ndarray]
    summary: dict[str, Any] | None
    evaluation: dict[str, Any] | None

    @property
    def finished(self) -> bool:
        return self.summary is not None

    @property
    def progress(self) -> str:
        done = next(iter(self.curves.values())).shape[1]
        if self.finished:
            return "finished"
        return f"unfinished: {done} of {self.config.num_iterations} iterations"


class Broken(NamedTuple):
    """A run directory that could not be read, and why."""

    path: Path
    reason: str


class Method(NamedTuple):
    """Runs of one method on one task, put together.

    Attributes:
        label: the method's name, with the settings in which it differs from its namesakes.
        entries: its runs, of different seeds.
        curves: all their curves, name -> [seeds, iterations].
        finished: whether all of them are.
    """

    label: str
    entries: tuple[Entry, ...]
    curves: dict[str, np.ndarray]
    finished: bool


class Task(NamedTuple):
    """What can be compared: one environment with one choice of auxiliary sources.

    Attributes:
        env: the environment and its settings, in words.
        source: the sources, in words.
        measure: the metric that shows progress.
        methods: by label.
    """

    env: str
    source: str
    measure: str
    methods: dict[str, Method]


# --- finding and reading ----------------------------------------------------------------------------------------------


def find(paths: Iterable[str]) -> tuple[list[Path], list[Broken]]:
    """Every run directory at or below the given paths, in order and without repetition.

    Args:
        paths: run directories, directories that hold some, or glob patterns of either.

    Returns:
        The run directories (those with a ``config.yaml``, or with a run's other files and no config), and what was
        asked for and is no run.
    """
    found: dict[Path, None] = {}
    missing = []
    for path in paths:
        matches = (
            sorted(glob.glob(path, recursive=True)) if glob.has_magic(path) and not Path(path).exists() else [path]
        )
        below = [run for match in matches for run in _runs_below(Path(match))]
        if not below:
            reason = "no such directory" if not any(Path(match).is_dir() for match in matches) else "no run in it"
            missing.append(Broken(Path(path), reason))
        found |= dict.fromkeys(below)
    return list(found), missing


def _runs_below(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    found = []
    for folder, subfolders, files in os.walk(root, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if name != "checkpoints" and not name.startswith("."))
        if {"config.yaml", "metrics.csv", "summary.json"} & set(files):
            found.append(Path(folder))
            subfolders.clear()
    return found


def read(path: Path) -> Entry | Broken:
    """A run's directory, as far as it can be read."""
    try:
        run = runs.load_run(path)
        if not run.metrics_path.is_file() or not run.metrics_path.stat().st_size:
            return Broken(path, "metrics.csv is missing or empty: the run has not finished its first part")
        curves = metrics.read(run.metrics_path)
        summary = runs.read_summary(run) if run.finished else None
        evaluation = json.loads(run.evaluation_path.read_text()) if run.evaluation_path.is_file() else None
    except Exception as error:  # whatever is wrong with one directory must not hide the others
        return Broken(path, _one_line(error))
    return Entry(path, run.config, curves, summary, evaluation)


def _one_line(error: Exception) -> str:
    said = " ".join(str(error).split())
    return (f"{type(error).__name__}: {said}" if said else type(error).__name__)[:300]


# --- sorting ----------------------------------------------------------------------------------------------------------


def sort_into_tasks(entries: Sequence[Entry], measure: str | None = None) -> list[Task]:
    """Runs by environment and sources; a run without a source's influence belongs to every source of its environment.

    Args:
        entries: what was read.
        measure: the metric that shows progress; the environment's own where not given.
    """
    by_env: dict[str, list[Entry]] = {}
    for entry in entries:
        by_env.setdefault(describe_env(entry.config), []).append(entry)
    tasks = []
    for env, members in by_env.items():
        deaf = [entry for entry in members if entry.config.method.name == IGNORES]
        hearing = [entry for entry in members if entry.config.method.name != IGNORES]
        sources = dict.fromkeys(describe_source(entry.config) for entry in hearing) or {"none": None}
        for source in sources:
            own = [entry for entry in hearing if describe_source(entry.config) == source]
            tasks.append(Task(env, source, measure or _measure(members[0]), _methods([*deaf, *own])))
    return tasks


def describe_env(config: Config) -> str:
    """The environment in words, with what was chosen of its settings."""
    chosen = {key: value for key, value in asdict(config.env).items() if key != "name" and value not in (None, {})}
    name = chosen.pop("id", None) or config.env.name
    return ", ".join([name, *(f"{key}={value}" for key, value in chosen.items())])


def describe_source(config: Config) -> str:
    """The auxiliary sources in words, with factors and options that are not the usual ones."""
    aux = config.aux
    names = [name if factor == 1.0 else f"{factor:g} x {name}" for name, factor in aux.sources.items()]
    names += [aux.function] if aux.function else []
    words = " + ".join(names) or "none"
    words += f" x {aux.scale:g}" if aux.scale != 1.0 else ""
    settings = dict(aux.options)
    if {"language", "goals"} & set(aux.sources):
        settings |= {
            key: getattr(config.llm, key) for key in ANSWERS if getattr(config.llm, key) != getattr(USUAL, key)
        }
        settings |= {"center": aux.center} if aux.center != AuxConfig.center else {}
    return words + "".join(f", {key}={value}" for key, value in settings.items())


def _measure(entry: Entry) -> str:
    wanted = MEASURES.get(entry.config.env.name, "episode_return")
    return wanted if wanted in entry.curves else "episode_return"


def _methods(entries: Sequence[Entry]) -> dict[str, Method]:
    labels = _labels(entries)
    together: dict[str, list[Entry]] = {}
    for label, entry in zip(labels, entries, strict=True):
        together.setdefault(label, []).append(entry)
    methods = {}
    for label, members in together.items():
        # Runs of different lengths cannot stand in one table: the longest of a label are taken.
        longest = max(_iterations(entry) for entry in members)
        alike = tuple(entry for entry in members if _iterations(entry) == longest)
        names = set.intersection(*(set(entry.curves) for entry in alike))
        curves = {name: np.concatenate([entry.curves[name] for entry in alike]) for name in sorted(names)}
        methods[label] = Method(label, alike, curves, all(entry.finished for entry in alike))
    return methods


def _iterations(entry: Entry) -> int:
    return entry.curves["iteration"].shape[1]


def _labels(entries: Sequence[Entry]) -> list[str]:
    """The method's name, and the settings in which runs of that name differ here."""
    settings = [_settings(entry) for entry in entries]
    labels = []
    for entry, own in zip(entries, settings, strict=True):
        name = entry.config.method.name
        namesakes = [other for other, of in zip(settings, entries, strict=True) if of.config.method.name == name]
        differing = [key for key in own if any(other.get(key) != own[key] for other in namesakes)]
        labels.append(", ".join([name, *(f"{key}={own[key]}" for key in differing)]))
    return labels


def _settings(entry: Entry) -> dict[str, Any]:
    """What makes a run another method than its namesakes on the same task."""
    left_out = NO_SETTING | {"env", "aux"}
    if entry.config.method.name in (IGNORES, TRUSTS):
        left_out |= {"method", "solver"}
    if entry.config.method.name == IGNORES:
        left_out |= {"llm", "captioner"}
    values = {key: value for key, value in asdict(entry.config).items() if key not in left_out}
    # What the other run's reward looks like is said by its name.
    filled_in = tuple(f"method.{key}." for key in FILLED_IN) if entry.config.reward_from is not None else ()
    return {key: value for key, value in flat(values).items() if not f"{key}.".startswith(filled_in)}


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found
