"""Surrogate objectives of a policy: one gradient, three curvatures.

All of them are losses (minus a return, averaged over steps), evaluated on experience of a behaviour policy. On the
policy's
own data (every ratio 1) they have the same gradient, -E[psi A] with psi the score of an action; what they differ in
is the
second derivative, so each docstring says of what it is an unbiased estimate. Nothing is clipped pessimistically: a
clipped sample has no mixed derivative and would teach a learned reward nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from llmrl.ops.losses import held_constant
from llmrl.types import Scalar

Surrogate = Callable[..., Scalar]
"""``(log_prob, behaviour_log_prob, advantage, episode_end, max_ratio) -> loss``, all arrays [t, n] (or any shape but
for dice)."""


def _importance(log_prob: Float[Array, "*b"], behaviour: Float[Array, "*b"], max_ratio) -> Float[Array, "*b"]:
    """min(pi / mu, c), held constant: what old data count for now."""
    return held_constant(jnp.minimum(jnp.exp(log_prob - behaviour), max_ratio))


def ratio(
    log_prob: Float[Array, "*b"],
    behaviour: Float[Array, "*b"],
    advantage: Float[Array, "*b"],
    episode_end: Bool[Array, "*b"],
    max_ratio: float | Scalar = jnp.inf,
) -> Scalar:
    """-E[rho A]: the importance ratio as a function of theta.

    Curvature -E[(psi psi^T + grad^2 log pi) A]: unbiased for the Hessian of the return in which the distribution of
    states is held where it is (the objective that PPO climbs); it leaves out how earlier actions move later states.
    """
    del episode_end
    weight = _importance(log_prob, behaviour, max_ratio)
    return -jnp.mean(weight * jnp.exp(log_prob - held_constant(log_prob)) * advantage)


def log_prob(
    log_prob: Float[Array, "*b"],
    behaviour: Float[Array, "*b"],
    advantage: Float[Array, "*b"],
    episode_end: Bool[Array, "*b"],
    max_ratio: float | Scalar = jnp.inf,
) -> Scalar:
    """-E[log pi A] on fixed data.

    Curvature -E[grad^2 log pi A]: exact for the fixed-data objective, without score outer products. Beware: for a
    softmax
    policy with true advantages it is 0 in expectation, so at an optimum only the entropy's curvature is left, of the
    other sign. Damp it, or the hypergradient points the wrong way.

    Reference: Gupta et al. 2023, "Behavior alignment via reward function optimization", section 4.
    """
    del episode_end
    return -jnp.mean(_importance(log_prob, behaviour, max_ratio) * log_prob * advantage)


def _running_sum(x: Float[Array, "t n"], episode_end: Bool[Array, "t n"]) -> Float[Array, "t n"]:
    """Sums of x from an episode's first step in the rollout, the present step included."""

    def step(total, now):
        x_t, end_t = now
        total = total + x_t
        return jnp.where(end_t, 0.0, total), total

    return jax.lax.scan(step, jnp.zeros_like(x[0]), (x, episode_end))[1]


def dice(
    log_prob: Float[Array, "t n"],
    behaviour: Float[Array, "t n"],
    advantage: Float[Array, "t n"],
    episode_end: Bool[Array, "t n"],
    max_ratio: float | Scalar = jnp.inf,
) -> Scalar:
    """-E[(box(c_t) - box(c_{t-1})) A_t] with c_t the sum of an episode's log-probabilities up to t, box(x) = exp(x -
    x held constant).

    Curvature: unbiased for the Hessian of the return itself, the movement of later states by earlier actions
    included, at the
    price of variance that grows with the episode. Episodes cut by the rollout count from their first step inside it.

    Reference: Farquhar, Whiteson and Foerster 2019, "Loaded DiCE", eq. 13.
    """
    upto = _running_sum(log_prob, episode_end)
    before = upto - log_prob
    boxes = jnp.exp(upto - held_constant(upto)) - jnp.exp(before - held_constant(before))
    return -jnp.mean(_importance(log_prob, behaviour, max_ratio) * boxes * advantage)


SURROGATES: dict[str, Surrogate] = {"ratio": ratio, "dice": dice, "log_prob": log_prob}
