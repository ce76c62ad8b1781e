"""Running mean and variance, batch by batch, as if all samples had been seen at once; and running peaks."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float


class Moments(NamedTuple):
    """What has been seen so far.

    Attributes:
        mean: of every component, [*s].
        variance: of every component, biased, [*s].
        samples: how many there were, [].
    """

    mean: Float[Array, "*s"]
    variance: Float[Array, "*s"]
    samples: Float[Array, ""]


def no_moments(shape: tuple[int, ...] = ()) -> Moments:
    """The moments of nothing, for samples of a given shape."""
    return Moments(jnp.zeros(shape), jnp.zeros(shape), jnp.zeros(()))


def observed(moments: Moments, batch: Float[Array, "b *s"]) -> Moments:
    """The moments of all samples seen so far and a batch of new ones, [b, *s].

    Reference: Chan, Golub and LeVeque 1983, "Algorithms for computing the sample variance", eq. 2.1.
    """
    added = batch.shape[0]
    total = moments.samples + added
    shift = jnp.mean(batch, axis=0) - moments.mean
    squares = moments.variance * moments.samples + jnp.var(batch, axis=0) * added
    squares = squares + jnp.square(shift) * moments.samples * added / total
    return Moments(moments.mean + shift * added / total, squares / total, total)


def whitened(moments: Moments, x: Float[Array, "*b_s"], bound: float = 5.0, eps: float = 1e-8) -> Float[Array, "*b_s"]:
    """Every component of x, [..., *s], in deviations from its mean, clipped to +-``bound``.

    A component that has never changed is 0 until it does, and then at the bound.
    """
    return jnp.clip((x - moments.mean) / jnp.sqrt(moments.variance + eps), -bound, bound)


def running_peak(
    peak: Float[Array, "*s"], now: Float[Array, "*s"], decay: float | Float[Array, ""]
) -> Float[Array, "*s"]:
    """The largest number seen, forgotten slowly; what is not finite was not seen.

    Args:
        peak: so far, [*s].
        now: the newest number, [*s].
        decay: what the peak keeps each time.
    """
    return jnp.maximum(decay * peak, jnp.where(jnp.isfinite(now), now, 0.0))


def active_mean(x: Float[Array, "t n m"], aux: Float[Array, "t n m"]) -> Float[Array, " m"]:
    """Mean over the steps on which each source speaks; 0 where it never does."""
    active = (aux != 0).astype(x.dtype)
    return jnp.sum(x * active, axis=(0, 1)) / jnp.maximum(jnp.sum(active, axis=(0, 1)), 1.0)
