"""Training: the only scan over iterations, and the host loop around compiled chunks of it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Key, PRNGKeyArray, PyTree

from llmrl import metrics as metrics_file
from llmrl import runs, transfer
from llmrl.config import Config, validate
from llmrl.envs import HOST_ENVIRONMENTS, LANGUAGE, make_host
from llmrl.envs import make as make_env
from llmrl.hints import Listener, listening, misses_of
from llmrl.language import Table
from llmrl.learner.ppo import Batch, Params, make_update
from llmrl.learner.problem import InnerProblem, viewing
from llmrl.learner.rollout import ActingState, collect, episode_statistics, reset_all, unplayed, with_captions
from llmrl.learner.rollout_host import collect_host, restarted, unplayed_rollout
from llmrl.learner.streams import blended, signals, stream_advantages, value_rollout
from llmrl.methods import make_method
from llmrl.nets import Policy, make_critic, make_policy
from llmrl.ops.distributions import sampling_noise
from llmrl.ops.optimizers import own_promotion
from llmrl.ops.tables import NO_KEY
from llmrl.progress import note, progress
from llmrl.rewards import Heard, Language, language, task_signal
from llmrl.types import Environment, EnvSpec, HostEnvironment, HostWorlds, Rollout, Scalar, View

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


class Trainer(NamedTuple):
    """A run as pure functions of one seed; ``jax.vmap`` makes it many.

    Attributes:
        env: the environment; one that only Python can step has no ``run`` (see ``_host_pieces``).
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
    step = optax.chain(optax.clip_by_global_norm(ppo.max_gradient_norm), optax.adam(rate, eps=1e-5))

    def part(params: Params) -> Params:
        return Params(*(jax.tree.map(lambda _, name=name: name, getattr(params, name)) for name in Params._fields))

    # Each part is clipped by itself: under a joint norm a critic with many heads, surprised by a rare reward, would
    # shrink the actor's step just where there is something to learn.
    return own_promotion(optax.multi_transform(dict.fromkeys(Params._fields, step), part))


class _Parts(NamedTuple):
    inner: InnerProblem
    optimizer: optax.GradientTransformation
    update: Callable[[Policy], Callable]
    meta: Any
    language: Language | None
    num_events: int

    def policy(self, phis: tuple[PyTree, ...]) -> Policy:
        return viewing(self.inner.policy, self.inner.view, phis)

    def told(self, rollout: Rollout, heard: Heard | None, table: Table | None):
        """A rollout with a language model's scores; beside it what that source has noted and reports."""
        if self.language is None or heard is None:
            return rollout, heard, {}
        if table is None:  # a single row, which is nobody's
            answers = jnp.full(1, NO_KEY), jnp.zeros((1, self.num_events))
        else:
            answers = table.keys, table.scores
        return self.language.fill(rollout, heard, *answers)

    def attentive(self, state: TrainState) -> TrainState:
        """The state once the host has taken note of what was missed."""
        if self.language is None or state.heard is None:
            return state
        return state._replace(heard=self.language.forget(state.heard))


def _build(config: Config, env: Environment | HostEnvironment) -> _Parts:
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
    return _Parts(inner, optimizer, update, meta, _language_source(config, spec), num_events)


def _language_source(config: Config, spec: EnvSpec) -> Language | None:
    if LANGUAGE not in config.aux.sources:
        return None
    factor = config.aux.scale * config.aux.sources[LANGUAGE]
    return language(spec.aux_names.index(LANGUAGE), factor, config.aux.center)


def _init(config: Config, env: Environment | HostEnvironment, key: PRNGKeyArray, table: Table | None) -> TrainState:
    parts = _build(config, env)
    key, actor_key, critic_key, env_key, phi_key, rollout_key = jax.random.split(key, 6)
    params = Params(parts.inner.policy.init(actor_key), parts.inner.critic.init(critic_key))
    phi_keys = jax.random.split(phi_key, len(parts.inner.streams))
    started = [stream.transform.init(k) for stream, k in zip(parts.inner.streams, phi_keys, strict=True)]
    phis, states = tuple(phi for phi, _ in started), tuple(state for _, state in started)
    if isinstance(env, HostEnvironment):
        acting = unplayed((), jnp.zeros((config.ppo.num_envs, *env.spec.obs_shape), jnp.uint8))
    else:
        acting = reset_all(env, env_key, config.ppo.num_envs)
    heard = parts.language.init() if parts.language is not None else None
    meta_state: PyTree = ()
    if parts.meta is not None:
        # Memory starts with a rollout of the untrained policy, so that old data exist from the first step on.
        rollout = _first_rollout(config, env, parts.policy(phis), params.actor, acting, rollout_key)
        rollout, _, _ = parts.told(rollout, heard, table)
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
        # Nothing can be played in here: ``_host_pieces`` puts something real in its place.
        return unplayed_rollout(env.spec, ppo.num_steps, ppo.num_envs)
    return collect(env, policy, actor, acting, key, ppo.num_steps)[1]


def _iteration(config: Config, env: Environment, parts: _Parts, state: TrainState, index: Array, table: Table | None):
    """Collect, and learn from it."""
    rollout_key, policy = jax.random.split(state.key, 4)[1], parts.policy(state.phis)
    acting, rollout = collect(env, policy, state.params.actor, state.acting, rollout_key, config.ppo.num_steps)
    return _learn(config, parts, state, acting, rollout, index, table)


def _learn(
    config: Config,
    parts: _Parts,
    state: TrainState,
    acting: ActingState,
    rollout: Rollout,
    index: Array,
    table: Table | None,
):
    """Let the outer level move phi, turn the task's signal into streams, and update the policy on them."""
    inner = parts.inner
    key, _, meta_key, update_key = jax.random.split(state.key, 4)
    rollout, heard, told = parts.told(rollout, state.heard, table)
    bare = task_signal(rollout, inner.discount)
    states = tuple(
        stream.transform.observe(noted, phi, bare, rollout)
        for stream, noted, phi in zip(inner.streams, state.transform_states, state.phis, strict=True)
    )
    phis, meta_state, metrics = state.phis, state.meta_state, {}
    if parts.meta is not None:
        phis, meta_state, metrics = parts.meta.update(
            meta_state, phis, states, state.params, rollout, meta_key, index, state.last_kl
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
    metrics = acting.episodes._asdict() | pool | metrics | info._asdict() | told
    new_state = TrainState(
        key, params, opt_state, acting, phis, states, meta_state, info.approx_kl, scale, state.iteration + 1, heard
    )
    return new_state, metrics


def running_peak(peak: Scalar, now: Scalar, decay: float | Scalar) -> Scalar:
    """The largest number seen, forgotten slowly; what is not finite was not seen."""
    return jnp.maximum(decay * peak, jnp.where(jnp.isfinite(now), now, 0.0))


def make_trainer(config: Config) -> Trainer:
    """Compose a run from a validated config.

    Returns:
        A ``Trainer`` of pure functions; nothing is compiled yet.
    """
    env = any_environment(config)

    def init(key, numbers, table=None):
        return _init(with_numbers(config, numbers), env, key, table)

    def run(state, numbers, num_iterations, first=0, table=None):
        compiled = env
        if isinstance(compiled, HostEnvironment):
            raise ValueError(f"{compiled.spec.name} runs in Python and cannot be compiled")
        live = with_numbers(config, numbers)
        parts = _build(live, compiled)
        state = parts.attentive(state)

        def body(state, offset):
            return _iteration(live, compiled, parts, state, offset, table)

        # The index is scanned, not carried: it stays one number under vmap over seeds.
        return jax.lax.scan(body, state, first + jnp.arange(num_iterations))

    return Trainer(env, init, run, numbers_of(config))


# --- many seeds on many devices ---------------------------------------------------------------------------------------


def use_cores(config: Config) -> None:
    """On a plain CPU machine, one simulated device per core when there are several seeds.

    XLA runs programs as small as these on one core; two devices are two programs. Nothing happens once jax has
    started, or where the number of devices was chosen by hand.
    """
    cores = min(os.cpu_count() or 1, config.seeds)
    by_hand = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if config.devices != "auto" or cores < 2 or by_hand or jax.config.values["jax_num_cpu_devices"] > 1:
        return
    # Too late once a backend is up: then there are the devices that there are.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", cores)


def use_compilation_cache() -> None:
    """Keep compiled programs from one run to the next, unless jax was told where (or told not to)."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "llmrl" / "xla"))


def seed_mesh(config: Config) -> Mesh:
    """The devices that share the seeds: as many as divide them evenly."""
    devices = jax.devices()
    allowed = len(devices) if config.devices == "auto" else min(config.devices, len(devices))
    count = max(n for n in range(1, allowed + 1) if config.seeds % n == 0)
    return jax.make_mesh((count,), ("seed",), axis_types=(AxisType.Auto,), devices=devices[:count])


def seed_keys(config: Config) -> Key[Array, " seeds"]:
    """One key per seed: number i among eight is number i alone."""
    base = jax.random.key(config.seed)
    return jax.vmap(lambda i: jax.random.fold_in(base, i))(jnp.arange(config.seeds))


def state_shapes(trainer: Trainer, config: Config) -> TrainState:
    """Shapes and dtypes of every seed's state, [seeds], as a checkpoint's reader needs them; nothing is computed."""
    return jax.eval_shape(jax.vmap(lambda key: trainer.init(key, trainer.numbers)), seed_keys(config))


def initial_states(trainer: Trainer, config: Config, mesh: Mesh, table: Table | None = None) -> TrainState:
    """Every seed's first state, [seeds], spread over the mesh."""
    start = jax.jit(lambda keys, table: jax.vmap(lambda key: trainer.init(key, trainer.numbers, table))(keys))
    states = start(seed_keys(config), table)
    return jax.device_put(states, NamedSharding(mesh, PartitionSpec("seed")))


def on_devices(table: Table | None, mesh: Mesh) -> Table | None:
    """The same table on every device."""
    return jax.device_put(table, NamedSharding(mesh, PartitionSpec()))


def compiled_run(
    trainer: Trainer, states: TrainState, mesh: Mesh, num_iterations: int, table: Table | None = None
) -> Callable:
    """``(states, first[, table]) -> (states, metrics [seeds, num_iterations])``, compiled; every device runs its own
    seeds, nothing is exchanged. Any table of the same shape fits, ``on_devices``."""
    spec = PartitionSpec("seed")

    def many(states, first, table):
        return jax.vmap(lambda state: trainer.run(state, trainer.numbers, num_iterations, first, table))(states)

    # Seeds never meet, so there is nothing for the check of replicated values to find.
    sharded = jax.shard_map(
        many, mesh=mesh, in_specs=(spec, PartitionSpec(), PartitionSpec()), out_specs=spec, check_vma=False
    )
    program = jax.jit(sharded).lower(states, np.int32(0), table).compile()
    return lambda states, first, table=None: program(states, first, table)


class _Pieces(NamedTuple):
    """The parts of a run that the host loop puts together.

    Attributes:
        initial: ``table -> states``, [seeds].
        restored: ``states -> states``, ready to go on with what a checkpoint holds.
        program: ``(states, length, table) -> ((states, first, table) -> (states, metrics [seeds, length]))``.
    """

    initial: Callable[[Table | None], TrainState]
    restored: Callable[[TrainState], TrainState]
    program: Callable[[TrainState, int, Table | None], Callable]


@contextlib.contextmanager
def _pieces(config: Config, trainer: Trainer, mesh: Mesh) -> Iterator[_Pieces]:
    if isinstance(trainer.env, HostEnvironment):
        with trainer.env.opened(trainer.env.sources) as worlds:
            yield _host_pieces(config, trainer, trainer.env, worlds)
        return

    def program(states, length, table):
        run = compiled_run(trainer, states, mesh, length, on_devices(table, mesh))
        return lambda states, first, table: run(states, first, on_devices(table, mesh))

    yield _Pieces(
        lambda table: initial_states(trainer, config, mesh, on_devices(table, mesh)),
        lambda states: jax.device_put(states, NamedSharding(mesh, PartitionSpec("seed"))),
        program,
    )


def _host_pieces(config: Config, trainer: Trainer, env: HostEnvironment, worlds: HostWorlds) -> _Pieces:
    """Acting step by step on the host, everything else compiled; all seeds at once, on one device.

    Worlds are not part of a state: whoever goes on with a run starts fresh episodes.
    """
    seeds, ppo = config.seeds, config.ppo
    live = with_numbers(config, trainer.numbers)
    parts = _build(live, env)
    chances = np.random.default_rng([config.seed, 1])

    @jax.jit
    def noise_of(states):
        shape = ppo.num_steps + 1, ppo.num_envs
        return jax.vmap(lambda key: sampling_noise(jax.random.split(key, 4)[1], env.spec.action, shape))(states.key)

    @jax.jit
    def act(actors, phis, obs, noise):
        def one(actor, phis, obs, noise):
            distribution = parts.policy(phis).distribution(actor, obs)
            action = distribution.sample(noise)
            return action, distribution.log_prob(action)

        return jax.vmap(one)(actors, phis, obs, noise)

    @jax.jit
    def learn(states, obs, rollouts, index, table):
        def one(state, obs, rollout):
            length, returned, episodes = episode_statistics(state.acting, rollout.steps)
            return _learn(live, parts, state, ActingState((), obs, length, returned, episodes), rollout, index, table)

        return jax.vmap(one)(states, obs, rollouts)

    @jax.jit
    def captioned(rollouts):
        return jax.vmap(lambda rollout: rollout._replace(steps=with_captions(env, rollout.steps)))(rollouts)

    def play(states):
        acting, obs = partial(act, states.params.actor, states.phis), np.asarray(states.acting.obs)
        obs, rollouts = collect_host(worlds, acting, obs, noise_of(states), chances)
        return obs, captioned(rollouts)

    def started(states):
        """The same states at the beginning of fresh episodes."""
        shape = seeds, ppo.num_envs
        obs = restarted(worlds, np.zeros((*shape, *env.spec.obs_shape), np.uint8), np.ones(shape, bool), chances)
        return states._replace(
            acting=states.acting._replace(obs=jnp.asarray(obs), length=jnp.zeros(shape), returned=jnp.zeros(shape))
        )

    @jax.jit
    def remembered(states, rollouts, table):
        def one(state, rollout):
            rollout, _, _ = parts.told(rollout, state.heard, table)
            return parts.meta.init(state.phis, state.transform_states, state.params, rollout)

        return jax.vmap(one)(states, rollouts)

    def initial(table):
        states = started(jax.jit(jax.vmap(lambda key: trainer.init(key, trainer.numbers)))(seed_keys(config)))
        if parts.meta is None:
            return states
        _, rollouts = play(states)
        return started(states._replace(meta_state=remembered(states, rollouts, table)))

    def program(states, length, table):
        def run(states, first, table):
            rows, states = [], parts.attentive(states)
            for index in range(first, first + length):
                obs, rollouts = play(states)
                states, row = learn(states, obs, rollouts, jnp.asarray(index, jnp.int32), table)
                rows.append(row)
            return states, jax.tree.map(lambda *x: jnp.stack(x, axis=1), *rows)

        return run

    return _Pieces(initial, started, program)


# --- the host loop ----------------------------------------------------------------------------------------------------


class Result(NamedTuple):
    """A finished run.

    Attributes:
        config: its settings.
        metrics: name -> [seeds, iterations], as in ``metrics.csv``.
        state: the last states, [seeds].
        summary: as in ``summary.json``.
    """

    config: Config
    metrics: dict[str, np.ndarray]
    state: TrainState
    summary: dict[str, Any]


def chunk_lengths(num_iterations: int, num_chunks: int) -> list[int]:
    """Lengths of the compiled pieces, equal where a length from half to twice the wished one divides the whole: each
    length costs a compilation."""
    wished = -(-num_iterations // num_chunks)
    shorter, longer = range(wished, -(-wished // 2) - 1, -1), range(wished + 1, 2 * wished + 1)
    even = [n for n in (*shorter, *longer) if num_iterations % n == 0]
    length = even[0] if even else wished
    whole, rest = divmod(num_iterations, length)
    return [length] * whole + ([rest] if rest else [])


class _Store(NamedTuple):
    """Where chunks go: a run directory, or nowhere but memory."""

    restore: Callable[[TrainState], tuple[TrainState, int] | None]
    restore_language: Callable[[int], tuple[Table | None, dict[str, float]]]
    record: Callable[[TrainState, dict[str, np.ndarray], int, Table | None], None]
    run: runs.Run | None


@contextlib.contextmanager
def _store(config: Config) -> Iterator[_Store]:
    if config.run_dir is None:
        yield _Store(lambda like: None, lambda start: (None, {}), lambda *chunk: None, None)
        return
    with runs.open_run(config) as run:
        yield _Store(
            functools.partial(runs.restore, run),
            functools.partial(runs.restore_language, run),
            functools.partial(runs.record, run),
            run,
        )


def train(config: Config) -> Result:
    """Train all seeds of a config; with a ``run_dir``, keep everything there and go on where an earlier process
    stopped.

    Args:
        config: from ``llmrl.compose`` or built by hand.

    Returns:
        Metrics, states and summary.

    Raises:
        ValueError: a setting is out of range, the run directory is another run's, or the reward to train under cannot
            be had or does not fit.
    """
    validate(config)
    use_compilation_cache()
    use_cores(config)
    config = transfer.resolved(config, lambda other: any_environment(other).spec)
    trainer = make_trainer(config)
    mesh = seed_mesh(config)
    with _store(config) as store, _pieces(config, trainer, mesh) as pieces:
        if config.progress and mesh.size > 1:
            note(f"{config.seeds} seeds over {mesh.size} {jax.devices()[0].platform} devices")
        restored = store.restore(state_shapes(trainer, config))
        states, start = restored or (None, 0)
        with _listener(config, trainer.env, store, start) as listener:
            if states is None:
                states = transfer.with_reward(config, pieces.initial(listener.table))
            else:
                states = pieces.restored(states)
            return _train_chunks(config, pieces, states, start, store, listener)


def _listener(
    config: Config, env: Environment | HostEnvironment, store: _Store, start: int
) -> contextlib.AbstractContextManager[Listener]:
    if start == config.num_iterations:  # nobody is asked any more
        return contextlib.nullcontext(Listener(None, lambda table, misses: (table, {})))
    return listening(config, env, *store.restore_language(start))


def _train_chunks(
    config: Config, pieces: _Pieces, states: TrainState, start: int, store: _Store, listener: Listener
) -> Result:
    """Run what is left in compiled pieces; the same pieces whether or not the run was interrupted."""
    programs: dict[int, Callable] = {}
    chunks: list[dict[str, np.ndarray]] = []
    compile_seconds, run_seconds, done, table = 0.0, 0.0, 0, listener.table
    with progress(config.num_iterations, start, config.progress and start < config.num_iterations) as show:
        for length in chunk_lengths(config.num_iterations, config.num_chunks):
            done += length
            if done <= start:
                continue
            began = time.monotonic()
            if length not in programs:
                programs[length] = pieces.program(states, length, table)
            compiled = time.monotonic()
            states, chunk = jax.block_until_ready(programs[length](states, np.int32(done - length), table))
            chunk = {name: np.asarray(curve) for name, curve in chunk.items()}
            compile_seconds += compiled - began
            run_seconds += time.monotonic() - compiled
            table, counts = listener.exchange(table, misses_of(states.heard))
            chunk |= {name: np.full((config.seeds, length), count, np.float32) for name, count in counts.items()}
            store.record(states, chunk, done - length, table)
            chunks.append(chunk)
            show(done, chunk)
    seconds = {
        "compile_seconds": compile_seconds,
        "run_seconds": run_seconds,
        "run_iterations": config.num_iterations - start,
    }
    return _result(config, states, chunks, store.run, seconds)


def _result(config: Config, states: TrainState, chunks: list[dict[str, np.ndarray]], run: runs.Run | None, seconds):
    if run is not None:
        finished = run.finished and not chunks
        summary = runs.read_summary(run) if finished else runs.finish(run, **seconds)
        return Result(config, metrics_file.read(run.metrics_path), states, summary)
    curves = {name: np.concatenate([chunk[name] for chunk in chunks], axis=1) for name in chunks[0]}
    summary = metrics_file.summary(curves, steps_per_iteration=config.ppo.batch_size, **seconds)
    return Result(config, metrics_file.index(curves, config.ppo.batch_size) | curves, states, summary)
