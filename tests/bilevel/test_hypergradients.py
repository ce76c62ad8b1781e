"""Hypergradients against closed forms, against differences of solved problems, and against each other."""

import re
import warnings
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from llmrl.bench.peers import root_vjp
from llmrl.bilevel.hypergradients import (
    AUTO_DAMPING_PRODUCTS,
    explicit,
    implicit,
    implicit_gradient,
    incremental,
    unrolled,
)
from llmrl.bilevel.solvers import conjugate_gradient, dense, fisher, identity, neumann, neumann_finite_difference
from llmrl.bilevel.types import HypergradientInfo, LinearOperator, MetaProblem, PastSteps

KEY = jax.random.key(0)

# Solvers that converge on a definite problem; a new one is one more line.
CONVERGING = {
    "dense": dense(),
    "conjugate_gradient": conjugate_gradient(num_steps=20, tolerance=0.0),
    "neumann": neumann(num_terms=150),
    "algorithm_1": neumann_finite_difference(num_terms=150, step_size=0.4),
}


class Quadratic(NamedTuple):
    """inner = theta' A theta / 2 - theta' (B phi + c);  outer = |theta - t|^2 / 2 + theta' D phi + |phi|^2 / 2."""

    a: np.ndarray
    b: np.ndarray
    c: np.ndarray
    d: np.ndarray
    t: np.ndarray

    def inner(self, theta, phi):
        a, b, c = (jnp.asarray(x, theta.dtype) for x in (self.a, self.b, self.c))
        return 0.5 * theta @ (a @ theta) - theta @ (b @ phi + c)

    def outer(self, theta, phi):
        d, t = (jnp.asarray(x, theta.dtype) for x in (self.d, self.t))
        return 0.5 * jnp.sum((theta - t) ** 2) + theta @ (d @ phi) + 0.5 * jnp.sum(phi**2)

    def solution(self, phi):
        return np.linalg.solve(self.a, self.b @ phi + self.c)

    def outer_gradient(self, phi):
        """With respect to theta, at the solution."""
        return self.solution(phi) - self.t + self.d @ phi

    def direct(self, phi):
        return self.d.T @ self.solution(phi) + phi

    def hypergradient(self, phi):
        return self.direct(phi) + self.b.T @ np.linalg.solve(self.a, self.outer_gradient(phi))


def quadratic(seed=0, low=0.5, high=2.0):
    random = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(random.normal(size=(6, 6)))
    a = (rotation * np.linspace(low, high, 6)) @ rotation.T
    return Quadratic(a, random.normal(size=(6, 3)), random.normal(size=6), random.normal(size=(6, 3)), np.ones(6))


PHI = np.array([0.3, -0.8, 0.5])


def relative_error(found, truth):
    return np.linalg.norm(np.asarray(found, np.float64) - truth) / np.linalg.norm(truth)


def hypergradient(problem, dtype=jnp.float32, phi=PHI, **settings):
    theta = jnp.asarray(problem.solution(phi), dtype)
    call = jax.jit(lambda t, p: implicit_gradient(problem.inner, problem.outer, t, p, key=KEY, **settings))
    return call(theta, jnp.asarray(phi, dtype))


@pytest.mark.parametrize("solver", CONVERGING)
def test_quadratic_closed_form(solver):
    problem = quadratic()
    gradient, info = hypergradient(problem, solver=CONVERGING[solver])
    assert relative_error(gradient, problem.hypergradient(PHI)) < (1e-3 if solver == "algorithm_1" else 1e-4)
    assert info.was_cut == 0
    assert info.damping == 0
    assert info.residual_norm < 1e-3
    g = problem.outer_gradient(PHI)
    np.testing.assert_allclose(info.outer_gradient_norm, np.linalg.norm(g), rtol=1e-4)
    x = np.linalg.solve(problem.a, g)
    np.testing.assert_allclose(info.solution_norm, np.linalg.norm(x) / np.linalg.norm(g), rtol=1e-3)


@pytest.mark.parametrize("solver", CONVERGING)
def test_quadratic_closed_form_in_float64(solver):
    problem = quadratic(seed=1)
    with jax.enable_x64(True):
        gradient, info = hypergradient(problem, jnp.float64, solver=CONVERGING[solver])
        assert gradient.dtype == info.residual_norm.dtype == jnp.float64
        assert relative_error(gradient, problem.hypergradient(PHI)) < 1e-8


def ridge(scale=1.0):
    """Ridge regression on half of the data, judged on the other half; theta and phi are pytrees of mixed shapes."""
    random = np.random.default_rng(2)
    features = random.normal(size=(2, 30, 4))
    features, targets = (
        scale * features,
        features @ random.normal(size=(4, 2)) + 0.5 * random.normal(size=(2, 30, 2)) + 1.0,
    )

    def error(theta, which):
        x, y = (jnp.asarray(each[which], theta["bias"].dtype) for each in (features, targets))
        return 0.5 * jnp.mean(jnp.sum((x @ theta["weights"] + theta["bias"] - y) ** 2, axis=1))

    def inner(theta, phi):
        penalties = jnp.exp(phi["log_penalty"])[:, None] * theta["weights"] ** 2
        return error(theta, 0) + 0.5 * jnp.sum(penalties) + 0.5 * phi["bias"][0] ** 2 * jnp.sum(theta["bias"] ** 2)

    def solution(phi):
        design = np.concatenate([features[0], np.ones((30, 1))], axis=1)
        penalty = np.append(np.exp(phi["log_penalty"]), phi["bias"][0] ** 2)
        both = np.linalg.solve(design.T @ design / 30 + np.diag(penalty), design.T @ targets[0] / 30)
        return {"weights": both[:4], "bias": both[4]}

    def judged(phi):
        theta = solution(phi)
        return 0.5 * np.mean(np.sum((features[1] @ theta["weights"] + theta["bias"] - targets[1]) ** 2, axis=1))

    return inner, lambda theta, phi: error(theta, 1), solution, judged


RIDGE_PHI = {"log_penalty": np.array([-1.0, 0.0, -2.0, 0.5]), "bias": [np.array(0.4)]}


def central_differences(function, phi, step=1e-5):
    flat, unravel = np.append(phi["log_penalty"], phi["bias"][0]), lambda v: {"log_penalty": v[:4], "bias": [v[4]]}
    steps = step * np.eye(len(flat))
    return unravel(np.array([function(unravel(flat + s)) - function(unravel(flat - s)) for s in steps]) / (2 * step))


def test_ridge_regression_against_differences_of_the_solved_problem():
    inner, outer, solution, judged = ridge()
    truth = central_differences(judged, RIDGE_PHI)
    for dtype, tolerance in ((jnp.float32, 1e-4), (jnp.float64, 1e-8)):
        with jax.enable_x64(dtype == jnp.float64):
            cast = lambda tree, dtype=dtype: jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)  # noqa: E731
            call = jax.jit(lambda t, p: implicit_gradient(inner, outer, t, p, key=KEY, solver=dense()))
            gradient, _ = call(cast(solution(RIDGE_PHI)), cast(RIDGE_PHI))
            assert jax.tree.structure(gradient) == jax.tree.structure(RIDGE_PHI)
            found = np.append(gradient["log_penalty"], gradient["bias"][0])
            assert relative_error(found, np.append(truth["log_penalty"], truth["bias"][0])) < tolerance


def test_a_pytree_is_its_flat_vector():
    inner, outer, solution, _ = ridge()
    theta, phi = (
        jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree) for tree in (solution(RIDGE_PHI), RIDGE_PHI)
    )
    (flat_theta, wrap_theta), (flat_phi, wrap_phi) = ravel_pytree(theta), ravel_pytree(phi)

    def flattened(loss):
        return lambda t, p: loss(wrap_theta(t), wrap_phi(p))

    def solved(inner, outer, theta, phi):
        call = jax.jit(lambda t, p: implicit_gradient(inner, outer, t, p, key=KEY, solver=neumann(20)))
        return call(theta, phi)

    as_trees, info = solved(inner, outer, theta, phi)
    as_vectors, flat_info = solved(flattened(inner), flattened(outer), flat_theta, flat_phi)
    np.testing.assert_allclose(ravel_pytree(as_trees)[0], as_vectors, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(info.residual_norm, flat_info.residual_norm, rtol=1e-2)


def bent(theta, phi):
    return jnp.sum(theta**2) + jnp.sum(jnp.sin(theta * phi)) + jnp.sum(phi) * jnp.sum(theta)


def far_off(theta, phi):
    return jnp.sum((theta - 2.0) ** 2) + jnp.sum(phi * theta)


def test_algorithm_1_to_the_letter_on_a_loss_that_is_not_quadratic():
    """The paper's whole loop, its letters kept, mixed product and all."""
    theta, phi, conditioner, iterations = jnp.array([0.2, -0.5, 0.7]), jnp.array([0.4, 0.3, -0.6]), 0.1, 5

    @jax.jit
    def paper():
        by_theta, by_phi = jax.grad(bent, 0), jax.grad(bent, 1)
        g = jax.grad(far_off, 0)(theta, phi)
        x = jnp.zeros_like(g)
        for _ in range(iterations + 1):
            x = x + g - (by_theta(theta + conditioner * x, phi) - by_theta(theta, phi))
        mixed = by_phi(theta + conditioner * x, phi) - by_phi(theta, phi)
        return jax.grad(far_off, 1)(theta, phi) - mixed

    solver = neumann_finite_difference(iterations, conditioner)
    found, _ = jax.jit(lambda: implicit_gradient(bent, far_off, theta, phi, solver=solver, key=KEY))()
    np.testing.assert_allclose(found, paper(), rtol=1e-5, atol=1e-5)


def test_each_part_of_the_formula_is_there():
    """By an operator of known inverse: direct term, sign, the operator that was asked for, and the damping."""
    problem = quadratic()
    for damping in (0.0, 3.0):
        gradient, info = hypergradient(
            problem, solver=dense(), damping=damping, operator=lambda t, p: LinearOperator(lambda v: 2 * v)
        )
        expected = problem.direct(PHI) + problem.b.T @ problem.outer_gradient(PHI) / (2 + damping)
        assert relative_error(gradient, expected) < 1e-4
        assert info.damping == damping
    gradient, _ = hypergradient(problem, solver=identity())
    assert relative_error(gradient, problem.direct(PHI) + problem.b.T @ problem.outer_gradient(PHI)) < 1e-4


def products(jaxpr):
    """Precision of every product of matrices in a program, its loops included."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            yield eqn.params["precision"]
        for inner in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from products(inner)


@pytest.mark.parametrize("solver", ["neumann", "conjugate_gradient"])
def test_products_of_a_series_are_full_float32_where_a_device_would_round_them(solver):
    problem = quadratic()

    def solved(theta, phi):
        return implicit_gradient(problem.inner, problem.outer, theta, phi, solver=CONVERGING[solver], key=KEY)[0]

    with jax.default_matmul_precision("default"):
        program = jax.make_jaxpr(solved)(jnp.zeros(6), jnp.zeros(3))
    loops = [eqn.params["jaxpr"].jaxpr for eqn in program.jaxpr.eqns if eqn.primitive.name == "scan"]
    found = [precision for loop in loops for precision in products(loop)]
    assert found and set(found) == {(jax.lax.Precision.HIGHEST,) * 2}


def test_an_indefinite_problem_is_guarded_or_damped_and_says_which():
    problem = quadratic(seed=3, low=-1.0, high=2.0)
    long_series = neumann(num_terms=10_000)
    gradient, info = hypergradient(problem, solver=long_series, max_ratio=10.0)
    assert np.all(np.isfinite(gradient))
    assert info.was_cut == 1
    assert info.solution_norm <= 10.001

    gradient, info = hypergradient(problem, solver=neumann(num_terms=20), damping="auto")
    assert info.was_cut == 0
    assert 1.0 < info.damping < 1.4
    assert info.residual_norm < 1
    assert info.num_matvecs == 20 + 4 + AUTO_DAMPING_PRODUCTS
    assert np.all(np.isfinite(gradient))


def test_the_guard_can_be_set():
    problem = quadratic(low=0.01, high=2.0)
    for max_ratio in (1.0, 10.0):
        length = hypergradient(problem, solver=dense(), max_ratio=max_ratio)[1].solution_norm
        np.testing.assert_allclose(length, max_ratio, rtol=1e-4)
    assert hypergradient(problem, solver=dense())[1].solution_norm > 10.001


CURVATURES = 10.0 ** np.arange(-4, 5)
EXACT_AT_ANY_CURVATURE = {
    "default": {},
    "dense": {"solver": dense()},
    "neumann": {"solver": neumann(20, max_step_size=1e5)},
}


def following(curvature):
    """Losses of a theta that follows phi, drawn by a spring: whatever its stiffness, the hypergradient is phi."""

    def inner(theta, phi):
        return 0.5 * curvature * jnp.sum((theta - phi) ** 2)

    return inner, lambda theta, phi: 0.5 * jnp.sum(theta**2)


@pytest.mark.parametrize("settings", EXACT_AT_ANY_CURVATURE)
def test_the_hypergradient_does_not_depend_on_how_curved_the_inner_problem_is(settings):
    phi = jnp.full(1, 3.0)

    @jax.jit
    @jax.vmap
    def found(curvature, key):
        return implicit_gradient(*following(curvature), phi, phi, key=key, **EXACT_AT_ANY_CURVATURE[settings])

    curvatures = jnp.repeat(jnp.asarray(CURVATURES, jnp.float32), 4)
    gradient, info = found(curvatures, jax.random.split(KEY, curvatures.size))
    np.testing.assert_allclose(gradient, 3.0, rtol=1e-4)
    np.testing.assert_allclose(info.residual_norm, 0.0, atol=1e-4)


def test_the_example_of_the_docs_is_right_as_it_stands():
    """On ridge regression with small features, which curve the inner problem little."""
    page = (Path(__file__).parents[2] / "docs" / "mathematics.md").read_text()
    (example,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "implicit_gradient(" in block]
    inner, outer, solution, judged = ridge(scale=0.05)
    phi = {"log_penalty": RIDGE_PHI["log_penalty"] + 2 * np.log(0.05), "bias": RIDGE_PHI["bias"]}
    theta, rounded = (jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree) for tree in (solution(phi), phi))

    @jax.jit
    def run(theta, phi, key):
        names = {"inner_loss": inner, "outer_loss": outer, "theta": theta, "phi": phi, "key": key}
        exec(example, names)
        return names["gradient"], names["info"]

    gradient, info = run(theta, rounded, KEY)
    assert info.solution_norm > 20
    assert relative_error(gradient["log_penalty"], central_differences(judged, phi)["log_penalty"]) < 1e-3


@pytest.mark.parametrize(
    ("solver", "curvature", "said"),
    [
        (identity(), 100.0, r"residual .* is 99, so the gradient may be far off: give the solver more steps"),
        (neumann(5, step_size=0.5), 100.0, r"residual .* is 49, and a guard cut the solution"),
        (dense(), 0.0, r"residual .* is nan"),
    ],
)
def test_a_large_residual_is_warned_of_outside_of_jit(solver, curvature, said):
    phi = jnp.full(2, 3.0)
    with pytest.warns(UserWarning, match=said):
        implicit_gradient(*following(curvature), phi, phi, key=KEY, solver=solver)


def test_there_is_no_warning_of_a_small_residual_nor_from_compiled_code():
    phi = jnp.full(2, 3.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        implicit_gradient(*following(100.0), phi, phi, key=KEY)
        jax.jit(lambda p: implicit_gradient(*following(100.0), p, p, key=KEY, solver=identity()))(phi)


def test_what_is_reported_of_a_solve_is_what_the_solver_reports():
    """x = g where A is 100 and damped by 1: |A x - g| = 100 |g|; the guard leaves x as long as g at most."""
    phi = jnp.full(2, 3.0)

    @jax.jit
    def reported(p):
        return implicit_gradient(*following(100.0), p, p, key=KEY, solver=identity(), damping=1.0, max_ratio=1.5)[1]

    expected = HypergradientInfo(100.0, 0, 0.0, 1.0, 1.0, jnp.linalg.norm(phi))
    np.testing.assert_allclose(reported(phi), expected, rtol=1e-6)


def descend(problem, step):
    return lambda theta, phi: theta - step * jax.grad(problem.inner)(theta, phi)


def meta_gradient(method, problem, step=0.4, theta=None, operator=None):
    at = problem.solution(PHI) if theta is None else theta
    meta_problem = MetaProblem(problem.inner, problem.outer, descend(problem, step), operator)
    call = jax.jit(lambda t, p: method(meta_problem, t, p, KEY))
    return call(jnp.asarray(at, jnp.float32), jnp.asarray(PHI, jnp.float32))


def test_unrolling_far_enough_is_implicit():
    problem = quadratic()
    far, info = meta_gradient(unrolled(100), problem, theta=np.zeros(6))
    assert relative_error(far, problem.hypergradient(PHI)) < 1e-4
    assert relative_error(far, meta_gradient(implicit(conjugate_gradient()), problem)[0]) < 1e-4
    np.testing.assert_allclose(info.outer_gradient_norm, np.linalg.norm(problem.outer_gradient(PHI)), rtol=1e-4)


def test_unrolling_further_is_ever_nearer_to_implicit():
    problem = quadratic()
    errors = [
        relative_error(meta_gradient(unrolled(n), problem)[0], problem.hypergradient(PHI)) for n in (1, 3, 10, 30)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.01 < errors[0]


@pytest.mark.parametrize("num_steps", [1, 7])
def test_unrolling_from_the_optimum_is_the_truncated_series(num_steps):
    """n gradient steps backwards are n terms of the von Neumann series with the same step."""
    problem = quadratic()
    by_unrolling, _ = meta_gradient(unrolled(num_steps), problem, step=0.3)
    by_series, _ = meta_gradient(implicit(neumann(num_steps - 1, step_size=0.3)), problem)
    np.testing.assert_allclose(by_unrolling, by_series, rtol=1e-4, atol=1e-5)


def test_unrolling_is_the_same_whether_steps_are_kept_or_computed_again():
    problem, theta = quadratic(), np.linspace(-1, 1, 6)
    kept, again = (meta_gradient(unrolled(5, recompute=r), problem, theta=theta)[0] for r in (False, True))
    np.testing.assert_allclose(kept, again, rtol=1e-5)


def test_what_ours_is_measured_beside_is_the_same_hypergradient():
    pytest.importorskip("jaxopt")
    problem = quadratic()
    theirs, _ = meta_gradient(root_vjp(10, damping=0.1), problem)
    ours, _ = meta_gradient(implicit(conjugate_gradient(10), damping=0.1), problem)
    np.testing.assert_allclose(theirs, ours, rtol=1e-4)


def test_one_unrolled_step_away_from_the_optimum_has_its_closed_form():
    problem, theta, step = quadratic(), np.linspace(-1, 1, 6), 0.3
    found, _ = meta_gradient(unrolled(1), problem, step, theta)
    theta_1 = theta - step * (problem.a @ theta - problem.b @ PHI - problem.c)
    g = theta_1 - problem.t + problem.d @ PHI
    assert relative_error(found, problem.d.T @ theta_1 + PHI + step * problem.b.T @ g) < 1e-5


def test_with_the_fisher_information_it_is_the_meta_gradient_of_one_damped_natural_gradient_step():
    """First order: the outer gradient is taken before the step. Theta is no optimum."""
    problem, damping = quadratic(), 0.1
    logits = np.random.default_rng(7).normal(size=(5, 6))
    with jax.enable_x64(True):
        theta, phi = jnp.linspace(-1.0, 1.0, 6), jnp.asarray(PHI)

        def scores(t):
            return jnp.tanh(jnp.asarray(logits) @ t)

        @jax.jit
        def both(theta, phi):
            u = jax.jacobian(scores)(theta)
            matrix = u.T @ u / len(u) + damping * jnp.eye(6)
            g = jax.grad(problem.outer)(theta, phi)

            def after_a_step(phi):
                step = jnp.linalg.solve(matrix, jax.grad(problem.inner)(theta, phi))
                return g @ (theta - step) + problem.outer(theta, phi)

            found, _ = implicit_gradient(
                problem.inner,
                problem.outer,
                theta,
                phi,
                key=KEY,
                solver=dense(),
                damping=damping,
                operator=lambda t, p: fisher(scores, t),
            )
            return found, jax.grad(after_a_step)(phi), jax.grad(problem.inner)(theta, phi), g

        found, expected, inner_gradient, g = both(theta, phi)
        assert np.linalg.norm(inner_gradient) > 0.5 * np.linalg.norm(g)
        assert relative_error(found, expected) < 1e-13


def test_the_residual_of_algorithm_1_says_nothing_of_its_mixed_product():
    """A loss that is quadratic in theta, whose derivative in phi is not linear in theta."""
    random = np.random.default_rng(3)
    with jax.enable_x64(True):
        theta, phi, g = (jnp.asarray(random.normal(size=4)) for _ in range(3))

        def inner(t, p):
            return 0.5 * jnp.sum((t - 1.0) ** 2) + 0.5 * jnp.sum(jnp.exp(p) * t**2)

        def solved(solver):
            return jax.jit(lambda: implicit_gradient(inner, lambda t, p: g @ t, theta, phi, key=KEY, solver=solver))()

        exact, _ = solved(dense())
        found, info = solved(neumann_finite_difference(num_terms=400, step_size=0.2))
        assert info.residual_norm < 1e-14
        assert relative_error(found, exact) > 0.05


def taken_steps(step, thetas, phis, data, taken=None):
    thetas, phis, data = (jnp.stack([jnp.asarray(x, jnp.float32) for x in xs]) for xs in (thetas, phis, data))
    return PastSteps(step, thetas, phis, data, jnp.ones(len(thetas)) if taken is None else jnp.asarray(taken))


def with_past(past, outer):
    return MetaProblem(lambda t, p: jnp.zeros(()), outer, lambda t, p: t, past=past)


def bent_step(theta, phi, data):
    return theta - 0.3 * jax.grad(lambda t: bent(t * data, phi))(theta)


def test_incremental_is_the_recursion_of_the_whole_matrix():
    """h <- (d step / d theta) h + d step / d phi, from 0: formed here, n x m, and never there."""
    random = np.random.default_rng(5)
    thetas, phis, data = (random.normal(size=(4, 3)).astype(np.float32) for _ in range(3))
    theta, phi = jnp.asarray([0.3, -0.4, 0.9]), jnp.asarray([0.4, 0.3, -0.6])

    @jax.jit
    def whole():
        h = jnp.zeros((3, 3))
        for one in zip(thetas, phis, data, strict=True):
            by_theta, by_phi = jax.jacobian(bent_step, (0, 1))(*one)
            h = by_theta @ h + by_phi
        g, direct = jax.grad(far_off, (0, 1))(theta, phi)
        return direct + h.T @ g

    nothing = np.full((2, 3), np.nan)  # what stands where nothing was taken yet must not matter
    past = taken_steps(
        bent_step, [*nothing, *thetas], [*nothing, *phis], [*nothing, *data], [0.0, 0.0, 1.0, 1.0, 1.0, 1.0]
    )
    found, info = jax.jit(lambda: incremental()(with_past(past, far_off), theta, phi, KEY))()
    np.testing.assert_allclose(found, whole(), rtol=1e-4, atol=1e-5)
    assert info.num_matvecs == 4
    np.testing.assert_allclose(info.outer_gradient_norm, np.linalg.norm(jax.grad(far_off)(theta, phi)), rtol=1e-5)


def test_following_the_updates_taken_under_one_phi_is_unrolling_them():
    problem, theta, steps = quadratic(), np.zeros(6), []
    for _ in range(7):
        steps.append(theta)
        theta = theta - 0.3 * (problem.a @ theta - problem.b @ PHI - problem.c)
    past = taken_steps(lambda t, p, _: descend(problem, 0.3)(t, p), steps, [PHI] * 7, np.zeros(7))
    call = jax.jit(lambda t, p: incremental()(with_past(past, problem.outer), t, p, KEY)[0])
    found = call(jnp.asarray(theta, jnp.float32), jnp.asarray(PHI, jnp.float32))
    assert relative_error(found, np.asarray(meta_gradient(unrolled(7), problem, 0.3, steps[0])[0])) < 1e-5


def test_without_past_updates_there_is_nothing_to_follow():
    problem = quadratic()
    past = taken_steps(lambda t, p, _: descend(problem, 0.3)(t, p), [np.zeros(6)], [PHI], [0.0], taken=[0.0])
    call = jax.jit(lambda method, t, p: method(with_past(past, problem.outer), t, p, KEY)[0], static_argnums=0)
    theta, phi = (jnp.asarray(x, jnp.float32) for x in (problem.solution(PHI), PHI))
    for method in (incremental(), explicit()):
        assert relative_error(call(method, theta, phi), problem.direct(PHI)) < 1e-5
    with pytest.raises(TypeError, match="past"):
        meta_gradient(incremental(), problem)


def test_the_problems_own_operator_is_used():
    problem = quadratic()
    gradient, _ = meta_gradient(implicit(dense()), problem, operator=lambda t, p: LinearOperator(lambda v: 4 * v))
    assert relative_error(gradient, problem.direct(PHI) + problem.b.T @ problem.outer_gradient(PHI) / 4) < 1e-4


def test_batching_equals_looping_over_problems_and_settings():
    problem = quadratic()
    phis = np.stack([PHI, -PHI, 2 * PHI]).astype(np.float32)
    thetas = np.stack([problem.solution(phi) for phi in phis]).astype(np.float32)
    dampings = np.array([0.0, 0.1, 0.2], np.float32)

    def call(theta, phi, damping):
        return implicit_gradient(problem.inner, problem.outer, theta, phi, key=KEY, damping=damping)

    together = jax.jit(jax.vmap(call))(thetas, phis, dampings)
    one = jax.jit(call)
    for i in range(3):
        alone = one(thetas[i], phis[i], dampings[i])
        jax.tree.map(lambda x, y, i=i: np.testing.assert_allclose(x[i], y, rtol=1e-3, atol=1e-5), together, alone)


def test_what_a_solver_lacks_or_a_setting_breaks_is_named():
    theta, phi = jnp.ones(3), jnp.ones(3)
    with pytest.raises(TypeError, match=r"neumann_finite_difference needs .*gradient"):
        implicit_gradient(
            bent,
            far_off,
            theta,
            phi,
            key=KEY,
            solver=neumann_finite_difference(),
            operator=lambda t, p: fisher(lambda q: q * p, t),
        )
    for build, received in (
        (lambda: implicit(damping=-0.5), "-0.5"),
        (lambda: implicit(damping="some"), "some"),
        (lambda: implicit(max_ratio=-2.0), "-2.0"),
        (lambda: unrolled(0), "received 0"),
        (lambda: implicit_gradient(bent, far_off, theta, phi, key=KEY, damping=-0.25), "-0.25"),
        (lambda: implicit_gradient(bent, far_off, theta, phi, key=KEY, max_ratio=-3.0), "-3.0"),
    ):
        with pytest.raises((ValueError, TypeError), match=received):
            build()
