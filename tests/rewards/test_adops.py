"""A corrected bonus leaves the task's best policy the best, and changes as little as that takes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmrl.learner.streams import CORRECTION_SHARE, Values, correction_share, signals
from llmrl.rewards import add, adops, beyond_task, task
from llmrl.rewards.adops import correction
from llmrl.types import Discrete, EnvSpec, HeadValues, Signal, Stream

STATES, ACTIONS, GAMMA, EPSILON = 6, 3, 0.5, 1e-2
SPEC = EnvSpec("none", (3,), Discrete(4), 10, ("first", "second"))


class World:
    """A small MDP whose steps are certain and lead to later states, of which the last is the end; tables are [s, a].

    Rewards are whole numbers and the discount is 1/2, so that the values of a certain policy are exact: the advantage
    of what it does is 0, and not below. No two actions are as good as each other.
    """

    def __init__(self, seed):
        random = np.random.default_rng(seed)
        self.following = np.asarray([random.integers(s, STATES, size=ACTIONS) + 1 for s in range(STATES)])
        self.reward = random.integers(-99, 100, size=(STATES, ACTIONS)).astype(np.float64)
        self.bonus = random.integers(-300, 301, size=(STATES, ACTIONS)).astype(np.float64)

    def best(self, reward):
        """The best policy: an action per state."""
        value = np.zeros(STATES + 1)
        for s in reversed(range(STATES)):
            value[s] = np.max(self.after(reward, value)[s])
        return np.argmax(self.after(reward, value), axis=1)

    def after(self, reward, value):
        """Of every action, [s, a], where states are worth ``value`` and the end nothing."""
        return reward + GAMMA * value[self.following]

    def value(self, policy, reward):
        """Of a policy, [s, a] of probabilities, and of the end."""
        value = np.zeros(STATES + 1)
        for s in reversed(range(STATES)):
            value[s] = policy[s] @ self.after(reward, value)[s]
        return value

    def corrected(self, policy):
        """What is paid once the critics know the policy: V_I values what V_I corrects."""
        task_values, own, paid = self.value(policy, self.reward), self.value(policy, self.bonus), self.bonus
        for _ in range(300):
            paid = self.bonus + self.correction(task_values, own)
            own = 0.5 * (own + self.value(policy, paid))
        np.testing.assert_allclose(own, self.value(policy, paid), atol=EPSILON)
        return paid

    def correction(self, task_values, own):
        def wide(values):
            return jnp.asarray(np.repeat(values[:-1, None], ACTIONS, axis=1), jnp.float32)

        def table(values):
            return jnp.asarray(values, jnp.float32)

        discount = jnp.full((STATES, ACTIONS), GAMMA)
        heads = (wide(task_values), table(task_values[self.following]), wide(own), table(own[self.following]))
        bonus, bare = Signal(table(self.bonus), discount), Signal(table(self.reward), discount)
        return np.asarray(correction(bonus, bare, HeadValues(*heads), EPSILON), np.float64)


@pytest.mark.parametrize("seed", range(8))
def test_a_harmful_bonus_leaves_the_best_policy_the_best_where_adding_it_does_not(seed):
    world = World(seed)
    best = world.best(world.reward)
    assert np.any(world.best(world.reward + world.bonus) != best)
    paid = world.corrected(np.eye(ACTIONS)[best])
    np.testing.assert_array_equal(world.best(world.reward + paid), best)


@pytest.mark.parametrize("seed", range(3))
def test_no_policy_prefers_what_the_task_thinks_worse_than_average(seed):
    """Of any policy, the sum of both advantages has the sign of the task's."""
    world = World(seed)
    policy = np.random.default_rng(seed).dirichlet(np.ones(ACTIONS), size=STATES)
    task_values, paid = world.value(policy, world.reward), world.corrected(policy)
    own = world.value(policy, paid)
    of_task = world.after(world.reward, task_values) - task_values[:-1, None]
    of_both = of_task + world.after(paid, own) - own[:-1, None]
    assert np.all(of_both[of_task < 0] < EPSILON) and np.all(of_both[of_task > 0] > -EPSILON)


def test_a_bonus_that_turns_nothing_around_is_paid_as_it_is():
    world = World(0)
    world.bonus = 0.3 * world.reward
    policy = np.eye(ACTIONS)[world.best(world.reward)]
    np.testing.assert_allclose(world.corrected(policy), world.bonus, atol=2 * EPSILON)


@pytest.mark.parametrize(("seen", "share"), [(1, 0.25), (3, 0.75), (9, 1.0)])
def test_the_cut_rises_over_the_ramp_and_is_of_the_streams_own_head(random_rollout, seen, share):
    rollout = random_rollout(SPEC)
    streams = Stream(task(), 1.0), Stream(adops(epsilon=EPSILON, ramp=4.0), 1.0), Stream(beyond_task(add()), 1.0)
    heads = jax.random.normal(jax.random.key(0), (2, *rollout.steps.reward.shape, 3))
    states = (), jnp.asarray(float(seen)), ()
    bare, cut, plain = signals(streams, ({}, {}, {}), states, rollout, GAMMA, Values(*heads))
    own = HeadValues(heads[0, ..., 0], heads[1, ..., 0], heads[0, ..., 1], heads[1, ..., 1])
    np.testing.assert_allclose(
        cut.reward - plain.reward, share * correction(plain, bare, own, EPSILON), rtol=1e-5, atol=1e-6
    )
    told = correction_share(streams, ({}, {}, {}), states, rollout, [bare, cut, plain])
    np.testing.assert_allclose(told[CORRECTION_SHARE], np.mean(np.asarray(cut.reward != plain.reward)))
    uncorrected = signals(streams, ({}, {}, {}), states, rollout, GAMMA)
    np.testing.assert_array_equal(uncorrected[1].reward, plain.reward)


def test_without_a_ramp_all_is_cut_from_the_first_rollout_on(random_rollout):
    rollout, transform = random_rollout(SPEC), adops(epsilon=EPSILON, ramp=0.0)
    phi, state = transform.init(jax.random.key(0))
    bare = Signal(rollout.steps.reward, jnp.full_like(rollout.steps.reward, GAMMA))
    heads = HeadValues(*jax.random.normal(jax.random.key(1), (4, *rollout.steps.reward.shape)))
    first = transform.observe(phi, state, rollout, bare)
    signal = transform.apply(phi, first, rollout, bare)
    expected = signal.reward + correction(signal, bare, heads, EPSILON)
    np.testing.assert_allclose(transform.corrected(phi, first, signal, bare, heads).reward, expected, rtol=1e-6)
