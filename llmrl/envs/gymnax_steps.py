"""gymnax's reset and step as pure functions: those of the outermost wrapper, of a steady dtype, without auto-reset."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree, Shaped

from llmrl.envs.base import strongly_typed
from llmrl.settings.errors import BadValue, first_line
from llmrl.types import EnvState

_STEP = "(obs, state, reward, terminated, truncated, info)"


class _Functions(NamedTuple):
    """As ``gymnax_functions`` gives them, the state as it comes."""

    reset: Callable[..., Any]
    step: Callable[..., Any]


def gymnax_functions(
    env: Any, params: Any, action: jax.ShapeDtypeStruct, name: str | None = None
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """gymnax's own reset and step as pure functions that fit a scan and never reset by themselves.

    A state that starts as Python numbers, or in a narrower dtype than steps give it, has the dtype of both from its
    reset on: an integer that steps turn into a float is a float at once.

    Args:
        env: a gymnax environment, wrapped or not; the outermost wrapper's functions are taken.
        params: its parameters, held constant.
        action: shape and dtype of an action as gymnax has it.
        name: what errors call it; None takes ``env.name``.

    Returns:
        ``reset(key) -> (state, obs)`` and ``step(key, state, action) -> (state, obs, reward, terminated, truncated)``,
        all as gymnax has them, the action too.

    Raises:
        ValueError: reset or step cannot be traced, steps change the state's structure, a leaf's shape, or its dtype in
            a way that loses numbers; it cannot be told which step is the outermost; or an object's own ``step`` or
            ``reset`` stands in for its class's.
    """
    label = str(env.name) if name is None else name
    raw = _functions(env, params, label)
    kinds = _steady_kinds(raw, action, label)

    def steady(state: EnvState) -> EnvState:
        return jax.tree.map(lambda x, kind: x if x.dtype == kind else x.astype(kind), strongly_typed(state), kinds)

    def reset(key: PRNGKeyArray) -> tuple[EnvState, Any]:
        with their_promotion():
            state, obs = raw.reset(key)
        return steady(state), obs

    def step(key: PRNGKeyArray, state: EnvState, action: Shaped[Array, "*a"]) -> tuple[EnvState, Any, Any, Any, Any]:
        with their_promotion():
            next_state, *others = raw.step(key, state, action)
        return steady(next_state), *others

    return reset, step


def their_promotion() -> AbstractContextManager[None]:
    """gymnax mixes booleans, integers and floats; a caller who asked for strict promotion need not answer for that."""
    return jax.numpy_dtype_promotion("standard")


# --- which step -------------------------------------------------------------------------------------------------------


def _functions(env: Any, params: Any, label: str) -> _Functions:
    """The functions of the outermost wrapper, or of the environment itself where nothing wraps it."""
    wrappers, inner = _taken_off(env)
    for own, bypassed in (("step_env", "step"), ("reset_env", "reset")):
        if _overrides_later(type(inner), bypassed, own):
            raise BadValue(
                f"{label}: {type(inner).__name__}.{bypassed} changes what {own} does, and would be left out; "
                f"expected the change in {own}"
            )
    for each, name in itertools.product((*wrappers, inner), ("step", "reset")):
        if name in _own(each):  # such a function knows the object that it was made for, and that one resets by itself
            raise BadValue(
                f"{label}: {name} of this {type(each).__name__} object was replaced, and would be left out; expected "
                f"the change in {name}_env, or in a wrapper's class"
            )
    around_ends = [w for w in wrappers if _defines(w, "step") or _defines(w, "reset")]
    inside = [w for w in wrappers if w not in around_ends and (_defines(w, "step_env") or _defines(w, "reset_env"))]
    if around_ends and inside:
        raise BadValue(
            f"{label}: wrapper {type(inside[0]).__name__} changes step_env and {type(around_ends[0]).__name__} step; "
            "expected all of them to change step"
        )
    return _wrapped(wrappers, inner, params, label) if around_ends else _bare(env, params)


def _bare(env: Any, params: Any) -> _Functions:
    def reset(key):
        obs, state = env.reset_env(key, params)
        return state, obs

    def step(key, state, action):
        obs, next_state, reward, terminated, _ = env.step_env(key, state, action, params)
        return next_state, obs, reward, terminated, env.is_truncated(next_state, params)

    return _Functions(reset, step)


def _wrapped(wrappers: list[Any], inner: Any, params: Any, label: str) -> _Functions:
    outermost = _without_resets(inner)
    for wrapper in reversed(wrappers):
        copied = _copied(wrapper)
        vars(copied)["_env"] = outermost
        outermost = copied

    def reset(key):
        obs, state = outermost.reset(key, params)
        return state, obs

    def step(key, state, action):
        returned = outermost.step(key, state, action, params)
        if not isinstance(returned, tuple) or len(returned) != 6:
            found = f"{len(returned)} values" if isinstance(returned, tuple) else f"a {type(returned).__name__}"
            raise BadValue(f"{label}: {type(wrappers[0]).__name__}.step returned {found}; expected {_STEP}")
        obs, next_state, reward, terminated, truncated, _ = returned
        return next_state, obs, reward, terminated, truncated

    return _Functions(reset, step)


def _taken_off(env: Any) -> tuple[list[Any], Any]:
    """Wrappers, the outermost first, and what they wrap; gymnax's own keep it under this name."""
    wrappers = []
    while "_env" in _own(env):
        wrappers.append(env)
        env = vars(env)["_env"]
    return wrappers, env


def _without_resets(inner: Any) -> Any:
    """The same environment, whose ``step`` goes on from where an episode ended instead of from a fresh start."""
    bare = _copied(inner)

    def step(key, state, action, params=None):
        params = inner.default_params if params is None else params
        # As gymnax splits it, so that a wrapped step gives the same numbers here and there.
        step_key, _ = jax.random.split(key)
        obs, next_state, reward, terminated, info = inner.step_env(step_key, state, action, params)
        truncated = inner.is_truncated(next_state, params)
        info = {**info, "terminated": terminated, "truncated": truncated, "final_observation": obs}
        return obs, next_state, reward, terminated, truncated, info

    bare.step = step
    return bare


def _copied(x: Any) -> Any:
    # Not copy.copy: it asks for attributes that a wrapper without an environment would look for in itself for ever.
    other = object.__new__(type(x))
    vars(other).update(vars(x))
    return other


def _defines(x: Any, name: str) -> bool:
    return name in _own(x) or any(name in vars(kind) for kind in type(x).__mro__)


def _own(x: Any) -> dict[str, Any]:
    """What an object itself holds, apart from its class."""
    return getattr(x, "__dict__", {})


def _overrides_later(kind: type, name: str, other: str) -> bool:
    """Whether a class overrides ``name`` for a parent that has ``other``."""
    order = kind.__mro__
    places = [next((i for i, each in enumerate(order) if n in vars(each)), len(order)) for n in (name, other)]
    return places[0] < places[1]


# --- which dtypes -----------------------------------------------------------------------------------------------------


def _steady_kinds(raw: _Functions, action: jax.ShapeDtypeStruct, label: str) -> PyTree:
    """Dtypes of a state that hold what reset gives and what steps make of it."""
    key = jax.random.key(0)
    with their_promotion():
        state = _traced(f"{label}: reset", raw.reset, key)[0]
        # Every round widens a leaf, and there are few widths.
        while True:
            reached = _traced(f"{label}: step", raw.step, key, state, action)[0]
            wider = _joined(state, reached, label)
            if wider == jax.tree.map(_strong, state):
                return jax.tree.map(lambda x: x.dtype, wider)
            state = wider


def _joined(state: PyTree, reached: PyTree, label: str) -> PyTree:
    if (expected := jax.tree.structure(state)) != (found := jax.tree.structure(reached)):
        raise BadValue(f"{label}: reset gives a state of structure {expected}, step one of {found}")

    def join(path: Any, one: Any, other: Any) -> jax.ShapeDtypeStruct:
        kind = _common(one, other)
        if one.shape != other.shape or kind is None:
            raise BadValue(
                f"{label}: leaf {jax.tree_util.keystr(path) or 'itself'} of the state is {_described(one)} after reset "
                f"and {_described(other)} after a step; expected the same"
            )
        return jax.ShapeDtypeStruct(one.shape, kind)

    return jax.tree.map_with_path(join, state, reached)


def _common(one: Any, other: Any) -> Any:
    """The dtype of the two that holds the numbers of both; None where neither does."""
    if one.dtype == other.dtype:
        return one.dtype
    if any(jnp.issubdtype(x.dtype, jax.dtypes.extended) for x in (one, other)):  # random keys
        return None
    kind = jnp.result_type(*(_number(x) for x in (one, other)))
    whole = jnp.issubdtype(kind, jnp.integer)
    if whole and not all(x.weak_type or np.can_cast(x.dtype, kind) for x in (one, other)):
        return None
    return kind if kind in (one.dtype, other.dtype) else None


def _number(x: jax.ShapeDtypeStruct) -> Any:
    """Of a Python number, which takes any dtype of its kind, such a one."""
    if not x.weak_type:
        return x.dtype
    return 0 if jnp.issubdtype(x.dtype, jnp.integer) else 0.0


def _strong(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _described(x: Any) -> str:
    return f"{x.dtype}{list(x.shape)}"


def _traced(what: str, function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return jax.eval_shape(function, *arguments)
    except Exception as error:
        raise BadValue(f"{what} failed: {first_line(error)}; expected that of gymnax 1.0 or later") from error
