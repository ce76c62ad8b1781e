"""Returns and advantages against double loops, and the laws that make them what they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmrl.ops.returns import discounted_sum, generalized_advantage

T, N, GAMMA = 12, 5, 0.9


def experience(seed=0, p_end=0.25):
    """Random numbers of every field: (reward, terminated, truncated, value, next_value), each [T, N]."""
    random = np.random.default_rng(seed)
    terminated, truncated = random.random((2, T, N)) < p_end / 2
    reward, value, next_value = random.normal(size=(3, T, N)).astype(np.float32)
    return reward, terminated, truncated, value, next_value


def advantage(reward, terminated, truncated, value, next_value, lambda_=0.7):
    discount = jnp.asarray(GAMMA * (1.0 - terminated), jnp.float32)
    arrays = (jnp.asarray(x) for x in (reward, discount, value, next_value, terminated | truncated))
    return np.asarray(generalized_advantage(*arrays, lambda_))


def by_double_loop(reward, terminated, truncated, value, next_value, lambda_=0.7):
    result = np.zeros((T, N))
    for start in range(T):
        for env in range(N):
            weight = 1.0
            for t in range(start, T):
                bootstrap = 0.0 if terminated[t, env] else GAMMA * next_value[t, env]
                result[start, env] += weight * (reward[t, env] + bootstrap - value[t, env])
                weight *= GAMMA * lambda_
                if terminated[t, env] or truncated[t, env]:
                    break
    return result


@pytest.mark.parametrize("lambda_", [0.0, 0.7, 1.0])
def test_equals_the_double_loop(lambda_):
    data = experience()
    assert data[1].any() and data[2].any()
    np.testing.assert_allclose(advantage(*data, lambda_), by_double_loop(*data, lambda_), rtol=1e-4, atol=1e-5)


def test_lambda_0_is_the_one_step_error():
    reward, terminated, truncated, value, next_value = experience()
    error = reward + GAMMA * (1 - terminated) * next_value - value
    np.testing.assert_allclose(
        advantage(reward, terminated, truncated, value, next_value, 0.0), error, rtol=1e-5, atol=1e-6
    )


def test_lambda_1_telescopes_to_return_minus_value():
    reward, terminated, truncated, value, next_value = experience()
    ended = terminated | truncated
    # Within an episode the next value is the value of the next step; beyond its end it is somebody else's.
    next_value[:-1] = np.where(ended[:-1], next_value[:-1], value[1:])
    returns = np.zeros((T + 1, N))
    returns[T] = next_value[-1]
    for t in reversed(range(T)):
        later = np.where(ended[t], np.where(terminated[t], 0.0, next_value[t]), returns[t + 1])
        returns[t] = reward[t] + GAMMA * np.where(terminated[t], 0.0, later)
    found = advantage(reward, terminated, truncated, value, next_value, 1.0)
    np.testing.assert_allclose(found, returns[:-1] - value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["terminated", "truncated"])
def test_splitting_a_rollout_where_episodes_end_changes_nothing(kind):
    reward, terminated, truncated, value, next_value = experience()
    cut = T // 3
    {"terminated": terminated, "truncated": truncated}[kind][cut - 1] = True
    data = (reward, terminated, truncated, value, next_value)
    parts = [advantage(*(x[:cut] for x in data)), advantage(*(x[cut:] for x in data))]
    np.testing.assert_array_equal(advantage(*data), np.concatenate(parts))


def test_only_truncation_bootstraps_and_neither_looks_past_the_end():
    reward, _, _, value, next_value = experience()
    never, once = np.zeros((2, T, N), bool)
    once[4] = True
    higher, later = next_value.copy(), reward.copy()
    higher[4] += 1.0
    later[5:] += 1.0

    def difference(terminated, truncated, reward=reward, next_value=next_value):
        base = advantage(experience()[0], terminated, truncated, value, experience()[4])
        return advantage(reward, terminated, truncated, value, next_value) - base

    np.testing.assert_array_equal(difference(once, never, next_value=higher), 0.0)
    np.testing.assert_array_equal(difference(once, once, next_value=higher), 0.0)  # both at once: termination decides
    expected = np.zeros((T, N))
    expected[:5] = GAMMA * (GAMMA * 0.7) ** np.arange(4, -1, -1)[:, None]
    np.testing.assert_allclose(difference(never, once, next_value=higher), expected, atol=1e-5)
    for flags in ((once, never), (never, once)):
        np.testing.assert_array_equal(difference(*flags, reward=later)[:5], 0.0)


def test_is_linear_in_the_reward_with_the_discounted_sum_as_its_slope():
    reward, terminated, truncated, value, next_value = experience()
    extra = np.random.default_rng(1).normal(size=(T, N)).astype(np.float32)
    decay = jnp.asarray(GAMMA * 0.7 * ~(terminated | truncated), jnp.float32)
    moved = advantage(reward + extra, terminated, truncated, value, next_value)
    difference = moved - advantage(reward, terminated, truncated, value, next_value)
    np.testing.assert_allclose(difference, discounted_sum(jnp.asarray(extra), decay), rtol=1e-4, atol=1e-5)


def test_discounted_sum_takes_any_trailing_axes():
    random = np.random.default_rng(0)
    reward, decay = (jnp.asarray(random.random((4, 2, 3)), jnp.float32) for _ in range(2))
    sums = discounted_sum(reward, decay)
    expected = np.zeros((5, 2, 3))
    for t in reversed(range(4)):
        expected[t] = reward[t] + decay[t] * expected[t + 1]
    np.testing.assert_allclose(sums, expected[:-1], rtol=1e-5)
    each = jax.vmap(discounted_sum, in_axes=2, out_axes=2)(reward, decay)
    np.testing.assert_array_equal(sums, each)
