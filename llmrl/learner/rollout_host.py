"""Acting in games that run in Python: the policies are compiled, the games are stepped side by side on the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray, PyTree, Shaped, UInt32

from llmrl.envs.base import action_shape
from llmrl.learner.rollout import with_captions
from llmrl.nets import Policy
from llmrl.ops.distributions import sampling_noise
from llmrl.settings.errors import BadValue
from llmrl.types import HostEnvironment, HostEpisodes, HostWorlds, Rollout, TimeStep, Transition


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
        env: where to play.
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
    greedy = jnp.asarray(styles)

    @jax.jit
    def act(obs, key):
        """[styles, actors, width, *obs] -> [styles, actors, width, *a]."""
        noise = sampling_noise(key, env.spec.action, (obs.shape[2],))
        noise = jnp.broadcast_to(noise, (len(styles), *noise.shape))

        def one(params, seen):
            distribution = policy.distribution(params, seen)
            mode = distribution.mode()
            return jnp.where(greedy.reshape(-1, *(1,) * (mode.ndim - 1)), mode, distribution.sample(noise))

        return jax.vmap(one, in_axes=(0, 1), out_axes=1)(actors, obs)

    with env.opened(()) as worlds:
        width = min(worlds.at_once, num_episodes)
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
    obs = np.zeros((*shape, *env.spec.obs_shape), env.obs_dtype)
    returned, length, success = (np.zeros(shape, np.float32) for _ in range(3))
    running = np.zeros(shape, bool)
    running[..., : len(chances)] = True
    places = np.arange(running.size).reshape(shape)
    seeds = np.broadcast_to(chances, (*players, len(chances)))
    obs[running] = worlds.reset(places[running].tolist(), seeds.reshape(-1).tolist())
    steps = 0
    while running.any() and steps < env.spec.horizon:
        actions = np.asarray(act(obs, jax.random.fold_in(key, steps)))
        result = worlds.step(places[running].tolist(), actions[running])
        obs[running] = result.obs
        returned[running] += result.reward
        length[running] += 1
        success[running] = np.maximum(success[running], result.success)
        running[running] = ~(result.terminated | result.truncated)
        steps += 1
    return returned, length, success


# --- rollouts ---------------------------------------------------------------------------------------------------------


class Standing(NamedTuple):
    """Where the games of all seeds stand; numpy's arrays.

    Attributes:
        episodes: what has led there, [seeds, n, ...].
        obs: present observations.
        age: steps of the running episodes so far.
        turn: as in ``ActingState``, [seeds, n].
    """

    episodes: HostEpisodes
    obs: Shaped[np.ndarray, "seeds n *obs"]
    age: Int[np.ndarray, "seeds n"]
    turn: Int[np.ndarray, "seeds n"] | None = None


class Draws(NamedTuple):
    """All chances of a rollout, [seeds, ...] or of one seed.

    Attributes:
        noise: of all actions, one step more than the rollout has, [t + 1, n, a].
        fresh: seeds of the episodes that would begin after each step, [t, n].
        following: as for ``collect``, [t, n].
    """

    noise: Float[Array, "..."]
    fresh: UInt32[Array, "..."]
    following: Int[Array, "..."] | None = None


def drawn(
    env: HostEnvironment, key: PRNGKeyArray, num_steps: int, num_envs: int, following: Int[Array, "t n"] | None = None
) -> Draws:
    """One seed's chances of a rollout; compiled."""
    noise_key, reset_key, _ = jax.random.split(key, 3)
    noise = sampling_noise(noise_key, env.spec.action, (num_steps + 1, num_envs))
    return Draws(noise, _episode_seeds(reset_key, (num_steps, num_envs)), following)


def _episode_seeds(key: PRNGKeyArray, shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    return jax.random.bits(key, shape, jnp.uint32) >> 1  # games take signed integers


def unstarted(env: HostEnvironment, key: PRNGKeyArray, num_envs: int) -> tuple[HostEpisodes, Shaped[Array, "n *obs"]]:
    """Episodes that are still to be started, and observations of zeros; compiled."""
    action = action_shape(env.spec.action)
    actions = jnp.zeros((num_envs, env.spec.horizon, *action.shape), action.dtype)
    obs = jnp.zeros((num_envs, *env.spec.obs_shape), env.obs_dtype)
    return HostEpisodes(_episode_seeds(key, (num_envs,)), actions), obs


def places_of(group: int, shape: tuple[int, ...]) -> Int[np.ndarray, "seeds n"]:
    """Where the games of all seeds' environments are; ``group`` counts the sets of environments that a seed has."""
    return np.arange(group * shape[0] * shape[1], (group + 1) * shape[0] * shape[1]).reshape(shape)


def led_to(worlds: HostWorlds, places: Int[np.ndarray, "seeds n"], standing: Standing) -> Standing:
    """Starts every game from its seed and plays what has been played, all side by side.

    Returns:
        Where the games stand then: with the same observations as before where they are repeatable.
    """
    episodes, obs, age = standing.episodes, standing.obs.copy(), np.zeros_like(standing.age)
    obs[...] = worlds.reset(places.reshape(-1).tolist(), episodes.seed.reshape(-1).tolist()).reshape(obs.shape)
    running = standing.age > 0
    while running.any():
        result = worlds.step(places[running].tolist(), episodes.actions[(*np.nonzero(running), age[running])])
        obs[running] = result.obs
        age[running] += 1
        running[running] = ~(result.terminated | result.truncated)
        running &= age < standing.age
    return standing._replace(obs=obs, age=age)


def collect_host(
    worlds: HostWorlds,
    places: Int[np.ndarray, "seeds n"],
    act: Callable[..., tuple[Array, Array]],
    standing: Standing,
    draws: Draws,
) -> tuple[Standing, Rollout]:
    """What ``collect`` does for compiled environments, for all seeds at once.

    Args:
        worlds: the games.
        places: where they are; they stand as ``standing`` says.
        act: ``(obs [seeds, n, *obs], noise [seeds, n, a], turn) -> (action, log_prob)``, [seeds, n, *a] and [seeds, n].
        standing: where they stand.
        draws: the rollout's chances.

    Returns:
        Where they stand afterwards, and the rollouts, leading axes [seeds, t, n], without a captioner's captions.

    Raises:
        ValueError: an episode goes on beyond the horizon.
    """
    noise, fresh, following = jax.tree.map(np.asarray, draws)
    obs, age, turn = standing.obs, standing.age.copy(), standing.turn
    seed, actions = (x.copy() for x in standing.episodes)
    batch, rows, flat = places.shape, np.indices(places.shape), places.reshape(-1).tolist()
    steps, arms = [], []
    for t in range(fresh.shape[1]):
        action, log_prob = (np.asarray(x) for x in act(obs, noise[:, t], turn))
        _refuse_beyond(actions.shape[2], age)
        actions[(*rows, age)] = action
        result = worlds.step(flat, action.reshape(-1, *action.shape[2:]))
        given = _shaped(result, batch)
        next_obs = given["obs"]
        given.update(obs=obs, action=action, log_prob=log_prob, next_obs=next_obs)
        steps.append(Transition(**given))
        arms.append(turn)
        obs, age, done = next_obs, age + 1, given["terminated"] | given["truncated"]
        if done.any():
            seed[done], age[done] = fresh[:, t][done], 0
            obs = _restarted(worlds, places, obs, done, seed)
            turn = turn if turn is None else np.where(done, following[:, t], turn)
    final_action, _ = act(obs, noise[:, -1], turn)
    steps = jax.tree.map(lambda *x: np.stack(x, axis=1), *steps)
    arm = None if turn is None else np.stack(arms, axis=1)
    after = Standing(HostEpisodes(seed, actions), obs, age, turn)
    return after, Rollout(*jax.tree.map(jnp.asarray, (steps, final_action, arm)))


def _shaped(result: TimeStep, batch: tuple[int, ...]) -> dict[str, Any]:
    """A step of all places as arrays of all seeds and environments, by name."""
    return {name: np.asarray(x).reshape(*batch, *x.shape[1:]) for name, x in result._asdict().items()}


def _refuse_beyond(horizon: int, age: Int[np.ndarray, "seeds n"]) -> None:
    if age.max() >= horizon:
        raise BadValue(f"an episode goes on beyond its time limit of {horizon} steps; expected truncated=True there")


def _restarted(worlds, places, obs, done: Bool[np.ndarray, "seeds n"], seed) -> Shaped[np.ndarray, "seeds n *obs"]:
    """The observations to act on next: fresh episodes' where one is done."""
    obs = obs.copy()
    obs[done] = worlds.reset(places[done].tolist(), seed[done].tolist())
    return obs


def play_rollouts(
    env: HostEnvironment, policy: Policy, params: PyTree, keys: Key[Array, " seeds"], num_steps: int, num_envs: int
) -> Rollout:
    """A rollout of each seed's policy from fresh episodes, with captions, [seeds, t, n].

    Args:
        env: where to play, with its sources.
        policy: how parameters act.
        params: theirs, [seeds, ...].
        keys: of the rollouts.
        num_steps: t.
        num_envs: n.
    """

    @jax.jit
    def start(keys):
        def one(key):
            start_key, key = jax.random.split(key)
            return unstarted(env, start_key, num_envs), drawn(env, key, num_steps, num_envs)

        return jax.vmap(one)(keys)

    @jax.jit
    def act(obs, noise, turn):
        def one(params, obs, noise):
            distribution = policy.distribution(params, obs)
            action = distribution.sample(noise)
            return action, distribution.log_prob(action)

        return jax.vmap(one)(params, obs, noise)

    (episodes, obs), draws = jax.tree.map(np.array, start(keys))
    places = places_of(0, obs.shape[:2])
    with env.opened(env.sources) as worlds:
        standing = led_to(worlds, places, Standing(episodes, obs, np.zeros(places.shape, int)))
        _, rollouts = collect_host(worlds, places, act, standing, draws)
    return captioned(env, rollouts)


def captioned(env: HostEnvironment, rollouts: Rollout) -> Rollout:
    """The rollouts of all seeds, [seeds, t, n], in the captioner's integers."""
    return jax.jit(jax.vmap(lambda rollout: rollout._replace(steps=with_captions(env, rollout.steps))))(rollouts)


def unplayed_rollout(env: HostEnvironment, num_steps: int, num_envs: int) -> Rollout:
    """A rollout in which nothing happened, for its shapes, [t, n]."""
    shape, spec, kind = (num_steps, num_envs), env.spec, action_shape(env.spec.action)
    zeros, never = jnp.zeros(shape), jnp.zeros(shape, jnp.bool_)
    obs, action = jnp.zeros((*shape, *spec.obs_shape), env.obs_dtype), jnp.zeros((*shape, *kind.shape), kind.dtype)
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
        event=jnp.zeros(shape, jnp.int32),
    )
    return Rollout(steps, action[-1])
