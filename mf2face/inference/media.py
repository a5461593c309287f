"""Images, folders, lists, videos and cameras as one stream of frames, read one after the other and never kept.

Videos are decoded by OpenCV, whose wheel brings its own FFmpeg; torchcodec would need FFmpeg's libraries on the system.
"""

import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from processing_mf2.image_io import IMAGE_ENDINGS, read_image


VIDEO_ENDINGS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".3gp")
DRAWN = ".mf2_pictures"  # a file that lists, a line each, what mf2 drew into its folder
MOST_VIDEO_PIXELS = 17_000_000
"""Largest frame: 4096 x 4096, or 5.3K. A decoder may hold ten, and a small file may announce any size."""

_DECODERS = 2
"""Threads; each of them holds frames of its own."""

_STRIP = 256
"""Rows of a frame whose colours are converted at once."""

_LOST = 0.02
"""A container may announce a few frames more than it holds; more than this share missing, it was cut off."""

Note = Callable[[str, str], None]
"""Called with (input, why) for everything that is left out."""


@dataclass(frozen=True)
class Frame:
    input: str
    number: int
    """Its number in the video, from 0; 0 for an image."""
    time_s: float
    """Since the video's or the camera's start, by its own clock; NaN of an image."""
    pixels: np.ndarray
    """(3, height, width) as the eye sees it."""
    is_moving: bool = False
    """One of a video or camera, in which faces are followed."""
    is_cut: bool = False
    """The first of another scene."""

    @property
    def place(self) -> tuple[str, int, float]:
        return self.input, self.number, self.time_s


@dataclass(frozen=True)
class Sampling:
    """Which frames of a video are looked at: every n-th, or so many a second by its own clock; at most up to a time."""

    every: int = 1
    fps: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if type(self.every) is not int or self.every < 1:
            raise ValueError(f"every: got {self.every!r}, expected a whole number from 1")
        for name in ("fps", "seconds"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name}: got {value!r}, expected a number above 0")
        if self.fps is not None and self.every != 1:
            raise ValueError(f"every, fps: got {self.every} and {self.fps}, expected one of them")

    def chooser(self) -> Callable[[int, float], bool]:
        """(number, time) of frame after frame -> is it looked at? By time: the first frame at or after each moment."""
        due = 0.0

        def choose(number: int, time_s: float) -> bool:
            nonlocal due
            if self.fps is None:
                return number % self.every == 0
            if time_s < due - 1e-6:
                return False
            due = (np.floor(time_s * self.fps + 1e-6) + 1) / self.fps
            return True

        return choose


def find_inputs(given: Any) -> list[str | int]:
    """Inputs as paths and camera numbers; a `.txt` file is a list of paths. Folders are not expanded."""
    several = given if isinstance(given, list | tuple) else [given]
    found: dict[str | int, None] = {}
    for one in several:
        if isinstance(one, int) and not isinstance(one, bool):
            found[one] = None
        elif isinstance(one, str | os.PathLike):
            paths = _read_list(Path(one)) if str(one).lower().endswith(".txt") else [os.fspath(one)]
            found |= dict.fromkeys(map(os.path.normpath, paths))  # ./photos is photos
        else:
            raise TypeError(f"inputs: got {type(one).__name__}, expected paths, or a whole number for a camera")
    if not found:
        raise ValueError("inputs: got none, expected images, folders, videos, a .txt list of them, or a camera")
    return list(found)


def _read_list(path: Path) -> list[str]:
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is no file")  # a pipe would be waited for
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: could not be read as a list of paths, one a line ({error})") from error
    paths = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not paths:
        raise ValueError(f"{path}: got no line, expected a path a line (those not absolute count from where you are)")
    return paths


def files_of(inputs: Iterable[str | int], note: Note = lambda name, why: None) -> Iterator[str | int]:
    """Every image, video and camera once, folders opened recursively in the order of names; links to folders are not.
    What mf2 drew itself is none."""
    seen: set[str] = set()
    for one in _all_of(inputs, note):
        place = one if isinstance(one, int) else os.path.abspath(one)
        if place not in seen:
            seen.add(place)
            yield one


def _all_of(inputs: Iterable[str | int], note: Note) -> Iterator[str | int]:
    for one in inputs:
        if isinstance(one, int) or not os.path.isdir(one):
            yield one
            continue
        empty, drawn = True, set()
        for place, folders, names in os.walk(one, onerror=lambda error: note(error.filename, str(error.strerror))):
            drawn |= {os.path.join(place, name) for name in drawn_pictures(place)}
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                path = os.path.join(place, name)
                wanted = name.lower().endswith(IMAGE_ENDINGS + VIDEO_ENDINGS) and not name.startswith(".")
                if wanted and path not in drawn:
                    empty = False
                    yield path
        if empty:
            note(one, f"no image or video in this folder (endings: {' '.join(IMAGE_ENDINGS + VIDEO_ENDINGS)})")


def drawn_pictures(folder: str | os.PathLike) -> set[str]:
    """Pictures that mf2 drew into a folder, by paths within it; they are not analysed."""
    try:
        return set((Path(folder) / DRAWN).read_text(encoding="utf-8", errors="surrogateescape").splitlines())
    except OSError:
        return set()


def count_frames(inputs: Iterable[str | int], sampling: Sampling) -> int | None:
    """How many frames there will be, about, for a progress bar; None where nobody knows (a camera)."""
    total = 0
    for one in files_of(inputs):
        if isinstance(one, int):
            return None
        if not is_video(one):
            total += 1
            continue
        if _no_video(one):
            continue
        with _Capture(one) as capture:
            frames, fps = capture.announced, capture.fps
        if sampling.seconds is not None and fps > 0:
            frames = min(frames, round(sampling.seconds * fps))
        by_time = sampling.fps is not None and fps > sampling.fps
        total += -(-frames // sampling.every) if not by_time else round(frames / fps * sampling.fps)
    return total


def is_video(path: str) -> bool:
    return path.lower().endswith(VIDEO_ENDINGS)


def name_of(one: str | int) -> str:
    return f"camera:{one}" if isinstance(one, int) else one


def read_frames(
    inputs: Iterable[str | int],
    sampling: Sampling = Sampling(),
    *,
    note: Note = lambda name, why: None,
    after: Callable[[str], int | None] = lambda name: None,
) -> Iterator[Frame]:
    """Frame by frame; what cannot be read is noted and left out. after: an input's last frame that is done already."""
    for one in files_of(inputs, note):
        done = after(name_of(one))
        if isinstance(one, int):
            yield from _cuts_marked(_camera(one, sampling))
        elif is_video(one):
            done = -1 if done is None else done
            yield from (frame for frame in _cuts_marked(_video(one, sampling, note, done)) if frame.number > done)
        elif done is None:
            yield from read_still(one, one, note)


_CUT_LEVELS, _CUT_CORRELATION = 20.0, 0.5


def _cuts_marked(frames: Iterator[Frame]) -> Iterator[Frame]:
    """Marks a frame that differs from the one before by 20 of 255 grey levels and does not correlate with it (below
    0.5), both at 32 x 32 pixels: a lamp changes the level alone, and a head moves before the same room."""
    before = None
    for frame in frames:
        green = frame.pixels[1]
        step = max(1, min(green.shape) // 64)
        small = cv2.resize(green[::step, ::step].astype(np.float32), (32, 32), interpolation=cv2.INTER_AREA)
        if before is not None and np.abs(small - before).mean() > _CUT_LEVELS:
            one, other = small - small.mean(), before - before.mean()
            likeness = (one * other).sum() / max(float(np.linalg.norm(one) * np.linalg.norm(other)), 1e-6)
            frame = replace(frame, is_cut=bool(likeness < _CUT_CORRELATION))
        before = small
        yield frame


def read_still(image: Any, name: str, note: Note) -> Iterator[Frame]:
    """One frame of whatever a user calls an image; none if it cannot be read."""
    try:
        pixels = read_image(image, name="image")
    except Exception as error:  # decoders raise whatever stopped them
        why = str(error).removeprefix("image: ").removeprefix(f"{name!r} ")
        note(name, why if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {why}")
    else:
        yield Frame(name, 0, float("nan"), pixels)


class _Capture:
    """OpenCV's reader: it turns phone videos upright by itself, and each frame has the time it is shown at."""

    def __init__(self, source: str | int) -> None:
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # videos' faults are reported in our words
        level = cv2.utils.logging.getLogLevel()
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        try:
            if isinstance(source, int):
                self.reader = cv2.VideoCapture(source)
            else:  # other backends would take a name with digits for one of a series of images
                settings = [cv2.CAP_PROP_N_THREADS, min(_DECODERS, os.cpu_count() or 1)]
                self.reader = cv2.VideoCapture(source, cv2.CAP_FFMPEG, settings)
        finally:
            cv2.utils.logging.setLogLevel(level)
        self.opened, self.is_damaged = self.reader.isOpened(), False
        sides = (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)
        self.width, self.height = (int(self.reader.get(side)) for side in sides) if self.opened else (0, 0)
        self.announced = max(0, int(self.reader.get(cv2.CAP_PROP_FRAME_COUNT))) if self.opened else 0
        fps = self.reader.get(cv2.CAP_PROP_FPS) if self.opened else 0.0
        self.fps = fps if 0 < fps < 1000 else 0.0

    def __enter__(self) -> "_Capture":
        return self

    def __exit__(self, *raised: object) -> None:
        self.reader.release()

    def grab(self) -> bool:
        try:
            return self.opened and self.reader.grab()
        except cv2.error:  # the rest of the file cannot be read
            self.is_damaged = True
            return False

    def pixels(self) -> np.ndarray | None:
        try:
            read, frame = self.reader.retrieve()
            if not read or frame is None:
                return None
            if frame.ndim == 2:
                frame = cv2.cvtColor(frame, cv2.COLOR_GRAY2RGB)
            else:
                for top in range(0, len(frame), _STRIP):  # in place, to hold a frame once
                    rows = frame[top : top + _STRIP]
                    rows[:] = cv2.cvtColor(rows, cv2.COLOR_BGR2RGB)
        except cv2.error:
            return None
        return frame.transpose(2, 0, 1)

    def seconds(self) -> float:
        return self.reader.get(cv2.CAP_PROP_POS_MSEC) / 1000


def _video(path: str, sampling: Sampling, note: Note, done: int) -> Iterator[Frame]:
    problem = _no_video(path)
    if problem:
        note(path, problem)
        return
    choose, number, before, damaged = sampling.chooser(), -1, -1.0, 0
    with _Capture(path) as capture:
        if not capture.opened:
            note(path, "not a video that OpenCV can read; it is damaged, or was cut off before it was closed")
            return
        if capture.width * capture.height > MOST_VIDEO_PIXELS:
            size = f"{capture.width} x {capture.height} pixels"
            note(path, f"has frames of {size}, expected at most {MOST_VIDEO_PIXELS:,}; convert it to smaller ones")
            return
        while capture.grab():
            number, time_s = number + 1, capture.seconds()
            if not time_s > before:  # some containers have no clock
                time_s = number / capture.fps if capture.fps else before + 0.04
            before = time_s
            if sampling.seconds is not None and time_s >= sampling.seconds:
                return
            if not choose(number, time_s) or number < done:  # the last one that is done tells whether a cut follows
                continue
            pixels = capture.pixels()
            if pixels is None:
                damaged += 1
            else:
                yield Frame(path, number, time_s, pixels, is_moving=True)
        read, announced, is_damaged = number + 1, capture.announced, capture.is_damaged
    if damaged:
        note(path, f"{damaged:,} frames could not be decoded; the others are there")
    if read == 0:
        note(path, "no frame could be read; the video is damaged, or OpenCV lacks its codec: convert it to mp4")
    elif is_damaged or announced - read > max(2, _LOST * announced) or _is_cut_avi(path):
        how = "damaged" if is_damaged else "cut off"
        note(path, f"ends after {read:,} of {announced:,} frames ({before:.1f} s): {how}; the frames before are there")


def _is_cut_avi(path: str) -> bool:
    """Shorter than its header says: its last frames are missing, or half there."""
    with open(path, "rb") as file:
        start = file.read(8)
    return start[:4] == b"RIFF" and os.path.getsize(path) < 8 + int.from_bytes(start[4:], "little")


def _no_video(path: str) -> str | None:
    """Why a path cannot be one, before OpenCV opens it: it would wait for a pipe for ever."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            return "is no file (but a pipe or a device), expected a video"
        with open(path, "rb"):
            pass
    except (OSError, ValueError) as error:
        return f"cannot be read: {getattr(error, 'strerror', error)}"
    return None if status.st_size else "holds zero bytes, expected a video"


def _camera(index: int, sampling: Sampling) -> Iterator[Frame]:
    choose, number = sampling.chooser(), -1
    with _Capture(index) as capture:
        if not capture.opened:
            raise OSError(
                f"camera {index}: could not be opened; expected a camera of this number (0 is the first) that no other "
                "program uses and that you may read (on Linux /dev/video0, group video)"
            )
        start = time.monotonic()
        while capture.grab():
            number, time_s = number + 1, time.monotonic() - start
            if sampling.seconds is not None and time_s >= sampling.seconds:
                return
            if choose(number, time_s) and (pixels := capture.pixels()) is not None:
                yield Frame(name_of(index), number, time_s, pixels, is_moving=True)
    raise OSError(f"camera {index}: gives no more images after {number + 1:,}; is it still plugged in?")
