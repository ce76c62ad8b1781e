"""One method, one colour, in every picture."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from itertools import cycle
from typing import TypeAlias

from llmrl.settings.presets import method_names

Style: TypeAlias = tuple[str, str]
"""A colour and a dash, as matplotlib has them."""

_CHOSEN = {
    "implicit": "#1f6f8b",
    "add": "#c8553d",
    "ppo": "#4d4d4d",
    "implicit_paper": "#92c644",
    "bipars_mgl": "#d385ed",
    "bipars_em": "#851d6b",
    "bipars_imgl": "#106b10",
    "dpba": "#51379f",
    "pies": "#c6ac85",
    "pbrs": "#10b8a3",
    "adops": "#1d2a5e",
    "ranked_potential": "#10ed10",
    "thresholded": "#37edc6",
    "decoupled": "#ffd92f",
    "ellm": "#ed9210",
    "rnd": "#5e9278",
    "apt": "#92b9ed",
    "icm": "#855e10",
    "ellm_pretrained": "#ed6b9f",
    "scalar": "#4478e0",
    "unrolled": "#9f7892",
    "lirpg": "#783744",
    "barfi": "#10acc6",
    "frozen": "#10ac5e",
    "credit": "#c6105e",
    "twin": "#5e10ed",
    "select": "#1010c6",
    "eipo": "#c610ed",
}
"""Far from each other; those that stand in one picture most often are farthest."""

_SPARE = ("#ac8510", "#e110ac", "#5e1010", "#8537c6", "#373710")
"""For methods that have none of their own yet, in the order of their names."""

METHOD_COLORS = _CHOSEN | dict(zip((name for name in method_names() if name not in _CHOSEN), cycle(_SPARE)))
"""A colour for every method."""

OTHERS = tuple(METHOD_COLORS.values())
"""For lines that are of no method."""

SOURCE_COLORS = ("#5e9278", "#8e6c8a", "#d39c3f", "#51379f", "#9c5a3c", "#4478e0")
"""Of auxiliary sources, in their order; none is a colour of ``implicit``, ``add`` or ``ppo``."""

USED, IGNORED, TURNED = "#2166ac", "#d9d9d9", "#b2182b"
"""What was made of a source: the ends and the middle of the maps of weights."""

DASHES = ("-", "--", ":", "-.")
SIMPLE = {"ppo": "--", "add": ":"}
"""The simple choices are dashed, and so stay visible where another method's line lies under them."""

_METHOD = re.compile(rf"(?:^|: )({'|'.join(METHOD_COLORS)})(?=$|[, ])")


def method_of(label: str) -> str | None:
    """The method that a line's label names: first, or after a colon, as in ``cartpole: harmful: implicit, seed=1``."""
    found = _METHOD.search(label)
    return found[1] if found else None


def styles(labels: Iterable[str]) -> dict[str, Style]:
    """A colour and a dash for every label.

    A method has the same colour whatever stands beside it; several lines of one method differ in their dashes. Labels
    of no method take colours in their order.
    """
    labels = list(dict.fromkeys(labels))
    methods = {label: method_of(label) for label in labels}
    taken = {METHOD_COLORS[method] for method in methods.values() if method}
    free = [color for color in OTHERS if color not in taken] or list(OTHERS)
    lines: Counter[str] = Counter()
    found = {}
    for label, method in methods.items():
        if method is None:
            line = lines[""]
            found[label] = free[line % len(free)], DASHES[line // len(free) % len(DASHES)]
        else:
            line = lines[method]
            first = DASHES.index(SIMPLE.get(method, "-"))
            found[label] = METHOD_COLORS[method], DASHES[(first + line) % len(DASHES)]
        lines[method or ""] += 1
    return found
