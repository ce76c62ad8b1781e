"""Pictures of what an agent sees, for people: Crafter from its bytes, a pole on a cart from its four numbers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageDraw, ImageOps

from llmrl.envs import crafter_codes as codes
from llmrl.settings.errors import BadValue

SIZE = (432, 432)
"""Width and height of every picture, in pixels."""

_CELL = SIZE[0] // codes.VIEW[1]
_TEXTURES = {"ripe plant": "plant-ripe", "plant": "sapling"}
_UNSEEN = ("nothing", "the edge of the world")
_OVER_GRASS = ("plant", "ripe plant")
_PLAYER = ("left", "right", "up", "down")
_POLE_METRES = 1.0  # gymnax's length is half of the pole's

Draw = Callable[[Shaped[np.ndarray, "*obs"]], Image.Image]
"""An observation to its picture, of ``SIZE``."""


def crafter(seen: UInt8[np.ndarray, "145"]) -> Image.Image:
    """Either Crafter: the cells in view with who stands there, darker at night, and what the player has."""
    rows, columns = codes.VIEW
    view = Image.new("RGB", (columns * _CELL, rows * _CELL))
    for place in range(codes.CELLS):
        block = codes.BLOCKS[int(seen[codes.BLOCK][place])]
        at = place % columns * _CELL, place // columns * _CELL
        if block in _OVER_GRASS:
            _paste(view, "grass", at)
        if block not in _UNSEEN:
            _paste(view, _TEXTURES.get(block, block), at)
        for bit, mob in enumerate(codes.MOBS):
            if seen[codes.MOB][place] >> bit & 1:
                _paste(view, "arrow-up" if mob == "arrow" else mob, at)
    look = "sleep" if seen[codes.ASLEEP] else _PLAYER[int(seen[codes.FACING])]
    _paste(view, f"player-{look}", (columns // 2 * _CELL, rows // 2 * _CELL))
    # Never black: the player's own eyes see noise at night, a reader wants to see what is there.
    light = 0.45 + 0.55 * float(seen[codes.LIGHT]) / 255.0
    picture = Image.new("RGB", SIZE)
    picture.paste(Image.fromarray((np.asarray(view) * light).astype(np.uint8)), (0, 0))
    held = zip((*codes.VITALS, *codes.ITEMS), (*seen[codes.VITAL], *seen[codes.ITEM]), strict=True)
    for slot, (name, amount) in enumerate((name, int(amount)) for name, amount in held if amount):
        at = slot % columns * _CELL, (rows + slot // columns) * _CELL
        _paste(picture, name, at)
        _paste(picture, str(amount), (at[0] + _CELL // 3, at[1] + _CELL // 3), size=2 * _CELL // 3)
    return picture


def _paste(picture: Image.Image, name: str, at: tuple[int, int], size: int = _CELL) -> None:
    texture = _texture(name, size)
    picture.paste(texture, at, texture)


@functools.cache
def _texture(name: str, size: int) -> Image.Image:
    """The original game's own drawing; read, never written."""
    import crafter as package

    path = Path(package.__file__).parent / "assets" / f"{name}.png"
    return Image.open(path).convert("RGBA").resize((size, size), Image.Resampling.NEAREST)


def cartpole(obs: Shaped[np.ndarray, "4"]) -> Image.Image:
    """A pole on a cart, on 4.8 metres of track."""
    position, _, angle, _ = (float(value) for value in obs)
    picture = Image.new("RGB", SIZE, "white")
    draw = ImageDraw.Draw(picture)
    ground, metre = SIZE[1] * 0.7, SIZE[0] / 4.8
    cart = SIZE[0] / 2 + position * metre
    draw.line((0, ground, SIZE[0], ground), fill="#888888", width=2)
    draw.rectangle((cart - 30, ground - 24, cart + 30, ground), fill="#333333")
    tip = cart + np.sin(angle) * _POLE_METRES * metre, ground - 24 - np.cos(angle) * _POLE_METRES * metre
    draw.line((cart, ground - 24, *tip), fill="#c06020", width=9)
    return picture


def of_pixels(pixels: Any) -> Image.Image:
    """What a game draws of itself, in the middle of a picture.

    Raises:
        ValueError: these are no pixels, [height, width, 3].
    """
    array = np.asarray(pixels)
    if array.ndim != 3 or array.shape[-1] != 3:
        raise BadValue(f"the environment draws {type(pixels).__name__}; expected pixels, as of render_mode=rgb_array")
    return ImageOps.pad(Image.fromarray(array.astype(np.uint8)), SIZE, color="white")


DRAWN_BY_ITSELF = ("gymnasium",)
"""Environments that draw what they show."""

PICTURES: dict[str, Draw] = {
    "craftax_classic": crafter,
    "crafter": crafter,
    "cartpole": cartpole,
    "cartpole_continuous": cartpole,
}
"""Environments that can be drawn."""
