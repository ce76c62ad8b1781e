"""Where a run is computed: its seeds, or rows of a grid, side by side on one device or many."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Key, PyTree

from llmrl.settings.config import Config
from llmrl.settings.errors import BadValue
from llmrl.training import hosts
from llmrl.training.iteration import Trainer, TrainState
from llmrl.types import EnvSpec

Tree = TypeVar("Tree")

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


def everywhere(tree: Tree, mesh: Mesh) -> Tree:
    """The same arrays on every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def computed_once(function: Callable[..., Tree], rows: PyTree, mesh: Mesh, at_once: int, *alike: PyTree) -> Tree:
    """``function(row, *alike)`` of every row, [rows], spread over the mesh.

    A CPU's compiler takes half the time for code that is hardly slower; this code runs once.
    """

    def many(rows, *alike):
        return _of_each(lambda row: function(row, *alike), rows, len(mesh.local_devices) * at_once)

    cpu = mesh.local_devices[0].platform == "cpu"
    options = {"xla_backend_optimization_level": "1"} if cpu else {}
    return hosts.spread(jax.jit(many, compiler_options=options)(hosts.own(rows, mesh), *alike), mesh)


def compiled_for_rows(function: Callable, rows: PyTree, mesh: Mesh, at_once: int, *alike: PyTree) -> Callable:
    """``(rows, *alike) -> results [rows]``: ``function(row, *alike)`` of every row, compiled. Every device computes its
    own rows, ``at_once`` of them side by side, and nothing is exchanged.

    Args:
        function: of one row.
        rows: arrays of every row, [rows]; others of the same shapes fit as well.
        mesh: the devices.
        at_once: rows of a device side by side.
        alike: what is the same for all rows, likewise.
    """

    def many(rows, *alike):
        return _of_each(lambda row: function(row, *alike), rows, at_once)

    # Rows never meet, so there is nothing for the check of replicated values to find.
    spec = PartitionSpec("seed")
    specs = spec, *[PartitionSpec()] * len(alike)
    sharded = jax.shard_map(many, mesh=mesh, in_specs=specs, out_specs=spec, check_vma=False)
    return jax.jit(sharded).lower(rows, *alike).compile()


def _of_each(function: Callable[[PyTree], Tree], rows: PyTree, at_once: int) -> Tree:
    """A function of every row, so many side by side and batch after batch."""
    if at_once >= len(jax.tree.leaves(rows)[0]):
        return jax.vmap(function)(rows)
    return jax.lax.map(function, rows, batch_size=at_once)
