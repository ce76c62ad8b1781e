"""Scores of the suite: the equal of the better one scores 1, random play 0, and units of the return do not matter."""

import numpy as np
import pytest

from llmrl.analysis.comparison import NO, UNDECIDED, YES
from llmrl.analysis.no_regret import Cell, Reached, helps, reached, scores, summaries
from llmrl.analysis.statistics import ratio_interval

SEEDS = 8


def level(mean, seed=0, seeds=SEEDS, noise=1.0):
    """Area and end about a mean, with the noise's own mean taken out."""
    drawn = np.random.default_rng(seed).normal(size=(2, seeds)) * noise
    return Reached(*(mean + drawn - drawn.mean(axis=1, keepdims=True)))


def cell(task="t", source="s", random=10.0, ppo=60.0, add=90.0, **others):
    means = {"ppo": ppo, "add": add, **others}
    made = {name: each if isinstance(each, Reached) else level(each, i) for i, (name, each) in enumerate(means.items())}
    return Cell(task, source, random, made)


def summary(cells, method):
    return summaries(cells)[method]


def numbers(found):
    """Everything that has no unit."""
    return np.array([[one.score, one.gain, *one.ratio] for one in (found.area, found.end)])


def test_who_equals_the_better_one_scores_one():
    for ppo, add in ((60.0, 90.0), (90.0, 20.0)):
        one = cell(ppo=ppo, add=add)
        better = one.reached["add" if add > ppo else "ppo"]
        found = scores(one._replace(reached={**one.reached, "mine": better}))["mine"]
        np.testing.assert_allclose(numbers(found)[:, [0, 2, 3, 4]], 1.0)
        assert found.verdict == YES and not found.clear


def test_random_play_scores_nothing():
    found = scores(cell(dead=10.0))["dead"]
    np.testing.assert_allclose([found.area.score, found.area.ratio.value, found.end.score], 0.0, atol=1e-12)
    assert (found.verdict, found.clear) == (NO, True)


def test_the_best_method_scores_one_and_its_ratio_says_by_how_much_it_is_better():
    found = scores(cell(random=-200.0, ppo=-150.0, add=-190.0, mine=-100.0))
    assert found["mine"].area.score == pytest.approx(1.0)
    assert found["mine"].area.ratio.value == pytest.approx(2.0)
    assert found["ppo"].area.score == pytest.approx(0.5)
    assert found["mine"].area.gain == pytest.approx(0.5) and found["ppo"].area.gain == 0.0


@pytest.mark.parametrize(("scale", "shift"), [(1.0, -1000.0), (0.01, 0.0), (30.0, 7.0)])
def test_affine_changes_of_the_return_change_nothing(scale, shift):
    cells = [cell("a", mine=80.0), cell("a", "q", add=20.0, mine=59.0), cell("b", random=-5.0, mine=30.0)]

    def changed(one):
        values = {name: Reached(*(scale * x + shift for x in each)) for name, each in one.reached.items()}
        return one._replace(random=scale * one.random + shift, reached=values)

    for one in cells:
        for name, found in scores(one).items():
            other = scores(changed(one))[name]
            np.testing.assert_allclose(numbers(found), numbers(other), atol=1e-9)
            assert (found.verdict, found.clear) == (other.verdict, other.clear)
    before, after = summary(cells, "mine"), summary([changed(one) for one in cells], "mine")
    np.testing.assert_allclose([*before.score, *before.gain_kept], [*after.score, *after.gain_kept], atol=1e-9)
    assert before[:3] == after[:3] and before.worst == after.worst


def test_a_small_loss_in_the_area_is_no_regret_and_one_at_the_end_is():
    top = level(90.0)
    small = Reached(top.area - 0.02 * 80.0, top.end)
    found = scores(cell(add=top, small=small, late=Reached(top.area, top.end - 1.0)))
    assert found["small"].verdict == YES and found["small"].area.ratio.value == pytest.approx(0.98)
    assert (found["late"].verdict, found["late"].clear) == (NO, True)


def test_a_loss_within_chance_is_not_clear():
    found = scores(cell(ppo=level(60.0, noise=1.0), add=level(20.0), mine=level(57.0, 7, noise=30.0)))["mine"]
    assert (found.verdict, found.clear) == (NO, False)
    assert found.area.ratio.low < 0.97 < found.area.ratio.high


def test_where_nobody_learns_there_is_no_ratio_and_only_a_clear_loss_is_regret():
    one = cell(random=-200.0, ppo=level(-200.0), add=level(-200.0, 1), same=level(-200.0, 2), worse=level(-230.0, 3))
    found = scores(one)
    assert np.isnan(found["same"].area.ratio.value)
    assert found["same"].verdict == YES
    assert (found["worse"].verdict, found["worse"].clear) == (NO, True)
    assert summary([one], "same").worst == ""


def test_too_few_seeds_decide_nothing():
    one = cell(ppo=level(60.0, seeds=4), add=level(90.0, seeds=4), mine=level(20.0, seeds=4))
    assert {found.verdict for found in scores(one).values()} == {UNDECIDED}
    assert summary([one], "mine")[:3] == (1, 0, 0)


def test_the_interval_of_a_ratio_is_fiellers():
    one = cell(mine=70.0)
    expected = ratio_interval(one.reached["mine"].area - 10.0, one.reached["add"].area - 10.0, paired=True)
    assert scores(one)["mine"].area.ratio == expected


def test_adding_keeps_all_of_its_gain_ignoring_none_and_half_the_way_half():
    cells = [cell("a"), cell("a", "x", add=75.0), cell("b", ppo=-3.0, add=9.0, random=-4.0), cell("b", "bad", add=20.0)]
    cells = [
        one._replace(
            reached={
                **one.reached,
                "half": Reached(*((x + y) / 2 for x, y in zip(one.reached["ppo"], one.reached["add"], strict=True))),
            }
        )
        for one in cells
    ]
    assert [helps(one) for one in cells] == [True, True, True, False]
    for method, share in (("add", 1.0), ("ppo", 0.0), ("half", 0.5)):
        found = summary(cells, method)
        assert found.helped == 3
        np.testing.assert_allclose(found.gain_kept, share, atol=1e-9)


def test_where_adding_does_not_help_there_is_no_gain_to_keep():
    """A cell in which it harms, and one in which it helps no more than by chance, count for nothing."""
    helping, harmful = cell("a", mine=80.0), cell("b", "bad", add=20.0, mine=70.0)
    by_chance = cell("c", ppo=level(60.0, noise=30.0), add=level(65.0, 1, noise=30.0), mine=70.0)
    assert [helps(one) for one in (helping, harmful, by_chance)] == [True, False, False]
    found = summary([helping, harmful, by_chance], "mine")
    assert found.helped == 1 and found.gain_kept == summary([helping], "mine").gain_kept


def test_the_worst_cell_is_told_by_area_or_end_whichever_is_smaller():
    fallen, slow = Reached(level(90.0).area, level(30.0).end), Reached(level(50.0).area, level(90.0).end)
    for cells in ([cell("a", mine=fallen), cell("b", mine=60.0)], [cell("b", mine=slow), cell("a", mine=fallen)]):
        found = summary(cells, "mine")
        assert found.worst == "a/s" and found.worst_ratio.value == pytest.approx(0.25)


def test_a_summary_counts_cells_and_names_the_worst():
    cells = [cell("a", mine=95.0), cell("a", "x", mine=30.0), cell("b", "y", add=15.0, mine=58.0)]
    found = summary(cells, "mine")
    verdicts = [scores(one)["mine"] for one in cells]
    assert (found.cells, found.kept) == (3, sum(one.verdict == YES for one in verdicts))
    assert found.worst == "a/x" and found.worst_ratio.value == pytest.approx(0.25)
    # Tasks count alike, whatever their number of cells.
    areas = [one.area.score for one in verdicts]
    assert found.score.value == pytest.approx((np.mean(areas[:2]) + areas[2]) / 2)


def test_a_task_in_which_nobody_learns_is_left_out_of_the_score():
    flat = cell("flat", random=-200.0, ppo=level(-200.0, noise=0.0), add=level(-200.0, noise=0.0))
    cells = [cell("a", mine=70.0), cell("b", mine=30.0)]
    assert summary([*cells, flat], "add").score == summary(cells, "add").score


def test_neither_the_order_of_cells_nor_that_of_seeds_matters():
    cells = [cell("a", mine=80.0), cell("b", "x", mine=30.0), cell("a", "y", mine=85.0)]
    order = np.random.default_rng(0).permutation(SEEDS)
    turned = [
        one._replace(reached={name: Reached(*(x[order] for x in each)) for name, each in one.reached.items()})
        for one in reversed(cells)
    ]
    one, other = summary(cells, "mine"), summary(turned, "mine")
    np.testing.assert_allclose([*one.score, *one.gain_kept], [*other.score, *other.gain_kept])
    assert (one[:3], one.worst) == (other[:3], other.worst)


def test_a_method_that_is_not_the_best_changes_nothing_for_the_others():
    one, more = cell(mine=80.0), cell(mine=80.0, another=40.0)
    np.testing.assert_array_equal(numbers(scores(one)["mine"]), numbers(scores(more)["mine"]))


def test_who_is_missing_in_a_cell_is_not_scored_there():
    cells = [cell("a", mine=80.0), cell("b")]
    assert summary(cells, "mine").cells == 1 and summary(cells, "add").cells == 2
    assert "nowhere" not in summaries(cells) and summaries([]) == {}


def test_area_and_end_of_curves():
    found = reached(np.tile(np.arange(20.0), (3, 1)))
    np.testing.assert_allclose(found.area, 9.5)
    np.testing.assert_allclose(found.end, 18.5)


def test_who_is_as_good_as_the_better_one_seldom_has_regret_beyond_chance():
    random = np.random.default_rng(0)

    def drawn(mean):
        return Reached(*(mean + 0.05 * random.normal(size=(2, SEEDS))))

    found = [scores(cell(random=0.0, ppo=drawn(1.0), add=drawn(0.3), mine=drawn(1.0)))["mine"] for _ in range(100)]
    assert np.mean([one.clear for one in found]) < 0.1
    assert np.mean([one.verdict == YES for one in found]) > 0.7
