"""What an environment's first episodes say about it: signs of a fault that may also be meant. Host only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
from jaxtyping import Shaped

from llmrl.types import EnvSpec

LARGE = 1e6
"""Returns beyond this are told of: a critic starts at 0 and hardly gets there."""

_Chunk: TypeAlias = Mapping[str, Shaped[np.ndarray, "seeds iterations"]]


def watched(spec: EnvSpec, num_steps: int) -> Callable[..., list[str]]:
    """Looks at a training's metrics, chunk by chunk, for what no environment should do.

    Args:
        spec: the environment's.
        num_steps: steps of each environment in one iteration.

    Returns:
        ``(chunk, last=False) -> messages``: what is new in this chunk, one line each; every sign is told once.
    """
    told: set[str] = set()
    steps, ended = 0, 0.0

    def look(chunk: _Chunk, last: bool = False) -> list[str]:
        nonlocal steps, ended
        steps += num_steps * chunk["episodes"].shape[1]
        ended += float(chunk["episodes"].sum())
        # Of a run that goes on, the return is that of the process before.
        none_yet = not ended and bool(np.isnan(chunk["episode_return"][:, -1]).all())
        found = {
            "endless": none_yet and steps >= spec.horizon and _endless(spec, steps),
            "short": none_yet and steps < spec.horizon and last and _too_short(spec, steps),
            "long": _too_long(spec, _largest(chunk["episode_length"])),
            "large": _large(_largest(chunk["episode_return"])),
        }
        new = {sign: message for sign, message in found.items() if message and sign not in told}
        told.update(new)
        return list(new.values())

    return look


def _largest(curve: Shaped[np.ndarray, "seeds iterations"]) -> float:
    """The largest size among the numbers; 0 where there are none, as before the first episode has ended."""
    return float(np.max(np.nan_to_num(np.abs(curve), nan=0.0, posinf=0.0)))


def _endless(spec: EnvSpec, steps: int) -> str:
    return f"{spec.name}: no episode ended in {steps} steps, expected one within horizon={spec.horizon}; {_WHOSE}"


def _too_short(spec: EnvSpec, steps: int) -> str:
    return (
        f"{spec.name}: no episode ended, so there is no return to show: each environment took {steps} steps, fewer "
        f"than horizon={spec.horizon}; raise total_steps"
    )


def _too_long(spec: EnvSpec, length: float) -> str:
    if length <= spec.horizon + 0.5:
        return ""
    return f"{spec.name}: episodes of {length:.0f} steps, expected at most horizon={spec.horizon}; {_WHOSE}"


def _large(size: float) -> str:
    if size <= LARGE:
        return ""
    return f"episode returns as large as {size:.3g}: learning wants rewards near 1; divide them in step"


_WHOSE = "step(key, state, action) has to set truncated there, as in truncated=time >= horizon"
