"""A map of trust: fresh rollouts of a run's trained policies, with what their learner thinks of every source there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree, Shaped

from llmrl import runs
from llmrl.analysis.trust import AS_ACTED, TrustMap
from llmrl.config import Config
from llmrl.learner.rollout import collect, reset_all
from llmrl.methods import make_method
from llmrl.rewards.mixture import TRUSTED_FROM
from llmrl.train import make_environment, make_trainer, policy_of, state_shapes, use_compilation_cache
from llmrl.types import Box, Discrete, Environment, EnvSpec

MOST_ACTIONS = 6
"""Discrete actions that are all asked about; where there are more, only the action taken is."""
FORCES = (-1.0, -0.5, 0.5, 1.0)
"""A continuous action with one dimension is asked about here, from its lowest value at -1 to its highest at 1."""


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
    use_compilation_cache()
    config, states = _trained(result_or_run_dir)
    env = make_environment(config)
    if not env.spec.aux_names:
        raise ValueError("a map of trust needs an auxiliary source, and this run has none")
    streams = make_method(config, env.spec).streams
    trusting = [i for i, stream in enumerate(streams) if stream.transform.weights is not None]
    if not trusting:
        raise ValueError(f"method={config.method.name} gives its auxiliary sources no weights that could be mapped")
    weights_of = streams[trusting[0]].transform.weights
    assert weights_of is not None
    probes = _probes(env.spec)
    policy, probing = policy_of(config, env.spec), _also_asked(env, list(probes.values()))

    def of_seed(actor, phi, noted, key):
        reset_key, collect_key = jax.random.split(key)
        acting = reset_all(probing, reset_key, num_envs)
        _, rollout = collect(probing, policy, actor, acting, collect_key, num_steps)
        steps = rollout.steps
        aux = jnp.split(steps.aux, len(probes) + 1, axis=-1)
        actions = [steps.action, *(jnp.broadcast_to(action, steps.action.shape) for action in probes.values())]
        asked = [rollout._replace(steps=steps._replace(action=a, aux=x)) for a, x in zip(actions, aux, strict=True)]
        found = [weights_of(phi, noted, each) for each in asked]
        weight = jnp.stack([each.weight for each in found], axis=2)
        flat = (x.reshape(-1, *x.shape[2:]) for x in (steps.obs, weight, jnp.stack(aux, axis=2)))
        return *flat, found[0].unit

    phi, noted = states.phis[trusting[0]], states.transform_states[trusting[0]]
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(config.seeds))
    obs, weight, aux, unit = map(np.asarray, jax.jit(jax.vmap(of_seed))(states.params.actor, phi, noted, keys))
    obs = obs.reshape(*obs.shape[:2], -1).astype(np.float32)
    return TrustMap(env.spec.aux_names, (AS_ACTED, *probes), names_of(env.spec), obs, weight, aux, unit, threshold)


def names_of(spec: EnvSpec) -> tuple[str, ...]:
    """A name per component of an observation, made up where the environment has none."""
    size = int(np.prod(spec.obs_shape))
    return spec.obs_names if len(spec.obs_names) == size else tuple(f"observation {i}" for i in range(size))


def _trained(result_or_run_dir: Any) -> tuple[Config, PyTree]:
    if not isinstance(result_or_run_dir, str | Path):
        return result_or_run_dir.config, result_or_run_dir.state
    run = runs.load_run(result_or_run_dir)
    states, _ = runs.load_state(run, state_shapes(make_trainer(run.config), run.config))
    return run.config, states


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
    """The environment, whose steps also tell what the sources would have said of other actions: aux is [(1 + p) m]."""

    def step(key, state, action):
        reached, taken = env.step(key, state, action)
        asked = [env.step(key, state, jnp.asarray(probe, action.dtype))[1].aux for probe in probes]
        return reached, taken._replace(aux=jnp.concatenate([taken.aux, *asked]))

    return env._replace(step=step)
