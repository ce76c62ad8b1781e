"""Games that run in Python, on one that is small enough to predict: it counts to its seed's number and ends."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llmrl
from llmrl import envs
from llmrl.analysis.trust import AS_ACTED
from llmrl.learner.rollout_host import Standing, collect_host, drawn, led_to, places_of, play_episodes, unstarted
from llmrl.nets import make_policy
from llmrl.results.trust_map import trust_map
from llmrl.training.loop import train
from llmrl.types import Codes, Discrete, EnvSpec, HostEnvironment, HostWorlds, TimeStep

HORIZON, LONGEST = 12, 9
SPEC = EnvSpec("counting", (2,), Discrete(3), HORIZON, encoding=(Codes(2, tuple((i / 16,) for i in range(16))),))


def counting(horizon=HORIZON):
    """An episode lasts 1 + seed % 9 steps; action 1 pays; the observation is (age, how long it lasts)."""

    @contextlib.contextmanager
    def opened(sources):
        games = {}

        def reset(places, seeds):
            games.update({place: (0, 1 + seed % LONGEST) for place, seed in zip(places, seeds, strict=True)})
            return np.array([games[place] for place in places], np.uint8)

        def step(places, actions):
            actions = np.asarray(actions)
            before = [games[place] for place in places]
            games.update({place: (age + 1, last) for place, (age, last) in zip(places, before, strict=True)})
            after = np.array([games[place] for place in places], np.uint8)
            none = np.zeros(len(places))
            aux = [[f(b, a, b) for f in sources] for a, b in zip(actions, before, strict=True)]
            done = after[:, 0] >= after[:, 1]
            return TimeStep(
                obs=after,
                reward=(actions == 1).astype(np.float32),
                terminated=done,
                truncated=none > 0,
                success=done & (after[:, 1] > 4),
                aux=np.array(aux, np.float32).reshape(len(places), -1),
                state_key=none.astype(np.uint32),
                event=none.astype(np.int32),
            )

        yield HostWorlds(reset, step, 4)

    return HostEnvironment(SPEC, opened, obs_dtype="uint8")


def chooses(action):
    return lambda obs, noise, turn: (np.full(obs.shape[:2], action, np.int32), np.zeros(obs.shape[:2], np.float32))


# --- whole episodes ---------------------------------------------------------------------------------------------------


def test_every_actor_plays_the_same_episodes_to_their_ends():
    policy = make_policy(SPEC, (4,))
    actors = jax.vmap(policy.init)(jax.random.split(jax.random.key(0), 3))
    told = []
    returned, length, success = play_episodes(counting(), policy, actors, 3, 7, 5, (False, True), told.append)
    assert told == [4, 7]
    assert returned.shape == length.shape == success.shape == (2, 3, 7)
    assert np.all(length == length[0, 0]) and len(np.unique(length)) > 2 and length.max() <= LONGEST
    np.testing.assert_array_equal(success, length > 4)
    assert np.all(returned <= length) and 0 < returned[0].sum() < length[0].sum()
    again = play_episodes(counting(), policy, actors, 3, 7, seed=5, styles=(False, True))
    for one, other in zip((returned, length, success), again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_mode_is_played_where_asked():
    policy = make_policy(SPEC, (4,))
    params = jax.tree.map(jnp.zeros_like, policy.init(jax.random.key(0)))
    params["net"]["params"]["Dense_1"]["bias"] = jnp.array([0.0, 1.0, 0.0])
    actors = jax.tree.map(lambda x: x[None], params)
    returned, length, _ = play_episodes(counting(), policy, actors, 1, 8, seed=0, styles=(False, True))
    np.testing.assert_array_equal(returned[1], length[1])
    assert returned[0].sum() < length[0].sum()


# --- rollouts ---------------------------------------------------------------------------------------------------------


def standing(seeds, envs_each):
    """Fresh episodes of all seeds, not yet started."""
    of_each = [unstarted(counting(), key, envs_each) for key in jax.random.split(jax.random.key(0), seeds)]
    episodes, obs = jax.tree.map(lambda *x: np.stack(x), *of_each)
    return Standing(episodes, obs, np.zeros((seeds, envs_each), int))


def chances(seeds, steps, envs_each):
    of_each = [drawn(counting(), key, steps, envs_each) for key in jax.random.split(jax.random.key(1), seeds)]
    return jax.tree.map(lambda *x: jnp.stack(x), *of_each)


def test_a_rollout_follows_its_episodes():
    seeds, envs_each, steps = 2, 3, 20
    places = places_of(0, (seeds, envs_each))
    with counting().opened(()) as worlds:
        start, draws = standing(seeds, envs_each), chances(seeds, steps, envs_each)
        start = led_to(worlds, places, start)
        after, rollout = collect_host(worlds, places, chooses(1), start, draws)
        again = led_to(worlds, places, after)
    first, last = start.obs, after.obs
    for one, other in zip(jax.tree.leaves(after), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(one, other)
    found = jax.tree.map(np.asarray, rollout.steps)
    assert found.obs.shape == (seeds, steps, envs_each, 2) and found.obs.dtype == np.uint8
    np.testing.assert_array_equal(found.obs[:, 0], first)
    np.testing.assert_array_equal(found.reward, 1.0)
    np.testing.assert_array_equal(found.next_obs[..., 0], found.obs[..., 0] + 1)
    np.testing.assert_array_equal(found.next_obs[..., 1], found.obs[..., 1])
    np.testing.assert_array_equal(found.terminated, found.next_obs[..., 0] == found.next_obs[..., 1])
    after = np.concatenate([found.obs[:, 1:], last[:, None]], axis=1)
    np.testing.assert_array_equal(after[..., 0], np.where(found.terminated, 0, found.next_obs[..., 0]))
    np.testing.assert_array_equal(after[~found.terminated], found.next_obs[~found.terminated])
    assert found.terminated.any() and rollout.final_action.shape == (seeds, envs_each)


def test_a_rollout_may_be_played_in_pieces():
    """Fresh seeds and the length of an episode do not know where one rollout ends."""
    seeds, envs_each, steps = 1, 3, 20
    places, draws = places_of(0, (seeds, envs_each)), chances(seeds, steps, envs_each)
    with counting().opened(()) as worlds:
        start = led_to(worlds, places, standing(seeds, envs_each))
        whole, rollout = collect_host(worlds, places, chooses(1), start, draws)
    with counting().opened(()) as worlds:
        now, pieces = led_to(worlds, places, start), []
        for first, last in ((0, 7), (7, 20)):
            part = draws._replace(noise=draws.noise[:, first : last + 1], fresh=draws.fresh[:, first:last])
            now, piece = collect_host(worlds, places, chooses(1), now, part)
            pieces.append(piece.steps)
    for one, *others in zip(rollout.steps, *pieces, strict=True):
        np.testing.assert_array_equal(one, np.concatenate(others, axis=1))
    np.testing.assert_array_equal(whole.episodes.seed, now.episodes.seed)
    np.testing.assert_array_equal(whole.age, now.age)


def test_turns_change_where_an_episode_ends():
    places, draws = places_of(0, (1, 3)), chances(1, 20, 3)
    following = np.random.default_rng(0).integers(2, size=(1, 20, 3))
    with counting().opened(()) as worlds:
        start = led_to(worlds, places, standing(1, 3))._replace(turn=np.zeros((1, 3), int))
        after, rollout = collect_host(
            worlds, places, lambda obs, noise, turn: (turn, turn), start, draws._replace(following=following)
        )
    arm, ended = np.asarray(rollout.arm), np.asarray(rollout.steps.terminated)
    np.testing.assert_array_equal(arm, rollout.steps.action)
    expected = np.where(ended, following, arm)
    np.testing.assert_array_equal(np.concatenate([arm[:, 1:], after.turn[:, None]], axis=1), expected)
    assert 0 < arm.mean() < 1


def test_an_episode_without_an_end_is_refused():
    places = places_of(0, (1, 2))
    with counting().opened(()) as worlds:
        start = led_to(worlds, places, standing(1, 2))
        start = start._replace(episodes=start.episodes._replace(actions=start.episodes.actions[:, :, :1]))
        with pytest.raises(ValueError, match="goes on beyond its time limit of 1 steps"):
            collect_host(worlds, places, chooses(0), start, chances(1, 20, 2))


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["implicit", "decoupled"])
def test_methods_train_on_it_unchanged(monkeypatch, method):
    monkeypatch.setitem(envs.HOST_ENVIRONMENTS, "counting", counting)
    monkeypatch.setitem(envs.AUX_SOURCES, "counting", {"age": lambda: lambda state, action, after: 0.1 * state[0]})
    config = llmrl.compose(
        "env.name=counting",
        "aux=none",
        "+aux.sources.age=1.0",
        f"method={method}",
        "ppo=tiny",
        "ppo.num_envs=4",
        "ppo.num_steps=16",
        "method.weight.hidden=[4]",
        "solver=identity",
        "seeds=2",
        "total_steps=256",
        "num_chunks=2",
        "progress=false",
    )
    result = train(config)
    assert result.metrics["episode_length"].shape == (2, 4)
    assert all(np.all(np.isfinite(curve)) for curve in result.metrics.values())
    assert np.all(result.state.iteration == 4) and np.all(result.metrics["episode_length"] <= LONGEST)
    np.testing.assert_allclose(result.metrics["episodes"].sum(), 512 / 5, rtol=0.3)  # (1 + ... + 9) / 9 steps each
    assert not np.allclose(*jax.tree.leaves(result.state.params.actor)[0])
    assert ("meta_step" in result.metrics) is (method == "implicit")
    if method == "implicit":
        found = trust_map(result, num_steps=8, num_envs=2)
        assert found.probes == (AS_ACTED,) and found.aux.shape == (2, 16, 1, 1)
        np.testing.assert_allclose(found.aux[..., 0, 0], 0.1 * found.obs[..., 0], rtol=1e-6)
