"""Each setting has its default, its type and its bounds once; one checker refuses everything else, in one line."""

import importlib
import inspect
import pkgutil
import re
from dataclasses import fields, is_dataclass, replace
from typing import Any, get_args

import jax
import jax.numpy as jnp
import pytest

from llmrl.assembly.methods import make_gradient, make_solver
from llmrl.assembly.parts import numbers_of, with_numbers
from llmrl.settings.config import SOLVERS, Config, OuterConfig, SolverConfig
from llmrl.settings.errors import BadValue
from llmrl.settings.fields import Bounds, check, hints
from llmrl.settings.requests import SCHEMAS
from llmrl.settings.validation import from_dict, validate


def leaves(settings, path=""):
    """Dotted key, annotation, bounds and default of each setting."""
    for entry in fields(settings):
        value = getattr(settings, entry.name)
        if is_dataclass(value):
            yield from leaves(value, f"{path}{entry.name}.")
        else:
            hint = hints(type(settings))[entry.name]
            yield f"{path}{entry.name}", hint, entry.metadata.get("bounds", Bounds()), value


LEAVES = {key: rest for key, *rest in leaves(Config())}
BOUNDED = sorted(key for key, (_, bounds, _) in LEAVES.items() if bounds != Bounds() and not bounds.choices)


def nested(key, value):
    """``{"a": {"b": value}}`` for ``a.b``."""
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


def refusal(values):
    with pytest.raises(BadValue) as caught:
        from_dict(values)
    message = str(caught.value)
    assert "\n" not in message
    return message


class Nothing:
    """A value of no setting's type."""

    def __repr__(self):
        return "<nothing>"


def test_a_text_for_a_number_is_one_clear_line():
    assert refusal({"seeds": "8"}) == "seeds must be a whole number, got '8'"
    assert refusal({"ppo": {"discount": "0.9"}}) == "ppo.discount must be a number, got '0.9'"
    assert refusal({"ppo": {"hidden": [8, "8"]}}) == "ppo.hidden must be a list of whole numbers, got (8, '8')"
    assert refusal({"llm": {"max_cost": True}}) == "llm.max_cost must be a number or null, got True"
    assert refusal({"aux": {"sources": {"mine": "a"}}}) == "aux.sources must be numbers by name, got {'mine': 'a'}"
    assert refusal({"devices": "all"}) == "devices must be a whole number or 'auto', got 'all'"
    assert refusal({"seeds": 8.0}) == "seeds must be a whole number, got 8.0"
    assert refusal({"ppo": 3}) == "ppo must hold settings by name, got 3"


@pytest.mark.parametrize("key", sorted(LEAVES))
def test_a_value_of_another_type_is_named_with_what_is_expected(key):
    hint, bounds, _ = LEAVES[key]
    if hint is Any and bounds.word is None:
        return  # a list of tasks, or one
    message = refusal(nested(key, Nothing()))
    assert message.startswith(f"{key} must be ")
    assert ("<nothing>" in message) != bounds.private


@pytest.mark.parametrize("key", BOUNDED)
def test_what_lies_outside_of_its_bounds_is_named(key):
    hint, bounds, default = LEAVES[key]
    if bounds.private:
        return
    whole = hint is int or int in get_args(hint) or bounds.whole

    def holding(value):
        return nested(key, [value] if isinstance(default, tuple) else value)

    for beyond in (bounds.low - 1, bounds.high + 1, bounds.low if bounds.above is None else bounds.above):
        if abs(beyond) == float("inf") or (bounds.above is None and beyond == bounds.low):
            continue
        value = int(beyond) if whole else float(beyond)
        assert key in refusal(holding(value))
    if not whole:
        assert refusal(holding(float("nan"))) == f"{key} must be a finite number, got nan"


SEEDS = [
    (command, key, bounds)
    for command, schema in SCHEMAS.items()
    for key, _, bounds, _ in leaves(schema())
    if re.search(r"(^|[._])seed$", key)
]


@pytest.mark.parametrize(("command", "key", "bounds"), SEEDS)
def test_every_seed_is_bounded_where_it_would_be_another_one_in_silence(command, key, bounds):
    """Random keys take seeds modulo 2^32; ``reward_seed`` counts seeds."""
    assert bounds.low == 0
    assert bounds.high < 2**32 or key == "reward_seed"


@pytest.mark.parametrize("command", SCHEMAS)
def test_every_default_is_of_its_own_type_and_within_its_bounds(command):
    settings = SCHEMAS[command]()
    check(replace(settings, number=1) if command == "figure" else settings)


def test_a_setting_may_be_traced():
    def total(numbers):
        config = with_numbers(Config(), numbers)
        return config.ppo.discount + config.method.outer.learning_rate

    numbers = {key: jnp.float32(value) for key, value in numbers_of(Config()).items()}
    assert jnp.isfinite(jax.jit(total)(numbers))
    jax.jit(lambda numbers: check(with_numbers(Config(), numbers)) or 0)(numbers)


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_takes_whatever_the_settings_allow(name):
    """So what a solver refuses is said by the settings, with the key's name."""
    base = SolverConfig(name=name, curvature="hessian")
    for key, (_, bounds, default) in LEAVES.items():
        section, _, setting = key.rpartition(".")
        if section != "solver" or bounds == Bounds() or bounds.choices:
            continue
        least = bounds.low if bounds.above is None else bounds.above + 1e-30
        for edge in (least, min(bounds.high, 1e30)):
            value = type(default)(max(edge, 1) if bounds.above is not None else edge) if type(default) is int else edge
            solver = replace(base, **{setting: value})
            try:
                validate(Config(solver=solver))
            except BadValue:
                continue
            make_solver(solver)
            make_gradient(OuterConfig(), solver)


def factories():
    """Functions of the rooms that a config's numbers reach, by dotted name."""
    for room in ("trust", "rewards", "learner"):
        package = importlib.import_module(f"llmrl.{room}")
        for found in pkgutil.iter_modules(package.__path__, f"llmrl.{room}."):
            module = importlib.import_module(found.name)
            for name, function in vars(module).items():
                if inspect.isfunction(function) and function.__module__ == module.__name__:
                    yield f"{found.name}.{name}", function


def test_no_factory_repeats_the_default_of_a_setting():
    settings = {key.rpartition(".")[2] for key in LEAVES}
    repeated = [
        f"{where}({name}={one.default})"
        for where, function in factories()
        for name, one in inspect.signature(function).parameters.items()
        if one.kind is one.KEYWORD_ONLY and one.default is not one.empty and name in settings
    ]
    assert repeated == []
