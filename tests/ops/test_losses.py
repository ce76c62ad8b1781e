"""Losses against their definitions, and their gradients against what they are for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmrl.ops.losses import (
    approximate_kl,
    clipped_policy_loss,
    held_constant,
    normalized,
    value_loss,
    with_clipped_cotangent,
    with_cotangent_beside,
)

RANDOM = np.random.default_rng(0)
OLD, NEW, ADVANTAGE = (jnp.asarray(RANDOM.normal(size=64), jnp.float32) for _ in range(3))


def test_clipped_loss_equals_its_definition():
    ratio, total = np.exp(np.asarray(NEW) - np.asarray(OLD)), 0.0
    for rho, a in zip(ratio, np.asarray(ADVANTAGE), strict=True):
        total -= min(rho * a, min(max(rho, 0.8), 1.2) * a)
    np.testing.assert_allclose(clipped_policy_loss(NEW, OLD, ADVANTAGE, 0.2), total / 64, rtol=1e-5)


def test_clipped_loss_is_never_better_than_unclipped():
    unclipped = -jnp.mean(jnp.exp(NEW - OLD) * ADVANTAGE)
    assert clipped_policy_loss(NEW, OLD, ADVANTAGE, 0.2) > unclipped
    np.testing.assert_allclose(clipped_policy_loss(NEW, OLD, ADVANTAGE, 1e6), unclipped, rtol=1e-6)


def test_clipped_loss_has_the_policy_gradient_at_ratio_one():
    slope = jax.grad(clipped_policy_loss)(OLD, OLD, ADVANTAGE, 0.2)
    np.testing.assert_allclose(slope, -ADVANTAGE / 64, rtol=1e-5)


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "moves"),
    [(0.5, 1.0, False), (0.5, -1.0, True), (-0.5, 1.0, True), (-0.5, -1.0, False), (0.1, 1.0, True)],
)
def test_clipping_stops_only_steps_further_out(log_ratio, advantage, moves):
    one = jnp.ones(1, jnp.float32)
    slope = jax.grad(clipped_policy_loss)(log_ratio * one, 0.0 * one, advantage * one, 0.2)
    assert bool(slope[0] != 0) is moves
    if moves:
        assert slope[0] * advantage < 0


def test_value_loss_averages_the_batch_and_sums_the_heads():
    value, target = (jnp.asarray(RANDOM.normal(size=(16, 3)), jnp.float32) for _ in range(2))
    by_head = [0.5 * np.mean((np.asarray(value)[:, k] - np.asarray(target)[:, k]) ** 2) for k in range(3)]
    np.testing.assert_allclose(value_loss(value, target), sum(by_head), rtol=1e-5)
    np.testing.assert_allclose(jax.grad(value_loss)(value, target), (value - target) / 16, rtol=1e-4, atol=1e-7)


def test_approximate_kl_is_the_divergence_in_the_mean_and_never_negative():
    old, new = (jax.nn.log_softmax(jnp.asarray(RANDOM.normal(size=6), jnp.float32)) for _ in range(2))
    probabilities = np.exp(np.asarray(old))
    samples = jax.vmap(lambda n, o: approximate_kl(n[None], o[None]))(new, old)
    assert jnp.all(samples >= 0)
    np.testing.assert_allclose(probabilities @ samples, probabilities @ np.asarray(old - new), rtol=1e-4)
    assert approximate_kl(old, old) == 0


def test_normalized_has_mean_zero_and_deviation_one_whatever_the_units():
    x = normalized(ADVANTAGE)
    np.testing.assert_allclose([jnp.mean(x), jnp.std(x)], [0.0, 1.0], atol=1e-6)
    np.testing.assert_allclose(normalized(3.0 * ADVANTAGE + 7.0), x, atol=1e-5)
    np.testing.assert_array_equal(normalized(jnp.full(4, 2.0)), 0.0)


def test_held_constant_has_a_value_and_no_slope():
    value, slope = jax.value_and_grad(lambda x: held_constant(x) * x)(jnp.float32(3.0))
    assert (value, slope) == (9.0, 3.0)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e6])
def test_a_clipped_cotangent_is_anything_between_the_derivative_and_its_sign(scale):
    x = jnp.asarray(RANDOM.normal(size=(6, 5, 2)), jnp.float32)
    given = scale * RANDOM.standard_cauchy(size=x.shape)
    given[0] = 0.0
    given[..., 1] *= 10.0  # each source for itself
    given = jnp.asarray(given, jnp.float32)

    def clipped(limit):
        value, back = jax.vjp(lambda x: with_clipped_cotangent(x, limit), x)
        np.testing.assert_array_equal(value, x)
        return np.asarray(back(given)[0])

    rms = np.sqrt(np.sum(np.square(given), axis=(0, 1)) / 25)
    np.testing.assert_allclose(clipped(1e6), given, rtol=1e-4)
    np.testing.assert_allclose(clipped(1e-6) / rms, np.sign(given), atol=1e-3)
    half = clipped(0.5)
    assert np.all(half * given >= 0) and np.all(half[0] == 0)
    assert np.all(np.abs(half) <= 1.01 * rms * np.sqrt(1.25))
    louder = np.abs(given) > rms
    assert np.all((np.abs(half) < np.abs(given))[louder]) and np.all((np.abs(half) >= np.abs(given))[~louder])


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_a_cotangent_beside_a_direction_has_lost_its_share_of_the_component_along_it(share):
    x, along, given = (jnp.asarray(RANDOM.normal(size=(6, 5, 2)), jnp.float32) for _ in range(3))
    along, given = along.at[0].set(0.0), given.at[1].set(0.0)
    value, back = jax.vjp(lambda x, along: with_cotangent_beside(x, along, share), x, along)
    np.testing.assert_array_equal(value, x)
    found, of_direction = back(given)
    np.testing.assert_array_equal(of_direction, 0.0)
    np.testing.assert_array_equal(found[0], given[0])
    for m in range(2):
        d, g = np.ravel(along[..., m]), np.ravel(given[..., m])
        np.testing.assert_allclose(np.ravel(found[..., m]), g - share * d * (d @ g) / (d @ d), rtol=1e-4, atol=1e-5)
    pushed = jax.jvp(lambda x: with_cotangent_beside(x, along, share), (x,), (along,))[1]
    np.testing.assert_allclose(jnp.vdot(pushed, given), jnp.vdot(along, found), rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(with_cotangent_beside(x, jnp.zeros_like(x), share), x)
