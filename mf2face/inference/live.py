"""A camera, or a video in its place, live: a page on this machine, and action units as blendshapes over OSC.

The page is served on 127.0.0.1 only, under an address that cannot be guessed. Blendshapes go to 127.0.0.1 as the VMC
protocol has them, which animation programs read: a bundle a frame, of the largest face, with
`/VMC/Ext/Blend/Val NAME VALUE` for each of `BLENDSHAPES`, `/VMC/Ext/Blend/Apply`, and `/mf2/face FACE_ID SECONDS`.
"""

import contextlib
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import cv2
import numpy as np

from mf2face.inference.explain.page import page
from mf2face.inference.media import Frame
from mf2face.inference.rows import has_face, unit_column


HOST = "127.0.0.1"
BLENDSHAPES: dict[str, tuple[str, ...]] = {
    "AU1": ("browInnerUp",),
    "AU2": ("browOuterUpLeft", "browOuterUpRight"),
    "AU4": ("browDownLeft", "browDownRight"),
    "AU5": ("eyeWideLeft", "eyeWideRight"),
    "AU6": ("cheekSquintLeft", "cheekSquintRight"),
    "AU7": ("eyeSquintLeft", "eyeSquintRight"),
    "AU9": ("noseSneerLeft", "noseSneerRight"),
    "AU10": ("mouthUpperUpLeft", "mouthUpperUpRight"),
    "AU12": ("mouthSmileLeft", "mouthSmileRight"),
    "AU14": ("mouthDimpleLeft", "mouthDimpleRight"),
    "AU15": ("mouthFrownLeft", "mouthFrownRight"),
    "AU16": ("mouthLowerDownLeft", "mouthLowerDownRight"),
    "AU17": ("mouthShrugLower",),
    "AU18": ("mouthPucker",),
    "AU20": ("mouthStretchLeft", "mouthStretchRight"),
    "AU22": ("mouthFunnel",),
    "AU24": ("mouthPressLeft", "mouthPressRight"),
    "AU26": ("jawOpen",),
    "AU27": ("jawOpen",),
    "AU28": ("mouthRollLower", "mouthRollUpper"),
    "AU43": ("eyeBlinkLeft", "eyeBlinkRight"),
    "AU45": ("eyeBlinkLeft", "eyeBlinkRight"),
}
"""AU -> ARKit's names; left and right are the person's. AU23 and AU25 have none. The value, 0 to 1: of a side `AU12_L`
or `AU12_R`, else the intensity `AU12_i` / 5, else the probability of `AU12`; of two AUs of one name the larger."""


def blendshapes(row: Mapping[str, Any]) -> dict[str, float]:
    """Values of a row's AUs by ARKit's names."""
    values: dict[str, float] = {}
    for code, names in BLENDSHAPES.items():
        column = unit_column(code)
        for name in names:
            scaled = ((f"{column}_{'L' if name.endswith('Left') else 'R'}", 1), (f"{column}_i", 5), (column, 1))
            known = [row[key] / most for key, most in scaled if row.get(key) is not None and row[key] == row[key]]
            if known:
                values[name] = max(values.get(name, 0.0), float(np.clip(known[0], 0, 1)))
    return values


def _osc(address: str, *values: str | int | float) -> bytes:
    """A message of OSC 1.0, with its size before it, as a bundle holds it."""
    kinds = {str: "s", int: "i", float: "f"}

    def padded(words: str) -> bytes:
        content = words.encode() + b"\0"
        return content + b"\0" * (-len(content) % 4)

    content = padded(address) + padded("," + "".join(kinds[type(value)] for value in values))
    for value in values:
        content += padded(value) if isinstance(value, str) else struct.pack(f">{kinds[type(value)]}", value)
    return struct.pack(">i", len(content)) + content


class BlendshapeStream:
    """Sends the largest face of every frame. lost: called at the end with how many frames nobody received."""

    def __init__(self, port: int, lost: Callable[[str, str], None]) -> None:
        self.port, self.note, self.sent, self.lost = port, lost, 0, 0

    def __enter__(self) -> "BlendshapeStream":
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.connect((HOST, self.port))
        return self

    def add(self, frame: Frame, rows: Sequence[Mapping[str, Any]]) -> None:
        faces = [row for row in rows if has_face(row)]
        if not faces:
            return
        row = max(faces, key=lambda face: face["FaceRectWidth"])
        messages = [_osc("/VMC/Ext/Blend/Val", name, value) for name, value in blendshapes(row).items()]
        messages += [_osc("/VMC/Ext/Blend/Apply"), _osc("/mf2/face", int(row["face_id"]), float(frame.time_s))]
        self.sent += 1
        try:
            self.socket.send(b"#bundle\0" + struct.pack(">Q", 1) + b"".join(messages))
        except ConnectionRefusedError:  # of the bundle before; a receiver may come later
            self.lost += 1

    def __exit__(self, *raised: object) -> None:
        self.socket.close()
        if self.lost:
            why = f"{self.lost:,} of {self.sent:,} frames were refused; expected a program that receives OSC there"
            self.note(f"udp://{HOST}:{self.port}", why)


_STYLE = """main img { display: block; max-width: 100%; max-height: calc(100vh - 12rem); margin: 1rem auto 0;
  border-radius: 10px; }"""
_BOUNDARY = "frame"


class LiveView:
    """Serves the drawn frames as a page. opened: called with its address. A video is shown at the pace of its times."""

    def __init__(
        self,
        draw: Callable[[Frame, Sequence[Mapping[str, Any]]], np.ndarray],
        about: Mapping[str, Any],
        opened: Callable[[str], Any],
        *,
        paced: bool = True,
    ) -> None:
        self.draw, self.about, self.opened, self.paced = draw, about, opened, paced
        self.changed, self.image, self.number, self.ended = threading.Condition(), b"", 0, False
        self.start: float | None = None

    def __enter__(self) -> "LiveView":
        secret = f"/{secrets.token_urlsafe(16)}/"
        self.server = ThreadingHTTPServer((HOST, 0), _handler(self, secret))
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True, name="mf2-live").start()
        self.address = f"http://{HOST}:{self.server.server_port}{secret}"
        self.opened(self.address)
        return self

    def add(self, frame: Frame, rows: Sequence[Mapping[str, Any]]) -> None:
        done, content = cv2.imencode(".jpg", self.draw(frame, rows), [cv2.IMWRITE_JPEG_QUALITY, 80])
        if self.start is None:
            self.start = time.monotonic() - frame.time_s
        if self.paced:
            time.sleep(max(0.0, min(1.0, frame.time_s - (time.monotonic() - self.start))))
        with self.changed:
            self.image, self.number = content.tobytes() if done else self.image, self.number + 1
            self.changed.notify_all()

    def images(self) -> Any:
        """The newest image whenever there is one that the caller has not got, until the run ends."""
        number = 0
        while True:
            with self.changed:
                while not self.ended and self.number == number:
                    self.changed.wait()
                if self.ended:
                    return
                number, image = self.number, self.image
            yield image

    def __exit__(self, *raised: object) -> None:
        with self.changed:
            self.ended = True
            self.changed.notify_all()
        self.server.shutdown()
        self.server.server_close()


def _handler(view: LiveView, secret: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == secret:
                body = '<main><img src="stream" alt="camera with faces, bars and the last ten seconds"></main>'
                said = "Ctrl-C in the terminal ends it. Frames are shown, not stored."
                content = page("Live", "", said, body, view.about, style=_STYLE, script="").encode()
                content = content.replace(b"img-src data:", b"img-src 'self'")
                self._start("text/html; charset=utf-8")
                self.wfile.write(content)
            elif self.path == f"{secret}stream":
                self._start(f"multipart/x-mixed-replace; boundary={_BOUNDARY}")
                with contextlib.suppress(OSError):  # the page was closed
                    for image in view.images():
                        head = f"--{_BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(image)}\r\n\r\n"
                        self.wfile.write(head.encode() + image + b"\r\n")
            else:
                self.send_error(404)

        def _start(self, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Cache-Control", "no-store")
            self.end_headers()

        def log_message(self, format: str, *values: object) -> None:
            pass

    return Handler


__all__ = ["BLENDSHAPES", "BlendshapeStream", "LiveView", "blendshapes"]
