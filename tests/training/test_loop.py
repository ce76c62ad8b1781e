"""Training: neither interruptions nor how a run is cut, kept or spread change it; and what composes can be built."""

import itertools
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import RUN, TWELVE, compiled_once

import llmrl
from llmrl.assembly.parts import length_schedules, make_environment
from llmrl.envs import AUX_SOURCES, HOST_ENVIRONMENTS
from llmrl.runs import directory as runs
from llmrl.settings import overrides
from llmrl.training.cores import DEBUGGING
from llmrl.training.devices import seed_bytes, seed_mesh, seeds_at_once
from llmrl.training.loop import chunk_lengths, chunks_left, make_trainer, tell_extended, train

TINY = (*RUN, *TWELVE, "seeds=2", "devices=1")

LEARNED = (
    *TINY,
    "method=scalar",
    "method.outer.every=3",
    "method.trust.cross_fitting=false",
    "method.trust.gate=false",
    "solver=identity",
)
"""An outer level, quick to compile, whose steps do not fall together with the chunks."""


def assert_same_metrics(first, second, **tolerance):
    assert set(first) == set(second)
    for name in first:
        np.testing.assert_allclose(first[name], second[name], **tolerance, err_msg=name)


def child(script, *arguments):
    """Another process, with this one's compiled programs."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    if (cache := jax.config.jax_compilation_cache_dir) is not None:
        environment |= {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}
    command = [sys.executable, "-c", textwrap.dedent(script), *arguments]
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-3000:]
    return process.stdout


@pytest.fixture(scope="module")
@compiled_once()
def in_memory():
    return train(llmrl.compose(*TINY, "method=add"))


@pytest.fixture(scope="module")
@compiled_once()
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("finished")
    train(llmrl.compose(*TINY, "method=add", f"run_dir={path}"))
    return path


# --- jax's switches ---------------------------------------------------------------------------------------------------


def test_64_bits_by_default_change_nothing(in_memory):
    with jax.enable_x64(True):
        wide = train(llmrl.compose(*TINY, "method=add"))
    assert_same_metrics(in_memory.metrics, wide.metrics)
    assert {leaf.dtype.itemsize for leaf in jax.tree.leaves(wide.state.params)} == {4}


@pytest.mark.parametrize("switch", DEBUGGING)
def test_a_switch_that_no_run_survives_is_refused_by_name(switch, tmp_path):
    config = llmrl.compose(*TINY, f"run_dir={tmp_path / 'x'}")
    calls = [lambda: train(config), lambda: llmrl.sweep(config, {"ppo.entropy": [0.1]})]
    for call in calls:
        with (
            getattr(jax, switch.removeprefix("jax_"))(True),
            pytest.raises(ValueError, match=f"{switch.upper()} must be"),
        ):
            call()
    assert not (tmp_path / "x").exists()


# --- longer than once thought -----------------------------------------------------------------------------------------


@compiled_once()
def test_an_extended_run_without_a_schedule_is_the_run_made_at_once(tmp_path, capfd):
    typed = (*TINY, "method=add", "ppo.anneal=false", "num_chunks=3")
    train(llmrl.compose(*typed, "total_steps=384", f"run_dir={tmp_path / 'extended'}"))
    capfd.readouterr()
    extended = train(llmrl.compose(*typed, "progress=true", f"run_dir={tmp_path / 'extended'}"))
    assert "was finished at total_steps=384; it goes on from there, iteration 6\n" in capfd.readouterr().err
    at_once = train(llmrl.compose(*typed, f"run_dir={tmp_path / 'once'}"))
    assert (tmp_path / "extended" / "metrics.csv").read_bytes() == (tmp_path / "once" / "metrics.csv").read_bytes()
    jax.tree.map(np.testing.assert_array_equal, extended.state.params, at_once.state.params)
    assert extended.summary["final"] == at_once.summary["final"]


@pytest.mark.parametrize(
    ("words", "schedules"),
    [
        ((), ["ppo.anneal=true"]),
        (("ppo.anneal=false",), []),
        (("method=pies", "ppo.anneal=false"), ["method.potential.decay=0.5"]),
        (("method=ellm_pretrained",), ["ppo.anneal=true", "method.goals.pretraining=0.8"]),
        (("method=ellm", "ppo.anneal=false"), []),
        (("aux=late_wrong", "ppo.anneal=false"), ["aux=late_wrong"]),
    ],
)
def test_what_depends_on_the_length_of_a_run_is_said_when_it_is_extended(words, schedules, capfd):
    config = llmrl.compose(*words, "run_dir=x")
    assert length_schedules(config) == schedules
    tell_extended(config, 1000, 1)
    said = capfd.readouterr().err
    assert all(schedule in said for schedule in schedules)
    assert ("are not those of a run started at total_steps=200000" in said) == bool(schedules)


# --- interruptions ----------------------------------------------------------------------------------------------------

KILLED_AT_RANDOM = """
    import os, random, signal, sys, time
    from pathlib import Path

    import llmrl
    from llmrl.training.loop import train

    whole, killed, *overrides = sys.argv[1:]


    def rows(path):
        return (path / "metrics.csv").stat().st_size if (path / "metrics.csv").exists() else 0


    def start(path):
        pid = os.fork()  # jax has not started yet, so there are no threads to lose
        if pid == 0:
            train(llmrl.compose(*overrides, f"run_dir={path}"))
            os._exit(0)
        return pid


    assert os.waitpid(start(whole), 0)[1] == 0
    rng, path, kills = random.Random(0), Path(killed), 0
    for _ in range(3):
        before, pid = rows(path), start(killed)
        while rows(path) <= before and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            time.sleep(0.001)
        time.sleep(rng.uniform(0.0, 0.03))
        os.kill(pid, signal.SIGKILL)
        kills += os.waitpid(pid, 0)[1] == signal.SIGKILL
    assert os.waitpid(start(killed), 0)[1] == 0
    print(kills)
"""


def test_a_killed_run_goes_on_to_the_very_same_numbers(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    kills = int(child(KILLED_AT_RANDOM, str(whole), str(killed), *LEARNED, "num_chunks=12"))
    assert kills >= 2
    assert (killed / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    for name in ("curves.png", "summary.json"):
        assert (killed / name).exists()
    assert len(runs.metrics.read(killed / "metrics.csv")["iteration"][0]) == 12


class Interrupted(Exception):
    pass


def interrupted(function, call, before):
    """``function``, but its ``call``-th call (from 0) raises before or after it has done its work."""
    calls = []

    def failing(*arguments, **options):
        calls.append(None)
        if len(calls) <= call:
            return function(*arguments, **options)
        if not before:
            function(*arguments, **options)
        raise Interrupted

    return failing


@compiled_once()
def test_an_interruption_at_every_stage_of_a_chunk_changes_nothing(tmp_path, finished, monkeypatch):
    config = llmrl.compose(*TINY, "method=add", f"run_dir={tmp_path}")
    stages = [
        (runs, "record", 0, True),  # nothing is kept yet
        (runs.metrics, "append", 0, False),  # rows, but no checkpoint
        (runs.checkpoint, "save", 1, False),  # both
        (runs.metrics, "append", 1, False),  # rows that no checkpoint knows
        (runs, "record", 0, True),
        (runs, "finish", 0, True),  # everything but the summary
        (runs.plots, "curves", 0, False),
    ]
    for room, function, call, before in stages:
        with monkeypatch.context() as patch:
            patch.setattr(room, function, interrupted(getattr(room, function), call, before))
            with pytest.raises(Interrupted):
                train(config)
    summary = train(config).summary
    assert (tmp_path / "metrics.csv").read_bytes() == (finished / "metrics.csv").read_bytes()
    assert summary["final"] == runs.read_summary(runs.load_run(finished))["final"]
    assert (tmp_path / "curves.png").exists()


def test_a_finished_run_is_not_trained_again(finished, in_memory, monkeypatch):
    def refuse(*_):
        raise AssertionError("trained again")

    kept = {path.name: path.read_bytes() for path in finished.iterdir() if path.is_file()}
    # By its full name: in the package's namespace, the name is the function's.
    monkeypatch.setattr(sys.modules["llmrl.training.loop"], "compiled_run", refuse)
    again = train(llmrl.compose(*TINY, "method=add", f"run_dir={finished}"))
    assert again.summary == runs.read_summary(runs.load_run(finished))
    assert_same_metrics(again.metrics, in_memory.metrics)
    jax.tree.map(np.testing.assert_array_equal, again.state.params, in_memory.state.params)
    assert {path.name: path.read_bytes() for path in finished.iterdir() if path.is_file()} == kept


# --- how a run is cut, kept and spread --------------------------------------------------------------------------------


def test_a_run_in_memory_is_the_run_on_disk(finished, in_memory):
    assert_same_metrics(in_memory.metrics, runs.metrics.read(finished / "metrics.csv"))
    for part in ("final", "area", "seeds", "iterations", "env_steps"):
        assert in_memory.summary[part] == runs.read_summary(runs.load_run(finished))[part]


def test_the_number_of_chunks_changes_nothing():
    halves = train(llmrl.compose(*LEARNED, "num_chunks=2"))
    uneven = train(llmrl.compose(*LEARNED, "num_chunks=5"))
    assert_same_metrics(halves.metrics, uneven.metrics, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(halves.metrics["meta_step"][0], np.arange(12) % 3 == 2)


def test_a_seed_alone_is_the_seed_among_others(in_memory):
    alone = train(llmrl.compose(*TINY, "method=add", "seeds=1"))
    first = {name: curves[:1] for name, curves in in_memory.metrics.items()}
    assert_same_metrics(alone.metrics, first, rtol=1e-4, atol=1e-5)


def test_seeds_one_after_the_other_are_the_seeds_side_by_side(in_memory):
    batched = train(llmrl.compose(*TINY, "method=add", "seeds_per_batch=1"))
    assert_same_metrics(batched.metrics, in_memory.metrics, rtol=1e-4, atol=1e-5)


def test_as_many_seeds_at_once_as_memory_should_hold(monkeypatch):
    config = llmrl.compose(*TINY, "method=ppo", "seeds=12")
    spec, mesh = make_environment(config).spec, seed_mesh(config)
    for memory, expected in ((1e12, 12), (2 * 7 * seed_bytes(config, spec), 6), (0, 1)):
        monkeypatch.setattr(sys.modules["llmrl.training.devices"], "_memory", lambda mesh, memory=memory: memory)
        assert seeds_at_once(config, spec, mesh) == expected
    larger = llmrl.compose(*TINY, "method=ppo", "ppo.num_envs=64")
    assert seed_bytes(larger, spec) > seed_bytes(config, spec)
    for asked, expected in ((5, 5), (50, 12)):
        asking = llmrl.compose(*TINY, "method=ppo", "seeds=12", f"seeds_per_batch={asked}")
        assert seeds_at_once(asking, spec, mesh) == expected


def test_a_cpu_computes_as_many_seeds_at_once_as_its_cache_holds():
    config = llmrl.compose("seeds=12", "aux=harmful", "method=implicit")
    spec, mesh = make_environment(config).spec, seed_mesh(config)
    assert mesh.local_devices[0].platform != "cpu" or seeds_at_once(config, spec, mesh) == 2


def test_two_devices_train_what_one_trains():
    script = """
        import sys
        import jax, numpy as np
        import llmrl
        from llmrl.training.loop import train

        jax.config.update("jax_num_cpu_devices", 2)
        two = train(llmrl.compose(*sys.argv[1:], "devices=auto"))
        one = train(llmrl.compose(*sys.argv[1:], "devices=1"))
        spread = [leaf.sharding.num_devices for leaf in jax.tree.leaves(two.state.params)]
        assert set(spread) == {2}, spread
        for name, curves in one.metrics.items():
            np.testing.assert_allclose(two.metrics[name], curves, rtol=1e-4, atol=1e-5, err_msg=name)
        print("equal")
    """
    assert child(script, *TINY, "method=add") == "equal\n"


@pytest.mark.parametrize("num_iterations", [1, 7, 12, 97])
def test_what_is_left_of_the_chunks_ends_where_they_end(num_iterations):
    for num_chunks, start in itertools.product(range(1, num_iterations + 2), range(num_iterations + 1)):
        left = list(chunks_left(num_iterations, num_chunks, start))
        ends = list(itertools.accumulate(chunk_lengths(num_iterations, num_chunks)))
        assert [first + length for first, length in left] == [end for end in ends if end > start]
        assert [first for first, _ in left] == [start, *ends[-len(left) : -1]][: len(left)]


@pytest.mark.parametrize("num_iterations", [1, 2, 7, 12, 60, 97, 98, 100])
def test_chunks_cover_the_run_with_few_programs(num_iterations):
    for num_chunks in range(1, num_iterations + 3):
        lengths = chunk_lengths(num_iterations, num_chunks)
        assert sum(lengths) == num_iterations and min(lengths) > 0
        assert len(set(lengths)) <= 2 and lengths == sorted(lengths, reverse=True)
        assert max(lengths) <= 2 * -(-num_iterations // num_chunks)
        assert len(lengths) <= 2 * num_chunks
        if num_iterations % num_chunks == 0:
            assert len(lengths) == num_chunks


# --- the contract: whatever composes can be built ---------------------------------------------------------------------

GROUPS = ("env", "aux", "method", "solver", "ppo", "experiment")
FILES = [(group, file.stem) for group in GROUPS for file in sorted((overrides.config_dir() / group).glob("*.yaml"))]
COMPILED_ELSEWHERE = ("method", "solver")
"""Of these groups, each choice is also traced with its numbers, compiled and run in assembly/test_methods.py."""
CHOICES = [
    pytest.param(group, name, marks=pytest.mark.slow if group in COMPILED_ELSEWHERE else ())
    for group, name in FILES
    if name not in HOST_ENVIRONMENTS
]
GOALS = f"method.goals.table='{Path(__file__).parents[1] / 'goals.jsonl'}'"
PARTNERS = {
    "gymnax": ("env.id=Acrobot-v1", "aux=none", "method=ppo"),
    "function": ("aux.function=always_one_for_tests.hint",),
    "helpful_hackable": ("env=gridworld",),
    "potential": ("env=gridworld",),
    "hints": ("env=craftax_classic",),
    "distracting": ("env=craftax_classic",),
    **dict.fromkeys(("fair", "farmable", "rare", "useless", "late_wrong", "loud", "faint"), ("env=crumbs",)),
    "frozen": ("reward_from=elsewhere", "method.reward_of=scalar"),
    "ellm": (GOALS,),
    "ellm_pretrained": (GOALS,),
}
"""Choices that need another beside them."""


def of_group(group):
    """Where the method is not the question, one that is quick to trace; and a source where there is one to weigh."""
    quick, heard = ("method=add",), ("aux=harmful",)
    return {"env": quick, "aux": quick, "ppo": quick, "method": heard, "solver": heard}.get(group, ())


def shapes(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_every_choice_builds_a_trainer_whose_numbers_may_be_traced(group, name, tmp_path, monkeypatch):
    (tmp_path / "always_one_for_tests.py").write_text(
        "import jax.numpy as jnp\ndef hint(state, action, next_state):\n    return jnp.ones(())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = llmrl.compose(f"{group}={name}", *PARTNERS.get(name, ()), *of_group(group))
    trainer = make_trainer(config)
    # As arrays, which is what a grid has for them.
    numbers = {key: np.float32(number) for key, number in trainer.numbers.items()}
    state = jax.eval_shape(trainer.init, jax.random.key(0), numbers)
    after, metrics = jax.eval_shape(lambda state, numbers: trainer.run(state, numbers, 3), state, numbers)
    assert shapes(after) == shapes(state)
    assert {"episode_return", "episode_length", "success_rate", "entropy", "approx_kl"} <= set(metrics)
    for curve in metrics.values():
        assert (curve.shape, curve.dtype) == ((3,), jnp.float32)


@pytest.mark.parametrize("name", sorted(HOST_ENVIRONMENTS.keys() & AUX_SOURCES.keys()))
def test_what_runs_in_python_is_no_compiled_trainer(name):
    trainer = make_trainer(llmrl.compose(f"env={name}", "method=add"))
    state = jax.eval_shape(trainer.init, jax.random.key(0), trainer.numbers)
    with pytest.raises(ValueError, match=f"{name} runs in Python and cannot be compiled"):
        jax.eval_shape(lambda state: trainer.run(state, trainer.numbers, 3), state)


def test_every_source_has_its_own_factor():
    config = llmrl.compose(*TINY, "aux=[random,potential]", "aux.sources.potential=-3", "aux.scale=2")
    weighted, plain = make_environment(config), make_environment(llmrl.compose(*TINY, "aux=[random,potential]"))
    state, action = plain.reset(jax.random.key(0))[0], jnp.asarray(1, jnp.int32)
    aux, bare = (env.step(jax.random.key(0), state, action)[1].aux for env in (weighted, plain))
    assert weighted.spec.aux_names == ("random", "potential")
    np.testing.assert_allclose(aux, bare * np.array([2.0, -6.0], np.float32), rtol=1e-6)


@pytest.mark.parametrize("env", ["cartpole", "cartpole_continuous"])
def test_every_source_has_its_own_weight(env):
    trainer = make_trainer(llmrl.compose(f"env={env}", "aux=[pd_bad,noise,half_right]", "method=implicit"))
    assert trainer.env.spec.aux_names == ("pd_bad", "noise", "half_right")
    state = jax.eval_shape(trainer.init, jax.random.key(0), trainer.numbers)
    assert state.phis[1]["scalar"].shape == (3,)
    # Evidence is no part of phi, and one record holds all sources, each of which has a stream of advice besides.
    sums = jax.tree.leaves(state.meta_state.evidence)
    assert [x.shape for x in sums] == [(3,)] * 8 and state.phis[2:] == ({}, {}, {})
    assert set(state.phis[1]) == {"scalar", "network"}
    _, metrics = jax.eval_shape(lambda state: trainer.run(state, trainer.numbers, 1), state)
    assert {f"weight_mean_active/{name}" for name in trainer.env.spec.aux_names} <= set(metrics)
