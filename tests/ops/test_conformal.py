"""A conformal threshold keeps its promise about the next score."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmrl.ops.conformal import conformal_threshold


@pytest.mark.parametrize("error_rate", [0.05, 0.1, 0.25])
@pytest.mark.parametrize("number", [9, 19, 40])
@pytest.mark.parametrize("draw", ["normal", "exponential", "cauchy"])
def test_the_next_exchangeable_score_reaches_it_as_often_as_promised(number, error_rate, draw):
    """Between 1 - alpha and 1 - alpha + 1 / (n + 1), whatever the distribution."""
    scores = getattr(jax.random, draw)(jax.random.key(number), (20_000, number + 1))
    everything = jnp.ones(number, jnp.bool_)
    found = jax.vmap(lambda x: conformal_threshold(x, everything, error_rate))(scores[:, :-1])
    covered = float(jnp.mean(scores[:, -1] >= found))
    noise = 3.0 * np.sqrt(0.25 / 20_000)
    assert 1.0 - error_rate - noise <= covered <= 1.0 - error_rate + 1.0 / (number + 1) + noise


@pytest.mark.parametrize("draw", range(20))
def test_it_is_the_ranked_score_that_the_definition_says(draw):
    random = np.random.default_rng(draw)
    scores, counted = random.normal(size=60), random.random(60) < random.random()
    error_rate = random.choice([0.0, 0.1, 0.2, 0.5, 1.0])
    own = np.sort(scores[counted])[::-1]
    place = int(np.ceil(np.round((len(own) + 1) * (1.0 - error_rate), 9)))  # k, counted from 1
    expected = -np.inf if place > len(own) else own[max(place, 1) - 1]
    found = conformal_threshold(jnp.asarray(scores, jnp.float32), jnp.asarray(counted), error_rate)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_what_does_not_count_changes_nothing():
    scores = jnp.asarray([3.0, 1.0, 2.0, 100.0, -100.0])
    counted = jnp.asarray([True, True, True, False, False])
    assert conformal_threshold(scores, counted, 0.25) == conformal_threshold(scores[:3], counted[:3], 0.25) == 1.0
    assert conformal_threshold(scores, ~counted & False, 0.25) == -jnp.inf
