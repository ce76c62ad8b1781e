"""The runs of a report: found below directories, read as far as they can be read, and sorted into what compares."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llmrl.analysis.comparison import MEASURES
from llmrl.assembly.identity import identity, ignores_sources
from llmrl.envs import defaults_of
from llmrl.runs import directory as runs
from llmrl.runs import metrics
from llmrl.settings.config import AuxConfig, Config, LLMConfig
from llmrl.training.transfer import FILLED_IN

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
        name: of the method.
        label: the name, with settings that tell it from its namesakes.
        settings: what can matter to it on its task, by dotted name.
        entries: its runs, of different seeds.
        curves: all their curves, name -> [seeds, iterations].
        finished: whether all of them are.
    """

    name: str
    label: str
    settings: dict[str, Any]
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


# --- counting ---------------------------------------------------------------------------------------------------------


class Repeat(NamedTuple):
    """Seeds of a run that another run has too.

    Attributes:
        seeds: how many.
        path: the other run's directory, where they are counted.
    """

    seeds: int
    path: Path


def counted_once(entries: Sequence[Entry]) -> tuple[list[Entry], dict[Path, Repeat]]:
    """Runs without the seeds that are trained twice: the same seed under everything that can matter is no new sample.

    Args:
        entries: what was read.

    Returns:
        The runs with the seeds that are theirs alone, in the same order, and the repeated ones by directory. A seed
        belongs to a finished run rather than to an unfinished one, and then to the longer one.
    """
    owners: dict[tuple[str, int, int], Path] = {}
    left, repeats = {}, {}
    for entry in sorted(entries, key=lambda one: (not one.finished, -_iterations(one), one.path.is_symlink())):
        run = repr(sorted(identity(entry.config).items()))
        seeds = [(run, entry.config.seed, int(number)) for number in entry.curves["seed"][:, 0]]
        new = np.array([seed not in owners for seed in seeds])
        if not new.all():
            repeats[entry.path] = Repeat(int(np.sum(~new)), owners[seeds[int(np.argmin(new))]])
        owners = dict.fromkeys(seeds, entry.path) | owners
        if new.any():
            left[entry.path] = entry._replace(curves={name: curve[new] for name, curve in entry.curves.items()})
    return [left[entry.path] for entry in entries if entry.path in left], repeats


# --- sorting ----------------------------------------------------------------------------------------------------------


def sort_into_tasks(entries: Sequence[Entry], measure: str | None = None) -> list[Task]:
    """Runs by environment and sources; a run that hears no source belongs to every source of its environment.

    Args:
        entries: what was read.
        measure: the metric that shows progress; the environment's own where not given.
    """
    by_env: dict[str, list[Entry]] = {}
    for entry in entries:
        by_env.setdefault(describe_env(entry.config), []).append(entry)
    tasks = []
    for env, members in by_env.items():
        deaf = [entry for entry in members if ignores_sources(entry.config)]
        hearing = [entry for entry in members if not ignores_sources(entry.config)]
        sources = dict.fromkeys(describe_source(entry.config) for entry in hearing) or {"none": None}
        for source in sources:
            own = [entry for entry in hearing if describe_source(entry.config) == source]
            tasks.append(Task(env, source, measure or _measure(members[0]), _methods([*deaf, *own])))
    return tasks


def describe_env(config: Config) -> str:
    """The environment in words, with what was chosen of its settings."""
    usual = defaults_of(config.env.name)
    chosen = {
        key: value
        for key, value in asdict(config.env).items()
        if key != "name" and value not in (None, {}, usual.get(key))
    }
    name = chosen.pop("id", None) or config.env.name
    return ", ".join([name, *(f"{key}={value}" for key, value in chosen.items())])


def describe_source(config: Config) -> str:
    """The auxiliary sources in words, with factors and options that are not the usual ones."""
    aux = config.aux
    names = [name if factor == 1.0 else f"{factor:g} x {name}" for name, factor in aux.sources.items()]
    names += [aux.function] if aux.function else []
    words = " + ".join(names) or "none"
    words += f" x {aux.scale:g}" if aux.scale != 1.0 else ""
    settings = dict(aux.options) | ({"file": aux.file} if aux.file != AuxConfig.file else {})
    if {"language", "goals"} & set(aux.sources):
        settings |= {
            key: getattr(config.llm, key) for key in ANSWERS if getattr(config.llm, key) != getattr(USUAL, key)
        }
        settings |= {"center": aux.center} if aux.center != AuxConfig.center else {}
    settings |= {"transform": aux.transform} if aux.transform != AuxConfig.transform else {}
    return words + "".join(f", {key}={value}" for key, value in settings.items())


def _measure(entry: Entry) -> str:
    wanted = MEASURES.get(entry.config.env.name, "episode_return")
    return wanted if wanted in entry.curves else "episode_return"


def _methods(entries: Sequence[Entry]) -> dict[str, Method]:
    together: dict[str, list[Entry]] = {}
    for label, entry in zip(_labels(entries), entries, strict=True):
        together.setdefault(label, []).append(entry)
    methods = {}
    for label, members in together.items():
        # Runs of different lengths cannot stand in one table: the longest of a label are taken.
        longest = max(_iterations(entry) for entry in members)
        alike = tuple(entry for entry in members if _iterations(entry) == longest)
        names = set.intersection(*(set(entry.curves) for entry in alike))
        curves = {name: np.concatenate([entry.curves[name] for entry in alike]) for name in sorted(names)}
        finished = all(entry.finished for entry in alike)
        methods[label] = Method(alike[0].config.method.name, label, _settings(alike[0]), alike, curves, finished)
    return methods


def _iterations(entry: Entry) -> int:
    return entry.curves["iteration"].shape[1]


def _labels(entries: Sequence[Entry]) -> list[str]:
    """The method's name, and as few settings as tell runs of that name apart here."""
    settings = [_settings(entry) for entry in entries]
    labels = []
    for entry, own in zip(entries, settings, strict=True):
        name = entry.config.method.name
        namesakes = [other for other, of in zip(settings, entries, strict=True) if of.config.method.name == name]
        telling, more = _telling(namesakes)
        words = [f"{_short(key, own)}={_brief(own.get(key))}" for key in telling]
        labels.append(", ".join([name, *words, *(["…"] if more else [])]))
    return labels


def _telling(settings: Sequence[dict[str, Any]]) -> tuple[list[str], bool]:
    """As few keys as tell all different settings apart, and whether they differ in others too."""
    keys = dict.fromkeys(key for own in settings for key in own)
    differing = [key for key in keys if len({repr(own.get(key)) for own in settings}) > 1]

    def kinds(chosen: Sequence[str]) -> int:
        return len({repr([own.get(key) for key in chosen]) for own in settings})

    telling: list[str] = []
    while kinds(telling) < kinds(differing):
        telling.append(max(differing, key=lambda key: kinds([*telling, key])))
    return sorted(telling, key=differing.index), len(telling) < len(differing)


def _short(key: str, among: Iterable[str]) -> str:
    """The last part of a dotted key, and as many before it as make it the only one."""
    parts, among = key.split("."), list(among)
    endings = [".".join(parts[-length:]) for length in range(1, len(parts) + 1)]
    return next(end for end in endings if sum(f".{other}".endswith(f".{end}") for other in among) <= 1)


def _brief(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 24 else f"{text[:11]}…{text[-12:]}"


def _settings(entry: Entry) -> dict[str, Any]:
    """What can matter to a run on its task, the length first."""
    # What the other run's reward looks like is said by its name.
    filled_in = tuple(f"method.{key}." for key in FILLED_IN) if entry.config.reward_from is not None else ()
    settings = {
        key: value
        for key, value in identity(entry.config).items()
        if not f"{key}.".startswith(("env.", "aux.", "method.name.", *filled_in))
    }
    return {"total_steps": settings.pop("total_steps")} | settings
