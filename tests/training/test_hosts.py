"""One run over two processes: the numbers of one process, one directory, and nobody left waiting."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time

import jax
import numpy as np
import pytest
from small import RUN, TWELVE

import llmrl
from llmrl.runs import directory as runs
from llmrl.training import hosts
from llmrl.training.devices import seed_mesh, state_shapes
from llmrl.training.loop import make_trainer, train

TINY = (*RUN, *TWELVE, "seeds=4", "method=add")

SCRIPT = """
    import sys

    import jax

    jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))

    import llmrl
    from llmrl.training.loop import train

    result = train(llmrl.compose(*sys.argv[2:]))
    placed = {leaf.sharding.num_devices for leaf in jax.tree.leaves(result.state.params)}
    print(jax.process_index(), placed, sorted(result.summary))
"""


@pytest.fixture(scope="module")
def pair():
    """``(devices, *overrides) -> processes``: two that train one run, each with so many devices."""
    started = []

    def start(devices, *overrides, only_second=()):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        if (cache := jax.config.jax_compilation_cache_dir) is not None:
            environment |= {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}
        with socket.socket() as free:
            free.bind(("localhost", 0))
            meeting = f"coordinator=localhost:{free.getsockname()[1]}"
        words = [str(devices), *overrides, "distributed=true", meeting, "num_processes=2"]
        command = [sys.executable, "-c", textwrap.dedent(SCRIPT), *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
        apart = (["process_id=0"], ["process_id=1", *only_second])
        two = [subprocess.Popen([*command, *own], **pipes) for own in apart]
        started.extend(two)
        return two

    yield start
    for process in started:
        process.kill()
        process.communicate()


def said(processes, status=0):
    """The last line that each printed, once both have left as expected."""
    told = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [status] * 2, [error[-2000:] for _, error in told]
    return ["".join((error if status else out).splitlines()[-1:]) for out, error in told]


def last_state(path):
    run = runs.load_run(path)
    return runs.load_state(run, state_shapes(make_trainer(run.config), run.config))


def assert_same(first, second, **tolerance):
    np.testing.assert_array_equal(jax.random.key_data(first.key), jax.random.key_data(second.key))
    first, second = first._replace(key=None), second._replace(key=None)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), **tolerance), first, second)


def test_two_processes_train_what_one_trains(tmp_path, pair):
    words = said(pair(2, *TINY, f"run_dir={tmp_path / 'two'}"))
    assert words[0].startswith("0 {4} [") and "final" in words[0]
    assert words[1] == "1 {4} []"
    one = train(llmrl.compose(*TINY, "devices=1", f"run_dir={tmp_path / 'one'}"))
    two = runs.metrics.read(tmp_path / "two" / "metrics.csv")
    assert set(one.metrics) == set(two)
    for name, curves in one.metrics.items():
        np.testing.assert_allclose(two[name], curves, rtol=1e-4, atol=1e-5, err_msg=name)
    (ours, at), (theirs, there) = (last_state(tmp_path / name) for name in ("one", "two"))
    assert at == there == 12
    assert_same(ours, theirs, rtol=1e-4, atol=1e-5)
    assert {file.name for file in (tmp_path / "one").iterdir()} == {file.name for file in (tmp_path / "two").iterdir()}


@pytest.mark.slow
def test_two_processes_hear_what_one_hears(tmp_path, pair):
    cartpole = ("env=cartpole", "aux=language", "method=add", "ppo=tiny", "seeds=2", "total_steps=384", "num_chunks=3")
    words = (*cartpole, "devices=1", "progress=false", "llm.cache=null")
    said(pair(1, *words, f"run_dir={tmp_path}"))
    one, two = train(llmrl.compose(*words)), runs.metrics.read(tmp_path / "metrics.csv")
    assert set(one.metrics) == set(two) and (two["language_coverage"] == 1.0).all()
    for name, curves in one.metrics.items():
        np.testing.assert_allclose(two[name], curves, rtol=1e-4, atol=1e-5, err_msg=name)
    again = said(pair(1, *words, f"run_dir={tmp_path}"))
    assert again[0].startswith("0 {2} [") and again[1] == "1 {2} []"


@pytest.mark.slow
def test_every_process_has_the_numbers_of_a_run_in_memory(pair):
    first, second = said(pair(1, *TINY))
    assert first.startswith("0 {4} ['area', ") and second == f"1{first[1:]}"


# --- interruptions ----------------------------------------------------------------------------------------------------

LONG = (*TINY, "total_steps=7680", "num_chunks=60")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, pair):
    """The curves of an undisturbed run."""
    path = tmp_path_factory.mktemp("whole")
    said(pair(1, *LONG, f"run_dir={path}"))
    return (path / "metrics.csv").read_bytes()


def until(condition, processes):
    while not condition():
        assert all(process.poll() is None for process in processes), [process.communicate() for process in processes]
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("which", "number"), [(0, signal.SIGTERM), (1, signal.SIGUSR1)])
def test_a_signal_to_one_stops_both_and_the_same_command_goes_on(tmp_path, pair, whole, which, number):
    first = pair(1, *LONG, f"run_dir={tmp_path}")
    until(lambda: runs.checkpoint.steps(tmp_path / "checkpoints"), first)
    first[which].send_signal(number)
    said(first, status=128 + number)
    assert not (tmp_path / "summary.json").exists()
    said(pair(1, *LONG, f"run_dir={tmp_path}"))
    assert (tmp_path / "metrics.csv").read_bytes() == whole


@pytest.mark.slow
def test_killed_processes_go_on_to_the_very_same_numbers(tmp_path, pair, whole):
    first = pair(1, *LONG, f"run_dir={tmp_path}")
    until(lambda: runs.checkpoint.steps(tmp_path / "checkpoints"), first)
    for process in first:
        process.kill()
        process.wait()
    assert not (tmp_path / "summary.json").exists()
    said(pair(1, *LONG, f"run_dir={tmp_path}"))
    assert (tmp_path / "metrics.csv").read_bytes() == whole
    again = train(llmrl.compose(*LONG, f"run_dir={tmp_path}"))  # finished: shown, by one process too
    assert again.summary == runs.read_summary(runs.load_run(tmp_path))


@pytest.mark.slow
def test_what_the_first_process_refuses_all_refuse(tmp_path, pair):
    (tmp_path / "mine.txt").touch()
    first, second = said(pair(1, *TINY, f"run_dir={tmp_path}"), status=1)
    assert "holds files that are no run's, such as 'mine.txt'" in first
    assert "process 0 of this run has failed; its own message says why" in second


@pytest.mark.slow
def test_processes_with_different_settings_are_no_run(pair):
    for words in said(pair(1, *TINY, only_second=["seed=1"]), status=1):
        assert "the run's processes were given different settings" in words


# --- refusals ---------------------------------------------------------------------------------------------------------

REFUSED = [
    (("coordinator=localhost:1234",), "coordinator=localhost:1234 goes with distributed=true only"),
    (("process_id=0",), "process_id=0 goes with distributed=true only"),
    (("distributed=true", "coordinator=localhost"), "coordinator must look like host:port, got localhost"),
    (("distributed=true", "num_processes=0"), "num_processes must be positive, got 0"),
    (("distributed=true", "num_processes=2", "process_id=2"), r"process_id must lie in \[0, 1\], got 2"),
    (("distributed=true", "env=crafter", "aux=none"), "env=crafter is stepped by Python on one host"),
    (("distributed=true", "method=frozen", "reward_from=runs/x"), "reward_from=runs/x is read on one host"),
    (("distributed=true",), "distributed=true cannot find the run's processes: "),
]


@pytest.mark.parametrize(("words", "message"), REFUSED)
def test_what_cannot_be_spread_over_processes_is_refused_in_a_line(words, message):
    jax.devices()  # so that nothing is waited for
    with pytest.raises(ValueError, match=message) as refused:
        train(llmrl.compose(*words))
    assert "\n" not in str(refused.value)


def test_seeds_are_shared_evenly(monkeypatch):
    config = llmrl.compose(*TINY, "seeds=3")
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="2 processes share the seeds evenly, got seeds=3"):
        seed_mesh(config)


# --- alone ------------------------------------------------------------------------------------------------------------


def test_one_process_sends_nothing():
    config = llmrl.compose(*TINY)
    mesh, keys = seed_mesh(config), jax.random.split(jax.random.key(0), 4)
    assert hosts.first() and not hosts.several()
    assert hosts.agreed(7) == 7
    assert hosts.own(keys, mesh) is keys and hosts.whole(keys) is keys and hosts.from_first(keys, keys) is keys
    with pytest.raises(OSError, match="its own"), hosts.together():
        raise OSError("its own")
