"""How runs stand: the state a directory is left in by every way a run can end."""

import io

import pytest
from rich.console import Console

import llmrl
from llmrl.cli.main import main
from llmrl.results.report.status import show, status
from llmrl.runs import directory as runs

TINY = ("env=gridworld", "env.size=3", "env.horizon=8", "method=ppo", "ppo=tiny", "seeds=1", "total_steps=128")


def config(path, *more):
    return llmrl.compose(*TINY, f"run_dir={path}", *more)


def of(path):
    (one,) = status([str(path)])
    return one


def test_a_run_is_at_work_as_long_as_somebody_holds_it_and_stopped_after(tmp_path):
    with runs.open_run(config(tmp_path)):
        assert of(tmp_path).state == "running"
        assert "process" in of(tmp_path).note
    assert of(tmp_path)[1:] == ("stopped", 0, config(tmp_path).num_iterations, "")
    assert of(tmp_path).can_go_on


def test_a_failure_is_remembered_until_the_run_is_tried_again(tmp_path):
    with pytest.raises(ZeroDivisionError), runs.open_run(config(tmp_path)):
        raise ZeroDivisionError("nothing can be divided\nby nothing")
    assert of(tmp_path).state == "failed"
    assert of(tmp_path).note.startswith("ZeroDivisionError: nothing can be divided (test_status.py, line ")
    with pytest.raises(KeyboardInterrupt), runs.open_run(config(tmp_path)):
        raise KeyboardInterrupt
    assert of(tmp_path).state == "stopped"


def test_a_finished_run_has_nothing_to_go_on_with(tmp_path):
    with runs.open_run(config(tmp_path)) as run:
        run.summary_path.write_text("{}")
    found = of(tmp_path)
    assert (found.state, found.done, found.can_go_on) == ("finished", found.of, False)


def test_it_goes_on_from_the_last_complete_checkpoint(tmp_path):
    with runs.open_run(config(tmp_path)) as run:
        for name in ("2", "4", ".6.tmp"):
            (run.checkpoints_path / name).mkdir(parents=True)
    assert of(tmp_path).done == 4


def test_one_line_each_and_a_count(tmp_path):
    for name in ("a", "b"):
        with runs.open_run(config(tmp_path / name)):
            pass
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "config.yaml").write_text("env: {name: [")
    console = Console(width=300, record=True, file=io.StringIO())
    show(status([str(tmp_path), str(tmp_path / "nowhere")]), console)
    printed = console.export_text()
    for word in (str(tmp_path / "a"), "2 stopped", "2 unreadable", "no such directory", "the start"):
        assert word in printed


def test_the_command(tmp_path, capsys):
    with runs.open_run(config(tmp_path)):
        pass
    main(["status", str(tmp_path)])
    assert "1 stopped" in capsys.readouterr().out
    with pytest.raises(SystemExit) as exit_:
        main(["status"])
    assert exit_.value.code == 2
    assert "llmrl status runs" in capsys.readouterr().err
