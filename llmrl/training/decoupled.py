"""One iteration of decoupled reinforcement learning: an explorer acts, and another policy learns the task from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from llmrl.assembly.parts import Parts
from llmrl.language import Table
from llmrl.learner.arms import chosen
from llmrl.learner.blending import RewardState, learn_reward
from llmrl.learner.blending import reported as reported_of_streams
from llmrl.learner.decoupled import EXPLOITER, EXPLORER, DecoupledState, effective_share
from llmrl.rewards import SourceMemory
from llmrl.settings.config import Config
from llmrl.training.arms import all_from_the_same, gone_on, learned_parts, side_by_side, without_harm
from llmrl.training.iteration import Play, Played, TrainState, Ways, iteration_keys
from llmrl.types import Environment, HostEnvironment, Scalar


def spread(config: Config, env: Environment | HostEnvironment, state: TrainState, *_: Any) -> TrainState:
    """A first state of two equal policies."""
    return side_by_side(state, 2)._replace(arms=DecoupledState(state.acting))


def plays(config: Config, env: Environment | HostEnvironment, parts: Parts, state: TrainState) -> tuple[Play, ...]:
    """The explorer acts, and the exploiter is measured in environments of its own."""
    assert isinstance(state.arms, DecoupledState)
    key = iteration_keys(state.key).rollout
    exploiter, explorer = (chosen(state.params.actor, jnp.asarray(k)) for k in (EXPLOITER, EXPLORER))
    return Play(explorer, state.acting, key), Play(exploiter, state.arms.measured, jax.random.fold_in(key, 1))


def learn(
    config: Config,
    env: Environment | HostEnvironment,
    parts: Parts,
    state: TrainState,
    played: Sequence[Played],
    index: Array,
    table: Table | None,
):
    """Let both learn from what the explorer did, by PPO.

    The explorer learns the task and the sources, as if it were alone. The exploiter learns the task with a critic of
    its own; its steps are PPO's on the ratio of its probabilities to those of the explorer, which acted, so that the
    clip also holds it near the explorer. Returns are not corrected, as in the authors' DePPO, and their regulariser by
    a divergence is off, as it is by default there.

    ``episode_return`` and its kin are the exploiter's, in as many environments again, whose steps are not counted.

    Reference: Schaefer, Christianos, Hanna and Albrecht 2022, "Decoupled reinforcement learning to stabilise
    intrinsically-motivated exploration".
    """
    ppo, inner, keys = config.ppo, parts.inner, iteration_keys(state.key)
    (_, acting, rollout), (measuring, measured, _) = played
    exploiter = measuring.actor
    rollout, memory, annotated = parts.sources.annotate(SourceMemory(state.heard, state.late), rollout, table)

    def credited(share: Scalar, reward: RewardState, params, last_kl: Scalar):
        task, bonus = inner.streams
        own = inner._replace(streams=(task, bonus._replace(weight=share)))
        credit, reward, _ = learn_reward(
            own, None, reward, params, rollout, keys.meta, index, last_kl, ppo.advantage_floor, ppo.advantage_decay
        )
        heard = jnp.stack([jnp.ones(()), share])  # a head learns what its policy follows
        target = credit.values.now + heard * credit.advantages
        told = reported_of_streams(own.streams, reward, credit, rollout, parts.aux_names)
        return credit.advantage, target, credit.least_deviations, reward, told

    before = RewardState(state.phis, state.transform_states, state.meta_state, state.advantage_peaks)
    shares = jnp.asarray([0.0, 1.0])
    advantage, target, least, reward, told = jax.vmap(credited)(shares, before, state.params, state.last_kl)

    steps, update = rollout.steps, parts.update(inner.policy)
    params, opt_state, info = all_from_the_same(update, state, steps, advantage, target, keys.update, least)
    learned, skipped = without_harm(state, learned_parts(params, opt_state, reward, info.approx_kl), rollout)

    ratio = jnp.exp(inner.policy.distribution(exploiter, steps.obs).log_prob(steps.action) - steps.log_prob)
    metrics = acting.statistics() | measured.episodes._asdict() | annotated
    metrics |= chosen(told, jnp.asarray(EXPLORER)) | chosen(info, jnp.asarray(EXPLOITER))._asdict()
    metrics |= reported(acting.episodes.episode_return, ratio.reshape(-1)) | {"skipped_update": jnp.max(skipped)}
    return gone_on(state, learned, keys, acting, memory, DecoupledState(measured)), metrics


def reported(explorer_return: Scalar, ratio: Float[Array, " b"]) -> dict[str, Scalar]:
    """How the explorer does at the task, and how much its steps say of the exploiter.

    Args:
        explorer_return: the explorer's mean return.
        ratio: of the exploiter's probability of each action to the explorer's.
    """
    return {"explorer_return": explorer_return, "explorer_overlap": effective_share(ratio)}


WAYS = Ways(plays, learn)
