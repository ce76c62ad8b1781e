"""PPO's update: small steps against their closed form, and probes whose values and best actions are known."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from llmrl.envs.base import time_step
from llmrl.learner.ppo import Batch, Params, make_update, make_update_of_arms, shuffled_indices, with_advice_steps
from llmrl.learner.rollout import collect, reset_all
from llmrl.learner.streams import stream_advantages, value_rollout
from llmrl.nets import make_critic, make_policy
from llmrl.ops.losses import clipped_policy_loss, normalized, value_loss
from llmrl.ops.optimizers import own_promotion
from llmrl.rewards import task_signal
from llmrl.types import Box, Discrete, Environment, EnvSpec

# --- shuffling --------------------------------------------------------------------------------------------------------


def test_every_epoch_is_a_permutation_of_its_own():
    order = np.asarray(shuffled_indices(jax.random.key(0), 50, 64))
    np.testing.assert_array_equal(np.sort(order, axis=1), np.arange(64) + np.zeros((50, 1)))
    assert len(np.unique(order, axis=0)) == 50


def test_permutations_are_uniform():
    """All 24 orders of four equally often, by a chi-squared test."""
    order = np.asarray(shuffled_indices(jax.random.key(1), 24_000, 4))
    counts = np.unique(order @ [64, 16, 4, 1], return_counts=True)[1]
    assert len(counts) == 24
    assert scipy.stats.chisquare(counts).pvalue > 0.01


# --- one step ---------------------------------------------------------------------------------------------------------

SPEC = EnvSpec("none", (3,), Discrete(3), 10)
POLICY, CRITIC = make_policy(SPEC, (4,)), make_critic(SPEC, (4,), 2)
ENTROPY, VALUE = 0.03, 0.4


def batch(seed=0, size=32, **fields):
    random = np.random.default_rng(seed)
    numbers = {
        "obs": random.normal(size=(size, 3)),
        "log_prob": np.log(np.full(size, 1 / 3)) + 0.3 * random.normal(size=size),
        "advantage": random.normal(size=size),
        "target": random.normal(size=(size, 2)),
    }
    arrays = {name: jnp.asarray(fields.get(name, value), jnp.float32) for name, value in numbers.items()}
    return Batch(action=jnp.asarray(random.integers(3, size=size)), **arrays)


@functools.cache
def compiled_update(num_epochs=1, num_minibatches=1):
    optimizer = optax.sgd(1.0)
    update = make_update(
        POLICY,
        CRITIC,
        optimizer,
        clip=0.2,
        entropy=ENTROPY,
        value_coefficient=VALUE,
        num_epochs=num_epochs,
        num_minibatches=num_minibatches,
    )
    return jax.jit(lambda params, data: update(params, optimizer.init(params), data, jax.random.key(0)))


def start():
    # The actor's last layer is nearly 0 at first; larger weights make a better test.
    actor = jax.tree.map(lambda x: x + 0.5, POLICY.init(jax.random.key(1)))
    return Params(actor, CRITIC.init(jax.random.key(2)))


def moved(data):
    params = start()
    after, _, info = compiled_update()(params, data)
    return optax.tree.sub(params, after), info


def loss(params, data):
    distribution = POLICY.distribution(params.actor, data.obs)
    policy = clipped_policy_loss(distribution.log_prob(data.action), data.log_prob, normalized(data.advantage), 0.2)
    value = value_loss(CRITIC.value(params.critic, data.obs), data.target)
    return policy + VALUE * value - ENTROPY * jnp.mean(distribution.entropy())


def assert_trees_close(a, b, atol=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


def test_one_minibatch_of_one_epoch_is_one_gradient_step():
    step, info = moved(batch())
    gradient = jax.jit(jax.grad(loss))(start(), batch())
    assert_trees_close(step, gradient)
    np.testing.assert_allclose(info.gradient_norm, optax.tree.norm(gradient), rtol=1e-4)


def test_units_of_the_advantage_do_not_matter():
    plain, other = batch(), batch(advantage=1.0)
    assert_trees_close(moved(plain)[0], moved(plain._replace(advantage=30.0 * plain.advantage - 5.0))[0])
    # Where no action is better than another only the entropy moves the actor.
    without = moved(batch(advantage=np.full(32, 2.0)))[0].actor
    policy_entropy = jax.grad(lambda p: -ENTROPY * jnp.mean(POLICY.distribution(p, other.obs).entropy()))
    assert_trees_close(without, policy_entropy(start().actor))


def test_info_tells_how_far_the_policy_went():
    data = batch()
    own = POLICY.distribution(start().actor, data.obs).log_prob(data.action)
    _, info = moved(data._replace(log_prob=own))
    np.testing.assert_allclose([info.approx_kl, info.clip_fraction], 0.0, atol=1e-6)
    _, info = moved(data)
    ratio = np.exp(np.asarray(own - data.log_prob))
    np.testing.assert_allclose(info.clip_fraction, np.mean(np.abs(ratio - 1) > 0.2), atol=1e-6)
    np.testing.assert_allclose(info.approx_kl, np.mean(ratio - 1 - np.log(ratio)), rtol=1e-4)


def test_every_sample_is_used_once_per_epoch():
    """Two epochs of four minibatches, learning only a sum: each sample's target pulls the critic's bias twice."""
    # A critic with one parameter, stepping by a rate so small that steps add up.
    critic = CRITIC._replace(value=lambda params, obs: params + 0.0 * obs[:, :2])
    rate = 1e-3
    update = make_update(
        POLICY, critic, optax.sgd(rate), clip=0.2, entropy=0.0, value_coefficient=1.0, num_epochs=2, num_minibatches=4
    )
    data, params = batch(target=np.arange(64.0).reshape(32, 2)), Params(start().actor, jnp.zeros(2))
    after, _, _ = jax.jit(update)(params, optax.sgd(rate).init(params), data, jax.random.key(0))
    np.testing.assert_allclose(after.critic, 8 * rate * np.mean(data.target, axis=0), rtol=1e-2)


@functools.cache
def advised_update():
    adam, own = own_promotion(optax.adam(1e-2)), own_promotion(optax.adam(3e-2))
    optimizer = with_advice_steps(adam, own)
    update, plain = (
        make_update(
            POLICY, CRITIC, each, clip=0.2, entropy=ENTROPY, value_coefficient=VALUE, num_epochs=2, num_minibatches=2
        )
        for each in (optimizer, adam)
    )
    return optimizer, jax.jit(update), adam, jax.jit(plain)


@pytest.mark.parametrize("left", [1.0, 0.4])
def test_advice_steps_leave_the_others_what_they_are(left):
    """Steps on the task are plain PPO's, as many as one takes, and advice adds its own."""
    adam = own_promotion(optax.adam(1e-2))
    optimizer = with_advice_steps(adam, optax.sgd(1.0))
    params, unlike = start(), jax.tree.map(jnp.ones_like, start().actor)
    gradient = jax.tree.map(lambda x: jnp.cos(7 * x), params)
    state, alone = optimizer.init(params), adam.init(params)
    for _ in range(3):
        steps, state = optimizer.update(gradient, state, params, advice=unlike, lengths=(left, 0.3))
        expected, alone = adam.update(gradient, alone, params)
        chex.assert_trees_all_equal(steps.critic, expected.critic)
        chex.assert_trees_all_close(steps.actor, jax.tree.map(lambda x: left * x - 0.3, expected.actor), rtol=1e-5)


@pytest.mark.parametrize("advice", [0.0, 1.0])
def test_an_update_that_follows_no_advice_is_plain(advice):
    """No share, or nothing to follow: the steps of the task alone, whatever else was in the batch."""
    optimizer, update, adam, plain = advised_update()
    data, params, key = batch(), start(), jax.random.key(3)
    advised = data._replace(advice=advice * batch(seed=1).advantage)
    found, _, info = update(params, optimizer.init(params), advised, key, lengths=(1.0, 0.0 if advice else 1.0))
    expected, _, same = plain(params, adam.init(params), data, key)
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(info.approx_kl, same.approx_kl, rtol=1e-4, atol=1e-7)


def test_advice_makes_what_it_favours_likelier():
    """Also where the task says the opposite, ten times as loudly: its steps are divided by their own size."""
    optimizer, update, _, _ = advised_update()
    params, data = start(), batch()
    data = data._replace(log_prob=POLICY.distribution(params.actor, data.obs).log_prob(data.action))
    favoured = jnp.where(data.action == 2, 1.0, -1.0)

    def likelihood(share, task):
        advised = data._replace(advantage=task * favoured, advice=favoured)
        after, _, _ = update(params, optimizer.init(params), advised, jax.random.key(3), lengths=(1.0, share))
        return float(jnp.mean(jnp.exp(POLICY.distribution(after.actor, data.obs).log_prob(jnp.full(32, 2)))))

    assert likelihood(0.0, -10.0) < likelihood(0.0, 0.0) < likelihood(0.3, 0.0) < likelihood(1.0, 0.0)
    assert likelihood(1.0, -10.0) > likelihood(0.0, 0.0)


# --- probes -----------------------------------------------------------------------------------------------------------

CONTEXTS = ("take 1", "take 0", "half", "first of two", "second of two", "for ever")
DISCOUNT = 0.5


def probes():
    """An episode is one of several questions, told by a one-hot observation:

    "take 1" and "take 0" pay 1 for that action and end; "half" pays 0.5 and ends; "first of two" pays nothing and leads
    to "second of two", which pays 1 and ends; "for ever" pays 1 and is cut by the clock after every step.
    """

    def observe(context):
        return jax.nn.one_hot(context, len(CONTEXTS))

    def reset(key):
        context = jax.random.randint(key, (), 0, len(CONTEXTS))
        return context, observe(context)

    def step(key, context, action):
        rewards = [action == 1, action == 0, 0.5, 0.0, 1.0, 1.0]
        reward = jnp.stack([jnp.asarray(r, jnp.float32) for r in rewards])[context]
        after = jnp.where(context == 3, 4, context)
        return after, time_step(observe(after), reward, (context != 3) & (context != 5), context == 5)

    return Environment(EnvSpec("probes", (len(CONTEXTS),), Discrete(2), 2), reset, step)


def target():
    """One step, continuous: minus the squared distance to 0.5."""

    def reset(key):
        return (), jnp.ones(1)

    def step(key, state, action):
        return (), time_step(jnp.ones(1), -jnp.square(action[0] - 0.5), True, False)

    return Environment(EnvSpec("target", (1,), Box(1), 1), reset, step)


@functools.cache
def trained(make_env, iterations=150):
    env = make_env()
    policy, critic = make_policy(env.spec, (16,)), make_critic(env.spec, (16,), 1)
    optimizer = own_promotion(optax.adam(1e-2))
    update = make_update(
        policy, critic, optimizer, clip=0.2, entropy=1e-3, value_coefficient=0.5, num_epochs=2, num_minibatches=2
    )

    def iteration(carry, key):
        params, opt_state, acting = carry
        rollout_key, update_key = jax.random.split(key)
        acting, rollout = collect(env, policy, params.actor, acting, rollout_key, 4)
        values = value_rollout(critic, params.critic, rollout)
        advantages = stream_advantages([task_signal(rollout, DISCOUNT)], values, rollout, 0.9)
        steps = rollout.steps
        data = Batch(steps.obs, steps.action, steps.log_prob, advantages[..., 0], advantages + values.now)
        data = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), data)
        params, opt_state, _ = update(params, opt_state, data, update_key)
        return (params, opt_state, acting), None

    @jax.jit
    def run(key):
        actor_key, critic_key, env_key, key = jax.random.split(key, 4)
        params = Params(policy.init(actor_key), critic.init(critic_key))
        carry = params, optimizer.init(params), reset_all(env, env_key, 48, 4)
        return jax.lax.scan(iteration, carry, jax.random.split(key, iterations))[0][0]

    params = run(jax.random.key(0))
    return lambda obs: (policy.distribution(params.actor, obs), critic.value(params.critic, obs)[..., 0])


@pytest.mark.parametrize(
    ("context", "value"),
    [
        ("take 1", 1.0),
        ("take 0", 1.0),
        ("half", 0.5),
        ("second of two", 1.0),
        ("first of two", DISCOUNT),
        ("for ever", 1.0 / (1.0 - DISCOUNT)),  # truncation bootstraps, termination does not
    ],
)
def test_values_of_the_probes(context, value):
    _, values = trained(probes)(jnp.eye(len(CONTEXTS)))
    np.testing.assert_allclose(values[CONTEXTS.index(context)], value, atol=0.06)


def test_the_paying_action_is_learnt_context_by_context():
    distribution, _ = trained(probes)(jnp.eye(len(CONTEXTS)))
    chosen = jnp.exp(distribution.logits)
    assert chosen[CONTEXTS.index("take 1"), 1] > 0.95
    assert chosen[CONTEXTS.index("take 0"), 0] > 0.95


def test_a_continuous_target_is_found():
    distribution, _ = trained(target)(jnp.ones((1, 1)))
    np.testing.assert_allclose(distribution.mean, 0.5, atol=0.1)
    assert distribution.log_std[0, 0] < -0.7  # narrower than the start, -0.5


def test_several_policies_learn_each_as_if_alone_with_its_samples():
    """One of two that has all samples learns as one policy does; the other one stays as it is."""
    settings = {"clip": 0.2, "entropy": ENTROPY, "value_coefficient": VALUE, "num_epochs": 2, "num_minibatches": 4}
    optimizer, data, key = own_promotion(optax.adam(1e-2)), batch(size=64), jax.random.key(3)
    alone = make_update(POLICY, CRITIC, optimizer, **settings)
    several = make_update_of_arms(POLICY, CRITIC, optimizer, **settings)
    expected, _, info = alone(start(), optimizer.init(start()), data, key)
    twice = jax.tree.map(lambda x: jnp.stack([x, x]), (start(), optimizer.init(start())))
    of_both = data._replace(advantage=jnp.stack([-data.advantage, data.advantage]), target=jnp.stack([data.target] * 2))
    arm, least = jnp.ones(64, jnp.int32), jnp.zeros((2, 2))
    after, _, infos = several(*twice, of_both, arm, key, least, jnp.zeros((), jnp.int32))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x[1], y, rtol=1e-4, atol=1e-6), after, expected)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x[1], y, rtol=1e-3, atol=1e-6), infos, info)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[0], y), after, start())


def test_learning_rates_of_several_policies_fall_with_the_training_not_with_their_steps():
    optimizer = own_promotion(optax.sgd(optax.linear_schedule(1.0, 0.0, 100)))
    update = make_update_of_arms(
        POLICY, CRITIC, optimizer, clip=0.2, entropy=0.0, value_coefficient=VALUE, num_epochs=1, num_minibatches=1
    )
    data = batch(size=16)
    one = data._replace(advantage=data.advantage[None], target=data.target[None])
    start_of = jax.tree.map(lambda x: x[None], (start(), optimizer.init(start())))

    def moved_after(steps):
        least, arm = jnp.zeros((1, 2)), jnp.zeros(16, jnp.int32)
        after, _, _ = update(*start_of, one, arm, jax.random.key(0), least, jnp.asarray(steps, jnp.int32))
        return optax.tree.norm(optax.tree.sub(after, start_of[0]))

    assert float(moved_after(75) / moved_after(0)) == pytest.approx(0.25, rel=1e-4)
