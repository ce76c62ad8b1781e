"""Solving among samples: the same solutions as among parameters, wherever that is cheaper."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from llmrl.bilevel import trees
from llmrl.bilevel.solvers import bounded, conjugate_gradient, damped, diagonal, extreme_eigenvalues, fisher, neumann
from llmrl.bilevel.solvers.reduction import reduction
from llmrl.learner.problem import viewing
from llmrl.nets import make_policy
from llmrl.types import Box, Discrete, EnvSpec, View

SAMPLES, KEY = 12, jax.random.key(0)
ACTIONS = {"discrete": Discrete(3), "box": Box(2)}
SOLVERS = {
    "neumann": neumann(20, step_size=0.3),
    "automatic": neumann(200, power_iterations=12),
    "conjugate_gradient": conjugate_gradient(14, tolerance=1e-6),
    "cut": bounded(conjugate_gradient(14), max_ratio=1.5),
}


@pytest.fixture(scope="module", params=ACTIONS)
def system(request):
    """A policy's Fisher information on a batch, and a right-hand side."""
    action = ACTIONS[request.param]
    spec = EnvSpec("none", (3,), action, 10)
    policy = make_policy(spec, (16, 8))

    @jax.jit
    def drawn():
        theta = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(KEY, x.shape), policy.init(jax.random.key(1)))
        obs = jax.random.normal(jax.random.key(2), (SAMPLES, 3))
        actions = policy.distribution(theta, obs).sample(
            jax.random.normal(jax.random.key(3), (SAMPLES, action.num if isinstance(action, Discrete) else action.dim))
        )
        return theta, obs, actions, trees.normal_like(jax.random.key(4), theta)

    theta, obs, actions, b = drawn()

    def log_likelihood(point):
        return policy.distribution(point, obs).log_prob(actions)

    def operator(weights=None):
        return fisher(log_likelihood, theta, weights, jacobian=policy.jacobian(policy.scores(theta, obs, actions)))

    return policy, (theta, obs, actions), operator, b


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def gradients_of_each(policy, theta, obs, actions):
    """Of each sample's log-likelihood, [samples, parameters]."""

    @jax.jit
    @jax.vmap
    def one(obs, action):
        return ravel_pytree(jax.grad(lambda point: policy.distribution(point, obs).log_prob(action))(theta))[0]

    return np.asarray(one(obs, actions))


def test_a_samples_gradient_in_layers_is_its_gradient(system):
    policy, (theta, obs, actions), _, _ = system
    whole = gradients_of_each(policy, theta, obs, actions)
    layers = jax.tree.map(np.asarray, jax.jit(lambda: policy.scores(theta, obs, actions).layers)())
    gram = sum(
        one.slope @ one.slope.T * (1.0 if one.input is None else 1.0 + one.input @ one.input.T) for one in layers
    )
    np.testing.assert_allclose(gram, whole @ whole.T, rtol=1e-3, atol=1e-4)


def test_products_with_a_samples_gradients_are_slopes_forwards_and_backwards(system):
    """On one axis of samples or on two."""
    policy, (theta, obs, actions), _, v = system
    z = np.random.default_rng(7).normal(size=SAMPLES).astype(np.float32)

    @jax.jit
    def slopes():
        log_prob, along = jax.jvp(lambda t: policy.distribution(t, obs).log_prob(actions), (theta,), (v,))
        return log_prob, along, jax.vjp(lambda t: policy.distribution(t, obs).log_prob(actions), theta)[1](z)[0]

    @partial(jax.jit, static_argnums=0)
    def products(shape):
        scores = policy.scores(theta, *(x.reshape(*shape, *x.shape[1:]) for x in (obs, actions)))
        jacobian = policy.jacobian(scores)
        return scores.log_prob, jacobian.along(v), jacobian.back(z.reshape(shape))

    expected = slopes()
    for shape in ((SAMPLES,), (3, SAMPLES // 3)):
        log_prob, along, back = products(shape)
        np.testing.assert_allclose(log_prob, expected[0].reshape(shape), rtol=1e-5)
        np.testing.assert_allclose(along, expected[1].reshape(shape), rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(flat(back), flat(expected[2]), rtol=1e-3, atol=1e-5)


def test_what_a_policy_sees_changes_nothing_about_that(system):
    policy, (theta, obs, actions), _, _ = system
    seen = viewing(policy, View(EnvSpec("none", (3,), Discrete(2), 10), lambda phis, obs: phis[0] * obs), (2.0,))
    here, there = jax.jit(lambda: (seen.scores(theta, obs, actions), policy.scores(theta, 2.0 * obs, actions)))()
    for a, b in zip(here.layers, there.layers, strict=True):
        np.testing.assert_allclose(a.slope, b.slope, rtol=1e-6)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_solution_is_the_same_in_both_spaces(system, solver):
    _, _, operator, b = system
    weights = jnp.linspace(0.5, 2.0, SAMPLES)

    @jax.jit
    def both(b):
        here = SOLVERS[solver](damped(operator(weights), 0.2)[0], b, KEY)
        space = reduction(operator(weights), b, 100)
        there = SOLVERS[solver](damped(space.operator, 0.2)[0], space.b, KEY)
        return here, there, space.operator.completed(there.x), space.lift(there.x)

    here, there, completed, x = both(b)
    assert len(jax.tree.leaves(there.x)) == 3  # c, z and G z
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max()),
        *(there.x, completed),
    )
    np.testing.assert_allclose(flat(x), flat(here.x), rtol=2e-3, atol=2e-3 * np.abs(flat(here.x)).max())
    np.testing.assert_allclose(there.residual_norm, here.residual_norm, rtol=1e-2, atol=2e-3)
    assert there.num_matvecs == here.num_matvecs or solver in ("conjugate_gradient", "cut")
    assert there.was_cut == here.was_cut


def test_lengths_and_products_are_those_of_the_vectors(system):
    _, _, operator, b = system

    @jax.jit
    def pairs():
        space = reduction(operator(), b, 100)
        x, y = (space.operator.completed(trees.normal_like(jax.random.key(i), space.b)) for i in (5, 6))
        dots = space.operator.dot(x, y), trees.dot(space.lift(x), space.lift(y))
        return dots, (space.lift(space.operator(x)), operator()(space.lift(x))), (space.lift(space.b), b)

    dots, products, right_sides = pairs()
    np.testing.assert_allclose(*dots, rtol=1e-4)
    np.testing.assert_allclose(*map(flat, products), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(*map(flat, right_sides), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("few", [1, 2, 3])
def test_a_space_that_few_samples_exhaust_shows_no_ends_beyond_its_spectrum(system, few):
    policy, (theta, obs, actions), _, b = system
    scores = gradients_of_each(policy, theta, obs, actions)[:few]
    highest = np.linalg.eigvalsh(scores @ scores.T / few).max()

    @jax.jit
    @jax.vmap
    def ends(key):
        jacobian = policy.jacobian(policy.scores(theta, obs[:few], actions[:few]))
        space = reduction(fisher(lambda point: jnp.zeros(few), theta, jacobian=jacobian), b, 100)
        start = space.operator.completed(trees.normal_like(key, space.b))
        return extreme_eigenvalues(damped(space.operator, 0.1)[0], start, 12)

    low, high = ends(jax.random.split(KEY, 64))
    assert np.all(low > 0.098) and np.all(high < 1.01 * (highest + 0.1))


def test_a_right_hand_side_of_zero_has_the_solution_zero(system):
    _, _, operator, b = system

    @jax.jit
    def solved(zero):
        space = reduction(operator(), zero, 100)
        found = neumann(5)(damped(space.operator, 0.1)[0], space.b, KEY)
        return space.lift(found.x), found.residual_norm

    x, residual_norm = solved(jax.tree.map(jnp.zeros_like, b))
    assert not np.any(flat(x))
    assert residual_norm == 0


def test_few_products_and_other_solvers_stay_where_they_are(system):
    _, _, operator, b = system
    for products in (0, 1, 2):
        space = reduction(operator(), b, products)
        assert space.b is b and space.lift(b) is b
    assert diagonal().krylov_products == 0
    assert bounded(neumann(7, step_size=0.1)).krylov_products == 8
    assert reduction(lambda v: v, b, 100).b is b
