"""Rows from files: ours (csv, jsonl, parquet), and csv files of OpenFace 2, py-feat and LibreFace by our names."""

import csv
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from configuration_mf2.facs import ACTION_UNITS, LABEL_SETS
from configuration_mf2.json_files import parse_json, read_json
from mf2face.inference.rows import NAN, STATE, TEXT_COLUMNS, format_of, unescape_cell, unit_column


BOX = ("FaceRectX", "FaceRectY", "FaceRectWidth", "FaceRectHeight")
POINTS = {f"{axis}_{point}" for axis in "xy" for point in range(68)}
UNIT = re.compile(r"AU(\d{1,2})(_c|_i|_L|_R|_rel)?")
"""Columns of an AU."""
_EMOTIONS = {name.lower(): name for labels in LABEL_SETS.values() for name in labels.emotions}
_EMOTIONS |= {"happy": "Happiness", "sad": "Sadness", "angry": "Anger", "surprised": "Surprise", "fearful": "Fear"}
_RENAMED = {
    **{"timestamp": "time_s", "approx_time": "time_s", "frame_time_in_ms": "time_s", "frame_idx": "frame"},
    **{"confidence": "FaceScore", "face_detection_score": "FaceScore", "facial_expression": "top_emotion"},
    **{"pose_Rx": "Pitch", "pose_Ry": "Yaw", "pose_Rz": "Roll", "pitch": "Pitch", "yaw": "Yaw", "roll": "Roll"},
}
_AS_TEXT = {*TEXT_COLUMNS, *(name for name, ours in _RENAMED.items() if ours in TEXT_COLUMNS), "approx_time"}
_DEGREES = 180 / np.pi


@dataclass
class RowTable:
    columns: dict[str, Any]
    """Name -> (rows,) float64, NaN where it is missing, or a list of texts."""
    about: dict[str, Any]
    """Facts beside the file; `tool` names another tool."""

    def __len__(self) -> int:
        return len(self.columns["input"])

    def series(self, suffix: str = "") -> dict[str, np.ndarray]:
        """AU -> its column: probability, or by suffix decision (`_c`), intensity (`_i`) and so on."""
        found = {name: UNIT.fullmatch(name) for name in self.columns}
        return {f"AU{int(m[1])}": self.columns[n] for n, m in found.items() if m and (m[2] or "") == suffix}

    def rows(self) -> Iterator[dict[str, Any]]:
        for values in zip(*self.columns.values(), strict=True):
            yield dict(zip(self.columns, values, strict=True))

    def with_shares(self) -> "RowTable":
        """Of another tool's AUs, what can be drawn like a probability: intensity divided by 5, or the decision."""
        if "tool" not in self.about:
            return self
        drawn = {code: values / 5 for code, values in self.series("_i").items()}
        shares = self.series("_c") | drawn | self.series()
        about = {**self.about, "settings": {"model": self.about["tool"]}}
        if drawn:
            about["trained_on"] = "AUs are drawn as their intensity (0 to 5) divided by 5, which is no probability"
        return RowTable({**self.columns, **{unit_column(code): values for code, values in shares.items()}}, about)


def read_rows(path: str | os.PathLike, *, points: bool = False, may_be_empty: bool = False) -> RowTable:
    """points: landmarks too."""
    path, format = Path(path), format_of(path)
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is no file")  # a pipe would be waited for
        about_file = Path(f"{path}.about.json")
        about = read_json(about_file) if about_file.is_file() else {}
        given = {"csv": _csv, "jsonl": _json, "parquet": _parquet}[format](path, points)
        table = _ours(path, given, about)
        if not points:
            table.columns = {name: values for name, values in table.columns.items() if name not in POINTS}
    # What csv, pyarrow and numbers in a damaged file raise.
    except (
        OSError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        ArithmeticError,
        RuntimeError,
        csv.Error,
    ) as error:
        raise ValueError(f"rows: {path} could not be read as rows of faces ({error})") from error
    if not len(table) and not may_be_empty:
        raise ValueError(f"rows: {path} has 0 rows, expected one for each face")
    return table


def _csv(path: Path, points: bool) -> dict[str, Any]:
    from pyarrow import binary
    from pyarrow import csv as arrow

    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        header = next(csv.reader(file), None)
    if header is None:
        raise ValueError("it is empty, expected a line of column names")
    names = [unescape_cell(name.strip()) for name in header]  # OpenFace writes a space behind each comma
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"got the column {twice} more than once, expected it once")
    points = points or not set(BOX) <= set(names)  # the box is found from them
    kept = {name: given for name, given in zip(names, header, strict=True) if points or name not in POINTS}
    if not kept:
        return {}
    texts = {given: binary() for name, given in kept.items() if name in _AS_TEXT or name.endswith(STATE)}
    convert = arrow.ConvertOptions(
        include_columns=list(kept.values()), column_types=texts, null_values=["", "NaN", "nan"]
    )
    table = arrow.read_csv(path, parse_options=arrow.ParseOptions(newlines_in_values=True), convert_options=convert)
    return {name: _values(table.column(given)) for name, given in kept.items()}


def _values(column: Any) -> Any:
    from pyarrow import types

    if types.is_binary(column.type):
        return [unescape_cell(value.decode("utf-8", "surrogateescape")) for value in column.to_pylist()]
    is_number = types.is_floating(column.type) or types.is_integer(column.type)
    return column.to_numpy() if is_number else column.to_pylist()


def _json(path: Path, points: bool) -> dict[str, Any]:
    columns: dict[str, list[Any]] = {}
    with open(path, encoding="utf-8") as file:
        for place, line in enumerate(file, 1):
            row = parse_json(line, f"line {place}")
            columns = columns or {name: [] for name in row if points or name not in POINTS}
            for name, values in columns.items():
                values.append(row[name])
    return columns


def _parquet(path: Path, points: bool) -> dict[str, Any]:
    from pyarrow import parquet

    names = [name for name in parquet.read_schema(path).names if points or name not in POINTS]
    table = parquet.read_table(path, columns=names)
    return {name: _values(column) for name, column in zip(names, table.columns, strict=True)}


def _ours(path: Path, given: dict[str, Any], about: dict[str, Any]) -> RowTable:
    """By our names."""
    tool = _tool(given)
    if tool is not None:
        about = {**about, "tool": tool}
    count, columns = len(next(iter(given.values()), ())), {}
    for name, values in given.items():
        ours, scale = _our_name(name, tool)
        if ours is None:
            continue
        if ours in TEXT_COLUMNS or ours.endswith(STATE):
            columns[ours] = [value or "" for value in values]
        elif tool is None and ours not in _KEPT and not UNIT.fullmatch(ours) and _has_text(values):
            columns[ours] = [value or "" for value in values]  # a column that the user added
        else:
            columns[ours] = _numbers(name, values) * scale
    if tool is not None and not any(UNIT.fullmatch(name) or name in _EMOTIONS.values() for name in columns):
        known = "AU01, AU01_c, AU01_r, au_1 or an emotion"
        raise ValueError(f"got the columns {', '.join(list(given)[:6])}, ..., but none of an AU or emotion ({known})")
    columns.setdefault("input", [path.stem] * count)
    columns.setdefault("frame", np.arange(count, dtype=float))
    has_ids = "face_id" in columns
    columns.setdefault("face_id", np.zeros(count))
    columns.setdefault("time_s", np.full(count, NAN))
    if tool is not None:
        _complete(columns, tool, has_ids)
    return RowTable(columns, about)


def _has_text(values: Any) -> bool:
    return not isinstance(values, np.ndarray) and any(isinstance(value, str) for value in values)


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
    try:
        numbers = np.array(values, dtype=np.float64)  # None is NaN
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


def _complete(columns: dict[str, Any], tool: str, has_ids: bool) -> None:
    """Adds what our rows have and another tool's do not: decisions, boxes, faces that were not found."""
    count = len(columns["input"])
    for name, values in list(columns.items()):
        decision = f"{name[:4]}_c"
        if UNIT.fullmatch(name) and name[4:] in ("", "_i") and decision not in columns:
            least = 1 if name.endswith("_i") else 0.5  # FACS's A, a trace
            columns[decision] = np.where(np.isnan(values), NAN, values >= least)
    emotions = [name for name in columns if name in _EMOTIONS.values()]
    if emotions and "top_emotion" not in columns:
        shares = np.nan_to_num(np.stack([columns[name] for name in emotions]), nan=-1.0)
        best = zip(shares.argmax(0), shares.max(0), strict=True)
        columns["top_emotion"] = [emotions[place] if share >= 0 else "" for place, share in best]
    if not set(BOX) <= columns.keys():
        points = [[columns.get(f"{axis}_{point}") for point in range(68)] for axis in "xy"]
        unknown = [np.zeros(count), np.ones(count)]
        x, y = (np.stack(unknown if one[-1] is None else one) for one in points)
        columns |= dict(zip(BOX, (x.min(0), y.min(0), np.ptp(x, axis=0), np.ptp(y, axis=0)), strict=True))
    if tool == "py-feat":
        _spread_frames(columns)
    failed = columns.pop("success", np.ones(count)) == 0
    failed = failed if has_ids else failed | np.isnan(columns["FaceRectX"])
    columns["face_id"] = np.where(failed, NAN, columns["face_id"])
    if tool == "OpenFace" and (columns["frame"] > 0).all():
        columns["frame"] = columns["frame"] - 1  # it counts from 1


def _spread_frames(columns: dict[str, Any]) -> None:
    """py-feat's clock has whole seconds: the frames of each are spread over it, at the pace of the fullest one."""
    times, frames, names = columns["time_s"], columns["frame"], np.unique(columns["input"], return_inverse=True)[1]
    order = np.lexsort((frames, names))
    for places in np.split(order, np.flatnonzero(np.diff(names[order])) + 1):
        _, first, where = np.unique(frames[places], return_index=True, return_inverse=True)
        seconds = times[places][first]
        _, start, counts = np.unique(seconds, return_index=True, return_counts=True)
        if (np.diff(seconds) >= 0).all():
            rank = np.arange(len(seconds)) - np.repeat(start, counts)
            times[places] = (seconds + rank / counts.max())[where]
