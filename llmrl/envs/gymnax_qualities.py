"""Sources of every quality for tasks of gymnax, one row each (``llmrl.envs.qualities``); states are gymnax's own.

Physics are those of gymnax's default parameters. Of these, MountainCar-v0 is a ``development`` task of the no-regret
suite; the others are ``report`` tasks, on which no setting is ever chosen.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from llmrl.envs.base import AuxFunction
from llmrl.envs.qualities import Help, gain, sources_of
from llmrl.types import EnvState

# --- classic control --------------------------------------------------------------------------------------------------


def car_energy(state: EnvState) -> Float[Array, ""]:
    """Energy of MountainCar's car, 0 at rest in the valley and 1 at rest on the hill: its height is sin(3 x) / 3."""
    return (jnp.sin(3.0 * state.position) + 1.0) / 2.0 + 300.0 * jnp.square(state.velocity)


def acrobot_energy(state: EnvState) -> Float[Array, ""]:
    """Energy of Acrobot, 0 where it hangs at rest and 1 where it stands at rest.

    Reference: Sutton and Barto (1998), "Reinforcement learning", section 11.3, with the inertia of both links about
    their centres, 1.
    """
    first, second = state.velocity_1, state.velocity_2
    d2 = 1.25 + 0.5 * jnp.cos(state.joint_angle2)
    d1 = 0.25 + 1.0 + d2 + 0.5 * jnp.cos(state.joint_angle2) + 1.0
    kinetic = 0.5 * d1 * jnp.square(first) + d2 * first * second + 0.5 * 1.25 * jnp.square(second)
    height = 1.5 * jnp.cos(state.joint_angle1) + 0.5 * jnp.cos(state.joint_angle1 + state.joint_angle2)
    return (kinetic - 9.8 * height) / 39.2 + 0.5


def acrobot_height(state: EnvState) -> Float[Array, ""]:
    """Height of the tip above the joint that is held, from -2 to 2; the task asks for 1."""
    return -jnp.cos(state.joint_angle1) - jnp.cos(state.joint_angle1 + state.joint_angle2)


def pendulum_energy(state: EnvState) -> Float[Array, ""]:
    """Energy of Pendulum, -1 where it hangs at rest and 1 where it stands at rest."""
    return jnp.square(state.theta_dot) / 30.0 + jnp.cos(state.theta)


def _nearly_up(state: EnvState) -> Float[Array, ""]:
    """How high the pendulum is, less what its energy lacks or exceeds; from -2 where it hangs to 1 where it stands."""
    return jnp.cos(state.theta) - 0.5 * jnp.abs(pendulum_energy(state) - 1.0)


def _reach(state: EnvState) -> Float[Array, ""]:
    """Distance from Reacher's hand to its goal."""
    hand = jnp.stack([jnp.sum(jnp.cos(state.angles)), jnp.sum(jnp.sin(state.angles))])
    return jnp.linalg.norm(hand - state.goal_xy)


# --- grids ------------------------------------------------------------------------------------------------------------


@functools.cache
def steps_between() -> Int[np.ndarray, "13 13 13 13"]:
    """Steps from each cell of the four rooms to each other, by the shortest way; 100 from and to a wall."""
    from gymnax.environments.misc.rooms import four_rooms_map

    free = np.array([[letter == " " for letter in row] for row in four_rooms_map.split("\n")[1:]])
    steps = np.full(free.shape * 2, 100)
    cells = np.argwhere(free)
    steps[cells[:, 0], cells[:, 1], cells[:, 0], cells[:, 1]] = 0
    for _ in range(len(cells)):
        nearer = np.min([np.roll(steps, shift, axis) for axis in (0, 1) for shift in (-1, 1)], axis=0) + 1
        steps = np.where(free[:, :, None, None], np.minimum(steps, nearer), 100)
    return steps


def _from_goal(state: EnvState) -> Int[Array, ""]:
    return jnp.asarray(steps_between())[state.pos[0], state.pos[1], state.goal[0], state.goal[1]]


def _off(a: Callable[[EnvState], Array], b: Callable[[EnvState], Array]) -> AuxFunction:
    """How many cells nearer two of the state's numbers come."""
    return gain(lambda state: -jnp.abs(a(state) - b(state)))


# --- MinAtar ----------------------------------------------------------------------------------------------------------

UP = 1
"""Freeway's action, in the minimal set."""


def _crossing(state: EnvState, action: Array, next_state: EnvState) -> Float[Array, ""]:
    """Rows up the road in Freeway. The last row is one, too, though the next crossing starts at the bottom."""
    across = (state.pos == 1) & (action == UP) & (state.move_timer == 0)
    return jnp.where(across, 1.0, (state.pos - next_state.pos).astype(jnp.float32))


def _to_gold(state: EnvState) -> Int[Array, ""]:
    return _nearest(state, gold=True, most=6)


def _past_enemies(state: EnvState) -> Int[Array, ""]:
    """Asterix: nearer to gold is better, up to 6 cells; nearer to an enemy is worse within 3."""
    return _nearest(state, gold=False, most=3) - _to_gold(state)


def _nearest(state: EnvState, *, gold: bool, most: int) -> Int[Array, ""]:
    x, y, _, is_gold, there = state.entities.T
    steps = jnp.abs(x - state.player_x) + jnp.abs(y - state.player_y)
    return jnp.min(jnp.where((there == 1) & (is_gold == int(gold)), steps, most), initial=most)


def _covered(state: EnvState) -> Float[Array, ""]:
    """Space Invaders: columns to the nearest one with an alien, and 2 for a bullet that comes down on the cannon
    within 4 rows; both count against the state."""
    columns = jnp.abs(jnp.arange(10) - state.pos)
    to_alien = jnp.min(jnp.where(jnp.any(state.alien_map > 0, axis=0), columns, 9))
    in_danger = jnp.any(state.e_bullet_map[5:, state.pos] > 0)
    return -to_alien.astype(jnp.float32) - jnp.where(in_danger, 2.0, 0.0)


# --- the table --------------------------------------------------------------------------------------------------------

HELP: dict[str, Help] = {
    "MountainCar-v0": Help(
        progress=gain(car_energy),
        sub_goal=lambda s: s.position >= 0.0,
        first_half=lambda s: s.position < -0.5236,  # the bottom of the valley
        cell=lambda s: (10.0 * s.position, 100.0 * s.velocity),
        fair=20.0,
        rare=20.0,
        useless=1.0,
    ),
    "Acrobot-v1": Help(
        progress=gain(acrobot_energy),
        sub_goal=lambda s: acrobot_height(s) >= 0.0,
        first_half=lambda s: s.joint_angle1 >= 0.0,
        cell=lambda s: (2.0 * s.joint_angle1, 2.0 * s.joint_angle2, s.velocity_1),
        fair=150.0,
        rare=50.0,
        useless=2.0,
    ),
    "Pendulum-v1": Help(
        progress=gain(_nearly_up),
        sub_goal=lambda s: (jnp.cos(s.theta) > 0.9) & (jnp.abs(s.theta_dot) < 2.0),
        first_half=lambda s: jnp.sin(s.theta) >= 0.0,
        cell=lambda s: (4.0 * jnp.cos(s.theta), 4.0 * jnp.sin(s.theta), s.theta_dot),
        fair=100.0,
        rare=100.0,
        useless=5.0,
    ),
    "Reacher-misc": Help(
        progress=gain(lambda s: -_reach(s)),
        sub_goal=lambda s: _reach(s) < 0.5,
        first_half=lambda s: s.goal_xy[0] >= 0.0,
        cell=lambda s: (2.0 * s.goal_xy, 2.0 * jnp.cos(s.angles), 2.0 * jnp.sin(s.angles)),
        fair=10.0,
        rare=5.0,
        useless=0.5,
    ),
    "Catch-bsuite": Help(
        progress=_off(lambda s: s.paddle_x, lambda s: s.ball_x),
        sub_goal=lambda s: s.paddle_x == s.ball_x,
        first_half=lambda s: s.ball_x > 2,
        cell=lambda s: (s.paddle_x, s.ball_x, s.ball_y),
        fair=0.5,
        rare=0.5,
        useless=0.5,
    ),
    "DeepSea-bsuite": Help(
        progress=gain(lambda s: s.column),
        sub_goal=lambda s: s.column >= 4,
        first_half=lambda s: s.row < 4,
        cell=lambda s: (s.row, s.column),
        fair=0.2,
        rare=0.5,
        useless=0.1,
    ),
    "FourRooms-misc": Help(
        progress=gain(lambda s: -_from_goal(s)),
        sub_goal=lambda s: _from_goal(s) <= 6,
        first_half=lambda s: s.pos[1] < 6,
        cell=lambda s: (s.pos,),
        fair=0.1,
        rare=0.5,
        useless=0.1,
    ),
    "Breakout-MinAtar": Help(
        progress=_off(lambda s: s.pos, lambda s: s.ball_x),
        sub_goal=lambda s: s.ball_dir < 2,  # the ball flies up, which only the paddle makes it do
        first_half=lambda s: s.ball_x < 5,
        cell=lambda s: (s.pos, s.ball_x, s.ball_y),
        fair=0.5,
        rare=1.0,
        useless=0.5,
    ),
    "Asterix-MinAtar": Help(
        progress=gain(_past_enemies),
        sub_goal=lambda s: _to_gold(s) <= 1,
        first_half=lambda s: s.player_x < 5,
        cell=lambda s: (s.player_x, s.player_y, s.move_timer),
        fair=0.2,
        rare=1.0,
        useless=0.2,
    ),
    "SpaceInvaders-MinAtar": Help(
        progress=gain(_covered),
        sub_goal=lambda s: jnp.sum(s.alien_map) <= 12,  # half of them
        first_half=lambda s: s.pos < 5,
        cell=lambda s: (s.pos, s.alien_dir, s.shot_timer),
        fair=0.5,
        rare=5.0,
        useless=0.5,
    ),
    "Freeway-MinAtar": Help(
        progress=_crossing,
        sub_goal=lambda s: s.pos <= 4,
        first_half=lambda s: s.pos >= 5,
        cell=lambda s: (s.pos, s.move_timer, s.cars[s.pos - 1, 0]),
        fair=0.15,
        rare=5.0,
        useless=0.15,
    ),
}
"""Task -> what its sources are made of."""

AUX_SOURCES = {task: sources_of(help) for task, help in HELP.items()}
"""Task -> quality -> factory."""
