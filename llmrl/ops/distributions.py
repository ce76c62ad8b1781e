"""Action distributions: NamedTuples of arrays that can be sampled, scored and differentiated.

Sampling takes its noise as an argument, so that a rollout can draw all of it at once.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from llmrl.types import Box, Discrete

_LOG_2PI = float(np.log(2.0 * np.pi))


class Categorical(NamedTuple):
    """A distribution over 0 .. a - 1.

    Attributes:
        logits: normalised log-probabilities, [..., a].
    """

    logits: Float[Array, "*b a"]

    def sample(self, noise: Float[Array, "*b a"]) -> Int[Array, "*b"]:
        """The action for standard Gumbel noise, [..., a]."""
        return jnp.argmax(self.logits + noise, axis=-1)

    def mode(self) -> Int[Array, "*b"]:
        return jnp.argmax(self.logits, axis=-1)

    def log_prob(self, action: Int[Array, "*b"]) -> Float[Array, "*b"]:
        # A one-hot product differentiates twice into products; a gather would become a scatter on the way back.
        chosen = jax.nn.one_hot(action, self.logits.shape[-1], dtype=self.logits.dtype)
        return jnp.sum(self.logits * chosen, axis=-1)

    def entropy(self) -> Float[Array, "*b"]:
        return -jnp.sum(jnp.exp(self.logits) * self.logits, axis=-1)


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
