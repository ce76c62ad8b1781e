"""Grids of settings inside one program: the seeds of all points side by side, each point a run of its own on the disk.

A float that a trainer takes as an argument (``llmrl.assembly.parts.numbers_of``) may differ from row to row of one
compiled program. So points are trained as if they were more seeds: compiled once, spread over the same devices,
counted by ``seeds_per_batch``. What is kept is an ordinary run directory per point:

    <run_dir>/learning_rate-0.001/   as ``llmrl.runs`` has it
    <run_dir>/learning_rate-0.01/
    <run_dir>/table.md               all points side by side
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llmrl.analysis.comparison import MEASURES
from llmrl.analysis.statistics import area_under_curve, last_tenth, mean_interval
from llmrl.analysis.tables import about_seeds, known, markdown, number
from llmrl.assembly.parts import build, with_numbers
from llmrl.runs import checkpoint
from llmrl.runs import directory as runs
from llmrl.runs.metrics import replace_file
from llmrl.settings.config import Config
from llmrl.settings.errors import BadValue
from llmrl.settings.validation import validate
from llmrl.studies.grids import names_of, points_of
from llmrl.training.answers import provider_of
from llmrl.training.cores import in_float32, refuse_debugging, use_compilation_cache, use_cores
from llmrl.training.devices import seed_keys, seed_mesh, state_shapes
from llmrl.training.iteration import Trainer, TrainState
from llmrl.training.loop import (
    Result,
    Rows,
    Trained,
    chunk_lengths,
    listener_of,
    make_trainer,
    opened_pieces,
    result_of,
    tell_extended,
    tell_skipped,
    train_chunks,
)
from llmrl.training.progress import note, plural, show_table
from llmrl.training.store import Store, opened_store
from llmrl.training.written import try_written
from llmrl.types import HostEnvironment

TABLE = "table.md"


class Point(NamedTuple):
    """One choice of what a grid sweeps.

    Attributes:
        values: dotted key -> value.
        result: what training under them gave; its seconds are the point's share of the whole grid's.
    """

    values: dict[str, float]
    result: Result


@in_float32
def sweep(config: Config, grid: Mapping[str, Iterable[float | int]]) -> list[Point]:
    """Train every combination of some settings' values, each with all seeds, in one compiled program.

    Args:
        config: of every point. With a ``run_dir`` each point has a run directory of its own in there, and the same
            call goes on where an earlier process stopped.
        grid: dotted key of a float setting, or its last parts where they are unambiguous -> its values.

    Returns:
        The points, the last key's values changing fastest. Each is the run with its values alone, up to rounding; where
        a language model answers while training goes on, they share its answers and its budget.

    Raises:
        ValueError: a key is unknown or cannot be swept, a value is out of range, or a directory is another run's.
        OSError, Stopped: as for ``llmrl.train``.
    """
    validate(config)
    refuse_debugging()
    choices = points_of(config, grid)
    configs = [validate(with_numbers(config, values)) for values in choices]
    _refuse_what_cannot_be_shared(config)
    use_compilation_cache()
    use_cores(replace(config, seeds=config.seeds * len(choices)))
    trainer = make_trainer(config)
    if isinstance(trainer.env, HostEnvironment):
        raise BadValue(f"env={config.env.name} is stepped in Python, not inside of a program: use --multirun")
    for one in configs:
        build(one, trainer.env)  # factories refuse plain numbers that are out of range, and let traced ones pass
    if config.run_dir is not None:
        paths = [str(Path(config.run_dir) / name) for name in names_of(choices)]
        configs = [replace(one, run_dir=path) for one, path in zip(configs, paths, strict=True)]
    if not all(map(runs.is_finished, configs)):
        provider_of(config, trainer.env)  # refused, if at all, before anything is written
    with contextlib.ExitStack() as stack:
        stores = [stack.enter_context(opened_store(one)) for one in configs]
        members = [_Member(*member) for member in zip(choices, configs, stores, strict=True)]
        missing = [member for member in members if not member.finished]
        if missing:
            try_written(config)
        trained = iter(_train(config, trainer, missing) if missing else [])
        return [Point(one.values, _finished(one, trainer) if one.finished else next(trained)) for one in members]


def tabulate(config: Config, grid: Mapping[str, Iterable[float | int]], command: str = "") -> Path:
    """Trains a grid, shows its points in one table, and keeps that in the grid's directory.

    Args:
        config: of every point, with a ``run_dir``.
        grid: as for ``sweep``.
        command: what was typed, to be kept beside the table.

    Returns:
        The table's file.
    """
    if config.run_dir is None:
        raise BadValue("run_dir must name a directory, got None")
    points = sweep(config, grid)
    header, rows = rows_of(points, MEASURES.get(config.env.name, "episode_return"))
    path = Path(config.run_dir) / TABLE
    replace_file(path, (f"    {command}\n\n" if command else "") + markdown(header, rows))
    steps = int(points[0].result.metrics["env_steps"].max())
    trained = f"{plural(len(points), 'point')} x {plural(config.seeds, 'seed')}"
    caption = f"{trained} x {steps:,} steps each; {about_seeds(config.seeds)}"
    show_table(header, rows, title=str(config.run_dir), caption=caption)
    return path


def rows_of(points: Sequence[Point], measure: str) -> tuple[tuple[str, ...], list[list[str]]]:
    """Header and rows: each point's settings, and the area and the end of its curves."""
    header = (*points[0].values, f"{measure.replace('_', ' ')}, whole training", "last tenth", "worst seed")
    rows = []
    for values, result in points:
        curves = np.asarray(result.metrics[measure], np.float64)
        area, end = area_under_curve(curves), last_tenth(curves)
        told = [known(mean_interval(area)), known(mean_interval(end)), number(float(end.min()))]
        rows.append([*map(str, values.values()), *told])
    return header, rows


def _refuse_what_cannot_be_shared(config: Config) -> None:
    if config.distributed:
        raise BadValue("a grid is trained by one process: it needs distributed=false, or use --multirun")
    if config.method.name == "frozen":
        raise BadValue("method=frozen takes settings from another run, which a grid cannot change: use --multirun")
    if config.run_dir is not None and (Path(config.run_dir) / "config.yaml").exists():
        raise BadValue(f"run_dir={config.run_dir} holds a run; a grid needs a directory of its own: choose another")


# --- training ---------------------------------------------------------------------------------------------------------


class _Member(NamedTuple):
    """A point, and where it is kept."""

    values: dict[str, float]
    config: Config
    store: Store

    @property
    def finished(self) -> bool:
        return self.store.run is not None and self.store.run.finished


def _finished(member: _Member, trainer: Trainer) -> Result:
    run = member.store.run
    assert run is not None
    state, iterations = runs.load_state(run, state_shapes(trainer, member.config))
    trained = Trained(state, [], {}, runs.read_answers(run, iterations))
    return result_of(member.config, trained, run)


def _train(config: Config, trainer: Trainer, members: Sequence[_Member]) -> list[Result]:
    """What is not finished, side by side."""
    wide = replace(config, seeds=config.seeds * len(members))
    mesh, store = seed_mesh(wide), _joint([member.store for member in members], config)
    with opened_pieces(wide, trainer, mesh, _rows(config, members)) as pieces:
        if config.progress:
            devices = f" over {mesh.size} {jax.devices()[0].platform} devices" if mesh.size > 1 else ""
            note(f"{len(members)} points x {config.seeds} seeds in one program{devices}")
        states, start = store.restore(state_shapes(trainer, config)) or (None, 0)
        if config.progress and store.run is not None and store.run.extended_from is not None:
            tell_extended(config, store.run.extended_from, start)
        with listener_of(config, trainer.env, store, start) as listener:
            states = pieces.initial(listener.table) if states is None else pieces.restored(states)
            trained = train_chunks(wide, trainer.env.spec, pieces, states, start, store, listener)
    results = []
    names = names_of([member.values for member in members])
    for name, member, part in zip(names, members, _parts(trained, config.seeds), strict=True):
        tell_skipped(part.chunks, f"{name}: ")
        results.append(result_of(member.config, part, member.store.run))
    return results


def _rows(config: Config, members: Sequence[_Member]) -> Rows:
    """Every point has the same keys, and its own numbers."""
    keys = seed_keys(config)[np.tile(np.arange(config.seeds), len(members))]
    columns = {key: [member.values[key] for member in members] for key in members[0].values}
    return Rows(keys, {key: np.repeat(np.asarray(column, np.float32), config.seeds) for key, column in columns.items()})


def _parts(trained: Trained, seeds: int) -> list[Trained]:
    """What belongs to each point, with its share of the time."""
    parts, states = [], _split(trained.states, seeds)
    shares = {name: trained.seconds[name] / len(states) for name in ("compile_seconds", "run_seconds")}
    for i, state in enumerate(states):
        state = jax.tree.map(lambda x: x if isinstance(x, jax.Array) else jnp.asarray(x), state)
        chunks = [_share(chunk, i, seeds) for chunk in trained.chunks]
        parts.append(Trained(state, chunks, trained.seconds | shares, trained.answers))
    return parts


def _share(chunk: dict[str, np.ndarray], point: int, seeds: int) -> dict[str, np.ndarray]:
    return {name: curves[point * seeds : (point + 1) * seeds] for name, curves in chunk.items()}


def _split(states: TrainState, seeds: int) -> list[TrainState]:
    """The states of each point, [seeds], on the host but for keys, which cannot be there."""

    def on_host(leaf):
        return leaf if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else np.asarray(leaf)

    here = jax.tree.map(on_host, states)
    starts = range(0, len(here.iteration), seeds)
    return [jax.tree.map(lambda x, start=start: x[start : start + seeds], here) for start in starts]


# --- keeping ----------------------------------------------------------------------------------------------------------


def _joint(stores: Sequence[Store], config: Config) -> Store:
    """Many stores as one: a chunk is shared out, and states are put together."""
    if stores[0].run is None:
        return stores[0]

    def restore(like):
        return _restored(stores, like, chunk_lengths(config.num_iterations, config.num_chunks)[0])

    def record(states, chunk, first, table):
        for point, (store, state) in enumerate(zip(stores, _split(states, config.seeds), strict=True)):
            store.record(state, _share(chunk, point, config.seeds), first, table)

    return Store(restore, stores[0].restore_language, record, stores[0].run)


def _restored(stores: Sequence[Store], like: TrainState, first_chunk: int) -> tuple[TrainState, int] | None:
    """All points' states after the last chunk that each of them has kept; what some have beyond it is dropped.

    A kill between the checkpoints of two points leaves one a chunk ahead; a damaged checkpoint sets one back.
    """
    folders = [store.run.checkpoints_path for store in stores if store.run is not None]
    step = _common_step(folders, first_chunk)
    while True:
        for folder in folders:
            checkpoint.rewind(folder, step)
        found = [store.restore(like) for store in stores]
        if step == 0:
            return None
        states = [one[0] for one in found if one is not None and one[1] == step]
        if len(states) == len(stores):
            return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *states), step
        step = min(0 if one is None else one[1] for one in found)


def _common_step(folders: Sequence[Path], first_chunk: int) -> int:
    kept = {folder: checkpoint.steps(folder) for folder in folders}
    # Who has no more than the first chunk loses little by starting again, where another has not even that.
    held = [{*steps, *([0] if max(steps, default=0) <= first_chunk else [])} for steps in kept.values()]
    common = set.intersection(*held)
    if common:
        return max(common)
    stand = ", ".join(f"{folder.parent.name} at {max(steps, default=0)}" for folder, steps in kept.items())
    raise BadValue(
        f"the points in {folders[0].parent.parent} are too far apart to go on together ({stand}): let each go on alone "
        "with its value and run_dir, or choose another run_dir"
    )
