"""Several policies side by side: who has which samples, what each has earned, and what trying costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmrl.envs import make
from llmrl.learner import arms
from llmrl.learner.arms import ArmRule, Certificate, Returns
from llmrl.learner.ppo import own_minibatches, shuffled_indices

KEY = jax.random.key(3)
RULE = ArmRule(budget=0.05, haste=8.0, memory=32.0, caution=1.0, sure=3.0, discount=0.9)


# --- whose samples ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 5, 16, 33, 64])
def test_each_policy_meets_each_of_its_samples_in_every_epoch_equally_often_and_no_others(count):
    own = np.random.default_rng(0).permutation(np.arange(64) < count)
    order = np.asarray(own_minibatches(KEY, jnp.asarray(own), num_epochs=3, num_minibatches=4)).reshape(3, 64)
    for epoch in order:
        times = np.bincount(epoch, minlength=64)
        assert np.all(times[~own] == 0)
        assert times[own].max() - times[own].min() <= 1


def test_one_policy_has_the_minibatches_of_plain_ppo():
    order = own_minibatches(KEY, jnp.ones(64, bool), num_epochs=3, num_minibatches=4)
    np.testing.assert_array_equal(order, shuffled_indices(KEY, 3, 64).reshape(12, 16))


def test_turns_are_drawn_with_the_arms_shares():
    share = jnp.asarray([0.2, 0.0, 0.8])
    drawn = np.asarray(arms.drawn_turns(KEY, share, 200, 100))
    np.testing.assert_allclose(np.bincount(drawn.ravel(), minlength=3) / drawn.size, share, atol=0.01)


# --- measured returns -------------------------------------------------------------------------------------------------


def test_returns_are_those_of_whole_episodes_forgotten_by_their_number(random_rollout):
    """Against brute force, across two rollouts: an episode that is cut in two by them counts once, in full."""
    spec = make("cartpole", ("harmful",)).spec
    rollouts = [random_rollout(spec, 9, 4, seed=seed) for seed in (1, 2)]
    rng = np.random.default_rng(0)
    turn, state, episodes = np.arange(4) % 2, arms.first_arms(2, 4), []
    running = [[] for _ in range(4)]
    total = np.zeros((3, 2))
    for rollout in rollouts:
        steps, acted, ended_now = rollout.steps, np.zeros((9, 4), int), []
        for t in range(9):
            for n in range(4):
                acted[t, n] = turn[n]
                running[n].append(float(steps.reward[t, n]))
                if steps.terminated[t, n] or steps.truncated[t, n]:
                    ended_now.append((turn[n], sum(r * 0.9**i for i, r in enumerate(running[n]))))
                    running[n], turn[n] = [], rng.integers(2)
        state = arms.noted(state, rollout._replace(arm=jnp.asarray(acted)), RULE)
        for k in range(2):
            own = np.array([value for arm, value in ended_now if arm == k])
            kept = np.exp(-len(own) / 32.0)
            total[:, k] = kept * total[:, k] + [len(own), own.sum(), np.square(own).sum()]
        episodes += ended_now
    assert len(episodes) > 3
    np.testing.assert_allclose(np.stack(state.returns), total, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_episode_with_a_reward_that_is_no_number_is_left_out(random_rollout, bad):
    """It would stay in the sums of every arm for ever; all other episodes count as without it."""
    rollout = random_rollout(make("cartpole", ("harmful",)).spec, 9, 4)
    rollout = rollout._replace(arm=jnp.broadcast_to(jnp.arange(4) % 2, (9, 4)))
    steps = rollout.steps._replace(terminated=jnp.zeros((9, 4), bool).at[4].set(True).at[8].set(True))
    rollout = rollout._replace(steps=steps._replace(truncated=jnp.zeros((9, 4), bool)))
    first = arms.noted(arms.first_arms(2, 4), rollout, RULE)
    spoiled = rollout._replace(steps=rollout.steps._replace(reward=rollout.steps.reward.at[2, 0].set(bad)))
    found = arms.noted(first, spoiled, RULE)
    whole = arms.noted(first, rollout, RULE)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((found.returns, found.certificate, found.discounted)))
    np.testing.assert_array_equal([x[1] for x in found.returns], [x[1] for x in whole.returns])
    kept = np.exp(-3 / 32)  # three of arm 0's four episodes are left
    np.testing.assert_allclose(found.returns.episodes[0], kept * first.returns.episodes[0] + 3, rtol=1e-5)
    assert np.all(np.isfinite(arms.decided(found, jnp.asarray(0.5), RULE).share))


# --- the rule ---------------------------------------------------------------------------------------------------------


def _state(mean, error, count=32.0, lowest=0.0):
    """Arms with these means and standard errors."""
    mean, error = np.asarray(mean, np.float32), np.asarray(error, np.float32)
    count = np.broadcast_to(np.asarray(count, np.float32), mean.shape)
    squares = count * (np.square(mean) + np.square(error) * np.maximum(count, 1.0))
    returns = Returns(*(jnp.asarray(x, jnp.float32) for x in (count, count * mean, squares)))
    share = jnp.full(len(mean), 1.0 / len(mean))
    first = arms.first_arms(len(mean), 4)
    return first._replace(returns=returns, lowest=jnp.asarray(lowest, jnp.float32), share=share)


@pytest.mark.parametrize("seed", range(20))
def test_what_is_lost_to_trying_stays_within_the_budget(seed):
    """The expected loss of a rollout's episodes is at most the rate's share of what the leader has gained."""
    rng = np.random.default_rng(seed)
    num_arms = int(rng.integers(2, 5))
    mean, error, progress = rng.uniform(0, 2, num_arms), rng.uniform(0, 0.2, num_arms), rng.uniform()
    decision = arms.decided(_state(mean, error), jnp.asarray(progress, jnp.float32), RULE)
    share, leader = np.asarray(decision.share), int(decision.leader)
    mean[0], error[0] = mean[int(decision.model)], error[int(decision.model)]
    gap = mean[leader] - mean - np.sqrt(np.square(error[leader]) + np.square(error))
    assert share.sum() == pytest.approx(1.0, abs=1e-5) and np.all(share >= 0)
    rate = 0.05 * 8.0 * (1.0 - progress) ** 7
    assert np.sum(share * np.maximum(gap, 0.0)) <= rate * mean[leader] + 1e-5


def test_over_a_training_the_whole_budget_is_spent():
    """On an arm that is always far behind, a twentieth of what the leader has gained, and most of it early."""
    decide = jax.jit(lambda progress: arms.decided(_state([10.0, 0.5], [0.0, 0.0]), progress, RULE).share[1])
    progress = (np.arange(200) + 0.5) / 200
    lost = np.array([float(decide(jnp.asarray(x, jnp.float32))) * 9.5 for x in progress])
    assert lost.mean() == pytest.approx(0.05 * 10.0, rel=1e-2)
    assert lost[:50].sum() > 0.85 * lost.sum()


def test_arms_that_earn_the_same_share_evenly():
    decision = arms.decided(_state([1.0, 1.0], [0.1, 0.1]), jnp.asarray(0.9), RULE)
    np.testing.assert_allclose(decision.share, 0.5)
    assert int(decision.model) == 0


def test_a_silent_task_is_led_by_the_policy_that_learns_from_it_alone():
    decision = arms.decided(_state([0.0, 0.0], [0.0, 0.0]), jnp.asarray(0.5), RULE)
    assert int(decision.leader) == 0
    assert float(decision.share[1]) == pytest.approx(0.05 * 8.0 * 0.5**7)


@pytest.mark.parametrize(
    ("mean", "error", "count", "source"),
    [
        ([1.0, 2.0], [0.1, 0.1], 32.0, 1),
        ([1.0, 1.3], [0.1, 0.1], 32.0, 0),  # three standard errors are 0.42
        ([2.0, 1.0], [0.1, 0.1], 32.0, 0),
        ([1.0, 2.0], [0.1, 0.1], [32.0, 7.0], 0),  # too few episodes
        ([1.0, 2.0, 3.0], [0.1, 0.1, 0.1], 32.0, 2),
    ],
)
def test_policy_0_takes_over_who_surely_earns_more(mean, error, count, source):
    decision = arms.decided(_state(mean, error, count), jnp.asarray(0.5), RULE)
    assert int(decision.model) == source
    tree = {"x": jnp.arange(len(mean) * 2.0).reshape(-1, 2)}
    taken = arms.copied(tree, decision.model)["x"]
    np.testing.assert_array_equal(taken[0], tree["x"][source])
    np.testing.assert_array_equal(taken[1:], tree["x"][1:])


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_the_size_of_the_tasks_reward_does_not_matter(scale):
    one, other = (
        arms.decided(_state(s * np.array([1.0, 0.4]), s * np.array([0.1, 0.1]), lowest=-s), jnp.asarray(0.3), RULE)
        for s in (1.0, scale)
    )
    np.testing.assert_allclose(one.share, other.share, rtol=1e-4)
    assert int(one.model) == int(other.model) and int(one.leader) == int(other.leader)


# --- the certificate --------------------------------------------------------------------------------------------------


def _ever_wrong(loss, chance, seed):
    """Shares of 10,000 sequences of 2,000 episodes that are ever called better, or worse, than 95 % of arm 0."""
    rng = np.random.default_rng(seed)
    episodes, sequences = 2000, 10_000
    verdict_of = jax.jit(jax.vmap(Certificate.verdict))
    total, squares, better, worse = (np.zeros(sequences, np.float32) for _ in range(4))
    of_first = np.zeros(sequences)
    for i in range(1, episodes + 1):
        by_first = rng.random(sequences) < chance
        # Skewed, as returns are; arm 0 earns 1 on average and the other one (1 - loss).
        returns = rng.exponential(np.where(by_first, 1.0, 1.0 - loss))
        known = of_first / max(1, i - 1)
        ahead = returns - 0.95 * (known + np.where(by_first, (returns - known) / chance, 0.0))
        of_first += np.where(by_first, returns / chance, 0.0)
        total, squares = total + ahead, squares + np.square(ahead)
        if i % 16 == 0:  # a rollout's episodes are judged together
            known_chances = np.full(sequences, i * chance, np.float32)
            verdict = np.asarray(
                verdict_of(Certificate(np.full(sequences, i, np.float32), total, squares, known_chances))
            )
            better, worse = np.maximum(better, verdict == 1.0), np.maximum(worse, verdict == -1.0)
    return better.mean(), worse.mean()


@pytest.mark.parametrize("chance", [0.5, 0.2, 0.1])
def test_the_certificate_is_wrong_in_at_most_a_twentieth_of_all_sequences(chance):
    """The arms together earn exactly 95 % of arm 0: whoever says anything is wrong."""
    loss = 0.05 / (1.0 - chance)
    better, worse = _ever_wrong(loss, chance, seed=0)
    assert better <= 0.05 and worse <= 0.05


def test_the_certificate_tells_what_is_much_better_and_much_worse():
    assert _ever_wrong(-0.5, 0.5, seed=1)[0] > 0.95
    assert _ever_wrong(0.8, 0.5, seed=2)[1] > 0.95


def test_arms_follow_nothing_all_each_and_what_is_learned_once():
    """Of one source, ``each`` is ``all``."""
    follow = ("none", "all", "each", "learned")
    fixed = [(0, 0), (1, 1), (1, 0), (0, 1)]
    assert [arm[1:] for arm in arms.arms_of(follow, ("a", "b"))] == [*((row, False) for row in fixed), ((1, 1), True)]
    assert [arm.name for arm in arms.arms_of(follow, ("a",))] == ["the task alone", "a", "a, learned"]
