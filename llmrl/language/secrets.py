"""An API key comes out of the environment, goes into a request, and appears nowhere else."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlsplit

from llmrl.settings.errors import BadValue

_LOOKS_LIKE_A_KEY = re.compile(r"\b(?:(?:sk|pk|rk|gsk|hf|xai|key)[-_]|Bearer )[A-Za-z0-9_.\-]{8,}")
_HIDDEN = "<key>"


def read_key(variable: str | None, base_url: str) -> str | None:
    """The API key for an endpoint.

    Args:
        variable: environment variable that holds it; None for an endpoint without one.
        base_url: where it would be sent.

    Returns:
        The key, or None where none is to be sent.

    Raises:
        ValueError: the variable is not set although the endpoint is not on this machine, or the key would travel
            unencrypted.
    """
    if variable is None:
        return None
    address = urlsplit(base_url)
    local = is_local(address.hostname or "")
    key = os.environ.get(variable, "").strip()
    if not key:
        if local:
            return None
        raise BadValue(
            f"the environment variable {variable} holds no API key for {address.hostname}: export {variable}=..., name "
            "another with llm.key_variable=..., or say that none is needed with llm.key_variable=null"
        )
    if address.scheme == "http" and not local:
        raise BadValue(
            f"the key in {variable} is not sent to {address.hostname} over plain http, where everybody on the way can "
            "read it: use https, or llm.key_variable=null"
        )
    return key


def is_local(host: str) -> bool:
    """Whether a host is this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def make_redactors(key: str | None) -> tuple[Callable[[str], str], Callable[[str], str]]:
    """Two ways to take a key out of a text, both ``text -> text``.

    Returns:
        The first hides the key itself and leaves everything else alone: for answers. The second also hides what merely
        looks like a key: for an endpoint's error messages.
    """
    forms = {key, quote(key, safe="")} if key and len(key) >= 4 else set()

    def hide(text: str) -> str:
        for form in forms:
            text = text.replace(form, _HIDDEN)
        return text

    return hide, lambda text: _LOOKS_LIKE_A_KEY.sub(_HIDDEN, hide(text))


def scrub(value: Any, hide: Callable[[str], str]) -> Any:
    """A JSON value with every text in it put through ``hide``."""
    if isinstance(value, str):
        return hide(value)
    if isinstance(value, list):
        return [scrub(each, hide) for each in value]
    if isinstance(value, dict):
        return {hide(name): scrub(each, hide) for name, each in value.items()}
    return value
