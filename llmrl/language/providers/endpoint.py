"""The boundary to an OpenAI-compatible endpoint: one attempt per call, checked JSON or ``Unanswered``.

The SDK carries requests and nothing more. It would retry by itself, follow redirects with the key in its hands, return
a web page as a string or an object without its fields, and repeat the key in an error. All of that is decided here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
from collections.abc import Awaitable, Callable
from email.utils import parsedate_to_datetime
from ssl import SSLContext
from time import time
from typing import Any, NamedTuple

from llmrl.language.providers.network import Proxy, find_proxy, read_certificates
from llmrl.language.question import Unanswered
from llmrl.language.secrets import make_redactors, scrub
from llmrl.settings.errors import BadValue, install

MAX_BODY = 4_000_000
"""Bytes of an answer's body; a longer one is not read to its end."""

_MAX_DEPTH = 100
_MESSAGE_LENGTH = 200
_BEGINNING = 80
_NOT_SUPPORTED = re.compile(
    r"not support|unsupported|not allowed|not permitted|unrecogni[sz]ed|unknown|unexpected|deprecated|"
    r"only \S+ is (?:allowed|supported)",
    re.IGNORECASE,
)
_TOO_MANY = re.compile(
    r"at most|maximum|exceed|between|range|up to|(?:less|greater|more|fewer|larger) than", re.IGNORECASE
)
"""What is said of a number that is too large, rather than of a parameter that there is not."""

_STATUS_OF = {
    "invalid_api_key": 401,
    "model_not_found": 404,
    "insufficient_quota": 429,
    "rate_limit_exceeded": 429,
    "context_length_exceeded": 400,
    "unsupported_parameter": 400,
    "unsupported_value": 400,
}
"""The status that goes with an error's code, where an error comes with status 200."""


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
            if (error := _error_within(body)) is not None:
                raise _refused(_status_within(error), error, response.headers, redact)
            return body
    except Unanswered as failure:
        outcome = failure
    except sdk.APIStatusError as error:
        outcome = _refused(int(error.status_code), error.body, error.response.headers, redact)
    except sdk.APITimeoutError:
        outcome = Unanswered("timeout", "the endpoint fell silent")
    except sdk.APIConnectionError as error:
        outcome = Unanswered("unreachable", _told(error.__cause__ or error, redact))
    except Exception as error:  # a body that broke off, compression that is none, ...
        outcome = Unanswered("malformed", _told(error, redact))
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
    begins = _line(redact(body.decode("utf-8", "replace")))[:_BEGINNING]
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


def _refused(status: int, body: Any, headers: Any, redact: Callable[[str], str]) -> Unanswered:
    """A status that is not 200, in words; what the endpoint said is kept short, and free of the key."""
    message, code = _message(body)
    said = f"{status}: {redact(message)[:_MESSAGE_LENGTH]}" if message else f"status {status}"
    wish = _retry_after(headers)
    parameter = _unsupported(status, message, code)
    if parameter == "logprobs":
        return Unanswered("no_logprobs", f"the model gives no log-probabilities ({said})")
    if 300 <= status < 400:
        return Unanswered("redirected", f"the endpoint redirects ({status}), and a key follows no redirects; ask the "
                          "final address with llm.base_url=...")  # fmt: skip
    if status in (401, 403):
        return Unanswered("rejected_key", f"the endpoint rejects the key ({said})")
    if status == 404:
        return Unanswered("no_model", f"no such model, or no such path at the endpoint ({said})")
    if status == 429 and code == "insufficient_quota":
        return Unanswered("misconfigured", f"the account has no quota left ({said})")
    if status in (408, 409, 425, 429):
        return Unanswered("rate_limited", f"the endpoint asks to wait ({said})", wish)
    if status >= 500:
        return Unanswered("server_error", f"the endpoint failed ({said})", wish)
    return Unanswered("refused_request", f"the endpoint refused the request ({said})", parameter=parameter)


def _unsupported(status: int, message: str, code: str) -> str | None:
    """The parameter that a model does not support, by what its server says."""
    if status not in (400, 403, 422) or not (code.startswith("unsupported") or _NOT_SUPPORTED.search(message)):
        return None
    named = re.search(r"\b(?:max_tokens|temperature|(?:top_)?logprobs)\b", message)
    if not named or (named.group() == "top_logprobs" and _TOO_MANY.search(message)):
        return None
    return named.group().removeprefix("top_")


def _error_within(body: Any) -> dict[str, Any] | None:
    """The error that a server reports with status 200 instead of an answer: ``{"error": ...}``, ``{"errors": ...}``,
    ``{"message": ...}`` or ``{"detail": ...}``, also in a list or in a choice."""
    body = _first(body)
    if not isinstance(body, dict):
        return None
    first = _first(body.get("choices"))
    if isinstance(first, dict):
        return {"error": first["error"]} if first.get("error") else None
    says_so = body.get("error") or body.get("errors") or body.get("object") == "error"
    said = body.get("message") or body.get("detail")
    return body if says_so or (said and isinstance(said, str | list)) else None


def _first(said: Any) -> Any:
    """Of a list its first element, of anything else itself."""
    return said[0] if isinstance(said, list) and said else said


def _status_within(error: dict[str, Any]) -> int:
    """The status that an error should have come with."""
    _, code = _message(error)
    if re.fullmatch("[45][0-9][0-9]", code):
        return int(code)
    return _STATUS_OF.get(code, 500)


def _message(body: Any) -> tuple[str, str]:
    """The message and the code of an error's body, wherever a server puts them."""
    body = _first(body)
    if isinstance(body, dict):
        inner = _first(body.get("error") or body.get("errors"))
        inner = inner if inner and isinstance(inner, dict | str) else body
        if isinstance(inner, str):
            inner = {"message": inner, "code": body.get("code")}
        return _line(inner.get("message") or inner.get("detail") or inner.get("msg")), str(inner.get("code") or "")
    return (_line(body) if isinstance(body, str) else ""), ""


def _line(said: Any) -> str:
    return " ".join(str(said or "").split())


def _retry_after(headers: Any) -> float | None:
    """Seconds to wait, from a number of seconds or a date."""
    text = headers.get("retry-after", "")
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - time()
        except (ValueError, TypeError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _told(error: BaseException, redact: Callable[[str], str]) -> str:
    return redact(f"{type(error).__name__}: {error}")[:_MESSAGE_LENGTH]
