"""Collecting, on an environment whose observations tell everything: who the episode is, and how old."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmrl.envs.base import time_step
from llmrl.learner.rollout import collect, reset_all
from llmrl.nets import Policy
from llmrl.ops.distributions import Categorical, DiagonalGaussian
from llmrl.types import Box, Discrete, Environment, EnvSpec

T, N, ACTIONS, HORIZON = 2, 256, 3, 5
ROLLOUTS = 8


def diary(action):
    """An episode draws its name in [0, 1) at reset; under 0.5 it ends by the rules at age 3, else by time at 5."""

    def observe(state):
        name, age = state
        return jnp.stack([name, age])

    def reset(key):
        state = (jax.random.uniform(key), jnp.zeros(()))
        return state, observe(state)

    def step(key, state, action):
        name, age = state[0], state[1] + 1.0
        ended = (name < 0.5) & (age >= 3.0)
        result = time_step(observe((name, age)), name * age, ended, age >= HORIZON, ended & (name < 0.25))
        aux = jnp.stack([jnp.sum(jnp.asarray(action, jnp.float32)), name])
        return (name, age), result._replace(aux=aux, event=age.astype(jnp.int32), state_key=age.astype(jnp.uint32))

    return Environment(EnvSpec("diary", (2,), action, HORIZON, ("a", "b")), reset, step)


SPACES = {"discrete": Discrete(ACTIONS), "continuous": Box(2)}
PROBABILITIES = np.array([0.6, 0.3, 0.1], np.float32)


@functools.cache
def collecting(space):
    """An environment, a policy whose parameters are a table over ages, and the compiled ``collect``."""
    env = diary(SPACES[space])

    def distribution(table, obs):
        row = table[obs[..., 1].astype(jnp.int32)]
        return Categorical(jax.nn.log_softmax(row)) if space == "discrete" else DiagonalGaussian(row, 0.0 * row)

    policy = Policy(lambda key: jax.random.normal(key, (HORIZON + 1, 3 if space == "discrete" else 2)), distribution)
    return env, policy, jax.jit(lambda table, acting, key: collect(env, policy, table, acting, key, T))


@functools.cache
def run(space):
    """Rollouts one after the other, and where the environments stood before, between and after."""
    env, policy, once = collecting(space)
    standings, rollouts = [reset_all(env, jax.random.key(2), N, T)], []
    for key in jax.random.split(jax.random.key(3), ROLLOUTS):
        standing, rollout = once(policy.init(jax.random.key(1)), standings[-1], key)
        standings.append(standing)
        rollouts.append(rollout)
    return standings, rollouts


@pytest.fixture(params=SPACES)
def space(request):
    return request.param


def joined(rollouts):
    return jax.tree.map(lambda *x: np.concatenate(x), *(r.steps for r in rollouts))


def test_equals_stepping_by_hand(space):
    env, _, _ = collecting(space)
    standings, rollouts = run(space)
    steps, last = joined(rollouts), standings[-1]
    step_all = jax.jit(jax.vmap(lambda state, action: env.step(jax.random.key(0), state, action)))
    state, obs = standings[0].env_state, np.asarray(standings[0].obs)
    for t in range(T * ROLLOUTS):
        np.testing.assert_array_equal(steps.obs[t], obs)
        reached, result = step_all(state, steps.action[t])
        np.testing.assert_array_equal(steps.next_obs[t], result.obs)
        for name in ("reward", "terminated", "truncated", "success", "aux", "event", "state_key"):
            np.testing.assert_array_equal(getattr(steps, name)[t], getattr(result, name))
        done = steps.terminated[t] | steps.truncated[t]
        obs = steps.obs[t + 1] if t + 1 < len(steps.obs) else np.asarray(last.obs)
        np.testing.assert_array_equal(obs[~done], np.asarray(result.obs)[~done])
        # An observation of this environment is its state.
        state = tuple(np.where(done, obs[:, i], reached[i]) for i in range(2))
    for found, expected in zip(last.env_state, state, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_log_probs_are_the_acting_policys(space):
    _, policy, _ = collecting(space)
    steps = run(space)[1][0].steps
    expected = policy.distribution(policy.init(jax.random.key(1)), steps.obs).log_prob(steps.action)
    np.testing.assert_allclose(steps.log_prob, expected, rtol=1e-5, atol=1e-6)


def test_next_observation_is_the_one_before_the_reset(space):
    steps = joined(run(space)[1])
    done = steps.terminated | steps.truncated
    assert done.any(axis=0).all()
    np.testing.assert_array_equal(steps.next_obs[..., 0], steps.obs[..., 0])  # still the same episode
    np.testing.assert_array_equal(steps.next_obs[..., 1], steps.obs[..., 1] + 1.0)


def test_every_episode_starts_fresh(space):
    standings, rollouts = run(space)
    steps = joined(rollouts)
    done = steps.terminated | steps.truncated
    obs = np.concatenate([steps.obs, np.asarray(standings[-1].obs)[None]])
    starts = np.concatenate([np.ones((1, N), bool), done])
    np.testing.assert_array_equal(obs[..., 1] == 0.0, starts)
    names = obs[..., 0][starts]
    assert len(np.unique(names)) > 0.999 * len(names)  # of 2^23 possible ones, two may agree
    inside = ~starts[1:]
    np.testing.assert_array_equal(obs[1:, :, 0][inside], obs[:-1, :, 0][inside])


def test_statistics_are_those_of_the_episodes_that_ended():
    standings, rollouts = run("discrete")
    running_return, running_length, expected = np.zeros(N), np.zeros(N), np.array([np.nan, np.nan, 0.0])
    for rollout, standing in zip(rollouts, standings[1:], strict=True):
        steps, ended = jax.tree.map(np.asarray, rollout.steps), []
        for t in range(T):
            running_return += steps.reward[t]
            running_length += 1
            for env in np.flatnonzero(steps.terminated[t] | steps.truncated[t]):
                ended.append((running_return[env], running_length[env], steps.success[t, env]))
                running_return[env] = running_length[env] = 0
        expected = np.mean(ended, axis=0) if ended else expected  # where none ended, the last ones stay
        np.testing.assert_allclose(standing.episodes[:3], expected, rtol=1e-4)
        assert standing.episodes.episodes == len(ended)
        np.testing.assert_allclose(standing.returned, running_return, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(standing.length, running_length)
    assert standings[1].episodes.episodes == 0


def with_table(space, table):
    """A rollout by a policy of one's own, from environments of any age."""
    _, _, once = collecting(space)
    rows = jnp.zeros((HORIZON + 1, 1)) + jnp.asarray(table, jnp.float32)
    return once(rows, run(space)[0][3], jax.random.key(9))


def test_the_final_action_is_the_policys_next():
    """A policy that always takes the age of the episode, modulo 3."""
    after, rollout = with_table("discrete", 200.0 * np.eye(ACTIONS)[np.arange(HORIZON + 1) % ACTIONS])
    np.testing.assert_array_equal(rollout.steps.action, rollout.steps.obs[..., 1] % ACTIONS)
    np.testing.assert_array_equal(rollout.final_action, after.obs[..., 1] % ACTIONS)


def test_actions_are_drawn_as_often_as_the_policy_says():
    _, rollout = with_table("discrete", np.log(PROBABILITIES))
    actions = np.concatenate([rollout.steps.action, rollout.final_action[None]])
    found = np.bincount(actions.reshape(-1), minlength=ACTIONS) / actions.size
    assert np.all(np.abs(found - PROBABILITIES) < 4 * np.sqrt(PROBABILITIES * (1 - PROBABILITIES) / actions.size))


def test_neither_steps_nor_environments_share_their_noise():
    actions = np.asarray(with_table("continuous", [3.0, 3.0])[1].steps.action)
    assert len(np.unique(actions)) > 0.999 * actions.size
    assert actions.max() > SPACES["continuous"].high  # stored as drawn; the environment clips


def test_the_key_decides_everything(space):
    _, policy, once = collecting(space)
    standings, rollouts = run(space)
    key = jax.random.split(jax.random.key(3), ROLLOUTS)[0]
    for chosen, same in ((key, True), (jax.random.key(5), False)):
        found = once(policy.init(jax.random.key(1)), standings[0], chosen)[1]
        assert np.array_equal(found.steps.action, rollouts[0].steps.action) is same


def test_of_several_policies_one_plays_each_episode_to_its_end():
    """The next one is who is drawn for the step on which an episode ends; each acts as its own parameters say."""
    env, policy, _ = collecting("discrete")
    always = jnp.stack([jnp.broadcast_to(200.0 * row, (HORIZON + 1, ACTIONS)) for row in jnp.eye(ACTIONS)])
    steps, envs = 12, 8
    drawn = jax.random.randint(jax.random.key(1), (steps + 1, envs), 0, ACTIONS)
    turn, following = drawn[0], drawn[1:]
    acting = reset_all(env, jax.random.key(2), envs, steps)._replace(turn=turn)
    play = jax.jit(lambda acting: collect(env, policy, always, acting, jax.random.key(4), steps, following=following))
    after, rollout = play(acting)
    ended = np.asarray(rollout.steps.terminated | rollout.steps.truncated)
    expected = [np.asarray(turn)]
    for t in range(steps):
        expected.append(np.where(ended[t], following[t], expected[-1]))
    assert 0.1 < ended.mean() < 0.9
    np.testing.assert_array_equal(rollout.arm, expected[:-1])
    np.testing.assert_array_equal(rollout.steps.action, expected[:-1])
    for found in (after.turn, rollout.final_action):
        np.testing.assert_array_equal(found, expected[-1])
