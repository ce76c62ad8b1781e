"""One iteration of intrinsic reward policy optimisation: explorers act, and their base policy learns from it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from llmrl.assembly.parts import Parts, build
from llmrl.language import Table
from llmrl.learner.irpo import BASE, Earned, IrpoState, Seen, explored, in_parts, noted, nothing_earned, shares
from llmrl.learner.ppo import Batch
from llmrl.learner.problem import InnerProblem
from llmrl.learner.rollout import ActingState, EpisodeStatistics, collect, episode_statistics
from llmrl.learner.rollout_host import unplayed_rollout
from llmrl.learner.streams import signals, stream_advantages, value_rollout
from llmrl.ops.losses import approximate_kl, normalized
from llmrl.ops.moments import running_peak
from llmrl.rewards import SourceMemory
from llmrl.settings.config import Config
from llmrl.settings.errors import BadValue
from llmrl.training.arms import LEARNED, gone_on, side_by_side, without_harm
from llmrl.training.iteration import Play, Played, TrainState, Ways, iteration_keys
from llmrl.types import Environment, EnvSpec, HostEnvironment, Rollout, Scalar, Transition


class Explorers(NamedTuple):
    """The explorers that a config asks for: one for each source and size of its steps.

    Attributes:
        sources: the source that each follows, [k].
        fractions: shares of the largest step that its own have, [k].
        places: the environments that it plays in, [k, w]; where they cannot be shared evenly, some count its first one
            twice.
    """

    sources: np.ndarray
    fractions: np.ndarray
    places: np.ndarray

    def own(self, tree: PyTree) -> Any:
        """What is of the environments, [t, n, ...], each explorer's for itself, [k, t, w, ...]."""
        return jax.tree.map(lambda x: jnp.moveaxis(x[:, self.places], 1, 0), tree)


def explorers_of(config: Config, spec: EnvSpec) -> Explorers:
    """The explorers.

    Raises:
        ValueError: there are more of them than environments, or too few samples for each.
    """
    settings, ppo = config.method.irpo, config.ppo
    pairs = list(product(range(len(spec.aux_names)), settings.fractions))
    count = len(pairs)
    if count > ppo.num_envs:
        raise BadValue(
            f"method=irpo has {count} explorers, one for each of {len(spec.aux_names)} sources and "
            f"{len(settings.fractions)} method.irpo.fractions, and each needs an environment: got "
            f"ppo.num_envs={ppo.num_envs}"
        )
    width = -(-ppo.num_envs // count)
    samples, least = width * ppo.num_steps, 2 * max(ppo.num_minibatches, settings.steps)
    if samples < least:
        raise BadValue(
            f"method=irpo shares a rollout among {count} explorers, {samples} samples for each; expected at least "
            f"{least} for ppo.num_minibatches={ppo.num_minibatches} and method.irpo.steps={settings.steps}"
        )
    places = np.arange(width) * count + np.arange(count)[:, None]
    places = np.where(places < ppo.num_envs, places, np.arange(count)[:, None])
    sources, fractions = zip(*pairs, strict=True)
    return Explorers(np.asarray(sources), np.asarray(fractions, np.float32), places)


def spread(config: Config, env: Environment | HostEnvironment, state: TrainState, *_: Any) -> TrainState:
    """A first state of a base policy and explorers that equal it, as they have seen nothing yet."""
    explorers, policy, ppo = explorers_of(config, env.spec), build(config, env).inner.policy, config.ppo
    count, width = explorers.places.shape

    def steps_of(key) -> Transition:
        if isinstance(env, HostEnvironment):
            return unplayed_rollout(env, ppo.num_steps, ppo.num_envs).steps
        return collect(env, policy, state.params.actor, state.acting, key, ppo.num_steps)[1].steps

    shapes = jax.eval_shape(steps_of, state.key)
    steps = explorers.own(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes))
    seen = seen_of(steps, jnp.zeros((count, ppo.num_steps, width)), config.method.irpo.steps)
    acting = state.acting._replace(turn=jnp.arange(ppo.num_envs) % count)
    return side_by_side(state, 1 + count)._replace(acting=acting, arms=IrpoState(seen, nothing_earned(count)))


def _base(state: TrainState) -> PyTree:
    """Parameters of the base policy's actor."""
    return jax.tree.map(lambda x: x[BASE], state.params.actor)


def _sizes(config: Config, explorers: Explorers) -> Float[Array, " k"]:
    return config.method.irpo.step_size * jnp.asarray(explorers.fractions)


def plays(config: Config, env: Environment | HostEnvironment, parts: Parts, state: TrainState) -> tuple[Play, ...]:
    """Send explorers out from the base policy, each in environments of its own."""
    ppo, policy, kept, explorers = config.ppo, parts.inner.policy, state.arms, explorers_of(config, env.spec)
    assert isinstance(kept, IrpoState) and state.acting.turn is not None
    base, sizes = _base(state), _sizes(config, explorers)
    actors = jax.vmap(lambda seen, size: explored(policy, base, seen, size, ppo.clip))(kept.seen, sizes)
    following = jnp.broadcast_to(state.acting.turn, (ppo.num_steps, ppo.num_envs))
    return (Play(actors, state.acting, iteration_keys(state.key).rollout, following),)


def learn(
    config: Config,
    env: Environment | HostEnvironment,
    parts: Parts,
    state: TrainState,
    played: Sequence[Played],
    index: Array,
    table: Table | None,
):
    """The base policy learns from what the task says of its explorers, and what the sources say is kept for the next
    ones."""
    ppo, inner, settings, keys = config.ppo, parts.inner, config.method.irpo, iteration_keys(state.key)
    kept, explorers, ((play, acting, rollout),) = state.arms, explorers_of(config, env.spec), played
    assert isinstance(kept, IrpoState)
    base, sizes, actors = _base(state), _sizes(config, explorers), play.actor
    rollout, memory, annotated = parts.sources.annotate(SourceMemory(state.heard, state.late), rollout, table)
    steps = explorers.own(rollout.steps)

    episodes = episodes_of(state.acting, explorers, steps)
    earned = noted(kept.earned, episodes.episodes, episodes.episode_return, settings.memory)
    weights = shares(earned, settings.temperature)

    worth = worth_of(inner, state, explorers, steps)
    spreads = jnp.stack([jnp.std(x, axis=(1, 2)) for x in (worth.task, worth.source)], axis=-1)
    peaks = running_peak(state.advantage_peaks, jnp.pad(spreads, ((1, 0), (0, 0))), ppo.advantage_decay)
    least = ppo.advantage_floor * peaks[1:]

    advantage, target = flat(worth.task), flat(worth.target)
    batch = Batch(flat(steps.obs), flat(steps.action), flat(steps.log_prob), advantage, target)
    update = parts.update_explorers(inner.policy)
    params, opt_state, info = update(
        state.params, state.opt_state, kept.seen, sizes, weights, batch, keys.update, least[:, 0]
    )
    after = jax.tree.map(lambda first, others: jnp.concatenate([first[:1], others]), params.actor, actors)

    learned = {name: getattr(state, name) for name in LEARNED}
    learned |= {"params": params._replace(actor=after), "opt_state": opt_state, "advantage_peaks": peaks}
    learned |= {"last_kl": jnp.full_like(state.last_kl, info.approx_kl)}
    learned, skipped = without_harm(state, learned, rollout)
    skipped = jnp.max(skipped)
    seen = seen_of(steps, jax.vmap(normalized)(worth.source, least[:, 1]), settings.steps)
    seen = jax.tree.map(lambda new, old: jnp.where(skipped == 0.0, new, old), seen, kept.seen)

    away = inner.policy.distribution(base, steps.obs).log_prob(steps.action)
    distance = jax.vmap(approximate_kl)(flat(away), batch.log_prob)
    metrics = acting.statistics() | annotated | info._asdict() | reported(earned, weights, distance)
    state = gone_on(state, learned, keys, acting, memory, IrpoState(seen, earned))
    return state, metrics | {"skipped_update": skipped}


class Worth(NamedTuple):
    """What is to be learned from the explorers' rollouts.

    Attributes:
        task: advantage of the task, [k, t, w].
        source: advantage of the explorer's source, [k, t, w].
        target: of every head of its critic, [k, t, w, 1 + m].
    """

    task: Float[Array, "k t w"]
    source: Float[Array, "k t w"]
    target: Float[Array, "k t w h"]


def worth_of(inner: InnerProblem, state: TrainState, explorers: Explorers, steps: Transition) -> Worth:
    """Every explorer's rollout, [k, t, w], by its own critic."""
    phis, states = jax.tree.map(lambda x: x[BASE], (state.phis, state.transform_states))

    def of_one(critic: PyTree, source: Int[Array, ""], steps: Transition) -> Worth:
        rollout = Rollout(steps, steps.action[-1])
        values = value_rollout(inner.critic, critic, rollout)
        all_signals = signals(inner.streams, phis, states, rollout, inner.discount)
        advantages = stream_advantages(all_signals, values, rollout, inner.gae_lambda)
        return Worth(advantages[..., 0], advantages[..., 1 + source], advantages + values.now)

    critics = jax.tree.map(lambda x: x[1:], state.params.critic)
    return jax.vmap(of_one)(critics, jnp.asarray(explorers.sources), steps)


def seen_of(steps: Transition, advantage: Float[Array, "k t w"], num_steps: int) -> Seen:
    """What so many steps on the sources will be taken on, [k, s, b]."""
    return in_parts(Seen(*map(flat, (steps.obs, steps.action, steps.log_prob, advantage))), num_steps)


def flat(x: Array) -> Array:
    """[k, t, w, ...] as [k, t * w, ...]."""
    return x.reshape(x.shape[0], -1, *x.shape[3:])


def episodes_of(acting: ActingState, explorers: Explorers, steps: Transition) -> EpisodeStatistics:
    """Statistics of each explorer's episodes, [k], in a rollout [k, t, w] that began with all environments so."""

    def of_one(length: Array, returned: Array, steps: Transition) -> EpisodeStatistics:
        return episode_statistics(acting._replace(length=length, returned=returned), steps)[2]

    return jax.vmap(of_one)(acting.length[explorers.places], acting.returned[explorers.places], steps)


def reported(earned: Earned, weights: Float[Array, " k"], distance: Float[Array, " k"]) -> dict[str, Scalar]:
    """What every explorer has earned and counts for, and how far from the base policy it was, in nats."""
    metrics: dict[str, Scalar] = {}
    for k in range(weights.size):
        metrics |= {
            f"explorer_return/{k}": earned.mean[k],
            f"explorer_weight/{k}": weights[k],
            f"explorer_distance/{k}": distance[k],
        }
    return metrics


WAYS = Ways(plays, learn)
