"""Reinforcement learning as a bi-level problem: what its losses, their mixed derivative and its curvature depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from plain import make_weights

from llmrl.bilevel import trees
from llmrl.learner.meta_problem import (
    BilevelProblem,
    Part,
    ProblemSettings,
    make_problem,
    problem_by_losses,
    problem_by_scores,
    subset,
)
from llmrl.learner.problem import InnerProblem, OuterVariables, RolloutData, inner_advantage, task_advantage
from llmrl.learner.streams import Values, value_rollout
from llmrl.nets import make_critic, make_policy
from llmrl.rewards import task
from llmrl.trust.blend import MixtureState, mixture
from llmrl.trust.evidence import Significance
from llmrl.trust.limits import no_limits
from llmrl.types import Discrete, EnvSpec, Stream, View

SPEC = EnvSpec("none", (2,), Discrete(2), 10, ("first", "second"))
T, N = 6, 4
KEY = jax.random.key(0)


def streams(**weights):
    return (Stream(task(), 0.0), Stream(mixture(SPEC, make_weights(SPEC, hidden=(4,), **weights)), 1.0))


LEARNED = InnerProblem(
    streams(offset=True, discount=True), make_policy(SPEC, (4,)), make_critic(SPEC, (4,), 2), 0.9, 0.8, 0.05
)
SETTINGS = ProblemSettings("ratio", 2.0, "hessian", Part(), 0.1, lambda phis: jnp.zeros(()))
TRANSFORM_STATES = ((), MixtureState(no_limits(2).init(), None))
THETA = jax.tree.map(lambda x: x + 0.3, LEARNED.policy.init(jax.random.key(1)))
# A network whose last layer is 0 has no gradient in the layers before it.
PHIS = jax.tree.map(lambda x: x + 0.1, ({}, LEARNED.streams[1].transform.init(KEY)[0]))
VARIABLES = OuterVariables(PHIS, Significance(scalar=jnp.full(2, 0.5), network=jnp.full(2, 0.3)))


@pytest.fixture(scope="module")
def data(random_rollout):
    rollout = random_rollout(SPEC, T, N)
    own = LEARNED.policy.distribution(THETA, rollout.steps.obs).log_prob(rollout.steps.action)
    rollout = rollout._replace(steps=rollout.steps._replace(log_prob=own))
    # As a critic is made, every value is 0.
    params = trees.normal_like(KEY, LEARNED.critic.init(KEY))
    return RolloutData(rollout, value_rollout(LEARNED.critic, params, rollout))


def bilevel(data, outer_data=None, inner=LEARNED, scale=2.0, key=KEY, **settings):
    judges = data if outer_data is None else outer_data
    chosen = SETTINGS._replace(**settings)
    return BilevelProblem(inner, chosen, data, judges, TRANSFORM_STATES, jnp.asarray(scale, jnp.float32), key)


def problem(*given, **settings):
    return make_problem(bilevel(*given, **settings))


@pytest.mark.parametrize("surrogate", ["ratio", "dice", "log_prob"])
def test_gradients_made_of_scores_are_those_of_the_losses(data, surrogate):
    """Old data included: their importance is no part of what is differentiated."""

    def penalty(phis):
        return 3.0 * optax.tree.norm(phis[1]["scalar"], squared=True)

    x = trees.normal_like(KEY, THETA)
    steps = data.rollout.steps
    old = data._replace(rollout=data.rollout._replace(steps=steps._replace(log_prob=steps.log_prob - 0.2)))
    given = bilevel(data, old, surrogate=surrogate, penalty=penalty)
    by_losses, of = problem_by_losses(given), problem_by_scores(given)
    assert by_losses.mixed_product is None and by_losses.outer_gradient is None

    @jax.jit
    def both():
        slope = lambda p: optax.tree.vdot(jax.grad(by_losses.inner_loss)(THETA, p), x)  # noqa: E731
        expected = jax.grad(slope)(VARIABLES), jax.grad(by_losses.outer_loss, argnums=(0, 1))(THETA, VARIABLES)
        return (of.mixed_product(THETA, VARIABLES, x), of.outer_gradient(THETA, VARIABLES)), expected

    found, expected = both()
    assert optax.tree.norm(expected[0]) > 1e-3 and optax.tree.norm(expected[1]) > 1e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), found, expected)


def test_a_problem_is_made_of_scores_where_the_policy_computes_them_and_does_not_see_phi(data):
    policy = LEARNED.policy
    by_scores = {
        "scores": problem(data),
        "no scores": problem(data, inner=LEARNED._replace(policy=policy._replace(scores=None))),
        "a view": problem(data, inner=LEARNED._replace(view=View(SPEC, lambda phis, obs: obs))),
    }
    assert [name for name, made in by_scores.items() if made.mixed_product is not None] == ["scores"]
    assert [name for name, made in by_scores.items() if made.outer_gradient is not None] == ["scores"]


@pytest.mark.parametrize("surrogate", ["ratio", "dice", "log_prob"])
def test_the_mixed_derivative_reaches_every_group_of_phi(data, surrogate):
    def along(variables):
        slope = jax.grad(problem(data, surrogate=surrogate).inner_loss)(THETA, variables)
        return optax.tree.vdot(slope, jax.tree.map(jnp.ones_like, slope))

    slopes = jax.tree.map(np.asarray, jax.jit(jax.grad(along))(VARIABLES))
    found = slopes.phis[1]
    assert set(found) == {"scalar", "network", "offset", "discount"}
    assert np.all(slopes.significance.scalar != 0) and np.all(slopes.significance.network != 0)
    for name, group in found.items():
        leaves = jax.tree.leaves(group)
        assert all(np.all(np.isfinite(x)) for x in leaves) and any(np.any(x != 0) for x in leaves), name
    assert np.all(found["scalar"] != 0)


def test_the_outer_loss_is_the_bare_tasks_and_the_penalty(data):
    def weights_squared(phis):
        return 3.0 * optax.tree.norm(phis[1]["scalar"], squared=True)

    @jax.jit
    def slopes(variables):
        losses = (problem(data).outer_loss, problem(data, penalty=weights_squared).outer_loss)
        return [jax.grad(lambda v: loss(THETA, v))(variables).phis[1] for loss in losses]

    without, found = slopes(VARIABLES)
    assert all(np.all(x == 0) for x in jax.tree.leaves((without, found["network"])))
    np.testing.assert_allclose(found["scalar"], 6.0 * PHIS[1]["scalar"], rtol=1e-5)


def test_the_outer_loss_is_in_units_of_the_outer_scale(data):
    @jax.jit
    def loss(scale):
        return problem(data, scale=scale).outer_loss(THETA, VARIABLES)

    np.testing.assert_allclose(loss(jnp.ones(())), 2.0 * loss(jnp.full((), 2.0)), rtol=1e-5)


def test_the_inner_step_descends_the_inner_loss(data):
    one = problem(data, unroll_learning_rate=0.3)
    after, slope = jax.jit(lambda t: (one.inner_step(t, VARIABLES), jax.grad(one.inner_loss)(t, VARIABLES)))(THETA)
    jax.tree.map(lambda t, a, g: np.testing.assert_allclose(t - a, 0.3 * g, atol=1e-6), THETA, after, slope)


def test_curvature_on_a_part_of_the_batch_is_right_in_the_mean(data):
    direction = jax.tree.map(jnp.ones_like, THETA)

    def product(key, fraction):
        part = problem(data, scale=1.0, key=key, computed_on=Part(fraction))
        return part.operator(THETA, VARIABLES)(direction)["net"]["params"]["Dense_1"]["bias"]

    whole = jax.jit(product, static_argnums=1)(KEY, 1.0)
    parts = np.asarray(jax.jit(jax.vmap(lambda key: product(key, 0.25)))(jax.random.split(KEY, 400)))
    error = parts.std(axis=0) / 20
    assert np.all(error > 0)
    assert np.all(np.abs(parts.mean(axis=0) - whole) < 3.5 * error)


@pytest.mark.parametrize(
    ("fraction", "samples", "computed_on"),
    [(1.0, None, 64), (0.25, None, 16), (0.25, 32, 16), (0.25, 8, 8), (1.0, 8, 8), (1e-3, None, 1)],
)
def test_curvature_is_computed_on_a_share_of_the_batch_and_at_most_so_many_samples(fraction, samples, computed_on):
    assert Part(fraction, samples).of(64) == computed_on
    data = jnp.arange(64).reshape(16, 4)
    chosen = subset(data, Part(fraction, samples), KEY, False)
    assert chosen.size == computed_on and set(np.ravel(chosen)) <= set(range(64))
    episodes = subset(data, Part(fraction, samples), KEY, True)
    assert episodes.shape == (16, max(1, computed_on // 16))


@pytest.mark.parametrize("samples", [1, 7, 16, 24])
def test_steps_for_the_curvature_are_drawn_evenly_and_each_as_often_as_any_other(samples):
    t, n = 16, 4
    data = {"step": jnp.arange(t * n).reshape(t, n)}
    draw = jax.jit(jax.vmap(lambda key: subset(data, Part(1.0, samples), key, False)["step"][:, 0]))
    chosen = np.asarray(draw(jax.random.split(KEY, 6400)))
    assert all(len(set(one)) == samples for one in chosen)
    apart = np.diff(chosen % n * t + chosen // n, axis=1) % (t * n)
    assert np.all(apart == t * n // samples)
    counts = np.bincount(chosen.ravel(), minlength=t * n)
    expected = 6400 * samples / (t * n)
    assert np.all(np.abs(counts - expected) < 4.5 * np.sqrt(expected))


def test_the_fisher_is_that_of_the_policy_whatever_the_reward(data):
    fisher = problem(data, curvature="fisher").operator
    other = jax.tree.map(lambda x: x - 1.0, VARIABLES)
    direction = jax.tree.map(jnp.ones_like, THETA)
    product = jax.jit(lambda variables: fisher(THETA, variables)(direction))
    first, second = product(VARIABLES), product(other)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert optax.tree.vdot(direction, first) > 0


def test_the_inner_loss_keeps_the_scale_of_phi(random_rollout):
    """Advantages are divided by their deviation, which nobody differentiates: twice the weight would be nothing new.

    Where only sources pay, the loss without its entropy is proportional to the weights for the derivative's eyes.
    """
    rollout = random_rollout(SPEC, T, N, reward=np.zeros((T, N), np.float32))
    data = RolloutData(rollout, Values(*(jnp.zeros((T, N, 2)) for _ in range(2))))
    inner = LEARNED._replace(streams=streams(network=False, bound=None))
    phis = ({}, {"scalar": jnp.asarray([0.25, -0.5])})
    of = problem(data, inner=inner, scale=1.0)
    loss, slope = jax.jit(jax.value_and_grad(lambda phis: of.inner_loss(THETA, OuterVariables(phis))))(phis)
    entropy = inner.entropy * jnp.mean(inner.policy.distribution(THETA, rollout.steps.obs).entropy())
    assert abs(loss + entropy) > 1e-3
    np.testing.assert_allclose(optax.tree.vdot(phis, slope), loss + entropy, rtol=1e-3)


def test_advantages_are_in_the_units_of_the_update(data):
    """Where the largest deviation so far is wider than this rollout's, PPO takes smaller steps, and so does L_aux."""
    own, wide = (inner_advantage(LEARNED, PHIS, TRANSFORM_STATES, data._replace(least_deviation=x)) for x in (0.0, 7.0))
    np.testing.assert_allclose(jnp.std(own), 1.0, rtol=1e-4)
    np.testing.assert_allclose(wide / wide.max(), own / own.max(), rtol=1e-4, atol=1e-6)
    raw = 7.0 * wide
    assert jnp.std(raw) < 7.0
    np.testing.assert_allclose(raw / jnp.std(raw), own, rtol=1e-4, atol=1e-6)


def test_a_critic_is_a_mere_baseline_at_lambda_1(random_rollout):
    """Where episodes end, what a critic says of a state moves that state's advantages alone, and all of them alike."""
    ends = np.zeros((T, N), bool)
    ends[-1] = True
    rollout = random_rollout(SPEC, T, N, terminated=ends, truncated=np.zeros((T, N), bool))
    now, wrong = (jax.random.normal(key, (T, N, 2)) for key in jax.random.split(KEY))

    @jax.jit
    def advantages(now, gae_lambda):
        following = jnp.concatenate([now[1:], jnp.zeros((1, N, 2))])
        return task_advantage(LEARNED, RolloutData(rollout, Values(now, following)), gae_lambda)

    moved = {at: advantages(now + wrong, at) - advantages(now, at) for at in (0.95, 1.0)}
    np.testing.assert_allclose(moved[1.0], -wrong[..., 0], atol=1e-5)
    assert np.max(np.abs(moved[0.95] + wrong[..., 0])) > 1e-2
    np.testing.assert_allclose(advantages(now, None), advantages(now, LEARNED.gae_lambda), rtol=1e-4, atol=1e-5)
