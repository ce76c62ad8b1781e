"""The command line: every subcommand is a Hydra application, and an error for the user is one line.

What a command needs is imported when it runs, so that ``--help`` and ``--cfg job`` wait neither for jax nor for gymnax.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import re
import shlex
import shutil
import sys
import traceback
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from llmrl.settings.errors import UserError, debugging, of_a_callback, unknown
from llmrl.training.stopping import Stopped, Unheard, closed_pipes_end_quietly, end_interrupted, second_interrupt_kills

if TYPE_CHECKING:
    from llmrl.settings.config import Config

USAGE = """\
usage: llmrl <command> [--help] [--multirun] [--cfg job] [group=choice ...] [key=value ...]

  train      train agents that learn how far to trust their auxiliary reward
  compare    train a method beside ignoring and trusting that reward; one table, one picture
  check      say what is wrong with an environment, a source or a captioner, before anything is compiled
  evaluate   evaluate the agents of a finished run
  label      ask a language model about an environment's states ahead of training
  write      ask a language model for reward functions, for aux=code
  refine     ask it for better ones, with what a run has made of them
  report     statistics, curves and trust of finished runs, on one page
  status     which runs are finished, at work, failed or stopped
  figure     regenerate a figure of the paper
  suite      every method on many tasks with good and bad sources: where is there regret?
  bench      measure throughput, and what a hypergradient costs
  completion bash, zsh or fish: print a script for the shell, as in eval "$(llmrl completion bash)"

`llmrl <command> --help` lists a command's groups and keys. For a start:

  llmrl train env=cartpole aux=harmful method=implicit
"""

POSITIONAL = {"report": "runs", "status": "runs", "figure": "number", "evaluate": "run_dir", "refine": "run_dir"}
"""Commands with words that need no key, and the key that they stand for."""

_FLAGS_WITH_VALUES = {"--cfg", "-c", "--package", "-p", "--info", "-i", "--config-path", "-cp", "--config-name", "-cn"}
_FLAGS_WITH_VALUES |= {"--config-dir", "-cd", "--experimental-rerun"}

_NOT_IN_A_NAME = {"env", "aux", "method", "seed", "run_dir", "resume", "progress", "devices", "launcher", "beside"}
_NOT_IN_A_NAME |= {"track", "track.mode", "track.project", "track.entity"}
_NOT_IN_A_NAME |= {"distributed", "coordinator", "num_processes", "process_id"}
"""Overrides that a run's name already has, or that change nothing about its result."""


class Refused(UserError):
    """A message for the user about the words that she has typed."""


def main(arguments: list[str] | None = None) -> None:
    """The console script ``llmrl``; exits with 0, with 2 for an error of the user, with 130 when interrupted,
    with 143 or 138 when stopped by SIGTERM or SIGUSR1, with 141 when the pipe that it writes to is closed."""
    with closed_pipes_end_quietly(), second_interrupt_kills():
        _main(sys.argv[1:] if arguments is None else arguments)


def _main(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        sys.exit(0 if arguments else 2)
    if arguments[0] == "--version":
        from llmrl import __version__

        print(f"llmrl {__version__}")
        sys.exit(0)
    command, *rest = arguments
    if command == "completion":
        _print_completion(rest)
    if command not in COMMANDS:
        _fail(str(unknown("command", command, [*COMMANDS, "completion"])))
    try:
        _run_application(command, rest)
    except KeyboardInterrupt:
        print("llmrl: interrupted; the same command goes on where this one stopped", file=sys.stderr)
        end_interrupted()
    except Stopped as stopped:
        print(f"llmrl: {stopped}", file=sys.stderr)
        raise
    except BrokenPipeError:
        raise
    except Exception as error:
        if debugging() or not _is_for_user(error):
            raise
        _fail(_message(error))


def _print_completion(words: list[str]) -> NoReturn:
    from llmrl.cli.completion import SHELLS, completion

    if len(words) != 1:
        _fail(f"completion takes the name of a shell, one of {', '.join(SHELLS)}")
    try:
        print(completion(words[0], (*COMMANDS, "completion")), end="")
    except ValueError as error:
        _fail(str(error))
    sys.exit(0)


def _run_application(command: str, arguments: list[str]) -> None:
    import hydra

    from llmrl.settings.overrides import config_dir, register_schemas, without_grid
    from llmrl.settings.words import as_hydra_reads

    if not debugging():  # jax prints the traceback of a user's function that it calls back, and then raises
        logging.getLogger("jax._src.callback").setLevel(logging.CRITICAL)
    # Hydra would print its own errors, over several lines and with exit code 1; this makes it raise them.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    task = COMMANDS[command]
    if command == "train":
        arguments, grid = without_grid(arguments)
        # A grid is no setting of a run, so Hydra has no place for it; and it takes nothing but a function.
        task = _with(task, grid=grid) if grid else task
    _refuse_strange_options(arguments)
    _refuse_two_modes(arguments)
    multirun = bool({"-m", "--multirun"} & set(arguments))
    sys.argv = [f"llmrl {command}", *as_hydra_reads(keyed(command, arguments), command, multirun)]
    register_schemas()
    failures = None
    if multirun:
        if {"launcher=submitit", "launcher=slurm"} & set(arguments):
            _tell_of_jobs()
        # On the disk, since points may run in other processes, on other machines.
        failures = Path("runs", ".sweeps", f"failed-{uuid.uuid4().hex}").absolute()
        task = _with(task, failures=failures)
    hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=command)(task)()
    if failures is not None:
        _fail_for_points(failures, sys.argv[1:])


def _tell_of_jobs() -> None:
    from llmrl.training.progress import note

    note("every run is a job of its own, with its log below runs/.sweeps; `llmrl status runs` says how they stand")


_OPTIONS = _FLAGS_WITH_VALUES | {"--help", "-h", "--hydra-help", "--version", "--run", "-r", "--multirun", "-m"}
_OPTIONS |= {"--shell-completion", "-sc", "--resolve"}


def _refuse_strange_options(arguments: Sequence[str]) -> None:
    """Hydra would print all of its usage."""
    for argument in arguments:
        name, _, value = argument.partition("=")
        if argument.startswith("-") and name not in _OPTIONS:
            key = name.lstrip("-").replace("-", "_")
            raise Refused(f"unknown option {name}; settings are written key=value, as in {key}={value or '...'}")


_MODES = {"-r": "--run", "-m": "--multirun", "-c": "--cfg", "-i": "--info"}


def _refuse_two_modes(arguments: Sequence[str]) -> None:
    """Hydra does one thing at a time, and says so with a traceback."""
    modes = {"--run", "--multirun", "--cfg", "--info"}
    words = [_MODES.get(word, word.partition("=")[0]) for word in arguments]
    given = list(dict.fromkeys(word for word in words if word in modes))
    if len(given) > 1:
        raise Refused(f"{' and '.join(given)} exclude each other; for the settings of one run leave {given[0]} out")


def _with(task: Callable[..., None], **options: Any) -> Callable[[Any], None]:
    """``functools.partial``, as a function of its own name."""

    @functools.wraps(task)
    def told(node: Any, **more: Any) -> None:
        task(node, **options, **more)

    return told


def keyed(command: str, arguments: list[str]) -> list[str]:
    """Arguments as Hydra knows them: of a command with positional words, these as one override of their key."""
    from llmrl.settings.words import is_word, quoted

    if command not in POSITIONAL:
        return arguments
    words, others = [], []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        (words if before not in _FLAGS_WITH_VALUES and is_word(argument, command) else others).append(argument)
    if not words:
        return others
    key = POSITIONAL[command]
    if key == "runs":
        return [f"{key}=[{','.join(quoted(os.path.expanduser(word)) for word in words)}]", *others]
    if len(words) > 1:
        raise Refused(f"{command} takes one {key}, got {' '.join(words)}")
    return [f"{key}={words[0]}", *others]


# --- commands ---------------------------------------------------------------------------------------------------------


def _job(task: Callable[..., None]) -> Callable[..., None]:
    """Words errors where they happen, and not Hydra, which would print a second line of its own.

    The point of a sweep that fails lets the others go on, see ``_keep_failure``.
    """

    @functools.wraps(task)
    def job(node: Any, failures: Path | None = None, **options: Any) -> None:
        try:
            task(node, **options)
        except Exception as error:
            if failures is not None:
                _keep_failure(error, failures)
            elif debugging() or not _is_for_user(error):
                raise
            else:
                _fail(_message(error))

    return job


def _keep_failure(error: Exception, failures: Path) -> None:
    """Says why a point of a sweep failed, and keeps that for the process that has started the sweep."""
    from hydra.core.hydra_config import HydraConfig

    reason = _message(error)
    if debugging() or not _is_for_user(error):
        traceback.print_exc()
        reason = f"{type(error).__name__}: {reason}"
    print(f"llmrl: {reason}", file=sys.stderr)
    job = HydraConfig.get()
    failures.mkdir(parents=True, exist_ok=True)
    (failures / f"{job.job.num}.json").write_text(json.dumps({"point": [*job.overrides.task], "reason": reason}))


def _fail_for_points(failures: Path, typed: Sequence[str]) -> None:
    """Lists the points of a finished sweep that failed, each with its reason, and leaves with 2 where there are any."""
    from llmrl.settings.overrides import fixed_keys

    found = [json.loads(file.read_text()) for file in sorted(failures.glob("*.json"))]
    if not found:
        return
    shutil.rmtree(failures)
    same = fixed_keys(typed)
    print(f"llmrl: {len(found)} of the sweep's points failed; the same command tries them again", file=sys.stderr)
    for failure in found:
        words = [word for word in failure["point"] if word.lstrip("+~").partition("=")[0] not in same]
        print(f"  {shlex.join(words)}: {failure['reason']}", file=sys.stderr)
    sys.exit(2)


@_job
def train(node: Any, grid: Mapping[str, Sequence[Any]] | None = None) -> None:
    """Trains, shows a table, and says where everything is; of a grid inside one program, one table of all points."""
    from llmrl.settings.overrides import grid_words, to_config

    config = to_config(node)
    words = grid_words(grid or {})
    config = replace(config, run_dir=config.run_dir or _default_run_dir(config, more=words))
    if grid:
        from hydra.core.hydra_config import HydraConfig

        from llmrl.studies.sweeps import tabulate

        typed = [*HydraConfig.get().overrides.task, *words]
        _say(tabulate(config, grid, command=shlex.join(["llmrl", "train", *typed])))
        return

    from llmrl.training.progress import show_summary

    if _stands_in(config):
        from llmrl.runs.directory import load_run, read_summary

        show_summary(read_summary(load_run(str(config.run_dir))), title=str(config.run_dir))
        return

    from llmrl.training.loop import train as run

    result = run(config)
    if result.summary:  # which only the first of several processes has
        show_summary(result.summary, title=str(config.run_dir))


def _stands_in(config: Config) -> bool:
    """Whether a finished run stands in for one of a sweep, since both are one run."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    if HydraConfig.get().mode != RunMode.MULTIRUN and not os.path.islink(str(config.run_dir)):
        return False

    from llmrl.studies.reuse import link_to_equal

    return link_to_equal(config, os.path.dirname(str(config.run_dir)))


@_job
def compare(node: Any) -> None:
    """Trains several methods, shows a table, and says where the picture is."""
    from hydra.core.hydra_config import HydraConfig

    from llmrl.settings.overrides import to_comparison

    config, beside = to_comparison(node)
    typed = list(HydraConfig.get().overrides.task)
    overrides = [override for override in typed if override.partition("=")[0] not in ("beside", "run_dir")]

    from llmrl.studies.compare import compare as run

    out = config.run_dir or _default_run_dir(config, "compare")
    _say(run(overrides, beside, out, command=shlex.join(["llmrl", "compare", *typed])))


@_job
def check(node: Any) -> None:
    """Tells what is wrong and what is fine, one line each, and leaves with 1 where something is wrong."""
    from llmrl.settings.overrides import to_check

    config, settings = to_check(node)
    # Operation by operation an accelerator is slow, and other processes may be at work on it.
    os.environ["JAX_PLATFORMS"] = "cpu"

    from llmrl.studies.check import check as run

    if not run(config, _say, **settings):
        sys.exit(1)


@_job
def evaluate(node: Any) -> None:
    """Evaluates the agents of a run and shows a table."""
    from llmrl.settings.overrides import to_evaluation

    request = to_evaluation(node)

    from llmrl.results.evaluate import evaluate as run
    from llmrl.training.progress import show_summary

    env = request.env if request.env.name else None
    found = run(request.run_dir, env, request.episodes, request.seed, request.progress)
    show_summary(found, title=request.run_dir)
    if request.video:
        from llmrl.results.video import film

        _say(film(request.run_dir, env, request.seed))


@_job
def bench(node: Any) -> None:
    """Measures, shows a table for each suite, and keeps every measurement in a file."""
    from llmrl.settings.overrides import to_bench

    request = to_bench(node)

    from llmrl.bench.suites import bench as run

    run(request, command=" ".join(sys.argv))


@_job
def label(node: Any) -> None:
    """Shows the first prompt and its answer, then asks about the other states."""
    from llmrl.settings.overrides import to_label

    config, settings = to_label(node)

    from llmrl.studies.label import label as run

    run(config, _say, **settings)


@_job
def write(node: Any) -> None:
    """Asks for reward functions, checks them, and says how each ranks random episodes."""
    from llmrl.settings.overrides import to_writing

    config, settings = to_writing(node)

    from llmrl.studies.write import write as run

    run(config, _say, **settings)


@_job
def refine(node: Any) -> None:
    """Asks for the next reward functions, with what a run has made of its own."""
    from llmrl.settings.overrides import to_refinement

    request = to_refinement(node)

    from llmrl.studies.write import refine as run

    run(**vars(request), show=_say)


@_job
def report(node: Any) -> None:
    """Writes the page, and says where it is."""
    from llmrl.settings.overrides import to_report

    request = to_report(node)

    from llmrl.results.report.page import report as run

    options = {name: value for name, value in vars(request).items() if name not in ("runs", "out")}
    _say(run(request.runs, request.out, **options, command=_typed("report", request.runs)))


@_job
def status(node: Any) -> None:
    """Shows how runs stand."""
    from llmrl.settings.overrides import to_status

    request = to_status(node)

    from llmrl.results.report.status import show
    from llmrl.results.report.status import status as run

    show(run(request.runs))


@_job
def figure(node: Any) -> None:
    """Trains what a figure of the paper needs and is not there yet, and draws it."""
    from llmrl.settings.overrides import to_reproduction

    request = to_reproduction(node)

    from llmrl.studies.figures import figure as run

    options = {name: value for name, value in vars(request).items() if name != "number"}
    _say(run(request.number, **options, command=_typed("figure", [str(request.number)])))


@_job
def suite(node: Any) -> None:
    """Trains what the no-regret suite needs and is not there yet, and writes its page."""
    from hydra.core.hydra_config import HydraConfig

    from llmrl.settings.overrides import to_suite

    request = to_suite(node)

    from llmrl.studies.suite import suite as run

    _say(run(**vars(request), command=shlex.join(["llmrl", "suite", *HydraConfig.get().overrides.task])))


COMMANDS: dict[str, Callable[[Any], None]] = {
    "train": train,
    "compare": compare,
    "check": check,
    "evaluate": evaluate,
    "label": label,
    "write": write,
    "refine": refine,
    "bench": bench,
    "report": report,
    "status": status,
    "figure": figure,
    "suite": suite,
}
"""Subcommands by name; each has a config file and a schema of the same name."""


def _typed(command: str, words: Sequence[str]) -> str:
    """A command with positional words as it may be typed again."""
    from hydra.core.hydra_config import HydraConfig

    overrides = HydraConfig.get().overrides.task
    others = [override for override in overrides if not override.startswith(f"{POSITIONAL[command]}=")]
    return shlex.join(["llmrl", command, *words, *others])


def _default_run_dir(config: Config, what: str = "", more: Sequence[str] = ()) -> str:
    """``runs/<env>-<aux>-<method>-s<seed>``, and every other override after it: two different runs never share one.

    ``what`` stands in the method's place where several methods share a directory; ``more`` are words beside Hydra's.
    """
    from hydra.core.hydra_config import HydraConfig

    overrides = HydraConfig.get().overrides.task
    others = [word for word in (*overrides, *more) if word.lstrip("+~").partition("=")[0] not in _NOT_IN_A_NAME]
    aux = [*config.aux.sources, *(["function"] if config.aux.function else [])] or ["none"]
    parts = [config.env.name, *aux, what or config.method.name, f"s{config.seed}", *sorted(others)]
    name = "-".join(re.sub(r"[^\w.+-]+", "-", part).strip("-+") for part in parts)
    if len(name) > 150:
        name = f"{name[:140]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return os.path.join("runs", name)


# --- errors -----------------------------------------------------------------------------------------------------------


def _is_for_user(error: BaseException) -> bool:
    """Whether one line says enough: errors of configs and of the disk, and those that llmrl raises on purpose.

    Anything else is a bug, ours or a user function's, and keeps its traceback.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    return isinstance(error, UserError | OSError | HydraException | OmegaConfBaseException) or of_a_callback(error)


def _message(error: BaseException) -> str:
    from llmrl.settings.overrides import explain

    return explain(error)


def _say(text: object) -> None:
    """Prints a line now, so that a closed pipe shows here and not while Python exits."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise Unheard from None


def _fail(message: str) -> NoReturn:
    print(f"llmrl: {message}", file=sys.stderr)
    sys.exit(2)
