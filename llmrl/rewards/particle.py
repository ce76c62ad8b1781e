"""Entropy of the visited states, estimated from their nearest neighbours (APT): the lonely ones are paid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from llmrl.nets import make_features, make_net
from llmrl.ops.moments import Moments, no_moments, observed
from llmrl.ops.neighbors import nearest_distances
from llmrl.ops.optimizers import own_promotion
from llmrl.rewards.bonus import Bonus, ReturnScale, in_units_of_return, no_scale, one_pass
from llmrl.rewards.curiosity import InverseDynamics, inverse_dynamics, nothing_seen, whitened_pairs
from llmrl.settings.errors import BadValue, unknown
from llmrl.types import EnvSpec, Rollout, Scalar


def random_features(spec: EnvSpec, hidden: Sequence[int], features: int) -> InverseDynamics:
    """A random network as an encoder that has nothing to learn: its loss has no slope, and Adam stays where it is."""
    net = make_net(make_features(spec).num, hidden, features)
    return InverseDynamics(net.init, net.apply, lambda params, pairs: jnp.zeros(()))


REPRESENTATIONS: dict[str, Callable[[EnvSpec, Sequence[int], int], InverseDynamics]] = {
    "inverse": inverse_dynamics,
    "random": random_features,
}
"""What distances are measured in, by name."""


def particle_entropy(
    distances: Float[Array, "*b k"], mean_distance: Scalar, constant: float | Scalar = 1.0, ignored: float = 1e-4
) -> Float[Array, "*b"]:
    """r = log(c + mean_k max(d_k / d - ignored, 0)), d_k the distances to the nearest neighbours and d their mean.

    Args:
        distances: d_k, [..., k].
        mean_distance: d, the unit of length.
        constant: c; with 1, a state with k twins is worth 0.
        ignored: what counts as no distance at all, in units of d.

    Reference: Liu and Abbeel 2021, "Behavior from the void: unsupervised active pre-training", eq. 5; the unit and what
    is ignored as in Laskin et al. 2021, "URLB: unsupervised reinforcement learning benchmark".
    """
    apart = jnp.maximum(distances / jnp.maximum(mean_distance, 1e-8) - ignored, 0.0)
    return jnp.log(constant + jnp.mean(apart, axis=-1))


class ParticleState(NamedTuple):
    """What distances mean so far.

    Attributes:
        params: of the representation.
        opt_state: of its optimiser.
        moments: of what was seen, per feature of an observation.
        distance: moments of the distances to the nearest neighbours.
        scale: of the entropy's discounted sum.
    """

    params: PyTree
    opt_state: PyTree
    moments: Moments
    distance: Moments
    scale: ReturnScale


def apt(
    spec: EnvSpec,
    num_steps: int,
    num_envs: int,
    *,
    neighbors: int,
    references: int,
    representation: str,
    discount: float | Scalar,
    learning_rate: float | Scalar,
    updates: int,
    hidden: Sequence[int],
    features: int,
) -> Bonus:
    """``particle_entropy`` of the states reached among those of the same rollout, in units of its own return.

    The representation learns from a rollout first and measures it then: a distance says how states lie apart, not how
    badly they are known.

    Args:
        spec: the environment.
        num_steps: t.
        num_envs: n.
        neighbors: k.
        references: neighbours are sought among so many states of a rollout, at places drawn once; all of them where
            there are no more.
        representation: ``inverse`` or ``random``, see ``REPRESENTATIONS``.
        discount: gamma of the intrinsic return whose deviation is the unit.
        learning_rate: of the representation's Adam.
        updates: its gradient steps per rollout; each sample serves in one.
        hidden: widths of its networks.
        features: its size.

    Raises:
        ValueError: there is no such representation, or a rollout has too few states for so many neighbours.
    """
    if representation not in REPRESENTATIONS:
        raise unknown("representation", representation, REPRESENTATIONS)
    chosen = min(references, num_steps * num_envs)
    if not 0 < neighbors < chosen:
        raise BadValue(
            f"apt needs more references than neighbors, got neighbors={neighbors} and {chosen} references "
            f"({num_steps} steps x {num_envs} environments, references={references})"
        )
    places = np.sort(np.random.default_rng(0).permutation(num_steps * num_envs)[:chosen]).astype(np.int32)
    dynamics = REPRESENTATIONS[representation](spec, hidden, features)
    optimizer = own_promotion(optax.adam(learning_rate))

    def init(key: PRNGKeyArray) -> ParticleState:
        params = dynamics.init(key)
        return ParticleState(params, optimizer.init(params), nothing_seen(spec), no_moments(), no_scale(num_envs))

    def score(state: ParticleState, rollout: Rollout):
        pairs, moments = whitened_pairs(spec, state.moments, rollout)
        params, opt_state = one_pass(dynamics.loss, state.params, state.opt_state, optimizer, pairs, updates)
        z = dynamics.encode(params, pairs.after)
        distances = nearest_distances(z.reshape(-1, features), jnp.asarray(places), neighbors)
        distance = observed(state.distance, distances.reshape(-1))
        entropy = particle_entropy(distances, distance.mean).reshape(rollout.steps.reward.shape)
        bonus, scale = in_units_of_return(state.scale, entropy, discount)
        return bonus, ParticleState(params, opt_state, moments, distance, scale)

    return Bonus(init, score, lambda state: {"particle_distance": state.distance.mean})
