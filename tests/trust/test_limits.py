"""Trust that asks for evidence: what its parts promise of the weight that is paid, whatever rule keeps the promise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain import make_weights, weight_limits

from llmrl.ops.returns import discounted_sum
from llmrl.rewards import frozen, task_signal
from llmrl.trust.blend import MixtureState, mixture
from llmrl.trust.limits import no_limits
from llmrl.trust.task_statistics import WithTask, no_task_statistics, observed
from llmrl.types import Discrete, EnvSpec

T, N, M = 16, 4, 2
SPEC = EnvSpec("none", (2,), Discrete(2), 50, ("first", "second"))
GAMMA, LAMBDA = 0.9, 0.8
TRUST = weight_limits(M, gae_lambda=LAMBDA, ceiling=True)
UNITS = weight_limits(M, gae_lambda=LAMBDA)


@pytest.fixture(scope="module")
def paying(random_rollout):
    """A rollout whose task pays the given numbers, [] or [t, n], and whose sources are noise of a given size."""

    def make(reward, aux_size=1.0, seed=0):
        noise = np.random.default_rng(seed).normal(size=(T, N, M))
        return random_rollout(
            SPEC,
            T,
            N,
            seed,
            reward=np.asarray(reward + np.zeros((T, N)), np.float32),
            aux=(aux_size * noise).astype(np.float32),
            terminated=np.zeros((T, N), bool),
        )

    return make


def noise(seed, size=1.0):
    return size * np.random.default_rng(100 + seed).normal(size=(T, N))


@functools.cache
def compiled(trust):
    """``(state, rollout) -> state`` and ``(state, learned weight, rollout) -> [m]``, the weight that is paid."""
    transform = mixture(SPEC, make_weights(SPEC, network=False, bound=None), trust)

    def observe(state, rollout):
        task = observed(state.task, rollout)
        own = transform.observe(
            {"scalar": jnp.zeros(M)}, state._replace(task=task), rollout, task_signal(rollout, GAMMA)
        )
        return WithTask(own, task)

    def weight(state, learned, rollout):
        report = transform.report({"scalar": jnp.full(M, learned)}, state, rollout)
        return jnp.stack([report[f"weight_mean_active/{name}"] for name in SPEC.aux_names])

    return jax.jit(observe), jax.jit(weight)


def follow(trust, rollouts, state=None):
    """The states after each rollout."""
    states = [WithTask(MixtureState(trust.init()), no_task_statistics()) if state is None else state]
    for rollout in rollouts:
        states.append(compiled(trust)[0](states[-1], rollout))
    return states[1:]


def paid_weight(trust, state, learned, rollout):
    return np.asarray(compiled(trust)[1](state, jnp.asarray(learned, jnp.float32), rollout))


# --- units ------------------------------------------------------------------------------------------------------------


def spread(x, rollout):
    ended = rollout.steps.terminated | rollout.steps.truncated
    return np.std(discounted_sum(x, jnp.where(ended, 0.0, GAMMA * LAMBDA)))


@pytest.mark.parametrize("aux_size", [0.01, 1.0, 100.0])
def test_a_source_is_only_ever_scaled_down_and_to_the_tasks_own_size(paying, aux_size):
    rollouts = [paying(noise(seed), aux_size, seed) for seed in range(4)]
    state, last = follow(UNITS, rollouts)[-1], rollouts[-1]
    weight = paid_weight(UNITS, state, 1.0, last)
    assert np.all((weight > 0) & (weight <= 1 + 1e-6))
    for source in range(M):
        heard = weight[source] * spread(last.steps.aux[..., source], last)
        assert heard < 1.001 * spread(last.steps.reward, last)
        if aux_size == 100.0:
            np.testing.assert_allclose(heard, spread(last.steps.reward, last), rtol=1e-3)
        if aux_size == 0.01:
            np.testing.assert_allclose(weight[source], 1.0, rtol=1e-5)


def test_a_source_ten_times_as_loud_is_heard_alike(paying):
    heard = []
    for aux_size in (30.0, 300.0):
        rollouts = [paying(noise(seed), aux_size, seed) for seed in range(3)]
        state = follow(UNITS, rollouts)[-1]
        heard.append(aux_size * paid_weight(UNITS, state, 1.0, rollouts[-1]))
    np.testing.assert_allclose(*heard, rtol=1e-3)


def test_each_source_has_a_scale_of_its_own(paying):
    rollout = paying(noise(0))
    loud = rollout._replace(steps=rollout.steps._replace(aux=rollout.steps.aux * jnp.asarray([1e3, 1e-3])))
    weight = paid_weight(UNITS, follow(UNITS, [loud])[-1], 1.0, loud)
    assert weight[0] < 0.1
    np.testing.assert_allclose(weight[1], 1.0, rtol=1e-5)


def test_a_source_goes_quiet_with_the_task_and_comes_back_with_it(paying):
    said, solved = paying(noise(0)), paying(0.0)
    before, quiet, again = (paid_weight(UNITS, state, 1.0, said) for state in follow(UNITS, [said, solved, said]))
    assert np.all(quiet < 0.01 * before)
    np.testing.assert_allclose(again, before, rtol=1e-5)


def test_a_frozen_reward_keeps_the_units_of_the_time_when_the_task_had_most_to_say(paying):
    said = paying(noise(0))
    transform = mixture(SPEC, make_weights(SPEC, network=False, bound=None), UNITS)
    phi = {"scalar": jnp.ones(M)}

    def weights(of, state):
        return of.weights(phi, state, said).weight

    before, quiet = follow(UNITS, [said, paying(0.0)])
    np.testing.assert_allclose(weights(frozen(transform), quiet), weights(transform, before), rtol=1e-5)
    assert np.all(weights(transform, quiet) < 0.01 * weights(transform, before))


def test_before_a_signal_there_are_no_units(paying):
    loud, quiet = paying(0.0, 100.0), paying(0.0, 0.01)
    weights = [paid_weight(UNITS, follow(UNITS, [rollout] * 2)[-1], 0.5, rollout) for rollout in (loud, quiet)]
    np.testing.assert_allclose(*weights, rtol=1e-5)
    assert np.all(weights[0] >= 0.5 - 1e-6)


# --- ceiling ----------------------------------------------------------------------------------------------------------


def test_the_ceiling_falls_in_a_setback_and_comes_back_slowly(paying):
    def levels(level, seeds):
        return [paying(level + noise(seed, 0.02), 1e-6) for seed in seeds]

    def weights(states):
        """What is paid of a weight of -1; the sources are too quiet for units to play a part."""
        return -np.array([paid_weight(TRUST, state, -1.0, paying(0.0)).mean() for state in states])

    before = follow(TRUST, levels(0.0, range(3)))
    good = follow(TRUST, levels(1.0, range(10)), before[-1])
    bad = follow(TRUST, levels(0.0, range(10)), good[-1])
    again = follow(TRUST, levels(1.0, range(30)), bad[-1])
    assert weights(good).min() > 0.99  # getting better is no setback
    fallen = weights(bad)
    assert np.all(np.diff(fallen[2:]) <= 1e-6)
    # Each rollout of a setback takes the same share, three tenths.
    np.testing.assert_allclose(fallen[-3:] / fallen[-4:-1], 0.7, rtol=1e-4)
    risen = weights(again)
    assert 0 < risen[-1] - risen[10] < fallen[0] - fallen[-1]
    everything = weights([*before, *good, *bad, *again])
    assert np.all((everything >= 0) & (everything <= 1 + 1e-6))


# --- switches ---------------------------------------------------------------------------------------------------------


def test_every_part_can_be_switched_off(paying):
    loud = [paying(noise(0) + 5.0, 100.0), *(paying(noise(seed, 0.01) - 5.0, 100.0) for seed in range(8))]

    def weight(**switches):
        trust = weight_limits(M, gae_lambda=LAMBDA, **({"ceiling": True} | switches))
        return paid_weight(trust, follow(trust, loud)[-1], 1.0, loud[-1])

    without_units, without_ceiling, plain = (
        weight(units=False),
        weight(ceiling=False),
        weight(units=False, ceiling=False),
    )
    np.testing.assert_allclose(plain, 1.0, rtol=1e-5)
    assert np.all(without_units < 0.9) and np.all(without_ceiling < 0.9)
    np.testing.assert_allclose(weight(), without_units * without_ceiling, rtol=1e-4)


def test_no_limits_limits_nothing_and_notes_nothing(paying):
    trust = no_limits(M)
    before, after = MixtureState(trust.init()), follow(trust, [paying(noise(0))])[-1]
    jax.tree.map(np.testing.assert_array_equal, before, after.own)
    np.testing.assert_allclose(paid_weight(trust, after, -7.0, paying(noise(0))), -7.0, rtol=1e-5)
    assert trust.report(after.own.limits) == {}
