"""Goals that a language model suggests for a state: reaching one pays, once per episode (ELLM).

The model's suggestions are text, and so is what a step did; how similar they are is looked up in a ``Table``.
Events are integers:

    e >= 0    event e happened; where event 0 is "nothing in particular", its scores are 0
    e < 0     event -1 - e was tried where it made sense, and had no effect; so -1 is nothing again
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from llmrl.language import Table
from llmrl.rewards.bonus import Bonus, paid
from llmrl.rewards.sources import Late, Suggested, lookup
from llmrl.settings.errors import BadValue
from llmrl.types import RewardTransform, Rollout, Scalar, Signal, Transition


def read_goals(path: str | Path) -> Table:
    """A table from a file of JSON lines, ``{"key": 17, "scores": [0.0, 1.0, 0.3]}``: one score per event, in order.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is something else, a key comes twice, lines differ in length, or there is none.
    """
    rows: dict[int, list[float]] = {}
    for number, line in enumerate(Path(path).read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not line.strip():
            continue
        key, scores = _read_line(line, f"{path}, line {number}")
        if key in rows:
            raise BadValue(f"{path}, line {number}: key {key} is there already")
        if rows and len(scores) != len(next(iter(rows.values()))):
            first = len(next(iter(rows.values())))
            raise BadValue(f"{path}, line {number}: {len(scores)} scores, where the lines before have {first}")
        rows[key] = scores
    if not rows:
        raise BadValue(f"{path} has no goals in it")
    keys = sorted(rows)
    return Table(np.asarray(keys, np.uint32), np.asarray([rows[key] for key in keys], np.float32))


def _read_line(line: str, where: str) -> tuple[int, list[float]]:
    expected = 'expected {"key": a number from 0 to 4294967295, "scores": [a number for each event]}'
    try:
        entry: Any = json.loads(line)
        key, scores = entry["key"], [float(score) for score in entry["scores"]]
    except (ValueError, KeyError, TypeError) as error:
        raise BadValue(f"{where}: {expected}, got {line[:80]!r}") from error
    whole = isinstance(key, int) and not isinstance(key, bool)
    if not (whole and 0 <= key < 2**32 and scores and np.all(np.isfinite(scores))):
        raise BadValue(f"{where}: {expected}, got {line[:80]!r}")
    return key, scores


def goal_bonus(
    rollout: Rollout,
    suggested: Table | Suggested,
    achieved: Bool[Array, "n e"],
    *,
    threshold: float | Scalar,
    ineffective: bool,
    asked: Rollout | None = None,
) -> tuple[Float[Array, "t n"], Bool[Array, "n e"], Float[Array, "t n"]]:
    """The similarity of what was done to a goal suggested where it was done, once per episode.

        r_t = score(s_t, e_t)  where  score > threshold  and  e_t has not been paid in this episode,  else 0

    Args:
        rollout: of [t, n] steps.
        suggested: the suggestions; a table has the similarity of each event to the most similar goal suggested in a
            state.
        achieved: what has been paid in the episodes that are running when the rollout starts.
        threshold: a score has to be above it, strictly.
        ineffective: whether an event that was tried in vain counts as if it had happened.
        asked: steps whose bonus is asked for, each in place of the rollout's own and after what the rollout did before;
            None asks for the rollout's own.

    Returns:
        The bonus; what has been paid in the episodes that are running when the rollout ends; and 1 where
        something is known of the state, else 0.

    Reference: Du et al. 2023, "Guiding pretraining in reinforcement learning with large language models", eq. 2.
    """
    look_up = partial(lookup, *map(jnp.asarray, suggested)) if isinstance(suggested, Table) else suggested

    def judged(steps: Transition):
        event = jnp.where(steps.event < 0, -1 - steps.event, steps.event) if ineffective else steps.event
        score, known = look_up(steps.state_key, event)
        reached = jax.nn.one_hot(jnp.where(score > threshold, event, -1), achieved.shape[1], dtype=jnp.bool_)
        return score, known, reached

    def step(before, now):
        reached_t, ended = now
        return (before | reached_t) & ~ended[:, None], before

    steps = rollout.steps
    score, known, reached = judged(steps)
    achieved, before = jax.lax.scan(step, achieved, (reached, steps.terminated | steps.truncated))
    score, known, reached = (score, known, reached) if asked is None else judged(asked.steps)
    return jnp.where(jnp.any(reached & ~before, axis=-1), score, 0.0), achieved, known.astype(score.dtype)


class GoalState(NamedTuple):
    """What is suggested, and what has been done of it.

    Attributes:
        table: the suggestions. They are part of the state, so that a compiled program takes them as an argument and the
            host may replace them between two calls.
        achieved: events paid in the running episodes, [n, e].
        known: share of the newest rollout's states that the table knows.
    """

    table: Table
    achieved: Bool[Array, "n e"]
    known: Scalar


def goals(table: Table, num_envs: int, *, threshold: float | Scalar, ineffective: bool) -> Bonus:
    """``goal_bonus`` with its memory; ``goals_known`` is the share of states that had any suggestion."""

    def init(key) -> GoalState:
        on_device = Table(*map(jnp.asarray, table))
        return GoalState(on_device, jnp.zeros((num_envs, table.scores.shape[1]), jnp.bool_), jnp.zeros(()))

    def score(state: GoalState, rollout: Rollout):
        bonus, achieved, known = goal_bonus(
            rollout, state.table, state.achieved, threshold=threshold, ineffective=ineffective
        )
        return bonus, GoalState(state.table, achieved, jnp.mean(known))

    return Bonus(init, score, lambda state: {"goals_known": state.known})


def goal_source(num_envs: int, num_events: int, *, threshold: float | Scalar, ineffective: bool) -> Late:
    """``goal_bonus`` as an auxiliary source: who suggests is said anew for every rollout, as the source's ``words``."""

    def score(achieved, rollout: Rollout, words: Suggested, asked: Rollout | None = None):
        bonus, achieved, known = goal_bonus(
            rollout, words, achieved, threshold=threshold, ineffective=ineffective, asked=asked
        )
        return bonus, achieved, {"goals_known": jnp.mean(known), "goals_paid": jnp.mean(bonus)}

    def nothing_done(_: Any):
        return jnp.zeros((num_envs, num_events), jnp.bool_)

    return Late(nothing_done, score, nothing_done)


def from_source(column: int) -> Bonus:
    """An auxiliary source as a bonus: what it says of a fresh rollout is what it pays."""

    def score(memory: Scalar, rollout: Rollout):
        return rollout.steps.aux[..., column], memory

    return Bonus(lambda key: jnp.zeros(()), score, lambda memory: {})


def task_and_goals(
    bonus: Bonus,
    num_steps: int,
    num_envs: int,
    *,
    coefficient: float | Scalar,
    pretraining: float | Scalar,
    keep: bool,
) -> RewardTransform:
    """r = r_p + coefficient * goals; for the first ``pretraining`` rollouts without r_p.

    Args:
        bonus: from ``goals`` or ``from_source``.
        num_steps: t.
        num_envs: n.
        coefficient: factor on the goals.
        pretraining: rollouts for which goals alone are paid.
        keep: whether goals go on paying afterwards; the original lets the task alone finish what they began.
    """

    def pay(signal: Signal, scored: Array, age: Scalar) -> Signal:
        alone = jnp.maximum(age - 1.0, 0.0) < pretraining  # the newest rollout counts among those observed
        own, of_goals = jnp.where(alone, 0.0, signal.reward), coefficient * scored
        return signal._replace(reward=own + (of_goals if keep else jnp.where(alone, of_goals, 0.0)))

    return paid(bonus, pay, num_steps, num_envs, "goal")
