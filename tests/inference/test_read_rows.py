"""Rows of other tools by our names, how two files agree, blinks, and columns relative to a neutral face."""

import csv
import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from analysis_media import FakeDetector, embedded, face_at, write_faces, write_video

import mf2face
from configuration_mf2.facs import CANONICAL_FACE
from mf2face.inference.cli import main
from mf2face.inference.compare import compare
from mf2face.inference.events import events
from mf2face.inference.read_rows import RowTable, read_rows
from mf2face.inference.rows import Columns, RowFile


POINTS = np.array(CANONICAL_FACE) * 60 + 10


def write_csv(path: Path, names: list[str], rows: list[list], delimiter: str = ",") -> Path:
    path.write_text("\n".join(delimiter.join(map(str, row)) for row in [names, *rows]) + "\n")
    return path


def openface(path: Path, smiles: list[float], points: bool = True, faces: int = 1) -> Path:
    """As OpenFace 2 writes it: a space behind each comma, frames from 1, radians, intensities to 5; no input."""
    lids = [f"{axis}_{point}" for axis in "xy" for point in range(68)] if points else []
    names = ["frame", "face_id", "timestamp", "confidence", "success", "pose_Rx", *lids, "AU12_r", "AU45_r", "AU12_c"]
    rows = []
    for frame, smile in enumerate(smiles):
        for face in range(faces):
            at = (POINTS + 100 * face).T.ravel().round(2).tolist() if points else []
            found = int(smile >= 0)
            rows.append([frame + 1, face, frame / 25, 0.98, found, 0.1, *at, smile, 0.2, int(smile >= 1)])
    return write_csv(path, names, rows, ", ")


def pyfeat(path: Path, smiles: list[float]) -> Path:
    names = ["FaceRectX", "FaceRectY", "FaceRectWidth", "FaceRectHeight", "FaceScore", "Pitch", "AU12", "AU43"]
    names += ["happiness", "neutral", "input", "frame", "approx_time"]
    rows = [[10, 10, 60, 60, 0.9, 2.0, s, 0.1, s, 1 - s, "v.mp4", i, f"00:0{i // 4}"] for i, s in enumerate(smiles)]
    return write_csv(path, names, rows)


def libreface(path: Path, smiles: list[float]) -> Path:
    names = ["frame_idx", "frame_time_in_ms", "au_12", "au_12_intensity", "facial_expression", "pitch"]
    return write_csv(path, names, [[i, 40 * i, int(s >= 1), s, "Happiness", 1.5] for i, s in enumerate(smiles)])


def test_rows_of_other_tools_have_our_names_and_units(tmp_path: Path) -> None:
    table = read_rows(openface(tmp_path / "o.csv", [0.4, 2.5, -1]))
    assert table.about["tool"] == "OpenFace" and table.columns["frame"].tolist() == [0, 1, 2]
    assert table.series("_i")["AU12"].tolist() == [0.4, 2.5, -1] and table.series("_c")["AU12"].tolist() == [0, 1, 0]
    assert table.columns["Pitch"][0] == pytest.approx(np.degrees(0.1)) and np.isnan(table.columns["face_id"][2])
    assert table.columns["FaceRectX"][0] == pytest.approx(POINTS[:, 0].min(), abs=0.01) and not table.series()
    table = read_rows(pyfeat(tmp_path / "p.csv", [0.2, 0.9, 0.9, 0.9, 0.9]))
    assert table.columns["time_s"].tolist() == [0, 0.25, 0.5, 0.75, 1], "its clock has whole seconds"
    assert table.columns["top_emotion"][:2] == ["Neutral", "Happiness"]
    assert table.series("_c")["AU12"].tolist() == [0, 1, 1, 1, 1] and "AU43" in table.series()
    table = read_rows(libreface(tmp_path / "l.csv", [0.2, 3.0]))
    assert table.about["tool"] == "LibreFace" and table.columns["time_s"][1] == pytest.approx(0.04)
    assert table.series("_i")["AU12"].tolist() == [0.2, 3] and table.columns["input"] == ["l", "l"]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_our_rows_keep_names_texts_and_columns_that_were_added(tmp_path: Path, ending: str) -> None:
    names = ["=1.png", os.fsdecode(b"\xff.png")] if ending == "csv" else ["=1.png", "b.png"]
    rows = RowFile(tmp_path / f"r.{ending}", Columns(("AU12",), ("Neutral",)), {"settings": {}})
    rows.add([rows.columns.empty_row(name, 0, float("nan"), error="too\nnarrow") for name in names])
    rows.close(finished=True)
    if ending == "csv":
        lines = (tmp_path / "r.csv").read_bytes().splitlines(keepends=True)
        (tmp_path / "r.csv").write_bytes(
            b"site," + b"".join(lines[:1]) + b"".join([b"Ulm," + lines[1], lines[2], b"Ulm," + lines[3], lines[4]])
        )
    table = read_rows(tmp_path / f"r.{ending}")
    assert (
        table.columns["input"] == names and table.columns["error"] == ["too\nnarrow"] * 2 and "x_0" not in table.columns
    )
    assert np.isnan(table.series()["AU12"]).all() and "tool" not in table.about
    assert table.columns.get("site", ["Ulm"] * 2) == ["Ulm"] * 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it is empty"),
        ("frame,x\n1,2\n", "none of an AU"),
        ("frame,AU12_r\n", "0 rows"),
        ("frame,AU12_r\n1,high\n", "AU12_r"),
        ("frame,AU12_r\n1,inf\n", "AU12_r"),
        ("frame,AU12_r\n1\n", "Expected 2 columns"),
        ("frame,AU12_r,AU12_r\n1,2,3\n", "more than once"),
        ("frame,AU01_r,AU03_r\n1,2,3\n", "OpenFace 3"),
    ],
)
def test_a_file_that_holds_no_rows_is_named(text: str, said: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(ValueError, match=said):
        read_rows(tmp_path / "x.csv")
    for command in (["compare", str(tmp_path / "x.csv"), str(tmp_path / "x.csv")], ["events", str(tmp_path / "x.csv")]):
        assert main(command) == 2 and "x.csv" in capsys.readouterr().err


def test_pictures_of_rows_of_another_tool(tmp_path: Path, capsys) -> None:
    path = openface(tmp_path / "openface.csv", [0.4, 2.5, 0.3])
    assert main(["--picture", str(path)]) == 0
    (made,) = (tmp_path / "openface_pictures").glob("*-timeline.html")
    assert "AU12" in made.read_text() and "OpenFace" in made.read_text()
    assert not list(tmp_path.glob("*.about.json"))
    names = ["frame_idx", "frame_time_in_ms", "au_12_intensity"]
    stopped = write_csv(tmp_path / "clock.csv", names, [[0, 0, 1], [1, 0, 2]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main(["--picture", str(stopped)]) == 0


def test_two_files_are_compared_without_their_media(tmp_path: Path, capsys) -> None:
    first = openface(tmp_path / "a.csv", [0.0, 2.0, 3.0, 0.5, 1.5], faces=2)
    second = openface(tmp_path / "b.csv", [0.5, 2.5, 3.5, 1.0, 2.0], faces=2)
    found = compare(first, second)
    smile = found.units["AU12"]
    assert (
        found.matched == 10 and found.alone == (0, 0) and smile["agreement"] == 0.8 and smile["r"] == pytest.approx(1)
    )
    assert smile["bias"] == pytest.approx(0.5) and smile["high"] == pytest.approx(0.5)
    assert smile["kappa"] == pytest.approx(1 - 0.2 / (1 - (0.6 * 0.8 + 0.4 * 0.2)))
    options = ["--plot", str(tmp_path / "p.png"), "--json", str(tmp_path / "f.json")]
    assert main(["compare", str(first), str(second), *options]) == 0
    assert "AU12" in capsys.readouterr().out and (tmp_path / "p.png").stat().st_size > 5000
    assert json.loads((tmp_path / "f.json").read_text())["AU12_bias"] == pytest.approx(0.5)
    # Probabilities beside intensities have no common unit: decisions and correlation alone.
    other = compare(pyfeat(tmp_path / "p.csv", [0.0, 0.4, 0.6]), openface(tmp_path / "c.csv", [0.0, 2.0, 3.0]))
    assert other.units["AU12"]["r"] == pytest.approx(1) and "bias" not in other.units["AU12"] and not other.values


def test_blinks_are_au45_or_closing_lids_and_aus_have_start_peak_and_end(tmp_path: Path) -> None:
    rows = read_rows(openface(tmp_path / "o.csv", [0.2, 1.5, 4.0, 1.2, 0.3]))
    (smile,) = [one for one in events(rows) if one["event"] == "AU12"]
    assert (smile["start_s"], smile["peak_s"], smile["end_s"], smile["peak"]) == (0.04, 0.08, 0.12, 4.0)
    count, lids = 60, [37, 38, 43, 44]
    table = {"input": ["v"] * count, "face_id": np.zeros(count), "time_s": np.arange(count) / 30}
    points = np.repeat(POINTS[None], count, 0)
    for start, stop in ((10, 14), (30, 55)):
        for upper, lower in zip(lids, (41, 40, 47, 46), strict=True):
            points[start:stop, upper, 1] += 0.8 * (points[start:stop, lower, 1] - points[start:stop, upper, 1])
    table |= {f"{axis}_{n}": points[:, n, place] for place, axis in enumerate("xy") for n in range(68)}
    found = events(RowTable(table, {}))
    assert [(one["event"], round(30 * one["start_s"]), round(30 * one["end_s"])) for one in found] == [
        *(("blink", 10, 13), ("eyes closed", 30, 54))
    ]
    assert found[0]["peak"] == pytest.approx(0.2, abs=0.02)
    table["landmark_source"] = ["template"] * count
    assert events(RowTable(table, {})) == [], "a template does not blink"


def test_the_command_lists_events(tmp_path: Path, capsys) -> None:
    path = openface(tmp_path / "o.csv", [0.2, 1.5, 0.3])
    assert main(["events", str(path), "-o", str(tmp_path / "e.csv"), "--only", "AU12"]) == 0
    with open(tmp_path / "e.csv") as file:
        assert [row["event"] for row in csv.DictReader(file)] == ["AU12"]
    assert "AU12 1" in capsys.readouterr().err


def test_columns_relative_to_a_neutral_picture_and_to_the_quiet_part_of_a_track(tmp_path: Path, capsys) -> None:
    faces = write_faces(tmp_path / "in", 2)
    settings = {"model": embedded(), "aligned": True}
    rows = mf2face.analyze(tmp_path / "in", neutral=faces[0], **settings).rows
    assert rows[0]["AU12_rel"] == pytest.approx(0, abs=1e-5)
    assert rows[1]["AU12_rel"] == pytest.approx(rows[1]["AU12"] - rows[0]["AU12"], abs=1e-4)
    everything = ["--aligned", "--neutral", str(faces[0]), "--thresholds", "0", "--format", "csv"]
    assert main([str(faces[1]), *everything], model=embedded()) == 0
    assert "may not be neutral: AU1 " in capsys.readouterr().err
    (tmp_path / "none.png").write_text("no image")
    for name in ("none.png", "gone.png"):
        with pytest.raises(ValueError, match=f"neutral: .*{name}"):
            mf2face.analyze(tmp_path / "in", neutral=tmp_path / name, **settings)
    video, detector = write_video(tmp_path / "v.avi", 20), [[face_at(20, 5)]] * 20
    expected = mf2face.analyze(video, neutral="auto", model=embedded(), detector=FakeDetector(detector)).rows
    values, changes = (np.array([row[name] for row in expected]) for name in ("AU12", "AU12_rel"))
    assert len(expected) == 20 and np.ptp(values - changes) < 1e-5
    assert values.min() - 1e-5 <= (values - changes)[0] <= values.max() + 1e-5
    for ending in ("csv", "jsonl", "parquet"):
        out = tmp_path / f"out.{ending}"
        again = mf2face.analyze(video, out, neutral="auto", model=embedded(), detector=FakeDetector(detector))
        frame = again.to_pandas()
        assert frame["AU12_rel"].tolist() == pytest.approx([row["AU12_rel"] for row in expected], abs=1e-5)
        assert len(frame) == 20 and frame["frame"].tolist() == list(range(20))
        more = mf2face.analyze(video, out, neutral="auto", model=embedded(), detector=FakeDetector([]))
        assert more.resumed == 1 and more.frames == 0, "what was filled is continued"
    still = mf2face.analyze(faces[0], neutral="auto", **settings)
    assert "in no track of 10 frames, whose AU.._rel is NaN: 1" in still.text() and np.isnan(still.rows[0]["AU12_rel"])
    with pytest.raises(SystemExit):
        main([str(video), "--neutral", "auto", "--aligned"])
    assert "--neutral auto" in capsys.readouterr().err
