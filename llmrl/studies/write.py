"""Reward functions from a language model: asked for, checked, tried on random episodes, and kept in a file; and asked
for again, with what a training has made of them."""

from __future__ import annotations

import datetime
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import jax
import numpy as np

from llmrl.analysis.statistics import known_mean
from llmrl.analysis.trust import TrustMap, source_index, telling_dims
from llmrl.assembly.parts import any_environment
from llmrl.assembly.sources import read_written
from llmrl.envs import CODE, ENVIRONMENTS
from llmrl.language.function_files import file_text, find, name_of, read_file
from llmrl.language.subset import Function, Refused
from llmrl.language.writing import PROMPT, Reasons, Task, Used, asking, render_task, write_functions
from llmrl.results.trust_map import trust_map
from llmrl.rewards import source_of
from llmrl.rewards.trial import Trial, random_steps, tried
from llmrl.rewards.written import fields_of
from llmrl.runs import directory as runs
from llmrl.runs import metrics
from llmrl.settings.config import AuxConfig, Config, LLMConfig
from llmrl.settings.errors import BadValue, CannotRun
from llmrl.settings.loading import load_object
from llmrl.training.cores import in_float32
from llmrl.training.progress import plural
from llmrl.types import Discrete, Environment, HostEnvironment

SAMPLES = 6
"""Steps of a random policy in the prompt."""
SHOWN = 8
"""Numbers of a field that a sample shows at most."""

Show = Callable[[str], None]
"""Tells the user, one line or paragraph at a time."""


@in_float32
def write(
    config: Config,
    show: Show,
    *,
    count: int = 4,
    attempts: int = 3,
    dry_run: bool = False,
    out: str | None = None,
    used: Used | None = None,
) -> tuple[Function, ...]:
    """Asks for reward functions, and again for those that are refused.

    Args:
        config: environment and language model; ``llm=recorded`` takes the functions that are shipped.
        show: tells the user.
        count: functions to ask for.
        attempts: times to ask at most.
        dry_run: show the prompt only.
        out: file for the functions, which ``aux=code aux.file=...`` reads.
        used: what a training has made of earlier functions.

    Returns:
        At most ``count`` functions, checked and tried.

    Raises:
        ValueError: the environment runs in Python or its state has no names, or a setting is wrong.
        RuntimeError: the endpoint cannot be asked, or has given no function that can be used.
    """
    env = any_environment(replace(config, aux=AuxConfig()))
    if isinstance(env, HostEnvironment):
        raise BadValue(f"{env.spec.name} runs in Python, where functions cannot be compiled")
    task = described(config, env)
    if not task.fields:
        raise BadValue(f"the state of {env.spec.name} has no named numbers that a function could look at")
    if dry_run:
        system, user = render_task(task, count, used=used)
        show(f"--- system\n{system}\n--- user\n{user}\n---")
        return ()
    trials: dict[str, Trial] = {}
    local = config.llm.provider == "local"
    provenance = {
        "environment": name_of(config.env),
        "source": Path(config.llm.model).stem if local else config.llm.model,  # not where it lies on this machine
        "date": datetime.date.today().isoformat(),
        "prompt": PROMPT.identity,
    }
    if config.llm.provider == "recorded":
        shipped, provenance = read_file(find(config.llm.answers, config.env))
        refused = refusals(env, shipped, trials)
        functions = tuple(function for function in shipped if function.name not in refused)[:count]
    else:
        functions = write_functions(
            asking(config.llm),
            task,
            count,
            lambda found: refusals(env, found, trials),
            attempts=attempts,
            used=used,
            show=show,
        )
    if not functions:
        raise CannotRun(
            f"none of the functions can be used; asked {plural(attempts, 'time')} (llm.model={config.llm.model})"
        )
    for function in functions:
        show(f"{function.name}: {function.sentence}\n  {trials[function.name]}")
    text = file_text(functions, provenance)
    if out is None:
        show(text)
    else:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        metrics.replace_file(Path(out), text)
        show(f"{plural(len(functions), 'function')} in {out}: read them, then llmrl train aux=code aux.file={out}")
    return functions


def refusals(env: Environment, functions: Sequence[Function], trials: dict[str, Trial]) -> Reasons:
    """Reasons of those functions that cannot be used, by name; what became of the others is noted in ``trials``."""
    refused: Reasons = {}
    sources = {}
    for function in functions:
        try:
            sources[function.name] = source_of(env, function)
        except Refused as reason:
            refused[function.name] = str(reason)
    trials |= tried(env, sources) if sources else {}
    return refused | {name: str(trials[name]) for name in sources if not trials[name].sound}


# --- the environment, in words ----------------------------------------------------------------------------------------


def described(config: Config, env: Environment) -> Task:
    """An environment as a model is told of it."""
    state = jax.eval_shape(env.reset, jax.random.key(0))[0]
    fields = fields_of(env)
    space = env.spec.action
    return Task(
        name=name_of(config.env),
        words=_words(config, env),
        horizon=env.spec.horizon,
        action=f"a whole number from 0 to {space.num - 1}"
        if isinstance(space, Discrete)
        else f"an array of {plural(space.dim, 'number')} from {space.low:g} to {space.high:g}, as in action[0]",
        fields={name: _field(state, name, leaf) for name, leaf in fields.items()},
        samples=_samples(env, fields, config.seed),
    )


def _words(config: Config, env: Environment) -> str:
    """What is written about the task: by its author, in its captions, and its numbers."""
    settings: Mapping[str, Any] = config.env.params
    name = name_of(config.env)
    captioner: Any = env.captioner
    context = [captioner.context] if captioner is not None else []
    if name in ENVIRONMENTS:
        own = {key: each.default for key, each in inspect.signature(ENVIRONMENTS[name]).parameters.items()}
        chosen = {key: value for key in own if (value := getattr(config.env, key, None)) is not None}
        maker, settings = ENVIRONMENTS[name], own | chosen | settings
    elif "." in name:
        maker = load_object(name, "env.id")
    else:
        import gymnax

        maker, defaults = gymnax.make(name)
        settings = vars(defaults) | settings
    numbers = ", ".join(f"{key}={value}" for key, value in settings.items())
    said = [(inspect.getdoc(maker) or "").partition("\n\nRaises:")[0], *context]
    said += [f"The agent sees: {', '.join(env.spec.obs_names)}."] if env.spec.obs_names else []
    return "\n\n".join(filter(None, [*said, f"Its numbers: {numbers}." if numbers else ""]))


def _field(state: Any, name: str, leaf: jax.ShapeDtypeStruct) -> str:
    *path, last = name.split(".")
    meaning = attributes(type(reduce(getattr, path, state))).get(last)
    kind = {"b": "truth value", "f": "real number"}.get(leaf.dtype.kind, "whole number")
    return (f"{kind}s, shape {list(leaf.shape)}" if leaf.shape else kind) + (f"; {meaning}" if meaning else "")


def attributes(kind: type) -> dict[str, str]:
    """Name of an attribute -> what the docstring of its class says of it."""
    found: dict[str, str] = {}
    name = ""
    for line in (inspect.getdoc(kind) or "").partition("Attributes:\n")[2].splitlines():
        if start := re.match(r"    (\w+): (.*)", line):
            name = start[1]
            found[name] = start[2]
        elif name and line.startswith("        "):
            found[name] += " " + line.strip()
    return found


def _samples(env: Environment, fields: Mapping[str, Any], seed: int) -> list[str]:
    """A few steps of an episode of a random policy, evenly spread over it."""
    steps = jax.jit(lambda key: random_steps(env, key, min(env.spec.horizon, 64)))(jax.random.key(seed))
    alive = int(np.sum(steps.alive))

    def shown(state: Any, index: int) -> str:
        values = {name: np.asarray(reduce(getattr, name.split("."), state))[index] for name in fields}
        return ", ".join(f"{name}={_number(x)}" for name, x in values.items() if x.size <= SHOWN)

    return [
        f"state: {shown(steps.state, i)}; action: {_number(np.asarray(steps.action)[i])}; "
        f"next_state: {shown(steps.next_state, i)}; reward of the task: {float(steps.step.reward[i]):.3g}"
        for i in np.unique(np.linspace(0, alive - 1, SAMPLES).astype(int))
    ]


def _number(value: np.ndarray) -> str:
    return np.array2string(value, precision=3, separator=", ")


# --- after a training -------------------------------------------------------------------------------------------------


def refine(
    run_dir: str,
    llm: LLMConfig,
    show: Show,
    *,
    count: int = 4,
    attempts: int = 3,
    dry_run: bool = False,
    out: str | None = None,
) -> tuple[Function, ...]:
    """Asks for the next functions, with what a run has made of its own: which were used, ignored and turned around, and
    where.

    Args:
        run_dir: a run with ``aux=code`` and a method that weighs its sources.
        llm: who is asked.
        show, count, attempts, dry_run, out: as for ``write``.

    Raises:
        ValueError: the run has no such sources, or as ``write``.
        RuntimeError: as ``write``.
    """
    if not dry_run:
        asking(llm)  # which says at once what is missing
    run = runs.load_trained(run_dir)
    config = run.config
    if CODE not in config.aux.sources:
        raise BadValue(f"{run_dir} has no functions to refine: it was not trained with aux=code")
    functions, found = read_written(config).functions, trust_map(run_dir)
    curves = metrics.read(run.metrics_path)
    report = [outcome(curves), *(what_was_made_of(found, curves, function.name) for function in functions)]
    for line in () if dry_run else report:  # the prompt has them too
        show(line)
    used = Used(functions, report)
    return write(replace(config, llm=llm), show, count=count, attempts=attempts, dry_run=dry_run, out=out, used=used)


def outcome(curves: Mapping[str, np.ndarray]) -> str:
    """One line: what the agent has earned, at the end and before."""
    returns = curves["episode_return"]
    last = returns[:, -max(1, returns.shape[1] // 10) :]
    mean, end = (known_mean(part.ravel()) for part in (returns, last))
    if np.isnan(mean):
        return "no episode of the agent has ended"
    return f"the agent's return of an episode was {mean:.3g}, and {end:.3g} at the end"


def what_was_made_of(found: TrustMap, curves: Mapping[str, np.ndarray], source: str) -> str:
    """One line: how often a source was used, ignored and turned around, and its last weight where that differs most.

    The shares are those of the whole training: a task that is solved needs no source any more.

    Args:
        found: the map of the trained run.
        curves: the run's metrics, name -> [seeds, iterations].
        source: the source's name.
    """
    made = np.array([curves[f"trust_{made}/{source}"].sum() for made in ("used", "ignored", "turned")])
    if made.sum() == 0.0:
        return f"{source}: it has never said anything in the states that the agent met"
    used, ignored, turned = made / made.sum()
    return (
        f"{source}: used on {used:.0%} of the steps on which it spoke, ignored on {ignored:.0%}, turned around on "
        f"{turned:.0%}; its last weight, as a share of full trust{_weight_by_place(found, source)}"
    )


def _weight_by_place(found: TrustMap, source: str) -> str:
    """Mean weight of a source in the thirds of the component of the observation that tells most; over all states where
    that component has no name that would mean anything."""
    i, dim = source_index(found, source), telling_dims(found, source)[0]
    weight = (found.settled[:, :, 0, i] / np.maximum(found.unit[:, None, i], 1e-12)).ravel()
    if found.obs_names[dim].startswith("observation "):
        return f": {weight.mean():+.2f}"
    places = found.obs[..., dim].ravel()
    edges = np.quantile(places, [0.0, 1 / 3, 2 / 3, 1.0])
    third = np.searchsorted(edges[1:3], places, side="right")
    means = [f"{weight[third == n].mean():+.2f} from {edges[n]:.3g} to {edges[n + 1]:.3g}" for n in np.unique(third)]
    return f", by {found.obs_names[dim]}: {', '.join(means)}"
