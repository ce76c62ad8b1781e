"""Games that run in Python, on one that is small enough to predict: it counts to its seed's number and ends."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llmrl
from llmrl import envs
from llmrl.learner.rollout_host import collect_host, play_episodes
from llmrl.nets import make_policy
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
            before = [games[place] for place in places]
            games.update({place: (age + 1, last) for place, (age, last) in zip(places, before, strict=True)})
            after = np.array([games[place] for place in places], np.uint8)
            actions, none = np.array(actions), np.zeros(len(places))
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

        yield HostWorlds(reset, step, 2)

    return HostEnvironment(SPEC, opened)


def chooses(action):
    return lambda obs, noise: (np.full(obs.shape[:2], action, np.int32), np.zeros(obs.shape[:2], np.float32))


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


def test_a_rollout_follows_its_episodes():
    seeds, envs_each, steps = 2, 3, 20
    with counting().opened(()) as worlds:
        first = worlds.reset(list(range(6)), [3, 4, 5, 6, 7, 8]).reshape(seeds, envs_each, 2)
        noise = jnp.zeros((seeds, steps + 1, envs_each, 3))
        last, rollout = collect_host(worlds, chooses(1), first, noise, np.random.default_rng(0))
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


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["ppo", "implicit"])
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
