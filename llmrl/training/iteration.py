"""One iteration of training, compiled: acting, the outer level, learning from both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from llmrl.assembly.parts import Parts, build
from llmrl.bilevel.trees import all_finite
from llmrl.language import Table
from llmrl.learner.arms import ArmsState
from llmrl.learner.blending import RewardState, learn_reward, no_peaks, reported
from llmrl.learner.decoupled import DecoupledState
from llmrl.learner.eipo import EipoState
from llmrl.learner.irpo import IrpoState
from llmrl.learner.ppo import Batch, Params
from llmrl.learner.rollout import ActingState, collect, reset_all, unplayed
from llmrl.learner.rollout_host import unplayed_rollout, unstarted
from llmrl.nets import Policy
from llmrl.rewards import Heard, SourceMemory
from llmrl.settings.config import Config
from llmrl.types import Environment, HostEnvironment, Rollout, Scalar

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
        advantage_peaks: largest deviations so far of the blended advantage and of advice, slowly forgotten, [2], and
            of all streams where one is measured in the task's units.
        iteration: iterations done.
        heard: what the language source has noted; None where there is none.
        late: memories of the other sources that are filled in once a rollout is complete.
        arms: where several policies stand side by side, what decides among them, and who is their ``leader``; their
            parts of the state have a leading axis [k] then (``llmrl.training.arms``), or stand in it whole
            (``llmrl.training.select``). None where there is one.
    """

    key: PRNGKeyArray
    params: Params
    opt_state: PyTree
    acting: ActingState
    phis: tuple[PyTree, ...]
    transform_states: tuple[PyTree, ...]
    meta_state: PyTree
    last_kl: Scalar
    advantage_peaks: Array
    iteration: Array
    heard: Heard | None = None
    late: tuple[PyTree, ...] = ()
    arms: ArmsState | EipoState | DecoupledState | IrpoState | Any = None


class Trainer(NamedTuple):
    """A run as pure functions of one seed; ``jax.vmap`` makes it many.

    Attributes:
        env: the environment; one that only Python can step has no ``run`` (see ``devices``).
        init: ``(key, numbers, table, rollout) -> TrainState``; table and rollout as for ``first_state``.
        run: ``(state, numbers, num_iterations, first, table) -> (state, metrics)``, metrics [num_iterations] each; the
            length is static, ``first`` is the number of the first iteration, []. ``table`` holds a language model's
            answers, where it is a source; without one nothing has been answered yet.
        numbers: the config's plain floats by dotted name; leaves, so they may be traced and vmapped.
        ways: what an iteration is made of; None where it cannot be taken apart.
    """

    env: Environment | HostEnvironment
    init: Callable[..., TrainState]
    run: Callable[..., tuple[TrainState, Metrics]]
    numbers: dict[str, float]
    ways: Ways | None = None


class Play(NamedTuple):
    """What is played in an iteration before anything is learned.

    Attributes:
        actor: parameters of who acts; [k, ...] where ``acting.turn`` says who of several does.
        acting: where its environments stand.
        key: of the rollout.
        following: as for ``collect``.
    """

    actor: PyTree
    acting: ActingState
    key: PRNGKeyArray
    following: Int[Array, "t n"] | None = None


class Played(NamedTuple):
    """A play, and what ``collect`` gave of it.

    Attributes:
        play: the play.
        acting: where its environments stand afterwards.
        rollout: what happened.
    """

    play: Play
    acting: ActingState
    rollout: Rollout


class Ways(NamedTuple):
    """An iteration of one kind of state in two halves; between them, environments are stepped.

    Attributes:
        plays: ``(config, env, parts, state) -> (Play, ...)``.
        learn: ``(config, env, parts, state, played, index, table) -> (state, metrics)``.
    """

    plays: Callable[..., tuple[Play, ...]]
    learn: Callable[..., tuple[TrainState, Metrics]]


class StartKeys(NamedTuple):
    """The keys of a seed's start.

    Attributes:
        next: of the first iteration.
        actor: of the policy's first parameters.
        critic: of the critic's.
        env: of the first episodes.
        phis: of the streams' first parameters.
        rollout: of the rollout that an outer level's memory starts with; late sources start from one made of it.
    """

    next: PRNGKeyArray
    actor: PRNGKeyArray
    critic: PRNGKeyArray
    env: PRNGKeyArray
    phis: PRNGKeyArray
    rollout: PRNGKeyArray


class IterationKeys(NamedTuple):
    """The keys of one iteration.

    Attributes:
        next: of the next iteration.
        rollout: of acting.
        meta: of the outer step.
        update: of the PPO update.
    """

    next: PRNGKeyArray
    rollout: PRNGKeyArray
    meta: PRNGKeyArray
    update: PRNGKeyArray


def start_keys(key: PRNGKeyArray) -> StartKeys:
    """A seed's key, split for its start."""
    return StartKeys(*jax.random.split(key, len(StartKeys._fields)))


def iteration_keys(key: PRNGKeyArray) -> IterationKeys:
    """A state's key, split for its next iteration."""
    return IterationKeys(*jax.random.split(key, len(IterationKeys._fields)))


def first_state(
    config: Config,
    env: Environment | HostEnvironment,
    key: PRNGKeyArray,
    table: Table | None,
    rollout: Rollout | None = None,
) -> TrainState:
    """Everything as it is before the first iteration; ``rollout`` is one of the untrained policy, where only the host
    can play it."""
    parts = build(config, env)
    keys = start_keys(key)
    params = Params(parts.inner.policy.init(keys.actor), parts.inner.critic.init(keys.critic))
    phi_keys = jax.random.split(keys.phis, len(parts.inner.streams))
    started = [stream.transform.init(k) for stream, k in zip(parts.inner.streams, phi_keys, strict=True)]
    phis, states = tuple(phi for phi, _ in started), tuple(state for _, state in started)
    if isinstance(env, HostEnvironment):
        acting = unplayed(*unstarted(env, keys.env, config.ppo.num_envs))
    else:
        acting = reset_all(env, keys.env, config.ppo.num_envs, config.ppo.num_steps)
    memory = parts.sources.init(jax.random.fold_in(keys.rollout, 1))
    meta_state: PyTree = ()
    if parts.meta is not None:
        if parts.meta.needs_rollout:
            # Memory starts with a rollout of the untrained policy, so that old data exist from the first step on.
            if rollout is None:
                rollout = _first_rollout(config, env, parts.policy(phis), params.actor, acting, keys.rollout)
            rollout, _, _ = parts.sources.annotate(memory, rollout, table)
        meta_state = parts.meta.init(phis, states, params, rollout)
    return TrainState(
        key=keys.next,
        params=params,
        opt_state=parts.optimizer.init(params),
        acting=acting,
        phis=phis,
        transform_states=states,
        meta_state=meta_state,
        last_kl=jnp.asarray(jnp.inf, jnp.float32),
        advantage_peaks=no_peaks(parts.inner.streams),
        iteration=jnp.zeros((), jnp.int32),
        heard=memory.heard,
        late=memory.late,
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
        return unplayed_rollout(env, ppo.num_steps, ppo.num_envs)  # nothing can be played in here
    return collect(env, policy, actor, acting, key, ppo.num_steps)[1]


def plays(config: Config, env: Environment | HostEnvironment, parts: Parts, state: TrainState) -> tuple[Play, ...]:
    """One policy acts."""
    return (Play(state.params.actor, state.acting, iteration_keys(state.key).rollout),)


def learn(
    config: Config,
    env: Environment | HostEnvironment,
    parts: Parts,
    state: TrainState,
    played: Sequence[Played],
    index: Array,
    table: Table | None,
):
    """The only policy learns from what it did."""
    return learn_from(config, parts, state, played[0].acting, played[0].rollout, index, table)


ALONE = Ways(plays, learn)


def iterate(
    config: Config,
    env: Environment,
    parts: Parts,
    state: TrainState,
    index: Array,
    table: Table | None,
    ways: Ways = ALONE,
):
    """Collect, and learn from it."""
    policy = parts.policy(state.phis)

    def of(play: Play) -> Played:
        ended = collect(env, policy, play.actor, play.acting, play.key, config.ppo.num_steps, following=play.following)
        return Played(play, *ended)

    played = [of(play) for play in ways.plays(config, env, parts, state)]
    return ways.learn(config, env, parts, state, played, index, table)


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
    keys = iteration_keys(state.key)
    rollout, memory, annotated = parts.sources.annotate(SourceMemory(state.heard, state.late), rollout, table)
    before = RewardState(state.phis, state.transform_states, state.meta_state, state.advantage_peaks)
    floor, decay = config.ppo.advantage_floor, config.ppo.advantage_decay
    credit, reward, metrics = learn_reward(
        inner, parts.meta, before, state.params, rollout, keys.meta, index, state.last_kl, floor, decay
    )
    advice = credit.advice
    batch = Batch(
        obs=rollout.steps.obs,
        action=rollout.steps.action,
        log_prob=rollout.steps.log_prob,
        advantage=credit.advantage,
        target=credit.advantages + credit.values.now,
        advice=None if advice is None else advice.advantage,
    )
    batch = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)
    # The policy that is to act next: where it sees what is learned, it sees what has just been learned.
    update = parts.update(parts.policy(reward.phis))
    lengths = (1.0, 0.0) if advice is None else (advice.left, advice.share)
    params, opt_state, info = update(
        state.params, state.opt_state, batch, keys.update, credit.least_deviations, lengths
    )

    metrics = metrics | reported(inner.streams, reward, credit, rollout, parts.aux_names)
    metrics = acting.statistics() | metrics | info._asdict() | annotated
    new_state = TrainState(
        keys.next,
        params,
        opt_state,
        acting,
        reward.phis,
        reward.transform_states,
        reward.meta_state,
        info.approx_kl,
        reward.advantage_peaks,
        state.iteration + 1,
        *memory,
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
