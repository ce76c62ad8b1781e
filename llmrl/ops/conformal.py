"""Thresholds with a promise about the next score, whatever the scores' distribution."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def conformal_threshold(
    scores: Float[Array, " b"], counted: Bool[Array, " b"], error_rate: float | Float[Array, ""]
) -> Float[Array, ""]:
    """The largest threshold that a new score reaches with probability 1 - alpha at least.

    Of n scores that are exchangeable with the new one it is the k-th largest, k = n + 1 - floor(alpha (n + 1)), and
    -infinity where k > n. The new score is below it with probability alpha at most, and, if no two scores are equal,
    alpha - 1 / (n + 1) at least.

    Args:
        scores: among them the n for calibration.
        counted: which those are.
        error_rate: alpha, from 0 to 1.

    Reference: Vovk, Gammerman and Shafer 2005, "Algorithmic learning in a random world", section 2.2; split conformal
    prediction, with minus the score as nonconformity.
    """
    descending = -jnp.sort(jnp.where(counted, -scores, jnp.inf))
    number = jnp.sum(counted.astype(scores.dtype))
    # What rounding has taken from a whole number is given back.
    below = jnp.floor(error_rate * (number + 1.0) + 1e-6 * (number + 1.0))
    place = number - below  # k, counted from 0
    found = descending[jnp.clip(place.astype(jnp.int32), 0, scores.size - 1)]
    return jnp.where(place < number, found, -jnp.inf)
