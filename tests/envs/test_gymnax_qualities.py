"""Help of every quality for gymnax's tasks: what each source says, on one random play of every task."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmrl.envs import AUX_SOURCES, make
from llmrl.envs import gymnax_qualities as room
from llmrl.envs.once import PaidState
from llmrl.studies.suite_tasks import QUALITIES
from llmrl.types import Discrete

TASKS = tuple(room.HELP)
NUM_ENVS, NUM_STEPS = 16, 128
KEY = jax.random.key(3)


ON_PURPOSE = {
    "MountainCar-v0": lambda state: jnp.where(state.velocity < 0.0, 0, 2),
    "Acrobot-v1": lambda state: jnp.where(state.velocity_2 < 0.0, 0, 2),
    "Freeway-MinAtar": lambda state: jnp.where(state.cars[0, 2] > 0, room.UP, 2),
}
"""Play that reaches the sub-goal."""


class Played(NamedTuple):
    """States before and after each step, [t, n]; actions; sources by name; where episodes ended."""

    states: object
    actions: np.ndarray
    next_states: object
    aux: dict
    ends: np.ndarray


@functools.cache
def played(task):
    """Random play, or what is needed to get anywhere."""
    names = tuple(AUX_SOURCES[task])
    env = make(task, aux=names)

    def act(key, state):
        if task in ON_PURPOSE:
            return ON_PURPOSE[task](state)
        if isinstance(env.spec.action, Discrete):
            return jax.random.randint(key, (), 0, env.spec.action.num)
        return jax.random.uniform(key, (env.spec.action.dim,), minval=-1.0, maxval=1.0)

    def step(carry, key):
        state, _ = carry
        action = act(key, state.state)
        after, result = env.step(key, state, action)
        ended = result.terminated | result.truncated
        fresh = env.reset(key)
        following = jax.tree.map(lambda a, b: jnp.where(ended, a, b), fresh, (after, result.obs))
        return following, (state.state, action, after.state, result.aux, ended)

    def play(key):
        return jax.lax.scan(step, env.reset(key), jax.random.split(key, NUM_STEPS))[1]

    found = jax.jit(jax.vmap(play, out_axes=1))(jax.random.split(KEY, NUM_ENVS))
    states, actions, after, aux, ends = jax.tree.map(np.asarray, found)
    return Played(states, actions, after, dict(zip(names, np.moveaxis(aux, -1, 0), strict=True)), ends)


def by_name(task, quality, **options):
    """A source, of many steps at once."""
    return jax.vmap(AUX_SOURCES[task][quality](**options))


def some(states, seed):
    """64 of the states on the way, by chance."""
    chosen = np.random.default_rng(seed).integers(0, NUM_STEPS, 64), np.arange(64) % NUM_ENVS
    return jax.tree.map(lambda x: jnp.asarray(x[chosen]), states)


@pytest.mark.parametrize("task", TASKS)
def test_every_quality_is_made_of_fair_as_its_name_says(task):
    play = played(task)
    aux = play.aux
    fair, half = aux["fair"], aux["half_right"]
    assert set(aux) == set(QUALITIES) and np.isfinite(np.stack(list(aux.values()))).all()
    assert (np.abs(fair) > 0).mean() > 0.05
    np.testing.assert_array_equal(aux["harmful"], -fair)
    np.testing.assert_array_equal(aux["farmable"], np.maximum(fair, 0.0))
    np.testing.assert_array_equal(aux["late_wrong"], fair)  # training turns it
    np.testing.assert_allclose(aux["loud"], -100.0 * fair, rtol=1e-6)
    np.testing.assert_allclose(aux["faint"], 0.001 * fair, rtol=1e-5)
    first = jax.vmap(jax.vmap(room.HELP[task].first_half))(play.states)
    np.testing.assert_array_equal(half, np.where(first, fair, -fair))
    assert 0.05 < first.mean() < 0.95


@pytest.mark.parametrize("task", TASKS)
def test_the_sub_goal_is_paid_once_per_episode(task):
    play, help = played(task), room.HELP[task]
    reached = np.asarray(jax.vmap(jax.vmap(help.sub_goal))(play.next_states))
    paid = np.zeros(NUM_ENVS, bool)
    for t in range(NUM_STEPS):
        np.testing.assert_array_equal(play.aux["rare"][t], np.where(reached[t] & ~paid, help.rare, 0.0))
        paid = (paid | reached[t]) & ~play.ends[t]
    assert reached.any() or task == "SpaceInvaders-MinAtar"  # by chance not within so many steps


@pytest.mark.parametrize("task", TASKS)
def test_fair_adds_up_to_nothing_on_a_loop_and_farmable_does_not(task):
    """The way over a third state is worth as much as the direct one, and the way back costs it."""
    play = played(task)
    a, b, c = (some(play.states, seed) for seed in range(3))
    if task == "Freeway-MinAtar":  # apart from the last row, whose crossing begins at the bottom again
        a, b, c = (state.replace(pos=jnp.maximum(state.pos, 2)) for state in (a, b, c))
    action = jnp.asarray(play.actions[0, :1].repeat(64, 0))
    fair, farmable = (by_name(task, quality) for quality in ("fair", "farmable"))
    there, back = fair(a, action, b), fair(b, action, a)
    np.testing.assert_allclose(there + fair(b, action, c), fair(a, action, c), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(there, -back, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(farmable(a, action, b) + farmable(b, action, a), jnp.abs(there), rtol=1e-5, atol=1e-5)
    assert jnp.max(jnp.abs(there)) > 0


@pytest.mark.parametrize("task", TASKS)
def test_useless_is_a_fixed_random_function_of_state_and_action(task):
    play, size = played(task), room.HELP[task].useless
    a, b = (some(play.states, seed) for seed in range(2))
    actions = jnp.asarray(play.actions.reshape(-1, *play.actions.shape[2:])[:64])
    one, other = (by_name(task, "useless", seed=seed) for seed in (0, 1))
    values = one(a, actions, b)
    np.testing.assert_array_equal(values, one(a, actions, a))
    assert jnp.mean(values == other(a, actions, b)) < 0.1 and len(np.unique(values)) > 8
    assert jnp.max(jnp.abs(play.aux["useless"])) <= size < 3 * np.std(play.aux["useless"])


# --- what fair goes by ------------------------------------------------------------------------------------------------


def rolled(task, action, num_steps=40, **at):
    """States of gymnax's own physics under one action, from a state with these numbers."""
    env = make(task, aux=())
    start = env.reset(KEY)[0].replace(**{name: jnp.asarray(x, jnp.float32) for name, x in at.items()})

    def step(state, _):
        after, _ = env.step(KEY, state, action)
        return after, state

    return jax.jit(lambda state: jax.lax.scan(step, state, None, num_steps)[1])(start)


@pytest.mark.parametrize(
    ("task", "energy", "idle", "at"),
    [
        ("MountainCar-v0", room.car_energy, jnp.asarray(1), {"position": -0.8, "velocity": 0.0}),
        ("Acrobot-v1", room.acrobot_energy, jnp.asarray(1), {"joint_angle1": 0.8, "joint_angle2": -0.4}),
        ("Pendulum-v1", room.pendulum_energy, jnp.zeros(1), {"theta": 2.0, "theta_dot": 0.0}),
    ],
)
def test_energy_is_what_physics_without_a_push_keep(task, energy, idle, at):
    """Up to the error of their large steps, which is small beside how height and speed change into each other."""
    states = rolled(task, idle, **at)
    height = jax.vmap(lambda s: energy(s.replace(**dict.fromkeys(SPEEDS[task], jnp.zeros(())))))(states)
    assert np.ptp(jax.vmap(energy)(states)) < 0.2 * np.ptp(height)


SPEEDS = {"MountainCar-v0": ("velocity",), "Acrobot-v1": ("velocity_1", "velocity_2"), "Pendulum-v1": ("theta_dot",)}


def test_energy_is_1_where_a_thing_stands_at_rest_and_0_or_less_where_it_hangs():
    still = {task: make(task, aux=()).reset(KEY)[0].replace(**dict.fromkeys(SPEEDS[task], 0.0)) for task in SPEEDS}
    car, acrobot, pendulum = still.values()
    found = [room.car_energy(car.replace(position=x)) for x in (-np.pi / 6, np.pi / 6)]
    found += [room.acrobot_energy(acrobot.replace(joint_angle1=x, joint_angle2=0.0)) for x in (0.0, np.pi)]
    found += [room.pendulum_energy(pendulum.replace(theta=x)) for x in (np.pi, 0.0)]
    np.testing.assert_allclose(found, [0, 1, 0, 1, -1, 1], atol=1e-6)


def test_ways_through_the_four_rooms_are_the_shortest():
    """Neighbours are one step apart, and a step nearer is always there, until the goal is reached."""
    steps = room.steps_between()
    free = np.argwhere(steps[np.arange(13)[:, None], np.arange(13), np.arange(13)[:, None], np.arange(13)] == 0)
    assert len(free) == 104 and steps[4, 1, 8, 9] == 14
    np.testing.assert_array_equal(steps, np.transpose(steps, (2, 3, 0, 1)))
    for row, column in free:
        around = np.min([steps[row + i, column + j] for i, j in ((-1, 0), (1, 0), (0, -1), (0, 1))], axis=0)
        here = steps[row, column]
        there = (here > 0) & (here < 100)
        np.testing.assert_array_equal(around[there] + 1, here[there])
    assert np.sum(steps < 100) == len(free) ** 2


def test_every_row_of_a_crossing_is_paid_and_a_car_costs_what_was_gained():
    state = make("Freeway-MinAtar", aux=()).reset(KEY)[0].replace(move_timer=jnp.asarray(0))
    at = lambda row: state.replace(pos=jnp.asarray(row))  # noqa: E731
    fair, up = AUX_SOURCES["Freeway-MinAtar"]["fair"](magnitude=1.0), jnp.asarray(room.UP)
    rows = [fair(at(row), up, at(row - 1 if row > 1 else 9)) for row in range(9, 0, -1)]
    np.testing.assert_array_equal(rows, np.ones(9))
    assert fair(at(4), up, at(9)) == -5 and fair(at(1), jnp.asarray(0), at(9)) == -8


def test_gold_draws_and_an_enemy_repels():
    state = make("Asterix-MinAtar", aux=()).reset(KEY)[0].replace(player_x=jnp.asarray(5), player_y=jnp.asarray(5))
    fair, stay = AUX_SOURCES["Asterix-MinAtar"]["fair"](magnitude=1.0), jnp.asarray(0)
    right = lambda s: s.replace(player_x=s.player_x + 1)  # noqa: E731
    gold, enemy, far = (state.replace(entities=state.entities.at[2].set(jnp.asarray(row))) for row in ENTITIES)
    assert [fair(s, stay, right(s)) for s in (state, gold, enemy, far)] == [0, 1, -1, 0]


ENTITIES = ([8, 5, 0, 1, 1], [8, 5, 0, 0, 1], [9, 1, 0, 0, 1])
"""Gold and an enemy three cells to the right of the player, and an enemy far off: x, y, to the right, gold, there."""


def test_a_cannon_is_drawn_below_aliens_and_out_of_a_bullets_way():
    state = make("SpaceInvaders-MinAtar", aux=()).reset(KEY)[0].replace(pos=jnp.asarray(0))  # aliens: columns 2 to 7
    fair, stay = AUX_SOURCES["SpaceInvaders-MinAtar"]["fair"](magnitude=1.0), jnp.asarray(0)
    right = lambda s: s.replace(pos=s.pos + 1)  # noqa: E731
    shot_at = state.replace(e_bullet_map=state.e_bullet_map.at[6, 0].set(1.0))
    assert [fair(s, stay, right(s)) for s in (state, shot_at, right(right(state)))] == [1, 3, 0]


def test_a_state_that_remembers_what_was_paid_goes_on_as_it_would_without():
    env, plain = make("Catch-bsuite", aux="rare"), make("Catch-bsuite", aux=())
    state, other = env.reset(KEY)[0], plain.reset(KEY)[0]
    assert isinstance(state, PaidState) and not isinstance(make("Catch-bsuite", aux="fair").reset(KEY)[0], PaidState)
    for action in (0, 2, 1, 1):
        state, _ = env.step(KEY, state, jnp.asarray(action))
        other, _ = plain.step(KEY, other, jnp.asarray(action))
    jax.tree.map(np.testing.assert_array_equal, state.state, other)
