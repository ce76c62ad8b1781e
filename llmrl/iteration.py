"""One iteration of training, compiled: acting, the outer level, learning from both; and what a config makes of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray, PyTree

from llmrl.config import Config
from llmrl.envs import HOST_ENVIRONMENTS, make_host
from llmrl.envs import make as make_env
from llmrl.language import Table
from llmrl.learner.ppo import Batch, Params, make_update
from llmrl.learner.problem import InnerProblem, viewing
from llmrl.learner.rollout import ActingState, collect, reset_all, unplayed
from llmrl.learner.rollout_host import unplayed_rollout
from llmrl.learner.streams import blended, signals, stream_advantages, value_rollout
from llmrl.methods import make_method
from llmrl.nets import Policy, make_critic, make_policy
from llmrl.ops.moments import running_peak
from llmrl.ops.optimizers import own_promotion
from llmrl.ops.tables import NO_KEY
from llmrl.ops.trees import all_finite
from llmrl.rewards import GoalTable, Heard, Language, Suggested, goal_scores, task_signal
from llmrl.sources import LateSource, language_source, late_sources, suggested_by_rule
from llmrl.types import Environment, EnvSpec, HostEnvironment, Rollout, Scalar, View

Metrics = dict[str, Array]


class TrainState(NamedTuple):
    """Everything that a run needs to go on, of one seed.

    Attributes:
        key: the seed's key.
        params: actor and critic.
        opt_state: of the inner optimiser.
        acting: where the environments stand.
        phis: parameters of the streams' transforms.
        transform_states: what the transforms have noted.
        meta_state: of the outer level; empty where there is none.
        last_kl: how far the last inner update moved the policy.
        advantage_scale: largest deviation of the blended advantage so far, slowly forgotten.
        iteration: iterations done.
        heard: what the language source has noted; None where there is none.
        late: memories of the other sources that are filled in once a rollout is complete.
    """

    key: PRNGKeyArray
    params: Params
    opt_state: PyTree
    acting: ActingState
    phis: tuple[PyTree, ...]
    transform_states: tuple[PyTree, ...]
    meta_state: PyTree
    last_kl: Scalar
    advantage_scale: Scalar
    iteration: Array
    heard: Heard | None = None
    late: tuple[PyTree, ...] = ()


class Trainer(NamedTuple):
    """A run as pure functions of one seed; ``jax.vmap`` makes it many.

    Attributes:
        env: the environment; one that only Python can step has no ``run`` (see ``devices``).
        init: ``(key, numbers, table) -> TrainState``.
        run: ``(state, numbers, num_iterations, first, table) -> (state, metrics)``, metrics [num_iterations] each; the
            length is static, ``first`` is the number of the first iteration, []. ``table`` holds a language model's
            answers, where it is a source; without one nothing has been answered yet.
        numbers: the config's plain floats by dotted name; leaves, so they may be traced and vmapped.
    """

    env: Environment | HostEnvironment
    init: Callable[..., TrainState]
    run: Callable[..., tuple[TrainState, Metrics]]
    numbers: dict[str, float]


# --- numbers ----------------------------------------------------------------------------------------------------------

_STATIC = {"solver.curvature_fraction", "solver.tolerance", "aux.scale", "method.weight.initial", "method.trust.prior"}
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


# --- one iteration ----------------------------------------------------------------------------------------------------


def make_environment(config: Config) -> Environment:
    """The environment and sources that a config names."""
    return make_env(**_environment_options(config))


def any_environment(config: Config) -> Environment | HostEnvironment:
    """The same, where it may also be one that only Python can step."""
    host = config.env.name in HOST_ENVIRONMENTS
    return make_host(**_environment_options(config)) if host else make_environment(config)


def _environment_options(config: Config) -> dict[str, Any]:
    name = config.env.id if config.env.name == "gymnax" and config.env.id else config.env.name
    options = {
        field.name: value
        for field in dataclasses.fields(config.env)
        if field.name not in ("name", "id", "params") and (value := getattr(config.env, field.name)) is not None
    }
    return {
        "name": name,
        "aux": config.aux.sources,
        "aux_scale": config.aux.scale,
        "aux_function": config.aux.function,
        "aux_options": config.aux.options,
        **options,
        "captioner": config.captioner,
        **config.env.params,
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


def _optimizer(config: Config) -> optax.GradientTransformation:
    ppo = config.ppo
    updates = config.num_iterations * ppo.num_epochs * ppo.num_minibatches
    rate = optax.linear_schedule(ppo.learning_rate, 0.0, updates) if ppo.anneal else ppo.learning_rate
    # One long vector instead of a dozen arrays: small programs are as slow as they have operations.
    step = optax.flatten(optax.chain(optax.clip_by_global_norm(ppo.max_gradient_norm), optax.adam(rate, eps=1e-5)))

    def part(params: Params) -> Params:
        return Params(*(jax.tree.map(lambda _, name=name: name, getattr(params, name)) for name in Params._fields))

    # Each part is clipped by itself: under a joint norm a critic with many heads, surprised by a rare reward, would
    # shrink the actor's step just where there is something to learn.
    return own_promotion(optax.multi_transform(dict.fromkeys(Params._fields, step), part))


class Parts(NamedTuple):
    """What an iteration is made of.

    Attributes:
        inner: what the inner level learns.
        optimizer: of the inner level.
        update: ``policy -> update``, as ``make_update`` gives it.
        meta: the outer level; None where nothing is learned there.
        language: the language source, or whoever notes what has no answer; None where nobody is asked.
        num_events: what a step can do, in a captioner's words; 0 without one.
        late: the other sources that are filled in once a rollout is complete.
        suggested: who suggests goals by rule; None where a table of answers does.
    """

    inner: InnerProblem
    optimizer: optax.GradientTransformation
    update: Callable[[Policy], Callable]
    meta: Any
    language: Language | None
    num_events: int
    late: tuple[LateSource, ...] = ()
    suggested: Suggested | None = None

    def policy(self, phis: tuple[PyTree, ...]) -> Policy:
        return viewing(self.inner.policy, self.inner.view, phis)

    def told(self, rollout: Rollout, heard: Heard | None, table: Table | None):
        """A rollout with a language model's scores; beside it what that source has noted and reports."""
        if self.language is None or heard is None:
            return rollout, heard, {}
        return self.language.fill(rollout, heard, *self.answers(table))

    def answers(self, table: Table | None) -> GoalTable:
        """The answers at hand; without a table a single row, which is nobody's."""
        if table is None:
            return GoalTable(jnp.full(1, NO_KEY), jnp.zeros((1, self.num_events)))
        return GoalTable(jnp.asarray(table.keys), jnp.asarray(table.scores))

    def suggestions(self, table: Table | None) -> Suggested:
        """Who suggests goals."""
        return self.suggested or partial(goal_scores, self.answers(table))

    def filled(self, rollout: Rollout, late: tuple[PyTree, ...], table: Table | None):
        """A rollout with the values of the late sources; beside it their memories and what they report."""
        words = self.suggestions(table)
        memories, metrics, aux = [], {}, rollout.steps.aux
        for each, memory in zip(self.late, late, strict=True):
            values, memory, said = each.source.score(memory, rollout, words)
            aux = aux.at[..., each.column].set(each.factor * values)
            memories.append(memory)
            metrics |= said
        return rollout._replace(steps=rollout.steps._replace(aux=aux)), tuple(memories), metrics

    def attentive(self, state: TrainState) -> TrainState:
        """The state once the host has taken note of what was missed."""
        if self.language is None or state.heard is None:
            return state
        return state._replace(heard=self.language.forget(state.heard))


def build(config: Config, env: Environment | HostEnvironment) -> Parts:
    """Everything that the numbers of a config may touch; called inside the traced functions."""
    ppo, spec = config.ppo, env.spec
    method = make_method(config, spec)
    policy = policy_of(config, spec, method.view)
    critic = make_critic(spec, ppo.hidden, len(method.streams))
    inner = InnerProblem(method.streams, policy, critic, ppo.discount, ppo.gae_lambda, ppo.entropy, method.view)
    optimizer = _optimizer(config)
    update = partial(
        make_update,
        critic=critic,
        optimizer=optimizer,
        clip=ppo.clip,
        entropy=ppo.entropy,
        value_coefficient=ppo.value_coefficient,
        num_epochs=ppo.num_epochs,
        num_minibatches=ppo.num_minibatches,
    )
    meta = method.meta(inner) if method.meta is not None else None
    num_events = 0 if env.captioner is None else len(env.captioner.events)
    suggested = suggested_by_rule(config, env.captioner)
    heard = language_source(config, spec, suggested)
    return Parts(inner, optimizer, update, meta, heard, num_events, late_sources(config, spec, num_events), suggested)


def first_state(
    config: Config, env: Environment | HostEnvironment, key: PRNGKeyArray, table: Table | None
) -> TrainState:
    """Everything as it is before the first iteration."""
    parts = build(config, env)
    key, actor_key, critic_key, env_key, phi_key, rollout_key = jax.random.split(key, 6)
    params = Params(parts.inner.policy.init(actor_key), parts.inner.critic.init(critic_key))
    phi_keys = jax.random.split(phi_key, len(parts.inner.streams))
    started = [stream.transform.init(k) for stream, k in zip(parts.inner.streams, phi_keys, strict=True)]
    phis, states = tuple(phi for phi, _ in started), tuple(state for _, state in started)
    if isinstance(env, HostEnvironment):
        acting = unplayed((), jnp.zeros((config.ppo.num_envs, *env.spec.obs_shape), jnp.uint8))
    else:
        acting = reset_all(env, env_key, config.ppo.num_envs, config.ppo.num_steps)
    heard = parts.language.init() if parts.language is not None else None
    late_keys = jax.random.split(jax.random.fold_in(rollout_key, 1), len(parts.late))
    late = tuple(each.source.init(k) for each, k in zip(parts.late, late_keys, strict=True))
    meta_state: PyTree = ()
    if parts.meta is not None:
        rollout = None
        if parts.meta.needs_rollout:
            # Memory starts with a rollout of the untrained policy, so that old data exist from the first step on.
            rollout = _first_rollout(config, env, parts.policy(phis), params.actor, acting, rollout_key)
            rollout, _, _ = parts.told(rollout, heard, table)
            rollout, _, _ = parts.filled(rollout, late, table)
        meta_state = parts.meta.init(phis, states, params, rollout)
    return TrainState(
        key=key,
        params=params,
        opt_state=parts.optimizer.init(params),
        acting=acting,
        phis=phis,
        transform_states=states,
        meta_state=meta_state,
        last_kl=jnp.asarray(jnp.inf, jnp.float32),
        advantage_scale=jnp.zeros(()),
        iteration=jnp.zeros((), jnp.int32),
        heard=heard,
        late=late,
    )


def _first_rollout(
    config: Config,
    env: Environment | HostEnvironment,
    policy: Policy,
    actor: PyTree,
    acting: ActingState,
    key: PRNGKeyArray,
) -> Rollout:
    ppo = config.ppo
    if isinstance(env, HostEnvironment):
        # Nothing can be played in here: ``devices`` puts something real in its place.
        return unplayed_rollout(env.spec, ppo.num_steps, ppo.num_envs)
    return collect(env, policy, actor, acting, key, ppo.num_steps)[1]


def iterate(config: Config, env: Environment, parts: Parts, state: TrainState, index: Array, table: Table | None):
    """Collect, and learn from it."""
    rollout_key, policy = jax.random.split(state.key, 4)[1], parts.policy(state.phis)
    acting, rollout = collect(env, policy, state.params.actor, state.acting, rollout_key, config.ppo.num_steps)
    return learn_from(config, parts, state, acting, rollout, index, table)


def learn_from(
    config: Config,
    parts: Parts,
    state: TrainState,
    acting: ActingState,
    rollout: Rollout,
    index: Array,
    table: Table | None,
):
    """Let the outer level move phi, turn the task's signal into streams, and update the policy on them.

    Where something that is no number got into the rollout, or out of an update, the seed learns nothing from it and
    goes on: ``skipped_update`` counts such iterations.
    """
    inner = parts.inner
    key, _, meta_key, update_key = jax.random.split(state.key, 4)
    rollout, heard, told = parts.told(rollout, state.heard, table)
    rollout, late, filled = parts.filled(rollout, state.late, table)
    bare = task_signal(rollout, inner.discount)
    states = tuple(
        stream.transform.observe(noted, phi, bare, rollout)
        for stream, noted, phi in zip(inner.streams, state.transform_states, state.phis, strict=True)
    )
    phis, meta_state, metrics = state.phis, state.meta_state, {}
    least_deviation = config.ppo.advantage_floor * config.ppo.advantage_decay * state.advantage_scale
    if parts.meta is not None:
        phis, meta_state, metrics = parts.meta.update(
            meta_state, phis, states, state.params, rollout, meta_key, index, state.last_kl, least_deviation
        )

    all_signals = signals(inner.streams, phis, states, rollout, inner.discount)
    values = value_rollout(inner.critic, state.params.critic, rollout)
    advantages = stream_advantages(all_signals, values, rollout, inner.gae_lambda)
    advantage = blended(advantages, inner.streams)
    scale = running_peak(state.advantage_scale, jnp.std(advantage), config.ppo.advantage_decay)
    batch = Batch(
        obs=rollout.steps.obs,
        action=rollout.steps.action,
        log_prob=rollout.steps.log_prob,
        advantage=advantage,
        target=advantages + values.now,
    )
    batch = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)
    # The policy that is to act next: where it sees what is learned, it sees what has just been learned.
    update = parts.update(parts.policy(phis))
    params, opt_state, info = update(
        state.params, state.opt_state, batch, update_key, config.ppo.advantage_floor * scale
    )

    for stream, phi, noted in zip(inner.streams, phis, states, strict=True):
        metrics = metrics | stream.transform.report(phi, noted, rollout)
    pool = {} if acting.pool is None else acting.pool._asdict()
    metrics = acting.episodes._asdict() | pool | metrics | info._asdict() | told | filled
    new_state = TrainState(
        key,
        params,
        opt_state,
        acting,
        phis,
        states,
        meta_state,
        info.approx_kl,
        scale,
        state.iteration + 1,
        heard,
        late,
    )
    new_state, skipped = _without_harm(state, new_state, rollout)
    return new_state, metrics | {"skipped_update": skipped}


_PLAYED = ("key", "acting", "iteration", "heard")
"""What goes on also where nothing is learned."""


def _without_harm(before: TrainState, after: TrainState, rollout: Rollout) -> tuple[TrainState, Array]:
    """The state after an iteration; with nothing learned in it, and 1, where the rollout or the update holds an element
    that is no number."""
    sound = all_finite((rollout, after.params, after.opt_state, after.phis))
    played = {name: getattr(after, name) for name in _PLAYED}
    nothing: dict[str, Any] = dict.fromkeys(_PLAYED, ())
    learned = jax.tree.map(partial(jnp.where, sound), after._replace(**nothing), before._replace(**nothing))
    return learned._replace(**played), jnp.where(sound, 0.0, 1.0)
