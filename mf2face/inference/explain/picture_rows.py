"""Rows of a file or a run as pictures need them: stills apart from videos, and each tracked face as a series."""

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import cv2
import numpy as np

from configuration_mf2.facs import ACTION_UNITS, LABEL_SETS
from mf2face.inference.explain.page import fills
from mf2face.inference.read_rows import BOX, read_rows
from mf2face.inference.rows import STATE, box_of, has_face, unit_column
from processing_mf2.image_io import read_image
from processing_mf2.reliability import CANNOT_TELL


_CODES = {unit_column(code): code for code in ACTION_UNITS}
_EMOTIONS = {name.lower() for labels in LABEL_SETS.values() for name in labels.emotions}
_EXPECTED = "expected rows as mf2 writes them (-o faces.csv)"
_MOST = 1e9
"""Largest number in a row, of pixels or seconds."""


@dataclass
class PictureRows:
    """Rows without landmarks, so that a million of them fit into memory."""

    units: dict[str, str]
    """AU -> its column"""
    emotions: list[str]
    about: dict[str, Any]
    thresholds: dict[str, float]
    states: bool = False
    """Whether an AU may be neither active nor at rest"""
    stills: list[dict[str, Any]] = field(default_factory=list)
    videos: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    pages: dict[tuple[str, int], str] = field(default_factory=dict)
    """(input, face_id) -> the face's page, relative to the folder of pictures"""

    @classmethod
    def of_columns(cls, names: Sequence[str], about: Mapping[str, Any] | None = None) -> "PictureRows":
        if missing := [name for name in ("input", "frame", "face_id", *BOX) if name not in names]:
            raise ValueError(f"rows: got no column {missing[0]}, {_EXPECTED}")
        about = about or {}
        settings = dict(about.get("settings", {}))
        known = {key: about[key] for key in ("synthetic", "trained_on") if key in about}
        grades = {key.removesuffix("_grade"): grade for key, grade in about.items() if key.endswith("_grade")}
        known |= {"grades": {_CODES.get(name, name): grade for name, grade in grades.items()}} if grades else {}
        known |= {key: settings[key] for key in ("model", "adapter") if settings.get(key)}
        units = {_CODES[name]: name for name in names if name in _CODES}
        emotions = [name for name in names if name.lower() in _EMOTIONS]
        states = any(f"{column}{STATE}" in names for column in units.values())
        return cls(units, emotions, known, settings.get("thresholds") or {}, states)

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        flags = [f"{name}_c" for name in self.units.values()]
        numbers = ["frame", "time_s", "face_id", *BOX, *self.units.values(), *self.emotions]
        for row in rows:
            kept = {name: row.get(name) or None for name in ("input", "top_emotion", "caption", "error")}
            kept |= {name: _number(name, row.get(name)) for name in numbers}
            kept |= {name: _number(name, row.get(name)) == 1 for name in (*flags, "caption_disagrees")}
            if self.states:
                kept |= {f"{name}{STATE}": row.get(f"{name}{STATE}") for name in self.units.values()}
            for name in ("frame", *(BOX if has_face(kept) else ())):
                if math.isnan(kept[name]):
                    raise ValueError(f"{name}: got {row.get(name)!r} for {row['input']}, expected a number")
            kept["input"] = str(row["input"])
            if math.isnan(kept["time_s"]):
                self.stills.append(kept)
            else:
                self.videos.setdefault(kept["input"], []).append(kept)

    def active(self, row: Mapping[str, Any]) -> list[str]:
        """Active AUs, the most probable first."""
        units = [code for code, column in self.units.items() if row[f"{column}_c"] and not self.unsure(row, column)]
        return sorted(units, key=lambda code: -row[self.units[code]])

    @staticmethod
    def unsure(row: Mapping[str, Any], column: str) -> bool:
        return row.get(f"{column}{STATE}") == CANNOT_TELL


def _number(name: str, value: Any) -> float:
    number = float("nan") if value in (None, "") else float(value)
    if abs(number) > _MOST:
        raise ValueError(f"{name}: got {value}, expected a number below {_MOST:g}")
    return number


def read_picture_rows(path: str | os.PathLike) -> PictureRows:
    """A file that mf2 or another tool wrote; facts of the run are read from the .about.json beside it."""
    table = read_rows(path, may_be_empty=True).with_shares()
    try:
        rows = PictureRows.of_columns(list(table.columns), table.about)
        rows.add(table.rows())
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        message = str(error).removeprefix("rows: ")
        raise ValueError(f"rows: {path} could not be read as rows of faces ({message})") from error
    return rows


@dataclass(frozen=True)
class Track:
    """One face of a video over all analysed frames; NaN where it was not found."""

    face_id: int
    edges: np.ndarray
    """(frames + 1,) seconds: a frame's answer holds from halfway to the one before to halfway to the next"""
    times: np.ndarray
    units: dict[str, np.ndarray]
    active: dict[str, np.ndarray]
    unsure: dict[str, np.ndarray]
    emotions: dict[str, np.ndarray]

    @property
    def seen(self) -> np.ndarray:
        every = [*self.units.values(), *self.emotions.values()]
        return ~np.isnan(every[0]) if every else np.zeros(len(self.times), bool)

    @property
    def seconds(self) -> float:
        """How long the face was seen."""
        return float((np.diff(self.edges) * self.seen).sum())

    def shown_emotions(self) -> list[str]:
        return [name for name, shares in self.emotions.items() if np.nanmax(shares, initial=0) >= 0.1]

    def stretches(self) -> Iterator[tuple[str, float, float]]:
        """(emotion, start, end) of every run of frames with the same strongest emotion."""
        if not self.emotions:
            return
        names, shares = list(self.emotions), np.nan_to_num(np.array([*self.emotions.values()]), nan=-1.0)
        tops, start = np.where(self.seen, shares.argmax(0), -1), 0
        for top, group in groupby(tops):
            stop = start + len(list(group))
            if top >= 0:
                yield names[top], float(self.edges[start]), float(self.edges[stop])
            start = stop

    def coarser(self, step: int) -> "Track":
        """Means of `step` frames each; an AU is active if it is in any of them."""
        if step == 1:
            return self
        starts = np.arange(0, len(self.times), step)

        def means(series: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            counts = np.add.reduceat(self.seen.astype(float), starts)
            with np.errstate(invalid="ignore"):
                return {name: np.add.reduceat(np.nan_to_num(one), starts) / counts for name, one in series.items()}

        def any_of(series: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {name: np.logical_or.reduceat(one, starts) for name, one in series.items()}

        active, edges = any_of(self.active), np.append(self.edges[starts], self.edges[-1])
        unsure = {name: one & ~active[name] for name, one in any_of(self.unsure).items()}
        units, emotions = means(self.units), means(self.emotions)
        return Track(self.face_id, edges, self.times[starts], units, active, unsure, emotions)


def tracks_of(rows: PictureRows, name: str) -> list[Track]:
    """The faces of one video, in the order of their first frame."""
    if name not in rows.videos:
        raise ValueError(f"name: got {name!r}, expected a video of these rows: {list(rows.videos)}")
    moments = sorted({(row["frame"], row["time_s"]) for row in rows.videos[name]})
    places = {frame: place for place, (frame, _) in enumerate(moments)}
    times = np.array([time for _, time in moments])
    steps = np.diff(times)
    half = (float(np.median(steps) if len(steps) else 0) or 1.0) / 2
    edges = np.array([max(0.0, times[0] - half), *(times[:-1] + steps / 2), times[-1] + half])
    by_face: dict[int, list[dict[str, Any]]] = {}
    for row in rows.videos[name]:
        if has_face(row):
            by_face.setdefault(int(row["face_id"]), []).append(row)
    tracks = []
    for number, of_face in by_face.items():
        at = [places[row["frame"]] for row in of_face]

        def series(key: str, missing: Any = np.nan, at: list[int] = at, of_face: list[dict] = of_face) -> np.ndarray:
            values = np.full(len(times), missing)
            values[at] = [row[key] for row in of_face]
            return values

        units = {code: series(column) for code, column in rows.units.items()}
        unsure = {code: np.zeros(len(times), bool) for code in rows.units}
        for code, column in rows.units.items():
            unsure[code][at] = [rows.unsure(row, column) for row in of_face]
        active = {code: series(f"{column}_c", False) & ~unsure[code] for code, column in rows.units.items()}
        emotions = {key: series(key) for key in rows.emotions}
        tracks.append(Track(number, edges, times, units, active, unsure, emotions))
    return tracks


def thumbnails(rows: Sequence[Mapping[str, Any]], side: int) -> Iterator[np.ndarray | None]:
    """(side, side, 3) of each row: its face with a margin, or the whole image without a face; None for a lost image.
    Rows of one image follow one another, and it is read once."""
    name, pixels = None, None
    for row in rows:
        if row["input"] != name:
            name = row["input"]
            try:
                pixels = read_image(name, name="image")
            except Exception:  # decoders raise anything
                pixels = None
        yield None if pixels is None else _thumbnail(pixels, row, side)


def _thumbnail(pixels: np.ndarray, row: Mapping[str, Any], side: int) -> np.ndarray:
    height, width = pixels.shape[1:]
    left, top, right, bottom = box_of(row) if has_face(row) else (0, 0, width, height)
    whole = not has_face(row) or fills((left, top, right, bottom), height, width)
    reach = max(right - left, bottom - top) * (0.5 if whole else 0.72)
    centre = np.array([(left + right) / 2, (top + bottom) / 2 - (0 if whole else 0.06 * reach)])
    low, high = np.floor(centre - reach).astype(int), np.ceil(centre + reach).astype(int)
    inside = pixels[:, max(low[1], 0) : max(high[1], 1), max(low[0], 0) : max(high[0], 1)]
    image = np.ascontiguousarray(inside.astype(np.uint8).transpose(1, 2, 0))
    # Grey beyond the image's border; added after resizing, so that a box far outside costs no memory.
    scale = side / np.maximum(high - low, 1)
    start = np.round(np.maximum(-low, 0) * scale).astype(int)
    stop = np.round((np.minimum(high, (width, height)) - low) * scale).astype(int)
    thumbnail = np.full((side, side, 3), (236, 238, 240), np.uint8)
    if image.size and (stop > start).all():
        how = cv2.INTER_AREA if scale.max() < 1 else cv2.INTER_CUBIC
        resized = cv2.resize(image, tuple((stop - start).tolist()), interpolation=how)
        thumbnail[start[1] : stop[1], start[0] : stop[0]] = resized
    return thumbnail
