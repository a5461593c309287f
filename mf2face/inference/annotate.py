"""Frames with their faces and decisions drawn in, above bars and a strip of the last ten seconds; videos of them."""

import contextlib
import functools
import os
import textwrap
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mf2face.files import whole_file
from mf2face.inference.explain.page import (
    ACTIVE,
    AT_REST,
    INK,
    MARK,
    PALE,
    emotion_colours,
    ink_on,
    origin,
)
from mf2face.inference.media import Frame
from mf2face.inference.rows import STATE, Columns, OutputError, box_of, has_face, unit_column
from processing_mf2.reliability import CANNOT_TELL


STRIP_SECONDS = 10.0
_RELIABLE, _UNRELIABLE = (80, 220, 80), (60, 160, 255)  # BGR
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_LEAST_FPS, _MOST_FPS = 1.0, 120.0
_LEAST_WIDTH, _LIVE_WIDTH = 480, 640
_GAP = 2.5
"""Usual steps after which a face that is not found leaves a gap in the strip."""


def _bgr(colour: str) -> tuple[int, int, int]:
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return blue, green, red


_COLOURS = {0.0: _bgr(AT_REST), 0.5: _bgr(PALE), 1.0: _bgr(ACTIVE)}
"""Of decisions: at rest, cannot tell, active"""
_PAPER, _LINE, _SOFT, _BRIGHT = _bgr(INK), _bgr("#363c43"), _bgr("#a3adb8"), _bgr("#eceff2")


def _decision(row: Mapping[str, Any], name: str) -> float:
    return 0.5 if row.get(f"{name}{STATE}") == CANNOT_TELL else row[f"{name}_c"]


def _put(image: np.ndarray, words: str, place: tuple[float, float], size: float, colour: tuple, halo: int = 0) -> None:
    left, bottom = (round(side) for side in place)
    if halo:
        for right, down in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            place = left + halo * right, bottom + halo * down
            cv2.putText(image, words, place, _FONT, size, (0, 0, 0), halo, cv2.LINE_AA)
    cv2.putText(image, words, (left, bottom), _FONT, size, colour, max(1, halo), cv2.LINE_AA)


def _width(words: str, size: float) -> int:
    return cv2.getTextSize(words, _FONT, size, 1)[0][0]


class FrameView:
    """Draws frame after frame, as BGR of one size. The strip is of one face: the largest, until lost.

    live: for a page, which has the banner itself and may be a phone's: one width, larger text.
    """

    def __init__(
        self, columns: Columns, thresholds: Mapping[str, float], about: Mapping[str, Any], *, live: bool = False
    ) -> None:
        self.live = live
        self.units = {code: unit_column(code) for code in columns.action_units}
        self.limits = np.array([thresholds.get(code, np.nan) for code in self.units])
        self.colours, self.about = emotion_colours(columns.emotions), about
        self.palette = np.array([_bgr(colour) for colour in self.colours.values()], np.uint8).reshape(-1, 3)
        self.size: tuple[int, int] | None = None
        self.face: int | None = None
        self.past: dict[int, deque[tuple[float, np.ndarray]]] = {}
        """face_id -> (time, probabilities of AUs, decisions, emotions) of the last seconds"""

    def draw(self, frame: Frame, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
        image = self._frame(frame, rows)
        if self.size is None:
            width = image.shape[1]
            scale = _LIVE_WIDTH / width if self.live else max(1.0, _LEAST_WIDTH / width)
            self.size = round(image.shape[1] * scale), round(image.shape[0] * scale)
        if (image.shape[1], image.shape[0]) != self.size:  # a video may change its size
            image = cv2.resize(image, self.size)
        faces = {int(row["face_id"]): row for row in rows if has_face(row)}
        for number, row in faces.items():
            values = [row[name] for name in self.units.values()]
            values += [_decision(row, name) for name in self.units.values()] + [row[name] for name in self.colours]
            self.past.setdefault(number, deque()).append((frame.time_s, np.array(values, float)))
        for number in list(self.past):
            while self.past[number] and self.past[number][0][0] < frame.time_s - STRIP_SECONDS - 1:
                self.past[number].popleft()
            if not self.past[number]:
                del self.past[number]
        if faces and self.face not in faces:
            self.face = max(faces, key=lambda number: faces[number]["FaceRectWidth"])
        parts = [image, self._panel(frame.time_s, faces.get(self.face))]
        return np.concatenate(parts if self.live else [self._banner, *parts])

    def _frame(self, frame: Frame, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
        image = np.ascontiguousarray(frame.pixels.transpose(1, 2, 0)[:, :, ::-1])
        scale = max(0.4, min(image.shape[:2]) / (500 if self.live else 900))
        line = max(1, round(2 * scale))
        for row in filter(has_face, rows):
            left, top, right, bottom = (round(side) for side in box_of(row))
            colour = _UNRELIABLE if row["quality"] else _RELIABLE
            cv2.rectangle(image, (left, top), (right, bottom), colour, line)
            for point in range(68):
                cv2.circle(image, (round(row[f"x_{point}"]), round(row[f"y_{point}"])), line, colour, -1, cv2.LINE_AA)
            emotion = row.get("top_emotion")
            texts = [f"{row['face_id']}" + (f" {emotion} {row[emotion]:.2f}" if emotion else "")]
            named = [
                name + "?" * (decided == 0.5) for name in self.units.values() if (decided := _decision(row, name)) > 0
            ]
            texts.append(" ".join(named) or "no AU active")
            texts += [row["quality"].replace("_", " ")] * bool(row["quality"])
            for number, words in enumerate(texts):
                place = left, bottom + (22 + 26 * number) * scale
                _put(image, words, place, 0.8 * scale, (255, 255, 255), halo=line)
        return image

    @property
    def _row(self) -> int:
        """Height of a row of the panel."""
        return max(18, self.size[0] // (24 if self.live else 50))

    @functools.cached_property
    def _banner(self) -> np.ndarray:
        warn, high = self.about.get("synthetic") is not False, self._row
        paper, ink = ("#ffedb8", "#5c3f00") if warn else ("#e9ecef", INK)
        kind, said = origin(self.about)
        words, size = f"{kind.upper()}  {said}", 0.45 * high / 18
        room = len(words) * (self.size[0] - 24) / max(1, _width(words, size))
        lines = textwrap.wrap(words, max(20, int(room)))
        image = np.full((high * len(lines) + 6, self.size[0], 3), _bgr(paper), np.uint8)
        for number, line in enumerate(lines, 1):
            _put(image, line, (8, number * high), size, _bgr(ink))
        return image

    def _panel(self, now: float, row: Mapping[str, Any] | None) -> np.ndarray:
        """Bars of the current frame, with thresholds, and the strip of the last seconds, a row an AU."""
        high, width, text = self._row, self.size[0], 0.45 * self._row / 18
        count, first = len(self.units), 2 * high + 8
        panel = np.full((first + high * count + (high + 8 if self.colours else 0) + high, width, 3), _PAPER, np.uint8)
        panel = panel[: len(panel) // 2 * 2]
        bar, strip = round(3.4 * high), round(12 * high)
        said = "no face" if row is None else f"face {row['face_id']}"
        if row is not None and row.get("top_emotion"):
            said += f"  {row['top_emotion']} {row[row['top_emotion']]:.2f}"
        _put(panel, said, (8, 1.2 * high), 1.2 * text, _BRIGHT)
        _put(panel, f"last {STRIP_SECONDS:.0f} seconds", (strip, 1.2 * high), text, _SOFT)
        for place, (code, name) in enumerate(self.units.items()):
            top = first + place * high
            share, decided = (0.0, 0.0) if row is None else (row[name], _decision(row, name))
            ink = _BRIGHT if decided > 0 else _SOFT
            _put(panel, code + "?" * (decided == 0.5), (8, top + 0.75 * high), text, ink)
            panel[top + 3 : top + high - 3, bar : strip - 3 * high] = _LINE
            if share == share:
                end = bar + round(share * (strip - 3 * high - bar))
                panel[top + 3 : top + high - 3, bar:end] = _COLOURS.get(decided, _COLOURS[0.0])
                if row is not None:
                    value = (strip - 2.7 * high, top + 0.75 * high)
                    _put(panel, f"{share:.2f}", value, text, ink)
            if (limit := self.limits[place]) == limit:
                at = bar + round(limit * (strip - 3 * high - bar))
                panel[top : top + high, at - 1 : at + 1] = _bgr(MARK)
        self._strip(panel[first:, strip : width - 8], now, high, count)
        return panel

    def _strip(self, part: np.ndarray, now: float, high: int, count: int) -> None:
        past = self.past.get(self.face) or [(-1e9, np.full(2 * count + len(self.colours), np.nan))]
        times, values = np.array([time for time, _ in past]), np.stack([one for _, one in past])
        moments = now - STRIP_SECONDS + (np.arange(part.shape[1]) + 1) / part.shape[1] * STRIP_SECONDS
        at = np.searchsorted(times, moments + 1e-6, "right") - 1
        usual = float(np.median(np.diff(times))) if len(times) > 1 else STRIP_SECONDS
        seen = (at >= 0) & (moments - times[at] <= _GAP * max(usual, 0.04))
        columns = values[at].T  # (values, width)
        levels = 1 - (np.arange(high) + 0.5) / high
        shares, decided = columns[:count, None], columns[count : 2 * count, None]
        filled = (levels[None, :, None] < 0.9 * shares) & seen
        rows = part[: high * count].reshape(count, high, part.shape[1], 3)
        for decision, colour in _COLOURS.items():
            rows[filled & (decided == decision)] = colour
        rows[:, -1] = _LINE
        if self.colours and seen.any():
            ribbon = part[high * count + 8 : high * count + 8 + high]
            tops = np.cumsum(np.nan_to_num(columns[2 * count :]), axis=0)
            which = (tops[:, None] < (levels[::-1] * tops[-1].max(initial=0) * 0.999)[None, :, None]).sum(0)
            painted = self.palette[which.clip(max=len(self.palette) - 1)]
            ribbon[:, seen] = painted[:, seen]
            self._ribbon_name(ribbon, columns[2 * count :, -1], seen[-1], high)

    def _ribbon_name(self, ribbon: np.ndarray, emotions: np.ndarray, seen: bool, high: int) -> None:
        if seen and not np.isnan(emotions).any():
            name = list(self.colours)[int(emotions.argmax())]
            ink, size = _bgr(ink_on(self.colours[name])), 0.45 * high / 18
            _put(ribbon, name, (ribbon.shape[1] - _width(name, size) - 6, 0.75 * high), size, ink)


class AnnotatedVideo:
    """A context in which frames are added in their order. At its end the file is there, at the pace of their times."""

    def __init__(
        self, path: str | os.PathLike, draw: Callable[[Frame, Sequence[Mapping[str, Any]]], np.ndarray]
    ) -> None:
        self.path, self.draw = Path(path), draw
        self.writer: cv2.VideoWriter | None = None
        self.first: tuple[float, np.ndarray] | None = None
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> "AnnotatedVideo":
        self.part = self.stack.enter_context(whole_file(self.path, suffix=".mp4"))
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        if self.first is not None and self.writer is None and error is None:
            self._open(0.0)
        if self.writer is not None:
            self.writer.release()
        elif error is None:  # no frame: no file
            with contextlib.suppress(OSError):
                self.stack.__exit__(OSError, OSError(), None)
            return
        self.stack.__exit__(kind, error, trace)

    def add(self, frame: Frame, rows: Sequence[Mapping[str, Any]]) -> None:
        image = self.draw(frame, rows)
        if self.first is None:
            self.first = frame.time_s, image
            return
        if self.writer is None:  # the second frame sets the pace
            self._open(frame.time_s - self.first[0])
        self._write(image)

    def _open(self, step: float) -> None:
        image = self.first[1]
        self.size = image.shape[1] // 2 * 2, image.shape[0] // 2 * 2  # encoders take even sides
        fps = float(np.clip(1 / step if step > 0 else 25.0, _LEAST_FPS, _MOST_FPS))
        self.writer = cv2.VideoWriter(str(self.part), cv2.VideoWriter_fourcc(*"mp4v"), fps, self.size)
        if not self.writer.isOpened():
            raise OutputError(f"annotate: {self.path} cannot be written; is there such a folder, and room in it?")
        self._write(image)

    def _write(self, image: np.ndarray) -> None:
        width, height = self.size
        self.writer.write(np.ascontiguousarray(image[:height, :width]))


__all__ = ["AnnotatedVideo", "FrameView"]
