"""Several policies side by side: one alone is plain PPO, a stop changes nothing, what breaks one harms no other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llmrl
from llmrl.training.arms import LEARNED, leader
from llmrl.training.loop import make_trainer

KEY = jax.random.key(0)
TWIN = ("method=twin", "aux=beneficial", "ppo=tiny", "ppo.num_envs=4", "ppo.num_steps=32", "total_steps=1024")

EAGER = (*TWIN, "method.arms.sure=0", "method.arms.memory=64", "method.arms.budget=0.5", "method.arms.haste=1")
"""Arm 0 takes another one over as soon as that is ahead."""


@functools.cache
def program(*overrides, length):
    """``(state, first) -> (state, metrics)``, and a first state."""
    trainer = make_trainer(llmrl.compose(*overrides))
    run = jax.jit(lambda state, first: trainer.run(state, trainer.numbers, length, first))
    return run, jax.jit(lambda: trainer.init(KEY, trainer.numbers))()


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_one_policy_is_plain_ppo():
    (alone, start), (plain, first) = (
        program(*TWIN, *more, length=6) for more in (("method.arms.follow=[none]",), ("method=ppo",))
    )
    (state, metrics), (expected, plain_metrics) = alone(start, 0), plain(first, 0)
    for name in ("episode_return", "episode_length", "entropy", "approx_kl", "value_loss"):
        np.testing.assert_array_equal(metrics[name], plain_metrics[name], err_msg=name)
    assert_equal(leader(state).params.actor, expected.params.actor)


def test_a_stop_changes_nothing():
    """With arm 0 taken over as soon as another one is ahead, before and after the stop."""
    whole, start = program(*EAGER, length=6)
    half, _ = program(*EAGER, length=3)
    expected, metrics = whole(start, 0)
    assert np.any(metrics["arm_copied"] == 1)
    state, first = half(start, 0)
    state, second = half(state, 3)
    copied = np.concatenate([first["arm_copied"], second["arm_copied"]])
    assert_equal(jax.random.key_data(state.key), jax.random.key_data(expected.key))
    assert_equal(state._replace(key=0), expected._replace(key=0))
    np.testing.assert_array_equal(copied, metrics["arm_copied"])


def test_who_takes_another_over_has_all_that_it_has_learned_and_earned():
    """Adam's state and statistics too, so that it goes on as the other one would."""
    run, state = program(*EAGER, length=3)
    for start in range(0, 30, 3):
        state, metrics = run(state, start)
        if metrics["arm_copied"][-1] == 1:
            break
    else:
        raise AssertionError("nothing was taken over at the end of three iterations")
    for part in [getattr(state, name) for name in LEARNED] + [state.arms.returns]:
        jax.tree.map(lambda x: np.testing.assert_array_equal(x[0], x[1]), part)


@pytest.mark.parametrize("broken", [0, 1])
def test_what_is_no_number_in_one_policy_harms_no_other(broken):
    run, start = program(*TWIN, length=1)
    state, _ = run(start, 0)
    spoiled = state._replace(phis=state.phis, opt_state=jax.tree.map(_spoiled(broken), state.opt_state))
    after, metrics = run(spoiled, 1)
    sound = 1 - broken
    assert float(metrics["skipped_update"][0]) == 1.0
    assert not _alike(after.params, state.params, sound)  # it has learned
    assert _alike(after.params, state.params, broken) or float(metrics["arm_copied"][0])
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(after.params))


def _spoiled(arm):
    return lambda x: x.at[arm].set(jnp.nan) if jnp.issubdtype(x.dtype, jnp.floating) else x


def _alike(one, other, arm):
    return all(np.array_equal(x[arm], y[arm]) for x, y in zip(*map(jax.tree.leaves, (one, other)), strict=True))


@pytest.mark.parametrize("leads", [0, 1])
def test_who_leads_is_handed_over(leads):
    run, start = program(*TWIN, length=1)
    state, _ = run(start, 0)
    chosen = leader(state._replace(arms=state.arms._replace(leader=jnp.asarray(leads))))
    for name in LEARNED:
        assert_equal(getattr(chosen, name), jax.tree.map(lambda x: x[leads], getattr(state, name)))
    assert chosen.arms is None and chosen.acting.turn is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.arms.follow=[all,none]", r"must begin with none.*got \['all', 'none'\]"),
        ("method.arms.follow=[none,some]", "hold each of none, all, each, learned at most once"),
        ("method.arms.follow=[none,all,all]", "at most once"),
    ],
)
def test_what_arms_cannot_be_is_said_at_once(override, message):
    with pytest.raises(ValueError, match=message):
        llmrl.compose(*TWIN, override)


def test_only_methods_that_follow_have_arms():
    with pytest.raises(ValueError, match=r"for methods that follow sources.*got method=add"):
        llmrl.compose("method=add", "aux=harmful", "method.arms.follow=[none,all]")
