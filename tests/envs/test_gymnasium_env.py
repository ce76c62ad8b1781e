"""Gymnasium's environments: the same games as gymnax's, their ends kept apart, and mistakes told in one line."""

import gymnasium
import gymnasium.spaces as spaces
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gym_worlds import GOAL, LIMIT

import llmrl
from llmrl.envs import make, make_host
from llmrl.envs.gymnasium_env import Recipe, made
from llmrl.envs.gymnasium_spaces import actions, observations
from llmrl.results import video
from llmrl.results.evaluate import evaluate
from llmrl.runs import directory as runs
from llmrl.training.loop import train
from llmrl.types import Box, Discrete


def walk(**options):
    return make_host("gymnasium", id="gym_worlds.walk", **({"aux": ()} | options))


# --- spaces -----------------------------------------------------------------------------------------------------------


def test_observations_are_flattened_with_names_and_without_texts():
    parts = {"b": spaces.Box(-1, 1, (2,)), "a": spaces.Tuple([spaces.Discrete(3, start=5), spaces.Text(4)])}
    seen = observations("x", spaces.Dict(parts))
    assert seen.names == ("a 0 0", "a 0 1", "a 0 2", "b 0", "b 1") and seen.left_out == ("a 1",)
    np.testing.assert_allclose(seen.vector({"a": (6, "text"), "b": np.array([0.5, -1])}), [0, 1, 0, 0.5, -1])
    pixels = observations("x", spaces.Box(0, 255, (2, 2, 3), np.uint8))
    assert (pixels.size, pixels.dtype, pixels.names) == (12, "uint8", ())
    with pytest.raises(ValueError, match="not made of numbers"):
        observations("x", spaces.Text(4))


def test_several_choices_at_once_are_one_among_all_combinations():
    space = spaces.MultiDiscrete([2, 3, 2], start=[0, 1, 0])
    acted = actions("x", space)
    assert acted.space == Discrete(12)
    every = acted.native(np.arange(12))
    assert len(np.unique(every, axis=0)) == 12 and all(space.contains(one) for one in every)
    both = actions("x", spaces.MultiBinary(3))
    assert both.space == Discrete(8) and len(np.unique(both.native(np.arange(8)), axis=0)) == 8
    with pytest.raises(ValueError, match="59049 combinations; expected at most 1024"):
        actions("x", spaces.MultiDiscrete([3] * 10))
    np.testing.assert_array_equal(actions("x", spaces.Discrete(4, start=-1)).native(np.arange(4)), [-1, 0, 1, 2])


def test_finite_bounds_are_stretched_and_others_are_kept():
    low, high = np.array([-3.0, 0.1], np.float32), np.array([3.0, 0.7], np.float32)
    acted = actions("x", spaces.Box(low, high))
    assert acted.space == Box(2)
    found = acted.native(np.array([[-1.0, -9.0], [1.0, 9.0], [0.0, 0.0]]))
    np.testing.assert_array_equal(found[:2], [low, high])
    np.testing.assert_allclose(found[2], (low + high) / 2, rtol=1e-6)
    half = actions("x", spaces.Box(np.array([-np.inf, 0.0], np.float32), np.array([np.inf, 2.0], np.float32)))
    np.testing.assert_allclose(half.native(np.array([[7.0, 0.5]])), [[7.0, 1.5]])
    assert (half.space.low, half.space.high) == (-np.inf, np.inf)


# --- steps ------------------------------------------------------------------------------------------------------------


def test_cartpole_is_the_same_in_gymnax_and_in_gymnasium():
    ours, theirs = make("CartPole-v1", aux=()), made(Recipe("CartPole-v1", None, (), {}))
    step, chances, state, ends = jax.jit(ours.step), np.random.default_rng(0), None, 0
    for t in range(1000):
        if state is None:
            state, obs = ours.reset(jax.random.key(t))
            theirs.reset(seed=0)
            theirs.unwrapped.state = tuple(np.asarray(obs, np.float64))
        action = int(chances.integers(2))
        state, result = step(jax.random.key(0), state, jnp.asarray(action, jnp.int32))
        obs, reward, terminated, truncated, _ = theirs.step(action)
        np.testing.assert_allclose(result.obs, obs, atol=1e-5)
        assert (float(result.reward), bool(result.terminated), bool(result.truncated)) == (
            reward,
            terminated,
            truncated,
        )
        if terminated or truncated:
            state, ends = None, ends + 1
    assert ends > 20


def test_ends_are_kept_apart_and_last_observations_are_real():
    env = walk()
    assert (env.spec.obs_shape, env.spec.horizon, env.spec.action) == ((4,), LIMIT, Discrete(2))
    assert env.spec.obs_names == ("last 0", "last 1", "place 0", "place 1")
    np.testing.assert_allclose(np.log2(env.spec.obs_scale) % 1, 0)
    places, found = [0, 1, 2, 3], []
    with env.opened(()) as worlds:
        first = worlds.reset(places, [3, 4, 5, 6])
        acted = np.array([1, 1, 1, 0])
        for _ in range(LIMIT):
            found.append(worlds.step(places, acted))
        again = worlds.reset([1], [4])
    np.testing.assert_array_equal(again[0], first[1])
    at = np.stack([step.obs[:, 2] for step in found])
    terminated, truncated, success = (
        np.stack([getattr(step, x) for step in found]) for x in ("terminated", "truncated", "success")
    )
    np.testing.assert_array_equal(terminated, at >= GOAL)
    np.testing.assert_array_equal(success, terminated)
    np.testing.assert_array_equal(truncated, np.broadcast_to(np.arange(LIMIT)[:, None] == LIMIT - 1, at.shape))
    assert terminated.any() and not terminated[:, 3].any() and (found[0].reward == terminated[0]).all()


def test_equal_seeds_and_actions_make_equal_games_in_other_processes_too():
    env, apart = walk(), walk(processes=2)
    acted = np.random.default_rng(0).integers(2, size=(4, 3))
    with env.opened(()) as here, apart.opened(()) as there:
        np.testing.assert_array_equal(here.reset([0, 1, 2], [7, 8, 9]), there.reset([0, 1, 2], [7, 8, 9]))
        for chosen in acted:
            for one, other in zip(here.step([0, 1, 2], chosen), there.step([0, 1, 2], chosen), strict=True):
                np.testing.assert_array_equal(one, other)


def test_wrappers_parameters_and_a_time_limit_reach_the_environment():
    env = walk(wrappers=["gym_worlds:Tenfold"], horizon=4, params={"step": 3})
    assert env.spec.horizon == 4
    with env.opened(()) as worlds:
        worlds.reset([0], [1])
        steps = [worlds.step([0], np.array([1])) for _ in range(4)]
    assert max(step.reward[0] for step in steps) == 10.0 and steps[-1].truncated[0]
    assert make_host("gymnasium", aux=(), id="CartPole-v1", horizon=9).spec.horizon == 9


# --- sources ----------------------------------------------------------------------------------------------------------


def test_a_source_sees_all_environments_at_once():
    env = walk(aux_function="gym_worlds.came_closer", aux_scale=2.0)
    assert env.spec.aux_names == ("came_closer",)
    with env.opened(env.sources) as worlds:
        before = worlds.reset([0, 1, 2], [1, 2, 3])
        step = worlds.step([0, 1, 2], np.array([1, 0, 1]))
    expected = 2.0 * (step.obs - before)[:, 1] * np.array([1, 0, 1])
    np.testing.assert_allclose(step.aux[:, 0], expected)


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("endless", r"has no time limit of its own: give one, as in env.horizon=200"),
        ("no_environment", r"made int; expected a gymnasium.Env"),
        ("old_step", r"step\(.*failed: ValueError: not enough values to unpack.*expected \(obs, reward, terminated"),
        ("wrong_shape", r"reset\(seed=1\) failed"),
        ("vector_reward", r"step\(.*failed: TypeError.*expected \(obs, reward"),
        ("raising", r"reset\(seed=1\) failed: RuntimeError: no such file \(gym_worlds.py, line \d+\)"),
        ("dictionary_actions", r"actions are Dict.*expected Discrete, MultiDiscrete, MultiBinary or Box"),
        ("nothing_there", r"unknown function in gym_worlds 'nothing_there'"),
    ],
)
def test_a_broken_environment_is_told_of_in_one_line(path, said):
    with pytest.raises((ValueError, TypeError), match=said) as caught:
        make_host("gymnasium", aux=(), id=f"gym_worlds.{path}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"id": ""}, "env=gymnasium needs env.id"),
        ({"id": "CartPool-v1"}, "env.id=CartPool-v1: NameNotFound"),
        ({"id": "CartPole-v1", "params": {"gravity": 3}}, "env.id=CartPole-v1 cannot be made: TypeError"),
        ({"id": "gym_worlds.walk", "params": {"stp": 3}}, "nearest: 'step'"),
        ({"id": "gym_worlds.walk", "wrappers": "gym_worlds:no_wrapper"}, "cannot be made: KeyError"),
        ({"id": "gym_worlds.walk", "processes": 0}, "processes must be a positive integer, got 0"),
        ({"id": "gym_worlds.walk", "aux": "harmful"}, "no auxiliary sources of its own"),
        ({"id": "gym_worlds.walk", "aux_function": "gym_worlds.one_number"}, r"returned float64\[\] for n=3"),
        ({"id": "gym_worlds.walk", "aux_function": "gym_worlds.three_arguments"}, "TypeError: three_arguments"),
    ],
)
def test_a_wrong_setting_is_told_of_in_one_line(options, said):
    with pytest.raises((ValueError, TypeError), match=said) as caught:
        make_host("gymnasium", **({"aux": ()} | options))
    assert "\n" not in str(caught.value)


def test_what_does_not_follow_from_its_seed_is_told_of():
    unseeded = make_host("gymnasium", aux=(), id="gym_worlds.unseeded")
    assert any("does not follow from its seed" in note for note in unseeded.notes)
    assert walk().notes == ("env.id=gym_worlds.walk: note of the observation is no number, and is left out",)


# --- runs -------------------------------------------------------------------------------------------------------------

RUN = (
    "env=gymnasium",
    "env.id=gym_worlds.walk",
    "aux=function",
    "aux.function=gym_worlds.came_closer",
    "method=add",
    "ppo=tiny",
    "ppo.num_envs=4",
    "ppo.num_steps=16",
    "seeds=2",
    "total_steps=256",
    "num_chunks=2",
    "progress=false",
)


class Interrupted(Exception):
    pass


def test_an_interrupted_run_goes_on_to_the_same_bits_and_is_shown(tmp_path, monkeypatch):
    whole = train(llmrl.compose(*RUN, f"run_dir={tmp_path / 'whole'}"))
    cut = llmrl.compose(*RUN, f"run_dir={tmp_path / 'cut'}")
    record = runs.record

    def stops(*chunk):
        record(*chunk)
        raise Interrupted

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(runs, "record", stops)
        train(cut)
    again = train(cut)
    assert (tmp_path / "cut" / "metrics.csv").read_bytes() == (tmp_path / "whole" / "metrics.csv").read_bytes()
    jax.tree.map(np.testing.assert_array_equal, again.state.params, whole.state.params)
    jax.tree.map(np.testing.assert_array_equal, again.state.acting, whole.state.acting)
    assert 0 < float(np.mean(whole.metrics["success_rate"][:, -1])) <= 1

    found = evaluate(tmp_path / "whole", episodes=20, progress=False)
    assert found["final"]["episode_length"]["mean"] <= LIMIT
    seen = video.film(tmp_path / "whole")
    assert seen.exists() and gymnasium.__version__ < "1.4"
