"""Networks; the only room that knows the network library."""

from llmrl.nets.mlp import (
    Critic,
    Features,
    Net,
    Policy,
    RewardNet,
    encode_action,
    make_critic,
    make_features,
    make_net,
    make_policy,
    make_reward_net,
)

__all__ = [
    "Critic",
    "Features",
    "Net",
    "Policy",
    "RewardNet",
    "encode_action",
    "make_critic",
    "make_features",
    "make_net",
    "make_policy",
    "make_reward_net",
]
