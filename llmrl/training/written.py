"""Reward functions that a language model has written, before a run depends on them."""

from __future__ import annotations

from dataclasses import replace

from llmrl.assembly.parts import make_environment
from llmrl.assembly.sources import written_sources
from llmrl.envs import CODE
from llmrl.rewards.trial import tried
from llmrl.settings.config import AuxConfig, Config
from llmrl.settings.errors import BadValue
from llmrl.training.progress import note


def try_written(config: Config) -> None:
    """Plays random episodes and says in a line how far each function of ``aux=code`` ranks them as the task does.

    Raises:
        ValueError: a function gives something that is no number.
    """
    if CODE not in config.aux.sources:
        return
    env = make_environment(replace(config, aux=AuxConfig()))
    for name, trial in tried(env, written_sources(config, env), config.ppo.discount).items():
        if not trial.sound:
            raise BadValue(f"aux=code: {name} is refused: {trial}")
        if config.progress:
            note(f"{name} {trial}")
