"""A policy outside of its run acts as it did inside, wherever it came from."""

import json
import sys
from dataclasses import asdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import RUN

import llmrl
from llmrl.assembly.parts import acting_policy
from llmrl.ops.distributions import sampling_noise
from llmrl.results import policies
from llmrl.results.policies import load_policy, save_policy
from llmrl.training.loop import Result, make_trainer, train
from llmrl.types import Box, Codes, Discrete, EnvSpec

TINY = (*RUN, "method=add", "seeds=2", "total_steps=128", "num_chunks=1", "devices=1")


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return train(llmrl.compose(*TINY, f"run_dir={tmp_path_factory.mktemp('run') / 'x'}"))


@pytest.fixture(scope="module")
def observations():
    return jnp.asarray(np.random.default_rng(0).normal(size=(5, 6)), jnp.float32)


@pytest.fixture(scope="module")
def policy(result):
    return load_policy(result.config.run_dir)


def test_five_lines(result, observations, tmp_path):
    llmrl.save_policy(result.config.run_dir, tmp_path / "policy.npz", seed=1)
    policy = llmrl.load_policy(tmp_path / "policy.npz")
    actions = policy.act(observations)
    likeliest = policy.act(observations, deterministic=True)
    assert actions.shape == likeliest.shape == (5,) and policy.act(observations[0]).shape == ()


def test_actions_are_drawn_as_often_as_they_are_probable(policy, observations):
    same = jnp.broadcast_to(observations[0], (2000, 6))
    chances = np.exp(policy.distribution(observations[0]).logits)
    for drawn in (policy.act(same), policy.act(same, jax.random.key(0))):
        shares = np.bincount(drawn, minlength=4) / len(drawn)
        np.testing.assert_allclose(shares, chances, atol=0.05)


def test_draws_go_on_from_a_seed_and_a_key_repeats_itself(result, observations):
    same = jnp.broadcast_to(observations[0], (2000, 6))
    one, again, other = (load_policy(result.config.run_dir, draw_seed=seed) for seed in (3, 3, 4))
    first, second = one.act(same), one.act(same)
    np.testing.assert_array_equal(first, again.act(same))
    np.testing.assert_array_equal(second, again.act(same))
    assert np.any(first != second) and np.any(first != other.act(same))
    key = jax.random.key(7)
    np.testing.assert_array_equal(one.act(same, key), other.act(same, key))


def test_inside_a_program_a_draw_needs_a_key(policy, observations):
    for program in (jax.jit(policy.act), jax.vmap(policy.act)):
        with pytest.raises(ValueError, match="pass a key"):
            program(observations)
    keys = jax.random.split(jax.random.key(0), 5)
    inside = jax.jit(jax.vmap(policy.act))(observations, keys)
    np.testing.assert_array_equal(inside, jnp.stack([policy.act(*one) for one in zip(observations, keys, strict=True)]))
    likeliest = jax.jit(lambda obs: policy.act(obs, deterministic=True))(observations)
    np.testing.assert_array_equal(likeliest, policy.distribution(observations).mode())


def test_acting_is_traced_once_for_each_shape(result, observations, monkeypatch):
    traced = []
    monkeypatch.setattr(policies, "sampling_noise", lambda *of: traced.append(of) or sampling_noise(*of))
    policy = load_policy(result.config.run_dir)
    for _ in range(3):
        policy.act(observations)
        policy.act(observations[0])
    assert len(traced) == 2


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (5,), (4, 1), (6, 5), (2, 3, 6), (0,)])
@pytest.mark.parametrize("ask", ["act", "distribution"])
def test_observations_of_another_shape_are_refused(policy, ask, shape):
    with pytest.raises(ValueError, match=r"shape \[6\], or \[n, 6\]") as error:
        getattr(policy, ask)(jnp.zeros(shape))
    assert f"got shape {list(shape)}" in str(error.value)


def test_what_is_no_observation_is_refused(policy):
    for obs in ({"position": 1.0}, None, "left"):
        with pytest.raises(ValueError, match=f"got {type(obs).__name__}, which is no array"):
            policy.act(obs)


def test_it_says_in_a_line_what_it_is(policy):
    size = sum(np.size(leaf) for leaf in jax.tree.leaves(policy.params))
    assert repr(policy) == (
        f"TrainedPolicy(gridworld, method=add: observations [6] to Discrete(num=4), {size} numbers)"
    )


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
        np.testing.assert_array_equal(policy.act(observations, deterministic=True), expected.mode())
        assert policy.config.env.name == "gridworld"


MODULE = """
from llmrl.envs import make


def grid():
    return make("gridworld", aux=(), size=3, horizon=8)


def hint(state, action, next_state):
    return 0.1
"""


@pytest.mark.parametrize("method", ["add", "bipars_em"])
def test_a_file_needs_no_environment(observations, tmp_path, monkeypatch, method):
    (tmp_path / "own_grid.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    own = ("env=gymnax", "env.id=own_grid.grid", "aux=function", "aux.function=own_grid.hint", f"method={method}")
    config = llmrl.compose(*own, "ppo=tiny", "seeds=1")
    trainer = make_trainer(config)
    state, spec = trainer.init(jax.random.key(0), trainer.numbers), trainer.env.spec
    path = save_policy(Result(config, {}, jax.tree.map(lambda x: x[None], state), {}), tmp_path / "policy.npz")
    expected = acting_policy(config, spec).distribution((state.params.actor, state.phis), observations)

    monkeypatch.undo()
    sys.modules.pop("own_grid")
    policy = load_policy(path)
    assert "own_grid" not in sys.modules and policy.spec == spec
    np.testing.assert_array_equal(policy.distribution(observations).logits, expected.logits)
    np.testing.assert_array_equal(policy.act(observations, deterministic=True), expected.mode())


@pytest.mark.parametrize(
    "spec",
    [
        EnvSpec("x", (2, 3), Box(2, -3.0, 0.5), 7, ("a", "b"), (1.0, 2.0, 3.0), tuple("abcdef")),
        EnvSpec("x", (2,), Discrete(3), 7, (), 2.0, (), (Codes(2, ((0.0, 1.0), (1.0, 0.0))),)),
        EnvSpec("x", (), Discrete(3), 7, (), float("inf")),
    ],
)
def test_a_spec_survives_the_file(spec):
    assert policies._spec_of(json.loads(json.dumps(asdict(spec), default=policies._plain))) == spec


def test_a_file_of_before_specs_were_kept_is_read(result, observations, tmp_path):
    path = save_policy(result, tmp_path / "x.npz")
    with np.load(path) as file:
        parts = dict(file)
    header = json.loads(str(parts["header"]))
    del header["spec"], header["sees_reward"]
    np.savez(tmp_path / "old.npz", **(parts | {"header": np.array(json.dumps(header))}))
    old, new = load_policy(tmp_path / "old.npz"), load_policy(path)
    assert old.spec == new.spec
    np.testing.assert_array_equal(old.distribution(observations).logits, new.distribution(observations).logits)


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
