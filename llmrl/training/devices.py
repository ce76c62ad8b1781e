"""Where a run is computed: its seeds side by side on many devices, or its games on the host and the rest on one."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Key, PyTree

from llmrl.assembly.parts import SourceMemory, build, with_numbers
from llmrl.language import Table
from llmrl.learner.rollout import ActingState, episode_statistics, with_captions
from llmrl.learner.rollout_host import collect_host, restarted
from llmrl.ops.distributions import sampling_noise
from llmrl.settings.config import Config
from llmrl.settings.errors import BadValue
from llmrl.training import hosts
from llmrl.training.iteration import Trainer, TrainState, iteration_keys, learn_from
from llmrl.types import EnvSpec, HostEnvironment, HostWorlds

SHARE_OF_MEMORY = 0.5
"""Of a device's memory, what all seeds together may be expected to need."""

CACHE = 2e7
"""Bytes, by the same estimate, that a core computes fastest with: two seeds of 16 environments. With 15 side by side on
each of two cores, `implicit` is a third slower; one at a time is a tenth slower than two."""


def seed_mesh(config: Config) -> Mesh:
    """The devices that share the seeds: as many as divide them evenly, and equally many of every process.

    Raises:
        ValueError: there are seeds for some of the run's processes only.
    """
    devices, processes = jax.devices(), jax.process_count()
    there = len(devices) // processes
    allowed = there if config.devices == "auto" else min(config.devices, there)
    fitting = [n for n in range(1, allowed + 1) if config.seeds % (n * processes) == 0]
    if not fitting:
        raise BadValue(f"{processes} processes share the seeds evenly, got seeds={config.seeds}")
    of_each = [[device for device in devices if device.process_index == i] for i in range(processes)]
    chosen = [device for own in of_each for device in own[: max(fitting)]]
    return jax.make_mesh((len(chosen),), ("seed",), axis_types=(AxisType.Auto,), devices=chosen)


class Rows(NamedTuple):
    """What is trained side by side: a config's seeds, or those of one point of a grid after the other.

    Attributes:
        keys: a key per row.
        numbers: those of a trainer's numbers that differ from row to row; empty for seeds alone.
    """

    keys: Key[Array, " rows"]
    numbers: dict[str, Float[np.ndarray, " rows"]]


def seed_keys(config: Config) -> Key[Array, " seeds"]:
    """One key per seed: number i among eight is number i alone."""
    base = jax.random.key(config.seed)
    return jax.vmap(lambda i: jax.random.fold_in(base, i))(jnp.arange(config.seeds))


def seeds_at_once(config: Config, spec: EnvSpec, mesh: Mesh) -> int:
    """How many of its seeds a device computes side by side: as many as were asked for, or as its memory should hold, on
    a CPU its cache.

    In the second case a divisor of its seeds, as each other number of seeds would be a program of its own.
    """
    own = config.seeds // mesh.size
    if config.seeds_per_batch is not None:
        return min(own, config.seeds_per_batch)
    room = SHARE_OF_MEMORY * _memory(mesh)
    if mesh.local_devices[0].platform == "cpu":
        room = min(room, CACHE)
    fitting = max(1, int(room / seed_bytes(config, spec)))
    return max(n for n in range(1, own + 1) if own % n == 0 and n <= fitting)


def seed_bytes(config: Config, spec: EnvSpec) -> int:
    """Memory that a seed needs while it trains, in bytes: an estimate, on the safe side, without tracing anything.

    Its networks with their optimiser's moments; its rollout, as it was played, in halves, and in the copies that the
    pieces of an iteration make of it, and those that are remembered; and what every layer gave on all of its steps.
    """
    ppo, outer = config.ppo, config.method.outer
    features = math.prod(spec.obs_shape)
    widths = [features, *ppo.hidden]
    networks = 2 * sum(a * b for a, b in zip(widths, [*ppo.hidden, 1], strict=True))
    step = 2 * features * (1 if spec.encoding else 4) + 4 * (len(spec.aux_names) + 8)
    remembered = {"fresh": 0, "previous": 1}.get(outer.data, outer.window)
    layers = 4 * features + 8 * sum(ppo.hidden)
    return 4 * 8 * networks + ppo.batch_size * ((6 + remembered) * step + 3 * layers)


def _memory(mesh: Mesh) -> float:
    """Bytes that one device of the mesh has."""
    device = mesh.local_devices[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit is not None:
        return limit
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / len(mesh.local_devices)


def state_shapes(trainer: Trainer, config: Config) -> TrainState:
    """Shapes and dtypes of every seed's state, [seeds], as a checkpoint's reader needs them; nothing is computed."""
    return jax.eval_shape(jax.vmap(lambda key: trainer.init(key, trainer.numbers)), seed_keys(config))


def initial_states(
    trainer: Trainer, config: Config, mesh: Mesh, table: Table | None = None, rows: Rows | None = None
) -> TrainState:
    """Every row's first state, [rows], spread over the mesh; without ``rows`` those of the config's seeds."""
    at_once = len(mesh.local_devices) * seeds_at_once(config, trainer.env.spec, mesh)

    def start(rows, table):
        return _for_all(lambda row: trainer.init(row.keys, trainer.numbers | row.numbers, table), rows, at_once)

    rows = rows or Rows(seed_keys(config), {})
    started = jax.jit(start, compiler_options=_once(mesh))(hosts.own(rows, mesh), table)
    return hosts.spread(started, mesh)


def _once(mesh: Mesh) -> dict[str, str]:
    """How to compile what runs once: a CPU's compiler needs half the time for code that is hardly slower."""
    return {"xla_backend_optimization_level": "1"} if mesh.local_devices[0].platform == "cpu" else {}


def on_devices(table: Table | None, mesh: Mesh) -> Table | None:
    """The same table on every device."""
    return jax.device_put(table, NamedSharding(mesh, PartitionSpec()))


def _for_all(function: Callable, seeds: PyTree, at_once: int) -> PyTree:
    """A function of every seed, so many side by side and batch after batch."""
    if at_once >= len(jax.tree.leaves(seeds)[0]):
        return jax.vmap(function)(seeds)
    return jax.lax.map(function, seeds, batch_size=at_once)


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
    seeds, ``at_once`` of them (all, where not given) side by side, and nothing is exchanged. Any table of the same
    shape fits, ``on_devices``. ``numbers`` are those of ``Rows``."""
    spec = PartitionSpec("seed")
    own = jax.device_put(numbers or {}, NamedSharding(mesh, spec))

    def many(states, own, first, table):
        def one(row):
            state, differing = row
            return trainer.run(state, trainer.numbers | differing, num_iterations, first, table)

        return _for_all(one, (states, own), at_once or len(states.iteration))

    # Seeds never meet, so there is nothing for the check of replicated values to find.
    alike = PartitionSpec()
    sharded = jax.shard_map(many, mesh=mesh, in_specs=(spec, spec, alike, alike), out_specs=spec, check_vma=False)
    program = jax.jit(sharded).lower(states, own, np.int32(0), table).compile()
    return lambda states, first, table=None: program(states, own, first, table)


# --- the pieces of a run ----------------------------------------------------------------------------------------------


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
            yield _host_pieces(config, trainer, trainer.env, worlds)
        return

    numbers = rows.numbers if rows is not None else None

    def program(states, length, table):
        at_once = seeds_at_once(config, trainer.env.spec, mesh)
        run = compiled_run(trainer, states, mesh, length, on_devices(table, mesh), at_once, numbers)
        return lambda states, first, table: run(states, first, on_devices(table, mesh))

    def initial(table):
        # What lies on the devices of all processes, one of them alone cannot compute with.
        return initial_states(trainer, config, mesh, table if hosts.several() else on_devices(table, mesh), rows)

    yield Pieces(
        initial,
        lambda states: hosts.spread(hosts.own(states, mesh), mesh),
        program,
    )


def _host_pieces(config: Config, trainer: Trainer, env: HostEnvironment, worlds: HostWorlds) -> Pieces:
    """Acting step by step on the host, everything else compiled; all seeds at once, on one device.

    Worlds are not part of a state: a resumed run starts fresh episodes.
    """
    seeds, ppo = config.seeds, config.ppo
    live = with_numbers(config, trainer.numbers)
    parts = build(live, env)
    chances = np.random.default_rng([config.seed, 1])

    @jax.jit
    def noise_of(states):
        shape = ppo.num_steps + 1, ppo.num_envs
        return jax.vmap(lambda key: sampling_noise(iteration_keys(key).rollout, env.spec.action, shape))(states.key)

    @jax.jit
    def act(actors, phis, obs, noise):
        def one(actor, phis, obs, noise):
            distribution = parts.policy(phis).distribution(actor, obs)
            action = distribution.sample(noise)
            return action, distribution.log_prob(action)

        return jax.vmap(one)(actors, phis, obs, noise)

    @jax.jit
    def learn(states, obs, rollouts, index, table):
        def one(state, obs, rollout):
            length, returned, episodes = episode_statistics(state.acting, rollout.steps)
            return learn_from(
                live, parts, state, ActingState((), obs, length, returned, episodes), rollout, index, table
            )

        return jax.vmap(one)(states, obs, rollouts)

    @jax.jit
    def captioned(rollouts):
        return jax.vmap(lambda rollout: rollout._replace(steps=with_captions(env, rollout.steps)))(rollouts)

    def play(states):
        acting, obs = partial(act, states.params.actor, states.phis), np.asarray(states.acting.obs)
        obs, rollouts = collect_host(worlds, acting, obs, noise_of(states), chances)
        return obs, captioned(rollouts)

    def started(states):
        """The same states at the beginning of fresh episodes."""
        shape = seeds, ppo.num_envs
        obs = restarted(worlds, np.zeros((*shape, *env.spec.obs_shape), np.uint8), np.ones(shape, bool), chances)
        return states._replace(
            acting=states.acting._replace(obs=jnp.asarray(obs), length=jnp.zeros(shape), returned=jnp.zeros(shape))
        )

    @jax.jit
    def remembered(states, rollouts, table):
        def one(state, rollout):
            rollout, _, _ = parts.annotate(SourceMemory(state.heard, state.late), rollout, table)
            return parts.meta.init(state.phis, state.transform_states, state.params, rollout)

        return jax.vmap(one)(states, rollouts)

    def initial(table):
        states = started(jax.jit(jax.vmap(lambda key: trainer.init(key, trainer.numbers)))(seed_keys(config)))
        if parts.meta is None:
            return states
        _, rollouts = play(states)
        return started(states._replace(meta_state=remembered(states, rollouts, table)))

    def program(states, length, table):
        def run(states, first, table):
            rows, states = [], states._replace(heard=parts.attentive(states.heard))
            for index in range(first, first + length):
                obs, rollouts = play(states)
                states, row = learn(states, obs, rollouts, jnp.asarray(index, jnp.int32), table)
                rows.append(row)
            return states, jax.tree.map(lambda *x: jnp.stack(x, axis=1), *rows)

        return run

    return Pieces(initial, started, program)
