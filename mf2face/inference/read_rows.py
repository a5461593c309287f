"""Rows from files: ours (csv, jsonl, parquet), and csv files of OpenFace 2, py-feat and LibreFace by our names."""

import contextlib
import csv
import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from configuration_mf2.facs import ACTION_UNITS, LABEL_SETS
from configuration_mf2.json_files import parse_json, read_json
from mf2face.inference.rows import NAN, TEXT_COLUMNS, csv_lines, format_of, unescape_cell, unit_column


BOX = ("FaceRectX", "FaceRectY", "FaceRectWidth", "FaceRectHeight")
POINTS = [f"{axis}_{point}" for axis in "xy" for point in range(68)]
UNIT = re.compile(r"AU(\d{1,2})(_c|_i|_L|_R|_rel)?")
"""Columns of an AU."""
_EMOTIONS = {name.lower(): name for labels in LABEL_SETS.values() for name in labels.emotions}
_EMOTIONS |= {"happy": "Happiness", "sad": "Sadness", "angry": "Anger", "surprised": "Surprise", "fearful": "Fear"}
_RENAMED = {
    **{"timestamp": "time_s", "approx_time": "time_s", "frame_time_in_ms": "time_s", "frame_idx": "frame"},
    **{"confidence": "FaceScore", "face_detection_score": "FaceScore", "facial_expression": "top_emotion"},
    **{"pose_Rx": "Pitch", "pose_Ry": "Yaw", "pose_Rz": "Roll", "pitch": "Pitch", "yaw": "Yaw", "roll": "Roll"},
}
_DEGREES = 180 / np.pi


@dataclass
class RowTable:
    columns: dict[str, Any]
    """Name -> (rows,) float64, NaN where it is missing, or a list of texts."""
    about: dict[str, Any]
    """Facts beside the file; of another tool `tool` names it."""

    def __len__(self) -> int:
        return len(self.columns["input"])

    def series(self, suffix: str = "") -> dict[str, np.ndarray]:
        """AU -> its column: probability, or by suffix decision (`_c`), intensity (`_i`) and so on."""
        found = {name: UNIT.fullmatch(name) for name in self.columns}
        return {f"AU{int(m[1])}": self.columns[n] for n, m in found.items() if m and (m[2] or "") == suffix}


def read_rows(path: str | os.PathLike, *, points: bool = False) -> RowTable:
    """points: landmarks too."""
    path, format = Path(path), format_of(path)
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is no file")  # a pipe would be waited for
        about_file = Path(f"{path}.about.json")
        about = read_json(about_file) if about_file.is_file() else {}
        names, cells = {"csv": _csv, "jsonl": _json, "parquet": _parquet}[format](path)
        table = RowTable(*_ours(path, names, cells, points, about))
    except (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise ValueError(f"rows: {path} could not be read as rows of faces ({error})") from error
    if not len(table):
        raise ValueError(f"rows: {path} has 0 rows, expected one for each face")
    return table


def _csv(path: Path) -> tuple[list[str], list[Sequence[Any]]]:
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        spaced = ", " in file.readline()  # OpenFace writes a space behind each comma
        file.seek(0)
        reader = csv.reader(file, skipinitialspace=spaced)
        names = [unescape_cell(name.strip()) for name in next(reader, [])]
        rows = [row for row in reader if row]
    if wrong := next((place for place, row in enumerate(rows) if len(row) != len(names)), None):
        raise ValueError(f"row {wrong + 1}: got {len(rows[wrong])} cells, expected {len(names)}; is the file cut off?")
    return names, list(zip(*rows, strict=True)) or [()] * len(names)


def _json(path: Path) -> tuple[list[str], list[Sequence[Any]]]:
    with open(path, encoding="utf-8") as file:
        rows = [parse_json(line, f"line {place + 1}") for place, line in enumerate(file)]
    names = list(rows[0]) if rows else []
    return names, [[row[name] for row in rows] for name in names]


def _parquet(path: Path) -> tuple[list[str], list[Sequence[Any]]]:
    from pyarrow import parquet

    table = parquet.read_table(path)
    return table.column_names, [column.to_pylist() for column in table.columns]


def _ours(
    path: Path, names: list[str], cells: list[Sequence[Any]], points: bool, about: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(columns by our names, facts)"""
    given = dict(zip(names, cells, strict=True))
    tool = _tool(given)
    if tool is not None:
        about = {**about, "tool": tool}
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"got the column {twice[0]} more than once, expected it once")
    count, columns = len(cells[0]) if cells else 0, {}
    for name, values in given.items():
        ours, scale = _our_name(name, tool)
        if ours is None or (ours in POINTS and not points):
            continue
        if ours in TEXT_COLUMNS:
            columns[ours] = [unescape_cell(value) if isinstance(value, str) else value or "" for value in values]
        else:
            columns[ours] = _numbers(name, values) * scale
    if not any(UNIT.fullmatch(name) or name in _EMOTIONS.values() for name in columns):
        known = "AU01, AU01_c, AU01_r, au_1 or an emotion"
        raise ValueError(f"got the columns {', '.join(names[:6])}, ..., but none of an AU or emotion ({known})")
    columns.setdefault("input", [path.stem] * count)
    columns.setdefault("frame", np.arange(count, dtype=float))
    columns.setdefault("face_id", np.zeros(count))
    columns.setdefault("time_s", np.full(count, NAN))
    if tool is not None:
        _complete(columns, given, tool)
    return columns, about


def _tool(given: dict[str, Any]) -> str | None:
    """Whose columns these are; None: ours."""
    if "frame_idx" in given or any(re.fullmatch(r"au_\d+(_intensity)?", name) for name in given):
        return "LibreFace"
    if "AU03_r" in given:
        raise ValueError(
            "got the column AU03_r, but FACS has no AU3: OpenFace 3 numbers its outputs; rename its columns to the AUs"
        )
    if any(re.fullmatch(r"AU\d\d_r", name) for name in given) or {"success", "confidence"} <= given.keys():
        return "OpenFace"
    return None if "landmark_source" in given else "py-feat"


def _our_name(name: str, tool: str | None) -> tuple[str | None, float]:
    """(our name of a column, what its numbers are multiplied by); no name: it is left out."""
    if tool is None:
        return name, 1.0
    name = _RENAMED.get(name, name) if name != "timestamp" or tool == "OpenFace" else name
    if unit := re.fullmatch(r"(?:AU|au_)(\d{1,2})(_r|_c|_intensity)?", name):
        if f"AU{int(unit[1])}" not in {*ACTION_UNITS, "AU45"} and tool != "py-feat":
            return None, 1.0
        decided = unit[2] == "_c" or (tool == "LibreFace" and not unit[2])
        suffix = "_c" if decided else "_i" if unit[2] else ""
        return f"{unit_column(f'AU{int(unit[1])}')}{suffix}", 1.0
    if name in ("Pitch", "Yaw", "Roll"):
        return name, _DEGREES if tool == "OpenFace" else 1.0
    return _EMOTIONS.get(name.lower(), name if name in _KEPT else None), 1.0


_KEPT = {*BOX, *POINTS, "input", "frame", "time_s", "face_id", "FaceScore", "top_emotion", "success"}


def _numbers(name: str, values: Sequence[Any]) -> np.ndarray:
    if name == "approx_time":  # py-feat: 00:03 or 00:00:03
        values = [_seconds(str(value)) for value in values]
    if values and isinstance(values[0], str):
        values = [value if value else "nan" for value in values]
    try:
        numbers = np.array([NAN if value is None else value for value in values], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error}, expected numbers") from error
    if np.isinf(numbers).any():
        raise ValueError(f"{name}: got an infinite number in row {int(np.isinf(numbers).argmax()) + 1}")
    return numbers / 1000 if name == "frame_time_in_ms" else numbers


def _seconds(clock: str) -> float:
    try:
        return sum(float(part) * 60**power for power, part in enumerate(reversed(clock.split(":"))))
    except ValueError:
        return NAN


def _complete(columns: dict[str, Any], given: dict[str, Any], tool: str) -> None:
    """Adds what our rows have and another tool's do not: decisions, boxes, faces that were not found."""
    count = len(columns["input"])
    for name in [name for name in columns if UNIT.fullmatch(name)]:
        base, kind = name[:4], name[4:]
        if kind == "_i" and f"{base}_c" not in columns:
            columns[f"{base}_c"] = np.where(np.isnan(columns[name]), NAN, columns[name] >= 1)  # FACS: A, a trace
        if kind == "" and f"{base}_c" not in columns:
            columns[f"{base}_c"] = np.where(np.isnan(columns[name]), NAN, columns[name] >= 0.5)
    emotions = [name for name in columns if name in _EMOTIONS.values()]
    if emotions and "top_emotion" not in columns:
        shares = np.nan_to_num(np.stack([columns[name] for name in emotions]), nan=-1.0)
        columns["top_emotion"] = [
            emotions[place] if best >= 0 else "" for place, best in zip(shares.argmax(0), shares.max(0), strict=True)
        ]
    if not set(BOX) <= columns.keys():
        sides = {
            axis: [_numbers(f"{axis}_{p}", given[f"{axis}_{p}"]) for p in range(68)]
            for axis in "xy"
            if f"{axis}_67" in given
        }
        low = {axis: np.min(sides[axis], axis=0) if axis in sides else np.zeros(count) for axis in "xy"}
        high = {axis: np.max(sides[axis], axis=0) if axis in sides else np.ones(count) for axis in "xy"}
        boxes = (low["x"], low["y"], high["x"] - low["x"], high["y"] - low["y"])
        columns |= dict(zip(BOX, boxes, strict=True))
    failed = np.isnan(columns["FaceRectX"]) | (columns.pop("success", np.ones(count)) == 0)
    columns["face_id"] = np.where(failed, NAN, columns["face_id"])
    if tool == "OpenFace" and (columns["frame"] > 0).all():
        columns["frame"] = columns["frame"] - 1  # it counts from 1


@contextlib.contextmanager
def adopted(path: str | os.PathLike) -> Iterator[str | os.PathLike]:
    """A file of another tool as one of ours, for as long as the context is open; ours as it is."""
    path = Path(path)
    with (
        open(path, encoding="utf-8-sig", errors="surrogateescape")
        if path.is_file()
        else contextlib.nullcontext() as file
    ):
        header = "" if file is None or path.suffix.lower() != ".csv" else file.readline()
    if not header or "landmark_source" in header:
        yield path
        return
    table = read_rows(path)
    names = [*table.columns, "landmark_source", "quality"]
    whole = {name for name in names if name in ("frame", "face_id") or name.endswith("_c")}
    with tempfile.TemporaryDirectory(prefix="mf2-rows-") as folder:
        copy = Path(folder) / path.name
        with open(copy, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(csv_lines([names]))
            texts = [[""] * len(table)] * 2
            for row in zip(*table.columns.values(), *texts, strict=True):
                file.write(
                    csv_lines([[int(v) if n in whole and v == v else v for n, v in zip(names, row, strict=True)]])
                )
        Path(f"{copy}.about.json").write_text(json.dumps({**table.about, "settings": {"model": table.about["tool"]}}))
        yield copy
