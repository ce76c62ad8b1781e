"""Two policies of which one explores and the other learns the task from it: who is who, and how far they are apart."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from llmrl.learner.rollout import ActingState
from llmrl.types import Scalar

EXPLOITER, EXPLORER = 0, 1
"""Numbers of the policy on the task alone, which is handed over, and of the one on its sum with the sources."""


class DecoupledState(NamedTuple):
    """What the two policies have apart from what each has learned.

    Attributes:
        measured: environments in which the exploiter plays; nothing is learned there.
    """

    measured: ActingState

    @property
    def leader(self) -> Int[Array, ""]:
        """The policy that is handed over."""
        return jnp.asarray(EXPLOITER)


def effective_share(ratio: Float[Array, " b"]) -> Scalar:
    """(E rho)^2 / E rho^2: the share of the steps that another policy's average is worth; 1 where both are the same.

    Args:
        ratio: rho, of the other policy's probability of each action to that of the policy that acted.

    Reference: Kong 1992, "A note on importance sampling using standardized weights".
    """
    return jnp.square(jnp.mean(ratio)) / jnp.maximum(jnp.mean(jnp.square(ratio)), 1e-12)
