"""Pictures show what the bytes say, where they say it."""

import numpy as np
import pytest

from llmrl.envs import crafter_codes as codes
from llmrl.results import pictures

CELL = pictures.SIZE[0] // codes.VIEW[1]


def seen(**items):
    numbers = np.zeros(codes.NUM_BYTES, np.uint8)
    numbers[codes.BLOCK] = codes.BLOCKS.index("grass")
    numbers[codes.LIGHT] = 255
    for name, amount in items.items():
        numbers[codes.ITEM][codes.ITEMS.index(name)] = amount
    return numbers


def changed(before, after):
    """(row, column) of the cells that differ."""
    differs = np.any(np.asarray(pictures.crafter(before)) != np.asarray(pictures.crafter(after)), axis=-1)
    assert differs.shape == pictures.SIZE[::-1]
    return {(int(y) // CELL, int(x) // CELL) for y, x in np.argwhere(differs)}


@pytest.mark.parametrize("place", [0, 8, 40, 62])
@pytest.mark.parametrize("block", [block for block in codes.BLOCKS if block != "grass"])
def test_a_block_is_drawn_in_its_cell(place, block):
    after = seen()
    after[codes.BLOCK][place] = codes.BLOCKS.index(block)
    assert changed(seen(), after) == {(place // 9, place % 9)}


def test_creatures_stand_on_their_cells_and_the_player_in_the_middle():
    for bit in range(len(codes.MOBS)):
        after = seen()
        after[codes.MOB][12] |= 1 << bit
        assert changed(seen(), after) == {(1, 3)}
    turned = seen()
    turned[codes.FACING] = 1
    assert changed(seen(), turned) == {(3, 4)}


def test_what_is_held_is_below_the_view_and_night_is_darker():
    assert {row for row, _ in changed(seen(), seen(wood=3, iron_sword=1))} <= {7, 8}
    assert changed(seen(wood=3), seen(wood=4)) == {(7, 0)}
    night = seen()
    night[codes.LIGHT] = 0
    assert np.asarray(pictures.crafter(night)).mean() < 0.6 * np.asarray(pictures.crafter(seen())).mean()


def test_a_pole_leans_to_the_side_that_its_angle_says():
    def middle_of(angle):
        pixels = np.asarray(pictures.cartpole(np.array([0.0, 0.0, angle, 0.0])), np.int32)
        return np.argwhere((pixels[..., 0] > 150) & (pixels[..., 2] < 80))[:, 1].mean()

    assert middle_of(-0.2) < middle_of(0.0) - 5 < middle_of(0.2) - 10
