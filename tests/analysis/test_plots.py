from types import SimpleNamespace

import numpy as np
import pytest

import llmrl
from llmrl.analysis.plots import curves


def metrics(**others):
    rng = np.random.default_rng(0)
    return {"episode_return": rng.normal(size=(4, 20)), "entropy": rng.uniform(size=(4, 20)), **others}


def titles(figure):
    return [axes.get_title(loc="left") for axes in figure.axes]


def test_one_thin_line_per_seed_and_their_mean_on_top():
    values = metrics()
    lines = curves(values).axes[0].get_lines()
    assert len(lines) == 5
    np.testing.assert_allclose(lines[-1].get_ydata(), values["episode_return"].mean(axis=0))
    assert all(line.get_linewidth() < lines[-1].get_linewidth() for line in lines[:-1])


def test_third_panel_shows_what_the_run_is_about():
    constant, moving = np.full((4, 20), 0.99), np.linspace(0.9, 0.99, 80).reshape(4, 20)
    assert "entropy" in titles(curves(metrics(discount=constant)))[2]
    assert "success" in titles(curves(metrics(discount=constant, success_rate=moving)))[2]
    assert "length" in titles(curves(metrics(discount=constant, episode_length=moving)))[2]
    assert "discount" in titles(curves(metrics(discount=moving, success_rate=moving)))[2]


def test_each_source_has_its_colour_and_name():
    rng = np.random.default_rng(0)
    weights, moved = (
        {f"{kind}/{name}": rng.normal(size=(4, 20)) for name in ("harmful", "random")}
        for kind in ("weight_mean_active", "influence")
    )
    for drawn, title in ((weights, "weight"), (weights | moved, "influence")):
        figure = curves(metrics(weight_mean_active=rng.normal(size=(4, 20)), **drawn))
        legend = figure.axes[1].get_legend()
        assert legend is not None and title in titles(figure)[1]
        assert [text.get_text() for text in legend.get_texts()] == ["harmful", "random"]


@pytest.mark.filterwarnings("error")
def test_missing_values_and_missing_metrics_are_no_trouble(tmp_path):
    holes = metrics()["episode_return"]
    holes[:, :3] = np.nan
    holes[1] = np.nan
    figure = curves({"episode_return": holes}, tmp_path / "curves.png", title="holes")
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    assert any("not learned" in text.get_text() for text in figure.axes[1].texts)


def test_plot_takes_a_result_and_shows_itself_in_a_notebook():
    steps = np.tile(np.arange(1, 21) * 64, (4, 1))
    figure = llmrl.plot(SimpleNamespace(metrics=metrics(env_steps=steps), config=SimpleNamespace(run_dir=None)))
    assert figure.axes[0].get_lines()[0].get_xdata()[-1] == 20 * 64
    assert figure._repr_png_().startswith(b"\x89PNG")
