"""A policy on the task and one on its sum with a bonus: their objectives, stages and multiplier."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmrl.learner import eipo
from llmrl.learner.eipo import BOTH, TASK, AlphaRule, EipoState
from llmrl.types import Signal

DISCOUNT, STATES, ACTIONS = 0.9, 4, 3
RULE = AlphaRule(rate=0.1, clip=0.05, largest=10.0)


# --- what U is --------------------------------------------------------------------------------------------------------


class Process:
    """A random decision process, solved exactly; ``reward`` [s, a, 2] is the task's and the bonus."""

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        self.next = rng.dirichlet(np.ones(STATES), (STATES, ACTIONS))
        self.reward = rng.normal(size=(STATES, ACTIONS, 2))
        self.start = rng.dirichlet(np.ones(STATES))
        self.policies = rng.dirichlet(np.ones(ACTIONS), (2, STATES))

    def value(self, policy, reward):
        """[s, ...] of a reward [s, a, ...]."""
        moves = np.einsum("sa,sat->st", policy, self.next)
        return np.linalg.solve(np.eye(STATES) - DISCOUNT * moves, np.einsum("sa,sa...->s...", policy, reward))

    def total(self, policy, reward):
        return self.start @ self.value(policy, reward)

    def advantage(self, policy, reward):
        value = self.value(policy, reward)
        return reward + DISCOUNT * np.einsum("sat,t...->sa...", self.next, value) - value[:, None]

    def relative(self, alpha, acting):
        advantage = self.advantage(self.policies[acting], self.reward)
        made = eipo.relative_reward(
            jnp.asarray(alpha), jnp.asarray(acting), jnp.asarray(self.reward), jnp.asarray(advantage)
        )
        return np.asarray(made, np.float64)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("alpha", [-0.5, 0.0, 0.5, 8.0])
def test_u_summed_along_the_other_policy_is_that_policys_objective(seed, alpha):
    """J_E(pi_EI) + J_I(pi_EI) + alpha (J_E(pi_EI) - J_E(pi_E)): pi_EI seeks the largest, pi_E the least."""
    process = Process(seed)
    task, both = process.policies
    returns = [process.total(policy, process.reward) for policy in (task, both)]
    game = returns[BOTH].sum() + alpha * (returns[BOTH][0] - returns[TASK][0])
    assert process.total(both, process.relative(alpha, TASK)) == pytest.approx(game, rel=1e-4, abs=1e-4)
    assert process.total(task, process.relative(alpha, BOTH)) == pytest.approx(-game, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("acting", [TASK, BOTH])
def test_the_heads_that_there_are_value_u(acting):
    """Along the policy that acts, U is worth V_E + V_I or the opposite, so its advantage is 0 on average."""
    process = Process(0)
    policy, relative = process.policies[acting], process.relative(0.7, acting)
    values = process.value(policy, process.reward)
    exact = process.value(policy, relative)
    np.testing.assert_allclose(exact, (1 if acting == TASK else -1) * values.sum(-1), rtol=1e-4, atol=1e-4)
    # One step of every kind, side by side: [t = 1, n] with lambda 0 is the advantage itself.
    s, a, t = (x.ravel() for x in np.mgrid[:STATES, :ACTIONS, :STATES])
    whole = jnp.full((1, s.size), DISCOUNT)
    made = eipo.relative_advantage(
        jnp.asarray(relative[s, a])[None],
        jnp.asarray(acting),
        jnp.asarray(values[s])[None],
        jnp.asarray(values[t])[None],
        Signal(whole, whole),
        jnp.zeros((1, s.size), bool),
        0.0,
    )
    mean = np.einsum("i,i->", np.asarray(made[0]), policy[s, a] * process.next[s, a, t])
    assert mean == pytest.approx(0.0, abs=1e-4)
    np.testing.assert_allclose(
        np.bincount(s * ACTIONS + a, made[0] * process.next[s, a, t]).reshape(STATES, ACTIONS),
        process.advantage(policy, relative),
        atol=1e-4,
    )


@pytest.mark.parametrize("acting", [TASK, BOTH])
def test_a_large_alpha_leaves_the_task_alone(acting):
    """In PPO's units, whatever the bonus."""
    rng = np.random.default_rng(1)
    reward, advantage, values, after = (rng.normal(size=(9, 5, 2)) for _ in range(4))
    ended = jnp.asarray(rng.uniform(size=(9, 5)) < 0.2)
    signal = Signal(jnp.asarray(reward[..., 0]), jnp.where(ended, 0.0, DISCOUNT))

    def followed(alpha, bonus):
        scale = np.array([1.0, bonus])
        paid, worth, now, then = (jnp.asarray(scale * x) for x in (reward, advantage, values, after))
        relative = eipo.relative_reward(jnp.asarray(alpha), jnp.asarray(acting), paid, worth)
        made = eipo.relative_advantage(relative, jnp.asarray(acting), now, then, signal, ended, 0.95)
        return np.asarray((made - made.mean()) / made.std())

    assert np.corrcoef(followed(0.5, 0.0).ravel(), followed(0.5, 5.0).ravel())[0, 1] < 0.9
    np.testing.assert_allclose(followed(1e5, 0.0), followed(1e5, 5.0), atol=1e-3)


# --- the multiplier ---------------------------------------------------------------------------------------------------


def _ended(alpha, acting, difference, rule=RULE):
    state = EipoState(jnp.asarray(alpha), jnp.asarray(acting), jnp.asarray(1.0))
    return eipo.next_stage(state, jnp.asarray(0.0), jnp.asarray(difference), rule)


def test_alpha_rises_where_the_task_suffers_and_falls_where_it_does_not():
    assert float(_ended(0.5, TASK, -0.02).alpha) == pytest.approx(0.5 + 0.1 * 0.02)
    assert float(_ended(0.5, TASK, 0.02).alpha) == pytest.approx(0.5 - 0.1 * 0.02)
    assert float(_ended(0.5, TASK, 0.0).alpha) == 0.5
    assert float(_ended(0.5, TASK, -9.0).alpha) == pytest.approx(0.5 + 0.1 * 0.05)
    assert float(_ended(10.0, TASK, -9.0).alpha) == 10.0 and float(_ended(-10.0, TASK, 9.0).alpha) == -10.0


def test_alpha_moves_at_the_end_of_max_stages_only():
    assert float(_ended(0.5, BOTH, -0.02).alpha) == 0.5
    state = EipoState(jnp.asarray(0.5), jnp.asarray(TASK), jnp.asarray(1.0))
    assert float(eipo.next_stage(state, jnp.asarray(1.1), jnp.asarray(-0.02), RULE).alpha) == 0.5


def test_the_difference_of_two_policies_has_their_sign_and_the_tasks_size():
    rng = np.random.default_rng(0)
    old = jnp.asarray(np.log(rng.uniform(0.2, 0.8, 500)), jnp.float32)
    advantage = jnp.asarray(rng.normal(size=500) + 3.0, jnp.float32)
    towards = 0.1 * (advantage - jnp.mean(advantage))

    def difference(shift, scale=1.0):
        return float(eipo.task_difference(old + shift, old, scale * advantage, 0.2))

    assert difference(0.0) == pytest.approx(0.0, abs=1e-5)
    assert difference(towards) > 0.01 and difference(-towards) < -0.01
    assert difference(towards, 10.0) == pytest.approx(10.0 * difference(towards), rel=1e-3)
    assert difference(towards) <= float(jnp.mean(jnp.exp(towards) * (advantage - jnp.mean(advantage)))) + 1e-5


# --- stages -----------------------------------------------------------------------------------------------------------


def test_a_stage_lasts_as_long_as_its_mean_u_rises():
    state, seen = eipo.first_stage(0.5), []
    for objective in (1.0, 2.0, 2.5, 2.4, -7.0, -6.0, -6.0, 9.0, 8.0):
        seen.append(int(state.acting))
        state = eipo.next_stage(state, jnp.asarray(objective), jnp.asarray(0.0), RULE)
    assert seen == [BOTH] * 4 + [TASK] * 3 + [BOTH] * 2


def test_pi_ei_is_handed_over_whoever_acts():
    for acting in (TASK, BOTH):
        assert int(EipoState(jnp.zeros(()), jnp.asarray(acting), jnp.zeros(())).leader) == BOTH
    leaders = jax.vmap(lambda a: EipoState(a, jnp.asarray(TASK), a).leader)(jnp.zeros(3))
    assert leaders.tolist() == [BOTH] * 3
