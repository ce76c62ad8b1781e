"""Rollouts, the inner level and the outer level, as pure functions."""
