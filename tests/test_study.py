"""The tables of the studies, on curves whose numbers are known."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

import llmrl
from llmrl.analysis.trust import AS_ACTED, TrustMap
from llmrl.studies.carry_out import Found

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
SPEC = importlib.util.spec_from_file_location("study_for_tests", SCRIPTS / "study.py")
study = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = study
sys.path.insert(0, str(SCRIPTS))  # as for a script, whose folder Python puts there by itself
try:
    SPEC.loader.exec_module(study)
    import answer_studies  # pyright: ignore
    import measures  # pyright: ignore
    import trust_studies  # pyright: ignore
finally:
    sys.path.remove(str(SCRIPTS))


def found(measure, *levels, iterations=20, speed=None, **others):
    """Constant curves, three seeds of each level; a pair of levels is that of training and that of its last tenth."""
    levels = levels * 3
    curves = np.empty((len(levels), iterations), np.float32)
    for curve, level in zip(curves, levels, strict=True):
        curve[:-2], curve[-2:] = level if isinstance(level, tuple) else (level, level)
    flat = {name: np.full(curves.shape, value, np.float32) for name, value in others.items()}
    return Found({measure: curves, **flat}, speed)


def cells(table):
    """Header and rows of a markdown table, each a list of cells of the header's length."""
    header, rule, *rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in table.splitlines()]
    assert set(rule) == {"---"}
    assert {len(row) for row in rows} <= {len(header)}
    return header, rows


def length(*levels, **others):
    return found("episode_length", *levels, **others)


# --- what is run ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", study.STUDIES)
def test_every_run_composes_and_has_its_own_directory(name):
    runs = study.STUDIES[name].runs
    assert len({run.name for run in runs}) == len({run[1:] for run in runs}) == len(runs)
    assert {run.reward_from for run in runs if run.reward_from} <= {run.name for run in runs}
    seen = set()
    for run in runs:
        if not seen.issuperset(run.overrides):  # combinations of what composes compose
            source = ("reward_from=elsewhere",) if run.reward_from else ()
            config = llmrl.compose(*run.overrides, *source, *study.QUICK, "seeds=3")
            assert (config.seeds, config.num_iterations) == (3, 4)
            seen.update(run.overrides)


# --- no regret --------------------------------------------------------------------------------------------------------


def verdict(ppo, add, learned):
    results = {"cartpole/any/ppo": ppo, "cartpole/harmful/add": add, "cartpole/harmful/implicit": learned}
    header, rows = cells(study.no_regret_table(results))
    return dict(zip(header, rows[-1], strict=True))


def test_no_regret_is_measured_against_the_better_baseline():
    row = verdict(length(100, 100), length(10, 10), length(96, 96, weight_mean_active=-0.5))
    assert row["area / better"] == "0.960 [0.960, 0.960]"
    assert (row["end - ppo"], row["end - add"]) == ("-4.000 [-4.000, -4.000]", "86.0 [86.0, 86.0]")
    assert (row["area"], row["active weight"], row["largest weight"]) == ("96.0 [96.0, 96.0]", "-0.500", "-0.500")
    assert row["no regret"] == "no (0/6)"  # four steps below ppo on every seed


@pytest.mark.parametrize(
    ("learned", "expected"),
    [
        (length((100, 90), (100, 111)), "not enough seeds (3/6)"),  # half of the seeds below and half above
        (length((95, 110), (95, 110)), "no (0/6)"),  # the end is better, but the way there cost too much
        (length((100, 95), (100, 95)), "no (0/6)"),
        (length((100, 99), (100, 99)), "yes (6/6)"),
        (length(100, 100), "yes (6/6)"),
    ],
)
def test_no_regret_asks_for_the_area_and_for_the_end(learned, expected):
    assert verdict(length(100, 100), length(10, 10), learned)["no regret"] == expected
    assert verdict(length(10, 10), length(100, 100), learned)["no regret"] == expected


def test_the_worst_seed_and_the_largest_weight_are_of_single_seeds():
    learned = length((50, 100), (50, 80))
    weights = np.tile(np.array([[-0.5], [0.1]], np.float32), (3, 20))
    learned = learned._replace(curves={**learned.curves, "weight_mean_active": weights})
    row = verdict(length(10, 10), length(10, 10), learned)
    assert (row["last tenth"], row["worst seed"], row["area"].split()[0]) == ("90.0", "80.0", "54.0")
    assert (row["active weight"], row["largest weight"]) == ("-0.200", "0.100")


def test_a_part_of_a_study_makes_a_part_of_its_table():
    header, rows = cells(study.no_regret_table({"cartpole/harmful/implicit": length(9, 9)}))
    assert rows[0][:4] == ["cartpole", "harmful", "implicit", "9.000 [9.000, 9.000]"]
    assert set(rows[0][header.index("area / better") :]) == {""}
    for name in study.STUDIES:
        cells(study.STUDIES[name].table({}).split("\n\n")[0])


def test_over_draws_of_a_source_a_draw_counts_once_however_many_seeds_it_has():
    levels = [80, 90, 100, 110, 120]
    results = {"cartpole/any/ppo": length(100, 100)}
    for draw, level in enumerate(levels):
        results[f"cartpole/random_{draw}/add"] = length(level, level)
        results[f"cartpole/random_{draw}/implicit"] = length(100, 100)
    header, rows = cells(study.random_draws_table(results).split("\n\n")[1])
    added, learned = (dict(zip(header, row, strict=False)) for row in rows)
    # Student's t with 4 degrees of freedom: 2.776 sqrt(250 / 5).
    assert (added["draws"], added["area"], added["worst seed"]) == ("5", "100.0 [80.4, 119.6]", "80.0")
    ratios = np.array([1, 1, 1, 100 / 110, 100 / 120])
    assert learned["area / better"].startswith(f"{ratios.mean():.3f} [")
    assert (learned["area"], learned["end - ppo"]) == ("100.0 [100.0, 100.0]", "0.000 [0.000, 0.000]")


def test_wrong_answers_are_compared_with_ignoring_the_model_and_with_trusting_it():
    results = {
        "any/any/ppo": length(100, 100),
        "centred/0.25/add": length(120, 120),
        "uncentred/0.25/add": length(10, 10),
        "centred/0.25/implicit": length(118, 120, weight_mean_active=0.5),
        "uncentred/0.25/implicit": length(100, 100),
        "centred/1/implicit": length(100, 100),
    }
    header, rows = cells(study.wrong_answers_table(results))
    by_name = {"/".join(row[:3]): dict(zip(header, row, strict=True)) for row in rows}
    assert by_name["centred/0.25/implicit"]["area / better"].startswith("0.992 [")
    assert by_name["centred/0.25/implicit"]["active weight"] == "0.500"
    assert by_name["uncentred/0.25/implicit"]["no regret"] == "yes (6/6)"
    assert by_name["centred/1/implicit"]["no regret"] == ""  # its share's own baseline is not there yet
    wrong = [run for run in study.STUDIES["wrong_answers"].runs if "/implicit" in run.name]
    assert len(wrong) == len(measures.WRONG) * len(answer_studies.CENTRES)
    config = llmrl.compose(*wrong[-1].overrides)
    assert (config.llm.noise, config.aux.center, config.aux.sources) == (1.0, 0, {"language": 1.0})


def test_wrong_answers_are_drawn_as_far_as_they_are_there(tmp_path):
    ppo = length(100, 110, env_steps=5)
    parts = {"any/any/ppo": ppo, "centred/0/add": ppo, "centred/1/implicit": ppo, "uncentred/0.5/bipars_mgl": ppo}
    for results in ({}, parts):
        answer_studies.wrong_answers_pictures(results, tmp_path)
        assert {picture.name for picture in tmp_path.iterdir()} == {"wrong_answers.png", "curves.png"}
    assert list(answer_studies.wrong_answers_cell(parts, "centred", 0.0)) == ["ppo", "add"]
    lines = answer_studies.by_method({0.0: {"add": ppo}, 1.0: {"ppo": ppo}}, measures.last_tenth)
    assert {method: list(shares) for method, shares in lines.items()} == {"add": [0.0], "ppo": [1.0]}


# --- what was learned about a source ----------------------------------------------------------------------------------


def test_half_right_counts_both_sides_of_the_border(monkeypatch, tmp_path):
    """Seed 0 uses the source where it is right and ignores it elsewhere, seed 1 uses it everywhere."""
    position = np.tile(np.linspace(-1.0, 1.0, 40, dtype=np.float32), (2, 1))
    weight = np.where(position >= 0, 0.4, np.array([[0.0], [0.4]]))
    everywhere = np.ones((2, 40, 1, 1), np.float32)
    found = TrustMap(
        ("half_right",),
        (AS_ACTED,),
        ("cart position", "cart velocity", "pole angle", "pole angular velocity"),
        np.stack([position, *np.random.default_rng(0).normal(size=(3, 2, 40)).astype(np.float32)], axis=-1),
        aux=0.1 * everywhere,
        influence=everywhere,
        weight=everywhere,
        settled=weight[..., None, None].astype(np.float32),
        unit=np.ones((2, 1), np.float32),
    )
    monkeypatch.setattr(trust_studies, "map_of", lambda path: found)
    curves = {"trust_used/half_right": 0.75, "trust_turned/half_right": 0.0, "trust_ignored/half_right": 0.25}
    run = length(9, 9, env_steps=np.arange(1, 21), **curves)
    run = run._replace(path=tmp_path, curves={name: curve[:2] for name, curve in run.curves.items()})
    results = {"cartpole/half_right/implicit": run}
    table, words = study.half_right_table(results).split("\n\n", 1)
    header, rows = cells(table)
    trusting_one_side, trusting_all, mean = (dict(zip(header, row, strict=True)) for row in rows)
    assert (trusting_one_side["correct"], trusting_all["correct"]) == ("1.000", "0.500")
    assert (trusting_all["correct where right"], trusting_all["correct where wrong"]) == ("1.000", "0.000")
    assert (trusting_all["weight where right"], trusting_one_side["weight where wrong"]) == ("0.400", "0.000")
    assert mean["correct"] == "0.750" and mean["used, training"] == "0.750"
    assert "at least 90 % of the steps in 1 of 2 seeds" in words
    study.half_right_pictures(results, tmp_path)
    assert {picture.name for picture in tmp_path.glob("*.png")} == {"weights_implicit.png", "shares_implicit.png"}


def test_transfer_is_measured_beside_ppo_of_the_same_seeds():
    results = {
        "cartpole/any/ppo": length(100, 120),
        "cartpole/harmful/add": length(10, 30),
        "cartpole/learning/implicit": length(100, 120, weight_mean_active=-0.5),
        "cartpole/frozen/implicit": length(101, 121, weight_mean_active=-0.25),
    }
    header, rows = cells(study.transfer_table(results))
    ppo, add, _, frozen = (dict(zip(header, row, strict=True)) for row in rows)
    assert (frozen["area - ppo"], frozen["not slower"]) == ("1.000 [1.000, 1.000]", "yes")  # paired
    assert (add["not slower"], ppo["not slower"], frozen["active weight"]) == ("no", "", "-0.250")
    runs = {run.name: run for run in study.STUDIES["transfer"].runs}
    for name, run in runs.items():
        assert (run.reward_from is not None) == ("/frozen/" in name)
        same = {"seed=1000"} & set(run.overrides)
        assert bool(same) == ("/learning/" not in name)


# --- Crafter ----------------------------------------------------------------------------------------------------------


def success(*levels, **others):
    return found("success_rate", *levels, **others)


def test_in_crafter_help_is_measured_against_trust_and_distraction_against_ignorance():
    results = {
        "place_table/any/ppo": success(0.3, 0.5),
        "place_table/hints/add": success(0.8, 0.8),
        "place_table/distracting/add": success(0.1, 0.1),
        "place_table/hints/implicit": success(0.6, 0.8, weight_mean_active=0.4),
        "place_table/distracting/implicit": success(0.2, 0.6),
        "make_wood_sword/hints/implicit": success(0.7, 0.8),
    }
    header, rows = cells(study.crafter_no_regret_table(results))
    by_name = {"/".join(row[:3]): dict(zip(header, row, strict=True)) for row in rows}
    helped = by_name["place_table/hints/implicit"]
    assert (helped["area / add"], helped["no regret"], helped["active weight"]) == (
        "0.875",
        "not enough seeds (3/6)",
        "0.400",
    )
    distracted = by_name["place_table/distracting/implicit"]  # half of the seeds above ppo and half below
    assert distracted["end - ppo"].startswith("0.000 [-0.") and distracted["no regret"] == "not enough seeds (3/6)"
    assert by_name["make_wood_sword/hints/implicit"]["no regret"] == by_name["place_table/any/ppo"]["no regret"] == ""
    never = {**results, "place_table/hints/add": success(0.0, 0.0)}
    header, rows = cells(study.crafter_no_regret_table(never))
    assert dict(zip(header, rows[3], strict=True))["area / add"] == "nan"


def test_wrong_goals_are_compared_with_ignoring_and_with_adding_them():
    results = {
        "place_table/any/ppo": success(0.3, 0.5),
        "place_table/1/implicit": success(0.4, 0.6, weight_mean_active=0.1),
        "place_table/1/ellm": success(0.2, 0.2),
    }
    header, rows = cells(study.wrong_goals_table(results))
    ppo, ours, adding = (dict(zip(header, row, strict=True)) for row in rows)
    assert (ours["end - ppo"].split()[0], ours["end - ellm"].split()[0]) == ("0.100", "0.300")
    assert (adding["end - ellm"], ppo["end - ppo"], ours["active weight"]) == ("", "", "0.100")
    last = llmrl.compose(*study.STUDIES["wrong_goals"].runs[-2].overrides)
    assert (last.llm.provider, last.llm.noise, last.aux.sources) == ("oracle", 1.0, {"goals": 1.0})


# --- the others -------------------------------------------------------------------------------------------------------


def test_ablation_has_a_row_for_every_part_and_a_column_for_every_setting():
    results = {
        "cartpole_continuous/harmful/gate": length((100, 200), (100, 200)),
        "gridworld/helpful_hackable/nothing": found("success_rate", 0.5, 1.0),
    }
    header, rows = cells(study.ablation_table(results))
    assert len(rows) * (len(header) - 1) == len(study.STUDIES["ablation"].runs)
    by_part = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert by_part["gate"]["cartpole_continuous/harmful"] == "110.0 / 200.0"
    assert by_part["nothing"]["gridworld/helpful_hackable"] == "0.750 / 0.750"
    assert by_part["nothing"]["cartpole_continuous/harmful"] == ""


def test_solvers_report_how_well_they_solved_and_what_it_cost():
    steps = {"meta_residual": 0.25, "meta_matvecs": 24.0, "meta_step": 1.0}
    header, rows = cells(study.solver_table({"neumann_k20/fisher": length(150, 160, speed=12345.6, **steps)}))
    row = dict(zip(header, rows[0], strict=True))
    assert (row["solver"], row["curvature"], row["residual"]) == ("neumann_k20", "fisher", "0.250")
    assert (row["products per outer step"], row["steps per second"]) == ("24.0", "12,346")
    assert row["last tenth"].startswith("155.0 [")


def test_products_count_only_where_a_step_was_taken():
    curves = {"meta_matvecs": np.array([[0.0, 6.0, 0.0, 8.0]]), "meta_step": np.array([[0.0, 1.0, 0.0, 1.0]])}
    assert study.products_per_step(curves) == 7.0
    assert np.isnan(study.products_per_step({name: np.zeros((1, 4)) for name in curves}))


def test_gridworld_compares_with_ppo():
    results = {
        "10/any/ppo": found("success_rate", 0.25, 0.5),
        "10/harmful/implicit": found("success_rate", 0.5, 0.75),
    }
    header, rows = cells(study.gridworld_table(results))
    row = dict(zip(header, rows[1], strict=True))
    assert row["end - ppo"] == "0.250 [0.250, 0.250]"
    assert (row["worst seed"], row["fall from its best"]) == ("0.500", "0.000")
    assert rows[0][header.index("end - ppo")] == ""


def test_a_fall_is_what_is_lost_since_the_best():
    rising = np.tile(np.linspace(0.0, 1.0, 40), (3, 1))
    assert study.fall(rising) == 0.0
    assert study.fall(np.concatenate([rising, rising[:, :1] + np.full((3, 20), 0.7)], axis=1)) == pytest.approx(
        np.mean(rising[0, -5:]) - 0.7
    )
    # One seed's loss is another's gain: the mean has not fallen.
    assert study.fall(np.array([[0.0] * 10 + [1.0] * 10, [1.0] * 10 + [0.0] * 10])) == 0.0
    assert study.fall(np.array([[1.0, 0.5]])) == 0.0  # shorter than the window
