"""Acting in games that run in Python: the policies are compiled, the games are stepped side by side on the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, UInt8

from llmrl.nets import Policy
from llmrl.ops.distributions import sampling_noise
from llmrl.types import EnvSpec, HostEnvironment, HostWorlds, Rollout, Transition


def play_episodes(
    env: HostEnvironment,
    policy: Policy,
    actors: PyTree,
    num_actors: int,
    num_episodes: int,
    seed: int,
    styles: Sequence[bool] = (False,),
    tell: Callable[[int], None] = lambda played: None,
) -> tuple[Float[np.ndarray, "styles actors episodes"], ...]:
    """Every actor plays the same episodes (worlds, chances, noise) to their ends.

    Args:
        env: where to play; actions are discrete.
        policy: how parameters act.
        actors: parameters, leading axis [actors].
        num_actors: their number.
        num_episodes: of each actor in each style.
        seed: of the episodes.
        styles: for each style whether the distribution's mode is played instead of a sample.
        tell: told now and then how many episodes everybody has played.

    Returns:
        Returns, lengths and successes (1 where the goal was reached, else 0) of all episodes.
    """
    shape = (len(styles), num_actors, num_episodes)
    returned, length, success = (np.zeros(shape, np.float32) for _ in range(3))
    chances = np.random.SeedSequence(seed).generate_state(num_episodes) % (2**31 - 1)
    greedy = jnp.asarray(styles)[:, None]

    @jax.jit
    def act(obs, key):
        """[styles, actors, width, *obs] -> [styles, actors, width]."""
        noise = sampling_noise(key, env.spec.action, (obs.shape[2],))
        noise = jnp.broadcast_to(noise, (len(styles), *noise.shape))

        def one(params, seen):
            distribution = policy.distribution(params, seen)
            return jnp.where(greedy, distribution.mode(), distribution.sample(noise))

        return jax.vmap(one, in_axes=(0, 1), out_axes=1)(actors, obs)

    with env.opened(()) as worlds:
        # As many at once as keep all processes busy while one of them makes a world.
        width = min(2 * worlds.num_processes, num_episodes)
        for first in range(0, num_episodes, width):
            batch = slice(first, min(first + width, num_episodes))
            key = jax.random.fold_in(jax.random.key(seed), first)
            played = _play_batch(env, worlds, act, chances[batch], width, shape[:2], key)
            for kept, values in zip((returned, length, success), played, strict=True):
                kept[..., batch] = values[..., : batch.stop - first]
            tell(batch.stop)
    return returned, length, success


def _play_batch(
    env: HostEnvironment, worlds: HostWorlds, act, chances, width: int, players: tuple[int, ...], key
) -> tuple[np.ndarray, ...]:
    """One episode per player and seed; arrays [*players, width], of which the first ``len(chances)`` count."""
    shape = (*players, width)
    obs = np.zeros((*shape, *env.spec.obs_shape), np.uint8)
    returned, length, success = (np.zeros(shape, np.float32) for _ in range(3))
    running = np.zeros(shape, bool)
    running[..., : len(chances)] = True
    places = np.arange(running.size).reshape(shape)
    seeds = np.broadcast_to(chances, (*players, len(chances)))
    obs[running] = worlds.reset(places[running].tolist(), seeds.reshape(-1).tolist())
    steps = 0
    while running.any() and steps < env.spec.horizon:
        actions = np.asarray(act(obs, jax.random.fold_in(key, steps)))
        result = worlds.step(places[running].tolist(), actions[running].tolist())
        obs[running] = result.obs
        returned[running] += result.reward
        length[running] += 1
        success[running] = np.maximum(success[running], result.success)
        running[running] = ~(result.terminated | result.truncated)
        steps += 1
    return returned, length, success


# --- training ---------------------------------------------------------------------------------------------------------


def collect_host(
    worlds: HostWorlds,
    act: Callable[..., tuple[Array, Array]],
    obs: UInt8[np.ndarray, "seeds n *obs"],
    noise: Float[Array, "seeds steps n a"],
    chances: np.random.Generator,
) -> tuple[UInt8[np.ndarray, "seeds n *obs"], Rollout]:
    """What ``collect`` does for compiled environments, for all seeds at once.

    Args:
        worlds: the games; seed s and environment n are at place s * n_envs + n, all started.
        act: ``(obs [seeds, n, *obs], noise [seeds, n, a]) -> (action, log_prob)``, [seeds, n] each.
        obs: present observations.
        noise: of all actions, one step more than the rollout has.
        chances: draws the seeds of fresh worlds.

    Returns:
        Present observations afterwards, and the rollouts, leading axes [seeds, t, n].
    """
    places, batch = list(range(obs.shape[0] * obs.shape[1])), obs.shape[:2]
    steps = []
    for t in range(noise.shape[1] - 1):
        action, log_prob = (np.asarray(x) for x in act(obs, noise[:, t]))
        result = worlds.step(places, action.reshape(-1).tolist())
        given: dict[str, Any] = {
            name: np.asarray(x).reshape(*batch, *x.shape[1:]) for name, x in result._asdict().items()
        }
        given |= {"obs": obs, "action": action, "log_prob": log_prob, "next_obs": given["obs"]}
        steps.append(Transition(**given))
        obs = restarted(worlds, given["next_obs"], given["terminated"] | given["truncated"], chances)
    final_action, _ = act(obs, noise[:, -1])
    return obs, Rollout(jax.tree.map(lambda *x: jnp.stack(x, axis=1), *steps), final_action)


def restarted(
    worlds: HostWorlds, obs: UInt8[np.ndarray, "seeds n *obs"], done: np.ndarray, chances: np.random.Generator
) -> UInt8[np.ndarray, "seeds n *obs"]:
    """The observations to act on next: fresh worlds' where an episode is done."""
    places = np.flatnonzero(done).tolist()
    if not places:
        return obs
    obs = obs.copy()
    obs[done] = worlds.reset(places, chances.integers(2**31 - 1, size=len(places)).tolist())
    return obs


def unplayed_rollout(spec: EnvSpec, num_steps: int, num_envs: int) -> Rollout:
    """A rollout in which nothing happened, for its shapes, [t, n]."""
    shape = num_steps, num_envs
    zeros, never = jnp.zeros(shape), jnp.zeros(shape, jnp.bool_)
    obs, action = jnp.zeros((*shape, *spec.obs_shape), jnp.uint8), jnp.zeros(shape, jnp.int32)
    steps = Transition(
        obs=obs,
        action=action,
        log_prob=zeros,
        reward=zeros,
        terminated=never,
        truncated=never,
        success=never,
        next_obs=obs,
        aux=jnp.zeros((*shape, len(spec.aux_names))),
        state_key=jnp.zeros(shape, jnp.uint32),
        event=action,
    )
    return Rollout(steps, action[-1])
