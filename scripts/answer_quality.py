"""How good recorded answers are, measured against the oracle: share right by region, and a calibration plot.

    python scripts/answer_quality.py docs/figures/answers_cartpole.png env=cartpole llm.answers=handmade

Prints the table, and writes the plot. The oracle (``llm=oracle``) is the environment's own set of rules, which may be
wrong itself: "right" means that both say yes or both say no.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import llmrl
from llmrl.analysis.colors import METHOD_COLORS
from llmrl.analysis.tables import markdown
from llmrl.assembly.parts import make_environment
from llmrl.language import fill_table
from llmrl.language.table import as_dict
from llmrl.training.answers import recorded_as

REGIONS = {
    "cartpole": r"pole (.*?) and",
    "MountainCar-v0": r"car is (.*?) and",
}
"""Environment -> what of a state's words names its region."""

BINS = 10


class Judged(NamedTuple):
    """Answers and what the oracle says to the same questions.

    Attributes:
        regions: of each answered state.
        said: probabilities of yes.
        truth: the oracle's scores.
        every: regions of all states that there are.
    """

    regions: list[str]
    said: Float[np.ndarray, "states events"]
    truth: Float[np.ndarray, "states events"]
    every: list[str]


class Bin(NamedTuple):
    """Answers with nearly the same probability of yes.

    Attributes:
        said: their mean probability.
        yes: share of them to which the oracle says yes.
        count: how many they are.
    """

    said: float
    yes: float
    count: int


def judge(config: llmrl.Config) -> Judged:
    """Every recorded answer of a config beside the oracle's."""
    captioner: Any = make_environment(config).captioner
    keys, name = list(captioner.keys()), recorded_as(config, captioner)
    llm = replace(config.llm, capacity=len(keys), cache=None)
    oracle = replace(llm, provider="oracle", noise=0.0, adversarial=False)
    told, true = (as_dict(fill_table(each, captioner, keys, environment=name)) for each in (llm, oracle))
    answered = [key for key in keys if key in told]
    region = re.compile(REGIONS.get(config.env.id or config.env.name, "^()"))

    def regions(of: list[int]) -> list[str]:
        return [found[1] if (found := region.search(captioner.describe(key))) else "" for key in of]

    said, truth = (np.array([scores[key] for key in answered]) for scores in (told, true))
    return Judged(regions(answered), said, truth, regions(keys))


def right(judged: Judged) -> tuple[int, int]:
    """Answers on the oracle's side, of how many; those that the oracle leaves open (0.5) do not count."""
    decided = judged.truth != 0.5
    agree = (judged.said > 0.5) == (judged.truth > 0.5)
    return int(np.sum(agree & decided)), int(np.sum(decided))


def best(judged: Judged) -> tuple[int, int]:
    """States in which the likeliest yes goes to the oracle's first choice, of those in which it has just one."""
    top = judged.truth == judged.truth.max(axis=1, keepdims=True)
    one = top.sum(axis=1) == 1
    same = judged.said.argmax(axis=1) == judged.truth.argmax(axis=1)
    return int(np.sum(same & one)), int(np.sum(one))


def calibration(judged: Judged, bins: int = BINS) -> list[Bin]:
    """Answers by their probability, in bins of equal width; empty ones are left out."""
    decided = judged.truth != 0.5
    said, yes = judged.said[decided], judged.truth[decided] > 0.5
    place = np.minimum((said * bins).astype(int), bins - 1)
    return [
        Bin(float(said[place == i].mean()), float(yes[place == i].mean()), int(np.sum(place == i)))
        for i in range(bins)
        if np.any(place == i)
    ]


def calibration_error(found: Sequence[Bin]) -> float:
    """sum_b n_b |said_b - yes_b| / sum_b n_b, the distance of what is said from what is so (Naeini et al. 2015)."""
    counts = np.array([each.count for each in found])
    return float(np.average([abs(each.said - each.yes) for each in found], weights=counts))


def table(judged: Judged) -> str:
    """Per region and in all: states, answers right, first choices right, mean probability of yes."""
    rows = []
    met = [region for region in dict.fromkeys(judged.every) if region in judged.regions]
    for region in (*met, None):
        part = np.array([region in (None, each) for each in judged.regions])
        some = judged._replace(said=judged.said[part], truth=judged.truth[part])
        rows.append(["all" if region is None else region, str(part.sum()), _share(right, some), _share(best, some)])
        rows[-1].append(f"{some.said.mean():.2f}")
    header = ("region", "states", "answers right", "first choice right", "mean P(yes)")
    return markdown(header, rows)


def _share(count: Callable[[Judged], tuple[int, int]], judged: Judged) -> str:
    some, of = count(judged)
    return f"{some / of:.0%} ({some} of {of})" if of else ""


def draw(judged: Judged, title: str, path: Path) -> None:
    """What is said against what the oracle says, with the number of answers in each bin."""
    found = calibration(judged)
    figure = Figure(figsize=(4.6, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1, label="calibrated")
    color = METHOD_COLORS["implicit"]
    above.plot([each.said for each in found], [each.yes for each in found], "o-", color=color, label="answers")
    above.set(ylabel="share of yes by the oracle", xlim=(0, 1), ylim=(-0.03, 1.03), title=title)
    above.legend(frameon=False)
    bars = below.bar([each.said for each in found], [each.count for each in found], width=0.6 / BINS, color=color)
    below.bar_label(bars, fontsize=8)
    below.set(xlabel="probability of yes that was said", ylabel="answers")
    below.margins(y=0.25)
    figure.savefig(path, dpi=150)


def main(arguments: list[str]) -> None:
    if not arguments or not arguments[0].endswith(".png"):
        sys.exit("which picture? python scripts/answer_quality.py picture.png env=cartpole llm.answers=handmade")
    path, config = Path(arguments[0]), llmrl.compose("aux=language", "llm=recorded", *arguments[1:])
    judged = judge(config)
    draw(judged, f"{config.env.id or config.env.name}, {config.llm.answers}", path)
    print(table(judged))
    print(
        f"{len(judged.regions)} of {len(judged.every)} states are answered; "
        f"calibration error {calibration_error(calibration(judged)):.2f}; {path}"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
