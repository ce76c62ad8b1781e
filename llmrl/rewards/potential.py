"""Shaping by differences of a potential: hints that are meant to speed up learning and leave the best policy alone.

Three baselines. ``pbrs`` takes the auxiliary reward itself for the potential, ``dpba`` learns the potential whose
differences are worth the auxiliary reward, and ``pies`` lets those differences fade. Where an episode goes on, all of
them need what comes after a step; the ends are decided like this:

    terminated           the next potential is 0: nothing follows
    truncated            it would have gone on, so the next potential stays: that of the last action, repeated
    end of the rollout   ``dpba`` and ``pies`` know the next action (``Rollout.final_action``); ``pbrs`` does not know
                         its reward and keeps the last one, as where the episode is truncated
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Shaped

from llmrl.nets import make_reward_net
from llmrl.ops.losses import held_constant
from llmrl.ops.optimizers import own_promotion
from llmrl.rewards.base import stateless
from llmrl.settings.errors import BadValue
from llmrl.types import EnvSpec, RewardTransform, Rollout, Scalar, Signal


def pbrs(coefficient: float | Scalar) -> RewardTransform:
    """r_p + F with F_t = gamma_t Phi_{t+1} - Phi_t and Phi_t = coefficient * sum_m r_m, the auxiliary reward of step t.

    Over an episode F telescopes to -Phi_0 (terminated) or gamma^n Phi_n - Phi_0 (cut off). An auxiliary reward knows
    the action too, so this is look-ahead advice rather than a potential of states, and a weak baseline: praise for an
    action is paid to the step before and taken from the step itself, so that following a hint is fined.

    Args:
        coefficient: factor on the auxiliary rewards.

    Reference: Ng, Harada and Russell 1999, "Policy invariance under reward transformations", theorem 1; Wiewiora,
    Cottrell and Elkan 2003, "Principled methods for advising reinforcement learning agents"; Gupta et al. 2023,
    "Behavior alignment via reward function optimization", whose potential-based baseline this is.
    """

    def shaped(rollout: Rollout, signal: Signal) -> Signal:
        potential = coefficient * jnp.sum(rollout.steps.aux, axis=-1)
        following = _following(potential, potential[-1], rollout)
        return signal._replace(reward=signal.reward + signal.discount * following - potential)

    return stateless(shaped)


class PotentialState(NamedTuple):
    """A learned potential; written only by ``observe``.

    Attributes:
        params: of Phi_{k+1}, which has seen the fresh rollout.
        previous: of Phi_k, which has not, and shapes it.
        opt_state: of Phi's own optimiser.
        share: xi, the factor on the shaping.
        age: rollouts seen.
        error: root mean square of the TD error while ``params`` were found.
        shaping: mean of xi F on the fresh rollout.
        key: draws minibatches.
    """

    params: PyTree
    previous: PyTree
    opt_state: PyTree
    share: Scalar
    age: Scalar
    error: Scalar
    shaping: Scalar
    key: PRNGKeyArray


class Pairs(NamedTuple):
    """Successive state-action pairs, [...] = [t, n] or [b].

    Attributes:
        obs: s, [..., *obs].
        action: a, [...] or [..., a].
        next_obs: s', [..., *obs].
        next_action: a', like ``action``.
        aux: coefficient * sum_m r_m(s, a), [...].
        discount: gamma (1 - terminated), [...].
        chosen: whether a' was really chosen in s' (or does not matter); 0 where the episode was truncated, [...].
    """

    obs: Shaped[Array, "*batch_obs"]
    action: Shaped[Array, "*batch_action"]
    next_obs: Shaped[Array, "*batch_obs"]
    next_action: Shaped[Array, "*batch_action"]
    aux: Float[Array, "*batch"]
    discount: Float[Array, "*batch"]
    chosen: Float[Array, "*batch"]


def dpba(spec: EnvSpec, **settings) -> RewardTransform:
    """r_p + F, where F is worth the auxiliary reward once Phi, a second value function, has been learned.

        delta_t = -R_t + gamma_t Phi(s_{t+1}, a_{t+1}) - Phi(s_t, a_t),      R_t = coefficient * sum_m r_m
        F_{t+1} = gamma_t Phi_{t+1}(s_{t+1}, a_{t+1}) - Phi_t(s_t, a_t)

    Phi follows the policy that acts (SARSA): ``observe`` takes ``updates`` semi-gradient steps on minibatches of the
    fresh rollout. At the TD fixed point E[F | s, a] = R(s, a). Phi starts at 0, and with it F.

    The index of Phi is time, as in the original: what a step is paid for the pair after it is what the next step gives
    back. Here Phi changes between rollouts only, so in rollout k both terms are of Phi_k, which has not seen it, and
    Phi_{k+1} is what the last step is paid with; episodes telescope across rollouts. (Phi_{k+1} in every first term
    looks the same on paper and is not: it pays every step for how far a whole iteration has moved Phi, on CartPole ten
    times the hint.)

    A truncated step has no next action. It teaches Phi nothing, since the action of its target was never chosen. Its
    shaping takes the potential that the last action would have in the state reached: a zero would pay
    -Phi at every time limit.

    Args:
        spec: the environment.
        **settings: ``coefficient``, ``learning_rate``, ``updates``, ``batch_size``, ``hidden``; see ``dynamic_advice``.

    Reference: Harutyunyan et al. 2015, "Expressing arbitrary reward functions as potential-based advice".
    """
    return dynamic_advice(spec, lambda age: jnp.ones_like(age), **settings)


def pies(spec: EnvSpec, *, num_iterations: int, decay: float | Scalar, **settings) -> RewardTransform:
    """r_p + xi F, with ``dpba``'s F and xi = max(0, 1 - k / (decay * num_iterations)) in iteration k = 0, 1, ...

    A potential that changes while it is used alters the task after all; here the task's own reward remains, to the
    bit, for the last 1 - decay of the training. The original subtracts xi Phi from action values where it chooses by
    them; a policy gradient has none to choose by, so the reward is what fades.

    Args:
        spec: the environment.
        num_iterations: of the whole training.
        decay: share of the training over which xi falls from 1 to 0, linearly.
        **settings: as for ``dpba``.

    Reference: Behboudian et al. 2020, "Useful policy invariant shaping from arbitrary advice".
    """
    return dynamic_advice(spec, lambda age: jnp.maximum(0.0, 1.0 - age / (decay * num_iterations)), **settings)


def dynamic_advice(
    spec: EnvSpec,
    share_at: Callable[[Scalar], Scalar],
    *,
    coefficient: float | Scalar,
    learning_rate: float | Scalar,
    updates: int,
    batch_size: int,
    hidden: Sequence[int],
) -> RewardTransform:
    """r_p + xi F, with F from a learned potential.

    Args:
        spec: the environment.
        share_at: ``rollouts seen before this one -> xi``.
        coefficient: factor on the auxiliary rewards.
        learning_rate: of Phi's Adam; larger than the policy's, for Phi has to be the faster of the two.
        updates: Phi's gradient steps per iteration.
        batch_size: samples of each, drawn from the fresh rollout with replacement.
        hidden: widths of Phi's network.

    Raises:
        ValueError: there is nothing to learn from: no update, or none with a sample.
    """
    if updates < 1 or batch_size < 1:
        raise BadValue(f"a potential needs updates and batch_size of 1 or more, got {updates} and {batch_size}")
    net = make_reward_net(spec, hidden, 1)
    optimizer = own_promotion(optax.adam(learning_rate))

    def potential(params: PyTree, obs: Array, action: Array) -> Array:
        return net.apply(params, obs, action)[..., 0]

    def errors(params: PyTree, pairs: Pairs) -> Array:
        now = potential(params, pairs.obs, pairs.action)
        # Semi-gradient: the target belongs to the Phi that is being left.
        then = held_constant(potential(params, pairs.next_obs, pairs.next_action))
        return pairs.chosen * (pairs.discount * then - pairs.aux - now)

    def loss(params: PyTree, pairs: Pairs) -> tuple[Scalar, Scalar]:
        squared = jnp.mean(jnp.square(errors(params, pairs)))
        return 0.5 * squared, squared

    def shaping(state: PotentialState, pairs: Pairs) -> Float[Array, "t n"]:
        then = potential(state.previous, pairs.next_obs, pairs.next_action)
        # The next rollout will take back what its own Phi says of where it begins.
        then = then.at[-1].set(potential(state.params, pairs.next_obs[-1], pairs.next_action[-1]))
        now = potential(state.previous, pairs.obs, pairs.action)
        # Only ``observe`` writes Phi: to the outer level, the reward is a number.
        return held_constant(pairs.discount * then - now)

    def init(key: PRNGKeyArray):
        net_key, own_key = jax.random.split(key)
        params, zero = net.init(net_key), jnp.zeros(())
        return {}, PotentialState(params, params, optimizer.init(params), share_at(zero), zero, zero, zero, own_key)

    def observe(phi, state: PotentialState, rollout: Rollout, signal: Signal) -> PotentialState:
        key, draw_key = jax.random.split(state.key)
        pairs = state_action_pairs(rollout, signal, coefficient)
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), pairs)

        def step(carry, drawn):
            params, opt_state = carry
            gradient, squared = jax.grad(loss, has_aux=True)(params, jax.tree.map(lambda x: x[drawn], flat))
            steps, opt_state = optimizer.update(gradient, opt_state, params)
            return (optax.apply_updates(params, steps), opt_state), squared

        drawn = jax.random.randint(draw_key, (updates, batch_size), 0, flat.aux.shape[0])
        (params, opt_state), squared = jax.lax.scan(step, (state.params, state.opt_state), drawn)
        state = state._replace(
            params=params,
            previous=state.params,
            opt_state=opt_state,
            share=share_at(state.age),
            age=state.age + 1.0,
            error=jnp.sqrt(jnp.mean(squared)),
            key=key,
        )
        return state._replace(shaping=state.share * jnp.mean(shaping(state, pairs)))

    def apply(phi, state: PotentialState, rollout: Rollout, signal: Signal) -> Signal:
        shaped = signal.reward + state.share * shaping(state, state_action_pairs(rollout, signal, coefficient))
        # Adding 0 is not nothing: -0. + 0. is +0., and a potential that has run away is not finite.
        return signal._replace(reward=jnp.where(state.share > 0, shaped, signal.reward))

    def report(phi, state: PotentialState, rollout: Rollout):
        return {
            "potential_mean": jnp.mean(potential(state.params, rollout.steps.obs, rollout.steps.action)),
            "potential_error": state.error,
            "shaping_mean": state.shaping,
            "shaping_share": state.share,
        }

    return RewardTransform(init, apply, observe, report)


def state_action_pairs(rollout: Rollout, signal: Signal, coefficient: float | Scalar) -> Pairs:
    """Every step with the state and the action after it, [t, n]; see the head of this file for the ends."""
    steps = rollout.steps
    return Pairs(
        obs=steps.obs,
        action=steps.action,
        next_obs=steps.next_obs,
        next_action=_following(steps.action, rollout.final_action, rollout),
        aux=coefficient * jnp.sum(steps.aux, axis=-1),
        discount=signal.discount,
        chosen=(steps.terminated | ~steps.truncated).astype(jnp.float32),
    )


def _following(x: Shaped[Array, "t n *a"], final: Shaped[Array, "n *a"], rollout: Rollout) -> Shaped[Array, "t n *a"]:
    """x of the next step of the same episode; a step's own x where its episode ends."""
    ended = rollout.steps.terminated | rollout.steps.truncated
    ended = ended.reshape(*ended.shape, *[1] * (x.ndim - ended.ndim))
    return jnp.where(ended, x, jnp.concatenate([x[1:], final[None]]))
