"""Any OpenAI-compatible endpoint as a provider: api.openai.com, vLLM, Ollama, llama.cpp's server, ..."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from llmrl.config import LLMConfig
from llmrl.language.prompts import Prompt, load_prompt, render
from llmrl.language.providers.embeddings import endpoint_similarity, local_similarity
from llmrl.language.providers.endpoint import connect
from llmrl.language.question import Answer, Provider, Question, Unanswered
from llmrl.language.scoring import Completion, make_scorer
from llmrl.language.secrets import read_key
from llmrl.language.spending import estimate_tokens

_MAX_TEXT = 20_000
_MAX_POSITIONS = 64
_MAX_CANDIDATES = 64


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

    async def answer(question: Question) -> Answer:
        body = await endpoint.chat(with_messages(parameters, question.system, question.user))
        completion = read_completion(body)
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
        answer_limit=prompt.answer_limit,
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


def with_messages(parameters: dict[str, Any], system: str, user: str) -> dict[str, Any]:
    """A request's body."""
    return {**parameters, "messages": [{"role": "system", "content": system}, {"role": "user", "content": user}]}


# --- reading answers --------------------------------------------------------------------------------------------------


def read_completion(body: Any) -> Completion:
    """The first choice of a chat completion.

    Raises:
        Unanswered: the JSON has another shape, or a log-probability is not one.
    """
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise Unanswered("malformed", "the answer has no choices")
    message = choices[0].get("message")
    if not isinstance(message, dict):
        raise Unanswered("malformed", "the answer has no message")
    text = message.get("content")
    if text is not None and not isinstance(text, str):
        raise Unanswered("malformed", "the answer's content is no text")
    logprobs = choices[0].get("logprobs")
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    positions = content if isinstance(content, list) else []
    return Completion((text or "")[:_MAX_TEXT], tuple(_candidates(each) for each in positions[:_MAX_POSITIONS]))


def _candidates(position: Any) -> tuple[tuple[str, float], ...]:
    others = position.get("top_logprobs") if isinstance(position, dict) else None
    listed = [position, *(others if isinstance(others, list) else [])][:_MAX_CANDIDATES]
    return tuple(_candidate(each) for each in listed)


def _candidate(entry: Any) -> tuple[str, float]:
    token = entry.get("token") if isinstance(entry, dict) else None
    log_prob = entry.get("logprob") if isinstance(entry, dict) else None
    if not isinstance(token, str) or isinstance(log_prob, bool) or not isinstance(log_prob, int | float):
        raise Unanswered("malformed", "a log-probability has another shape")
    # Rounding makes some servers' certain tokens a little more than certain.
    if not math.isfinite(log_prob) or log_prob > 1e-3:
        raise Unanswered("malformed", f"{log_prob} is no log-probability")
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
    tokens: Sequence[Any] = completion.tokens[:8]
    return json.dumps({"text": completion.text, "tokens": tokens})  # ASCII: a model may say half a surrogate pair
