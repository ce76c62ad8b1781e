"""Advice for a silent task: when it is followed, for how long, and that it cannot be collected."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmrl.ops.returns import generalized_advantage
from llmrl.rewards import add, beyond_task, task_signal
from llmrl.trust.advice import KEPT, TALKATIVE, advice, following
from llmrl.trust.blend import make_weights, mixture
from llmrl.trust.limits import no_trust
from llmrl.trust.task_voice import speaks, words
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


def followed(rollouts, evidence=None, balance=0.0, **settings):
    """How far the first source is followed after each rollout, and the last signal."""
    stream = advice(following(M, **({"patience": PATIENCE, "fade": 0.0} | settings)), 0, "first")
    transform = stream.transform
    phi, state = transform.init(jax.random.key(0))
    if evidence is not None:
        phi = {"evidence": {"advice": jnp.asarray([evidence, 0.0]), "balance": jnp.full(M, balance)}}
    shares, signal = [], None
    for rollout in rollouts:
        bare = task_signal(rollout, 0.9)
        state = transform.observe(state, phi, bare, rollout)
        signal = transform.apply(bare, phi, state, rollout)
        shares.append(float(transform.report(phi, state, rollout)["advice_share/first"]))
        np.testing.assert_allclose(signal.reward, shares[-1] * rollout.steps.aux[..., 0], rtol=1e-5, atol=1e-6)
        length, taken = stream.beside(phi, state)
        np.testing.assert_allclose(length, shares[-1], rtol=1e-6)
        # The task's own steps, which are noise while it has said nothing, are whole from its first word on.
        np.testing.assert_allclose(taken, shares[-1] if state.heard == 0 else 0.0, rtol=1e-6)
    return np.array(shares), signal


@pytest.mark.parametrize("constant", [0.0, -3.0])
def test_while_the_task_stays_silent_a_source_is_followed_for_a_time(paying, constant):
    """A constant is silence; exploring alone comes first, the prior is the most that is ever given, and it fades."""
    shares, _ = followed([paying(constant)] * 40, prior=0.8)
    np.testing.assert_array_equal(shares[:SILENT], 0.0)
    assert 0.7 < shares[SILENT] <= 0.8
    assert np.all(np.diff(shares[SILENT:]) < 0) and shares[-1] < 0.5


def spoken():
    said = np.zeros((T, N))
    said[2, 1] = 1.0
    return said


@pytest.mark.parametrize("when", [0, SILENT + 2])
@pytest.mark.parametrize("judged", [True, False])
def test_from_its_first_words_on_a_task_that_bears_nothing_out_ends_it(paying, when, judged):
    silent = [paying(0.0)] * 12
    shares, _ = followed([*silent[:when], paying(spoken()), *silent], judged=judged, enough=1.0)
    np.testing.assert_array_equal(shares[when:], 0.0)


def test_first_words_may_be_luck_and_each_ends_a_part_of_it(paying):
    silent = [paying(0.0)] * 3
    told = [rollout for _ in range(5) for rollout in (paying(spoken()), *silent)]
    shares, _ = followed([*silent, *silent, *told], enough=4.0, decay=0.0)
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
def test_the_more_episodes_a_task_speaks_in_the_less_advice_it_needs(paying, fade, balance, power):
    """Two episodes end in each rollout, and the task speaks in one of them; whose words bring good is still heard."""
    rollout = paying(spoken())
    ended = np.zeros((T, N), bool)
    ended[T - 1] = True
    rollout = rollout._replace(steps=rollout.steps._replace(truncated=jnp.asarray(ended)))
    shares, _ = followed([rollout] * 60, evidence=1.0, balance=balance, rarity=0.5, enough=1.0, fade=float(fade))
    np.testing.assert_allclose(shares[-1], 0.5**power, rtol=0.02)
    assert np.all(np.diff(shares) <= 0)


@pytest.mark.parametrize(("fade", "balance", "followed_at_last"), [(4.0, 0.9, 1.0), (4.0, 0.2, 0.0), (0.0, 0.2, 1.0)])
def test_on_a_solved_task_whoever_brings_good_is_followed_and_nobody_else(paying, fade, balance, followed_at_last):
    rollout = paying(spoken())
    ended = np.zeros((T, N), bool)
    ended[T - 1, 0] = True
    rollout = rollout._replace(steps=rollout.steps._replace(truncated=jnp.asarray(ended)))
    shares, _ = followed([rollout] * 80, evidence=1.0, balance=balance, rarity=0.5, enough=1.0, fade=fade)
    np.testing.assert_allclose(shares[-1], followed_at_last, atol=2e-3)


def test_in_a_sparse_task_a_source_is_followed_as_far_as_it_is_borne_out(paying):
    rarely = [paying(spoken()), *[paying(0.0)] * 6]
    shares, _ = followed(rarely, evidence=0.7, prior=0.5, rarity=0.5, enough=1.0)
    np.testing.assert_allclose(shares, 0.35)
    shares, _ = followed(rarely, evidence=0.7, prior=0.5, rarity=0.5, enough=2.0, decay=0.0)
    np.testing.assert_allclose(shares, 0.35)  # before it could silence say half of it


@pytest.mark.parametrize(("balance", "flawless"), [(0.0, 0.0), (0.4, 0.0), (0.45, 0.5), (0.5, 1.0), (0.9, 1.0)])
def test_nobody_goes_on_alone_whom_the_task_tells_that_hardly_anything_but_good_follows_a_source(
    paying, balance, flawless
):
    """The more the task has said, the less that may be luck; what silence gives comes after patience, and a task that
    has not spoken bears out nobody."""
    told = [paying(0.0), paying(spoken()), paying(spoken()), *[paying(0.0)] * 2]
    shares, _ = followed(told, evidence=0.0, balance=balance, rarity=0.5, enough=4.0, patience=PATIENCE, decay=0.0)
    later = max(0.5, flawless * 2 / 3)
    np.testing.assert_allclose(shares, [0.0, flawless / 2, flawless * 2 / 3, later, later], rtol=1e-5)


def test_that_a_task_speaks_often_under_a_good_source_does_not_make_it_a_dense_one(paying):
    """Eight words are heard, and then one on every step, still within the time of patience."""
    often = [paying(np.arange(T * N).reshape(T, N))] * 4
    sparse, _ = followed([*[paying(spoken())] * 8, *often], evidence=1.0, rarity=0.1, patience=20.0 * T * N)
    np.testing.assert_array_equal(sparse, 1.0)
    dense, _ = followed([*[paying(spoken())] * 7, *often], evidence=1.0, rarity=0.1, patience=20.0 * T * N)
    np.testing.assert_array_equal(dense[7:], 0.0)


@pytest.mark.parametrize("step", [(0, 0), (3, 1), (T - 1, N - 1)])
@pytest.mark.parametrize("usual", [0.0, -1.0])
def test_a_rare_word_is_one_word_wherever_it_falls(paying, step, usual):
    said = np.full((T, N), usual)
    said[step] = 1.0
    assert words(paying(said)) == 1 and speaks(paying(said)) == 1
    assert words(paying(usual)) == 0 and speaks(paying(usual)) == 0


def test_what_kind_of_task_it_is_is_decided_while_the_agent_explores_alone(paying):
    rare, often = [paying(0.0)] * 2 + [paying(spoken())], [paying(np.arange(T * N).reshape(T, N))] * 20
    dense, _ = followed([*often, *rare * 9], evidence=1.0, rarity=0.5)
    sparse, _ = followed([*rare, *often], evidence=1.0, rarity=0.5)
    np.testing.assert_array_equal(dense, 0.0)
    np.testing.assert_array_equal(sparse[len(rare) - 1 :], 1.0)


def test_the_end_of_a_constant_pay_is_a_word_and_the_end_of_none_is_silence(paying):
    ended = np.zeros((T, N), bool)
    ended[4, 0] = True
    told, _ = followed([paying(1.0, ended)] * 8)
    untold, _ = followed([paying(0.0, ended)] * 8)
    assert told.max() == 0 and untold.max() > 0


def gained(paying, said, balance=0.0):
    """Advantages of the first source's stream on rollouts with these words; the critic knows nothing, lambda is 1;
    divided by how far it is followed."""
    rollout = paying(0.0)
    aux = jnp.asarray(np.stack([said, np.ones_like(said)], axis=-1), jnp.float32)
    rollout = rollout._replace(steps=rollout.steps._replace(aux=aux, truncated=jnp.zeros((T, N), bool)))
    shares, signal = followed([rollout] * (SILENT + 1), evidence=0.0, balance=balance)
    zeros, ended = jnp.zeros((T, N)), jnp.zeros((T, N), bool)
    return generalized_advantage(signal.reward, signal.discount, zeros, zeros, ended, 1.0) / shares[-1]


def test_a_talkative_sources_word_counts_for_the_steps_since_the_last_one_and_cannot_be_collected(paying):
    said = np.zeros((T, N), np.float32)
    said[[1, 2, 5, 6], [0, 0, 1, 1]] = 0.5, 2.0, 3.0, 1.0
    expected = np.zeros((T, N))
    expected[:3, 0] = 0.9 * 0.5, 0.5, 2.0
    expected[:6, 1] = 3.0 * 0.9 ** np.arange(5, -1, -1)
    expected[6, 1] = 1.0
    for balance in (0.0, 0.9):
        np.testing.assert_allclose(gained(paying, said, balance), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("balance", "kept"), [(0.0, KEPT), (0.4, KEPT), (0.46, 0.6), (0.5, 1.0), (0.9, 1.0)])
def test_of_a_source_that_speaks_rarely_later_words_count_the_more_the_more_good_they_bring(paying, balance, kept):
    said = np.zeros((T, N), np.float32)
    said[[1, 2, 5], [0, 0, 1]] = 0.5, 2.0, 3.0
    expected, then = np.zeros((T, N)), np.zeros(N)
    for t in reversed(range(T)):
        then = expected[t] = said[t] + 0.9 * np.where(said[t] != 0, kept, 1.0) * then
    np.testing.assert_allclose(gained(paying, said, balance), expected, rtol=1e-5, atol=1e-6)
    assert expected[1, 0] > said[1, 0] + 0.5


def test_who_was_talkative_once_counts_as_that_for_a_while(paying):
    rollout, fell_silent = paying(0.0), 60
    for spoke, talkative in ((np.ones((T, N, M)), True), (np.zeros((T, N, M)), False)):
        state = following(M).init()
        for said in (spoke, *[np.zeros((T, N, M))] * fell_silent):
            aux = jnp.asarray(said, jnp.float32)
            state = following(M).observe(state, rollout._replace(steps=rollout.steps._replace(aux=aux)))
        np.testing.assert_array_equal(state.talk > TALKATIVE, talkative)


def test_what_a_transform_adds_to_the_task_is_what_is_left_without_it(paying):
    rollout = paying(2.0)
    bare = task_signal(rollout, 0.9)
    whole, rest = (transform.apply(bare, {}, (), rollout) for transform in (add(0.5), beyond_task(add(0.5))))
    np.testing.assert_allclose(rest.reward + bare.reward, whole.reward, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(rest.discount, whole.discount)


@pytest.mark.parametrize(("evidence", "largest"), [(0.0, 1.0), (0.7, 0.3), (1.0, 0.0)])
@pytest.mark.parametrize("learned", [5.0, 0.2, -0.4])
def test_advice_and_learned_weights_together_give_a_source_no_more_than_its_author_asked(
    paying, evidence, largest, learned
):
    blend = mixture(SPEC, make_weights(SPEC, network=False, bound=None), no_trust(M), following(M, rarity=0.5))
    phi, state = blend.init(jax.random.key(0))
    rollout = paying(spoken())
    phi = phi | {"scalar": jnp.full(M, learned), "evidence": {"advice": jnp.full(M, evidence), "balance": jnp.zeros(M)}}
    state = blend.observe(state, phi, task_signal(rollout, 0.9), rollout)
    weight = blend.weights(phi, state, rollout).weight
    np.testing.assert_allclose(weight, min(learned, largest), rtol=1e-5, atol=1e-6)
