"""The original Crafter beside the compiled one: states are translated, and where the rules agree, so do the steps."""

import functools
import multiprocessing
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmrl.envs import crafter_captions as captions
from llmrl.envs import crafter_codes as codes
from llmrl.envs import crafter_host
from llmrl.envs.crafter_codes import ACHIEVEMENTS, ACTIONS, BLOCKS
from llmrl.envs.crafter_game import Rules, _blocks, make_game, observe, replica, ruled, started, unlocked
from llmrl.envs.processes import opened_processes

PLAIN = Rules()
DO, TABLE = ACTIONS.index("do"), ACTIONS.index("place_table")


@functools.cache
def template():
    return make_game()


@functools.cache
def world():
    return started(template(), 3)


def game_with(front=None, rules=PLAIN, alone=True, **amounts):
    """The one world, with something in front of the player, who faces right; alone of all creatures."""
    game = replica(ruled(replica(world()), rules))
    if alone:
        for thing in game._world.objects:
            if type(thing).__name__ in ("Cow", "Zombie", "Skeleton", "Arrow"):
                game._world.remove(thing)
    game._player.facing = (1, 0)
    if front is not None:
        game._world[target(game)] = front
    game._player.inventory.update(amounts)
    return game


def target(game):
    return tuple(int(a + b) for a, b in zip(game._player.pos, game._player.facing, strict=True))


def walked(steps, seed=0):
    game, random = replica(world()), np.random.default_rng(seed)
    for _ in range(steps):
        game.step(random.choice([1, 2, 3, 4, 5, 5, 5, 6]))
    return game


# --- translation ------------------------------------------------------------------------------------------------------


def craftax_world(game):
    """The same state in Craftax's terms, with as many creatures as there are."""
    state = pytest.importorskip("craftax.craftax_classic.envs.craftax_state")
    world, player = game._world, game._player
    blocks = _blocks(world)[world._mat_map].T.astype(np.int32)
    creatures = {name: [] for name in codes.MOBS}
    plants = np.zeros((10, 2), np.int32), np.zeros(10, np.int32), np.zeros(10, bool)
    for thing in world.objects:
        name, place = type(thing).__name__.lower(), (int(thing.pos[1]), int(thing.pos[0]))
        if name == "plant":
            blocks[place] = BLOCKS.index("ripe plant" if thing.ripe else "plant")
        elif name in codes.MOBS:
            creatures[name].append((place, int(thing.health)))

    def mobs(name, least):
        number = max(least, len(creatures[name]))
        position, health, mask = np.zeros((number, 2), np.int32), np.zeros(number, np.int32), np.zeros(number, bool)
        for i, (place, left) in enumerate(creatures[name]):
            position[i], health[i], mask[i] = place, left, True
        return state.Mobs(position, health, mask, np.zeros(number, np.int32))

    occupied = np.zeros(blocks.shape, bool)
    for place, _ in [*creatures["zombie"], *creatures["cow"], *creatures["skeleton"]]:
        occupied[place] = True
    translated = state.EnvState(
        map=blocks,
        mob_map=occupied,
        player_position=np.array(player.pos[::-1], np.int32),
        player_direction=np.int32(1 + [(-1, 0), (1, 0), (0, -1), (0, 1)].index(tuple(map(int, player.facing)))),
        **{f"player_{vital}": np.int32(player.inventory[vital]) for vital in codes.VITALS},
        is_sleeping=np.bool_(player.sleeping),
        player_recover=np.float32(player._recover),
        player_hunger=np.float32(player._hunger),
        player_thirst=np.float32(player._thirst),
        player_fatigue=np.float32(player._fatigue),
        inventory=state.Inventory(**{item: np.int32(player.inventory[item]) for item in codes.ITEMS}),
        zombies=mobs("zombie", 3),
        cows=mobs("cow", 3),
        skeletons=mobs("skeleton", 2),
        arrows=mobs("arrow", 3),
        arrow_directions=np.ones((3, 2), np.int32),
        growing_plants_positions=plants[0],
        growing_plants_age=plants[1],
        growing_plants_mask=plants[2],
        light_level=np.float32(game._world.daylight),
        achievements=unlocked(game),
        state_rng=None,
        timestep=np.int32(game._step),
    )
    return jax.tree.map(jnp.asarray, translated)


def craftax_seen(game):
    from llmrl.envs import craftax_classic

    return np.asarray(craftax_classic.observe(craftax_world(game)))


def test_both_games_show_a_state_alike():
    for steps in (0, 37, 74):
        game = walked(steps)
        np.testing.assert_array_equal(observe(game), craftax_seen(game))


@pytest.mark.parametrize("corner", [(0, 0), (63, 63), (0, 63), (62, 1)])
def test_at_the_edges_too(corner):
    game = game_with(alone=False)
    thing = game._world[corner][1]
    if thing is not None:
        game._world.remove(thing)
    game._world.move(game._player, corner)
    np.testing.assert_array_equal(observe(game), craftax_seen(game))
    edge = BLOCKS.index("the edge of the world")
    assert np.any(observe(game)[codes.BLOCK] == edge) and observe(game)[codes.BLOCK][codes.CELLS // 2] != edge


def test_everything_in_view_has_its_byte():
    from crafter import objects

    game = game_with("grass")
    place = target(game)
    for make, part, code in (
        (lambda: objects.Cow(game._world, place), codes.MOB, 1 << codes.MOBS.index("cow")),
        (lambda: objects.Zombie(game._world, place, game._player), codes.MOB, 1 << codes.MOBS.index("zombie")),
        (lambda: objects.Skeleton(game._world, place, game._player), codes.MOB, 1 << codes.MOBS.index("skeleton")),
        (lambda: objects.Arrow(game._world, place, (1, 0)), codes.MOB, 1 << codes.MOBS.index("arrow")),
        (lambda: objects.Plant(game._world, place), codes.BLOCK, BLOCKS.index("plant")),
    ):
        thing = make()
        game._world.add(thing)
        assert observe(game)[part][codes.CELLS // 2 + 1] == code
        np.testing.assert_array_equal(observe(game), craftax_seen(game))
        if part == codes.BLOCK:
            thing.grown = 1000
            assert observe(game)[part][codes.CELLS // 2 + 1] == BLOCKS.index("ripe plant")
        game._world.remove(thing)


# --- steps ------------------------------------------------------------------------------------------------------------

SAME_RULES = [
    ("noop", {}),
    ("left", {}),
    ("right", {"front": "tree"}),
    ("right", {"front": "sand"}),
    ("up", {}),
    ("down", {"food": 1, "drink": 0, "energy": 3}),
    ("do", {"front": "tree"}),
    ("do", {"front": "water", "drink": 3}),
    ("do", {"front": "stone"}),
    ("do", {"front": "stone", "wood_pickaxe": 1}),
    ("do", {"front": "coal", "wood_pickaxe": 1}),
    ("do", {"front": "iron", "wood_pickaxe": 1}),
    ("do", {"front": "iron", "stone_pickaxe": 1}),
    ("do", {"front": "diamond", "iron_pickaxe": 1}),
    ("do", {"front": "table"}),
    ("sleep", {"energy": 5}),
    ("sleep", {}),
    ("place_stone", {"front": "water", "stone": 2}),
    ("place_stone", {"front": "tree", "stone": 2}),
    ("place_table", {"front": "grass", "wood": 1}),
    ("place_table", {"front": "sand", "wood": 5}),
    ("place_furnace", {"front": "grass", "stone": 0}),
    ("place_plant", {"front": "grass", "sapling": 1}),
    ("place_plant", {"front": "sand", "sapling": 1}),
    ("make_wood_pickaxe", {"front": "table", "wood": 1}),
    ("make_wood_pickaxe", {"front": "grass", "wood": 1}),
    ("make_wood_sword", {"front": "table", "wood": 3}),
    ("make_stone_sword", {"front": "table", "wood": 1, "stone": 1}),
    ("make_stone_pickaxe", {"front": "table", "wood": 1}),
    ("make_iron_pickaxe", {"front": "table", "wood": 1, "coal": 1, "iron": 1, "stone": 1}),
]


@pytest.mark.slow
def test_where_the_rules_agree_so_do_the_steps():
    """Everything but creatures, which come and go by chance."""
    pytest.importorskip("craftax")
    from llmrl.envs import make
    from llmrl.envs.craftax_classic import CraftaxState

    games = [game_with(**state) for _, state in SAME_RULES]
    actions = [ACTIONS.index(action) for action, _ in SAME_RULES]
    worlds = jax.tree.map(lambda *x: jnp.stack(x), *map(craftax_world, games))
    states = CraftaxState(worlds, jnp.asarray(np.stack([observe(game) for game in games])))
    env = make("craftax_classic", aux=())
    keys = jax.random.split(jax.random.key(0), len(games))
    reached, results = jax.jit(jax.vmap(env.step))(keys, states, jnp.asarray(actions, jnp.int32))
    for i, (game, action) in enumerate(zip(games, actions, strict=True)):
        before = observe(game)
        game.step(action)
        ours, theirs = np.array(results.obs[i]), observe(game)
        ours[codes.MOB] = theirs[codes.MOB] = 0
        np.testing.assert_array_equal(ours, theirs, err_msg=str(SAME_RULES[i]))
        np.testing.assert_array_equal(reached.unlocked[i], unlocked(game), err_msg=str(SAME_RULES[i]))
        assert results.state_key[i] == captions.host_state_key(before)
        assert results.event[i] == captions.host_event(before, action, observe(game))
    assert len(np.unique(results.event)) > 12


@pytest.mark.parametrize(
    ("action", "state", "event", "achievement"),
    [
        ("do", {"front": "tree"}, "chop a tree", "collect_wood"),
        ("do", {"front": "water"}, "drink water", "collect_drink"),
        ("do", {"front": "iron", "stone_pickaxe": 1}, "mine iron", "collect_iron"),
        ("place_furnace", {"front": "grass", "stone": 4}, "place a furnace", "place_furnace"),
        ("place_furnace", {"front": "grass", "stone": 3}, "do something else", None),
        ("place_plant", {"front": "grass", "sapling": 1}, "place a plant", "place_plant"),
        ("make_wood_sword", {"front": "table", "wood": 1}, "make a wooden sword", "make_wood_sword"),
        ("noop", {}, "do something else", None),
    ],
)
def test_events_are_what_happened(action, state, event, achievement):
    game = game_with(**state)
    before = observe(game)
    game.step(ACTIONS.index(action))
    assert captions.EVENTS[captions.host_event(before, ACTIONS.index(action), observe(game))] == event
    assert [ACHIEVEMENTS[place] for place in np.flatnonzero(unlocked(game))] == ([achievement] if achievement else [])


# --- rules ------------------------------------------------------------------------------------------------------------


def with_cow(rules):
    from crafter import objects

    game = game_with("grass", rules)
    cow = objects.Cow(game._world, target(game))
    game._world.add(cow)
    return game, cow


@pytest.mark.parametrize(
    ("rules", "left", "eaten"),
    [(PLAIN, 2, False), (Rules(damage=5), 0, True), (Rules(first_hit=True), 2, True)],
)
def test_what_a_hit_does(rules, left, eaten):
    game, cow = with_cow(rules)
    game.step(DO)
    assert cow.health == left and cow.removed is (left == 0)
    assert unlocked(game)[ACHIEVEMENTS.index("eat_cow")] == eaten


@pytest.mark.parametrize(("price", "wood", "left"), [(2, 1, 1), (2, 2, 0), (1, 0, 0), (1, 1, 0), (1, 9, 8)])
def test_what_a_table_costs(price, wood, left):
    game = game_with("grass", Rules(table_wood=price), wood=wood)
    game.step(TABLE)
    assert (game._world[target(game)][0] == "table") is (wood >= price)
    assert game._player.inventory["wood"] == left
    blocked = game_with("water", Rules(table_wood=price), wood=wood)
    blocked.step(TABLE)
    assert blocked._player.inventory["wood"] == wood


# --- repeatable -------------------------------------------------------------------------------------------------------


def test_replicas_go_on_independently_and_alike():
    one, other, untouched = walked(20), walked(20), walked(20)
    assert one._world is not other._world
    for game in (one, other):
        for action in [1, 3, 5, 2, 5, 6] * 5:
            game.step(action)
    np.testing.assert_array_equal(one._world._obj_map > 0, other._world._obj_map > 0)
    np.testing.assert_array_equal(observe(one), observe(other))
    assert untouched._step == 20 and one._step == 50


def test_creatures_keep_the_order_in_which_they_came():
    """Python orders a set by addresses; what the package chooses from must not follow them."""
    game = walked(60)
    for _, things in game._world.chunks.items():
        assert not isinstance(things, set)
        assert [thing for thing in things if not thing.removed] == list(things)


@pytest.mark.parametrize("seconds", [0.0, 0.2])
def test_a_game_process_that_is_killed_before_or_while_it_is_asked_is_named(seconds):
    with opened_processes(functools.partial(crafter_host._make_answer, PLAIN), 1, "Crafter") as exchange:
        (process,) = multiprocessing.active_children()
        killing = threading.Timer(seconds, process.kill)
        killing.start()
        killing.join(None if seconds == 0.0 else 0.0)
        with pytest.raises(
            RuntimeError, match=f"^game process {process.pid}, which plays Crafter, was killed by SIGKILL"
        ):
            exchange("reset", [0], [0])
        killing.join()
