"""BiPaRS's three gradients, on policies and weight networks so small that their matrices can be formed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from plain import make_weights

import llmrl
from llmrl.assembly.parts import acting_policy
from llmrl.bilevel.hypergradients import explicit, incremental
from llmrl.learner.meta_problem import BilevelProblem, Part, ProblemSettings, make_problem
from llmrl.learner.problem import InnerProblem, InnerUpdate, OuterVariables, RolloutData, inner_advantage, viewing
from llmrl.learner.streams import Values, value_rollout
from llmrl.nets import make_critic, make_policy
from llmrl.rewards import task
from llmrl.training.loop import make_trainer
from llmrl.trust.blend import MixtureState, mixture
from llmrl.trust.limits import no_limits
from llmrl.trust.views import beside_weights
from llmrl.types import Discrete, EnvSpec, Stream

SPEC = EnvSpec("none", (2,), Discrete(2), 10, ("first", "second"))
T, N = 5, 4
KEY = jax.random.key(0)
STATES = ((), MixtureState(no_limits(2).init(), None))
RATE = 0.3
SETTINGS = ProblemSettings("ratio", 9.0, "hessian", Part(), RATE, lambda phis: jnp.zeros(()))


def z_net(**settings):
    return make_weights(SPEC, scalar=False, bound=2.0, initial=1.0, hidden=(3,), **settings)


def streams(weights):
    return (Stream(task(), 0.0), Stream(mixture(SPEC, weights), 1.0))


INNER = InnerProblem(streams(z_net()), make_policy(SPEC, (3,)), make_critic(SPEC, (3,), 2), 0.9, 0.8, 0.05)
CRITIC = INNER.critic.init(KEY)


def scattered(tree, seed):
    """Away from where networks start: a last layer of 0 hides the layers before it."""
    keys = jax.random.split(jax.random.key(seed), len(jax.tree.leaves(tree)))
    noise = jax.tree.unflatten(jax.tree.structure(tree), list(keys))
    return jax.tree.map(lambda x, k: x + 0.5 * jax.random.normal(k, x.shape), tree, noise)


def theta_of(seed):
    return scattered(INNER.policy.init(KEY), seed)


def phis_of(seed):
    return scattered(({}, INNER.streams[1].transform.init(KEY)[0]), seed + 100)


@pytest.fixture(scope="module")
def data_of(random_rollout):
    """Experience of the policy ``theta_of(seed)``."""

    def make(seed):
        rollout = random_rollout(SPEC, T, N, seed)
        steps = rollout.steps
        own = INNER.policy.distribution(theta_of(seed), steps.obs).log_prob(steps.action)
        rollout = rollout._replace(steps=steps._replace(log_prob=own))
        return RolloutData(rollout, value_rollout(INNER.critic, CRITIC, rollout))

    return make


def update_of(seed, data_of):
    return InnerUpdate(theta_of(seed), phis_of(seed), STATES, data_of(seed), jnp.ones(()))


def problem(data, updates=()):
    past = jax.tree.map(lambda *x: jnp.stack(x), *updates) if updates else None
    return make_problem(BilevelProblem(INNER, SETTINGS, data, data, STATES, jnp.asarray(2.0), KEY, past))


def test_imgl_is_the_recursion_of_the_whole_matrix(data_of):
    """h <- (I - a H) h - a M with H and M written out, [n, n] and [n, m]."""
    updates = [update_of(seed, data_of) for seed in (1, 2, 3)]
    theta, phis, data = theta_of(4), phis_of(4), data_of(4)
    (flat_theta, unravel), (_, unravel_phi) = ravel_pytree(theta), ravel_pytree(phis)

    @jax.jit
    def whole():
        h = 0.0
        for update in updates:
            loss = problem(update.data).inner_loss

            def flat(t, p, loss=loss):
                return loss(unravel(t), OuterVariables(unravel_phi(p)))

            at = ravel_pytree(update.theta)[0], ravel_pytree(update.phis)[0]
            curvature, mixed = jax.jacfwd(jax.grad(flat), (0, 1))(*at)
            h = h - RATE * (curvature @ h if np.ndim(h) else 0.0) - RATE * mixed
        return jax.grad(lambda t: problem(data).outer_loss(unravel(t), OuterVariables(phis)))(flat_theta) @ h

    found = jax.jit(lambda: incremental()(problem(data, updates), theta, OuterVariables(phis), KEY)[0])()
    np.testing.assert_allclose(ravel_pytree(found)[0], whole(), rtol=1e-3, atol=1e-6)
    assert np.linalg.norm(whole()) > 1e-3


def test_mgl_is_the_chain_of_jacobians(data_of):
    """alpha sum psi grad_phi A~: scores [samples, n] times the blended advantage's slopes [samples, m].

    Judged by the task's gradient at theta', on another rollout.
    """
    update, theta, phis, data = update_of(1, data_of), theta_of(2), phis_of(2), data_of(2)
    flat, unravel = ravel_pytree(update.theta)
    flat_phi, unravel_phi = ravel_pytree(update.phis)
    steps = update.data.rollout.steps

    @jax.jit
    def chain():
        scores = jax.jacobian(
            lambda t: INNER.policy.distribution(unravel(t), steps.obs).log_prob(steps.action).reshape(-1)
        )(flat)
        slopes = jax.jacobian(lambda p: inner_advantage(INNER, unravel_phi(p), STATES, update.data).reshape(-1))(
            flat_phi
        )
        moves = RATE * scores.T @ slopes / len(scores)
        g = ravel_pytree(jax.grad(problem(data).outer_loss)(theta, OuterVariables(phis)))[0]
        return g @ moves

    found, info = jax.jit(lambda: incremental()(problem(data, [update]), theta, OuterVariables(phis), KEY))()
    np.testing.assert_allclose(ravel_pytree(found)[0], chain(), rtol=1e-3, atol=1e-6)
    assert info.num_matvecs == 1 and np.linalg.norm(chain()) > 1e-3


# --- explicit mapping -------------------------------------------------------------------------------------------------

SEEN = z_net(sees_action=False)
VIEW = beside_weights(SPEC, SEEN, stream=1)
SEEING = INNER._replace(streams=streams(SEEN), policy=make_policy(VIEW.spec, (3,)), view=VIEW)


def test_em_is_the_slope_of_the_expected_return(random_rollout):
    """A bandit of three states, all its steps once: the return of a policy is a finite sum, differenced here."""
    states, actions = 3, 2
    every = np.stack(np.meshgrid(np.arange(states), np.arange(actions), indexing="ij"), axis=-1).reshape(-1, 1, 2)
    random = np.random.default_rng(3)
    places, pays = random.normal(size=(states, 2)), random.normal(size=(states, actions)).astype(np.float32)
    theta, phis = scattered((SEEING.policy.init(KEY), ({}, SEEING.streams[1].transform.init(KEY)[0])), 7)
    rollout = random_rollout(
        SPEC,
        states * actions,
        1,
        obs=places[every[..., 0]].astype(np.float32),
        action=every[..., 1].astype(np.int32),
        reward=pays[every[..., 0], every[..., 1]].astype(np.float32),
        log_prob=np.full((states * actions, 1), -np.log(actions), np.float32),
        terminated=np.ones((states * actions, 1), bool),
    )
    data = RolloutData(rollout, Values(*(jnp.zeros((states * actions, 1, 2)) for _ in range(2))))
    settings = SETTINGS._replace(max_importance_ratio=1e9)
    of = make_problem(BilevelProblem(SEEING, settings, data, data, STATES, jnp.ones(()), KEY))
    flat, unravel = ravel_pytree(phis)

    @jax.jit
    def expected_return(flat):
        policy = viewing(SEEING.policy, VIEW, unravel(flat))
        taken = jnp.broadcast_to(jnp.arange(actions, dtype=jnp.int32), (states, actions))
        at = jnp.broadcast_to(jnp.asarray(places, jnp.float32)[:, None], (states, actions, 2))
        return jnp.mean(jnp.sum(jnp.exp(policy.distribution(theta, at).log_prob(taken)) * pays, axis=1))

    shift = 1e-2 * np.eye(flat.size, dtype=np.float32)
    truth = np.array([expected_return(flat + s) - expected_return(flat - s) for s in shift]) / 2e-2
    found, _ = jax.jit(lambda: explicit()(of, theta, OuterVariables(phis), KEY))()
    size = np.linalg.norm(truth)
    assert size > 1e-2
    np.testing.assert_allclose(-ravel_pytree(found)[0], truth, atol=1e-3 * size)


def test_who_sees_its_weights_acts_on_them():
    """Actions are drawn from the policy that sees the weights of the moment, and evaluation plays that very policy."""
    config = llmrl.compose(
        "env=gridworld",
        "env.size=2",
        "aux=helpful_hackable",
        "method=bipars_em",
        "method.outer.data=previous",  # so that the rollout is remembered
        "ppo=tiny",
    )
    trainer = make_trainer(config)
    start, after = jax.jit(
        lambda key: (s := trainer.init(key, trainer.numbers), trainer.run(s, trainer.numbers, 1)[0])
    )(KEY)
    steps = jax.tree.map(lambda x: x[0], after.meta_state.memory.steps)
    policy = acting_policy(config, trainer.env.spec)

    def log_prob(phis):
        return policy.distribution((start.params.actor, phis), steps.obs).log_prob(steps.action)

    np.testing.assert_allclose(log_prob(start.phis), steps.log_prob, rtol=1e-5)
    elsewhere = jax.tree.map(lambda x: x + 1.0, start.phis)
    assert np.max(np.abs(log_prob(elsewhere) - steps.log_prob)) > 1e-5
    moved = optax.tree.norm(optax.tree.sub(after.phis, start.phis))
    assert moved > 0
