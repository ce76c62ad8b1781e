"""Transfer: fresh agents under the reward that a finished run has learned, and that no longer changes. Host only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple, TypeVar

import jax
import numpy as np
from jaxtyping import PyTree

from llmrl.runs import directory as runs
from llmrl.settings.config import Config
from llmrl.settings.errors import BadValue, unknown
from llmrl.types import EnvSpec


class LearnedReward(NamedTuple):
    """The part of a training state that makes up its reward, under the same names.

    Attributes:
        phis: parameters of the streams' transforms.
        transform_states: what the transforms have noted.
    """

    phis: PyTree
    transform_states: PyTree


State = TypeVar("State")


def resolved(config: Config, spec_of: Callable[[Config], EnvSpec]) -> Config:
    """The config with the form of the reward that it trains under filled in: ``method.reward_of``, ``weight`` and
    ``trust`` are the other run's.

    From then on the config says all there is to know, so the other run is not needed to evaluate this one.

    Args:
        config: any config; without ``reward_from`` it is returned as it is.
        spec_of: a config's environment.

    Raises:
        ValueError: there is no such run, it is not finished, or its reward is one for another environment.
    """
    if config.reward_from is None:
        return config
    source = _source(config)
    if config.reward_seed is not None and config.reward_seed >= source.config.seeds:
        raise BadValue(
            f"reward_seed must be below {source.config.seeds}, the seeds of {source.path}, got {config.reward_seed}"
        )
    _check_spec(source, spec_of(source.config), spec_of(config))
    learned = source.config.method
    method = replace(
        config.method, reward_of=learned.reward_of or learned.name, weight=learned.weight, trust=learned.trust
    )
    return replace(config, method=method)


def with_reward(config: Config, states: State) -> State:
    """First states of a run, [seeds], with the reward that ``config.reward_from`` names, if it names any.

    Args:
        config: a resolved config.
        states: a named tuple with ``phis`` and ``transform_states``.

    Returns:
        The states; seed i has the reward of the other run's seed ``reward_seed``, or else of its seed i modulo their
        number.

    Raises:
        ValueError: the learned reward is of another shape; the first leaf that differs is named.
    """
    if config.reward_from is None:
        return states
    source = _source(config)
    mine = LearnedReward(states.phis, states.transform_states)  # pyright: ignore[reportAttributeAccessIssue]
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct((source.config.seeds, *x.shape[1:]), x.dtype), mine)
    theirs, _ = runs.load_state(source, like, part=True)
    seeds = np.arange(config.seeds) if config.reward_seed is None else np.full(config.seeds, config.reward_seed)
    chosen = seeds % source.config.seeds
    reward = jax.tree.map(lambda new, old: jax.device_put(np.asarray(old)[chosen], new.sharding), mine, theirs)
    return states._replace(**reward._asdict())  # pyright: ignore[reportAttributeAccessIssue]


def _source(config: Config) -> runs.Run:
    path = Path(str(config.reward_from))
    if not (path / "config.yaml").is_file():
        siblings = [str(entry.parent) for entry in path.parent.glob("*/config.yaml")]
        raise unknown("run in reward_from", str(path), get_close_matches(str(path), siblings, n=5, cutoff=0.0))
    source = runs.load_trained(path)
    if not source.finished:
        raise BadValue(f"reward_from={path} is not finished: let it end before its reward is used")
    return source


def _check_spec(source: runs.Run, theirs: EnvSpec, ours: EnvSpec) -> None:
    for what, learned, given in (
        ("observations of shape", theirs.obs_shape, ours.obs_shape),
        ("actions", theirs.action, ours.action),
        ("auxiliary sources", theirs.aux_names, ours.aux_names),
    ):
        if learned != given:
            raise BadValue(
                f"the reward of {source.path} was learned with {what} {learned}, but {ours.name} is to have {given}: "
                "choose an environment and sources that share them"
            )


FILLED_IN = ("reward_of", "weight", "trust")
"""Settings of ``method=frozen`` that ``llmrl.training.transfer.resolved`` takes from the other run."""
