"""Gradient laws where everything is known: a decision process of three states, two actions and three steps.

All 216 trajectories are listed, so the return, its Hessian, the inner optimum theta*(phi) and its slope are exact, in
float64. The horizon belongs to the task (the last step terminates) and gamma = 1: then the per-step mean of an
on-policy objective is the return over the horizon, without the gamma^t by which discounted states would have to be
weighted. The policy has one logit per state (of action 1), so that no direction of theta is without effect.
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain import make_weights

from llmrl.bilevel.hypergradients import implicit, implicit_gradient, unrolled
from llmrl.bilevel.solvers import dense
from llmrl.bilevel.types import MetaProblem
from llmrl.envs.base import time_step, with_aux
from llmrl.learner.meta_problem import BilevelProblem, Part, ProblemSettings, make_problem
from llmrl.learner.problem import InnerProblem, OuterVariables, RolloutData
from llmrl.learner.rollout import collect, reset_all
from llmrl.learner.streams import blended, signals, stream_advantages, value_rollout
from llmrl.nets import Critic, Policy
from llmrl.ops.distributions import Categorical
from llmrl.ops.surrogates import SURROGATES
from llmrl.rewards import task
from llmrl.trust.blend import MixtureState, mixture
from llmrl.trust.limits import no_limits
from llmrl.types import Discrete, Environment, EnvSpec, Stream

STATES, ACTIONS, HORIZON = 3, 2, 3
START = np.array([0.6, 0.3, 0.1])
NEXT = np.array(
    [[[0.8, 0.2, 0.0], [0.0, 0.1, 0.9]], [[0.2, 0.0, 0.8], [0.8, 0.2, 0.0]], [[0.6, 0.4, 0.0], [0.0, 0.1, 0.9]]]
)
REWARD = np.array([[0.0, 0.1], [0.1, 0.0], [0.0, 1.5]])
# The right actions are 1, 0, 1, in every state and at every time; each source pays for one kind, more here than there.
HELPFUL = np.array([[0.0, 1.0], [0.5, 0.0], [0.0, 0.5]])
HARMFUL = np.array([[1.0, 0.0], [0.0, 0.5], [1.0, 0.0]])
SOURCES = np.stack([HELPFUL, HARMFUL], axis=-1)
THETA, PHI = np.array([0.3, -0.2, 0.1]), np.array([0.3, -0.2])
ENTROPY = 0.6

BATCHES, EPISODES = 512, 48
"""Independent batches of so many episodes each."""


# --- the process, exactly ---------------------------------------------------------------------------------------------

VISITED, CHOSEN = (
    np.array([path[i] for path in itertools.product(
        itertools.product(range(STATES), repeat=HORIZON), itertools.product(range(ACTIONS), repeat=HORIZON)
    )])
    for i in range(2)
)  # fmt: skip
LUCK = START[VISITED[:, 0]] * np.prod(NEXT[VISITED[:, :-1], CHOSEN[:, :-1], VISITED[:, 1:]], axis=1)
"""Probability of each trajectory's states, given its actions."""


def log_policy(theta):
    return jax.nn.log_softmax(jnp.stack([jnp.zeros_like(theta), theta], axis=-1))


def entropies(theta):
    return -jnp.sum(jnp.exp(log_policy(theta)) * log_policy(theta), axis=-1)


def probabilities(theta):
    """Of every trajectory."""
    return LUCK * jnp.exp(jnp.sum(log_policy(theta)[VISITED, CHOSEN], axis=1))


def reward_table(phi):
    return REWARD + SOURCES @ phi


def mean_return(theta, rewards=REWARD):
    """J."""
    return probabilities(theta) @ jnp.sum(jnp.asarray(rewards)[VISITED, CHOSEN], axis=1)


def visits(theta):
    """Share of steps spent in each state, [s]."""
    at = jnp.asarray(VISITED[..., None] == np.arange(STATES), float)
    return jnp.einsum("k,kts->s", probabilities(theta), at) / HORIZON


def state_values(theta, rewards):
    """V_t(s), by backward induction, [HORIZON + 1, s]; and Q_t(s, a), [HORIZON, s, a]."""
    values, action_values = [np.zeros(STATES)], []
    for _ in range(HORIZON):
        action_values.append(np.asarray(rewards) + NEXT @ values[-1])
        values.append(np.sum(np.exp(np.asarray(log_policy(theta))) * action_values[-1], axis=1))
    return np.stack(values[::-1]), np.stack(action_values[::-1])


def exact(function):
    """Run in float64, once, to numpy arrays."""

    @functools.wraps(function)
    def in_double(*args):
        with jax.enable_x64(True):
            return jax.tree.map(np.asarray, function(*args))

    return in_double


@exact
def test_listing_trajectories_equals_backward_induction():
    rewards = reward_table(PHI)
    values, action_values = state_values(THETA, rewards)
    np.testing.assert_allclose(jnp.sum(probabilities(jnp.asarray(THETA))), 1.0)
    np.testing.assert_allclose(mean_return(jnp.asarray(THETA), rewards), START @ values[0])
    best = np.zeros(STATES)
    for _ in range(HORIZON):
        np.testing.assert_array_equal(np.argmax(REWARD + NEXT @ best, axis=1), [1, 0, 1])
        best = np.max(REWARD + NEXT @ best, axis=1)
    assert action_values.shape == (HORIZON, STATES, ACTIONS)


# --- the process, sampled ---------------------------------------------------------------------------------------------


class Place(NamedTuple):
    state: jax.Array
    time: jax.Array


def environment():
    def observe(place):
        at, now = jax.nn.one_hot(place.state, STATES), jax.nn.one_hot(place.time, HORIZON + 1)
        return jnp.concatenate([at, now])

    def reset(key):
        place = Place(jax.random.choice(key, STATES, p=jnp.asarray(START, jnp.float32)), jnp.zeros((), jnp.int32))
        return place, observe(place)

    def step(key, place, action):
        chances = jnp.asarray(NEXT, jnp.float32)[place.state, action]
        after = Place(jax.random.choice(key, STATES, p=chances), place.time + 1)
        reward = jnp.asarray(REWARD, jnp.float32)[place.state, action]
        return after, time_step(observe(after), reward, after.time >= HORIZON, False)

    def source(table):
        return lambda place, action, after: jnp.asarray(table, jnp.float32)[place.state, action]

    spec = EnvSpec("tabular", (STATES + HORIZON + 1,), Discrete(ACTIONS), HORIZON)
    return with_aux(Environment(spec, reset, step), {"helpful": source(HELPFUL), "harmful": source(HARMFUL)})


POLICY = Policy(
    lambda key: jnp.zeros(STATES),
    lambda theta, obs: Categorical(obs[..., :STATES] @ log_policy(theta)),
)
CRITIC = Critic(
    lambda key: jnp.zeros((HORIZON + 1, STATES, 2)),
    lambda table, obs: jnp.einsum("...s,...t,tsk->...k", obs[..., :STATES], obs[..., STATES:], table),
)
ENV = environment()
STREAMS = (
    Stream(task(), 0.0),
    Stream(mixture(ENV.spec, make_weights(ENV.spec, network=False, bound=None), no_limits(2)), 1.0),
)
TRANSFORM_STATES = ((), MixtureState(no_limits(2).init(), None))


def critic_table(theta, phi):
    """Exact values of the task and of the blend."""
    with jax.enable_x64(True):
        heads = [state_values(jnp.asarray(theta), rewards)[0] for rewards in (REWARD, reward_table(phi))]
    return jnp.asarray(np.stack(heads, axis=-1), jnp.float32)


def phis(phi):
    return ({}, {"scalar": jnp.asarray(phi, jnp.float32)})


@jax.jit
def sampled_rollout(theta, key):
    reset_key, key = jax.random.split(key)
    acting = reset_all(ENV, reset_key, BATCHES * EPISODES, HORIZON)
    return collect(ENV, POLICY, theta, acting, key, HORIZON)[1]


@pytest.fixture(scope="module")
def rollout():
    return sampled_rollout(jnp.asarray(THETA, jnp.float32), jax.random.key(0))


@jax.jit
def estimates(rollout, theta, phi, table, gae_lambda):
    """Gradient, curvature and mixed term of every surrogate on every batch, by the library's own advantages."""

    def advantage(phi, part):
        values = value_rollout(CRITIC, table, part)
        all_signals = signals(STREAMS, phis(phi), TRANSFORM_STATES, part, 1.0)
        return blended(stream_advantages(all_signals, values, part, gae_lambda), STREAMS)

    def loss(theta, phi, part, surrogate):
        steps = part.steps
        log_prob = POLICY.distribution(theta, steps.obs).log_prob(steps.action)
        return surrogate(log_prob, steps.log_prob, advantage(phi, part), steps.terminated)

    def of_batch(part):
        slope = jax.grad(loss)
        return {
            name: {
                "gradient": slope(theta, phi, part, surrogate),
                "curvature": jax.jacfwd(slope)(theta, phi, part, surrogate),
                "mixed": jax.jacfwd(slope, 1)(theta, phi, part, surrogate),
            }
            for name, surrogate in SURROGATES.items()
        }

    def batches(x, axis):
        return jnp.moveaxis(x.reshape(*x.shape[:axis], BATCHES, EPISODES, *x.shape[axis + 1 :]), axis, 0)

    parts = rollout._replace(
        steps=jax.tree.map(lambda x: batches(x, 1), rollout.steps), final_action=batches(rollout.final_action, 0)
    )
    return jax.vmap(of_batch)(parts)


def sampled(rollout, table=None, gae_lambda=1.0):
    table = critic_table(THETA, PHI) if table is None else table
    arguments = (jnp.asarray(x, jnp.float32) for x in (THETA, PHI, table, gae_lambda))
    return estimates(rollout, *arguments)


def assert_unbiased(estimate, truth, but_not=None):
    """The mean over batches is the truth, within 3 standard errors; and these could tell it from something else."""
    estimate = np.asarray(estimate, np.float64)
    error = estimate.std(axis=0, ddof=1) / np.sqrt(BATCHES)
    distance = np.abs(estimate.mean(axis=0) - truth)
    assert np.all(distance <= 3 * error + 1e-6), (distance / error, estimate.mean(axis=0), truth)
    if but_not is not None:
        assert np.max(np.abs(truth - but_not) / (error + 1e-6)) > 12


@exact
def gradient_of_return(rewards):
    return -jax.jit(jax.grad(mean_return))(jnp.asarray(THETA), jnp.asarray(rewards)) / HORIZON


@exact
def hessian_of_return():
    return -jax.jit(jax.hessian(mean_return))(jnp.asarray(THETA), reward_table(PHI)) / HORIZON


@exact
def hessian_with_states_held():
    """Of the sum over steps of E_{s ~ d_t} sum_a pi(a|s) Q_t(s, a), with d and Q those of THETA."""
    _, action_values = state_values(THETA, reward_table(PHI))
    occupied, here = [], START
    for _ in range(HORIZON):
        occupied.append(here)
        here = np.einsum("s,sa,saz->z", here, np.exp(np.asarray(log_policy(jnp.asarray(THETA)))), NEXT)
    weights = np.einsum("ts,tsa->sa", np.stack(occupied), action_values)
    held = jax.hessian(lambda theta: jnp.sum(jnp.exp(log_policy(theta)) * weights))
    return -jax.jit(held)(jnp.asarray(THETA)) / HORIZON


@exact
def hessian_of_fixed_data(table):
    """-E[A grad^2 log pi] with A the return to go minus a critic's value."""
    to_go = np.cumsum(reward_table(PHI)[VISITED, CHOSEN][:, ::-1], axis=1)[:, ::-1]
    advantage = to_go - np.asarray(table, np.float64)[np.arange(HORIZON), VISITED, 1]
    weight = probabilities(jnp.asarray(THETA))[:, None] * advantage / HORIZON
    fixed = jax.hessian(lambda theta: jnp.sum(weight * log_policy(theta)[VISITED, CHOSEN]))
    return -jax.jit(fixed)(jnp.asarray(THETA))


@exact
def mixed_term(gae_lambda):
    """-E[psi_t sum_{u >= t} lambda^(u - t) r_m,u] per step, [s, m]; lambda = 1 is that of the return."""
    paid = SOURCES[VISITED, CHOSEN]
    to_go = np.zeros_like(paid)
    for t in reversed(range(HORIZON)):
        to_go[:, t] = paid[:, t] + (gae_lambda * to_go[:, t + 1] if t + 1 < HORIZON else 0.0)
    weight = probabilities(jnp.asarray(THETA))[:, None, None] * to_go / HORIZON

    def total(theta):
        return -jnp.einsum("ktm,kt->m", weight, log_policy(theta)[VISITED, CHOSEN])

    return jax.jit(jax.jacobian(total))(jnp.asarray(THETA)).T


def test_the_mixed_term_of_the_return_is_a_gradient_per_source():
    each = [gradient_of_return(SOURCES[..., m]) for m in range(2)]
    np.testing.assert_allclose(mixed_term(1.0), np.stack(each, axis=-1), atol=1e-12)


@pytest.mark.parametrize("name", SURROGATES)
def test_gradient_and_mixed_term_are_unbiased_for_every_surrogate(rollout, name):
    found = sampled(rollout)[name]
    assert_unbiased(found["gradient"], gradient_of_return(reward_table(PHI)), but_not=0.0)
    assert_unbiased(found["mixed"], mixed_term(1.0), but_not=0.0)


def test_dice_curvature_is_the_hessian_of_the_return(rollout):
    assert_unbiased(sampled(rollout)["dice"]["curvature"], hessian_of_return(), but_not=hessian_with_states_held())


def test_ratio_curvature_is_the_hessian_with_the_states_held(rollout):
    assert_unbiased(sampled(rollout)["ratio"]["curvature"], hessian_with_states_held(), but_not=hessian_of_return())


def test_log_prob_curvature_is_that_of_fixed_data(rollout):
    """And of a softmax with exact advantages it is nothing at all: grad^2 log pi is the same for every action."""
    truth = hessian_of_fixed_data(critic_table(THETA, PHI))
    assert_unbiased(sampled(rollout)["log_prob"]["curvature"], truth, but_not=hessian_with_states_held())
    np.testing.assert_allclose(truth, 0.0, atol=1e-6)


def test_a_wrong_critic_costs_variance_and_biases_log_prob_alone(rollout):
    table = critic_table(THETA, PHI) + jnp.asarray([0.5, -0.5, 1.0])[:, None]
    found = sampled(rollout, table)
    assert_unbiased(found["dice"]["curvature"], hessian_of_return())
    assert_unbiased(found["ratio"]["curvature"], hessian_with_states_held())
    assert_unbiased(found["log_prob"]["curvature"], hessian_of_fixed_data(table), but_not=0.0)


def test_with_exact_values_lambda_does_not_matter_but_to_the_mixed_term(rollout):
    """Values are held constant, also as functions of phi: a source is seen as far ahead as lambda reaches."""
    found = sampled(rollout, gae_lambda=0.5)
    assert_unbiased(found["dice"]["curvature"], hessian_of_return())
    assert_unbiased(found["ratio"]["curvature"], hessian_with_states_held())
    assert_unbiased(found["ratio"]["mixed"], mixed_term(0.5), but_not=mixed_term(1.0))


# --- the inner optimum ------------------------------------------------------------------------------------------------


def inner_loss(theta, phi):
    """-(J + c_H E[entropy]) per step; the entropy's states move with theta."""
    return -mean_return(theta, reward_table(phi)) / HORIZON - ENTROPY * visits(theta) @ entropies(theta)


def outer_loss(theta, phi):
    return -mean_return(theta) / HORIZON


inner_slope = jax.grad(inner_loss)


def stationarity_of_ppo(theta, phi):
    """What an on-policy update follows: the entropy of the states visited, as if theta did not move them."""
    held = visits(theta) @ jax.jacobian(entropies)(theta)
    return -jax.grad(mean_return)(theta, reward_table(phi)) / HORIZON - ENTROPY * held


@functools.partial(jax.jit, static_argnums=0)
def optimum(slope, phi):
    """theta*(phi): long descent, then Newton."""
    theta = jax.lax.fori_loop(0, 400, lambda _, x: x - 2.0 * slope(x, phi), jnp.zeros(STATES))
    return jax.lax.fori_loop(0, 8, lambda _, x: x - jnp.linalg.solve(jax.jacobian(slope)(x, phi), slope(x, phi)), theta)


@functools.cache
@exact
def resolved_slope(slope, step=1e-5):
    """d outer(theta*(phi)) / d phi by central differences of the solved inner problem."""
    ends = [[optimum(slope, jnp.asarray(PHI + sign * step * row)) for row in np.eye(2)] for sign in (1, -1)]
    return np.array([outer_loss(up, PHI) - outer_loss(down, PHI) for up, down in zip(*ends, strict=True)]) / (2 * step)


def cosine(a, b):
    return np.sum(a * b) / (np.linalg.norm(a) * np.linalg.norm(b))


@exact
def test_the_inner_optimum_is_one():
    theta = optimum(inner_slope, jnp.asarray(PHI))
    np.testing.assert_allclose(inner_slope(theta, jnp.asarray(PHI)), 0.0, atol=1e-13)
    assert np.linalg.eigvalsh(jax.jit(jax.hessian(inner_loss))(theta, jnp.asarray(PHI))).min() > 1e-3


@exact
def test_implicit_gradient_is_the_slope_of_the_solved_problem():
    phi = jnp.asarray(PHI)
    theta = optimum(inner_slope, phi)
    settings = {"solver": dense(), "key": jax.random.key(0)}
    found, _ = jax.jit(lambda t, p: implicit_gradient(inner_loss, outer_loss, t, p, **settings))(theta, phi)
    expected = resolved_slope(inner_slope)
    assert cosine(found, expected) > 0.999
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@exact
def test_unrolled_goes_to_implicit_as_steps_are_added():
    phi = jnp.asarray(PHI)
    theta = optimum(inner_slope, phi)
    problem = MetaProblem(inner_loss, outer_loss, lambda t, p: t - 2.0 * inner_slope(t, p))
    truth = resolved_slope(inner_slope)
    errors = []
    for num_steps in (10, 1000):
        found, _ = jax.jit(unrolled(num_steps), static_argnums=0)(problem, theta, phi, jax.random.key(0))
        errors.append(np.linalg.norm(found - truth) / np.linalg.norm(truth))
    assert np.all(np.diff(errors) < 0)
    assert errors[-1] < 1e-4


@exact
def test_a_harmful_source_lowers_the_return_and_a_helpful_one_raises_it():
    expected = resolved_slope(inner_slope)
    assert -expected[0] > 0.01  # dJ/dw of the helpful source
    assert -expected[1] < -0.01


# --- the library's own problem on samples -----------------------------------------------------------------------------


@jax.jit
def in_library_units(rollout, theta, phi, table, deviation):
    """What ``make_problem`` makes of a rollout: inner gradient, curvature, mixed term and hypergradient."""
    # The library divides the blended advantage by its deviation; with the entropy divided alike, all is in units of J.
    inner = InnerProblem(STREAMS, POLICY, CRITIC, 1.0, 1.0, ENTROPY / deviation)
    data = RolloutData(rollout, value_rollout(CRITIC, table, rollout))
    key = jax.random.key(0)

    def problem(**changes):
        settings = ProblemSettings("ratio", 2.0, "hessian", Part(), 0.1, lambda phis: jnp.zeros(()))
        settings = settings._replace(**changes)
        return make_problem(BilevelProblem(inner, settings, data, data, TRANSFORM_STATES, jnp.ones(()), key))

    at = OuterVariables(phis(phi))

    def curvature(problem):
        return jax.vmap(problem.operator(theta, at))(jnp.eye(STATES))

    def hypergradient(problem):
        return implicit(dense())(problem, theta, at, key)[0].phis[1]["scalar"]

    dice, ratio = problem(surrogate="dice"), problem(surrogate="ratio")
    slope = jax.grad(dice.inner_loss)
    return {
        "gradient": deviation * slope(theta, at),
        "mixed": deviation * jax.jacobian(slope, 1)(theta, at).phis[1]["scalar"],
        "curvature": deviation * curvature(dice),
        "fisher": curvature(problem(curvature="fisher")),
        "hypergradient": {"dice": hypergradient(dice), "ratio": hypergradient(ratio)},
    }


@exact
def at_ppo_optimum():
    """theta* of an on-policy update, the deviation of its advantages, and what the library should find there."""
    phi = jnp.asarray(PHI)
    theta = optimum(stationarity_of_ppo, phi)
    values, _ = state_values(theta, reward_table(PHI))
    to_go = np.cumsum(reward_table(PHI)[VISITED, CHOSEN][:, ::-1], axis=1)[:, ::-1]
    advantage = to_go - values[np.arange(HORIZON), VISITED]
    weight = np.asarray(probabilities(theta))[:, None] / HORIZON
    deviation = np.sqrt(np.sum(weight * advantage**2) - np.sum(weight * advantage) ** 2)
    share, p = visits(theta), jax.nn.sigmoid(theta)
    of_entropy = -ENTROPY * jax.jit(jax.hessian(lambda t: share @ entropies(t)))(theta)
    of_return = -jax.jit(jax.hessian(mean_return))(theta, reward_table(phi)) / HORIZON
    truth = {
        "gradient": jnp.zeros(STATES),
        "mixed": jax.jit(jax.jacobian(stationarity_of_ppo, 1))(theta, phi),
        "curvature": of_return + of_entropy,
        "fisher": jnp.diag(share * p * (1 - p)),
        "of_entropy": of_entropy,
    }
    return theta, deviation, truth, resolved_slope(stationarity_of_ppo)


@pytest.fixture(scope="module")
def at_optimum():
    """The means over a few large rollouts, the truth, and the slope of the solved problem."""
    theta, deviation, truth, slope = at_ppo_optimum()
    point = [jnp.asarray(x, jnp.float32) for x in (theta, PHI, critic_table(theta, PHI), deviation)]
    found = [
        in_library_units(sampled_rollout(point[0], key), *point) for key in jax.random.split(jax.random.key(1), 16)
    ]
    return jax.tree.map(lambda *x: np.mean(x, axis=0), *found), truth, slope


@pytest.mark.parametrize("part", ["gradient", "mixed", "curvature", "fisher"])
def test_the_librarys_problem_converges_to_the_exact_one(at_optimum, part):
    """Stationary where PPO is. The entropy's curvature is that of the states visited, held, whatever the surrogate."""
    found, truth, _ = at_optimum
    np.testing.assert_allclose(found[part], truth[part], atol=0.05 * max(np.abs(truth[part]).max(), 0.01))


@pytest.mark.parametrize("name", ["dice", "ratio"])
def test_the_librarys_hypergradient_is_the_slope_of_the_solved_problem(at_optimum, name):
    found, _, slope = at_optimum
    assert cosine(found["hypergradient"][name], slope) > 0.999
    helpful, harmful = -found["hypergradient"][name]  # dJ/dw
    assert helpful > 0 > harmful


def test_log_prob_alone_has_no_minimum_at_the_optimum(at_optimum):
    """Of its curvature only the entropy's is left, which is negative where the policy is decided: it needs damping."""
    _, truth, _ = at_optimum
    assert np.linalg.eigvalsh(truth["of_entropy"]).max() < 0 < np.linalg.eigvalsh(truth["curvature"]).min()
