"""Iterations of a run whose games only Python can step: played on the host, learned from in compiled pieces."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from llmrl.assembly.parts import build, with_numbers
from llmrl.language import Table
from llmrl.learner.rollout import ActingState, distribution_in_turn, episode_statistics
from llmrl.learner.rollout_host import Standing, captioned, collect_host, drawn, led_to, places_of
from llmrl.settings.config import Config
from llmrl.training.devices import seed_keys
from llmrl.training.iteration import ALONE, Play, Played, Trainer, TrainState, Ways, first_state, start_keys
from llmrl.training.progress import note
from llmrl.types import HostEnvironment, HostWorlds, Rollout


def host_pieces(
    config: Config, trainer: Trainer, env: HostEnvironment, worlds: HostWorlds
) -> tuple[Callable[..., TrainState], Callable[[TrainState], TrainState], Callable[..., Callable]]:
    """The functions of ``Pieces``: acting step by step on the host, everything else compiled; all seeds at once, on one
    device.

    A state holds the seeds and actions of its running episodes, and a resumed run plays them again.
    """
    assert trainer.ways is not None
    ways, ppo = trainer.ways, config.ppo
    live = with_numbers(config, trainer.numbers)
    parts = build(live, env)

    @partial(jax.jit, static_argnames="ways")
    def asked(states, ways: Ways):
        """What each play needs, of all seeds."""

        def one(state):
            return [(play, draws(play)) for play in ways.plays(live, env, parts, state)]

        return jax.vmap(one)(states)

    def draws(play: Play):
        return drawn(env, play.key, ppo.num_steps, ppo.num_envs, play.following)

    @jax.jit
    def act(actors, phis, obs, noise, turn):
        def one(actor, phis, obs, noise, turn):
            distribution = distribution_in_turn(parts.policy(phis), actor, turn, obs)
            action = distribution.sample(noise)
            return action, distribution.log_prob(action)

        return jax.vmap(one)(actors, phis, obs, noise, turn)

    def play(group: int, play: Play, chances, phis: PyTree) -> tuple[Standing, Rollout]:
        """One play of all seeds."""
        acting = jax.device_put((play.actor, phis if parts.inner.view is not None else ()), _nearest())
        places = places_of(group, play.acting.length.shape)
        return collect_host(worlds, places, partial(act, *acting), _standing(play.acting), chances)

    @jax.jit
    def learn(states, played, index, table):
        def one(state, played):
            known = []
            for play, (standing, rollout) in zip(ways.plays(live, env, parts, state), played, strict=True):
                length, returned, episodes = episode_statistics(play.acting, rollout.steps)
                acting = ActingState(standing.episodes, standing.obs, length, returned, episodes, turn=standing.turn)
                known.append(Played(play, acting, rollout))
            return ways.learn(live, env, parts, state, known, index, table)

        return jax.vmap(one)(states, played)

    def rollouts_of(states: TrainState, ways: Ways) -> list[tuple[Standing, Rollout]]:
        played = [play(i, one, draws, states.phis) for i, (one, draws) in enumerate(asked(states, ways))]
        return [(standing, captioned(env, rollout)) for standing, rollout in played]

    def initial(table: Table | None) -> TrainState:
        keys, rollouts = seed_keys(config), None
        if parts.meta is not None and parts.meta.needs_rollout:
            untrained = started(jax.jit(jax.vmap(lambda key: first_state(live, env, key, None)))(keys), known=False)
            at_first = untrained._replace(key=jax.vmap(lambda key: start_keys(key).rollout)(keys))
            ((_, rollouts),) = rollouts_of(at_first, ALONE)

        def start(key: Array, rollout: Rollout | None):
            return trainer.init(key, trainer.numbers, table, rollout)

        for words in env.notes if config.progress else ():
            note(words)
        return started(jax.jit(jax.vmap(start))(keys, rollouts), known=False)

    def started(states: TrainState, known: bool = True) -> TrainState:
        """The same states, whose games stand where they say; ``known``: whether they have stood there before."""
        leaves, structure = jax.tree.flatten(states, is_leaf=lambda x: isinstance(x, ActingState))
        groups = iter(range(len(leaves)))
        leaves = [_led_to(next(groups), x, known) if isinstance(x, ActingState) else x for x in leaves]
        return jax.tree.unflatten(structure, leaves)

    def _led_to(group: int, acting: ActingState, known: bool) -> ActingState:
        before, places = _standing(acting), places_of(group, acting.length.shape)
        after = led_to(worlds, places, before)
        same = (after.obs == before.obs).reshape(*places.shape, -1).all(axis=-1) | (not known)
        if not same.all():
            note(
                f"{env.spec.name} does not lead back to where {(~same).sum()} of {same.size} episodes stood: they "
                "start anew, and the numbers are not those of a run without an interruption"
            )
            lost = before._replace(age=np.where(same, before.age, 0))
            after = led_to(worlds, places, lost)
        kept = jnp.asarray(same)
        return acting._replace(
            obs=jnp.asarray(after.obs),
            length=jnp.where(kept, acting.length, 0.0),
            returned=jnp.where(kept, acting.returned, 0.0),
        )

    def program(states, length, table):
        def run(states, first, table):
            rows, states = [], states._replace(heard=parts.sources.attentive(states.heard))
            for index in range(first, first + length):
                played = rollouts_of(states, ways)
                states, row = learn(states, played, jnp.asarray(index, jnp.int32), table)
                rows.append(row)
            return states, jax.tree.map(lambda *x: jnp.stack(x, axis=1), *rows)

        return run

    return initial, started, program


def _standing(acting: ActingState) -> Standing:
    episodes, obs, age, turn = jax.tree.map(np.asarray, (acting.env_state, acting.obs, acting.length, acting.turn))
    return Standing(episodes, obs, age.astype(int), turn)


def _nearest() -> Any:
    """Where single steps are acted on: each would wait for an accelerator longer than a CPU computes."""
    try:
        return jax.devices("cpu")[0]
    except RuntimeError:  # jax was told of the accelerator alone
        return jax.devices()[0]
