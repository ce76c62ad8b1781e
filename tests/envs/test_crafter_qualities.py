"""Help of every quality for Crafter's tasks, of states as its original has them: no game is played."""

import numpy as np
import pytest

from llmrl.envs import crafter_codes as codes
from llmrl.envs.crafter_host import Moment
from llmrl.envs.crafter_qualities import AUX_SOURCES

MIDDLE = codes.CELLS // 2
LEFT, RIGHT, ABOVE, BELOW = range(4)


def moment(blocks=(), facing=LEFT, unlocked=()):
    """What is known where these blocks lie (cell -> block) and this was achieved."""
    seen = np.zeros(codes.NUM_BYTES, np.uint8)
    seen[codes.BLOCK] = codes.BLOCKS.index("grass")
    for cell, block in dict(blocks).items():
        seen[cell] = codes.BLOCKS.index(block)
    seen[codes.FACING] = facing
    return Moment(seen, np.isin(codes.ACHIEVEMENTS, list(unlocked)), False, 0)


def says(quality, before, after, action=5, **options):
    """The source, with the options that it has."""
    try:
        source = AUX_SOURCES[quality](**options)
    except TypeError:
        source = AUX_SOURCES[quality]()
    return float(source(before, action, after))


@pytest.mark.parametrize("task", ["place_table", "make_wood_pickaxe", "all"])
def test_help_to_tools_is_what_hints_pay(task):
    for facing, sign in ((LEFT, 1), (RIGHT, 1), (ABOVE, -1), (BELOW, -1)):
        before, after = moment(facing=facing), moment(facing=facing, unlocked=["collect_wood", "place_table"])
        found = {quality: says(quality, before, after, task=task) for quality in AUX_SOURCES}
        assert found["fair"] == found["hints"] == found["late_wrong"] == 2 and found["harmful"] == -2
        assert found["half_right"] == 2 * sign and found["loud"] == -200 and found["rare"] == 1
        assert found["farmable"] == 0 and found["faint"] == pytest.approx(0.002)
        assert abs(found["useless"]) <= 0.1


def test_help_to_a_drink_is_the_way_to_water():
    water = {cell: moment({cell: "water"}) for cell in (MIDDLE - 3, MIDDLE - 2, MIDDLE - 9 - 1, MIDDLE + 27 + 4)}
    far, near, around, corner = water.values()
    for quality, size in (("fair", 0.2), ("harmful", -0.2), ("farmable", 0.1)):
        assert says(quality, far, near, task="collect_drink") == pytest.approx(size)
        assert says(quality, near, around, task=["collect_drink"]) == 0
        back = 0 if quality == "farmable" else -size
        assert says(quality, near, far, task="collect_drink") == pytest.approx(back)
    assert says("fair", moment(), corner, task="collect_drink") == pytest.approx(0.2)  # one step from out of view
    assert says("fair", moment(), moment({MIDDLE - 1: "tree"}), task="collect_drink") == 0


@pytest.mark.parametrize(
    ("facing", "cell"), [(LEFT, MIDDLE - 1), (RIGHT, MIDDLE + 1), (ABOVE, MIDDLE - 9), (BELOW, MIDDLE + 9)]
)
def test_facing_water_is_the_sub_goal_of_a_drink(facing, cell):
    faced, beside = moment({cell: "water"}, facing), moment({cell: "water"}, (facing + 1) % 4)
    assert says("rare", moment(), faced, task="collect_drink") == 1
    assert says("rare", moment(), beside, task="collect_drink") == 0


def test_farmable_pays_for_a_tree_that_comes_nearer_however_often():
    near, far = moment({MIDDLE + 1: "tree"}), moment({MIDDLE + 2: "tree"})
    assert says("farmable", far, near) == pytest.approx(0.1) and says("farmable", near, far) == 0


def test_useless_looks_at_what_is_around_the_player_and_at_the_action():
    here, away, there = moment(), moment({0: "water"}), moment({MIDDLE + 9: "water"})
    assert says("useless", here, here) == says("useless", away, there)
    values = [says("useless", here, here), says("useless", there, here), says("useless", here, here, action=1)]
    values += [says("useless", here, here, seed=1)]
    assert len(set(values)) == 4 and max(map(abs, values)) <= 0.1
