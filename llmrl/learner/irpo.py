"""Intrinsic reward policy optimisation: a base policy is judged by its explorers, a few steps on a source away from it.

Explorer k starts from the base policy theta and takes N gradient steps on a source of its own, with J_k the sum of what
that pays and eta_k a step size,

    theta_k^0 = theta,  theta_k^(j+1) = theta_k^j + eta_k grad J_k(theta_k^j)

and theta follows the task's gradient at all of them, back through those steps, with J_E the task's return:

    sum_k w_k (d theta_k^N / d theta)^T grad J_E(theta_k^N),  w = softmax(J_E(theta_k^N) / tau)

A source is a way to look for the task's reward here, and no part of what is maximised.

What differs from the authors: the steps on a source are taken on the explorer's last rollout, a part of it for each and
corrected by PPO's clipped ratio, where the authors play anew for each; so an iteration needs one rollout. The base
policy takes PPO's steps instead of a trust region's, as everywhere in llmrl.

Reference: Cho and Tran 2026, "Intrinsic reward policy optimization for sparse-reward environments", arXiv 2601.21391.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped

from llmrl.bilevel.trees import add_scaled
from llmrl.learner.ppo import Batch, Params, UpdateInfo, policy_terms, shuffled_indices
from llmrl.nets import Critic, Policy
from llmrl.ops.losses import clipped_policy_loss, value_loss
from llmrl.types import Scalar

BASE = 0
"""Number of the base policy; those of the explorers follow."""


class Seen(NamedTuple):
    """What steps on a source are taken on; leading axes [s, b] of one explorer: s steps, b samples for each.

    Attributes:
        obs: observations, [..., *obs].
        action: actions taken, [...].
        log_prob: under the policy that acted, [...].
        advantage: of the source, in deviations, [...].
    """

    obs: Shaped[Array, "..."]
    action: Shaped[Array, "..."]
    log_prob: Float[Array, "..."]
    advantage: Float[Array, "..."]


class Earned(NamedTuple):
    """Task returns of every explorer's episodes, exponentially forgotten.

    Attributes:
        episodes: weight of the episodes, [k].
        total: weighted sum of their returns, [k].
        lowest: the lowest mean of any explorer so far, []; infinite before the first.
        highest: the highest mean, []; -infinite before the first.
    """

    episodes: Float[Array, " k"]
    total: Float[Array, " k"]
    lowest: Scalar
    highest: Scalar

    @property
    def known(self) -> Bool[Array, " k"]:
        """Whether an episode is remembered."""
        return self.episodes > 0

    @property
    def mean(self) -> Float[Array, " k"]:
        """J_E in the task's units; 0 where nothing is known."""
        return self.total / jnp.where(self.known, self.episodes, 1.0)


class IrpoState(NamedTuple):
    """What the explorers have apart from what each has learned.

    Attributes:
        seen: what their steps on sources are taken on, [k, s, b].
        earned: their task returns.
    """

    seen: Seen
    earned: Earned

    @property
    def leader(self) -> Int[Array, ""]:
        """The policy that is handed over: the explorer with the highest task return."""
        return 1 + jnp.argmax(jnp.where(self.earned.known, self.earned.mean, -jnp.inf))


# --- explorers --------------------------------------------------------------------------------------------------------


def explored(policy: Policy, theta: PyTree, seen: Seen, step_size: float | Scalar, clip: float | Scalar) -> PyTree:
    """theta_k^N, an explorer's parameters; differentiable in theta.

    Args:
        policy: the policy.
        theta: the base policy's parameters.
        seen: of this explorer, [s, b].
        step_size: eta_k.
        clip: range of the importance ratio.
    """

    def loss(theta: PyTree, seen: Seen) -> Scalar:
        log_prob = policy.distribution(theta, seen.obs).log_prob(seen.action)
        return clipped_policy_loss(log_prob, seen.log_prob, seen.advantage, clip)

    def step(theta: PyTree, seen: Seen):
        return add_scaled(theta, -step_size, jax.grad(loss)(theta, seen)), None

    return jax.lax.scan(step, theta, seen)[0]


def in_parts(steps: Seen, num_steps: int) -> Seen:
    """Samples [k, b], shared out among so many steps, [k, s, b // s]; what is left over is left out."""
    size = steps.log_prob.shape[1] // max(1, num_steps)

    def parts(x: Array) -> Array:
        return jnp.swapaxes(x[:, : num_steps * size].reshape(x.shape[0], size, num_steps, *x.shape[2:]), 1, 2)

    return jax.tree.map(parts, steps)


# --- returns ----------------------------------------------------------------------------------------------------------


def nothing_earned(num_explorers: int) -> Earned:
    """Before the first episode."""
    nothing = jnp.zeros(num_explorers)
    return Earned(nothing, nothing, jnp.asarray(jnp.inf), jnp.asarray(-jnp.inf))


def noted(earned: Earned, episodes: Float[Array, " k"], returned: Float[Array, " k"], memory: float | Scalar) -> Earned:
    """The returns after a rollout.

    Args:
        earned: before it.
        episodes: how many of each explorer's have ended in it, [k].
        returned: their mean task return, [k]; one that is no number is left out.
        memory: number of episodes after which returns have been forgotten to 1/e.
    """
    fresh = jnp.where(jnp.isfinite(returned), episodes, 0.0)
    kept = jnp.exp(-fresh / memory)
    after = earned._replace(
        episodes=kept * earned.episodes + fresh,
        total=kept * earned.total + fresh * jnp.where(fresh > 0, returned, 0.0),
    )
    return after._replace(
        lowest=jnp.minimum(earned.lowest, jnp.min(jnp.where(after.known, after.mean, jnp.inf))),
        highest=jnp.maximum(earned.highest, jnp.max(jnp.where(after.known, after.mean, -jnp.inf))),
    )


def shares(earned: Earned, temperature: float | Scalar) -> Float[Array, " k"]:
    """w = softmax(u / tau), with u the returns from 0, the lowest mean so far, to 1, the highest.

    The authors' tau is for returns from 0 to 1. An explorer without an episode counts as the lowest.
    """
    size = earned.highest - earned.lowest
    found = earned.known & (size > 0)
    scaled = jnp.where(found, (earned.mean - earned.lowest) / jnp.where(found, size, 1.0), 0.0)
    return jax.nn.softmax(scaled / temperature)


# --- the update -------------------------------------------------------------------------------------------------------


def base_terms(
    policy: Policy,
    theta: PyTree,
    seen: Seen,
    step_sizes: Float[Array, " k"],
    minibatches: Batch,
    least_deviations: Float[Array, " k"],
    clip: float | Scalar,
) -> UpdateInfo:
    """PPO's terms of every explorer on what it did, [k] each, as functions of the base policy.

    Args:
        policy: the policy.
        theta: the base policy's parameters.
        seen: of all explorers, [k, s, b].
        step_sizes: eta, [k].
        minibatches: what each explorer did, with its task advantage, [k, b].
        least_deviations: what advantages are divided by at least, [k].
        clip: range of the importance ratio.
    """
    distribution_of = policy.in_updates or policy.distribution

    def of_one(seen: Seen, step_size: Scalar, minibatch: Batch, least_deviation: Scalar) -> UpdateInfo:
        actor = explored(policy, theta, seen, step_size, clip)
        return policy_terms(distribution_of(actor, minibatch.obs), minibatch, least_deviation, clip)

    return jax.vmap(of_one)(seen, step_sizes, minibatches, least_deviations)


def make_update_of_explorers(
    policy: Policy,
    critic: Critic,
    optimizer: optax.GradientTransformation,
    *,
    clip: float | Scalar,
    entropy: float | Scalar,
    value_coefficient: float | Scalar,
    num_epochs: int,
    num_minibatches: int,
):
    """The update of a base policy by what its explorers did, and of each explorer's critic; arguments as those of
    ``make_update``.

    Returns:
        ``(params [1 + k], opt_state [1 + k], seen [k, s, b], step_sizes [k], shares [k], batch [k, size], key,
        least_deviations [k]) -> (params, opt_state, UpdateInfo)``. The base policy stands first. It has no critic, and
        only critics of explorers learn here. The info is the explorers', by their shares.
    """

    def loss(learning: Params, seen: Seen, step_sizes, shares, minibatches: Batch, least_deviations):
        info = base_terms(policy, learning.actor, seen, step_sizes, minibatches, least_deviations, clip)
        values = jax.vmap(critic.value)(learning.critic, minibatches.obs)
        info = info._replace(value_loss=jax.vmap(value_loss)(values, minibatches.target))
        total = shares @ (info.policy_loss - entropy * info.entropy) + value_coefficient * jnp.sum(info.value_loss)
        return total, jax.tree.map(partial(jnp.dot, shares), info)

    def step(params: Params, opt_state: PyTree, *seen_and_done: Any):
        learning = Params(_part(params.actor, BASE), jax.tree.map(lambda x: x[1:], params.critic))
        gradient, info = jax.grad(loss, has_aux=True)(learning, *seen_and_done)
        gradient = Params(_in_place_of_first(params.actor, gradient.actor), _after_first(gradient.critic))
        updates, opt_state = jax.vmap(optimizer.update)(gradient, opt_state, params)
        params = cast(Params, optax.apply_updates(params, updates))
        return params, opt_state, info._replace(gradient_norm=optax.tree.norm(gradient))

    def update(params, opt_state, seen, step_sizes, shares, batch: Batch, key, least_deviations):
        size = batch.log_prob.shape[1]
        width = size // num_minibatches
        order = shuffled_indices(key, num_epochs, size)[:, : num_minibatches * width]

        def minibatch_step(carry, indices):
            minibatches = jax.tree.map(lambda x: x[:, indices], batch)
            params, opt_state, info = step(*carry, seen, step_sizes, shares, minibatches, least_deviations)
            return (params, opt_state), info

        (params, opt_state), info = jax.lax.scan(minibatch_step, (params, opt_state), order.reshape(-1, width))
        return params, opt_state, jax.tree.map(jnp.mean, info)

    return update


def _part(tree: PyTree, policy: int) -> PyTree:
    return jax.tree.map(lambda x: x[policy], tree)


def _in_place_of_first(of_all: PyTree, first: PyTree) -> PyTree:
    """A tree of all policies that is 0 but for the first one."""
    return jax.tree.map(lambda x, y: jnp.zeros_like(x).at[0].set(y), of_all, first)


def _after_first(of_others: PyTree) -> PyTree:
    """A tree of all policies that is 0 for the first one."""
    return jax.tree.map(lambda x: jnp.concatenate([jnp.zeros_like(x[:1]), x]), of_others)
