"""llmrl: reinforcement learning that learns how far to trust an auxiliary reward.

    config = llmrl.compose("env=cartpole", "aux=harmful", "method=implicit")
    result = llmrl.train(config)
    llmrl.plot(result)

Names are imported at their first use, so that a command's ``--help`` does not wait for jax.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmrl import bilevel, trust
    from llmrl.analysis.plots import plot as plot
    from llmrl.bilevel.hypergradients import implicit_gradient as implicit_gradient
    from llmrl.results.policies import load_policy as load_policy
    from llmrl.results.policies import save_policy as save_policy
    from llmrl.results.trust_map import trust_map as trust_map
    from llmrl.settings.overrides import compose as compose
    from llmrl.studies.sweeps import sweep as sweep
    from llmrl.training.loop import train as train

__version__ = "0.1.0"

_FUNCTIONS = {
    "compose": "llmrl.settings.overrides",
    "train": "llmrl.training.loop",
    "sweep": "llmrl.studies.sweeps",
    "load_policy": "llmrl.results.policies",
    "save_policy": "llmrl.results.policies",
    "plot": "llmrl.analysis.plots",
    "trust_map": "llmrl.results.trust_map",
    "implicit_gradient": "llmrl.bilevel.hypergradients",
}

__all__ = [
    "compose",
    "implicit_gradient",
    "load_policy",
    "plot",
    "save_policy",
    "bilevel",
    "sweep",
    "train",
    "trust",
    "trust_map",
]


def __getattr__(name: str) -> Any:
    if name in _FUNCTIONS:
        globals()[name] = getattr(importlib.import_module(_FUNCTIONS[name]), name)
        return globals()[name]
    if name in ("bilevel", "trust"):
        return importlib.import_module(f"llmrl.{name}")
    raise AttributeError(f"module 'llmrl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
