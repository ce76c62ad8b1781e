"""How far a source moves the policy: a share, with a sign, that does not ask in which of two ways the source acts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain import make_weights

from llmrl.learner.influence import influence, influence_metrics
from llmrl.learner.streams import Values, advice_steps, signals, stream_advantages
from llmrl.rewards import add, beyond_task, task
from llmrl.trust.advice import advice_rule, advice_stream
from llmrl.trust.blend import mixture
from llmrl.trust.limits import no_limits
from llmrl.trust.task_statistics import no_task_statistics
from llmrl.types import Discrete, EnvSpec, Stream

SPEC = EnvSpec("none", (3,), Discrete(2), 10, ("first", "second"))
TASK = Stream(task(), 1.0)


@pytest.fixture(scope="module")
def rollout(random_rollout):
    return random_rollout(SPEC)


def shares(rollout, streams, phis=None, states=None):
    """Influence and verdicts of each source, where the critics expect nothing."""
    phis, states = phis or tuple({} for _ in streams), states or tuple(() for _ in streams)
    every = signals(streams, phis, states, rollout, 0.9)
    nothing = jnp.zeros((*rollout.steps.reward.shape, len(streams)))
    advantages = stream_advantages(every, Values(nothing, nothing), rollout, 0.7)
    advice = advice_steps(advantages, streams, phis, states)
    found = influence(streams, phis, states, rollout, every, advantages, advice)
    return None if found is None else influence_metrics(found, rollout, SPEC.aux_names)


def of(told, kind="influence"):
    return np.array([told[f"{kind}/{name}"] for name in SPEC.aux_names])


def added(coefficient):
    return TASK, Stream(beyond_task(add(coefficient)), 1.0)


BLEND = mixture(SPEC, make_weights(SPEC, network=False, bound=None))


def weighted(rollout, *weights):
    phi, state = BLEND.init(jax.random.key(0))
    phi = phi | {"scalar": jnp.asarray(weights, jnp.float32)}
    return shares(rollout, (TASK, Stream(beyond_task(BLEND), 1.0)), ({}, phi), ((), state))


def silenced(rollout, column=None):
    """Without the task's words, or without those of a source."""
    steps = rollout.steps
    if column is None:
        return rollout._replace(steps=steps._replace(reward=jnp.zeros_like(steps.reward)))
    return rollout._replace(steps=steps._replace(aux=steps.aux.at[..., column].set(0.0)))


RULE = advice_rule(2, largest=0.5, patience=0.0, decay=0.02, rarity=0.005, events=8.0, fade=4.0)


def followed(rollout, *evidence):
    """With advice of both sources, after a reward event of the task where it has evidence of any."""
    weights = make_weights(SPEC, network=False, scalar=False, bound=None, offset=True)
    blend = mixture(SPEC, weights, no_limits(2), RULE, judged=True)
    streams = (TASK, Stream(beyond_task(blend), 1.0), *(advice_stream(RULE, 1, m) for m in range(2)))
    phi, state = blend.init(jax.random.key(0))
    state = state._replace(significance=state.significance._replace(advice=jnp.asarray(evidence, jnp.float32)))
    one, events = jnp.ones(()), jnp.asarray(1.0 if any(evidence) else 0.0)
    task_seen = no_task_statistics()._replace(event_count=events, rollouts=one, steps=one)
    return shares(rollout, streams, ({}, phi, {}, {}), (task_seen, state, (), ()))


def test_a_source_has_the_share_of_the_advantage_that_it_pays(rollout):
    told = shares(silenced(rollout, 1), added(0.5))
    streams, nothing = added(0.5), jnp.zeros((6, 4, 2))
    every = signals(streams, ({}, {}), ((), ()), silenced(rollout, 1), 0.9)
    own, paid = np.std(stream_advantages(every, Values(nothing, nothing), silenced(rollout, 1), 0.7), axis=(0, 1))
    np.testing.assert_allclose(of(told), [paid / (own + paid), 0.0], rtol=1e-3, atol=1e-4)


def test_sizes_sum_up_to_one_where_the_task_says_nothing_and_to_less_where_it_speaks(rollout):
    for weights in ((0.3, 0.7), (0.3, -0.7), (-0.01, 0.0)):
        alone, beside = (np.abs(of(weighted(each, *weights))).sum() for each in (silenced(rollout), rollout))
        assert alone == pytest.approx(1.0, rel=1e-4) and 0 < beside < 1.0


def test_the_sign_is_the_weights_and_no_weight_is_no_influence(rollout):
    plus, minus = of(weighted(rollout, 0.3, 0.0)), of(weighted(rollout, -0.3, 0.0))
    np.testing.assert_allclose(plus, -minus, rtol=1e-4)
    assert plus[0] > 0.0 == plus[1]
    np.testing.assert_array_equal(of(weighted(rollout, 0.0, 0.0)), 0.0)


def test_a_source_as_loud_as_its_weight_is_small_has_the_same_influence(rollout):
    aux = rollout.steps.aux * jnp.asarray([10.0, 1.0])
    louder = rollout._replace(steps=rollout.steps._replace(aux=aux))
    np.testing.assert_allclose(of(weighted(louder, 0.03, 0.3)), of(weighted(rollout, 0.3, 0.3)), rtol=1e-3)


def test_verdicts_go_by_influence(rollout):
    """Of the steps on which a source speaks; by a weight that is the same everywhere, all or none of them."""
    told = weighted(rollout, 0.5, -0.5)
    for kind, expected in (("used", [1.0, 0.0]), ("ignored", [0.0, 0.0]), ("turned", [0.0, 1.0])):
        np.testing.assert_allclose(of(told, f"trust_{kind}"), expected)
    mute = weighted(silenced(rollout, 1), 0.5, -0.5)  # a source that says nothing is none of the three
    assert all(of(mute, f"trust_{kind}")[1] == 0.0 for kind in ("used", "ignored", "turned"))
    np.testing.assert_allclose(of(weighted(rollout, 1e-4, 0.0), "trust_ignored"), 1.0)


def test_advice_counts_by_the_length_of_its_steps(rollout):
    """Adam makes its steps as long as it is told, whatever the advantage: half as long is a third of both."""
    told = followed(silenced(rollout, 1), 1.0, 0.0)
    np.testing.assert_allclose(of(told), [0.5 / 1.5, 0.0], rtol=1e-5, atol=1e-6)
    assert of(told, "trust_used")[0] == 1.0
    both = of(followed(rollout, 1.0, 1.0))
    assert np.all(both > 0) and both.sum() == pytest.approx(0.5 / 1.5, rel=1e-4)


def test_a_silent_task_shortens_its_own_steps(rollout):
    """Without a reward event the task's steps are noise and 1 - f long, and f of the policy's step is the sources'."""
    f = 0.5 * 0.98  # after a rollout of waiting
    assert of(followed(silenced(rollout), 0.0, 0.0)).sum() == pytest.approx(f, rel=1e-4)


def test_where_no_stream_has_weights_there_is_nothing_to_tell(rollout):
    assert shares(rollout, (TASK,)) is None
