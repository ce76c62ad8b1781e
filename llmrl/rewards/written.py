"""Reward functions that a language model has written: evaluated as trees, and tried on an environment's shapes."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from functools import reduce
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr
from jaxtyping import Array, Float

from llmrl.envs.base import AuxFunction, action_shape
from llmrl.language.subset import LARGEST, Function, Refused, checked, dotted, literal
from llmrl.settings.errors import first_line
from llmrl.types import Environment, EnvState

MOST_NUMBERS = 2**16
"""Numbers that a function may compute in one step, all intermediate results together. It bounds memory and time alike:
there is no loop, so that every one of them is computed once."""

_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Invert: operator.invert,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}


def fields_of(env: Environment) -> dict[str, jax.ShapeDtypeStruct]:
    """What an environment's state holds, by dotted name: numbers and truth values, no random keys."""
    leaves = jax.tree_util.tree_leaves_with_path(jax.eval_shape(env.reset, jax.random.key(0))[0])
    named = {jax.tree_util.keystr(path).removeprefix("."): leaf for path, leaf in leaves}
    return {
        name: leaf
        for name, leaf in named.items()
        if all(part.isidentifier() and not part.startswith("_") for part in name.split("."))
        and (jnp.issubdtype(leaf.dtype, jnp.number) or leaf.dtype == jnp.bool_)
    }


def source_of(env: Environment, function: Function) -> AuxFunction:
    """A written function as a source, once it has been checked and tried on an environment's shapes.

    Args:
        env: the environment it is meant for.
        function: as it was read.

    Returns:
        ``(state, action, next_state) -> float32 []``, unbounded; ``silenced`` makes it fit for training.

    Raises:
        Refused: it is not of the subset, returns anything but one number, or computes more than ``MOST_NUMBERS``.
    """
    tree = checked(function, fields_of(env)).tree

    def source(state: EnvState, action: Array, next_state: EnvState) -> Float[Array, ""]:
        with jax.numpy_dtype_promotion("standard"):
            return _returned(tree, {"state": state, "action": action, "next_state": next_state})

    state, action = jax.eval_shape(env.reset, jax.random.key(0))[0], action_shape(env.spec.action)
    try:
        program = jax.make_jaxpr(source)(state, action, state)
    except Refused:
        raise
    except Exception as error:  # whatever jax makes of shapes that do not go together
        raise Refused(first_line(error)[:300]) from None
    numbers = _numbers(program)
    if numbers > MOST_NUMBERS:
        raise Refused(f"it computes {numbers:,} numbers in a step, at most {MOST_NUMBERS:,}")
    return source


def silenced(source: AuxFunction) -> AuxFunction:
    """The same source, which says nothing (0) where its value is no number or larger than ``LARGEST``.

    A function is tried on sampled states only. On others it may divide by 0, and one such value would cost the whole
    update.
    """

    def safe(state: EnvState, action: Array, next_state: EnvState) -> Float[Array, ""]:
        value = source(state, action, next_state)
        return jnp.where(jnp.abs(value) <= LARGEST, value, 0.0)

    return safe


def _numbers(program: ClosedJaxpr | Jaxpr) -> int:
    """Size of all results of a program, those of programs inside of it included."""
    if isinstance(program, ClosedJaxpr):
        program = program.jaxpr
    results: list[Any] = [variable.aval for step in program.eqns for variable in step.outvars]
    sizes = (prod(result.shape) for result in results)
    inner = (leaf for step in program.eqns for leaf in jax.tree.leaves(step.params, is_leaf=_is_program))
    return sum(sizes) + sum(_numbers(leaf) for leaf in inner if _is_program(leaf))


def _is_program(leaf: Any) -> bool:
    return isinstance(leaf, ClosedJaxpr | Jaxpr)


# --- evaluating -------------------------------------------------------------------------------------------------------


def _returned(tree: ast.FunctionDef, names: dict[str, Any]) -> Float[Array, ""]:
    for statement in tree.body[1:]:  # after the docstring
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                names = names | {name: _value(value, names)}
            case ast.Return(value=ast.expr() as value):
                result = _value(value, names)
                if result.shape != ():
                    raise Refused(f"it returns an array of shape {list(result.shape)}, expected one number")
                return result.astype(jnp.float32)
    raise Refused("it returns nothing")


def _value(node: ast.AST, names: dict[str, Any]) -> Array:
    match node:
        case ast.Constant(value=value):
            return jnp.asarray(value)  # no Python number: none of those is ever computed with
        case ast.Name(id=name):
            return jnp.asarray(names[name])
        case ast.Attribute():
            owner, *path = (dotted(node) or "").split(".")
            return jnp.asarray(jnp.pi if owner == "jnp" else reduce(getattr, path, names[owner]))
        case ast.Subscript(value=value):
            return _entry(_value(value, names), node, names)
        case ast.BinOp(op=ast.Pow(), left=base, right=exponent):
            power: Any = literal(exponent)
            return _value(base, names) ** power
        case ast.BinOp(op=op, left=left, right=right) | ast.Compare(ops=[op], left=left, comparators=[right]):
            return _OPERATORS[type(op)](_value(left, names), _value(right, names))
        case ast.UnaryOp(op=op, operand=operand):
            return _OPERATORS[type(op)](_value(operand, names))
        case ast.Call(func=func, args=args):
            called: Any = reduce(getattr, (dotted(func) or "").split(".")[1:], jnp)
            if isinstance(args[0], ast.List):
                return called([_value(item, names) for item in args[0].elts])
            return called(*(_value(argument, names) for argument in args))
    raise Refused(f"{ast.unparse(node)} was not checked")


def _entry(array: Array, node: ast.Subscript, names: dict[str, Any]) -> Array:
    indices = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    if len(indices) > array.ndim:
        what = f"an array of shape {list(array.shape)}" if array.ndim else "a single number"
        raise Refused(f"line {node.lineno}: an index more than {what} has")
    for each, size in zip(indices, array.shape, strict=False):
        if (number := literal(each)) is not None and not -size <= number < size:
            raise Refused(f"line {node.lineno}: index {number} for {size} entries")
    given = (literal(each) for each in indices)
    return array[tuple(_value(each, names) if n is None else n for each, n in zip(indices, given, strict=True))]
