"""Limits of uploads (size, format, rate). Pictures stay in memory and are never written to a file."""

import base64
import binascii
import io
import re
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from PIL import Image

from processing_mf2.image_io import read_image


KINDS = ("JPEG", "PNG", "WEBP")
"""Formats by content, not by name"""

_DECODING = threading.Lock()
"""One picture at a time: the largest takes 250 MB until it is shrunk"""

_DATA_URL = re.compile(r"data:[\w.+/-]*;base64,")


class Refused(ValueError):
    """Its message is shown to the user."""


@dataclass(frozen=True)
class Limits:
    mebibytes: float = 8
    """File size of a picture"""
    megapixels: float = 24
    side: int = 1280
    """Pixels; a larger picture is shrunk before faces are detected"""
    pictures: int = 24
    """Most in the tab of many pictures"""
    at_once: int = 2
    """Requests answered at once; at most `waiting` others wait, with their pictures in memory"""
    waiting: int = 16
    faces: int = 8
    """Explained faces of a picture, the largest first"""
    per_session: int = 90
    """Pictures a minute of one browser tab; tabs name themselves, so addresses are limited too"""
    per_address: int = 240

    @property
    def body(self) -> int:
        """Bytes of the largest request: as many as four of the largest pictures"""
        return int(4 * self.mebibytes * 2**20 * 4 / 3) + 2**16


def decode(sent: Any, limits: Limits) -> bytes:
    """Bytes of a `data:` URL as a browser's FileReader makes it."""
    start = _DATA_URL.match(sent[:100]) if isinstance(sent, str) else None
    if start is None:
        raise Refused("No readable picture arrived. Choose it again.")
    if (len(sent) - start.end()) * 3 / 4 > limits.mebibytes * 2**20 + 2:
        raise Refused(f"The file is larger than {limits.mebibytes:g} MB. Choose a smaller picture.")
    try:
        return base64.b64decode(sent[start.end() :], validate=True)
    except binascii.Error:
        raise Refused("The file arrived damaged. Choose the picture again.") from None


def read_picture(content: bytes, limits: Limits) -> np.ndarray:
    """(3, height, width), upright, with no side longer than `limits.side`."""
    try:
        with Image.open(io.BytesIO(content), formats=KINDS) as header:
            width, height = header.size
    except Image.DecompressionBombError:
        raise Refused(f"The picture has more than {limits.megapixels:g} million pixels. Shrink it first.") from None
    except Exception:  # PIL's plugins raise whatever a crafted header leads them to
        raise Refused("This is no JPEG, PNG or WebP picture.") from None
    if width * height > limits.megapixels * 1e6:
        raise Refused(
            f"The picture has {width} × {height} pixels, more than {limits.megapixels:g} million. Shrink it first."
        )
    try:
        with _DECODING:
            return _shrunk(read_image(content, max_pixels=int(limits.megapixels * 1e6)), limits.side)
    except ValueError as error:
        raise Refused(f"The picture could not be read: {str(error).removeprefix('image: ')}.") from None


def _shrunk(pixels: np.ndarray, side: int) -> np.ndarray:
    pixels = pixels.clip(0, 255).astype(np.uint8)
    share = side / max(pixels.shape[1:])
    if share >= 1:
        return pixels
    array = np.ascontiguousarray(pixels.transpose(1, 2, 0))
    array = cv2.resize(array, None, fx=share, fy=share, interpolation=cv2.INTER_AREA)
    return array.transpose(2, 0, 1)


@dataclass
class RateLimit:
    """Pictures of the last minute by session and address, in memory, of the latest ones only."""

    minute: float = 60.0
    most_known: int = 10_000
    clock: Any = time.monotonic
    _asked: OrderedDict[str, deque[float]] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, allowed: Mapping[str, int], cost: int = 1) -> None:
        """allowed: key -> limit a minute. Counts for all keys, or raises and counts for none."""
        now = self.clock()
        with self._lock:
            for who, most in allowed.items():
                times = self._asked.setdefault(who, deque())
                while times and times[0] <= now - self.minute:
                    times.popleft()
                if len(times) + cost > most:
                    # Enough of the oldest have to leave; one request larger than the limit never fits.
                    wait = times[min(len(times) + cost - most, len(times)) - 1] + self.minute - now if times else 60
                    raise Refused(f"That is more than {most} pictures a minute. Try again in {max(1, round(wait))} s.")
            for who in allowed:
                self._asked[who].extend([now] * cost)
                self._asked.move_to_end(who)
            while len(self._asked) > self.most_known:
                self._asked.popitem(last=False)


class Guard:
    """ASGI middleware before gradio: passes the requests that the page needs, none that writes a file, and no body of
    unknown length. By its headers the browser talks to this server only."""

    posts = ("/queue/join", "/cancel", "/reset")
    closed = (
        "/file=",
        "/file/",
        "/proxy=",
        "/upload",
        "/run-history",
        "/stream/",
        "/monitoring",
        "/vibe",
        "/deep_link",
    )
    headers = {
        "content-security-policy": "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; "
        "style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; font-src 'self' data:; "
        "connect-src 'self'; object-src 'none'; base-uri 'self'; form-action 'self'; "
        "frame-ancestors 'self' https://huggingface.co",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
        "permissions-policy": "camera=(self), microphone=(), geolocation=()",
    }

    def __init__(self, app: Any, most_bytes: int) -> None:
        self.app, self.most_bytes = app, most_bytes

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer = self._refusal(scope)
        if answer is not None:
            await send({"type": "http.response.start", "status": answer, "headers": [(b"connection", b"close")]})
            await send({"type": "http.response.body", "body": b""})
            return

        async def with_headers(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                extra = [(name.encode(), value.encode()) for name, value in self.headers.items()]
                message = {**message, "headers": [*message.get("headers", ()), *extra]}
            await send(message)

        await self.app(scope, receive, with_headers)

    def _refusal(self, scope: dict[str, Any]) -> int | None:
        path, method = scope["path"].rstrip("/"), scope["method"]
        if any(part in f"{path}/" for part in self.closed):
            return 404
        if method in ("GET", "HEAD", "OPTIONS"):
            return None
        if method != "POST" or not path.endswith(self.posts):
            return 405
        length = dict(scope["headers"]).get(b"content-length", b"")
        if not length.isdigit():
            return 411
        return 413 if int(length) > self.most_bytes else None
