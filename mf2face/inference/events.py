"""Blinks and other events of followed faces: when each AU starts, is strongest and ends.

mf2 events film.csv -o events.csv

Rows are ours, or a csv of OpenFace 2, py-feat or LibreFace; times are needed. A blink is AU45 where the rows have it;
else the eyes' opening by the landmarks of the lids falls below 0.7 of its median over the track, for at most 0.5 s.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mf2face.files import write_whole
from mf2face.inference.read_rows import RowTable, read_rows
from mf2face.inference.rows import csv_lines


CLOSED = 0.7
LONGEST_BLINK = 0.5
_FASTEST_STEP = 0.1
"""Seconds between frames beyond which blinks are missed."""
COLUMNS = ("input", "face_id", "event", "start_s", "peak_s", "end_s", "peak", "measure")


def events(rows: str | os.PathLike | RowTable) -> list[dict[str, Any]]:
    """A dict an event, with `COLUMNS`, in the order of tracks and times."""
    table = rows if isinstance(rows, RowTable) else read_rows(rows, points=True)
    times, faces = table.columns["time_s"], table.columns["face_id"]
    names = np.array(table.columns["input"])
    usable = ~np.isnan(times) & ~np.isnan(faces)
    if not usable.any():
        raise ValueError("rows: got none of a video (time_s, face_id), expected rows of followed faces")
    found: list[dict[str, Any]] = []
    for name, face in dict.fromkeys(zip(names[usable].tolist(), faces[usable].tolist(), strict=True)):
        places = np.flatnonzero(usable & (names == name) & (faces == face))
        places = places[np.argsort(times[places], kind="stable")]
        for event in sorted(_of_track(table, places), key=lambda one: one["start_s"]):
            found.append({"input": name, "face_id": int(face), **event})
    return found


def _of_track(table: RowTable, places: np.ndarray) -> Iterator[dict[str, Any]]:
    times = table.columns["time_s"][places]
    strengths = {"probability": table.series(), "intensity, 0 to 5": table.series("_i")}
    for code, decided in table.series("_c").items():
        measure = next((kind for kind, series in strengths.items() if code in series), None)
        values = strengths[measure][code][places] if measure else decided[places]
        name = "blink" if code == "AU45" else code
        yield from _runs(name, decided[places] > 0.5, values, times, measure or "decision")
    opening = None if "AU45" in table.series("_c") else _opening(table, places)
    if opening is not None:
        measure = "opening of the eyes, 1: the track's median"
        for event in _runs("blink", opening < CLOSED, -opening, times, measure):
            lasts = event["end_s"] - event["start_s"]
            yield {**event, "peak": -event["peak"], "event": "blink" if lasts <= LONGEST_BLINK else "eyes closed"}


def _runs(
    name: str, active: np.ndarray, values: np.ndarray, times: np.ndarray, measure: str
) -> Iterator[dict[str, Any]]:
    """Runs of frames in which something is active; a gap of more than three usual steps ends one."""
    steps = np.diff(times)
    gaps = np.flatnonzero((steps > 3 * np.median(steps)) if len(steps) else steps) + 1
    for part in np.split(np.arange(len(times)), gaps):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], active[part].astype(int), [0]])))
        for start, stop in zip(edges[::2], edges[1::2], strict=True):
            run = part[start:stop]
            peak = run[int(np.nanargmax(values[run]))] if not np.isnan(values[run]).all() else run[0]
            moments = {"start_s": times[run[0]], "peak_s": times[peak], "end_s": times[run[-1]]}
            rounded = {key: round(float(value), 4) for key, value in moments.items()}
            yield {"event": name, **rounded, "peak": round(float(values[peak]), 4), "measure": measure}


def _opening(table: RowTable, places: np.ndarray) -> np.ndarray | None:
    """Distance of the lids over the width of the eye, both eyes' mean, relative to its median; None if the landmarks
    are those of a template."""
    sources = table.columns.get("landmark_source", ["detected"] * len(table))
    if "x_47" not in table.columns or sources[places[0]] in ("template", "insightface112", "ffhq"):
        return None
    x, y = (np.stack([table.columns[f"{axis}_{point}"][places] for point in range(36, 48)], 1) for axis in "xy")
    eyes = np.stack([x, y], 2).reshape(len(places), 2, 6, 2)

    def distance(one: int, other: int) -> np.ndarray:
        return np.linalg.norm(eyes[:, :, one] - eyes[:, :, other], axis=2)

    opening = ((distance(1, 5) + distance(2, 4)) / (2 * np.maximum(distance(0, 3), 1e-6))).mean(1)
    usual = np.nanmedian(opening)
    return opening / usual if usual > 0 else None


def main(argv: Sequence[str]) -> int:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="mf2 events", description=__doc__, formatter_class=form)
    parser.add_argument("rows", metavar="ROWS", help="a file of rows of videos")
    parser.add_argument("-o", "--output", metavar="FILE.csv", help="the events; on the screen unless given")
    parser.add_argument("--only", nargs="+", metavar="EVENT", help="such as blink AU12; all unless given")
    given = parser.parse_args(argv)
    table = read_rows(given.rows, points=True)
    found = [one for one in events(table) if not given.only or one["event"] in given.only]
    lines = csv_lines([COLUMNS, *([one[name] for name in COLUMNS] for one in found)])
    if given.output:
        write_whole(given.output, lines.encode("utf-8", "surrogateescape"), shared=False)
    else:
        print(lines, end="")
    steps = np.diff(np.unique(table.columns["time_s"]))
    if len(steps) and np.nanmedian(steps) > _FASTEST_STEP:
        print(
            f"frames are {np.nanmedian(steps):.2f} s apart: blinks, which last 0.1 to 0.4 s, are missed",
            file=sys.stderr,
        )
    counts = {name: sum(one["event"] == name for one in found) for name in dict.fromkeys(one["event"] for one in found)}
    print(f"events: {', '.join(f'{name} {count:,}' for name, count in counts.items()) or 'none'}", file=sys.stderr)
    return 0


__all__ = ["COLUMNS", "events", "main"]
