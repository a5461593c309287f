"""Columns as in py-feat and OpenFace, and files of rows that can be continued."""

import contextlib
import csv
import importlib.util
import io
import itertools
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np

from configuration_mf2.facs import ACTION_UNITS
from configuration_mf2.json_files import read_json
from mf2face.files import append_whole, locked, private, whole_file, write_whole
from processing_mf2.captions import caption_disagrees
from processing_mf2.results import UNIT_SUFFIXES


NAN = float("nan")
PATIENCE = 5
"""Looked-at frames for which a face may be hidden and still keep its number."""

TEXT_COLUMNS = ("input", "top_emotion", "emotion_set", "caption", "landmark_source", "quality", "error")
STATE = "_state"
POSE = ("Pitch", "Roll", "Yaw")
_WHOLE = ("frame", "face_id", "scene")
AUTO = "auto"
"""The neutral face of each track is its quiet part."""
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


def column_of(label: str) -> str:
    """Of an AU or an emotion."""
    return unit_column(label) if label in ACTION_UNITS else label


@dataclass(frozen=True)
class Columns:
    """Names in their order. AU06: probability; AU06_c: 1 if it reaches the threshold; AU06_L, AU06_R: probabilities of
    the person's left and right side; AU06_i: intensity, 0 to 5; AU06_rel: probability minus that of the neutral face.
    With `states`: AU06_state, and emotion_set, the emotions that cannot be ruled out. With `caption`:
    caption_disagrees, 1 if the caption names another emotion, or an AU that is not active."""

    action_units: tuple[str, ...]
    emotions: tuple[str, ...]
    caption: bool = False
    unit_details: tuple[str, ...] = ()
    """Those of `UNIT_SUFFIXES` that the model has."""
    states: bool = False
    relative: bool = False

    @property
    def names(self) -> list[str]:
        units = [unit_column(code) for code in self.action_units]
        return [
            *("input", "frame", "time_s", "face_id"),
            *("FaceRectX", "FaceRectY", "FaceRectWidth", "FaceRectHeight", "FaceScore"),
            *(f"{axis}_{point}" for axis in "xy" for point in range(68)),
            *POSE,
            *units,
            *(f"{name}_c" for name in units),
            *(f"{name}{STATE}" for name in units if self.states),
            *(f"{name}{UNIT_SUFFIXES[detail]}" for detail in self.unit_details for name in units),
            *(f"{name}_rel" for name in units if self.relative),
            *self.emotions,
            *(["top_emotion"] if self.emotions else []),
            *(["emotion_set"] if self.emotions and self.states else []),
            *(["caption", "caption_disagrees"] if self.caption else []),
            *("landmark_source", "quality", "scene", "error"),
        ]

    @property
    def measures(self) -> dict[str, str]:
        """Column -> its unit."""
        intensity = {"AU_i": "0 to 5"} if "intensity" in self.unit_details else {}
        relative = {"AU_rel": "probability minus the neutral face's"} if self.relative else {}
        pixels = {"FaceRect, x, y": "pixels", "time_s": "seconds", "AU": "0 to 1", ", ".join(POSE): "degrees"}
        return pixels | intensity | relative

    def is_text(self, name: str) -> bool:
        return (name in TEXT_COLUMNS or name.endswith(STATE)) and name not in self.emotions

    def is_whole(self, name: str) -> bool:
        return name in _WHOLE

    def empty_row(
        self, input: str, frame: int, time_s: float, scene: int = 0, error: str | None = None
    ) -> dict[str, Any]:
        """A frame without a face: every number is NaN, every text empty. error: why something is left out."""
        blank = {name: None if self.is_text(name) else NAN for name in self.names}
        return {**blank, "input": input, "frame": frame, "time_s": _round(time_s, 4), "scene": scene, "error": error}

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
        pose: Sequence[float] = (NAN, NAN, NAN),
        quality: str = "",
        neutral: Mapping[str, float] | None = None,
        **place: Any,
    ) -> dict[str, Any]:
        """Pixels to a hundredth, degrees to a tenth, probabilities to six digits: finer than any is known.

        pose: pitch, yaw and roll. quality: marks of an unreliable face, see `quality_of`. neutral: probabilities of the
        AUs in the neutral face. place: `scene` and `error`, as in `empty_row`.
        """
        left, top, right, bottom = box
        row = self.empty_row(input, frame, time_s, **place)
        row |= {"face_id": face_id, "FaceScore": _round(score, 4), "landmark_source": source, "quality": quality}
        row |= dict(zip(POSE, (_round(pose[place], 1) for place in (0, 2, 1)), strict=True))
        row |= {"FaceRectX": _round(left, 2), "FaceRectY": _round(top, 2)}
        row |= {"FaceRectWidth": _round(right - left, 2), "FaceRectHeight": _round(bottom - top, 2)}
        for point, (x, y) in enumerate(landmarks):
            row[f"x_{point}"], row[f"y_{point}"] = _round(x, 2), _round(y, 2)
        for code, unit in answer.get("action_units", {}).items():
            name = unit_column(code)
            row[name], row[f"{name}_c"] = _round(unit["probability"], 6), int(unit["active"])
            row |= {f"{name}{UNIT_SUFFIXES[detail]}": _round(unit[detail], 6) for detail in self.unit_details}
            if self.states:
                row[f"{name}{STATE}"] = unit["state"]
            if self.relative and neutral is not None:
                row[f"{name}_rel"] = _round(unit["probability"] - neutral[code], 6)
        row |= {name: _round(value, 6) for name, value in answer.get("emotions", {}).items()}
        if self.emotions:
            row["top_emotion"] = answer.get("emotion")
            if self.states:
                row["emotion_set"] = "|".join(answer.get("emotion_set", ()))
        if self.caption:
            caption = row["caption"] = answer.get("captions", {}).get("emotion")
            active = {code: unit["active"] for code, unit in answer.get("action_units", {}).items()}
            if caption is not None:
                disagrees = caption_disagrees(caption, answer.get("emotion"), self.emotions, active)
                row["caption_disagrees"] = int(disagrees)
        return row


_QUIET = 0.2
_LEAST_FRAMES = 10


def fill_relative(rows: Sequence[dict[str, Any]], columns: Columns) -> str:
    """Fills `AU.._rel` of each followed face that has at least 10 frames: its probabilities minus their medians over
    the fifth of its frames whose sum of probabilities is least; frames with a mark of quality do not count, unless
    there are fewer than 10 others. -> which faces have none, in words; empty if all have."""
    tracks: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for row in rows:
        if has_face(row) and not math.isnan(float(row["time_s"])):
            tracks.setdefault((row["input"], float(row["face_id"])), []).append(row)
    names, filled = [unit_column(code) for code in columns.action_units], 0
    for track in tracks.values():
        values = np.array([[row[name] for name in names] for row in track], float)
        there, marked = ~np.isnan(values).any(1), np.array([bool(row["quality"]) for row in track])
        usable = values[there & ~marked if (there & ~marked).sum() >= _LEAST_FRAMES else there]
        if len(usable) < _LEAST_FRAMES:
            continue
        quiet = usable[np.argsort(usable.sum(1), kind="stable")[: max(1, round(_QUIET * len(usable)))]]
        for row, relative in zip(track, values - np.median(quiet, axis=0), strict=True):
            row |= {f"{name}_rel": _round(value, 6) for name, value in zip(names, relative, strict=True)}
        filled += len(track)
    short = sum(map(has_face, rows)) - filled
    return f"faces in no track of {_LEAST_FRAMES} frames, whose AU.._rel is NaN: {short:,}" * bool(short)


def _round(value: float, digits: int) -> float:
    return round(float(value), digits)


def has_face(row: Mapping[str, Any]) -> bool:
    number = row.get("face_id")
    return number not in (None, "") and not math.isnan(float(number))


def box_of(row: Mapping[str, Any]) -> tuple[float, float, float, float]:
    left, top, width, height = (float(row[f"FaceRect{name}"]) for name in ("X", "Y", "Width", "Height"))
    return left, top, left + width, top + height


FORMATS: dict[str, str] = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
_ROW_GROUP = 1000


_ADVICE = "choose another output, or overwrite it (--overwrite)"


class OutputError(OSError):
    """The output cannot be written, or is not ours to continue."""


def lock_of(output: Path) -> contextlib.AbstractContextManager[None]:
    busy = OutputError(f"output: {output} is being written by another run; wait for it, or name another")
    return locked(output.with_name(f".{output.name}.lock"), busy)


def format_of(path: str | os.PathLike, wanted: str | None = None) -> str:
    ending = Path(path).suffix.lower()
    if wanted is None and ending not in FORMATS:
        raise ValueError(f"output: got the ending {ending!r}, expected one of {list(FORMATS)}, or name the format")
    format = wanted or FORMATS[ending]
    if format == "parquet" and importlib.util.find_spec("pyarrow") is None:
        raise ValueError("output: parquet needs pyarrow, which is not installed: pip install pyarrow; or name a .csv")
    return format


def differing_settings(one: Mapping[str, Any], other: Mapping[str, Any], label: str = "now") -> str:
    """Settings of two runs that are not equal, in words; empty if there are none. label: of the other run."""
    differ = [name for name in {**one, **other} if one.get(name) != other.get(name)]
    return ", ".join(f"{name} {one.get(name)!r} ({label} {other.get(name)!r})" for name in differ)


def csv_rows(rows: Iterable[Mapping[str, Any]], names: Sequence[str]) -> str:
    return csv_lines([row[name] for name in names] for row in rows)


def json_lines(rows: Iterable[Mapping[str, Any]], names: Sequence[str]) -> str:
    """JSON has no NaN: null stands for it."""
    plain = ({name: None if row[name] != row[name] else row[name] for name in names} for row in rows)
    return "".join(f"{json.dumps(row)}\n" for row in plain)


class RowFile:
    """An output that grows by whole frames. What it holds already is in `done`: input -> its last complete frame.

    columns: must be those of the file that is continued. about: facts of the run, kept in `<output>.about.json`; the
    entry "settings" must be equal too, or rows of two kinds would stand in one file.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        columns: Columns,
        about: dict[str, Any],
        *,
        format: str | None = None,
        overwrite: bool = False,
    ) -> None:
        self.path, self.columns, self.names = Path(path), columns, columns.names
        self.format = format_of(path, format)
        self.about, self.about_file = about, Path(f"{self.path}.about.json")
        self.lines = Path(f"{self.path}.partial") if self.format == "parquet" else self.path
        self.write = csv_rows if self.format == "csv" else json_lines
        self.done: dict[str, int] = {}
        self.last_input: str | None = None
        self.last_frames: list[tuple[int, list[dict[str, Any]]]] = []
        """Scene and faces of the last input's last frames, as many as a face may be hidden: tracks go on from them."""
        self.next_id, self.without_neutral = 0, ""
        self.lock = contextlib.ExitStack()
        """Held for the run: rows of two runs would mix."""
        try:
            self._open(overwrite)
        except OSError as error:
            self.lock.close()
            if isinstance(error, OutputError):
                raise
            raise OutputError(f"output: {self.path} cannot be written ({error.strerror or error})") from error
        # What pyarrow, csv and numbers in a damaged file raise besides.
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError, csv.Error) as error:
            self.lock.close()
            names = f"{self.path} or {self.about_file.name}"
            raise OutputError(f"output: {names} is damaged, and cannot be continued ({error}); {_ADVICE}") from error

    def _open(self, overwrite: bool) -> None:
        if self.path.exists() and not self.path.is_file():
            raise OutputError(f"output: {self.path} is no file; expected one, or none and --format csv for a pipe")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.lock.enter_context(lock_of(self.path))
        if overwrite:
            self.remove()
        known = self._check_same_run()
        if self.format == "parquet" and not self.lines.exists() and known:
            known["bytes"] = self._unpack()
        self.size = self._read(known.get("bytes")) if self.lines.exists() else 0
        self._write_about(finished=False)  # before the rows, which could not be continued without it
        # Without a buffer: what could not be written is not tried once more when the file is closed.
        mode = "r+b" if self.lines.exists() else "w+b"
        self.file: FileIO = open(self.lines, mode, buffering=0, opener=private)
        self.file.truncate(self.size)
        self.file.seek(self.size)
        if self.size == 0 and self.format == "csv":
            self._append(csv_lines([self.names]))

    def remove(self) -> None:
        for file in (self.path, self.lines, self.about_file):
            file.unlink(missing_ok=True)

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """All rows of one or more frames; they are in the file when this returns, or none is."""
        self._append(self.write(rows, self.names))

    def close(self, *, finished: bool, **facts: Any) -> None:
        """facts: more facts for the file about the run."""
        with contextlib.suppress(OSError):  # what matters was flushed by `add`
            self.file.close()
        self.about |= facts
        try:
            if finished and self.about["settings"].get("neutral") == AUTO:
                self._fill_relative()
            if self.format == "parquet":
                self._pack()
            self._write_about(finished=finished)
        except OSError as error:
            kept = f"; the rows are in {self.lines}, and the same command continues" if self.lines.exists() else ""
            why = error.strerror or error
            raise OutputError(f"output: {self.path} could not be completed ({why}){kept}") from error
        finally:
            self.lock.close()

    def _append(self, text: str) -> None:
        try:
            self.size = append_whole(self.file.fileno(), self.size, text.encode("utf-8", "surrogateescape"))
        except OSError as error:
            raise OutputError(
                f"output: {self.path} cannot be written further ({error.strerror}); rows up to there are whole. Make "
                "room and give the same command again: it continues"
            ) from error

    def _check_same_run(self) -> dict[str, Any]:
        there = [file for file in (self.path, self.lines) if file.exists() and not self._holds_no_row(file)]
        if not there:
            return {}
        try:
            known = read_json(self.about_file)
            if not isinstance(known, dict) or not isinstance(known.get("settings", {}), dict):
                raise ValueError("got no JSON object of settings")
        except (OSError, ValueError) as error:
            name = self.about_file.name
            raise OutputError(f"output: {there[0]} exists, but {name} is missing or damaged; {_ADVICE}") from error
        if differ := differing_settings(known.get("settings", {}), self.about["settings"]):
            raise OutputError(f"output: {there[0]} was made with {differ}; {_ADVICE}")
        return known

    def _holds_no_row(self, file: Path) -> bool:
        """Killed while it was begun: empty, or a part of the first line."""
        header = csv_lines([self.names]).encode("utf-8", "surrogateescape") if self.format == "csv" else b""
        return file.stat().st_size <= len(header) and header.startswith(file.read_bytes())

    def _read(self, complete: int | None) -> int:
        """Fills `done`; -> how many bytes stay. A cut last line goes, and the last frame with it: a kill may have come
        between its faces. Not after a clean end, of which the number of bytes is known."""
        size = self.lines.stat().st_size
        before = end = next_before = 0
        place: tuple[str, int] | None = None
        open_frames: list[tuple[int, list[dict[str, Any]]]] = []
        for offset, row in _rows_of(self.lines, self.format, self.names):
            here = (row["input"], int(float(row["frame"])))
            if here != place:
                if place is not None:
                    self.done[place[0]] = place[1]
                    if place[0] != here[0]:
                        open_frames, self.next_id = [], 0
                open_frames = [*open_frames[-PATIENCE:], (int(float(row["scene"])), [])]
                before, next_before, place = end, self.next_id, here
            if has_face(row):
                open_frames[-1][1].append(row)
                self.next_id = max(self.next_id, int(float(row["face_id"])) + 1)
            end = offset
        if place is not None and end == size == complete:
            self.done[place[0]] = place[1]
        elif place is not None:
            end, self.next_id = before, next_before
            open_frames.pop()
        self.last_input, self.last_frames = place and place[0], open_frames
        return end

    def _unpack(self) -> int:
        """Parquet cannot grow: its rows go back to lines. -> their bytes; it holds whole frames only."""
        from pyarrow import parquet  # 0.3 s, which the other formats do not need

        with (
            whole_file(self.lines) as part,
            parquet.ParquetFile(self.path) as packed,
            open(part, "w", encoding="utf-8") as file,
        ):
            for batch in packed.iter_batches(_ROW_GROUP):
                file.write(json_lines(map(_from_parquet, batch.to_pylist()), self.names))
        return self.lines.stat().st_size

    def _pack(self) -> None:
        import pyarrow
        from pyarrow import parquet

        kinds = {name: pyarrow.float64() for name in self.names}
        kinds |= {name: pyarrow.string() for name in self.names if self.columns.is_text(name)}
        kinds |= {name: pyarrow.int64() for name in self.names if self.columns.is_whole(name)}
        schema = pyarrow.schema(list(kinds.items()), {"mf2": json.dumps(self.about, default=str)})
        with whole_file(self.path) as part, parquet.ParquetWriter(part, schema) as writer:
            rows = (_for_parquet(row, self.columns) for _, row in _rows_of(self.lines, self.format, self.names))
            while group := list(itertools.islice(rows, _ROW_GROUP)):
                writer.write_table(pyarrow.Table.from_pylist(group, schema))
        self.lines.unlink()

    def _fill_relative(self) -> None:
        """In two passes over the file, of which the first keeps no landmarks."""
        kept = ["input", "time_s", "face_id", "quality", *map(unit_column, self.columns.action_units)]
        slim = [{name: row[name] for name in kept} for row in self._values()]
        self.without_neutral = fill_relative(slim, self.columns)
        with whole_file(self.lines) as part, open(part, "wb") as file:
            if self.format == "csv":
                file.write(csv_lines([self.names]).encode())
            for row, filled in zip(self._values(), slim, strict=True):
                file.write(self.write([row | filled], self.names).encode("utf-8", "surrogateescape"))
        self.size = self.lines.stat().st_size

    def _values(self) -> Iterator[dict[str, Any]]:
        def value(name: str, cell: Any) -> Any:
            if self.columns.is_text(name):
                return cell
            return NAN if cell is None else cell if not isinstance(cell, str) else _number(cell)

        for _, row in _rows_of(self.lines, self.format, self.names):
            yield {name: value(name, cell) for name, cell in row.items()}

    def _write_about(self, finished: bool) -> None:
        content = {**self.about, "finished": finished, "bytes": self.size}
        write_whole(self.about_file, json.dumps(content, indent=1, default=str) + "\n", shared=False)


def _number(cell: str) -> float:
    return int(cell) if cell.isdecimal() else float(cell)


def _for_parquet(row: dict[str, Any], columns: Columns) -> dict[str, Any]:
    """Missing numbers are NaN. Parquet holds UTF-8 only: of a file name, a byte that is none is written as `\\xff`, and
    where these characters stand in a name themselves their backslash is, as `\\x5cxff`."""

    def text(value: str | None) -> str | None:
        escaped = value and value.replace("\\x", "\\x5cx")
        return escaped and escaped.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")

    def number(name: str, value: Any) -> Any:
        return math.nan if value is None and not columns.is_whole(name) else value

    return {name: text(value) if columns.is_text(name) else number(name, value) for name, value in row.items()}


def _from_parquet(row: dict[str, Any]) -> dict[str, Any]:
    def raw(text: str) -> str:
        return re.sub(r"\\x([0-9a-f]{2})", lambda byte: os.fsdecode(bytes.fromhex(byte[1])), text)

    return {name: raw(value) if isinstance(value, str) else value for name, value in row.items()}


def _rows_of(path: Path, format: str, names: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(end of the row in the file, row) of every whole row; a last one that breaks off is left out."""
    offset = 0

    def whole_lines() -> Iterator[str]:
        nonlocal offset
        with open(path, "rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    return
                offset += len(line)
                yield line.decode("utf-8", "surrogateescape")

    wrong = f"output: {path} has not the columns of this run; {_ADVICE}"
    if format == "csv":
        reader = ([unescape_cell(cell) for cell in cells] for cells in csv.reader(whole_lines()))
        header = next(reader, None)
        if header is None:
            return
        if header != list(names):
            raise OutputError(wrong)
        for values in reader:
            if len(values) != len(names):
                if offset == path.stat().st_size:
                    return
                raise OutputError(f"{wrong}; a row has {len(values)} fields and not {len(names)}")
            yield offset, dict(zip(names, values, strict=True))
        return
    for line in whole_lines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise OutputError(f"{wrong}; a line is no JSON ({error})") from error
        if list(row) != list(names):
            raise OutputError(wrong)
        yield offset, row


def first_line(error: BaseException) -> str:
    """The first line of a library's message, which may be a page long."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")[:300]
