"""Metrics on disk: ``metrics.csv`` while training, ``summary.json`` at the end. Host only.

``metrics.csv`` is in long format, ordered by iteration and then by seed, so that appending and cutting off both happen
at its end. Columns: seed, iteration, env_steps, the metrics in ``LEADING``, then the others by name.
"""

from __future__ import annotations

import csv
import json
import os
import platform
import warnings
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
from jaxtyping import Shaped

from llmrl.analysis.statistics import area_under_curve, last_tenth, mean_interval
from llmrl.settings.errors import BadValue

Metrics: TypeAlias = Mapping[str, Shaped[np.ndarray, "seeds iterations"]]
"""A curve per seed and metric."""

INDEX = ("seed", "iteration", "env_steps")
LEADING = (
    "episode_return",
    "episode_length",
    "success_rate",
    "influence",
    "weight_mean",
    "weight_mean_active",
    "weight_before_units",
    "discount",
    "language_coverage",
    "entropy",
    "approx_kl",
    "clip_fraction",
    "value_loss",
)
PACKAGES = ("llmrl", "jax", "jaxlib", "flax", "optax", "gymnax", "craftax", "crafter", "numpy")


def append(path: Path, metrics: Metrics, first_iteration: int, steps_per_iteration: int) -> None:
    """Appends a chunk of training to ``metrics.csv``, and returns when it is on the disk.

    A float is written with the fewest digits that give the same float32 back.

    Args:
        path: the file; created with its header where there is none.
        metrics: name -> [seeds, iterations of the chunk].
        first_iteration: number of the chunk's first iteration, from 0.
        steps_per_iteration: environment steps of one seed in one iteration.

    Raises:
        ValueError: the file has other columns than these metrics.
    """
    names = _columns(path) or [*INDEX, *sorted(metrics, key=_place)]
    if sorted(names) != sorted([*INDEX, *metrics]):
        raise BadValue(f"{path} has the columns {names[3:]}, got metrics {list(metrics)}")
    curves = [_as_written(np.asarray(metrics[name])) for name in names[3:]]
    seeds, iterations = curves[0].shape
    with path.open("a", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        if file.tell() == 0:
            rows.writerow(names)
        for i in range(iterations):
            number = first_iteration + i
            for seed in range(seeds):
                rows.writerow([seed, number, (number + 1) * steps_per_iteration, *(curve[seed, i] for curve in curves)])
        file.flush()
        os.fsync(file.fileno())


def truncate(path: Path, iteration: int) -> None:
    """Drops the rows from ``iteration`` on, and a half-written last line; replaces the file atomically.

    Args:
        path: the file; nothing happens where there is none.
        iteration: number of the first iteration to drop; rows that a killed run wrote after its last checkpoint.

    Raises:
        ValueError: rows that should be kept are missing.
    """
    if not path.exists():
        if iteration:
            raise BadValue(f"{path} is missing, though {iteration} iterations have been trained")
        return
    kept, last = [], -1
    with _opened(path) as file:
        for line in file:
            if not line.endswith("\n"):
                break
            if kept:
                number = _iteration_of(line)
                if number is None or number >= iteration:
                    break
                last = number
            kept.append(line)
    if last != iteration - 1:
        raise BadValue(f"{path} ends at iteration {last}, though {iteration} iterations have been trained")
    replace_file(path, "".join(kept) if iteration else "")


def read(path: Path) -> dict[str, np.ndarray]:
    """The curves in ``metrics.csv``, up to the last iteration that every seed has.

    A process that is killed while it writes leaves a row without its end, and an iteration without some of its seeds.
    Where a row is damaged, the iterations before it are read; a warning says so where others come after it.

    Args:
        path: a file that ``append`` wrote.

    Returns:
        name -> [seeds, iterations]; float32, exactly as trained, but int64 for seed, iteration and env_steps.

    Raises:
        ValueError: there is no complete row yet, or the header is damaged.
    """
    names = _columns(path)
    if tuple(names[: len(INDEX)]) != INDEX:
        raise BadValue(f"{path} must start with the columns {','.join(INDEX)}, got {','.join(names[: len(INDEX)])!r}")
    lines = _complete_lines(path)[1:]
    table = _sound_rows(lines, len(names))
    if not len(table):
        raise BadValue(f"{path} holds no complete row yet")
    seeds, whole = _whole_iterations(table)
    if not whole:
        raise BadValue(f"{path} holds no whole iteration of its {seeds} seeds")
    if len(lines) - whole >= seeds:  # more than a kill leaves
        warnings.warn(f"{path} is damaged: {len(lines) - whole} of its {len(lines)} rows are left out", stacklevel=2)
    curves = table[:whole].reshape(-1, seeds, len(names)).transpose(2, 1, 0)
    return {
        name: curve.astype(np.int64 if name in INDEX else np.float32) for name, curve in zip(names, curves, strict=True)
    }


def index(metrics: Metrics, steps_per_iteration: int) -> dict[str, np.ndarray]:
    """The columns that ``metrics.csv`` has beside a run's metrics, for one that was never written.

    Args:
        metrics: the whole run's curves.
        steps_per_iteration: environment steps of one seed in one iteration.

    Returns:
        seed, iteration and env_steps, int64 [seeds, iterations].
    """
    seeds, iterations = next(iter(metrics.values())).shape
    seed = np.repeat(np.arange(seeds)[:, None], iterations, axis=1)
    iteration = np.repeat(np.arange(iterations)[None], seeds, axis=0)
    return {"seed": seed, "iteration": iteration, "env_steps": (iteration + 1) * steps_per_iteration}


def summary(
    metrics: Metrics, *, steps_per_iteration: int, compile_seconds: float, run_seconds: float, run_iterations: int
) -> dict[str, Any]:
    """The final numbers of a run, ready for JSON.

    Args:
        metrics: the whole run's curves.
        steps_per_iteration: environment steps of one seed in one iteration.
        compile_seconds: wall time of this process's compilation.
        run_seconds: wall time of its training, without compilation.
        run_iterations: iterations that it trained; fewer than the run's after a resume.

    Returns:
        ``final`` (mean of the last tenth) and ``area`` (mean over training), each metric with its mean over seeds, the
        ends of the 95 % interval (None below 5 seeds) and every seed's own number; then wall time, speed, versions and
        device. Where language was a source, ``language`` says how it stood at the end: coverage, spend, failures, cache
        hits, ...
    """
    curves = {name: np.asarray(curve) for name, curve in metrics.items() if name not in INDEX}
    seeds, iterations = next(iter(curves.values())).shape
    steps = run_iterations * steps_per_iteration * seeds
    language = {
        name.removeprefix("language_"): _or_none(float(curve[:, -1].mean()))
        for name, curve in curves.items()
        if name.startswith("language_")
    }
    return {
        "seeds": seeds,
        "iterations": iterations,
        "env_steps": iterations * steps_per_iteration,
        "final": {name: over_seeds(last_tenth(curve)) for name, curve in curves.items()},
        "area": {name: over_seeds(area_under_curve(curve)) for name, curve in curves.items()},
        "seconds": {"compile": round(compile_seconds, 3), "run": round(run_seconds, 3)},
        "steps_per_second": round(steps / run_seconds, 1) if run_seconds > 0 else None,
        **({"language": language} if language else {}),
        "versions": versions(),
        "device": _device(),
    }


def over_seeds(scores: Shaped[np.ndarray, " seeds"]) -> dict[str, Any]:
    """Mean over seeds, the ends of its 95 % interval (None with few seeds), and every seed's own, ready for JSON."""
    mean, low, high = (_or_none(value) for value in mean_interval(scores))
    return {"mean": mean, "low": low, "high": high, "by_seed": [_or_none(score) for score in scores]}


def write_summary(path: Path, values: Mapping[str, Any]) -> None:
    """Writes ``summary.json``, or another file of results, atomically."""
    replace_file(path, json.dumps(values, indent=2, allow_nan=False) + "\n")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages whose numbers these are."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def replace_file(path: Path, text: str) -> None:
    """Writes a text file so that a reader, or a kill, finds either the old one or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _complete_lines(path: Path) -> list[str]:
    with _opened(path) as file:
        return [line for line in file if line.endswith("\n")]


def _iteration_of(line: str) -> int | None:
    """A row's iteration; None where the row is damaged."""
    _, *rest = line.split(",", 2)
    return int(rest[0]) if rest and rest[0].isdecimal() else None


def _opened(path: Path) -> IO[str]:
    """A file for reading; a byte order mark is skipped, and what cannot be decoded is no number."""
    return path.open(newline="", encoding="utf-8-sig", errors="replace")


def _sound_rows(lines: list[str], columns: int) -> Shaped[np.ndarray, "rows columns"]:
    """The rows as numbers, up to the first that is damaged."""
    try:
        table = np.loadtxt(lines, delimiter=",", ndmin=2, dtype=np.float64) if lines else np.zeros((0, columns))
        if table.shape[1] == columns:
            return table
    except ValueError:
        pass
    rows = []
    for line in lines:
        try:
            row = [float(value) for value in line.split(",")]
        except ValueError:
            break
        if len(row) != columns:
            break
        rows.append(row)
    return np.array(rows, np.float64).reshape(-1, columns)


def _whole_iterations(table: Shaped[np.ndarray, "rows columns"]) -> tuple[int, int]:
    """How many seeds there are, and how many rows, from the first, are whole iterations of them in order."""
    seeds = len(np.unique(table[table[:, 1] == table[0, 1], 0]))
    index = table[: len(table) - len(table) % seeds, :2].reshape(-1, seeds, 2)
    later = np.arange(len(index))[:, None, None] * np.array([0, 1])  # the same seeds, one iteration after another
    sound = (index == index[:1] + later).all(axis=(1, 2))
    return seeds, seeds * (len(index) if sound.all() else int(np.argmin(sound)))


def _columns(path: Path) -> list[str]:
    if not path.exists():
        return []
    with _opened(path) as file:
        return next(csv.reader(file), [])


def _place(name: str) -> tuple[int, str]:
    """A source's own curve, ``weight_mean/helpful``, stands beside the sources' common one."""
    kind = name.partition("/")[0]
    return LEADING.index(kind) if kind in LEADING else len(LEADING), name


def _as_written(curve: np.ndarray) -> np.ndarray:
    if curve.dtype.kind in "iub":
        return curve.astype(np.int64)
    return curve.astype(np.float32)


def _or_none(value: float) -> float | None:
    """JSON has no NaN."""
    return round(float(value), 6) if np.isfinite(value) else None


def _device() -> str:
    import jax

    devices = jax.devices()
    return f"{len(devices)} x {devices[0].device_kind}"
