"""Gymnasium environments small enough to predict: a walk to the right, and what may be broken in one."""

import gymnasium
import numpy as np
from gymnasium import spaces

GOAL, LIMIT = 3, 6


class Walk(gymnasium.Env):
    """Action 1 walks, 0 stays; the goal is at 3, and seeds decide where a walk begins. Half of the steps to the right
    slip by chance."""

    metadata = {"render_modes": ["rgb_array"]}
    observation_space = spaces.Dict(
        {"place": spaces.Box(-10, 10, (2,), np.float32), "last": spaces.Discrete(2), "note": spaces.Text(9)}
    )
    action_space = spaces.Discrete(2)

    def __init__(self, step=1, render_mode=None):
        self.size, self.render_mode = step, render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at, self.last = int(self.np_random.integers(-1, 1)), 0
        return self._obs(), {}

    def step(self, action):
        slips = self.np_random.random() < 0.5
        self.at, self.last = self.at + self.size * int(action) * (not slips), int(action)
        done = self.at >= GOAL
        return self._obs(), float(done), done, False, {"is_success": done, "at": self.at}

    def render(self):
        return np.full((4, 6, 3), 40 * self.at + 80, np.uint8)

    def _obs(self):
        return {"place": np.array([self.at, 0.5], np.float32), "last": self.last, "note": "walk"}


def walk(step: int = 1, render_mode: str | None = None):
    return gymnasium.wrappers.TimeLimit(Walk(step, render_mode), LIMIT)


def endless():
    return Walk()


def no_environment():
    return 3


class Tenfold(gymnasium.RewardWrapper):
    def reward(self, reward):
        return 10.0 * reward


def no_wrapper(env):
    raise KeyError("mistake")


class Broken(Walk):
    def __init__(self, **overriding):
        super().__init__()
        for name, value in overriding.items():
            setattr(self, name, value)


def old_step():
    return gymnasium.wrappers.TimeLimit(Broken(step=lambda action: ({}, 0.0, True, {})), 5)


def wrong_shape():
    walk = Broken()
    walk._obs = lambda: {"place": np.zeros(3, np.float32), "last": 0, "note": ""}
    return gymnasium.wrappers.TimeLimit(walk, 5)


def vector_reward():
    walk = Broken()
    walk.step = lambda action: (walk._obs(), np.zeros(2), True, False, {})
    return gymnasium.wrappers.TimeLimit(walk, 5)


def raising():
    def reset(**options):
        raise RuntimeError("no such file")

    return gymnasium.wrappers.TimeLimit(Broken(reset=reset), 5)


def dictionary_actions():
    return gymnasium.wrappers.TimeLimit(Broken(action_space=spaces.Dict({"a": spaces.Discrete(2)})), 5)


def unseeded():
    walk, chances = Broken(), np.random.default_rng()
    walk.step = lambda action: (walk._obs() | {"place": chances.random(2, np.float32)}, 0.0, False, False, {})
    return gymnasium.wrappers.TimeLimit(walk, 5)


# --- auxiliary functions ----------------------------------------------------------------------------------------------


def came_closer(obs, action, next_obs, info):
    return (next_obs[:, 1] - obs[:, 1]) * (action == 1) + 0.0 * info["at"]


def one_number(obs, action, next_obs, info):
    return 1.0


def three_arguments(obs, action, next_obs):
    return obs[:, 0]
