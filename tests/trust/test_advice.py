"""Advice in a sparse task: when a source is followed, for how long, and that its rewards cannot be collected."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain import make_weights

from llmrl.ops.returns import generalized_advantage
from llmrl.rewards import add, beyond_task, task_signal
from llmrl.trust.advice import FREQUENT_SHARE, KEPT_DISCOUNT, advice_rule, advice_stream
from llmrl.trust.blend import MixtureState, mixture
from llmrl.trust.evidence import Significance
from llmrl.trust.limits import no_limits
from llmrl.trust.task_statistics import WithTask, no_task_statistics, observed, reward_events
from llmrl.types import Discrete, EnvSpec

T, N, M = 8, 2, 2
SPEC = EnvSpec("none", (2,), Discrete(2), 50, ("first", "second"))
SILENT = 3  # rollouts
PATIENCE = float(SILENT * T * N)


@pytest.fixture(scope="module")
def paying(random_rollout):
    """A rollout whose task pays the given numbers, [] or [t, n]."""

    def make(reward, terminated=False):
        return random_rollout(
            SPEC,
            T,
            N,
            0,
            reward=np.asarray(reward + np.zeros((T, N)), np.float32),
            terminated=np.zeros((T, N), bool) | terminated,
        )

    return make


def rule_of(**settings):
    usual = {"largest": 1.0, "patience": PATIENCE, "decay": 0.02, "rarity": 0.005, "events": 8.0, "fade": 0.0}
    return advice_rule(M, **(usual | settings))


def followed(rollouts, evidence=0.0, balance=0.0, judged=True, **settings):
    """How far the first source is followed after each rollout, and the last signal."""
    rule = rule_of(**settings)
    stream = advice_stream(rule, 1, 0, "first")
    transform, task, advised = stream.transform, no_task_statistics(), rule.init()
    known = Significance(advice=jnp.asarray([evidence, 0.0]), balance=jnp.full(M, float(balance)))
    known = known if judged else Significance()
    shares, signal = [], None
    for rollout in rollouts:
        bare, task = task_signal(rollout, 0.9), observed(task, rollout)
        advised = rule.observe(advised, task, rollout)
        state = WithTask(MixtureState(no_limits(M).init(), advice=advised, significance=known), task)
        signal = transform.apply({}, state, rollout, bare)
        shares.append(float(transform.report({}, state, rollout)["advice_share/first"]))
        np.testing.assert_allclose(signal.reward, shares[-1] * rollout.steps.aux[..., 0], rtol=1e-5, atol=1e-6)
        length, taken = stream.advice({}, state)
        np.testing.assert_allclose(length, shares[-1], rtol=1e-6)
        # The task's own steps are noise before its first reward event, and whole from then on.
        np.testing.assert_allclose(taken, shares[-1] if task.event_count == 0 else 0.0, rtol=1e-6)
    return np.array(shares), signal


@pytest.mark.parametrize("constant", [0.0, -3.0])
def test_while_the_task_has_no_reward_event_a_source_is_followed_for_a_time(paying, constant):
    """A constant is no event; patience comes first, the setting is the largest share, and it falls."""
    shares, _ = followed([paying(constant)] * 40, largest=0.8)
    np.testing.assert_array_equal(shares[:SILENT], 0.0)
    assert 0.7 < shares[SILENT] <= 0.8
    assert np.all(np.diff(shares[SILENT:]) < 0) and shares[-1] < 0.5


def one_event():
    said = np.zeros((T, N))
    said[2, 1] = 1.0
    return said


@pytest.mark.parametrize("when", [0, SILENT + 2])
@pytest.mark.parametrize("judged", [True, False])
def test_without_evidence_the_tasks_reward_events_end_it(paying, when, judged):
    silent = [paying(0.0)] * 12
    shares, _ = followed([*silent[:when], paying(one_event()), *silent], judged=judged, events=1.0)
    np.testing.assert_array_equal(shares[when:], 0.0)


def test_each_of_the_first_reward_events_ends_a_part_of_it(paying):
    silent = [paying(0.0)] * 3
    told = [rollout for _ in range(5) for rollout in (paying(one_event()), *silent)]
    shares, _ = followed([*silent, *silent, *told], events=4.0, decay=0.0)
    np.testing.assert_allclose(shares, np.repeat([0, 1, 0.75, 0.5, 0.25, 0, 0], [3, 3, 4, 4, 4, 4, 4]))


@pytest.mark.parametrize("cut", [1, 2, 4])
def test_patience_is_counted_in_steps_however_they_are_cut_into_rollouts(paying, cut):
    """Steps are seen by so many rollouts; the first is followed where more than the patience has been seen."""
    silent = paying(0.0)
    steps = silent.steps._replace(
        **{name: getattr(silent.steps, name)[: T // cut] for name in ("reward", "aux", "terminated", "truncated")}
    )
    shares, _ = followed([silent._replace(steps=steps)] * (SILENT * cut + 1), patience=PATIENCE, decay=0.5)
    np.testing.assert_array_equal(shares[:-1], 0.0)
    np.testing.assert_allclose(shares[-1], 0.5)


@pytest.mark.parametrize(("fade", "balance", "power"), [(0, 0, 0), (1, 0, 1), (4, 0, 4), (4, 0.25, 2), (4, 0.6, 0)])
def test_advice_fades_with_the_share_of_episodes_that_have_a_reward_event(paying, fade, balance, power):
    """Two episodes end in each rollout, one of them with a reward event; a good source does not fade."""
    rollout = paying(one_event())
    ended = np.zeros((T, N), bool)
    ended[T - 1] = True
    rollout = rollout._replace(steps=rollout.steps._replace(truncated=jnp.asarray(ended)))
    shares, _ = followed([rollout] * 60, evidence=1.0, balance=balance, rarity=0.5, events=1.0, fade=float(fade))
    np.testing.assert_allclose(shares[-1], 0.5**power, rtol=0.02)
    assert np.all(np.diff(shares) <= 0)


@pytest.mark.parametrize(("fade", "balance", "followed_at_last"), [(4.0, 0.9, 1.0), (4.0, 0.2, 0.0), (0.0, 0.2, 1.0)])
def test_on_a_solved_task_only_a_good_source_is_followed(paying, fade, balance, followed_at_last):
    rollout = paying(one_event())
    ended = np.zeros((T, N), bool)
    ended[T - 1, 0] = True
    rollout = rollout._replace(steps=rollout.steps._replace(truncated=jnp.asarray(ended)))
    shares, _ = followed([rollout] * 80, evidence=1.0, balance=balance, rarity=0.5, events=1.0, fade=fade)
    np.testing.assert_allclose(shares[-1], followed_at_last, atol=2e-3)


def test_in_a_sparse_task_a_source_is_followed_as_far_as_its_evidence_goes(paying):
    rarely = [paying(one_event()), *[paying(0.0)] * 6]
    shares, _ = followed(rarely, evidence=0.7, largest=0.5, rarity=0.5, events=1.0)
    np.testing.assert_allclose(shares, 0.35)
    shares, _ = followed(rarely, evidence=0.7, largest=0.5, rarity=0.5, events=2.0, decay=0.0)
    np.testing.assert_allclose(shares, 0.35)  # before it could be half of what patience gives


@pytest.mark.parametrize(("balance", "very_good"), [(0.0, 0.0), (0.4, 0.0), (0.45, 0.5), (0.5, 1.0), (0.9, 1.0)])
def test_a_very_good_source_is_followed_from_the_tasks_first_reward_event_on(paying, balance, very_good):
    """The more events, the less that may be luck; what patience gives comes later, and no event gives nothing."""
    told = [paying(0.0), paying(one_event()), paying(one_event()), *[paying(0.0)] * 2]
    shares, _ = followed(told, evidence=0.0, balance=balance, rarity=0.5, events=4.0, patience=PATIENCE, decay=0.0)
    later = max(0.5, very_good * 2 / 3)
    np.testing.assert_allclose(shares, [0.0, very_good / 2, very_good * 2 / 3, later, later], rtol=1e-5)


def test_many_reward_events_under_a_good_source_do_not_make_a_task_dense(paying):
    """Eight events come first, and then one on every step, still within the time of patience."""
    often = [paying(np.arange(T * N).reshape(T, N))] * 4
    sparse, _ = followed([*[paying(one_event())] * 8, *often], evidence=1.0, rarity=0.1, patience=20.0 * T * N)
    np.testing.assert_array_equal(sparse, 1.0)
    dense, _ = followed([*[paying(one_event())] * 7, *often], evidence=1.0, rarity=0.1, patience=20.0 * T * N)
    np.testing.assert_array_equal(dense[7:], 0.0)


@pytest.mark.parametrize("step", [(0, 0), (3, 1), (T - 1, N - 1)])
@pytest.mark.parametrize("usual", [0.0, -1.0])
def test_a_rare_event_is_one_event_wherever_it_falls(paying, step, usual):
    said = np.full((T, N), usual)
    said[step] = 1.0
    assert reward_events(paying(said)) == 1
    assert reward_events(paying(usual)) == 0


def test_whether_a_task_is_sparse_is_decided_during_patience(paying):
    rare, often = [paying(0.0)] * 2 + [paying(one_event())], [paying(np.arange(T * N).reshape(T, N))] * 20
    dense, _ = followed([*often, *rare * 9], evidence=1.0, rarity=0.5)
    sparse, _ = followed([*rare, *often], evidence=1.0, rarity=0.5)
    np.testing.assert_array_equal(dense, 0.0)
    np.testing.assert_array_equal(sparse[len(rare) - 1 :], 1.0)


def test_the_end_of_a_constant_pay_is_an_event_and_the_end_of_none_is_not(paying):
    ended = np.zeros((T, N), bool)
    ended[4, 0] = True
    told, _ = followed([paying(1.0, ended)] * 8)
    untold, _ = followed([paying(0.0, ended)] * 8)
    assert told.max() == 0 and untold.max() > 0


def gained(paying, said, balance=0.0):
    """Advantages of the first source's stream on rollouts with these values; the critic knows nothing, lambda is 1;
    divided by how far it is followed."""
    rollout = paying(0.0)
    aux = jnp.asarray(np.stack([said, np.ones_like(said)], axis=-1), jnp.float32)
    rollout = rollout._replace(steps=rollout.steps._replace(aux=aux, truncated=jnp.zeros((T, N), bool)))
    shares, signal = followed([rollout] * (SILENT + 1), evidence=0.0, balance=balance)
    zeros, ended = jnp.zeros((T, N)), jnp.zeros((T, N), bool)
    return generalized_advantage(signal.reward, signal.discount, zeros, zeros, ended, 1.0) / shares[-1]


def test_an_event_of_a_frequent_source_counts_for_the_steps_since_the_last_one_and_cannot_be_collected(paying):
    said = np.zeros((T, N), np.float32)
    said[[1, 2, 5, 6], [0, 0, 1, 1]] = 0.5, 2.0, 3.0, 1.0
    expected = np.zeros((T, N))
    expected[:3, 0] = 0.9 * 0.5, 0.5, 2.0
    expected[:6, 1] = 3.0 * 0.9 ** np.arange(5, -1, -1)
    expected[6, 1] = 1.0
    for balance in (0.0, 0.9):
        np.testing.assert_allclose(gained(paying, said, balance), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("balance", "kept"), [(0.0, KEPT_DISCOUNT), (0.4, KEPT_DISCOUNT), (0.46, 0.6), (0.5, 1.0), (0.9, 1.0)]
)
def test_later_events_of_a_rare_source_count_the_more_the_better_the_source(paying, balance, kept):
    said = np.zeros((T, N), np.float32)
    said[[1, 2, 5], [0, 0, 1]] = 0.5, 2.0, 3.0
    expected, then = np.zeros((T, N)), np.zeros(N)
    for t in reversed(range(T)):
        then = expected[t] = said[t] + 0.9 * np.where(said[t] != 0, kept, 1.0) * then
    np.testing.assert_allclose(gained(paying, said, balance), expected, rtol=1e-5, atol=1e-6)
    assert expected[1, 0] > said[1, 0] + 0.5


def test_a_source_that_was_frequent_once_counts_as_that_for_a_while(paying):
    rollout, without_events, rule = paying(0.0), 60, rule_of()
    for first, frequent in ((np.ones((T, N, M)), True), (np.zeros((T, N, M)), False)):
        state, task = rule.init(), no_task_statistics()
        for values in (first, *[np.zeros((T, N, M))] * without_events):
            aux = jnp.asarray(values, jnp.float32)
            state = rule.observe(state, task, rollout._replace(steps=rollout.steps._replace(aux=aux)))
        np.testing.assert_array_equal(state.event_share > FREQUENT_SHARE, frequent)


def test_what_a_transform_adds_to_the_task_is_what_is_left_without_it(paying):
    rollout = paying(2.0)
    bare = task_signal(rollout, 0.9)
    whole, rest = (transform.apply({}, (), rollout, bare) for transform in (add(0.5), beyond_task(add(0.5))))
    np.testing.assert_allclose(rest.reward + bare.reward, whole.reward, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(rest.discount, whole.discount)


@pytest.mark.parametrize(("evidence", "largest"), [(0.0, 1.0), (0.7, 0.3), (1.0, 0.0)])
@pytest.mark.parametrize("learned", [5.0, 0.2, -0.4])
def test_advice_and_learned_weights_together_give_a_source_no_more_than_its_author_asked(
    paying, evidence, largest, learned
):
    blend = mixture(SPEC, make_weights(SPEC, network=False, bound=None), no_limits(M), rule_of(rarity=0.5, fade=4.0))
    phi, state = blend.init(jax.random.key(0))
    rollout = paying(one_event())
    phi = phi | {"scalar": jnp.full(M, learned)}
    state = state._replace(significance=Significance(advice=jnp.full(M, evidence), balance=jnp.zeros(M)))
    task = observed(no_task_statistics(), rollout)
    state = blend.observe(phi, WithTask(state, task), rollout, task_signal(rollout, 0.9))
    weight = blend.weights(phi, WithTask(state, task), rollout).weight
    np.testing.assert_allclose(weight, min(learned, largest), rtol=1e-5, atol=1e-6)


def test_streams_of_advice_go_by_the_state_of_the_blend():
    """There is one copy of what is known and noted, however many sources are followed."""
    for stream in (advice_stream(rule_of(), 1, m) for m in range(M)):
        assert stream.of == 1 and stream.transform.init(jax.random.key(0)) == ({}, ())
