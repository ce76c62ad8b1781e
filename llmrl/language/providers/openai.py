"""Any OpenAI-compatible endpoint as a provider: api.openai.com, vLLM, Ollama, llama.cpp's server, ..."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from llmrl.language.prompts import Prompt, load_prompt, render
from llmrl.language.providers.embeddings import endpoint_similarity, local_similarity
from llmrl.language.providers.endpoint import Endpoint, connect
from llmrl.language.question import Answer, Provider, Question, Unanswered
from llmrl.language.scoring import Candidates, Completion, make_scorer
from llmrl.language.secrets import read_key
from llmrl.language.spending import estimate_tokens
from llmrl.language.thinking import answer_begins, answer_token
from llmrl.settings.config import LLMConfig

_log = logging.getLogger(__name__)

_MAX_TEXT = 20_000
_MAX_POSITIONS = 64
_MAX_CANDIDATES = 64
_THOUGHTS = ("reasoning", "reasoning_content", "thinking")
"""Fields of a message that hold a model's thoughts, by server."""


def openai(config: LLMConfig) -> Provider:
    """A provider that asks a language model.

    Args:
        config: the settings; the key is read from the environment variable that they name.

    Raises:
        ValueError: the key is missing, the prompt does not go with the score, or the extra ``llm`` is not installed.
    """
    prompt = load_prompt(config.prompt)
    endpoint = connect(config.base_url, read_key(config.key_variable, config.base_url), config.deadline)
    similarity = None
    if config.score == "embedding_similarity":
        similarity = (
            local_similarity(config.embedding_model)
            if config.embedding_local
            else endpoint_similarity(endpoint, config.embedding_model)
        )
    score = make_scorer(config.score, prompt.inquiry_kind, config.threshold, similarity)
    parameters = request_parameters(config, prompt)
    send = make_sender(endpoint, parameters)

    async def answer(question: Question) -> Answer:
        body = await send(question.system, question.user)
        completion = read_completion(body, config.score == "token_probability")
        scores = await score(completion, question)
        prompt_tokens, answer_tokens = _usage(body, question, completion)
        return Answer(scores, _raw(completion), prompt_tokens, answer_tokens)

    scored_by = [config.score, config.threshold, config.embedding_model, config.embedding_local]
    address = urlsplit(config.base_url)
    host = f"{address.netloc}{address.path.rstrip('/')}"
    return Provider(
        identity=json.dumps([host, parameters, scored_by], sort_keys=True),
        answer=answer,
        open_question=prompt.inquiry_kind == "goals",
        prompt=lambda context, state, phrases, history: render(prompt, context, state, phrases, history),
        prompt_identity=prompt.identity,
        close=endpoint.close,
        requests=1 if similarity is None or config.embedding_local else 2,
        answer_limit=_answer_limit(parameters, prompt),
        prices=(config.prompt_price, config.answer_price),
        model=config.model,
        endpoint=host,
        parameters=parameters,
    )


def request_parameters(config: LLMConfig, prompt: Prompt) -> dict[str, Any]:
    """A request's body without its messages."""
    parameters: dict[str, Any] = {
        "model": config.model,
        "temperature": config.temperature,
        "max_tokens": prompt.answer_limit,
    }
    if config.score == "token_probability":
        parameters |= {"logprobs": True, "top_logprobs": config.top_logprobs}  # vLLM wants both
    parameters |= config.extra
    return {name: value for name, value in parameters.items() if value is not None}


def _answer_limit(parameters: dict[str, Any], prompt: Prompt) -> int:
    """The most tokens that an answer is asked to take."""
    limits = [parameters.get(name) for name in ("max_tokens", "max_completion_tokens")]
    return max((limit for limit in limits if type(limit) is int), default=prompt.answer_limit)


# --- asking -----------------------------------------------------------------------------------------------------------

_INSTEAD = {"max_tokens": "max_completion_tokens", "temperature": None}
"""What stands in for a parameter that a model does not support; None leaves it out."""

Sender: TypeAlias = Callable[[str, str], Awaitable[Any]]
"""``(system, user) -> JSON`` of one attempt; raises ``Unanswered``, with kind ``adapted`` if the next one differs."""


def make_sender(endpoint: Endpoint, parameters: dict[str, Any]) -> Sender:
    """Sends requests and remembers what the model does not support: newer ones refuse ``max_tokens`` or
    ``temperature``, and say so.

    Args:
        endpoint: where to send them.
        parameters: a request's body without its messages.
    """
    accepted = parameters

    async def send(system: str, user: str) -> Any:
        nonlocal accepted
        sent = accepted
        messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        try:
            return await endpoint.chat({**sent, "messages": messages})
        except Unanswered as failure:
            refused = failure
        name = refused.parameter
        if name not in _INSTEAD or name not in sent:
            raise refused
        if name in accepted:  # requests on their way together are refused together
            accepted = _without(accepted, name)
            instead = f"asked with {_INSTEAD[name]} from now on" if _INSTEAD[name] else "asked without it from now on"
            _log.warning("the model does not support %s and is %s", name, instead)
        raise Unanswered("adapted", str(refused))

    return send


def _without(parameters: dict[str, Any], name: str) -> dict[str, Any]:
    instead = _INSTEAD[name]
    others = {other: value for other, value in parameters.items() if other != name}
    return others if instead is None else {instead: parameters[name], **others}


# --- reading answers --------------------------------------------------------------------------------------------------


def read_completion(body: Any, with_tokens: bool = True) -> Completion:
    """The first choice of a chat completion, without the thoughts before it.

    Args:
        body: the JSON.
        with_tokens: whether to read log-probabilities.

    Raises:
        Unanswered: the JSON has another shape, a log-probability is not one, or the model has thought only.
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


def _usage(body: dict[str, Any], question: Question, completion: Completion) -> tuple[int, int]:
    """Prompt and answer tokens, as the endpoint counts them or as they can be estimated."""
    usage = body.get("usage")
    usage = usage if isinstance(usage, dict) else {}

    def read(name: str, text: str) -> int:
        count = usage.get(name)
        return count if type(count) is int and 0 <= count < 10**9 else estimate_tokens(text)

    return read("prompt_tokens", question.system + question.user), read("completion_tokens", completion.text)


def _raw(completion: Completion) -> str:
    """What the cache keeps: the text and, while they decide anything, the candidates."""
    tokens = [
        [(token, None if log_prob == -math.inf else log_prob) for token, log_prob in candidates]
        for candidates in completion.tokens[:8]
    ]
    return json.dumps({"text": completion.text, "tokens": tokens})  # ASCII: a model may say half a surrogate pair
