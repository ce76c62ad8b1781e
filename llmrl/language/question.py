"""What is asked, what is answered, and who can answer: the types of this room."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from llmrl.language.prompts import CONTEXT_LIMIT, PHRASE_LIMIT, STATE_LIMIT, clean
from llmrl.settings.errors import UserError

if TYPE_CHECKING:
    from llmrl.types import Captioner
else:
    Captioner = Any  # llmrl.types has arrays in it and so loads jax, which is not needed here


class Question(NamedTuple):
    """One request: what about these events in this state?

    Attributes:
        key: the state's key.
        events: indices of the events asked about; all of them for an open question.
        state: the state in words, cleaned.
        phrases: the events in words, cleaned.
        context: the task in words, cleaned.
        prompt: which templates, in which version; part of every cache key.
        system: the general instruction, as sent.
        user: everything else, as sent.
    """

    key: int
    events: tuple[int, ...]
    state: str
    phrases: tuple[str, ...]
    context: str = ""
    prompt: str = ""
    system: str = ""
    user: str = ""


class Answer(NamedTuple):
    """What a provider made of a question.

    Attributes:
        scores: one in [0, 1] per event asked about.
        raw: what was answered, as JSON text, free of secrets.
        prompt_tokens: tokens sent; an estimate where the endpoint does not say.
        answer_tokens: tokens received, likewise.
    """

    scores: tuple[float, ...]
    raw: str = "null"
    prompt_tokens: int = 0
    answer_tokens: int = 0


Kind: TypeAlias = str
"""Why there is no answer: a member of ``PASSING``, ``FINAL`` or ``FATAL``."""

PASSING = ("unreachable", "timeout", "rate_limited", "server_error", "malformed", "paused", "adapted")
"""Worth another attempt. After ``adapted`` the next attempt differs: it comes at once and does not count as a retry."""

UNREADABLE = ("unparseable", "no_logprobs", "only_thoughts", "refused")
"""The model has said something, and it is no answer."""

FINAL = (*UNREADABLE, "refused_request", "unknown_state", "failed")
"""This question has no answer; others may have one."""

FATAL = ("rejected_key", "no_model", "redirected", "misconfigured", "budget")
"""No question will have one."""


class Unanswered(UserError):
    """A question has no answer.

    Attributes:
        kind: why, see ``Kind``.
        retry_after: seconds the endpoint asked to wait, if it did.
        parameter: the request's parameter that the endpoint does not support, if that is why.
    """

    def __init__(self, kind: Kind, message: str, retry_after: float | None = None, parameter: str | None = None):
        super().__init__(message)
        self.kind = kind
        self.retry_after = retry_after
        self.parameter = parameter


Distort: TypeAlias = Callable[[Question, tuple[float, ...]], tuple[float, ...]]


async def _nothing() -> None:
    return None


class Provider(NamedTuple):
    """Who answers. Exactly one of ``answer`` and ``answer_now`` is there.

    Attributes:
        identity: all that decides an answer besides the question: endpoint, model, parameters, score. Part of every
            cache key, and free of secrets.
        answer: one attempt over the network; raises ``Unanswered`` and nothing else.
        read: ``(a chat completion's JSON, question) -> its answer``, where ``answer`` asks for one; raises likewise.
        answer_now: an answer without waiting for anybody; raises ``Unanswered`` and nothing else.
        open_question: whether one question asks about all events.
        prompt: ``(captioner's context, state, phrases, history) -> (system, user)``, where text is sent at all.
        prompt_identity: name, version and digest of the templates.
        distort: what is done to the scores afterwards; the cache keeps them as they were.
        close: frees connections; called in the event loop that ``answer`` ran in.
        requests: at most so many requests per attempt.
        answer_limit: at most so many answer tokens per attempt.
        prices: of a million prompt and a million answer tokens.
        model: the model's name, for the rows of a cache.
        endpoint: its host, likewise.
        parameters: everything that was asked of it besides the text, likewise.
    """

    identity: str
    answer: Callable[[Question], Awaitable[Answer]] | None = None
    read: Callable[[Any, Question], Awaitable[Answer]] | None = None
    answer_now: Callable[[Question], Answer] | None = None
    open_question: bool = False
    prompt: Callable[[str, str, Sequence[str], Sequence[tuple[str, str]]], tuple[str, str]] | None = None
    prompt_identity: str = ""
    distort: Distort = lambda question, scores: scores
    close: Callable[[], Awaitable[None]] = _nothing
    requests: int = 1
    answer_limit: int = 0
    prices: tuple[float, float] = (0.0, 0.0)
    model: str = ""
    endpoint: str = ""
    parameters: dict[str, Any] = {}  # noqa: RUF012 - never written to


def questions(provider: Provider, captioner: Captioner, key: int) -> list[Question]:
    """The questions that give a state its E scores: one per event, or one for all."""
    state = clean(captioner.describe(key), STATE_LIMIT)
    context = clean(captioner.context, CONTEXT_LIMIT, keep_lines=True)
    phrases = tuple(clean(phrase, PHRASE_LIMIT) for phrase in captioner.events)
    before = tuple(captioner.history(key)) if captioner.history is not None else ()
    indices = [tuple(range(len(phrases)))] if provider.open_question else [(event,) for event in range(len(phrases))]

    asked = []
    for events in indices:
        chosen = tuple(phrases[event] for event in events)
        system, user = provider.prompt(context, state, chosen, before) if provider.prompt else ("", "")
        asked.append(Question(key, events, state, chosen, context, provider.prompt_identity, system, user))
    return asked
