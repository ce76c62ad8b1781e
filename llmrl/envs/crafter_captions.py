"""Words for both Crafters: a state as a 32-bit key, a step as one of 27 events, from what the player sees alone.

Key and event are functions of the observation's bytes (``crafter_codes``) and of nothing else, so that the compiled
game and the original one are put into words by the same lines of code. A key holds, from its lowest bits on:

    what is in view      ``NEAR``, one bit each
    table and furnace    2 bits each: not in view, in view, within reach (the eight cells around the player)
    what is in front     4 bits, an index into ``FRONT``
    what is held         ``HELD``, one bit each; 2 bits for the best pickaxe and 2 for the best sword
    how one feels        one bit for each of ``FEELINGS``, where no more than ``LOW`` of 9 is left
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Shaped, UInt8, UInt32

from llmrl.envs import crafter_codes as codes
from llmrl.envs.crafter_codes import ACTIONS, ASLEEP, BLOCK, BLOCKS, FACING, ITEM, ITEMS, MOB, MOBS, VITAL
from llmrl.settings.errors import BadValue
from llmrl.types import Captioner

NEAR = ("water", "tree", "stone", "coal", "iron", "diamond", "lava", "plant", "zombie", "cow", "skeleton")
STATIONS = ("table", "furnace")
FRONT = (
    "open ground",
    "grass",
    "water",
    "stone",
    "tree",
    "coal",
    "iron",
    "diamond",
    "an obstacle",
    "lava",
    "plant",
    "ripe plant",
    "zombie",
    "cow",
    "skeleton",
    "darkness",
)
HELD = ("wood", "stone", "coal", "iron", "sapling")
TOOLS = ("pickaxe", "sword")
MATERIALS = ("no", "wooden", "stone", "iron")
FEELINGS = ("hurt", "hungry", "thirsty", "tired")
LOW = 4

_WIDTHS = (*(1 for _ in NEAR), 2, 2, 4, *(1 for _ in HELD), 2, 2, *(1 for _ in FEELINGS))
_SHIFTS = tuple(int(sum(_WIDTHS[:place])) for place in range(len(_WIDTHS)))
_FIELDS = (*NEAR, *STATIONS, "front", *(f"held {name}" for name in HELD), *TOOLS, *FEELINGS)

_TAKEN = (
    ("tree", "chop a tree"),
    ("stone", "mine stone"),
    ("coal", "mine coal"),
    ("iron", "mine iron"),
    ("diamond", "mine diamond"),
)
_HIT = (
    ("cow", "attack a cow", "eat a cow"),
    ("zombie", "attack a zombie", "defeat a zombie"),
    ("skeleton", "attack a skeleton", "defeat a skeleton"),
)
_PLACED = ("stone", "table", "furnace", "plant")
_MADE = ITEMS[6:]


EVENTS = (
    "do something else",
    "go to sleep",
    "wake up",
    *(words for _, words in _TAKEN),
    "pick a sapling",
    "drink water",
    "eat a ripe plant",
    *(killing for _, _, killing in _HIT),
    *(hitting for _, hitting, _ in _HIT),
    *(f"place a {name}" for name in _PLACED),
    *(
        f"make {'an' if tool.startswith('iron') else 'a'} {tool.replace('wood_', 'wooden_').replace('_', ' ')}"
        for tool in _MADE
    ),
)
"""What a step can do, as it reads after "should the agent"; the first stands for everything that has no words."""

_CENTRE = codes.CELLS // 2
_AROUND = np.array([-codes.VIEW[1] - 1, -codes.VIEW[1], -codes.VIEW[1] + 1, -1, 1, 8, 9, 10]) + _CENTRE
_BESIDE = np.array([-1, 1, -codes.VIEW[1], codes.VIEW[1]])
_DO = ACTIONS.index("do")


def _front_of_block() -> np.ndarray:
    """Index into ``FRONT`` by index into ``BLOCKS``, [17]."""
    table = np.full(len(BLOCKS), FRONT.index("an obstacle"), np.uint32)
    for place, block in enumerate(BLOCKS):
        if block in FRONT:
            table[place] = FRONT.index(block)
        elif block in ("path", "sand"):
            table[place] = FRONT.index("open ground")
    return table


_FRONT_OF_BLOCK = _front_of_block()


def captions(task: str | Sequence[str] = "all") -> Captioner:
    """Both Crafters in words; their steps bring keys and events along, whatever observation is shown.

    Args:
        task: as the environment's.
    """
    goals = [codes.ACHIEVEMENTS[place].replace("_", " ") for place in codes.achievement_indices(task)]
    context = (
        "The agent plays Crafter, a survival game on a map seen from above. It walks, collects what it finds, places "
        "and makes things, and must eat, drink, sleep and fight off zombies and skeletons. A table costs wood; tools "
        "are made beside a table, from wood, then from wood and stone; iron ones need wood, stone, coal and iron, and "
        f"a furnace too. The goal is to {' and to '.join(goals)}."
    )
    return Captioner(EVENTS, describe, context, name="craftax_classic")


def place_of(name: str) -> int:
    """The lowest bit of a key's field.

    Args:
        name: one of ``NEAR``, ``STATIONS``, ``TOOLS`` or ``FEELINGS``, "front", or "held wood" and the like.
    """
    return _SHIFTS[_FIELDS.index(name)]


# --- keys -----------------------------------------------------------------------------------------------------------


def state_key(seen: UInt8[Array, "145"]) -> UInt32[Array, ""]:
    """The caption of a state, compiled; see the module."""
    return _key(seen, jnp)


def host_state_key(seen: UInt8[np.ndarray, "*batch 145"]) -> UInt32[np.ndarray, "*batch"]:
    """The same key on the host, of as many states as there are."""
    return np.asarray(_key(seen, np))


def describe(key: int) -> str:
    """A key in words.

    Args:
        key: as ``state_key`` gives it.

    Raises:
        ValueError: no state has this key.
    """
    if not 0 <= key < 2**32:
        raise BadValue(f"a key is a number of 32 bits, got {key}")
    values = [key >> shift & (1 << width) - 1 for shift, width in zip(_SHIFTS, _WIDTHS, strict=True)]
    near, stations = values[: len(NEAR)], values[len(NEAR) : len(NEAR) + 2]
    front, held = values[len(NEAR) + 2], values[len(NEAR) + 3 : len(NEAR) + 3 + len(HELD)]
    tools, feelings = values[-len(FEELINGS) - 2 : -len(FEELINGS)], values[-len(FEELINGS) :]
    if max(stations) > 2:
        raise BadValue(f"no state has the key {key}: a table or furnace is out of view, in view or within reach")
    asleep = FRONT[front] == "darkness"
    seen = [name for name, there in zip(NEAR, near, strict=True) if there]
    seen += [name for name, level in zip(STATIONS, stations, strict=True) if level]
    reach = [name for name, level in zip(STATIONS, stations, strict=True) if level == 2]
    owned = [name for name, there in zip(HELD, held, strict=True) if there]
    owned += [f"{MATERIALS[level]} {tool}" for tool, level in zip(TOOLS, tools, strict=True) if level]
    feels = [name for name, there in zip(FEELINGS, feelings, strict=True) if there]
    sentences = [
        "The agent is asleep." if asleep else f"In front of the agent: {FRONT[front]}.",
        f"In view: {_listed(seen)}.",
        f"Within reach: {_listed(reach)}." if reach else "",
        f"It holds: {_listed(owned)}.",
        f"It feels {_listed(feels)}." if feels else "",
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words) or "nothing"


def _key(seen: Any, xp: Any) -> Any:
    blocks, mobs, items = seen[..., BLOCK], seen[..., MOB], seen[..., ITEM]

    def any_of(cells, *names):
        return xp.stack([cells == BLOCKS.index(name) for name in names]).any(axis=(0, -1))

    def level(name):
        """0 out of view, 1 in view, 2 within reach."""
        return any_of(blocks, name).astype(xp.uint32) + any_of(blocks[..., _AROUND], name).astype(xp.uint32)

    def best(tool):
        places = [ITEMS.index(f"{material}_{tool}") for material in ("wood", "stone", "iron")]
        return xp.where(items[..., np.array(places)] > 0, xp.arange(1, 4, dtype=xp.uint32), xp.uint32(0)).max(axis=-1)

    near = [any_of(blocks, "plant", "ripe plant") if n == "plant" else any_of(blocks, n) for n in NEAR[:-3]]
    near += [((mobs & (1 << MOBS.index(name))) > 0).any(axis=-1) for name in NEAR[-3:]]
    values = [
        *near,
        *(level(name) for name in STATIONS),
        _front(seen, xp),
        *(items[..., ITEMS.index(name)] > 0 for name in HELD),
        *(best(tool) for tool in TOOLS),
        *(seen[..., VITAL.start + i] <= LOW for i in range(len(FEELINGS))),
    ]
    bits = xp.stack([xp.asarray(value).astype(xp.uint32) for value in values], axis=-1)
    return (bits << xp.asarray(_SHIFTS, dtype=xp.uint32)).sum(axis=-1, dtype=xp.uint32)


def _front(seen: Any, xp: Any) -> Any:
    """Index into ``FRONT``: a creature, else what the cell is made of; nothing is seen in one's sleep."""
    cell = _faced(seen, xp)
    front = xp.asarray(_FRONT_OF_BLOCK)[_at(seen[..., BLOCK], cell, xp)]
    for name in ("zombie", "cow", "skeleton"):
        stands = (_at(seen[..., MOB], cell, xp) & (1 << MOBS.index(name))) > 0
        front = xp.where(stands, xp.uint32(FRONT.index(name)), front)
    return xp.where(seen[..., ASLEEP] > 0, xp.uint32(FRONT.index("darkness")), front)


def _faced(seen: Any, xp: Any) -> Any:
    return xp.asarray(_BESIDE + _CENTRE)[seen[..., FACING]]


def _at(cells: Any, cell: Any, xp: Any) -> Any:
    """What is in that cell of each view."""
    return xp.take_along_axis(cells, cell[..., None], axis=-1)[..., 0]


# --- events ---------------------------------------------------------------------------------------------------------


def event(seen: UInt8[Array, "145"], action: Shaped[Array, ""], next_seen: UInt8[Array, "145"]) -> Int[Array, ""]:
    """What a step did, compiled: an index into ``EVENTS``.

    A creature counts as killed where none of its kind stands on its cell or beside it afterwards (it walks one cell a
    step at most), and a cow also where the player was fed: in a crowd a killing may read as a hit.

    Args:
        seen: before the step.
        action: as performed.
        next_seen: after the step, before any reset.
    """
    return _event(seen, action, next_seen, jnp)


def host_event(
    seen: UInt8[np.ndarray, "*batch 145"],
    action: int | Int[np.ndarray, "*batch"],
    next_seen: UInt8[np.ndarray, "*batch 145"],
) -> Int[np.ndarray, "*batch"]:
    """The same event on the host, of as many steps as there are."""
    return np.asarray(_event(seen, action, next_seen, np))


def _event(seen: Any, action: Any, next_seen: Any, xp: Any) -> Any:
    cell = _faced(seen, xp)
    before, after = _at(seen[..., BLOCK], cell, xp), _at(next_seen[..., BLOCK], cell, xp)
    awake, still_awake = seen[..., ASLEEP] == 0, next_seen[..., ASLEEP] == 0
    does = awake & (action == _DO)
    more = next_seen[..., ITEM] > seen[..., ITEM]
    fed, watered = (next_seen[..., VITAL.start + i] > seen[..., VITAL.start + i] for i in (1, 2))

    def is_block(which, name):
        return which == BLOCKS.index(name)

    def stands(who, name):
        return (who & (1 << MOBS.index(name))) > 0

    who = _at(seen[..., MOB], cell, xp)
    hits = [does & stands(who, name) for name, *_ in _HIT]
    around = xp.take_along_axis(next_seen[..., MOB], cell[..., None] + np.array([0, *_BESIDE]), axis=-1)
    gone = [~stands(around, name).any(axis=-1) for name, *_ in _HIT]
    gone[0] = gone[0] | fed
    drinks = does & is_block(before, "water") & ((who == 0) | watered)
    happened = [
        awake & False,
        awake & ~still_awake,
        ~awake & still_awake,
        *(does & is_block(before, name) & ~is_block(after, name) for name, _ in _TAKEN),
        does & is_block(before, "grass") & more[..., ITEMS.index("sapling")],
        drinks,
        does & is_block(before, "ripe plant") & is_block(after, "plant"),
        *(hit & dead for hit, dead in zip(hits, gone, strict=True)),
        *hits,
        *(
            awake & (action == ACTIONS.index(f"place_{name}")) & is_block(after, name) & ~is_block(before, name)
            for name in _PLACED
        ),
        *(awake & (action == ACTIONS.index(f"make_{tool}")) & more[..., ITEMS.index(tool)] for tool in _MADE),
    ]
    # The first that is true; where none is, the first of all, which never is.
    return xp.argmax(xp.stack(happened), axis=0).astype(xp.int32)
