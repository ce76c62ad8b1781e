"""One iteration of several policies side by side: each acts in its own episodes, and learns from them alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from llmrl.assembly.parts import Parts, build, with_numbers
from llmrl.bilevel.trees import all_finite
from llmrl.language import Table
from llmrl.learner import arms
from llmrl.learner.blending import RewardState, learn_reward
from llmrl.learner.blending import reported as reported_of_streams
from llmrl.learner.ppo import Batch, Params, UpdateInfo
from llmrl.learner.rollout import ActingState
from llmrl.rewards import SourceMemory
from llmrl.settings.config import Config
from llmrl.training.iteration import IterationKeys, Metrics, Play, Played, TrainState, Ways, iteration_keys
from llmrl.training.select import SelectState
from llmrl.types import Environment, HostEnvironment, Transition

LEARNED = ("params", "opt_state", "phis", "transform_states", "meta_state", "last_kl", "advantage_peaks")
"""Parts of a state that each arm has for itself, [k, ...]."""


def rule_of(config: Config) -> arms.ArmRule:
    """How a config has arms share the environments."""
    chosen = config.method.arms
    return arms.ArmRule(chosen.budget, chosen.haste, chosen.memory, chosen.sure, config.ppo.discount)


def _arms(config: Config, env: Environment | HostEnvironment) -> tuple[arms.Arm, ...]:
    return arms.arms_of(config.method.arms.follow, env.spec.aux_names)


def spread(config: Config, env: Environment | HostEnvironment, state: TrainState, *_: Any) -> TrainState:
    """A first state in which every arm has the same."""
    num_arms = len(_arms(config, env))
    acting = state.acting._replace(turn=jnp.arange(config.ppo.num_envs) % num_arms)
    first = arms.first_arms(num_arms, config.ppo.num_envs)
    return side_by_side(state, num_arms)._replace(acting=acting, arms=first)


def side_by_side(state: TrainState, num_policies: int) -> TrainState:
    """So many policies that have the same to start from."""
    alike = {
        name: jax.tree.map(lambda x: jnp.repeat(x[None], num_policies, axis=0), getattr(state, name))
        for name in LEARNED
    }
    return state._replace(**alike)


def leader(state: TrainState) -> TrainState:
    """The state of the policy that is handed over; of one policy, the state itself."""
    if state.arms is None:
        return state
    if isinstance(state.arms, SelectState):  # it stands in the state already
        return state._replace(arms=None)
    own = {name: arms.chosen(getattr(state, name), state.arms.leader) for name in LEARNED}
    return state._replace(
        **own,
        arms=None,
        acting=state.acting._replace(turn=None),
    )


def leaders(states: TrainState) -> TrainState:
    """The states, [seeds], of the policies that are handed over."""
    return states if states.arms is None else jax.vmap(leader)(states)


def plays(config: Config, env: Environment | HostEnvironment, parts: Parts, state: TrainState) -> tuple[Play, ...]:
    """All arms act, each in its turns."""
    assert isinstance(state.arms, arms.ArmsState)
    key, ppo = iteration_keys(state.key).rollout, config.ppo
    turn_key = jax.random.fold_in(key, 1)
    following = arms.drawn_turns(turn_key, state.arms.share, ppo.num_steps, ppo.num_envs)
    return (Play(state.params.actor, state.acting, key, following),)


def learn(
    config: Config,
    env: Environment | HostEnvironment,
    parts: Parts,
    state: TrainState,
    played: Sequence[Played],
    index: Array,
    table: Table | None,
):
    """Learn with each arm, and share the next episodes by what they have earned."""
    ppo, rule, kept, ((_, acting, rollout),) = config.ppo, rule_of(config), state.arms, played
    assert isinstance(kept, arms.ArmsState)
    keys, num_arms, policy = iteration_keys(state.key), kept.share.size, parts.inner.policy
    rollout, memory, annotated = parts.sources.annotate(SourceMemory(state.heard, state.late), rollout, table)

    rates = {name: getattr(config.method.outer, name) for name in ("learning_rate", "scalar_learning_rate")}

    def credited(arm, follow, learn, reward: RewardState, params, last_kl):
        numbers = {"method.follow": follow} | {f"method.outer.{name}": learn * rate for name, rate in rates.items()}
        own = build(with_numbers(config, numbers), env)
        seen = arms.relative_to(rollout, arm)
        key = jax.random.fold_in(keys.meta, arm)
        credit, reward, metrics = learn_reward(
            own.inner, own.meta, reward, params, seen, key, index, last_kl, ppo.advantage_floor, ppo.advantage_decay
        )
        metrics = metrics | reported_of_streams(own.inner.streams, reward, credit, seen, parts.aux_names)
        return credit.advantage, credit.advantages + credit.values.now, credit.least_deviations, reward, metrics

    before = RewardState(state.phis, state.transform_states, state.meta_state, state.advantage_peaks)
    _, *given = zip(*_arms(config, env), strict=True)
    follow, learn = (jnp.asarray(x, jnp.float32) for x in given)
    advantage, target, least, reward, metrics = jax.vmap(credited)(
        jnp.arange(num_arms), follow, learn, before, state.params, state.last_kl
    )
    assert rollout.arm is not None
    steps, acted = rollout.steps, rollout.arm.reshape(-1)
    shared = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (steps.obs, steps.action, steps.log_prob))
    flat = [x.reshape(num_arms, -1, *x.shape[3:]) for x in (advantage, target)]
    steps_before = state.iteration * ppo.num_epochs * ppo.num_minibatches
    params, opt_state, info = parts.update_arms(policy)(
        state.params, state.opt_state, Batch(*shared, *flat), acted, keys.update, least, steps_before
    )
    learned, skipped = without_harm(state, learned_parts(params, opt_state, reward, info.approx_kl), rollout)

    kept = arms.noted(kept, rollout, rule)
    decision = arms.decided(kept, (index + 1).astype(jnp.float32) / config.num_iterations, rule)
    learned, returns = arms.copied((learned, kept.returns), decision.model)
    kept = kept._replace(returns=returns, share=decision.share, leader=decision.leader)

    metrics = arms.chosen(metrics | info._asdict(), decision.leader)
    metrics = acting.statistics() | metrics | annotated
    metrics = metrics | reported(kept, decision) | {"skipped_update": jnp.max(skipped)}
    return gone_on(state, learned, keys, acting, memory, kept), metrics


def learned_parts(params: Params, opt_state: PyTree, reward: RewardState, last_kl: Array) -> dict[str, PyTree]:
    """What every arm has learned, as the parts of a state."""
    parts = params, opt_state, reward.phis, reward.transform_states, reward.meta_state, last_kl, reward.advantage_peaks
    return dict(zip(LEARNED, parts, strict=True))


def all_from_the_same(
    update: Callable,
    state: TrainState,
    steps: Transition,
    advantage: Float[Array, "k t n"],
    target: Float[Array, "k t n h"],
    key: Array,
    least_deviations: Float[Array, "k 2"],
) -> tuple[Params, PyTree, UpdateInfo]:
    """PPO's update of every policy on the same steps, taken by any of them, each by an advantage of its own.

    Args:
        update: of one policy, as ``make_update`` gives it.
        state: with the parameters and the optimisers of all, [k].
        steps: [t, n].
        advantage: of each policy's objective.
        target: of each policy's critic, h heads.
        key: of the minibatches, the same for all.
        least_deviations: what each policy's advantages are divided by at least.
    """
    obs, action, log_prob = (x.reshape(-1, *x.shape[2:]) for x in (steps.obs, steps.action, steps.log_prob))
    flat = advantage.reshape(len(advantage), -1), target.reshape(len(target), -1, target.shape[-1])

    def of_one(params, opt_state, advantage, target, least):
        return update(params, opt_state, Batch(obs, action, log_prob, advantage, target), key, least)

    return jax.vmap(of_one)(state.params, state.opt_state, *flat, least_deviations)


def gone_on(
    state: TrainState,
    learned: dict[str, PyTree],
    keys: IterationKeys,
    acting: ActingState,
    memory: SourceMemory,
    arms: Any,
) -> TrainState:
    """The state after an iteration of several policies; ``arms`` is what their kind keeps beside what they learn."""
    return state._replace(
        key=keys.next, acting=acting, iteration=state.iteration + 1, **memory._asdict(), **learned, arms=arms
    )


def without_harm(before: TrainState, learned: dict[str, PyTree], rollout) -> tuple[dict[str, PyTree], Array]:
    """What every arm has learned; nothing, and 1, for an arm that an element that is no number got into."""
    checked = [learned[name] for name in ("params", "opt_state", "phis")]
    sound = jax.vmap(all_finite)(checked) & all_finite(rollout.steps)

    def kept(new, old):
        return jnp.where(sound.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

    learned = {name: jax.tree.map(kept, learned[name], getattr(before, name)) for name in LEARNED}
    return learned, jnp.where(sound, 0.0, 1.0)


def reported(state: arms.ArmsState, decision: arms.Decision) -> Metrics:
    """What every arm has earned, and whose turn it will be."""
    metrics: Metrics = {
        "arm_leader": decision.leader,
        "arm_copied": (decision.model != 0).astype(jnp.float32),
        "certificate": state.certificate.verdict(),
    }
    for k in range(state.share.size):
        metrics |= {
            f"arm_share/{k}": state.share[k],
            f"arm_return/{k}": state.returns.mean[k],
            f"arm_error/{k}": state.returns.error[k],
        }
    return metrics


WAYS = Ways(plays, learn)
