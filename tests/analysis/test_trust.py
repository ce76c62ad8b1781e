"""Maps of trust whose answers are known, because the test made them up."""

import numpy as np
import pytest

from llmrl.analysis import trust
from llmrl.analysis.trust import AS_ACTED, TrustMap
from llmrl.analysis.trust_plots import heat_maps, shares_over_training

NAMES = ("cart position", "cart velocity", "pole angle", "pole angular velocity")


def made_up(weight, source="half_right", seeds=3, states=2000, speaks=None, unit=0.5, **others):
    """A map of two actions with ``weight(obs, probe) -> [seeds, states]``; the source says 0.1 wherever it speaks."""
    obs = np.random.default_rng(0).normal(size=(seeds, states, 4)).astype(np.float32)
    probes = (AS_ACTED, "action 0", "action 1")
    weights = np.stack([np.broadcast_to(weight(obs, probe), obs.shape[:2]) for probe in range(3)], axis=-1)
    heard = np.ones(weights.shape, bool) if speaks is None else np.stack([speaks(obs)] * 3, axis=-1)
    return TrustMap(
        sources=(source,),
        probes=probes,
        obs_names=NAMES,
        obs=obs,
        aux=(0.1 * heard[..., None]).astype(np.float32),
        influence=(weights[..., None] / max(unit, 1e-12)).astype(np.float32),
        weight=np.zeros((*weights.shape, 1), np.float32),
        settled=weights[..., None].astype(np.float32),
        unit=np.full((seeds, 1), unit, np.float32),
        **others,
    )


def right(obs, probe):
    return np.where(obs[..., 0] >= 0, 0.2, -0.2)


def test_to_ignore_a_source_where_it_is_wrong_is_as_good_as_to_turn_it_around():
    ignoring = made_up(lambda obs, probe: np.where(obs[..., 0] >= 0, 0.01, 0.0))
    for found in (made_up(right), ignoring):
        both = trust.sides(found, "half_right")
        np.testing.assert_array_equal([both.correct, both.correct_right, both.correct_wrong], np.ones((3, 3)))
        np.testing.assert_allclose(both.right, (found.obs[..., 0] >= 0).mean(axis=1))
    np.testing.assert_allclose(trust.sides(made_up(right), "half_right").weight_right, 0.4, rtol=1e-6)
    trusting = trust.sides(made_up(lambda obs, probe: np.float32(0.03)), "half_right")  # 6 % of full trust
    np.testing.assert_allclose(trusting.correct, trusting.right)
    np.testing.assert_array_equal(trusting.correct_wrong, 0.0)
    assert np.all(trust.sides(made_up(lambda obs, probe: np.float32(0.0)), "half_right").correct_right == 0.0)
    silent = trust.sides(made_up(right, speaks=lambda obs: obs[..., 0] >= 0), "half_right")
    assert np.all(np.isnan(silent.correct_wrong)) and np.all(silent.right == 1.0)
    with pytest.raises(ValueError, match="right sign"):
        trust.sides(made_up(right, source="random"), "random")


def test_the_border_of_a_source_is_drawn_where_it_is_in_the_picture():
    dashed = lambda dims: [  # noqa: E731
        sum(line.get_linestyle() == "--" for line in axes.lines)
        for axes in heat_maps(made_up(right), "half_right", dims).axes
        if axes.get_title()
    ]
    assert set(dashed(["cart position", "pole angle"])) == {1}
    assert set(dashed([1, 2])) == {0}


# --- shares -----------------------------------------------------------------------------------------------------------


def test_shares_add_up_and_are_measured_in_units_of_full_trust():
    levels = lambda obs, probe: np.select([obs[..., 1] < -1, obs[..., 1] > 1], [-0.03, 0.025], 0.024)  # noqa: E731
    found = made_up(levels)  # the threshold is 5 % of 0.5
    used, ignored, turned = trust.shares(found, "half_right")
    np.testing.assert_allclose(used + ignored + turned, 1.0)
    np.testing.assert_allclose(used, (found.obs[..., 1] > 1).mean(axis=1))
    np.testing.assert_allclose(turned, (found.obs[..., 1] < -1).mean(axis=1))
    wider = trust.shares(found._replace(threshold=0.055), "half_right")
    np.testing.assert_allclose(wider.used, 0.0)


def test_only_steps_on_which_the_source_speaks_count():
    found = made_up(right, speaks=lambda obs: obs[..., 0] >= 0)
    assert np.all(trust.shares(found, "half_right").used == 1.0)
    silent = made_up(right, speaks=lambda obs: obs[..., 0] > 1e9)
    assert np.isnan(trust.shares(silent, "half_right")).all()


def test_a_source_that_units_leave_nothing_of_is_ignored():
    found = made_up(lambda obs, probe: 0.0, unit=0.0)
    assert np.all(trust.shares(found, "half_right").ignored == 1.0)


# --- right signs ------------------------------------------------------------------------------------------------------


def test_a_map_that_shows_the_border_has_every_sign_right():
    for share in trust.right_signs(made_up(right), "half_right"):
        np.testing.assert_allclose(share, 1.0)
    for share in trust.right_signs(made_up(lambda obs, probe: -right(obs, probe)), "half_right"):
        np.testing.assert_allclose(share, 0.0)


def test_one_sign_everywhere_is_right_on_one_side_only():
    found = made_up(lambda obs, probe: 0.1)
    found.obs[..., 0] += 1.0
    share, balanced = trust.right_signs(found, "half_right")
    np.testing.assert_allclose(share, (found.obs[..., 0] >= 0).mean(axis=1))
    np.testing.assert_allclose(balanced, 0.5)


def test_right_signs_of_sources_that_are_right_or_wrong_everywhere():
    assert np.all(trust.right_signs(made_up(lambda obs, probe: -0.1, "harmful"), "harmful").share == 1.0)
    assert np.all(trust.right_signs(made_up(lambda obs, probe: -0.1, "beneficial"), "beneficial").share == 0.0)
    assert np.all(trust.right_signs(made_up(lambda obs, probe: 0.0, "harmful"), "harmful").share == 0.0)


def test_where_nobody_knows_the_right_sign_one_may_say_it():
    found = made_up(lambda obs, probe: np.sign(obs[..., 2]), "mine")
    with pytest.raises(ValueError, match="mine"):
        trust.right_signs(found, "mine")
    np.testing.assert_allclose(trust.right_signs(found, "mine", lambda obs: np.sign(obs[..., 2])).share, 1.0)


# --- dimensions -------------------------------------------------------------------------------------------------------


def test_telling_dimensions_are_those_that_the_weight_depends_on():
    assert trust.telling_dims(made_up(lambda obs, probe: obs[..., 1] + 0.5 * obs[..., 3]), "half_right") == (1, 3)
    assert 0 in trust.telling_dims(made_up(right), "half_right")


def test_dimensions_that_tell_only_together_are_found():
    assert trust.telling_dims(made_up(lambda obs, probe: np.sign(obs[..., 0] * obs[..., 2])), "half_right") == (0, 2)


def test_what_seeds_disagree_about_is_explained_by_no_state():
    def weight(obs, probe):
        return 100.0 * np.arange(3.0)[:, None] * (probe - 1) + np.abs(obs[..., 2]) + np.abs(obs[..., 3])

    assert trust.telling_dims(made_up(weight), "half_right") == (2, 3)


def test_of_a_constant_weight_the_source_is_explained():
    found = made_up(lambda obs, probe: 0.3)
    found.aux[..., 0] = np.sign(found.obs[..., 1:2] * found.obs[..., 2:3])
    assert trust.telling_dims(found, "half_right") == (1, 2)


def test_dimensions_by_name_part_or_number():
    found = made_up(right)
    assert trust.find_dims(found, ["angle", "cart velocity"]) == (2, 1)
    assert trust.find_dims(found, ["3", 0]) == (3, 0)
    for dims, message in (
        (["angle"], "two"),
        (["velocity", "angle"], "say which"),
        (["pole angel", "0"], "nearest: 'pole angle'"),
        (["4", "0"], "4 components"),
    ):
        with pytest.raises(ValueError, match=message):
            trust.find_dims(found, dims)


# --- maps -------------------------------------------------------------------------------------------------------------


def test_cells_hold_means_and_nothing_where_too_few_points_fall():
    x, y = np.array([0.5, 0.5, 0.5, 1.5, 0.5]), np.array([0.5, 0.5, 0.5, 0.5, 1.5])
    values = np.array([1.0, 2.0, 3.0, 9.0, 9.0])
    cells = trust.cell_means(values, np.ones(5, bool), x, y, np.arange(3.0), np.arange(3.0))
    np.testing.assert_array_equal(cells, [[2.0, np.nan], [np.nan, np.nan]])
    cells = trust.cell_means(values, values != 2.0, x, y, np.arange(3.0), np.arange(3.0), least=1)
    np.testing.assert_array_equal(cells, [[2.0, 9.0], [9.0, np.nan]])  # rows are y


def test_every_one_of_few_values_has_its_own_cell():
    np.testing.assert_allclose(trust.edges(np.array([0.0, 1.0, 2.0, 1.0])), [-0.5, 0.5, 1.5, 2.5])
    assert len(trust.edges(np.zeros(5))) > 1


def test_the_picture_shows_the_border(tmp_path):
    figure = heat_maps(made_up(right), "half_right", ["cart position", "angle"], tmp_path / "map.png")
    assert (tmp_path / "map.png").stat().st_size > 5_000
    maps = [axes.collections[0] for axes in figure.axes if axes.get_title()]
    assert len(maps) == 8  # two actions; influence, the weight at the end and in the largest units, and the source
    weight = maps[0].get_array().filled(np.nan)
    columns = np.nanmean(weight, axis=0)
    assert np.all(columns[:8] < 0)
    assert np.all(columns[-8:] > 0)


def test_shares_over_training_are_drawn_where_they_were_noted():
    curves = {
        f"trust_{kind}/mine": np.full((2, 5), share)
        for kind, share in zip(("used", "ignored", "turned"), (0.5, 0.3, 0.2), strict=True)
    }
    assert shares_over_training(curves, "mine") is not None
    assert shares_over_training({"trust_used/mine": curves["trust_used/mine"]}, "mine") is None
