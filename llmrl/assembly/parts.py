"""What a config makes: environment, networks, streams, optimisers, and the numbers that may be traced."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import PyTree

from llmrl.assembly.methods import METHODS, make_method
from llmrl.assembly.sources import late_sources, make_sources, with_written
from llmrl.envs import CODE, HOST_ENVIRONMENTS, LATE_WRONG, make_host
from llmrl.envs import make as make_env
from llmrl.learner.irpo import make_update_of_explorers
from llmrl.learner.ppo import Params, make_update, make_update_of_arms, with_advice_steps
from llmrl.learner.problem import InnerProblem, viewing
from llmrl.nets import Policy, make_critic, make_policy
from llmrl.ops.optimizers import own_promotion
from llmrl.rewards import Sources
from llmrl.settings.config import Config
from llmrl.settings.errors import BadValue
from llmrl.types import Environment, EnvSpec, HostEnvironment, Scalar, View

# --- numbers ----------------------------------------------------------------------------------------------------------

_STATIC = {"solver.curvature_fraction", "solver.tolerance", "aux.scale", "method.weight.initial", "method.trust.advice"}
"""Floats that decide shapes or streams, or that are used before anything is traced."""

_HOST = ("llm",)
"""Sections that nothing traced looks at."""


def numbers_of(config: Any, path: str = "") -> dict[str, float]:
    """The plain floats of a config by dotted name, without those that decide shapes."""
    found: dict[str, float] = {}
    for field in dataclasses.fields(config):
        name, value = f"{path}{field.name}", getattr(config, field.name)
        if name in _HOST:
            continue
        if dataclasses.is_dataclass(value):
            found |= numbers_of(value, f"{name}.")
        elif field.type == "float" and name not in _STATIC:
            found[name] = float(value)
    return found


def with_numbers(config: Any, numbers: dict[str, Any], path: str = "") -> Any:
    """``config`` with its floats replaced by possibly traced ones."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        name, value = f"{path}{field.name}", getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name] = with_numbers(value, numbers, f"{name}.")
        elif name in numbers:
            changes[field.name] = numbers[name]
    return dataclasses.replace(config, **changes)


# --- parts ----------------------------------------------------------------------------------------------------------


def make_environment(config: Config) -> Environment:
    """The environment and sources that a config names."""
    return with_written(config, make_env(**environment_options(config)))


def any_environment(config: Config) -> Environment | HostEnvironment:
    """The same, where it may also be one that only Python can step."""
    if config.env.name not in HOST_ENVIRONMENTS:
        return make_environment(config)
    if CODE in config.aux.sources:
        raise BadValue(f"aux=code needs an environment that can be compiled; {config.env.name} runs in Python")
    return make_host(**environment_options(config))


def environment_options(config: Config) -> dict[str, Any]:
    """The environment and sources that a config names, as ``llmrl.envs.make`` takes them."""
    name = config.env.id if config.env.name == "gymnax" and config.env.id else config.env.name
    apart = ("name", "params") if config.env.name in HOST_ENVIRONMENTS else ("name", "id", "params")
    options = {
        field.name: value
        for field in dataclasses.fields(config.env)
        if field.name not in apart and (value := getattr(config.env, field.name)) is not None
    }
    return {
        "name": name,
        "aux": {name: factor for name, factor in config.aux.sources.items() if name != CODE},
        "aux_scale": config.aux.scale,
        "aux_function": config.aux.function,
        "aux_options": config.aux.options,
        "captioner": config.captioner,
        "params": options | config.env.params,
    }


def policy_of(config: Config, spec: EnvSpec, view: View | None = None) -> Policy:
    """The policy that a config trains in an environment, as a function of what it sees."""
    return make_policy(spec if view is None else view.spec, config.ppo.hidden, config.ppo.initial_log_std)


def acting_policy(config: Config, spec: EnvSpec) -> Policy:
    """The policy of a trained run, as a function of observations; its parameters are ``(actor, phis)`` of a state."""
    view = make_method(config, spec).view
    policy = policy_of(config, spec, view)

    def distribution(params, obs):
        actor, phis = params
        return viewing(policy, view, phis).distribution(actor, obs)

    return Policy(policy.init, distribution)


def length_schedules(config: Config) -> list[str]:
    """Settings of a run that set a course over the whole of ``total_steps``, as they may be typed."""
    recipe = METHODS[config.method.reward_of or config.method.name]
    value = 0.0 if recipe.course is None else attrgetter(recipe.course)(config.method)
    courses = {
        "ppo.anneal=true": config.ppo.anneal,
        f"method.{recipe.course}={value}": value > 0.0,
        f"aux={LATE_WRONG}": LATE_WRONG in config.aux.sources,
    }
    return [setting for setting, chosen in courses.items() if chosen]


def _optimizer(config: Config, advised: bool) -> optax.GradientTransformation:
    """Of the inner level; ``advised``: whether the policy takes additional steps on advice."""
    ppo = config.ppo
    updates = config.num_iterations * ppo.num_epochs * ppo.num_minibatches

    def steps(ratio: float | Scalar) -> optax.GradientTransformation:
        first = ratio * ppo.learning_rate
        rate = optax.linear_schedule(first, 0.0, updates) if ppo.anneal else first
        # One long vector instead of a dozen arrays: small programs are as slow as they have operations.
        return optax.flatten(optax.chain(optax.clip_by_global_norm(ppo.max_gradient_norm), optax.adam(rate, eps=1e-5)))

    def part(params: Params) -> Params:
        return Params(*(jax.tree.map(lambda _, name=name: name, getattr(params, name)) for name in Params._fields))

    # Each part is clipped by itself: under a joint norm a critic with many heads, surprised by a rare reward, would
    # shrink the actor's step just where there is something to learn.
    optimizer = optax.multi_transform({"actor": steps(1.0), "critic": steps(ppo.critic_rate_ratio)}, part)
    if not advised:
        return own_promotion(optimizer)
    return with_advice_steps(own_promotion(optimizer), own_promotion(steps(1.0)))


class Parts(NamedTuple):
    """What an iteration is made of.

    Attributes:
        inner: what the inner level learns.
        optimizer: of the inner level.
        update: ``policy -> update``, as ``make_update`` gives it.
        update_arms: the same of ``make_update_of_arms``, for several policies side by side.
        update_explorers: the same of ``make_update_of_explorers``, for a base policy and those that start from it.
        meta: the outer level; None where nothing is learned there.
        sources: the auxiliary sources that are filled in once a rollout is complete.
        aux_names: the auxiliary sources' names.
    """

    inner: InnerProblem
    optimizer: optax.GradientTransformation
    update: Callable[[Policy], Callable]
    update_arms: Callable[[Policy], Callable]
    update_explorers: Callable[[Policy], Callable]
    meta: Any
    sources: Sources
    aux_names: tuple[str, ...] = ()

    def policy(self, phis: tuple[PyTree, ...]) -> Policy:
        return viewing(self.inner.policy, self.inner.view, phis)


def build_to_play(config: Config, env: Environment | HostEnvironment, num_envs: int) -> Parts:
    """The parts of a trained run, with late sources for another number of environments than it was trained in."""
    parts, played = build(config, env), dataclasses.replace(config.ppo, num_envs=num_envs)
    played = dataclasses.replace(config, ppo=played)
    late = late_sources(played, env.spec, parts.sources.num_events)
    return parts._replace(sources=parts.sources._replace(late=late))


def build(config: Config, env: Environment | HostEnvironment) -> Parts:
    """Everything that the numbers of a config may touch; called inside the traced functions."""
    ppo, spec = config.ppo, env.spec
    method = make_method(config, spec)
    policy = policy_of(config, spec, method.view)
    critic = make_critic(spec, ppo.hidden, len(method.streams))
    inner = InnerProblem(method.streams, policy, critic, ppo.discount, ppo.gae_lambda, ppo.entropy, method.view)
    optimizer = _optimizer(config, any(stream.advice is not None for stream in method.streams))
    names = ("clip", "entropy", "value_coefficient", "num_epochs", "num_minibatches")
    settings = {"critic": critic, "optimizer": optimizer} | {name: getattr(ppo, name) for name in names}
    meta = method.meta(inner) if method.meta is not None else None
    update, update_arms = partial(make_update, **settings), partial(make_update_of_arms, **settings)
    update_explorers = partial(make_update_of_explorers, **settings)
    sources = make_sources(config, spec, env.captioner)
    return Parts(inner, optimizer, update, update_arms, update_explorers, meta, sources, spec.aux_names)
