"""Live: the strip of the last seconds, the page that shows it, and blendshapes over OSC."""

import socket
import struct
import urllib.error
import urllib.request
from pathlib import Path
from threading import Thread

import cv2
import numpy as np
import pytest
from analysis_media import FakeDetector, embedded, face_at, write_video
from picture_faces import ABOUT, EMOTIONS, UNITS, some_rows

from configuration_mf2.facs import ACTION_UNITS
from mf2face.inference.annotate import FrameView
from mf2face.inference.cli import main
from mf2face.inference.live import BLENDSHAPES, BlendshapeStream, LiveView, blendshapes
from mf2face.inference.media import Frame
from mf2face.inference.rows import Columns


FACE = {"face_id": 3, "FaceRectWidth": 40.0, "AU01": 0.25, "AU12": 0.5, "AU26": 0.2, "AU27": 0.9, "AU25": 1.0}


def a_frame(time_s: float) -> Frame:
    return Frame("camera:0", 0, time_s, np.full((3, 90, 600), 90, np.uint8), is_moving=True)


def test_the_strip_shows_the_last_seconds_of_a_face_with_gaps(tmp_path: Path) -> None:
    _, rows = some_rows(tmp_path, images=0)
    view = FrameView(Columns(UNITS, EMOTIONS), dict.fromkeys(UNITS, 0.5), ABOUT)
    face = next(row for row in rows if row["face_id"] == 0 and row["frame"] == 5)
    for step in range(80):  # 8 s, of which two without the face
        image = view.draw(a_frame(step / 10), [] if 20 <= step < 40 else [face])
    first = len(image) - 142 + 44  # of the panel, below its head
    strip = image[first : first + 18, 216:-8].astype(int)
    assert image.shape[1] == 600 and view.face == 0
    blue = (strip[..., 0] - strip[..., 2] > 100).any(0)
    times = np.arange(len(blue)) / len(blue) * 10 - 2.1
    for start, stop, seen in ((-2, -0.2, False), (0.2, 1.8, True), (2.4, 3.8, False), (4.2, 7.8, True)):
        assert (blue[(times > start) & (times < stop)] == seen).all(), (start, stop)


def test_blendshapes_have_arkit_s_names_and_the_best_known_value() -> None:
    values = blendshapes(FACE)
    assert values == {"browInnerUp": 0.25, "mouthSmileLeft": 0.5, "mouthSmileRight": 0.5, "jawOpen": 0.9}
    sided = blendshapes({**FACE, "AU12_L": 0.7, "AU12_R": float("nan"), "AU12_i": 4.0, "AU27": float("nan")})
    assert sided["mouthSmileLeft"] == 0.7 and sided["mouthSmileRight"] == 0.8 and sided["jawOpen"] == 0.2
    assert set(BLENDSHAPES) - {"AU45"} <= set(ACTION_UNITS)
    guide = (Path(__file__).parents[2] / "docs" / "live.md").read_text()
    assert all(name in guide for names in (BLENDSHAPES, *BLENDSHAPES.values()) for name in names)


def test_a_bundle_has_every_value_and_a_closed_port_is_noted() -> None:
    noted: list[tuple[str, str]] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(20)
        port = receiver.getsockname()[1]
        with BlendshapeStream(port, lambda *why: noted.append(why)) as stream:
            stream.add(a_frame(0.5), [{**FACE, "FaceRectWidth": 5.0}, FACE, {"face_id": float("nan")}])
            content = receiver.recv(65536)
            assert not noted
            receiver.close()
            for _ in range(3):
                stream.add(a_frame(0.6), [FACE])
    assert noted[0][0] == f"udp://127.0.0.1:{port}" and "of 4 frames" in noted[0][1]
    assert content[:16] == b"#bundle\0" + struct.pack(">Q", 1)
    messages, place = [], 16
    while place < len(content):
        (size,) = struct.unpack(">i", content[place : place + 4])
        messages.append(content[place + 4 : place + 4 + size])
        place += 4 + size
    assert all(len(message) % 4 == 0 for message in messages)
    assert messages[0] == b"/VMC/Ext/Blend/Val\0\0,sf\0browInnerUp\0" + struct.pack(">f", 0.25)
    assert messages[-1] == b"/mf2/face\0\0\0,if\0" + struct.pack(">if", 3, 0.5) and len(messages) == 6


def test_the_page_shows_the_stream_to_those_who_know_its_address() -> None:
    opened: list[str] = []
    with LiveView(lambda frame, rows: np.full((8, 16, 3), 7, np.uint8), ABOUT, opened.append, paced=False) as view:
        with urllib.request.urlopen(opened[0], timeout=20) as answer:
            content = answer.read().decode()
        assert (
            "SYNTHETIC" in content.upper() and "img-src 'self'" in content and opened[0].startswith("http://127.0.0.1:")
        )
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://127.0.0.1:{view.server.server_port}/stream", timeout=20)
        view.add(a_frame(0), [])
        with urllib.request.urlopen(f"{opened[0]}stream", timeout=20) as answer:
            lines = [answer.readline() for _ in range(4)]
            image = answer.read(int(lines[2].split()[1]))
    assert lines[:2] == [b"--frame\r\n", b"Content-Type: image/jpeg\r\n"]
    assert cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR).shape == (8, 16, 3)


def test_the_command_shows_and_streams_a_video(tmp_path: Path, capsys, monkeypatch) -> None:
    video, seen = write_video(tmp_path / "v.avi", 5, fps=25, size=(160, 128)), []

    def read(address: str) -> None:
        with urllib.request.urlopen(f"{address}stream", timeout=60) as answer:
            seen.append(answer.read())

    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr("webbrowser.open", lambda address: Thread(target=read, args=[address], daemon=True).start())
    detector = FakeDetector([[face_at(20, 30, side=60)]] * 5)
    arguments = [str(video), "--live", "--osc", "9", "--format", "csv"]
    main(arguments, model=embedded(), detector=detector)
    shown = capsys.readouterr()
    assert shown.out.count("\n") == 6 and "live: http://127.0.0.1:" in shown.err
    assert not seen or seen[0].count(b"--frame") >= 1
    for port in ("0", "99999"):
        with pytest.raises(SystemExit):
            main([str(video), "--osc", port])
