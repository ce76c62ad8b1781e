"""Streams: one signal, one critic head and one advantage each; the bare task is never touched."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain import make_weights

from llmrl.bilevel import trees
from llmrl.learner.arms import relative_to
from llmrl.learner.streams import (
    Values,
    advice_steps,
    blended,
    deviations,
    scaling,
    signals,
    stream_advantage,
    stream_advantages,
    value_rollout,
)
from llmrl.nets import make_critic
from llmrl.ops.returns import generalized_advantage
from llmrl.rewards import add, task, task_signal
from llmrl.trust.blend import MixtureState, mixture
from llmrl.trust.limits import no_limits
from llmrl.types import Discrete, EnvSpec, Signal, Stream

SPEC = EnvSpec("none", (3,), Discrete(2), 10, ("first", "second"))
STREAMS = (
    Stream(task(), 0.25),
    Stream(add(0.5), 2.0),
    Stream(mixture(SPEC, make_weights(SPEC, network=False, bound=None)), -1.0),
)
PHIS = ({}, {}, {"scalar": jnp.asarray([0.3, -0.7], jnp.float32)})
STATES = ((), (), MixtureState(no_limits(2).init(), None))
CRITIC = make_critic(SPEC, (5,), 3)
# As made, every value is 0, whatever the head.
PARAMS = trees.normal_like(jax.random.key(1), CRITIC.init(jax.random.key(0)))


@pytest.fixture(scope="module")
def rollout(random_rollout):
    return random_rollout(SPEC)


@pytest.fixture(scope="module")
def values(rollout):
    return value_rollout(CRITIC, PARAMS, rollout)


def test_values_are_the_critics_and_nobody_differentiates_them(rollout, values):
    np.testing.assert_allclose(values.now, CRITIC.value(PARAMS, rollout.steps.obs), rtol=1e-5)
    np.testing.assert_allclose(values.next, CRITIC.value(PARAMS, rollout.steps.next_obs), rtol=1e-5)
    assert values.now.shape == (6, 4, 3)
    slope = jax.grad(lambda p: jnp.sum(value_rollout(CRITIC, p, rollout).now))(PARAMS)
    assert all(jnp.all(x == 0) for x in jax.tree.leaves(slope))


def test_signals_are_what_each_transform_makes_of_the_task(rollout):
    bare, added, mixed = signals(STREAMS, PHIS, STATES, rollout, 0.9)
    aux = np.asarray(rollout.steps.aux)
    np.testing.assert_array_equal(bare.reward, rollout.steps.reward)
    np.testing.assert_allclose(added.reward, rollout.steps.reward + 0.5 * aux.sum(-1), rtol=1e-5)
    np.testing.assert_allclose(mixed.reward, rollout.steps.reward + aux @ [0.3, -0.7], rtol=1e-4, atol=1e-6)
    for signal in (bare, added, mixed):
        np.testing.assert_allclose(signal.discount, 0.9 * ~np.asarray(rollout.steps.terminated))


def test_a_signal_is_corrected_by_the_tasks_head_and_its_own(rollout, values):
    """Where the critics have not valued the rollout, it is left as it is."""

    def corrected(phi, state, signal, bare, heads):
        return Signal(heads.task + 2 * heads.next_task + 3 * heads.own + 5 * heads.next_own, bare.discount)

    streams = (Stream(task(), 1.0), Stream(add(0.5), 1.0), Stream(add(0.5)._replace(corrected=corrected), 1.0))
    nothing = ({}, {}, {}), ((), (), ())
    _, plain, found = signals(streams, *nothing, rollout, 0.9, values)
    now, after = values
    expected = now[..., 0] + 2 * after[..., 0] + 3 * now[..., 2] + 5 * after[..., 2]
    np.testing.assert_allclose(found.reward, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(signals(streams, *nothing, rollout, 0.9)[2].reward, plain.reward)


def test_an_advantage_is_scaled_to_the_size_that_its_stream_asks_for_and_no_gradient_sees_it(rollout):
    """In units of the task's; of a task that has paid nothing any will do, and of a stream that says nothing none."""
    streams = (Stream(task(), 1.0), Stream(add(1.0), 1.0, size=lambda phi, state, rollout: phi * state))

    def factors(phi, unit):
        return scaling(streams, ({}, phi), ((), jnp.asarray(3.0)), rollout, jnp.asarray(unit))

    for unit, expected in (([4.0, 0.5], 2.0 * 3.0 * 4.0 / 0.5), ([0.0, 0.5], 2.0 * 3.0 / 0.5), ([4.0, 0.0], 0.0)):
        np.testing.assert_allclose(factors(jnp.asarray(2.0), unit), [1.0, expected], rtol=1e-6)
    assert float(jax.grad(lambda phi: jnp.sum(factors(phi, [4.0, 0.5])))(2.0)) == 0.0


def test_every_stream_has_its_own_advantage_by_its_own_head(rollout, values):
    steps, all_signals = rollout.steps, signals(STREAMS, PHIS, STATES, rollout, 0.9)
    found = stream_advantages(all_signals, values, rollout, 0.7)
    assert found.shape == (6, 4, 3)
    for head, signal in enumerate(all_signals):
        ended = steps.terminated | steps.truncated
        expected = generalized_advantage(*signal, values.now[..., head], values.next[..., head], ended, 0.7)
        np.testing.assert_array_equal(found[..., head], expected)


def test_other_heads_and_other_parameters_do_not_touch_the_task(rollout, values):
    def task_advantage(phis, other_heads):
        changed = Values(values.now.at[..., 1:].add(other_heads), values.next)
        signal = signals(STREAMS, phis, STATES, rollout, 0.9)[0]
        return stream_advantage(signal, changed, 0, rollout, 0.7)

    moved = ({}, {}, {"scalar": jnp.asarray([5.0, 5.0], jnp.float32)})
    np.testing.assert_array_equal(task_advantage(PHIS, 0.0), task_advantage(moved, 3.0))


def test_blended_is_the_weighted_sum(rollout, values):
    advantages = stream_advantages(signals(STREAMS, PHIS, STATES, rollout, 0.9), values, rollout, 0.7)
    np.testing.assert_allclose(blended(advantages, STREAMS), np.asarray(advantages) @ [0.25, 2.0, -1.0], rtol=1e-4)


def test_an_advantage_learns_of_phi_as_far_as_lambda_reaches(rollout, values):
    """d A_t / d w_m is the (gamma lambda)-discounted sum of source m: values are held constant."""

    def mixed_advantage(scalar):
        phis = ({}, {}, {"scalar": scalar})
        return stream_advantages(signals(STREAMS, phis, STATES, rollout, 0.9), values, rollout, 0.7)[..., 2]

    slope = jax.jacobian(mixed_advantage)(PHIS[2]["scalar"])
    zero, ended = jnp.zeros((6, 4)), rollout.steps.terminated | rollout.steps.truncated
    for source in range(2):
        paid = rollout.steps.aux[..., source]
        expected = generalized_advantage(paid, task_signal(rollout, 0.9).discount, zero, zero, ended, 0.7)
        np.testing.assert_allclose(slope[..., source], expected, rtol=1e-4, atol=1e-6)


def test_a_signal_that_termination_does_not_end_goes_on_with_the_fresh_episode(rollout, values):
    """As if the first observation after the reset were the one after the step, and nothing had ended."""
    steps = rollout.steps._replace(truncated=jnp.zeros((6, 4), bool))
    assert np.any(steps.terminated[:-1])
    lasting = Signal(steps.reward, jnp.full((6, 4), 0.9))
    found = stream_advantage(lasting, values, 1, rollout._replace(steps=steps), 0.7)
    now, after = values.now[..., 1], values.next[..., 1]
    fresh = jnp.where(steps.terminated, jnp.concatenate([now[1:], after[-1:]]), after)
    expected = generalized_advantage(*lasting, now, fresh, jnp.zeros((6, 4), bool), 0.7)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    ending = task_signal(rollout._replace(steps=steps), 0.9)
    assert not np.allclose(found, stream_advantage(ending, values, 1, rollout._replace(steps=steps), 0.7))


@pytest.mark.parametrize("arm", [0, 1])
def test_a_policy_learns_from_its_own_steps_alone(rollout, values, arm):
    """As if there were no others; the deviation is that of its steps, about the mean that they leave on all of them."""
    acted = jnp.broadcast_to(jnp.asarray([0, 1, 1, 0]), (6, 4))
    seen = relative_to(rollout._replace(arm=acted), arm)
    found = stream_advantages(signals(STREAMS, PHIS, STATES, seen, 0.9), values, seen, 0.7)
    alone = stream_advantages(signals(STREAMS, PHIS, STATES, rollout, 0.9), values, rollout, 0.7)
    own = np.asarray(acted == arm)
    np.testing.assert_array_equal(found[own], alone[own])
    assert not np.any(found[~own])
    centred = jnp.where(own[..., None], alone - jnp.mean(alone[own], axis=0), 0.0)
    np.testing.assert_allclose(deviations(centred, seen), np.std(alone[own], axis=0), rtol=1e-4)
    np.testing.assert_allclose(deviations(alone, rollout), np.std(alone, axis=(0, 1)), rtol=1e-5)


def test_advice_is_no_part_of_the_blend():
    first, second = (Stream(add(1.0), 2.0, lambda phi, state: (phi * state, 0.5 * phi)) for _ in range(2))
    advantages = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4, 5)), jnp.float32)
    streams, states = (*STREAMS, first, second), (*STATES, 1.0, 0.5)
    np.testing.assert_array_equal(blended(advantages, streams), blended(advantages[..., :3], STREAMS))
    assert advice_steps(advantages, STREAMS, PHIS, STATES) is None
    for shares, expected in (
        ((0.8, 0.4), (2.0 * advantages[..., 3] + 2.0 * advantages[..., 4]) / 0.8),
        ((0.2, 0.8), (2.0 * advantages[..., 3] + 2.0 * advantages[..., 4]) / 0.4),
        ((0.0, 0.8), 2.0 * advantages[..., 4] / 0.4),
        ((0.8, 0.0), 2.0 * advantages[..., 3] / 0.8),
        ((0.0, 0.0), jnp.zeros((6, 4))),
    ):
        advantage, share, left = advice_steps(advantages, streams, (*PHIS, *map(jnp.asarray, shares)), states)
        np.testing.assert_allclose(advantage, expected, rtol=1e-5)
        np.testing.assert_allclose(share, max(shares[0], 0.5 * shares[1]), rtol=1e-6)
        np.testing.assert_allclose(left, 1.0 - 0.5 * max(shares), rtol=1e-6)


@pytest.mark.parametrize("share", [0.05, 0.4, 1.0])
def test_how_far_it_is_followed_does_not_change_what_is_followed(rollout, values, share):
    """A stream that pays a share of its words, valued rightly, has the advantage of one that pays them in full."""

    def found(paid):
        streams = (Stream(task(), 1.0), Stream(add(paid), 1.0, lambda phi, state: (jnp.asarray(paid), jnp.zeros(()))))
        both = ({}, {}), ((), ())
        heads = Values(*(jnp.stack([v[..., 0], paid * v[..., 1]], axis=-1) for v in values))
        # What add pays includes the task; here only what it adds is of interest.
        every = [
            signal._replace(reward=signal.reward - i * rollout.steps.reward)
            for i, signal in enumerate(signals(streams, *both, rollout, 0.9))
        ]
        return advice_steps(stream_advantages(every, heads, rollout, 0.7), streams, *both)

    np.testing.assert_allclose(found(share).advantage, found(1.0).advantage, rtol=1e-3, atol=1e-4)
    assert found(share).share == np.float32(share)
