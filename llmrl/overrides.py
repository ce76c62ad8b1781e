"""From overrides to a ``Config``: Hydra meets the library here and in ``cli.py`` only. Importing needs no jax."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hydra import compose as compose_with_hydra
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from llmrl.config import Config, EnvConfig, LLMConfig, from_dict, refuse_secret
from llmrl.errors import unknown

GROUP_KINDS = {"env": "environment", "aux": "auxiliary reward", "track": "tracker"}
"""What a config group's choices are called in errors, where its own name does not say it."""


@dataclass(frozen=True)
class Evaluation:
    """What ``llmrl evaluate`` is asked.

    Attributes:
        run_dir: a run's directory.
        env: environment to evaluate in; without a name it is the run's own.
        episodes: episodes per seed.
        seed: base seed of the evaluation.
        video: whether to write an episode as ``video.gif`` into the run's directory too.
    """

    run_dir: str = MISSING
    env: EnvConfig = field(default_factory=lambda: EnvConfig(name=""))
    episodes: int = 100
    seed: int = 0
    video: bool = False


@dataclass(frozen=True)
class Comparison(Config):
    """What ``llmrl compare`` is asked: the run of a method, as ``Config`` has it, and what stands beside it.

    Attributes:
        beside: methods to compare with.
    """

    beside: tuple[str, ...] = ("ppo", "add")


BENCH_SUITES = ("ppo", "methods", "meta", "seeds", "start", "memory", "language", "crafter")
BENCH_RIVALS = ("rejax",)


@dataclass(frozen=True)
class Bench:
    """What ``llmrl bench`` is asked.

    Attributes:
        suites: which of ``BENCH_SUITES``; ``crafter`` takes minutes to compile and has to be asked for.
        against: one of ``BENCH_RIVALS``, to compare plain PPO with; None compares with nothing.
        rejax_python: the Python of an environment that has rejax.
        rounds: measurements of each program; programs take turns.
        seeds: numbers of seeds to try, for ``ppo`` and ``methods``.
        envs: numbers of environments to try, for ``ppo``.
        crafter_envs: the same, for ``crafter``.
        steps: environment steps of one seed in one measurement; for ``crafter`` a sixteenth of them.
        quick: less of everything: a look, not a result.
        out: file for all measurements, JSON; None keeps none.
    """

    suites: tuple[str, ...] = ("ppo", "methods", "meta")
    against: str | None = None
    rejax_python: str = ".venv-rejax/bin/python"
    rounds: int = 5
    seeds: tuple[int, ...] = (1, 8)
    envs: tuple[int, ...] = (4, 16)
    crafter_envs: tuple[int, ...] = (64,)
    steps: int = 131_072
    quick: bool = False
    out: str | None = "bench.json"


@dataclass(frozen=True)
class Label:
    """What ``llmrl label`` is asked.

    Attributes:
        env: the environment.
        captioner: dotted path of words for its states; None takes its own.
        llm: who is asked, and what that may cost.
        limit: states to ask about at most; None asks about all.
        steps: where not all states can be listed, or not all are wanted: steps of an untrained policy, whose most
            frequent states are asked about first.
        dry_run: ask about the first state only.
        out: file for the answers, for ``llm=recorded llm.answers=...``.
        seed: of the untrained policy.
    """

    env: EnvConfig = field(default_factory=EnvConfig)
    captioner: str | None = None
    llm: LLMConfig = field(default_factory=LLMConfig)
    limit: int | None = None
    steps: int = 16_384
    dry_run: bool = False
    out: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class Report:
    """What ``llmrl report`` is asked.

    Attributes:
        runs: run directories, directories that hold some, or glob patterns; on the command line they need no key.
        out: directory of the page.
        measure: metric that is compared; each environment's own where not given.
        dims: two components of the observation for the maps of trust; the most telling ones where not given.
        trust: whether to play the trained policies for the maps of trust.
    """

    runs: tuple[str, ...] = ()
    out: str = "report"
    measure: str | None = None
    dims: tuple[str, ...] = ()
    trust: bool = True


@dataclass(frozen=True)
class Status:
    """What ``llmrl status`` is asked.

    Attributes:
        runs: run directories, directories that hold some, or glob patterns; on the command line they need no key.
    """

    runs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reproduction:
    """What ``llmrl figure`` is asked.

    Attributes:
        number: the figure of the paper; on the command line it needs no key.
        seeds: of each run; where not given 20, or 10 of figure 2, and 3, or 2, for ``quick``.
        quick: few seeds and steps, and for figure 2 smaller networks: a look, not a result.
        helpful: figure 1 with a column for a helpful source too.
        goals: who suggests the goals of figure 2, ``plausible`` or ``oracle``.
        methods: those to compare; all of the figure's where none is named.
        processes: runs trained side by side on this machine.
        shard: which part of the runs to train here, ``i/n``: one machine of several.
        out: directory of runs, picture and table; ``runs/figures/<number>`` where not given.
    """

    number: int = MISSING
    seeds: int | None = None
    quick: bool = False
    helpful: bool = False
    goals: str = "plausible"
    methods: tuple[str, ...] = ()
    processes: int = 1
    shard: str = "1/1"
    out: str | None = None


SCHEMAS: dict[str, type] = {
    "train": Config,
    "compare": Comparison,
    "evaluate": Evaluation,
    "label": Label,
    "bench": Bench,
    "report": Report,
    "status": Status,
    "figure": Reproduction,
}
"""The typed settings behind each primary config file."""


def config_dir() -> Path:
    """The config files: inside an installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def register_schemas() -> None:
    """Makes the dataclasses known to Hydra, so that types and keys are checked while it composes."""
    for name, schema in SCHEMAS.items():
        ConfigStore.instance().store(f"schema_{name}", _writable(OmegaConf.structured(schema)))


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
            raise ValueError(f"a grid inside one program is written {GRID}ppo.entropy=[0,0.01], got {word}")
        if key in grid:
            raise ValueError(f"{GRID}{key} is given twice")
        try:
            values = OverridesParser.create().parse_override(f"{key}={text}").value()
        except HydraException:
            values = None
        if not isinstance(values, list):
            raise ValueError(
                f"{GRID}{key} takes a list, as in {GRID}{key}=[{text.strip('[]') or '1e-3,1e-2'}], got {text!r}"
            )
        grid[key] = values
    return others, grid


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
            return to_config(compose_with_hydra("train", list(overrides)))
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(explain(error)) from error


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
        raise ValueError("compare runs in one process: llmrl train distributed=true for each method, then llmrl report")
    methods = [file.stem for file in sorted((config_dir() / "method").glob("*.yaml"))]
    for method in beside:
        if method not in methods:
            raise unknown("method", method, methods)
    return from_dict(values), beside


def to_evaluation(node: DictConfig) -> Evaluation:
    """An ``Evaluation`` from what Hydra composed."""
    values = _container(node)
    evaluation = Evaluation(**{**values, "env": EnvConfig(**values["env"])})
    if evaluation.episodes < 1:
        raise ValueError(f"episodes must be positive, got {evaluation.episodes}")
    if not evaluation.env.name and evaluation.env != Evaluation().env:
        raise ValueError("the environment of a run is evaluated as it is; choose one with env=... to set its keys")
    return evaluation


def to_bench(node: DictConfig) -> Bench:
    """A ``Bench`` from what Hydra composed."""
    values = _container(node)
    for name in ("suites", "seeds", "envs", "crafter_envs"):
        values[name] = tuple(values[name])
    bench = Bench(**values)
    for suite in bench.suites:
        if suite not in BENCH_SUITES:
            raise unknown("suite", suite, BENCH_SUITES)
    if bench.against is not None and bench.against not in BENCH_RIVALS:
        raise unknown("library to bench against", bench.against, BENCH_RIVALS)
    for name in ("rounds", "steps", "seeds", "envs", "crafter_envs"):
        value = getattr(bench, name)
        if min(value if isinstance(value, tuple) else [value], default=1) < 1:
            raise ValueError(f"{name} must be positive, got {value}")
    return bench


def to_label(node: DictConfig) -> tuple[Config, dict[str, Any]]:
    """What to label, and the other settings of ``llmrl label``, from what Hydra composed."""
    values = _container(node)
    config = from_dict({name: values.pop(name) for name in ("env", "captioner", "llm", "seed")})
    for name in ("limit", "steps"):
        if values[name] is not None and values[name] < 1:
            raise ValueError(f"{name} must be positive, got {values[name]}")
    return config, values


def to_report(node: DictConfig) -> Report:
    """A ``Report`` from what Hydra composed."""
    values = _container(node)
    request = Report(**{**values, "runs": tuple(values["runs"]), "dims": tuple(values["dims"])})
    if not request.runs:
        raise ValueError("report needs a run's directory, or one that holds some: llmrl report runs")
    if len(request.dims) not in (0, 2):
        raise ValueError(f"dims must be two components of the observation, got {list(request.dims)}")
    return request


def to_status(node: DictConfig) -> Status:
    """A ``Status`` from what Hydra composed."""
    request = Status(tuple(_container(node)["runs"]))
    if not request.runs:
        raise ValueError("status needs a run's directory, or one that holds some: llmrl status runs")
    return request


def to_reproduction(node: DictConfig) -> Reproduction:
    """A ``Reproduction`` from what Hydra composed."""
    values = _container(node)
    request = Reproduction(**{**values, "methods": tuple(values["methods"])})
    for name in ("processes", "seeds"):
        value = getattr(request, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be positive, got {value}")
    return request


def _container(node: DictConfig) -> dict[str, Any]:
    values = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


# --- errors -----------------------------------------------------------------------------------------------------------


def explain(error: BaseException) -> str:
    """One line for the reader of a terminal: what was wrong and, where there is one, the nearest right thing."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        # Of a choice among several, Hydra does not say what there was to choose from.
        options = error.options or sorted(file.stem for file in (config_dir() / group).glob("*.yaml"))
        return str(unknown(GROUP_KINDS.get(group, group), choice, options))
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
        return f"{override} is several values: add --multirun to run each, or write {key}=[{values}] for a list"
    if isinstance(error, HydraException):
        return " ".join(str(error).split())
    return _first_line(error) or type(error).__name__


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def _unknown_key(key: str, settings: Any) -> str:
    if secret := refuse_secret(key):
        return str(secret)
    if key == "sweep":
        return (
            f"{GRID}... is for `llmrl train` alone; in Python it is llmrl.sweep(config, {{'ppo.entropy': [0, 0.01]}})"
        )
    if key.startswith(("aux.sources.", "aux.options.", "env.params.", "llm.extra.")):
        return f"unknown key {key!r}: a new entry is added with a plus, +{key}=..."
    keys = list(_dotted_keys(settings))
    parent, _, name = key.rpartition(".")
    siblings = [other for other in keys if other.rpartition(".")[0] == parent]
    namesakes = [other for other in keys if other.rpartition(".")[2] == name]
    return str(unknown("key", key, namesakes or siblings or get_close_matches(key, keys, n=5)))


def _dotted_keys(section: Any, prefix: str = "") -> Iterator[str]:
    for entry in fields(section):
        yield prefix + entry.name
        value = getattr(section, entry.name)
        if is_dataclass(value):
            yield from _dotted_keys(value, f"{prefix}{entry.name}.")
