"""One method, one colour, in every picture."""

import itertools

import numpy as np
import pytest

from llmrl.analysis.colors import _SPARE, METHOD_COLORS, SOURCE_COLORS, method_of, styles
from llmrl.analysis.comparison_plots import Curve, learning_curve_grid, learning_curves, profiles, solver_health
from llmrl.analysis.plots import curves
from llmrl.assembly.methods import METHODS
from llmrl.studies import figure_2, figures


def seen(color):
    """Lightness and hue of a colour as people see them (Oklab, Ottosson 2020)."""
    channels = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    cones = [[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]] @ linear
    return [[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]] @ np.cbrt(cones)


def test_every_method_has_a_colour_that_can_be_told_from_the_others():
    """And so has the next one."""
    assert set(METHOD_COLORS) == set(METHODS)
    for one, other in itertools.combinations({*METHOD_COLORS.values(), *_SPARE}, 2):
        assert np.linalg.norm(seen(one) - seen(other)) > 0.07
    assert not {METHOD_COLORS[method] for method in ("implicit", "add", "ppo")} & set(SOURCE_COLORS)


@pytest.mark.parametrize("method", METHOD_COLORS)
def test_a_method_has_its_colour_whatever_stands_beside_it(method):
    labels = method, f"{method}, llm.noise=0.25", f"grid: harmful, seed=1: {method} (unfinished)"
    found = styles(["unknown", *METHODS, *labels, "told_apart"])
    assert {found[label][0] for label in labels} == {METHOD_COLORS[method]}
    assert len({found[label] for label in labels}) == len(labels)
    assert styles([method])[method] == found[method]


def test_a_method_is_named_first_or_after_a_colon():
    assert method_of("implicit_paper") == "implicit_paper"
    assert method_of("implicit_paper_2") is None and method_of("gymnax: add_one: ppo") == "ppo"
    assert method_of("told_apart") is None and method_of("a source, beside ppo") is None


def drawn(figure):
    """Colour of every line of a picture, by its label."""
    lines = {line.get_label(): line.get_color() for axes in figure.axes for line in axes.get_lines()}
    return {label: color for label, color in lines.items() if not label.startswith("_")}


def test_every_picture_keeps_to_the_colours(tmp_path, monkeypatch):
    steps, values = np.arange(12) * 64, np.random.default_rng(0).uniform(size=(3, 12))
    for methods in (("ppo", "implicit"), ("add", "rnd", "ppo")):
        lines = {method: Curve(steps, values) for method in methods}
        every = [
            learning_curves(lines, "episode_return"),
            profiles(dict.fromkeys(methods, values[:, -1]), "episode_return"),
            solver_health({method: (steps, {"r": values}) for method in methods}, {"r": "residual"}),
            learning_curve_grid({"row": {"column": lines}}, "episode_return", tmp_path / "grid.png"),
        ]
        for figure in every:
            assert drawn(figure) == {method: METHOD_COLORS[method] for method in methods}


def test_the_papers_figures_keep_to_the_colours():
    methods = *figures.FIGURE_METHODS, *figure_2.METHODS
    assert all(style[0] == METHOD_COLORS[method] for method, style in styles(methods).items())
    assert len(set(styles(figures.FIGURE_METHODS).values())) == len(figures.FIGURE_METHODS)


def test_the_picture_of_a_run_has_its_methods_colour():
    values = {"episode_return": np.random.default_rng(0).uniform(size=(3, 12))}
    for method in ("ppo", "implicit"):
        assert curves(values, method=method).axes[0].get_lines()[-1].get_color() == METHOD_COLORS[method]


def test_lines_that_coincide_stay_visible():
    """A simple choice is dashed and lies on top."""
    line = Curve(np.arange(12) * 64, np.tile(np.linspace(0.0, 1.0, 12), (3, 1)))
    figure = learning_curves(dict.fromkeys(("ppo", "add", "implicit"), line), "episode_return")
    on_top = {each.get_label(): each.get_zorder() for each in figure.axes[0].get_lines()}
    dashes = {each.get_label(): each.get_linestyle() for each in figure.axes[0].get_lines()}
    assert on_top["implicit"] < on_top["ppo"] < on_top["add"]
    assert len(set(dashes.values())) == 3 and dashes["implicit"] == "-"
    labels = [text for text in figure.axes[0].texts if text.get_text() in on_top]
    assert {text.get_text() for text in labels} == set(on_top)
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in labels]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
