"""Training: the only scan over iterations, and the host loop around compiled chunks of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key

from llmrl.assembly.parts import any_environment, build, length_schedules, numbers_of, with_numbers
from llmrl.envs.watching import watched
from llmrl.language import Table
from llmrl.runs import directory as runs
from llmrl.runs import metrics as metrics_file
from llmrl.settings.config import Config
from llmrl.settings.errors import BadValue
from llmrl.settings.validation import validate
from llmrl.training import arms, decoupled, eipo, hosts, irpo, select, transfer
from llmrl.training.answers import Listener, hearing, misses_of, provider_of
from llmrl.training.cores import in_float32, refuse_debugging, use_compilation_cache, use_cores
from llmrl.training.devices import (
    compiled_for_rows,
    computed_once,
    everywhere,
    seed_keys,
    seed_mesh,
    seeds_at_once,
    state_shapes,
)
from llmrl.training.iteration import ALONE, Trainer, TrainState, Ways, first_state, iterate
from llmrl.training.iteration_host import host_pieces
from llmrl.training.progress import note, progress
from llmrl.training.stopping import stop_requests
from llmrl.training.store import Store, opened_store
from llmrl.training.written import try_written
from llmrl.types import Environment, EnvSpec, HostEnvironment


def make_trainer(config: Config) -> Trainer:
    """Compose a run from a validated config.

    Returns:
        A ``Trainer`` of pure functions; nothing is compiled yet.
    """
    env = any_environment(config)
    spread, ways = _policies(config)
    if ways is None and isinstance(env, HostEnvironment):
        raise BadValue(
            f"{env.spec.name} runs in Python, where method={config.method.name} cannot be used: its learners have "
            "environments of their own, of which one is stepped at a time"
        )
    one = select.iterate if ways is None else partial(iterate, ways=ways)

    def init(key, numbers, table=None, rollout=None):
        live = with_numbers(config, numbers)
        state = first_state(live, env, key, table, rollout)
        return state if spread is None else spread(live, env, state, key, table)

    def run(state, numbers, num_iterations, first=0, table=None):
        compiled = env
        if isinstance(compiled, HostEnvironment):
            raise BadValue(f"{compiled.spec.name} runs in Python and cannot be compiled")
        live = with_numbers(config, numbers)
        parts = build(live, compiled)
        state = state._replace(heard=parts.sources.attentive(state.heard))

        def body(state, offset):
            return one(live, compiled, parts, state, offset, table)

        # The index is scanned, not carried: it stays one number under vmap over seeds.
        return jax.lax.scan(body, state, first + jnp.arange(num_iterations))

    return Trainer(env, init, run, numbers_of(config), ways)


def _policies(config: Config) -> tuple[Callable[..., TrainState] | None, Ways | None]:
    """The first state of several policies, ``(config, env, state, key, table) -> state``, None where there is one, and
    what their iterations are made of; None for ``select``'s, which are other methods'."""
    if config.method.name == "select":
        return select.spread, None
    several = {"eipo": eipo, "decoupled": decoupled, "irpo": irpo}.get(config.method.name)
    if several is None and len(config.method.arms.follow) > 1:
        several = arms
    return (None, ALONE) if several is None else (several.spread, several.WAYS)


# --- the compiled pieces of a run -------------------------------------------------------------------------------------


class Rows(NamedTuple):
    """What is trained side by side: a config's seeds, or those of one point of a grid after the other.

    Attributes:
        keys: a key per row.
        numbers: those of a trainer's numbers that differ from row to row; empty for seeds alone.
    """

    keys: Key[Array, " rows"]
    numbers: dict[str, Float[np.ndarray, " rows"]]


def initial_states(
    trainer: Trainer, config: Config, mesh: Mesh, table: Table | None = None, rows: Rows | None = None
) -> TrainState:
    """Every row's first state, [rows], spread over the mesh; without ``rows`` those of the config's seeds."""

    def start(row, table):
        return trainer.init(row.keys, trainer.numbers | row.numbers, table)

    rows = rows or Rows(seed_keys(config), {})
    return computed_once(start, rows, mesh, seeds_at_once(config, trainer.env.spec, mesh), table)


def compiled_run(
    trainer: Trainer,
    states: TrainState,
    mesh: Mesh,
    num_iterations: int,
    table: Table | None = None,
    at_once: int | None = None,
    numbers: dict[str, Float[np.ndarray, " rows"]] | None = None,
) -> Callable:
    """``(states, first[, table]) -> (states, metrics [seeds, num_iterations])``, compiled; every device runs its own
    seeds, ``at_once`` of them (all, where not given) side by side. Any table of the same shape fits, put
    ``everywhere``. ``numbers`` are those of ``Rows``."""
    own = hosts.spread(numbers or {}, mesh)

    def one(row, first, table):
        state, differing = row
        return trainer.run(state, trainer.numbers | differing, num_iterations, first, table)

    at_once = at_once or len(states.iteration)
    program = compiled_for_rows(one, (states, own), mesh, at_once, np.int32(0), table)
    return lambda states, first, table=None: program((states, own), first, table)


class Pieces(NamedTuple):
    """The parts of a run that the host loop puts together.

    Attributes:
        initial: ``table -> states``, [seeds].
        restored: ``states -> states``, ready to go on with what a checkpoint holds.
        program: ``(states, length, table) -> ((states, first, table) -> (states, metrics [seeds, length]))``.
    """

    initial: Callable[[Table | None], TrainState]
    restored: Callable[[TrainState], TrainState]
    program: Callable[[TrainState, int, Table | None], Callable]


@contextlib.contextmanager
def opened_pieces(config: Config, trainer: Trainer, mesh: Mesh, rows: Rows | None = None) -> Iterator[Pieces]:
    """A run's pieces, as long as the games that it plays are open. Where there are ``rows``, which only what is
    compiled can have, ``config.seeds`` is their number."""
    if isinstance(trainer.env, HostEnvironment):
        with trainer.env.opened(trainer.env.sources) as worlds:
            yield Pieces(*host_pieces(config, trainer, trainer.env, worlds))
        return

    numbers = rows.numbers if rows is not None else None

    def program(states, length, table):
        at_once = seeds_at_once(config, trainer.env.spec, mesh)
        run = compiled_run(trainer, states, mesh, length, everywhere(table, mesh), at_once, numbers)
        return lambda states, first, table: run(states, first, everywhere(table, mesh))

    def initial(table):
        # What lies on the devices of all processes, one of them alone cannot compute with.
        return initial_states(trainer, config, mesh, table if hosts.several() else everywhere(table, mesh), rows)

    yield Pieces(
        initial,
        lambda states: hosts.spread(hosts.own(states, mesh), mesh),
        program,
    )


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
        if config.progress and mesh.size > 1 and not isinstance(trainer.env, HostEnvironment):
            among = f" of {jax.process_count()} processes" if hosts.several() else ""
            note(f"{config.seeds} seeds over {mesh.size} {jax.devices()[0].platform} devices{among}")
        restored = store.restore(state_shapes(trainer, config))
        states, start = restored or (None, 0)
        with hosts.together():
            if restored is None and hosts.first():
                try_written(config)
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
    _prepared(config)


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
    with hosts.together():
        if hosts.first() and not runs.is_finished(config):
            provider_of(config, trainer.env)
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
