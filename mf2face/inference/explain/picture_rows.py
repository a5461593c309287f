"""Rows, from a file or a run, as pictures need them: stills apart from videos, and each followed face as a series."""

import csv
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from configuration_mf2.facs import ACTION_UNITS, LABEL_SETS
from configuration_mf2.json_files import parse_json, read_json
from mf2face.inference.explain.page import fills
from mf2face.inference.rows import box_of, format_of, has_face, unescape_cell, unit_column
from processing_mf2.image_io import read_image


_BOX = ("FaceRectX", "FaceRectY", "FaceRectWidth", "FaceRectHeight")
_CODES = {unit_column(code): code for code in ACTION_UNITS}
_EMOTIONS = {name.lower() for labels in LABEL_SETS.values() for name in labels.emotions}


@dataclass
class PictureRows:
    """Rows without landmarks, so that a million of them fit into memory."""

    units: dict[str, str]
    """AU -> its column"""
    emotions: list[str]
    about: dict[str, Any]
    thresholds: dict[str, float]
    stills: list[dict[str, Any]] = field(default_factory=list)
    videos: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    pages: dict[tuple[str, int], str] = field(default_factory=dict)
    """(input, face_id) -> a page of its own, relative to where the pictures lie"""

    @classmethod
    def of_columns(cls, names: Sequence[str], about: Mapping[str, Any] | None = None) -> "PictureRows":
        missing = [name for name in ("input", "frame", "face_id", *_BOX) if name not in names]
        if missing:
            raise ValueError(f"rows: got no column {missing[0]}, expected rows as mf2 writes them (-o faces.csv)")
        settings = dict((about or {}).get("settings", {}))
        known = {key: (about or {})[key] for key in ("synthetic", "trained_on") if key in (about or {})}
        known |= {key: settings[key] for key in ("model", "adapter") if settings.get(key)}
        units = {_CODES[name]: name for name in names if name in _CODES}
        emotions = [name for name in names if name.lower() in _EMOTIONS]
        return cls(units, emotions, known, settings.get("thresholds") or {})

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        for row in rows:
            kept = {name: row.get(name) or None for name in ("input", "top_emotion", "caption")}
            numbers = ["frame", "time_s", "face_id", *_BOX, *self.units.values(), *self.emotions]
            kept |= {name: _number(name, row.get(name)) for name in numbers}
            needed = ["frame", *(_BOX if has_face(kept) else ())]
            if missing := [name for name in needed if math.isnan(kept[name])]:
                raise ValueError(f"{missing[0]}: got {row.get(missing[0])!r} for {row['input']}, expected a number")
            kept |= {f"{name}_c": _number(name, row.get(f"{name}_c")) == 1 for name in self.units.values()}
            kept["input"] = str(row["input"])
            if math.isnan(kept["time_s"]):
                self.stills.append(kept)
            else:
                self.videos.setdefault(kept["input"], []).append(kept)

    def active(self, row: Mapping[str, Any]) -> list[str]:
        """Most sure first."""
        found = [code for code, column in self.units.items() if row[f"{column}_c"]]
        return sorted(found, key=lambda code: -row[self.units[code]])


_MOST = 1e9
"""Largest number in a row, of pixels or seconds."""


def _number(name: str, value: Any) -> float:
    number = float("nan") if value in (None, "") else float(value)
    if abs(number) > _MOST:
        raise ValueError(f"{name}: got {value}, expected a number below {_MOST:g}")
    return number


def read_picture_rows(path: str | os.PathLike) -> PictureRows:
    """A file that mf2 wrote; which model made it stands in the .about.json beside it, or in the parquet file."""
    path = Path(path)
    format, about_file = format_of(path), Path(f"{path}.about.json")
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is no file")  # a pipe would be waited for
        about = read_json(about_file) if about_file.is_file() else {}
        batches = _csv(path) if format == "csv" else _lines(path) if format == "jsonl" else _parquet(path)
        names = next(batches)
        rows = PictureRows.of_columns(list(names), about)
        for batch in batches:
            rows.add(batch)
    except StopIteration:
        raise ValueError(f"rows: {path} is empty, expected rows as mf2 writes them (-o faces.csv)") from None
    except (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
        message = str(error).removeprefix("rows: ")
        raise ValueError(f"rows: {path} could not be read as rows of faces ({message})") from error
    return rows


def _csv(path: Path) -> Iterator[Any]:
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames:
            reader.fieldnames = [unescape_cell(name) for name in reader.fieldnames]
            yield reader.fieldnames
            for row in reader:
                yield [{name: cell and unescape_cell(cell) for name, cell in row.items() if name is not None}]


def _lines(path: Path) -> Iterator[Any]:
    with open(path, encoding="utf-8") as file:
        for place, line in enumerate(file):
            row = parse_json(line, f"line {place + 1}")
            if place == 0:
                yield list(row)
            yield [row]


def _parquet(path: Path) -> Iterator[Any]:
    from pyarrow import ArrowInvalid, parquet

    try:
        with parquet.ParquetFile(path) as file:
            names = [name for name in file.schema_arrow.names if not name.startswith(("x_", "y_"))]
            yield names
            for batch in file.iter_batches(1000, columns=names):
                yield batch.to_pylist()
    except ArrowInvalid as error:
        raise ValueError(str(error)) from error


@dataclass(frozen=True)
class Track:
    """A face of a video over all frames that were looked at; NaN where it was not found."""

    face_id: int
    edges: np.ndarray
    """(frames + 1,) seconds: a frame's answer stands from halfway to the one before to halfway to the next."""
    times: np.ndarray
    units: dict[str, np.ndarray]
    active: dict[str, np.ndarray]
    emotions: dict[str, np.ndarray]

    @property
    def seen(self) -> np.ndarray:
        every = [*self.units.values(), *self.emotions.values()]
        return ~np.isnan(every[0]) if every else np.zeros(len(self.times), bool)

    def top(self) -> list[str | None]:
        """The strongest emotion of each frame."""
        names = list(self.emotions)
        shares = np.nan_to_num(np.array([self.emotions[name] for name in names]).reshape(len(names), -1), nan=-1.0)
        if not names:
            return [None] * len(self.times)
        return [names[place] if seen else None for place, seen in zip(shares.argmax(0), self.seen, strict=True)]

    def stretches(self) -> Iterator[tuple[str, float, float]]:
        """(emotion, from, to) of every run of frames that share their strongest emotion."""
        start = 0
        for name, group in groupby(self.top()):
            stop = start + len(list(group))
            if name is not None:
                yield name, float(self.edges[start]), float(self.edges[stop])
            start = stop


def tracks_of(rows: PictureRows, name: str) -> list[Track]:
    """The faces of one video, in the order of their first frame."""
    moments = sorted({(row["frame"], row["time_s"]) for row in rows.videos[name]})
    places = {frame: place for place, (frame, _) in enumerate(moments)}
    times = np.array([time for _, time in moments])
    steps = np.diff(times)
    usual = float(np.median(steps)) if len(steps) else 1.0
    middles = times[:-1] + steps / 2
    edges = np.array([times[0] - min(usual / 2, times[0]), *middles, times[-1] + usual / 2])
    by_face: dict[int, list[dict[str, Any]]] = {}
    for row in rows.videos[name]:
        if has_face(row):
            by_face.setdefault(int(row["face_id"]), []).append(row)
    found = []
    for number, of_face in by_face.items():
        at = [places[row["frame"]] for row in of_face]

        def series(key: str, kind: Any = float, at: list[int] = at, of_face: list[dict] = of_face) -> np.ndarray:
            values = np.full(len(times), np.nan if kind is float else False, kind)
            values[at] = [row[key] for row in of_face]
            return values

        units = {code: series(column) for code, column in rows.units.items()}
        active = {code: series(f"{column}_c", bool) for code, column in rows.units.items()}
        found.append(Track(number, edges, times, units, active, {key: series(key) for key in rows.emotions}))
    return found


def thumbnails(rows: Sequence[Mapping[str, Any]], side: int = 200) -> Iterator[np.ndarray | None]:
    """Of each row its face with a margin, (side, side, 3); of one without a face the whole image; None if that is
    gone. Rows of one image come one after the other, and it is read once."""
    name, pixels = None, None
    for row in rows:
        if row["input"] != name:
            name = row["input"]
            try:
                pixels = read_image(name, name="image")
            except Exception:  # decoders raise whatever stopped them
                pixels = None
        yield None if pixels is None else _thumbnail(pixels, row, side)


def _thumbnail(pixels: np.ndarray, row: Mapping[str, Any], side: int) -> np.ndarray:
    height, width = pixels.shape[1:]
    left, top, right, bottom = box_of(row) if has_face(row) else (0, 0, width, height)
    whole = fills((left, top, right, bottom), height, width)
    reach = max(right - left, bottom - top) * (0.5 if whole or not has_face(row) else 0.72)
    centre = np.array([(left + right) / 2, (top + bottom) / 2 - (0 if whole or not has_face(row) else 0.06 * reach)])
    low, high = np.floor(centre - reach).astype(int), np.ceil(centre + reach).astype(int)
    inside = pixels[:, max(low[1], 0) : max(high[1], 1), max(low[0], 0) : max(high[0], 1)]
    image = np.ascontiguousarray(inside.astype(np.uint8).transpose(1, 2, 0))
    # Beyond the image's border there is grey; it is added to what is small already.
    scale = side / np.maximum(high - low, 1)
    start = np.round(np.maximum(-low, 0) * scale).astype(int)
    stop = np.round((np.minimum(high, (width, height)) - low) * scale).astype(int)
    thumbnail = np.full((side, side, 3), (236, 238, 240), np.uint8)
    if image.size and (stop > start).all():
        shrinks = scale.max() < 1
        size = tuple((stop - start).tolist())
        resized = cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
        thumbnail[start[1] : stop[1], start[0] : stop[0]] = resized
    return thumbnail
