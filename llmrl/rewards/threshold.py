"""A source as yes or no: it pays where what it says is above a calibrated threshold, and less if it often is."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from llmrl.ops.conformal import conformal_threshold
from llmrl.rewards.sources import Late
from llmrl.types import Rollout, Scalar


class Calibration(NamedTuple):
    """What the last rollouts say of a source.

    Attributes:
        threshold: least value that counts as yes; of the newest rollout with praise.
        frequency: share of the newest rollout's steps with a yes, p.
        unit: mean of the praise, u; 0 before the first.
    """

    threshold: Scalar
    frequency: Scalar
    unit: Scalar


def thresholded(column: int, name: str, error_rate: float | Scalar) -> Late:
    """r_t = u max(0, 1[x_t >= q] - p), where x is what the source says and x > 0 is praise.

    The threshold q is the conformal one: of praise that is exchangeable with that of the rollout before, a share of
    ``error_rate`` at most is left out. p is how often the rollout before had a yes: praise for everything says nothing
    (the linear form of the mutual information of step and praise). Blame pays nothing, and neither does the first
    rollout. u keeps the source in its own units, where the original pays 1.

    The original calibrates on pairs of trajectory and instruction that are known to match. Nothing is known to match
    here, so the source's own praise is taken for that: what is left out is its faintest.

    Args:
        column: of ``Transition.aux``.
        name: the source's. The metrics ``threshold/{name}`` and ``threshold_passed/{name}`` are q and the share of
            steps with a yes.
        error_rate: alpha.

    Reference: Huang et al. 2024, "The dark side of rich rewards: understanding and mitigating noise in VLM rewards"
    (BiMI).
    """

    def passed(memory: Calibration, values: Float[Array, "t n"]) -> Bool[Array, "t n"]:
        return (values > 0) & (values >= memory.threshold)

    def calibrated(memory: Calibration, values: Float[Array, "t n"]) -> Calibration:
        praise = values > 0
        number = jnp.sum(praise.astype(values.dtype))
        threshold = jnp.maximum(conformal_threshold(values.reshape(-1), praise.reshape(-1), error_rate), 0.0)
        unit = jnp.sum(jnp.where(praise, values, 0.0)) / jnp.maximum(number, 1.0)
        found = Calibration(
            jnp.where(number > 0, threshold, memory.threshold), jnp.zeros(()), jnp.where(number > 0, unit, memory.unit)
        )
        return found._replace(frequency=jnp.mean(passed(found, values).astype(values.dtype)))

    def score(memory: Calibration, rollout: Rollout, words: Any, asked: Rollout | None = None):
        own = rollout.steps.aux[..., column]
        yes = passed(memory, own if asked is None else asked.steps.aux[..., column])
        values = memory.unit * (1.0 - memory.frequency) * yes.astype(own.dtype)
        told = {f"threshold/{name}": memory.threshold, f"threshold_passed/{name}": jnp.mean(yes.astype(own.dtype))}
        return values, calibrated(memory, own), told

    nothing = jnp.zeros(())
    return Late(lambda key: Calibration(nothing, nothing, nothing), score, lambda memory: memory)
