import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import textwrap

import grimp
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from llmrl.runs import directory as runs
from llmrl.runs import metrics
from llmrl.settings.config import AuxConfig, Config, PPOConfig
from llmrl.settings.errors import BadValue
from llmrl.settings.overrides import explain

SMALL = Config(aux=AuxConfig(sources={"harmful": 1.0}), ppo=PPOConfig(num_envs=4, num_steps=4), seeds=2)


def small(path, **changes):
    return dataclasses.replace(SMALL, run_dir=str(path), **changes)


def state(number):
    return {"w": jnp.full((2, 3), number, jnp.float32)}


def chunk(first, iterations=2):
    curve = np.arange(first, first + iterations, dtype=np.float32) + np.zeros((2, 1), np.float32)
    return {"episode_return": curve, "entropy": curve / 3}


def test_a_run_from_beginning_to_end(tmp_path):
    with runs.open_run(small(tmp_path / "x", total_steps=64)) as run:
        assert not run.finished
        assert runs.restore(run, state(0)) is None
        runs.record(run, state(2), chunk(0), 0)
        runs.record(run, state(4), chunk(2), 2)
        summary = runs.finish(run, compile_seconds=1.0, run_seconds=2.0, run_iterations=4)
    assert summary["final"]["episode_return"]["mean"] == 3.0
    with runs.open_run(small(tmp_path / "x", total_steps=64)) as again:
        assert again.finished
        assert runs.read_summary(again) == summary
    assert {entry.name for entry in (tmp_path / "x").iterdir()} == {
        ".lock",
        "checkpoints",
        "config.yaml",
        "curves.png",
        "metrics.csv",
        "summary.json",
    }


def test_a_run_keeps_its_functions_and_goes_on_with_no_others(tmp_path):
    file, path = tmp_path / "mine.txt", tmp_path / "x"
    one, other = ("# format: llmrl-functions 1\n# date: " + date for date in ("1", "2"))
    config = small(path, total_steps=32, aux=AuxConfig(sources={"code": 1.0}, file=str(file)))
    for text in (other, one):  # before the first checkpoint there is nothing to lose
        file.write_text(text)
        with runs.open_run(config):
            assert (path / "functions.txt").read_text() == text
    with runs.open_run(config) as run:
        runs.record(run, state(2), chunk(0), 0)
        runs.finish(run, compile_seconds=1.0, run_seconds=2.0, run_iterations=2)
    for changed in (config, dataclasses.replace(config, total_steps=64)):
        file.write_text(other)
        with pytest.raises(BadValue, match="functions of aux=code have changed"), runs.open_run(changed):
            pass
        file.write_text(one)
        with runs.open_run(changed):
            pass
    file.unlink()
    assert runs.load_run(path).config.aux.file == str(file)
    assert runs.load_trained(path).config.aux.file == str(path / "functions.txt")


def test_going_on_cuts_metrics_back_to_the_checkpoint(tmp_path):
    with runs.open_run(small(tmp_path)) as run:
        runs.record(run, state(2), chunk(0), 0)
        complete = run.metrics_path.read_bytes()
        metrics.append(run.metrics_path, chunk(2), 2, 16)  # and then the process was killed
    with runs.open_run(small(tmp_path)) as run:
        restored, iteration = runs.restore(run, state(0))
        assert iteration == 2
        np.testing.assert_array_equal(restored["w"], 2.0)
        assert run.metrics_path.read_bytes() == complete


def test_a_run_killed_before_its_first_checkpoint_starts_again(tmp_path):
    with runs.open_run(small(tmp_path)) as run:
        metrics.append(run.metrics_path, chunk(0), 0, 16)
    with runs.open_run(small(tmp_path, total_steps=999)) as run:
        assert runs.restore(run, state(0)) is None
        assert run.metrics_path.read_bytes() == b""
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["total_steps"] == 999


def test_the_config_on_disk_is_the_config(tmp_path):
    config = small(tmp_path)
    with runs.open_run(config):
        assert runs.load_run(tmp_path).config == config


def open_and_close(config):
    with runs.open_run(config):
        pass


def older(path, *newer):
    """A run's directory as a version of llmrl left it that did not know these settings."""
    values = yaml.safe_load((path / "config.yaml").read_text())
    for section, key in newer:
        del (values[section] if section else values)[key]
    (path / "config.yaml").write_text(yaml.safe_dump(values))


def test_a_setting_newer_than_the_run_stands_in_the_way_only_where_it_is_not_its_default(tmp_path):
    with runs.open_run(small(tmp_path)) as run:
        runs.record(run, state(2), chunk(0), 0)
    older(tmp_path, ("ppo", "advantage_floor"), ("", "solver"))
    with runs.open_run(small(tmp_path)) as run:
        assert runs.restore(run, state(0))[1] == 2
    newer = dataclasses.replace(SMALL.ppo, advantage_floor=0.5)
    with pytest.raises(ValueError, match=r"a run with no ppo\.advantage_floor, got ppo\.advantage_floor=0\.5"):
        open_and_close(small(tmp_path, ppo=newer))
    changed = dataclasses.replace(newer, discount=0.5)  # what both of them know is named first
    with pytest.raises(ValueError, match=r"a run with ppo\.discount=.*, got ppo\.discount=0\.5"):
        open_and_close(small(tmp_path, ppo=changed))


def test_an_older_run_that_is_finished_is_extended(tmp_path):
    with runs.open_run(small(tmp_path, total_steps=32)) as run:
        runs.record(run, state(2), chunk(0), 0)
        runs.finish(run, compile_seconds=1.0, run_seconds=2.0, run_iterations=2)
    older(tmp_path, ("ppo", "clip"))
    with runs.open_run(small(tmp_path, total_steps=64)) as run:
        assert run.extended_from == 32


def test_another_config_is_refused_by_its_first_difference(tmp_path):
    with runs.open_run(small(tmp_path)) as run:
        runs.record(run, state(2), chunk(0), 0)
    other = small(tmp_path, ppo=dataclasses.replace(SMALL.ppo, clip=0.3))
    with pytest.raises(ValueError, match=r"ppo\.clip=0\.2, got ppo\.clip=0\.3"), runs.open_run(other):
        pass
    with (
        pytest.raises(ValueError, match=r"no aux\.sources\.random, got aux\.sources\.random=1"),
        runs.open_run(small(tmp_path, aux=AuxConfig(sources={"harmful": 1.0, "random": 1.0}))),
    ):
        pass
    with pytest.raises(ValueError, match="resume=false"), runs.open_run(small(tmp_path, resume=False)):
        pass
    with runs.open_run(small(tmp_path, progress=False)) as run:
        assert not run.finished


def done(path, total_steps):
    """A finished run, of 16 steps an iteration."""
    with runs.open_run(small(path, total_steps=total_steps)) as run:
        start = (runs.restore(run, state(0)) or (None, 0))[1]
        if start < run.config.num_iterations:
            runs.record(run, state(1), chunk(start, run.config.num_iterations - start), start)
        return runs.finish(run, compile_seconds=1.0, run_seconds=1.0, run_iterations=1)


def test_a_finished_run_is_extended_and_says_so(tmp_path):
    assert "extended_from" not in done(tmp_path, 64)
    (tmp_path / "evaluation.json").write_text("{}")
    with runs.open_run(small(tmp_path, total_steps=128)) as run:
        assert (run.extended_from, run.finished) == (64, False)
        assert runs.restore(run, state(0))[1] == 4
        assert not run.evaluation_path.exists()
    assert runs.load_run(tmp_path).config.total_steps == 128
    with runs.open_run(small(tmp_path, total_steps=128)) as run:  # as after a kill
        assert (run.extended_from, run.finished) == (None, False)
    assert done(tmp_path, 128)["extended_from"] == [64]
    assert done(tmp_path, 160)["extended_from"] == [64, 128]
    curves = metrics.read(tmp_path / "metrics.csv")
    np.testing.assert_array_equal(curves["env_steps"][0], 16 * np.arange(1, 11))


def test_a_kill_while_a_run_is_extended_loses_nothing(tmp_path, monkeypatch):
    done(tmp_path, 64)
    summary = (tmp_path / "summary.json").read_bytes()
    with runs.open_run(small(tmp_path, total_steps=128)) as run:
        runs.restore(run, state(0))
    (tmp_path / "summary.json").write_bytes(summary)  # killed before it was removed
    with runs.open_run(small(tmp_path, total_steps=128)) as run:
        assert (run.extended_from, run.finished) == (None, False)


def test_an_extension_that_fails_leaves_the_finished_run(tmp_path):
    def files():
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"}

    done(tmp_path, 64)
    before = files()
    for lost, like in (("checkpoints/4/manifest", state(0)), ("metrics.csv", state(0)), (None, {"v": jnp.zeros(1)})):
        if lost:
            (tmp_path / lost).unlink()
        with pytest.raises(ValueError), runs.open_run(small(tmp_path, total_steps=128)) as run:
            runs.restore(run, like)
        assert runs.failure(tmp_path)
        (tmp_path / "failed.txt").unlink()
        if lost:
            (tmp_path / lost).write_bytes(before[tmp_path / lost])
        assert files() == before
        with runs.open_run(small(tmp_path, total_steps=64)) as run:
            assert run.finished


@pytest.mark.parametrize("changes", [{}, {"seed": 1}, {"total_steps": 128}], ids=["same", "other", "longer"])
def test_a_finished_run_without_its_checkpoints_is_no_new_run(tmp_path, changes):
    with runs.open_run(small(tmp_path, total_steps=64)) as run:
        runs.record(run, state(4), chunk(0, 4), 0)
        runs.finish(run, compile_seconds=1.0, run_seconds=2.0, run_iterations=4)
    shutil.rmtree(tmp_path / "checkpoints")
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != ".lock"}
    gone = "holds a finished run whose checkpoints/ are gone"
    with (
        pytest.raises(ValueError, match=rf"^run_dir=.* {gone}: `llmrl report` still reads it; to train again choose"),
        runs.open_run(small(tmp_path, **{"total_steps": 64, **changes})),
    ):
        pass
    with pytest.raises(ValueError, match=gone):
        runs.load_state(runs.load_run(tmp_path), state(0))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != ".lock"} == kept


def test_only_a_finished_run_is_extended_and_none_is_shortened(tmp_path):
    with runs.open_run(small(tmp_path / "x", total_steps=64)) as run:
        runs.record(run, state(2), chunk(0), 0)
    done(tmp_path / "y", 64)
    for name, settings, message in (
        ("x", {"total_steps": 128}, "total_steps=64, got total_steps=128; it can be extended once it is finished"),
        ("y", {"total_steps": 32}, "total_steps=64, got total_steps=32; choose another"),
        ("y", {"total_steps": 128, "seeds": 3}, "seeds=2, got seeds=3; choose another"),
        ("y", {"total_steps": 128, "resume": False}, "resume=false"),
    ):
        with pytest.raises(ValueError, match=message), runs.open_run(small(tmp_path / name, **settings)):
            pass
    assert runs.load_run(tmp_path / "y").finished


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("x" * 300, r"File name too long \(300 letters in a row\)"),
        ("/".join(["y" * 200] * 30), r"File name too long"),
        ("file", "File exists"),
        ("file/x", "Not a directory"),
    ],
    ids=["name", "path", "file", "below a file"],
)
def test_where_no_directory_can_be_is_told_in_a_line(tmp_path, place, says):
    (tmp_path / "file").touch()
    refusal = pytest.raises(BadValue, match=f"^run_dir=.* cannot be made a directory: {says}")
    with refusal as refused, runs.open_run(small(tmp_path / place)):
        pass
    assert len(str(refused.value)) < 250
    # Where reading meets it, too.
    with pytest.raises(OSError) as raw:
        (tmp_path / place / "x").read_text()
    assert "Errno" not in explain(raw.value) and len(explain(raw.value)) < 250


def test_strangers_directories_are_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match=r"thesis\.tex"), runs.open_run(small(tmp_path)):
        pass
    with pytest.raises(ValueError, match="holds no run"):
        runs.load_run(tmp_path)


def test_a_kill_in_the_middle_of_the_first_file_is_no_stranger(tmp_path):
    (tmp_path / ".config.yaml.tmp").write_text("half a con")
    with runs.open_run(small(tmp_path)) as run:
        assert runs.load_run(tmp_path).config == run.config


def test_two_processes_do_not_share_a_directory(tmp_path):
    script = textwrap.dedent(f"""
        import dataclasses, sys, time
        from llmrl import runs
        from llmrl.settings.config import Config
        with runs.open_run(Config(run_dir={str(tmp_path)!r})):
            print("held", flush=True)
            time.sleep(60)
    """)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(ValueError, match=f"in use by process {holder.pid} on"),
            runs.open_run(Config(run_dir=str(tmp_path))),
        ):
            pass
        holder.send_signal(signal.SIGKILL)
    with runs.open_run(Config(run_dir=str(tmp_path))) as run:
        assert not run.finished


def test_locks_are_a_librarys_and_so_for_every_system():
    graph = grimp.build_graph("llmrl", include_external_packages=True, cache_dir=None)
    assert "filelock" in graph.modules and not {"fcntl", "msvcrt"} & graph.modules


def test_summary_is_plain_json(tmp_path):
    with runs.open_run(small(tmp_path)) as run:
        runs.record(run, state(2), chunk(0), 0)
        runs.finish(run, compile_seconds=1.0, run_seconds=0.0, run_iterations=0)
    values = json.loads((tmp_path / "summary.json").read_text())
    assert values["steps_per_second"] is None
    assert values["seeds"] == 2
