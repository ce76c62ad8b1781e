"""Networks; the only room that knows the network library."""

from llmrl.nets.mlp import Critic, Policy, RewardNet, make_critic, make_policy, make_reward_net

__all__ = ["Critic", "Policy", "RewardNet", "make_critic", "make_policy", "make_reward_net"]
