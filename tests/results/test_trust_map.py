"""Maps of trust of policies that nobody trained: what is asked, where, and of whom."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llmrl
from llmrl.analysis.answers import answers
from llmrl.analysis.trust import right_signs, shares
from llmrl.assembly.parts import make_environment
from llmrl.language import build
from llmrl.training.devices import seed_keys
from llmrl.training.loop import make_trainer
from llmrl.trust.blend import significance_in, with_significance

SMALL = (
    "ppo.num_envs=2",
    "ppo.num_steps=4",
    "ppo.num_minibatches=2",
    "ppo.hidden=[4]",
    "method.weight.hidden=[4]",
    "seeds=2",
)


def untrained(*overrides, weight=0.5):
    """A run as it starts, but for the weight of its sources."""
    config = llmrl.compose(*overrides, *SMALL)
    trainer = make_trainer(config)
    states = jax.jit(jax.vmap(lambda key: trainer.init(key, trainer.numbers)))(seed_keys(config))
    task_phi, phi, *others = states.phis
    if "scalar" in phi:
        phi = phi | {"scalar": jnp.full_like(phi["scalar"], np.arctanh(weight))}
        known = significance_in(states.transform_states)._replace(scalar=jnp.ones_like(phi["scalar"]))
        states = states._replace(transform_states=with_significance(states.transform_states, known))
    else:
        phi = jax.tree.map(lambda x: x + 0.1, phi)
    return SimpleNamespace(config=config, state=states._replace(phis=(task_phi, phi, *others)), answers=None)


@pytest.fixture(scope="module")
def discrete():
    return llmrl.trust_map(untrained("env=cartpole", "aux=half_right"), num_steps=16, num_envs=4)


def test_every_state_is_asked_about_every_action(discrete):
    assert discrete.probes == ("as the policy acts", "action 0", "action 1")
    assert discrete.obs.shape == (2, 64, 4)
    assert discrete.weight.shape == discrete.aux.shape == (2, 64, 3, 1)
    position, angle = discrete.obs[..., 0], discrete.obs[..., 2]
    size = np.where(position >= 0, 0.1, -0.1)
    _, left, right = np.moveaxis(discrete.aux[..., 0], -1, 0)
    np.testing.assert_allclose(left, np.where(angle < 0, size, 0.0), rtol=1e-6)
    np.testing.assert_allclose(right, np.where(angle > 0, size, 0.0), rtol=1e-6)


def test_the_action_taken_is_one_of_them(discrete):
    taken, left, right = np.moveaxis(discrete.aux[..., 0], -1, 0)
    assert np.all((taken == left) | (taken == right))
    assert len(np.unique(discrete.obs[0, :, 2])) > 16  # episodes differ


def test_weights_are_those_that_are_paid(discrete):
    np.testing.assert_allclose(discrete.settled, 0.5, rtol=1e-5)
    # One weight everywhere, in the units of these steps, is one share of the policy's step, and the task has the rest.
    assert np.all((discrete.weight > 0.0) & (discrete.weight <= 0.5 + 1e-5))
    np.testing.assert_allclose(np.ptp(discrete.weight, axis=(1, 2)), 0.0, atol=1e-6)
    assert np.all((discrete.influence > 0.05) & (discrete.influence < 1.0))
    np.testing.assert_allclose(np.ptp(discrete.influence, axis=(1, 2)), 0.0, atol=1e-5)
    np.testing.assert_allclose(discrete.unit, 1.0)
    assert np.all(shares(discrete, "half_right").used == 1.0)
    found = right_signs(discrete, "half_right")
    speaks = discrete.aux[:, :, 0, 0] != 0
    np.testing.assert_allclose(found.share, ((discrete.obs[..., 0] >= 0) & speaks).sum(axis=1) / speaks.sum(axis=1))


def test_a_continuous_action_is_asked_about_at_a_few_forces():
    found = llmrl.trust_map(untrained("env=cartpole_continuous", "aux=beneficial"), num_steps=8, num_envs=2)
    assert found.probes[1:] == ("action -1", "action -0.5", "action +0.5", "action +1")
    angle = found.obs[..., 2:3]
    pushes = np.array([-1.0, -0.5, 0.5, 1.0])
    np.testing.assert_allclose(found.aux[:, :, 1:, 0], np.where(pushes * angle > 0, 0.1, 0.0), rtol=1e-6)


def test_a_language_model_is_heard_and_its_answers_are_named():
    run = untrained("env=cartpole", "aux=[harmful,language]", "aux.scale=2", weight=0.5)
    captioner: Any = make_environment(run.config).captioner
    keys = captioner.keys()
    table = build({key: np.float32([0.25, key % 5 / 4]) for key in keys if key % 7}, len(keys), 2)
    found = llmrl.trust_map(SimpleNamespace(config=run.config, state=run.state, answers=table), num_steps=8, num_envs=2)
    words = found.words
    assert words is not None and found.sources[words.source] == "language"
    _, left, right = np.moveaxis(found.aux[..., words.source], -1, 0)
    known = words.state_key % 7 != 0
    np.testing.assert_allclose(left, np.where(known, 2 * (0.25 - 0.5), 0.0))
    np.testing.assert_allclose(right, np.where(known, 2 * (words.state_key % 5 / 4 - 0.5), 0.0))
    np.testing.assert_array_equal(words.event[..., 1:], np.broadcast_to([0, 1], (*words.state_key.shape, 2)))
    told = answers(words, found.influence[..., words.source], found.settled[..., words.source])
    assert {each.state for each in told} == {captioner.describe(int(key)) for key in words.state_key[known]}
    assert sum(each.visits for each in told) == known.sum()


def test_sources_that_are_filled_in_afterwards_speak_as_in_training():
    """Goals pay once an episode, of every action after what the policy did before; novelty pays for where it leads."""
    run = untrained("env=cartpole", "aux=[goals,novelty]", "llm=oracle", "aux.sources.goals=2")
    captioner: Any = make_environment(run.config).captioner
    keys, only_left = captioner.keys(), np.asarray([1.0, 0.0], np.float32)
    table = build(dict.fromkeys(keys, only_left), len(keys), 2)
    run = SimpleNamespace(config=run.config, state=run.state, answers=table)
    found = llmrl.trust_map(run, num_steps=12, num_envs=3)
    taken, left, right = np.moveaxis(found.aux[..., 0].reshape(2, 12, 3, 3), -1, 0)
    np.testing.assert_array_equal(right, 0.0)
    assert np.all((taken == left) | (taken == 0.0))
    falls = np.diff(left, axis=1) < 0  # "push left" is paid until it has been done
    np.testing.assert_array_equal(falls, taken[:, :-1] > 0)
    np.testing.assert_array_equal(left[:, 0], 2.0)
    taken, left, right = np.moveaxis(found.aux[..., 1], -1, 0)
    assert np.all(taken > 0) and np.all(left > 0) and np.all(right > 0) and np.any(left != right)
    assert {name: np.mean(shares(found, name).used) for name in found.sources} == {"goals": 1.0, "novelty": 1.0}


def test_a_source_that_has_turned_is_shown_as_the_run_last_heard_it():
    run = untrained("env=crumbs", "env.size=3", "aux=[fair,late_wrong]")
    run.state = run.state._replace(late=(jnp.full(2, run.config.num_iterations),))
    found = llmrl.trust_map(run, num_steps=8, num_envs=2)
    np.testing.assert_array_equal(found.aux[..., 1], -found.aux[..., 0])
    assert np.abs(found.aux[:, :, 1:]).max() > 0


def test_a_policy_that_sees_the_weights_is_played_with_them():
    run = untrained("env=cartpole", "aux=harmful", "method=bipars_em")
    found = llmrl.trust_map(run, num_steps=4, num_envs=2)
    parts = llmrl.assembly.parts.build(run.config, make_environment(run.config))
    for seed in range(2):
        phis = jax.tree.map(lambda x, i=seed: x[i], run.state.phis)
        seen = parts.inner.view.of(phis, jnp.asarray(found.obs[seed]))[..., 4:]
        for probe in range(len(found.probes)):
            np.testing.assert_allclose(found.settled[seed, :, probe], seen, rtol=1e-4)


def test_of_several_policies_the_weights_are_those_of_the_one_handed_over():
    """The first seed is led by the policy on the task alone, the second by the one that follows its source."""
    run = untrained("env=cartpole", "aux=beneficial", "method=twin")
    task_state, credit = run.state.transform_states
    credit = credit._replace(deviation=jnp.full_like(credit.deviation, 0.5))
    arms = run.state.arms._replace(leader=jnp.asarray([0, 1], jnp.int32))
    run.state = run.state._replace(arms=arms, transform_states=(task_state, credit))
    found = llmrl.trust_map(run, num_steps=8, num_envs=2)
    for numbers in (found.weight[0], found.settled[0], found.influence[0], found.unit[0]):
        np.testing.assert_array_equal(numbers, 0.0)
    assert np.all(found.weight[1] > 0.0) and np.all(found.influence[1] > 0.1)
    np.testing.assert_allclose(found.settled[1], 2.0)
    np.testing.assert_array_equal(shares(found, "beneficial").ignored, [1.0, 0.0])


def test_runs_without_anything_to_map_are_refused():
    for overrides, message in ((("aux=none", "method=ppo"), "none"), (("aux=harmful", "method=ppo"), "method=ppo")):
        with pytest.raises(ValueError, match=message):
            llmrl.trust_map(SimpleNamespace(config=llmrl.compose(*overrides), state=None, answers=None))
