"""What a learner has made of a language model's answers, in the words in which it was asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt32

LEAST_VISITS = 10
"""Steps that an answer must have been heard on to be among the most trusted, ignored or turned around."""


class Words(NamedTuple):
    """What a map of trust was asked about, as a language model was.

    Attributes:
        source: place of the language model among the map's sources.
        state_key: captions of the visited states, as integers, [seeds, states].
        event: what happens for each probe's action, [seeds, states, probes].
        describe: ``key -> text``.
        events: the events in words.
        scores: ``key -> score per event``, as they were given.
    """

    source: int
    state_key: UInt32[np.ndarray, "seeds states"]
    event: Int[np.ndarray, "seeds states probes"]
    describe: Callable[[int], str]
    events: tuple[str, ...]
    scores: Mapping[int, np.ndarray]


class Answer(NamedTuple):
    """What became of one answer.

    Attributes:
        state: the caption.
        event: what was asked about.
        score: the language model's, in [0, 1].
        influence: share of the policy's step that comes from it, mean over the visited states with this caption, of all
            seeds: above 0 it was believed, at 0 ignored, below 0 turned around.
        weight: what its reward is multiplied with, mean over the same.
        visits: steps on which a policy did this in such a state.
    """

    state: str
    event: str
    score: float
    influence: float
    weight: float
    visits: int


def answers(
    words: Words,
    influence: Float[np.ndarray, "seeds states probes"],
    weight: Float[np.ndarray, "seeds states probes"],
) -> list[Answer]:
    """Every answer to a state that was visited, the most frequent first.

    Args:
        words: what was asked.
        influence: of the language model, as ``TrustMap`` has it; the first probe is the action that the policy took.
        weight: of the language model, of any kind that ``TrustMap`` has.
    """
    number = len(words.events)
    code = words.state_key[..., None].astype(np.int64) * number + words.event
    heard = np.isin(words.state_key, np.fromiter(words.scores, np.uint32, len(words.scores)))
    found, place = np.unique(code, return_inverse=True)
    place = place.reshape(code.shape)
    visits = np.bincount(place[..., 0][heard], minlength=len(found))
    # Where every action was asked about, the one taken is among them.
    probes = slice(1, None) if code.shape[-1] > 1 else slice(None)
    asked = np.broadcast_to(heard[..., None], code.shape)[..., probes]
    moved, weights = (_means(values, place, len(found), asked, probes) for values in (influence, weight))
    told = []
    for index in np.argsort(-visits, kind="stable"):
        key, event = divmod(int(found[index]), number)
        if key in words.scores and np.isfinite(weights[index]):
            score = float(words.scores[key][event])
            numbers = score, float(moved[index]), float(weights[index]), int(visits[index])
            told.append(Answer(words.describe(key), words.events[event], *numbers))
    return told


def _means(
    values: np.ndarray, place: np.ndarray, number: int, asked: Bool[np.ndarray, "..."], probes: slice
) -> Float[np.ndarray, " answers"]:
    where = place[..., probes][asked]
    count = np.bincount(where, minlength=number)
    total = np.bincount(where, weights=values[..., probes][asked], minlength=number)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def extremes(
    told: Sequence[Answer], threshold: float, neutral: float = 0.5, number: int = 10
) -> dict[str, list[Answer]]:
    """The answers that were trusted most, ignored most and turned around most, at most ``number`` of each.

    Args:
        told: as ``answers`` gives them.
        threshold: share of the policy's step from which on an answer counts as trusted or turned around.
        neutral: an answer with this score says nothing, and is left out.
        number: how many of each.
    """
    heard = [each for each in told if each.visits >= LEAST_VISITS and abs(each.score - neutral) > 1e-6]
    return {
        "most trusted": sorted((a for a in heard if a.influence >= threshold), key=lambda a: -a.influence)[:number],
        "most ignored": sorted(
            (a for a in heard if abs(a.influence) < threshold), key=lambda a: (abs(a.influence), abs(a.weight))
        )[:number],
        "most turned around": sorted((a for a in heard if a.influence <= -threshold), key=lambda a: a.influence)[
            :number
        ],
    }
