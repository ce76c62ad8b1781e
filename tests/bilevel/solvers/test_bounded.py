"""The last guard: fires when it must, never otherwise, and reports what it returned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmrl.bilevel.solvers import bounded, dense, identity, neumann_finite_difference

KEY = jax.random.key(0)
B = jnp.array([3.0, 4.0])


def solve(solver, operator, b):
    return jax.jit(lambda b: solver(operator, b, KEY))(b)


def test_a_short_solution_passes_untouched():
    found = solve(bounded(dense(), max_ratio=10.0), lambda v: 0.2 * v, B)
    np.testing.assert_allclose(found.x, 5 * B, rtol=1e-6)
    assert found.was_cut == 0


def test_a_long_solution_keeps_its_direction_and_tells_its_new_residual():
    found = solve(bounded(dense(), max_ratio=10.0), lambda v: 0.01 * v, B)
    np.testing.assert_allclose(found.x, 10 * B, rtol=1e-5)
    np.testing.assert_allclose(found.residual_norm, 0.9, rtol=1e-5)
    assert found.was_cut == 1


@pytest.mark.parametrize(("max_ratio", "expected"), [(10.0, 1.0), (0.5, 0.5)])
def test_a_solution_that_is_not_finite_becomes_b(max_ratio, expected):
    found = solve(bounded(dense(), max_ratio), lambda v: 0 * v, B)
    np.testing.assert_allclose(found.x, expected * B, rtol=1e-6)
    np.testing.assert_allclose(found.residual_norm, 1.0, rtol=1e-6)
    assert found.was_cut == 1


def test_an_inner_guard_is_not_forgotten():
    twice = bounded(bounded(identity(), max_ratio=0.5), max_ratio=10.0)
    assert solve(twice, lambda v: v, B).was_cut == 1


def test_what_the_solver_asks_for_stays_asked():
    assert bounded(neumann_finite_difference()).mixed_by_difference
    assert not bounded(identity()).mixed_by_difference
