"""One game of the original Crafter: made repeatable, by ELLM's rules if asked, and seen as bytes. Host only.

The package is used as it is; what differs is set on its objects:

* A game follows from its seed and the actions. The package keeps the creatures of a part of the map in a set, which
  Python orders by their addresses in memory; here they keep the order in which they came.
* No pictures are drawn. At night the package draws noise for them from the same stream as the game's own chances, so a
  game with pictures goes on differently from the same seed; both are games by the same rules.
"""

from __future__ import annotations

import collections
import copy
import functools
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from llmrl.envs import crafter_codes as codes

_EDGE = codes.BLOCKS.index("the edge of the world")
_FACING = {(-1, 0): 0, (1, 0): 1, (0, -1): 2, (0, 1): 3}


class Rules(NamedTuple):
    """The game's own rules, or ELLM's.

    Attributes:
        first_hit: whether the first hit on a cow counts as ``eat_cow``.
        damage: of a bare hand, 1 or 5.
        table_wood: wood that a table costs, 2 or 1.
    """

    first_hit: bool = False
    damage: int = 1
    table_wood: int = 2


def make_game() -> Any:
    """A ``crafter.Env`` without pictures, not yet started; making one reads files, starting it anew does not."""
    import crafter

    game = crafter.Env(length=0, seed=0)
    game._obs = _nothing  # pyright: ignore[reportAttributeAccessIssue]
    game._sem_view = _nothing  # pyright: ignore[reportAttributeAccessIssue]
    return game


def started(game: Any, seed: int) -> Any:
    """A new episode of that game, as an object of its own; about a second of world making.

    Args:
        game: from ``make_game``.
        seed: decides the world and all chances in it.
    """
    game = _copied(game)
    game._world.reset = functools.partial(_reset_in_order, game._world)
    game._seed, game._episode = int(seed), 0
    game.reset()
    return game


def ruled(game: Any, rules: Rules) -> Any:
    """The same game, from now on by these rules."""
    player = game._player
    if rules.first_hit or rules.damage > 1:
        player._do_object = functools.partial(_hit, player, rules)
    if rules.table_wood == 1:
        player._place = functools.partial(_place_cheaply, player)
    return game


def replica(game: Any) -> Any:
    """The same game at the same point; the two go on independently."""
    return _copied(game)


def observe(game: Any) -> UInt8[np.ndarray, "145"]:
    """What the player sees, as bytes; see ``crafter_codes``."""
    world, player = game._world, game._player
    seen = np.zeros(codes.NUM_BYTES, np.uint8)
    view = seen[codes.BLOCK].reshape(codes.VIEW)
    creatures = seen[codes.MOB].reshape(codes.VIEW)
    view[:] = _EDGE
    # The package's coordinates are (column, row).
    left, top = (int(at) - size // 2 for at, size in zip(player.pos, codes.VIEW[::-1], strict=True))
    columns = range(max(left, 0), min(left + codes.VIEW[1], world.area[0]))
    rows = range(max(top, 0), min(top + codes.VIEW[0], world.area[1]))
    inside = np.ix_(np.array(columns), np.array(rows))
    view[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = _blocks(world)[
        world._mat_map[inside]
    ].T
    for column, row in np.argwhere(world._obj_map[inside]):
        thing = world._objects[world._obj_map[columns[column], rows[row]]]
        at = rows[row] - top, columns[column] - left
        name = type(thing).__name__.lower()
        if name == "plant":
            view[at] = codes.BLOCKS.index("ripe plant" if thing.ripe else "plant")
        elif name in codes.MOBS:
            creatures[at] |= 1 << codes.MOBS.index(name)
    seen[codes.ITEM] = [player.inventory[item] for item in codes.ITEMS]
    seen[codes.VITAL] = [player.inventory[vital] for vital in codes.VITALS]
    across, down = player.facing
    seen[codes.FACING] = _FACING[int(across), int(down)]
    seen[codes.LIGHT] = codes.DAYLIGHT[game._step % len(codes.DAYLIGHT)]
    seen[codes.ASLEEP] = player.sleeping
    return seen


def unlocked(game: Any) -> Bool[np.ndarray, "22"]:
    """Achievements of the episode so far."""
    return np.array([game._player.achievements[name] > 0 for name in codes.ACHIEVEMENTS])


# --- what is set on the package's objects -----------------------------------------------------------------------------


class _InOrder(dict):
    """As much of a set as the package uses, in the order of arrival."""

    def add(self, thing: Any) -> None:
        self[thing] = None

    def remove(self, thing: Any) -> None:
        del self[thing]


def _nothing() -> None:
    return None


def _copied(game: Any) -> Any:
    # Pictures are large and never change, so the copy shares them.
    return copy.deepcopy(game, {id(game._textures): game._textures})


def _reset_in_order(world: Any, seed: int | None = None) -> None:
    type(world).reset(world, seed)
    world._chunks = collections.defaultdict(_InOrder)


def _hit(player: Any, rules: Rules, thing: Any) -> None:
    kind = type(thing).__name__
    if rules.damage == 5 and kind in ("Cow", "Zombie", "Skeleton"):
        # No creature has more than 5, so being hit with 5 and having 1 are the same.
        thing.health = min(thing.health, 1)
    type(player)._do_object(player, thing)
    if rules.first_hit and kind == "Cow":
        player.achievements["eat_cow"] += 1


def _place_cheaply(player: Any, name: str, target: Any, material: Any) -> None:
    """The package takes two wood for a table; one is given back, or taken back where none was placed."""
    gift = name == "table"
    had = player.inventory["wood"]
    player.inventory["wood"] = had + gift
    type(player)._place(player, name, target, material)
    if gift:
        player.inventory["wood"] = min(player.inventory["wood"], had)


def _blocks(world: Any) -> UInt8[np.ndarray, " materials"]:
    """Index into ``BLOCKS`` by the package's number of a material."""
    names = [world._mat_names[number] or "nothing" for number in range(len(world._mat_names))]
    return np.array([codes.BLOCKS.index(name) for name in names], np.uint8)
