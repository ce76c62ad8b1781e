"""Acting in games that run in Python: the policies are compiled, the games are stepped side by side on the host."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from llmrl.nets import Policy
from llmrl.ops.distributions import sampling_noise
from llmrl.types import HostEnvironment, HostWorlds


def play_episodes(
    env: HostEnvironment,
    policy: Policy,
    actors: PyTree,
    num_actors: int,
    num_episodes: int,
    seed: int,
    styles: Sequence[bool] = (False,),
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
