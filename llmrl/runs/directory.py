"""A run's directory: who may write there, what it holds, and how an interrupted run goes on. Host only.

    config.yaml      the settings, complete
    metrics.csv      every seed's curves, see ``llmrl.runs.metrics``
    checkpoints/     see ``llmrl.runs.checkpoint``
    tables/          a language model's answers beside each checkpoint, where it is a source
    summary.json     final numbers; there once the run is finished
    curves.png       the picture of them
    evaluation.json  what the last evaluation found, where there was one
    tracked.json     what ``llmrl.runs.trackers`` has sent, where there are any
    extended.txt     at how many total_steps the run was finished before, where it was extended; one number a line
    failed.txt       why the last process that worked here failed, where it did
    .lock            which process holds the directory

A process opens the directory, restores, records after every chunk, and finishes.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import yaml
from filelock import lock_descriptor
from jaxtyping import PyTree

from llmrl.analysis import plots
from llmrl.envs import CODE
from llmrl.language import Table, load, save
from llmrl.language.function_files import find
from llmrl.runs import checkpoint, metrics
from llmrl.settings.config import Config
from llmrl.settings.errors import BadValue, brief, first_line, of_the_disk
from llmrl.settings.validation import from_dict

_WITHOUT_CHECKPOINTS = "{} holds a finished run whose checkpoints/ are gone"

FAILURE = "failed.txt"
EXTENDED = "extended.txt"
FUNCTIONS = "functions.txt"

NOT_COMPARED = ("run_dir", "resume", "progress", "track", "distributed", "coordinator", "num_processes", "process_id")
"""Settings, or sections of them, that change nothing about a run's numbers; the last four nothing beyond rounding."""


class Run(NamedTuple):
    """An open run directory.

    Attributes:
        path: the directory.
        config: its settings.
        finished: whether a summary says that all iterations of the config are done.
        extended_from: total_steps at which the run was finished until this process opened it with more; None where it
            did not.
    """

    path: Path
    config: Config
    finished: bool
    extended_from: int | None = None

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def checkpoints_path(self) -> Path:
        return self.path / "checkpoints"

    @property
    def tables_path(self) -> Path:
        return self.path / "tables"

    @property
    def summary_path(self) -> Path:
        return self.path / "summary.json"

    @property
    def evaluation_path(self) -> Path:
        return self.path / "evaluation.json"


@contextmanager
def open_run(config: Config) -> Iterator[Run]:
    """Holds ``config.run_dir`` for this process, creating it where there is none.

    A finished run that is opened with a larger ``total_steps`` is to be extended; ``restore`` makes it so on the disk.

    Args:
        config: the run's settings, with a ``run_dir``.

    Yields:
        The run: new, unfinished (``restore`` tells how far it is) or finished.

    Raises:
        ValueError: the directory holds a run of another config (the first setting that differs is named), or any run
            where ``config.resume`` is false, or files that are no run's, or a finished run without its checkpoints;
            another process is at work there; or it cannot be made.
    """
    if config.run_dir is None:
        raise BadValue("run_dir must name a directory, got None")
    path = Path(config.run_dir)
    _make(path)
    with _locked(path):
        with _told_when_full(path):
            extended_from = _claim(path, config)
        (path / FAILURE).unlink(missing_ok=True)
        try:
            yield Run(path, config, is_finished(config), extended_from)
        except Exception as error:
            with suppress(OSError):  # a disk that is full has no room for this either
                metrics.replace_file(path / FAILURE, f"{first_line(error)}\n")
            raise


def is_finished(config: Config) -> bool:
    """Whether ``config.run_dir`` holds a finished run of at least the config's length."""
    if config.run_dir is None:
        return False
    path = Path(config.run_dir)
    return (path / "summary.json").exists() and _done(path) >= config.num_iterations


def failure(path: Path) -> str | None:
    """Why the last process that worked in a run directory failed, in a line; None where it did not."""
    file = path / FAILURE
    return file.read_text().strip() if file.is_file() else None


def holder(path: Path) -> str | None:
    """Which process is at work in a run directory, in words; None where there is none."""
    lock = path / ".lock"
    if not lock.is_file():
        return None
    with lock.open() as file:
        return None if lock_descriptor(file.fileno(), blocking=False) else _holder(file)


def load_run(run_dir: str | Path) -> Run:
    """A run's directory for reading alone, without holding it.

    Raises:
        ValueError: there is no run.
    """
    path = Path(run_dir)
    if not (path / "config.yaml").is_file():
        raise BadValue(f"{path} holds no run: config.yaml is missing")
    return Run(path, from_dict(_read_config(path)), (path / "summary.json").exists())


def load_trained(run_dir: str | Path) -> Run:
    """The same for what plays the run's policies: with its functions (``aux=code``) as they were when it began."""
    run = load_run(run_dir)
    kept, aux = run.path / FUNCTIONS, run.config.aux
    return run._replace(config=replace(run.config, aux=replace(aux, file=str(kept)))) if kept.is_file() else run


def restore(run: Run, like: PyTree) -> tuple[PyTree, int] | None:
    """The state to go on from; ``metrics.csv`` is cut off where that state was saved.

    A finished run that was opened to be extended is unfinished from then on, under the new ``total_steps``. Where the
    state cannot be restored, it stays the finished run that it is.

    Args:
        run: an open run.
        like: a state of the same structure, e.g. the initial one.

    Returns:
        The state and how many iterations it has behind it, or None where nothing was saved yet.
    """
    restored = checkpoint.restore(run.checkpoints_path, like)
    metrics.truncate(run.metrics_path, restored[1] if restored else 0)
    if run.extended_from is not None:
        with _told_when_full(run.path):
            _extend(run, run.extended_from)
    return restored


def load_state(run: Run, like: PyTree, part: bool = False) -> tuple[PyTree, int]:
    """The last state of a run, for reading alone; arguments and errors as for ``restore``.

    Args:
        run: a run.
        like: a state of the same structure.
        part: whether ``like`` may be a part of it, under the same names.

    Raises:
        ValueError: nothing was saved yet.
    """
    restored = checkpoint.restore(run.checkpoints_path, like, part)
    if restored is None:
        raise BadValue(_WITHOUT_CHECKPOINTS.format(run.path) if run.finished else f"{run.path} holds no checkpoint yet")
    return restored


def restore_language(run: Run, iterations: int) -> tuple[Table | None, dict[str, float]]:
    """A language model's answers as they stood after so many iterations, and what they had cost.

    Args:
        run: an open run, restored to this number of iterations.
        iterations: as ``restore`` gave them.

    Returns:
        The table, None where there is none; and the last values of the metrics ``language_...``.
    """
    table = read_answers(run, iterations)
    if table is None:
        return None, {}
    curves = metrics.read(run.metrics_path)
    return table, {n: float(curve[0, -1]) for n, curve in curves.items() if n.startswith("language_")}


def read_answers(run: Run, iterations: int) -> Table | None:
    """A language model's answers as they stood after so many iterations; None where there are none."""
    path = run.tables_path / f"{iterations}.npz"
    return load(path) if path.exists() else None


def record(run: Run, state: PyTree, chunk: metrics.Metrics, first_iteration: int, table: Table | None = None) -> None:
    """Notes a chunk of training: its metrics first, then the state, so that a kill in between loses no row.

    Args:
        run: an open run.
        state: the state after the chunk.
        chunk: name -> [seeds, iterations of the chunk].
        first_iteration: number of the chunk's first iteration, from 0.
        table: the answers that the next chunk starts with.

    Raises:
        OSError: the disk is full; the checkpoint before is intact, and the same command goes on from there.
    """
    done = first_iteration + next(iter(chunk.values())).shape[1]
    with _told_when_full(run.path):
        metrics.append(run.metrics_path, chunk, first_iteration, run.config.ppo.batch_size)
        if table is not None:
            save(table, run.tables_path / f"{done}.npz")
        checkpoint.save(run.checkpoints_path, done, state)
    # Only now, since until now the run would have gone on from an earlier one.
    for old in run.tables_path.glob("*.npz"):
        if old.stem.isdecimal() and int(old.stem) not in checkpoint.steps(run.checkpoints_path):
            old.unlink()


def finish(run: Run, *, compile_seconds: float, run_seconds: float, run_iterations: int) -> dict[str, Any]:
    """Writes ``curves.png`` and ``summary.json``, which marks the run as finished.

    Args:
        run: an open run whose iterations are all recorded.
        compile_seconds, run_seconds, run_iterations: as for ``llmrl.runs.metrics.summary``.

    Returns:
        The summary.
    """
    curves = metrics.read(run.metrics_path)
    values = metrics.summary(
        curves,
        steps_per_iteration=run.config.ppo.batch_size,
        compile_seconds=compile_seconds,
        run_seconds=run_seconds,
        run_iterations=run_iterations,
    )
    if (run.path / EXTENDED).is_file():
        values["extended_from"] = [int(line) for line in (run.path / EXTENDED).read_text().split()]
    with _told_when_full(run.path):
        plots.curves(curves, run.path / "curves.png", describe(run.config), run.config.method.name)
        metrics.write_summary(run.summary_path, values)
    return values


def read_summary(run: Run) -> dict[str, Any]:
    """The summary of a finished run."""
    return json.loads(run.summary_path.read_text())


def describe(config: Config) -> str:
    """A run in one line, for titles."""
    return f"{describe_task(config)}, method: {config.method.name}"


def describe_task(config: Config) -> str:
    """What a run learns from, whatever its method: for titles of several."""
    aux = " + ".join([*config.aux.sources, *([config.aux.function] if config.aux.function else [])]) or "none"
    return f"{config.env.id or config.env.name}, auxiliary reward: {aux}"


def _make(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in _FULL:
            raise
        raise BadValue(f"run_dir={brief(path)} cannot be made a directory: {of_the_disk(error)}") from error


def _claim(path: Path, config: Config) -> int | None:
    """Makes the directory this config's.

    Returns:
        The ``total_steps`` of the finished run that is to be extended; None where none is.
    """
    if not (path / "config.yaml").exists():
        # The second is what a process leaves that was killed while it wrote its first file.
        ours = (".lock", ".config.yaml.tmp")
        strangers = sorted(entry.name for entry in path.iterdir() if entry.name not in ours)
        if strangers:
            raise BadValue(f"run_dir={path} holds files that are no run's, such as {strangers[0]!r}; choose another")
    elif done := _done(path):
        earlier = _refuse_another_config(path, config)
        if earlier is None and done < config.num_iterations:  # killed while it was extended
            _forget_results(path)
        return earlier
    elif (path / "summary.json").exists():
        raise BadValue(
            f"{_WITHOUT_CHECKPOINTS.format(f'run_dir={path}')}: `llmrl report` still reads it; to train again choose "
            "another run_dir or remove it"
        )
    # Before the first checkpoint there is nothing to lose, so a run that failed at once may be started differently.
    _write_config(path, config)
    if CODE in config.aux.sources:
        metrics.replace_file(path / FUNCTIONS, _functions(config))
    return None


def _extend(run: Run, earlier: int) -> None:
    """Makes a finished run one of more ``total_steps``."""
    with (run.path / EXTENDED).open("a") as file:
        file.write(f"{earlier}\n")
    _write_config(run.path, run.config)
    if not run.finished:
        _forget_results(run.path)


def _forget_results(path: Path) -> None:
    """What was found out about a shorter run is not true of a longer one."""
    for name in ("summary.json", "evaluation.json"):
        (path / name).unlink(missing_ok=True)


def _done(path: Path) -> int:
    """Iterations that the last checkpoint has behind it."""
    return max(checkpoint.steps(path / "checkpoints"), default=0)


def _write_config(path: Path, config: Config) -> None:
    metrics.replace_file(path / "config.yaml", yaml.safe_dump(_plain(asdict(config)), sort_keys=False))


def _set(settings: Mapping[str, Any], key: str) -> str:
    return f"{key}={settings[key]}" if key in settings else f"no {key}"


def _refuse_another_config(path: Path, config: Config) -> int | None:
    """Refuses what is not the run in the directory.

    Returns:
        The run's ``total_steps``, where it is finished and the config only asks for more; None where it is the same.
    """
    if not config.resume:
        raise BadValue(f"run_dir={path} holds a run already and resume=false; choose another or remove it")
    stored, given = _flat(_read_config(path)), _flat(_plain(asdict(config)))
    # Of a setting that is newer than the run, the run had the default.
    known = _flat(_plain(asdict(Config()))) | stored
    keys = {key for key in (*known, *given) if key.partition(".")[0] not in NOT_COMPARED}
    differing = [key for key in keys if known.get(key) != given.get(key)]
    differing.sort(key=lambda key: (key not in stored, key))
    advice = "choose another run_dir or remove it"
    written = {*differing} <= {"total_steps"} and CODE in config.aux.sources
    if written and _functions(config) != (path / FUNCTIONS).read_text():
        raise BadValue(f"the functions of aux=code have changed since the run of run_dir={path} began; {advice}")
    if not differing:
        return None
    if differing == ["total_steps"] and stored["total_steps"] < config.total_steps:
        if (path / "summary.json").exists():
            return stored["total_steps"]
        advice = "it can be extended once it is finished"
    key = differing[0]
    raise BadValue(f"run_dir={path} holds a run with {_set(stored, key)}, got {_set(given, key)}; {advice}")


def _functions(config: Config) -> str:
    """The text of a config's functions, as it is now."""
    return find(config.aux.file, config.env).read_text()


def _read_config(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load((path / "config.yaml").read_text())
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise BadValue(f"{path / 'config.yaml'} holds no settings: {reason}") from error
    if not isinstance(values, dict):
        raise BadValue(f"{path / 'config.yaml'} holds no settings, but {type(values).__name__}")
    return values


def _plain(value: Any) -> Any:
    """Only what YAML has words for."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def _told_when_full(path: Path) -> Iterator[None]:
    """Adds to a full disk's error which directory it is about, what is left there, and what is not lost."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        done = _done(path)
        free = shutil.disk_usage(path).free
        raise OSError(
            f"{os.strerror(error.errno)}: cannot write to {path} ({free:,} bytes free there); iteration {done} and all "
            "before it are safe. Make room, then the same command goes on from there"
        ) from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the directory. The system lets go of the lock when the process ends, however it ends."""
    with (path / ".lock").open("a+") as file:
        if not lock_descriptor(file.fileno(), blocking=False):
            raise BadValue(f"run_dir={path} is in use by {_holder(file)}")
        file.truncate(0)
        file.write(f"\nprocess {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def _holder(lock: TextIO) -> str:
    """The process that holds a lock. Its name begins at the second byte: Windows locks the first against reading."""
    lock.seek(1)
    return lock.read().strip() or "another process"
