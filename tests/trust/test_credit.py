"""Credit for single actions: neither a source's size nor its offset nor its repetition counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain import make_weights

from llmrl.envs import make
from llmrl.learner.streams import Values, blended, deviations, scaling, signals, stream_advantages
from llmrl.rewards import task, task_signal
from llmrl.trust.blend import LEAST_SHARE, significance_in, with_significance
from llmrl.trust.credit import credit_stream
from llmrl.trust.evidence import Significance
from llmrl.types import Stream

SPEC = make("cartpole", ("harmful", "random")).spec
KEY = jax.random.key(0)


def _advantage(rollout, follow=1.0, weights=None):
    """What the policy follows after one rollout, with a critic that knows nothing yet."""
    streams = (Stream(task(), 1.0), credit_stream(SPEC, follow, weights))
    started = [stream.transform.init(KEY) for stream in streams]
    bare = signals(streams[:1], [started[0][0]], [started[0][1]], rollout, 0.9)[0]
    states = [s.transform.observe(phi, state, rollout, bare) for s, (phi, state) in zip(streams, started, strict=True)]
    paid = signals(streams, [phi for phi, _ in started], states, rollout, 0.9)
    zeros = jnp.zeros((*rollout.steps.reward.shape, 2))
    advantages = stream_advantages(paid, Values(zeros, zeros), rollout, 0.95)
    factors = scaling(streams, [phi for phi, _ in started], states, rollout, deviations(advantages, rollout))
    return blended(advantages, streams, factors), advantages


@pytest.mark.parametrize(("scale", "offset"), [(1e-6, 0.0), (1e6, 0.0), (-3.0, 0.0), (1.0, 1.0), (100.0, -500.0)])
def test_the_size_and_offset_of_a_source_do_not_matter(random_rollout, scale, offset):
    rollout = random_rollout(SPEC, 12, 6)
    changed = rollout._replace(steps=rollout.steps._replace(aux=rollout.steps.aux * abs(scale) + offset))
    one, other = _advantage(rollout)[0], _advantage(changed)[0]
    np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-3 * float(jnp.std(one)))


def test_source_and_task_count_alike(random_rollout):
    rollout = random_rollout(SPEC, 12, 6)
    _, advantages = _advantage(rollout)
    total = _advantage(rollout)[0] - advantages[..., 0]
    assert float(jnp.std(total)) == pytest.approx(float(jnp.std(advantages[..., 0])), rel=1e-4)


def test_means_and_deviations_are_those_of_many_rollouts(random_rollout):
    """The first rollout's at once; then a mean moves by 1/500 a rollout, and the largest deviation fades as slowly."""
    first = random_rollout(SPEC, 12, 6)
    transform = credit_stream(SPEC, 1.0).transform
    phi, state = transform.init(KEY)
    for scale, offset in ((1.0, 0.0), (0.1, 3.0), (0.1, 3.0), (9.0, 0.0)):
        aux, before = scale * first.steps.aux + offset, state
        rollout = first._replace(steps=first.steps._replace(aux=aux))
        state = transform.observe(phi, state, rollout, task_signal(rollout, 0.9))
        mean, deviation = np.mean(aux, axis=(0, 1)), np.std(aux, axis=(0, 1))
        if before.deviation[0] > 0:
            mean = 0.998 * before.mean + 0.002 * mean
        np.testing.assert_allclose(state.mean, mean, rtol=1e-4)
        np.testing.assert_allclose(state.deviation, np.maximum(0.998 * before.deviation, deviation), rtol=1e-4)
    np.testing.assert_allclose(state.deviation, 9.0 * np.std(first.steps.aux, axis=(0, 1)), rtol=1e-4)


@pytest.mark.parametrize("weight", [1.0, 0.3, -0.5, 2.0])
def test_a_source_of_less_weight_moves_the_policy_less_and_none_more_than_the_task(random_rollout, weight):
    """Of the sum, it has the task's deviation times its weight's size, at most once. The other source says nothing."""
    rollout = random_rollout(SPEC, 12, 6)
    rollout = rollout._replace(steps=rollout.steps._replace(aux=rollout.steps.aux.at[..., 1].set(0.0)))
    weights = make_weights(SPEC, network=False, bound=None, initial=weight)
    (full, _), (total, advantages) = _advantage(rollout), _advantage(rollout, weights=weights)
    share, task = min(1.0, abs(weight)), advantages[..., 0]
    np.testing.assert_allclose(total - task, np.sign(weight) * share * (full - task), rtol=1e-3, atol=1e-4)


def test_what_is_paid_later_does_not_count_for_an_action(random_rollout):
    """A source's advantage is its own step's pay: changing all others leaves it, up to the rollout's mean and size."""
    rollout = random_rollout(SPEC, 12, 6)
    _, advantages = _advantage(rollout)
    aux = rollout.steps.aux
    expected = jnp.sum((aux - jnp.mean(aux, axis=(0, 1))) / jnp.std(aux, axis=(0, 1)), axis=-1)
    np.testing.assert_allclose(advantages[..., 1], expected, rtol=1e-4, atol=1e-5)


def test_a_policy_that_follows_nothing_has_the_tasks_advantage_alone(random_rollout):
    rollout = random_rollout(SPEC, 12, 6)
    total, advantages = _advantage(rollout, follow=0.0)
    np.testing.assert_array_equal(total, advantages[..., 0])
    assert not np.any(advantages[..., 1])


def test_in_a_task_that_has_paid_nothing_the_source_alone_is_followed(random_rollout):
    rollout = random_rollout(SPEC, 12, 6)
    rollout = rollout._replace(steps=rollout.steps._replace(reward=jnp.zeros_like(rollout.steps.reward)))
    total, advantages = _advantage(rollout)
    np.testing.assert_allclose(total * jnp.std(advantages[..., 1]), advantages[..., 1], rtol=1e-4, atol=1e-5)


def test_learned_weights_count_as_far_as_they_are_significant(random_rollout):
    """Once noted, significances stay what the outer level says."""
    rollout = random_rollout(SPEC, 12, 6)
    weights = make_weights(SPEC, network=False, bound=None, initial=0.5)
    transform = credit_stream(SPEC, 1.0, weights, judged=True).transform
    phi, state = transform.init(KEY)
    np.testing.assert_array_equal(significance_in((state,)).scalar, 0.0)
    for known, expected in ((0.0, LEAST_SHARE), (0.6, 0.6), (1.0, 1.0)):
        (state,) = with_significance((state,), Significance(scalar=jnp.full(2, known)))
        state = transform.observe(phi, state, rollout, task_signal(rollout, 0.9))
        weight, unit = transform.weights(phi, state, rollout)
        np.testing.assert_allclose(weight, jnp.broadcast_to(0.5 * expected * unit, weight.shape), rtol=1e-5)


def test_a_source_alone_is_followed_as_if_there_were_no_other(random_rollout):
    rollout = random_rollout(SPEC, 12, 6)
    silenced = rollout._replace(steps=rollout.steps._replace(aux=rollout.steps.aux.at[..., 1].set(0.0)))
    alone, expected = _advantage(rollout, jnp.array([1.0, 0.0]))[0], _advantage(silenced)[0]
    np.testing.assert_allclose(alone, expected, rtol=1e-4, atol=1e-4)


def test_of_two_sources_each_is_followed_as_far_as_is_said(random_rollout):
    rollout = random_rollout(SPEC, 12, 6)
    _, advantages = _advantage(rollout, jnp.array([2.0, 0.5]))
    aux = rollout.steps.aux
    said = (aux - jnp.mean(aux, axis=(0, 1))) / jnp.std(aux, axis=(0, 1))
    np.testing.assert_allclose(advantages[..., 1], said[..., 0] + 0.25 * said[..., 1], rtol=1e-4, atol=1e-5)


def test_sources_that_contradict_each_other_say_nothing(random_rollout):
    """What is left of them, a critic's error, is not made as large as the task."""
    rollout = random_rollout(SPEC, 12, 6)
    aux = rollout.steps.aux
    opposed = rollout._replace(steps=rollout.steps._replace(aux=jnp.stack([aux[..., 0], -aux[..., 0]], axis=-1)))
    total, advantages = _advantage(opposed)
    np.testing.assert_allclose(total, advantages[..., 0], atol=1e-4)
