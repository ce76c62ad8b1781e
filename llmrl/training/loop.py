"""Training: the only scan over iterations, and the host loop around compiled chunks of it."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llmrl.assembly.parts import (
    acting_policy,
    any_environment,
    build,
    length_schedules,
    make_environment,
    numbers_of,
    policy_of,
    with_numbers,
)
from llmrl.envs.watching import watched
from llmrl.language import Table
from llmrl.runs import directory as runs
from llmrl.runs import metrics as metrics_file
from llmrl.runs import trackers
from llmrl.settings.config import Config
from llmrl.settings.errors import BadValue
from llmrl.settings.validation import validate
from llmrl.training import hosts, transfer
from llmrl.training.answers import Listener, hearing, misses_of, provider_of
from llmrl.training.cores import in_float32, refuse_debugging, use_compilation_cache, use_cores
from llmrl.training.devices import (
    Pieces,
    compiled_run,
    initial_states,
    on_devices,
    opened_pieces,
    seed_keys,
    seed_mesh,
    state_shapes,
)
from llmrl.training.iteration import Trainer, TrainState, first_state, iterate
from llmrl.training.progress import note, progress
from llmrl.training.stopping import stop_requests
from llmrl.types import Environment, EnvSpec, HostEnvironment

__all__ = [
    "Result",
    "Store",
    "TrainState",
    "Trained",
    "Trainer",
    "acting_policy",
    "any_environment",
    "check",
    "chunk_lengths",
    "chunks_left",
    "compiled_run",
    "initial_states",
    "listener_of",
    "make_environment",
    "make_trainer",
    "numbers_of",
    "on_devices",
    "opened_pieces",
    "opened_store",
    "policy_of",
    "result_of",
    "seed_keys",
    "seed_mesh",
    "state_shapes",
    "tell_extended",
    "tell_skipped",
    "train",
    "train_chunks",
    "use_compilation_cache",
    "use_cores",
    "with_numbers",
]


def make_trainer(config: Config) -> Trainer:
    """Compose a run from a validated config.

    Returns:
        A ``Trainer`` of pure functions; nothing is compiled yet.
    """
    env = any_environment(config)

    def init(key, numbers, table=None):
        return first_state(with_numbers(config, numbers), env, key, table)

    def run(state, numbers, num_iterations, first=0, table=None):
        compiled = env
        if isinstance(compiled, HostEnvironment):
            raise BadValue(f"{compiled.spec.name} runs in Python and cannot be compiled")
        live = with_numbers(config, numbers)
        parts = build(live, compiled)
        state = state._replace(heard=parts.attentive(state.heard))

        def body(state, offset):
            return iterate(live, compiled, parts, state, offset, table)

        # The index is scanned, not carried: it stays one number under vmap over seeds.
        return jax.lax.scan(body, state, first + jnp.arange(num_iterations))

    return Trainer(env, init, run, numbers_of(config))


# --- the host loop ----------------------------------------------------------------------------------------------------


class Result(NamedTuple):
    """A finished run. Of several processes, only the first has metrics and a summary where there is a run directory.

    Attributes:
        config: its settings.
        metrics: name -> [seeds, iterations], as in ``metrics.csv``.
        state: the last states, [seeds], spread over all processes.
        summary: as in ``summary.json``.
        answers: a language model's, as they stand at the end; None where it is no source.
    """

    config: Config
    metrics: dict[str, np.ndarray]
    state: TrainState
    summary: dict[str, Any]
    answers: Table | None = None


def chunk_lengths(num_iterations: int, num_chunks: int) -> list[int]:
    """Lengths of the compiled pieces, equal where a length from half to twice the wished one divides the whole: each
    length costs a compilation."""
    wished = -(-num_iterations // num_chunks)
    shorter, longer = range(wished, -(-wished // 2) - 1, -1), range(wished + 1, 2 * wished + 1)
    even = [n for n in (*shorter, *longer) if num_iterations % n == 0]
    length = even[0] if even else wished
    whole, rest = divmod(num_iterations, length)
    return [length] * whole + ([rest] if rest else [])


def chunks_left(num_iterations: int, num_chunks: int, start: int) -> Iterator[tuple[int, int]]:
    """``(first iteration, length)`` of the pieces that are left after ``start`` iterations.

    They end where those of a whole run end, so an extended run, which may start in the middle of one, soon has them.
    """
    first = 0
    for length in chunk_lengths(num_iterations, num_chunks):
        if first + length > start:
            yield max(first, start), first + length - max(first, start)
        first += length


class Store(NamedTuple):
    """Where chunks go: run directories, or nowhere but memory.

    Attributes:
        restore, restore_language, record: as ``llmrl.runs`` has them, for what is open.
        run: the run that is open, the first of several; None in memory.
    """

    restore: Callable[[TrainState], tuple[TrainState, int] | None]
    restore_language: Callable[[int], tuple[Table | None, dict[str, float]]]
    record: Callable[[TrainState, dict[str, np.ndarray], int, Table | None], None]
    run: runs.Run | None


_NOWHERE = Store(lambda like: None, lambda start: (None, {}), lambda *chunk: None, None)


@contextlib.contextmanager
def opened_store(config: Config) -> Iterator[Store]:
    """A config's store; its ``run_dir``, where it has one, is held meanwhile."""
    if config.run_dir is None:
        if config.track.tensorboard or config.track.wandb:
            raise BadValue("track=... needs a run_dir: dashboards are fed from the metrics.csv in there")
        yield _NOWHERE
        return
    with contextlib.ExitStack() as opened:
        with hosts.together():
            store = opened.enter_context(_directory(config)) if hosts.first() else _NOWHERE
        yield _shared(store) if hosts.several() else store


@contextlib.contextmanager
def _directory(config: Config) -> Iterator[Store]:
    with runs.open_run(config) as run, trackers.tracking(config) as track:

        def restore(like):
            restored = runs.restore(run, like)
            track()  # what a killed process had no time to send
            return restored

        def record(*chunk):
            runs.record(run, *chunk)
            track()

        yield Store(restore, functools.partial(runs.restore_language, run), record, run)


def _shared(store: Store) -> Store:
    """The first process's store for all of them: each hears what it holds, and gives it its part."""

    def restore(like):
        with hosts.together():
            restored = store.restore(like)
        done = hosts.agreed(restored[1] if restored else -1)
        return (hosts.from_first(restored[0] if restored else None, like), done) if done >= 0 else None

    def record(states, *chunk):
        states = hosts.whole(states)
        with hosts.together():
            store.record(states, *chunk)

    return store._replace(restore=restore, record=record)


@in_float32
def train(config: Config) -> Result:
    """Train all seeds of a config; with a ``run_dir``, keep everything there and go on where an earlier process
    stopped.

    Args:
        config: from ``llmrl.compose`` or built by hand.

    Returns:
        Metrics, states and summary.

    Raises:
        ValueError: a setting is out of range, the run directory is another run's, the reward to train under cannot be
            had or does not fit, or another process of the run has failed.
        OSError: the disk is full; the last checkpoint is intact.
        Stopped: SIGTERM or SIGUSR1 came; what was trained until then is in ``run_dir``.
    """
    config, trainer = _prepared(config)
    mesh = seed_mesh(config)
    with opened_store(config) as store, opened_pieces(config, trainer, mesh) as pieces:
        if config.progress and mesh.size > 1:
            among = f" of {jax.process_count()} processes" if hosts.several() else ""
            note(f"{config.seeds} seeds over {mesh.size} {jax.devices()[0].platform} devices{among}")
        restored = store.restore(state_shapes(trainer, config))
        states, start = restored or (None, 0)
        if config.progress and store.run is not None and store.run.extended_from is not None:
            tell_extended(config, store.run.extended_from, start)
        if config.progress and start == config.num_iterations:
            note(f"run_dir={config.run_dir} is finished already; nothing was trained again")
        with listener_of(config, trainer.env, store, start) as listener:
            if states is None:
                states = transfer.with_reward(config, pieces.initial(listener.table))
            else:
                states = pieces.restored(states)
            trained = train_chunks(config, trainer.env.spec, pieces, states, start, store, listener)
        if hosts.first():
            tell_skipped(trained.chunks)
        with hosts.together():
            return result_of(config, trained, store.run)


@in_float32
def check(config: Config) -> None:
    """Refuses what ``train`` would refuse of the environment, its sources and the method, without training or writing.

    A language model's provider is made too, and nothing is asked.

    Raises:
        ValueError: as for ``train``, and whatever else making the environment or the provider raises.
    """
    config, trainer = _prepared(config)
    provider_of(config, trainer.env)


def _prepared(config: Config) -> tuple[Config, Trainer]:
    """The whole config, and the parts of its run; what any of them refuses is refused before anything is written."""
    validate(config)
    refuse_debugging()
    use_compilation_cache()
    use_cores(config)
    hosts.join(config)
    config = replace(config, progress=config.progress and hosts.first())
    config = transfer.resolved(config, lambda other: any_environment(other).spec)
    trainer = make_trainer(config)
    build(config, trainer.env)
    return config, trainer


def tell_extended(config: Config, earlier: int, start: int) -> None:
    """Says that a finished run goes on, and what does not go on as in a run that was started at this length."""
    words = f"run_dir={config.run_dir} was finished at total_steps={earlier}; it goes on from there, iteration {start}"
    if schedules := length_schedules(config):
        words += (
            f", to total_steps={config.total_steps}. {' and '.join(schedules)} followed the schedule of the shorter "
            "length until here, and follows that of the longer one from here on: the numbers are not those of a run "
            f"started at total_steps={config.total_steps}"
        )
    note(words)


def listener_of(
    config: Config, env: Environment | HostEnvironment, store: Store, start: int
) -> contextlib.AbstractContextManager[Listener]:
    """Who answers from iteration ``start`` on."""
    if start == config.num_iterations:  # no model is asked any more
        known, _ = store.restore_language(start)
        return contextlib.nullcontext(Listener(known, lambda table, misses: (table, {})))
    return hearing(config, env, *store.restore_language(start))


class Trained(NamedTuple):
    """What the host loop leaves.

    Attributes:
        states: the last states, [seeds].
        chunks: metrics of the pieces that it has trained, name -> [seeds, iterations of the piece].
        seconds: ``compile_seconds``, ``run_seconds`` and ``run_iterations``, as for ``llmrl.runs.metrics.summary``.
        answers: a language model's; None where it is no source.
    """

    states: TrainState
    chunks: list[dict[str, np.ndarray]]
    seconds: dict[str, Any]
    answers: Table | None = None


def train_chunks(
    config: Config, spec: EnvSpec, pieces: Pieces, states: TrainState, start: int, store: Store, listener: Listener
) -> Trained:
    """Run what is left in compiled pieces; the same pieces whether or not the run was interrupted."""
    total, table = config.num_iterations, listener.table
    programs: dict[int, Callable] = {}
    chunks: list[dict[str, np.ndarray]] = []
    compile_seconds, run_seconds = 0.0, 0.0
    signs_in = watched(spec, config.ppo.num_steps)
    with (
        stop_requests(total, config.run_dir is not None, hosts.agreed) as heed,
        progress(total, start, config.progress and start < total) as show,
    ):
        for first, length in chunks_left(total, config.num_chunks, start):
            heed(first)
            began = time.monotonic()
            if length not in programs:
                programs[length] = pieces.program(states, length, table)
            compiled = time.monotonic()
            heed(first)
            states, chunk = jax.block_until_ready(programs[length](states, np.int32(first), table))
            chunk = {name: np.asarray(curve) for name, curve in hosts.whole(chunk).items()}
            compile_seconds += compiled - began
            run_seconds += time.monotonic() - compiled
            table, counts = listener.exchange(table, misses_of(hosts.whole(states.heard)))
            chunk |= {name: np.full((config.seeds, length), count, np.float32) for name, count in counts.items()}
            store.record(states, chunk, first, table)
            chunks.append(chunk)
            show(first + length, chunk)
            for sign in signs_in(chunk, first + length == total) if hosts.first() else ():
                note(sign)
    seconds = {
        "compile_seconds": compile_seconds,
        "run_seconds": run_seconds,
        "run_iterations": total - start,
    }
    return Trained(states, chunks, seconds, table)


def tell_skipped(chunks: list[dict[str, np.ndarray]], where: str = "") -> None:
    """Names the seeds that met something that is no number."""
    skipped = sum((chunk["skipped_update"].sum(axis=1) for chunk in chunks), np.zeros(1))
    told = [f"seed {seed}: {int(count)}" for seed, count in enumerate(skipped) if count]
    if told:
        note(f"{where}updates skipped, since a reward, an observation or a gradient was not finite: {', '.join(told)}")


def result_of(config: Config, trained: Trained, run: runs.Run | None) -> Result:
    """The result of what was trained; an open run is finished with it."""
    states, chunks, seconds, answers = trained
    if run is not None:
        finished = run.finished and not chunks
        summary = runs.read_summary(run) if finished else runs.finish(run, **seconds)
        return Result(config, metrics_file.read(run.metrics_path), states, summary, answers)
    if config.run_dir is not None and hosts.several():
        return Result(config, {}, states, {}, answers)
    curves = {name: np.concatenate([chunk[name] for chunk in chunks], axis=1) for name in chunks[0]}
    summary = metrics_file.summary(curves, steps_per_iteration=config.ppo.batch_size, **seconds)
    return Result(config, metrics_file.index(curves, config.ppo.batch_size) | curves, states, summary, answers)
