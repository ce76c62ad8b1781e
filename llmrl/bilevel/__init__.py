"""Hypergradients of any bi-level problem, with solvers and operators. Nothing here knows of reinforcement learning."""

from llmrl.bilevel import solvers
from llmrl.bilevel.hypergradients import explicit, implicit, implicit_gradient, incremental, unrolled

__all__ = ["explicit", "implicit", "implicit_gradient", "incremental", "solvers", "unrolled"]
