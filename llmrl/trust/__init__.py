"""Learned trust for training loops of your own: a pair of pure functions, ``init`` and ``update``, as optax has them.

learner = llmrl.trust.learner(spec, distribution, values, discount=0.99, gae_lambda=0.95, entropy=0.01)
state = learner.init(key)
blend, state, info = learner.update(state, rollout, actor, critic, key)    # once per rollout
"""

from llmrl.trust.learning import Blend, Learner, LearnerState, Steps, learner, rollout

__all__ = ["Blend", "Learner", "LearnerState", "Steps", "learner", "rollout"]
