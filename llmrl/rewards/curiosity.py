"""Curiosity as the error of predicting one's own next features (ICM), and features that know what actions change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Shaped

from llmrl.nets import encode_action, make_features, make_net
from llmrl.ops.losses import held_constant
from llmrl.ops.moments import Moments, no_moments, observed, whitened
from llmrl.ops.optimizers import own_promotion
from llmrl.rewards.bonus import Bonus, ReturnScale, in_units_of_return, no_scale, one_pass
from llmrl.types import Discrete, EnvSpec, Rollout, Scalar


class Pairs(NamedTuple):
    """Successive observations and the action between them.

    Attributes:
        now: s, its features whitened, [..., o].
        action: a, [...] or [..., a].
        after: s', before any reset, like ``now``.
    """

    now: Float[Array, "*batch o"]
    action: Shaped[Array, "*batch_action"]
    after: Float[Array, "*batch o"]


def whitened_pairs(spec: EnvSpec, moments: Moments, rollout: Rollout) -> tuple[Pairs, Moments]:
    """A rollout's pairs, [t, n], whitened by all observations so far, and the moments of those."""
    steps, features = rollout.steps, make_features(spec)
    now, after = features.of(steps.obs), features.of(steps.next_obs)
    moments = observed(moments, after.reshape(-1, features.num))
    return Pairs(whitened(moments, now), steps.action, whitened(moments, after)), moments


def nothing_seen(spec: EnvSpec) -> Moments:
    """The moments before any observation."""
    return no_moments((make_features(spec).num,))


class InverseDynamics(NamedTuple):
    """Features from which the action between two states can be told.

    Attributes:
        init: ``key -> params``.
        encode: ``(params, whitened features of observations [..., o]) -> [..., f]``.
        loss: ``(params, pairs) -> scalar``.
    """

    init: Callable[[PRNGKeyArray], PyTree]
    encode: Callable[[PyTree, Array], Array]
    loss: Callable[[PyTree, Pairs], Scalar]


def inverse_dynamics(spec: EnvSpec, hidden: Sequence[int], features: int) -> InverseDynamics:
    """An encoder and a head that tells from the features of s and s' which action was taken between.

    The loss is the negative log-likelihood of a discrete action, or the mean squared error of a continuous one. Nothing
    else shapes the features: what no action changes has no reason to be in them.

    Reference: Pathak et al. 2017, "Curiosity-driven exploration by self-supervised prediction", eq. 2 and 3.
    """
    num_actions = spec.action.num if isinstance(spec.action, Discrete) else spec.action.dim
    encoder = make_net(make_features(spec).num, hidden, features)
    head = make_net(2 * features, hidden, num_actions)

    def init(key: PRNGKeyArray) -> PyTree:
        encoder_key, head_key = jax.random.split(key)
        return {"encoder": encoder.init(encoder_key), "head": head.init(head_key)}

    def encode(params: PyTree, x: Array) -> Array:
        return encoder.apply(params["encoder"], x)

    def loss(params: PyTree, pairs: Pairs) -> Scalar:
        both = jnp.concatenate([encode(params, pairs.now), encode(params, pairs.after)], axis=-1)
        guess, taken = head.apply(params["head"], both), encode_action(spec, pairs.action)
        if isinstance(spec.action, Discrete):
            return -jnp.mean(jnp.sum(jax.nn.log_softmax(guess) * taken, axis=-1))
        return jnp.mean(jnp.square(guess - taken))

    return InverseDynamics(init, encode, loss)


class CuriosityState(NamedTuple):
    """What is known of the dynamics.

    Attributes:
        params: of the features and of the forward model.
        opt_state: of their optimiser.
        moments: of what was seen, per feature of an observation.
        scale: of the error's discounted sum.
        error: mean error of the forward model on the newest rollout, before it had seen it.
        inverse_loss: of the features on the newest rollout, likewise.
    """

    params: PyTree
    opt_state: PyTree
    moments: Moments
    scale: ReturnScale
    error: Scalar
    inverse_loss: Scalar


def icm(
    spec: EnvSpec,
    num_envs: int,
    *,
    discount: float | Scalar,
    learning_rate: float | Scalar,
    updates: int,
    hidden: Sequence[int],
    features: int,
) -> Bonus:
    """r_t = |forward(z_t, a_t) - z_{t+1}|^2 / features, in units of its own return; z are inverse-dynamics features.

    Two departures from the original: the forward model's error does not shape the features (they would shrink to please
    it), and the bonus has the units of ``rnd``'s, so that one coefficient means the same for both.

    Args:
        spec: the environment.
        num_envs: n.
        discount: gamma of the intrinsic return whose deviation is the unit.
        learning_rate: of Adam.
        updates: gradient steps per rollout; each sample serves in one.
        hidden: widths of every network.
        features: size of z.

    Reference: Pathak et al. 2017, eq. 4 to 6.
    """
    dynamics = inverse_dynamics(spec, hidden, features)
    num_actions = spec.action.num if isinstance(spec.action, Discrete) else spec.action.dim
    forward = make_net(features + num_actions, hidden, features)
    optimizer = own_promotion(optax.adam(learning_rate))

    def errors(params: PyTree, pairs: Pairs) -> Array:
        # The features belong to the inverse model.
        now, after = (held_constant(dynamics.encode(params["dynamics"], x)) for x in (pairs.now, pairs.after))
        inputs = jnp.concatenate([now, encode_action(spec, pairs.action)], axis=-1)
        return jnp.mean(jnp.square(forward.apply(params["forward"], inputs) - after), axis=-1)

    def loss(params: PyTree, pairs: Pairs) -> Scalar:
        return dynamics.loss(params["dynamics"], pairs) + jnp.mean(errors(params, pairs))

    def init(key: PRNGKeyArray) -> CuriosityState:
        dynamics_key, forward_key = jax.random.split(key)
        params = {"dynamics": dynamics.init(dynamics_key), "forward": forward.init(forward_key)}
        zero = jnp.zeros(())
        return CuriosityState(params, optimizer.init(params), nothing_seen(spec), no_scale(num_envs), zero, zero)

    def score(state: CuriosityState, rollout: Rollout):
        pairs, moments = whitened_pairs(spec, state.moments, rollout)
        error, inverse_loss = errors(state.params, pairs), dynamics.loss(state.params["dynamics"], pairs)
        bonus, scale = in_units_of_return(state.scale, error, discount)
        params, opt_state = one_pass(loss, state.params, state.opt_state, optimizer, pairs, updates)
        return bonus, CuriosityState(params, opt_state, moments, scale, jnp.mean(error), inverse_loss)

    return Bonus(
        init, score, lambda state: {"curiosity_error": state.error, "curiosity_inverse_loss": state.inverse_loss}
    )
