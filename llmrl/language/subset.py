"""The part of Python that reward functions are written in by a language model, checked as a tree.

    def upright(state, action, next_state):
        \"\"\"Pays for a pole that comes nearer to upright.\"\"\"
        before = jnp.abs(state.theta)
        return before - jnp.abs(next_state.theta)

A function is a docstring of one line, assignments to names of its own, and one ``return``. Nothing of its text is ever
compiled or executed by Python: what passes is evaluated node by node (``llmrl.rewards.written``), and a kind of node
that is not listed here has no meaning there. There is neither a loop nor a call of a function of its own, so the length
bounds the work.
"""

from __future__ import annotations

import ast
import keyword
import re
import warnings
from collections.abc import Collection, Iterator
from typing import NamedTuple

from llmrl.settings.errors import BadValue

PARAMETERS = ("state", "action", "next_state")

MOST_LETTERS = 20_000
"""Of a text with functions in it."""
MOST_NODES = 300
"""Of one function's tree."""
MOST_DEPTH = 30
MOST_SENTENCE = 200
"""Letters of a docstring."""
LARGEST = 1e6
"""Absolute value of a constant, and of what a function may return."""
LARGEST_EXPONENT = 8

FUNCTIONS: dict[str, int] = {
    **dict.fromkeys(("abs", "sign", "square", "sqrt", "exp", "expm1", "log", "log1p", "floor", "ceil", "round"), 1),
    **dict.fromkeys(("sin", "cos", "tan", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "float32"), 1),
    **dict.fromkeys(("sum", "mean", "prod", "min", "max", "argmin", "argmax", "any", "all", "linalg.norm"), 1),
    **dict.fromkeys(("logical_not", "array"), 1),
    **dict.fromkeys(("minimum", "maximum", "arctan2", "hypot", "mod", "logical_and", "logical_or", "isclose"), 2),
    **dict.fromkeys(("where", "clip"), 3),
}
"""Functions of jnp that may be called, and how many arguments each takes; ``array`` takes a list. None of them takes a
shape or a function."""

OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.BitAnd, ast.BitOr, ast.BitXor)
SIGNS = (ast.USub, ast.UAdd, ast.Invert)
COMPARISONS = (ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq)

_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}", re.ASCII)

_USUAL_IMPORT = "import jax.numpy as jnp"
"""The one other line that a text may have: it makes a file of functions a module that an editor understands."""

_WORDS: dict[type[ast.AST], str] = {
    ast.Import: "an import",
    ast.ImportFrom: "an import",
    ast.For: "a loop",
    ast.While: "a loop",
    ast.If: "`if` (use jnp.where)",
    ast.IfExp: "`... if ... else ...` (use jnp.where)",
    ast.BoolOp: "`and` or `or` (use & or |, with brackets around each side)",
    ast.Lambda: "lambda",
    ast.FunctionDef: "a function inside of a function",
    ast.AsyncFunctionDef: "async",
    ast.ClassDef: "a class",
    ast.ListComp: "a comprehension",
    ast.SetComp: "a comprehension",
    ast.DictComp: "a comprehension",
    ast.GeneratorExp: "a comprehension",
    ast.JoinedStr: "an f-string",
    ast.NamedExpr: "an assignment inside of an expression",
    ast.Starred: "a starred argument",
    ast.Try: "try",
    ast.With: "with",
    ast.Delete: "del",
    ast.Global: "global",
    ast.Nonlocal: "nonlocal",
    ast.Assert: "assert",
    ast.Raise: "raise",
    ast.Slice: "a slice",
    ast.List: "a list (only as jnp.array([...]))",
    ast.Tuple: "a tuple",
    ast.Dict: "a dictionary",
    ast.Set: "a set",
    ast.Expr: "a statement without effect",
    ast.LShift: "<<",
    ast.RShift: ">>",
    ast.MatMult: "@",
    ast.Not: "`not` (use ~ or jnp.logical_not)",
    ast.Is: "`is`",
    ast.IsNot: "`is not`",
    ast.In: "`in`",
    ast.NotIn: "`not in`",
}


class Refused(BadValue):
    """Text that is no function of the subset; its message is the reason, in one line."""


class Function(NamedTuple):
    """A function as it was written.

    Attributes:
        name: what its source is called.
        sentence: what it pays for, in words.
        source: its text.
        tree: its tree, which only ``checked`` makes fit for use.
    """

    name: str
    sentence: str
    source: str
    tree: ast.FunctionDef


def read_functions(text: str) -> tuple[Function, ...]:
    """The functions of a text, in order; their bodies are not looked at yet.

    Raises:
        Refused: the text is no Python, is too long, or holds anything but functions.
    """
    return tuple(read_function(text, node) for node in statements(text))


def statements(text: str) -> list[ast.stmt]:
    """The statements of a text, which should each be a function; the usual import of jnp is left out.

    Raises:
        Refused: the text is no Python, or is too long.
    """
    return [node for node in _parsed(text).body if not _is_usual_import(node)]


def checked(function: Function, fields: Collection[str]) -> Function:
    """The same function, once its tree is known to be of the subset.

    Args:
        function: as ``read_functions`` gives it.
        fields: what the state holds, by dotted name, as in ``inventory.wood``.

    Raises:
        Refused: it is not; the message names the line.
    """
    body = function.tree.body
    if len(nodes := list(ast.walk(function.tree))) > MOST_NODES:
        raise Refused(f"it is too long: {len(nodes)} nodes, at most {MOST_NODES}")
    if _depth(function.tree) > MOST_DEPTH:
        raise Refused(f"it is nested deeper than {MOST_DEPTH}")
    known: set[str] = set()
    for number, statement in enumerate(body[1:], start=2):
        match statement:
            case ast.Return(value=ast.expr() as value) if number == len(body):
                _check(value, known, fields)
                return function
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                _check_name(name, statement)
                _check(value, known, fields)
                known.add(name)
            case ast.Return():
                break
            case ast.Assign() | ast.AugAssign() | ast.AnnAssign():
                raise Refused(f"line {statement.lineno}: only `name = value` is allowed as an assignment")
            case _:
                raise _refused(statement)
    raise Refused("it must end with the only `return`, and a value")


# --- functions --------------------------------------------------------------------------------------------------------


def _parsed(text: str) -> ast.Module:
    if len(text) > MOST_LETTERS:
        raise Refused(f"the text is too long: {len(text)} letters, at most {MOST_LETTERS}")
    for letter in text:
        # What a terminal would obey may not be shown to a reader either.
        if not (letter.isascii() and (letter.isprintable() or letter in "\n\r\t")):
            raise Refused(f"only printable ASCII is allowed, got {letter!a}")
    try:
        with warnings.catch_warnings():  # of backslashes in docstrings
            warnings.simplefilter("ignore")
            return ast.parse(text)
    except (SyntaxError, ValueError) as error:
        line = f"line {error.lineno}: " if isinstance(error, SyntaxError) and error.lineno else ""
        raise Refused(f"{line}this is no Python ({str(error).partition(' (')[0]})") from None
    except (RecursionError, MemoryError):
        raise Refused("it is nested too deep to be read") from None


def _is_usual_import(node: ast.AST) -> bool:
    return isinstance(node, ast.Import) and ast.unparse(node) == _USUAL_IMPORT


def read_function(text: str, node: ast.stmt) -> Function:
    """A statement of a text as a function, whose body is not looked at yet.

    Raises:
        Refused: it is none, or its head is not as it must be.
    """
    if not isinstance(node, ast.FunctionDef):
        raise _refused(node, "outside of a function")
    if not _NAME.fullmatch(node.name) or keyword.iskeyword(node.name) or node.name in (*PARAMETERS, "jnp"):
        raise Refused(f"{node.name[:40]!r} is no name for a function: lower-case letters, digits and _, up to 40")
    if not _has_usual_head(node):
        raise Refused(f"its head must read `def {node.name}({', '.join(PARAMETERS)}):`")
    sentence = ast.get_docstring(node)
    if not sentence or not sentence.isprintable() or len(sentence) > MOST_SENTENCE:
        raise Refused(f"it needs a docstring of one line, up to {MOST_SENTENCE} letters")
    return Function(node.name, sentence, ast.get_source_segment(text, node) or "", node)


def _has_usual_head(node: ast.FunctionDef) -> bool:
    given = node.args
    named = [(argument.arg, argument.annotation) for argument in given.args] == [(name, None) for name in PARAMETERS]
    others = given.posonlyargs or given.kwonlyargs or given.defaults or given.vararg or given.kwarg
    return named and not (others or node.decorator_list or node.returns or getattr(node, "type_params", None))


def _depth(tree: ast.AST) -> int:
    depth, level = 0, [tree]
    while level:
        depth, level = depth + 1, [child for node in level for child in ast.iter_child_nodes(node)]
    return depth


def _check_name(name: str, statement: ast.stmt) -> None:
    if not _NAME.fullmatch(name) or name in (*PARAMETERS, "jnp"):
        raise Refused(f"line {statement.lineno}: {name[:40]!r} is no name for a value")


# --- expressions ------------------------------------------------------------------------------------------------------


def _check(node: ast.AST, known: Collection[str], fields: Collection[str]) -> None:
    """Refuses an expression that is none of the subset."""
    for part in _parts(node, known, fields):
        _check(part, known, fields)


def _parts(node: ast.AST, known: Collection[str], fields: Collection[str]) -> Iterator[ast.AST]:
    """What is left to check of an expression whose outermost node is allowed."""
    line = f"line {getattr(node, 'lineno', 0)}"
    match node:
        case ast.Constant(value=bool() | int() | float() as value):
            if not abs(value) <= LARGEST:
                raise Refused(f"{line}: a constant is larger than {LARGEST:g}")
        case ast.Name(id=name):
            if name != "action" and name not in known:
                raise Refused(f"{line}: {name[:40]!r} has no value here")
        case ast.Attribute():
            _check_attribute(node, fields, line)
        case ast.Subscript(value=value, slice=index):
            yield value
            for each in index.elts if isinstance(index, ast.Tuple) else [index]:
                if isinstance(each, ast.Constant) and type(each.value) is not int:
                    raise Refused(f"{line}: an index must be a whole number")
                yield each
        case ast.BinOp(op=ast.Pow(), left=base, right=exponent):
            if (power := literal(exponent)) is None or not abs(power) <= LARGEST_EXPONENT:
                raise Refused(f"{line}: an exponent must be a number up to {LARGEST_EXPONENT}")
            yield base
        case ast.BinOp(op=op, left=left, right=right) if isinstance(op, OPERATORS):
            yield from (left, right)
        case ast.UnaryOp(op=op, operand=operand) if isinstance(op, SIGNS):
            yield operand
        case ast.Compare(ops=[op], left=left, comparators=[right]) if isinstance(op, COMPARISONS):
            yield from (left, right)
        case ast.Compare(ops=[_, _, *_]):
            raise Refused(f"{line}: a chain of comparisons is not allowed (join two of them by &)")
        case ast.Call():
            yield from _arguments(node, line)
        case ast.BinOp(op=op) | ast.UnaryOp(op=op) | ast.Compare(ops=[op]):
            raise _refused(op, line=line)
        case _:
            raise _refused(node)


def literal(node: ast.AST) -> int | float | None:
    """The number that a node is, with its sign; None where it is none, and for a truth value."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
        number = literal(node.operand)
        return None if number is None else -number
    value = node.value if isinstance(node, ast.Constant) else None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def dotted(node: ast.AST) -> str | None:
    """A name with its attributes, as in ``state.position``; None for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := dotted(node.value)):
        return f"{before}.{node.attr}"
    return None


def _check_attribute(node: ast.Attribute, fields: Collection[str], line: str) -> None:
    name = dotted(node) or f"(...).{node.attr}"
    owner, _, field = name.partition(".")
    if name == "jnp.pi" or (owner in ("state", "next_state") and field in fields):
        return
    if owner in ("state", "next_state"):
        there = f"fields are {', '.join(sorted(fields))[:200]}" if fields else "it has no named fields"
        raise Refused(f"{line}: {name[:60]} does not exist; {there}")
    raise Refused(f"{line}: {name[:60]} is not allowed")


def _arguments(node: ast.Call, line: str) -> list[ast.expr]:
    called = dotted(node.func)
    owner, _, name = (called or "").partition(".")
    if owner != "jnp" or name not in FUNCTIONS:
        instead = f" (use jnp.{called})" if called in FUNCTIONS else ""
        raise Refused(f"{line}: a call of {(called or 'an expression')[:40]} is not allowed{instead}")
    if node.keywords or len(node.args) != FUNCTIONS[name]:
        raise Refused(f"{line}: {called} takes {FUNCTIONS[name]} and no keywords, got {len(node.args)}")
    if name != "array":
        return node.args
    if not isinstance(items := node.args[0], ast.List) or not items.elts:
        raise Refused(f"{line}: jnp.array takes a list, as in jnp.array([0.0, 1.0])")
    return items.elts


def _refused(node: ast.AST, where: str = "", line: str = "") -> Refused:
    line = line or f"line {getattr(node, 'lineno', 0)}"
    if isinstance(node, ast.Constant):
        what = f"a constant of type {type(node.value).__name__}"
    else:
        what = _WORDS.get(type(node), type(node).__name__)
    return Refused(f"{line}: {what} is not allowed{f' {where}' if where else ''}")
