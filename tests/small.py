"""A run so small that it takes no time: what many tests train, so that its program is compiled once for all of them."""

GRID = ("env=gridworld", "env.size=3", "env.horizon=8")
RUN = (*GRID, "aux=helpful_hackable", "ppo=tiny", "seeds=2", "total_steps=768", "num_chunks=6", "progress=false")
"""Twelve iterations in six chunks."""
