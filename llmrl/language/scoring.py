"""From what a model said to numbers in [0, 1]; what cannot be read is an explicit ``Unanswered``, never a number."""

from __future__ import annotations

import math
import re
from collections.abc import Awaitable, Callable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple, TypeAlias

from llmrl.language.goals import Similarity, best_match, parse_goals, spelling
from llmrl.language.question import Question, Unanswered
from llmrl.settings.errors import BadValue

MIN_MASS = 0.05
"""Where yes and no together have less, the model is saying something else."""

_WORDS = ("yes", "no")

_MAX_TEXT = 20_000
_MAX_POSITIONS = 64
_MAX_CANDIDATES = 64
_THOUGHTS = ("reasoning", "reasoning_content", "thinking")
"""Fields of a message that hold a model's thoughts, by server."""

_TAGS = r"(?:[\w-]+:)?(?:think|thinking|thought|reasoning)"
_BEGINS = re.compile(rf"\s*(?:<{_TAGS}>|\[THINK\]|\u25c1think\u25b7|<\|channel\|>analysis)", re.IGNORECASE)
_ENDS = re.compile(rf"</{_TAGS}>|\[/THINK\]|\u25c1/think\u25b7|<\|channel\|>final<\|message\|>", re.IGNORECASE)

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
        return (score(unwrapped(completion)),)

    return scorer


def _of_goals(similarity: Similarity, threshold: float) -> Scorer:
    async def scorer(completion: Completion, question: Question) -> tuple[float, ...]:
        goals = parse_goals(unwrapped(completion).text)
        if not goals:
            return (0.0,) * len(question.events)
        return best_match(await similarity(goals, question.phrases), threshold)

    return scorer


# --- reading a completion ---------------------------------------------------------------------------------------------


def read_completion(body: Any, with_tokens: bool = True) -> Completion:
    """The first choice of a chat completion, without the thoughts before it.

    Args:
        body: the JSON.
        with_tokens: whether to read log-probabilities.

    Raises:
        Unanswered: the JSON has another shape, a log-probability is not one, or the model has thought only or refused.
    """
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise Unanswered("malformed", "the answer has no choices")
    message = choices[0].get("message")
    if not isinstance(message, dict):
        raise Unanswered("malformed", "the answer has no message")
    whole, thoughts_apart = _text(message.get("content")), any(message.get(name) for name in _THOUGHTS)
    begins = answer_begins(whole)
    text = "" if begins is None else whole[begins:]
    why_ended = choices[0].get("finish_reason")
    if begins is None or (not text.strip() and (thoughts_apart or begins or why_ended == "length")):
        why = str(why_ended)[:20]
        raise Unanswered("only_thoughts", f"the model thought and did not answer (finish_reason: {why})")
    if not text.strip() and (message.get("refusal") or why_ended == "content_filter"):
        raise Unanswered("refused", f"the model refuses: {str(message.get('refusal') or why_ended)[:60]!r}")
    tokens = _tokens(choices[0].get("logprobs"), text, thoughts_apart or begins > 0) if with_tokens else ()
    return Completion(text[:_MAX_TEXT], tokens)


def _text(content: Any) -> str:
    """A message's text, in one piece or in parts; parts of another kind, such as thoughts, are left out."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise Unanswered("malformed", "the answer's content is no text")
    parts = [part.get("text") if isinstance(part, dict) else part for part in content]
    return "".join(part for part in parts if isinstance(part, str))


def _tokens(logprobs: Any, text: str, thought: bool) -> tuple[Candidates, ...]:
    """The candidates at each position of the answer."""
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    positions = content if isinstance(content, list) else []
    begins = answer_token([_candidate(each)[0] for each in positions], text, thought)
    return tuple(_candidates(each) for each in positions[begins : begins + _MAX_POSITIONS])


def _candidates(position: Any) -> Candidates:
    others = position.get("top_logprobs") if isinstance(position, dict) else None
    listed = [position, *(others if isinstance(others, list) else [])][:_MAX_CANDIDATES]
    return tuple(_candidate(each) for each in listed)


def _candidate(entry: Any) -> tuple[str, float]:
    token = entry.get("token") if isinstance(entry, dict) else None
    log_prob = entry.get("logprob") if isinstance(entry, dict) else None
    if log_prob is None:
        log_prob = -math.inf  # JSON has no infinity
    if not isinstance(token, str) or isinstance(log_prob, bool) or not isinstance(log_prob, int | float):
        raise Unanswered("no_logprobs", "a log-probability has another shape")
    # Rounding makes some servers' certain tokens a little more than certain.
    if not log_prob <= 1e-3:
        raise Unanswered("no_logprobs", f"{log_prob} is no log-probability")
    return token, float(log_prob)


# --- what stands around an answer -------------------------------------------------------------------------------------

_FENCE = re.compile(r"```(?:json|text|markdown)?(.*)```", re.DOTALL | re.IGNORECASE)
_FIELD = re.compile(r'\{\s*"[^"]*"\s*:\s*"([^"]*)"\s*\}')


def unwrapped(completion: Completion) -> Completion:
    """A completion without the code fence, or the JSON object of a single text, around its answer.

    An object of several fields stays as it is: any of them may be the answer.
    """
    text = completion.text.strip()
    for wrapper in (_FENCE, _FIELD):
        if match := wrapper.fullmatch(text):
            text = match.group(1).strip()
    if text == completion.text.strip():
        return completion
    chosen = [candidates[0][0] for candidates in completion.tokens]
    return Completion(text, completion.tokens[answer_token(chosen, text, thought=True) :])


# --- thoughts ---------------------------------------------------------------------------------------------------------


def answer_begins(text: str) -> int | None:
    """Index of the first letter after the thoughts: 0 for a text without thoughts, None where they have no end.

    The mark of their beginning may be missing: some servers put it into the prompt.
    """
    end = max((match.end() for match in _ENDS.finditer(text)), default=0)
    return None if end == 0 and _BEGINS.match(text) else end


def answer_token(chosen: Sequence[str], answer: str, thought: bool) -> int:
    """Index of the token with which the answer begins; the number of tokens where none of them belongs to it.

    Args:
        chosen: all tokens that came, thoughts included.
        answer: the text after the thoughts.
        thought: whether there were thoughts, though perhaps not among the tokens.
    """
    said = "".join(chosen)
    begins = answer_begins(said) or 0
    if thought and not begins:
        begins = said.rfind(answer.strip())
    if begins < 0:
        return len(chosen)
    ends = list(accumulate(map(len, chosen)))
    # A token may hold the mark's last letters and an empty line after them: the answer is not in it.
    starts = (end - len(token) for end, token in zip(ends, chosen, strict=True))
    spans = enumerate(zip(starts, ends, strict=True))
    holds = (i for i, (start, end) in spans if end > begins and (start >= begins or said[begins:end].strip()))
    return next(holds, len(chosen))


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
