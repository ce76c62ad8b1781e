"""Several policies side by side: whose turn it is, what each has earned, and who takes over from whom.

Each environment is played by one policy, an arm, until its episode ends; then an arm is drawn anew. Arm 0 learns from
the task alone. What the others cost is a budget: ``budget`` of the episodes is spent on trying them, most of it early.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from llmrl.types import Rollout, Scalar

LEAST_EPISODES = 8.0
"""Remembered episodes of both arms that a copy needs."""
LEAST_DIFFERENCE = 1e-3
"""Share of the returns' range below which a difference does not matter."""
ROUNDING = 1e-5
"""Share of a mean below which a difference is one of rounding."""


KEPT, ERROR_RATE = 0.95, 0.05
"""What the certificate is about: this share of what ignoring the sources earns; how often it may ever be wrong."""
TIGHTEST_AT = 500.0
"""Number of episodes at which the certificate's bounds are tightest, for their width."""
LEAST_FIRST = 64.0
"""Episodes of arm 0 before the certificate says anything: its bounds hold in the limit of many."""
LEAST_CHANCE = 0.01
"""Episodes that arm 0 played with a smaller probability tell nothing of it, and are not counted."""


class ArmRule(NamedTuple):
    """How arms share the environments.

    Attributes:
        budget: share of the episodes that is spent on trying arms, alpha.
        haste: how early it is spent, kappa >= 1: evenly at 1.
        memory: number of episodes after which an arm's returns have been forgotten to 1/e.
        sure: standard errors by which an arm must be ahead of another one to earn more surely, c.
        discount: of the returns that are compared, gamma.
    """

    budget: float | Scalar
    haste: float | Scalar
    memory: float | Scalar
    sure: float | Scalar
    discount: float | Scalar


class Arm(NamedTuple):
    """What a policy follows beside the task.

    Attributes:
        name: in words.
        follow: how far it follows each source, m of them.
        learns: whether it learns their weights.
    """

    name: str
    follow: tuple[float, ...]
    learns: bool = False


def arms_of(follow: Sequence[str], aux_names: Sequence[str]) -> tuple[Arm, ...]:
    """The policies that ``method.arms.follow`` names, no two of them alike: of one source, ``each`` is ``all``."""
    ones, every = (1.0,) * len(aux_names), " + ".join(aux_names)
    named = {
        "none": [Arm("the task alone", (0.0,) * len(aux_names))],
        "all": [Arm(every, ones)],
        "each": [Arm(name, tuple(float(name == other) for other in aux_names)) for name in aux_names],
        "learned": [Arm(f"{every}, learned", ones, learns=True)],
    }
    return tuple(dict.fromkeys(arm for name in follow for arm in named[name]))


class Returns(NamedTuple):
    """An arm's discounted task returns, episode by episode, exponentially forgotten.

    Attributes:
        episodes: weight of the episodes, [k].
        total: weighted sum of their returns, [k].
        squares: weighted sum of their squares, [k].
    """

    episodes: Float[Array, " k"]
    total: Float[Array, " k"]
    squares: Float[Array, " k"]

    @property
    def known(self) -> Bool[Array, " k"]:
        """Whether an episode is remembered."""
        return self.episodes >= 1.0

    @property
    def mean(self) -> Float[Array, " k"]:
        """0 where nothing is known."""
        return self.total / jnp.maximum(self.episodes, 1e-6)

    @property
    def error(self) -> Float[Array, " k"]:
        """Standard error of the mean."""
        variance = self.squares / jnp.maximum(self.episodes, 1e-6) - jnp.square(self.mean)
        return jnp.sqrt(jnp.maximum(variance, 0.0) / jnp.maximum(self.episodes, 1.0))


class Certificate(NamedTuple):
    """Evidence on what all arms together have earned, compared with arm 0: sums over episodes of

        d_i = (R_i - l) - KEPT (m_0 - l + 1[arm 0 played] (R_i - m_0) / p_i)

    with the return R_i, the probability p_i that arm 0 would play, and m_0 and l, arm 0's mean and the lowest mean,
    known before the episode. As arms are drawn by lot, d_i's expectation is what the arms earn less ``KEPT`` times what
    arm 0 would earn at that time, both above l, whatever m_0 is.

    Attributes:
        episodes: how many, [].
        total: sum of d_i, [].
        squares: sum of d_i^2, [].
        chances: sum of p_i, [].
    """

    episodes: Scalar
    total: Scalar
    squares: Scalar
    chances: Scalar

    def bounds(self) -> tuple[Scalar, Scalar]:
        """Bounds of the mean of d_i's expectations. However often one looks, the probability that one of them is ever
        wrong is at most ``ERROR_RATE``, in the limit of many episodes.

        Reference: Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas 2021, "Time-uniform central limit theory and
        asymptotic confidence sequences", the one-sided bound; its rho is such that it is tightest at ``TIGHTEST_AT``.
        """
        count = jnp.maximum(self.episodes, 1.0)
        mean = self.total / count
        variance = jnp.maximum(self.squares / count - jnp.square(mean), 0.0)
        log_rate = -2.0 * jnp.log(2.0 * ERROR_RATE)
        spread = count * (log_rate + jnp.log(log_rate) + 1.0) / TIGHTEST_AT  # t rho^2
        width = jnp.log1p(jnp.sqrt(spread + 1.0) / (2.0 * ERROR_RATE)) * 2.0 * (spread + 1.0) / spread
        width = jnp.sqrt(variance * width / count)
        return mean - width, mean + width

    def verdict(self) -> Scalar:
        """1 where the arms have surely earned ``KEPT`` of what arm 0 would have, -1 where surely not, 0 else."""
        low, high = self.bounds()
        enough = self.chances >= LEAST_FIRST
        return jnp.where(enough & (low > 0), 1.0, jnp.where(enough & (high < 0), -1.0, 0.0))


class ArmsState(NamedTuple):
    """Where the arms stand between two rollouts.

    Attributes:
        discounted: discounted return of each environment's running episode so far, [n].
        factor: gamma to the power of its length so far, [n].
        returns: what each arm has earned.
        lowest: the lowest mean so far; infinite before the first.
        share: the probability that each arm plays a new episode, [k].
        chance: the probability that arm 0 plays each environment's running episode, as it was when that began, [n].
        leader: the arm that is handed over, [].
        certificate: evidence on what all arms together have earned.
    """

    discounted: Float[Array, " n"]
    factor: Float[Array, " n"]
    returns: Returns
    lowest: Scalar
    share: Float[Array, " k"]
    chance: Float[Array, " n"]
    leader: Int[Array, ""]
    certificate: Certificate


class Decision(NamedTuple):
    """What follows from the arms' returns.

    Attributes:
        share: of each arm in the next rollout's episodes, [k].
        leader: the arm that is handed over, and plays the rest, by halves with arm 0, [].
        model: the arm that arm 0 takes over, []; 0 where it stays as it is.
    """

    share: Float[Array, " k"]
    leader: Int[Array, ""]
    model: Int[Array, ""]


def first_arms(num_arms: int, num_envs: int) -> ArmsState:
    """Before the first rollout: the environments are shared evenly."""
    nothing, evenly = jnp.zeros(num_arms), 1.0 / num_arms
    return ArmsState(
        discounted=jnp.zeros(num_envs),
        factor=jnp.ones(num_envs),
        returns=Returns(nothing, nothing, nothing),
        lowest=jnp.asarray(jnp.inf),
        share=jnp.full(num_arms, evenly),
        chance=jnp.full(num_envs, evenly),
        leader=jnp.zeros((), jnp.int32),
        certificate=Certificate(*jnp.zeros(4)),
    )


def drawn_turns(key: PRNGKeyArray, share: Float[Array, " k"], num_steps: int, num_envs: int) -> Int[Array, "t n"]:
    """The arm that would play an episode that starts after each step, [t, n]."""
    uniform = jax.random.uniform(key, (num_steps, num_envs, 1))
    return jnp.minimum(jnp.sum(uniform > jnp.cumsum(share), axis=-1), share.size - 1)


def relative_to(rollout: Rollout, arm: Int[Array, ""] | int) -> Rollout:
    """The rollout as an arm sees it that is to learn from it."""
    return rollout._replace(arm=None if rollout.arm is None else rollout.arm - arm)


# --- measuring --------------------------------------------------------------------------------------------------------


def noted(state: ArmsState, rollout: Rollout, rule: ArmRule) -> ArmsState:
    """The state after a rollout, its episodes among the arms' returns.

    Args:
        state: before it.
        rollout: the rollout, with the arm that took each step.
        rule: the rule.
    """
    steps, arm = rollout.steps, rollout.arm
    assert arm is not None

    def follow(carry, now):
        discounted, factor, chance = carry
        reward, ended = now
        discounted = discounted + factor * reward
        started = jnp.zeros_like(discounted), jnp.ones_like(factor), jnp.full_like(chance, state.share[0])
        after = discounted, factor * rule.discount, chance
        return tuple(jnp.where(ended, x, y) for x, y in zip(started, after, strict=True)), (discounted, chance)

    ended = steps.terminated | steps.truncated
    carry = state.discounted, state.factor, state.chance
    (discounted, factor, chance), (returns, chances) = jax.lax.scan(follow, carry, (steps.reward, ended))
    # One reward that is no number would stay in the sums for ever: such an episode is left out.
    ended, returns = ended & jnp.isfinite(returns), jnp.where(jnp.isfinite(returns), returns, 0.0)
    of_arm = jnp.where(ended[..., None], jax.nn.one_hot(arm, state.share.size), 0.0)
    earned = of_arm * returns[..., None]
    fresh = Returns(*(jnp.sum(x, axis=(0, 1)) for x in (of_arm, earned, earned * returns[..., None])))
    kept = jnp.exp(-fresh.episodes / rule.memory)
    measured = Returns(*(kept * old + new for old, new in zip(state.returns, fresh, strict=True)))
    lowest = jnp.minimum(state.lowest, jnp.min(jnp.where(measured.known, measured.mean, jnp.inf)))
    certificate = _certified(state, arm == 0, returns, chances, ended)
    return ArmsState(discounted, factor, measured, lowest, state.share, chance, state.leader, certificate)


def _certified(
    state: ArmsState,
    by_first: Bool[Array, "t n"],
    returns: Float[Array, "t n"],
    chances: Float[Array, "t n"],
    ended: Bool[Array, "t n"],
) -> Certificate:
    """The evidence with a rollout's episodes, judged by what was known before it."""
    known = state.returns.known[0] & jnp.isfinite(state.lowest)
    low, mean = jnp.where(known, state.lowest, 0.0), state.returns.mean[0]
    of_first = mean + jnp.where(by_first, (returns - mean) / jnp.maximum(chances, LEAST_CHANCE), 0.0)
    ahead = returns - low - KEPT * (of_first - low)
    counted = ended & (chances >= LEAST_CHANCE) & known
    ahead = jnp.where(counted, ahead, 0.0)
    chances = jnp.where(counted, chances, 0.0)
    fresh = [jnp.sum(x) for x in (counted.astype(jnp.float32), ahead, jnp.square(ahead), chances)]
    return Certificate(*(old + new for old, new in zip(state.certificate, fresh, strict=True)))


def decided(state: ArmsState, progress: Scalar, rule: ArmRule) -> Decision:
    """Shares for the next rollout, who leads, and whether arm 0 takes another one over.

    Arm 0 leads until another one surely earns more, by c standard errors; then arm 0 takes its networks over, and the
    other one leads until arm 0 surely earns more. With x the share of the training that is over, and K arms, every arm
    but 0 and the leader plays a share

        p = min(1, alpha kappa (1 - x)^(kappa - 1)) / (K - 1)

    of the episodes. Arm 0 plays half of the rest, and all of it where it leads. So what it misses is at most alpha of a
    training's episodes while no other surely earns more.

    Args:
        state: the arms' returns, and who leads.
        progress: x, from 0 to 1.
        rule: the rule.
    """
    returns, num_arms = state.returns, state.share.size
    first = jnp.zeros((), jnp.int32)
    best = jnp.argmax(jnp.where(returns.known, returns.mean, -jnp.inf))
    model = jnp.where(_surely_better(state, best, first, rule), best, first)
    back = _surely_better(state, first, state.leader, rule)
    leader = jnp.where(model != 0, model, jnp.where(back, first, state.leader))
    rate = jnp.minimum(rule.budget * rule.haste * (1.0 - progress) ** (rule.haste - 1.0), 1.0) / max(1, num_arms - 1)
    share = jnp.full(num_arms, rate).at[0].set(0.0).at[leader].set(0.0)
    rest = 1.0 - jnp.sum(share)
    return Decision(share.at[0].add(0.5 * rest).at[leader].add(0.5 * rest), leader, model)


def _surely_better(state: ArmsState, one: Int[Array, ""], other: Int[Array, ""], rule: ArmRule) -> Bool[Array, ""]:
    """Whether an arm earns more than another one, beyond doubt."""
    returns = state.returns
    ahead = returns.mean[one] - returns.mean[other]
    doubt = jnp.hypot(returns.error[one], returns.error[other])
    enough = jnp.minimum(returns.episodes[one], returns.episodes[other]) >= LEAST_EPISODES
    matters = ahead > LEAST_DIFFERENCE * (returns.mean[one] - state.lowest) + ROUNDING * jnp.abs(returns.mean[one])
    return enough & matters & (ahead > rule.sure * doubt)


def copied(tree: PyTree, model: Int[Array, ""]) -> PyTree:
    """Every array of all arms, [k, ...], where arm 0 has taken over what ``model`` has."""
    return jax.tree.map(lambda x: x.at[0].set(x[model]), tree)


def chosen(tree: PyTree, arm: Int[Array, ""]) -> PyTree:
    """One arm's arrays, of all arms' [k, ...]."""
    return jax.tree.map(lambda x: x[arm], tree)
