"""The inner level: minibatch epochs of PPO on whatever advantage the streams give."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, Shaped

from llmrl.nets import Critic, Policy
from llmrl.ops.distributions import Categorical, DiagonalGaussian
from llmrl.ops.losses import approximate_kl, clipped_policy_loss, normalized, value_loss
from llmrl.types import Scalar


class Params(NamedTuple):
    """theta and the critic's parameters."""

    actor: PyTree
    critic: PyTree


class Batch(NamedTuple):
    """What an update needs of a rollout, flattened to [b].

    Attributes:
        obs: [b, *obs].
        action: [b, ...].
        log_prob: under the policy that acted, [b].
        advantage: blended, [b].
        target: value targets per head, [b, k].
        advice: advantage of advice, which the policy follows by additional steps, [b]; None where there is none.
    """

    obs: Shaped[Array, "b *obs"]
    action: Shaped[Array, "b *a"]
    log_prob: Float[Array, " b"]
    advantage: Float[Array, " b"]
    target: Float[Array, "b k"]
    advice: Float[Array, " b"] | None = None


class UpdateInfo(NamedTuple):
    """Means over an update's minibatches."""

    policy_loss: Scalar
    value_loss: Scalar
    entropy: Scalar
    approx_kl: Scalar
    clip_fraction: Scalar
    gradient_norm: Scalar


def shuffled_indices(key: PRNGKeyArray, num_epochs: int, size: int) -> Array:
    """A uniform permutation of 0 .. size - 1 for every epoch, [num_epochs, size].

    One sort of integers whose upper bits are random and whose lower ones are the index: to sort numbers that carry
    nothing along is four times as cheap. Ties of the random bits, of which 21 are left for 2048 samples and 16 for
    65,536, keep their order.
    """
    index_bits = max(1, (size - 1).bit_length())
    random = jax.random.bits(key, (num_epochs, size)) >> index_bits << index_bits
    integers = jax.lax.sort(random | jnp.arange(size, dtype=jnp.uint32), is_stable=False)
    return (integers & jnp.uint32((1 << index_bits) - 1)).astype(jnp.int32)


def with_advice_steps(
    optimizer: optax.GradientTransformation, advised: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    """An optimiser of ``Params`` whose actor also takes steps on another gradient.

    Adam divides by the size of what it is given. In one sum, the larger of two gradients decides that size, now and as
    long as its moments last, and the other's steps shrink. Two optimisers leave each its own.

    Args:
        optimizer: of ``Params``.
        advised: of the actor's gradient on advice.

    Returns:
        An optimiser whose ``update`` also takes that gradient, ``advice``, and ``lengths``: factors on the actor's
        steps on either.
    """

    def init(params: Any):
        return optimizer.init(params), advised.init(params.actor)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any):
        steps, main = optimizer.update(updates, state[0], params)
        others, own = advised.update(extra["advice"], state[1], params.actor)
        steps = cast(Params, steps)
        left, share = extra["lengths"]
        both = jax.tree.map(lambda x, y: left * x + share * y, steps.actor, others)
        return steps._replace(actor=both), (main, own)

    return optax.GradientTransformationExtraArgs(init, update)


def policy_terms(
    distribution: Categorical | DiagonalGaussian,
    minibatch: Batch,
    least_deviation: float | Scalar,
    clip: float | Scalar,
) -> UpdateInfo:
    """What PPO says of a policy on a minibatch: its loss, entropy and distance; the critic's loss is left at 0.

    Args:
        distribution: the policy's, at the minibatch's observations.
        minibatch: what was done there.
        least_deviation: the advantage is divided by its deviation, or by this where it is larger.
        clip: range of the importance ratio.
    """
    log_prob, zero = distribution.log_prob(minibatch.action), jnp.zeros(())
    advantage = normalized(minibatch.advantage, least_deviation)
    outside = jnp.abs(jnp.expm1(log_prob - minibatch.log_prob)) > clip
    return UpdateInfo(
        policy_loss=clipped_policy_loss(log_prob, minibatch.log_prob, advantage, clip),
        value_loss=zero,
        entropy=jnp.mean(distribution.entropy()),
        approx_kl=approximate_kl(log_prob, minibatch.log_prob),
        clip_fraction=jnp.mean(outside.astype(jnp.float32)),
        gradient_norm=zero,
    )


def make_minibatch_step(
    policy: Policy,
    critic: Critic,
    optimizer: optax.GradientTransformation,
    *,
    clip: float | Scalar,
    entropy: float | Scalar,
    value_coefficient: float | Scalar,
):
    """One gradient step of PPO as a pure function.

    Args:
        policy: the policy.
        critic: the critic, one head per stream.
        optimizer: steps on the joint gradient of ``Params``; see ``with_advice_steps`` for batches that ask for them.
        clip: range of the importance ratio.
        entropy: c_H.
        value_coefficient: weight of the value loss.

    Returns:
        ``(params, opt_state, minibatch, least_deviations, lengths) -> (params, opt_state, UpdateInfo)``, see
        ``make_update``.
    """
    distribution_of = policy.in_updates or policy.distribution

    def loss(params: Params, minibatch: Batch, least_deviation: float | Scalar):
        info = policy_terms(distribution_of(params.actor, minibatch.obs), minibatch, least_deviation, clip)
        value_term = value_loss(critic.value(params.critic, minibatch.obs), minibatch.target)
        total = info.policy_loss + value_coefficient * value_term - entropy * info.entropy
        return total, info._replace(value_loss=value_term)

    def advice_loss(actor: PyTree, minibatch: Batch, least_deviation: float | Scalar) -> Scalar:
        log_prob = distribution_of(actor, minibatch.obs).log_prob(minibatch.action)
        advantage = normalized(cast(Array, minibatch.advice), least_deviation)
        return clipped_policy_loss(log_prob, minibatch.log_prob, advantage, clip)

    def step(params: Params, opt_state: PyTree, minibatch: Batch, least_deviations, lengths):
        gradient, info = jax.grad(loss, has_aux=True)(params, minibatch, least_deviations[0])
        extra = {}
        if minibatch.advice is not None:
            advice = jax.grad(advice_loss)(params.actor, minibatch, least_deviations[1])
            extra = {"advice": advice, "lengths": lengths}
        updates, opt_state = optimizer.update(gradient, opt_state, params, **extra)
        params = cast(Params, optax.apply_updates(params, updates))
        return params, opt_state, info._replace(gradient_norm=optax.tree.norm(gradient))

    return step


def make_update(*parts: Any, num_epochs: int, num_minibatches: int, **numbers: Any):
    """PPO's update as a pure function.

    Args:
        parts, numbers: as ``make_minibatch_step`` takes them.
        num_epochs: passes over the batch.
        num_minibatches: per pass; divides the batch.

    Returns:
        ``(params, opt_state, batch, key, least_deviations=(0, 0), lengths=(1, 0)) -> (params, opt_state, UpdateInfo)``.
        Advantages are divided by their deviation in a minibatch, or by their ``least_deviations`` (of ``advantage``, of
        ``advice``) where those are larger: once a task is solved, what is left of them is noise, and should stay small.
        ``lengths``, from 0 to 1, are those of the actor's steps on either, where there is advice.
    """
    step = make_minibatch_step(*parts, **numbers)

    def update(
        params: Params,
        opt_state: PyTree,
        batch: Batch,
        key: PRNGKeyArray,
        least_deviations: Float[Array, " 2"] | tuple[float, float] = (0.0, 0.0),
        lengths: tuple[float | Scalar, float | Scalar] = (1.0, 0.0),
    ):
        size = batch.log_prob.shape[0]
        order = shuffled_indices(key, num_epochs, size).reshape(num_epochs * num_minibatches, -1)

        def minibatch_step(carry, indices):
            minibatch = jax.tree.map(lambda x: x[indices], batch)
            params, opt_state, info = step(carry[0], carry[1], minibatch, least_deviations, lengths)
            return (params, opt_state), info

        (params, opt_state), info = jax.lax.scan(minibatch_step, (params, opt_state), order)
        return params, opt_state, jax.tree.map(jnp.mean, info)

    return update


def own_minibatches(
    key: PRNGKeyArray, own: Bool[Array, " size"], num_epochs: int, num_minibatches: int
) -> Int[Array, "steps width"]:
    """Minibatches of the samples that one of several policies has collected, as many and as wide as if it had them all.
    An epoch passes through its own samples in random order, as often as they fill its minibatches.

    Args:
        key: a key.
        own: which samples are its own; where none is, all are taken.
        num_epochs: passes over the batch.
        num_minibatches: per pass; divides the batch.
    """
    size = own.shape[0]
    shuffled = shuffled_indices(key, num_epochs, size)
    # Its own samples first: a stable sort keeps the shuffle.
    own_first = jnp.take_along_axis(shuffled, jnp.argsort(~own[shuffled], axis=1, stable=True), axis=1)
    count = jnp.sum(own, dtype=jnp.int32)
    places = jnp.arange(size) % jnp.where(count > 0, count, size)
    return own_first[:, places].reshape(num_epochs * num_minibatches, -1)


def make_update_of_arms(*parts: Any, num_epochs: int, num_minibatches: int, **numbers: Any):
    """The update of several policies, each on its own samples; arguments as ``make_update`` takes them.

    Every policy takes as many steps as one alone would, however few samples it has: a policy that seldom acts would
    learn too late that it deserves to.

    Returns:
        ``(params [k], opt_state [k], batch, arm [size], key, least_deviations [k, 2], steps_before []) -> (params,
        opt_state, UpdateInfo [k])``. ``advantage`` and ``target`` of the batch have a leading axis [k]. Learning rates
        are those after ``steps_before`` steps. A policy without samples stays as it is.
    """
    step = make_minibatch_step(*parts, **numbers)

    def update(params: Params, opt_state: PyTree, batch: Batch, arm: Int[Array, " size"], key, least, steps_before):
        def of_one(params, opt_state, advantage, target, least, own):
            mine = batch._replace(advantage=advantage, target=target)

            def minibatch_step(carry, indices):
                minibatch = jax.tree.map(lambda x: x[indices], mine)
                params, opt_state, info = step(carry[0], carry[1], minibatch, least, (1.0, 0.0))
                return (params, opt_state), info

            order = own_minibatches(key, own, num_epochs, num_minibatches)
            after, info = jax.lax.scan(minibatch_step, (params, opt_state), order)
            kept = jax.tree.map(lambda new, old: jnp.where(jnp.any(own), new, old), after, (params, opt_state))
            return *kept, jax.tree.map(jnp.mean, info)

        own = arm == jnp.arange(least.shape[0])[:, None]
        opt_state = paced(opt_state, steps_before)
        return jax.vmap(of_one)(params, opt_state, batch.advantage, batch.target, least, own)

    return update


def paced(opt_state: PyTree, count: Int[Array, ""]) -> PyTree:
    """The state of an optimiser, or of several, whose learning rate is where ``count`` steps would have brought it."""

    def of_schedule(path, value) -> bool:
        return getattr(path[-1], "tuple_name", "") == optax.ScaleByScheduleState.__name__

    counts = optax.tree_utils.tree_get_all_with_path(opt_state, "count")
    now = next((value for path, value in counts if of_schedule(path, value)), None)
    if now is None:
        return opt_state
    return optax.tree_utils.tree_set(opt_state, of_schedule, count=jnp.full(jnp.shape(now), count, jnp.int32))
