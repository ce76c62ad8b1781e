"""Suggested goals: above the threshold, where suggested, once per episode and again in the next."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import with_defaults

from llmrl.language import Table
from llmrl.rewards import goals, read_goals, task_and_goals, task_signal
from llmrl.rewards.goals import goal_bonus
from llmrl.settings.config import GoalsConfig
from llmrl.types import Discrete, EnvSpec

goal_bonus = with_defaults(goal_bonus, GoalsConfig())
goals = with_defaults(goals, GoalsConfig())
task_and_goals = with_defaults(task_and_goals, GoalsConfig())

SPEC = EnvSpec("none", (2,), Discrete(2), 10)
TABLE = Table(
    np.asarray([3, 17, 4_000_000_000], np.uint32),
    np.asarray([[0.0, 1.0, 0.5, 0.995], [0.0, 0.0, 1.0, 0.99], [0.0, 1.0, 1.0, 1.0]], np.float32),
)
T, N, E = 12, 4, 4
NOTHING = jnp.zeros((N, E), bool)


def experience(random_rollout, seed, steps=T):
    random = np.random.default_rng(seed)
    return random_rollout(
        SPEC,
        steps,
        N,
        seed,
        state_key=random.choice(np.asarray([3, 17, 4_000_000_000, 5], np.uint32), (steps, N)),
        event=random.integers(-E, E + 2, (steps, N)).astype(np.int32),
    )


def by_hand(rollout, threshold, ineffective):
    """Dictionaries and sets, one step at a time; episodes begin with the rollout."""
    threshold = np.float32(threshold)  # as the library compares
    rows = dict(zip(TABLE.keys.tolist(), TABLE.scores.tolist(), strict=True))
    steps = jax.tree.map(np.asarray, rollout.steps)
    bonus = np.zeros(steps.reward.shape)
    for env in range(N):
        done = set()
        for t in range(len(bonus)):
            event = int(steps.event[t, env])
            event = -1 - event if ineffective and event < 0 else event
            row = rows.get(int(steps.state_key[t, env]), [])
            score = row[event] if 0 <= event < len(row) else 0.0
            if score > threshold and event not in done:
                bonus[t, env] = score
                done.add(event)
            if steps.terminated[t, env] or steps.truncated[t, env]:
                done = set()
    return bonus


@pytest.mark.parametrize("ineffective", [False, True])
@pytest.mark.parametrize("threshold", [0.4, 0.99])
@pytest.mark.parametrize("seed", range(2))
def test_the_bonus_is_what_counting_by_hand_gives(random_rollout, seed, threshold, ineffective):
    rollout = experience(random_rollout, seed)
    found, _, known = goal_bonus(rollout, TABLE, NOTHING, threshold=threshold, ineffective=ineffective)
    expected = by_hand(rollout, threshold, ineffective)
    assert np.any(expected)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_array_equal(known == 1, np.isin(rollout.steps.state_key, TABLE.keys))


@pytest.mark.parametrize("cut", [1, 5])
def test_cutting_experience_into_rollouts_changes_nothing(random_rollout, cut):
    """Episodes run on from one rollout to the next, and so does what was done in them."""
    whole = experience(random_rollout, 0)
    expected, achieved, _ = goal_bonus(whole, TABLE, NOTHING, threshold=0.4)
    bonus = goals(TABLE, N, threshold=0.4)
    state, found = bonus.init(jax.random.key(0)), []
    for part in (slice(0, cut), slice(cut, T)):
        scored, state = bonus.score(state, whole._replace(steps=jax.tree.map(lambda x, p=part: x[p], whole.steps)))
        found.append(scored)
    np.testing.assert_array_equal(np.concatenate(found), expected)
    np.testing.assert_array_equal(state.achieved, achieved)


def one_environment(random_rollout, events, ends=(), keys=3):
    shape = (len(events), 1)
    ended = np.isin(np.arange(len(events)), ends).reshape(shape)
    return random_rollout(
        SPEC,
        *shape,
        event=np.asarray(events, np.int32).reshape(shape),
        state_key=np.full(shape, keys, np.uint32),
        terminated=ended & (np.arange(len(events)) % 2 == 0)[:, None],
        truncated=ended & (np.arange(len(events)) % 2 == 1)[:, None],
    )


@pytest.mark.parametrize("end", [2, 3])  # a termination and a truncation
def test_a_goal_pays_once_per_episode_and_again_in_the_next(random_rollout, end):
    rollout = one_environment(random_rollout, [1, 1, 1, 1, 1, 1], ends=(end,))
    found, achieved, _ = goal_bonus(rollout, TABLE, NOTHING[:1])
    expected = np.zeros(6)
    expected[[0, end + 1]] = 1.0
    np.testing.assert_array_equal(found[:, 0], expected)
    np.testing.assert_array_equal(achieved, [[False, True, False, False]])


def test_the_step_that_ends_an_episode_still_pays_and_is_then_forgotten(random_rollout):
    found, achieved, _ = goal_bonus(one_environment(random_rollout, [0, 0, 1], ends=(2,)), TABLE, NOTHING[:1])
    np.testing.assert_array_equal(found[:, 0], [0, 0, 1])
    assert not np.any(achieved)


@pytest.mark.parametrize(("threshold", "expected"), [(0.99, 0.0), (0.989, 0.99)])
def test_the_threshold_is_strict(random_rollout, threshold, expected):
    threshold = jnp.asarray(threshold, jnp.float32)
    found, _, _ = goal_bonus(one_environment(random_rollout, [3], keys=17), TABLE, NOTHING[:1], threshold=threshold)
    np.testing.assert_allclose(found, expected)


def test_what_was_not_paid_may_be_paid_later(random_rollout):
    """An event done where nobody suggested it is not used up."""
    rollout = one_environment(random_rollout, [1, 1])
    keys = jnp.asarray([[17], [3]], jnp.uint32)
    found, _, _ = goal_bonus(rollout._replace(steps=rollout.steps._replace(state_key=keys)), TABLE, NOTHING[:1])
    np.testing.assert_array_equal(found[:, 0], [0, 1])


@pytest.mark.parametrize(("ineffective", "expected"), [(False, [0, 1]), (True, [1, 0])])
def test_an_attempt_in_vain_pays_only_where_asked_and_then_is_used_up(random_rollout, ineffective, expected):
    found, _, _ = goal_bonus(one_environment(random_rollout, [-1 - 1, 1]), TABLE, NOTHING[:1], ineffective=ineffective)
    np.testing.assert_array_equal(found[:, 0], expected)


# --- beside the task --------------------------------------------------------------------------------------------------


def paid_per_rollout(random_rollout, **options):
    """(task's reward, goals' bonus, what is paid) of four rollouts."""
    bonus = goals(TABLE, N)
    transform = task_and_goals(bonus, T, N, **options)
    (phi, state), memory = transform.init(jax.random.key(0)), bonus.init(jax.random.key(0))
    for seed in range(4):
        rollout = experience(random_rollout, seed)
        bare = task_signal(rollout, 0.9)
        expected, memory = bonus.score(memory, rollout)
        state = transform.observe(phi, state, rollout, bare)
        found = transform.apply(phi, state, rollout, bare)
        np.testing.assert_array_equal(found.discount, bare.discount)
        assert transform.report(phi, state, rollout)["goal_bonus"] == jnp.mean(expected)
        yield bare.reward, expected, found.reward


def test_goals_are_added_to_the_task(random_rollout):
    for own, bonus, found in paid_per_rollout(random_rollout, coefficient=0.3):
        np.testing.assert_allclose(found, own + 0.3 * bonus, rtol=1e-5)


@pytest.mark.parametrize("keep", [True, False])
def test_pretraining_is_for_goals_alone(random_rollout, keep):
    for age, (own, bonus, found) in enumerate(paid_per_rollout(random_rollout, pretraining=2.0, keep=keep)):
        expected = bonus if age < 2 else own + bonus * float(keep)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_file_in_any_order_is_a_sorted_table(tmp_path):
    path = tmp_path / "goals.jsonl"
    rows = [{"key": int(k), "scores": s.tolist()} for k, s in zip(TABLE.keys, TABLE.scores, strict=True)]
    path.write_text("\n\n".join(json.dumps(row) for row in rows[::-1]))
    jax.tree.map(np.testing.assert_array_equal, read_goals(path), TABLE)


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path):
    (tmp_path / "goals.jsonl").write_text('{"key": 7, "scores": [1.0]}', encoding="utf-8-sig")
    assert read_goals(tmp_path / "goals.jsonl").keys == [7]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", r"has no goals"),
        ('{"key": 1, "scores": [0]}\nhello', r"line 2: expected .* got 'hello'"),
        ('{"key": -1, "scores": [0]}', r"line 1: expected .*from 0 to 4294967295"),
        ('{"key": true, "scores": [0]}', r"line 1: expected"),
        ('{"key": 1, "scores": []}', r"line 1: expected"),
        ('{"key": 1, "scores": [NaN]}', r"line 1: expected"),
        ('{"key": 1}', r"line 1: expected"),
        ("[1]", r"line 1: expected"),
        ('{"key": 1, "scores": [0]}\n{"key": 1, "scores": [1]}', r"line 2: key 1 is there already"),
        ('{"key": 1, "scores": [0]}\n{"key": 2, "scores": [1, 1]}', r"line 2: 2 scores, .* have 1"),
    ],
)
def test_a_file_that_is_no_table_is_refused_with_its_line(tmp_path, lines, message):
    path = tmp_path / "goals.jsonl"
    path.write_text(lines)
    with pytest.raises(ValueError, match=message):
        read_goals(path)
