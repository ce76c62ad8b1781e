"""Craftax-Classic, Crafter compiled: single achievements as sparse tasks, and an observation of bytes."""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PRNGKeyArray, Shaped, UInt8

from llmrl.envs import crafter_codes as codes
from llmrl.envs.base import require_positive_int, strongly_typed, time_step
from llmrl.envs.crafter_captions import event, state_key
from llmrl.ops.choices import choice
from llmrl.ops.codes import decode, num_features
from llmrl.settings.errors import NotImported, install, unknown
from llmrl.types import Discrete, Environment, EnvSpec, TimeStep

COW = codes.ACHIEVEMENTS.index("eat_cow")
PLACE_TABLE = codes.ACTIONS.index("place_table")


class CraftaxState(NamedTuple):
    """A world, and what its player sees.

    Attributes:
        world: Craftax's own state.
        seen: the observation as bytes, [145], see ``crafter_codes``.
    """

    world: Any
    seen: UInt8[Array, "*n 145"]

    @property
    def time(self) -> Int[Array, "*n"]:
        """Steps taken in this episode."""
        return self.world.timestep

    @property
    def unlocked(self) -> Bool[Array, "*n 22"]:
        """Achievements of this episode so far."""
        return self.world.achievements


def craftax_classic(
    task: str | Sequence[str] = "all",
    horizon: int = 10_000,
    terminate_on_success: bool = True,
    observation: str = "compact",
    first_hit: bool = False,
    damage: int = 1,
    table_wood: int = 2,
    steps_per_reset: int = 32,
) -> Environment:
    """Craftax-Classic with achievements as tasks: 1 for each of them when an episode unlocks it, and nothing else.

    An episode ends by the rules when the player dies, and, if asked, when every task is done; ``success`` is true from
    the step on that did the last of them.

    Args:
        task: an achievement, several, or "all".
        horizon: time limit in steps; the game's own is 10000, ELLM's 400.
        terminate_on_success: whether an episode ends once every task is done.
        observation: "compact" gives bytes, [145], which a network's first layer expands; "one_hot" the same already
            expanded, [1345].
        first_hit: whether the first hit on a cow counts as ``eat_cow``, as ELLM counts attacks.
        damage: of a bare hand: 1, or ELLM's 5, which nothing survives.
        table_wood: wood that a table costs: 2, or ELLM's 1.
        steps_per_reset: see ``Environment``; making a world costs as much as 30 to 40 steps, keeping one 21 kB.

    Returns:
        The environment; its state is a ``CraftaxState``.

    Raises:
        ValueError: a name or a number is none of those above.
        ModuleNotFoundError: the package craftax is not installed.

    Reference: Matthews et al. (2024), "Craftax"; Hafner (2021), "Benchmarking the spectrum of agent capabilities";
    for the other rules Du et al. (2023), "Guiding pretraining in reinforcement learning with large language models".
    """
    require_positive_int("horizon", horizon)
    require_positive_int("steps_per_reset", steps_per_reset)
    codes.check_rules(damage, table_wood)
    if observation not in ("compact", "one_hot"):
        raise unknown("observation", observation, ("compact", "one_hot"))
    tasks = np.array(codes.achievement_indices(task))
    game, params = _game(damage)
    compact = observation == "compact"

    def shown(seen: UInt8[Array, "145"]) -> Shaped[Array, " obs"]:
        return seen if compact else decode(codes.ENCODING, seen)

    def reset(key: PRNGKeyArray) -> tuple[CraftaxState, Shaped[Array, " obs"]]:
        with _their_code():
            _, world = game.reset_env(key, params)
            state = _state(world)
        return state, shown(state.seen)

    def step(key: PRNGKeyArray, state: CraftaxState, action: Int[Array, ""]) -> tuple[CraftaxState, TimeStep]:
        with _their_code():
            world = _with_gift(state.world, action) if table_wood == 1 else state.world
            _, world, *_ = game.step_env(key, world, action, params)
            world = _without_gift(world, state.world, action) if table_wood == 1 else world
            world = _with_first_hit(world, state.world) if first_hit else world
            reached = _state(world)
        unlocked = reached.unlocked[tasks]
        success = jnp.all(unlocked)
        result = time_step(
            jnp.zeros(()),
            jnp.sum((unlocked & ~state.unlocked[tasks]).astype(jnp.float32)),
            (reached.world.player_health <= 0) | (terminate_on_success & success),
            reached.time >= horizon,
            success,
        )
        return reached, result._replace(
            obs=shown(reached.seen), state_key=state_key(state.seen), event=event(state.seen, action, reached.seen)
        )

    spec = EnvSpec(
        name="craftax_classic",
        obs_shape=(codes.NUM_BYTES if compact else num_features(codes.ENCODING),),
        action=Discrete(len(codes.ACTIONS)),
        horizon=horizon,
        encoding=codes.ENCODING if compact else (),
    )
    return Environment(spec, reset, step, steps_per_reset=steps_per_reset)


def observe(world: Any) -> UInt8[Array, "145"]:
    """What the player sees of a Craftax state, as bytes; see ``crafter_codes``.

    Craftax's own observation forgets a creature in view now and then (the place of one out of view wraps around and
    wipes it out); this one does not.
    """
    corner = world.player_position - jnp.array(codes.VIEW, jnp.int32) // 2
    rows, columns = (corner[axis] + jnp.arange(codes.VIEW[axis]) for axis in (0, 1))
    height, width = world.map.shape
    inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))[None, :]
    blocks = world.map[jnp.clip(rows, 0, height - 1)[:, None], jnp.clip(columns, 0, width - 1)[None, :]]
    blocks = jnp.where(inside, blocks, codes.BLOCKS.index("the edge of the world")).reshape(-1)
    kinds = (world.zombies, world.cows, world.skeletons, world.arrows)
    mobs = sum(_in_view(mobs, corner).astype(jnp.int32) << bit for bit, mobs in enumerate(kinds))
    inventory = [getattr(world.inventory, item) for item in codes.ITEMS]
    vitals = [getattr(world, f"player_{vital}") for vital in codes.VITALS]
    light = jnp.asarray(codes.DAYLIGHT)[world.timestep % len(codes.DAYLIGHT)]
    numbers = [*inventory, *vitals, world.player_direction - 1, light, world.is_sleeping]
    numbers = jnp.stack([jnp.asarray(number, jnp.uint8) for number in numbers])
    return jnp.concatenate([blocks.astype(jnp.uint8), jnp.asarray(mobs, jnp.uint8), numbers])


def _in_view(mobs: Any, corner: Int[Array, "2"]) -> Bool[Array, "63"]:
    """In which cells of the view one of them stands."""
    place = mobs.position - corner
    inside = mobs.mask & jnp.all((place >= 0) & (place < jnp.array(codes.VIEW)), axis=-1)
    cell = place[:, 0] * codes.VIEW[1] + place[:, 1]
    return jnp.any((jnp.arange(codes.CELLS)[:, None] == cell[None, :]) & inside[None, :], axis=-1)


def _state(world: Any) -> CraftaxState:
    # Craftax keeps a key for the noise in its pictures; these states are never drawn with noise.
    world = strongly_typed(world.replace(state_rng=None))
    return CraftaxState(world, observe(world))


# --- ELLM's rules ---------------------------------------------------------------------------------------------------


def _with_gift(world: Any, action: Int[Array, ""]) -> Any:
    """One wood more where the action places a table: the game takes two for it, and here it costs one."""
    wood = world.inventory.wood + (action == PLACE_TABLE)
    return world.replace(inventory=world.inventory.replace(wood=wood))


def _without_gift(world: Any, before: Any, action: Int[Array, ""]) -> Any:
    """Takes the gift back where no table was placed; nothing else changes wood in such a step."""
    wood = jnp.where(
        action == PLACE_TABLE, jnp.minimum(world.inventory.wood, before.inventory.wood), world.inventory.wood
    )
    return world.replace(inventory=world.inventory.replace(wood=wood))


def _with_first_hit(world: Any, before: Any) -> Any:
    """A cow only ever loses health to the player."""
    hit = jnp.any(world.cows.health < before.cows.health)
    return world.replace(achievements=world.achievements.at[COW].set(world.achievements[COW] | hit))


# --- the package ----------------------------------------------------------------------------------------------------


def _game(damage: int) -> tuple[Any, Any]:
    _import_craftax()
    from craftax.craftax_classic.envs.craftax_symbolic_env import CraftaxClassicSymbolicEnvNoAutoReset

    game = CraftaxClassicSymbolicEnvNoAutoReset()
    params: Any = game.default_params
    if damage == 5:
        # No creature has more than 5, so being hit with 5 and having 1 are the same.
        params = params.replace(zombie_health=1, cow_health=1, skeleton_health=1)
    return game, params


def _import_craftax() -> None:
    try:
        from craftax.craftax_classic import constants
    except ModuleNotFoundError as error:
        raise NotImported(f"env=craftax_classic needs the package {error.name}: {install('craftax')}") from error
    # Should anyone draw pictures, Craftax would keep its textures beside its own code.
    home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "llmrl"
    with contextlib.suppress(OSError):
        home.mkdir(parents=True, exist_ok=True)
    constants.TEXTURE_CACHE_FILE = str(home / "craftax_classic_textures.pbz2")


_CHOICE, _SCAN = jax.random.choice, jax.lax.scan
MANY = 256
"""Entries from which on a choice by probabilities is made in two steps."""


def quick_choice(key: PRNGKeyArray, a: Any, shape: Sequence[int] = (), replace: bool = True, p: Any = None, **others):
    """``jax.random.choice``, quick where one of many places is drawn."""
    if p is None or not replace or others or math.prod(shape) != 1 or p.size < MANY:
        return _CHOICE(key, a, shape, replace, p, **others)
    return jnp.asarray(a)[choice(key, p)].reshape(shape)


def quick_scan(f: Callable, init: Any, xs: Any = None, **others):
    """``jax.lax.scan``; what carries nothing from one round to the next is done side by side."""
    if init is not None or xs is None or others:
        return _SCAN(f, init, xs, **others)
    return None, jax.vmap(lambda x: f(None, x)[1])(xs)


INSTEAD: dict[tuple[ModuleType, str], Callable] = {
    (jax.random, "choice"): quick_choice,
    (jax.lax, "scan"): quick_scan,
}
"""What Craftax's own code finds in jax while it is traced, with the results of what has that name."""
_ONE_AT_A_TIME = threading.RLock()


@contextlib.contextmanager
def _their_code() -> Iterator[None]:
    """Around Craftax's own code, while it is traced.

    It mixes booleans, integers and floats; a caller who asked for strict promotion need not answer for that. Where
    creatures may appear it asks ``jax.random.choice``, half of the time that a step takes on a CPU, and it looks at ten
    kinds of blocks or plants in ten rounds, a third of what a GPU is told to do in a step. Threads take turns, as both
    are replaced for all of them.
    """
    with _ONE_AT_A_TIME, jax.numpy_dtype_promotion("standard"):
        found = {(module, name): getattr(module, name) for module, name in INSTEAD}
        for (module, name), quick in INSTEAD.items():
            setattr(module, name, quick)
        try:
            yield
        finally:
            for (module, name), own in found.items():
                setattr(module, name, own)
