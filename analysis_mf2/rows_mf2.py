"""The columns that users of py-feat and OpenFace know, and a face's answer as a row of them."""

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


NAN = float("nan")
TEXT_COLUMNS = ("input", "top_emotion", "caption", "landmark_source")
_WHOLE = ("frame", "face_id")
_FORMULA = re.compile(r"'*[=+\-@\t\r\n]")


def escape_cell(value: Any) -> Any:
    """Text that a spreadsheet would run as a formula gets an apostrophe before it; numbers stay numbers."""
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def unescape_cell(cell: str) -> str:
    """The text that `escape_cell` was given."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def csv_lines(rows: Iterable[Sequence[Any]]) -> str:
    """Lines of csv; NaN is written as NaN, and no cell is a formula."""
    lines = []
    for row in rows:
        line = io.StringIO(newline="")
        # By default a line ends with both signs, so that a cell with either of them is quoted.
        csv.writer(line).writerow(["NaN" if value != value else escape_cell(value) for value in row])
        lines.append(line.getvalue()[:-2] + "\n")
    return "".join(lines)


def unit_column(code: str) -> str:
    """AU6 -> AU06"""
    return f"AU{int(code.removeprefix('AU')):02d}"


@dataclass(frozen=True)
class Columns:
    """Names in their order. AU06: probability; AU06_c: 1 if it reaches the threshold that the model was saved with."""

    action_units: tuple[str, ...]
    emotions: tuple[str, ...]
    caption: bool = False

    @property
    def names(self) -> list[str]:
        units = [unit_column(code) for code in self.action_units]
        return [
            *("input", "frame", "time_s", "face_id"),
            *("FaceRectX", "FaceRectY", "FaceRectWidth", "FaceRectHeight", "FaceScore"),
            *(f"{axis}_{point}" for axis in "xy" for point in range(68)),
            *units,
            *(f"{name}_c" for name in units),
            *self.emotions,
            *(["top_emotion"] if self.emotions else []),
            *(["caption"] if self.caption else []),
            "landmark_source",
        ]

    def is_text(self, name: str) -> bool:
        return name in TEXT_COLUMNS and name not in self.emotions

    def is_whole(self, name: str) -> bool:
        return name in _WHOLE

    def empty_row(self, input: str, frame: int, time_s: float) -> dict[str, Any]:
        """No face was found: every number is NaN, every text empty."""
        blank = {name: None if self.is_text(name) else NAN for name in self.names}
        return {**blank, "input": input, "frame": frame, "time_s": _round(time_s, 4)}

    def row(
        self,
        input: str,
        frame: int,
        time_s: float,
        face_id: int,
        box: Sequence[float],
        score: float,
        landmarks: Sequence[Sequence[float]],
        source: str,
        answer: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Pixels to a hundredth, probabilities to six digits: finer than either is known."""
        left, top, right, bottom = box
        row = self.empty_row(input, frame, time_s)
        row |= {"face_id": face_id, "FaceScore": _round(score, 4), "landmark_source": source}
        row |= {"FaceRectX": _round(left, 2), "FaceRectY": _round(top, 2)}
        row |= {"FaceRectWidth": _round(right - left, 2), "FaceRectHeight": _round(bottom - top, 2)}
        for point, (x, y) in enumerate(landmarks):
            row[f"x_{point}"], row[f"y_{point}"] = _round(x, 2), _round(y, 2)
        for code, unit in answer.get("action_units", {}).items():
            row[unit_column(code)] = _round(unit["probability"], 6)
            row[f"{unit_column(code)}_c"] = int(unit["active"])
        row |= {name: _round(value, 6) for name, value in answer.get("emotions", {}).items()}
        if self.emotions:
            row["top_emotion"] = answer.get("emotion")
        if self.caption:
            row["caption"] = answer.get("captions", {}).get("emotion")
        return row


def _round(value: float, digits: int) -> float:
    return round(float(value), digits)


def has_face(row: Mapping[str, Any]) -> bool:
    number = row.get("face_id")
    return number not in (None, "") and not math.isnan(float(number))


def box_of(row: Mapping[str, Any]) -> tuple[float, float, float, float]:
    left, top, width, height = (float(row[f"FaceRect{name}"]) for name in ("X", "Y", "Width", "Height"))
    return left, top, left + width, top + height


__all__ = ["Columns", "box_of", "csv_lines", "escape_cell", "has_face", "unescape_cell", "unit_column"]
