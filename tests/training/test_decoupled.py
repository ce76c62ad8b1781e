"""Two policies on the same data: the explorer is ``add``, the exploiter hears no source."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llmrl
from llmrl.learner.decoupled import EXPLOITER, EXPLORER, effective_share
from llmrl.ops.losses import clipped_policy_loss
from llmrl.training.arms import leader
from llmrl.training.loop import make_trainer

KEY = jax.random.key(0)
TINY = ("env=gridworld", "env.size=3", "env.horizon=8", "aux=helpful_hackable", "ppo=tiny", "total_steps=1024")


def _trained(*overrides, num_iterations=1):
    trainer = make_trainer(llmrl.compose(*TINY, *overrides))
    return jax.jit(lambda key: trainer.run(trainer.init(key, trainer.numbers), trainer.numbers, num_iterations))(KEY)


def _of(tree, policy):
    return jax.tree.map(lambda x: x[policy], tree)


def _equal(one, other, **tolerance):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **(tolerance or {"rtol": 1e-4, "atol": 1e-6})), one, other
    )


def test_the_explorer_learns_as_add_does():
    plain, _ = _trained("method=add", num_iterations=3)
    state, metrics = _trained("method=decoupled", num_iterations=3)
    _equal(_of(state.params, EXPLORER), plain.params)
    assert np.all(np.isfinite(metrics["explorer_overlap"]))


def test_where_the_sources_say_nothing_both_are_plain_ppo():
    plain, _ = _trained("method=ppo", "aux=none", num_iterations=3)
    state, metrics = _trained("method=decoupled", "aux.scale=0", num_iterations=3)
    for policy in (EXPLOITER, EXPLORER):
        _equal(_of(state.params.actor, policy), plain.params.actor)
    np.testing.assert_allclose(metrics["explorer_overlap"], 1.0, rtol=1e-5)


def test_the_exploiter_hears_no_source():
    """Both policies act alike in the first rollout, so that what sources say is all that differs."""
    quiet, loud = (_trained("method=decoupled", f"aux.scale={scale}")[0] for scale in (0, 5))
    _equal(_of(quiet.params.actor, EXPLOITER), _of(loud.params.actor, EXPLOITER))
    explorers = [jax.tree.leaves(_of(state.params.actor, EXPLORER)) for state in (quiet, loud)]
    assert any(np.any(np.abs(a - b) > 1e-4) for a, b in zip(*explorers, strict=True))


def test_the_exploiter_is_measured_and_handed_over():
    state, metrics = _trained("method=decoupled", num_iterations=12)
    handed = leader(state)
    _equal(handed.params, _of(state.params, EXPLOITER), rtol=0, atol=0)
    assert handed.arms is None
    np.testing.assert_array_equal(metrics["episode_return"][-1], state.arms.measured.episodes.episode_return)
    np.testing.assert_array_equal(metrics["explorer_return"][-1], state.acting.episodes.episode_return)
    assert np.any(metrics["episode_return"] != metrics["explorer_return"])


@pytest.mark.parametrize("seed", range(4))
def test_steps_of_another_policy_give_the_gradient_on_ones_own(seed):
    """On a bandit, within the clip: the mean over the explorer's actions is the gradient of the exploiter's return."""
    first, second, third = jax.random.split(jax.random.key(seed), 3)
    advantage, logits = jax.random.normal(first, (4,)), jax.random.normal(second, (4,))
    explorer = jax.nn.log_softmax(logits + 0.1 * jax.random.normal(third, (4,)))

    def loss(logits):
        each = [
            clipped_policy_loss(jax.nn.log_softmax(logits)[i : i + 1], explorer[i : i + 1], advantage[i : i + 1], 0.9)
            for i in range(4)
        ]
        return jnp.sum(jnp.exp(explorer) * jnp.stack(each))

    own = jax.grad(lambda logits: -jax.nn.softmax(logits) @ advantage)(logits)
    np.testing.assert_allclose(jax.grad(loss)(logits), own, rtol=1e-4, atol=1e-6)


def test_the_effective_share_is_1_for_equal_policies_and_that_of_the_steps_that_count():
    assert effective_share(jnp.ones(8)) == 1.0
    np.testing.assert_allclose(effective_share(jnp.asarray([2.0, 2.0, 0.0, 0.0])), 0.5)
    np.testing.assert_allclose(effective_share(7.0 * jnp.asarray([1.0, 0.5])), effective_share(jnp.asarray([1.0, 0.5])))
