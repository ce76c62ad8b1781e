"""Operators are the matrices they claim to be, and their spectra are seen from a few products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from llmrl.bilevel.solvers import damped, extreme_eigenvalues, fisher, hessian
from llmrl.bilevel.solvers.dense import dense_matrix
from llmrl.bilevel.solvers.operators import _tridiagonal_extremes

KEY = jax.random.key(0)
POINT = {"w": jnp.array([[0.3, -0.2], [0.1, 0.5]]), "b": jnp.array(0.4)}
FEATURES = jnp.asarray(np.random.default_rng(1).normal(size=(7, 2)), jnp.float32)


def log_likelihood(point):
    return -jnp.sum((FEATURES @ point["w"]) ** 2, axis=1) * point["b"]


def loss(point):
    return jnp.sum(log_likelihood(point) ** 2) + jnp.sum(point["w"] ** 2)


def flat_function(function):
    unravel = ravel_pytree(POINT)[1]
    return lambda v: function(unravel(v))


def flat(tree):
    return ravel_pytree(tree)[0]


def test_hessian_is_the_matrix_of_second_derivatives():
    expected = jax.jit(jax.hessian(flat_function(loss)))(flat(POINT))
    found = jax.jit(lambda point: dense_matrix(hessian(loss, point), point))(POINT)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_gradient_is_taken_at_the_displaced_point():
    delta = jax.tree.map(lambda x: 0.1 * jnp.ones_like(x), POINT)
    moved = jax.tree.map(jnp.add, POINT, delta)
    np.testing.assert_allclose(flat(hessian(loss, POINT).gradient(delta)), flat(jax.grad(loss)(moved)), atol=1e-6)


@pytest.mark.parametrize("weights", [None, jnp.array([1.0, 0.0, 2.0, 3.0, 0.5, 1.0, 7.0]), -jnp.ones(7)])
def test_fisher_and_its_parts_are_one_matrix(weights):
    scores = jax.jit(jax.jacobian(flat_function(log_likelihood)))(flat(POINT))
    w = np.ones(7) if weights is None else weights
    expected = np.einsum("i,ij,ik->jk", w, scores, scores) / 7

    @jax.jit
    def parts(point):
        operator = fisher(log_likelihood, point, weights)
        u, shares = operator.factors()
        return dense_matrix(operator, point), flat(operator.diagonal()), jax.vmap(flat)(u), shares

    matrix, diagonal, u, shares = parts(POINT)
    np.testing.assert_allclose(matrix, expected, atol=1e-6)
    np.testing.assert_allclose(diagonal, np.diag(expected), atol=1e-6)
    np.testing.assert_allclose(np.einsum("i,ij,ik->jk", shares, u, u), expected, atol=1e-6)
    if weights is None:
        assert np.linalg.eigvalsh(expected)[0] > -1e-6


def test_scores_may_be_supplied():
    per_sample = jax.jit(jax.jacobian(log_likelihood))
    cheap = fisher(log_likelihood, POINT, scores=lambda: per_sample(POINT))
    expected = jax.jit(fisher(log_likelihood, POINT).diagonal)()
    np.testing.assert_allclose(flat(jax.jit(cheap.diagonal)()), flat(expected), rtol=1e-5, atol=1e-7)


def test_damping_shifts_every_part_alike():
    @jax.jit
    def hessian_parts(damping):
        shifted, used = damped(hessian(loss, POINT), damping)
        zero, one = jax.tree.map(jnp.zeros_like, POINT), jax.tree.map(jnp.ones_like, POINT)
        return dense_matrix(shifted, POINT), flat(shifted.gradient(zero)), flat(shifted.gradient(one)), used

    (matrix, at_zero, at_one, _), (shifted_matrix, shifted_at_zero, shifted_at_one, used) = map(
        hessian_parts, (0.0, 0.7)
    )
    np.testing.assert_allclose(shifted_matrix, matrix + 0.7 * np.eye(5), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(shifted_at_zero, at_zero, rtol=1e-6)
    np.testing.assert_allclose(shifted_at_one, at_one + 0.7, rtol=1e-5)
    np.testing.assert_allclose(used, 0.7, rtol=1e-6)

    @jax.jit
    def fisher_parts():
        shifted, _ = damped(fisher(log_likelihood, POINT), 0.7)
        return dense_matrix(shifted, POINT), flat(shifted.diagonal())

    matrix, diagonal = fisher_parts()
    np.testing.assert_allclose(diagonal, np.diag(matrix), rtol=1e-4)


def test_damping_adds_no_part_that_was_not_there():
    assert damped(hessian(loss, POINT), 0.7)[0].diagonal is None
    assert damped(hessian(loss, POINT), 0.7)[0].factors is None
    assert damped(fisher(log_likelihood, POINT), 0.7)[0].gradient is None


@pytest.mark.parametrize("received", [-0.1, "much", float("nan")])
def test_bad_damping_is_named(received):
    with pytest.raises((ValueError, TypeError), match=str(received)):
        damped(hessian(loss, POINT), received)


def test_automatic_damping_says_what_it_lacks():
    with pytest.raises(ValueError, match="key=None"):
        damped(hessian(loss, POINT), "auto", like=POINT)


def spectrum_matrix(seed, values):
    dim = len(values)
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, dim)))
    return jnp.asarray((rotation * values) @ rotation.T, jnp.float32)


SPECTRA = {
    "outlier": np.concatenate([np.linspace(-0.05, 0.3, 199), [3.0]]),
    "negative_outlier": np.concatenate([np.linspace(0.0, 1.0, 199), [-0.4]]),
    "semicircle": np.sin(np.linspace(-np.pi / 2, np.pi / 2, 200)),
    "negative_definite": np.linspace(-2.0, -1.0, 200),
}


@jax.jit
def estimated_ends(matrix):
    start = jax.random.normal(KEY, (len(matrix),))
    return extreme_eigenvalues(lambda v: matrix @ v, start, 10)


@jax.jit
def automatic_damping(matrix):
    like = jnp.zeros(len(matrix))
    return damped(hessian(lambda v: 0.5 * v @ (matrix @ v), like), "auto", KEY, like)[1]


@pytest.mark.parametrize("name", SPECTRA)
def test_extreme_eigenvalues_from_ten_products(name):
    values = SPECTRA[name]
    low, high = estimated_ends(spectrum_matrix(0, values))
    spread = values.max() - values.min()
    assert values.min() - 1e-4 <= low <= values.min() + 0.05 * spread
    assert values.max() - 0.05 * spread <= high <= values.max() + 1e-4


def test_extreme_eigenvalues_are_exact_when_the_space_is_exhausted():
    values = jnp.array([-0.5, 2.0, 2.0, 1.0])
    ends = jax.jit(lambda start: extreme_eigenvalues(lambda v: values * v, start, 8))
    low, high = ends(jnp.ones(4))
    np.testing.assert_allclose([low, high], [-0.5, 2.0], atol=1e-5)
    # An eigenvector leads nowhere else: both ends are its own eigenvalue, and never the 0 of an empty remainder.
    low, high = ends(jnp.array([1.0, 0.0, 0.0, 0.0]))
    np.testing.assert_allclose([low, high], [-0.5, -0.5], atol=1e-6)


def test_small_tridiagonal_spectra_on_every_scale():
    """Diagonals that are nearly zero among them: they make the middle of the spectrum a zero pivot."""
    random = np.random.default_rng(0)
    diagonals = random.normal(size=(500, 4)) * 10.0 ** random.integers(-9, 1, size=(500, 1))
    beside = np.abs(random.normal(size=(500, 3))) * 10.0 ** random.integers(-6, 1, size=(500, 3))
    matrices = np.stack([np.diag(d) + np.diag(o, 1) + np.diag(o, -1) for d, o in zip(diagonals, beside, strict=True)])
    truth = np.linalg.eigvalsh(matrices)
    low, high = jax.jit(jax.vmap(_tridiagonal_extremes))(
        jnp.asarray(diagonals, jnp.float32), jnp.asarray(beside, jnp.float32)
    )
    radius = np.abs(truth).max(axis=1)
    assert np.max(np.abs(low - truth[:, 0]) / radius) < 1e-4
    assert np.max(np.abs(high - truth[:, -1]) / radius) < 1e-4


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("name", SPECTRA)
def test_automatic_damping_makes_any_operator_safely_definite(name, scale):
    values = scale * SPECTRA[name]
    value = automatic_damping(spectrum_matrix(1, values))
    radius = np.abs(values).max()
    assert values.min() + value > 1e-3 * radius
    assert value <= 1.2 * max(-values.min(), 0) + 0.05 * radius, "and not much more than needed"


def test_automatic_damping_leaves_a_sound_operator_nearly_alone():
    value = automatic_damping(spectrum_matrix(2, np.linspace(1.0, 2.0, 200)))
    np.testing.assert_allclose(value, 2e-3, rtol=0.05)
