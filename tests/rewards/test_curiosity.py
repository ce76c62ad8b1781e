"""ICM: features tell actions apart, what is foreseen pays little, and the forward model does not touch the features."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import with_defaults

from llmrl.rewards import icm
from llmrl.settings.config import NoveltyConfig
from llmrl.types import Box, Discrete, EnvSpec

icm = with_defaults(icm, NoveltyConfig())

T, N = 8, 4
DISCRETE = EnvSpec("none", (3,), Discrete(2), 10)
CONTINUOUS = EnvSpec("none", (3,), Box(1), 10)


def moving(random_rollout, spec, seed):
    """The action pushes the first component; the second is noise that no action explains, the third never changes."""
    rollout = random_rollout(spec, T, N, seed)
    steps = rollout.steps
    push = np.asarray(steps.action, np.float32).reshape(T, N)
    obs, next_obs = (np.array(x) for x in (steps.obs, steps.next_obs))
    obs[..., 2] = next_obs[..., 2] = 1.0
    next_obs[..., 0] = obs[..., 0] + 2.0 * push - 1.0
    return rollout._replace(steps=steps._replace(obs=jnp.asarray(obs), next_obs=jnp.asarray(next_obs)))


@pytest.mark.parametrize("spec", [DISCRETE, CONTINUOUS], ids=["Discrete", "Box"])
def test_experience_teaches_which_action_was_taken(random_rollout, spec):
    bonus = icm(spec, N, hidden=(16,), features=4, learning_rate=1e-2)
    score, state, losses = jax.jit(bonus.score), bonus.init(jax.random.key(0)), []
    for seed in range(40):
        paid, state = score(state, moving(random_rollout, spec, seed))
        assert np.all(np.isfinite(paid)) and np.all(paid >= 0)
        losses.append(float(state.inverse_loss))
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])


def test_a_step_that_breaks_the_rules_pays_most(random_rollout):
    bonus = icm(DISCRETE, N, hidden=(16,), features=4, learning_rate=1e-2)
    score, state = jax.jit(bonus.score), bonus.init(jax.random.key(0))
    for seed in range(40):
        rollout = moving(random_rollout, DISCRETE, seed)
        # The noise is quiet here, so that everything can be foreseen.
        obs, next_obs = (x * np.asarray([1, 0, 1], np.float32) for x in (rollout.steps.obs, rollout.steps.next_obs))
        rollout = rollout._replace(steps=rollout.steps._replace(obs=jnp.asarray(obs), next_obs=jnp.asarray(next_obs)))
        _, state = score(state, rollout)
    broken = np.array(next_obs)
    broken[3, 2, 0] += 4.0
    paid, _ = score(state, rollout._replace(steps=rollout.steps._replace(next_obs=jnp.asarray(broken))))
    assert np.unravel_index(np.argmax(paid), paid.shape) == (3, 2)
