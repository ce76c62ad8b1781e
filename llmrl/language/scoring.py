"""From what a model said to numbers in [0, 1]; what cannot be read is an explicit ``Unanswered``, never a number."""

from __future__ import annotations

import math
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float

from llmrl.language.prompts import clean
from llmrl.language.question import Question, Unanswered
from llmrl.settings.errors import BadValue

MAX_GOALS = 32
MAX_GOAL_LENGTH = 200
MIN_MASS = 0.05
"""Where yes and no together have less, the model is saying something else."""

_WORDS = ("yes", "no")

Candidates: TypeAlias = tuple[tuple[str, float], ...]
"""(token, log-probability) of what may stand at a position, the chosen one first."""


class Completion(NamedTuple):
    """What came back from a model.

    Attributes:
        text: the answer.
        tokens: per position the candidates; empty where the endpoint gave no log-probabilities.
    """

    text: str
    tokens: tuple[Candidates, ...] = ()


Scorer: TypeAlias = Callable[[Completion, Question], Awaitable[tuple[float, ...]]]
"""``(completion, question) -> a score in [0, 1] per event``; raises ``Unanswered`` and nothing else."""

Similarity: TypeAlias = Callable[[Sequence[str], Sequence[str]], Awaitable[Float[np.ndarray, "g e"]]]
"""``(goals, phrases) -> how alike each two are``, in [0, 1]."""


# --- yes or no --------------------------------------------------------------------------------------------------------


def probability_of_yes(completion: Completion) -> float:
    """P(yes) / (P(yes) + P(no)), at the first position that decides, all spellings of each word added up.

    A word may be split into several tokens, "Y" and "es": its probability is then the product of theirs. A
    log-probability of minus infinity is a probability of 0. Where one of the two is not among the candidates it is
    given the most it can have: no more than the least likely candidate, and no more than what is left to 1.

    Raises:
        Unanswered: no log-probabilities came, or the model said neither word.
    """
    positions = [each for each in completion.tokens if any(log_prob > -math.inf for _, log_prob in each)]
    if not positions:
        raise Unanswered("no_logprobs", "the answer came without log-probabilities")
    for index, candidates in enumerate(positions):
        yes, no, least, total = _masses(positions[index:])
        if yes + no >= MIN_MASS:
            unseen = min(least, max(0.0, 1.0 - total))
            yes, no = yes or unseen, no or unseen
            return min(1.0, max(0.0, yes / (yes + no)))
        if _word(candidates[0][0]):
            break  # it began to say something else
    raise Unanswered("unparseable", f"neither yes nor no: {completion.text[:60]!r}")


def _masses(positions: Sequence[Candidates]) -> tuple[float, float, float, float]:
    """P(yes), P(no), the least and the total probability of the first position's candidates."""
    each = _probabilities(positions[0])
    split = _is_split(positions)
    yes, no = (_mass(word, positions, split) for word in _WORDS)
    return yes, no, min(each.values()), math.fsum(each.values())


def _mass(word: str, positions: Sequence[Candidates], split: bool, begun: str = "") -> float:
    """The probability that what has begun becomes the word. Where words are split, a candidate that is the beginning of
    one counts as the whole, except for the chosen one: the tokens after it are known."""
    chosen = positions[0][0][0]
    shares = []
    for token, probability in _probabilities(positions[0]).items():
        spelt = begun + _word(token)
        if not _goes_on(token, begun):
            continue
        if spelt == word:
            shares.append(probability)
        elif split and spelt != begun and word.startswith(spelt):
            rest = _mass(word, positions[1:], split, spelt) if token == chosen else 1.0
            shares.append(probability * rest)
    return math.fsum(shares)


def _is_split(positions: Sequence[Candidates]) -> bool:
    """Whether the chosen tokens spell yes or no together, and the first one alone does not."""
    first = spelt = _word(positions[0][0][0])
    for candidates in positions[1:]:
        token = candidates[0][0]
        if not spelt or spelt in _WORDS or not _goes_on(token, spelt):
            break
        spelt += _word(token)
    return spelt in _WORDS and spelt != first


def _goes_on(token: str, begun: str) -> bool:
    """Whether a token continues the word that has begun, instead of beginning the next one."""
    return not begun or token[:1].isalpha()


def _probabilities(candidates: Candidates) -> dict[str, float]:
    return {token: math.exp(min(0.0, log_prob)) for token, log_prob in candidates}  # the chosen one is listed twice


def _word(token: str) -> str:
    """A token's letters in lower case; tokenizers write leading spaces and lines in several ways."""
    return "".join(letter for letter in token.strip("\u0120\u2581\u010a \t\r\n") if letter.isalpha()).lower()


def said_yes(text: str) -> float:
    """1 for a text that begins with yes, 0 for one that begins with no: for endpoints without log-probabilities.

    Raises:
        Unanswered: it begins with neither.
    """
    first = re.search(r"[^\W\d_]+", text)
    word = first.group().lower() if first else ""
    if word not in _WORDS:
        raise Unanswered("unparseable", f"neither yes nor no: {text[:60]!r}")
    return 1.0 if word == "yes" else 0.0


# --- goals ------------------------------------------------------------------------------------------------------------

_BULLET = re.compile(r"^\s*(?:[-*\u2022\u2013]|\d{1,2}[.)])\s*(.+?)[\s.;,!]*$")


def parse_goals(text: str) -> tuple[str, ...]:
    """Suggested goals, one per bulleted line, in lower case (Du et al. 2023, as their parser does it).

    Lines without a bullet are remarks. A single bullet with "none" or "nothing" suggests no goal.

    Raises:
        Unanswered: there is no bulleted line.
    """
    bullets = [match.group(1) for line in text.splitlines() if (match := _BULLET.match(line))]
    cleaned = (clean(goal, MAX_GOAL_LENGTH).lower() for goal in bullets)
    goals = tuple(dict.fromkeys(filter(None, cleaned)))[:MAX_GOALS]
    if not goals:
        raise Unanswered("unparseable", f"no goals in a list: {text[:60]!r}")
    return () if goals in (("none",), ("nothing",)) else goals


def best_match(similarities: Float[np.ndarray, "g e"], threshold: float) -> tuple[float, ...]:
    """Per event the highest similarity to any goal, 0 below the threshold (Du et al. 2023, section 3.2)."""
    if not np.all(np.isfinite(similarities)):
        raise Unanswered("malformed", "a similarity is not a number")
    highest = np.clip(similarities, 0.0, 1.0).max(axis=0, initial=0.0)
    return tuple(float(score) if score >= threshold else 0.0 for score in highest)


async def spelling(goals: Sequence[str], phrases: Sequence[str]) -> Float[np.ndarray, "g e"]:
    """Similarity of spelling: the share of letters in common, whatever the order of the words; articles and
    punctuation do not count."""
    from rapidfuzz import fuzz, process, utils

    def essential(text):
        return " ".join(word for word in utils.default_process(text).split() if word not in ("a", "an", "the"))

    scores = process.cdist(
        list(goals), list(phrases), scorer=fuzz.token_sort_ratio, processor=essential, dtype=np.float32
    )
    return scores / np.float32(100.0)


def cosine(goals: Float[np.ndarray, "g d"], phrases: Float[np.ndarray, "e d"]) -> Float[np.ndarray, "g e"]:
    """Cosines of embeddings; 0 for a vector without length."""

    def unit(vectors):
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / np.where(norms > 0.0, norms, 1.0)

    return unit(goals) @ unit(phrases).T


# --- scorers ----------------------------------------------------------------------------------------------------------


def make_scorer(name: str, inquiry_kind: str, threshold: float, similarity: Similarity | None = None) -> Scorer:
    """The scorer that goes with a prompt.

    Args:
        name: ``token_probability``, ``string_similarity`` or ``embedding_similarity``.
        inquiry_kind: ``yes_no`` or ``goals``.
        threshold: for goals, see ``best_match``.
        similarity: for ``embedding_similarity``.

    Raises:
        ValueError: the two do not go together.
    """
    if inquiry_kind == "yes_no" and name == "token_probability":
        return _of_one(probability_of_yes)
    if inquiry_kind == "yes_no" and name == "string_similarity":
        return _of_one(lambda completion: said_yes(completion.text))
    if inquiry_kind == "goals" and name == "string_similarity":
        return _of_goals(spelling, threshold)
    if inquiry_kind == "goals" and name == "embedding_similarity" and similarity is not None:
        return _of_goals(similarity, threshold)
    raise BadValue(f"llm.score={name} does not go with a prompt that asks for {inquiry_kind}")


def _of_one(score: Callable[[Completion], float]) -> Scorer:
    async def scorer(completion: Completion, question: Question) -> tuple[float, ...]:
        return (score(completion),)

    return scorer


def _of_goals(similarity: Similarity, threshold: float) -> Scorer:
    async def scorer(completion: Completion, question: Question) -> tuple[float, ...]:
        goals = parse_goals(completion.text)
        if not goals:
            return (0.0,) * len(question.events)
        return best_match(await similarity(goals, question.phrases), threshold)

    return scorer
