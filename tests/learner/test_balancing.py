"""Regret balancing: the rule against brute force, and what it loses on bandits."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmrl.learner.balancing import BalancingRule, confidence_width, first_balance, next_learner, noted

KEY = jax.random.key(5)
RULE = BalancingRule(confidence=1.0, delta=0.1)


def played(returns, plays, rule=RULE, key=KEY):
    """The balance after so many plays, and who was played; ``returns(key, learner) -> []``."""

    def play(state, key):
        who, luck = jax.random.split(key)
        learner = next_learner(who, state)
        return noted(state, learner, returns(luck, learner), rule), learner

    num_learners = returns.num
    return jax.jit(lambda keys: jax.lax.scan(play, first_balance(num_learners, 1.0), keys))(
        jax.random.split(key, plays)
    )


class Bandit:
    """Returns of 0 or 1 with these means."""

    def __init__(self, *means):
        self.num, self.means = len(means), jnp.asarray(means)

    def __call__(self, key, learner):
        return jax.random.bernoulli(key, self.means[learner]).astype(jnp.float32)


# --- the bound --------------------------------------------------------------------------------------------------------


def bound(num_learners, plays):
    """Of the module, for returns that do not change."""
    root = math.sqrt(plays)
    doubt = math.log(num_learners * math.log(plays) / RULE.delta)
    return (num_learners - 1) * (root + math.log2(root) + 2) + 4 * math.sqrt(num_learners * plays * doubt)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("means", [(0.9, 0.4, 0.1), (0.5, 0.5, 0.5), (0.2, 1.0), (0.1, 0.2, 0.3, 0.4, 0.95)])
def test_regret_stays_below_its_bound(means, seed):
    plays = 8000
    _, chosen = played(Bandit(*means), plays, key=jax.random.key(seed))
    gaps = max(means) - np.asarray(means)
    regret = np.cumsum(gaps[np.asarray(chosen)])
    for t in (100, 1000, plays):
        assert regret[t - 1] <= bound(len(means), t)
    if means == (0.9, 0.4, 0.1):  # who is played evenly loses more than the bound
        assert bound(3, plays) < plays * gaps.mean()


def test_who_learns_is_found_and_played_most():
    """A learner whose returns rise passes one that is good from the start and stays as it is."""

    def play(state, key):
        who, luck = jax.random.split(key)
        learner = next_learner(who, state)
        means = jnp.stack([1.0 - 1.0 / jnp.sqrt(state.plays[0] + 1.0), jnp.asarray(0.3)])
        return noted(state, learner, jnp.clip(means[learner] + 0.05 * jax.random.normal(luck), 0, 1), RULE), learner

    state, chosen = jax.lax.scan(play, first_balance(2, 1.0), jax.random.split(KEY, 4000))
    assert float(np.mean(np.asarray(chosen[-1000:]) == 0)) > 0.75
    assert int(state.leader) == 0


# --- the rule ---------------------------------------------------------------------------------------------------------


def test_plays_and_coefficients_are_those_of_the_rule_by_hand():
    rng = np.random.default_rng(0)
    num, means = 3, np.array([2.0, -5.0, 6.0])
    rule = BalancingRule(confidence=0.3, delta=0.1)
    state, total, plays, least = first_balance(num, 1.0), np.zeros(num), np.zeros(num), np.ones(num)
    seen = []
    for _ in range(60):
        potential = least * np.sqrt(plays)
        np.testing.assert_allclose(potential, state.coefficient * jnp.sqrt(state.plays), rtol=1e-5)
        learner = int(np.argmin(potential))
        returned = float(means[learner] + rng.normal())
        seen.append(returned)
        state = noted(state, jnp.asarray(learner), jnp.asarray(returned), rule)
        plays[learner] += 1
        total[learner] += returned
        low, high = min(seen), max(seen)
        known = plays > 0
        scaled = (total[known] / plays[known] - low) / max(high - low, 1e-12) if high > low else 0 * plays[known]
        width = 0.3 * np.sqrt(np.log(num * np.maximum(np.log(plays[known]), 1.0) / 0.1) / plays[known])
        own = int(np.flatnonzero(known).tolist().index(learner))
        if scaled[own] + least[learner] / np.sqrt(plays[learner]) + width[own] < np.max(scaled - width):
            least[learner] *= 2
    np.testing.assert_allclose(state.coefficient, least)
    np.testing.assert_allclose(state.plays, plays)
    assert least[1] > 1.0 and plays[2] > plays[1]


def test_equal_learners_are_played_in_turns():
    _, chosen = played(Bandit(1.0, 1.0, 1.0, 1.0), 40)
    for start in range(0, 40, 4):
        assert sorted(chosen[start : start + 4].tolist()) == [0, 1, 2, 3]


def test_ties_are_drawn():
    drawn = jax.vmap(lambda key: next_learner(key, first_balance(3, 1.0)))(jax.random.split(KEY, 3000))
    np.testing.assert_allclose(np.bincount(drawn) / 3000, 1 / 3, atol=0.03)


@pytest.mark.parametrize(("scale", "shift"), [(1e-3, 0.0), (1.0, -200.0), (1e3, 5.0)])
def test_the_size_of_the_tasks_returns_does_not_matter(scale, shift):
    plain, other = Bandit(0.9, 0.2, 0.5), Bandit(0.9, 0.2, 0.5)
    call = type(other).__call__
    scaled = type("Scaled", (), {"num": 3, "__call__": lambda self, *a: scale * call(other, *a) + shift})()
    np.testing.assert_array_equal(played(plain, 300)[1], played(scaled, 300)[1])


def test_a_width_is_finite_from_the_first_play_on_and_falls():
    widths = np.asarray(confidence_width(jnp.asarray([0.0, 1.0, 2.0, 3.0, 50.0, 5000.0]), 0.1))
    assert np.isinf(widths[0]) and np.all(np.diff(widths[1:]) < 0) and np.all(widths[1:] > 0)


def test_the_learner_is_handed_over_that_returned_most_when_it_was_played_last():
    state = first_balance(3, 1.0)
    for learner, returned in ((0, 9.0), (1, 2.0), (0, 1.0)):
        state = noted(state, jnp.asarray(learner), jnp.asarray(returned), RULE)
    assert int(state.leader) == 1
