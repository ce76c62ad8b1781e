"""What an endpoint says instead of an answer, as an ``Unanswered``: by its status, and by what its body holds."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from time import time
from typing import Any

from llmrl.language.question import Unanswered

_MESSAGE_LENGTH = 200
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


def refusal(status: int, body: Any, headers: Any, redact: Callable[[str], str]) -> Unanswered:
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


def error_within(body: Any) -> dict[str, Any] | None:
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


def status_within(error: dict[str, Any]) -> int:
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
        return one_line(inner.get("message") or inner.get("detail") or inner.get("msg")), str(inner.get("code") or "")
    return (one_line(body) if isinstance(body, str) else ""), ""


def one_line(said: Any) -> str:
    """Text as a single line; nothing for None."""
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


def in_short(error: BaseException, redact: Callable[[str], str]) -> str:
    """An exception by its type and the beginning of its message, free of the key."""
    return redact(f"{type(error).__name__}: {error}")[:_MESSAGE_LENGTH]
