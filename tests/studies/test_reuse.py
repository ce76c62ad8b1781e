"""A run that hears no source is trained once: a link to a finished one stands in for it, where both are one run."""

from dataclasses import replace

import pytest

import llmrl
from llmrl.runs import directory as runs
from llmrl.runs import metrics
from llmrl.studies.carry_out import Run, carry_out
from llmrl.studies.reuse import link_to_equal

TINY = ("env=gridworld", "env.size=3", "ppo=tiny", "seeds=2", "total_steps=128")


def config(path, *more):
    return llmrl.compose(*TINY, f"run_dir={path}", *more)


def finish(config, versions=None):
    with runs.open_run(config) as run:
        run.metrics_path.write_text("seed,iteration,env_steps,episode_return\n0,0,64,0.5\n1,0,64,1.5\n")
        metrics.write_summary(run.summary_path, {"steps_per_second": 5.0, "versions": versions or metrics.versions()})


@pytest.mark.parametrize("where", ["ppo", "sweep/ppo"])
def test_a_finished_run_stands_in_for_the_same_one_under_another_source(tmp_path, where, capsys):
    finish(config(tmp_path / where, "method=ppo", "aux=harmful"))
    place = tmp_path / "comparison" / "ppo"
    for _ in range(2):
        assert link_to_equal(config(place, "method=ppo", "aux=none"), tmp_path)
        assert place.is_symlink() and place.resolve() == (tmp_path / where).resolve()
    assert f"the same run as {tmp_path / where}" in capsys.readouterr().err.replace("\n", "")
    assert not (tmp_path / where).is_symlink()


@pytest.mark.parametrize(
    ("finished", "wanted"),
    [
        (("method=ppo",), ("method=ppo", "seed=1")),
        (("method=ppo",), ("method=ppo", "seeds=3")),
        (("method=ppo",), ("method=ppo", "ppo.entropy=0.5")),
        (("method=ppo",), ("method=ppo", "resume=false")),
        (("method=ppo",), ("method=rnd",)),
        (("method=add", "aux=harmful"), ("method=add", "aux=harmful")),  # hears its source
        (("method=ppo", "env=gymnax", "env.id=own.corridor"), ("method=ppo", "env=gymnax", "env.id=own.corridor")),
    ],
)
def test_another_run_or_one_of_the_users_own_code_is_trained(tmp_path, finished, wanted):
    small = [override for override in TINY if not override.startswith("env") or "env=gymnax" not in finished]
    there, here = (
        llmrl.compose(*(o for o in small if o.partition("=")[0] not in {w.partition("=")[0] for w in words}), *words)
        for words in (finished, wanted)
    )
    finish(replace(there, run_dir=str(tmp_path / "there")))
    assert not link_to_equal(replace(here, run_dir=str(tmp_path / "here")), tmp_path)
    assert not (tmp_path / "here").exists()


def test_what_other_versions_trained_and_what_is_unfinished_stands_in_for_nothing(tmp_path):
    finish(config(tmp_path / "old", "method=ppo"), {**metrics.versions(), "llmrl": "0.0.1"})
    with runs.open_run(config(tmp_path / "begun", "method=ppo")):
        pass
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "summary.json").write_text("{")
    (tmp_path / "broken" / "config.yaml").write_text("method:\n  name: ppo\n")
    assert not link_to_equal(config(tmp_path / "new", "method=ppo"), tmp_path)


def test_a_link_whose_run_is_gone_or_another_one_now_is_taken_away(tmp_path):
    finish(config(tmp_path / "old", "method=ppo"))
    assert link_to_equal(config(tmp_path / "new", "method=ppo"), tmp_path)
    assert not link_to_equal(config(tmp_path / "new", "method=ppo", "ppo.entropy=0.5"), tmp_path)
    assert not (tmp_path / "new").is_symlink() and (tmp_path / "old" / "summary.json").exists()


def test_a_study_takes_what_is_finished_beside_it_and_trains_the_rest(tmp_path):
    finish(config(tmp_path / "before", "method=ppo", "aux=random"))
    listed = [Run(method, (*TINY[:3], TINY[4], f"method={method}", "aux=harmful")) for method in ("ppo", "add")]
    trained = []

    def train(config):
        trained.append(config.method.name)
        finish(config)

    for near, expected in ((tmp_path, ["add"]), (None, [])):
        trained.clear()
        outcome = carry_out(listed, tmp_path / "study", seeds=2, train=train, near=near)
        assert trained == expected
        assert list(outcome.results) in (["ppo"], ["ppo", "add"])
    assert (tmp_path / "study" / "ppo").is_symlink()
