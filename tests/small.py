"""A run so small that it takes no time: what many tests train, so that its program is compiled once for all of them."""

RUN = ("env=gridworld", "env.size=3", "env.horizon=8", "aux=helpful_hackable", "ppo=tiny", "progress=false")
TWELVE = ("total_steps=768", "num_chunks=6")
"""Iterations, in six chunks."""
