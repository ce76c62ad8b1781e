"""Written reward functions on episodes of a random policy, before anything is trained: are their values numbers, and do
they rank episodes as the task does?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Shaped

from llmrl.envs.base import AuxFunction, with_aux
from llmrl.language.subset import LARGEST
from llmrl.types import Discrete, Environment, EnvState, TimeStep

EPISODES = 64
MOST_STEPS = 512
"""Steps of an episode that are looked at."""


class Episodes(NamedTuple):
    """Episodes of a random policy, all from their start; what comes after an end does not count.

    Attributes:
        reward: the task's, [t, n].
        aux: values of the sources, [t, n, m].
        alive: whether the step was taken before the episode's end, [t, n].
    """

    reward: Float[np.ndarray, "t n"]
    aux: Float[np.ndarray, "t n m"]
    alive: Bool[np.ndarray, "t n"]


class Trial(NamedTuple):
    """What became of one function.

    Attributes:
        sound: whether all values were numbers up to ``LARGEST``.
        spoken: share of the steps on which it was not 0.
        pairs: pairs of episodes of which the task paid one more.
        agreed: how many of them the function ranks alike; half of one where it gives both the same.
    """

    sound: bool
    spoken: float
    pairs: int
    agreed: float

    def __str__(self) -> str:
        """What a person should know of it, in one line."""
        if not self.sound:
            return f"a value is no number, or larger than {LARGEST:g}"
        speaks = f"speaks on {self.spoken:.0%} of the steps of {EPISODES} random episodes"
        if not self.pairs:
            return f"{speaks}; the task has paid all of them the same, so there is nothing to compare it with"
        alike = self.agreed / self.pairs
        return f"{speaks}; ranks {alike:.0%} of {self.pairs:,} pairs of them as the task does (chance: 50%)"


def tried(env: Environment, functions: Mapping[str, AuxFunction], discount: float = 0.99) -> dict[str, Trial]:
    """Plays a random policy and looks at what functions say of its episodes.

    An episode in which the policy was lucky is the better one of a pair. Both the task's and the function's rewards are
    discounted, so that a later failure counts as better, as it does in training.

    Args:
        env: the environment, without sources.
        functions: sources by name, one value each.
        discount: gamma.

    Returns:
        Name -> what became of it.
    """
    played = random_episodes(with_aux(env, functions), jax.random.key(0))
    weights = np.where(played.alive, discount ** np.arange(len(played.alive))[:, None], 0.0)
    returns = np.sum(weights * played.reward.astype(np.float64), axis=0)
    return {name: _trial(played.aux[..., i], played.alive, weights, returns) for i, name in enumerate(functions)}


def random_episodes(
    env: Environment, key: PRNGKeyArray, episodes: int = EPISODES, most_steps: int = MOST_STEPS
) -> Episodes:
    """Whole episodes of actions drawn at random, evenly."""

    def one(key: PRNGKeyArray) -> tuple[Array, Array, Array]:
        return _as_read(random_steps(env, key, min(env.spec.horizon, most_steps)))

    reward, aux, alive = jax.jit(jax.vmap(one, out_axes=1))(jax.random.split(key, episodes))
    return Episodes(np.asarray(reward), np.asarray(aux), np.asarray(alive))


class RandomSteps(NamedTuple):
    """Steps of one instance, leading axis [t]; after the episode's end they go on without meaning.

    Attributes:
        state: before the step.
        action: drawn at random.
        next_state: after it.
        step: what the environment gave.
        alive: whether the step was taken before the episode's end.
    """

    state: EnvState
    action: Shaped[Array, "t ..."]
    next_state: EnvState
    step: TimeStep
    alive: Bool[Array, " t"]


def random_steps(env: Environment, key: PRNGKeyArray, num_steps: int) -> RandomSteps:
    """An episode of actions drawn at random, evenly."""
    reset_key, steps_key = jax.random.split(key)

    def step(carry, key):
        state, alive = carry
        action_key, step_key = jax.random.split(key)
        action = _random_action(env, action_key)
        next_state, found = env.step(step_key, state, action)
        taken = RandomSteps(state, action, next_state, found, alive)
        return (next_state, alive & ~(found.terminated | found.truncated)), taken

    start = env.reset(reset_key)[0], jnp.ones((), jnp.bool_)
    return jax.lax.scan(step, start, jax.random.split(steps_key, num_steps))[1]


def _random_action(env: Environment, key: PRNGKeyArray) -> Shaped[Array, "*a"]:
    space = env.spec.action
    if isinstance(space, Discrete):
        return jax.random.randint(key, (), 0, space.num, jnp.int32)
    return jax.random.uniform(key, (space.dim,), jnp.float32, space.low, space.high)


def _as_read(steps: RandomSteps) -> tuple[Array, Array, Array]:
    return steps.step.reward, steps.step.aux, steps.alive


def _trial(
    values: Float[np.ndarray, "t n"],
    alive: Bool[np.ndarray, "t n"],
    weights: Float[np.ndarray, "t n"],
    returns: Float[np.ndarray, " n"],
) -> Trial:
    if not np.all(np.abs(values[alive]) <= LARGEST):  # which no NaN is
        return Trial(False, float("nan"), 0, 0.0)
    own = np.sum(np.where(alive, weights * values.astype(np.float64), 0.0), axis=0)
    better = returns[:, None] > returns[None, :]
    alike = np.where(own[:, None] == own[None, :], 0.5, own[:, None] > own[None, :])
    return Trial(True, float(np.mean(values[alive] != 0.0)), int(better.sum()), float(alike[better].sum()))
