"""Running moments are those of all samples at once."""

import jax.numpy as jnp
import numpy as np
import pytest

from llmrl.ops.moments import no_moments, observed, whitened


def samples(b=50, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal([3.0, -100.0], [2.0, 0.1], (b, 2)), jnp.float32)


@pytest.mark.parametrize("cuts", [(), (1,), (20, 21), (10, 20, 30, 40)])
def test_batches_are_all_samples_at_once(cuts):
    x, moments = samples(), no_moments((2,))
    for batch in jnp.split(x, cuts):
        moments = observed(moments, batch)
    np.testing.assert_allclose(moments.mean, x.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(moments.variance, x.var(axis=0), rtol=1e-3)
    assert moments.samples == 50


def test_whitened_samples_have_mean_0_and_deviation_1():
    x = samples()
    white = np.asarray(whitened(observed(no_moments((2,)), x), x))
    np.testing.assert_allclose(white.mean(axis=0), 0.0, atol=1e-3)
    np.testing.assert_allclose(white.std(axis=0), 1.0, rtol=1e-3)


def test_whitening_is_clipped_and_blind_to_what_never_changed():
    x = jnp.ones((8, 1))
    moments = observed(no_moments((1,)), x)
    np.testing.assert_array_equal(whitened(moments, x), 0.0)
    np.testing.assert_array_equal(whitened(moments, x + 0.5), 5.0)
    np.testing.assert_array_equal(whitened(moments, x - 1e6, bound=3.0), -3.0)
