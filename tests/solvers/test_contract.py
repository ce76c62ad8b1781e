"""What holds for every solver on every operator. A new solver is one more line in SOLVERS."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from llmrl.bilevel.solvers import (
    bounded,
    conjugate_gradient,
    damped,
    dense,
    diagonal,
    fisher,
    hessian,
    identity,
    neumann,
    neumann_finite_difference,
    sherman_morrison,
)
from llmrl.bilevel.solvers.dense import dense_matrix
from llmrl.bilevel.types import Solver

FISHER_DAMPING = 0.5

LIKE = {"w": jnp.zeros((2, 3)), "b": (jnp.zeros(()), jnp.zeros((1,)))}
DIM, UNRAVEL = 8, ravel_pytree(LIKE)[1]
KEY = jax.random.key(7)
FEATURES = 3 * np.random.default_rng(2).normal(size=(5, DIM))


class Case(NamedTuple):
    """A solver, what it asks of an operator, and how near to the truth it is bound to come (None: no promise)."""

    solver: Solver
    needs: str | None = None
    tolerance: float | None = None


SOLVERS = {
    "neumann": Case(neumann(num_terms=300), tolerance=1e-4),
    "neumann_fixed": Case(neumann(num_terms=300, step_size=0.1), tolerance=1e-4),
    "algorithm_1": Case(neumann_finite_difference(300, step_size=0.1), needs="gradient", tolerance=1e-3),
    "difference_relative": Case(neumann_finite_difference(300, 0.1, relative=True), needs="gradient", tolerance=1e-3),
    "conjugate_gradient": Case(conjugate_gradient(num_steps=DIM + 2, tolerance=1e-7), tolerance=1e-4),
    "diagonal": Case(diagonal()),
    "sherman_morrison": Case(sherman_morrison(damping=FISHER_DAMPING), needs="factors", tolerance=1e-4),
    "identity": Case(identity()),
    "dense": Case(dense(), tolerance=1e-4),
    "dense_least_squares": Case(dense(least_squares=True), tolerance=1e-4),
    "bounded": Case(bounded(diagonal(), max_ratio=100.0)),
}


def symmetric(seed, low, high):
    """A random symmetric matrix with eigenvalues from low to high."""
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(DIM, DIM)))
    return (rotation * np.linspace(low, high, DIM)) @ rotation.T


def quadratic(matrix):
    def loss(tree):
        v = ravel_pytree(tree)[0]
        return 0.5 * v @ (jnp.asarray(matrix, v.dtype) @ v) + jnp.sum(v)

    return loss


def positive_definite(point):
    return hessian(quadratic(symmetric(0, 0.5, 4.0)), point)


def damped_indefinite(point):
    return damped(hessian(quadratic(symmetric(1, -1.0, 2.0)), point), 1.5)[0]


def damped_fisher(point):
    def log_likelihood(tree):
        v = ravel_pytree(tree)[0]
        return jax.nn.log_sigmoid(jnp.asarray(FEATURES, v.dtype) @ v)

    return damped(fisher(log_likelihood, point), FISHER_DAMPING)[0]


OPERATORS: dict[str, Callable] = {
    "positive_definite": positive_definite,
    "damped_indefinite": damped_indefinite,
    "damped_fisher": damped_fisher,
}

PAIRS = [
    (solver, operator)
    for solver, case in SOLVERS.items()
    for operator in OPERATORS
    if case.needs is None or (case.needs == "factors") == (operator == "damped_fisher")
]


@functools.cache
def compiled(solver, operator):
    return jax.jit(lambda b: SOLVERS[solver].solver(OPERATORS[operator](jax.tree.map(jnp.zeros_like, b)), b, KEY))


def right_hand_side(seed=3):
    return UNRAVEL(jnp.asarray(np.random.default_rng(seed).normal(size=DIM), jnp.float32))


def flat(tree):
    return np.asarray(ravel_pytree(tree)[0])


@pytest.mark.parametrize(("solver", "operator"), PAIRS)
def test_solution_residual_and_structure(solver, operator):
    b = right_hand_side()
    found = compiled(solver, operator)(b)
    matrix = np.asarray(dense_matrix(OPERATORS[operator](LIKE), LIKE), np.float64)
    x, rhs = flat(found.x).astype(np.float64), flat(b).astype(np.float64)

    residual = np.linalg.norm(matrix @ x - rhs) / np.linalg.norm(rhs)
    np.testing.assert_allclose(found.residual_norm, residual, rtol=1e-3, atol=2e-6)

    tolerance = SOLVERS[solver].tolerance
    if tolerance is not None:
        truth = np.linalg.solve(matrix, rhs)
        assert np.linalg.norm(x - truth) <= tolerance * np.linalg.norm(truth)

    assert jax.tree.structure(found.x) == jax.tree.structure(b)
    assert jax.tree.map(jnp.shape, found.x) == jax.tree.map(jnp.shape, b)
    assert found.num_matvecs.dtype == jnp.int32
    assert found.num_matvecs.shape == found.residual_norm.shape == found.was_cut.shape == ()
    assert found.was_cut == 0


def home_of(solver):
    return "damped_fisher" if SOLVERS[solver].needs == "factors" else "positive_definite"


@pytest.mark.parametrize("solver", SOLVERS)
def test_nothing_asked_nothing_answered(solver):
    found = compiled(solver, home_of(solver))(LIKE)
    np.testing.assert_array_equal(flat(found.x), np.zeros(DIM))
    assert found.residual_norm == 0
    assert found.was_cut == 0


@pytest.mark.parametrize("solver", SOLVERS)
def test_batching_equals_looping(solver):
    batch = [right_hand_side(seed) for seed in range(3)]
    call = compiled(solver, home_of(solver))
    together = jax.jit(jax.vmap(call))(jax.tree.map(lambda *leaves: jnp.stack(leaves), *batch))
    for i, b in enumerate(batch):
        one_of, alone = jax.tree.map(lambda leaf, i=i: leaf[i], together), call(b)
        np.testing.assert_allclose(flat(one_of.x), flat(alone.x), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(one_of.residual_norm, alone.residual_norm, rtol=1e-3, atol=1e-5)
        assert one_of.num_matvecs == alone.num_matvecs


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_pytree_is_its_flat_vector(solver):
    b = right_hand_side()
    call = compiled(solver, home_of(solver))
    as_tree, as_vector = call(b), call(ravel_pytree(b)[0])
    np.testing.assert_allclose(flat(as_tree.x), as_vector.x, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("solver", SOLVERS)
def test_float64_stays_float64(solver):
    with jax.enable_x64(True):
        b = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), right_hand_side())
        found = jax.eval_shape(compiled(solver, home_of(solver)), b)
    assert {leaf.dtype for leaf in jax.tree.leaves(found.x)} == {jnp.dtype(jnp.float64)}
    assert found.residual_norm.dtype == found.was_cut.dtype == jnp.float64


@pytest.mark.parametrize("solver", [name for name, case in SOLVERS.items() if case.needs is None])
def test_bounded_answers_whatever_the_operator_does(solver):
    guarded = bounded(SOLVERS[solver].solver, max_ratio=5.0)
    b = right_hand_side()

    @jax.jit
    @jax.vmap
    def lengths(factor):
        found = guarded(lambda v: jax.tree.map(lambda x: x * factor, v), b, KEY)
        return jnp.linalg.norm(ravel_pytree(found.x)[0])

    assert np.all(lengths(jnp.array([jnp.nan, jnp.inf, 0.0, 1e-30, -2.0])) <= 5.0001 * np.linalg.norm(flat(b)))


BAD_SETTINGS = [
    (lambda: neumann(num_terms=-3), "-3"),
    (lambda: neumann(num_terms=2.5), "2.5"),
    (lambda: neumann(step_size=-0.25), "-0.25"),
    (lambda: neumann(step_size="fast"), "fast"),
    (lambda: neumann(step_size=jnp.asarray(-0.25)), "-0.25"),
    (lambda: neumann(power_iterations=0), "received 0"),
    (lambda: neumann(max_step_size=float("nan")), "nan"),
    (lambda: neumann_finite_difference(num_terms=-1), "-1"),
    (lambda: neumann_finite_difference(step_size=0.0), "0.0"),
    (lambda: neumann_finite_difference(difference_step=-0.5), "-0.5"),
    (lambda: conjugate_gradient(num_steps=0), "received 0"),
    (lambda: conjugate_gradient(tolerance=-1e-3), "-0.001"),
    (lambda: diagonal(num_probes=0), "received 0"),
    (lambda: diagonal(damping=0.0), "0.0"),
    (lambda: sherman_morrison(damping=-2.0), "-2.0"),
    (lambda: bounded(identity(), max_ratio=0.0), "0.0"),
    (lambda: bounded(identity(), max_ratio=float("inf")), "inf"),
]


@pytest.mark.parametrize(("build", "received"), BAD_SETTINGS)
def test_a_bad_setting_is_named_with_its_value(build, received):
    # A TypeError where argument types are checked at run time, as they are in this project's own tests.
    with pytest.raises((ValueError, TypeError), match=received):
        build()


@pytest.mark.parametrize("solver", [name for name, case in SOLVERS.items() if case.needs is not None])
def test_a_missing_part_is_named_with_what_was_passed(solver):
    def just_a_function(v):
        return v

    with pytest.raises(TypeError, match=f"{SOLVERS[solver].needs}.*just_a_function"):
        SOLVERS[solver].solver(just_a_function, right_hand_side(), KEY)


def test_settings_may_be_traced():
    b, operator = right_hand_side(), positive_definite(LIKE)

    def residuals(setting):
        solvers = [
            neumann(4, step_size=setting),
            neumann(4, max_step_size=setting),
            neumann_finite_difference(4, step_size=setting, relative=True, difference_step=setting),
            conjugate_gradient(4, tolerance=setting),
            diagonal(damping=setting),
            bounded(identity(), max_ratio=setting),
        ]
        return jnp.stack([solver(operator, b, KEY).residual_norm for solver in solvers])

    assert jax.eval_shape(jax.vmap(residuals), jnp.array([0.1, 0.2])).shape == (2, 6)
