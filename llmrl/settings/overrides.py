"""From overrides to a ``Config``: Hydra meets the library here and in ``cli.py`` only. Importing needs no jax."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from difflib import get_close_matches
from typing import Any, TypeVar

from hydra import compose as compose_with_hydra
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from llmrl.settings.config import Config
from llmrl.settings.errors import (
    OWN_ENVIRONMENT,
    BadValue,
    brief,
    first_line,
    install,
    of_a_callback,
    of_the_disk,
    unknown,
)
from llmrl.settings.fields import check
from llmrl.settings.presets import config_dir, method_names
from llmrl.settings.requests import (
    BENCH_RIVALS,
    BENCH_SUITES,
    SCHEMAS,
    Bench,
    Check,
    Evaluation,
    Label,
    Refine,
    Report,
    Reproduction,
    Status,
    Suite,
    Write,
)
from llmrl.settings.validation import build, from_dict, refuse_secret, renamed, validate
from llmrl.settings.words import ONE_CHOICE, as_hydra_reads

Request = TypeVar("Request")

GROUP_KINDS = {"env": "environment", "aux": "auxiliary reward", "track": "tracker"}
"""What a config group's choices are called in errors, where its own name does not say it."""

GROUPS_WITHOUT_KEYS = ("experiment", "launcher")
"""Config groups that a run chooses from and that are no field of its ``Config``."""

LAUNCHERS = {
    "joblib": install("cluster"),
    "submitit_local": install("cluster"),
    "submitit_slurm": install("cluster"),
    "ray": "pip install hydra-ray-launcher, in an environment of its own",
}
"""What to install for Hydra's launchers, by Hydra's names."""


@functools.cache
def register_schemas() -> None:
    """Makes the dataclasses known to Hydra, so that it checks types and keys; once: it takes as long as composing."""
    for name, schema in SCHEMAS.items():
        ConfigStore.instance().store(f"schema_{name}", _writable(OmegaConf.structured(schema)))
    # Hydra copies the whole store for every composition, a quarter of its time, and only reads in the copy.
    ConfigStore.__deepcopy__ = lambda store, _: store  # pyright: ignore[reportAttributeAccessIssue]


def _writable(node: DictConfig) -> DictConfig:
    """OmegaConf makes a frozen dataclass read-only, and then refuses the very files that are to fill it."""
    OmegaConf.set_readonly(node, None)
    for key in node:
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none():
            _writable(child)
    return node


GRID = "sweep.vmap."
"""How the word begins that sweeps a key inside one program."""


def without_grid(arguments: Sequence[str]) -> tuple[list[str], dict[str, list[Any]]]:
    """The arguments that are Hydra's, and the grid that the others describe, as ``llmrl.sweep`` takes it.

    Args:
        arguments: e.g. ``"seeds=4", "sweep.vmap.ppo.entropy=[0,0.01]"``.

    Raises:
        ValueError: such a word names no key, names one twice, or gives no list.
    """
    others = [argument for argument in arguments if not argument.lstrip("+").startswith("sweep")]
    grid: dict[str, list[Any]] = {}
    for word in [argument.lstrip("+") for argument in arguments if argument not in others]:
        key, _, text = word.removeprefix(GRID).partition("=")
        if secret := refuse_secret(key):
            raise secret
        if not word.startswith(GRID) or not key:
            raise BadValue(f"a grid inside one program is written {GRID}ppo.entropy=[0,0.01], got {word}")
        if key in grid:
            raise BadValue(f"{GRID}{key} is given twice")
        try:
            values = OverridesParser.create().parse_override(f"{key}={text}").value()
        except HydraException:
            values = None
        if not isinstance(values, list):
            raise BadValue(
                f"{GRID}{key} takes a list, as in {GRID}{key}=[{text.strip('[]') or '1e-3,1e-2'}], got {text!r}"
            )
        grid[key] = values
    return others, grid


def fixed_keys(arguments: Sequence[str]) -> set[str]:
    """Keys and groups to which the arguments of a sweep give one value."""
    words = [argument for argument in arguments if "=" in argument and not argument.startswith("-")]
    parsed = OverridesParser.create().parse_overrides(words)
    return {override.key_or_group for override in parsed if not override.is_sweep_override()}


def grid_words(grid: Mapping[str, Sequence[Any]]) -> list[str]:
    """A grid as it may be typed again."""
    return [f"{GRID}{key}=[{','.join(map(str, values))}]" for key, values in grid.items()]


def compose(*overrides: str) -> Config:
    """The config that ``llmrl train`` would run with these overrides, for notebooks and scripts.

    Args:
        *overrides: as on the command line, e.g. ``"env=cartpole", "aux=[harmful,beneficial]", "seeds=4"``.

    Returns:
        A validated config; ``run_dir`` stays None, in memory, unless it is among the overrides.

    Raises:
        ValueError: an override names something that does not exist or a value out of range.
    """
    register_schemas()
    try:
        with _own_hydra():
            return to_config(compose_with_hydra("train", as_hydra_reads(overrides, "train")))
    except (HydraException, OmegaConfBaseException) as error:
        raise BadValue(explain(error)) from error


@contextmanager
def _own_hydra() -> Iterator[None]:
    """Our config files, also inside a running Hydra application such as ``llmrl figure``; Hydra knows one at a time."""
    world = GlobalHydra.instance()
    running = world.hydra
    world.clear()
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            yield
    finally:
        world.hydra = running


def to_config(node: DictConfig) -> Config:
    """A validated ``Config`` from what Hydra composed."""
    return from_dict(_container(node))


def to_comparison(node: DictConfig) -> tuple[Config, tuple[str, ...]]:
    """The run of the method in question, and the methods to compare it with, from what Hydra composed."""
    values = _container(node)
    beside = tuple(values.pop("beside"))
    if values["distributed"]:
        raise BadValue("compare runs in one process: llmrl train distributed=true for each method, then llmrl report")
    methods = method_names()
    for method in beside:
        if method not in methods:
            raise unknown("method", method, methods)
    return from_dict(values), beside


def to_check(node: DictConfig) -> tuple[Config, dict[str, Any]]:
    """The run that is thought of, and the other settings of ``llmrl check``, from what Hydra composed."""
    values = _container(node)
    request = {name: values.pop(name) for name in ("steps", "seconds")}
    check(replace(Check(), **request))
    return from_dict(values), request


def to_evaluation(node: DictConfig) -> Evaluation:
    """An ``Evaluation`` from what Hydra composed."""
    evaluation = _checked(Evaluation, node)
    if not evaluation.env.name and evaluation.env != Evaluation().env:
        raise BadValue("the environment of a run is evaluated as it is; choose one with env=... to set its keys")
    return evaluation


def to_bench(node: DictConfig) -> Bench:
    """A ``Bench`` from what Hydra composed."""
    bench = _checked(Bench, node)
    for suite in bench.suites:
        if suite not in BENCH_SUITES:
            raise unknown("suite", suite, BENCH_SUITES)
    if bench.against is not None and bench.against not in BENCH_RIVALS:
        raise unknown("library to bench against", bench.against, BENCH_RIVALS)
    return bench


def to_label(node: DictConfig) -> tuple[Config, dict[str, Any]]:
    """What to label, and the other settings of ``llmrl label``, from what Hydra composed."""
    request = vars(_checked(Label, node)).copy()
    return validate(Config(**{name: request.pop(name) for name in ("env", "captioner", "llm", "seed")})), request


def to_writing(node: DictConfig) -> tuple[Config, dict[str, Any]]:
    """What to write functions for, and the other settings of ``llmrl write``, from what Hydra composed."""
    request = vars(_checked(Write, node)).copy()
    return validate(Config(**{name: request.pop(name) for name in ("env", "llm", "seed")})), request


def to_refinement(node: DictConfig) -> Refine:
    """A ``Refine`` from what Hydra composed."""
    return _checked(Refine, node)


def to_report(node: DictConfig) -> Report:
    """A ``Report`` from what Hydra composed."""
    request = _checked(Report, node)
    if not request.runs:
        raise BadValue("report needs a run's directory, or one that holds some: llmrl report runs")
    if len(request.dims) not in (0, 2):
        raise BadValue(f"dims must be two components of the observation, got {list(request.dims)}")
    return request


def to_status(node: DictConfig) -> Status:
    """A ``Status`` from what Hydra composed."""
    request = _checked(Status, node)
    if not request.runs:
        raise BadValue("status needs a run's directory, or one that holds some: llmrl status runs")
    return request


def to_reproduction(node: DictConfig) -> Reproduction:
    """A ``Reproduction`` from what Hydra composed."""
    return _checked(Reproduction, node)


def to_suite(node: DictConfig) -> Suite:
    """A ``Suite`` from what Hydra composed."""
    return _checked(Suite, node)


def _checked(kind: type[Request], node: DictConfig) -> Request:
    """What a command is asked, of the right types and within bounds."""
    request = build(kind, _container(node))
    check(request)
    return request


def _container(node: DictConfig) -> dict[str, Any]:
    values = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


# --- errors -----------------------------------------------------------------------------------------------------------


_NO_SUCH_GROUP = re.compile(r"Could not override '([^']+)'\. No match in the defaults list")


def explain(error: BaseException) -> str:
    """One line for the reader of a terminal: what was wrong and, where there is one, the nearest right thing."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        if group == "hydra/launcher":
            return f"this launcher is not installed: {LAUNCHERS.get(choice, 'pip install its plugin')}"
        # Of a choice among several, Hydra does not say what there was to choose from.
        options = error.options or sorted(file.stem for file in (config_dir() / group).glob("*.yaml"))
        told = str(unknown(GROUP_KINDS.get(group, group), choice, options))
        return f"{told}; {OWN_ENVIRONMENT}" if group == "env" else told
    if isinstance(cause, MissingMandatoryValue):
        key = _first_line(cause).rpartition(" ")[2]
        return f"{key} has no value yet: give one with {key}=..."
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and cause.full_key:
        schema = next((known for known in SCHEMAS.values() if known is cause.object_type), Config)
        return _unknown_key(cause.full_key, schema())
    if isinstance(cause, ValidationError) and cause.full_key:
        return f"{cause.full_key}: {_first_line(cause)}"
    if isinstance(error, OverrideParseException):
        key = str(error.override).partition("=")[0].lstrip("+~")
        if secret := refuse_secret(key):
            return str(secret)
        if key.startswith("llm."):
            return f"cannot read the value of {key}; quote it, as in {key}='\"...\"'"  # there may be an API key in it
        return f"cannot read the override {error.override!r}; expected key=value or group=choice"
    if str(error).startswith("Ambiguous value"):
        override = str(error).partition("'")[2].partition("'")[0]
        key, _, values = override.partition("=")
        if secret := refuse_secret(key.lstrip("+~")):
            return str(secret)
        listed = "" if key in ONE_CHOICE else f", or write {key}=[{values}] for a list"
        return f"{override} is several values: add --multirun to run each{listed}"
    if not_there := _NO_SUCH_GROUP.match(str(error)):
        return f"{not_there[1]}=... is not for this command; its --help lists what is"
    if isinstance(error, HydraException):
        return " ".join(str(error).split())
    if of_a_callback(error):
        return f"a function that the environment or a source calls back in Python failed: {first_line(error)}"
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{of_the_disk(error)}: {brief(error.filename)}"
    return _first_line(error) or type(error).__name__


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def _unknown_key(key: str, settings: Any) -> str:
    if error := refuse_secret(key) or renamed(key):
        return str(error)
    if key == "sweep":
        return (
            f"{GRID}... is for `llmrl train` alone; in Python it is llmrl.sweep(config, {{'ppo.entropy': [0, 0.01]}})"
        )
    if key.startswith(("aux.sources.", "aux.options.", "env.params.", "llm.extra.")):
        return f"unknown key {key!r}: a new entry is added with a plus, +{key}=..."
    keys = list(_dotted_keys(settings))
    parent, _, name = key.rpartition(".")
    siblings = [other for other in keys if other.rpartition(".")[0] == parent]
    if not parent and isinstance(settings, Config):
        siblings += GROUPS_WITHOUT_KEYS
    namesakes = [other for other in keys if other.rpartition(".")[2] == name]
    choices = [*namesakes, *get_close_matches(key, siblings)] if namesakes else siblings
    return str(unknown("key", key, choices or get_close_matches(key, keys, n=5)))


def _dotted_keys(section: Any, prefix: str = "") -> Iterator[str]:
    for entry in fields(section):
        yield prefix + entry.name
        value = getattr(section, entry.name)
        if is_dataclass(value):
            yield from _dotted_keys(value, f"{prefix}{entry.name}.")
