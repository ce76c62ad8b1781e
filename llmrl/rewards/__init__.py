"""Reward transforms, one per file: how the task's signal becomes the one an agent learns from."""

from llmrl.rewards.add import add
from llmrl.rewards.base import stateless, task_signal
from llmrl.rewards.intrinsic import intrinsic
from llmrl.rewards.language import Heard, Language, language
from llmrl.rewards.mixture import make_weights, mixture
from llmrl.rewards.task import task
from llmrl.rewards.trust import evidence, no_trust

__all__ = [
    "Heard",
    "Language",
    "add",
    "evidence",
    "intrinsic",
    "language",
    "make_weights",
    "mixture",
    "no_trust",
    "stateless",
    "task",
    "task_signal",
]
