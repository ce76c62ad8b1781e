"""A learned intrinsic reward beside the task's own (LIRPG)."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from llmrl.nets import make_reward_net
from llmrl.types import EnvSpec, RewardTransform


def intrinsic(
    spec: EnvSpec, hidden: Sequence[int] = (64,), coefficient: float | Float[Array, ""] = 0.1
) -> RewardTransform:
    """r = r_p + coefficient * tanh(net(s, a, r_1..m; phi)), 0 at the start.

    The network sees the auxiliary values, so that it competes on the same knowledge as learned weights do.

    Reference: Zheng, Oh and Singh 2018, "On learning intrinsic rewards for policy gradient methods", eq. 3.
    """
    net = make_reward_net(spec, hidden, 1, sees_aux=True)

    def learned(phi, rollout):
        steps = rollout.steps
        return coefficient * jnp.tanh(net.apply(phi["network"], steps.obs, steps.action, steps.aux)[..., 0])

    return RewardTransform(
        init=lambda key: ({"network": net.init(key)}, ()),
        apply=lambda phi, state, rollout, signal: signal._replace(reward=signal.reward + learned(phi, rollout)),
        observe=lambda phi, state, rollout, signal: state,
        report=lambda phi, state, rollout: {"intrinsic_mean": jnp.mean(learned(phi, rollout))},
    )
