"""A source as a ranking of states: what it says of a step orders the two states, and a learned score is a potential."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Shaped

from llmrl.nets import make_features, make_net
from llmrl.ops.losses import held_constant
from llmrl.ops.optimizers import own_promotion
from llmrl.rewards.sources import Late
from llmrl.settings.errors import BadValue
from llmrl.types import EnvSpec, Rollout, Scalar


class RankingState(NamedTuple):
    """What has been learned of the source's order.

    Attributes:
        params: of the state score sigma.
        opt_state: of its optimiser.
        total: sum of what the source has said, in size.
        events: steps on which it has said something.
        key: draws minibatches.
    """

    params: PyTree
    opt_state: PyTree
    total: Scalar
    events: Scalar
    key: PRNGKeyArray


class RankedPairs(NamedTuple):
    """Successive states, and which of them the source ranks higher.

    Attributes:
        state: features of s, [b, f].
        following: features of s', [b, f].
        preference: 1 where that is s', 0 where it is s, 1/2 where the source says nothing, [b].
    """

    state: Float[Array, "b f"]
    following: Float[Array, "b f"]
    preference: Float[Array, " b"]


def ranking_loss(difference: Float[Array, " b"], preference: Float[Array, " b"]) -> Scalar:
    """-E[y log P + (1 - y) log (1 - P)] with P = 1 / (1 + exp(-difference)) (Bradley and Terry 1952).

    Of answers that contradict each other the share in favour takes the place of y: at 1/2 the least loss is where both
    states have the same score.

    Args:
        difference: sigma(s') - sigma(s).
        preference: y.
    """
    return jnp.mean(jax.nn.softplus(difference) - preference * difference)


def ranked_potential(
    spec: EnvSpec,
    column: int,
    name: str,
    *,
    discount: float | Scalar,
    learning_rate: float | Scalar,
    updates: int,
    batch_size: int,
    hidden: Sequence[int],
) -> Late:
    """F_t = gamma_t Phi(s_{t+1}) - Phi(s_t) with Phi = u sigma and gamma_t = gamma (1 - terminated).

    Each step is a query: is s' better than s? The sign of what the source says is the answer, its size is not used.
    sigma learns from the steps of all rollouts before. Answers that contradict each other leave sigma as it is, and so
    pay nothing. Whatever the answers, F telescopes: no way to and fro earns anything, and with a settled sigma the best
    policy stays the best. u is the source's mean size, so that a difference of 1, odds of e to 1, is worth what the
    source pays.

    The original pays sigma(s') - sigma(s); its authors need a cost per step against what a discounted return earns by
    walking to and fro. It ranks states once and beforehand, in a data set; here the steps of training are the data.

    Args:
        spec: the environment.
        column: of ``Transition.aux``.
        name: the source's. The metric ``ranking_agreement/{name}`` is the share of its answers that sigma gives too,
            before it learns from them, and ``ranking_paid/{name}`` the mean size of F.
        discount: gamma of the task.
        learning_rate: of sigma's Adam.
        updates: its gradient steps per rollout.
        batch_size: samples of each, drawn with replacement.
        hidden: widths of its network.

    Raises:
        ValueError: there is nothing to learn from: no update, or none with a sample.

    Reference: Lin et al. 2024, "Navigating noisy feedback: enhancing reinforcement learning with error-prone language
    models", eqs. 2 to 4.
    """
    if updates < 1 or batch_size < 1:
        raise BadValue(f"a ranking needs updates and batch_size of 1 or more, got {updates} and {batch_size}")
    seen = make_features(spec)
    net = make_net(seen.num, hidden, 1, output_gain=0.0)
    optimizer = own_promotion(optax.adam(learning_rate))

    def init(key: PRNGKeyArray) -> RankingState:
        net_key, own_key = jax.random.split(key)
        params, nothing = net.init(net_key), jnp.zeros(())
        return RankingState(params, optimizer.init(params), nothing, nothing, own_key)

    def difference(params: PyTree, state: Array, following: Array) -> Array:
        return (net.apply(params, following) - net.apply(params, state))[..., 0]

    def loss(params: PyTree, pairs: RankedPairs) -> Scalar:
        return ranking_loss(difference(params, pairs.state, pairs.following), pairs.preference)

    def learned(memory: RankingState, pairs: RankedPairs, said: Float[Array, "t n"]) -> RankingState:
        key, draw_key = jax.random.split(memory.key)

        def step(carry, drawn):
            params, opt_state = carry
            gradient = jax.grad(loss)(params, jax.tree.map(lambda x: x[drawn], pairs))
            steps, opt_state = optimizer.update(gradient, opt_state, params)
            return (optax.apply_updates(params, steps), opt_state), None

        drawn = jax.random.randint(draw_key, (updates, batch_size), 0, said.size)
        (params, opt_state), _ = jax.lax.scan(step, (memory.params, memory.opt_state), drawn)
        total = memory.total + jnp.sum(jnp.abs(said))
        return RankingState(params, opt_state, total, memory.events + jnp.sum((said != 0).astype(said.dtype)), key)

    def shaping(memory: RankingState, rollout: Rollout) -> Float[Array, "t n"]:
        steps = rollout.steps
        now, then = (net.apply(memory.params, seen.of(obs))[..., 0] for obs in (steps.obs, steps.next_obs))
        unit = memory.total / jnp.maximum(memory.events, 1.0)
        return unit * (jnp.where(steps.terminated, 0.0, discount) * then - now)

    def score(memory: RankingState, rollout: Rollout, words: Any, asked: Rollout | None = None):
        said = rollout.steps.aux[..., column]
        pairs = ranked_pairs(seen.of(rollout.steps.obs), seen.of(rollout.steps.next_obs), said)
        # Only this source learns sigma: to the outer level, the reward is a number.
        paid = held_constant(shaping(memory, rollout if asked is None else asked))
        told = {
            f"ranking_agreement/{name}": _agreement(difference(memory.params, pairs.state, pairs.following), pairs),
            f"ranking_paid/{name}": jnp.mean(jnp.abs(paid)),
        }
        return paid, learned(memory, pairs, said), told

    return Late(init, score, lambda memory: memory)


def ranked_pairs(
    state: Shaped[Array, "t n f"], following: Shaped[Array, "t n f"], said: Float[Array, "t n"]
) -> RankedPairs:
    """Every step of a rollout as an answer, by the sign of what the source says."""
    before, after = (x.reshape(-1, x.shape[-1]) for x in (state, following))
    return RankedPairs(before, after, 0.5 * (1.0 + jnp.sign(said.reshape(-1))))


def _agreement(difference: Float[Array, " b"], pairs: RankedPairs) -> Scalar:
    answered = pairs.preference != 0.5
    same = answered & ((difference > 0) == (pairs.preference > 0.5)) & (difference != 0)
    return jnp.sum(same.astype(jnp.float32)) / jnp.maximum(jnp.sum(answered.astype(jnp.float32)), 1.0)
