"""What the environment says about a way to an endpoint: proxies and certificates."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from llmrl.language.secrets import is_local
from llmrl.settings.errors import BadValue


class Proxy(NamedTuple):
    """A proxy.

    Attributes:
        url: its address, which may hold a password.
        variable: the environment variable that names it.
    """

    url: str
    variable: str


def find_proxy(base_url: str) -> Proxy | None:
    """The proxy on the way to an address; None for this machine, and for what ``NO_PROXY`` names."""
    address = urlsplit(base_url)
    if is_local(address.hostname or "") or proxy_bypass(address.netloc.rpartition("@")[2]):
        return None
    proxies = getproxies()
    for scheme in (address.scheme, "all"):
        if url := proxies.get(scheme):
            return Proxy(url if "://" in url else f"http://{url}", f"{scheme.upper()}_PROXY")
    return None


def read_certificates(base_url: str) -> ssl.SSLContext | None:
    """The certificates that ``SSL_CERT_FILE`` or ``SSL_CERT_DIR`` name; None where neither is set, or nothing is
    encrypted.

    Raises:
        ValueError: what they name cannot be read.
    """
    if urlsplit(base_url).scheme != "https":
        return None
    if file := os.environ.get("SSL_CERT_FILE"):
        try:
            return ssl.create_default_context(cafile=file)
        except OSError as error:
            why = error.strerror if isinstance(error, FileNotFoundError | PermissionError) else "no certificate in it"
        raise BadValue(f"the environment variable SSL_CERT_FILE must name a file of certificates, got {file!r}: {why}")
    if folders := os.environ.get("SSL_CERT_DIR"):
        if any(Path(folder).is_dir() for folder in folders.split(os.pathsep)):
            return ssl.create_default_context(capath=folders)
        raise BadValue(f"the environment variable SSL_CERT_DIR must name a folder of certificates, got {folders!r}")
    return None
