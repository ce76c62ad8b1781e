"""Pytree algebra agrees with the algebra of flat vectors, in every dtype and over the whole range of a float."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from llmrl.bilevel import trees


def mixed_shapes(seed):
    draws = jnp.asarray(np.random.default_rng(seed).normal(size=9), jnp.float32)
    return {"w": draws[:6].reshape(2, 3), "b": [draws[6], draws[7:].reshape(1, 1, 2)]}


def flat(tree):
    return np.asarray(ravel_pytree(tree)[0])


def test_algebra_is_that_of_the_flat_vectors():
    a, b = mixed_shapes(0), mixed_shapes(1)
    np.testing.assert_allclose(trees.dot(a, b), flat(a) @ flat(b), rtol=1e-5)
    np.testing.assert_allclose(trees.norm(a), np.linalg.norm(flat(a)), rtol=1e-6)
    np.testing.assert_allclose(flat(trees.scale(a, 3.0)), 3 * flat(a), rtol=1e-6)
    np.testing.assert_allclose(flat(trees.add_scaled(a, -2, b)), flat(a) - 2 * flat(b), rtol=1e-5)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_norm_holds_where_squares_leave_the_range(size):
    tree = {"x": jnp.array([3.0, 0.0]) * size, "y": jnp.array(4.0) * size}
    np.testing.assert_allclose(trees.norm(tree), 5 * size, rtol=1e-6)
    unit, length = trees.normalized(tree)
    np.testing.assert_allclose(flat(unit), [0.6, 0.0, 0.8], rtol=1e-6)
    np.testing.assert_allclose(length, 5 * size, rtol=1e-6)


@pytest.mark.parametrize("bad", [jnp.inf, jnp.nan])
def test_norm_does_not_hide_what_is_not_finite(bad):
    assert not jnp.isfinite(trees.norm({"x": jnp.array([1.0, bad]), "y": jnp.ones(())}))


def test_zero_stays_zero():
    unit, length = trees.normalized({"x": jnp.zeros(3), "empty": jnp.zeros(0)})
    assert length == 0
    np.testing.assert_array_equal(flat(unit), np.zeros(3))


def test_leaves_keep_their_dtype_whatever_the_scalar_is():
    tree = {"half": jnp.ones(2, jnp.bfloat16), "single": jnp.ones(2, jnp.float32)}
    for result in (trees.scale(tree, jnp.float32(2)), trees.add_scaled(tree, jnp.int32(2), tree)):
        assert jax.tree.map(lambda x: x.dtype, result) == jax.tree.map(lambda x: x.dtype, tree)
    assert trees.dot(tree, tree).dtype == trees.norm(tree).dtype == jnp.float32
    with jax.enable_x64(True):
        assert trees.scale(jnp.ones(2, jnp.float64), jnp.float32(2)).dtype == jnp.float64


def test_random_trees_have_unit_second_moments():
    like = {"a": jnp.zeros((50, 40)), "b": jnp.zeros(2000)}
    signs = trees.rademacher_like(jax.random.key(0), like)
    assert set(np.unique(flat(signs))) == {-1.0, 1.0}
    assert abs(flat(signs).mean()) < 0.06
    normal = flat(trees.normal_like(jax.random.key(1), like))
    np.testing.assert_allclose([normal.mean(), normal.var()], [0, 1], atol=0.08)
    assert not np.array_equal(normal[:2000], normal[2000:]), "leaves must not share their noise"


def test_random_trees_keep_shapes_and_dtypes_and_are_their_flat_vector():
    like = {"half": jnp.zeros((2, 3), jnp.bfloat16), "empty": jnp.zeros((0, 4)), "single": jnp.zeros(())}
    drawn = trees.normal_like(jax.random.key(0), like)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), drawn) == jax.tree.map(lambda x: (x.shape, x.dtype), like)
    whole = trees.normal_like(jax.random.key(0), jnp.zeros(9))
    np.testing.assert_array_equal(flat(trees.normal_like(jax.random.key(0), mixed_shapes(0))), whole)
