"""A policy outside of its run acts as it did inside, wherever it came from."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import RUN

import llmrl
from llmrl.policies import load_policy, save_policy
from llmrl.train import acting_policy, train

TINY = (*RUN, "method=add", "seeds=2", "total_steps=128", "num_chunks=1", "devices=1")


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return train(llmrl.compose(*TINY, f"run_dir={tmp_path_factory.mktemp('run') / 'x'}"))


@pytest.fixture(scope="module")
def observations():
    return jnp.asarray(np.random.default_rng(0).normal(size=(5, 6)), jnp.float32)


def test_five_lines(result, observations, tmp_path):
    llmrl.save_policy(result.config.run_dir, tmp_path / "policy.npz", seed=1)
    policy = llmrl.load_policy(tmp_path / "policy.npz")
    actions = policy.act(observations)
    chances = policy.act(observations, jax.random.key(0))
    assert actions.shape == chances.shape == (5,) and policy.act(observations[0]).shape == ()


@pytest.mark.parametrize("seed", [0, 1])
def test_it_is_the_policy_of_the_run(result, observations, tmp_path, seed):
    inside = acting_policy(result.config, load_policy(result.config.run_dir).spec)
    params = jax.tree.map(lambda x: x[seed], (result.state.params.actor, result.state.phis))
    expected = inside.distribution(params, observations)
    from_memory = save_policy(result, tmp_path / "memory", seed=seed)
    from_disk = save_policy(str(result.config.run_dir), tmp_path / "disk.npz", seed=seed)
    assert from_memory.name == "memory.npz"
    for policy in (load_policy(from_memory), load_policy(from_disk), load_policy(result.config.run_dir, seed)):
        for ours, theirs in zip(policy.distribution(observations), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(policy.act(observations), expected.mode())
        assert policy.config.env.name == "gridworld"


def test_what_is_no_policy_is_refused_by_name(result, tmp_path):
    with pytest.raises(ValueError, match=r"0 to 1, got 2"):
        save_policy(result, tmp_path / "x", seed=2)
    with pytest.raises(ValueError, match="neither"):
        load_policy(tmp_path / "missing.npz")
    path = save_policy(result, tmp_path / "x.npz")
    content = bytearray(path.read_bytes())
    (tmp_path / "half.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"half\.npz is no policy's file, or is damaged"):
        load_policy(tmp_path / "half.npz")
    with np.load(path) as file:
        parts = dict(file)
    changed = {**parts, "leaf0": parts["leaf0"] + 1}
    np.savez(tmp_path / "changed.npz", **changed)
    with pytest.raises(ValueError, match="its numbers are not those that were saved"):
        load_policy(tmp_path / "changed.npz")
    for change, says in (
        ({"format": 9}, "format=9"),
        ({"leaves": [["[0].other", [1], "float32"], *json.loads(str(parts["header"]))["leaves"][1:]]}, "other"),
    ):
        header = json.loads(str(parts["header"])) | change
        np.savez(tmp_path / "other.npz", **(parts | {"header": np.array(json.dumps(header))}))
        with pytest.raises(ValueError, match=says):
            load_policy(tmp_path / "other.npz")


def test_nothing_in_a_file_is_executed(tmp_path):
    np.savez(tmp_path / "evil.npz", header=np.array([print], dtype=object))
    with pytest.raises(ValueError, match=r"evil\.npz is no policy's file"):
        load_policy(tmp_path / "evil.npz")
