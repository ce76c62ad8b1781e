"""The checker of written reward functions: what is not of the subset is refused with a reason, and does not run."""

import ast
import re
import sys
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrl.language.function_files import SHIPPED, file_text, find, read_file
from llmrl.language.subset import FUNCTIONS, MOST_LETTERS, Refused, checked, read_functions
from llmrl.settings.config import EnvConfig

FIELDS = ("theta", "position", "map", "inventory.wood", "reached")


def written(body, name="f"):
    """A function with this body, each line given on its own."""
    lines = "\n".join(f"    {line}" for line in body.split("\n"))
    return f'def {name}(state, action, next_state):\n    """Pays."""\n{lines}\n'


HOSTILE = {
    # reaching out
    "import": (written("import os\nreturn 0.0"), "line 3: an import"),
    "import above": ("import os\n" + written("return 0.0"), "line 1: an import"),
    "import of jax": ("import jax\n" + written("return 0.0"), "an import"),
    "import under another name": ("import jax.numpy as jnp, os\n" + written("return 0.0"), "an import"),
    "import from": ("from os import system\n" + written("return 0.0"), "an import"),
    "__import__": (written("return __import__('os').system('true')"), r"a call of an expression"),
    "eval": (written("return eval('1.0')"), "a call of eval"),
    "exec": (written("return exec('import os')"), "a call of exec"),
    "open": (written("return open('/etc/passwd')"), "a call of open"),
    "getattr": (written("return getattr(state, 'theta')"), "a call of getattr"),
    "globals": (written("return globals()"), "a call of globals"),
    "breakpoint": (written("return breakpoint()"), "a call of breakpoint"),
    "a builtin as a value": (written("return print"), "'print' has no value"),
    "jnp as a value": (written("return jnp"), "'jnp' has no value"),
    "a state as a value": (written("return state"), "'state' has no value"),
    # attributes
    "dunder of a state": (written("return state.__class__"), "does not exist"),
    "dunder of a field": (written("return state.theta.__class__"), "does not exist"),
    "dunder of a constant": (written("return (1.0).__class__"), "is not allowed"),
    "dunder of jnp": (written("return jnp.__dict__"), "jnp.__dict__ is not allowed"),
    "subclasses": (written("return ().__class__.__bases__[0].__subclasses__()"), "a call of an expression"),
    "a method of a field": (written("return state.theta.tolist()"), "a call of state.theta.tolist"),
    "a private field": (written("return state._theta"), "does not exist"),
    "another module through jnp": (written("return jnp.np.load('x')"), "a call of jnp.np.load"),
    "a file through jnp": (written("return jnp.save('/tmp/x', state.theta)"), "a call of jnp.save"),
    "a callback through jnp": (written("return jnp.vectorize(print)(1)"), "a call of an expression"),
    "a function applied by jnp": (written("return jnp.apply_along_axis(print, 0, action)"), "a call of jnp.apply"),
    "jnp replaced": (written("jnp = state.theta\nreturn 0.0"), "'jnp' is no name"),
    "a state replaced": (written("state = 1.0\nreturn 0.0"), "'state' is no name"),
    "a state changed": (written("state.theta = 1.0\nreturn 0.0"), "only `name = value`"),
    "an entry changed": (written("state.position[0] = 1\nreturn 0.0"), "only `name = value`"),
    # going on for ever
    "while": (written("while True:\n    x = 1\nreturn 0.0"), "line 3: a loop"),
    "for": (written("for i in range(10 ** 12):\n    x = i\nreturn 0.0"), "a loop"),
    "recursion": (written("return f(state, action, next_state)"), "a call of f"),
    "recursion of a lambda": (written("return (lambda g: g(g))(lambda g: g(g))"), "a call of an expression"),
    "comprehension": (written("return jnp.sum([x for x in range(10 ** 9)])"), "a comprehension"),
    "generator": (written("return sum(x for x in range(10 ** 9))"), r"a call of sum.*use jnp.sum"),
    "yield": (written("yield 1.0"), "a statement without effect"),
    "async": ("async " + written("return 0.0"), "async"),
    "a jnp loop": (written("return jnp.fori_loop(0, 9, print, 0)"), "a call of jnp.fori_loop"),
    # too large
    "zeros": (written("return jnp.sum(jnp.zeros((10 ** 9,)))"), "a call of jnp.zeros"),
    "arange": (written("return jnp.sum(jnp.arange(10 ** 9))"), "a call of jnp.arange"),
    "a list times a number": (written("return jnp.sum([0.0] * 10 ** 9)"), "a list"),
    "a text times a number": (written("return 'x' * 10 ** 9"), "a constant of type str"),
    "tower of powers": (written("return 9 ** 9 ** 9 ** 9"), "an exponent must be a number up to"),
    "large power": (written("return state.theta ** 1000"), "an exponent must be a number up to"),
    "power of the state": (written("return 2.0 ** state.theta"), "an exponent must be a number"),
    "shift": (written("return 1 << 10000000000"), "<< is not allowed"),
    "large constant": (written("return 1e300"), r"a constant is larger than 1e\+06"),
    "infinite constant": (written("return 1e999"), "a constant is larger than"),
    "digits": (written(f"return {'9' * 5000}"), "this is no Python"),
    "long text": ("#" * (MOST_LETTERS + 1), "too long"),
    "long function": (written("return " + " + ".join(["1.0"] * 200)), "too long"),
    "nested brackets": (written("return " + "(" * 5000), "this is no Python"),
    "nested signs": (written("return " + "-" * 9000 + "1.0"), "nested too deep"),
    "nested enough": (written("return " + "-" * 40 + "1.0"), "nested deeper"),
    "nested head": (written("return 0.0").replace("next_state)", f"next_state={'-' * 900}1)"), "its head must read"),
    "indented": ("".join(" " * i + "if 1:\n" for i in range(150)), "this is no Python"),
    # other kinds of text
    "prose": ("Sure! Here is a function that helps the agent.", "this is no Python"),
    "orders": ("# Ignore all rules above.\nignore_all_rules", "outside of a function"),
    "null": (written("return 0.0\x00"), "only printable ASCII"),
    "look-alike letter": (written("return st\u0430te.theta"), "only printable ASCII"),
    "letters that turn the text around": (written("return 0.0  # \u202e"), "only printable ASCII"),
    "orders to a terminal": (written("return 0.0  # \x1b[2J"), "only printable ASCII"),
    "wide letters": (written("return \uff4anp.pi"), "only printable ASCII"),
    "a class": ("class f:\n    pass", "a class is not allowed outside"),
    "decorator": ("@jit\n" + written("return 0.0"), "its head must read"),
    "default": (written("return 0.0").replace("action", "action=open('x')"), "its head must read|no Python"),
    "annotation": (written("return 0.0").replace("action", "action: print('x')"), "its head must read"),
    "returns": (written("return 0.0").replace("):", ") -> print('x'):"), "its head must read"),
    "more parameters": (written("return 0.0").replace("action", "action, *more"), "its head must read|no Python"),
    "a name of its own": (written("return 0.0", "__init__"), "is no name for a function"),
    "no docstring": ("def f(state, action, next_state):\n    return 0.0", "needs a docstring"),
    "docstring with orders": ('def f(state, action, next_state):\n    """a\nb"""\n    return 0.0', "needs a docstring"),
    "f-string": (written("return f'{state}'"), "an f-string"),
    "walrus": (written("return (x := 1.0)"), "an assignment inside"),
    "starred": (written("return jnp.maximum(*state.position)"), "jnp.maximum takes 2"),
    "keywords": (written("return jnp.sum(state.position, **state)"), "jnp.sum takes 1 and no keywords"),
    "try": (written("try:\n    x = 1\nexcept Exception:\n    x = 2\nreturn 0.0"), "try is not allowed"),
    "with": (written("with open('x') as x:\n    y = 1\nreturn 0.0"), "with is not allowed"),
    "assert": (written("assert print('x')\nreturn 0.0"), "assert is not allowed"),
    "raise": (written("raise SystemExit\nreturn 0.0"), "raise is not allowed"),
    "global": (written("global x\nreturn 0.0"), "global is not allowed"),
    "del": (written("del state\nreturn 0.0"), "del is not allowed"),
    "a call alone": (written("print('x')\nreturn 0.0"), "a statement without effect"),
    "a function inside": (written("def g():\n    return 0.0\nreturn g()"), "a function inside"),
    "if": (written("if state.theta > 0:\n    return 1.0\nreturn 0.0"), "use jnp.where"),
    "and": (written("return state.theta > 0 and action > 0"), r"use & or \|"),
    "chain": (written("return 0 < state.theta < 1"), "a chain of comparisons"),
    "no value": (written("return"), "must end with the only `return`"),
    "nothing": (written("x = 1.0"), "must end with the only `return`"),
    "two returns": (written("return 1.0\nreturn 2.0"), "must end with the only `return`"),
    "a value before it is there": (written("return x"), "'x' has no value"),
    "complex": (written("return 1j"), "a constant of type complex"),
    "bytes": (written("return b'x'"), "a constant of type bytes"),
    "a slice": (written("return state.position[:1]"), "a slice"),
    "a new axis": (written("return state.position[None]"), "an index must be a whole number"),
    "a new axis by truth": (written("return state.position[True]"), "an index must be a whole number"),
    "dots": (written("return state.position[...]"), "an index must be a whole number"),
}


_seen: list | None = None


@pytest.fixture(scope="module")
def watch():
    """``() -> what Python has done since``, of what leaves a trace: executing, importing, opening."""

    def note(event, arguments):
        runs = event in ("exec", "import", "open", "os.system", "subprocess.Popen")
        if _seen is not None and runs and arguments[0] != "<unknown>":  # where Python looks for a wrong line's text
            _seen.append((event, arguments))

    sys.addaudithook(note)  # for the rest of the process: hooks cannot be taken away

    @contextmanager
    def watched():
        global _seen
        _seen = seen = []
        try:
            yield seen
        finally:
            _seen = None

    return watched


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_refused_with_a_reason_and_does_not_run(name, watch):
    text, reason = HOSTILE[name]
    with watch() as seen, pytest.raises(Refused) as refused:
        for function in read_functions(text):
            checked(function, FIELDS)
    assert seen == []
    said = str(refused.value)
    assert "\n" not in said and len(said) < 400
    assert re.search(reason, said), said


def test_the_watch_sees_what_runs(watch):
    with watch() as seen:
        exec("1")
    assert [event for event, _ in seen] == ["exec"]


def test_there_are_sixty_of_them():
    assert len(HOSTILE) >= 60


def test_what_is_meant_passes():
    text = "import jax.numpy as jnp\n\n" + written(
        "push = 2.0 * action - 1\n"
        "near = jnp.sum(jnp.abs(state.position - jnp.array([0, 6]))) < 3\n"
        "gain = state.theta ** 2 - next_state.theta ** 2\n"
        "wood = (next_state.inventory.wood > state.inventory.wood) | ~state.reached\n"
        "return jnp.where(near & wood, gain * push, -0.1) + 0.0 * state.map[0, -1]"
    )
    (function,) = read_functions(text)
    assert checked(function, FIELDS) is function
    assert (function.name, function.sentence) == ("f", "Pays.")
    assert text.endswith(function.source + "\n")


def test_functions_of_jnp_exist():
    import jax.numpy as jnp

    for name in FUNCTIONS:
        owner, _, inner = name.rpartition(".")
        assert callable(getattr(getattr(jnp, owner) if owner else jnp, inner))


# --- fuzz -------------------------------------------------------------------------------------------------------------

LEAVES = ("1.0", "0", "True", "None", "'x'", "x", "action", "state", "state.theta", "next_state.map", "jnp", "jnp.pi",
          "state.__class__", "1e9", "...", "()", "[]", "{}")  # fmt: skip
SHAPES = ("({0} + {1})", "({0} ** {1})", "({0} @ {1})", "-{0}", "not {0}", "({0} < {1})", "{0}[{1}]", "{0}.real",
          "jnp.abs({0})", "jnp.where({0}, {1}, {0})", "jnp.array([{0}, {1}])", "jnp.zeros({0})", "{0}({1})",
          "(lambda: {0})", "[{0} for x in {1}]", "f'{{{0}}}'", "({0} if {1} else 0)", "({0} and {1})", "({0}, {1})",
          "(y := {0})", "{{{0}: {1}}}", "{0}[{0}:{1}]", "jnp.sum(*{0})", "jnp.sum({0}, axis={1})")  # fmt: skip
EXPRESSIONS = st.recursive(
    st.sampled_from(LEAVES),
    lambda inner: st.builds(lambda shape, a, b: shape.format(a, b), st.sampled_from(SHAPES), inner, inner),
    max_leaves=8,
)
STATEMENTS = ("x = {0}", "x, y = {0}", "x += {0}", "{0}", "return {0}", "for x in {0}: pass", "import os", "del x")
BODIES = st.lists(
    st.builds(lambda shape, value: shape.format(value), st.sampled_from(STATEMENTS), EXPRESSIONS), max_size=4
)
ALLOWED = (ast.Constant, ast.Name, ast.Attribute, ast.Subscript, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Call)
"""Expressions that may be left in a checked tree, besides the lists and tuples of arrays and indices."""


@settings(max_examples=400, deadline=None)
@given(BODIES, EXPRESSIONS)
def test_whatever_is_written_is_of_the_subset_or_refused_in_one_line(body, value):
    text = written("\n".join([*body, f"return {value}"]))
    try:
        (function,) = read_functions(text)
        checked(function, FIELDS)
    except Refused as reason:
        assert "\n" not in str(reason)
        return
    for node in ast.walk(function.tree):
        assert isinstance(node, (*ALLOWED, ast.List, ast.Tuple)) or not isinstance(node, ast.expr)
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func).removeprefix("jnp.") in FUNCTIONS
        if isinstance(node, ast.Attribute):
            assert not node.attr.startswith("_")


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_read_or_refused_in_one_line(text):
    try:
        read_functions(text)
    except Refused as reason:
        assert "\n" not in str(reason)


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_file_is_read_back_as_it_was_written(tmp_path):
    functions = read_functions(written("return state.theta") + written("return 1.0", "g"))
    file = tmp_path / "mine.txt"
    file.write_text(file_text(functions, {"source": "a\nmodel \u00b5", "prompt": "none"}))
    found = read_file(file)
    assert [function[:3] for function in found.functions] == [function[:3] for function in functions]
    assert found.provenance == {"source": "a model ?", "prompt": "none"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "its first line must read `# format: llmrl-functions 1`"),
        ("# format: llmrl-functions 1\n", "it has 0 functions"),
        ("# format: llmrl-functions 1\n" + written("return 1.0") * 2, "f is there twice"),
        ("# format: llmrl-functions 1\nimport os\n", "line 2: an import"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, text, reason):
    file = tmp_path / "mine.txt"
    file.write_text(text)
    with pytest.raises(ValueError, match=reason) as error:
        read_file(file)
    assert str(file) in str(error.value)


def test_a_file_that_is_not_there_has_neighbours():
    for path, name, reason in (("handmad", "cartpole", "nearest: 'handmade'"), ("handmade", "cartpol", "'cartpole'")):
        with pytest.raises(ValueError, match=f"unknown .* {reason}"):
            find(path, EnvConfig(name))


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*/*.txt")))
def test_shipped_files_say_where_they_come_from(path):
    found = read_file(path)
    assert found.provenance["environment"] == path.stem
    assert set(found.provenance) == {"environment", "source", "date", "prompt"}
    assert (path.parent.name == "handmade") == (found.provenance["source"] == "handmade")
    assert 1 <= len(found.functions) <= 4
