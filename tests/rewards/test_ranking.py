"""A ranking of states becomes a potential: it telescopes, and noisy answers still give the order."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import with_defaults

from llmrl.rewards import ranked_potential
from llmrl.rewards.ranking import ranking_loss
from llmrl.settings.config import RankingConfig
from llmrl.types import Discrete, EnvSpec

PLACES, T, N, GAMMA = 6, 20, 8, 0.9
SPEC = EnvSpec("line", (PLACES,), Discrete(2), 10, ("first", "second"))
SOURCE = with_defaults(ranked_potential, RankingConfig(), discount=GAMMA)(SPEC, 1, "second", hidden=(16,))
FASTER = with_defaults(ranked_potential, RankingConfig(), discount=GAMMA, learning_rate=1e-2)(
    SPEC, 1, "second", hidden=(16,)
)


def walk(random_rollout, seed, right=1.0, said=None):
    """A random walk on a line; the source praises steps to the right, each answer right with a probability."""
    random = np.random.default_rng(seed)
    places = [random.integers(PLACES, size=N)]
    for _ in range(T):
        places.append(np.clip(places[-1] + random.choice([-1, 1], size=N), 0, PLACES - 1))
    states = np.eye(PLACES, dtype=np.float32)[np.stack(places)]
    moved = np.diff(np.stack(places), axis=0).astype(np.float32)
    answers = moved * np.where(random.random(moved.shape) < right, 1.0, -1.0) if said is None else said * (moved != 0)
    aux = np.stack([random.normal(size=moved.shape), 0.3 * answers], axis=-1).astype(np.float32)
    nothing = np.zeros((T, N), np.bool_)
    return random_rollout(
        SPEC, T, N, seed, obs=states[:-1], next_obs=states[1:], aux=aux, terminated=nothing, truncated=nothing
    )


def trained(source, rollouts):
    memory = source.init(jax.random.key(0))
    learn = jax.jit(lambda memory, rollout: source.score(memory, rollout, None)[1])
    for rollout in rollouts:
        memory = learn(memory, rollout)
    return memory


def potential(memory, random_rollout):
    """Of every place, from what a termination takes back."""
    states = jnp.eye(PLACES)[None]
    ended = jnp.ones((1, PLACES), jnp.bool_)
    rollout = random_rollout(SPEC, 1, PLACES, obs=states, next_obs=states, terminated=ended, truncated=~ended)
    return -np.asarray(SOURCE.score(memory, rollout, None)[0][0])


@pytest.fixture(scope="module")
def consistent(random_rollout):
    return trained(FASTER, [walk(random_rollout, seed) for seed in range(30)])


def test_it_starts_at_nothing(random_rollout):
    values, _, told = SOURCE.score(SOURCE.init(jax.random.key(0)), walk(random_rollout, 0), None)
    np.testing.assert_array_equal(values, 0.0)
    assert told["ranking_agreement/second"] == 0 and told["ranking_paid/second"] == 0


@pytest.mark.parametrize("right", [1.0, 0.75])
def test_noisy_comparisons_recover_the_order(random_rollout, right):
    memory = trained(FASTER, [walk(random_rollout, seed, right) for seed in range(60)])
    found = potential(memory, random_rollout)
    assert np.all(np.diff(found) > 0)
    fresh = walk(random_rollout, 99)
    assert FASTER.score(memory, fresh, None)[2]["ranking_agreement/second"] == 1.0
    if right == 0.75:  # the scores are log odds, in units of what the source pays
        np.testing.assert_allclose(np.diff(found), 0.3 * np.log(3.0), atol=0.25)


def test_answers_that_contradict_each_other_pay_next_to_nothing(random_rollout, consistent):
    confused = trained(FASTER, [walk(random_rollout, seed, 0.5) for seed in range(60)])
    small, large = (np.ptp(potential(memory, random_rollout)) for memory in (confused, consistent))
    assert small < 0.15 * large


def test_praise_for_every_step_ranks_nothing(random_rollout, consistent):
    always = trained(FASTER, [walk(random_rollout, seed, said=1.0) for seed in range(60)])
    assert np.ptp(potential(always, random_rollout)) < 0.1 * np.ptp(potential(consistent, random_rollout))


def test_it_telescopes(random_rollout, consistent):
    """The discounted sum of a way is what the last state's potential is worth less the first one's."""
    rollout, phi = walk(random_rollout, 5), potential(consistent, random_rollout)
    values = np.asarray(FASTER.score(consistent, rollout, None)[0])
    first, last = (np.asarray(x) @ phi for x in (rollout.steps.obs[0], rollout.steps.next_obs[-1]))
    sums = np.sum(GAMMA ** np.arange(T)[:, None] * values, axis=0)
    np.testing.assert_allclose(sums, GAMMA**T * last - first, atol=1e-4)


def test_walking_to_and_fro_earns_nothing(random_rollout, consistent):
    states = jnp.eye(PLACES)[jnp.asarray([2, 3] * (T // 2))][:, None] * jnp.ones((1, N, 1))
    nothing = np.zeros((T, N), np.bool_)
    following = jnp.roll(states, -1, axis=0)
    rollout = random_rollout(SPEC, T, N, obs=states, next_obs=following, terminated=nothing, truncated=nothing)
    values = np.asarray(FASTER.score(consistent, rollout, None)[0])
    phi = potential(consistent, random_rollout)[2]
    np.testing.assert_allclose(np.sum(GAMMA ** np.arange(T)[:, None] * values, 0), (GAMMA**T - 1) * phi, atol=1e-4)


def test_a_termination_takes_all_back_and_a_truncation_nothing(random_rollout, consistent):
    rollout = walk(random_rollout, 5)
    steps = rollout.steps
    ends = {"terminated": jnp.ones_like(steps.terminated), "truncated": jnp.ones_like(steps.truncated)}
    phi = potential(consistent, random_rollout)
    now, then = np.asarray(steps.obs) @ phi, np.asarray(steps.next_obs) @ phi
    for end, expected in (("terminated", -now), ("truncated", GAMMA * then - now)):
        ended = rollout._replace(steps=steps._replace(**{end: ends[end]}))
        np.testing.assert_allclose(FASTER.score(consistent, ended, None)[0], expected, atol=1e-5)


def test_only_the_sign_of_an_answer_counts_and_its_mean_size_is_the_unit(random_rollout):
    rollouts = [walk(random_rollout, seed) for seed in range(3)]
    louder = [r._replace(steps=r.steps._replace(aux=7.0 * r.steps.aux)) for r in rollouts]
    one, other = trained(SOURCE, rollouts), trained(SOURCE, louder)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), one.params, other.params)
    values = SOURCE.score(one, rollouts[0], None)[0]
    np.testing.assert_allclose(SOURCE.score(other, rollouts[0], None)[0], 7.0 * values, rtol=1e-4)
    assert one.total / one.events == pytest.approx(0.3, rel=1e-4)


def test_other_steps_may_be_asked_about(random_rollout, consistent):
    own, asked = walk(random_rollout, 5), walk(random_rollout, 6)
    values, memory, _ = FASTER.score(consistent, own, None, asked)
    np.testing.assert_array_equal(values, FASTER.score(consistent, asked, None)[0])
    expected = FASTER.score(consistent, own, None)[1]
    jax.tree.map(np.testing.assert_array_equal, memory._replace(key=0), expected._replace(key=0))


def test_the_loss_is_that_of_every_answer_one_by_one():
    """Lemma 1 of the reference: a share of answers in favour does what the answers do."""
    for difference, wins in itertools.product((-1.3, 0.0, 0.4), range(5)):
        answers = jnp.asarray([1.0] * wins + [0.0] * (4 - wins))
        each = ranking_loss(jnp.full(4, difference), answers)
        np.testing.assert_allclose(each, ranking_loss(jnp.asarray([difference]), answers.mean()[None]), rtol=1e-6)
        p = 1.0 / (1.0 + np.exp(-difference))
        expected = -(wins / 4 * np.log(p) + (1 - wins / 4) * np.log(1 - p))
        np.testing.assert_allclose(each, expected, rtol=1e-5)


@pytest.mark.parametrize("wrong", [{"updates": 0}, {"batch_size": 0}])
def test_there_is_something_to_learn_from(wrong):
    with pytest.raises(ValueError, match="a ranking needs updates and batch_size of 1 or more"):
        with_defaults(ranked_potential, RankingConfig(), discount=GAMMA)(SPEC, 1, "second", **wrong)
