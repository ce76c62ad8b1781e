"""Transfer: fresh agents under another run's learned reward, which is that run's to the last number and stays so."""

import json
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest

import llmrl
from llmrl.assembly.methods import make_method
from llmrl.assembly.parts import make_environment
from llmrl.learner.streams import stream_states
from llmrl.results.evaluate import evaluate
from llmrl.rewards import frozen as frozen_transform
from llmrl.rewards import task_signal
from llmrl.runs import directory as runs
from llmrl.training.loop import train
from llmrl.training.transfer import resolved

GRID = ("env=gridworld", "env.size=3", "env.horizon=8", "aux=[helpful_hackable,random]")
TINY = (*GRID, "ppo=tiny", "num_chunks=2", "devices=1", "progress=false")
SOURCE = (
    *TINY,
    "method=scalar",
    "method.outer.optimiser=sgd",
    "method.outer.scalar_learning_rate=1",
    "method.weight.discount=true",
    "solver=identity",
    "seeds=2",
    "total_steps=256",
)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "source"
    return train(llmrl.compose(*SOURCE, f"run_dir={path}"))


def frozen(source, *words):
    where = source.config.run_dir if hasattr(source, "config") else source
    return llmrl.compose(*TINY, "method=frozen", f"reward_from={where}", "seeds=3", "total_steps=192", *words)


@pytest.fixture(scope="module")
def target(source, tmp_path_factory):
    return train(frozen(source, f"run_dir={tmp_path_factory.mktemp('target')}"))


def equal(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def seeds_of(tree, numbers):
    return jax.tree.map(lambda x: np.asarray(x)[list(numbers)], tree)


def test_every_seed_trains_under_the_next_learned_reward_and_never_changes_it(source, target):
    start, end = source.state, target.state
    assert np.any(np.asarray(start.phis[1]["scalar"][0] != start.phis[1]["scalar"][1]))
    equal(end.phis, seeds_of(start.phis, (0, 1, 0)))
    equal(end.transform_states, seeds_of(start.transform_states, (0, 1, 0)))
    assert end.meta_state == () and "meta_step" not in target.metrics
    for curve in (target.metrics["weight_mean"], target.metrics["discount"]):
        assert np.all(np.isfinite(curve))
    np.testing.assert_array_equal(target.metrics["discount"], target.metrics["discount"][:, :1] * np.ones((1, 3)))
    kernels = zip(jax.tree.leaves(start.params.actor), jax.tree.leaves(end.params.actor), strict=True)
    assert not any(np.array_equal(np.asarray(a)[0], np.asarray(b)[0]) for a, b in kernels)  # fresh agents


def test_the_reward_is_the_source_runs_to_the_last_number(source, target, random_rollout):
    spec = make_environment(source.config).spec
    rollout = random_rollout(spec)
    bare = task_signal(rollout, 0.9)

    def signals(result, seed):
        streams = make_method(result.config, spec).streams
        phis, states = (
            jax.tree.map(lambda x: x[seed], of) for of in (result.state.phis, result.state.transform_states)
        )
        settled = [stream._replace(transform=frozen_transform(stream.transform)) for stream in streams]
        return [s.transform.apply(phi, own, rollout, bare) for s, phi, own in stream_states(settled, phis, states)]

    for seed, learned in enumerate((0, 1, 0)):
        equal(signals(target, seed), signals(source, learned))


def test_one_seeds_reward_for_all(source):
    result = train(frozen(source, "reward_seed=1", "seeds=2", "total_steps=64"))
    equal(result.state.phis, seeds_of(source.state.phis, (1, 1)))
    with pytest.raises(ValueError, match=r"reward_seed must be below 2.*got 2"):
        train(frozen(source, "reward_seed=2"))


def test_a_frozen_run_can_be_frozen_again_and_outlives_its_source(source, target, tmp_path):
    again = train(frozen(target, "seeds=2", "total_steps=64"))
    assert again.config.method.reward_of == "scalar"
    equal(again.state.phis, seeds_of(source.state.phis, (0, 1)))

    moved = tmp_path / "moved"
    shutil.copytree(target.config.run_dir, moved)
    text = (moved / "config.yaml").read_text()
    assert str(source.config.run_dir) in text
    (moved / "config.yaml").write_text(text.replace(str(source.config.run_dir), str(tmp_path / "gone")))
    assert np.isfinite(evaluate(moved, episodes=2)["final"]["episode_length"]["mean"])


def test_the_same_command_goes_on(source, target):
    summary = json.loads(runs.load_run(target.config.run_dir).summary_path.read_text())
    again = train(frozen(source, f"run_dir={target.config.run_dir}"))
    assert again.summary == summary
    equal(again.state.phis, target.state.phis)


def test_what_does_not_fit_is_named(source):
    def spec_of(config):
        return make_environment(config).spec

    for words, message in (
        (("env.size=4",), r"observations of shape \(\d+,\).*\(\d+,\)"),
        (("aux=helpful_hackable",), r"auxiliary sources \('helpful_hackable', 'random'\).*\('helpful_hackable',\)"),
        (("env=cartpole", "env.size=null", "aux=random"), r"observations of shape"),
    ):
        with pytest.raises(ValueError, match=message):
            resolved(frozen(source, *words), spec_of)


def test_a_run_that_is_not_there_or_not_finished_or_learned_nothing_is_named(source, tmp_path):
    path = str(source.config.run_dir)
    with pytest.raises(ValueError, match=r"unknown run in reward_from '.*/sorce'; nearest: '.*/source'"):
        train(frozen(path.replace("/source", "/sorce")))
    unfinished = tmp_path / "unfinished"
    shutil.copytree(path, unfinished)
    (unfinished / "summary.json").unlink()
    with pytest.raises(ValueError, match=r"unfinished is not finished"):
        train(frozen(unfinished))
    other = source.config
    shutil.copytree(path, tmp_path / "ppo")
    runs.metrics.replace_file(
        tmp_path / "ppo" / "config.yaml",
        runs.yaml.safe_dump(runs._plain(runs.asdict(replace(other, method=replace(other.method, name="ppo"))))),
    )
    with pytest.raises(ValueError, match="method=ppo learns no reward"):
        train(frozen(tmp_path / "ppo"))
