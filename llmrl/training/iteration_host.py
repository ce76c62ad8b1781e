"""Iterations of a run whose games only Python can step: played on the host, learned from in compiled pieces."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from llmrl.assembly.parts import build, with_numbers
from llmrl.learner.rollout import ActingState, episode_statistics, with_captions
from llmrl.learner.rollout_host import collect_host, restarted
from llmrl.ops.distributions import sampling_noise
from llmrl.rewards import SourceMemory
from llmrl.settings.config import Config
from llmrl.training.devices import seed_keys
from llmrl.training.iteration import Trainer, TrainState, iteration_keys, learn_from
from llmrl.types import HostEnvironment, HostWorlds


def host_pieces(
    config: Config, trainer: Trainer, env: HostEnvironment, worlds: HostWorlds
) -> tuple[Callable[..., TrainState], Callable[[TrainState], TrainState], Callable[..., Callable]]:
    """The functions of ``Pieces``: acting step by step on the host, everything else compiled; all seeds at once, on one
    device.

    Worlds are not part of a state: a resumed run starts fresh episodes.
    """
    seeds, ppo = config.seeds, config.ppo
    live = with_numbers(config, trainer.numbers)
    parts = build(live, env)
    chances = np.random.default_rng([config.seed, 1])

    @jax.jit
    def noise_of(states):
        shape = ppo.num_steps + 1, ppo.num_envs
        return jax.vmap(lambda key: sampling_noise(iteration_keys(key).rollout, env.spec.action, shape))(states.key)

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
            return learn_from(
                live, parts, state, ActingState((), obs, length, returned, episodes), rollout, index, table
            )

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
            rollout, _, _ = parts.sources.annotate(SourceMemory(state.heard, state.late), rollout, table)
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
            rows, states = [], states._replace(heard=parts.sources.attentive(states.heard))
            for index in range(first, first + length):
                obs, rollouts = play(states)
                states, row = learn(states, obs, rollouts, jnp.asarray(index, jnp.int32), table)
                rows.append(row)
            return states, jax.tree.map(lambda *x: jnp.stack(x, axis=1), *rows)

        return run

    return initial, started, program
