"""Reward transforms, one per file: how the task's signal becomes the one an agent learns from."""

from llmrl.rewards.add import add
from llmrl.rewards.advice import advice
from llmrl.rewards.base import beyond_task, frozen, speaks, stateless, task_signal
from llmrl.rewards.bonus import Bonus, intrinsic_stream, paid
from llmrl.rewards.curiosity import icm
from llmrl.rewards.goals import GoalTable, goals, read_goals, task_and_goals
from llmrl.rewards.intrinsic import intrinsic
from llmrl.rewards.mixture import make_weights, mixture
from llmrl.rewards.novelty import rnd
from llmrl.rewards.particle import apt
from llmrl.rewards.potential import dpba, pbrs, pies
from llmrl.rewards.task import task
from llmrl.rewards.trust import evidence, no_trust
from llmrl.rewards.views import beside_weights

__all__ = [
    "add",
    "advice",
    "beyond_task",
    "dpba",
    "evidence",
    "beside_weights",
    "frozen",
    "intrinsic",
    "make_weights",
    "mixture",
    "no_trust",
    "speaks",
    "pbrs",
    "pies",
    "stateless",
    "task",
    "Bonus",
    "GoalTable",
    "apt",
    "goals",
    "icm",
    "intrinsic_stream",
    "paid",
    "read_goals",
    "rnd",
    "task_and_goals",
    "task_signal",
]
