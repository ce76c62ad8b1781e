"""What a learner has made of its auxiliary sources: shares, right signs, and the state dimensions that tell most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from llmrl.analysis.answers import Words
from llmrl.envs.cartpole import OBS_NAMES
from llmrl.settings.errors import BadValue, unknown
from llmrl.trust.blend import TRUSTED_FROM

AS_ACTED = "as the policy acts"
"""The first probe of every map: the action that the policy took."""


class TrustMap(NamedTuple):
    """What a source says and how far it moves the policy, in the states that trained policies visit, for several
    actions in each.

    Attributes:
        sources: names of the auxiliary sources, m of them.
        probes: what each action that was asked about is called; the first is the one that the policy took.
        obs_names: a name per component of an observation.
        obs: visited states, [seeds, states, features].
        aux: what the source says, [seeds, states, probes, m].
        influence: share of the policy's step that comes from the source where it says this, above 0 where it is
            followed and below 0 where it is turned around, in an update on these steps (``learner.influence``), [seeds,
            states, probes, m].
        weight: factor that the source is multiplied with in that update, limits and units included, [seeds, states,
            probes, m].
        settled: the same in the largest units that the task has had, as the reward would be transferred: a solved task
            may have none left, [seeds, states, probes, m].
        unit: the settled weight that means full trust, [seeds, m].
        threshold: from which share on, of the policy's step or of full trust, a source counts as used or as turned
            around.
        words: what a language model among the sources was asked; None where there is none.
    """

    sources: tuple[str, ...]
    probes: tuple[str, ...]
    obs_names: tuple[str, ...]
    obs: Float[np.ndarray, "seeds states features"]
    aux: Float[np.ndarray, "seeds states probes m"]
    influence: Float[np.ndarray, "seeds states probes m"]
    weight: Float[np.ndarray, "seeds states probes m"]
    settled: Float[np.ndarray, "seeds states probes m"]
    unit: Float[np.ndarray, "seeds m"]
    threshold: float = TRUSTED_FROM
    words: Words | None = None


class Shares(NamedTuple):
    """Of the visited steps on which a source speaks, the shares by what was made of it; [seeds] each, NaN where silent.

    Attributes:
        used: it moved the policy towards what it says, by its weight or as a hint that was followed.
        ignored: neither.
        turned: it moved the policy away from what it says.
    """

    used: Float[np.ndarray, " seeds"]
    ignored: Float[np.ndarray, " seeds"]
    turned: Float[np.ndarray, " seeds"]


class SignShares(NamedTuple):
    """How often the sign of a weight is right; [seeds] each, NaN where nothing was to be decided.

    Attributes:
        share: of the visited steps on which the source speaks.
        balanced: mean of the shares where it should be followed and where it should be turned around, so that a weight
            of one sign everywhere has no more than a half; equal to ``share`` where only one of them was visited.
    """

    share: Float[np.ndarray, " seeds"]
    balanced: Float[np.ndarray, " seeds"]


class Sides(NamedTuple):
    """What was made of a source where it is right, and where it is wrong; [seeds] each, NaN where nothing was visited.

    Attributes:
        correct: of the visited steps on which the source speaks, the share with a weight above 0 where it is right, and
            below the map's threshold (a little trust, none, or turned around) where it is wrong.
        correct_right, correct_wrong: the same of either side alone.
        right: share of those steps on which the source is right.
        weight_right, weight_wrong: mean weight on either side, as a share of full trust.
    """

    correct: Float[np.ndarray, " seeds"]
    correct_right: Float[np.ndarray, " seeds"]
    correct_wrong: Float[np.ndarray, " seeds"]
    right: Float[np.ndarray, " seeds"]
    weight_right: Float[np.ndarray, " seeds"]
    weight_wrong: Float[np.ndarray, " seeds"]


RightSign = Callable[[Float[np.ndarray, "seeds states features"]], Float[np.ndarray, "seeds states"]]
"""The sign that a source's weight should have: observations -> +1, -1, or 0 where it does not matter."""

RIGHT_SIGNS: dict[str, RightSign] = {
    "harmful": lambda obs: np.full(obs.shape[:-1], -1.0),
    "beneficial": lambda obs: np.full(obs.shape[:-1], 1.0),
    "half_right": lambda obs: np.where(obs[..., OBS_NAMES.index("cart position")] >= 0.0, 1.0, -1.0),
}
"""Of the CartPoles' sources whose quality is known by construction (``llmrl.envs.cartpole``)."""

BORDERS: dict[str, dict[str, float]] = {"half_right": {OBS_NAMES[0]: 0.0}}
"""Where the right sign of such a source changes: component of the observation -> value."""


# --- shares -----------------------------------------------------------------------------------------------------------


def shares(found: TrustMap, source: str) -> Shares:
    """What was made of a source on the steps that the policies take.

    Args:
        found: a map.
        source: one of its sources.

    Raises:
        ValueError: there is no such source.
    """
    i = source_index(found, source)
    moved, speaks = found.influence[:, :, 0, i], found.aux[:, :, 0, i] != 0
    kinds = moved >= found.threshold, np.abs(moved) < found.threshold, moved <= -found.threshold
    return Shares(*(_share(kind, speaks) for kind in kinds))


def right_signs(found: TrustMap, source: str, right: RightSign | None = None) -> SignShares:
    """The share of visited states where the sign of a source's settled weight is right.

    Counted are the steps on which the source speaks; a weight of exactly 0 is not right.

    Args:
        found: a map.
        source: one of its sources.
        right: the right sign in each state; that of ``RIGHT_SIGNS`` where not given.

    Raises:
        ValueError: there is no such source, or its right sign is not known.
    """
    weight, speaks, _ = _as_acted(found, source)
    sign = _right_sign(found, source, right)
    matters, correct = speaks & (sign != 0), np.sign(weight) == sign
    sides = np.stack([_share(correct, matters & (sign == side)) for side in (1.0, -1.0)])
    known = ~np.isnan(sides)
    balanced = np.where(known, sides, 0.0).sum(axis=0) / np.where(known.any(axis=0), known.sum(axis=0), np.nan)
    return SignShares(_share(correct, matters), balanced)


def sides(found: TrustMap, source: str, right: RightSign | None = None) -> Sides:
    """The settled weights of a source on either side of the border between where it is right and where it is wrong.

    Unlike for ``right_signs``, to ignore a source where it is wrong is as good as to turn it around.

    Args:
        found, source, right: as for ``right_signs``.

    Raises:
        ValueError: there is no such source, or its right sign is not known.
    """
    weight, speaks, unit = _as_acted(found, source)
    sign = _right_sign(found, source, right)
    trust = weight / np.maximum(unit[:, None], 1e-12)
    helps, harms = speaks & (sign > 0), speaks & (sign < 0)
    correct = np.where(sign > 0, weight > 0, trust < found.threshold)
    either = helps | harms
    shares = _share(correct, either), _share(correct, helps), _share(correct, harms), _share(helps, either)
    return Sides(*shares, _mean(trust, helps), _mean(trust, harms))


def _right_sign(found: TrustMap, source: str, right: RightSign | None) -> Float[np.ndarray, "seeds states"]:
    if right is None and source not in RIGHT_SIGNS:
        raise unknown("source whose right sign is known", source, RIGHT_SIGNS)
    return (right or RIGHT_SIGNS[source])(found.obs)


def _as_acted(found: TrustMap, source: str) -> tuple[np.ndarray, Bool[np.ndarray, "seeds states"], np.ndarray]:
    i = source_index(found, source)
    return found.settled[:, :, 0, i], found.aux[:, :, 0, i] != 0, found.unit[:, i]


def source_index(found: TrustMap, source: str) -> int:
    """Where a source stands among the map's; an unknown name is a ``ValueError``."""
    if source not in found.sources:
        raise unknown("auxiliary source", source, found.sources)
    return found.sources.index(source)


def _share(kind: Bool[np.ndarray, "seeds states"], of: Bool[np.ndarray, "seeds states"]) -> np.ndarray:
    return _mean(kind.astype(np.float64), of)


def _mean(values: Float[np.ndarray, "seeds states"], of: Bool[np.ndarray, "seeds states"]) -> np.ndarray:
    count = of.sum(axis=1)
    return np.where(count > 0, np.where(of, values, 0.0).sum(axis=1) / np.maximum(count, 1), np.nan)


# --- dimensions -------------------------------------------------------------------------------------------------------


def find_dims(found: TrustMap, dims: Sequence[str | int]) -> tuple[int, int]:
    """Two components of the observation by number, by name, or by a part of a name that only one has.

    Raises:
        ValueError: they are not two, or a name means none or several.
    """
    if len(dims) != 2:
        raise BadValue(f"dims must be two components of the observation, got {list(dims)}")
    first, second = (_find_dim(found.obs_names, dim) for dim in dims)
    return first, second


def _find_dim(names: Sequence[str], dim: str | int) -> int:
    if str(dim).isdecimal():
        if int(dim) >= len(names):
            raise BadValue(f"the observation has {len(names)} components, got number {dim}")
        return int(dim)
    exact = [i for i, name in enumerate(names) if dim == name]
    matching = exact or [i for i, name in enumerate(names) if str(dim) in name]
    if len(matching) > 1:
        raise BadValue(f"{dim!r} may be {' or '.join(repr(names[i]) for i in matching)}: say which")
    if not matching:
        raise unknown("component of the observation", dim, names)
    return matching[0]


def telling_dims(found: TrustMap, source: str, bins: int = 8, candidates: int = 10) -> tuple[int, int]:
    """The two components of the observation that explain most of a settled weight's variance over the visited states.

    Every seed and every action is taken by itself, so that neither what seeds disagree about nor what depends on the
    action alone is explained by a state. Of a weight that is the same in all states the source itself is explained.

    Args:
        found: a map.
        source: one of its sources.
        bins: quantiles of each component.
        candidates: components, the best by themselves, of which all pairs are tried.
    """
    i = source_index(found, source)
    first = 1 if len(found.probes) > 1 else 0
    states = _some(found.obs.shape[1], 20_000 // len(found.obs))
    obs = found.obs[:, states].reshape(-1, found.obs.shape[-1])
    values = _varying(found.settled[..., i][:, states, first:])
    if not values.any():
        values = _varying(found.aux[..., i][:, states, first:])
    codes = [_quantile_codes(obs[:, dim], bins) for dim in range(obs.shape[1])]
    alone = [_explained(values, code) for code in codes]
    best = sorted(np.argsort(alone, kind="stable")[::-1][:candidates].tolist())
    if len(best) < 2:
        return best[0], best[0]
    return max(combinations(best, 2), key=lambda pair: _explained(values, codes[pair[0]] * bins + codes[pair[1]]))


def _some(count: int, wanted: int) -> Int[np.ndarray, " some"]:
    return np.unique(np.linspace(0, count - 1, max(1, min(count, wanted))).astype(int))


def _varying(values: Float[np.ndarray, "seeds states probes"]) -> Float[np.ndarray, "points probes"]:
    values = values.astype(np.float64)
    varying = values - values.mean(axis=1, keepdims=True)
    varying = np.where(np.abs(varying) > 1e-6 * np.abs(values).max(initial=1e-12), varying, 0.0)
    return varying.reshape(-1, values.shape[-1])


def _quantile_codes(x: Float[np.ndarray, " points"], bins: int) -> Int[np.ndarray, " points"]:
    edges = np.unique(np.quantile(x, np.linspace(0, 1, bins + 1)[1:-1]))
    return np.searchsorted(edges, x, side="right")


def _explained(values: Float[np.ndarray, "points probes"], codes: Int[np.ndarray, " points"]) -> float:
    """Variance between bins, summed over probes."""
    count = np.maximum(np.bincount(codes), 1)
    sums = np.stack([np.bincount(codes, column) for column in values.T])
    return float((np.square(sums) / count).sum())


# --- maps -------------------------------------------------------------------------------------------------------------


def edges(x: Float[np.ndarray, "..."], bins: int = 24) -> Float[np.ndarray, " edges"]:
    """Edges of a map's cells: between the values where they are few, else even, without the outer hundredths."""
    values = np.unique(x)
    if 1 < len(values) <= bins:
        between = (values[1:] + values[:-1]) / 2.0
        return np.concatenate([[2 * values[0] - between[0]], between, [2 * values[-1] - between[-1]]])
    low, high = np.quantile(x, [0.01, 0.99])
    return np.linspace(low, high if high > low else low + 1.0, bins + 1)


def cell_means(
    values: Float[np.ndarray, " points"],
    counted: Bool[np.ndarray, " points"],
    x: Float[np.ndarray, " points"],
    y: Float[np.ndarray, " points"],
    x_edges: Float[np.ndarray, " x_edges"],
    y_edges: Float[np.ndarray, " y_edges"],
    least: int = 3,
) -> Float[np.ndarray, "y_cells x_cells"]:
    """Mean of the values in each cell of a map.

    Args:
        values: at the points.
        counted: which of them count.
        x, y: the points.
        x_edges, y_edges: of the cells.
        least: points that a cell needs.

    Returns:
        Means; NaN where too few points fall.
    """
    where = (x[counted], y[counted])
    count = np.histogram2d(*where, (x_edges, y_edges))[0]
    total = np.histogram2d(*where, (x_edges, y_edges), weights=values[counted])[0]
    return np.where(count >= least, total / np.maximum(count, 1), np.nan).T
