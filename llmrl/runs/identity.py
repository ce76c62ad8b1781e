"""What of a run's settings can matter to its numbers: runs that agree in that, and in the seed, are one run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from llmrl.settings.config import Config

IGNORING = ("ppo", "rnd", "icm", "apt")
"""Methods that hear no source."""

SECTIONS = {
    **dict.fromkeys(("ppo", "add"), ()),
    **dict.fromkeys(("pbrs", "dpba", "pies"), ("potential",)),
    **dict.fromkeys(("rnd", "icm", "apt"), ("novelty",)),
    **dict.fromkeys(("ellm", "ellm_pretrained"), ("goals",)),
}
"""Sections of ``method`` that a method looks at. The others learn a reward: any section may matter, and the solver."""

ASKING = {"language", "goals"}
"""Sources that a language model answers for."""


def ignores_sources(config: Config) -> bool:
    """Whether a run is the same whatever its auxiliary sources say."""
    name = config.method.name
    return name in IGNORING or (SECTIONS.get(name) == ("goals",) and config.method.goals.table is not None)


def identity(config: Config) -> dict[str, Any]:
    """The settings that can matter to a run's numbers, by dotted name; all but the seed.

    What is left out changes nothing: where results go, how they are computed, and what the method does not look at.
    """
    settings, method = asdict(config), config.method.name
    looks_at = SECTIONS.get(method)
    kept: dict[str, Any] = {key: settings[key] for key in ("env", "ppo")}
    kept["total_steps"] = config.num_iterations * config.ppo.batch_size
    if looks_at is None:
        kept |= {key: settings[key] for key in ("method", "solver", "reward_from", "reward_seed")}
    else:
        kept["method"] = {key: settings["method"][key] for key in ("name", *looks_at)}
    if not ignores_sources(config):
        kept |= {key: settings[key] for key in ("aux", "captioner")}
        if ASKING & set(config.aux.sources):
            kept |= {key: settings[key] for key in ("llm", "num_chunks")}  # answers come between two chunks
    return flat(kept)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def of_one_run(one: Config, other: Config) -> bool:
    """Whether seed i of one is seed i of the other, for as many seeds as both have."""
    return one.seed == other.seed and identity(one) == identity(other)
