"""What the outer level remembers: the last so many entries of any kind, and rollouts side by side or in halves."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from llmrl.learner.problem import RolloutData
from llmrl.types import Rollout


def halves(tree: PyTree, axis: int) -> PyTree:
    """Split an environments' axis in two: a new leading axis of size 2."""

    def split(x):
        n = x.shape[axis]
        parts = x.reshape(*x.shape[:axis], 2, n // 2, *x.shape[axis + 1 :])
        return jnp.moveaxis(parts, axis, 0)

    return jax.tree.map(split, tree)


def split_rollout(rollout: Rollout) -> Rollout:
    """Two rollouts of half the environments each, stacked on a new leading axis."""
    return Rollout(halves(rollout.steps, 1), halves(rollout.final_action, 0), halves(rollout.arm, 1))


def merge(memory: Rollout) -> Rollout:
    """[b, t, n, ...] to [t, n b, ...]: kept rollouts side by side, as if they were more environments.

    An environment's rollouts stay neighbours, so that halves of the whole are halves of the environments.
    """

    def merged(x):
        x = jnp.moveaxis(x, 0, 2)
        return x.reshape(x.shape[0], x.shape[1] * x.shape[2], *x.shape[3:])

    steps, arm = jax.tree.map(merged, (memory.steps, memory.arm))
    return Rollout(steps, merged(memory.final_action[:, None])[0], arm)


def filled(entry: PyTree, size: int) -> PyTree:
    """A memory of ``size`` times the same entry, [b, ...]; without any, nothing."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (size, *x.shape)), entry) if size else ()


def remember(memory: PyTree, entry: PyTree) -> PyTree:
    """The memory with the oldest entry gone and a new one at its end."""
    return jax.tree.map(lambda kept, new: jnp.concatenate([kept[1:], new[None]]), memory, entry)


def split_data(data: RolloutData) -> RolloutData:
    """The data of each half of the environments, stacked on a new leading axis."""
    values, advantage, scores = halves((data.values, data.advantage, data.scores), 1)
    return RolloutData(
        split_rollout(data.rollout), values, advantage, scores, jnp.broadcast_to(data.least_deviation, (2,))
    )


def exchanged(tree: PyTree) -> PyTree:
    """To each half what belongs to the other."""
    return jax.tree.map(lambda x: x[::-1], tree)
