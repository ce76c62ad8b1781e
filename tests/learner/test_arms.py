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
RULE = ArmRule(budget=0.05, haste=8.0, memory=32.0, sure=3.0, discount=0.9)


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


@pytest.fixture(scope="module")
def measured(random_rollout):
    """Rollouts of two arms, and the states before, between and after them: shares change, and episodes are cut."""
    spec, note = make("cartpole", ("harmful",)).spec, jax.jit(lambda state, rollout: arms.noted(state, rollout, RULE))
    states, rollouts = [arms.first_arms(2, 8)], []
    for seed, share in enumerate([0.5, 0.8, 0.004, 0.3, 0.6]):
        rollout = random_rollout(spec, 6, 8, seed=seed)
        rollout = rollout._replace(arm=jnp.asarray(np.random.default_rng(seed).integers(2, size=(6, 8))))
        before = states[-1]._replace(share=jnp.asarray([share, 1.0 - share], jnp.float32))
        states[-1] = before
        states.append(note(before, rollout))
        rollouts.append(rollout)
    return states, rollouts


def test_the_lowest_mean_is_that_of_all_times(measured):
    states, _ = measured
    means = [np.min(np.where(state.returns.known, state.returns.mean, np.inf)) for state in states]
    assert np.any(np.diff(means) > 0)
    np.testing.assert_array_equal([state.lowest for state in states], np.minimum.accumulate(means))


def test_the_certificate_is_the_sum_of_what_was_known_and_likely_when_each_episode_began(measured):
    """Against brute force; an episode that arm 0 had next to no chance to play is not counted."""
    states, rollouts = measured
    running, chance, sums, left_out = np.zeros(8), np.full(8, 0.5), np.zeros(4), 0
    length = np.zeros(8)
    for before, after, rollout in zip(states[:-1], states[1:], rollouts, strict=True):
        known, mean, lowest = (float(x) for x in (before.returns.known[0], before.returns.mean[0], before.lowest))
        steps, acted = jax.tree.map(np.asarray, (rollout.steps, rollout.arm))
        for t, n in np.ndindex(6, 8):
            running[n] += 0.9 ** length[n] * steps.reward[t, n]
            length[n] += 1
            if not (steps.terminated[t, n] or steps.truncated[t, n]):
                continue
            left_out += known and chance[n] < 0.01
            if known and chance[n] >= 0.01:
                of_first = mean + (running[n] - mean) / chance[n] * (acted[t, n] == 0)
                ahead = running[n] - lowest - 0.95 * (of_first - lowest)
                sums += [1.0, ahead, ahead**2, chance[n]]
            running[n], length[n], chance[n] = 0.0, 0, float(before.share[0])
        np.testing.assert_allclose(after.certificate, sums, rtol=1e-3, atol=1e-4)
    assert sums[0] > 10 and left_out > 0


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


def rate(progress):
    return 0.05 * 8.0 * (1.0 - progress) ** 7


@pytest.mark.parametrize("seed", range(10))
def test_policy_0_plays_all_but_the_budget_or_half_beside_another_leader(seed):
    """Whatever the others earn, and however many they are."""
    rng = np.random.default_rng(seed)
    num_arms, progress = int(rng.integers(2, 6)), rng.uniform(0, 0.5)
    state = _state(rng.uniform(0, 1, num_arms), rng.uniform(0, 0.5, num_arms))
    state = state._replace(leader=jnp.asarray(rng.integers(num_arms)))
    decision = arms.decided(state, jnp.asarray(progress, jnp.float32), RULE)
    share, leader = np.asarray(decision.share), int(decision.leader)
    tried = np.delete(share, sorted({0, leader}))
    np.testing.assert_allclose(tried, rate(progress) / (num_arms - 1), rtol=1e-4)
    assert share[0] == pytest.approx((1.0 - tried.sum()) / (1 if leader == 0 else 2), rel=1e-5)
    assert share.sum() == pytest.approx(1.0, abs=1e-5)


def test_over_a_training_the_whole_budget_is_spent():
    """A twentieth of the episodes, most of them early."""
    decide = jax.jit(lambda progress: arms.decided(_state([10.0, 0.5], [0.0, 0.0]), progress, RULE).share[1])
    progress = (np.arange(200) + 0.5) / 200
    tried = np.array([float(decide(jnp.asarray(x, jnp.float32))) for x in progress])
    assert tried.mean() == pytest.approx(0.05, rel=1e-2)
    assert tried[:50].sum() > 0.85 * tried.sum()


@pytest.mark.parametrize(
    ("mean", "led_by", "leads"),
    [([1.0, 1.4], 0, 0), ([1.0, 1.5], 0, 1), ([1.4, 1.0], 1, 1), ([1.5, 1.0], 1, 0), ([1.0, 1.1, 1.5], 1, 2)],
)
def test_who_leads_leads_until_another_one_surely_earns_more(mean, led_by, leads):
    """Three standard errors of the difference are 0.42."""
    state = _state(mean, np.full(len(mean), 0.1))._replace(leader=jnp.asarray(led_by))
    decision = arms.decided(state, jnp.asarray(0.5), RULE)
    assert int(decision.leader) == leads
    assert int(decision.model) == (leads if leads != led_by else 0)


def test_an_arm_that_nothing_is_known_of_is_tried_and_neither_leads_nor_is_copied():
    for known, count in (([-1.0, 0.0, -2.0], [32.0, 0.0, 32.0]), ([0.0, 0.0, 0.0], 0.0)):
        decision = arms.decided(_state(known, np.zeros(3), count=count, lowest=-3.0), jnp.asarray(0.5), RULE)
        assert (int(decision.leader), int(decision.model)) == (0, 0)
        assert float(decision.share[1]) == pytest.approx(0.5 * rate(0.5))


def test_an_arm_that_nothing_is_known_of_hides_none_that_is_surely_better():
    """Its mean reads 0, which is above all others here."""
    state = _state([-2.0, 0.0, -1.0], np.zeros(3), count=[32.0, 0.0, 32.0], lowest=-3.0)
    assert int(arms.decided(state, jnp.asarray(0.5), RULE).model) == 2


def test_who_was_taken_over_leads_and_an_arm_in_between_is_tried_only():
    decision = arms.decided(_state([0.0, 1.0, 5.0], [0.0, 0.0, 0.0], lowest=-1.0), jnp.asarray(0.5), RULE)
    assert int(decision.model) == int(decision.leader) == 2
    tried = 0.5 * rate(0.5)
    np.testing.assert_allclose(decision.share, [0.5 * (1 - tried), tried, 0.5 * (1 - tried)], rtol=1e-5)


def test_a_difference_of_next_to_nothing_is_none():
    """However sure: 1e-3 of what has been gained is not worth a copy."""
    small, large = (_state([1.0, 1.0 + ahead], [0.0, 0.0]) for ahead in (5e-4, 5e-3))
    assert [int(arms.decided(state, jnp.asarray(0.5), RULE).model) for state in (small, large)] == [0, 1]


def test_a_silent_task_is_led_by_the_policy_that_learns_from_it_alone():
    """Differences of rounding do not count."""
    for mean in ([0.0, 0.0], [-87.0, -87.00001], [-87.00001, -87.0]):
        decision = arms.decided(_state(mean, [0.0, 0.0], lowest=min(mean)), jnp.asarray(0.5), RULE)
        assert int(decision.leader) == int(decision.model) == 0
        assert float(decision.share[1]) == pytest.approx(rate(0.5))


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


def test_the_certificate_says_nothing_before_arm_0_may_have_played_64_episodes():
    """However clear it seems to be."""
    for chances, sign, verdict in ((63.0, 1.0, 0.0), (64.0, 1.0, 1.0), (64.0, -1.0, -1.0)):
        found = Certificate(*jnp.asarray([1000.0, sign * 1000.0, 1000.0, chances]))
        assert float(found.verdict()) == verdict


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
