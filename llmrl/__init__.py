"""llmrl: reinforcement learning that learns how far to trust an auxiliary reward.

    config = llmrl.compose("env=cartpole", "aux=harmful", "method=implicit")
    result = llmrl.train(config)
    llmrl.plot(result)

Names are imported at their first use, so that a command's ``--help`` does not wait for jax.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmrl import solvers as solvers
    from llmrl import trust as trust
    from llmrl.analysis.plots import plot as plot
    from llmrl.hypergradients import implicit_gradient as implicit_gradient
    from llmrl.overrides import compose as compose
    from llmrl.policies import load_policy as load_policy
    from llmrl.policies import save_policy as save_policy
    from llmrl.sweeps import sweep as sweep
    from llmrl.train import train as train
    from llmrl.trust_map import trust_map as trust_map

__version__ = "0.1.0"

_FUNCTIONS = {
    "compose": "llmrl.overrides",
    "train": "llmrl.train",
    "sweep": "llmrl.sweeps",
    "load_policy": "llmrl.policies",
    "save_policy": "llmrl.policies",
    "plot": "llmrl.analysis.plots",
    "trust_map": "llmrl.trust_map",
    "implicit_gradient": "llmrl.hypergradients",
}

__all__ = [
    "compose",
    "implicit_gradient",
    "load_policy",
    "plot",
    "save_policy",
    "solvers",
    "sweep",
    "train",
    "trust",
    "trust_map",
]


def __getattr__(name: str) -> Any:
    if name in _FUNCTIONS:
        globals()[name] = getattr(importlib.import_module(_FUNCTIONS[name]), name)
        return globals()[name]
    if name in ("solvers", "trust"):
        return importlib.import_module(f"llmrl.{name}")
    raise AttributeError(f"module 'llmrl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Python binds a submodule to its package at its first import, which would hide the function ``llmrl.train``."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _FUNCTIONS and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
