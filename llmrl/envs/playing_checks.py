"""What is wrong with an environment, or may be, by what was seen when it was played.

Every check looks at one thing and gives one line for each fault: which function, what came, what was expected. What may
be meant, but seldom is, gives a note.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np

from llmrl.envs.checking import Faults
from llmrl.envs.playing import INSTANCES, REPEATED, Played
from llmrl.envs.watching import LARGE
from llmrl.settings.errors import BadValue
from llmrl.types import Discrete, EnvSpec

FAR = 100.0
"""Observations beyond this are told of: networks want numbers near 1."""


# --- what is wrong ----------------------------------------------------------------------------------------------------


def played_faults(what: str, spec: EnvSpec, played: Played) -> Faults:
    """Everything that is wrong with what was seen.

    Args:
        what: what the environment is called, as errors begin.
        spec: its description.
        played: what was seen.
    """
    yield from played.faults
    for check in PLAYED_CHECKS:
        yield from check(what, spec, played)


def _check_observations(what: str, spec: EnvSpec, played: Played) -> Faults:
    resetting, stepping = played.functions
    for function, obs, among in (
        (resetting, played.obs, played.started),
        (stepping, played.results.obs, np.ones_like(played.started)),
    ):
        strange = _not_finite(obs) & among.reshape(*among.shape, *(1,) * len(spec.obs_shape))
        if strange.any():
            t, n, *component = np.argwhere(strange)[0].tolist()
            when = _when(played, t, n) if function == stepping else ""
            yield BadValue(
                f"{what}: {function} returned an observation with {obs[(t, n, *component)]}"
                f"{_component(spec, component)}{when}; expected finite numbers"
            )


def _check_reward(what: str, spec: EnvSpec, played: Played) -> Faults:
    if (strange := _not_finite(played.results.reward)).any():
        t, n = np.argwhere(strange)[0].tolist()
        came = f"reward {played.results.reward[t, n]}{_when(played, t, n)}"
        yield BadValue(f"{what}: {played.functions[1]} returned {came}; expected a finite number")


def _check_sources(what: str, spec: EnvSpec, played: Played) -> Faults:
    for column, name in enumerate(spec.aux_names):
        if (strange := _not_finite(played.results.aux[..., column])).any():
            t, n = np.argwhere(strange)[0].tolist()
            came = f"{played.results.aux[t, n, column]}{_when(played, t, n)}"
            yield BadValue(f"auxiliary function {name} returned {came}; expected a finite number")


def _check_horizon(what: str, spec: EnvSpec, played: Played) -> Faults:
    if (longest := int(played.ages.max())) > spec.horizon:
        t, n = np.argwhere(played.ages > spec.horizon)[0].tolist()
        yield BadValue(
            f"{what}: {played.functions[1]} let an episode go on for {longest} steps{_doing(played, t, n)}; expected "
            f"truncated at spec.horizon {spec.horizon}, as in truncated=time >= horizon"
        )


def _check_codes(what: str, spec: EnvSpec, played: Played) -> Faults:
    rows = np.concatenate([np.full(codes.count, len(codes.rows)) for codes in spec.encoding] or [np.zeros(0)])
    if rows.size and (strange := played.obs >= rows).any():
        t, n, byte = np.argwhere(strange)[0].tolist()
        yield BadValue(
            f"{what}: byte {byte} of an observation is {played.obs[t, n, byte]}; expected less than the "
            f"{int(rows[byte])} rows that spec.encoding has for it"
        )


PLAYED_CHECKS: tuple[Callable[[str, EnvSpec, Played], Faults], ...] = (
    _check_observations,
    _check_reward,
    _check_sources,
    _check_horizon,
    _check_codes,
)


def _not_finite(array: np.ndarray) -> np.ndarray:
    return ~np.isfinite(array.astype(np.float32))


def _component(spec: EnvSpec, component: list[Any]) -> str:
    if not component:
        return ""
    name = f" ({spec.obs_names[int(np.ravel_multi_index(component, spec.obs_shape))]})" if spec.obs_names else ""
    return f" as component {', '.join(map(str, component))}{name}"


def _when(played: Played, t: int, n: int) -> str:
    return f" at step {played.ages[t, n]} of an episode{_doing(played, t, n)}"


def _doing(played: Played, t: int, n: int) -> str:
    action = played.actions[t, n].tolist()
    return f", which repeats action {action}" if n < INSTANCES // 2 else f", at action {action}"


# --- what may be meant ------------------------------------------------------------------------------------------------


def notes(spec: EnvSpec, played: Played, filled_later: Collection[str] = ()) -> Iterator[str]:
    """What is allowed but seldom meant.

    Args:
        spec: the environment's description.
        played: what was seen.
        filled_later: sources that are 0 in every step by design.
    """
    steps = f"{played.num_steps:,} steps"
    if played.ages.max() <= spec.horizon and not played.ends.any():
        yield f"no episode ended in {steps}; more steps=... show whether one does at spec.horizon={spec.horizon}"
    if not played.heeded and not (isinstance(spec.action, Discrete) and spec.action.num == 1):
        yield f"another action changed nothing, neither state nor observation nor reward, in {REPEATED} steps"
    if played.ends.any() and played.ages[played.ends].max() == 1:
        yield "every episode ended at its first step"
    if len(np.unique(played.results.reward)) == 1:
        yield (
            f"the reward was {played.results.reward[0, 0]:g} in all {steps}: until another one is found, nothing can "
            "judge a source"
        )
    if np.all(played.obs == played.obs[0, 0]):
        yield f"the observation was the same in all {steps}"
    if (size := np.abs(played.obs.astype(np.float32) / np.asarray(spec.obs_scale, np.float32)).max()) > FAR:
        yield f"observations are as large as {size:.3g} after spec.obs_scale; networks want numbers near 1"
    if (size := np.abs(np.cumsum(played.results.reward, axis=0)).max()) > LARGE:
        yield f"returns are as large as {size:.3g}; learning wants rewards near 1: divide them in step"
    for column, name in enumerate(spec.aux_names):
        values = np.unique(played.results.aux[..., column])
        if len(values) == 1 and name not in filled_later:
            yield f"auxiliary function {name} returned {values[0]:g} in all {steps}"
