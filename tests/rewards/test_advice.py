"""Advice for a silent task: when it is followed, for how long, and that it cannot be collected."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmrl.ops.returns import generalized_advantage
from llmrl.rewards import add, advice, beyond_task, task_signal
from llmrl.types import Discrete, EnvSpec

T, N, M = 8, 2, 2
SPEC = EnvSpec("none", (2,), Discrete(2), 50, ("first", "second"))
PATIENCE = 3.0


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


def followed(rollouts, **settings):
    """The share of the sources that is paid after each rollout, and the last signal."""
    transform = advice(**({"patience": PATIENCE} | settings))
    phi, state = transform.init(jax.random.key(0))
    shares, signal = [], None
    for rollout in rollouts:
        bare = task_signal(rollout, 0.9)
        state = transform.observe(state, phi, bare, rollout)
        signal = transform.apply(bare, phi, state, rollout)
        shares.append(float(transform.report(phi, state, rollout)["trust_prior"]))
        np.testing.assert_allclose(signal.reward, shares[-1] * rollout.steps.aux.sum(-1), rtol=1e-5, atol=1e-6)
    return np.array(shares), signal


@pytest.mark.parametrize("constant", [0.0, -3.0])
def test_while_the_task_stays_silent_the_sources_are_followed_for_a_time(paying, constant):
    """A constant is silence; exploring alone comes first, the prior is the most that is ever given, and it fades."""
    shares, _ = followed([paying(constant)] * 40, prior=0.8)
    np.testing.assert_array_equal(shares[: int(PATIENCE)], 0.0)
    assert 0.7 < shares[int(PATIENCE)] <= 0.8
    assert np.all(np.diff(shares[int(PATIENCE) :]) < 0) and shares[-1] < 0.5


@pytest.mark.parametrize("when", [0, int(PATIENCE) + 2])
def test_the_first_word_of_the_task_ends_it_for_good(paying, when):
    said = np.zeros((T, N))
    said[2, 1] = 1.0
    silent = [paying(0.0)] * 12
    shares, _ = followed([*silent[:when], paying(said), *silent])
    np.testing.assert_array_equal(shares[when:], 0.0)


def test_the_end_of_a_constant_pay_is_a_word_and_the_end_of_none_is_silence(paying):
    ended = np.zeros((T, N), bool)
    ended[4, 0] = True
    told, _ = followed([paying(1.0, ended)] * 8)
    untold, _ = followed([paying(0.0, ended)] * 8)
    assert told.max() == 0 and untold.max() > 0


def test_a_word_counts_for_its_own_step_alone(paying):
    """With discount 0 and a critic that knows nothing, the advantage is the word itself: nothing can be collected."""
    rollout = paying(0.0)
    _, signal = followed([rollout] * (int(PATIENCE) + 1))
    zeros = jnp.zeros((T, N))
    ended = rollout.steps.terminated | rollout.steps.truncated
    advantage = generalized_advantage(signal.reward, signal.discount, zeros, zeros, ended, 0.95)
    np.testing.assert_allclose(advantage, signal.reward, rtol=1e-6)


def test_what_a_transform_adds_to_the_task_is_what_is_left_without_it(paying):
    rollout = paying(2.0)
    bare = task_signal(rollout, 0.9)
    whole, rest = (transform.apply(bare, {}, (), rollout) for transform in (add(0.5), beyond_task(add(0.5))))
    np.testing.assert_allclose(rest.reward + bare.reward, whole.reward, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(rest.discount, whole.discount)
