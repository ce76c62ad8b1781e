"""The original Crafter with the compiled one's tasks, observation and captions, played in processes of its own."""

from __future__ import annotations

import contextlib
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8

from llmrl.envs import crafter_codes as codes
from llmrl.envs.base import AuxFunction, require_positive_int
from llmrl.envs.crafter_captions import host_event, host_state_key
from llmrl.envs.crafter_game import Rules, make_game, observe, replica, ruled, started, unlocked
from llmrl.envs.processes import Answer, opened_processes
from llmrl.types import Discrete, EnvSpec, HostEnvironment, HostWorlds, TimeStep

KEPT_WORLDS = 64
"""Fresh worlds that a process remembers by their seeds: who plays the same one again does not wait a second for it."""


MOST_PROCESSES = 16
"""Each is a Python of its own, with some 200 MB."""


class Moment(NamedTuple):
    """What is known of a game between two steps; what auxiliary functions see as its state.

    Attributes:
        seen: the observation, see ``crafter_codes``.
        unlocked: achievements of the episode so far.
        dead: whether the player is.
        time: steps taken in this episode.
        state_key: the caption of the state before the step that led here; 0 where none did.
        event: what that step did; 0 where none did.
    """

    seen: UInt8[np.ndarray, "145"]
    unlocked: Bool[np.ndarray, "22"]
    dead: bool
    time: int
    state_key: int = 0
    event: int = 0


def crafter(
    task: str | Sequence[str] = "all",
    horizon: int = 10_000,
    terminate_on_success: bool = True,
    first_hit: bool = False,
    damage: int = 1,
    table_wood: int = 2,
) -> HostEnvironment:
    """Crafter with achievements as tasks: 1 for each of them when an episode unlocks it, and nothing else.

    The same tasks, observation and captions as ``craftax_classic``, in the original's rules and worlds: a furnace costs
    4 stone instead of 1, iron tools no stone, swords do not stack, creatures roam the whole map, and being hit in one's
    sleep does not count as waking up.

    Args:
        task: an achievement, several, or "all".
        horizon: time limit in steps.
        terminate_on_success: whether an episode ends once every task is done.
        first_hit: whether the first hit on a cow counts as ``eat_cow``, as ELLM counts attacks.
        damage: of a bare hand: 1, or ELLM's 5, which nothing survives.
        table_wood: wood that a table costs: 2, or ELLM's 1.

    Returns:
        The environment; ``opened`` starts its processes.

    Raises:
        ValueError: a name or a number is none of those above.

    Reference: Hafner (2021), "Benchmarking the spectrum of agent capabilities".
    """
    require_positive_int("horizon", horizon)
    codes.check_rules(damage, table_wood)
    tasks = np.array(codes.achievement_indices(task))
    rules = Rules(first_hit, damage, table_wood)
    spec = EnvSpec(
        name="crafter",
        obs_shape=(codes.NUM_BYTES,),
        action=Discrete(len(codes.ACTIONS)),
        horizon=horizon,
        encoding=codes.ENCODING,
    )

    @contextlib.contextmanager
    def opened(sources: Sequence[AuxFunction]) -> Iterator[HostWorlds]:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        num_processes = min(cores, MOST_PROCESSES)
        with opened_processes(partial(_make_answer, rules), num_processes, "Crafter") as exchange:
            moments: dict[int, Moment] = {}

            def reset(places, seeds):
                moments.update(zip(places, exchange("reset", places, seeds), strict=True))
                return np.stack([moments[place].seen for place in places])

            def step(places, actions):
                before = [moments[place] for place in places]
                actions = [int(action) for action in actions]
                after = _put_into_words(before, actions, exchange("step", places, actions))
                moments.update(zip(places, after, strict=True))
                aux = [
                    [float(function(a, action, b)) for function in sources]
                    for a, action, b in zip(before, actions, after, strict=True)
                ]
                return _time_steps(before, after, aux, tasks, horizon, terminate_on_success)

            # As many as keep all processes busy while one of them makes a world.
            yield HostWorlds(reset, step, 2 * num_processes)

    return HostEnvironment(spec, opened, obs_dtype="uint8")


def _put_into_words(before: Sequence[Moment], actions: Sequence[int], after: Sequence[Moment]) -> list[Moment]:
    """With captions, of all games at once: one by one they would cost as much as the games themselves."""
    seen, next_seen = (np.stack([moment.seen for moment in moments]) for moments in (before, after))
    keys, events = host_state_key(seen), host_event(seen, np.asarray(actions), next_seen)
    return [
        moment._replace(state_key=key, event=event)
        for moment, key, event in zip(after, keys.tolist(), events.tolist(), strict=True)
    ]


def _time_steps(
    before: Sequence[Moment],
    after: Sequence[Moment],
    aux: Sequence[Sequence[float]],
    tasks: Int[np.ndarray, " tasks"],
    horizon: int,
    ends: bool,
) -> TimeStep:
    had, has = (np.stack([moment.unlocked[tasks] for moment in moments]) for moments in (before, after))
    success = has.all(axis=1)
    dead = np.array([moment.dead for moment in after])
    arrays: dict[str, Any] = {
        "obs": np.stack([moment.seen for moment in after]),
        "reward": (has & ~had).sum(axis=1).astype(np.float32),
        "terminated": dead | (success & ends),
        "truncated": np.array([moment.time >= horizon for moment in after]),
        "success": success,
        "aux": np.array(aux, np.float32).reshape(len(after), -1),
        "state_key": np.array([moment.state_key for moment in after], np.uint32),
        "event": np.array([moment.event for moment in after], np.int32),
    }
    return TimeStep(**arrays)


# --- processes --------------------------------------------------------------------------------------------------------


def _make_answer(rules: Rules) -> Answer:
    """What a game process does; worlds that were made lately are remembered by their seeds."""
    template, worlds, games = make_game(), OrderedDict(), {}

    def answer(command: str, orders: list[tuple[int, Any]]) -> list[Moment]:
        if command == "reset":
            games.update({place: replica(_world(worlds, template, seed, rules)) for place, seed in orders})
        else:
            for place, action in orders:
                games[place].step(action)
        return [_moment(games[place]) for place, _ in orders]

    return answer


def _world(worlds: OrderedDict[int, Any], template: Any, seed: int, rules: Rules) -> Any:
    if seed not in worlds:
        worlds[seed] = ruled(started(template, seed), rules)
        if len(worlds) > KEPT_WORLDS:
            worlds.popitem(last=False)
    return worlds[seed]


def _moment(game: Any) -> Moment:
    return Moment(observe(game), unlocked(game), bool(game._player.health <= 0), game._step)
