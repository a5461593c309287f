"""A video with what was found in it: boxes, landmarks, active action units, emotion."""

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mf2face.files import whole_file
from mf2face.inference.media import Frame
from mf2face.inference.rows import Columns, OutputError, box_of, has_face, unit_column


_COLOR, _UNRELIABLE = (80, 220, 80), (60, 160, 255)  # BGR
_LEAST_FPS, _MOST_FPS = 1.0, 120.0


class AnnotatedVideo:
    """A context in which frames are added in their order. At its end the file is there, at the pace of their times."""

    def __init__(self, path: str | os.PathLike, columns: Columns) -> None:
        self.path, self.columns = Path(path), columns
        self.writer: cv2.VideoWriter | None = None
        self.size = (0, 0)
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
        if self.writer is None:  # the second frame tells the pace
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
        if image.shape[:2] != (height, width):  # a video may change its size
            image = cv2.resize(image, self.size) if abs(image.shape[1] - width) > 1 else image[:height, :width]
        self.writer.write(np.ascontiguousarray(image))

    def draw(self, frame: Frame, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
        image = np.ascontiguousarray(frame.pixels.transpose(1, 2, 0)[:, :, ::-1])
        scale = max(0.4, min(image.shape[:2]) / 900)
        line = max(1, round(2 * scale))
        for row in rows:
            if not has_face(row):
                continue
            left, top, right, bottom = (round(side) for side in box_of(row))
            color = _UNRELIABLE if row["quality"] else _COLOR
            cv2.rectangle(image, (left, top), (right, bottom), color, line)
            for point in range(68):
                cv2.circle(image, (round(row[f"x_{point}"]), round(row[f"y_{point}"])), line, color, -1, cv2.LINE_AA)
            units = [unit_column(code) for code in self.columns.action_units]
            emotion = row.get("top_emotion")
            texts = [
                f"{row['face_id']}" + (f" {emotion} {row[emotion]:.2f}" if emotion else ""),
                " ".join(name for name in units if row[f"{name}_c"] == 1) or "no AU active",
                row["quality"].replace("_", " "),
            ]
            for number, text in enumerate(filter(None, texts)):
                place = left, bottom + round((22 + 26 * number) * scale)
                for ink, width in (((0, 0, 0), 3 * line), ((255, 255, 255), line)):
                    cv2.putText(image, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.8 * scale, ink, width, cv2.LINE_AA)
        return image


__all__ = ["AnnotatedVideo"]
