"""Shaping telescopes, a learned potential is worth what it was learned from, and where there is no potential there is
nothing but the task."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmrl.nets import make_reward_net
from llmrl.rewards import dpba, pbrs, pies, task_signal
from llmrl.types import Box, Discrete, EnvSpec

T, N, M, GAMMA = 12, 4, 2, 0.9
KEY = jax.random.key(0)
DISCRETE = EnvSpec("none", (3,), Discrete(4), 10, ("first", "second"))
CONTINUOUS = EnvSpec("none", (3,), Box(2), 10, ("first", "second"))
SMALL = {"hidden": (4,), "updates": 3, "batch_size": 16, "learning_rate": 0.1, "coefficient": 1.0}
LEARNED = {"dpba": dpba, "pies": functools.partial(pies, num_iterations=10, decay=0.5)}


@functools.cache
def learned(name, spec):
    """One transform for all tests, so that it is compiled once."""
    transform = LEARNED[name](spec, **SMALL)
    return transform._replace(observe=jax.jit(transform.observe), apply=jax.jit(transform.apply))


def connected(random_rollout, spec, num_steps=T, **fields):
    """A rollout in which every episode goes on where it was, and that has ends of all kinds."""
    rollout = random_rollout(spec, num_steps, N, **fields)
    steps = rollout.steps
    ended = np.asarray(steps.terminated | steps.truncated)
    next_obs = np.where(ended[:-1, :, None], steps.next_obs[:-1], steps.obs[1:])
    next_obs = jnp.asarray(np.concatenate([next_obs, steps.next_obs[-1:]]))
    both = jnp.zeros((num_steps, N), bool).at[num_steps // 3, 0].set(True)
    steps = steps._replace(
        next_obs=next_obs, terminated=steps.terminated | both, truncated=steps.truncated | both, action=steps.action
    )
    rollout = rollout._replace(steps=steps, final_action=jax.tree.map(lambda x: x[::-1], rollout.final_action))
    kinds = {(bool(a), bool(b)) for a, b in zip(steps.terminated.ravel(), steps.truncated.ravel(), strict=True)}
    assert kinds == {(False, False), (False, True), (True, False), (True, True)}
    return rollout


def shaping(transform, rollout, state):
    """What is paid beside the task's reward, [t, n]."""
    bare = task_signal(rollout, GAMMA)
    return np.asarray(transform.apply({}, state, rollout, bare).reward - bare.reward)


def observed(transform, state, *rollouts):
    for rollout in rollouts:
        state = transform.observe({}, state, rollout, task_signal(rollout, GAMMA))
    return state


def potential(spec, params, obs, action):
    return np.asarray(make_reward_net(spec, SMALL["hidden"], 1).apply(params, obs, action)[..., 0])


def episodes(rollout):
    """(environment, first step, last step) of every episode, or of the part of it that the rollout has."""
    ended = np.asarray(rollout.steps.terminated | rollout.steps.truncated)
    for env in range(N):
        first = 0
        for last in range(len(ended)):
            if ended[last, env] or last == len(ended) - 1:
                yield env, first, last
                first = last + 1


def assert_telescopes(rollout, paid, now, end):
    """sum_i gamma^i F = gamma^n Phi_n - Phi_0, with Phi_n = 0 where the episode was over and ``end`` elsewhere."""
    steps, lengths = rollout.steps, []
    for env, first, last in episodes(rollout):
        discounts = GAMMA ** np.arange(last + 2 - first)
        final = 0.0 if steps.terminated[last, env] else end[last, env]
        total = np.sum(discounts[:-1] * paid[first : last + 1, env])
        np.testing.assert_allclose(total, discounts[-1] * final - now[first, env], rtol=1e-4, atol=1e-5)
        lengths.append(last + 1 - first)
    assert max(lengths) > 2


# --- telescoping ------------------------------------------------------------------------------------------------------


def test_an_auxiliary_reward_as_a_potential_telescopes(random_rollout):
    rollout = connected(random_rollout, DISCRETE)
    transform = pbrs(0.5)
    values = 0.5 * np.asarray(rollout.steps.aux).sum(axis=-1)
    # Cut off, an episode keeps the potential that it had.
    assert_telescopes(rollout, shaping(transform, rollout, ()), values, values)


@pytest.mark.parametrize("spec", [DISCRETE, CONTINUOUS])
def test_a_learned_potential_that_rests_telescopes(random_rollout, spec):
    rollout = connected(random_rollout, spec)
    transform = learned("dpba", spec)
    state = observed(transform, transform.init(KEY)[1], rollout)
    state = state._replace(previous=state.params)
    steps = rollout.steps
    now = potential(spec, state.params, steps.obs, steps.action)
    # Cut off by the time limit, the last action is repeated; cut off by the rollout, the next one is known.
    end = potential(spec, state.params, steps.next_obs, steps.action)
    going_on = ~np.asarray(steps.terminated | steps.truncated)[-1]
    known = potential(spec, state.params, steps.next_obs[-1], rollout.final_action)
    end = np.concatenate([end[:-1], np.where(going_on, known, end[-1])[None]])
    assert np.abs(now).max() > 0.1
    assert_telescopes(rollout, shaping(transform, rollout, state), now, end)


# --- time -------------------------------------------------------------------------------------------------------------


def halves(rollout):
    """The same experience as two rollouts, the first of which knows the action that the second begins with."""
    first, second = (jax.tree.map(lambda x, part=part: x[part], rollout.steps) for part in (slice(T), slice(T, None)))
    return rollout._replace(steps=first, final_action=second.action[0]), rollout._replace(steps=second)


def test_episodes_telescope_across_rollouts_while_the_potential_moves(random_rollout):
    """What a step is paid for the pair after it, by the potential of that time, is what the next step gives back."""
    whole = connected(random_rollout, DISCRETE, 2 * T)
    first, second = halves(whole)
    transform = learned("dpba", DISCRETE)
    before = observed(transform, transform.init(KEY)[1], connected(random_rollout, DISCRETE, seed=3))
    middle = observed(transform, before, first)
    after = observed(transform, middle, second)
    jax.tree.map(np.testing.assert_array_equal, (middle.previous, after.previous), (before.params, middle.params))
    paid = np.concatenate([shaping(transform, first, middle), shaping(transform, second, after)])
    parts = [(before, first), (middle, second)]
    now = np.concatenate([potential(DISCRETE, s.params, r.steps.obs, r.steps.action) for s, r in parts])
    end = np.concatenate([potential(DISCRETE, s.params, r.steps.next_obs, r.steps.action) for s, r in parts])
    # Who is cut off where a rollout ends is left with the potential that has seen it.
    end[T - 1] = potential(DISCRETE, middle.params, first.steps.next_obs[-1], first.steps.action[-1])
    last_action = jnp.where(whole.steps.truncated[-1], second.steps.action[-1], whole.final_action)
    end[-1] = potential(DISCRETE, after.params, whole.steps.next_obs[-1], last_action)
    moved = potential(DISCRETE, after.params, whole.steps.obs, whole.steps.action) - now
    assert np.abs(moved).mean() > 0.1
    assert_telescopes(whole, paid, now, end)


@pytest.mark.parametrize("name", LEARNED)
def test_a_rollout_is_shaped_by_the_potential_that_has_not_seen_it(random_rollout, name):
    rollouts = [connected(random_rollout, DISCRETE, seed=seed) for seed in (0, 3)]
    transform = learned(name, DISCRETE)
    first = observed(transform, transform.init(KEY)[1], rollouts[0])
    second = observed(transform, first, rollouts[1])
    steps, row = rollouts[1].steps, slice(0, -1)
    going_on = ~np.asarray(steps.terminated | steps.truncated)[row]
    then = potential(DISCRETE, first.params, steps.next_obs[row], steps.action[1:])
    now = potential(DISCRETE, first.params, steps.obs[row], steps.action[row])
    found = shaping(transform, rollouts[1], second)[row]
    share = {"dpba": 1.0, "pies": 0.8}[name]  # one of the five iterations over which the latter fades is past
    np.testing.assert_allclose(found[going_on], share * (GAMMA * then - now)[going_on], rtol=1e-4, atol=1e-5)


def test_only_the_last_step_looks_at_the_final_action(random_rollout):
    rollout = connected(random_rollout, DISCRETE)
    transform = learned("dpba", DISCRETE)
    state = observed(transform, transform.init(KEY)[1], rollout)
    other = rollout._replace(final_action=(rollout.final_action + 1) % 4)
    differs = shaping(transform, rollout, state) != shaping(transform, other, state)
    going_on = ~np.asarray(rollout.steps.terminated | rollout.steps.truncated)[-1]
    assert going_on.any() and not differs[:-1].any()
    np.testing.assert_array_equal(differs[-1], going_on)


def test_a_truncated_step_teaches_nothing(random_rollout):
    rollout = connected(random_rollout, DISCRETE)
    steps = rollout.steps
    untaught = np.asarray(steps.truncated & ~steps.terminated)
    transform = learned("dpba", DISCRETE)
    start = transform.init(KEY)[1]

    def learned_where(mask):
        changed = steps._replace(aux=jnp.where(mask[..., None], steps.aux + 5.0, steps.aux))
        return observed(transform, start, rollout._replace(steps=changed)).params

    same, other = learned_where(untaught), learned_where(np.asarray(steps.terminated))
    plain = observed(transform, start, rollout).params
    jax.tree.map(np.testing.assert_array_equal, same, plain)
    assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(other), jax.tree.leaves(plain), strict=True))


# --- what it is worth -------------------------------------------------------------------------------------------------

# A small Markov decision process, all of whose chances are quarters: three states, two actions.
NEXT = np.array([[[2, 1, 1], [0, 4, 0]], [[1, 0, 3], [0, 2, 2]], [[4, 0, 0], [1, 1, 2]]])  # P(s' | s, a) * 4
ENDS = np.array([[[0, 0, 1], [0, 1, 0]], [[0, 0, 0], [0, 0, 0]], [[4, 0, 0], [0, 0, 0]]])  # of those, how many end
POLICY = np.array([[1, 3], [2, 2], [3, 1]])  # pi(a | s) * 4
HINT = np.array([[1.0, -0.5], [0.0, 2.0], [-1.0, 0.5]])


@pytest.fixture(scope="module")
def everything(random_rollout):
    """Every (s, a, s', a') as often as it happens, as one step of as many environments; each source gives half of the
    hint."""
    rows = [
        (s, a, following, then, nth < ENDS[s, a, following])
        for s in range(3)
        for a in range(2)
        for following in range(3)
        for nth in range(NEXT[s, a, following])
        for then in range(2)
        for _ in range(POLICY[following, then])
    ]
    s, a, following, then, terminated = (np.array(column) for column in zip(*rows, strict=True))
    assert len(rows) == 3 * 2 * 4 * 4
    nothing = np.zeros((1, len(rows)))
    rollout = random_rollout(
        EnvSpec("none", (3,), Discrete(2), 10, ("first", "second")),
        1,
        len(rows),
        obs=np.eye(3, dtype=np.float32)[s][None],
        next_obs=np.eye(3, dtype=np.float32)[following][None],
        action=a[None],
        reward=nothing.astype(np.float32),
        aux=np.stack([HINT[s, a]] * 2, axis=-1)[None].astype(np.float32) / 2,
        terminated=terminated[None],
        truncated=nothing.astype(bool),
    )
    return rollout._replace(final_action=jnp.asarray(then))


def exact_potential(gamma):
    """Phi = -R + gamma E Phi', solved."""
    going_on = (NEXT - ENDS)[..., None] * POLICY / 16.0
    return -np.linalg.solve(np.eye(6) - gamma * going_on.reshape(6, 6), HINT.ravel()).reshape(3, 2)


def test_at_the_fixed_point_the_shaping_is_worth_the_hint(everything):
    """E[F | s, a] = R(s, a). Minibatches are drawn, so that the potential comes to rest within a fiftieth or so."""
    spec = EnvSpec("none", (3,), Discrete(2), 10, ("first", "second"))
    bare = task_signal(everything, GAMMA)

    @functools.partial(jax.jit, static_argnums=1)
    def learn(state, rate):
        transform = dpba(spec, hidden=(16,), updates=50, batch_size=192, learning_rate=rate, coefficient=1.0)
        return jax.lax.scan(lambda s, _: (transform.observe({}, s, everything, bare), None), state, None, 40)[0]

    transform = dpba(spec, **SMALL | {"hidden": (16,)})
    state = transform.init(KEY)[1]
    for rate in (1e-2, 3e-3, 3e-4):
        state = learn(state, rate)
    paid = shaping(transform, everything, state)[0]
    steps = everything.steps
    s, a = np.argmax(steps.obs[0], axis=-1), np.asarray(steps.action[0])
    mean = np.array([[paid[(s == i) & (a == j)].mean() for j in range(2)] for i in range(3)])
    np.testing.assert_allclose(mean, HINT, atol=0.05)
    net = make_reward_net(spec, (16,), 1)
    found = net.apply(state.params, jnp.repeat(jnp.eye(3), 2, axis=0), jnp.tile(jnp.arange(2), 3))[..., 0]
    np.testing.assert_allclose(np.asarray(found).reshape(3, 2), exact_potential(GAMMA), atol=0.1)
    assert paid.std() > 0.1  # only its mean is the hint


# --- nothing but the task ---------------------------------------------------------------------------------------------


def bits(x):
    return np.asarray(x).view(np.uint32)


@pytest.mark.parametrize("name", LEARNED)
def test_without_a_potential_there_is_the_task_alone(random_rollout, name):
    rollout = connected(random_rollout, DISCRETE)
    transform = learned(name, DISCRETE)
    np.testing.assert_array_equal(shaping(transform, rollout, transform.init(KEY)[1]), 0.0)


def test_what_has_faded_is_the_task_to_the_bit(random_rollout):
    """Its negative zeros included, and whatever became of the potential."""
    rollout = connected(random_rollout, DISCRETE, reward=np.full((T, N), -0.0, np.float32))
    transform = learned("pies", DISCRETE)
    state = observed(transform, transform.init(KEY)[1], rollout)._replace(share=jnp.zeros(()))
    nothing = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), state.params)
    broken = state._replace(params=nothing, previous=nothing)
    for faded in (state, broken):
        found = transform.apply({}, faded, rollout, task_signal(rollout, GAMMA))
        np.testing.assert_array_equal(bits(found.reward), bits(rollout.steps.reward))


def test_the_shaping_fades_over_its_share_of_the_training(random_rollout):
    rollout = connected(random_rollout, DISCRETE)
    transform = learned("pies", DISCRETE)
    state, shares = transform.init(KEY)[1], []
    for _ in range(8):
        state = observed(transform, state, rollout)
        shares.append(float(transform.report({}, state, rollout)["shaping_share"]))
    np.testing.assert_allclose(shares, [1.0, 0.8, 0.6, 0.4, 0.2, 0.0, 0.0, 0.0], atol=1e-6)
    assert state.shaping == 0.0


# --- whose numbers these are ------------------------------------------------------------------------------------------


def test_nobody_differentiates_the_potential_through_the_reward(random_rollout):
    rollout = connected(random_rollout, CONTINUOUS)
    transform = learned("dpba", CONTINUOUS)
    state = observed(transform, transform.init(KEY)[1], rollout)

    def total(learned, reward, obs):
        steps = rollout.steps._replace(obs=obs, reward=reward)
        known = state._replace(params=learned[0], previous=learned[1])
        changed = rollout._replace(steps=steps)
        return jnp.sum(transform.apply({}, known, changed, task_signal(changed, GAMMA)).reward)

    slopes = jax.grad(total, argnums=(0, 1, 2))((state.params, state.previous), rollout.steps.reward, rollout.steps.obs)
    assert all(not np.any(x) for x in jax.tree.leaves((slopes[0], slopes[2])))
    np.testing.assert_array_equal(slopes[1], 1.0)
    assert transform.init(KEY)[0] == {}  # and an outer level finds nothing to move


def test_seeds_learn_from_minibatches_of_their_own(random_rollout):
    rollout = connected(random_rollout, DISCRETE)
    transform = learned("dpba", DISCRETE)
    first, again, other = (transform.init(jax.random.key(seed))[1] for seed in (0, 0, 1))
    other = other._replace(params=first.params, opt_state=first.opt_state)  # the same potential, another key
    moved = [jax.tree.leaves(observed(transform, state, rollout).params) for state in (first, again, other)]
    assert all(np.array_equal(a, b) for a, b in zip(moved[0], moved[1], strict=True))
    assert any(np.any(a != b) for a, b in zip(moved[0], moved[2], strict=True))


@pytest.mark.parametrize("wrong", [{"updates": 0}, {"batch_size": 0}])
def test_a_potential_needs_something_to_learn_from(wrong):
    with pytest.raises(ValueError, match="updates and batch_size of 1 or more"):
        dpba(DISCRETE, **SMALL | wrong)
