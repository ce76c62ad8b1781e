"""The tasks of the suite: each composes and has every source, and each belongs to one of two sets."""

import pytest

import llmrl
from llmrl.envs import AUX_SOURCES, LATE
from llmrl.studies import suite_tasks
from llmrl.studies.suite_tasks import DEVELOPMENT, QUALITIES, REPORT, TASKS

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
