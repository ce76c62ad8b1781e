"""Auxiliary sources that are filled in once a rollout is complete: what a language model says, what is new, what turns
wrong in the middle of a training, and what is made of other sources."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from llmrl.assembly.methods import novelty_of
from llmrl.envs import CODE, GOALS, LANGUAGE, LATE, LATE_WRONG, NOVELTY, with_aux
from llmrl.envs.base import AuxFunction
from llmrl.language.function_files import FunctionFile, find, read_file
from llmrl.language.subset import Refused
from llmrl.ops.rules import rule_scores
from llmrl.rewards import (
    Language,
    Late,
    LateSource,
    Sources,
    Suggested,
    bonus_source,
    goal_source,
    language,
    ranked_potential,
    silenced,
    source_of,
    thresholded,
    turning_source,
)
from llmrl.settings.config import Config
from llmrl.settings.errors import BadValue
from llmrl.types import Captioner, Environment, EnvSpec, Rules, Scalar


def make_sources(config: Config, spec: EnvSpec, captioner: Captioner | None) -> Sources:
    """The sources that a config names, of those that are filled in once a rollout is complete."""
    num_events = 0 if captioner is None else len(captioner.events)
    suggested = _suggested_by_rule(config, captioner)
    late = late_sources(config, spec, num_events)
    return Sources(_language_source(config, spec, suggested), late, num_events, suggested)


# --- functions that a language model has written ----------------------------------------------------------------------


def with_written(config: Config, env: Environment) -> Environment:
    """The environment with the functions of ``aux=code`` as its last sources, if the config has them."""
    if CODE not in config.aux.sources:
        return env
    functions = {name: silenced(source) for name, source in written_sources(config, env).items()}
    return with_aux(env, functions, _factor(config, CODE))


def written_sources(config: Config, env: Environment) -> dict[str, AuxFunction]:
    """The functions of ``aux=code`` by name, checked and tried on the environment's shapes.

    Raises:
        ValueError: the file cannot be used; or a function is not of the subset, fails, or has a name that is taken.
    """
    written, where = read_written(config), f"aux.file={config.aux.file}"
    sources: dict[str, AuxFunction] = {}
    for function in written.functions:
        if function.name in (CODE, *LATE, LATE_WRONG):
            raise BadValue(f"aux=code: a function of {where} has the name of another source: {function.name}")
        try:
            sources[function.name] = source_of(env, function)
        except Refused as reason:
            raise BadValue(f"aux=code: {function.name} of {where} is refused: {reason}") from None
    return sources


def read_written(config: Config) -> FunctionFile:
    """The file of ``aux=code``."""
    return read_file(find(config.aux.file, config.env))


# --- sources that are filled in later ---------------------------------------------------------------------------------


def _factor(config: Config, source: str) -> float | Scalar:
    return config.aux.scale * config.aux.sources[source]


def _language_source(config: Config, spec: EnvSpec, suggested: Suggested | None) -> Language | None:
    """A language model's scores as a source. Where only goals are made of its answers, a part that pays nothing and
    counts the states without an answer. None where no model is asked."""
    if LANGUAGE in config.aux.sources:
        return language(spec.aux_names.index(LANGUAGE), _factor(config, LANGUAGE), config.aux.center)
    return language(None) if GOALS in config.aux.sources and suggested is None else None


def _suggested_by_rule(config: Config, captioner: Captioner | None) -> Suggested | None:
    """Who suggests goals by rule, as wrong as the config wants it; None where a table of answers is needed."""
    llm, rules = config.llm, rules_of(config, captioner)
    if rules is None:
        return None
    noise = 1.0 if llm.adversarial else llm.noise
    return partial(rule_scores, rules, noise=noise, seed=llm.noise_seed, each=llm.noise_unit == "answer")


def rules_of(config: Config, captioner: Captioner | None) -> Rules | None:
    """The rules that suggest goals in place of a table of answers, if the config's provider has some."""
    if captioner is None or config.llm.function is not None:
        return None
    return captioner.rules.get(config.llm.provider)


def late_sources(config: Config, spec: EnvSpec, num_events: int) -> tuple[LateSource, ...]:
    """Goals, novelty, and help that is harmful in the second half of the training, where they are sources; then what
    the config's transform makes of each source."""
    settings, num_envs = config.method.goals, config.ppo.num_envs
    makers: dict[str, Callable[[], Late]] = {
        GOALS: lambda: goal_source(
            num_envs, num_events, threshold=settings.threshold, ineffective=settings.ineffective
        ),
        NOVELTY: lambda: bonus_source(novelty_of(config, spec), NOVELTY, num_envs),
    }
    late = [
        LateSource(name, spec.aux_names.index(name), _factor(config, name), make())
        for name, make in makers.items()
        if name in config.aux.sources
    ]
    if LATE_WRONG in config.aux.sources:
        column, half = spec.aux_names.index(LATE_WRONG), (config.num_iterations + 1) // 2
        late.append(LateSource(LATE_WRONG, column, 1.0, turning_source(column, half)))  # the steps have its factor
    return (*late, *transformed(config, spec))


def transformed(config: Config, spec: EnvSpec) -> tuple[LateSource, ...]:
    """What a config's transform makes of every source, in the source's place."""
    aux = config.aux
    makers: dict[str, Callable[[int, str], Late]] = {
        "ranked_potential": lambda column, name: ranked_potential(
            spec, column, name, discount=config.ppo.discount, **vars(aux.ranking)
        ),
        "thresholded": lambda column, name: thresholded(column, name, aux.error_rate),
    }
    if config.transform not in makers:
        return ()
    make = makers[config.transform]
    return tuple(LateSource(name, i, 1.0, make(i, name)) for i, name in enumerate(spec.aux_names))
