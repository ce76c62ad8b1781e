"""Novelty as the error of predicting a random network (RND): what has been seen often is predicted well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PRNGKeyArray, PyTree

from llmrl.nets import make_features, make_net
from llmrl.ops.moments import Moments, no_moments, observed, whitened
from llmrl.ops.optimizers import own_promotion
from llmrl.rewards.bonus import Bonus, ReturnScale, in_units_of_return, no_scale, one_pass
from llmrl.types import EnvSpec, Rollout, Scalar


class NoveltyState(NamedTuple):
    """What has been seen, and how well it is known.

    Attributes:
        target: parameters of the random network; they never change.
        predictor: parameters of the network that imitates it.
        opt_state: of the predictor's optimiser.
        moments: of what was seen, per feature of an observation.
        scale: of the error's discounted sum.
        error: mean of the error on the newest rollout, before the predictor had seen it.
    """

    target: PyTree
    predictor: PyTree
    opt_state: PyTree
    moments: Moments
    scale: ReturnScale
    error: Scalar


def rnd(
    spec: EnvSpec,
    num_envs: int,
    *,
    discount: float | Scalar,
    learning_rate: float | Scalar,
    updates: int,
    hidden: Sequence[int],
    features: int,
) -> Bonus:
    """r_t = |predictor(s_{t+1}) - target(s_{t+1})|^2 / features, in units of its own return.

    Observations are whitened by the moments of all that was seen, the newest rollout included (so that none has to be
    collected for the moments beforehand), and clipped to +-5. The observation scored is the one before any reset.

    Args:
        spec: the environment.
        num_envs: n.
        discount: gamma of the intrinsic return whose deviation is the unit.
        learning_rate: of the predictor's Adam.
        updates: the predictor's gradient steps per rollout; each sample serves in one.
        hidden: widths of both networks.
        features: outputs of both.

    Reference: Burda et al. 2018, "Exploration by random network distillation", section 2.
    """
    seen = make_features(spec)
    net = make_net(seen.num, hidden, features)
    optimizer = own_promotion(optax.adam(learning_rate))

    def init(key: PRNGKeyArray) -> NoveltyState:
        target_key, predictor_key = jax.random.split(key)
        target, predictor = net.init(target_key), net.init(predictor_key)
        return NoveltyState(
            target, predictor, optimizer.init(predictor), no_moments((seen.num,)), no_scale(num_envs), jnp.zeros(())
        )

    def loss(predictor: PyTree, samples) -> Scalar:
        inputs, targets = samples
        return jnp.mean(jnp.square(net.apply(predictor, inputs) - targets))

    def score(state: NoveltyState, rollout: Rollout):
        reached = seen.of(rollout.steps.next_obs)
        moments = observed(state.moments, reached.reshape(-1, seen.num))
        inputs = whitened(moments, reached)
        targets = net.apply(state.target, inputs)
        error = jnp.mean(jnp.square(net.apply(state.predictor, inputs) - targets), axis=-1)
        bonus, scale = in_units_of_return(state.scale, error, discount)
        predictor, opt_state = one_pass(loss, state.predictor, state.opt_state, optimizer, (inputs, targets), updates)
        return bonus, NoveltyState(state.target, predictor, opt_state, moments, scale, jnp.mean(error))

    return Bonus(init, score, lambda state: {"novelty_error": state.error})
