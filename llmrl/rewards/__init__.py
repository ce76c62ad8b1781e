"""Reward transforms, one per file: how the task's signal becomes the one an agent learns from."""

from llmrl.rewards.add import add
from llmrl.rewards.base import frozen, stateless, task_signal
from llmrl.rewards.intrinsic import intrinsic
from llmrl.rewards.mixture import make_weights, mixture
from llmrl.rewards.task import task
from llmrl.rewards.trust import evidence, no_trust
from llmrl.rewards.views import beside_weights

__all__ = [
    "add",
    "beside_weights",
    "evidence",
    "frozen",
    "intrinsic",
    "make_weights",
    "mixture",
    "no_trust",
    "stateless",
    "task",
    "task_signal",
]
