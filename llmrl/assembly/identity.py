"""What of a run's settings can matter to its numbers: runs that agree in that, and in the seed, are one run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from llmrl.assembly.methods import METHODS, Recipe
from llmrl.envs import CODE, GOALS, LANGUAGE, NOVELTY, defaults_of
from llmrl.settings.config import Config

SOURCE_SECTIONS = {GOALS: "goals", NOVELTY: "novelty"}
"""Sections of ``method`` that a source looks at, whatever the method."""

TRANSFORM_SETTINGS = {"ranked_potential": ("ranking",), "thresholded": ("error_rate",)}
"""Settings of ``aux`` that a transform of the sources looks at, and nothing else does."""

ASKING = {LANGUAGE, GOALS}
"""Sources that a language model answers for."""

UNHEARD = ("cache", "concurrency", "deadline", "retries", "requests_per_minute", "key_variable", "threads")
"""Settings of ``llm`` that change how answers are fetched and not what they say."""


def ignores_sources(config: Config) -> bool:
    """Whether a run is the same whatever its auxiliary sources say."""
    recipe = _recipe(config)
    from_table = recipe.reads == ("goals",) and config.method.goals.table is not None
    return from_table or not recipe.hears


def _recipe(config: Config) -> Recipe:
    """The config's recipe; of a method that another version has, one that may look at everything."""
    return METHODS.get(config.method.name, METHODS["implicit"])


def identity(config: Config) -> dict[str, Any]:
    """The settings that can matter to a run's numbers, by dotted name; all but the seed.

    What is left out changes nothing: where results go, how they are computed, and what the method does not look at.
    """
    settings, reads = asdict(config), _recipe(config).reads
    sources = () if ignores_sources(config) else tuple(config.aux.sources)
    kept: dict[str, Any] = {"env": _environment(config), "ppo": settings["ppo"]}
    kept["total_steps"] = config.num_iterations * config.ppo.batch_size
    if reads is not None:
        sections = {*reads, *(SOURCE_SECTIONS[name] for name in sources if name in SOURCE_SECTIONS)}
        kept["method"] = {key: settings["method"][key] for key in ("name", *sorted(sections))}
    else:
        kept |= {key: settings[key] for key in ("method", "solver", "reward_from", "reward_seed")}
    if not ignores_sources(config):
        kept["aux"] = _without(settings["aux"], _unread(config))
    if ASKING.intersection(sources):
        kept |= {key: settings[key] for key in ("captioner", "num_chunks")}  # answers come between two chunks
        kept["llm"] = _without(settings["llm"], _unheard(config))
    return flat(kept)


def _unread(config: Config) -> tuple[str, ...]:
    """Settings of ``aux`` that none of this config's sources looks at."""
    read = TRANSFORM_SETTINGS.get(config.transform, ())
    unread = (name for names in TRANSFORM_SETTINGS.values() for name in names if name not in read)
    of_sources = {LANGUAGE: "center", CODE: "file"}
    return (*unread, *(key for source, key in of_sources.items() if source not in config.aux.sources))


def _environment(config: Config) -> dict[str, Any]:
    """The environment's settings, its own defaults filled in where they are known."""
    given = {key: value for key, value in asdict(config.env).items() if value is not None}
    defaults = defaults_of(config.env.name)
    if not defaults:
        return given
    params = given.pop("params")
    return {**defaults, **given, **params}


def _unheard(config: Config) -> tuple[str, ...]:
    """Settings of ``llm`` that change no answer of this config's provider."""
    llm = config.llm
    wrong = llm.noise > 0.0 or llm.adversarial
    recorded = llm.provider == "recorded"
    return (*UNHEARD, *(() if wrong else ("noise_seed", "noise_unit")), *(() if recorded else ("answers",)))


def _without(settings: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in keys}


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def of_one_run(one: Config, other: Config) -> bool:
    """Whether seed i of one is seed i of the other, for as many seeds as both have."""
    return one.seed == other.seed and identity(one) == identity(other)
