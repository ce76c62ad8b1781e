"""Two policies of which one acts: who learns what from it."""

import jax
import jax.numpy as jnp
import numpy as np

import llmrl
from llmrl.learner.eipo import BOTH, TASK
from llmrl.training.arms import leader
from llmrl.training.loop import make_trainer

KEY = jax.random.key(0)
TINY = ("env=gridworld", "env.size=3", "aux=helpful_hackable", "ppo=tiny", "total_steps=1024")


def _trained(*overrides, num_iterations=1, acting=None):
    trainer = make_trainer(llmrl.compose(*TINY, *overrides))
    first = trainer.init(KEY, trainer.numbers)
    if acting is not None:
        first = first._replace(arms=first.arms._replace(acting=jnp.asarray(acting)))
    return first, *jax.jit(lambda state: trainer.run(state, trainer.numbers, num_iterations))(first)


def _same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def test_both_policies_learn_and_the_critic_of_the_one_that_acts():
    for acting in (TASK, BOTH):
        before, after, metrics = _trained("method=eipo", acting=acting)
        assert metrics["eipo_acting"].tolist() == [acting]
        for k in (TASK, BOTH):
            old, new = (jax.tree.map(lambda x, k=k: x[k], state.params) for state in (before, after))
            assert not _same(old.actor, new.actor)
            assert _same(old.critic, new.critic) is (k != acting)


def test_what_acts_learns_as_plain_ppo_where_the_bonus_is_nothing():
    _, plain, _ = _trained("method=ppo", "aux=none")
    for acting in (TASK, BOTH):
        _, after, _ = _trained("method=eipo", "aux.scale=0", acting=acting)
        actor = jax.tree.map(lambda x, k=acting: x[k], after.params.actor)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), actor, plain.params.actor)


def test_both_stages_are_played_and_pi_ei_is_handed_over():
    _, state, metrics = _trained("method=eipo", "method.eipo.alpha=0.2", num_iterations=12)
    assert set(metrics["eipo_acting"].tolist()) == {TASK, BOTH}
    assert np.all(np.abs(np.diff(np.asarray(metrics["eipo_alpha"]))) <= 0.005 * 0.05 + 1e-6)
    assert float(metrics["eipo_alpha"][0]) == np.float32(0.2)
    handed = leader(state)
    assert _same(handed.params, jax.tree.map(lambda x: x[BOTH], state.params))
    assert handed.arms is None
