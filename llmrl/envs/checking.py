"""An environment of one's own, tried on shapes alone before anything is trained.

Every check looks at one thing and gives one line for each fault: which function, what came, what was expected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from llmrl.envs.base import action_shape
from llmrl.envs.captions import captioner_faults
from llmrl.envs.tracing import described, traced
from llmrl.settings.errors import BadType, BadValue, UserError
from llmrl.types import Box, Codes, Discrete, Environment, EnvSpec, TimeStep

_SMALLEST_DIVISOR = 1e-30
"""Of ``obs_scale``: accelerators take float32 below 1e-38 as 0, and a quotient must stay finite."""

RESET = "expected pure jax that returns (state, obs): a pytree of arrays, and one array of spec.obs_shape"
STEP = "expected pure jax that returns (state, llmrl.types.TimeStep), as llmrl.envs.time_step makes one"

Faults: TypeAlias = Iterator[UserError]
"""What a check has to say: nothing where all is well, else errors that are ready to be raised."""


def checked_environment(env: Any, what: str = "environment") -> Environment:
    """Tries an environment on shapes alone, before any training and without running it.

    Args:
        env: the environment to try, whatever it turns out to be.
        what: what it is called, as errors begin.

    Returns:
        The same environment.

    Raises:
        TypeError: it is no ``Environment``, a function cannot be traced or takes other arguments, or something is of
            another type than ``llmrl.types`` says.
        ValueError: a number of its spec makes no sense, shapes or dtypes do not fit each other, or a function is not
            pure or raises.
    """
    for fault in environment_faults(env, what):
        raise fault
    return env


def environment_faults(env: Any, what: str = "environment") -> Faults:
    """Every fault that shapes alone show; arguments as for ``checked_environment``, which raises the first.

    Checks build on each other: what a fault hides is looked at once that fault is mended.
    """
    if not isinstance(env, Environment):
        yield BadType(
            f"{what} is {described(env)}; expected an llmrl.types.Environment "
            "(llmrl.envs.from_gymnax makes one of a gymnax environment and its parameters; one that Python steps, as "
            "Gymnasium's, cannot be compiled)"
        )
        return
    for check in PART_CHECKS:
        if faults := [*check(what, env)]:
            yield from faults
            return
    for check in SPEC_CHECKS:
        yield from check(what, env)
    try:
        tried = _tried(what, env)
    except UserError as fault:
        yield fault
        return
    for check in SHAPE_CHECKS:
        yield from check(what, tried)
    if env.captioner is not None:
        yield from captioner_faults(f"{what}: captioner", env, env.captioner, own=True)


# --- the description --------------------------------------------------------------------------------------------------


def _check_parts(what: str, env: Environment) -> Faults:
    if not isinstance(env.spec, EnvSpec):
        yield BadType(f"{what}: spec is {described(env.spec)}; expected an llmrl.types.EnvSpec")
    for name in ("reset", "step"):
        if not callable(getattr(env, name)):
            yield BadType(f"{what}: {name} is {described(getattr(env, name))}; expected a function")


def _check_name(what: str, env: Environment) -> Faults:
    if not isinstance(env.spec.name, str) or not env.spec.name:
        yield BadType(f"{what}: spec.name is {described(env.spec.name)}; expected a text")


def _check_obs_shape(what: str, env: Environment) -> Faults:
    shape: Any = env.spec.obs_shape
    if not isinstance(shape, tuple) or not all(_is_count(length) for length in shape):
        yield BadValue(f"{what}: spec.obs_shape is {described(shape)}; expected a tuple of positive ints, as in (4,)")


def _check_action(what: str, env: Environment) -> Faults:
    space: Any = env.spec.action
    if isinstance(space, Discrete):
        if not _is_count(space.num):
            yield BadValue(f"{what}: spec.action is {space}; expected a positive number of actions")
    elif isinstance(space, Box):
        low, high = _in_float32(space.low), _in_float32(space.high)
        shapes = (), (space.dim,)
        if not _is_count(space.dim):
            yield BadValue(f"{what}: spec.action is {space}; expected a positive dim")
        elif low is None or high is None or {low.shape, high.shape}.difference(shapes) or not np.all(low < high):
            yield BadValue(f"{what}: spec.action is {space}; expected finite bounds with low < high")
    else:
        yield BadType(
            f"{what}: spec.action is {described(space)}; expected an llmrl.types.Discrete or an llmrl.types.Box"
        )


def _check_horizon(what: str, env: Environment) -> Faults:
    if not _is_count(env.spec.horizon):
        yield BadValue(f"{what}: spec.horizon is {described(env.spec.horizon)}; expected a positive int")


def _check_obs_scale(what: str, env: Environment) -> Faults:
    scale, shape = env.spec.obs_scale, env.spec.obs_shape
    divisors = _in_float32(scale)
    if divisors is None or not np.all(np.abs(divisors) >= _SMALLEST_DIVISOR):
        yield BadValue(
            f"{what}: spec.obs_scale is {described(scale)}; expected finite divisors other than 0, as float32 has them"
        )
    elif divisors.shape not in ((), shape[-1:], shape):
        yield BadValue(
            f"{what}: spec.obs_scale has shape {divisors.shape}; expected one number, or shape {shape} as "
            "spec.obs_shape says"
        )


def _check_aux_names(what: str, env: Environment) -> Faults:
    names: Any = env.spec.aux_names
    if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
        yield BadType(f"{what}: spec.aux_names is {described(names)}; expected a tuple of texts")
    elif len(set(names)) != len(names):
        yield BadValue(f"{what}: spec.aux_names is {names}; expected different names")


def _check_obs_names(what: str, env: Environment) -> Faults:
    names: Any = env.spec.obs_names
    if not isinstance(names, tuple | list) or not all(isinstance(name, str) for name in names):
        yield BadType(f"{what}: spec.obs_names is {described(names)}; expected a tuple of texts")
    elif names and len(names) != prod(env.spec.obs_shape):
        yield BadValue(
            f"{what}: spec.obs_names has {len(names)} names; expected one for each of the {prod(env.spec.obs_shape)} "
            "components of an observation, or none"
        )


def _check_encoding(what: str, env: Environment) -> Faults:
    encoding: Any = env.spec.encoding
    if not isinstance(encoding, tuple) or not all(isinstance(codes, Codes) for codes in encoding):
        yield BadType(f"{what}: spec.encoding is {described(encoding)}; expected a tuple of llmrl.types.Codes")


def _check_steps_per_reset(what: str, env: Environment) -> Faults:
    if env.steps_per_reset is not None and not _is_count(env.steps_per_reset):
        yield BadValue(
            f"{what}: steps_per_reset is {described(env.steps_per_reset)}; expected a positive int, or None for a "
            "reset of its own at every step"
        )


def _is_count(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value > 0)


def _in_float32(value: Any) -> np.ndarray | None:
    """A number, or an array of numbers, as programs see it; None for anything else, infinities and NaN."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):  # lists of different lengths
        return None
    # Not numpy's kind, which of jax's half floats says nothing.
    if not any(jnp.issubdtype(array.dtype, kind) for kind in (jnp.floating, jnp.integer)):
        return None
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    return array if np.isfinite(array).all() else None


PART_CHECKS: tuple[Callable[[str, Environment], Faults], ...] = (
    _check_parts,
    _check_obs_shape,
    _check_action,
    _check_aux_names,
    _check_encoding,
)
"""What everything later builds on, in the order in which these checks build on each other."""

SPEC_CHECKS: tuple[Callable[[str, Environment], Faults], ...] = (
    _check_name,
    _check_horizon,
    _check_obs_scale,
    _check_obs_names,
    _check_steps_per_reset,
)
"""What else a description has to be."""


# --- what it returns --------------------------------------------------------------------------------------------------


class Tried(NamedTuple):
    """What reset and step return, as shapes and dtypes.

    Attributes:
        spec: the environment's.
        state: after a reset.
        obs: its observation.
        next_state: after a step.
        step: what that step gave.
    """

    spec: EnvSpec
    state: PyTree
    obs: Any
    next_state: PyTree
    step: TimeStep


def _tried(what: str, env: Environment) -> Tried:
    key = jax.random.key(0)
    state, obs = _reset_pair(what, env.spec, traced(f"{what}: reset(key)", env.reset, key, hint=RESET))
    stepping = f"{what}: step(key, state, action)"
    stepped = traced(stepping, env.step, key, state, action_shape(env.spec.action), hint=STEP)
    if not isinstance(stepped, tuple) or len(stepped) != 2 or not isinstance(stepped[1], TimeStep):
        raise BadType(f"{stepping} returned {described(stepped)}; {STEP}")
    return Tried(env.spec, state, obs, *stepped)


def _reset_pair(what: str, spec: EnvSpec, returned: Any) -> tuple[PyTree, Any]:
    if not isinstance(returned, tuple | list) or len(returned) != 2:
        raise BadType(f"{what}: reset(key) returned {described(returned)}; {RESET}")
    state, obs = returned
    if not _is_observation(obs, spec) and _is_observation(state, spec):
        raise BadType(f"{what}: reset(key) returned {described(returned)}, which reads (obs, state); {RESET}")
    return state, obs


def _is_observation(array: Any, spec: EnvSpec) -> bool:
    return isinstance(array, jax.ShapeDtypeStruct) and array.shape == spec.obs_shape


def _check_obs(what: str, tried: Tried) -> Faults:
    shape = tried.spec.obs_shape
    for function, obs in (("reset(key)", tried.obs), ("step(key, state, action)", tried.step.obs)):
        if not isinstance(obs, jax.ShapeDtypeStruct):
            yield BadType(
                f"{what}: {function} returned the observation {described(obs)}; expected one array, as "
                "jnp.concatenate makes of several"
            )
            return
        if obs.shape != shape:
            yield BadValue(
                f"{what}: {function} returned an observation of shape {obs.shape}; expected spec.obs_shape {shape}"
            )
        if not any(jnp.issubdtype(obs.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_)):
            yield BadType(
                f"{what}: {function} returned an observation of dtype {obs.dtype.name}; expected real numbers"
            )
    if tried.obs.dtype != tried.step.obs.dtype:
        yield BadValue(
            f"{what}: step(key, state, action) returned an observation of dtype {tried.step.obs.dtype.name}; expected "
            f"{tried.obs.dtype.name} as reset(key) returned"
        )


def _check_bytes(what: str, tried: Tried) -> Faults:
    count = sum(codes.count for codes in tried.spec.encoding)
    if count and described(tried.obs) != f"uint8[{count}]":
        yield BadValue(
            f"{what}: reset(key) returned an observation {described(tried.obs)}; expected uint8[{count}], since "
            f"spec.encoding names {count} bytes"
        )


def _check_fields(what: str, tried: Tried) -> Faults:
    expected = {
        "reward": ("float32", jnp.floating, ()),
        "terminated": ("bool", jnp.bool_, ()),
        "truncated": ("bool", jnp.bool_, ()),
        "success": ("bool", jnp.bool_, ()),
        "aux": ("float32", jnp.floating, (len(tried.spec.aux_names),)),
        "state_key": ("uint32", jnp.integer, ()),
        "event": ("int32", jnp.integer, ()),
    }
    for name, (dtype, kind, shape) in expected.items():
        field = getattr(tried.step, name)
        is_array = isinstance(field, jax.ShapeDtypeStruct)
        if not is_array or field.shape != shape or not jnp.issubdtype(field.dtype, kind):
            yield BadType(
                f"{what}: step(key, state, action) returned {name} {described(field)}; expected {dtype}{list(shape)}, "
                "as llmrl.envs.time_step makes of numbers"
            )


def _check_state(what: str, tried: Tried) -> Faults:
    before, after = _named(tried.state), _named(tried.next_state)
    function = f"{what}: step(key, state, action)"
    for name in before | after:
        first, then = (described(leaves[name]) if name in leaves else "nothing" for leaves in (before, after))
        if first != then:
            yield BadValue(f"{function} returned {name} {then}; expected {first} as reset(key) returned")
    structures = jax.tree.structure(tried.state), jax.tree.structure(tried.next_state)
    if structures[0] != structures[1]:
        yield BadValue(
            f"{function} returned a state {described(tried.next_state)}; expected {described(tried.state)} as "
            "reset(key) returned"
        )


def _named(state: PyTree) -> dict[str, Any]:
    return {f"state{jax.tree_util.keystr(path)}": leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


SHAPE_CHECKS: tuple[Callable[[str, Tried], Faults], ...] = (
    _check_obs,
    _check_bytes,
    _check_fields,
    _check_state,
)
"""What reset and step have to return."""
