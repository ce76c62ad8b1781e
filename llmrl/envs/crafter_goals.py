"""Goals for both Crafters by rule: what is possible and leads to the task, and what a language model would say.

Conditions are words about a caption (``crafter_captions``):

    sees tree          in view; of a table or a furnace: in view or within reach
    near table         within reach
    faces grass        what is in front
    has wood           at least one
    has stone pickaxe  that one or a better one
    no pickaxe         none at all; likewise a sword
    is tired           as one of ``FEELINGS``
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product

import numpy as np

from llmrl.envs import crafter_codes as codes
from llmrl.envs.crafter_captions import EVENTS, FEELINGS, FRONT, HELD, MATERIALS, NEAR, STATIONS, TOOLS, place_of
from llmrl.envs.crafter_captions import captions as words
from llmrl.settings.errors import BadValue
from llmrl.types import Captioner, Rules

POSSIBLE: dict[str, tuple[str, ...]] = {
    "go to sleep": ("is tired",),
    "wake up": ("faces darkness",),
    "chop a tree": ("sees tree",),
    "mine stone": ("sees stone", "has wooden pickaxe"),
    "mine coal": ("sees coal", "has wooden pickaxe"),
    "mine iron": ("sees iron", "has stone pickaxe"),
    "mine diamond": ("sees diamond", "has iron pickaxe"),
    "pick a sapling": ("faces grass",),
    "drink water": ("sees water",),
    "eat a ripe plant": ("faces ripe plant",),
    "eat a cow": ("sees cow",),
    "defeat a zombie": ("sees zombie",),
    "defeat a skeleton": ("sees skeleton",),
    "attack a cow": ("sees cow",),
    "attack a zombie": ("sees zombie",),
    "attack a skeleton": ("sees skeleton",),
    "place a stone": ("has stone",),
    "place a table": ("has wood",),
    "place a furnace": ("has stone", "near table"),
    "place a plant": ("has sapling", "faces grass"),
    "make a wooden pickaxe": ("near table", "has wood"),
    "make a stone pickaxe": ("near table", "has wood", "has stone"),
    "make an iron pickaxe": ("near table", "near furnace", "has wood", "has coal", "has iron"),
    "make a wooden sword": ("near table", "has wood"),
    "make a stone sword": ("near table", "has wood", "has stone"),
    "make an iron sword": ("near table", "near furnace", "has wood", "has coal", "has iron"),
}
"""Event -> what has to hold, as far as a caption tells; sleep is for the tired."""

REQUIRES: dict[str, tuple[str, ...]] = {
    "wake up": ("go to sleep",),
    "mine stone": ("make a wooden pickaxe",),
    "mine coal": ("make a wooden pickaxe",),
    "mine iron": ("make a stone pickaxe",),
    "mine diamond": ("make an iron pickaxe",),
    "eat a ripe plant": ("place a plant",),
    "eat a cow": ("attack a cow",),
    "defeat a zombie": ("attack a zombie",),
    "defeat a skeleton": ("attack a skeleton",),
    "place a stone": ("mine stone",),
    "place a table": ("chop a tree",),
    "place a furnace": ("place a table", "mine stone"),
    "place a plant": ("pick a sapling",),
    "make a wooden pickaxe": ("place a table",),
    "make a stone pickaxe": ("place a table", "mine stone"),
    "make an iron pickaxe": ("place a furnace", "mine coal", "mine iron"),
    "make a wooden sword": ("place a table",),
    "make a stone sword": ("place a table", "mine stone"),
    "make an iron sword": ("place a furnace", "mine coal", "mine iron"),
}
"""Event -> what an episode has to do before it."""

_OTHER_WORDS = {
    "collect_wood": "chop a tree",
    "collect_sapling": "pick a sapling",
    "collect_drink": "drink water",
    "eat_plant": "eat a ripe plant",
}

SAID: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("chop a tree", ("sees tree",)),
    ("place a table", ("has wood", "sees tree")),
    ("make a wooden pickaxe", ("has wood", "no pickaxe")),
    ("make a wooden sword", ("has wood", "no sword", "has wooden pickaxe")),
    ("make a stone pickaxe", ("has stone", "has wooden pickaxe")),
    ("make a stone sword", ("has stone", "has wooden sword")),
    ("make an iron pickaxe", ("has iron",)),
    ("mine stone", ("sees stone",)),
    ("mine coal", ("sees coal",)),
    ("mine iron", ("sees iron",)),
    ("mine diamond", ("sees diamond",)),
    ("place a furnace", ("has stone", "has coal")),
    ("drink water", ("sees water",)),
    ("drink water", ("is thirsty",)),
    ("eat a cow", ("sees cow",)),
    ("attack a cow", ("sees cow",)),
    ("attack a zombie", ("sees zombie",)),
    ("defeat a zombie", ("sees zombie",)),
    ("defeat a skeleton", ("sees skeleton",)),
    ("pick a sapling", ("sees plant",)),
    ("place a plant", ("has sapling",)),
    ("eat a ripe plant", ("sees plant", "is hungry")),
    ("place a stone", ("has stone", "sees zombie")),
    ("place a stone", ("has stone", "sees lava")),
    ("go to sleep", ("is tired",)),
    ("go to sleep", ("is hurt",)),
)
"""Written by hand; no language model was asked. After what the literature says of their suggestions: sensible in the
scene and deaf to the task. Mistakes on purpose: tools before the table that they need, stone and ore without a
pickaxe, drinking and fighting whenever it is possible, sleep for a wound; a table only while there is wood to fetch, a
sword only after the pickaxe, a sapling only where a plant is seen already."""


def captions(task: str | Sequence[str] = "all") -> Captioner:
    """``crafter_captions.captions``, with the rules of both providers.

    Args:
        task: as the environment's.
    """
    return words(task)._replace(rules={"oracle": oracle(task), "plausible": plausible()})


def oracle(task: str | Sequence[str] = "all") -> Rules:
    """Goals whose prerequisites hold: 1 for those that the task needs, 0 for all others that are possible.

    Args:
        task: as the environment's.
    """
    needed = leading_to(task)
    return rules((event, conditions, float(event in needed)) for event, conditions in POSSIBLE.items())


def plausible() -> Rules:
    """Goals that a language model might suggest, whatever the task; ``SAID``, a table written by hand."""
    return rules((event, conditions, 1.0) for event, conditions in SAID)


def leading_to(task: str | Sequence[str]) -> frozenset[str]:
    """Events that an episode needs for a task, those that do it included."""
    found: set[str] = set()
    left = [achieved_by(codes.ACHIEVEMENTS[place]) for place in codes.achievement_indices(task)]
    while left:
        event = left.pop()
        if event not in found:
            found.add(event)
            left += REQUIRES.get(event, ())
    return frozenset(found)


def achieved_by(achievement: str) -> str:
    """The event that unlocks an achievement."""
    if achievement in _OTHER_WORDS:
        return _OTHER_WORDS[achievement]
    words = achievement.replace("collect_", "mine_").replace("wood_", "wooden_").replace("_", " ")
    verb, _, thing = words.partition(" ")
    return next(event for event in EVENTS if event in (words, f"{verb} a {thing}", f"{verb} an {thing}"))


# --- words to bits ----------------------------------------------------------------------------------------------------


def rules(lines: Iterable[tuple[str, Sequence[str], float]]) -> Rules:
    """Rules from lines of (event, conditions that all have to hold, score).

    Raises:
        ValueError: a condition is none of those above.
    """
    rows = []
    for event, conditions, score in lines:
        for bits in product(*map(_bits, conditions)):
            mask, value = (int(np.bitwise_or.reduce([pair[i] for pair in bits])) for i in (0, 1))
            rows.append((mask, value, EVENTS.index(event), score))
    masks, values, events, scores = zip(*rows, strict=True)
    return Rules(
        np.asarray(masks, np.uint32),
        np.asarray(values, np.uint32),
        np.asarray(events, np.int32),
        np.asarray(scores, np.float32),
    )


def _bits(condition: str) -> list[tuple[int, int]]:
    """(mask, value) of each way in which a condition can hold."""
    verb, _, thing = condition.partition(" ")
    material, _, tool = thing.rpartition(" ")
    if verb == "sees" and thing in NEAR:
        return [_field(thing, 1, 1)]
    if verb == "sees" and thing in STATIONS:
        return [_field(thing, 1, 1), _field(thing, 2, 2)]
    if verb == "near" and thing in STATIONS:
        return [_field(thing, 2, 2)]
    if verb == "faces" and thing in FRONT:
        return [_field("front", 15, FRONT.index(thing))]
    if verb == "has" and thing in HELD:
        return [_field(f"held {thing}", 1, 1)]
    if verb == "has" and tool in TOOLS and material in MATERIALS:
        return [_field(tool, 3, level) for level in range(MATERIALS.index(material), len(MATERIALS))]
    if verb == "no" and thing in TOOLS:
        return [_field(thing, 3, 0)]
    if verb == "is" and thing in FEELINGS:
        return [_field(thing, 1, 1)]
    raise BadValue(f"there is no condition {condition!r}")


def _field(name: str, mask: int, value: int) -> tuple[int, int]:
    return mask << place_of(name), value << place_of(name)
