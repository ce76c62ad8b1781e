"""The outer level: which data serve which loss, when it steps, and what stops or shrinks a step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from plain import make_weights

from llmrl.bilevel.types import HypergradientInfo
from llmrl.learner.memory import split_rollout
from llmrl.learner.meta import MetaSettings, OuterLevel, make_meta, outer_optimizer
from llmrl.learner.meta_problem import Part, ProblemSettings
from llmrl.learner.ppo import Params
from llmrl.learner.problem import InnerProblem
from llmrl.nets import Critic, Policy
from llmrl.ops.distributions import Categorical
from llmrl.rewards import task
from llmrl.trust.blend import MixtureState, mixture
from llmrl.trust.evidence import (
    EventGains,
    GainSums,
    Significance,
    SourceEvidence,
    agreement,
    balance,
    event_gains,
    no_evidence,
    recorded,
    significance,
)
from llmrl.trust.limits import no_limits
from llmrl.trust.task_statistics import no_task_statistics, observed
from llmrl.types import Discrete, EnvSpec, Stream

SPEC = EnvSpec("none", (2,), Discrete(2), 10, ("first", "second"))
T, N = 6, 4
KEY = jax.random.key(0)


def streams(**weights):
    return (Stream(task(), 0.0), Stream(mixture(SPEC, make_weights(SPEC, hidden=(4,), **weights)), 1.0))


# --- the gate ---------------------------------------------------------------------------------------------------------


def test_agreement_of_scalars_is_that_of_their_signs_each_by_itself():
    first, second = jnp.asarray([1.0, -2.0, 3.0, 0.0]), jnp.asarray([0.1, -5.0, -3.0, 1.0])
    assert agreement(first, second, "scalar").tolist() == [1.0, 1.0, 0.0, 0.0]


def test_agreement_of_networks_is_their_cosine_and_never_negative():
    first = {"a": jnp.asarray([3.0, 0.0]), "b": jnp.asarray([[4.0]])}
    second = {"a": jnp.asarray([0.0, 0.0]), "b": jnp.asarray([[2.0]])}
    np.testing.assert_allclose(agreement(first, second, "network"), 0.8, rtol=1e-6)
    assert agreement(first, optax.tree.scale(-1.0, second), "network") == 0
    assert agreement(first, optax.tree.zeros_like(second), "network") == 0
    np.testing.assert_allclose(agreement(first, first, "offset"), 1.0, rtol=1e-6)


# --- data and schedule: a policy, a critic and a hypergradient that tell what they were given -------------------------

# Logits (0, obs): the entropy of a policy that is asked about a rollout tells which rollout it was.
TELLING_POLICY = Policy(
    lambda key: jnp.ones(1),
    lambda theta, obs: Categorical(jax.nn.log_softmax(jnp.stack([0 * obs[..., 0], theta[0] * obs[..., 0]], axis=-1))),
)
NO_CRITIC = Critic(lambda key: (), lambda params, obs: jnp.zeros((*obs.shape[:-1], 2)))
NOTHING_KNOWN = Significance()
BLEND_STATE = MixtureState(no_limits(2).init())
TELLING = InnerProblem(streams(network=False, bound=None), TELLING_POLICY, NO_CRITIC, 0.9, 0.8, 1.0)
PARAMS = Params(jnp.ones(1), ())
START = ({}, {"scalar": jnp.asarray([0.25, -0.5])})
PROBLEM = ProblemSettings("ratio", 2.0, "hessian", Part(), 0.1, lambda phis: jnp.zeros(()))
SETTINGS = MetaSettings(
    cross_fitting=True,
    gate=True,
    evidence_memory=0.98,
    data="fresh",
    window=4,
    follows_updates=False,
    schedule="online",
    every=1,
    warmup=0,
    converged_kl=1e-3,
    scale_decay=0.998,
    gae_lambda=0.8,
)


def telling_meta(tell, gains=None, known=NOTHING_KNOWN, momentum=None, **settings):
    """An outer level of plain descent, whose estimate is ``tell(problem, theta, variables)`` in every element; more of
    what was learned is worth ``gains``, [2]. The blend starts with ``known``; it goes by the metric ``known``. What is
    reported of an estimate are multiples of it."""

    def gradient(problem, theta, variables, key):
        value = tell(problem, theta, variables)
        info = HypergradientInfo(value, jnp.int32(2), 3 * value, 4 * value, 5 * value, 6 * value)
        found = jax.tree.map(lambda x: jnp.zeros_like(x) + value, variables)
        if gains is not None:
            found = found._replace(significance=found.significance._replace(scalar=-jnp.asarray(gains)))
        return found, info

    meta = make_meta(OuterLevel(TELLING, gradient, optax.sgd(1.0, momentum), SETTINGS._replace(**settings), PROBLEM))

    def init(phis, rollout):
        blend = BLEND_STATE._replace(significance=known)
        return meta.init(phis, (no_task_statistics(), blend), PARAMS, rollout)

    def update(phis, state, rollout, index=0, last_kl=1.0, events=1.0):
        # The rollouts here pay constants; the task has had so many reward events before.
        task = observed(no_task_statistics(), rollout)._replace(event_count=jnp.asarray(events))
        last_kl = jnp.asarray(last_kl, jnp.float32)
        states = (task, BLEND_STATE._replace(significance=significance(state.evidence)))
        given = (phis, state, states, PARAMS, rollout, KEY, jnp.asarray(index), last_kl)
        phis, state, (_, blend), metrics = meta.update(*given)
        return phis, state, metrics | {"known": blend.significance}

    return init, jax.jit(update)


def moved(before, after):
    """How far descent moved each source's number."""
    return np.asarray(before[1]["scalar"] - after[1]["scalar"])


@pytest.fixture(scope="module")
def rollout_of(random_rollout):
    """A rollout that says one number everywhere, and pays nothing unless told otherwise."""

    @functools.cache
    def make(number, paying=()):
        paid = np.isin(np.arange(N), paying) * np.ones((T, 1), np.float32)
        never = np.zeros((T, N), bool)
        return random_rollout(
            SPEC,
            T,
            N,
            obs=np.full((T, N, 2), number, np.float32),
            reward=paid.astype(np.float32),
            aux=np.stack([paid, 2 * paid], axis=-1).astype(np.float32),
            terminated=never,
            truncated=never,
        )

    return make


def entropy_of(number):
    p = 1 / (1 + np.exp(-number))
    return -p * np.log(p) - (1 - p) * np.log(1 - p)


EXPECTED = {
    "fresh": [(1,), (2,), (3,), (4,)],
    "previous": [(0,), (1,), (2,), (3,)],
    "window": [(0, 0, 1), (0, 1, 2), (1, 2, 3), (2, 3, 4)],
    "past": [(0, 0, 0), (0, 0, 1), (0, 1, 2), (1, 2, 3)],
}


@pytest.mark.parametrize(
    ("data", "cross_fitting"),
    [("fresh", True), ("previous", True), ("window", True), ("window", False), ("past", True), ("past", False)],
)
def test_the_inner_level_sees_the_rollouts_it_should(rollout_of, data, cross_fitting):
    init, update = telling_meta(
        lambda problem, theta, variables: problem.inner_loss(theta, variables),
        data=data,
        window=3,
        cross_fitting=cross_fitting,
    )
    phis, state = START, init(START, rollout_of(0))
    for number, numbers in enumerate(EXPECTED[data], start=1):
        after, state, metrics = update(phis, state, rollout_of(number))
        # Nothing was paid, so the loss is minus the entropy.
        np.testing.assert_allclose(moved(phis, after), -np.mean([entropy_of(n) for n in numbers]), rtol=1e-4)
        assert metrics["meta_step"] == 1
        phis = after


@pytest.mark.parametrize(("data", "window"), [("past", 3), ("previous", 7)])
def test_past_updates_are_remembered_as_they_were_taken(rollout_of, data, window):
    """On which rollout, and with which phi; the newest rollout is never among them, for nobody has learned from it."""
    kept = window if data == "past" else 1

    def tell(problem, theta, variables):
        """The numbers of the rollouts that updates were taken on, as digits, the last in front of the point."""
        numbers = problem.past.data[1].rollout.steps.obs[:, 0, 0, 0]
        return jnp.sum(jnp.where(problem.past.taken > 0, numbers * 0.1 ** jnp.arange(float(kept))[::-1], 0.0))

    init, update = telling_meta(tell, data=data, window=window, follows_updates=True, cross_fitting=False)
    phis, state = START, init(START, rollout_of(0))
    for number in range(1, 6):
        after, state, _ = update(phis, state, rollout_of(number))
        seen = list(range(1, number))[-kept:]
        np.testing.assert_allclose(moved(phis, after), sum(n * 0.1**i for i, n in enumerate(seen[::-1])), rtol=1e-4)
        # The inner level is about to follow the phi that this step has made.
        np.testing.assert_array_equal(state.memory.phis[1]["scalar"][-1], after[1]["scalar"])
        np.testing.assert_array_equal(state.memory.taken, [0.0] * (kept - number) + [1.0] * min(kept, number))
        phis = after


def test_past_updates_need_old_data_and_no_cross_fitting():
    for settings in ({"data": "fresh", "cross_fitting": False}, {"data": "past", "cross_fitting": True}):
        with pytest.raises(ValueError, match=settings["data"]):
            telling_meta(one, follows_updates=True, **settings)


@pytest.mark.parametrize("data", EXPECTED)
def test_cross_fitting_never_judges_an_environment_by_itself(rollout_of, data):
    """Only the first half pays, task and sources alike: one half cannot be both evidence for phi and its judge."""

    def tell(problem, theta, variables):
        inner_pays = optax.tree.norm(jax.grad(lambda v: problem.inner_loss(theta, v))(variables)) > 0
        outer_pays = jnp.abs(problem.outer_loss(theta, variables)) > 0
        return jnp.where(inner_pays, 1.0, 0.0) + jnp.where(outer_pays, 10.0, 0.0)

    for cross_fitting, expected in ((True, (1 + 10) / 2), (False, 1 + 10)):
        init, update = telling_meta(tell, data=data, window=2, cross_fitting=cross_fitting)
        rollout = rollout_of(1, (0, 1))
        after, _, metrics = update(START, init(START, rollout), rollout)
        np.testing.assert_allclose(moved(START, after), expected)
        # The gate is open, so both estimates are positive: were one half both, it would be 11 and the other 0.
        assert metrics["meta_gate"] == 1


def test_halves_are_halves_of_the_environments(random_rollout):
    rollout = random_rollout(SPEC, T, N)
    halves = split_rollout(rollout)
    for half in range(2):
        envs = slice(half * N // 2, (half + 1) * N // 2)
        np.testing.assert_array_equal(halves.steps.obs[half], rollout.steps.obs[:, envs])
        np.testing.assert_array_equal(halves.final_action[half], rollout.final_action[envs])


@pytest.fixture(scope="module")
def two_numbers(rollout_of):
    """A rollout whose halves of the environments say 1 and 3."""
    first, second = (rollout_of(number).steps for number in (1, 3))
    joined = jax.tree.map(lambda a, b: jnp.concatenate([a[:, :2], b[:, 2:]], axis=1), first, second)
    return rollout_of(1)._replace(steps=joined)


LOSSES = -entropy_of(1), -entropy_of(3)
"""L_aux of either half: nothing was paid."""


@pytest.fixture(scope="module", params=[0.0, -np.mean(LOSSES)], ids=["of one sign", "of two signs"])
def two_estimates(two_numbers, request):
    """What the halves' estimates are, and an update by them: they differ in size, or in sign."""
    known = Significance(scalar=jnp.zeros(2))
    init, update = telling_meta(lambda p, theta, v: p.inner_loss(theta, v) + request.param, known=known)
    return np.asarray(LOSSES) + request.param, update(START, init(START, two_numbers), two_numbers)


def test_the_gate_lets_only_agreed_steps_pass(two_estimates):
    estimates, (after, _, metrics) = two_estimates
    agreed = float(np.prod(estimates) > 0)
    np.testing.assert_allclose(moved(START, after), agreed * np.mean(estimates), atol=1e-5)
    assert metrics["meta_gate"] == agreed


def test_evidence_is_of_both_halves_agreed_or_not(two_estimates):
    estimates, (_, state, _) = two_estimates
    np.testing.assert_allclose(state.evidence.scalar.gain, -np.mean(estimates), atol=1e-5)


def test_what_is_reported_is_the_mean_of_both_estimates_and_the_sum_of_their_products(two_estimates):
    estimates, (_, _, metrics) = two_estimates
    names = ("residual", "cut", "damping", "solution_norm", "outer_gradient_norm")
    told = [metrics[f"meta_{name}"] for name in names]
    np.testing.assert_allclose(told, np.mean(estimates) * np.array([1, 3, 4, 5, 6]), atol=1e-5)
    assert metrics["meta_matvecs"] == 2 + 2


def test_the_outer_gradient_at_hand_is_that_of_the_loss_it_stands_for(two_numbers):
    """It is computed on each half beforehand, and then changes sides as the data do."""

    def tell(problem, theta, variables):
        expected = jax.grad(problem.outer_loss, argnums=(0, 1))(theta, variables)
        found = problem.outer_gradient(theta, variables)
        return optax.tree.norm(optax.tree.sub(found, expected)) + jnp.where(optax.tree.norm(expected) > 1e-2, 10.0, 0.0)

    rollout = two_numbers._replace(steps=two_numbers.steps._replace(reward=two_numbers.steps.obs[..., 0]))
    init, update = telling_meta(tell)
    after, _, _ = update(START, init(START, rollout), rollout)
    np.testing.assert_allclose(moved(START, after), 10.0, rtol=1e-6)


def test_the_task_judges_by_the_outer_levels_own_lambda(random_rollout):
    """At lambda 1 an advantage is the return that follows, as the critic says nothing; the inner level has 0.8."""
    never, seen = np.zeros((T, N), bool), np.ones((T, N, 2), np.float32)
    rollout = random_rollout(SPEC, T, N, terminated=never, truncated=never, obs=seen)
    acted = TELLING_POLICY.distribution(PARAMS.actor, rollout.steps.obs).log_prob(rollout.steps.action)
    rollout = rollout._replace(steps=rollout.steps._replace(log_prob=acted))
    init, update = telling_meta(lambda p, theta, v: p.outer_loss(theta, v), cross_fitting=False, gae_lambda=1.0)
    after, state, _ = update(START, init(START, rollout), rollout)
    reward = np.asarray(rollout.steps.reward)
    returns = np.stack([0.9 ** np.arange(T - t) @ reward[t:] for t in range(T)])
    np.testing.assert_allclose(state.outer_scale, returns.std(), rtol=1e-5)
    np.testing.assert_allclose(moved(START, after), -returns.mean() / returns.std(), rtol=1e-4)


def test_the_outer_optimiser_remembers_its_steps_and_those_not_due_are_none(rollout_of):
    """Steps of 1 with a momentum that forgets nothing grow by 1 each."""
    init, update = telling_meta(one, momentum=1.0, every=2)
    phis, state, lengths = START, init(START, rollout_of(0)), []
    for index in range(6):
        after, state, _ = update(phis, state, rollout_of(1), index)
        lengths.append(moved(phis, after)[0])
        phis = after
    np.testing.assert_allclose(lengths, [0, 1, 0, 2, 0, 3], rtol=1e-6)


def one(problem, theta, variables):
    return jnp.ones(())


def test_before_the_tasks_first_reward_event_nothing_moves(rollout_of):
    init, update = telling_meta(one, known=Significance(scalar=jnp.zeros(2)))
    silent = init(START, rollout_of(0))
    phis, state, _ = update(START, silent, rollout_of(1), events=0.0)
    jax.tree.map(np.testing.assert_array_equal, (phis, state.evidence), (START, silent.evidence))
    after, _, _ = update(phis, state, rollout_of(1), events=1.0)
    np.testing.assert_allclose(moved(phis, after), 1.0)


def test_evidence_is_what_later_rollouts_confirm_again_and_again(rollout_of):
    """It rises to 1 where more of what was learned is worth something each time, and stays 0 where it is not, and where
    it was so once."""

    rollout, known = rollout_of(1, (0, 1)), Significance(scalar=jnp.zeros(2))
    for worth, expected in ((3.0, [1.0, 0.0]), (-0.1, [0.0, 1.0]), (0.0, [0.0, 0.0])):
        init, update = telling_meta(lambda *_: jnp.zeros(()), gains=[worth, -worth], known=known)
        phis, state, shares = START, init(START, rollout), []
        for _ in range(8):
            phis, state, metrics = update(phis, state, rollout)
            shares.append(np.asarray(metrics["known"].scalar))
        np.testing.assert_allclose(shares[0], 0.0, atol=1e-6)
        assert np.all(np.diff(shares, axis=0) >= 0)
        np.testing.assert_allclose(shares[-1], expected, atol=1e-6)
        np.testing.assert_array_equal(phis[1]["scalar"], START[1]["scalar"])  # evidence itself moves no weight


def test_the_worth_of_words_is_what_a_tabular_policy_gains_by_following_them():
    """dJ / d epsilon where a softmax over a table of logits moves by epsilon r, the natural gradient of r itself."""
    rng = np.random.default_rng(0)
    played = rng.integers(1, 6, (4, 3))  # how often each action was taken in each state
    value, words = rng.normal(size=(4, 3)), rng.normal(size=(4, 3))
    often = jnp.asarray(played.sum(1) / played.sum())

    def task_return(logits):
        return jnp.sum(often * jnp.sum(jax.nn.softmax(logits) * value, axis=-1))

    policy = played / played.sum(1, keepdims=True)
    _, slope = jax.jvp(task_return, (jnp.log(policy),), (jnp.asarray(words),))
    advantage = value - np.sum(policy * value, axis=1, keepdims=True)
    surprise, said = (np.repeat(x.reshape(-1), played.reshape(-1))[:, None] for x in (advantage, words))
    aux = jnp.asarray(np.stack([said, -2 * said], axis=-1), jnp.float32)
    # A critic that is late everywhere by the same amount changes nothing.
    for late in (0.0, 3.0):
        worth = event_gains(aux, jnp.asarray(surprise + late, jnp.float32))
        np.testing.assert_allclose(worth.net / float(played.sum()), [slope, -2 * slope], rtol=1e-4)
        assert np.all(worth.total >= np.abs(worth.net))


def test_advice_is_judged_by_the_gains_of_events_and_not_by_a_gradient(rollout_of):
    """The first environments pay, task and sources alike, so that the task's advantage agrees with both sources."""
    rollout, known = rollout_of(1, (0, 1)), Significance(advice=jnp.zeros(2), balance=jnp.zeros(2))
    init, update = telling_meta(lambda *_: jnp.zeros(()), known=known)
    phis, state = START, init(START, rollout)
    for _ in range(5):
        phis, state, metrics = update(phis, state, rollout)
    np.testing.assert_allclose(metrics["known"].advice, 1.0)
    net, total = event_gains(rollout.steps.aux, rollout.steps.reward)
    assert np.all(metrics["known"].balance > 0.0) and np.all(net <= total)
    assert metrics["known"].scalar is None and metrics["known"].network is None


def test_balance_is_the_share_of_good_words_however_many_there_were():
    """Two good words for each bad one are a third; as many bad ones, or more, are nothing."""
    aux = jnp.asarray(np.tile([[[1.0, 1.0]], [[1.0, 1.0]], [[1.0, 0.0]], [[0.0, -1.0]]], (5, 1, 1)), jnp.float32)
    advantage = jnp.asarray(np.tile([[1.0], [-1.0], [1.0], [-1.0]], (5, 1)), jnp.float32)
    for rollouts in (1, 20):
        evidence = SourceEvidence(balance=EventGains(*jnp.zeros((2, 2))))
        for _ in range(rollouts):
            evidence = recorded(evidence, Significance(), event_gains(aux, advantage), 1.0, 0.9)
        events = evidence.balance
        np.testing.assert_allclose(balance(events), [1 / 3, 1 / 3], rtol=1e-5)
        np.testing.assert_allclose(balance(events._replace(net=-events.net)), 0.0)


def test_what_a_solved_task_says_does_not_move_the_balance():
    """Evidence counts all words; the balance those alone of rollouts in which episodes went without success."""
    evidence = no_evidence(Significance(advice=jnp.zeros(1), balance=jnp.zeros(1)))
    worth, other = (
        EventGains(jnp.asarray([1.0]), jnp.asarray([4.0])),
        EventGains(jnp.asarray([3.0]), jnp.asarray([3.0])),
    )
    for of, silent in [(worth, 0.5)] + [(other, 0.0)] * 30:
        evidence = recorded(evidence, Significance(), of, silent, 0.9)
    np.testing.assert_allclose(significance(evidence).balance, 0.25, rtol=1e-5)
    assert float(evidence.advice.gain[0]) > 25.0


def test_the_spread_of_evidence_is_that_of_noise_of_the_gains_size():
    """Against brute force: of the sum of weighted gains, the sum of the squares of what was added up."""
    gains, memory = np.random.default_rng(0).normal(size=(7, 2)), 0.7
    evidence, nothing = SourceEvidence(GainSums(*jnp.zeros((2, 2)))), EventGains(*jnp.zeros((2, 2)))
    for gain in jnp.asarray(gains, jnp.float32):
        evidence = recorded(evidence, Significance(scalar=-gain), nothing, 1.0, memory)
    weighted = memory ** np.arange(7)[::-1, None] * gains
    np.testing.assert_allclose(evidence.scalar.gain, weighted.sum(axis=0), rtol=1e-5)
    np.testing.assert_allclose(evidence.scalar.spread, np.square(weighted).sum(axis=0), rtol=1e-5)


def test_noise_confirms_nothing():
    """Gains around nothing pass for a signal far less often than faint ones that are there every time."""
    rng = np.random.default_rng(0)

    def share(signal, steps=100, sources=400):
        evidence, nothing = SourceEvidence(GainSums(*jnp.zeros((2, sources)))), EventGains(*jnp.zeros((2, sources)))
        for _ in range(steps):
            gains = jnp.asarray(signal + rng.normal(size=sources), jnp.float32)
            evidence = recorded(evidence, Significance(scalar=-gains), nothing, 1.0, 0.99)
        return np.asarray(significance(evidence).scalar)

    assert share(0.0).mean() < 0.12 and share(-0.3).mean() < 0.01 and share(0.3).mean() > 0.6


def test_online_steps_at_every_nth_iteration_only(rollout_of):
    init, update = telling_meta(one, every=3)
    phis, state, stepped = START, init(START, rollout_of(0)), []
    for index in range(7):
        after, state, metrics = update(phis, state, rollout_of(1), index)
        np.testing.assert_allclose(moved(phis, after), float(metrics["meta_step"]))
        stepped.append(int(metrics["meta_step"]))
        phis = after
    assert stepped == [0, 0, 1, 0, 0, 1, 0]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"warmup": 3}, [0, 0, 0, 1, 1, 1, 1]),
        ({"warmup": 3, "every": 2}, [0, 0, 0, 1, 0, 1, 0]),
        ({"warmup": 3, "every": 2, "schedule": "converged"}, [0, 0, 0, 1, 0, 1, 0]),
    ],
)
def test_nothing_is_learned_before_the_warm_up_ends(rollout_of, settings, expected):
    init, update = telling_meta(one, **settings)
    phis, state, stepped = START, init(START, rollout_of(0)), []
    for index in range(7):
        after, state, metrics = update(phis, state, rollout_of(1), index)
        np.testing.assert_allclose(moved(phis, after), float(metrics["meta_step"]))
        stepped.append(int(metrics["meta_step"]))
        phis = after
    assert stepped == expected


def test_converged_waits_for_the_policy_to_stand_still_but_not_for_ever(rollout_of):
    init, update = telling_meta(one, schedule="converged", every=3, converged_kl=0.01)
    phis, state, stepped = START, init(START, rollout_of(0)), []
    for last_kl in (np.inf, 1.0, 1.0, 1.0, 0.001, 0.001, 1.0, 1.0, 1.0):
        phis, state, metrics = update(phis, state, rollout_of(1), 0, last_kl)
        stepped.append(int(metrics["meta_step"]))
    assert stepped == [0, 0, 1, 0, 1, 1, 0, 0, 1]


def test_the_outer_scale_is_a_slowly_forgotten_maximum(rollout_of):
    init, update = telling_meta(one, scale_decay=0.9)
    state, scales = init(START, rollout_of(0)), []
    for paying in ((), (0, 1), (0,), ()):
        _, state, _ = update(START, state, rollout_of(1, paying))
        scales.append(float(state.outer_scale))
    assert 0 < scales[0] < 1e-6 < scales[1]
    np.testing.assert_allclose(scales[2], max(0.9 * scales[1], scales[2]))
    np.testing.assert_allclose(scales[3], 0.9 * scales[2], rtol=1e-6)


def test_an_estimate_that_is_not_finite_moves_nothing(rollout_of):
    """And the next one is as good as ever."""

    def tell(problem, theta, variables):
        # The second half's estimate is fine, the first's is not; the next rollout has no such half.
        return jnp.where(problem.outer_loss(theta, variables) != 0, jnp.nan, 1.0)

    init, update = telling_meta(tell, known=Significance(scalar=jnp.zeros(2)))
    before, state, _ = update(START, init(START, rollout_of(0)), rollout_of(1))
    after, skipped, metrics = update(before, state, rollout_of(1, (0, 1)))
    assert metrics["meta_skipped"] == 1
    same = (after, skipped.evidence), (before, state.evidence)
    assert [x.tobytes() for x in jax.tree.leaves(same[0])] == [x.tobytes() for x in jax.tree.leaves(same[1])]
    last, _, metrics = update(after, skipped, rollout_of(1))
    assert metrics["meta_skipped"] == 0
    np.testing.assert_allclose(moved(after, last), 1.0)


# --- the optimiser ----------------------------------------------------------------------------------------------------


def test_every_group_steps_at_its_own_rate_after_a_joint_clip():
    phis = ({}, {"scalar": jnp.zeros(2), "network": {"w": jnp.zeros(2)}})
    gradient = ({}, {"scalar": jnp.asarray([3.0, 0.0]), "network": {"w": jnp.asarray([0.0, 4.0])}})
    rates = {"scalar": 0.5, "network": 0.1, "offset": 7.0}
    optimizer = outer_optimizer("sgd", rates, 1.0)
    steps = optimizer.update(gradient, optimizer.init(phis), phis)[0][1]
    np.testing.assert_allclose(steps["scalar"], [-0.5 * 3 / 5, 0.0], rtol=1e-5)
    np.testing.assert_allclose(steps["network"]["w"], [0.0, -0.1 * 4 / 5], rtol=1e-5)


@pytest.mark.parametrize("name", ["adam", "amsgrad"])
def test_amsgrad_steps_shrink_with_the_signal_and_adams_do_not(name):
    phis = ({"scalar": jnp.zeros(1)},)
    optimizer = outer_optimizer(name, {"scalar": 1.0}, 1e9)

    def size_after(gradients):
        def step(state, gradient):
            steps, state = optimizer.update(({"scalar": gradient[None]},), state, phis)
            return state, steps[0]["scalar"][0]

        return jnp.abs(jax.lax.scan(step, optimizer.init(phis), gradients)[1][-1])

    strong, weak = jnp.ones(3000), jnp.concatenate([jnp.ones(100), jnp.full(2900, 1e-2)])
    ratio = size_after(weak) / size_after(strong)
    assert ratio < 0.05 if name == "amsgrad" else ratio > 0.1
