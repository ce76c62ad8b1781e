"""Captions of both Crafters, from views made by hand: numpy and jax agree, and words say what the bytes say."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmrl.envs import crafter_captions as captions
from llmrl.envs import crafter_codes as codes
from llmrl.envs.crafter_codes import ACTIONS, BLOCKS, ITEMS, MOBS, VITALS

CENTRE = codes.CELLS // 2
DO = ACTIONS.index("do")
RANDOM = np.random.default_rng(0)


def view(front="grass", who=None, facing=1, asleep=False, ground="grass", cells=None, **amounts):
    """What a player sees who faces right; ``cells`` is a dict from cell to block or creature."""
    seen = np.zeros(codes.NUM_BYTES, np.uint8)
    seen[codes.BLOCK] = BLOCKS.index(ground)
    seen[codes.VITAL] = 9
    seen[codes.FACING], seen[codes.ASLEEP] = facing, asleep
    at = CENTRE + [-1, 1, -9, 9][facing]
    for cell, thing in [(at, front), *([(at, who)] if who else []), *(cells or {}).items()]:
        if thing in MOBS:
            seen[codes.MOB][cell] |= 1 << MOBS.index(thing)
        else:
            seen[codes.BLOCK][cell] = BLOCKS.index(thing)
    for name, amount in amounts.items():
        numbers, names = (seen[codes.ITEM], ITEMS) if name in ITEMS else (seen[codes.VITAL], VITALS)
        numbers[names.index(name)] = amount
    return seen


def event_of(before, action, after):
    return captions.EVENTS[captions.host_event(before, ACTIONS.index(action), after)]


def described(seen):
    return captions.describe(int(captions.host_state_key(seen)))


def random_view():
    seen = np.zeros(codes.NUM_BYTES, np.uint8)
    seen[codes.BLOCK] = RANDOM.choice([2, 2, 2, 3, 4, 5, 7, 11, 12, 14, 15, 16], size=codes.CELLS)
    seen[codes.MOB] = RANDOM.choice([0, 0, 0, 0, 0, 1, 2, 4, 8], size=codes.CELLS)
    seen[codes.ITEM], seen[codes.VITAL] = RANDOM.integers(0, 3, 12), RANDOM.integers(0, 10, 4)
    seen[codes.FACING], seen[codes.ASLEEP] = RANDOM.integers(0, 4), RANDOM.integers(0, 8) == 0
    return seen


# --- both games share one function ------------------------------------------------------------------------------------


def test_jax_and_numpy_agree():
    before, after = (np.stack([random_view() for _ in range(512)]) for _ in range(2))
    after = np.where(RANDOM.random(before.shape) < 0.9, before, after)
    actions = RANDOM.choice([DO, DO, *range(17)], size=512).astype(np.int32)
    keys = jax.jit(jax.vmap(captions.state_key))(jnp.asarray(before))
    events = jax.jit(jax.vmap(captions.event))(*map(jnp.asarray, (before, actions, after)))
    assert keys.dtype == jnp.uint32 and events.dtype == jnp.int32
    np.testing.assert_array_equal(keys, [captions.host_state_key(seen) for seen in before])
    np.testing.assert_array_equal(
        events, [captions.host_event(*step) for step in zip(before, actions.tolist(), after, strict=True)]
    )
    np.testing.assert_array_equal(keys, captions.host_state_key(before))
    np.testing.assert_array_equal(events, captions.host_event(before, actions, after))
    assert len(np.unique(events)) > 5 and len(np.unique(keys)) > 400


def test_every_key_can_be_described_and_none_is_all_ones():
    for seen in [random_view() for _ in range(256)]:
        key = int(captions.host_state_key(seen))
        assert key != 0xFFFFFFFF and captions.describe(key).endswith(".")
    for key in (0xFFFFFFFF, -1, 2**32):
        with pytest.raises(ValueError, match=str(key)):
            captions.describe(key)


def test_captions_hold_together():
    words = captions.captions(("eat_cow", "place_table"))
    assert words.state_key is None and words.event is None  # a step brings them along
    assert "eat cow and to place table" in words.context
    assert len(set(words.events)) == len(words.events) == 27
    assert words.describe(int(captions.state_key(jnp.asarray(view(front="water"))))) == described(view(front="water"))


# --- states -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "says", "silent"),
    [
        (view(), "In front of the agent: grass. In view: nothing. It holds: nothing.", "feels"),
        (view("tree", facing=0), "In front of the agent: tree. In view: tree.", "stone"),
        (view("water", who="zombie"), "In front of the agent: zombie. In view: water, zombie.", "cow"),
        (view("sand", ground="path"), "In front of the agent: open ground. In view: nothing.", "sand"),
        (view("ripe plant"), "In front of the agent: ripe plant. In view: plant.", "asleep"),
        (view(asleep=True), "The agent is asleep.", "front"),
        (view(cells={0: "table"}), "In view: table. It holds", "reach"),
        (view(cells={CENTRE + 10: "table"}), "Within reach: table.", "furnace"),
        (view(cells={CENTRE - 8: "furnace", 0: "arrow"}), "In view: furnace. Within reach: furnace.", "arrow"),
        (view(wood=1, sapling=3, diamond=1), "It holds: wood, sapling.", "diamond"),
        (view(wood_pickaxe=1, stone_pickaxe=2, wood_sword=1), "It holds: stone pickaxe, wooden sword.", "iron"),
        (view(food=4, energy=0, health=5), "It feels hungry, tired.", "hurt"),
        (view(drink=0, health=1), "It feels hurt, thirsty.", "hungry"),
    ],
)
def test_a_state_in_words(seen, says, silent):
    assert says in described(seen) and silent not in described(seen)


def test_each_thing_in_view_has_a_bit_of_its_own():
    things = [*captions.NEAR, *captions.STATIONS]
    keys = [int(captions.host_state_key(view(cells={0: thing}))) for thing in things]
    assert len(set(keys)) == len(things)
    both = int(captions.host_state_key(view(cells={0: "tree", 1: "cow"})))
    alone = dict(zip(things, keys, strict=True))
    assert both == alone["tree"] | alone["cow"]


def test_the_corner_of_one_row_is_not_beside_the_next():
    for cell in range(codes.CELLS):
        row, column = cell // 9 - 3, cell % 9 - 4
        near = max(abs(row), abs(column)) == 1
        if (row, column) != (0, 0):
            assert ("reach" in described(view(front="sand", cells={cell: "table"}))) is near


# --- events -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "action", "after", "says"),
    [
        (view("tree"), "do", view("grass", wood=1), "chop a tree"),
        (view("tree", wood=9), "do", view("grass", wood=9), "chop a tree"),
        (view("tree"), "do", view("tree"), "do something else"),
        (view("tree", asleep=True), "do", view("grass", asleep=True), "do something else"),
        (view("stone"), "do", view("path", stone=1), "mine stone"),
        (view("stone"), "do", view("stone"), "do something else"),
        (view("coal"), "do", view("path", coal=1), "mine coal"),
        (view("iron"), "do", view("path", iron=1), "mine iron"),
        (view("diamond"), "do", view("path", diamond=1), "mine diamond"),
        (view("grass"), "do", view("grass", sapling=1), "pick a sapling"),
        (view("grass"), "do", view("grass"), "do something else"),
        (view("water"), "do", view("water"), "drink water"),
        (view("water", who="zombie"), "do", view("water", who="zombie"), "attack a zombie"),
        (view("ripe plant"), "do", view("plant"), "eat a ripe plant"),
        (view("plant"), "do", view("plant"), "do something else"),
        (view(who="cow"), "do", view(who="cow"), "attack a cow"),
        (view(who="cow"), "do", view(cells={CENTRE + 10: "cow"}), "attack a cow"),
        (view(who="cow"), "do", view(), "eat a cow"),
        (view(who="cow", food=3), "do", view(food=9, cells={CENTRE + 2: "cow"}), "eat a cow"),
        (view(who="zombie"), "do", view(cells={0: "zombie"}), "defeat a zombie"),
        (view(who="skeleton"), "do", view(), "defeat a skeleton"),
        (view(who="cow"), "right", view(), "do something else"),
        (view("grass", wood=2), "place_table", view("table"), "place a table"),
        (view("table", wood=2), "place_table", view("table", wood=2), "do something else"),
        (view("water", stone=1), "place_stone", view("stone"), "place a stone"),
        (view("grass", stone=1), "place_furnace", view("furnace"), "place a furnace"),
        (view("grass", sapling=1), "place_plant", view("plant"), "place a plant"),
        (view(wood=1), "make_wood_pickaxe", view(wood_pickaxe=1), "make a wooden pickaxe"),
        (view(wood=1), "make_wood_pickaxe", view(wood=1), "do something else"),
        (view(), "make_iron_sword", view(iron_sword=1), "make an iron sword"),
        (view(), "sleep", view(asleep=True), "go to sleep"),
        (view(asleep=True), "noop", view(), "wake up"),
        (view(asleep=True), "sleep", view(asleep=True), "do something else"),
    ],
)
def test_an_event_in_words(before, action, after, says):
    assert event_of(before, action, after) == says


def test_events_do_not_depend_on_where_one_faces():
    for facing in range(4):
        look = functools.partial(view, facing=facing)
        assert event_of(look("tree"), "do", look("grass")) == "chop a tree"
        assert event_of(look(who="cow"), "do", look(who="cow")) == "attack a cow"
