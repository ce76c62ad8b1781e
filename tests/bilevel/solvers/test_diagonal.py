"""The diagonal solver: exact for diagonal operators, unbiased probes, never against b."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmrl.bilevel.solvers import diagonal
from llmrl.bilevel.solvers.diagonal import probed_diagonal
from llmrl.bilevel.types import LinearOperator

KEY = jax.random.key(0)


@pytest.mark.parametrize("known", [True, False])
def test_exact_on_a_diagonal_operator(known):
    d, b = jnp.array([0.5, 1.0, 4.0]), jnp.array([1.0, -2.0, 3.0])
    operator = LinearOperator(lambda v: d * v, diagonal=(lambda: d) if known else None)
    found = jax.jit(lambda b: diagonal(num_probes=1, damping=0.25)(operator, b, KEY))(b)
    np.testing.assert_allclose(found.x, b / (d + 0.25), rtol=1e-6)
    assert found.num_matvecs == (0 if known else 1)


def test_it_never_turns_against_b():
    d, b = jnp.array([-5.0, 0.0, 1e-9, 2.0]), jnp.array([1.0, -1.0, 1.0, 1.0])
    x = jax.jit(lambda b: diagonal(damping=0.1)(lambda v: d * v, b, KEY))(b).x
    assert np.all(np.sign(x) == np.sign(b))
    assert np.all(np.abs(x) <= np.abs(b) / 0.1)


def test_probes_find_the_diagonal_of_any_matrix():
    root = np.random.default_rng(1).normal(size=(10, 10)).astype(np.float32)
    matrix = root @ root.T / 10
    estimate = jax.jit(lambda key: probed_diagonal(lambda v: matrix @ v, jnp.zeros(10), key, 4000))(KEY)
    error = np.abs(estimate - np.diag(matrix))
    deviation = np.sqrt((matrix**2).sum(1) - np.diag(matrix) ** 2) / np.sqrt(4000)
    assert np.all(error < 4 * deviation)
