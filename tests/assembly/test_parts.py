"""What a config makes of its numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llmrl
from llmrl.assembly.parts import build, make_environment
from llmrl.learner.ppo import Params


@pytest.mark.parametrize("ratio", [0.25, 1.0, 10.0])
def test_the_critic_steps_at_its_ratio_of_the_actors_rate(ratio):
    """Adam's first step is its rate, in every direction that has a slope."""
    config = llmrl.compose(
        "env=gridworld", "method=ppo", "ppo.learning_rate=1e-3", f"ppo.critic_rate_ratio={ratio}", "ppo.hidden=[4]"
    )
    parts = build(config, make_environment(config))
    keys = jax.random.split(jax.random.key(0))
    params = Params(parts.inner.policy.init(keys[0]), parts.inner.critic.init(keys[1]))
    slope = jax.tree.map(jnp.ones_like, params)
    steps, _ = parts.optimizer.update(slope, parts.optimizer.init(params), params)
    for part, rate in ((steps.actor, 1e-3), (steps.critic, ratio * 1e-3)):
        for step in jax.tree.leaves(part):
            np.testing.assert_allclose(step, -rate, rtol=2e-3)  # less Adam's epsilon
