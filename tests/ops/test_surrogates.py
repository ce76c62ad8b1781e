"""Surrogates on a softmax policy over few states, against their own definitions and against finite differences.

The tabular decision process of ``tests/learner/test_tabular_mdp.py`` says what each curvature estimates; here every
surrogate is compared with itself, written without ``stop_gradient`` as a function of two policies.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmrl.ops.surrogates import SURROGATES, ratio

T, N, STATES, ACTIONS = 6, 4, 2, 3
SIZE = STATES * ACTIONS
RANDOM = np.random.default_rng(0)
STATE, ACTION = RANDOM.integers(STATES, size=(T, N)), RANDOM.integers(ACTIONS, size=(T, N))
ADVANTAGE = RANDOM.normal(size=(T, N))
END = RANDOM.random((T, N)) < 0.3
ALWAYS = np.ones((T, N), bool)
THETA, BEHAVIOUR = RANDOM.normal(size=(2, SIZE))


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def log_prob(theta):
    return jax.nn.log_softmax(theta.reshape(STATES, ACTIONS))[STATE, ACTION]


def episodes(end):
    """Which steps u of an environment belong to the episode of step t and come no later, [N, t, u]."""
    number = np.cumsum(np.concatenate([np.zeros((1, N), bool), end[:-1]]), axis=0)
    same = number[:, None] == number[None]
    return np.moveaxis(same & np.tril(np.ones((T, T), bool))[..., None], -1, 0).astype(float)


@functools.partial(jax.jit, static_argnums=4)
def all_derivatives(theta, behaviour, max_ratio, data, fold):
    """The gradient and the Hessian of every surrogate, by name; ``fold`` cuts the rollout into that many pieces."""

    def pieces(x):
        return jnp.concatenate(jnp.split(x, fold), axis=1)

    def loss(theta, surrogate):
        arrays = (log_prob(theta), behaviour, *data)
        return surrogate(*(pieces(x) for x in arrays), max_ratio)

    def both(surrogate):
        slope = jax.grad(loss)
        return slope(theta, surrogate), jax.jacfwd(slope)(theta, surrogate)

    return {name: both(surrogate) for name, surrogate in SURROGATES.items()}


def derivatives(name, behaviour=None, max_ratio=jnp.inf, advantage=ADVANTAGE, end=END, fold=1):
    """(gradient, Hessian) at THETA, on the policy's own data unless a behaviour is named."""
    behaviour = log_prob(jnp.asarray(THETA if behaviour is None else behaviour))
    data = (jnp.asarray(advantage), jnp.asarray(end))
    return all_derivatives(jnp.asarray(THETA), behaviour, jnp.asarray(max_ratio), data, fold)[name]


def plain(name, theta, behaviour, max_ratio):
    """The same loss at ``theta``, with what is held constant written as a policy of its own, the one at THETA."""
    new, held = log_prob(theta), log_prob(jnp.asarray(THETA))
    weight = jnp.minimum(jnp.exp(held - log_prob(jnp.asarray(behaviour))), max_ratio)
    if name == "log_prob":
        inside = new
    elif name == "ratio":
        inside = jnp.exp(new - held)
    else:
        upto = jnp.einsum("ntu,un->tn", episodes(END), new - held)
        inside = jnp.exp(upto) - jnp.exp(upto - (new - held))
    return -jnp.mean(weight * inside * ADVANTAGE)


def differences(function, point, step=1e-4):
    """Central differences of a scalar function: gradient and Hessian."""
    basis = np.eye(SIZE) * step
    values = jax.jit(jax.vmap(function))
    at = values(point + np.concatenate([basis, -basis]))
    pairs = [i * basis[:, None] + j * basis[None] for i in (1, -1) for j in (1, -1)]
    at_corners = values(point + np.reshape(pairs, (-1, SIZE))).reshape(4, SIZE, SIZE)
    hessian = (at_corners[0] - at_corners[1] - at_corners[2] + at_corners[3]) / (4 * step**2)
    return (at[:SIZE] - at[SIZE:]) / (2 * step), hessian


def scores():
    return np.asarray(jax.jacobian(log_prob)(jnp.asarray(THETA)))


def test_one_gradient_on_the_policys_own_data():
    expected = -np.mean(scores() * ADVANTAGE[..., None], axis=(0, 1))
    for name in SURROGATES:
        np.testing.assert_allclose(derivatives(name)[0], expected, atol=1e-12)


@pytest.mark.parametrize("name", SURROGATES)
@pytest.mark.parametrize("behaviour", [THETA, BEHAVIOUR], ids=["own", "old"])
def test_derivatives_equal_finite_differences(name, behaviour):
    gradient, hessian = differences(lambda theta: plain(name, theta, behaviour, 1.5), THETA)
    found = derivatives(name, behaviour, 1.5)
    np.testing.assert_allclose(found[0], gradient, atol=1e-7)
    np.testing.assert_allclose(found[1], hessian, atol=1e-6)


def test_curvatures_differ_by_score_products():
    """ratio = log_prob + own score products; dice adds the products with the scores of the episode's earlier steps."""
    psi = scores()
    earlier = np.einsum("ntu,uni->tni", episodes(END), psi) - psi
    own = -np.einsum("tni,tnj,tn->ij", psi, psi, ADVANTAGE) / (T * N)
    cross = -np.einsum("tni,tnj,tn->ij", psi, earlier, ADVANTAGE) / (T * N)
    assert np.abs(cross).max() > 0.01
    fixed, rho, box = (derivatives(name)[1] for name in ("log_prob", "ratio", "dice"))
    np.testing.assert_allclose(rho, fixed + own, atol=1e-12)
    np.testing.assert_allclose(box, rho + cross + cross.T, atol=1e-12)


def test_dice_equals_ratio_where_every_episode_is_one_step():
    for dice, rho in zip(derivatives("dice", end=ALWAYS), derivatives("ratio", end=ALWAYS), strict=True):
        np.testing.assert_allclose(dice, rho, atol=1e-12)


def test_dice_follows_an_episode_from_its_first_step_inside_the_rollout():
    """Cutting a rollout where episodes end changes nothing, cutting through them does; other surrogates never mind."""
    ends = END.copy()
    ends[T // 2 - 1] = True
    through = np.zeros_like(END)
    for name in SURROGATES:
        whole, cut = (derivatives(name, end=ends, fold=fold)[1] for fold in (1, 2))
        np.testing.assert_allclose(whole, cut, atol=1e-12)
        whole, cut = (derivatives(name, end=through, fold=fold)[1] for fold in (1, 2))
        assert np.allclose(whole, cut, atol=1e-6) is (name != "dice")


def test_ratio_on_old_data_is_the_importance_weighted_return():
    new, old = log_prob(jnp.asarray(THETA)), log_prob(jnp.asarray(BEHAVIOUR))
    found = ratio(new, old, jnp.asarray(ADVANTAGE), jnp.asarray(END))
    np.testing.assert_allclose(found, -np.mean(np.exp(np.asarray(new - old)) * ADVANTAGE), rtol=1e-12)


@pytest.mark.parametrize("name", SURROGATES)
def test_importance_weights_undo_another_policys_choice(name):
    """Over all actions, as often as the behaviour takes them, the gradient is that of the policy's own return."""
    value = jnp.asarray(RANDOM.normal(size=(STATES, ACTIONS)))
    mu = jax.nn.log_softmax(jnp.asarray(BEHAVIOUR).reshape(STATES, ACTIONS))

    def expected(theta):
        # A surrogate is linear in the advantage, so the weights of a sum over outcomes may go there.
        log_pi = jax.nn.log_softmax(theta)
        return SIZE * SURROGATES[name](log_pi, mu, jnp.exp(mu) * value, value < jnp.inf, jnp.inf)

    theta = jnp.asarray(THETA).reshape(STATES, ACTIONS)
    exact = -jax.grad(lambda t: jnp.sum(jax.nn.softmax(t) * value))(theta)
    np.testing.assert_allclose(jax.grad(expected)(theta), exact, atol=1e-12)


@pytest.mark.parametrize("name", SURROGATES)
def test_weights_of_old_data_are_truncated_and_still_teach(name):
    """A sample that the policy now likes five times as much: its weight is the bound, its gradient is not 0."""
    one = jnp.ones((1, 1))
    slope = jax.grad(lambda x: SURROGATES[name](x, -jnp.log(5.0) * one, one, one > 0, 2.0))(0 * one)
    np.testing.assert_allclose(slope, -2.0, rtol=1e-12)


@pytest.mark.parametrize("name", SURROGATES)
def test_every_surrogate_is_linear_in_the_advantage(name):
    for one, many in zip(
        derivatives(name, BEHAVIOUR, 2.0), derivatives(name, BEHAVIOUR, 2.0, 3.5 * ADVANTAGE), strict=True
    ):
        np.testing.assert_allclose(many, 3.5 * one, atol=1e-12)
