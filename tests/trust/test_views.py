"""What a policy sees beside the observation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain import make_weights

from llmrl.ops.codes import decode
from llmrl.trust.blend import MixtureState
from llmrl.trust.limits import no_limits
from llmrl.trust.views import beside_weights
from llmrl.types import Box, Codes, Discrete, EnvSpec

KEY = jax.random.key(0)
UNSEEN = MixtureState(no_limits(2).init())


@pytest.mark.parametrize("action", [Discrete(3), Box(2)])
def test_the_observation_and_beside_it_the_weights_that_the_reward_uses(random_rollout, action):
    spec = EnvSpec("none", (2, 3), action, 10, ("first", "second"), obs_scale=(1.0, 2.0, 4.0))
    weights = make_weights(spec, bound=2.0, initial=1.0, hidden=(4,), sees_action=False)
    view = beside_weights(spec, weights, stream=1)
    assert view.spec.obs_shape == (8,)
    assert view.spec.obs_scale == (1.0, 2.0, 4.0, 1.0, 2.0, 4.0, 1.0, 1.0)
    phis = ({}, jax.tree.map(lambda x: x + 0.3, weights.init(KEY)))
    rollout = random_rollout(spec, 5, 4)
    obs = rollout.steps.obs
    seen = view.of(phis, obs)
    np.testing.assert_array_equal(seen[..., :6], obs.reshape(5, 4, 6))
    np.testing.assert_allclose(seen[..., 6:], weights.weight(phis[1], UNSEEN, rollout), rtol=1e-6)
    np.testing.assert_allclose(view.of(phis, obs[0, 0]), seen[0, 0], rtol=1e-5)
    other = rollout._replace(steps=rollout.steps._replace(action=jnp.roll(rollout.steps.action, 1, axis=0)))
    np.testing.assert_array_equal(weights.weight(phis[1], UNSEEN, other), weights.weight(phis[1], UNSEEN, rollout))


def test_of_bytes_a_policy_sees_what_they_stand_for():
    encoding = (Codes(2, ((1.0, 0.0), (0.0, 1.0))), Codes(1, ((0.0,), (0.5,), (1.0,))))
    spec = EnvSpec("none", (3,), Discrete(3), 10, ("first",), encoding=encoding)
    weights = make_weights(spec, hidden=(4,), sees_action=False)
    view = beside_weights(spec, weights, stream=0)
    obs = jnp.asarray([[0, 1, 2], [1, 1, 0]], jnp.uint8)
    with jax.numpy_dtype_promotion("strict"):
        seen = view.of((weights.init(KEY),), obs)
    assert seen.shape == (2, *view.spec.obs_shape) and not view.spec.encoding
    np.testing.assert_array_equal(seen[:, :5], decode(encoding, obs))


def test_of_integers_a_policy_sees_the_same_numbers():
    spec = EnvSpec("none", (2,), Discrete(3), 10, ("first",), obs_scale=2.5)
    weights = make_weights(spec, hidden=(4,), sees_action=False)
    view, phis, obs = beside_weights(spec, weights, stream=0), (weights.init(KEY),), jnp.asarray([[3, 1]])
    np.testing.assert_array_equal(view.of(phis, obs), view.of(phis, obs.astype(jnp.float32)))


@pytest.mark.parametrize("settings", [{"sees_action": True}, {"sees_action": False, "sees_aux": True}])
def test_weights_of_more_than_the_state_cannot_be_seen(settings):
    spec = EnvSpec("none", (2,), Discrete(2), 10, ("first",))
    with pytest.raises(ValueError, match=r"sees_action=false.*sees_aux=false"):
        beside_weights(spec, make_weights(spec, **settings), stream=1)
