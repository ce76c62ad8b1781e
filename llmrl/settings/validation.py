"""What a config must be beside well typed: every check names the first bad value, and what would do instead.

Plain values are checked once, at the door; ranges that need no words of their own are in ``llmrl.settings.limits``.
"""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from typing import Any
from urllib.parse import urlsplit

from llmrl.settings.config import (
    CURVATURES,
    DATA,
    GRADIENTS,
    PROMPTS,
    PROVIDERS,
    REPRESENTATIONS,
    SCHEDULES,
    SCORES,
    SOLVERS,
    SURROGATES,
    AuxConfig,
    Config,
    EnvConfig,
    GoalsConfig,
    LLMConfig,
    MethodConfig,
    NoveltyConfig,
    OuterConfig,
    PotentialConfig,
    PPOConfig,
    SolverConfig,
    TrackConfig,
    TrustConfig,
    WeightConfig,
)
from llmrl.settings.errors import BadValue, unknown
from llmrl.settings.limits import check_numbers

RENAMED = {
    "method.trust.prior": "method.trust.advice",
    "method.trust.patience": "method.trust.advice_patience",
    "method.trust.prior_decay": "method.trust.advice_decay",
    "method.trust.prior_rarity": "method.trust.advice_rarity",
    "method.trust.prior_words": "method.trust.advice_events",
    "method.trust.prior_fade": "method.trust.advice_fade",
}
"""Keys of earlier versions, and what they are called now."""


def _positive(**values: float) -> None:
    for name, value in values.items():
        if value <= 0:
            raise BadValue(f"{name} must be positive, got {value}")


def _between(low: float, high: float, **values: float) -> None:
    for name, value in values.items():
        if not low <= value <= high:
            raise BadValue(f"{name} must lie in [{low}, {high}], got {value}")


def _one_of(choices: tuple[str, ...], **values: str) -> None:
    for name, value in values.items():
        if "," in str(value) and set(str(value).split(",")) <= {*choices}:
            raise BadValue(f"{name}={value} is several values: add --multirun to run each")
        if value not in choices:
            raise unknown(name, value, choices)


def _validate_ppo(ppo: PPOConfig) -> None:
    _positive(
        **{
            "ppo.num_envs": ppo.num_envs,
            "ppo.num_steps": ppo.num_steps,
            "ppo.num_epochs": ppo.num_epochs,
            "ppo.num_minibatches": ppo.num_minibatches,
            "ppo.learning_rate": ppo.learning_rate,
            "ppo.critic_rate_ratio": ppo.critic_rate_ratio,
            "ppo.clip": ppo.clip,
            "ppo.max_gradient_norm": ppo.max_gradient_norm,
        }
    )
    _between(
        0.0,
        1.0,
        **{
            "ppo.discount": ppo.discount,
            "ppo.gae_lambda": ppo.gae_lambda,
            "ppo.advantage_floor": ppo.advantage_floor,
            "ppo.advantage_decay": ppo.advantage_decay,
        },
    )
    _between(0.0, float("inf"), **{"ppo.entropy": ppo.entropy, "ppo.value_coefficient": ppo.value_coefficient})
    if ppo.batch_size % ppo.num_minibatches:
        raise BadValue(
            f"ppo.num_minibatches must divide num_envs * num_steps = {ppo.batch_size}, got {ppo.num_minibatches}"
        )
    if ppo.num_minibatches == ppo.batch_size:
        raise BadValue(
            f"ppo.num_minibatches={ppo.num_minibatches} leaves 1 of num_envs * num_steps = {ppo.batch_size} steps to "
            f"each, whose normalised advantage is 0; expected at most {ppo.batch_size // 2}"
        )
    if not ppo.hidden or min(ppo.hidden) <= 0:
        raise BadValue(f"ppo.hidden needs at least one positive width, got {list(ppo.hidden)}")


def _validate_solver(solver: SolverConfig) -> None:
    _one_of(SOLVERS, **{"solver.name": solver.name})
    _one_of(CURVATURES, **{"solver.curvature": solver.curvature})
    if solver.name == "neumann_finite_difference" and solver.curvature != "hessian":
        raise BadValue(
            "solver=neumann_finite_difference differences gradients of L_aux: it needs solver.curvature=hessian, "
            f"got {solver.curvature!r}"
        )
    _between(0, 100_000, **{"solver.num_terms": solver.num_terms, "solver.power_iterations": solver.power_iterations})
    _between(1e-3, 1.0, **{"solver.curvature_fraction": solver.curvature_fraction})
    _positive(**{"solver.curvature_samples": solver.curvature_samples})
    _positive(**{"solver.max_ratio": solver.max_ratio, "solver.num_probes": solver.num_probes})
    for name in ("step_size", "damping"):
        value = getattr(solver, name)
        if isinstance(value, str) and value != "auto":
            raise BadValue(f"solver.{name} must be a number or 'auto', got {value!r}")
        if not isinstance(value, (str, int, float)) or isinstance(value, bool):
            raise BadValue(f"solver.{name} must be a number or 'auto', got {value!r}")
    if not isinstance(solver.step_size, str):
        _positive(**{"solver.step_size": solver.step_size})
    if not isinstance(solver.damping, str):
        _between(0.0, float("inf"), **{"solver.damping": solver.damping})


def _validate_method(method: MethodConfig) -> None:
    outer, trust, weight = method.outer, method.trust, method.weight
    _one_of(GRADIENTS, **{"method.outer.gradient": outer.gradient})
    _one_of(SURROGATES, **{"method.outer.surrogate": outer.surrogate})
    _one_of(DATA, **{"method.outer.data": outer.data})
    _one_of(SCHEDULES, **{"method.outer.schedule": outer.schedule})
    _one_of(("amsgrad", "adam", "sgd"), **{"method.outer.optimiser": outer.optimiser})
    _positive(
        **{
            "method.outer.unroll_steps": outer.unroll_steps,
            "method.outer.window": outer.window,
            "method.outer.every": outer.every,
            "method.outer.max_gradient_norm": outer.max_gradient_norm,
            "method.outer.max_importance_ratio": outer.max_importance_ratio,
            "method.trust.advice_events": trust.advice_events,
        }
    )
    _between(
        0.0,
        1.0,
        **{
            "method.outer.gae_lambda": outer.gae_lambda,
            "method.outer.scale_decay": outer.scale_decay,
            "method.trust.advice_decay": trust.advice_decay,
            "method.trust.advice_rarity": trust.advice_rarity,
            "method.trust.ceiling_fall": trust.ceiling_fall,
            "method.trust.ceiling_rise": trust.ceiling_rise,
            "method.trust.setback": trust.setback,
        },
    )
    _between(0, float("inf"), **{"method.outer.warmup": outer.warmup, "method.trust.advice_fade": trust.advice_fade})
    if outer.gradient == "incremental" and (outer.data not in ("previous", "past") or trust.cross_fitting):
        raise BadValue(
            "method.outer.gradient=incremental follows past inner updates: it needs method.outer.data=previous or past "
            f"and method.trust.cross_fitting=false, got {outer.data} and {str(trust.cross_fitting).lower()}"
        )
    if weight.bound is not None:
        _positive(**{"method.weight.bound": weight.bound})
        if abs(weight.initial) >= weight.bound:
            raise BadValue(
                f"method.weight.initial must lie inside (-bound, bound) = +-{weight.bound}, got {weight.initial}"
            )
    if not (weight.scalar or weight.network):
        raise BadValue("method.weight needs scalar=true or network=true (or both), got neither")
    if weight.spread and not (weight.whiten and weight.network):
        raise BadValue(
            f"method.weight.spread={weight.spread} is for a network that sees whitened states: it needs "
            "method.weight.network=true and method.weight.whiten=true"
        )
    if weight.clip_steps is not None:
        _positive(**{"method.weight.clip_steps": weight.clip_steps})
    for name in ("clip_steps", "residual"):
        if getattr(weight, name) is not None and not weight.network:
            raise BadValue(
                f"method.weight.{name}={getattr(weight, name)} is for what a network learns: it needs "
                "method.weight.network=true"
            )


def _validate_potential(potential: PotentialConfig) -> None:
    _positive(
        **{
            "method.potential.learning_rate": potential.learning_rate,
            "method.potential.updates": potential.updates,
            "method.potential.batch_size": potential.batch_size,
            "method.potential.decay": potential.decay,
        }
    )
    _between(0.0, 1.0, **{"method.potential.decay": potential.decay})
    if not potential.hidden or min(potential.hidden) <= 0:
        raise BadValue(f"method.potential.hidden needs at least one positive width, got {list(potential.hidden)}")


def _validate_transfer(config: Config) -> None:
    if config.method.name == "frozen" and not config.reward_from:
        raise BadValue("method=frozen needs the run whose reward it trains under, as in reward_from=runs/x")
    if config.method.name != "frozen":
        for key in ("reward_from", "reward_seed"):
            if getattr(config, key) is not None:
                raise BadValue(
                    f"{key}={getattr(config, key)} goes with method=frozen only, got method={config.method.name}"
                )
    if config.reward_seed is not None and config.reward_seed < 0:
        raise BadValue(f"reward_seed must be at least 0, got {config.reward_seed}")


def _validate_distributed(config: Config) -> None:
    for name in ("coordinator", "num_processes", "process_id"):
        if getattr(config, name) is not None and not config.distributed:
            raise BadValue(f"{name}={getattr(config, name)} goes with distributed=true only")
    if config.coordinator is not None and not re.fullmatch(r".+:\d+", config.coordinator):
        raise BadValue(f"coordinator must look like host:port, got {config.coordinator}")
    if config.num_processes is not None:
        _positive(num_processes=config.num_processes)
    if config.process_id is not None:
        last = float("inf") if config.num_processes is None else config.num_processes - 1
        _between(0, last, process_id=config.process_id)


def _validate_bonuses(novelty: NoveltyConfig, goals: GoalsConfig) -> None:
    _one_of(REPRESENTATIONS, **{"method.novelty.representation": novelty.representation})
    _positive(
        **{
            "method.novelty.learning_rate": novelty.learning_rate,
            "method.novelty.updates": novelty.updates,
            "method.novelty.features": novelty.features,
            "method.novelty.neighbors": novelty.neighbors,
            "method.novelty.references": novelty.references,
        }
    )
    _between(0.0, 1.0, **{"method.novelty.discount": novelty.discount, "method.goals.pretraining": goals.pretraining})


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
    _one_of(PROVIDERS, **{"llm.provider": llm.provider})
    _one_of(SCORES, **{"llm.score": llm.score})
    _one_of(("state", "answer"), **{"llm.noise_unit": llm.noise_unit})
    _between(0.0, 1.0, **{"llm.threshold": llm.threshold, "llm.noise": llm.noise, "llm.neutral": llm.neutral})
    _between(
        0.0,
        float("inf"),
        **{
            "llm.temperature": llm.temperature,
            "llm.retries": llm.retries,
            "llm.prompt_price": llm.prompt_price,
            "llm.answer_price": llm.answer_price,
        },
    )
    _between(1, 20, **{"llm.top_logprobs": llm.top_logprobs})
    _positive(
        **{"llm.deadline": llm.deadline, "llm.concurrency": llm.concurrency, "llm.capacity": llm.capacity},
    )
    if llm.requests_per_minute is not None:
        _positive(**{"llm.requests_per_minute": llm.requests_per_minute})
    for name in ("max_requests", "max_tokens", "max_cost", "max_seconds"):
        if getattr(llm, name) is not None:
            _between(0, float("inf"), **{f"llm.{name}": getattr(llm, name)})
    if llm.max_cost is not None and not (llm.prompt_price or llm.answer_price):
        raise BadValue("llm.max_cost needs llm.prompt_price and llm.answer_price, or it limits nothing")
    if not llm.prompt.endswith((".yaml", ".yml")):
        _one_of(PROMPTS, **{"llm.prompt": llm.prompt})
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
    if llm.provider == "openai" and llm.score == "embedding_similarity" and not llm.embedding_model:
        raise BadValue("llm.score=embedding_similarity needs llm.embedding_model")


def validate(config: Config) -> Config:
    """Return ``config`` unchanged, or raise a ``ValueError`` that names the first bad value."""
    if config.env.name == "gymnax" and not config.env.id:
        raise BadValue("env=gymnax needs env.id, as in env.id=Acrobot-v1 or env.id=my_package.worlds.keydoor")
    if config.aux.function == "":
        raise BadValue("aux=function needs a dotted path, as in aux.function=my_package.hints.push_right")
    for section, names in (("env.params", config.env.params), ("aux.options", config.aux.options)):
        for name in names:
            if not name.isidentifier() or name.startswith("_"):
                raise BadValue(f"{section} holds parameters by name, as in +{section}.size=5, got {name!r}")
    center = config.aux.center
    if center != "mean" and (isinstance(center, bool) or not isinstance(center, int | float)):
        raise BadValue(f"aux.center must be a number or 'mean', got {center!r}")
    _positive(seeds=config.seeds, total_steps=config.total_steps, num_chunks=config.num_chunks)
    check_numbers(config)
    _one_of(("offline", "online"), **{"track.mode": config.track.mode})
    if config.seeds_per_batch is not None:
        _positive(seeds_per_batch=config.seeds_per_batch)
    if config.devices != "auto" and (not isinstance(config.devices, int) or config.devices < 1):
        raise BadValue(f"devices must be 'auto' or a positive number, got {config.devices!r}")
    _validate_distributed(config)
    _validate_ppo(config.ppo)
    _validate_solver(config.solver)
    _validate_method(config.method)
    _validate_potential(config.method.potential)
    _validate_transfer(config)
    _validate_bonuses(config.method.novelty, config.method.goals)
    validate_llm(config.llm)
    return config


def _build(cls: type, values: Any, path: str) -> Any:
    if not is_dataclass(cls):
        return values
    known = {f.name: f for f in fields(cls)}
    built = {}
    for name, value in values.items():
        if name not in known:
            key, siblings = f"{path}{name}", [f"{path}{other}" for other in known]
            raise refuse_secret(key) or renamed(key) or unknown("key", key, siblings)
        built[name] = _build(_SECTIONS.get((cls, name), object), value, f"{path}{name}.")
        if isinstance(built[name], list):
            built[name] = tuple(built[name])
    return cls(**built)


_SECTIONS: dict[tuple[type, str], type] = {
    (Config, "env"): EnvConfig,
    (Config, "aux"): AuxConfig,
    (Config, "method"): MethodConfig,
    (Config, "solver"): SolverConfig,
    (Config, "ppo"): PPOConfig,
    (Config, "llm"): LLMConfig,
    (Config, "track"): TrackConfig,
    (MethodConfig, "weight"): WeightConfig,
    (MethodConfig, "outer"): OuterConfig,
    (MethodConfig, "trust"): TrustConfig,
    (MethodConfig, "potential"): PotentialConfig,
    (MethodConfig, "novelty"): NoveltyConfig,
    (MethodConfig, "goals"): GoalsConfig,
}


def from_dict(values: dict[str, Any]) -> Config:
    """A validated ``Config`` from nested dictionaries, as a config file or Hydra gives them; unknown keys are
    refused."""
    return validate(_build(Config, values, ""))
