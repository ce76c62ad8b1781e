"""Reward transforms, one per file: how the task's signal becomes the one an agent learns from."""

from llmrl.rewards.add import add
from llmrl.rewards.advice import advice, following
from llmrl.rewards.base import beyond_task, frozen, speaks, stateless, task_signal
from llmrl.rewards.bonus import Bonus, Late, bonus_source, intrinsic_stream, paid
from llmrl.rewards.curiosity import icm
from llmrl.rewards.goals import (
    GoalTable,
    Suggested,
    from_source,
    goal_scores,
    goal_source,
    goals,
    read_goals,
    task_and_goals,
)
from llmrl.rewards.intrinsic import intrinsic
from llmrl.rewards.language import Heard, Language, language
from llmrl.rewards.mixture import MixtureState, make_weights, mixture
from llmrl.rewards.novelty import rnd
from llmrl.rewards.particle import apt
from llmrl.rewards.potential import dpba, pbrs, pies
from llmrl.rewards.task import task
from llmrl.rewards.trust import evidence, no_trust
from llmrl.rewards.views import beside_weights

__all__ = [
    "Bonus",
    "GoalTable",
    "Heard",
    "Language",
    "Late",
    "MixtureState",
    "Suggested",
    "add",
    "advice",
    "apt",
    "beside_weights",
    "beyond_task",
    "bonus_source",
    "dpba",
    "evidence",
    "following",
    "from_source",
    "frozen",
    "goal_scores",
    "goal_source",
    "goals",
    "icm",
    "intrinsic",
    "intrinsic_stream",
    "language",
    "make_weights",
    "mixture",
    "no_trust",
    "paid",
    "pbrs",
    "pies",
    "read_goals",
    "rnd",
    "speaks",
    "stateless",
    "task",
    "task_and_goals",
    "task_signal",
]
