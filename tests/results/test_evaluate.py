"""Evaluation: whole episodes with known ends, a run's own numbers, and environments that do not fit."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llmrl
from llmrl.envs import make
from llmrl.nets import Policy, make_policy
from llmrl.ops.distributions import Categorical
from llmrl.results.evaluate import better_acting, evaluate, play
from llmrl.runs import directory as runs
from llmrl.settings.config import EnvConfig
from llmrl.training.loop import train
from llmrl.training.progress import show_summary

KEYS = jax.random.split(jax.random.key(0), 16)
GRID = ("env=gridworld", "env.size=3", "env.horizon=9", "aux=helpful_hackable")
TINY = ("ppo=tiny", "seeds=2", "total_steps=128", "progress=false", "devices=1")


def chooses(action_of):
    """A policy that is nearly sure of ``action_of(params, obs)`` among four actions."""

    def distribution(params, obs):
        return Categorical(jax.nn.log_softmax(50.0 * jax.nn.one_hot(action_of(params, obs), 4)))

    return Policy(lambda key: (), distribution)


def episodes(env, policy, params=(), greedy=False):
    return jax.jit(jax.vmap(lambda key: play(env, policy, params, key, greedy)))(KEYS)


# --- episodes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("greedy", [False, True])
def test_the_shortest_way_is_as_long_as_the_grid_says(greedy):
    env = make("gridworld", aux=(), size=5, horizon=20)
    first_right_then_down = chooses(lambda params, obs: jnp.where(obs[9] > 0, 2, 1))
    played = episodes(env, first_right_then_down, greedy=greedy)
    for values, expected in zip(played, (1.0, 8.0, 1.0), strict=True):
        np.testing.assert_array_equal(values, expected)


def test_who_walks_into_a_wall_is_stopped_by_the_time_limit():
    env = make("gridworld", aux=(), size=5, horizon=20)
    played = episodes(env, chooses(lambda params, obs: 0))
    for values, expected in zip(played, (0.0, 20.0, 0.0), strict=True):
        np.testing.assert_array_equal(values, expected)


def test_every_episode_counts_to_its_own_end():
    """Falling costs exactly 1 and standing nothing, so an episode is either: a second fall after the end would show."""
    env = make("cartpole", aux=(), horizon=20)
    undecided = Policy(lambda key: (), lambda params, obs: Categorical(jnp.full(2, -jnp.log(2.0))))
    played = episodes(env, undecided)
    np.testing.assert_array_equal(played.episode_return, played.success_rate - 1.0)
    np.testing.assert_array_equal(played.success_rate == 1.0, played.episode_length == 20.0)
    assert len(np.unique(played.episode_length)) > 3


def test_a_greedy_policy_always_plays_its_mode():
    env = make("gridworld", aux=(), size=3, horizon=20)
    barely = Policy(
        lambda key: (), lambda params, obs: Categorical(jax.nn.log_softmax(0.1 * jax.nn.one_hot(jnp.int32(0), 4)))
    )
    assert float(episodes(env, barely).success_rate.mean()) > 0.0
    np.testing.assert_array_equal(episodes(env, barely, greedy=True).success_rate, 0.0)


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    train(llmrl.compose(*GRID, *TINY, "method=add", f"run_dir={path}"))
    return path


def test_a_run_is_evaluated_in_its_own_environment(run_dir, capsys):
    found = evaluate(run_dir, None, 8, 0)
    assert json.loads((run_dir / "evaluation.json").read_text()) == found
    assert found["env"] == {"name": "gridworld", "size": 3, "horizon": 9}
    assert (found["seeds"], found["episodes"], found["iterations"]) == (2, 8, 2)
    names = {"episode_return", "episode_length", "success_rate"}
    assert set(found["final"]) == names | {f"greedy_{name}" for name in names}
    for name, row in found["final"].items():
        assert len(row["by_seed"]) == 2
        assert row["low"] is row["high"] is None  # two seeds are too few
        assert 0.0 <= row["mean"] <= (9.0 if name.endswith("length") else 1.0)
    # Here the return is the goal's +1 and nothing else.
    assert found["final"]["episode_return"] == found["final"]["success_rate"]
    assert evaluate(run_dir, None, 8, 0) == found
    assert evaluate(run_dir, None, 8, 1) != found

    acting, final = found["acting"], found["final"]
    assert acting["drawn"] == pytest.approx(final["episode_return"]["mean"])
    assert acting["deterministic"] == pytest.approx(final["greedy_episode_return"]["mean"])

    show_summary(found, "a run")
    shown = capsys.readouterr().out
    assert "actions: " in shown and "with the most probable one" in shown
    assert "greedy_success_rate" in shown and "2 seeds x 8 episodes in gridworld" in shown
    assert "training" not in shown.partition("2 seeds")[0]


NOISE = np.random.default_rng(0).normal(size=(2, 50))


@pytest.mark.parametrize(
    ("drawn", "deterministic", "better"),
    [
        (np.ones((3, 20)), np.zeros((3, 20)), "drawn"),
        (np.zeros((3, 20)), np.ones((3, 20)), "deterministic"),
        (np.ones((3, 20)), np.ones((3, 20)), "neither"),
        (NOISE, NOISE[::-1, ::-1], "neither"),
        (NOISE, NOISE - 0.01, "drawn"),
        (np.ones((3, 1)), np.zeros((3, 1)), "neither"),
    ],
)
def test_which_way_to_act_is_better(drawn, deterministic, better, capsys):
    found = better_acting(drawn, deterministic)
    assert found == {
        "drawn": pytest.approx(drawn.mean()),
        "deterministic": pytest.approx(deterministic.mean()),
        "better": better,
    }
    show_summary({"final": {}, "seeds": 5, "acting": found}, "a run")
    said = {"drawn": "policy.act(obs);", "deterministic": "policy.act(obs, deterministic=True);"}
    assert said.get(better, "no difference beyond chance;") in capsys.readouterr().out


def test_the_policies_are_the_last_checkpoints(run_dir):
    """Sampled by hand with the states that training returned, the same episodes come out."""
    config = runs.load_run(run_dir).config
    result = train(llmrl.compose(*GRID, *TINY, "method=add"))
    env = make("gridworld", aux=(), size=3, horizon=9)
    policy = make_policy(env.spec, config.ppo.hidden)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(3), i))(jnp.arange(8))
    for seed in range(2):
        actor = jax.tree.map(lambda x, seed=seed: x[seed], result.state.params.actor)
        played = jax.vmap(lambda key, actor=actor: play(env, policy, actor, key))(keys)
        found = evaluate(run_dir, None, 8, 3)["final"]["episode_length"]["by_seed"][seed]
        assert found == pytest.approx(float(played.episode_length.mean()), abs=1e-5)


def test_another_environment_of_the_same_shape(run_dir, capsys):
    longer = evaluate(run_dir, EnvConfig(name="gridworld", size=3, horizon=200), 8, 0)
    assert longer["env"]["horizon"] == 200
    assert longer["final"]["success_rate"]["mean"] == 1.0  # even an undecided policy finds the goal in time
    at_home, by_chance = longer["beside"].values()
    assert list(longer["beside"]) == ["the same agents in gridworld", "random play in gridworld"]
    assert at_home == evaluate(run_dir, None, 8, 0)["final"]
    assert by_chance["success_rate"]["by_seed"] == [1.0] and "greedy_success_rate" not in by_chance

    show_summary(longer, "a run")
    *_, agents, chance = capsys.readouterr().out.strip().splitlines()
    assert agents.startswith("the same agents in gridworld: episode_return ")
    assert chance.startswith("random play in gridworld: ") and "success_rate 1" in chance


@pytest.mark.parametrize(
    ("env", "says"),
    [
        (EnvConfig(name="gridworld", size=4), r"observations of shape \(6,\), but gridworld has \(8,\)"),
        (EnvConfig(name="gymnax", id="Acrobot-v1"), r"know actions Discrete\(num=4\), but Acrobot-v1"),
        (EnvConfig(name="gridwrld"), "nearest: 'gridworld'"),
    ],
)
def test_an_environment_that_does_not_fit_is_refused(run_dir, env, says):
    with pytest.raises(ValueError, match=says):
        evaluate(run_dir, env, 8, 0)


def test_nothing_to_evaluate(tmp_path):
    with pytest.raises(ValueError, match="holds no run"):
        evaluate(tmp_path)
    with runs.open_run(llmrl.compose(*GRID, *TINY, f"run_dir={tmp_path}")):
        pass
    with pytest.raises(ValueError, match="no checkpoint yet"):
        evaluate(tmp_path)
    with pytest.raises(ValueError, match="episodes must be positive, got 0"):
        evaluate(tmp_path, None, 0)
    with pytest.raises(ValueError, match=r"seed must be a whole number from 0 to .*, got -1"):
        evaluate(tmp_path, seed=-1)
