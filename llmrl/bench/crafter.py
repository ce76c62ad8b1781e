"""Craftax-Classic with worlds from a pool and observations of bytes, against Craftax's own way and the usual one.

Three ways to go on after an episode: a world of its own for every environment in every step, of which nearly all are
thrown away (Craftax's auto-reset); one for sixteen environments in every step, shared by those that need one (the
usual remedy, "optimistic" resets); and a pool that is filled up after each rollout (``learner.resets``).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

from llmrl.assembly.parts import build, make_environment
from llmrl.bench.report import Row, Table
from llmrl.bench.timing import interleaved, ratios, spread
from llmrl.envs import craftax_classic
from llmrl.learner.resets import PoolStatistics, Resets, Worlds, make_resets
from llmrl.learner.rollout import collect, reset_all
from llmrl.settings.config import AuxConfig, Config, EnvConfig, MethodConfig, PPOConfig
from llmrl.settings.requests import Bench
from llmrl.training.cores import use_compilation_cache
from llmrl.training.devices import seed_mesh
from llmrl.training.iteration import iterate, iteration_keys, learn_from
from llmrl.training.loop import initial_states, make_trainer
from llmrl.training.progress import note
from llmrl.types import Environment, HostEnvironment

SHARED_BY = 16
"""Environments per world of an optimistic reset."""
PLAIN = Config(
    env=EnvConfig(name="craftax_classic"),
    method=MethodConfig(name="ppo"),
    ppo=PPOConfig(num_envs=64, num_steps=64, hidden=(128, 128)),
    seeds=1,
    devices=1,
)
LEARNED = replace(PLAIN, method=MethodConfig(), aux=AuxConfig(sources={"hints": 1.0}))
OWN, SHARED, POOLED = "a world per step", f"a world per {SHARED_BY} steps, shared", "a pool of worlds"

Program = Callable[[PyTree], PyTree]
"""``state -> state``, one rollout (and what is learned from it) further; compiled."""


def crafter(request: Bench) -> Table:
    """Steps of the game alone, and of training in it; with each the memory of its rollout."""
    use_compilation_cache()
    rows: list[Row] = []
    for envs in request.crafter_envs:
        config = with_envs(PLAIN, envs)
        played = {
            OWN: craftax_alone(config, own=True),
            SHARED: craftax_alone(config, own=False),
            POOLED: ours_alone(config),
        }
        rows += _compared(f"{envs} envs, game alone", played, config, request, {})
        one_hot = replace(config, env=replace(config.env, observation="one_hot"))
        trained = {
            f"ppo, one-hot, {OWN}": training(one_hot, own_worlds, their_game),
            f"ppo, one-hot, {SHARED}": training(one_hot, shared_worlds, their_game),
            f"ppo, one-hot, our game, {SHARED}": training(one_hot, shared_worlds),
            f"ppo, bytes, {POOLED}": training(config),
            f"implicit, bytes, {POOLED}": training(with_envs(LEARNED, envs)),
        }
        sizes = {name: rollout_bytes(one_hot if "one-hot" in name else config) for name in trained}
        rows += _compared(f"{envs} envs, training", trained, config, request, sizes)
    title = f"Craftax-Classic, {PLAIN.ppo.num_steps} steps a rollout; ratios to the first row of each group"
    return Table(title, "steps/s", "first", rows)


def with_envs(config: Config, envs: int) -> Config:
    """The same with so many environments."""
    return replace(config, ppo=replace(config.ppo, num_envs=envs))


def _compared(
    group: str, programs: dict[str, tuple[Program, PyTree]], config: Config, request: Bench, sizes: dict[str, int]
) -> list[Row]:
    """Programs take turns; each goes on from where its last measurement ended, so that episodes do end."""
    # The slow ones are so slow that a measurement as long as elsewhere would take minutes.
    rollouts = max(1, request.steps // 16 // config.ppo.batch_size)
    states = {name: state for name, (_, state) in programs.items()}

    def measure(name: str, run: Program) -> float:
        began = time.perf_counter()
        for _ in range(rollouts):
            states[name] = jax.block_until_ready(run(states[name]))
        return time.perf_counter() - began

    note(f"{group}: {', '.join(programs)}")
    seconds = interleaved({name: partial(measure, name, run) for name, (run, _) in programs.items()}, request.rounds)
    speeds = {name: [rollouts * config.ppo.batch_size / each for each in rounds] for name, rounds in seconds.items()}
    first, *_ = speeds.values()
    rows = []
    for name, values in speeds.items():
        shared = next(other for label, other in speeds.items() if SHARED in label)  # the first: of Craftax's own game
        said = [] if values is first else [f"x {spread(ratios(values, shared)).median:.3g} of sharing"]
        if name in sizes:
            said.append(f"rollout of {sizes[name] / 1e6:.3g} MB")
        rows.append(Row(f"{group}, {name}", values, ratios(values, first), ", ".join(said)))
    return rows


# --- the game alone ---------------------------------------------------------------------------------------------------


def craftax_alone(config: Config, own: bool) -> tuple[Program, PyTree]:
    """Craftax's own environment and observation under random play; its auto-reset, or sharing worlds."""
    make_environment(config)  # keeps Craftax's textures out of its own folder
    from craftax.craftax_env import make_craftax_env_from_name

    game: Any = make_craftax_env_from_name("Craftax-Classic-Symbolic-v1", auto_reset=own)
    params, envs = game.default_params, config.ppo.num_envs

    def step(carry, key):
        env_state, total = carry
        action_key, step_key, reset_key = jax.random.split(key, 3)
        action = jax.random.randint(action_key, (envs,), 0, 17)
        keys = jax.random.split(step_key, envs)
        obs, env_state, reward, done, _ = jax.vmap(game.step, in_axes=(0, 0, 0, None))(keys, env_state, action, params)
        if not own:
            fresh = jax.vmap(game.reset, in_axes=(0, None))(jax.random.split(reset_key, _num_worlds(envs)), params)
            obs, env_state = jax.tree.map(partial(_instead, done), fresh, (obs, env_state))
        return (env_state, total + jnp.sum(obs) + jnp.sum(reward)), None

    def start(key):
        _, env_state = jax.vmap(game.reset, in_axes=(0, None))(jax.random.split(key, envs), params)
        return env_state

    return _scanned(step, start, config.ppo.num_steps)


def ours_alone(config: Config) -> tuple[Program, PyTree]:
    """Our environment under random play, with worlds from a pool; the observation is summed as Craftax's is."""
    env, ppo = make_environment(config), config.ppo

    @jax.jit
    def run(state):
        env_state, worlds, total, key = state
        key, action_key, step_key, reset_key = jax.random.split(key, 4)
        actions = jax.random.randint(action_key, (ppo.num_steps, ppo.num_envs), 0, 17)
        keys = jax.random.split(step_key, actions.shape)
        resets = make_resets(env, reset_key, ppo.num_steps, ppo.num_envs, worlds)

        def step(carry, now):
            env_state, carried, total = carry
            keys, action, draw = now
            env_state, obs, result, carried = resets.advance(keys, env_state, action, draw, carried)
            return (env_state, carried, total + jnp.sum(obs.astype(jnp.float32)) + jnp.sum(result.reward)), None

        start = env_state, resets.start, total
        (env_state, carried, total), _ = jax.lax.scan(step, start, (keys, actions, resets.draws))
        return env_state, resets.finish(carried)[0], total, key

    standing = jax.jit(lambda key: reset_all(env, key, ppo.num_envs, ppo.num_steps))(jax.random.key(0))
    return run, (standing.env_state, standing.worlds, jnp.zeros(()), jax.random.key(1))


def _scanned(step: Callable, start: Callable, num_steps: int) -> tuple[Program, PyTree]:
    @jax.jit
    def run(state):
        env_state, total, key = state
        key, steps_key = jax.random.split(key)
        (env_state, total), _ = jax.lax.scan(step, (env_state, total), jax.random.split(steps_key, num_steps))
        return env_state, total, key

    return run, (jax.jit(start)(jax.random.key(0)), jnp.zeros(()), jax.random.key(1))


# --- training ---------------------------------------------------------------------------------------------------------


def training(
    config: Config,
    resets: Callable[..., Resets] | None = None,
    traced_with: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
) -> tuple[Program, PyTree]:
    """Iterations of a config, with worlds from the environment's pool or from elsewhere."""
    trainer = make_trainer(config)
    states = initial_states(trainer, config, seed_mesh(config))
    env, parts = trainer.env, build(config, trainer.env)
    assert not isinstance(env, HostEnvironment)

    @jax.jit
    def run(state):
        if resets is None:
            return iterate(config, env, parts, state, state.iteration, None)[0]
        key, policy = iteration_keys(state.key).rollout, parts.policy(state.phis)
        actor, steps = state.params.actor, config.ppo.num_steps
        acting, rollout = collect(env, policy, actor, state.acting, key, steps, resets)
        return learn_from(config, parts, state, acting, rollout, state.iteration, None)[0]

    state = jax.tree.map(lambda x: x[0], states)
    with traced_with():
        return run.lower(state).compile(), state


@contextlib.contextmanager
def their_game() -> Iterator[None]:
    """Craftax's game as it is published."""
    instead = dict(craftax_classic.INSTEAD)
    craftax_classic.INSTEAD.clear()
    try:
        yield
    finally:
        craftax_classic.INSTEAD.update(instead)


def own_worlds(env: Environment, key: PRNGKeyArray, num_steps: int, num_envs: int, pool: Worlds | None) -> Resets:
    """A world for every environment in every step, as Craftax's auto-reset makes them."""
    return _made_in_steps(env, key, num_steps, num_envs, pool)


def shared_worlds(env: Environment, key: PRNGKeyArray, num_steps: int, num_envs: int, pool: Worlds | None) -> Resets:
    """One for ``SHARED_BY`` environments in every step; those that end together may get the same."""
    return _made_in_steps(env, key, num_steps, _num_worlds(num_envs), pool)


def _made_in_steps(env: Environment, key: PRNGKeyArray, num_steps: int, worlds: int, pool: Worlds | None) -> Resets:
    """The pool that the environment would take from is left as it is."""
    nothing = PoolStatistics(jnp.zeros(()), jnp.zeros(()))

    def advance(keys, env_state, action, draw, carried):
        env_state, step = jax.vmap(env.step)(keys, env_state, action)
        fresh = jax.vmap(env.reset)(jax.random.split(draw, worlds))
        done = step.terminated | step.truncated
        env_state, obs = jax.tree.map(partial(_instead, done), fresh, (env_state, step.obs))
        return env_state, obs, step, carried

    return Resets(jax.random.split(key, num_steps), (), advance, lambda carried: (pool, nothing))


def _num_worlds(envs: int) -> int:
    return -(-envs // SHARED_BY)


def _instead(done: Array, fresh: Array, reached: Array) -> Array:
    """What the environments go on with: environment i takes world i, modulo their number."""
    given = fresh[np.arange(done.shape[0]) % fresh.shape[0]]
    return jnp.where(done.reshape(-1, *(1,) * (given.ndim - 1)), given, reached)


def rollout_bytes(config: Config) -> int:
    """What a rollout takes, in bytes."""
    trainer = make_trainer(config)
    env, parts = trainer.env, build(config, trainer.env)
    assert not isinstance(env, HostEnvironment)

    def one(key):
        state = trainer.init(key, trainer.numbers)
        policy = parts.policy(state.phis)
        return collect(env, policy, state.params.actor, state.acting, key, config.ppo.num_steps)[1]

    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(jax.eval_shape(one, jax.random.key(0))))
