"""The tasks of the suite: each composes, and each belongs to one of two sets."""

import pytest

import llmrl
from llmrl.studies import suite_tasks
from llmrl.studies.suite_tasks import DEVELOPMENT, QUALITIES, REPORT, TASKS


@pytest.mark.parametrize("name", TASKS)
def test_a_task_composes(name):
    task = TASKS[name]
    assert task.set in (DEVELOPMENT, REPORT) and set(task.sources) >= set(QUALITIES)
    llmrl.compose(*task.overrides, "aux=none", "method=ppo", f"total_steps={task.total_steps}")


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
