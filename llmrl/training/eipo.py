"""One iteration of extrinsic-intrinsic policy optimisation: one policy acts, both learn from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from llmrl.assembly.parts import Parts
from llmrl.language import Table
from llmrl.learner import eipo
from llmrl.learner.arms import chosen
from llmrl.learner.ppo import UpdateInfo
from llmrl.learner.problem import InnerProblem
from llmrl.learner.streams import Values, signals, stream_advantages, value_rollout
from llmrl.ops.moments import running_peak
from llmrl.rewards import SourceMemory
from llmrl.settings.config import Config
from llmrl.training.arms import LEARNED, all_from_the_same, gone_on, side_by_side, without_harm
from llmrl.training.iteration import Play, Played, TrainState, Ways, iteration_keys
from llmrl.types import Environment, HostEnvironment, Rollout, Scalar


def spread(config: Config, env: Environment | HostEnvironment, state: TrainState, *_: Any) -> TrainState:
    """A first state of two equal policies, pi_E and pi_EI."""
    return side_by_side(state, 2)._replace(arms=eipo.first_stage(config.method.eipo.alpha))


def plays(config: Config, env: Environment | HostEnvironment, parts: Parts, state: TrainState) -> tuple[Play, ...]:
    """The stage's policy acts."""
    assert isinstance(state.arms, eipo.EipoState)
    return (Play(chosen(state.params.actor, state.arms.acting), state.acting, iteration_keys(state.key).rollout),)


def learn(
    config: Config,
    env: Environment | HostEnvironment,
    parts: Parts,
    state: TrainState,
    played: Sequence[Played],
    index: Array,
    table: Table | None,
):
    """Improve the stage's policy on its own rewards and the other one on U."""
    inner, stage, keys, ((_, acting, rollout),) = parts.inner, state.arms, iteration_keys(state.key), played
    assert isinstance(stage, eipo.EipoState)
    rollout, memory, annotated = parts.sources.annotate(SourceMemory(state.heard, state.late), rollout, table)

    worth = worth_of(inner, state, stage, rollout)
    learned, info = _learned(config, parts, state, stage, rollout, worth, keys.update)
    learned, skipped = without_harm(state, learned, rollout)
    skipped = jnp.max(skipped)

    difference = _difference(config, inner, stage, rollout, worth, learned["params"].actor)
    objective, settings = jnp.mean(worth.relative), config.method.eipo
    rule = eipo.AlphaRule(settings.beta, settings.clip, settings.largest)
    after = eipo.next_stage(stage, objective, difference, rule)
    after = jax.tree.map(lambda new, old: jnp.where(skipped == 0.0, new, old), after, stage)

    metrics = acting.statistics() | annotated
    metrics |= chosen(info, stage.acting)._asdict() | reported(stage, objective, difference)
    return gone_on(state, learned, keys, acting, memory, after), metrics | {"skipped_update": skipped}


class Worth(NamedTuple):
    """What a rollout's actions are worth.

    Attributes:
        values: of both policies' critics, [2, t, n, 2].
        advantages: A_E and A_I of the policy that acted, [t, n, 2].
        relative: U, [t, n].
        of_relative: the advantage of U, [t, n].
    """

    values: Values
    advantages: Float[Array, "t n 2"]
    relative: Float[Array, "t n"]
    of_relative: Float[Array, "t n"]


def worth_of(inner: InnerProblem, state: TrainState, stage: eipo.EipoState, rollout: Rollout) -> Worth:
    """A rollout by the critic of the policy that acted."""
    phis, states = chosen((state.phis, state.transform_states), stage.acting)
    all_signals, steps = signals(inner.streams, phis, states, rollout, inner.discount), rollout.steps
    values = jax.vmap(lambda params: value_rollout(inner.critic, params, rollout))(state.params.critic)
    own = chosen(values, stage.acting)
    advantages = stream_advantages(all_signals, own, rollout, inner.gae_lambda)
    reward = jnp.stack([signal.reward for signal in all_signals], axis=-1)
    relative = eipo.relative_reward(stage.alpha, stage.acting, reward, advantages)
    ended = steps.terminated | steps.truncated
    of_relative = eipo.relative_advantage(
        relative, stage.acting, own.now, own.next, all_signals[0], ended, inner.gae_lambda
    )
    return Worth(values, advantages, relative, of_relative)


def _learned(
    config: Config, parts: Parts, state: TrainState, stage: eipo.EipoState, rollout: Rollout, worth: Worth, key: Array
) -> tuple[dict[str, PyTree], UpdateInfo]:
    """What acted learns from its own rewards, as in PPO, and so does its critic; the other policy follows U.

    An advantage is divided by its deviation, at least by a share of the largest so far; those of U are sums of
    advantages, so they have a peak of their own, the second.
    """
    ppo, acts = config.ppo, jnp.arange(2) == stage.acting
    task, both = worth.advantages[..., 0], jnp.sum(worth.advantages, axis=-1)
    plain = jnp.where(stage.acting == eipo.TASK, task, both)
    advantage = jnp.where(acts[:, None, None], plain, worth.of_relative)
    target = worth.values.now + jnp.where(acts[:, None, None, None], worth.advantages, 0.0)
    slot = jnp.stack([acts, ~acts], axis=-1)
    spread_now = jnp.where(slot, jnp.std(advantage, axis=(1, 2))[:, None], 0.0)
    peaks = running_peak(state.advantage_peaks, spread_now, ppo.advantage_decay)
    least = ppo.advantage_floor * jnp.where(acts, *peaks.T)
    least = jnp.stack([least, jnp.zeros(2)], axis=-1)  # nothing is advice

    update = parts.update(parts.inner.policy)
    params, opt_state, info = all_from_the_same(update, state, rollout.steps, advantage, target, key, least)
    critic = jax.tree.map(
        lambda new, old: jnp.where(acts.reshape(2, *(1,) * (new.ndim - 1)), new, old),
        params.critic,
        state.params.critic,
    )
    learned = {name: getattr(state, name) for name in LEARNED}
    learned |= {"params": params._replace(critic=critic), "opt_state": opt_state}
    return learned | {"last_kl": info.approx_kl, "advantage_peaks": peaks}, info


def _difference(
    config: Config, inner: InnerProblem, stage: eipo.EipoState, rollout: Rollout, worth: Worth, actors: PyTree
) -> Scalar:
    """How much better pi_EI is at the task than what pi_E did in a Max stage; 0 in a Min stage."""
    steps = rollout.steps
    log_prob = inner.policy.distribution(chosen(actors, jnp.asarray(eipo.BOTH)), steps.obs).log_prob(steps.action)
    seen, acted, advantage = (x.reshape(-1) for x in (log_prob, steps.log_prob, worth.advantages[..., 0]))
    return jnp.where(stage.acting == eipo.TASK, eipo.task_difference(seen, acted, advantage, config.ppo.clip), 0.0)


def reported(stage: eipo.EipoState, objective: Scalar, difference: Scalar) -> dict[str, Array]:
    """The stage of a rollout, and what it was judged by."""
    return {
        "eipo_alpha": stage.alpha,
        "eipo_acting": stage.acting,
        "eipo_objective": objective,
        "eipo_difference": difference,
    }


WAYS = Ways(plays, learn)
