"""Trust in auxiliary sources: the blend, its limits, its evidence, and the rule that decides which source is followed.

For training loops of your own it is a pair of pure functions, ``init`` and ``update``, as optax has them:

learner = llmrl.trust.learner(spec, distribution, values, discount=0.99, gae_lambda=0.95, entropy=0.01)
state = learner.init(key)
blend, state, info = learner.update(state, rollout, actor, critic, key)    # once per rollout
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmrl.assembly.trust_learning import Blend, Learner, LearnerState, Steps, learner, rollout

__all__ = ["Blend", "Learner", "LearnerState", "Steps", "learner", "rollout"]


def __getattr__(name: str) -> Any:
    # The learner is made of rooms above this one, so it is imported at its first use.
    if name in __all__:
        return getattr(importlib.import_module("llmrl.assembly.trust_learning"), name)
    raise AttributeError(f"module 'llmrl.trust' has no attribute {name!r}")
