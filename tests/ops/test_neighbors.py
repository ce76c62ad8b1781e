"""Nearest neighbours equal those found among all pairs, however the work is cut."""

import jax.numpy as jnp
import numpy as np
import pytest

from llmrl.ops.neighbors import nearest_distances


def brute_force(x, references, k):
    distances = np.linalg.norm(x[:, None] - x[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    return np.sort(distances[:, references], axis=1)[:, :k]


@pytest.mark.parametrize(("chunk", "k"), [(3, 1), (7, 4), (20, 4), (64, 4)])
@pytest.mark.parametrize("references", [np.arange(20), np.asarray([0, 3, 5, 6, 11, 19])])
def test_distances_equal_all_pairs(chunk, k, references):
    x = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
    found = nearest_distances(jnp.asarray(x), jnp.asarray(references), k, chunk)
    np.testing.assert_allclose(found, brute_force(x, references, k), rtol=1e-5)


def test_twins_are_at_distance_0_far_from_the_origin_too():
    x = np.repeat(1e4 + np.random.default_rng(0).normal(size=(5, 3)), 2, axis=0).astype(np.float32)
    found = nearest_distances(jnp.asarray(x), jnp.arange(10), 2)
    np.testing.assert_array_equal(found[:, 0], 0.0)
    assert np.all(found[:, 1] > 0)


def test_a_sample_is_no_neighbour_of_its_own():
    found = nearest_distances(jnp.asarray([[0.0], [3.0], [7.0]]), jnp.asarray([0, 1]), 1)
    np.testing.assert_array_equal(found[:, 0], [3.0, 3.0, 4.0])


def test_too_few_references_are_refused():
    with pytest.raises(ValueError, match=r"k=3 and 3 references"):
        nearest_distances(jnp.zeros((5, 1)), jnp.arange(3), 3)
