"""What a policy sees beside the observation, where that depends on what is learned about the reward."""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
import numpy as np

from llmrl.ops.codes import as_floats, decode, num_features
from llmrl.settings.errors import BadValue
from llmrl.trust.blend import Weights
from llmrl.types import EnvSpec, View


def beside_weights(spec: EnvSpec, weights: Weights, stream: int) -> View:
    """The observation and, beside it, the state's learned weights: (s, w_1(s; phi), ..., w_m(s; phi)).

    A policy that sees them depends on phi by itself, so that phi has a policy gradient of its own (BiPaRS's explicit
    mapping). They are the weights as learned: no evidence and no limit shrinks them here.

    Args:
        spec: the environment.
        weights: learned weights of the state alone.
        stream: number of the stream whose phi they are.

    Returns:
        A view whose observations are vectors, the environment's own numbers first; of bytes, what they stand for.

    Raises:
        ValueError: the weights look at more than the state, which a policy that has yet to choose cannot see.

    Reference: Hu et al. (2020), Learning to utilize shaping rewards, the explicit mapping method.
    """
    of_state = weights.of_state
    if of_state is None:
        raise BadValue(
            "a policy can see the weights of a state alone: set method.weight.sees_action=false and "
            "method.weight.sees_aux=false"
        )
    if spec.encoding:
        own, scale = num_features(spec.encoding), np.ones(num_features(spec.encoding))
    else:
        own = int(np.prod(spec.obs_shape))
        scale = np.broadcast_to(np.asarray(spec.obs_scale, np.float64), spec.obs_shape).reshape(-1)
    seen = replace(
        spec,
        obs_shape=(own + len(spec.aux_names),),
        obs_scale=(*scale.tolist(), *(1.0 for _ in spec.aux_names)),
        obs_names=(),
        encoding=(),
    )

    def of(phis, obs):
        batch = obs.shape[: obs.ndim - len(spec.obs_shape)]
        numbers = decode(spec.encoding, obs) if spec.encoding else as_floats(obs).reshape(*batch, own)
        return jnp.concatenate([numbers, of_state(phis[stream], obs)], axis=-1)

    return View(seen, of)
