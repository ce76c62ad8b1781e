"""A map of trust: fresh rollouts of a run's trained policies, with what their learner makes of every source there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, Shaped

from llmrl.analysis.answers import Words
from llmrl.analysis.trust import AS_ACTED, TrustMap
from llmrl.assembly.methods import make_method
from llmrl.assembly.parts import acting_policy, any_environment, build_to_play, with_numbers
from llmrl.envs import LANGUAGE
from llmrl.envs.base import key_of_seed
from llmrl.language.table import Table, as_dict
from llmrl.learner.arms import ArmsState, arms_of
from llmrl.learner.blending import influence_on, noted_of
from llmrl.learner.rollout import collect, reset_all, with_captions
from llmrl.learner.rollout_host import play_rollouts
from llmrl.learner.streams import given, stream_states
from llmrl.rewards import SourceMemory, frozen
from llmrl.runs import directory as runs
from llmrl.settings.config import Config
from llmrl.settings.errors import BadValue
from llmrl.training.arms import leaders
from llmrl.training.cores import in_float32, refuse_debugging, use_compilation_cache
from llmrl.training.devices import state_shapes
from llmrl.training.iteration import TrainState
from llmrl.training.loop import make_trainer
from llmrl.trust.blend import TRUSTED_FROM
from llmrl.types import Box, Discrete, Environment, EnvSpec, HostEnvironment, Rollout

MOST_ACTIONS = 6
"""Discrete actions that are all asked about; where there are more, only the action taken is."""
FORCES = (-1.0, -0.5, 0.5, 1.0)
"""A continuous action with one dimension is asked about here, from its lowest value at -1 to its highest at 1."""


@in_float32
def trust_map(
    result_or_run_dir: Any, *, num_steps: int = 256, num_envs: int = 16, seed: int = 0, threshold: float = TRUSTED_FROM
) -> TrustMap:
    """Plays the trained policies of a run and notes what their learner thinks of every auxiliary source.

    Args:
        result_or_run_dir: what ``llmrl.train`` returned, or a run's directory; an unfinished run is taken as it is.
        num_steps: steps of each environment.
        num_envs: environments of each seed.
        seed: of the rollouts.
        threshold: see ``TrustMap``.

    Returns:
        The map of all seeds.

    Raises:
        ValueError: the run has no auxiliary source, or its method no weights of sources, or nothing was saved yet.
    """
    refuse_debugging("jax_disable_jit")
    use_compilation_cache()
    config, states, table = _trained(result_or_run_dir)
    env = any_environment(config)
    if not env.spec.aux_names:
        raise BadValue("a map of trust needs an auxiliary source, and this run has none")
    streams = make_method(config, env.spec).streams
    trusting = [i for i, stream in enumerate(streams) if stream.transform.weights is not None]
    if not trusting:
        raise BadValue(f"method={config.method.name} gives its auxiliary sources no weights that could be mapped")
    follow, states = _followed(config, env.spec, states), leaders(states)
    # A game in Python cannot be asked what another action would have done.
    probes = {} if isinstance(env, HostEnvironment) else _probes(env.spec)
    known = None if table is None else jax.tree.map(jnp.asarray, table)

    def of_seed(trained: TrainState, follow, rollout: Rollout):
        parts = build_to_play(with_numbers(config, {"method.follow": follow}), env, num_envs)
        streams = parts.inner.streams
        transform = streams[trusting[0]].transform
        in_effect, settled = transform.weights, frozen(transform).weights
        assert in_effect is not None and settled is not None
        memory = parts.sources.restarted(SourceMemory(trained.heard, trained.late))
        probed = _one_per_probe(env, rollout, list(probes.values()))
        asked = [parts.sources.annotate(memory, probed[0], known, each)[0] for each in probed]
        # Units are those of the rollout that an update is made on, here as in training.
        fresh = noted_of(parts.inner, trained.phis, trained.transform_states, asked[0])
        moved = influence_on(parts.inner, trained.phis, fresh, trained.params, asked[0])
        assert moved is not None
        _, phi, noted = list(stream_states(streams, trained.phis, trained.transform_states))[trusting[0]]
        at_work = given(transform, fresh[trusting[0]], fresh[0])
        weight = jnp.stack([in_effect(phi, at_work, each).weight for each in asked], axis=2)
        lasting = jnp.stack([settled(phi, noted, each).weight for each in asked], axis=2)
        aux, event = (jnp.stack([getattr(each.steps, name) for each in asked], axis=2) for name in ("aux", "event"))
        visited = rollout.steps.obs, rollout.steps.state_key, event, aux, moved.at(weight), weight, lasting
        return *(x.reshape(-1, *x.shape[2:]) for x in visited), settled(phi, noted, asked[0]).unit

    keys = jax.vmap(lambda i: jax.random.fold_in(key_of_seed(seed), i))(jnp.arange(config.seeds))
    policy, actors = acting_policy(config, env.spec), (states.params.actor, states.phis)
    if isinstance(env, HostEnvironment):
        rollouts = play_rollouts(env, policy, actors, keys, num_steps, num_envs)
    else:
        probing = _also_asked(env, list(probes.values()))

        def play(actor, key):
            reset_key, collect_key = jax.random.split(key)
            acting = reset_all(probing, reset_key, num_envs, num_steps)
            return collect(probing, policy, actor, acting, collect_key, num_steps)[1]

        rollouts = jax.jit(jax.vmap(play))(actors, keys)
    played = jax.jit(jax.vmap(of_seed))(states, follow, rollouts)
    obs, state_key, event, aux, moved, weight, lasting, unit = map(np.asarray, played)
    obs = obs.reshape(*obs.shape[:2], -1).astype(np.float32)
    words = _words(env, state_key, event, table)
    called = env.spec.aux_names, (AS_ACTED, *probes), names_of(env.spec)
    return TrustMap(*called, obs, aux, moved, weight, lasting, unit, threshold, words)


def _followed(config: Config, spec: EnvSpec, states: TrainState) -> Float[Array, "seeds *m"]:
    """How far each seed's policy, the one that is handed over, follows its sources: of several, each has its own."""
    if not isinstance(states.arms, ArmsState):
        return jnp.full(config.seeds, config.method.follow, jnp.float32)
    every = jnp.asarray([arm.follow for arm in arms_of(config.method.arms.follow, spec.aux_names)], jnp.float32)
    return every[jax.vmap(lambda arms: arms.leader)(states.arms)]


def names_of(spec: EnvSpec) -> tuple[str, ...]:
    """A name per component of an observation, made up where the environment has none."""
    size = int(np.prod(spec.obs_shape))
    return spec.obs_names if len(spec.obs_names) == size else tuple(f"observation {i}" for i in range(size))


def _words(
    env: Environment | HostEnvironment, state_key: np.ndarray, event: np.ndarray, table: Table | None
) -> Words | None:
    """What a language model was asked about the visited states."""
    captioner: Any = env.captioner  # whose callable fields pyright takes for methods
    if LANGUAGE not in env.spec.aux_names or table is None or captioner is None:
        return None
    source = env.spec.aux_names.index(LANGUAGE)
    return Words(source, state_key, event, captioner.describe, captioner.events, as_dict(table))


def _trained(result_or_run_dir: Any) -> tuple[Config, PyTree, Table | None]:
    if not isinstance(result_or_run_dir, str | Path):
        return result_or_run_dir.config, result_or_run_dir.state, result_or_run_dir.answers
    run = runs.load_trained(result_or_run_dir)
    states, iterations = runs.load_state(run, state_shapes(make_trainer(run.config), run.config))
    return run.config, states, runs.read_answers(run, iterations)


def _probes(spec: EnvSpec) -> dict[str, Shaped[Array, "*a"]]:
    """Actions to ask about, by what they are called."""
    space = spec.action
    if isinstance(space, Discrete):
        return {f"action {i}": jnp.asarray(i, jnp.int32) for i in range(space.num)} if space.num <= MOST_ACTIONS else {}
    if isinstance(space, Box) and space.dim == 1:
        values = [space.low + (share + 1.0) / 2.0 * (space.high - space.low) for share in FORCES]
        return {f"action {value:+.2g}": jnp.full(1, value, jnp.float32) for value in values}
    return {}


def _also_asked(env: Environment, probes: Sequence[Shaped[Array, "*a"]]) -> Environment:
    """The environment, whose steps also tell what the sources would have said of other actions, and where these lead:
    aux is [m + p (m + o + 1)], a probe's sources, observation and event after another."""

    def step(key, state, action):
        reached, taken = env.step(key, state, action)
        told = [taken.aux]
        for probe in probes:
            asked = env.step(key, state, jnp.asarray(probe, action.dtype))[1]
            told += [asked.aux, jnp.ravel(asked.obs).astype(jnp.float32), asked.event[None].astype(jnp.float32)]
        return reached, taken._replace(aux=jnp.concatenate(told))

    return env._replace(step=step)


def _one_per_probe(
    env: Environment | HostEnvironment, rollout: Rollout, probes: Sequence[Shaped[Array, "*a"]]
) -> list[Rollout]:
    """The rollout of ``_also_asked`` as it was acted, and as each probe would have had its every step."""
    if not probes:
        return [rollout]
    steps, m = rollout.steps, len(env.spec.aux_names)
    rest = steps.aux[..., m:].reshape(*steps.aux.shape[:-1], len(probes), -1)
    asked = [rollout._replace(steps=steps._replace(aux=steps.aux[..., :m]))]
    for i, probe in enumerate(probes):
        told = rest[..., i, :]
        other = steps._replace(
            action=jnp.broadcast_to(probe, steps.action.shape),
            next_obs=told[..., m:-1].reshape(steps.next_obs.shape).astype(steps.next_obs.dtype),
            aux=told[..., :m],
            event=told[..., -1].astype(steps.event.dtype),
        )
        asked.append(rollout._replace(steps=with_captions(env, other)))
    return asked
