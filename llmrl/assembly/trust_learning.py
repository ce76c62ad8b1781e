"""The learner of ``llmrl.trust``: what ``llmrl train`` does with a rollout's rewards, without its PPO."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, reduce
from operator import add
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from llmrl.assembly.methods import METHODS, make_method
from llmrl.bilevel.trees import all_finite
from llmrl.learner.blending import Credit, RewardState, learn_reward, reported
from llmrl.learner.ppo import Params
from llmrl.learner.problem import InnerProblem
from llmrl.learner.streams import given
from llmrl.nets import Critic, Policy
from llmrl.settings.config import Config, MethodConfig, PPOConfig, SolverConfig
from llmrl.settings.errors import BadType, BadValue
from llmrl.settings.fields import check
from llmrl.settings.validation import validate
from llmrl.types import Discrete, EnvSpec, Rollout, Scalar, Stream, Transition


class Steps(NamedTuple):
    """An advantage for the policy to follow, and how far.

    Attributes:
        advantage: [t, n].
        least_deviation: []; divide a minibatch's advantages by their deviation, or by this where it is larger.
        length: [], from 0 to 1; the factor on the policy's steps along this advantage.
    """

    advantage: Float[Array, "t n"]
    least_deviation: Scalar
    length: Scalar


class Blend(NamedTuple):
    """A rollout's rewards as they are learned.

    Attributes:
        reward: the task's reward plus what the weighted sources pay, [t, n].
        weights: the factor on each source's value in ``reward``, every limit included, [t, n, m].
        unit: the size of a weight that means full trust, [m]; below 1 where a source's values were scaled down to the
            task's.
        rewards: of each stream, in the order of ``Learner.streams``, [t, n, k].
        discounts: of each stream, gamma (1 - terminated) unless it has its own, [t, n, k].
        target: what each output of the critic should have said, [t, n, k].
        blended: what the policy follows: the advantage of ``reward``.
        hints: what the policy follows in addition: the advantage of advice, as long as the task has had too few reward
            events. Its ``length`` is 0 where there are none.
    """

    reward: Float[Array, "t n"]
    weights: Float[Array, "t n m"]
    unit: Float[Array, " m"]
    rewards: Float[Array, "t n k"]
    discounts: Float[Array, "t n k"]
    target: Float[Array, "t n k"]
    blended: Steps
    hints: Steps


class LearnerState(NamedTuple):
    """What a learner keeps between rollouts; a pytree, to be carried, vmapped and saved.

    Attributes:
        reward: parameters, statistics and the outer optimiser's state.
        updates: rollouts so far, [].
    """

    reward: RewardState
    updates: Int[Array, ""]


class Learner(NamedTuple):
    """Learned trust as pure functions; see ``learner``.

    Attributes:
        init: ``key -> LearnerState``.
        update: ``(state, rollout, actor, critic, key, last_kl=inf) -> (Blend, state, info)``, once per rollout and
            before the policy's own update on it. ``actor`` and ``critic`` are the parameters that the rollout was
            played with. ``last_kl``, how far the policy's last update moved it, matters where an outer step waits for
            convergence. ``info`` holds the metrics of ``llmrl train``, and ``skipped_update``: 1 where a number was not
            finite and nothing was learned. Compiled at its first use.
        weights: ``(state, rollout) -> [t, n, m]``, the present weights on any rollout; nothing is learned from it.
        streams: a name for each output of the critic, k: ``task`` (the task's own reward), ``blend`` (what the weighted
            sources pay beyond it, or all of it where the blend has a discount of its own), and a source's name for each
            that may be followed as a hint.
    """

    init: Callable[[PRNGKeyArray], LearnerState]
    update: Callable[..., tuple[Blend, LearnerState, dict[str, Scalar]]]
    weights: Callable[[LearnerState, Rollout], Float[Array, "t n m"]]
    streams: tuple[str, ...]


def learner(
    spec: EnvSpec,
    distribution: Callable[..., Any] | Policy,
    values: Callable[..., Array] | Critic,
    *,
    discount: float,
    gae_lambda: float,
    entropy: float,
    method: MethodConfig | None = None,
    solver: SolverConfig | None = None,
    advantage_floor: float = PPOConfig.advantage_floor,
    advantage_decay: float = PPOConfig.advantage_decay,
) -> Learner:
    """Learns how far to trust each auxiliary source, in a training loop of your own.

    Args:
        spec: the environment: observations, actions, and a name for each auxiliary source in ``aux_names``.
        distribution: ``(actor, obs [..., *obs]) -> distribution`` with ``log_prob(action)`` and ``entropy()``, for any
            number of leading axes; or an ``llmrl.nets.Policy``, whose gradients are had faster.
        values: ``(critic, obs [..., *obs]) -> [..., k]``, a value for each of ``Learner.streams``; or an
            ``llmrl.nets.Critic``.
        discount: gamma of your loop.
        gae_lambda: lambda of your loop's advantages.
        entropy: the factor on the entropy in your policy's loss.
        method: settings of a method that learns weights; None takes those of ``method=implicit``.
        solver: settings of the inverse-curvature solver; None takes the defaults.
        advantage_floor: as ``ppo.advantage_floor``, for ``Steps.least_deviation``.
        advantage_decay: as ``ppo.advantage_decay``.

    Returns:
        Pure functions.

    Raises:
        ValueError: there is no source, a setting is out of range, or the method learns no weights, keeps old rollouts,
            or needs a policy that sees them.
    """
    _check_kinds(spec, distribution, values, method)
    if not spec.aux_names:
        raise BadValue("trust.learner learns weights of auxiliary sources, got spec.aux_names=(): name at least one")
    ppo = PPOConfig(
        discount=discount,
        gae_lambda=gae_lambda,
        entropy=entropy,
        advantage_floor=advantage_floor,
        advantage_decay=advantage_decay,
    )
    check(ppo)  # by the names of the arguments
    method = method or MethodConfig()
    useless = BadValue(f"trust.learner needs a method that learns weights, as implicit does, got {method.name}")
    if method.name in METHODS and METHODS[method.name].needs_more:
        raise useless
    config = validate(Config(method=method, solver=solver or SolverConfig(), ppo=ppo))
    made = make_method(config, spec)
    streams = made.streams
    trusted = [i for i, stream in enumerate(streams) if stream.transform.weights is not None]
    if made.meta is None or not trusted:
        raise useless
    if made.view is not None:
        raise BadValue(f"method={config.method.name} shows its weights to the policy, which trust.learner cannot")
    policy = distribution if isinstance(distribution, Policy) else Policy(_made_by_caller, distribution)
    valued = values if isinstance(values, Critic) else Critic(_made_by_caller, values)
    inner = InnerProblem(streams, policy, valued, discount, gae_lambda, entropy)
    meta = made.meta(inner)
    if meta.needs_rollout:
        raise BadValue(f"trust.learner keeps no old rollouts: method.outer.data={config.method.outer.data}, not fresh")
    names = ("task", "blend", *spec.aux_names)[: len(streams)]
    source_of = partial(_source_weights, streams[trusted[0]], trusted[0])
    halves = config.method.trust.cross_fitting

    def init(key: PRNGKeyArray) -> LearnerState:
        started = [s.transform.init(k) for s, k in zip(streams, jax.random.split(key, len(streams)), strict=True)]
        phis, states = tuple(phi for phi, _ in started), tuple(state for _, state in started)
        # Nothing is remembered, so neither the policy nor a rollout is asked for.
        reward = RewardState(phis, states, meta.init(phis, states, None, None), jnp.zeros(2))
        return LearnerState(reward, jnp.zeros((), jnp.int32))

    @jax.jit
    def update(state: LearnerState, rollout: Rollout, actor: PyTree, critic: PyTree, key, last_kl=jnp.inf):
        if not isinstance(rollout, Rollout):
            raise BadType(f"rollout is a {type(rollout).__name__}; expected what llmrl.trust.rollout(...) makes")
        _check_rollout(rollout, spec, halves)
        _check_values(valued, critic, rollout, names)
        credit, reward, info = learn_reward(
            inner,
            meta,
            state.reward,
            Params(actor, critic),
            rollout,
            key,
            state.updates,
            jnp.asarray(last_kl, jnp.float32),
            advantage_floor,
            advantage_decay,
        )
        info = info | reported(streams, reward, credit, rollout, spec.aux_names)
        blend = _blend(streams, credit, *source_of(reward, rollout))
        sound = all_finite((rollout, reward.phis))
        reward = jax.tree.map(partial(jnp.where, sound), reward, state.reward)
        info = info | {"skipped_update": jnp.where(sound, 0.0, 1.0)}
        return blend, LearnerState(reward, state.updates + 1), info

    @jax.jit
    def weights(state: LearnerState, rollout: Rollout):
        _check_rollout(rollout, spec, halves=False)
        return source_of(state.reward, rollout)[0]

    return Learner(init, update, weights, names)


def rollout(
    *,
    obs: Any,
    action: Any,
    log_prob: Any,
    reward: Any,
    terminated: Any,
    next_obs: Any,
    aux: Any,
    truncated: Any = None,
) -> Rollout:
    """A rollout as a learner takes it, of what every loop has.

    Args:
        obs: observations acted on, [t, n, *obs].
        action: actions taken, [t, n] integers or [t, n, a].
        log_prob: their log-probabilities under the policy that acted, [t, n].
        reward: the task's own, [t, n].
        terminated: whether the episode ended by the rules, [t, n].
        next_obs: observations after the step and before any reset, [t, n, *obs].
        aux: the auxiliary sources' values, [t, n, m].
        truncated: whether it ended by a time limit, [t, n]; None where none did.

    Returns:
        The rollout; captions and successes, which no weight looks at, are left empty.
    """
    shape = np.shape(reward)
    steps = Transition(
        obs=jnp.asarray(obs),
        action=jnp.asarray(action),
        log_prob=jnp.asarray(log_prob, jnp.float32),
        reward=jnp.asarray(reward, jnp.float32),
        terminated=jnp.asarray(terminated, jnp.bool_),
        truncated=jnp.zeros(shape, jnp.bool_) if truncated is None else jnp.asarray(truncated, jnp.bool_),
        success=jnp.zeros(shape, jnp.bool_),
        next_obs=jnp.asarray(next_obs),
        aux=jnp.asarray(aux, jnp.float32),
        state_key=jnp.zeros(shape, jnp.uint32),
        event=jnp.zeros(shape, jnp.int32),
    )
    return Rollout(steps, steps.action[-1])


def _made_by_caller(key: PRNGKeyArray) -> PyTree:
    raise BadValue("trust.learner makes no networks: parameters are the caller's")


def _source_weights(stream: Stream, i: int, reward: RewardState, rollout: Rollout):
    """Weights [t, n, m], and the size of one that means full trust, [m]."""
    assert stream.transform.weights is not None
    states = reward.transform_states
    return stream.transform.weights(reward.phis[i], given(stream.transform, states[i], states[0]), rollout)


def _blend(streams: Sequence[Stream], credit: Credit, weight: Array, unit: Array) -> Blend:
    paid = [s.weight * signal.reward for s, signal in zip(streams, credit.signals, strict=True) if s.advice is None]
    main, of_advice = credit.least_deviations
    zero, one, advice = jnp.zeros(()), jnp.ones(()), credit.advice
    hints = Steps(jnp.zeros_like(credit.advantage), zero, zero)
    if advice is not None:
        hints = Steps(advice.advantage, of_advice, advice.share)
    return Blend(
        reward=reduce(add, paid),
        weights=weight,
        unit=unit,
        rewards=jnp.stack([signal.reward for signal in credit.signals], axis=-1),
        discounts=jnp.stack([signal.discount for signal in credit.signals], axis=-1),
        target=credit.advantages + credit.values.now,
        blended=Steps(credit.advantage, main, one if advice is None else advice.left),
        hints=hints,
    )


def _check_kinds(spec: Any, distribution: Any, values: Any, method: Any) -> None:
    if not isinstance(spec, EnvSpec):
        raise BadType(f"spec is {spec!r}; expected a llmrl.types.EnvSpec")
    if method is not None and not isinstance(method, MethodConfig):
        raise BadType(f"method is {method!r}; expected a MethodConfig, as llmrl.compose('method=scalar').method")
    for name, function, kind in (("distribution", distribution, Policy), ("values", values, Critic)):
        if not (callable(function) or isinstance(function, kind)):
            raise BadType(f"{name} is {function!r}; expected a function of parameters and observations")


def _check_rollout(rollout: Rollout, spec: EnvSpec, halves: bool) -> None:
    """Every field's shape, told from the rewards' [t, n] and the spec."""
    steps = rollout.steps
    if steps.reward.ndim != 2:
        raise BadValue(f"rollout.steps.reward must have shape [t, n], got {list(steps.reward.shape)}")
    actions = () if isinstance(spec.action, Discrete) else (spec.action.dim,)
    beyond = {"obs": spec.obs_shape, "next_obs": spec.obs_shape, "action": actions, "aux": (len(spec.aux_names),)}
    for name in ("obs", "action", "log_prob", "terminated", "truncated", "next_obs", "aux"):
        expected, given = (*steps.reward.shape, *beyond.get(name, ())), getattr(steps, name).shape
        if given != expected:
            raise BadValue(
                f"rollout.steps.{name} must have shape {list(expected)}, by rewards [t, n] and {spec.name}'s spec, "
                f"got {list(given)}"
            )
    if halves and steps.reward.shape[1] % 2:
        raise BadValue(
            "method.trust.cross_fitting splits the environments in halves: the rollout's "
            f"n={steps.reward.shape[1]} is odd"
        )


def _check_values(critic: Critic, params: PyTree, rollout: Rollout, names: tuple[str, ...]) -> None:
    steps = rollout.steps
    given, expected = jax.eval_shape(critic.value, params, steps.obs).shape, (*steps.reward.shape, len(names))
    if given != expected:
        raise BadValue(
            f"values must answer with shape {list(expected)}, one for each of {', '.join(names)}; got {list(given)}"
        )
