"""Reward transforms, one per file: how the task's signal becomes the one an agent learns from."""

from llmrl.rewards.add import add
from llmrl.rewards.base import stateless, task_signal
from llmrl.rewards.bonus import Bonus, intrinsic_stream, paid
from llmrl.rewards.curiosity import icm
from llmrl.rewards.goals import GoalTable, goals, read_goals, task_and_goals
from llmrl.rewards.intrinsic import intrinsic
from llmrl.rewards.mixture import make_weights, mixture
from llmrl.rewards.novelty import rnd
from llmrl.rewards.particle import apt
from llmrl.rewards.task import task
from llmrl.rewards.trust import evidence, no_trust

__all__ = [
    "Bonus",
    "GoalTable",
    "add",
    "apt",
    "evidence",
    "goals",
    "icm",
    "intrinsic",
    "intrinsic_stream",
    "make_weights",
    "mixture",
    "no_trust",
    "paid",
    "read_goals",
    "rnd",
    "stateless",
    "task",
    "task_and_goals",
    "task_signal",
]
