"""One iteration of several learners of which one is played at a time, each with all that a run has."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from llmrl.assembly.parts import Parts, build
from llmrl.language import Table
from llmrl.learner.arms import chosen
from llmrl.learner.balancing import Balance, BalancingRule, first_balance, next_learner, noted
from llmrl.learner.ppo import UpdateInfo, paced
from llmrl.learner.resets import PoolStatistics
from llmrl.learner.rollout import EpisodeStatistics
from llmrl.settings.config import Config
from llmrl.settings.presets import with_method
from llmrl.training import iteration
from llmrl.training.iteration import Metrics, TrainState, first_state
from llmrl.types import Environment, Scalar

LOGGED = {*EpisodeStatistics._fields, *PoolStatistics._fields, *UpdateInfo._fields, "skipped_update"}
"""What an iteration tells of every method."""


class SelectState(NamedTuple):
    """Where the learners stand between two rollouts.

    Attributes:
        balance: what each has been played for.
        learner: who is being played, [].
        iterations: of its present play so far, [].
        episodes: that have ended in it, [].
        returned: sum of their task returns, [].
        states: each learner's own, without key and without what is heard of a language model, which all share.
    """

    balance: Balance
    learner: Int[Array, ""]
    iterations: Int[Array, ""]
    episodes: Scalar
    returned: Scalar
    states: tuple[TrainState, ...]


def learners_of(config: Config) -> list[Config]:
    """Every learner's own config: its method's preset on top of the run's settings."""
    return [with_method(config, name) for name in config.method.select.arms]


def spread(config: Config, env: Environment, state: TrainState, key: Array, table: Table | None) -> TrainState:
    """A first state with every learner's own in it; those after the first start from keys of their own."""
    keys = [key, *(jax.random.fold_in(key, i) for i in range(1, len(config.method.select.arms)))]
    starts = zip(learners_of(config), keys, strict=True)
    states = tuple(first_state(own, env, key, table)._replace(key=None, heard=None) for own, key in starts)
    balance = first_balance(len(states), config.method.select.least)
    first, none = next_learner(jax.random.fold_in(state.key, 1), balance), jnp.zeros((), jnp.int32)
    turn = SelectState(balance, first, none, jnp.zeros(()), jnp.zeros(()), states)
    return _handing_over(state, turn)


def iterate(config: Config, env: Environment, parts: Parts, state: TrainState, index: Array, table: Table | None):
    """One iteration of the learner that is played; at the end of its play, the next one is chosen.

    Learning rates fall with the iterations of all learners together. Where seeds are computed side by side, each of
    their iterations costs as much as one of every learner: they play different ones.
    """
    turn, ppo = state.arms, config.ppo
    assert isinstance(turn, SelectState)
    steps_before = state.iteration * ppo.num_epochs * ppo.num_minibatches

    def played(k: int, own: Config):
        def play(states: tuple[TrainState, ...], key, heard):
            before = states[k]._replace(key=key, heard=heard, opt_state=paced(states[k].opt_state, steps_before))
            own_parts = build(own, env)
            after, metrics = iteration.iterate(own, env, own_parts, before, before.iteration, table)
            kept = after._replace(key=None, heard=None)
            told = {name: value for name, value in metrics.items() if name in LOGGED}
            return (*states[:k], kept, *states[k + 1 :]), after.key, after.heard, told

        return play

    plays = [played(k, own) for k, own in enumerate(learners_of(config))]
    states, key, heard, metrics = jax.lax.switch(turn.learner, plays, turn.states, state.key, state.heard)
    metrics = metrics | reported(turn)
    turn = _after(config, turn._replace(states=states), metrics, jax.random.fold_in(key, 1))
    state = state._replace(key=key, heard=heard, iteration=state.iteration + 1)
    return _handing_over(state, turn), metrics


def _after(config: Config, turn: SelectState, metrics: Metrics, key: Array) -> SelectState:
    """The learners after an iteration: a play ends after so many, once an episode has ended in it."""
    settings = config.method.select
    earned = jnp.where(metrics["episodes"] > 0, metrics["episodes"] * metrics["episode_return"], 0.0)
    iterations, episodes, returned = turn.iterations + 1, turn.episodes + metrics["episodes"], turn.returned + earned
    # A return that is no number would stay in the means for ever.
    ends = (iterations >= settings.every) & (episodes > 0) & jnp.isfinite(returned)
    rule = BalancingRule(settings.confidence, settings.delta)
    balance = noted(turn.balance, turn.learner, returned / jnp.maximum(episodes, 1.0), rule)
    over: Any = (balance, next_learner(key, balance), jnp.zeros_like(iterations), jnp.zeros(()), jnp.zeros(()))
    on = (turn.balance, turn.learner, iterations, episodes, jnp.where(jnp.isfinite(returned), returned, 0.0))
    now = jax.tree.map(lambda a, b: jnp.where(ends, a, b), over, on)
    return turn._replace(**dict(zip(SelectState._fields, now, strict=False)))


def _handing_over(state: TrainState, turn: SelectState) -> TrainState:
    """The state with the learners in it, and the policy and the sources' memories of the one that is handed over."""
    parts = [(own.params.actor, own.late) for own in turn.states]
    actor, late = chosen(jax.tree.map(lambda *x: jnp.stack(x), *parts), turn.balance.leader)
    return state._replace(params=state.params._replace(actor=actor), late=late, arms=turn)


def reported(turn: SelectState) -> Metrics:
    """Who is played, and what each has been played for before."""
    balance, metrics = turn.balance, {"select_arm": turn.learner}
    for k in range(balance.plays.size):
        metrics |= {
            f"select_plays/{k}": balance.plays[k],
            f"select_return/{k}": balance.mean[k],
            f"select_coefficient/{k}": balance.coefficient[k],
        }
    return metrics
