"""Language while training: the table is what was answered, nobody waits, and an interruption changes nothing."""

import asyncio
import dataclasses
import json
import os
import subprocess
import sys
import textwrap
import time
from collections import Counter

import jax
import numpy as np
import pytest

import llmrl
from llmrl.assembly.parts import build
from llmrl.envs import captions, make
from llmrl.language import Labeller, Provider, load
from llmrl.language.providers.recorded import SHIPPED
from llmrl.learner.rollout import collect
from llmrl.rewards import SourceMemory, language
from llmrl.runs import directory as runs
from llmrl.training import answers as hints
from llmrl.training.answers import misses_of
from llmrl.training.loop import make_trainer, train

TINY = (
    "env=cartpole",
    "aux=language",
    "method=add",
    "ppo=tiny",
    "seeds=2",
    "total_steps=384",
    "num_chunks=3",
    "devices=1",
    "progress=false",
    "llm.cache=null",
)
"""Six iterations of 64 steps in three chunks."""


def recorded():
    """(state, event) in words -> score, from the shipped file, read as plain JSON."""
    lines = (SHIPPED / "handmade" / "cartpole.jsonl").read_text().splitlines()[1:]
    rows = [json.loads(line) for line in lines]
    return {(row["state"], event): s for row in rows for event, s in zip(row["events"], row["scores"], strict=True)}


# --- what is answered at once -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sources", "factor"),
    [("cartpole", "[harmful,language]", 1.0), ("cartpole_continuous", "[language]", -4.0)],
)
def test_the_source_is_what_the_recorded_words_say(name, sources, factor):
    share = ("aux.scale=2", f"aux.sources.language={factor / 2}")
    config = llmrl.compose(*TINY, f"env={name}", f"aux={sources}", *share, "aux.center=0.25")
    trainer = make_trainer(config)
    with hints.listening(config, trainer.env) as listener:
        state = trainer.init(jax.random.key(0), trainer.numbers, listener.table)
        parts = build(config, trainer.env)
        policy, key, actor = parts.policy(state.phis), jax.random.key(1), state.params.actor

        def told(table):
            _, rollout = collect(trainer.env, policy, actor, state.acting, key, config.ppo.num_steps)
            return parts.sources.annotate(SourceMemory(state.heard, state.late), rollout, table)

        rollout, (heard, _), metrics = jax.jit(told)(listener.table)

    captioner, scores, steps = captions.cartpole(), recorded(), rollout.steps
    column = trainer.env.spec.aux_names.index("language")
    for t, n in np.ndindex(steps.reward.shape):
        said = scores[captioner.describe(int(steps.state_key[t, n])), captioner.events[int(steps.event[t, n])]]
        np.testing.assert_allclose(steps.aux[t, n, column], factor * (said - 0.25), rtol=1e-5)
    assert len(np.unique(steps.state_key)) > 3 and set(np.unique(steps.event)) == {0, 1}
    assert metrics["language_coverage"] == 1.0 and misses_of(heard) == {}


def test_a_full_table_covers_training_beside_another_source():
    result = train(llmrl.compose(*TINY, "method=scalar", "aux=[language,harmful]", "llm.noise=0.5", "num_chunks=2"))
    assert set(result.summary["language"]) == {"coverage", "score", *hints.COUNTERS}
    np.testing.assert_array_equal(result.metrics["language_coverage"], 1.0)
    np.testing.assert_array_equal(result.metrics["language_answered"], 525.0)
    assert {"weight_mean_active/language", "weight_mean_active/harmful"} <= set(result.metrics)
    assert all(np.isfinite(curve).all() for curve in result.metrics.values())
    assert result.summary["language"]["coverage"] == 1.0


def test_answers_about_other_words_are_an_error_before_training(tmp_path):
    (tmp_path / "other.jsonl").write_text(
        '{"format": "llmrl-answers", "version": 1, "source": "nobody"}\n{"state": "x", "event": "y", "score": 1}\n'
    )
    with pytest.raises(ValueError, match=r"recorded has answered none of the 525 states of cartpole"):
        train(llmrl.compose(*TINY, f"llm.answers={tmp_path / 'other.jsonl'}"))


@pytest.mark.parametrize("center", ["median", "true", "[1]"])
def test_a_centre_is_a_number_or_the_mean(center):
    with pytest.raises(ValueError, match=r"aux\.center must be a number or 'mean'"):
        llmrl.compose(*TINY, f"aux.center={center}")
    assert llmrl.compose(*TINY, "aux.center=mean").aux.center == "mean"


def listed(number):
    """An environment whose states are the numbers below ``number``."""
    words = captions.cartpole()._replace(
        describe=str, keys=lambda: range(number), oracle=lambda key, event: float(key % 2)
    )
    return make("cartpole", aux=())._replace(captioner=words)


@pytest.mark.parametrize(("number", "capacity"), [(3, 4096), (6561, 4096), (6561, 8192)])
def test_the_table_has_room_for_all_states_that_are_answered_at_once(number, capacity, caplog):
    config = llmrl.compose(*TINY, "llm=oracle", f"llm.capacity={capacity}")
    with hints.listening(config, listed(number)) as listener:
        assert listener.table is not None
        np.testing.assert_array_equal(listener.table.keys, np.arange(number))
        np.testing.assert_array_equal(listener.table.scores[:, 0], np.arange(number) % 2)
    assert not caplog.messages


def test_of_too_many_states_the_most_visited_come_first_and_the_rest_is_told(monkeypatch, caplog):
    monkeypatch.setattr(hints, "AT_ONCE", 20)
    config = llmrl.compose(*TINY, "llm=oracle", "llm.capacity=4")
    with hints.listening(config, listed(21)) as listener:
        assert "21 states can be listed, more than 20" in caplog.messages[0]
        table, _ = listener.exchange(listener.table, {1: 1, 20: 9, 7: 8})
        table, _ = listener.exchange(table, {2: 1, 3: 2, 5: 1})
        table, _ = listener.exchange(table, {2: 1, 4: 1})
    assert table is not None and table.keys.tolist() == [1, 3, 7, 20]
    assert len(caplog.messages) == 2 and "the table of answers is full" in caplog.messages[1]


# --- what is answered while training ----------------------------------------------------------------------------------


class Slow:
    """A labeller that answers what it was asked one call of ``collect`` later, and notes every call."""

    def __init__(self):
        self.asked, self.answered, self.closed = [], Counter(), 0

    def labeller(self, *_):
        return Labeller(self.ask, self.collect, self.stats, lambda: None, self.close)

    def ask(self, keys):
        self.asked.append(dict(keys))

    def collect(self):
        ready = self.asked[-2] if len(self.asked) > 1 else {}
        self.answered.update(ready)
        return {key: np.asarray([0.25, 1.0], np.float32) for key in ready}

    def stats(self):
        numbers = dict.fromkeys(hints.COUNTERS, 0.0)
        return {**numbers, "answered": float(len(self.answered)), "cost": 0.5 * len(self.asked), "stopped": 0.0}

    def close(self):
        self.closed += 1


@pytest.fixture
def slow(monkeypatch):
    fake = Slow()
    monkeypatch.setattr(hints, "open_labeller", fake.labeller)
    monkeypatch.setattr(hints, "make_provider", lambda *_: Provider("slow", answer=never))
    return fake


async def never(question):
    await asyncio.sleep(3600)


def test_misses_are_counted_answers_arrive_and_nothing_is_compiled_again(slow, monkeypatch):

    compiled = []
    module = sys.modules["llmrl.training.loop"]
    original = module.compiled_run
    monkeypatch.setattr(module, "compiled_run", lambda *a: compiled.append(a[3]) or original(*a))
    result = train(llmrl.compose(*TINY, "num_chunks=6"))

    assert compiled == [1] and slow.closed == 1
    coverage = result.metrics["language_coverage"]
    assert (coverage[:, :2] == 0.0).all()  # the first answers arrive after the second chunk
    assert (coverage[:, 2:] > 0.0).any(axis=1).all()
    unanswered = ((1.0 - coverage) * 64).sum(axis=0)
    assert [sum(asked.values()) for asked in slow.asked] == pytest.approx(unanswered.tolist())
    for earlier, later in zip(slow.asked, slow.asked[2:], strict=False):
        assert not earlier.keys() & later.keys()  # what is in the table is not missing
    np.testing.assert_array_equal(result.metrics["language_cost"][0], 0.5 * np.arange(1, 7))
    assert result.summary["language"]["cost"] == 3.0


def test_a_full_table_asks_for_nothing_more(slow):
    train(llmrl.compose(*TINY, "num_chunks=6", "llm.capacity=4"))
    assert max(map(len, slow.asked)) <= 4
    most_common = [list(asked.values()) for asked in slow.asked if asked]
    assert all(counts == sorted(counts, reverse=True) for counts in most_common)
    assert slow.asked[-1] == {}


def test_an_endpoint_that_never_answers_does_not_hold_training(monkeypatch):
    import llmrl.language as room

    monkeypatch.setattr(room, "make_provider", lambda *_: Provider("mute", answer=never))
    monkeypatch.setattr(hints, "make_provider", room.make_provider)
    monkeypatch.setattr(hints, "check_endpoint", lambda *_: None)
    waited = []
    original = hints.open_labeller

    def timed(*arguments):
        labeller = original(*arguments)

        def watch(function):
            def call(*given):
                began = time.monotonic()
                try:
                    return function(*given)
                finally:
                    waited.append(time.monotonic() - began)

            return call

        return labeller._replace(ask=watch(labeller.ask), collect=watch(labeller.collect))

    monkeypatch.setattr(hints, "open_labeller", timed)
    result = train(llmrl.compose(*TINY))
    assert len(waited) == 6 and max(waited) < 5.0  # the answers would take an hour
    assert (result.metrics["language_coverage"] == 0.0).all()
    assert result.summary["language"]["pending"] > 0


def test_a_dead_endpoint_is_an_error_at_once_but_not_for_a_run_that_has_answers(slow, monkeypatch):
    refused = type("Probe", (), {"ok": False, "message": "nothing answers there"})
    monkeypatch.setattr(hints, "probe", lambda llm: refused)
    config = llmrl.compose(*TINY)
    env = make_trainer(config).env
    with pytest.raises(RuntimeError, match="nothing answers there"), hints.listening(config, env):
        pass
    with hints.listening(config, env, known=hints._empty(config.llm, env.captioner)) as listener:
        assert listener.table is not None


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (("captioner=silent_for_tests.captioner", "llm=oracle"), "the captioner has none"),
        (("llm=oracle", "llm.function=silent_for_tests.nobody"), "silent_for_tests 'nobody'"),
        (("llm=recorded", "llm.answers=/nope.jsonl"), r"/nope\.jsonl"),
    ],
)
def test_who_cannot_answer_is_refused_before_anything_is_written(typed, says, tmp_path, monkeypatch):
    (tmp_path / "silent_for_tests.py").write_text(
        "from llmrl.envs import captions\ncaptioner = captions.cartpole()._replace(oracle=None)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises((ValueError, ImportError), match=says):
        train(llmrl.compose(*TINY, *typed, f"run_dir={tmp_path / 'x'}"))
    assert not (tmp_path / "x").exists()


# --- interruptions ----------------------------------------------------------------------------------------------------


class Interrupted(Exception):
    pass


def test_an_interrupted_run_goes_on_with_its_answers_and_its_spending(tmp_path, monkeypatch):
    """Captions that cannot be listed are answered between the chunks, so the table is part of the run's state."""
    (tmp_path / "unlisted_for_tests.py").write_text(
        "from llmrl.envs import captions\ncaptioner = captions.cartpole()._replace(keys=None)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    overrides = (*TINY, "captioner=unlisted_for_tests.captioner", "llm=oracle")
    whole = train(llmrl.compose(*overrides, f"run_dir={tmp_path / 'whole'}"))

    config, calls, original = llmrl.compose(*overrides, f"run_dir={tmp_path / 'cut'}"), [], runs.checkpoint.save

    def failing(*arguments):
        calls.append(None)
        if len(calls) == 2:
            raise Interrupted
        original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(runs.checkpoint, "save", failing)
        with pytest.raises(Interrupted):
            train(config)
    train(config)
    first, second = (tmp_path / name / "metrics.csv" for name in ("whole", "cut"))
    assert first.read_bytes() == second.read_bytes()
    coverage = whole.metrics["language_coverage"]
    assert (coverage[:, 0] == 0.0).all() and (coverage[:, -1] > 0.5).all()
    tables = sorted(path.name for path in (tmp_path / "cut" / "tables").iterdir())
    assert tables == ["4.npz", "6.npz"] == sorted(path.name for path in (tmp_path / "whole" / "tables").iterdir())
    for cut, kept in zip(load(tmp_path / "cut/tables/6.npz"), load(tmp_path / "whole/tables/6.npz"), strict=True):
        np.testing.assert_array_equal(cut, kept)

    (tmp_path / "unlisted_for_tests.py").unlink()
    (tmp_path / "unlisted_for_tests.py").write_text(
        "from llmrl.envs import captions\ncaptioner = captions.cartpole()._replace(keys=None, oracle=None)\n"
    )
    sys.modules.pop("unlisted_for_tests")
    finished = train(config)  # nobody is asked any more, and nobody has to be there
    np.testing.assert_array_equal(finished.metrics["language_coverage"], coverage)


def test_what_was_spent_before_is_part_of_the_budget():
    llm = dataclasses.replace(llmrl.compose(*TINY).llm, max_requests=10, max_cost=2.5)
    left = hints._remaining(llm, {"language_requests": 4.0, "language_cost": 9.0, "language_tokens": 7.0})
    assert (left.max_requests, left.max_cost, left.max_tokens) == (6, 0.0, None)
    assert hints._remaining(llm, {}) == llm


def test_misses_of_all_seeds_add_up():
    heard = language(0, size=3).init()
    both = jax.tree.map(lambda x: np.stack([x, x]), heard)
    keys = np.asarray([[7, 2**32 - 2, 0xFFFFFFFF], [2**32 - 2, 3, 7]], np.uint32)
    both = both._replace(missed=keys, counts=np.asarray([[5, 2, 0], [4, 4, 1]], np.int32))
    assert misses_of(both) == {7: 6, 2**32 - 2: 6, 3: 4}
    assert misses_of(None) == misses_of(heard) == {}


def test_two_devices_hear_what_one_hears():
    script = """
        import sys
        import jax, numpy as np
        import llmrl
        from llmrl.training.loop import train

        jax.config.update("jax_num_cpu_devices", 2)
        two = train(llmrl.compose(*sys.argv[1:], "devices=auto"))
        one = train(llmrl.compose(*sys.argv[1:], "devices=1"))
        assert {leaf.sharding.num_devices for leaf in jax.tree.leaves(two.state.heard)} == {2}
        for name, curves in one.metrics.items():
            np.testing.assert_allclose(two.metrics[name], curves, rtol=1e-4, atol=1e-5, err_msg=name)
        print("equal")
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    if (cache := jax.config.jax_compilation_cache_dir) is not None:
        environment |= {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}
    command = [sys.executable, "-c", textwrap.dedent(script), *TINY, "num_chunks=1", "aux=[harmful,language]"]
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-3000:]
    assert process.stdout == "equal\n"
