"""The von Neumann series: its error bound, its automatic step, its halt, and Algorithm 1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmrl.bilevel.solvers import bounded, hessian, neumann, neumann_finite_difference

KEY = jax.random.key(0)


def symmetric(seed, values):
    dim = len(values)
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, dim)))
    return jnp.asarray((rotation * np.asarray(values)) @ rotation.T, jnp.float32)


def product(matrix):
    return lambda v: matrix @ v


MATRIX = symmetric(0, np.linspace(0.2, 1.8, 6))
B = jnp.asarray(np.random.default_rng(1).normal(size=6), jnp.float32)


def solve(solver, operator, b):
    return jax.jit(lambda b: solver(operator, b, KEY))(b)


@pytest.mark.parametrize("num_terms", [0, 1, 5, 20])
def test_the_series_is_its_own_sum_and_keeps_its_error_bound(num_terms):
    step = 0.6
    x = np.asarray(solve(neumann(num_terms, step), product(MATRIX), B).x, np.float64)
    matrix, b = np.asarray(MATRIX, np.float64), np.asarray(B, np.float64)
    contraction = np.eye(6) - step * matrix
    powers = [np.linalg.matrix_power(contraction, k) @ b for k in range(num_terms + 1)]
    np.testing.assert_allclose(x, step * sum(powers), atol=1e-5)

    truth = np.linalg.solve(matrix, b)
    bound = np.linalg.norm(contraction, 2) ** (num_terms + 1) * np.linalg.norm(truth)
    assert np.linalg.norm(x - truth) <= bound + 1e-5


def test_products_are_counted():
    assert solve(neumann(7, step_size=0.1), product(MATRIX), B).num_matvecs == 7
    assert solve(neumann(7, power_iterations=3), product(MATRIX), B).num_matvecs == 10
    assert solve(neumann(0, step_size=0.1), product(MATRIX), B).num_matvecs == 0


def test_the_automatic_step_sees_the_only_curvature_there_is_whatever_is_drawn():
    """In one dimension half of all noise is the opposite of b."""
    solver, b = neumann(20), jnp.ones(1)
    x = jax.jit(jax.vmap(lambda key: solver(lambda v: 100.0 * v, b, key).x))(jax.random.split(KEY, 16))
    np.testing.assert_allclose(x, 0.01, rtol=1e-5)


def test_the_automatic_step_never_diverges():
    """Random positive definite operators, spread out or with outliers, over six orders of magnitude."""
    dim, count = 60, 40
    keys = jax.random.split(jax.random.key(2), count)
    solver = neumann(num_terms=40)

    @jax.jit
    @jax.vmap
    def run(key, scale, outlier):
        root_key, b_key, solver_key = jax.random.split(key, 3)
        root = jax.random.normal(root_key, (dim, dim))
        matrix = scale * (root @ root.T / dim + outlier * jnp.outer(root[0], root[0]) / dim)
        b = jax.random.normal(b_key, (dim,))
        return solver(product(matrix), b, solver_key)

    scales = jnp.logspace(-3, 3, count)
    found = run(keys, scales, jnp.tile(jnp.array([0.0, 3.0, 30.0, 300.0]), count // 4))
    assert not np.any(found.was_cut)
    assert np.all(found.residual_norm < 1)


def test_the_automatic_step_is_held_to_its_maximum():
    tiny = solve(neumann(0, max_step_size=0.3), lambda v: 1e-6 * v, B)
    np.testing.assert_allclose(tiny.x, 0.3 * B, rtol=1e-6)
    np.testing.assert_allclose(solve(neumann(0), lambda v: 0 * v, B).x, 0.5 * B, rtol=1e-6)
    np.testing.assert_allclose(solve(neumann(0), lambda v: -9.0 * v, B).x, 0.1 * B, rtol=1e-4)


@pytest.mark.parametrize(
    ("matrix", "solver"),
    [
        (symmetric(1, [-0.5, 0.2, 0.4, 0.6, 0.8, 1.0]), neumann(num_terms=10_000)),
        (symmetric(1, [0.1, 0.2, 0.4, 0.6, 0.8, 50.0]), neumann(num_terms=10_000, step_size=1.0)),
    ],
    ids=["indefinite", "step_too_long"],
)
def test_ten_thousand_divergent_terms_end_finite(matrix, solver):
    found = solve(solver, product(matrix), B)
    assert np.all(np.isfinite(found.x))
    assert found.was_cut == 1
    assert found.num_matvecs < 100, "what comes after the halt is not counted"
    guarded = solve(bounded(solver, max_ratio=10.0), product(matrix), B)
    assert np.linalg.norm(guarded.x) <= 10.001 * np.linalg.norm(B)
    assert guarded.was_cut == 1


def test_a_flat_operator_does_not_halt():
    found = solve(neumann(num_terms=50, step_size=0.5), lambda v: 0 * v, B)
    np.testing.assert_allclose(found.x, 25.5 * B, rtol=1e-5)
    assert found.was_cut == 0


def test_an_overflowing_right_hand_side_of_sound_size_is_solved():
    for size in (1e-25, 1e25):
        found = solve(neumann(num_terms=100), product(MATRIX), size * B)
        assert found.residual_norm < 1e-3
        assert found.was_cut == 0


def quadratic(v):
    return 0.5 * v @ (MATRIX @ v) - jnp.sum(v)


def test_algorithm_1_on_a_quadratic_is_the_analytic_series():
    operator = hessian(quadratic, 0.1 * B)
    by_difference = solve(neumann_finite_difference(num_terms=12, step_size=0.3), operator, B)
    exact = solve(neumann(num_terms=12, step_size=0.3), operator, B)
    np.testing.assert_allclose(by_difference.x, exact.x, rtol=1e-4, atol=1e-5)
    assert by_difference.num_matvecs == exact.num_matvecs == 12


def bent(v):
    return quadratic(v) + 0.1 * jnp.sum(jnp.sin(2 * v))


def test_algorithm_1_is_the_papers_loop_even_where_the_loss_is_not_quadratic():
    conditioner, num_terms, point = 0.2, 6, 0.3 * B
    gradient = jax.grad(bent)
    x = jnp.zeros_like(B)
    for _ in range(num_terms + 1):
        x = x + B - (gradient(point + conditioner * x) - gradient(point))
    found = solve(neumann_finite_difference(num_terms, conditioner), hessian(bent, point), B)
    np.testing.assert_allclose(found.x, conditioner * x, rtol=1e-4, atol=1e-5)


def test_relative_differences_stay_exact_where_undivided_ones_do_not():
    """On a right-hand side far longer than the loss is quadratic for."""
    operator, b = hessian(bent, 0.3 * B), 100 * B
    exact = solve(neumann(num_terms=10, step_size=0.2), operator, b).x
    relative = solve(neumann_finite_difference(10, 0.2, relative=True), operator, b).x
    undivided = solve(neumann_finite_difference(10, 0.2), operator, b).x
    assert np.linalg.norm(relative - exact) < 1e-3 * np.linalg.norm(exact)
    assert np.linalg.norm(undivided - exact) > 1e-2 * np.linalg.norm(exact)
    assert neumann_finite_difference().mixed_by_difference
    assert not neumann_finite_difference(relative=True).mixed_by_difference
