"""One run over several processes, on one host or many: how they meet, and what they tell each other. Host only.

Every process runs the same program on seeds of its own; number 0 alone reads and writes the run's directory. Meeting,
arrays over all devices and messages are jax's; here is what a run needs of them. In a run of one process every function
here gives back what it is given.
"""

from __future__ import annotations

import contextlib
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from llmrl.envs import HOST_ENVIRONMENTS
from llmrl.settings.config import Config
from llmrl.settings.errors import BadValue

Tree = TypeVar("Tree", bound=PyTree)


def join(config: Config) -> None:
    """Meets the other processes of a run with ``distributed=true``; jax must not have computed anything before.

    Raises:
        ValueError: the run cannot be spread over processes, they cannot be found, or they differ in settings or in the
            number of their devices.
    """
    if not config.distributed:
        return
    _refuse_what_needs_one_host(config)
    if not jax.distributed.is_initialized():
        # Otherwise jax takes SIGTERM for itself, and a run at its start could not be stopped.
        with contextlib.suppress(AttributeError):
            jax.config.update("jax_enable_preemption_service", False)
        try:
            jax.distributed.initialize(config.coordinator, config.num_processes, config.process_id)
        except (ValueError, RuntimeError) as error:
            raise BadValue(
                f"distributed=true cannot find the run's processes: {' '.join(str(error).split())} (give each process "
                "coordinator=host:port num_processes=n process_id=i, or start them where jax finds these by itself: "
                "SLURM, Open MPI, Kubernetes, TPU)"
            ) from error
    counts = Counter(device.process_index for device in jax.devices())
    if len(set(counts.values())) > 1:
        found = dict(sorted(counts.items()))
        raise BadValue(f"distributed=true needs equally many devices in every process, got {found}")
    if len(set(_of_all(_fingerprint(config)))) > 1:
        raise BadValue("distributed=true: the run's processes were given different settings")


def _fingerprint(config: Config) -> int:
    """Of all settings but those in which the processes of a run may differ."""
    kept = "memory" if config.run_dir is None else "disk"
    shared = replace(config, run_dir=kept, resume=True, progress=True)
    shared = replace(shared, coordinator=None, num_processes=None, process_id=None)
    return zlib.crc32(repr(shared).encode()) >> 1  # so that it fits into 31 bits


def _refuse_what_needs_one_host(config: Config) -> None:
    if config.env.name in HOST_ENVIRONMENTS:
        raise BadValue(f"env={config.env.name} is stepped by Python on one host: it needs distributed=false")
    if config.reward_from is not None:
        raise BadValue(f"reward_from={config.reward_from} is read on one host: it needs distributed=false")


def several() -> bool:
    """Whether the run has other processes."""
    return jax.process_count() > 1


def first() -> bool:
    """Whether this is the process that writes."""
    return jax.process_index() == 0


# --- what they agree on -----------------------------------------------------------------------------------------------


def agreed(number: int) -> int:
    """The largest of the numbers that the processes bring; all of them must ask at the same point."""
    if not several():
        return number
    return max(_of_all(number))


def _of_all(number: int) -> list[int]:
    return np.ravel(multihost_utils.process_allgather(np.asarray(number, np.int32))).tolist()


@contextlib.contextmanager
def together() -> Iterator[None]:
    """What fails in one process fails in all of them, so that none waits for one that has left.

    Raises:
        ValueError: another process has failed, and has said why.
    """
    if not several():
        yield
        return
    problem = None
    try:
        yield
    except Exception as error:
        problem = error
    failed = agreed(0 if problem is None else jax.process_index() + 1)
    if problem is not None:
        raise problem
    if failed:
        raise BadValue(f"process {failed - 1} of this run has failed; its own message says why")


# --- arrays of every seed ---------------------------------------------------------------------------------------------


def own(tree: Tree, mesh: Mesh) -> Tree:
    """This process's part of arrays of every seed, [seeds]."""
    if not several():
        return tree

    def part(leaf: Any) -> Any:
        places = _over_seeds(mesh).addressable_devices_indices_map((len(leaf),)).values()
        return leaf[np.asarray(sorted(row for place in places if place for row in range(len(leaf))[place[0]]))]

    return jax.tree.map(part, tree)


def spread(tree: Tree, mesh: Mesh) -> Tree:
    """One array over the devices of all processes, [seeds], from each process's ``own``."""
    if not several():
        return jax.device_put(tree, _over_seeds(mesh))

    def place(leaf: Any) -> Any:
        placed = jax.make_array_from_process_local_data(_over_seeds(mesh), np.asarray(_numbers(leaf)))
        return jax.random.wrap_key_data(placed, impl=jax.random.key_impl(leaf)) if _is_key(leaf) else placed

    return jax.tree.map(place, tree)


def whole(tree: PyTree) -> PyTree:
    """The arrays behind ``spread`` ones, of every seed and in every process; PRNG keys as their data."""
    if not several():
        return tree
    return multihost_utils.process_allgather(jax.tree.map(_numbers, tree), tiled=True)


def from_first(tree: Tree | None, like: Tree) -> Tree | None:
    """What process 0 has, to the bit, in every process.

    Args:
        tree: arrays; looked at in process 0 only.
        like: their shapes and dtypes.
    """
    if not several():
        return tree
    if first():
        numbers = jax.tree.map(lambda leaf: np.asarray(_numbers(leaf)), tree)
    else:
        shapes = jax.eval_shape(lambda shapes: jax.tree.map(_numbers, shapes), like)
        numbers = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    # As integers: floats are sent as a sum over processes, and -0.0 + 0.0 is 0.0.
    bits = jax.tree.map(lambda x: np.asarray(x, order="C").view(f"u{x.dtype.itemsize}"), numbers)
    sent = jax.tree.map(lambda got, x: got.view(x.dtype), multihost_utils.broadcast_one_to_all(bits), numbers)

    def restored(leaf: Any, template: Any) -> Any:
        if not _is_key(template):
            return leaf
        return jax.random.wrap_key_data(jnp.asarray(leaf), impl=jax.random.key_impl(jnp.empty((), template.dtype)))

    return jax.tree.map(restored, sent, like)


def _over_seeds(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec("seed"))


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _numbers(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf
