"""An environment's faults that show in its episodes alone are told, once, and healthy ones are not talked of."""

import re

import numpy as np
import pytest

from llmrl.envs.watching import LARGE, watched
from llmrl.types import Discrete, EnvSpec

SPEC = EnvSpec("line", (1,), Discrete(2), horizon=20)
NONE = float("nan")


def chunk(episodes=0.0, length=NONE, returned=NONE):
    """Two seeds, three iterations; the first seed's episodes end, the other's never do."""
    ended = {"episodes": episodes, "episode_length": length, "episode_return": returned}
    quiet = {"episodes": 0.0, "episode_length": NONE, "episode_return": NONE}
    return {name: np.array([[ended[name]] * 3, [quiet[name]] * 3], np.float32) for name in ended}


@pytest.mark.parametrize(
    ("chunks", "says"),
    [
        ([chunk(4, 20, 1.0)] * 2, ["", ""]),
        ([chunk(4, 20, -LARGE)] * 2, ["", ""]),
        ([chunk()] * 4, ["", "no episode ended in 24 steps, expected one within horizon=20", "", ""]),
        ([chunk()], ["each environment took 12 steps, fewer than horizon=20; raise total_steps"]),
        ([chunk(0, 7, 0.5)] * 3, ["", "", ""]),  # another process has seen one end
        ([chunk(4, 21, 1.0)] * 2, ["episodes of 21 steps, expected at most horizon=20", ""]),
        ([chunk(4, 5, -1e12)] * 2, ["returns as large as 1e\\+12", ""]),
    ],
)
def test_each_sign_is_told_once_and_only_where_there_is_one(chunks, says):
    look = watched(SPEC, num_steps=4)
    for place, (seen, expected) in enumerate(zip(chunks, says, strict=True), 1):
        messages = look(seen, last=place == len(chunks))
        assert len(messages) == bool(expected) and all("\n" not in message for message in messages)
        if expected:
            assert re.search(expected, messages[0])
