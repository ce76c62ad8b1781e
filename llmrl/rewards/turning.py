"""A source whose sign turns in the middle of a training."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Int

from llmrl.rewards.sources import Late
from llmrl.types import Rollout


def turning_source(column: int, after: int) -> Late:
    """A source of the environment, times -1 from the rollout with this number on.

    Its memory is the number of rollouts so far. A run that is over, or goes on from its last checkpoint, has the sign
    of its last rollout.

    Args:
        column: of ``Transition.aux``.
        after: rollouts before it turns.

    Returns:
        The source; its values have the factor that the column has already.
    """

    def none_yet(key: Any) -> Int[Array, ""]:
        return jnp.zeros((), jnp.int32)

    def score(count: Int[Array, ""], rollout: Rollout, words: Any, asked: Rollout | None = None):
        values = (rollout if asked is None else asked).steps.aux[..., column]
        return jnp.where(count < after, values, -values), count + 1, {}

    return Late(none_yet, score, lambda count: count)
