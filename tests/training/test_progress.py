from io import StringIO

import numpy as np
import pytest
from rich.console import Console
from rich.text import Text

from llmrl.runs import metrics
from llmrl.training.progress import COMPILING, SHOWN, progress, show_summary, show_table


def console(terminal):
    return Console(file=StringIO(), force_terminal=terminal, width=120)


def chunk(level, **others):
    return {"episode_return": np.full((2, 3), level, np.float32), **others}


def test_a_log_gets_one_plain_line_per_chunk():
    log = console(terminal=False)
    with progress(6, console=log) as update:
        update(3, chunk(1.5, **{"influence/harmful": np.full((2, 3), -0.25)}))
        update(6, chunk(np.nan))
    lines = log.file.getvalue().splitlines()
    assert lines == [COMPILING, "iteration 3/6  return 1.5  influence harmful -0.25", "iteration 6/6  return 1.5"]


def test_other_things_are_counted_by_their_own_name():
    log = console(terminal=False)
    with progress(8, console=log, unit="episode") as update:
        update(4, {})
    assert log.file.getvalue() == f"{COMPILING}\nepisode 4/8\n"


def test_what_a_language_model_costs_is_shown_once_it_costs_something():
    log = console(terminal=False)
    spent = {"language_coverage": np.full((2, 3), 0.5), "language_failures": np.zeros((2, 3))}
    with progress(6, console=log) as update:
        update(3, chunk(1.5, **spent, language_cost=np.zeros((2, 3))))
        update(6, chunk(1.5, **spent, language_cost=np.full((2, 3), 0.25)))
    _, *lines = log.file.getvalue().splitlines()
    assert [line.partition("return 1.5")[2] for line in lines] == ["  answered 0.5", "  answered 0.5  cost 0.25"]


def test_time_left_is_told_from_the_second_chunk_on():
    log = console(terminal=False)
    with progress(9, console=log) as update:
        for done in (3, 6, 9):
            update(done, chunk(1.0))
    told = ["left" in line for line in log.file.getvalue().splitlines()[1:]]
    assert told == [False, True, False]


def test_a_terminal_gets_a_bar():
    terminal = console(terminal=True)
    with progress(6, start=2, console=terminal) as update:
        update(4, chunk(1.5))
        update(6, chunk(2.5))
    shown = terminal.file.getvalue()
    assert "6/6" in shown
    assert "return 2.5" in shown


def test_skipped_updates_are_shown_where_there_are_any():
    log = console(terminal=False)
    with progress(6, console=log) as update:
        update(3, chunk(1.5, skipped_update=np.zeros((2, 3))))
        update(6, chunk(1.5, skipped_update=np.array([[0, 0, 0], [1.0, 1.0, 0]])))
    _, *lines = log.file.getvalue().splitlines()
    assert ["updates skipped 2" in line for line in lines] == [False, True]


@pytest.mark.slow
def test_a_notebook_gets_plain_lines_below_its_cell():
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    source = (
        "import numpy as np\n"
        "from llmrl.training.progress import progress\n"
        "with progress(6) as update:\n"
        "    for done in (3, 6):\n"
        "        update(done, {'episode_return': np.full((2, 3), 1.5, np.float32)})\n"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    outputs = notebook.cells[0].outputs
    assert {output.output_type for output in outputs} == {"stream"}
    assert {output.name for output in outputs} == {"stdout"}
    text = "".join(output.text for output in outputs)
    assert text.splitlines()[1] == "iteration 3/6  return 1.5" and "iteration 6/6" in text


def test_nothing_is_shown_when_nobody_watches(capsys):
    with progress(6, enabled=False) as update:
        update(6, chunk(1.0))
    assert capsys.readouterr() == ("", "")


def test_the_newest_iteration_that_has_values_is_shown():
    log = console(terminal=False)
    curves = np.array([[1.0, 2.0, np.nan], [3.0, np.nan, np.nan]])
    with progress(6, console=log) as update:
        update(3, {"episode_return": curves})
    assert "return 2" in log.file.getvalue()


@pytest.mark.parametrize("length", [1, 5, 7, 30])
def test_the_last_line_says_what_the_table_says(length):
    """However training is cut into chunks."""
    rng = np.random.default_rng(0)
    curves = {name: rng.integers(1, 9, (4, 60)).astype(np.float32) for name in SHOWN}
    curves["episode_return"][rng.uniform(size=(4, 60)) < 0.5] = np.nan
    final = metrics.summary(curves, steps_per_iteration=64, compile_seconds=1.0, run_seconds=1.0, run_iterations=60)[
        "final"
    ]
    log = console(terminal=False)
    with progress(60, console=log) as update:
        for start in range(0, 60, length):
            update(min(start + length, 60), {name: curve[:, start : start + length] for name, curve in curves.items()})
    last = log.file.getvalue().splitlines()[-1].partition("  ")[2]
    assert last == "  ".join(f"{label} {final[name]['mean']:.3g}" for name, label in SHOWN.items())


def test_success_is_shown_where_there_is_any():
    log = console(terminal=False)
    with progress(6, console=log) as update:
        update(3, chunk(1.5, success_rate=np.zeros((2, 3))))
        update(6, chunk(1.5, success_rate=np.full((2, 3), 0.25)))
    assert ["success 0.25" in line for line in log.file.getvalue().splitlines()] == [False, False, True]


def test_the_table_has_what_the_run_has():
    row = {"mean": 1.0, "low": 0.5, "high": 123.456, "by_seed": [0.5, 1.0, 1.0, 1.0, 1.5, None]}
    missing = {"mean": None, "low": None, "high": None, "by_seed": [None, None]}
    summary = {
        "seeds": 6,
        "env_steps": 4096,
        "final": {
            "weight_mean_active/helpful": row,
            "influence/helpful": row,
            "episode_return": row,
            "success_rate": missing,
        },
        "area": {"episode_return": row},
        "seconds": {"compile": 1.0, "run": 2.0},
        "steps_per_second": 4096.0,
        "device": "2 x cpu",
    }
    log = console(terminal=False)
    show_summary(summary, "runs/x", log)
    shown = log.file.getvalue()
    of_source = "influence/helpful", "weight_mean_active/helpful, after units"
    for words in ("runs/x", "episode_return", *of_source, "0.5 .. 123.5", "4,096 steps/s on 2 x cpu"):
        assert words in shown
    assert "success_rate" not in shown
    assert "95 % intervals over 6 seeds" in shown


def test_few_seeds_have_no_interval_and_the_table_says_why():
    row = {"mean": 1.0, "low": 0.98765, "high": 1.0, "by_seed": [1.0]}
    summary = {"seeds": 1, "final": {"success_rate": row}}
    log = console(terminal=False)
    show_summary(summary, "runs/x", log)
    shown = log.file.getvalue()
    assert "0.98" not in shown
    assert "1 seed: too few for intervals and verdicts, which need 5" in shown


HEADER = ("method", "episode length, whole training", "last tenth", "worst seed", "influence", "no regret")
ROWS = [
    ("implicit", "192.9 [192.5, 193.3]", "200.0 [199.9, 200.1]", "187.5", "hints 0.012, language 0.102", "yes (10/10)"),
    ("ppo", "191.0 [190.5, 191.5]", "198.0 [197.5, 198.5]", "123.4", "", ""),
]


@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "log"])
@pytest.mark.parametrize("width", [40, 56, 80, 100, 112, 120, 160])
def test_no_cell_of_a_table_is_broken_over_lines(width, terminal):
    screen = Console(file=StringIO(), force_terminal=terminal, no_color=True, width=width)
    show_table(HEADER, ROWS, "runs/x", "10 seeds", screen)
    lines = Text.from_ansi(screen.file.getvalue()).plain.splitlines()
    assert all(any(cell in line for line in lines) for row in ROWS for cell in row)
    # Each row's cells are on one line, or on one line each; they are told in order.
    found = [cell for line in lines for cell in sum(ROWS, ()) if cell and cell in line]
    assert found == [cell for row in ROWS for cell in row if cell]
    if terminal and width >= 56:
        assert max(map(len, lines)) <= width
    assert lines[-1].strip() == "10 seeds"
