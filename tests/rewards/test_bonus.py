"""Bonuses: scored once per rollout, paid as scored, in units of their own return."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llmrl.ops.optimizers import own_promotion
from llmrl.rewards import Bonus, intrinsic_stream, paid, task_signal
from llmrl.rewards.bonus import in_units_of_return, no_scale, one_pass
from llmrl.types import Discrete, EnvSpec

SPEC = EnvSpec("none", (2,), Discrete(2), 10)
T, N = 6, 4
KEY = jax.random.key(0)
COUNTED = Bonus(
    init=lambda key: jnp.zeros(()),
    score=lambda seen, rollout: (jnp.full((T, N), seen), seen + 1.0),
    report=lambda seen: {"seen": seen},
)
"""Pays the number of rollouts before this one."""


def added(signal, bonus, age):
    return signal._replace(reward=signal.reward + 10.0 * bonus + 100.0 * age)


def test_every_rollout_is_scored_once_and_paid_as_scored(random_rollout):
    transform = paid(COUNTED, added, T, N, "counted")
    phi, state = transform.init(KEY)
    assert phi == {}
    for before in range(3):
        rollout = random_rollout(SPEC, T, N, before)
        bare = task_signal(rollout, 0.9)
        state = transform.observe(phi, state, rollout, bare)
        for _ in range(2):
            found = transform.apply(phi, state, rollout, bare)
            np.testing.assert_allclose(found.reward, bare.reward + 10.0 * before + 100.0 * (before + 1), rtol=1e-6)
        np.testing.assert_array_equal(found.discount, bare.discount)
        assert transform.report(phi, state, rollout) == {"counted_bonus": before, "seen": before + 1}


def test_another_rollout_than_the_one_scored_is_refused_where_its_shape_tells(random_rollout):
    transform = paid(COUNTED, added, T, N, "counted")
    half = random_rollout(SPEC, T, N // 2)
    with pytest.raises(ValueError, match=r"shape \(6, 4\), got one of \(6, 2\)"):
        transform.apply(*transform.init(KEY), half, task_signal(half, 0.9))


def test_an_intrinsic_stream_is_the_bonus_alone_and_no_termination_ends_it(random_rollout):
    transform = intrinsic_stream(COUNTED, 0.8, T, N, "counted")
    rollout = random_rollout(SPEC, T, N, terminated=np.ones((T, N), bool))
    phi, state = transform.init(KEY)
    for _ in range(2):
        state = transform.observe(phi, state, rollout, task_signal(rollout, 0.9))
    found = transform.apply(phi, state, rollout, task_signal(rollout, 0.9))
    np.testing.assert_array_equal(found.reward, 1.0)
    np.testing.assert_allclose(found.discount, 0.8)


# --- units ------------------------------------------------------------------------------------------------------------


def rewards(steps, seed=0):
    return jnp.asarray(np.random.default_rng(seed).exponential(size=(steps, N)), jnp.float32)


def test_the_unit_is_the_deviation_of_the_discounted_sum_so_far():
    reward, total, sums = rewards(2 * T), np.zeros(N), []
    for now in reward:
        total = 0.9 * total + now
        sums.append(total)
    first, scale = in_units_of_return(no_scale(N), reward[:T], 0.9)
    second, scale = in_units_of_return(scale, reward[T:], 0.9)
    np.testing.assert_allclose(first, reward[:T] / np.std(sums[:T]), rtol=1e-4)
    np.testing.assert_allclose(second, reward[T:] / np.std(sums), rtol=1e-4)
    np.testing.assert_allclose(scale.past, sums[-1], rtol=1e-5)


@pytest.mark.parametrize("factor", [1e-3, 7.0, 1e3])
def test_units_cancel(factor):
    scale, other = no_scale(N), no_scale(N)
    for seed in range(3):
        plain, scale = in_units_of_return(scale, rewards(T, seed), 0.9)
        scaled, other = in_units_of_return(other, factor * rewards(T, seed), 0.9)
        np.testing.assert_allclose(scaled, plain, rtol=1e-3)


def test_a_reward_that_never_was_stays_0():
    found, _ = in_units_of_return(no_scale(N), jnp.zeros((T, N)), 0.9)
    np.testing.assert_array_equal(found, 0.0)


# --- learning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("updates", "left_out"), [(1, 0), (3, 0), (4, 2), (6, 0), (9, 0)])
def test_a_pass_shows_every_sample_once(updates, left_out):
    """Plain gradient descent on a linear loss adds up the samples' slopes."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(T, N)), jnp.float32)
    optimizer = own_promotion(optax.sgd(1.0))
    params = jnp.zeros(())
    found, _ = one_pass(lambda p, part: -p * jnp.sum(part), params, optimizer.init(params), optimizer, x, updates)
    np.testing.assert_allclose(found, x[: T - left_out].sum(), rtol=1e-4)
