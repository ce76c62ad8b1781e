"""Craftax-Classic behind our protocol: tasks pay once, bytes equal Craftax's own features, ELLM's rules are ELLM's.

Two programs are compiled, one for each set of rules; everything else is their results.
"""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("craftax")

from llmrl.envs import craftax_classic as module
from llmrl.envs import crafter_captions as captions
from llmrl.envs import crafter_codes as codes
from llmrl.envs import crafter_goals, make
from llmrl.envs import crafter_qualities as qualities
from llmrl.envs.crafter_codes import ACHIEVEMENTS, ACTIONS, BLOCKS
from llmrl.nets import make_policy
from llmrl.ops.codes import decode
from llmrl.ops.rules import rule_scores
from llmrl.settings.errors import install

N, T = 4, 60
KEYS = jax.random.split(jax.random.key(0), N)
TASKS = ("collect_wood", "place_table")
NOOP, RIGHT, DO, SLEEP, TABLE = (ACTIONS.index(name) for name in ("noop", "right", "do", "sleep", "place_table"))
GAME = make("craftax_classic", aux=("hints", "distracting"), task=TASKS, horizon=T - 20, terminate_on_success=False)
ELLM = make("craftax_classic", aux="harmful", task="eat_cow", first_hit=True, table_wood=1)


@functools.cache
def stepping(one):
    return jax.jit(jax.vmap(one))


@functools.cache
def fresh():
    return jax.jit(lambda keys: jax.lax.map(GAME.reset, keys))(KEYS)


def step(env, states, actions):
    actions = jnp.broadcast_to(jnp.asarray(actions, jnp.int32), (N,))
    return stepping(env.step)(KEYS, states, actions)


def in_front(states, block=None, cow_health=None, facing=RIGHT, **inventory):
    """The same worlds with something before the player, who stands in the middle of the map and faces right."""
    world = states.world
    row, column = 32, 33
    changes = {"player_direction": jnp.full((N,), facing, jnp.int32)}
    if block is not None:
        changes["map"] = world.map.at[:, row, column].set(BLOCKS.index(block))
    if cow_health is not None:
        cows = world.cows
        changes["map"] = world.map.at[:, row, column].set(BLOCKS.index("grass"))
        changes["mob_map"] = world.mob_map.at[:, row, column].set(True)
        changes["cows"] = cows.replace(
            position=cows.position.at[:, 0].set(jnp.array([row, column])),
            health=cows.health.at[:, 0].set(cow_health),
            mask=cows.mask.at[:, 0].set(True),
        )
    items = {item: jnp.full((N,), number, jnp.int32) for item, number in inventory.items()}
    world = world.replace(**changes, inventory=world.inventory.replace(**items))
    return module.CraftaxState(world, jax.vmap(module.observe)(world))


@functools.cache
def walk():
    """A walk by chance, with much chopping: states before and after, and what the steps gave, [T, N]."""
    random = np.random.default_rng(1)
    states = in_front(fresh()[0], block="tree")
    before, after, results, actions = [], [], [], []
    for _ in range(T):
        chosen = random.choice([1, 2, 3, 4, DO, DO, DO, DO, SLEEP, TABLE], size=N).astype(np.int32)
        reached, result = step(GAME, states, chosen)
        before.append(states)
        after.append(reached)
        results.append(result)
        actions.append(chosen)
        states = reached
    stacked = [jax.tree.map(lambda *x: np.stack(x), *trees) for trees in (before, after, results)]
    return (*stacked, np.stack(actions))


# --- observation ------------------------------------------------------------------------------------------------------


def test_bytes_are_craftaxs_own_observation():
    """Feature by feature; only creatures may differ, where Craftax's view forgets one (see ``observe``)."""
    _, after, results, _ = walk()
    game, _ = module._game(1)
    worlds = jax.tree.map(lambda x: x[::12].reshape(-1, *x.shape[2:]), after.world)
    with jax.numpy_dtype_promotion("standard"):
        theirs = np.asarray(jax.jit(jax.vmap(game.get_obs))(worlds))
    ours = np.asarray(decode(codes.ENCODING, jnp.asarray(results.obs[::12].reshape(-1, codes.NUM_BYTES))))
    cells = theirs[:, : 63 * 21].reshape(-1, 63, 21)
    np.testing.assert_array_equal(ours[:, : 63 * 17], cells[..., :17].reshape(len(cells), -1))
    creatures = ours[:, 63 * 17 : 63 * 21].reshape(-1, 63, 4)
    assert np.all(creatures >= cells[..., 17:]) and np.sum(creatures != cells[..., 17:]) <= 0.05 * creatures.sum()
    # Theirs have 16 bits, and light is a byte here.
    np.testing.assert_allclose(ours[:, 63 * 21 :], theirs[:, 63 * 21 :], atol=0.5 / 255 + 1e-5)


def test_a_scan_that_carries_nothing_is_done_side_by_side_and_every_other_as_ever():
    xs = jnp.arange(12.0).reshape(4, 3)

    def seen(nothing, x):
        return None, (jnp.sum(x), x > 4)

    def carried(total, x):
        return total + x, total

    def loops(*args):
        return str(jax.make_jaxpr(lambda xs: module.quick_scan(*args, xs))(xs)).count("scan[")

    assert loops(seen, None) == 0 and loops(carried, jnp.zeros(3)) == 1
    for args in ((seen, None, xs), (carried, jnp.zeros(3), xs)):
        jax.tree.map(np.testing.assert_array_equal, module.quick_scan(*args), jax.lax.scan(*args))


def test_what_is_replaced_while_craftax_is_traced_does_not_change_the_game(monkeypatch):
    before, after, _, actions = walk()
    monkeypatch.setattr(module, "INSTEAD", {})
    plain, states = make("craftax_classic", task=TASKS, horizon=T - 20), jax.tree.map(lambda x: x[0], before)
    for t in range(T):
        states, _ = step(plain, states, actions[t])
        jax.tree.map(np.testing.assert_array_equal, states, jax.tree.map(lambda x, t=t: x[t], after))


def test_every_creature_in_view_is_seen():
    _, after, results, _ = walk()
    for bit, kind in enumerate((after.world.zombies, after.world.cows, after.world.skeletons, after.world.arrows)):
        place = kind.position - after.world.player_position[:, :, None] + np.array([3, 4])
        for t, n, i in np.argwhere(kind.mask & np.all((place >= 0) & (place < codes.VIEW), axis=-1)):
            row, column = place[t, n, i]
            assert results.obs[t, n, codes.MOB][row * 9 + column] >> bit & 1


def test_compact_and_one_hot_make_the_same_policy():
    plain = module.craftax_classic(observation="one_hot")
    assert plain.spec.obs_shape == (1345,) and not plain.spec.encoding
    compact_policy, plain_policy = make_policy(GAME.spec, (8,)), make_policy(plain.spec, (8,))
    params = compact_policy.init(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, params, plain_policy.init(jax.random.key(0)))
    seen = fresh()[1]
    expanded = decode(codes.ENCODING, seen)
    np.testing.assert_array_equal(
        compact_policy.distribution(params, seen).logits, plain_policy.distribution(params, expanded).logits
    )
    state, obs = jax.eval_shape(plain.reset, KEYS[0])
    assert obs.dtype == jnp.float32 and state.seen.dtype == jnp.uint8


def test_an_episode_starts_at_time_zero_on_grass_with_nothing():
    states, obs = fresh()
    assert obs.shape == (N, codes.NUM_BYTES) and obs.dtype == jnp.uint8
    assert np.all(states.time == 0) and not np.any(states.unlocked)
    centre = np.asarray(obs)[:, codes.CELLS // 2]
    assert np.all(centre == BLOCKS.index("grass")) and not np.any(np.asarray(obs)[:, codes.ITEM])
    assert len(np.unique(np.asarray(states.world.map).reshape(N, -1), axis=0)) == N
    np.testing.assert_array_equal(obs, states.seen)


# --- tasks ------------------------------------------------------------------------------------------------------------


def test_a_task_pays_once_an_episode():
    before, after, results, _ = walk()
    chosen = [ACHIEVEMENTS.index(name) for name in TASKS]
    new = after.world.achievements[..., chosen] & ~before.world.achievements[..., chosen]
    np.testing.assert_array_equal(results.reward, new.sum(-1))
    assert np.all(results.reward.sum(0) <= 2) and results.reward.sum() >= N  # the tree in front is soon wood
    np.testing.assert_array_equal(results.success, after.world.achievements[..., chosen].all(-1))


def test_sources_pay_once_for_what_they_name():
    before, after, results, _ = walk()
    for source, names in enumerate((qualities.HELPFUL, qualities.DISTRACTING)):
        chosen = [ACHIEVEMENTS.index(name) for name in names]
        new = after.world.achievements[..., chosen] & ~before.world.achievements[..., chosen]
        np.testing.assert_array_equal(results.aux[..., source], new.sum(-1))
    assert results.aux[..., 0].sum() >= N and results.aux[..., 1].sum() > 0


def test_ends():
    """By death, or by time; success ends nothing where it was told not to."""
    _, after, results, _ = walk()
    np.testing.assert_array_equal(results.terminated, after.world.player_health <= 0)
    np.testing.assert_array_equal(results.truncated, np.repeat(after.world.timestep[:, :1] >= T - 20, N, 1))
    assert results.truncated.any() and not results.truncated.all()
    lava = in_front(fresh()[0], block="lava")
    _, result = step(GAME, lava, RIGHT)
    assert np.all(result.terminated) and not np.any(result.truncated)


def test_captions_are_those_of_what_was_seen():
    before, after, results, actions = walk()
    for t, n in np.ndindex(T, N):
        assert results.state_key[t, n] == captions.host_state_key(before.seen[t, n])
        assert results.event[t, n] == captions.host_event(before.seen[t, n], int(actions[t, n]), after.seen[t, n])


def test_events_are_what_happened():
    """First unlocks in the game's own book-keeping and events agree."""
    before, after, results, _ = walk()
    named = {
        "collect_wood": "chop a tree",
        "collect_sapling": "pick a sapling",
        "collect_drink": "drink water",
        "place_table": "place a table",
    }
    for achievement, event in named.items():
        place = ACHIEVEMENTS.index(achievement)
        new = after.world.achievements[..., place] & ~before.world.achievements[..., place]
        assert np.all(results.event[new] == captions.EVENTS.index(event))
    assert np.all(after.world.achievements[-1, :, ACHIEVEMENTS.index("collect_wood")])
    chopped = results.event == captions.EVENTS.index("chop a tree")
    wood = after.world.inventory.wood - before.world.inventory.wood
    np.testing.assert_array_equal(wood == 1, chopped)


def test_whatever_happened_was_possible():
    """By the oracle's rules; sleep it allows to the tired alone."""
    _, _, results, _ = walk()
    score, _ = rule_scores(crafter_goals.oracle("all"), jnp.asarray(results.state_key), jnp.asarray(results.event))
    free = np.isin(results.event, [captions.EVENTS.index(name) for name in ("do something else", "go to sleep")])
    assert np.all(np.asarray(score)[~free] == 1.0) and np.sum(~free) > 5


# --- ELLM's rules -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_table_for_one_wood():
    for wood, left in ((0, 0), (1, 0), (2, 1), (9, 8)):
        reached, result = step(ELLM, in_front(fresh()[0], block="grass", wood=wood), TABLE)
        placed = np.asarray(reached.seen)[:, codes.CELLS // 2 + 1] == BLOCKS.index("table")
        assert np.all(placed == (wood > 0)) and np.all(reached.world.inventory.wood == left)
        assert np.all(result.aux == (-1.0 if wood else 0.0))
    for wood in (0, 1, 9):  # no room for a table
        reached, _ = step(ELLM, in_front(fresh()[0], block="water", wood=wood), TABLE)
        assert np.all(reached.world.inventory.wood == wood)
    reached, _ = step(ELLM, in_front(fresh()[0], block="tree", wood=1), DO)
    assert np.all(reached.world.inventory.wood == 2)


def test_the_game_takes_two():
    for wood, left in ((1, 1), (2, 0)):
        reached, result = step(GAME, in_front(fresh()[0], block="grass", wood=wood), TABLE)
        assert np.all(reached.world.inventory.wood == left) and np.all(result.reward == float(wood == 2))


@pytest.mark.slow
def test_the_first_hit_counts():
    states, result = step(ELLM, in_front(fresh()[0], cow_health=3), DO)
    assert np.all(result.reward == 1) and np.all(result.success) and np.all(result.terminated)
    assert np.all(np.asarray(states.world.cows.health)[:, 0] == 2)
    assert np.all(result.event == captions.EVENTS.index("attack a cow"))
    _, again = step(ELLM, in_front(states, cow_health=2), DO)
    assert np.all(again.reward == 0) and np.all(again.success)
    _, missed = step(ELLM, in_front(fresh()[0], cow_health=3), NOOP)
    assert np.all(missed.reward == 0) and not np.any(missed.success)


def test_otherwise_a_cow_has_to_be_eaten():
    cow = ACHIEVEMENTS.index("eat_cow")
    states, hit = step(GAME, in_front(fresh()[0], cow_health=3), DO)
    assert not np.any(states.unlocked[:, cow]) and np.all(hit.event == captions.EVENTS.index("attack a cow"))
    states, eaten = step(GAME, in_front(fresh()[0], cow_health=1), DO)
    assert np.all(states.unlocked[:, cow]) and np.all(eaten.event == captions.EVENTS.index("eat a cow"))


def test_nothing_survives_damage_five():
    _, params = module._game(5)
    assert params.zombie_health == params.cow_health == params.skeleton_health == 1


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"task": "collect_woods"}, "unknown task 'collect_woods'; nearest: 'collect_wood'"),
        ({"horizon": 0}, "horizon must be a positive integer"),
        ({"steps_per_reset": 0}, "steps_per_reset must be"),
        ({"damage": 3}, "damage must be 1 .* got 3"),
        ({"table_wood": 0}, "table_wood must be 2 .* got 0"),
        ({"observation": "compakt"}, "nearest: 'compact'"),
        ({"aux": "hint"}, "nearest: 'hints'"),
    ],
)
def test_a_wrong_setting_is_explained(kwargs, says):
    with pytest.raises(ValueError, match=says):
        make("craftax_classic", **{"aux": (), **kwargs})


def test_without_the_package_the_error_says_how_to_get_it():
    code = (
        "import sys; sys.modules['craftax'] = None\n"
        "from llmrl.envs import make\n"
        "make('gridworld')\n"
        "make('craftax_classic', aux=())\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert install("craftax") in done.stderr.splitlines()[-1]


def test_textures_would_not_be_kept_among_the_packages():
    from craftax.craftax_classic import constants

    assert not constants.TEXTURE_CACHE_FILE.startswith(os.path.dirname(constants.__file__))
