"""Collecting experience: N environments, T steps, auto-reset of our own."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree, Shaped

from llmrl.envs.base import clip_action
from llmrl.learner.resets import PoolStatistics, Resets, Worlds, full_pool, make_resets, start_all
from llmrl.nets import Policy
from llmrl.ops.distributions import sampling_noise
from llmrl.ops.packing import packing
from llmrl.types import Environment, EnvState, HostEnvironment, Rollout, Scalar, Transition


class ActingState(NamedTuple):
    """Where the environments stand between two rollouts.

    Attributes:
        env_state: the environments' states, leading axis [n].
        obs: present observations, [n, *obs].
        length: steps of the running episodes so far, [n].
        returned: task return of the running episodes so far, [n].
        episodes: statistics of the episodes that ended last.
        pool: of the last rollout's fresh worlds, where they come from a pool.
        worlds: that pool, [k].
        turn: the policy that plays each environment's running episode, [n]; None where there is only one.
    """

    env_state: EnvState
    obs: Shaped[Array, "n *obs"]
    length: Float[Array, " n"]
    returned: Float[Array, " n"]
    episodes: EpisodeStatistics
    pool: PoolStatistics | None = None
    worlds: Worlds | None = None
    turn: Int[Array, " n"] | None = None

    def statistics(self) -> dict[str, Scalar]:
        """What is logged of the last rollout's episodes, and of the pool that they start from where there is one."""
        return self.episodes._asdict() | ({} if self.pool is None else self.pool._asdict())


class EpisodeStatistics(NamedTuple):
    """Means over the episodes that ended in a rollout; the previous rollout's where none did, and of return and length
    NaN while none has.

    Attributes:
        episode_return: undiscounted sum of the task's own reward.
        episode_length: in steps.
        success_rate: share of episodes that reached the goal.
        episodes: how many ended.
    """

    episode_return: Scalar
    episode_length: Scalar
    success_rate: Scalar
    episodes: Scalar


def reset_all(env: Environment, key: PRNGKeyArray, num_envs: int, num_steps: int) -> ActingState:
    """Fresh episodes in every environment, to play rollouts of so many steps from."""
    started = unplayed(*start_all(env, key, num_envs))
    if env.steps_per_reset is None:
        return started
    worlds = full_pool(env, jax.random.fold_in(key, 1), num_steps, num_envs)
    return started._replace(pool=PoolStatistics(jnp.zeros(()), jnp.zeros(())), worlds=worlds)


def unplayed(env_state: EnvState, obs: Shaped[Array, "n *obs"]) -> ActingState:
    """Environments in which no episode has ended yet."""
    zeros, zero, unknown = jnp.zeros(obs.shape[0]), jnp.zeros(()), jnp.full((), jnp.nan)
    return ActingState(env_state, obs, zeros, zeros, EpisodeStatistics(unknown, unknown, zero, zero))


def collect(
    env: Environment,
    policy: Policy,
    params: PyTree,
    acting: ActingState,
    key: PRNGKeyArray,
    num_steps: int,
    fresh_starts: Callable[..., Resets] = make_resets,
    following: Int[Array, "t n"] | None = None,
) -> tuple[ActingState, Rollout]:
    """Act for ``num_steps`` steps in every environment.

    All randomness and all fresh episodes are there before the loop: one wide draw is far cheaper than many narrow ones.

    Args:
        env: the environment.
        policy: the policy.
        params: its parameters.
        acting: where the environments stand, n of them.
        key: a key.
        num_steps: T.
        fresh_starts: how ended episodes go on, ``(env, key, num_steps, num_envs, worlds) -> Resets``.
        following: where several policies act, ``acting.turn`` says which, ``params`` are theirs, [k, ...], and this is
            the one that would play an episode that starts after each step.

    Returns:
        Where the environments stand afterwards, and the rollout, [t, n].
    """
    num_envs = acting.obs.shape[0]
    noise_key, reset_key, step_key = jax.random.split(key, 3)
    noise = sampling_noise(noise_key, env.spec.action, (num_steps + 1, num_envs))
    resets = fresh_starts(env, reset_key, num_steps, num_envs, acting.worlds)
    step_keys = jax.random.split(step_key, (num_steps, num_envs))

    start = acting.env_state, acting.obs, resets.start, acting.turn
    pack, unpack = packing(start)

    def one_step(carry, draws):
        env_state, obs, carried, turn = unpack(carry)
        noise_t, draw, keys, following_t = draws
        distribution = distribution_in_turn(policy, params, turn, obs)
        action = distribution.sample(noise_t)
        env_state, next_obs, step, carried = resets.advance(keys, env_state, action, draw, carried)
        transition = Transition(
            obs=obs,
            action=action,
            log_prob=distribution.log_prob(action),
            reward=step.reward,
            terminated=step.terminated,
            truncated=step.truncated,
            success=step.success,
            next_obs=step.obs,
            aux=step.aux,
            state_key=step.state_key,
            event=step.event,
        )
        next_turn = turn if turn is None else jnp.where(step.terminated | step.truncated, following_t, turn)
        # What is recorded stays apart: each field is written where it is computed, at once.
        return pack((env_state, next_obs, carried, next_turn)), (transition, turn)

    carry, (steps, arm) = jax.lax.scan(one_step, pack(start), (noise[:-1], resets.draws, step_keys, following))
    env_state, obs, carried, turn = unpack(carry)
    steps = with_captions(env, steps)
    final_action = distribution_in_turn(policy, params, turn, obs).sample(noise[-1])
    length, returned, episodes = episode_statistics(acting, steps)
    worlds, pool = resets.finish(carried)
    after = ActingState(env_state, obs, length, returned, episodes, pool, worlds, turn)
    return after, Rollout(steps, final_action, arm)


def distribution_in_turn(policy: Policy, params: PyTree, turn: Int[Array, " n"] | None, obs: Shaped[Array, "n *obs"]):
    """Every environment's distribution of actions, by the one of several policies, params [k, ...], whose turn it is;
    by the only one where ``turn`` is None."""
    if turn is None:
        return policy.distribution(params, obs)
    of_all = jax.vmap(policy.distribution, in_axes=(0, None))(params, obs)
    return jax.tree.map(lambda x: x[turn, jnp.arange(turn.size)], of_all)


def with_captions(env: Environment | HostEnvironment, steps: Transition) -> Transition:
    """The same steps with states and events in the captioner's integers, all at once; as they are where there is none,
    or where the environment has put them there."""
    if env.captioner is None or env.captioner.state_key is None or env.captioner.event is None:
        return steps
    performed = clip_action(env.spec.action, steps.action)
    keys = jax.vmap(jax.vmap(env.captioner.state_key))(steps.obs)
    events = jax.vmap(jax.vmap(env.captioner.event))(steps.obs, performed, steps.next_obs)
    return steps._replace(state_key=keys, event=events)


def episode_statistics(
    acting: ActingState, steps: Transition
) -> tuple[Float[Array, " n"], Float[Array, " n"], EpisodeStatistics]:
    """Every environment's running episode, followed through the rollout: its length and return so far at the end, and
    statistics of the episodes that ended."""

    def follow(carry, now):
        length, returned = carry
        reward, done = now
        length, returned = length + 1.0, returned + reward
        # Chosen, not multiplied: one reward that is no number would stay in the sum for ever.
        return (jnp.where(done, 0.0, length), jnp.where(done, 0.0, returned)), (length, returned)

    done = steps.terminated | steps.truncated
    (length, returned), (lengths, returns) = jax.lax.scan(
        follow, (acting.length, acting.returned), (steps.reward, done)
    )
    ended = jnp.sum(done.astype(jnp.float32))

    def mean_of_ended(x, before):
        return jnp.where(ended > 0, jnp.sum(jnp.where(done, x, 0.0)) / jnp.maximum(ended, 1.0), before)

    last = acting.episodes
    return (
        length,
        returned,
        EpisodeStatistics(
            episode_return=mean_of_ended(returns, last.episode_return),
            episode_length=mean_of_ended(lengths, last.episode_length),
            success_rate=mean_of_ended(steps.success.astype(jnp.float32), last.success_rate),
            episodes=ended,
        ),
    )
