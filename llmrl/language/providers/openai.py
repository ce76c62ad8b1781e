"""Any OpenAI-compatible endpoint as a provider: api.openai.com, vLLM, Ollama, llama.cpp's server, ...

The SDK carries requests and nothing more. It would retry by itself, follow redirects with the key in its hands, return
a web page as a string or an object without its fields, and repeat the key in an error. All of that is decided here: one
attempt per call, checked JSON or ``Unanswered``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from ssl import SSLContext
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import urlsplit

from llmrl.language.goals import endpoint_similarity, local_similarity
from llmrl.language.prompts import Prompt, load_prompt, render
from llmrl.language.providers.network import Proxy, find_proxy, read_certificates
from llmrl.language.providers.refusals import error_within, in_short, one_line, refusal, status_within
from llmrl.language.question import Answer, Provider, Question, Unanswered
from llmrl.language.scoring import Completion, Scorer, make_scorer, read_completion
from llmrl.language.secrets import make_redactors, read_key, scrub
from llmrl.language.spending import estimate_tokens
from llmrl.settings.config import LLMConfig
from llmrl.settings.errors import BadValue, install

MAX_BODY = 4_000_000
"""Bytes of an answer's body; a longer one is not read to its end."""

_MAX_DEPTH = 100
_BEGINNING = 80

_log = logging.getLogger(__name__)


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
            else endpoint_similarity(endpoint.embeddings, config.embedding_model)
        )
    score = make_scorer(config.score, prompt.inquiry_kind, config.threshold, similarity)
    requests = 1 if similarity is None or config.embedding_local else 2
    return _provider(config, prompt, endpoint, score, requests)


def speaker(config: LLMConfig, prompt: Prompt) -> Provider:
    """A provider whose answers are texts, in ``Answer.raw`` as JSON, ``{"text": ...}``; they have no scores.

    Args:
        config: as for ``openai``.
        prompt: the templates; the caller fills them in.
    """

    async def unscored(completion: Completion, question: Question) -> tuple[float, ...]:
        return ()

    endpoint = connect(config.base_url, read_key(config.key_variable, config.base_url), config.deadline)
    return _provider(replace(config, score="string_similarity"), prompt, endpoint, unscored, requests=1)


def _provider(config: LLMConfig, prompt: Prompt, endpoint: Endpoint, score: Scorer, requests: int) -> Provider:
    parameters = request_parameters(config, prompt)
    send = make_sender(endpoint, parameters)

    async def answer(question: Question) -> Answer:
        return await read(await send(question.system, question.user), question)

    async def read(body: Any, question: Question) -> Answer:
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
        read=read,
        open_question=prompt.inquiry_kind == "goals",
        prompt=lambda context, state, phrases, history: render(prompt, context, state, phrases, history),
        prompt_identity=prompt.identity,
        close=endpoint.close,
        requests=requests,
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


def messages(system: str, user: str) -> list[dict[str, str]]:
    """The messages of a request."""
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


def _answer_limit(parameters: dict[str, Any], prompt: Prompt) -> int:
    """The most tokens that an answer is asked to take."""
    limits = [parameters.get(name) for name in ("max_tokens", "max_completion_tokens")]
    return max((limit for limit in limits if type(limit) is int), default=prompt.answer_limit)


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
        try:
            return await endpoint.chat({**sent, "messages": messages(system, user)})
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


# --- the endpoint -----------------------------------------------------------------------------------------------------


class Endpoint(NamedTuple):
    """An OpenAI-compatible endpoint. Calls raise ``Unanswered`` and nothing else; who calls sets the deadline. Nothing
    that comes back holds the key.

    Attributes:
        chat: ``body -> JSON`` of ``/chat/completions``.
        embeddings: ``body -> JSON`` of ``/embeddings``.
        models: ``() -> JSON`` of ``/models``.
        close: frees connections.
    """

    chat: Callable[[dict[str, Any]], Awaitable[Any]]
    embeddings: Callable[[dict[str, Any]], Awaitable[Any]]
    models: Callable[[], Awaitable[Any]]
    close: Callable[[], Awaitable[None]]


def connect(base_url: str, key: str | None, read_timeout: float) -> Endpoint:
    """An endpoint; nothing is sent yet.

    Args:
        base_url: as in ``https://api.openai.com/v1``.
        key: sent with every request, None sends none.
        read_timeout: seconds of silence after which a connection counts as dead.

    Raises:
        ValueError: the extra ``llm`` is not installed, or a proxy or certificates cannot be used.
    """
    try:
        import openai as sdk
    except ImportError as error:
        raise BadValue(f"llm.provider=openai needs the package openai: {install('llm')}") from error

    hide, redact = make_redactors(key)

    proxy, certificates = find_proxy(base_url), read_certificates(base_url)

    def make_client() -> Any:
        http = _make_http_client(sdk, proxy, certificates, read_timeout)
        client = sdk.AsyncOpenAI(
            api_key=key or "none", base_url=base_url, timeout=read_timeout, max_retries=0, http_client=http
        )
        _ = client.chat.completions, client.embeddings, client.models  # imported now, not within somebody's deadline
        return client

    # A client's connections belong to the event loop that opened them.
    clients: dict[asyncio.AbstractEventLoop | None, Any] = {None: make_client()}

    def client() -> Any:
        loop = asyncio.get_running_loop()
        if loop not in clients:
            clients[loop] = clients.pop(None, None) or make_client()
        return clients[loop]

    async def chat(body: dict[str, Any]) -> Any:
        send = client().chat.completions.with_streaming_response.create
        return scrub(await _attempt(sdk, redact, lambda: send(**_split(body, "model", "messages"))), hide)

    async def embeddings(body: dict[str, Any]) -> Any:
        send = client().embeddings.with_streaming_response.create
        return await _attempt(sdk, redact, lambda: send(**_split(body, "model", "input", "encoding_format")))

    async def models() -> Any:
        send = client().models.with_streaming_response.list
        return scrub(await _attempt(sdk, redact, send), hide)

    async def close() -> None:
        mine = clients.pop(asyncio.get_running_loop(), None)
        if mine is not None:
            await mine.close()

    return Endpoint(chat, embeddings, models, close)


def _make_http_client(sdk: Any, proxy: Proxy | None, certificates: SSLContext | None, read_timeout: float) -> Any:
    """A client that takes nothing from the environment by itself: it would want every proxy there, used or not."""
    options = {"follow_redirects": False, "trust_env": False, "verify": certificates or True, "timeout": read_timeout}
    if proxy is None:
        return sdk.DefaultAsyncHttpxClient(**options)
    try:
        return sdk.DefaultAsyncHttpxClient(proxy=proxy.url, **options)
    except ImportError:
        why = "pip install socksio"
    except Exception as error:  # each version of the SDK has its own
        why = type(error).__name__
    # Not raised inside: the exception may hold the proxy's password.
    kind = proxy.url.partition("://")[0]
    raise BadValue(
        f"cannot use the {kind} proxy that the environment variable {proxy.variable} names: {why}, or put the "
        "endpoint's host into NO_PROXY"
    )


def _split(body: dict[str, Any], *named: str) -> dict[str, Any]:
    """What the SDK wants by name, and the rest as it is: servers know parameters that the SDK has not heard of."""
    return {
        **{name: body[name] for name in named},
        "extra_body": {name: value for name, value in body.items() if name not in named},
    }


async def _attempt(sdk: Any, redact: Callable[[str], str], send: Callable[[], Any]) -> Any:
    try:
        async with send() as response:
            body = _parse(await _read(response), response.headers.get("content-type", ""), redact)
            if (error := error_within(body)) is not None:
                raise refusal(status_within(error), error, response.headers, redact)
            return body
    except Unanswered as failure:
        outcome = failure
    except sdk.APIStatusError as error:
        outcome = refusal(int(error.status_code), error.body, error.response.headers, redact)
    except sdk.APITimeoutError:
        outcome = Unanswered("timeout", "the endpoint fell silent")
    except sdk.APIConnectionError as error:
        outcome = Unanswered("unreachable", in_short(error.__cause__ or error, redact))
    except Exception as error:  # a body that broke off, compression that is none, ...
        outcome = Unanswered("malformed", in_short(error, redact))
    # Raised out here, so that the exception above, which may hold the key, is not carried along as its context.
    raise outcome


async def _read(response: Any) -> bytes:
    body = bytearray()
    async for chunk in response.iter_bytes():
        body += chunk
        if len(body) > MAX_BODY:
            raise Unanswered("malformed", f"an answer of more than {MAX_BODY} bytes")
    return bytes(body)


def _parse(body: bytes, content_type: str, redact: Callable[[str], str]) -> Any:
    with contextlib.suppress(ValueError):
        # Deeper, the parser would run into Python's own limit, which not every version survives.
        if not _is_too_deep(body):
            return json.loads(body)
    # Again not raised inside: a JSONDecodeError holds the whole body.
    begins = one_line(redact(body.decode("utf-8", "replace")))[:_BEGINNING]
    raise Unanswered("malformed", f"no JSON, but {len(body)} bytes of {content_type[:40] or 'something'}: {begins}")


def _is_too_deep(body: bytes) -> bool:
    """Whether JSON may be nested too deep: brackets inside of strings count too."""
    if body.count(b"[") + body.count(b"{") <= _MAX_DEPTH:
        return False
    depth = 0
    for bracket in re.finditer(rb"[\[\]{}]", body):
        depth = depth + 1 if bracket.group() in b"[{" else max(0, depth - 1)
        if depth > _MAX_DEPTH:
            return True
    return False
