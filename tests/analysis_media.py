"""Small drawn images and videos, and detectors that know where they drew, for the tests of the analysis."""

import functools
import struct
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from configuration_mf2.facs import CANONICAL_FACE
from mf2face.data.synthetic.faces import draw_example
from mf2face.inference.model import AnalysisModel, load_model
from processing_mf2.landmarks import DetectedFace


@functools.cache
def embedded() -> AnalysisModel:
    return load_model(device="cpu")


def write_faces(folder: Path, count: int, first: int = 0) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"face-{index:03d}.png" for index in range(first, first + count)]
    for index, path in enumerate(paths, first):
        cv2.imwrite(str(path), draw_example(index, seed=2)[0][..., ::-1])
    return paths


def write_video(path: Path, count: int = 20, *, fps: int = 10, size: tuple[int, int] = (96, 64)) -> Path:
    """Each frame has a bright top, and tells its number by its grey."""
    fourcc = {".mp4": "mp4v"}.get(path.suffix, "MJPG")
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*fourcc), fps, size)
    for index in range(count):
        frame = np.full((size[1], size[0], 3), 5 * index, np.uint8)
        frame[: size[1] // 4] = 250
        writer.write(frame)
    writer.release()
    return path


def write_cut_video(path: Path, count: int = 12, cut: int = 7) -> Path:
    """Stripes that get brighter; from frame `cut` on they lie."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (96, 96))
    stripes = np.where(np.arange(96) // 12 % 2, 150, 20) + np.zeros((96, 1), int)
    for index in range(count):
        grey = (stripes if index < cut else stripes.T) + (index >= 3) * 60
        writer.write(np.repeat(grey[:, :, None], 3, 2).astype(np.uint8))
    writer.release()
    return path


def turned(video: Path, path: Path) -> Path:
    """As a phone held upright writes it: the pixels lie, and a matrix in the header turns them by 90 degrees."""
    content = bytearray(video.read_bytes())
    place = content.find(b"tkhd") + 44
    content[place : place + 36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


def slowing(video: Path, path: Path) -> Path:
    """The second half of the frames is shown four times as long: a variable frame rate."""
    content = bytearray(video.read_bytes())
    place = content.find(b"stts") + 4
    _, _, count, length = struct.unpack(">4I", content[place : place + 16])
    content[place : place + 16] = struct.pack(">6I", 0, 2, count // 2, length, count - count // 2, 4 * length)
    for box in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stts"):
        start = content.find(box) - 4
        (size,) = struct.unpack(">I", content[start : start + 4])
        content[start : start + 4] = struct.pack(">I", size + 8)
    edits = content.find(b"edts")
    content[edits : edits + 4] = b"free"  # it would cut the video at its old length
    path.write_bytes(content)
    return path


def face_at(left: float, top: float, side: float = 40, score: float = 0.9) -> DetectedFace:
    points = np.array(CANONICAL_FACE) * side + (left, top)
    return DetectedFace(np.array([left, top, left + side, top + side]), score, points, np.ones(68))


class FakeDetector:
    """Answers from a list, frame after frame; after its end, with no face."""

    def __init__(self, answers: Sequence[Sequence[DetectedFace]]) -> None:
        self.answers, self.seen = list(answers), 0

    def detect(self, images: Sequence[np.ndarray]) -> list[list[DetectedFace]]:
        start, self.seen = self.seen, self.seen + len(images)
        found = [list(faces) for faces in self.answers[start : self.seen]]
        return found + [[] for _ in range(len(images) - len(found))]


class FakeCamera:
    """In the place of `cv2.VideoCapture`, for a number of frames."""

    def __init__(self, frames: int) -> None:
        self.left = frames

    def __call__(self, source: object) -> "FakeCamera":
        return self

    def isOpened(self) -> bool:
        return self.left > 0

    def get(self, name: int) -> float:
        return 0.0

    def grab(self) -> bool:
        self.left -= 1
        return self.left >= 0

    def retrieve(self) -> tuple[bool, np.ndarray]:
        return True, np.full((64, 64, 3), 90, np.uint8)

    def release(self) -> None:
        self.left = 0
