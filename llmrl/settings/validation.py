"""What several settings must be together: every check names the first bad value, and what would do instead.

Plain values are checked once, at the door. What a single setting may be stands beside it, in ``llmrl.settings.config``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

from llmrl.settings.config import (
    FOLLOWED,
    FOLLOWING,
    PROMPTS,
    AuxConfig,
    Config,
    LLMConfig,
    MethodConfig,
    PPOConfig,
    SolverConfig,
)
from llmrl.settings.errors import BadValue, unknown
from llmrl.settings.fields import check, hints

Settings = TypeVar("Settings")

RENAMED = {
    "method.trust.prior": "method.trust.advice",
    "method.trust.patience": "method.trust.advice_patience",
    "method.trust.prior_decay": "method.trust.advice_decay",
    "method.trust.prior_rarity": "method.trust.advice_rarity",
    "method.trust.prior_words": "method.trust.advice_events",
    "method.trust.prior_fade": "method.trust.advice_fade",
}
"""Keys of earlier versions, and what they are called now."""


def _validate_ppo(ppo: PPOConfig) -> None:
    if ppo.batch_size % ppo.num_minibatches:
        raise BadValue(
            f"ppo.num_minibatches must divide num_envs * num_steps = {ppo.batch_size}, got {ppo.num_minibatches}"
        )
    if ppo.num_minibatches == ppo.batch_size:
        raise BadValue(
            f"ppo.num_minibatches={ppo.num_minibatches} leaves 1 of num_envs * num_steps = {ppo.batch_size} steps to "
            f"each, whose normalised advantage is 0; expected at most {ppo.batch_size // 2}"
        )


def _validate_solver(solver: SolverConfig) -> None:
    if solver.name == "neumann_finite_difference" and solver.curvature != "hessian":
        raise BadValue(
            "solver=neumann_finite_difference differences gradients of L_aux: it needs solver.curvature=hessian, "
            f"got {solver.curvature!r}"
        )
    if solver.name == "conjugate_gradient" and solver.num_terms < 1:
        raise BadValue(f"solver=conjugate_gradient needs solver.num_terms of at least 1, got {solver.num_terms}")


def _validate_method(method: MethodConfig) -> None:
    outer, trust, weight = method.outer, method.trust, method.weight
    _validate_arms(method)
    if outer.gradient == "incremental" and (outer.data not in ("previous", "past") or trust.cross_fitting):
        raise BadValue(
            "method.outer.gradient=incremental follows past inner updates: it needs method.outer.data=previous or past "
            f"and method.trust.cross_fitting=false, got {outer.data} and {str(trust.cross_fitting).lower()}"
        )
    if weight.bound is not None and abs(weight.initial) >= weight.bound:
        raise BadValue(
            f"method.weight.initial must lie inside (-bound, bound) = +-{weight.bound}, got {weight.initial}"
        )
    if not (weight.scalar or weight.network):
        raise BadValue("method.weight needs scalar=true or network=true (or both), got neither")
    if not method.irpo.fractions:
        raise BadValue("method.irpo.fractions needs at least one number, as in method.irpo.fractions=[1], got []")
    if weight.spread and not (weight.whiten and weight.network):
        raise BadValue(
            f"method.weight.spread={weight.spread} is for a network that sees whitened states: it needs "
            "method.weight.network=true and method.weight.whiten=true"
        )
    for name in ("clip_steps", "residual"):
        if getattr(weight, name) is not None and not weight.network:
            raise BadValue(
                f"method.weight.{name}={getattr(weight, name)} is for what a network learns: it needs "
                "method.weight.network=true"
            )


def _validate_arms(method: MethodConfig) -> None:
    follow = method.arms.follow
    if follow and method.name not in FOLLOWING:
        raise BadValue(
            f"method.arms.follow={list(follow)} is for methods that follow sources ({', '.join(FOLLOWING)}), got "
            f"method={method.name}"
        )
    if follow and (follow[0] != "none" or not set(follow) <= {*FOLLOWED} or len({*follow}) < len(follow)):
        raise BadValue(
            "method.arms.follow must begin with none, the policy that learns from the task alone, and hold each of "
            f"{', '.join(FOLLOWED)} at most once; got {list(follow)}"
        )


def _validate_transfer(config: Config) -> None:
    if config.method.name == "frozen" and not config.reward_from:
        raise BadValue("method=frozen needs the run whose reward it trains under, as in reward_from=runs/x")
    if config.method.name != "frozen":
        for key in ("reward_from", "reward_seed"):
            if getattr(config, key) is not None:
                raise BadValue(
                    f"{key}={getattr(config, key)} goes with method=frozen only, got method={config.method.name}"
                )


def _validate_distributed(config: Config) -> None:
    for name in ("coordinator", "num_processes", "process_id"):
        if getattr(config, name) is not None and not config.distributed:
            raise BadValue(f"{name}={getattr(config, name)} goes with distributed=true only")
    if config.coordinator is not None and not re.fullmatch(r".+:\d+", config.coordinator):
        raise BadValue(f"coordinator must look like host:port, got {config.coordinator}")
    if config.num_processes is not None and (config.process_id or 0) >= config.num_processes:
        raise BadValue(f"process_id must lie in [0, {config.num_processes - 1}], got {config.process_id}")


def _is_secret(name: str) -> bool:
    return name.lower().replace("-", "_") in ("api_key", "apikey", "key", "token", "secret", "authorization")


def refuse_secret(name: str) -> BadValue | None:
    """The error for a key of a config that would hold a secret, else None; a value is never repeated."""
    if not _is_secret(name.rpartition(".")[2]):
        return None
    return BadValue(
        f"{name} is refused: settings are written to disk, and a key must not be; put it into an environment variable "
        "and name that one with llm.key_variable=MY_VARIABLE"
    )


def renamed(key: str) -> BadValue | None:
    """The error for a key of an earlier version, which names the new key; else None."""
    return BadValue(f"{key} is called {RENAMED[key]} now") if key in RENAMED else None


def validate_llm(llm: LLMConfig) -> LLMConfig:
    """Return ``llm`` unchanged, or raise a ``ValueError`` that names the first bad value."""
    check(llm, "llm.")
    if llm.max_cost is not None and not (llm.prompt_price or llm.answer_price):
        raise BadValue("llm.max_cost needs llm.prompt_price and llm.answer_price, or it limits nothing")
    if not llm.prompt.endswith((".yaml", ".yml")):
        if llm.prompt not in PROMPTS:
            raise unknown("llm.prompt", llm.prompt, PROMPTS)
        fitting = {"token_probability": ("yes_no",), "embedding_similarity": ("goals",)}.get(llm.score, PROMPTS)
        if llm.prompt not in fitting:
            raise BadValue(f"llm.score={llm.score} needs llm.prompt={fitting[0]}, got {llm.prompt}")
    _validate_endpoint(llm)
    return llm


def _validate_endpoint(llm: LLMConfig) -> None:
    # None of these messages repeats a value: it may be a key that ended up in the wrong place.
    if llm.key_variable is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", llm.key_variable):
        raise BadValue(
            "llm.key_variable must be the name of an environment variable, in capitals, as in OPENAI_API_KEY, and not "
            "the key itself, which would be written to disk with the other settings"
        )
    for name in llm.extra:
        if error := refuse_secret(f"llm.extra.{name}"):
            raise error
    address = urlsplit(llm.base_url)
    if address.scheme not in ("http", "https") or not address.hostname:
        raise BadValue("llm.base_url must look like https://host/v1")
    if address.username or address.password or address.query or address.fragment:
        raise BadValue(
            "llm.base_url must hold neither a user, a password nor a query: settings are written to disk; a key goes "
            "into the environment variable that llm.key_variable names"
        )
    if llm.provider == "openai" and not llm.model:
        raise BadValue("llm.provider=openai needs a model, as in llm.model=llama3.1")
    if llm.provider == "local" and not llm.model:
        raise BadValue("llm=local needs the path of a GGUF file, as in llm.model=models/qwen.gguf")
    if llm.provider == "openai" and llm.score == "embedding_similarity" and not llm.embedding_model:
        raise BadValue("llm.score=embedding_similarity needs llm.embedding_model")


def validate(config: Config) -> Config:
    """Return ``config`` unchanged, or raise a ``ValueError`` that names the first bad value."""
    check(config)
    if config.env.name == "gymnax" and not config.env.id:
        raise BadValue("env=gymnax needs env.id, as in env.id=Acrobot-v1 or env.id=my_package.worlds.keydoor")
    if config.aux.function == "":
        raise BadValue("aux=function needs a dotted path, as in aux.function=my_package.hints.push_right")
    if config.aux.file != AuxConfig.file and "code" not in config.aux.sources:
        raise BadValue(f"aux.file={config.aux.file} is for aux=code")
    for section, names in (("env.params", config.env.params), ("aux.options", config.aux.options)):
        for name in names:
            if not name.isidentifier() or name.startswith("_"):
                raise BadValue(f"{section} holds parameters by name, as in +{section}.size=5, got {name!r}")
    if config.aux.transform not in ("none", config.transform):
        raise BadValue(
            f"method={config.method.name} transforms the sources itself: it needs aux.transform=none, got "
            f"{config.aux.transform}"
        )
    _validate_distributed(config)
    _validate_ppo(config.ppo)
    _validate_solver(config.solver)
    _validate_method(config.method)
    _validate_transfer(config)
    validate_llm(config.llm)
    return config


def build(cls: type[Settings], values: Mapping[str, Any], path: str = "") -> Settings:
    """Settings from nested dictionaries, as a config file or Hydra gives them; unknown keys are refused.

    Args:
        cls: a dataclass of settings.
        values: key -> value, a section's a dictionary too; what is not there keeps its default.
        path: of the section that they are, with its dot.
    """
    if not isinstance(values, Mapping):
        raise BadValue(f"{path.rstrip('.') or 'the config'} must hold settings by name, got {values!r}")
    built: dict[str, Any] = {}
    for name, value in values.items():
        key, kinds = f"{path}{name}", hints(cls)
        if name not in kinds:
            siblings = [f"{path}{other}" for other in kinds]
            raise refuse_secret(key) or renamed(key) or unknown("key", key, siblings)
        nested = is_dataclass(kinds[name])
        built[name] = build(kinds[name], value, f"{key}.") if nested else _unchanging(value)
    return cls(**built)


def _unchanging(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def from_dict(values: Mapping[str, Any]) -> Config:
    """A validated ``Config`` from nested dictionaries, as a config file or Hydra gives them.

    Raises:
        ValueError: a key is unknown, or a value is of another type or out of range; one line says which.
    """
    return validate(build(Config, values))
