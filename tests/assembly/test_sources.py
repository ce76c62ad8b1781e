"""Goals and novelty as auxiliary sources: filled in after the fact, remembered, each with a weight of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llmrl
from llmrl.assembly.methods import make_method
from llmrl.assembly.parts import build
from llmrl.envs import captions
from llmrl.rewards import task_signal
from llmrl.rewards.goals import goal_bonus
from llmrl.runs import checkpoint
from llmrl.training.answers import listening
from llmrl.training.loop import make_trainer, train
from llmrl.types import Rules

TINY = (
    "env=cartpole",
    "ppo=tiny",
    "seeds=1",
    "devices=1",
    "progress=false",
    "llm.cache=null",
    "method.novelty.hidden=[4]",
    "method.novelty.features=3",
)

LEFT = Rules(*(np.zeros(1, np.uint32) for _ in range(2)), np.zeros(1, np.int32), np.ones(1, np.float32))
ALWAYS_LEFT = captions.cartpole()._replace(rules={"plausible": LEFT})
"""Suggests to push to the left, wherever the pole is."""


@pytest.fixture
def always_left(tmp_path, monkeypatch):
    import sys

    (tmp_path / "always_left_for_tests.py").write_text("from tests_of_sources import ALWAYS_LEFT as words\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "tests_of_sources", sys.modules[__name__])
    return "captioner=always_left_for_tests.words"


def experience(random_rollout, config, env):
    """As much of it as an iteration collects, with captions by chance."""
    shape = config.ppo.num_steps, config.ppo.num_envs
    random = np.random.default_rng(1)
    keys = np.asarray(env.captioner.keys(), np.uint32)
    return random_rollout(
        env.spec,
        *shape,
        state_key=random.choice(keys, shape),
        event=random.integers(0, 2, shape).astype(np.int32),
    )


def test_goals_by_rule_pay_once_an_episode(always_left, random_rollout):
    chosen = (always_left, "llm=plausible", "aux=[harmful,goals]", "aux.sources.goals=-2", "method=add")
    config = llmrl.compose(*TINY, *chosen)
    env = make_trainer(config).env
    parts, rollout = build(config, env), experience(random_rollout, config, env)
    memory = parts.sources.init(jax.random.key(0))
    filled, (_, late), metrics = parts.sources.annotate(memory, rollout, None)
    steps, column = jax.tree.map(np.asarray, filled.steps), env.spec.aux_names.index("goals")
    for n in range(config.ppo.num_envs):
        pushed = False
        for t in range(config.ppo.num_steps):
            left = steps.event[t, n] == 0
            assert steps.aux[t, n, column] == (-2.0 if left and not pushed else 0.0)
            pushed = (pushed or left) and not (steps.terminated[t, n] or steps.truncated[t, n])
        assert late[0][n, 0] == pushed
    np.testing.assert_array_equal(steps.aux[..., 1 - column], rollout.steps.aux[..., 1 - column])
    assert metrics["goals_known"] == 1.0 and metrics["goals_paid"] > 0


def test_goals_from_a_table_are_what_it_says(random_rollout):
    config = llmrl.compose(*TINY, "aux=goals", "llm=oracle", "method=add", "method.goals.threshold=0.6")
    env = make_trainer(config).env
    parts, rollout = build(config, env), experience(random_rollout, config, env)
    memory = parts.sources.init(jax.random.key(0))
    with listening(config, env) as listener:
        filled, *_ = parts.sources.annotate(memory, rollout, listener.table)
        answers = parts.sources.answers(listener.table)
        expected, *_ = goal_bonus(rollout, answers, memory.late[0], threshold=0.6, ineffective=False)
    np.testing.assert_array_equal(filled.steps.aux[..., 0], expected)
    assert 0 < np.mean(np.asarray(expected) > 0) < 1
    _, (heard, _), metrics = parts.sources.annotate(memory, rollout, None)  # there are no answers yet: all is noted
    assert metrics["language_coverage"] == 0.0 and jnp.sum(heard.counts) == config.ppo.batch_size


def test_novelty_is_remembered_from_chunk_to_chunk(always_left):
    chosen = (always_left, "llm=plausible", "aux=[goals,novelty]", "method=add", "total_steps=384", "num_chunks=6")
    chosen = (*chosen, "method.novelty.learning_rate=0.03")
    result = train(llmrl.compose(*TINY, *chosen))
    assert np.all(result.metrics["novelty_paid"] > 0) and np.all(result.metrics["goals_paid"] >= 0)
    error = result.metrics["novelty_error"][0]
    assert error[-1] < error[0]  # what has been seen is no longer new


def test_each_has_a_weight_of_its_own(always_left):
    config = llmrl.compose(*TINY, always_left, "llm=plausible", "aux=[goals,novelty]", "method=implicit")
    trainer = make_trainer(config)
    state = jax.eval_shape(trainer.init, jax.random.key(0), trainer.numbers)
    assert state.phis[1]["scalar"].shape == (2,) and len(state.late) == 2
    _, metrics = jax.eval_shape(lambda state: trainer.run(state, trainer.numbers, 1), state)
    assert {"weight_mean_active/goals", "weight_mean_active/novelty"} <= set(metrics)


@pytest.mark.parametrize("transform", ["ranked_potential", "thresholded"])
def test_a_transform_takes_what_a_language_model_and_late_sources_say(always_left, random_rollout, transform):
    """Every source is transformed, by itself, after it has been filled in."""
    chosen = (*TINY, always_left, "llm=plausible", "aux=[harmful,goals]", "aux.sources.goals=-2", "method=add")
    plain, changed = (llmrl.compose(*chosen, f"aux.transform={name}") for name in ("none", transform))
    env = make_trainer(plain).env
    before, parts, rollout = build(plain, env), build(changed, env), experience(random_rollout, plain, env)
    memory = parts.sources.init(jax.random.key(0))
    said, _, _ = before.sources.annotate(memory._replace(late=memory.late[:1]), rollout, None)
    filled, after, metrics = parts.sources.annotate(memory, rollout, None)
    for column, each, own, later in zip((0, 1), parts.sources.late[1:], memory.late[1:], after.late[1:], strict=True):
        expected, learned, told = each.source.score(own, said, None)
        np.testing.assert_allclose(filled.steps.aux[..., column], expected)
        jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(later)[:2], jax.tree.leaves(learned)[:2])
        assert set(told) <= set(metrics)
    asked, _, _ = parts.sources.annotate(memory, rollout, None, rollout)
    np.testing.assert_allclose(asked.steps.aux, filled.steps.aux)


@pytest.mark.parametrize("transform", ["ranked_potential", "thresholded"])
def test_a_method_of_a_transforms_name_adds_the_transformed_sources(transform):
    chosen = (*TINY, "aux=[harmful,random]", "total_steps=192", "num_chunks=1")
    own = train(llmrl.compose(*chosen, f"method={transform}"))
    added = train(llmrl.compose(*chosen, "method=add", f"aux.transform={transform}"))
    for name, values in added.metrics.items():
        np.testing.assert_array_equal(values, own.metrics[name])
    with pytest.raises(ValueError, match=f"method={transform} transforms the sources itself"):
        other = {"ranked_potential": "thresholded", "thresholded": "ranked_potential"}[transform]
        llmrl.compose(*chosen, f"method={transform}", f"aux.transform={other}")


@pytest.mark.parametrize("transform", ["ranked_potential", "thresholded"])
def test_learned_weights_are_of_the_transformed_sources(transform):
    config = llmrl.compose(*TINY, "aux=[harmful,random]", "method=implicit", f"aux.transform={transform}")
    trainer = make_trainer(config)
    state = jax.eval_shape(trainer.init, jax.random.key(0), trainer.numbers)
    assert state.phis[1]["scalar"].shape == (2,) and len(state.late) == 2


@pytest.mark.parametrize(("pretraining", "coefficient"), [(0.0, 3.0), (1.0, 1.0)])
def test_ellm_adds_the_source_to_the_task_or_begins_with_it_alone(random_rollout, pretraining, coefficient):
    chosen = (f"method.goals.coefficient={coefficient}", f"method.goals.pretraining={pretraining}")
    config = llmrl.compose(*TINY, "aux=[harmful,goals]", "llm=oracle", "method=ellm", *chosen)
    env = make_trainer(config).env
    transform = make_method(config, env.spec).streams[1].transform
    rollout = experience(random_rollout, config, env)
    signal = task_signal(rollout, 0.9)
    phi, state = transform.init(jax.random.key(0))
    paid = transform.apply(phi, transform.observe(phi, state, rollout, signal), rollout, signal)
    own = 0.0 if pretraining else signal.reward
    np.testing.assert_allclose(paid.reward, own + coefficient * rollout.steps.aux[..., 1], rtol=1e-6)


def test_who_cannot_suggest_goals_is_told_how():
    spec = make_trainer(llmrl.compose(*TINY, "method=ppo", "aux=none")).env.spec
    with pytest.raises(ValueError, match="needs suggested goals: aux=goals"):
        make_method(llmrl.compose(*TINY, "aux=none", "method=ellm"), spec)
    with pytest.raises(ValueError, match="aux=goals needs words for the states of gridworld"):
        make_trainer(llmrl.compose("env=gridworld", "aux=goals", "method=add"))
    make_trainer(llmrl.compose("env=gridworld", "aux=novelty", "method=add"))


# --- a source that turns ----------------------------------------------------------------------------------------------

LATE_WRONG = ("env=crumbs", "env.size=3", "aux=[fair,late_wrong]", "ppo=tiny", "seeds=2", "progress=false")
FIVE = ("total_steps=320", "num_chunks=5")


def test_it_is_fair_in_the_first_half_and_harmful_in_the_second(random_rollout):
    config = llmrl.compose(*LATE_WRONG, *FIVE, "method=add", "aux.sources.late_wrong=3", "aux.scale=2")
    env = make_trainer(config).env
    parts = build(config, env)
    rollout = random_rollout(env.spec, config.ppo.num_steps, config.ppo.num_envs)
    memory = parts.sources.init(jax.random.key(0))
    signs = []
    for _ in range(config.num_iterations):
        asked = random_rollout(env.spec, config.ppo.num_steps, config.ppo.num_envs, seed=1)
        told, _, _ = parts.sources.annotate(memory, rollout, None, asked)
        filled, memory, _ = parts.sources.annotate(memory, rollout, None)
        signs.append(float(np.unique(np.sign(filled.steps.aux[..., 1] * rollout.steps.aux[..., 1]))[-1]))
        np.testing.assert_array_equal(filled.steps.aux[..., 1], signs[-1] * rollout.steps.aux[..., 1])
        np.testing.assert_array_equal(told.steps.aux[..., 1], signs[-1] * asked.steps.aux[..., 1])
        np.testing.assert_array_equal(filled.steps.aux[..., 0], rollout.steps.aux[..., 0])
    assert signs == [1, 1, 1, -1, -1]


def test_it_turns_on_every_seed_and_goes_on_where_it_was(tmp_path, monkeypatch):
    """Interrupted after the turn, between two chunks, and not at all: the same numbers."""
    typed = (*LATE_WRONG, *FIVE, "method=add", "devices=1")
    whole = train(llmrl.compose(*typed, f"run_dir={tmp_path / 'whole'}"))
    assert [memory.tolist() for memory in whole.state.late] == [[5, 5]]
    with monkeypatch.context() as patched:
        saved, save = [], checkpoint.save

        def interrupted(*arguments, **options):
            save(*arguments, **options)
            saved.append(None)
            if len(saved) == 4:
                raise KeyboardInterrupt

        patched.setattr(checkpoint, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(llmrl.compose(*typed, f"run_dir={tmp_path / 'cut'}"))
    resumed = train(llmrl.compose(*typed, f"run_dir={tmp_path / 'cut'}"))
    for path in ("whole", "cut"):
        assert (tmp_path / "whole" / "metrics.csv").read_bytes() == (tmp_path / path / "metrics.csv").read_bytes()
    jax.tree.map(np.testing.assert_array_equal, whole.state.params, resumed.state.params)
