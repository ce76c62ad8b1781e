"""Reward transforms, one per file: how the task's signal becomes the one an agent learns from."""

from llmrl.rewards.add import add, add_one
from llmrl.rewards.adops import adops
from llmrl.rewards.base import beyond_task, frozen, stateless
from llmrl.rewards.bonus import Bonus, bonus_source, intrinsic_stream, paid
from llmrl.rewards.curiosity import icm
from llmrl.rewards.goals import (
    from_source,
    goal_source,
    goals,
    read_goals,
    task_and_goals,
)
from llmrl.rewards.intrinsic import intrinsic
from llmrl.rewards.novelty import rnd
from llmrl.rewards.particle import apt
from llmrl.rewards.potential import dpba, pbrs, pies
from llmrl.rewards.ranking import ranked_potential
from llmrl.rewards.sources import Heard, Language, Late, LateSource, SourceMemory, Sources, Suggested, language
from llmrl.rewards.task import task, task_signal
from llmrl.rewards.threshold import thresholded
from llmrl.rewards.turning import turning_source
from llmrl.rewards.written import silenced, source_of

__all__ = [
    "Bonus",
    "Heard",
    "Language",
    "Late",
    "LateSource",
    "SourceMemory",
    "Sources",
    "Suggested",
    "add",
    "add_one",
    "adops",
    "apt",
    "beyond_task",
    "bonus_source",
    "dpba",
    "from_source",
    "frozen",
    "goal_source",
    "goals",
    "icm",
    "intrinsic",
    "intrinsic_stream",
    "language",
    "paid",
    "pbrs",
    "pies",
    "ranked_potential",
    "read_goals",
    "rnd",
    "silenced",
    "source_of",
    "stateless",
    "task",
    "task_and_goals",
    "task_signal",
    "thresholded",
    "turning_source",
]
