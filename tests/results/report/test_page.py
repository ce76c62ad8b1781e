"""Reports on run directories that the tests write by hand: nothing is trained."""

import functools
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml

import llmrl
from llmrl.analysis.answers import Words
from llmrl.analysis.trust import AS_ACTED, TrustMap
from llmrl.results.report.entries import (
    Broken,
    Entry,
    counted_once,
    describe_env,
    describe_source,
    find,
    read,
    sort_into_tasks,
)
from llmrl.results.report.page import report
from llmrl.results.report.tables import final_table, improvement_table, regret_table
from llmrl.runs import metrics

ITERATIONS = 20

compose = functools.cache(llmrl.compose)


def write_run(path, *overrides, level=100.0, finished=True, iterations=ITERATIONS, seeds=3, steps=40960, **curves):
    """A run's files, with curves that rise to about the level."""
    config = replace(compose(*overrides, f"seeds={seeds}", f"total_steps={steps}"), run_dir=str(path))
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump(plain(asdict(config))))
    noise = np.random.default_rng(0).uniform(-1.0, 1.0, (seeds, iterations))
    values = {
        "episode_return": -np.ones((seeds, iterations)),
        "episode_length": level * np.linspace(0.5, 1.0, iterations) + noise,
        "success_rate": np.full((seeds, iterations), 0.5),
        **{name: np.broadcast_to(curve, (seeds, iterations)) for name, curve in curves.items()},
    }
    metrics.append(path / "metrics.csv", {name: np.float32(curve) for name, curve in values.items()}, 0, 2048)
    if finished:
        found = metrics.summary(
            metrics.read(path / "metrics.csv"),
            steps_per_iteration=2048,
            compile_seconds=1.0,
            run_seconds=60.0,
            run_iterations=iterations,
        )
        metrics.write_summary(path / "summary.json", found)
    return path


def plain(value):
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    return [plain(entry) for entry in value] if isinstance(value, tuple) else value


LEARNED = {
    "influence/harmful": -0.1,
    "weight_mean": -0.1,
    "weight_mean_active/harmful": -0.1,
    "trust_used/harmful": 0.1,
    "trust_ignored/harmful": 0.2,
    "trust_turned/harmful": 0.7,
    "meta_residual": 0.25,
    "meta_solution_norm": 1.5,
    "meta_cut": 0.125,
    "meta_skipped": 0.0,
    "meta_step": 1.0,
    "meta_matvecs": 24.0,
}


def heard(source):
    """``LEARNED`` of another source."""
    return {name.replace("harmful", source): value for name, value in LEARNED.items()}


@pytest.fixture
def three(tmp_path):
    """What a comparison needs, in one directory."""
    runs = tmp_path / "runs"
    write_run(runs / "ppo", "method=ppo", level=100.0)
    write_run(runs / "add", "method=add", level=20.0)
    write_run(runs / "deep" / "down" / "learned", "method=implicit", level=110.0, **LEARNED)
    return runs


def a_map(path):
    obs = np.random.default_rng(0).normal(size=(3, 500, 4)).astype(np.float32)
    shape = (3, 500, 3, 1)
    return TrustMap(
        ("harmful",),
        (AS_ACTED, "action 0", "action 1"),
        ("cart position", "cart velocity", "pole angle", "pole angular velocity"),
        obs,
        aux=np.full(shape, -0.1, np.float32),
        influence=np.full(shape, -0.2, np.float32),
        weight=np.zeros(shape, np.float32),
        settled=np.full(shape, -0.171, np.float32),
        unit=np.full((3, 1), 0.5, np.float32),
    )


class Page(HTMLParser):
    """What a browser would load, where links lead to, and the text."""

    VOID = {"meta", "img", "br", "hr", "link", "input"}

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.loaded, self.links, self.ids, self.text = [], [], [], [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.append(tag)
        self.loaded += [values[name] for name in ("src", "srcset", "data", "poster", "background") if name in values]
        self.loaded += [values["href"]] if tag == "link" else []
        self.links += [values["href"]] if tag == "a" else []
        self.ids += [values["id"]] if "id" in values else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def page_of(paths, tmp_path, **options):
    path = report([str(path) for path in paths], tmp_path / "out", **{"make_map": a_map, **options})
    assert path == tmp_path / "out" / "index.html"
    return Page(path.read_text()), path.read_text()


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_has_every_part(three, tmp_path):
    page, _ = page_of([three], tmp_path)
    text = " ".join(page.text.split())
    for words in ("cartpole: harmful", "No regret", "Probability of improvement", "Performance profile"):
        assert words in text
    assert "harmful over" in text
    assert "0.250" in text  # the residual
    assert "12.5 %" in text  # cut back
    assert "24.0" in text  # products a step
    assert "is at least 5 %, as turned around" in text
    # What training noted stands beside the weights that it left, before and after units.
    assert "harmful-0.100-0.10010 % / 10 %20 % / 20 %70 % / 70 %0.000-0.1710.500100 %" in text
    assert text.count("finished") >= 3
    assert page.tags.count("img") == 5  # curves, profile, map, shares, solver health


def test_the_page_needs_nothing_but_itself(three, tmp_path):
    page, source = page_of([three], tmp_path)
    assert page.loaded
    assert all(address.startswith("data:image/png;base64,") for address in page.loaded)
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)
    assert "@import" not in source
    assert "url(" not in source
    # An address may be read, among a run's settings, but not loaded.
    assert not re.search(r"""(src|href|action|data|poster)\s*=\s*["']?(https?:)?//""", source)
    assert 'name="viewport"' in source
    beside = {file.name for file in (tmp_path / "out").iterdir()}
    for link in page.links:
        assert link[1:] in page.ids if link.startswith("#") else link in beside
    assert len(page.ids) == len(set(page.ids))


def test_names_from_files_are_escaped(tmp_path):
    evil = "<script>alert(1)</script>"
    path = write_run(tmp_path / "x<script>y" / "run", "method=implicit", "aux=harmful", **LEARNED)
    config = yaml.safe_load((path / "config.yaml").read_text())
    config["aux"]["function"] = evil
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    broken = tmp_path / "<img src=x onerror=alert(2)>"
    broken.mkdir()
    (broken / "config.yaml").write_text("nonsense: 1")

    def broken_map(path):
        raise ValueError(f"cannot play {evil}")

    page, source = page_of([tmp_path], tmp_path, make_map=broken_map)
    assert "script" not in page.tags
    assert evil not in source
    assert evil in page.text
    assert "cannot play" in page.text
    assert all(address.startswith("data:") for address in page.loaded)


def test_a_broken_run_is_listed_with_the_reason_and_the_others_are_reported(three, tmp_path):
    (three / "no_metrics").mkdir()
    (three / "no_metrics" / "config.yaml").write_text((three / "ppo" / "config.yaml").read_text())
    for name, before, after in (("torn", "", "0,0,2048,half\n"), ("mark", "\ufeff", ""), ("text", "hello,", "")):
        path = write_run(three / name, "method=add", finished=False)
        (path / "metrics.csv").write_text(before + (path / "metrics.csv").read_text() + after)
    (write_run(three / "bad_json", "method=add") / "summary.json").write_text("{")
    (write_run(three / "bad_yaml", "method=add") / "config.yaml").write_text("a: [")
    (write_run(three / "no_config", "method=add") / "config.yaml").unlink()
    page, _ = page_of([three, tmp_path / "nowhere"], tmp_path)
    listed = page.text[page.text.index("Not in this report") : page.text.index("Methods compared")]
    assert "torn: " not in listed and "mark: " not in listed
    for name in ("no_metrics", "text", "bad_json", "bad_yaml", "no_config", "nowhere"):
        assert f"{name}: " in listed
    assert "metrics.csv is missing" in listed
    assert "no such directory" in listed
    assert "No regret" in page.text


def test_unfinished_runs_are_marked_and_not_compared(tmp_path):
    write_run(tmp_path / "runs" / "ppo", "method=ppo")
    write_run(tmp_path / "runs" / "add", "method=add", finished=False, iterations=7)
    page, _ = page_of([tmp_path / "runs"], tmp_path)
    assert "unfinished: 7 of 20 iterations" in page.text
    assert "add (unfinished)" in page.text
    assert "Probability of improvement" not in page.text


def test_only_broken_runs_still_make_a_page_and_no_runs_at_all_are_an_error(tmp_path):
    (tmp_path / "runs" / "x").mkdir(parents=True)
    (tmp_path / "runs" / "x" / "config.yaml").write_text("nonsense: 1")
    page, _ = page_of([tmp_path / "runs"], tmp_path)
    assert "nonsense" in page.text
    with pytest.raises(ValueError, match="no such directory"):
        report([str(tmp_path / "nowhere")], tmp_path / "out")


def test_the_map_may_be_left_out_and_its_dimensions_chosen(three, tmp_path):
    def never(path):
        raise AssertionError

    page, _ = page_of([three], tmp_path, trust=False, make_map=never)
    assert "Trust: what" not in page.text
    page, _ = page_of([three], tmp_path, dims=("angular", "cart position"))
    assert "harmful over pole angular velocity and cart position" in page.text
    page, _ = page_of([three], tmp_path, dims=("angular", "card position"))
    assert "nearest: 'cart position'" in page.text


def test_an_unknown_measure_is_an_error(three, tmp_path):
    with pytest.raises(ValueError, match="measure=episode_lenght"):
        report([str(three)], tmp_path / "out", measure="episode_lenght", make_map=a_map)


def test_a_language_models_answers_are_shown_in_words(tmp_path):
    write_run(tmp_path / "runs" / "heard", "method=implicit", "aux=language", **heard("language"))

    def in_words(path):
        states, number = np.tile(np.arange(50, dtype=np.uint32), (3, 10)), 50
        event = np.broadcast_to(np.array([0, 0, 1]), (3, 500, 3))
        weight = np.where(event == 0, 0.5, -0.5) * np.linspace(0.0, 1.0, number)[states][..., None]
        scores = {key: np.array([0.9, 0.5], np.float32) for key in range(number - 1)}
        words = Words(0, states, event, lambda key: f"the <b>{key}th</b> place", ("push", "pull"), scores)
        moved = np.float32(weight)[..., None]
        found = a_map(path)._replace(sources=("language",), influence=2.0 * moved, settled=moved, words=words)
        return found._replace(aux=np.ones_like(moved))

    page, source = page_of([tmp_path / "runs"], tmp_path, make_map=in_words)
    text = " ".join(page.text.split())
    trusted = text[text.index("Most trusted") : text.index("Most ignored")]
    assert "the <b>48th</b> placepush0.90+0.980.49030" in trusted
    assert "49th" not in text  # nobody answered
    assert trusted.count("placepush") == 10
    ignored = text[text.index("Most ignored") : text.index("Most turned around")]
    assert "the <b>0th</b> placepush0.90+0.000.00030" in ignored
    turned = text[text.index("Most turned around") : text.index("All answers")]
    assert "None." in turned  # nobody pulled, and 0.5 says nothing
    assert text[text.index("All answers") :].count("placepull0.50") == 49
    assert "<b>48th" not in source


# --- finding and sorting ----------------------------------------------------------------------------------------------


def test_runs_are_found_below_directories_and_by_patterns_once(three):
    every, missing = find([str(three), str(three / "ppo"), str(three / "d*"), f"{three}/**/learned"])
    assert [path.name for path in every] == ["add", "learned", "ppo"]
    assert missing == []
    (three / "empty").mkdir()
    assert [reason for _, reason in find([str(three / "empty"), str(three / "nothing*")])[1]] == [
        "no run in it",
        "no such directory",
    ]


def entries(tmp_path, *runs):
    read_runs = [read(write_run(tmp_path / str(i), *overrides)) for i, overrides in enumerate(runs)]
    assert all(isinstance(entry, Entry) for entry in read_runs)
    return read_runs


def test_ppo_is_the_baseline_of_every_source_and_tasks_are_not_mixed(tmp_path):
    tasks = sort_into_tasks(
        entries(
            tmp_path,
            ("method=ppo",),
            ("method=add", "aux=random"),
            ("method=implicit", "aux=harmful"),
            ("method=implicit", "aux=harmful", "aux.scale=10"),
            ("method=ppo", "env=gridworld", "aux=harmful"),
        )
    )
    assert {(task.env, task.source): sorted(task.methods) for task in tasks} == {
        ("cartpole", "random"): ["add", "ppo"],
        ("cartpole", "harmful"): ["implicit", "ppo"],
        ("cartpole", "harmful x 10"): ["implicit", "ppo"],
        ("gridworld", "none"): ["ppo"],
    }
    assert {task.env: task.measure for task in tasks} == {"cartpole": "episode_length", "gridworld": "success_rate"}


def test_namesakes_are_told_apart_by_their_settings_and_seeds_are_put_together(tmp_path):
    (task,) = sort_into_tasks(
        entries(
            tmp_path,
            ("method=implicit", "seed=0"),
            ("method=implicit", "seed=1"),
            ("method=implicit", "solver.num_terms=5"),
        )
    )
    assert {label: len(method.curves["seed"]) for label, method in task.methods.items()} == {
        "implicit, num_terms=20": 6,
        "implicit, num_terms=5": 3,
    }


def test_other_answers_are_another_source_and_ppo_hears_none_of_them(tmp_path):
    tasks = sort_into_tasks(
        entries(
            tmp_path,
            ("method=ppo", "aux=language", "llm.noise=0.5"),
            ("method=ppo", "aux=none", "seed=1"),
            ("method=implicit", "aux=language"),
            ("method=implicit", "aux=language", "aux.center=0"),
            ("method=implicit", "aux=language", "llm.noise=0.5", "llm.max_requests=9", "track=tensorboard"),
            ("method=implicit", "aux=language", "llm.noise=0.5", "llm.concurrency=1", "seed=1"),
            ("method=add", "aux=language", "llm.noise=0.5"),
        )
    )
    found = {
        task.source: {label: len(method.curves["seed"]) for label, method in task.methods.items()} for task in tasks
    }
    assert found["language"] == {"ppo": 6, "implicit": 3}
    assert found["language, center=0"] == {"ppo": 6, "implicit": 3}
    noisy = found["language, noise=0.5"]
    assert noisy.pop("ppo") == 6 and noisy.pop("add") == 3
    assert noisy == {"implicit, max_requests=9": 3, "implicit, max_requests=None": 3}


def test_words_for_environments_and_sources():
    config = llmrl.compose("env=gridworld", "env.size=5", "aux=[harmful,random]", "aux.sources.random=0.5")
    assert describe_env(config) == "gridworld, size=5"
    assert describe_env(llmrl.compose("env=gridworld", "env.size=10")) == "gridworld"  # the default, spelled out
    assert describe_source(config) == "harmful + 0.5 x random"
    assert describe_env(llmrl.compose("env=gymnax", "env.id=Acrobot-v1", "aux=none")) == "Acrobot-v1"
    assert describe_source(llmrl.compose("aux=none")) == "none"


def test_a_run_without_any_files_is_broken(tmp_path):
    assert isinstance(read(tmp_path), Broken)


def test_only_runs_of_one_length_are_compared(tmp_path):
    write_run(tmp_path / "runs" / "ppo", "method=ppo")
    write_run(tmp_path / "runs" / "add", "method=add")
    write_run(tmp_path / "runs" / "short", "method=implicit", iterations=7)
    (task,) = sort_into_tasks([read(path) for path in find([str(tmp_path / "runs")])[0]])
    table = improvement_table(task)
    assert table is not None
    assert set(table.header) == {"higher than", "ppo", "add"}
    assert {row[2] for row in final_table(task).rows} == {"40,960", "14,336"}
    assert regret_table(task).rows == []
    assert "ppo has 40,960 steps where implicit has 14,336" in regret_table(task).note


# --- counted once -----------------------------------------------------------------------------------------------------


def test_a_seed_counts_once_whatever_a_source_says_that_its_method_does_not_hear(tmp_path):
    sources = ("aux=none", "aux=harmful", "aux=language", "aux=harmful")
    for i, aux in enumerate(sources):
        write_run(tmp_path / "runs" / str(i), "method=ppo", aux, seeds=7 if i == 2 else 5)
    write_run(tmp_path / "runs" / "other", "method=ppo", "seed=1", seeds=5)
    write_run(tmp_path / "runs" / "unfinished", "method=ppo", seeds=5, finished=False, iterations=7)
    write_run(tmp_path / "runs" / "heard", "method=add", "aux=harmful", seeds=5)
    write_run(tmp_path / "runs" / "twice", "method=add", "aux=harmful", seeds=6)
    page, _ = page_of([tmp_path / "runs"], tmp_path, trust=False)
    assert " ".join(page.text.split()).count("A seed is counted once") == 1
    for words in ("5 (counted elsewhere)", "7 (5 counted elsewhere)", "1 in 0; ", "2 in 0; ", "twice in heard"):
        assert words in page.text
    left, repeats = counted_once([read(path) for path in find([str(tmp_path / "runs")])[0]])
    assert {path.name: repeat.seeds for path, repeat in repeats.items()} == dict(
        zip(["1", "2", "3", "twice", "unfinished"], [5] * 5, strict=True)
    )
    assert {entry.path.name: len(entry.curves["seed"]) for entry in left} == {
        "0": 5,
        "2": 2,
        "other": 5,
        "heard": 5,
        "twice": 1,
    }
    (task,) = sort_into_tasks(left)
    assert {row[0]: row[1] for row in final_table(task).rows} == {"ppo": "12", "add": "6"}


# --- several settings and lengths -------------------------------------------------------------------------------------


def test_baselines_are_those_of_equal_settings_and_length(tmp_path):
    for steps in (20480, 40960):
        for method, level in (("ppo", 100.0), ("add", 20.0), ("implicit", steps / 400)):
            size = {"steps": steps, "iterations": steps // 2048, "seeds": 5, "level": level}
            write_run(tmp_path / "runs" / f"{method}-{steps}", f"method={method}", "aux=harmful", **size)
    write_run(tmp_path / "runs" / "gate", "method=implicit", "aux=harmful", "method.trust.gate=false", seeds=5)
    write_run(tmp_path / "runs" / "entropy", "method=implicit", "aux=harmful", "ppo.entropy=0.5", seeds=5)
    write_run(tmp_path / "runs" / "rnd", "method=rnd", "aux=none", seeds=5)
    (task,) = sort_into_tasks([read(path) for path in find([str(tmp_path / "runs")])[0]])
    table = regret_table(task)
    found = {row[0]: (row[1].split()[0], row[-1]) for row in table.rows}
    assert found["implicit, total_steps=20480, entropy=0.003, gate=True"][1] == "no (0/5)"  # 51 where ppo has 100
    assert found["implicit, total_steps=40960, entropy=0.003, gate=True"] == ("1.024", "yes (5/5)")
    assert found["rnd"][0] == found["implicit, total_steps=40960, entropy=0.003, gate=False"][0] == "1.000"
    assert len(found) == 4
    assert table.note == (
        "Not compared: implicit, total_steps=40960, entropy=0.5, gate=True: "
        "ppo ran only with other settings, ppo.entropy=0.003 in place of 0.5; "
        "add ran only with other settings, ppo.entropy=0.003 in place of 0.5."
    )
    improvement = improvement_table(task)
    assert improvement is not None and improvement.header == ("higher than", *map(str, range(1, 10)))
    names = [row[0].partition(": ")[2] for row in improvement.rows]
    short, long = names.index("add, total_steps=20480"), names.index("ppo, total_steps=40960")
    assert improvement.rows[short][1 + long] == "" != improvement.rows[short][1 + names.index("ppo, total_steps=20480")]


@pytest.mark.parametrize(
    ("runs", "reason"),
    [
        ([("implicit", {}), ("ppo", {})], "implicit: there is no run of add."),
        ([("ppo", {}), ("add", {})], "there is no method here but ppo and add."),
        ([("implicit", {}), ("add", {}), ("ppo", {"finished": False})], "implicit: ppo: unfinished."),
        ([("implicit", {"finished": False}), ("add", {}), ("ppo", {})], "implicit: unfinished."),
    ],
)
def test_the_true_reason_is_said_where_nothing_can_be_compared(tmp_path, runs, reason):
    for method, options in runs:
        write_run(tmp_path / "runs" / method, f"method={method}", "aux=harmful", **options)
    page, _ = page_of([tmp_path / "runs"], tmp_path, trust=False)
    assert f"Not compared: {reason}" in page.text


def test_labels_are_short_however_many_settings_differ(tmp_path):
    (task,) = sort_into_tasks(
        entries(
            tmp_path,
            ("method=implicit", "aux=harmful"),
            ("method=implicit", "aux=harmful", "ppo=tiny", "solver.num_terms=3"),
            ("method=implicit", "aux=harmful", "ppo=tiny", "solver.num_terms=3", "ppo.learning_rate=0.001"),
        )
    )
    assert len(task.methods) == 3
    assert all(label.endswith(", …") and label.count("=") <= 2 and len(label) < 60 for label in task.methods)
