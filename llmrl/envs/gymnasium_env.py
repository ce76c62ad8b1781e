"""Any Gymnasium environment, stepped on the host: here, or in processes of its own."""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from jaxtyping import Float, Shaped

from llmrl.envs.base import ON_HOST, require_positive_int
from llmrl.envs.gymnasium_spaces import Actions, Observations, actions, infos, observations
from llmrl.envs.parameters import fitted_arguments
from llmrl.envs.processes import Answer, opened_processes
from llmrl.settings.errors import BadType, BadValue, first_line
from llmrl.settings.loading import load_function
from llmrl.types import Discrete, EnvSpec, HostEnvironment, HostWorlds, TimeStep

TRIED = 256
"""Steps of random play that an environment is tried on, and that its scales are taken from."""

EXAMPLES = 3
"""Steps that an auxiliary function is tried on."""

OTHERS = (
    "ids of another package name it first, as in minigrid:MiniGrid-DoorKey-5x5-v0; one of your own is a dotted path"
)


class Recipe(NamedTuple):
    """How a game is made, wherever: it can be pickled.

    Attributes:
        id: a Gymnasium id, or a dotted path of a function that makes an environment.
        horizon: time limit in steps; None keeps the environment's own.
        wrappers: dotted paths of wrappers, the innermost first.
        params: arguments of the environment.
    """

    id: str
    horizon: int | None
    wrappers: tuple[str, ...]
    params: dict[str, Any]


class Moment(NamedTuple):
    """What a game gives after a step.

    Attributes:
        obs: its observation, [size].
        reward: the task's.
        terminated, truncated: as Gymnasium has them.
        info: whatever else.
    """

    obs: Shaped[np.ndarray, " size"]
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]


def gymnasium_env(
    id: str = "",
    horizon: int | None = None,
    wrappers: str | Sequence[str] = (),
    processes: int | None = None,
    **params: Any,
) -> HostEnvironment:
    """A Gymnasium environment by its id; rewards, ends and time limit are its own.

    It is played a little at random first: what breaks then is refused, and each number of an observation is divided by
    the largest size that it had, rounded up to a power of two. Auxiliary functions are called with ``(obs [n, size],
    action [n, *native], next_obs [n, size], info)``, NumPy's, and return [n].

    Args:
        id: as in ``gymnasium.make``, or the dotted path of a function that returns a ``gymnasium.Env``.
        horizon: time limit in steps; None keeps the environment's own.
        wrappers: dotted paths of wrappers, the innermost first.
        processes: how many step the environments, each a Python of its own; None steps them in this one.
        **params: the environment's own, as for ``gymnasium.make``, or of that function.

    Returns:
        The environment; ``opened`` makes the games.

    Raises:
        ValueError: there is no such environment, it fails when it is made or played, it has no time limit, or a space
            cannot be served.
        TypeError: a space is of another kind, or something is no environment.
    """
    if not id:
        raise BadValue(f"env=gymnasium needs env.id, as in env.id=CartPole-v1; {OTHERS}")
    for name, number in (("horizon", horizon), ("processes", processes)):
        if number is not None:
            require_positive_int(name, number)
    recipe = Recipe(id, horizon, (wrappers,) if isinstance(wrappers, str) else tuple(wrappers or ()), params)
    what = f"env.id={id}"
    game = made(recipe)
    seen, acted = observations(what, game.observation_space), actions(what, game.action_space)
    tried = _tried(recipe, game, seen, acted)
    spec = EnvSpec(
        name=id.rpartition(":")[2].rpartition(".")[2],
        obs_shape=(seen.size,),
        action=acted.space,
        horizon=_horizon(what, game, horizon),
        obs_scale=tuple(_scales(tried.obs).tolist()),
        obs_names=seen.names,
    )
    game.close()
    opened = partial(_opened, recipe, seen, acted, processes)
    return HostEnvironment(
        spec, opened, obs_dtype=seen.dtype, notes=tuple(_notes(what, seen, tried)), example=tried.example
    )


def _notes(what: str, seen: Observations, tried: Tried) -> Iterator[str]:
    if seen.left_out:
        yield f"{what}: {', '.join(seen.left_out)} of the observation is no number, and is left out"
    if not tried.repeatable:
        yield (
            f"{what} does not follow from its seed: the same command will not give the same numbers, and an "
            "interrupted run goes on in fresh episodes"
        )


def made(recipe: Recipe, **settings: Any) -> gymnasium.Env:
    """A game, not yet started; ``settings`` as for ``gymnasium.make``, where they are known.

    Raises:
        ValueError, TypeError: as for ``gymnasium_env``.
    """
    what, own = f"env.id={recipe.id}", recipe.id.replace(":", ".")
    try:
        if "." in own and all(part.isidentifier() for part in own.split(".")):
            game = _from_function(recipe, settings)
        else:
            limit = {} if recipe.horizon is None else {"max_episode_steps": recipe.horizon}
            game = gymnasium.make(recipe.id, disable_env_checker=True, **limit, **settings, **recipe.params)
        for path in recipe.wrappers:
            game = load_function(path, "env.wrappers", "a gymnasium.Wrapper")(game)
    except (BadValue, BadType):
        raise
    except gymnasium.error.UnregisteredEnv as error:
        raise BadValue(f"{what}: {first_line(error)}; {OTHERS}") from error
    except Exception as error:
        raise BadValue(f"{what} cannot be made: {first_line(error)}") from error
    if not isinstance(game, gymnasium.Env):
        raise BadType(f"{what} made {type(game).__name__}; expected a gymnasium.Env")
    return game


def _from_function(recipe: Recipe, settings: dict[str, Any]) -> Any:
    """Whatever the function makes, with a time limit where one is given."""
    factory = load_function(recipe.id, "env.id", "a function that returns a gymnasium.Env")
    known = inspect.signature(factory).parameters
    settings = {name: value for name, value in settings.items() if name in known}
    game = factory(**fitted_arguments(recipe.id, factory, {**settings, **recipe.params}))
    if recipe.horizon is None or not isinstance(game, gymnasium.Env):
        return game
    return gymnasium.wrappers.TimeLimit(game, recipe.horizon)


def _horizon(what: str, game: gymnasium.Env, given: int | None) -> int:
    """The time limit: the one that was given, the registered one, or the one that the environment keeps itself."""
    registered = game.spec.max_episode_steps if game.spec is not None else None
    for limit in (given, registered, _attribute(game, "_max_episode_steps"), _attribute(game, "max_steps")):
        if limit is not None:
            return int(limit)
    raise BadValue(f"{what} has no time limit of its own: give one, as in env.horizon=200")


def _attribute(game: gymnasium.Env, name: str) -> Any:
    try:
        return game.get_wrapper_attr(name)
    except AttributeError:
        return None


# --- a first look -----------------------------------------------------------------------------------------------------


class Tried(NamedTuple):
    """What a little random play has shown.

    Attributes:
        obs: all observations, [steps, size].
        repeatable: whether the same seed and actions gave the same again.
        example: (obs, action, next_obs, info) of some steps, as an auxiliary function sees them.
    """

    obs: Float[np.ndarray, "steps size"]
    repeatable: bool
    example: tuple[Any, ...]


def _tried(recipe: Recipe, game: gymnasium.Env, seen: Observations, acted: Actions) -> Tried:
    moments, performed = _random_play(recipe, game, seen, acted, TRIED)
    again, _ = _random_play(recipe, game, seen, acted, TRIED // 4)
    repeatable = all(
        np.array_equal(one.obs, other.obs) and one[1:4] == other[1:4]
        for one, other in zip(moments, again, strict=False)
    )
    obs = np.stack([moment.obs for moment in moments])
    taken = [i for i, action in enumerate(performed) if action is not None][:EXAMPLES]
    infos_of = infos([moments[i + 1].info for i in taken])
    example = obs[taken], np.stack([performed[i] for i in taken]), obs[[i + 1 for i in taken]], infos_of
    return Tried(obs, repeatable, example)


def _random_play(
    recipe: Recipe, game: gymnasium.Env, seen: Observations, acted: Actions, steps: int
) -> tuple[list[Moment], list[Any]]:
    """Moments, one more than the actions between them; where an episode starts anew, the action is None."""
    chances = np.random.default_rng(0)
    moments, performed = [_reset(recipe, game, seen, 1)], []
    while len(performed) < steps:
        if moments[-1].terminated or moments[-1].truncated:
            moments.append(_reset(recipe, game, seen, len(performed)))
            performed.append(None)
            continue
        (action,) = acted.native(_random_action(acted, chances))
        moments.append(_step(recipe, game, seen, action))
        performed.append(action)
    return moments, performed


def _random_action(acted: Actions, chances: np.random.Generator) -> Shaped[np.ndarray, "1 *a"]:
    space = acted.space
    return (
        chances.integers(space.num, size=1) if isinstance(space, Discrete) else chances.uniform(-1, 1, (1, space.dim))
    )


def _scales(obs: Float[np.ndarray, "steps size"]) -> Float[np.ndarray, " size"]:
    """The largest size of each number, rounded up to a power of two; 1 where it was always 0 or is none."""
    largest = np.abs(np.asarray(obs, np.float64)).max(axis=0)
    known = np.isfinite(largest) & (largest > 0.0)
    return np.where(known, np.exp2(np.ceil(np.log2(np.where(known, largest, 1.0)))), 1.0)


# --- one game ---------------------------------------------------------------------------------------------------------


def _reset(recipe: Recipe, game: gymnasium.Env, seen: Observations, seed: int) -> Moment:
    try:
        obs, info = game.reset(seed=int(seed))
        return Moment(seen.vector(obs), 0.0, False, False, info)
    except Exception as error:
        raise BadValue(
            f"env.id={recipe.id}: reset(seed={seed}) failed: {first_line(error)}; expected (obs, info)"
        ) from error


def _step(recipe: Recipe, game: gymnasium.Env, seen: Observations, action: Any) -> Moment:
    try:
        obs, reward, terminated, truncated, info = game.step(action)
        return Moment(seen.vector(obs), float(reward), bool(terminated), bool(truncated), info)
    except Exception as error:
        raise BadValue(
            f"env.id={recipe.id}: step({action!r}) failed: {first_line(error)}; expected (obs, reward, terminated, "
            "truncated, info)"
        ) from error


# --- many games -------------------------------------------------------------------------------------------------------


def _make_answer(recipe: Recipe, informed: bool, drawn: bool = False) -> Answer:
    """What steps the games of one process. Without sources, only the success is needed of ``info``."""
    settings = {"render_mode": "rgb_array"} if drawn else {}
    games: dict[int, gymnasium.Env] = {}
    spare = made(recipe, **settings)
    seen = observations(recipe.id, spare.observation_space)

    def game_at(place: int) -> gymnasium.Env:
        if place not in games:
            games[place] = made(recipe, **settings) if games else spare
        return games[place]

    def answer(command: str, orders: list[tuple[int, Any]]) -> list[Any]:
        if command == "reset":
            return [_reset(recipe, game_at(place), seen, seed).obs for place, seed in orders]
        if command == "draw":
            return [games[place].render() for place, _ in orders]
        if command == "close":
            return [game.close() for game in games.values()]
        moments = [_step(recipe, games[place], seen, action) for place, action in orders]
        return moments if informed else [moment._replace(info=_success(moment.info)) for moment in moments]

    return answer


def _success(info: dict[str, Any]) -> dict[str, Any]:
    return {"is_success": info["is_success"]} if "is_success" in info else {}


@contextlib.contextmanager
def _opened(
    recipe: Recipe,
    seen: Observations,
    acted: Actions,
    processes: int | None,
    sources: Sequence[Callable],
    drawn: bool = False,
) -> Iterator[HostWorlds]:
    with _exchange(partial(_make_answer, recipe, bool(sources), drawn), processes, recipe.id) as exchange:
        now: dict[int, Shaped[np.ndarray, " size"]] = {}

        def reset(places: Sequence[int], seeds: Sequence[int]) -> Shaped[np.ndarray, "places size"]:
            obs = exchange("reset", places, seeds)
            now.update(zip(places, obs, strict=True))
            return np.stack(obs)

        def step(places: Sequence[int], chosen: Shaped[np.ndarray, "places *a"]) -> TimeStep:
            performed = acted.native(np.asarray(chosen))
            moments = exchange("step", places, performed)
            before = np.stack([now[place] for place in places]) if sources else None
            obs, reward, terminated, truncated, told = zip(*moments, strict=True)
            now.update(zip(places, obs, strict=True))
            after = np.stack(obs)
            arrays: dict[str, Any] = {
                "obs": after,
                "reward": np.asarray(reward, np.float32),
                "terminated": np.asarray(terminated),
                "truncated": np.asarray(truncated),
                "success": np.array([bool(info.get("is_success", False)) for info in told]),
                "aux": _said(sources, before, performed, after, told),
                "state_key": np.zeros(len(places), np.uint32),
                "event": np.zeros(len(places), np.int32),
            }
            return TimeStep(**arrays)

        picture = (lambda place: exchange("draw", [place], [None])[0]) if drawn else None
        yield HostWorlds(reset, step, picture=picture)


def _said(sources: Sequence[Callable], before, performed, after, told) -> Float[np.ndarray, "places m"]:
    """What every auxiliary function says of these steps."""
    if not sources:
        return np.zeros((len(after), 0), np.float32)
    info = infos(told)
    try:
        values = [np.broadcast_to(source(before, performed, after, info), len(after)) for source in sources]
    except Exception as error:
        raise BadValue(f"an auxiliary function failed: {first_line(error)}; expected {ON_HOST}") from error
    return np.stack(values, axis=-1).astype(np.float32)


@contextlib.contextmanager
def _exchange(make: Callable[[], Answer], processes: int | None, what: str):
    """Games in this process, or in as many others."""
    if processes is not None:
        with opened_processes(make, min(processes, os.cpu_count() or 1), what) as exchange:
            yield exchange
        return
    answer = make()
    try:
        yield lambda command, places, arguments: answer(command, list(zip(places, arguments, strict=True)))
    finally:
        answer("close", [])
