"""Action distributions: NamedTuples of arrays that can be sampled, scored and differentiated.

Sampling takes its noise as an argument, so that a rollout can draw all of it at once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from llmrl.ops.losses import held_constant
from llmrl.types import Box, Discrete

_LOG_2PI = float(np.log(2.0 * np.pi))


FEW = 8
"""So many actions or fewer are summed over one by one: a reduction ends a fused loop, and is slow over a short axis."""


def _reduced(over: Callable[[Array, Array], Array], whole: Callable[..., Array], x: Float[Array, "*b a"]) -> Array:
    """A reduction of the last axis, which stays with length 1."""
    if x.shape[-1] > FEW:
        return whole(x, axis=-1, keepdims=True)
    return functools.reduce(over, [x[..., i : i + 1] for i in range(x.shape[-1])])


def _summed(x: Float[Array, "*b a"]) -> Float[Array, "*b"]:
    return _reduced(jnp.add, jnp.sum, x)[..., 0]


def _index_of_largest(x: Float[Array, "*b a"]) -> Int[Array, "*b"]:
    if x.shape[-1] > FEW:
        return jnp.argmax(x, axis=-1)
    largest, index = x[..., 0], jnp.zeros(x.shape[:-1], jnp.int32)
    for i in range(1, x.shape[-1]):
        index = jnp.where(x[..., i] > largest, i, index)
        largest = jnp.maximum(x[..., i], largest)
    return index


def normalized_logits(x: Float[Array, "*b a"]) -> Float[Array, "*b a"]:
    """Log-probabilities, [..., a], for any x that is right up to a constant."""
    x = x - held_constant(_reduced(jnp.maximum, jnp.max, x))
    return x - jnp.log(_reduced(jnp.add, jnp.sum, jnp.exp(x)))


class Categorical(NamedTuple):
    """A distribution over 0 .. a - 1.

    Attributes:
        logits: normalised log-probabilities, [..., a].
    """

    logits: Float[Array, "*b a"]

    def sample(self, noise: Float[Array, "*b a"]) -> Int[Array, "*b"]:
        """The action for standard Gumbel noise, [..., a]."""
        return _index_of_largest(self.logits + noise)

    def mode(self) -> Int[Array, "*b"]:
        return jnp.argmax(self.logits, axis=-1)

    def log_prob(self, action: Int[Array, "*b"]) -> Float[Array, "*b"]:
        # A one-hot product differentiates twice into products; a gather would become a scatter on the way back.
        chosen = jax.nn.one_hot(action, self.logits.shape[-1], dtype=self.logits.dtype)
        return _summed(self.logits * chosen)

    def entropy(self) -> Float[Array, "*b"]:
        return -_summed(jnp.exp(self.logits) * self.logits)


class DiagonalGaussian(NamedTuple):
    """Independent normal components; actions are not squashed, the environment clips them.

    Attributes:
        mean: [..., a].
        log_std: [..., a].
    """

    mean: Float[Array, "*b a"]
    log_std: Float[Array, "*b a"]

    def sample(self, noise: Float[Array, "*b a"]) -> Float[Array, "*b a"]:
        """The action for standard normal noise, [..., a]."""
        return self.mean + jnp.exp(self.log_std) * noise

    def mode(self) -> Float[Array, "*b a"]:
        return self.mean

    def log_prob(self, action: Float[Array, "*b a"]) -> Float[Array, "*b"]:
        z = (action - self.mean) * jnp.exp(-self.log_std)
        return -0.5 * jnp.sum(jnp.square(z) + 2.0 * self.log_std + _LOG_2PI, axis=-1)

    def entropy(self) -> Float[Array, "*b"]:
        return jnp.sum(self.log_std + 0.5 * (1.0 + _LOG_2PI), axis=-1)


def sampling_noise(key: PRNGKeyArray, action: Discrete | Box, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """The noise that ``sample`` takes, for a batch of the given shape: [*shape, a]."""
    if isinstance(action, Discrete):
        return jax.random.gumbel(key, (*shape, action.num))
    return jax.random.normal(key, (*shape, action.dim))
