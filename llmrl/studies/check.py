"""What is wrong with an environment, its sources and its captioner, before anything is compiled or trained."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from llmrl.assembly.parts import any_environment, environment_options, make_environment
from llmrl.assembly.sources import with_written
from llmrl.envs import (
    HOST_ENVIRONMENTS,
    LATE,
    checked_aux,
    dotted_name,
    made_at,
    make,
    sources_of,
    with_sources,
)
from llmrl.envs.caption_checks import caption_faults, caption_notes, captions
from llmrl.envs.captions import captioner_faults, made_captioner
from llmrl.envs.checking import environment_faults
from llmrl.envs.playing import REPEATED, Played, play, play_host
from llmrl.envs.playing_checks import notes, played_faults
from llmrl.settings.config import Config
from llmrl.settings.errors import UserError
from llmrl.settings.validation import from_dict
from llmrl.training import loop
from llmrl.training.cores import in_float32
from llmrl.training.progress import plural
from llmrl.types import Captioner, Environment, EnvSpec, HostEnvironment

OK, WRONG, NOTE, SKIPPED = "ok", "WRONG", "note", "-"
"""What is fine, what has to be mended, what may be meant, and what was not looked at."""


class Finding(NamedTuple):
    """One line of what ``llmrl check`` says.

    Attributes:
        part: what it is about, such as a source.
        mark: one of the four above.
        says: what was seen.
    """

    part: str
    mark: str
    says: str


@in_float32
def check(config: Config, show: Callable[[str], None], *, steps: int, seconds: float) -> bool:
    """Looks at everything that a config names, and tells of each part what is wrong and what is fine.

    Args:
        config: the run that is thought of; nothing is written into its directory.
        show: tells the user, one line at a time.
        steps: steps to play in each instance, at least; a whole ``spec.horizon`` is played in any case.
        seconds: to play for at most.

    Returns:
        Whether nothing is wrong.
    """
    wrong = 0
    for part, found in itertools.groupby(findings(config, steps, seconds), key=lambda finding: finding.part):
        show(part)
        for finding in found:
            show(f"  {finding.mark:<6}{finding.says}")
            wrong += finding.mark == WRONG
    show(f"{plural(wrong, 'thing')} to mend" if wrong else "nothing is wrong")
    return not wrong


def findings(config: Config, steps: int, seconds: float) -> Iterator[Finding]:
    """What ``check`` tells, as it is found; arguments as there. The dearer looks wait until nothing is wrong."""
    on_host = config.env.name in HOST_ENVIRONMENTS
    looks: list[Callable[[], Iterator[Finding]]] = [
        partial(_of_the_host, config, steps, seconds) if on_host else partial(_of_the_parts, config, steps, seconds),
        partial(_as_training_begins, config),
        *([] if on_host else [partial(_elsewhere, config)]),
    ]
    for look in looks:
        wrong = False
        for finding in look():
            wrong = wrong or finding.mark == WRONG
            yield finding
        if wrong:
            return


def _of_the_parts(config: Config, steps: int, seconds: float) -> Iterator[Finding]:
    options = environment_options(config)
    env, what, found = _environment(options)
    yield from found
    if env is None:
        return
    env, found = _with_sources(env, options)
    yield from found
    env, found = _with_written(config, env)
    yield from found
    words, found = _captioner(env, what, options)
    yield from found
    played, found = _played(env, what, config.seed, steps, seconds)
    yield from found
    if words is not None and played is not None:
        yield from _captions(env, words, played)


def _of_the_host(config: Config, steps: int, seconds: float) -> Iterator[Finding]:
    """Of an environment that Python steps: it is tried when it is made, so the first fault is all that is said."""
    what = f"env.id={config.env.id}" if config.env.id else f"env={config.env.name}"
    part = f"environment {what}"
    try:
        env = any_environment(config)
        assert isinstance(env, HostEnvironment)
    except UserError as fault:
        yield Finding(part, WRONG, str(fault))
        return
    yield Finding(part, OK, f"{_described(env.spec)}; sources: {', '.join(env.spec.aux_names) or 'none'}")
    yield from (Finding(part, NOTE, says) for says in env.notes)
    played, found = _played(env, what, config.seed, steps, seconds)
    yield from found
    if env.captioner is not None and played is not None:
        yield from _captions(env, Words("captioner", env.captioner), played)


# --- on shapes --------------------------------------------------------------------------------------------------------


def _environment(options: dict[str, Any]) -> tuple[Environment | None, str, list[Finding]]:
    """The bare environment, where it has no fault; what it is called; and what is said of it."""
    name, params = options["name"], options["params"]
    is_own = "." in name
    what = f"env.id {name!r}" if is_own else f"env={name}"
    part = f"environment {name}"
    try:
        env = made_at(name, params) if is_own else make(name, aux=(), params=params)
    except UserError as fault:
        return None, what, [Finding(part, WRONG, str(fault))]
    if faults := [*environment_faults(env, what)]:
        later = Finding(part, SKIPPED, "not looked at until then: sources, captioner, and how it plays")
        return None, what, [*(Finding(part, WRONG, str(fault)) for fault in faults), later]
    shapes = (
        "reset(key) and step(key, state, action): shapes and dtypes fit, both are pure jax, and jax.vmap takes them"
    )
    return env, what, [Finding(part, OK, _described(env.spec)), Finding(part, OK, shapes)]


def _described(spec: EnvSpec) -> str:
    return f"spec: observations {list(spec.obs_shape)}, {spec.action}, episodes of at most {spec.horizon:,} steps"


def _with_sources(env: Environment, options: dict[str, Any]) -> tuple[Environment, list[Finding]]:
    """The environment with the sources that have no fault."""
    factors, function = options["aux"], options["aux_function"]
    try:
        functions = sources_of(options["name"], tuple(factors), function, options["aux_options"], options["params"])
    except UserError as fault:
        return env, [Finding("sources", WRONG, str(fault))]
    good, found = [], []
    for name, function in functions:
        part = f"source {name}"
        if name in LATE:
            found.append(Finding(part, SKIPPED, "its values are filled in during training"))
            good.append((name, function))
            continue
        try:
            shape = checked_aux(env, function)
        except UserError as fault:
            found.append(Finding(part, WRONG, str(fault)))
            continue
        good.append((name, function))
        number = plural(shape[0], "value") if shape else "one value"
        found.append(
            Finding(part, OK, f"{dotted_name(function)} returns {number} a step, is pure jax, and jax.vmap takes it")
        )
    try:
        return with_sources(env, good, options["aux_scale"], factors), found
    except UserError as fault:
        return env, [*found, Finding("sources", WRONG, str(fault))]


def _with_written(config: Config, env: Environment) -> tuple[Environment, list[Finding]]:
    """The environment with the functions of ``aux=code`` too, if the config has them and they have no fault."""
    part, names = "source code", env.spec.aux_names
    try:
        env = with_written(config, env)
    except UserError as fault:
        return env, [Finding(part, WRONG, str(fault))]
    added = [name for name in env.spec.aux_names if name not in names]
    return env, [Finding(part, OK, f"{', '.join(added)}: of the subset, and they fit the environment")] if added else []


def _captioner(env: Environment, what: str, options: dict[str, Any]) -> tuple[Words | None, list[Finding]]:
    """The captioner, where there is one without a fault."""
    if options["captioner"] is None:
        captioner = env.captioner
        if captioner is None:
            return None, []
        words = Words(f"{what}: captioner", captioner)
        return words, [
            Finding("captioner", OK, f"the environment's own, with {plural(len(captioner.events), 'event')}")
        ]
    part = f"captioner {options['captioner']}"
    try:
        name, captioner = made_captioner(options["captioner"])
    except UserError as fault:
        return None, [Finding(part, WRONG, str(fault))]
    if faults := [*captioner_faults(name, env, captioner)]:
        return None, [Finding(part, WRONG, str(fault)) for fault in faults]
    says = (
        "state_key(obs) and event(obs, action, next_obs): shapes and dtypes fit, both are pure jax, jax.vmap takes them"
    )
    return Words(name, captioner), [Finding(part, OK, says)]


class Words(NamedTuple):
    """A captioner without a fault.

    Attributes:
        name: what it is called, as errors begin.
        captioner: the captioner.
    """

    name: str
    captioner: Captioner


# --- as it plays ------------------------------------------------------------------------------------------------------


def _played(
    env: Environment | HostEnvironment, what: str, seed: int, steps: int, seconds: float
) -> tuple[Played | None, list[Finding]]:
    part, wished = f"{what} as it plays", max(steps, env.spec.horizon + 1)
    if on_host := isinstance(env, HostEnvironment):
        played = play_host(env, what, seed=seed, num_steps=wished, seconds=seconds)
    else:
        played = play(env, what, seed=seed, num_steps=wished, seconds=seconds)
    if isinstance(played, UserError):
        return None, [Finding(part, WRONG, str(played))]
    taken, ended = len(played.ages), int(played.ends.sum())
    cut = f" of {wished:,}, until seconds={seconds:g} were over" if taken < wished else ""
    size = f"{played.ages.shape[1]} instances x {taken:,} steps{cut}"
    found = [Finding(part, OK, f"{size}, {plural(ended, 'episode')} ended, rewards {_span(played.results.reward)}")]
    faults = [*played_faults(what, env.spec, played)]
    found += [Finding(part, WRONG, str(fault)) for fault in faults]
    found += [Finding(part, NOTE, says) for says in notes(env.spec, played, LATE)]
    if not faults:
        says = "observations, rewards and sources were finite; no episode went beyond its time limit"
        if not on_host:
            says += f"; {min(taken, REPEATED)} steps were taken twice, to the same results"
        found.append(Finding(part, OK, says))
    return played, found


def _span(values: np.ndarray) -> str:
    low, high = float(values.min()), float(values.max())
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _captions(env: Environment | HostEnvironment, words: Words, played: Played) -> list[Finding]:
    part, captioner = f"{words.name} on what was played", words.captioner
    met = captions(words.name, env.spec, captioner, played)
    if isinstance(met, UserError):
        return [Finding(part, WRONG, str(met))]
    if faults := [*caption_faults(words.name, captioner, met)]:
        return [Finding(part, WRONG, str(fault)) for fault in faults]
    number = len(np.unique(met.keys))
    says = f"{plural(number, 'state')} met, each with words, and with the same words when asked again"
    return [Finding(part, OK, says), *(Finding(part, NOTE, note) for note in caption_notes(captioner, met))]


# --- as training begins, and elsewhere --------------------------------------------------------------------------------


def _as_training_begins(config: Config) -> Iterator[Finding]:
    part = f"method {config.method.name}"
    try:
        loop.check(config)
    except UserError as fault:
        yield Finding(part, WRONG, str(fault))
    else:
        yield Finding(part, OK, "llmrl train takes all of these settings")


def _elsewhere(config: Config) -> Iterator[Finding]:
    """Whether another process, in which Python's hashes are others, plays the same steps to the same numbers."""
    part = "in another process"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "PYTHONHASHSEED": "1" if os.environ.get("PYTHONHASHSEED") == "2" else "2",
    }
    process = subprocess.run(
        [sys.executable, "-c", "from llmrl.studies.check import print_digests; print_digests()"],
        env=environment,
        input=json.dumps(asdict(config)),
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        theirs = json.loads(process.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        reason = (process.stderr.strip().splitlines() or [f"it left with exit code {process.returncode}"])[-1]
        yield Finding(part, WRONG, f"what worked here failed there: {reason}")
        return
    ours = digests(config)
    if differing := [name for name in ours if ours[name] != theirs.get(name)]:
        says = (
            f"the same seed gave other {', '.join(differing)}; expected the same, or a run could not go on in a later "
            "process. Look for random numbers that are drawn while a module is imported, for hash(...), and for sets"
        )
        yield Finding(part, WRONG, says)
    else:
        yield Finding(part, OK, f"the same in {REPEATED} steps: {', '.join(ours)}")


def print_digests() -> None:
    """What another process has to say of the config on its standard input."""
    print(json.dumps(digests(from_dict(json.load(sys.stdin)))))


@in_float32
def digests(config: Config) -> dict[str, str]:
    """What a config's first steps show, each kind of number and word as one short text: equal where they are equal.

    Raises:
        ValueError: not one step could be taken.
    """
    env = make_environment(config)
    played = play(env, env.spec.name, seed=config.seed, num_steps=REPEATED, seconds=math.inf)
    if isinstance(played, UserError):
        raise played
    results = played.results
    seen: dict[str, Any] = {"observations": (played.obs, results.obs), "rewards": results.reward, "ends": played.ends}
    seen |= {f"values of {name}": results.aux[..., column] for column, name in enumerate(env.spec.aux_names)}
    if env.captioner is not None:
        met = captions(env.spec.name, env.spec, env.captioner, played)
        if isinstance(met, UserError):
            raise met
        texts = [env.captioner.describe(int(key)) for key in np.unique(met.keys)]
        seen |= {"keys of states": met.keys, "events": met.events, "words of states": np.array(texts)}
    return {name: _digest(arrays) for name, arrays in seen.items()}


def _digest(arrays: PyTree) -> str:
    return hashlib.sha256(b"".join(np.asarray(array).tobytes() for array in jax.tree.leaves(arrays))).hexdigest()
