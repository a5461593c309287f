"""Columns by the names that py-feat's and OpenFace's users know; a row says what the answer said."""

import csv
import io
import math

import numpy as np
import pytest

from mf2face.inference.rows import Columns, Summary, box_of, csv_lines, has_face, unescape_cell


COLUMNS = Columns(("AU1", "AU12"), ("Neutral", "Happiness"), caption=True)
ANSWER = {
    "emotion": "Happiness",
    "emotions": {"Neutral": 0.25, "Happiness": 0.75},
    "action_units": {
        "AU1": {"probability": 0.1234567, "active": False},
        "AU12": {"probability": 0.6, "active": True},
    },
    "captions": {"emotion": "The face shows happiness."},
}


def test_the_names() -> None:
    names = COLUMNS.names
    assert len(names) == len(set(names))
    assert {f"{axis}_{point}" for axis in "xy" for point in range(68)} < set(names)
    assert [name for name in names if not name.startswith(("x_", "y_"))] == [
        *("input", "frame", "time_s", "face_id"),
        *("FaceRectX", "FaceRectY", "FaceRectWidth", "FaceRectHeight", "FaceScore"),
        *("Pitch", "Roll", "Yaw", "AU01", "AU12", "AU01_c", "AU12_c", "Neutral", "Happiness", "top_emotion", "caption"),
        *("landmark_source", "quality"),
    ]
    assert "caption" not in Columns((), ()).names and "top_emotion" not in Columns((), ()).names


def test_a_face_s_row() -> None:
    points = np.arange(136).reshape(68, 2) / 3
    row = COLUMNS.row(
        "a.png", 7, 0.28, 2, (10, 20, 40.004, 70), 0.98765, points, "given", ANSWER, (1.04, 2, -3), "small"
    )
    assert (row["Pitch"], row["Yaw"], row["Roll"], row["quality"]) == (1.0, 2, -3, "small")
    assert list(row) == COLUMNS.names and has_face(row)
    assert (row["FaceRectWidth"], row["FaceRectHeight"], row["FaceScore"]) == (30.0, 50, 0.9877)
    assert (row["x_1"], row["y_67"]) == (0.67, 45.0)
    assert (row["AU01"], row["AU01_c"], row["AU12_c"]) == (0.123457, 0, 1)
    assert (row["top_emotion"], row["caption"]) == ("Happiness", "The face shows happiness.")
    assert box_of(row) == (10, 20, 40, 70)


def test_a_row_without_a_face_has_its_place_and_nothing_else() -> None:
    row = COLUMNS.empty_row("v.mp4", 3, 0.1)
    assert (row["input"], row["frame"], row["time_s"]) == ("v.mp4", 3, 0.1) and not has_face(row)
    others = [value for name, value in row.items() if name not in ("input", "frame", "time_s")]
    assert all(value is None or math.isnan(value) for value in others)
    assert row["landmark_source"] is None and math.isnan(row["AU12_c"])


@pytest.mark.parametrize(
    "name", ["=1+1", "+a", "-x.jpg", "@b", "\ttab", "\rcr", "'=quoted", "''-twice", "'plain", "a=b", ""]
)
def test_a_name_is_no_formula_in_a_csv_and_comes_back_as_it_was(name: str) -> None:
    line = csv_lines([[name, -0.5, float("nan")]])
    ((cell, *numbers),) = csv.reader(io.StringIO(line))
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r")) and numbers == ["-0.5", "NaN"]
    assert unescape_cell(cell) == name


def test_a_run_in_words() -> None:
    text = Summary(frames=1, faces=2, without_face=1200, seconds=0.5, resumed=3, opened=True).text("out.csv")
    assert "1 image looked at, 2 faces, 2.0 images a second" in text
    assert "1,200 images without a face" in text and "3 inputs stood in out.csv already" in text
    assert text.endswith("rows: out.csv")


def test_reasons_are_shown_first_and_counted_after() -> None:
    summary = Summary()
    for index in range(5000):
        summary.skip(f"{index}.png", "holds zero bytes")
    assert summary.left_out == 5000 and len(summary.skipped) == 1000  # memory stays flat
    lines = summary.text().splitlines()
    assert "left out, 5,000 times:" in lines and "  7.png: holds zero bytes" in lines and len(lines) < 12
    assert "and 4,992 more" in lines[-1] and "'holds zero bytes'" in lines[-1]
    assert summary.facts()["skipped"][0] == {"input": "0.png", "why": "holds zero bytes"}


def test_a_run_that_was_stopped_says_by_what_and_how_it_goes_on() -> None:
    text = Summary(frames=3, stopped="interrupted", opened=True, continues=False).text("out.csv")
    assert text.endswith("the rows so far are in out.csv")  # of a camera
    assert Summary(frames=3, stopped="a full disk").text("not_ours.csv").endswith("a full disk")
    text = Summary(frames=3, stopped="interrupted", opened=True).text("out.csv")
    assert "stopped before the end: interrupted" in text and "the same command continues" in text
