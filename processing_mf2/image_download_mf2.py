"""Images by their address: fetched only when the caller asks, within a total time, and never from where a redirect
sneaks into the caller's own network."""

import ipaddress
import socket
import threading
import urllib.request
from http.client import HTTPException
from typing import Any
from urllib.error import URLError
from urllib.parse import urlsplit


SECONDS = 30.0
"""That a download may take in all, connection and redirects included, unless the caller sets `timeout`."""

MOST_BYTES = 64 * 2**20


def is_address(image: Any) -> bool:
    return isinstance(image, str) and image.startswith(("http://", "https://"))


def download(url: str, name: str, timeout: float | None = None) -> bytes:
    """The content at `url`; a server that sends drop by drop is left when the time is over."""
    seconds = SECONDS if timeout is None else timeout
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not 0 < seconds < float("inf"):
        raise ValueError(f"timeout: got {timeout!r}, expected seconds above 0, or None for {SECONDS:g}")
    found: dict[str, Any] = {}

    def fetch() -> None:
        try:
            opener = urllib.request.build_opener(_Redirects(may_be_private=_is_private(urlsplit(url).hostname)))
            with opener.open(url, timeout=seconds) as response:
                content, said = response.read(MOST_BYTES + 1), response.headers.get("Content-Length", "")
            if said.isdigit() and len(content) < min(int(said), MOST_BYTES + 1):
                raise URLError(f"it broke off after {len(content)} of {said} bytes")
            found["content"] = content
        except (OSError, HTTPException, ValueError) as error:
            found["error"] = error

    # A timeout of a socket counts from the last byte, and none counts for the name's lookup.
    worker = threading.Thread(target=fetch, daemon=True)
    worker.start()
    worker.join(seconds)
    if "content" not in found:
        why = found.get("error", f"it took longer than {seconds:g} s")
        raise ValueError(f"{name}: {url!r:.300} could not be fetched ({why})") from found.get("error")
    if len(found["content"]) > MOST_BYTES:
        raise ValueError(f"{name}: {url!r:.300} is larger than {MOST_BYTES // 2**20} MiB; download the image first")
    return found["content"]


class _Redirects(urllib.request.HTTPRedirectHandler):
    def __init__(self, may_be_private: bool) -> None:
        self.may_be_private = may_be_private

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if not is_address(newurl.lower()):
            raise URLError(f"it redirects to {newurl!r:.300}, which is no http address")
        if not self.may_be_private and _is_private(urlsplit(newurl).hostname):
            raise URLError(f"it redirects to the private address {newurl!r:.300}; give that address if you trust it")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _is_private(host: str | None) -> bool:
    """Whether a name leads into this machine or its own network, by any of its addresses."""
    try:
        found = socket.getaddrinfo(host or "", None, type=socket.SOCK_STREAM)
    except OSError:  # nowhere, or only a proxy knows
        return False
    return any(not ipaddress.ip_address(entry[4][0].partition("%")[0]).is_global for entry in found)


__all__ = ["download", "is_address"]
