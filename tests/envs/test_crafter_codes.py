"""What the two Crafters share."""

import itertools

import numpy as np
import pytest

from llmrl.envs import crafter_codes as codes
from llmrl.ops.codes import num_features


def test_places_add_up():
    places = [*range(codes.NUM_BYTES)]
    parts = [places[part] for part in (codes.BLOCK, codes.MOB, codes.ITEM, codes.VITAL)]
    assert [*itertools.chain(*parts), codes.FACING, codes.LIGHT, codes.ASLEEP] == places
    assert [len(part) for part in parts] == [codes.CELLS, codes.CELLS, len(codes.ITEMS), len(codes.VITALS)]
    assert sum(group.count for group in codes.ENCODING) == codes.NUM_BYTES
    assert num_features(codes.ENCODING) == 1345  # as many as Craftax-Classic-Symbolic has


def test_days_are_both_games():
    """Their formula: 1 - |cos(pi (t / 300 mod 1 + 0.3))|^3."""
    for step in (0, 1, 37, 150, 210, 299):
        light = 1 - abs(np.cos(np.pi * (step / 300 % 1 + 0.3))) ** 3
        assert abs(codes.DAYLIGHT[step] / 255 - light) <= 0.5 / 255


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("eat_cow", ["eat_cow"]),
        (["make_iron_sword", "collect_wood"], ["make_iron_sword", "collect_wood"]),
        ("all", list(codes.ACHIEVEMENTS)),
    ],
)
def test_tasks(task, names):
    assert [codes.ACHIEVEMENTS[place] for place in codes.achievement_indices(task)] == names


@pytest.mark.parametrize(("task", "says"), [("eat_cows", "nearest: 'eat_cow'"), ((), "at least one"), (["a"], "'a'")])
def test_a_wrong_task_is_explained(task, says):
    with pytest.raises(ValueError, match=says):
        codes.achievement_indices(task)
