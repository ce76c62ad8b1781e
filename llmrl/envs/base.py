"""What every environment needs: a plain ``TimeStep``, auxiliary sources, and a reset that loses nothing."""

from __future__ import annotations

import functools
import inspect
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree, Shaped

from llmrl.envs.tracing import described, traced
from llmrl.settings.errors import BadType, BadValue, first_line
from llmrl.types import Box, Discrete, Environment, EnvState, HostEnvironment, TimeStep

AuxFunction: TypeAlias = Callable[..., Array]
"""``(state, action, next_state) -> [] or [m]``, for one instance: what a source says of a step, before any reset.
One that names a parameter ``key`` is given a random key there, a new one at every step."""

EXPECTED = (
    "a function (state, action, next_state) of one environment instance, written in jax, "
    "that returns one float array of shape [] or [m]"
)
"""What an auxiliary function must be, in errors."""


# --- steps ----------------------------------------------------------------------------------------------------------


def time_step(obs: Any, reward: Any, terminated: Any, truncated: Any, success: Any = False) -> TimeStep:
    """A ``TimeStep`` in the library's own dtypes, without auxiliary sources and without captions.

    Args:
        obs: observation before any reset, [*obs]. An array keeps its dtype, as ``reset`` returns it; Python numbers and
            float64 become float32.
        reward: the task's own reward, [].
        terminated: ended by the rules, [].
        truncated: ended by the time limit, [].
        success: the goal was reached, [].

    Returns:
        The step, with ``aux`` of shape [0] and both captions 0.
    """
    return TimeStep(
        obs=jnp.asarray(obs, _observation_dtype(obs)),
        reward=jnp.asarray(reward, jnp.float32),
        terminated=jnp.asarray(terminated, jnp.bool_),
        truncated=jnp.asarray(truncated, jnp.bool_),
        success=jnp.asarray(success, jnp.bool_),
        aux=jnp.zeros((0,), jnp.float32),
        state_key=jnp.zeros((), jnp.uint32),
        event=jnp.zeros((), jnp.int32),
    )


def _observation_dtype(obs: Any) -> Any:
    own = getattr(obs, "dtype", jnp.float64)
    return jnp.float32 if own == jnp.float64 else jax.dtypes.canonicalize_dtype(own)


def step_with_reset(
    env: Environment,
    key: PRNGKeyArray,
    state: EnvState,
    action: Shaped[Array, "*a"],
    fresh_state: EnvState,
    fresh_obs: Shaped[Array, "*obs"],
) -> tuple[EnvState, Shaped[Array, "*obs"], TimeStep]:
    """Steps once and, where the episode ended, goes on from a fresh start that the caller provides.

    Unlike the usual auto-reset the fresh start is an argument: a world that is dear to generate can be drawn once for
    many environments. And nothing is overwritten: ``TimeStep.obs`` stays the observation before the reset, as a
    truncated episode needs it for its bootstrap value.

    Args:
        env: the environment.
        key: randomness of the step.
        state: state of one instance.
        action: action in that state, [] or [a].
        fresh_state: state to go on from where the episode ends.
        fresh_obs: its observation, [*obs].

    Returns:
        The state and the observation to act on next, and what the step itself gave.
    """
    next_state, result = env.step(key, state, action)
    done = result.terminated | result.truncated
    next_state, next_obs = jax.tree.map(
        lambda fresh, reached: jnp.where(done, fresh, reached), (fresh_state, fresh_obs), (next_state, result.obs)
    )
    return next_state, next_obs, result


def clip_action(space: Discrete | Box, action: Shaped[Array, "*a"]) -> Shaped[Array, "*a"]:
    """The action an environment really performs: a Gaussian policy samples beyond the bounds of a ``Box``.

    Args:
        space: the action space.
        action: [] or [a].

    Returns:
        Float32 within the bounds for a ``Box``, the action itself for ``Discrete``.
    """
    if isinstance(space, Discrete):
        return action
    return jnp.clip(action.astype(jnp.float32), space.low, space.high)


def strongly_typed(tree: PyTree) -> PyTree:
    """The same numbers as arrays of a fixed dtype, so that a state can be carried through a scan.

    Args:
        tree: arrays and Python numbers, as other libraries' states hold them.

    Returns:
        A pytree of arrays, none of them weakly typed.
    """

    def strong(x: Any) -> Array:
        # Random keys have no such attribute.
        if isinstance(x, jax.Array) and not getattr(x, "weak_type", False):
            return x
        return jnp.asarray(x, dtype=jnp.result_type(x))

    return jax.tree.map(strong, tree)


def key_of_seed(seed: Any) -> PRNGKeyArray:
    """``jax.random.key(seed)``, which by itself takes a seed modulo 2^32.

    Raises:
        ValueError: the seed is negative or needs more than 32 bits.
    """
    if isinstance(seed, int | np.integer) and not 0 <= seed < 2**32:
        raise BadValue(f"seed must be a whole number from 0 to {2**32 - 1}, got {seed!r}")
    return jax.random.key(seed)


def require_positive_int(name: str, value: object) -> None:
    """Refuses what cannot be a count of steps or cells.

    Raises:
        ValueError: the value is no integer, or is below 1.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BadValue(f"{name} must be a positive integer, got {value!r}")


# --- auxiliary sources ----------------------------------------------------------------------------------------------


def with_aux(env: Environment, functions: Mapping[str, AuxFunction], scale: Any = 1.0) -> Environment:
    """The same environment with more auxiliary sources, after those it has.

    Every function is checked by ``checked_aux`` first. It sees the action as performed (clipped to the space) and the
    state before any reset. A source that names a parameter ``key`` is given a random one.

    Args:
        env: the environment.
        functions: a name for each function; one that returns [m] makes m sources, called ``name_0``, ``name_1``, ...
        scale: factor on all the new sources, [].

    Returns:
        An environment whose ``spec.aux_names`` and ``TimeStep.aux`` hold the sources in the same order.

    Raises:
        ValueError: a source's name is taken; or as ``checked_aux``.
        TypeError: as ``checked_aux``.
    """
    names = list(env.spec.aux_names)
    for name, function in functions.items():
        shape = checked_aux(env, function)
        names += [name] if shape == () else [f"{name}_{index}" for index in range(shape[0])]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise BadValue(f"auxiliary sources need different names, got {repeated} more than once among {names}")

    def step(key: PRNGKeyArray, state: EnvState, action: Shaped[Array, "*a"]) -> tuple[EnvState, TimeStep]:
        next_state, result = env.step(key, state, action)
        performed = clip_action(env.spec.action, action)
        values = [
            function(state, performed, next_state, **_own_key(function, name, key))
            for name, function in functions.items()
        ]
        scaled = [jnp.asarray(scale, jnp.float32) * jnp.asarray(value, jnp.float32).reshape(-1) for value in values]
        return next_state, result._replace(aux=jnp.concatenate([result.aux, *scaled]))

    return env._replace(spec=replace(env.spec, aux_names=tuple(names)), step=step)


def checked_aux(env: Environment, function: Any) -> tuple[int, ...]:
    """Tries an auxiliary function on the environment's shapes alone, before any training and without running it.

    Args:
        env: the environment it is meant for.
        function: the ``AuxFunction`` to try, whatever it turns out to be.

    Returns:
        The shape it returns, () or (m,).

    Raises:
        TypeError: it is not callable, cannot be traced, takes other arguments, or returns something that is no float
            array.
        ValueError: it raises anything else, returns a shape other than [] or [m], or is not pure.
    """
    name = dotted_name(function)
    if not callable(function):
        raise BadType(f"auxiliary function {name}: got {function!r}; expected {EXPECTED}")
    state, action = jax.eval_shape(env.reset, jax.random.key(0))[0], action_shape(env.spec.action)
    own_key = _own_key(function, name, jax.random.key(0))
    what, hint = f"auxiliary function {name}", f"expected {EXPECTED}"
    returned = traced(what, function, state, action, state, hint=hint, **own_key)
    if not isinstance(returned, jax.ShapeDtypeStruct):
        raise BadType(f"{what} returned {described(returned)}; {hint}")
    if not jnp.issubdtype(returned.dtype, jnp.floating):
        raise BadType(f"{what} returned {described(returned)}; {hint}. `.astype(jnp.float32)` makes a reward of it")
    if len(returned.shape) > 1 or 0 in returned.shape:
        raise BadValue(f"{what} returned {described(returned)}; {hint}")
    return returned.shape


ON_HOST = "a function (obs, action, next_obs, info) in NumPy that returns one float for each of n environments, [n]"
"""What an auxiliary function must be where only Python steps, in errors."""


def check_aux_on_host(env: HostEnvironment, function: Any) -> None:
    """Tries an auxiliary function on the environment's example, where it has one.

    Raises:
        TypeError: it cannot be called, or returns something that is no number per environment.
        ValueError: it raises.
    """
    what = f"auxiliary function {dotted_name(function)}"
    if env.example is None:
        return
    if not callable(function):
        raise BadType(f"auxiliary function: got {function!r}; expected {ON_HOST}")
    try:
        values = np.asarray(function(*env.example))
    except Exception as error:
        raise BadValue(f"{what} failed: {first_line(error)}; expected {ON_HOST}") from error
    if values.shape != (len(env.example[0]),) or not np.issubdtype(values.dtype, np.floating):
        got = f"{values.dtype}{list(values.shape)} for n={len(env.example[0])}"
        raise BadType(f"{what} returned {got}; expected {ON_HOST}")


def dotted_name(function: Any) -> str:
    """Where a function comes from, as in ``my_package.hints.push_right``.

    Args:
        function: any callable; of a partial application the function inside is named.

    Returns:
        Module and qualified name.
    """
    while isinstance(function, functools.partial):
        function = function.func
    owner = function if hasattr(function, "__qualname__") else type(function)
    return f"{owner.__module__}.{owner.__qualname__}"


def _own_key(function: Any, name: str, key: PRNGKeyArray) -> dict[str, PRNGKeyArray]:
    """A key for a source that asks for one, as an argument; the same whatever other sources there are."""
    try:
        asks = "key" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # not callable, or written in C
        return {}
    # From a large number: keys folded with small ones are those that the environment itself gets by splitting.
    return {"key": jax.random.fold_in(key, zlib.crc32(name.encode()))} if asks else {}


def action_shape(space: Discrete | Box) -> jax.ShapeDtypeStruct:
    """Shape and dtype of one action."""
    if isinstance(space, Discrete):
        return jax.ShapeDtypeStruct((), jnp.int32)
    return jax.ShapeDtypeStruct((space.dim,), jnp.float32)
