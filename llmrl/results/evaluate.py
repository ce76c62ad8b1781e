"""Evaluation: a run's policies play whole episodes, in their own environment or in another one of the same shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, PRNGKeyArray, PyTree

from llmrl.assembly.parts import acting_policy, any_environment
from llmrl.envs.base import key_of_seed
from llmrl.learner.rollout_host import play_episodes
from llmrl.nets import Policy
from llmrl.ops.distributions import Categorical, sampling_noise
from llmrl.runs import directory as runs
from llmrl.runs import metrics
from llmrl.settings.config import AuxConfig, Config, EnvConfig
from llmrl.settings.errors import BadValue
from llmrl.training.arms import leaders
from llmrl.training.cores import in_float32, use_compilation_cache
from llmrl.training.devices import state_shapes
from llmrl.training.iteration import TrainState
from llmrl.training.loop import make_trainer
from llmrl.training.progress import progress as bar
from llmrl.types import Discrete, Environment, EnvSpec, HostEnvironment

STYLES = {"": False, "greedy_": True}
"""Prefix of a metric -> whether the policy's mode is played; without a prefix actions are sampled, as in training."""


class Episodes(NamedTuple):
    """What was played, under the names of the training's own metrics.

    Attributes:
        episode_return: undiscounted sum of the task's own reward.
        episode_length: in steps.
        success_rate: 1 where the goal was reached, else 0.
    """

    episode_return: Float[Array, "*batch"]
    episode_length: Float[Array, "*batch"]
    success_rate: Float[Array, "*batch"]


@in_float32
def evaluate(
    run_dir: str | Path, env: EnvConfig | None = None, episodes: int = 100, seed: int = 0, progress: bool = True
) -> dict[str, Any]:
    """Plays whole episodes with the policies of a run, and notes the result in its ``evaluation.json``.

    Every seed's policy meets the same episodes (starts and randomness), with sampled actions and once more greedily.

    Args:
        run_dir: the run's directory; an unfinished run is evaluated as far as it is.
        env: where to play; None plays in the run's own environment.
        episodes: episodes of each seed.
        seed: of the episodes.
        progress: whether to show how many are played, where the game is one that takes its time.

    Returns:
        ``final``: metric -> mean over seeds, the ends of its 95 % interval, every seed's own; what the policies' modes
        reached begins with ``greedy_``. ``acting``: which of the two is better, see ``better_acting``. ``beside``,
        where ``env`` is given: the same of the same agents in the run's own environment, and of random play where they
        were sent. And what was evaluated, and where.

    Raises:
        ValueError: there is no run or nothing of it was saved yet, the environment's observations or actions are
            of another shape than the policies', ``episodes`` is not positive, or ``seed`` is no seed.
    """
    if episodes < 1:
        raise BadValue(f"episodes must be positive, got {episodes}")
    key_of_seed(seed)  # before anything is read
    use_compilation_cache()
    run = runs.load_trained(run_dir)
    chosen = run.config.env if env is None else same_task(env, run.config.env)
    policy, place = _policy_and_place(run.config, chosen)
    states, iterations = trained_states(run)
    actors = states.params.actor, states.phis

    shown = place.spec.name if progress else ""
    played = _played(place, policy, actors, run.config.seeds, episodes, seed, STYLES, shown)
    beside: dict[str, Any] = {}
    if env is not None:
        home = any_environment(replace(run.config, aux=AuxConfig()))
        at_home = _played(home, policy, actors, run.config.seeds, episodes, seed, STYLES, "")
        beside[f"the same agents in {home.spec.name}"] = _over_seeds(at_home)
        random = _random_agent(place.spec)
        if random is not None:
            no_parameters = jnp.zeros((1, 0))
            name = f"random play in {place.spec.name}"
            by_chance = _played(place, random, no_parameters, 1, episodes, seed, {"": False}, name if progress else "")
            beside[name] = _over_seeds(by_chance)
    found = {
        "env": {key: value for key, value in asdict(chosen).items() if value not in (None, {})},
        "seeds": run.config.seeds,
        "iterations": iterations,
        "episodes": episodes,
        "seed": seed,
        "final": _over_seeds(played),
        "acting": better_acting(played[""].episode_return, played["greedy_"].episode_return),
        "beside": beside,
    }
    metrics.write_summary(run.evaluation_path, found)
    return found


def _over_seeds(played: Mapping[str, Episodes]) -> dict[str, Any]:
    """Every metric over seeds."""
    return {
        f"{prefix}{name}": metrics.over_seeds(np.asarray(values, np.float64).mean(axis=1))
        for prefix, episodes in played.items()
        for name, values in episodes._asdict().items()
    }


def better_acting(drawn: Any, deterministic: Any) -> dict[str, Any]:
    """Whether these policies do better when they draw their actions or when they take the most probable one.

    Args:
        drawn: returns of the same episodes under drawn actions, [seeds, episodes].
        deterministic: under the most probable actions, [seeds, episodes].

    Returns:
        The mean return of both, and which is ``better``: ``drawn``, ``deterministic``, or ``neither`` where they differ
        by no more than two standard errors of their difference over episodes.
    """
    means = {"drawn": float(np.mean(drawn)), "deterministic": float(np.mean(deterministic))}
    gain = np.mean(np.asarray(drawn, np.float64) - np.asarray(deterministic, np.float64), axis=0)
    doubt = 2.0 * float(np.std(gain, ddof=1)) / len(gain) ** 0.5 if len(gain) > 1 else float("inf")
    clear = abs(float(np.mean(gain))) > doubt
    return means | {"better": max(means, key=lambda way: means[way]) if clear else "neither"}


def play(env: Environment, policy: Policy, params: PyTree, key: PRNGKeyArray, greedy: bool = False) -> Episodes:
    """One episode to its own end, never reset; arrays of shape [].

    Args:
        env: the environment.
        policy: the policy.
        params: its parameters.
        key: draws the start, the environment's randomness and, where not greedy, the actions.
        greedy: whether to play the distribution's mode.
    """
    reset_key, play_key = jax.random.split(key)

    def running(carry) -> Bool[Array, ""]:
        *_, played, done = carry
        # A world that forgets its own time limit must not hold us for ever.
        return ~done & (played.episode_length < env.spec.horizon)

    def step(carry):
        key, state, obs, played, _ = carry
        key, action_key, step_key = jax.random.split(key, 3)
        distribution = policy.distribution(params, obs)
        noise = sampling_noise(action_key, env.spec.action, ())
        action = distribution.mode() if greedy else distribution.sample(noise)
        state, result = env.step(step_key, state, action)
        played = Episodes(
            played.episode_return + result.reward,
            played.episode_length + 1.0,
            jnp.maximum(played.success_rate, result.success.astype(jnp.float32)),
        )
        return key, state, result.obs, played, result.terminated | result.truncated

    nothing = Episodes(*(jnp.zeros(()) for _ in Episodes._fields))
    start = (play_key, *env.reset(reset_key), nothing, jnp.zeros((), jnp.bool_))
    return jax.lax.while_loop(running, step, start)[3]


def _played(
    place: Environment | HostEnvironment,
    policy: Policy,
    actors: PyTree,
    num_seeds: int,
    episodes: int,
    seed: int,
    styles: Mapping[str, bool],
    shown: str,
) -> dict[str, Episodes]:
    """What every seed's policy reached in each style, [seeds, episodes]."""
    if isinstance(place, HostEnvironment):
        with bar(episodes, enabled=bool(shown), unit=f"{shown}: episode") as show:
            every = play_episodes(
                place, policy, actors, num_seeds, episodes, seed, tuple(styles.values()), lambda n: show(n, {})
            )
        return {prefix: Episodes(*(values[i] for values in every)) for i, prefix in enumerate(styles)}
    keys = jax.vmap(lambda i: jax.random.fold_in(key_of_seed(seed), i))(jnp.arange(episodes))
    return {prefix: _play_all(place, policy, actors, keys, greedy) for prefix, greedy in styles.items()}


def same_task(chosen: EnvConfig, home: EnvConfig) -> EnvConfig:
    """Where tasks can be chosen and none is, the run's own, with its time limit: the other Crafter is played alike."""
    if chosen.task is not None or home.task is None:
        return chosen
    ends = chosen.terminate_on_success is None
    return replace(
        chosen,
        task=home.task,
        horizon=home.horizon if chosen.horizon is None else chosen.horizon,
        terminate_on_success=home.terminate_on_success if ends else chosen.terminate_on_success,
    )


def _play_all(
    env: Environment, policy: Policy, actors: PyTree, keys: Key[Array, " episodes"], greedy: bool
) -> Episodes:
    """Every seed's policy through the same episodes, [seeds, episodes]."""

    def episode(params, key):
        return play(env, policy, params, key, greedy)

    return jax.jit(jax.vmap(jax.vmap(episode, in_axes=(None, 0)), in_axes=(0, None)))(actors, keys)


def _policy_and_place(config: Config, chosen: EnvConfig) -> tuple[Policy, Environment | HostEnvironment]:
    """The run's policy, with the observation scale it was trained with, and where it is to play,
    without sources."""
    home = any_environment(config).spec
    place = any_environment(replace(config, env=chosen, aux=AuxConfig()))
    for what, needed, given in (
        ("observations of shape", home.obs_shape, place.spec.obs_shape),
        ("actions", home.action, place.spec.action),
    ):
        if needed != given:
            raise BadValue(
                f"policies trained in {home.name} know {what} {needed}, but {place.spec.name} has {given}: "
                "choose an environment that shares them"
            )
    return acting_policy(config, home), place


def trained_states(run: runs.Run) -> tuple[TrainState, int]:
    """Every seed's last state, [seeds, ...], and the iterations behind it."""
    trainer = make_trainer(run.config)
    states, iterations = runs.load_state(run, state_shapes(trainer, run.config))
    return leaders(states), iterations


def _random_agent(spec: EnvSpec) -> Policy | None:
    """Who takes every action equally often; None where actions are no choice among several."""
    if not isinstance(spec.action, Discrete):
        return None
    log_shares = jnp.full(spec.action.num, -jnp.log(float(spec.action.num)))
    return Policy(
        lambda key: (),
        lambda params, obs: Categorical(
            jnp.broadcast_to(log_shares, (*obs.shape[: obs.ndim - len(spec.obs_shape)], *log_shares.shape))
        ),
    )
