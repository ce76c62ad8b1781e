"""Distributions against scipy, against sums over all outcomes, and against their own samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from llmrl.ops.distributions import Categorical, DiagonalGaussian, sampling_noise
from llmrl.types import Box, Discrete

KEY = jax.random.key(0)
LOGITS = jax.nn.log_softmax(jnp.asarray([[0.3, -1.2, 2.0, 0.0], [5.0, 0.0, -5.0, 1.0]], jnp.float32))
MEAN = jnp.asarray([[0.5, -1.0, 3.0], [0.0, 2.0, -0.1]], jnp.float32)
LOG_STD = jnp.asarray([[-0.5, 0.3, -2.0], [0.0, 1.0, -1.0]], jnp.float32)


def every_action(size):
    return jnp.arange(size)[:, None] * jnp.ones(2, jnp.int32)


# --- categorical ------------------------------------------------------------------------------------------------------


def test_categorical_log_prob_normalises_and_reads_the_logits():
    each = jax.vmap(Categorical(LOGITS).log_prob)(every_action(4))
    np.testing.assert_allclose(jnp.exp(each).sum(0), 1.0, rtol=1e-6)
    np.testing.assert_allclose(each, LOGITS.T, rtol=1e-6)


def test_categorical_entropy():
    expected = [scipy.stats.entropy(p) for p in np.exp(np.asarray(LOGITS, np.float64))]
    np.testing.assert_allclose(Categorical(LOGITS).entropy(), expected, rtol=1e-5)
    uniform = Categorical(jnp.full((4,), -np.log(4.0), jnp.float32))
    np.testing.assert_allclose(uniform.entropy(), np.log(4.0), rtol=1e-6)


def test_categorical_entropy_of_a_certain_choice_is_zero_and_finite():
    certain = jax.nn.log_softmax(jnp.asarray([200.0, 0.0, -200.0], jnp.float32))
    value, slope = jax.value_and_grad(lambda x: Categorical(x).entropy())(certain)
    np.testing.assert_allclose(value, 0.0, atol=1e-6)
    assert jnp.all(jnp.isfinite(slope))


def test_gumbel_samples_have_the_right_frequencies():
    draws = 40_000
    noise = sampling_noise(KEY, Discrete(4), (draws, 2))
    sampled = np.asarray(jax.vmap(Categorical(LOGITS).sample)(noise))
    for row in range(2):
        p = np.exp(np.asarray(LOGITS[row], np.float64))
        found = np.bincount(sampled[:, row], minlength=4) / draws
        assert np.all(np.abs(found - p) <= 4 * np.sqrt(p * (1 - p) / draws) + 1e-9), (found, p)


def test_categorical_curvature_is_the_softmax_covariance():
    """grad^2 log pi(a) = -(diag p - p p^T), for every a."""
    logits = jnp.asarray([0.3, -1.2, 2.0], jnp.float32)
    p = np.exp(np.asarray(jax.nn.log_softmax(logits)))
    for action in range(3):
        found = jax.hessian(lambda x: Categorical(jax.nn.log_softmax(x)).log_prob(jnp.asarray(action)))(logits)
        np.testing.assert_allclose(found, np.outer(p, p) - np.diag(p), atol=1e-6)


# --- Gaussian ---------------------------------------------------------------------------------------------------------


def test_gaussian_log_prob_equals_scipy():
    actions = MEAN + jnp.asarray([[0.1, -2.0, 0.3], [1.0, 0.0, -0.5]], jnp.float32)
    expected = scipy.stats.norm(np.asarray(MEAN), np.exp(np.asarray(LOG_STD))).logpdf(np.asarray(actions)).sum(-1)
    np.testing.assert_allclose(DiagonalGaussian(MEAN, LOG_STD).log_prob(actions), expected, rtol=1e-5)


def test_gaussian_density_integrates_to_one():
    grid = jnp.linspace(-8.0, 8.0, 4001)[:, None]
    density = jnp.exp(DiagonalGaussian(jnp.full((4001, 1), 0.7), jnp.full((4001, 1), -0.4)).log_prob(grid))
    np.testing.assert_allclose(np.trapezoid(density, grid[:, 0]), 1.0, rtol=1e-4)


def test_gaussian_entropy_equals_scipy():
    expected = scipy.stats.norm(0.0, np.exp(np.asarray(LOG_STD))).entropy().sum(-1)
    np.testing.assert_allclose(DiagonalGaussian(MEAN, LOG_STD).entropy(), expected, rtol=1e-5)


def test_gaussian_samples_have_the_right_moments():
    draws = 20_000
    noise = sampling_noise(KEY, Box(3), (draws, 2))
    sampled = np.asarray(jax.vmap(DiagonalGaussian(MEAN, LOG_STD).sample)(noise), np.float64)
    std = np.exp(np.asarray(LOG_STD, np.float64))
    assert np.all(np.abs(sampled.mean(0) - np.asarray(MEAN)) <= 4 * std / np.sqrt(draws))
    np.testing.assert_allclose(sampled.std(0), std, rtol=0.03)


# --- both -------------------------------------------------------------------------------------------------------------

BOTH = {"categorical": (Categorical(LOGITS), Discrete(4)), "gaussian": (DiagonalGaussian(MEAN, LOG_STD), Box(3))}


@pytest.mark.parametrize("name", BOTH)
def test_entropy_is_minus_the_mean_log_prob_of_its_samples(name):
    distribution, space = BOTH[name]
    noise = sampling_noise(KEY, space, (20_000, 2))
    log_prob = np.asarray(jax.vmap(lambda z: distribution.log_prob(distribution.sample(z)))(noise), np.float64)
    error = 4 * log_prob.std(0) / np.sqrt(len(log_prob))
    assert np.all(np.abs(-log_prob.mean(0) - np.asarray(distribution.entropy())) <= error)


@pytest.mark.parametrize("name", BOTH)
def test_mode_is_the_likeliest_action(name):
    distribution, space = BOTH[name]
    noise = sampling_noise(KEY, space, (200, 2))
    others = jax.vmap(lambda z: distribution.log_prob(distribution.sample(z)))(noise)
    assert jnp.all(distribution.log_prob(distribution.mode()) >= others)


@pytest.mark.parametrize(("space", "shape"), [(Discrete(4), (5, 2, 4)), (Box(3), (5, 2, 3))])
def test_noise_has_one_number_per_action_or_dimension(space, shape):
    assert sampling_noise(KEY, space, (5, 2)).shape == shape
