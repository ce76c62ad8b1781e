"""Conjugate gradients: finite termination, honest counts, and a sane end on indefinite operators."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmrl.bilevel.solvers import conjugate_gradient

KEY = jax.random.key(0)


def solve(solver, operator, b):
    return jax.jit(lambda b: solver(operator, b, KEY))(b)


def test_as_many_steps_as_distinct_eigenvalues():
    values = np.array([1.0, 1.0, 3.0, 3.0, 3.0, 10.0, 10.0])
    found = solve(conjugate_gradient(num_steps=7), lambda v: values * v, np.ones(7))
    np.testing.assert_allclose(found.x, 1 / values, rtol=1e-5)
    assert found.num_matvecs == 3
    assert found.was_cut == 0


def test_a_loose_tolerance_stops_earlier_and_is_kept():
    values, b = np.linspace(1.0, 50.0, 40), np.ones(40)
    counts = []
    call = jax.jit(lambda tolerance: conjugate_gradient(40, tolerance)(lambda v: values * v, b, KEY))
    for tolerance in (1e-1, 1e-3, 1e-5):
        found = call(tolerance)
        assert found.residual_norm <= 1.1 * tolerance
        counts.append(int(found.num_matvecs))
    assert counts == sorted(set(counts))


def test_the_residual_falls_in_the_operators_norm():
    values, b = np.linspace(1.0, 50.0, 40), np.ones(40)
    errors = []
    for steps in (1, 2, 5):
        error = solve(conjugate_gradient(steps, 0.0), lambda v: values * v, b).x - b / values
        errors.append(float(error @ (values * error)))
    assert errors == sorted(errors, reverse=True)


def test_weak_curvature_in_many_dimensions_is_not_taken_for_none():
    """A well-conditioned operator with small eigenvalues; a guard that grows with the dimension gives up here."""
    found = solve(conjugate_gradient(10), lambda v: 1e-4 * v, np.ones(20_000))
    np.testing.assert_allclose(found.x[0], 1e4, rtol=1e-5)
    assert found.was_cut == 0


def test_a_direction_nearly_without_curvature_is_still_searched():
    """p^T A p is two thousandths of |p| |A p| here: small, and far above rounding."""
    values, b = np.array([1.0, 1e-6]), np.array([1e-3, 1.0])
    found = solve(conjugate_gradient(2), lambda v: values * v, b)
    assert found.was_cut == 0
    assert found.residual_norm < 1e-3


def test_negative_curvature_keeps_the_last_iterate():
    values, b = np.array([4.0, 3.0, 2.0, -1.0]), np.array([1.0, 1.0, 1.0, 0.1])
    steps = [solve(conjugate_gradient(k, 1e-7), lambda v: values * v, b) for k in (2, 3, 4, 10)]
    stopped = next(k for k, found in enumerate(steps) if found.was_cut)
    assert stopped > 0
    for found in steps[stopped:]:
        np.testing.assert_allclose(found.x, steps[stopped - 1].x, rtol=1e-6)
        assert found.num_matvecs == steps[stopped].num_matvecs
    assert found.x @ b > 0


def test_negative_curvature_at_the_first_step_scales_b_by_its_size():
    b = np.array([1.0, 2.0, 2.0])
    found = solve(conjugate_gradient(), lambda v: -4.0 * v, b)
    np.testing.assert_allclose(found.x, b / 4, rtol=1e-6)
    assert found.was_cut == 1
    assert found.num_matvecs == 1
    for useless in (lambda v: 0 * v, lambda v: jnp.nan * v):
        np.testing.assert_allclose(solve(conjugate_gradient(), useless, b).x, b, rtol=1e-6)


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_the_size_of_b_does_not_matter(size):
    values, b = np.linspace(1.0, 5.0, 8), np.ones(8)
    found = solve(conjugate_gradient(), lambda v: values * v, size * b)
    np.testing.assert_allclose(found.x, size * b / values, rtol=1e-4)


def test_steps_beyond_convergence_change_nothing():
    values, b = np.array([1.0, 2.0]), np.ones(2)
    found = solve(conjugate_gradient(50, tolerance=0.0), lambda v: values * v, b)
    np.testing.assert_allclose(found.x, b / values, rtol=1e-6)
    assert found.num_matvecs <= 4
    assert found.was_cut == 0
