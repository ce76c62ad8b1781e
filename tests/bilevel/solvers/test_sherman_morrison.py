"""Rank-one updates against dense algebra, with weights of either sign."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmrl.bilevel.solvers import fisher, sherman_morrison
from llmrl.bilevel.solvers.sherman_morrison import SMALLEST_DENOMINATOR, rank_one_solve
from llmrl.bilevel.types import LinearOperator

KEY = jax.random.key(0)
solve = jax.jit(rank_one_solve)


def factors(samples, dim, seed=0):
    draws = np.random.default_rng(seed).normal(size=(samples + 1, dim))
    return jnp.asarray(draws[:-1], jnp.float32), jnp.asarray(draws[-1], jnp.float32)


@pytest.mark.parametrize(("samples", "dim"), [(3, 10), (30, 10), (1, 1)])
def test_inverse_of_the_damped_sum(samples, dim):
    u, b = factors(samples, dim)
    weights = jnp.asarray(np.linspace(0.0, 1.0, samples), jnp.float32)
    x, skipped = solve(u, weights, b, 0.3)
    matrix = 0.3 * np.eye(dim) + np.einsum("i,ij,ik->jk", weights, u, u)
    np.testing.assert_allclose(x, np.linalg.solve(matrix, b), rtol=1e-3, atol=1e-4)
    assert not np.any(skipped)


def test_through_a_fisher_operator_of_a_pytree():
    features, _ = factors(6, 4)
    point = {"w": jnp.zeros((2, 2)), "b": jnp.zeros(())}
    operator = fisher(lambda p: features @ p["w"].reshape(-1) + p["b"], point, weights=jnp.arange(6.0))
    b = {"w": jnp.ones((2, 2)), "b": jnp.ones(())}
    found = jax.jit(lambda b: sherman_morrison(damping=0.1)(operator, b, KEY))(b)
    u = np.concatenate([np.ones((6, 1)), features], 1)  # dictionaries flatten by key: b before w
    matrix = 0.1 * np.eye(5) + np.einsum("i,ij,ik->jk", np.arange(6.0) / 6, u, u)
    expected = np.linalg.solve(matrix, np.ones(5))
    np.testing.assert_allclose(np.append(found.x["b"], found.x["w"].reshape(-1)), expected, rtol=1e-3, atol=1e-4)
    assert found.num_matvecs == 0
    assert found.was_cut == 0


def test_negative_weights_that_leave_it_definite_are_exact():
    u, b = factors(4, 6)
    weights = jnp.array([1.0, -0.02, 0.5, -0.01])
    x, skipped = solve(u, weights, b, 0.5)
    matrix = 0.5 * np.eye(6) + np.einsum("i,ij,ik->jk", weights, u, u)
    assert np.linalg.eigvalsh(matrix)[0] > 0
    np.testing.assert_allclose(x, np.linalg.solve(matrix, b), rtol=1e-3, atol=1e-4)
    assert not np.any(skipped)


def test_updates_that_would_make_it_indefinite_are_left_out_and_reported():
    u, b = factors(5, 6)
    weights = jnp.array([1.0, -50.0, 0.5, -80.0, 2.0])
    operator = LinearOperator(lambda v: v, factors=lambda: (u, weights))
    found = jax.jit(lambda b: sherman_morrison(damping=0.5)(operator, b, KEY))(b)
    kept = [0, 2, 4]
    u, weights = np.asarray(u)[kept], np.asarray(weights)[kept]
    matrix = 0.5 * np.eye(6) + np.einsum("i,ij,ik->jk", weights, u, u)
    np.testing.assert_allclose(found.x, np.linalg.solve(matrix, b), rtol=1e-3, atol=1e-4)
    assert found.was_cut == 1
    assert found.x @ b > 0


def test_an_update_that_is_exactly_singular_is_left_out():
    x, skipped = solve(jnp.array([[1.0, 0.0]]), jnp.array([-1.0]), jnp.ones(2), 1.0)
    np.testing.assert_allclose(x, [1.0, 1.0])
    assert skipped[0]
    nearly = -(1 - 2 * SMALLEST_DENOMINATOR)
    x, skipped = solve(jnp.array([[1.0, 0.0]]), jnp.array([nearly]), jnp.ones(2), 1.0)
    np.testing.assert_allclose(x, [1 / (2 * SMALLEST_DENOMINATOR), 1.0], rtol=1e-4)
    assert not skipped[0]
