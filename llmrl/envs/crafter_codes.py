"""What the two Crafters share: their words, what the player sees as bytes, and single achievements as tasks.

Both games show 7 x 9 cells around the player. The observation is a vector of bytes, by place:

    0 .. 62     what each cell is made of, row by row, an index into ``BLOCKS``
    63 .. 125   who stands there, one bit for each of ``MOBS``
    126 .. 137  how many of each of ``ITEMS``, 0 .. 9
    138 .. 141  how much of each of ``VITALS``, 0 .. 9
    142         where the player faces: left, right, up, down
    143         how light it is, 0 .. 255
    144         whether the player sleeps
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmrl.settings.errors import BadValue, unknown
from llmrl.types import Codes

BLOCKS = (
    "nothing",
    "the edge of the world",
    "grass",
    "water",
    "stone",
    "tree",
    "wood",
    "path",
    "coal",
    "iron",
    "diamond",
    "table",
    "furnace",
    "sand",
    "lava",
    "plant",
    "ripe plant",
)
MOBS = ("zombie", "cow", "skeleton", "arrow")
ITEMS = (
    "wood",
    "stone",
    "coal",
    "iron",
    "diamond",
    "sapling",
    "wood_pickaxe",
    "stone_pickaxe",
    "iron_pickaxe",
    "wood_sword",
    "stone_sword",
    "iron_sword",
)
VITALS = ("health", "food", "drink", "energy")
ACTIONS = (
    "noop",
    "left",
    "right",
    "up",
    "down",
    "do",
    "sleep",
    "place_stone",
    "place_table",
    "place_furnace",
    "place_plant",
    "make_wood_pickaxe",
    "make_stone_pickaxe",
    "make_iron_pickaxe",
    "make_wood_sword",
    "make_stone_sword",
    "make_iron_sword",
)
ACHIEVEMENTS = (
    "collect_wood",
    "place_table",
    "eat_cow",
    "collect_sapling",
    "collect_drink",
    "make_wood_pickaxe",
    "make_wood_sword",
    "place_plant",
    "defeat_zombie",
    "collect_stone",
    "place_stone",
    "eat_plant",
    "defeat_skeleton",
    "make_stone_pickaxe",
    "make_stone_sword",
    "wake_up",
    "place_furnace",
    "collect_coal",
    "collect_iron",
    "collect_diamond",
    "make_iron_pickaxe",
    "make_iron_sword",
)
"""In Craftax's order, which is about that of difficulty."""

VIEW = (7, 9)
"""Rows and columns of the cells in view; the player stands in the middle."""

CELLS = VIEW[0] * VIEW[1]
BLOCK, MOB, ITEM, VITAL = slice(0, 63), slice(63, 126), slice(126, 138), slice(138, 142)
FACING, LIGHT, ASLEEP = 142, 143, 144
NUM_BYTES = 145

_STEPS_OF_A_DAY = 300
_TIME = np.arange(_STEPS_OF_A_DAY) / _STEPS_OF_A_DAY + 0.3
DAYLIGHT = np.round(255.0 * (1.0 - np.abs(np.cos(np.pi * _TIME)) ** 3)).astype(np.uint8)
"""The byte for how light it is, by step of the day, [300]; both games have the same days."""

_BITS = tuple(tuple(float(who >> bit & 1) for bit in range(len(MOBS))) for who in range(2 ** len(MOBS)))
_COUNTS = tuple((count / 10.0,) for count in range(10))


def _one_hot(size: int) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in np.eye(size).tolist())


ENCODING = (
    Codes(CELLS, _one_hot(len(BLOCKS))),
    Codes(CELLS, _BITS),
    Codes(len(ITEMS) + len(VITALS), _COUNTS),
    Codes(1, _one_hot(4)),
    Codes(1, tuple((level / 255.0,) for level in range(256))),
    Codes(1, ((0.0,), (1.0,))),
)
"""Bytes to the 1345 features of Craftax-Classic-Symbolic, in another order."""


# --- tasks ----------------------------------------------------------------------------------------------------------


def achievement_indices(task: str | Sequence[str]) -> list[int]:
    """Places in ``ACHIEVEMENTS``.

    Args:
        task: one name, several, or "all".

    Raises:
        ValueError: there is no such achievement (the nearest is named), or none was given.
    """
    names = ACHIEVEMENTS if task == "all" else (task,) if isinstance(task, str) else tuple(task)
    if not names:
        raise BadValue(f"task needs at least one achievement, or 'all', got {task!r}")
    for name in names:
        if name not in ACHIEVEMENTS:
            raise unknown("task", name, ["all", *ACHIEVEMENTS])
    return [ACHIEVEMENTS.index(name) for name in names]


def check_rules(damage: int, table_wood: int) -> None:
    """Refuses rules that neither game nor ELLM knows.

    Raises:
        ValueError: damage is neither 1 nor 5, or table_wood neither 1 nor 2.
    """
    if damage not in (1, 5):
        raise BadValue(f"damage must be 1 (the game's) or 5 (ELLM's), got {damage!r}")
    if table_wood not in (1, 2):
        raise BadValue(f"table_wood must be 2 (the game's) or 1 (ELLM's), got {table_wood!r}")
