"""Who answers; a new provider is a file here and an entry in ``make_provider``."""

from __future__ import annotations

from collections.abc import Callable

from llmrl.language.providers.noisy import noisy
from llmrl.language.providers.oracle import oracle
from llmrl.language.providers.recorded import recorded
from llmrl.language.question import Captioner, Provider
from llmrl.settings.config import PROVIDERS, LLMConfig
from llmrl.settings.errors import BadValue, unknown
from llmrl.settings.loading import load_function
from llmrl.settings.validation import validate_llm

__all__ = ["make_provider", "noisy", "oracle", "recorded"]


def make_provider(config: LLMConfig, captioner: Captioner, environment: str | None = None) -> Provider:
    """The provider that a config names, with the noise it asks for.

    Args:
        config: the settings.
        captioner: the environment's words; its ``oracle`` is used where no function is configured.
        environment: the environment's name, for ``recorded`` without a file.

    Raises:
        ValueError: a setting is wrong, or an API key is missing.
        ImportError: the module of ``llm.function`` cannot be imported.
        TypeError: ``llm.function`` is no function.
    """
    validate_llm(config)
    factories: dict[str, Callable[[], Provider]] = {
        "recorded": lambda: recorded(config.answers, environment or ""),
        "oracle": lambda: _oracle(config, captioner),
        "plausible": lambda: _by_rule(captioner, "plausible"),
        "openai": lambda: _openai(config),
        "local": lambda: _local(config),
    }
    if config.provider not in factories:
        raise unknown("llm.provider", config.provider, PROVIDERS)
    provider = factories[config.provider]()
    if config.noise or config.adversarial:
        return noisy(provider, config.noise, config.noise_seed, unit=config.noise_unit, adversarial=config.adversarial)
    return provider


def _oracle(config: LLMConfig, captioner: Captioner) -> Provider:
    if config.function is not None:
        expected = "a function (state key, event) that returns a score in [0, 1]"
        return oracle(load_function(config.function, "llm.function", expected), config.function)
    if captioner.oracle is not None:
        return oracle(captioner.oracle)
    if "oracle" not in captioner.rules:
        raise BadValue(
            "llm=oracle needs an oracle, and the captioner has none: give it one (captioner._replace(oracle=is_good)), "
            "or name a function with llm.function=my_package.hints.is_good"
        )
    return _by_rule(captioner, "oracle")


def _by_rule(captioner: Captioner, name: str) -> Provider:
    if name not in captioner.rules:
        raise BadValue(f"llm.provider={name} is a table written by hand for both Crafters; there is none for others")
    rules = captioner.rules[name]

    def score(key: int, event: int) -> float:
        said = [worth for mask, value, of, worth in zip(*rules, strict=True) if of == event and key & mask == value]
        return max(map(float, said), default=0.0)

    return oracle(score, name)


def _openai(config: LLMConfig) -> Provider:
    from llmrl.language.providers.openai import openai

    return openai(config)


def _local(config: LLMConfig) -> Provider:
    from llmrl.language.providers.local import local

    return local(config)
