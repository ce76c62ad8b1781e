"""Pictures that compare methods stay legible, however many methods there are and whatever they are called."""

import numpy as np
import pytest

from llmrl.analysis.comparison_plots import Curve, learning_curves, profiles, solver_health

MANY = tuple(f"method {i}, some.setting={i / 8}" for i in range(21))
LONG = tuple(
    f"cartpole: language: implicit, llm.noise={i} (/a/very/long/path/to/where/runs/are/kept/{i})" for i in (1, 2)
)


def pictures(labels):
    values = np.random.default_rng(0).uniform(size=(3, 12))
    steps = np.arange(12) * 64
    yield learning_curves({label: Curve(steps, values) for label in labels}, "episode_return")
    yield profiles(dict.fromkeys(labels, values[:, -1]), "episode_return")
    yield solver_health({label: (steps, {"r": values}) for label in labels}, {"r": "residual"})


@pytest.mark.parametrize("labels", [("ppo", "add", "implicit"), MANY, LONG], ids=["few", "many", "long"])
def test_a_legend_lies_in_the_picture_and_on_no_axes(labels):
    for figure in pictures(labels):
        figure.canvas.draw()
        if not figure.legends:  # lines are labelled where they end
            assert {text.get_text() for text in figure.axes[0].texts} == set(labels)
            assert all(text.get_window_extent().x1 <= figure.bbox.x1 for text in figure.axes[0].texts)
            continue
        (legend,) = figure.legends
        assert len(legend.get_texts()) == len(labels)
        box = legend.get_window_extent()
        assert box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1 + 1
        for axes in figure.axes:
            assert axes.get_tightbbox().y1 <= box.y0 + 1
            assert axes.get_window_extent().height > 100  # there is room left for the curves
