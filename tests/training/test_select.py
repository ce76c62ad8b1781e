"""Several methods of which one is played at a time: who learns, and who is handed over."""

from dataclasses import replace

import jax
import numpy as np
import pytest

import llmrl
from llmrl.settings.presets import with_method
from llmrl.training.arms import leader
from llmrl.training.loop import make_trainer

KEY = jax.random.key(0)
TINY = ("env=gridworld", "env.size=3", "aux=helpful_hackable", "ppo=tiny", "total_steps=2048")


def _trained(*overrides, num_iterations=1):
    trainer = make_trainer(llmrl.compose(*TINY, *overrides))
    first = trainer.init(KEY, trainer.numbers)
    return first, *jax.jit(lambda state: trainer.run(state, trainer.numbers, num_iterations))(first)


def _same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def test_a_single_arm_is_its_method():
    _, plain, one = _trained("method=ppo", num_iterations=5)
    _, state, other = _trained("method=select", "method.select.arms=[ppo]", num_iterations=5)
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-4, atol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), plain.params, state.arms.states[0].params
    )


def test_only_who_is_played_learns_and_each_has_environments_of_its_own():
    before, after, metrics = _trained("method=select", "method.select.arms=[ppo,add]")
    played = int(metrics["select_arm"][0])
    for k, (old, new) in enumerate(zip(before.arms.states, after.arms.states, strict=True)):
        assert _same(old.params, new.params) is (k != played)
        assert _same(old.acting.env_state, new.acting.env_state) is (k != played)
    one, other = before.arms.states
    assert not _same(one.params.actor, other.params.actor)


def test_plays_last_and_the_policy_of_the_best_last_play_is_handed_over():
    _, state, metrics = _trained(
        "method=select", "method.select.arms=[ppo,add]", "method.select.every=3", num_iterations=12
    )
    arm = np.asarray(metrics["select_arm"]).reshape(4, 3)
    assert np.all(arm == arm[:, :1]) and set(arm[:2, 0]) == {0, 1}
    balance = state.arms.balance
    assert balance.plays.tolist() == [2.0, 2.0]
    handed, best = leader(state), int(np.argmax(balance.last))
    assert _same(handed.params.actor, state.arms.states[best].params.actor) and handed.arms is None


def test_an_arm_is_its_preset_on_top_of_the_runs_settings():
    config = llmrl.compose("method=select", "method.weight.bound=3", "aux=harmful", "ppo.entropy=0.1")
    arm = with_method(config, "implicit_paper")
    preset = llmrl.compose("method=implicit_paper", "aux=harmful", "ppo.entropy=0.1")
    assert arm.method == preset.method and arm.solver == preset.solver and arm.ppo == preset.ppo
    assert with_method(config, "scalar").method.weight.bound == 3


@pytest.mark.parametrize(
    ("arms", "says"),
    [((), "at least one"), (("ppo", "twin"), "got twin"), (("bipars_em",), "got bipars_em"), (("pp",), "nearest.*ppo")],
)
def test_what_cannot_be_an_arm_is_refused(arms, says):
    config = llmrl.compose(*TINY, "method=select")
    config = replace(config, method=replace(config.method, select=replace(config.method.select, arms=arms)))
    with pytest.raises(ValueError, match=says):
        make_trainer(config).init(KEY, make_trainer(config).numbers)
