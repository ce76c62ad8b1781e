"""Explorers that act and the base policy that learns from them."""

import jax
import numpy as np
import pytest

import llmrl
from llmrl.learner.irpo import BASE
from llmrl.training.arms import leader
from llmrl.training.irpo import explorers_of
from llmrl.training.loop import make_trainer

KEY = jax.random.key(0)
TINY = ("env=gridworld", "env.size=3", "env.horizon=8", "aux=helpful_hackable", "ppo=tiny", "total_steps=1024")


def _trained(*overrides, num_iterations):
    trainer = make_trainer(llmrl.compose(*TINY, *overrides))
    return jax.jit(lambda key: trainer.run(trainer.init(key, trainer.numbers), trainer.numbers, num_iterations))(KEY)


def _of(tree, policy):
    return jax.tree.map(lambda x: x[policy], tree)


def _equal(one, other, **tolerance):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **(tolerance or {"rtol": 1e-4, "atol": 1e-6})), one, other
    )


def test_one_explorer_that_takes_no_step_is_plain_ppo():
    plain, _ = _trained("method=ppo", "aux=none", num_iterations=3)
    alone = ("method=irpo", "method.irpo.steps=0", "method.irpo.fractions=[1]", "aux.scale=0")
    state, metrics = _trained(*alone, num_iterations=3)
    _equal(_of(state.params.actor, BASE), plain.params.actor)
    np.testing.assert_allclose(metrics["explorer_distance/0"], 0.0, atol=1e-6)


def test_explorers_leave_the_base_policy_and_the_best_is_handed_over():
    state, metrics = _trained(
        "method=irpo", "method.irpo.step_size=3", "method.irpo.fractions=[0.03,1]", num_iterations=12
    )
    cautious, bold = (metrics[f"explorer_distance/{k}"] for k in (0, 1))
    assert cautious[0] == bold[0] == 0.0  # they have seen nothing yet
    assert np.all(bold[1:] > 0) and np.mean(bold) > np.mean(cautious)
    np.testing.assert_allclose(metrics["explorer_weight/0"] + metrics["explorer_weight/1"], 1.0, rtol=1e-5)
    best = 1 + int(np.argmax([metrics[f"explorer_return/{k}"][-1] for k in (0, 1)]))
    handed = leader(state)
    _equal(handed.params, _of(state.params, best), rtol=0, atol=0)
    assert handed.arms is None and handed.acting.turn is None


def test_explorers_share_the_environments_and_each_has_some():
    config = llmrl.compose(*TINY, "ppo.num_envs=7", "ppo.num_minibatches=1", "method=irpo")
    explorers = explorers_of(config, make_trainer(config).env.spec)
    assert set(explorers.places.ravel().tolist()) == set(range(7))
    assert explorers.places.shape == (2, 4) and not set(explorers.places[0]) & set(explorers.places[1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("ppo.num_envs=1",), "2 explorers.*1 sources and 2 method.irpo.fractions.*ppo.num_envs=1"),
        (("method.irpo.steps=100",), "32 samples for each; expected at least 200.*method.irpo.steps=100"),
        (("method.irpo.fractions=[]",), "method.irpo.fractions needs at least one"),
        (("method.irpo.fractions=[0]",), "method.irpo.fractions must be positive"),
    ],
)
def test_too_many_explorers_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        trainer = make_trainer(llmrl.compose(*TINY, "method=irpo", *settings))
        jax.eval_shape(trainer.init, KEY, trainer.numbers)
