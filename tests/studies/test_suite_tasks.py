"""The tasks of the suite: each composes and has every source, and each belongs to one of two sets."""

import re
from pathlib import Path

import pytest

import llmrl
from llmrl.envs import AUX_SOURCES, LATE
from llmrl.studies import suite_tasks
from llmrl.studies.suite_tasks import DEVELOPMENT, QUALITIES, REPORT, REPORT_NAMES, TASKS

CHOICES = dict.fromkeys(words for task in TASKS.values() for words in task.sources.values())


@pytest.mark.parametrize("name", TASKS)
def test_a_task_composes_and_has_its_sources(name):
    task = TASKS[name]
    config = llmrl.compose(*task.overrides, "aux=none", "method=ppo", f"total_steps={task.total_steps}")
    assert task.set in (DEVELOPMENT, REPORT) and set(task.sources) >= set(QUALITIES)
    assert set(task.sources).difference(LATE) <= set(AUX_SOURCES[config.env.id or config.env.name])


@pytest.mark.parametrize("words", CHOICES)
def test_a_source_composes(words):
    assert llmrl.compose(*words).aux.sources == {words[0].removeprefix("aux="): 1.0}


def test_both_sets_together_are_all_tasks():
    development, report = (suite_tasks.tasks_of(each) for each in (DEVELOPMENT, REPORT))
    assert [task.name for task in development] == [
        "cartpole",
        "cartpole_continuous",
        "gridworld",
        "place_table",
        "MountainCar-v0",
    ]
    assert len(development) + len(report) == len(TASKS) == 20


# --- nothing is chosen on a report task -------------------------------------------------------------------------------

ROOT = Path(__file__).parents[2]
NAMES = "|".join(re.escape(name) for name in sorted(REPORT_NAMES))
GROUNDS = re.compile(
    rf"\b(?:tun(?:ed|ing)|chosen|chose|picked|selected|swept|searched|best)\b[^.:;|]*\b(?:on|from|by|in|over)\b"
    rf"[^.:;|]*(?<![\w-])(?:{NAMES})(?![\w-])",
    re.IGNORECASE,
)
"""A report task as the ground for a choice, within one sentence."""


def chosen_on_report(text):
    return GROUNDS.findall(" ".join(text.split()))


@pytest.mark.parametrize(
    "words",
    [
        "The rate was tuned on Acrobot-v1.",
        "We chose 0.3, the best of five values on CartPole\nand `keydoor`.",
        "Its size was picked from a sweep over Breakout-MinAtar",
    ],
)
def test_a_choice_on_a_report_task_is_found(words):
    assert chosen_on_report(words)


@pytest.mark.parametrize(
    "words",
    ["It was chosen on cartpole. On Acrobot-v1 it fails.", "It reaches 0.9 on keydoor.", "Choose one of these."],
)
def test_what_is_no_such_choice_is_left_alone(words):
    assert not chosen_on_report(words)


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda page: page.name
)
def test_no_page_names_a_report_task_as_the_ground_of_a_choice(page):
    assert not chosen_on_report(page.read_text())


def test_no_setting_of_a_method_and_no_grid_names_a_report_task():
    """Whole files: what is tuned has no reason to know these names."""
    files = [file for group in ("method", "solver", "ppo", "aux") for file in (ROOT / "configs" / group).glob("*.yaml")]
    files += [
        ROOT / "configs" / "choices.yaml",
        ROOT / "scripts" / "tune.py",
        ROOT / "llmrl" / "settings" / "config.py",
    ]
    files += [ROOT / "llmrl" / "assembly" / "methods.py"]
    assert len(files) > 50
    for file in files:
        named = re.findall(rf"(?<![\w-])(?:{NAMES})(?![\w-])", file.read_text())
        # What an environment is called, the list of its settings may say.
        assert not named or file.name == "config.py", (file, named)
        assert not chosen_on_report(file.read_text()), file


@pytest.mark.parametrize("name", ["keydoor", "Acrobot-v1", "make_wood_pickaxe"])
def test_report_tasks_are_refused_by_each_of_their_names(name):
    with pytest.raises(ValueError, match=f"{name} is a task of the set report"):
        suite_tasks.refuse_report(["cartpole", name])


def test_development_tasks_are_not_refused():
    suite_tasks.refuse_report(suite_tasks.names_of(DEVELOPMENT))
