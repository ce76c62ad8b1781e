"""The central types: who carries arrays, who carries configuration, and in which shape.

Axes are named once, here, and everywhere time-major:

    t  steps of a rollout        n  environments stepped side by side
    m  auxiliary reward sources  k  reward streams (one critic head each)
    a  dimensions of an action (continuous) or number of actions (discrete)

A ``NamedTuple`` carries arrays, a frozen dataclass carries configuration; functions are plugged in, never overridden.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, Shaped, UInt32

Scalar: TypeAlias = Float[Array, ""]
"""A float array of shape []."""


# --- environments ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Discrete:
    """Actions are integers 0 .. num - 1, shape []."""

    num: int


@dataclass(frozen=True)
class Box:
    """Actions are float vectors of shape [dim]; the environment clips them to [low, high]."""

    dim: int
    low: float = -1.0
    high: float = 1.0


@dataclass(frozen=True)
class Codes:
    """Neighbouring bytes of an observation that share a code: each names a row of features.

    Where an observation is made of symbols (what lies on 63 cells), a rollout stores bytes, and a network's first layer
    alone sees the many zeros and ones they stand for.

    Attributes:
        count: how many bytes.
        rows: features of each code, [codes, features].
    """

    count: int
    rows: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class EnvSpec:
    """What a learner may know of an environment before it has seen it.

    Attributes:
        name: the environment's name, as in ``env=...``.
        obs_shape: shape of one observation, without batch axes.
        action: the action space.
        horizon: time limit in steps; reaching it truncates an episode and never terminates it.
        aux_names: one name per auxiliary source, in the order of ``Transition.aux``'s last axis.
        obs_scale: divisor per observation component (broadcast against ``obs_shape``), so that networks see numbers
            near 1.
        obs_names: a name per observation component, for pictures; empty where there are too many.
        encoding: what the bytes of a uint8 observation stand for, in their order; empty where observations are
            numbers themselves, of any dtype.
    """

    name: str
    obs_shape: tuple[int, ...]
    action: Discrete | Box
    horizon: int
    aux_names: tuple[str, ...] = ()
    obs_scale: tuple[float, ...] | float = 1.0
    obs_names: tuple[str, ...] = ()
    encoding: tuple[Codes, ...] = ()


class TimeStep(NamedTuple):
    """What one step of an environment returns; no batch axes, no reset inside.

    Attributes:
        obs: observation of the state just reached, [*obs].
        reward: the task's own reward.
        terminated: the episode ended by the rules of the game.
        truncated: the time limit was reached (may be true together with ``terminated``; ``terminated`` then decides).
        success: the step reached the task's goal, if the task has one.
        aux: one value per auxiliary source, [m].
        state_key: the caption of the state that was acted in, as an integer.
        event: what the step did, as an integer.
    """

    obs: Shaped[Array, "*obs"]
    reward: Float[Array, ""]
    terminated: Bool[Array, ""]
    truncated: Bool[Array, ""]
    success: Bool[Array, ""]
    aux: Float[Array, " m"]
    state_key: UInt32[Array, ""]
    event: Int[Array, ""]


EnvState: TypeAlias = Any
"""An environment's own pytree."""


class Rules(NamedTuple):
    """Answers about states as lines of a list: in states with these bits set so, this event is worth so much.

    A line holds for a state where ``key & mask == value``; an event is worth what its best line that holds says, 0
    where none does. Rules are numbers, so they are asked on the host and inside compiled programs alike.

    Attributes:
        masks: bits that a line looks at, [r].
        values: what they have to be, [r].
        events: what it speaks of, indices into a captioner's events, [r].
        scores: its worth in [0, 1], [r].
    """

    masks: UInt32[np.ndarray, " r"]
    values: UInt32[np.ndarray, " r"]
    events: Int[np.ndarray, " r"]
    scores: Float[np.ndarray, " r"]


class Captioner(NamedTuple):
    """Words for states and steps: integers on the device, for one instance and in pure jax; text on the host.

    Attributes:
        events: what a step can do, each as it reads after "should the agent ...".
        describe: ``key -> text``, the state in words; raises a ``ValueError`` for a key that ``state_key`` never gives.
        context: the task and its goal in words.
        state_key: ``obs -> uint32 []``, the caption of a state; never 0xFFFFFFFF. None where the environment puts it
            into ``TimeStep`` itself.
        event: ``(obs, action, next_obs) -> int32 []``, an index into ``events``; the action is the one performed. None
            together with ``state_key``.
        name: what recorded answers about these captions are called, where some are shipped.
        keys: ``() -> sequence of int``, every key that ``state_key`` can give, where they can be listed.
        oracle: ``(key, event) -> score`` in [0, 1], what someone who knows the rules would answer.
        rules: provider -> its answers about every state, for providers that need not be asked one by one.
        history: ``key -> ((state, action), ...)``, what led to a state in words, oldest first.
    """

    events: tuple[str, ...]
    describe: Callable[[int], str]
    context: str
    state_key: Callable[[Shaped[Array, "*obs"]], UInt32[Array, ""]] | None = None
    event: Callable[[Shaped[Array, "*obs"], Shaped[Array, "*a"], Shaped[Array, "*obs"]], Int[Array, ""]] | None = None
    name: str = ""
    keys: Callable[[], Sequence[int]] | None = None
    oracle: Callable[[int, int], float] | None = None
    rules: Mapping[str, Rules] = {}
    history: Callable[[int], Sequence[tuple[str, str]]] | None = None


class Environment(NamedTuple):
    """An environment as pure functions of one instance; ``jax.vmap`` makes it many.

    Attributes:
        spec: the static description.
        reset: ``key -> (state, obs)``.
        step: ``(key, state, action) -> (state, TimeStep)``; never resets.
        steps_per_reset: where ``reset`` is dear: a pool holds one fresh start per so many steps of a rollout, and is
            filled up after it. None gives every episode a start of its own: one is made for every step, or, where those
            would take more than 128 MiB, wherever an episode ends.
        captioner: words for its states and steps, where there are any; without them the captions stay as ``step`` gave
            them.
    """

    spec: EnvSpec
    reset: Callable[[PRNGKeyArray], tuple[EnvState, Shaped[Array, "*obs"]]]
    step: Callable[[PRNGKeyArray, EnvState, Shaped[Array, "*a"]], tuple[EnvState, TimeStep]]
    steps_per_reset: int | None = None
    captioner: Captioner | None = None


class HostWorlds(NamedTuple):
    """Games that run in Python, each at a place of its own, as long as they are open; arrays are numpy's.

    Attributes:
        reset: ``(places, seeds) -> obs [places, *obs]``, a fresh episode at each place; equal seeds make equal ones.
        step: ``(places, actions [places, *a]) -> TimeStep``, all with a leading axis [places]; never resets.
        at_once: how many episodes are worth playing side by side.
        picture: ``place -> [height, width, 3]``, bytes, what a person sees there; None where nothing is drawn.
    """

    reset: Callable[[Sequence[int], Sequence[int]], Any]
    step: Callable[[Sequence[int], Any], TimeStep]
    at_once: int = 16
    picture: Callable[[int], Any] | None = None


class HostEpisodes(NamedTuple):
    """The running episodes of games in Python: playing the same actions from the same seed leads to the same state.

    Attributes:
        seed: that each began with, [n].
        actions: since then, [n, horizon, *a]; what stands beyond an episode's length so far is of earlier ones.
    """

    seed: UInt32[Array, " n"]
    actions: Shaped[Array, "n horizon *a"]


class HostEnvironment(NamedTuple):
    """An environment that no compiler understands.

    Attributes:
        spec: the static description.
        opened: ``sources -> context manager of HostWorlds``; with ``drawn=True``, where an environment draws itself,
            ``picture`` is there.
        sources: its auxiliary functions, one value each, in the order of ``spec.aux_names``; what they are called with
            is the environment's own choice.
        captioner: as an ``Environment``'s; its functions are compiled ones here, too.
        obs_dtype: of observations.
        notes: what a user should hear before training, in plain words.
        example: what a source may be tried on, its arguments; None where it cannot be.
    """

    spec: EnvSpec
    opened: Callable[..., AbstractContextManager[HostWorlds]]
    sources: tuple[Callable, ...] = ()
    captioner: Captioner | None = None
    obs_dtype: str = "float32"
    notes: tuple[str, ...] = ()
    example: tuple[Any, ...] | None = None


# --- experience -----------------------------------------------------------------------------------------------------


class Transition(NamedTuple):
    """Steps of many environments; the leading axes are [n], or [t, n] inside a ``Rollout``.

    Attributes:
        obs: observation acted on, [..., *obs].
        action: action taken, int [...] or float [..., a].
        log_prob: its log-probability under the policy that acted, [...].
        reward: the task's own reward, [...]; never overwritten.
        terminated: the episode ended by the rules, [...].
        truncated: the time limit was reached, [...].
        success: the goal was reached on this step, [...].
        next_obs: observation after the step and before any reset, [..., *obs].
        aux: auxiliary sources, [..., m].
        state_key: caption of the state acted in, [...].
        event: what the step did, [...].
    """

    obs: Shaped[Array, "*batch_obs"]
    action: Shaped[Array, "*batch_action"]
    log_prob: Float[Array, "*batch"]
    reward: Float[Array, "*batch"]
    terminated: Bool[Array, "*batch"]
    truncated: Bool[Array, "*batch"]
    success: Bool[Array, "*batch"]
    next_obs: Shaped[Array, "*batch_obs"]
    aux: Float[Array, "*batch m"]
    state_key: UInt32[Array, "*batch"]
    event: Int[Array, "*batch"]


class Rollout(NamedTuple):
    """T steps of N environments, and the action that would come next (for SARSA-type targets).

    Attributes:
        steps: transitions, leading axes [t, n].
        final_action: action drawn in the state after the last step, [n, ...].
        arm: number of the policy that acted, [t, n], where several act in turns; counted from the one that learns,
            which is 0. None where one policy does both.
    """

    steps: Transition
    final_action: Shaped[Array, "n *a"]
    arm: Int[Array, "t n"] | None = None


# --- reward streams -------------------------------------------------------------------------------------------------


class Signal(NamedTuple):
    """A reward and how much of the future counts after it.

    Attributes:
        reward: [t, n].
        discount: gamma (1 - terminated), [t, n]; a truncation never zeroes it, its value is bootstrapped. Where it is
            not 0 at a termination, the return goes on with the next episode.
    """

    reward: Float[Array, "t n"]
    discount: Float[Array, "t n"]


class HeadValues(NamedTuple):
    """What two of the critic's heads say of a rollout's steps, held constant.

    Attributes:
        task: the task's head, of the observations acted on, [t, n].
        next_task: the same of the observations after the step, [t, n].
        own: the head of the stream that is asked about, [t, n].
        next_own: the same of the observations after the step, [t, n].
    """

    task: Float[Array, "t n"]
    next_task: Float[Array, "t n"]
    own: Float[Array, "t n"]
    next_own: Float[Array, "t n"]


class SourceWeights(NamedTuple):
    """How far each auxiliary source is trusted on the steps of a rollout.

    Attributes:
        weight: the factor that a source is multiplied with before it is paid, every limit included, [t, n, m].
        unit: the size of a weight that means full trust; smaller than 1 where a source was scaled down to the task's
            units, [m].
    """

    weight: Float[Array, "t n m"]
    unit: Float[Array, " m"]


class RewardTransform(NamedTuple):
    """A way to turn the task's signal into another one.

    Three owners of numbers, by type: ``phi`` is written only by an outer optimiser, ``state`` only by the transform's
    own ``observe`` (what a blend knows of its sources by the outer level), constants never.

    Attributes:
        init: ``key -> (phi, state)``; phi is a dict, one entry per group of parameters that moves at its own rate.
        apply: ``(phi, state, rollout, signal) -> signal``; pure, differentiable in phi.
        observe: ``(phi, state, rollout, signal) -> state``: what the transform notes of a fresh rollout, once per
            iteration (running statistics, a predictor's own learning). ``signal`` is the bare task's.
        report: ``(phi, state, rollout) -> {metric: scalar}``, what a person should see of it.
        weights: ``(phi, state, rollout) -> SourceWeights``: how far each source is trusted, for the trust report; None
            where a transform has no weight per source. Only ``obs``, ``action`` and ``aux`` of the steps may matter.
        settled: ``state -> state``: what the transform goes by once it is frozen, in place of what it noted last; None
            where that is the same.
        corrected: ``(phi, state, signal, task's signal, HeadValues) -> signal``: the transform's signal once the
            critics have valued the rollout; None where it does not depend on them.
        needs_task: whether these functions get the task's statistics with the state
            (``llmrl.trust.task_statistics.WithTask``); ``observe`` returns the state alone.
    """

    init: Callable[[PRNGKeyArray], tuple[dict[str, PyTree], PyTree]]
    apply: Callable[[PyTree, PyTree, Rollout, Signal], Signal]
    observe: Callable[[PyTree, PyTree, Rollout, Signal], PyTree]
    report: Callable[[PyTree, PyTree, Rollout], dict[str, Scalar]]
    weights: Callable[[PyTree, PyTree, Rollout], SourceWeights] | None = None
    settled: Callable[[PyTree], PyTree] | None = None
    corrected: Callable[[PyTree, PyTree, Signal, Signal, HeadValues], Signal] | None = None
    needs_task: bool = False


class Stream(NamedTuple):
    """A transformed reward, the critic head that values it, and its share in the policy's advantage.

    Attributes:
        transform: the reward's transform.
        weight: share of this stream's advantage in the inner objective; the bare task is always stream 0, and counts
            0 where another stream contains it already.
        advice: of a stream that is no part of the inner objective, but that the policy follows by additional steps:
            ``(phi, state) -> (x, y)``, from 0 to 1: the length of those steps, and what the steps on the inner
            objective lose meanwhile. None where a stream is part of it.
        of: number of the stream whose state this one goes by; None for its own.
        size: ``(phi, state, rollout) -> x``: the deviation that its advantage is scaled to, in units of the task's.
            None leaves the advantage as it is.
    """

    transform: RewardTransform
    weight: float | Scalar
    advice: Callable[[PyTree, PyTree], tuple[Scalar, Scalar]] | None = None
    of: int | None = None
    size: Callable[[PyTree, PyTree, Rollout], Scalar] | None = None


class View(NamedTuple):
    """What a policy sees in place of the observation, where that depends on what is learned about the reward.

    Attributes:
        spec: the environment as the policy sees it; only its observations are others.
        of: ``(phis, obs [..., *obs]) -> [..., *seen]``, differentiable in phis.
    """

    spec: EnvSpec
    of: Callable[[Sequence[PyTree], Float[Array, "..."]], Float[Array, "..."]]


# --- linear algebra of pytrees ----------------------------------------------------------------------------------------


# --- bi-level problems ------------------------------------------------------------------------------------------------
