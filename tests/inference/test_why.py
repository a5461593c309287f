"""`mf2 --why` and `mf2 --picture` as their users meet them."""

import json
import os
import stat
from pathlib import Path
from urllib.parse import unquote

import cv2
import pytest
import torch
from analysis_media import FakeDetector, embedded, face_at, write_faces, write_video
from html_pages import Page

from mf2face.inference.cli import main
from mf2face.inference.explain import folder as why_mf2
from mf2face.inference.explain.explainer import Explainer
from mf2face.inference.model import load_model


def test_a_folder_gets_a_page_a_face_a_contact_sheet_and_a_timeline_a_video(tmp_path: Path, capsys) -> None:
    write_faces(tmp_path / "in" / "a", 1)
    write_faces(tmp_path / "in" / "b", 1)
    write_video(tmp_path / "in" / "v.avi", 3)
    out, rows = tmp_path / "why", tmp_path / "rows.csv"
    detector = FakeDetector([[face_at(10, 10, 90)], [face_at(10, 10, 90)], *[[face_at(10, 5)]] * 3])
    arguments = [str(tmp_path / "in"), "-o", str(rows), "--why", str(out)]
    assert main(arguments, model=embedded(), detector=detector) == 0
    told = capsys.readouterr().err
    assert "2 face pages, contact sheet, 1 timeline" in told
    names = sorted(str(path.relative_to(out)) for path in out.rglob("[!.]*") if path.is_file())
    stems = ["a/face-000-face0", "b/face-000-face0", "contact_sheet", "v-timeline"]
    assert names == sorted(f"{stem}.{ending}" for stem in stems for ending in ("png", "html"))
    sheet = Page((out / "contact_sheet.html").read_text())
    assert sheet.outside == ["a/face-000-face0.html", "b/face-000-face0.html"] and "synthetic" in sheet.words
    before = (out / "v-timeline.html").read_bytes()

    # The same from the rows alone, and beside them unless a folder is named.
    assert main(["--picture", str(rows)]) == 0
    again = tmp_path / "rows_pictures"
    assert sorted(path.name for path in again.glob("[!.]*")) == sorted(
        f"{stem}.{ending}" for stem in ("contact_sheet", "v-timeline") for ending in ("png", "html")
    )
    assert (again / "v-timeline.html").read_bytes() == before


def test_a_run_that_goes_on_keeps_the_pages_that_are_there(tmp_path: Path, capsys) -> None:
    """Also where two pictures differ by their ending alone."""
    folder, out, rows = tmp_path / "in", tmp_path / "why", tmp_path / "rows.csv"
    (first,) = write_faces(folder, 1)
    arguments = [str(folder), "--aligned", "-o", str(rows), "--why", str(out)]
    assert main(arguments, model=embedded()) == 0
    before = (out / "face-000-face0.html").read_bytes()
    other = cv2.flip(cv2.imread(str(first)), 1)
    cv2.imwrite(str(first.with_suffix(".jpg")), other)
    assert main(arguments, model=embedded()) == 0
    assert "1 face page, contact sheet" in capsys.readouterr().err
    assert (out / "face-000-face0.html").read_bytes() == before
    sheet = Page((out / "contact_sheet.html").read_text())
    assert len(sheet.outside) == 2 and "face-000-face0.html" in sheet.outside


def test_pictures_among_the_photographs_are_not_analysed(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "in"
    write_faces(folder, 2)
    arguments = [str(folder), "--aligned", "-o", str(folder / "rows.csv"), "--why", str(folder / "why")]
    for told in ("2 images looked at", "2 inputs stood in"):
        assert main(arguments, model=embedded()) == 0
        assert told in capsys.readouterr().err and len((folder / "rows.csv").read_text().splitlines()) == 3
    assert sorted(path.name for path in (folder / "why").glob("*.png")) == [
        *("contact_sheet.png", "face-000-face0.png", "face-001-face0.png")
    ]
    write_faces(folder / "why", 1, first=7)  # a photograph that somebody put there is one
    assert main([str(folder), "--aligned", "--format", "csv"], model=embedded()) == 0
    assert capsys.readouterr().out.count("\n") == 4


def test_rows_from_before_without_pages_are_told(tmp_path: Path, capsys) -> None:
    write_faces(tmp_path / "in", 2)
    arguments = [str(tmp_path / "in"), "--aligned", "-o", str(tmp_path / "rows.csv")]
    assert main(arguments, model=embedded()) == 0
    assert main([*arguments, "--why", str(tmp_path / "why")], model=embedded()) == 0
    assert "no page of 2 faces whose rows were there before; --overwrite makes them" in capsys.readouterr().err
    assert main([*arguments, "--why", str(tmp_path / "why"), "--overwrite"], model=embedded()) == 0
    assert "2 face pages" in capsys.readouterr().err


def test_a_picture_without_a_face_takes_no_name_from_another(tmp_path: Path, capsys) -> None:
    (first,) = write_faces(tmp_path / "in", 1)
    cv2.imwrite(str(first.with_suffix(".jpg")), cv2.imread(str(first)))
    arguments = [str(tmp_path / "in"), "-o", str(tmp_path / "rows.csv"), "--why", str(tmp_path / "why")]
    assert main(arguments, model=embedded(), detector=FakeDetector([[], [face_at(10, 10, 90)]])) == 0
    write_faces(tmp_path / "in", 1, first=5)
    assert main(arguments, model=embedded(), detector=FakeDetector([[face_at(10, 10, 90)]])) == 0
    assert "no page of" not in capsys.readouterr().err
    sheet = Page((tmp_path / "why" / "contact_sheet.html").read_text())
    assert len(sheet.outside) == 2


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["a", "--occlusion"], 2, "--why FOLDER"),
        (["a", "--picture", "rows.csv"], 2, "a file of rows alone"),
        (["--picture", "gone.csv"], 2, "gone.csv could not be read"),
        (["--picture", "gone.txt"], 2, "'.txt'"),
        ([".", "--aligned", "--why", "/proc/no"], 4, "pictures: /proc/no cannot be written"),
    ],
)
def test_what_cannot_be_pictured_is_said(arguments, code, said, capsys, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        ended = main(arguments, model=embedded())
    except SystemExit as stop:
        ended = stop.code
    told = capsys.readouterr().err
    assert ended == code and said in told and "Traceback" not in told


def test_no_picture_is_written_unasked(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    write_faces(tmp_path / "in", 1)
    assert main(["in", "--aligned"], model=embedded()) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["in"] and len(list((tmp_path / "in").iterdir())) == 1


def test_names_as_long_as_the_file_system_allows_have_their_pages(tmp_path: Path, capsys) -> None:
    for count, name in enumerate(("n" * 251, "n" * 250 + "m", "ü" * 125, "-x"), 3):
        (face,) = write_faces(tmp_path / "in", 1, first=count)
        face.rename(tmp_path / "in" / f"{name}.png")
    write_video(tmp_path / "v.avi", 2).rename(tmp_path / "in" / ("v" * 251 + ".avi"))
    arguments = [str(tmp_path / "in"), "--aligned", "-o", str(tmp_path / "rows.csv"), "--why", str(tmp_path / "why")]
    assert main(arguments, model=embedded()) == 0
    assert "4 face pages, contact sheet, 1 timeline" in capsys.readouterr().err
    sheet = Page((tmp_path / "why" / "contact_sheet.html").read_text())
    assert len(set(sheet.outside)) == 4 and all((tmp_path / "why" / unquote(name)).is_file() for name in sheet.outside)
    assert main(["--picture", str(tmp_path / "rows.csv")]) == 0


def test_pictures_of_people_are_private(tmp_path: Path) -> None:
    write_faces(tmp_path / "in", 2)
    write_video(tmp_path / "in" / "v.avi", 2)
    arguments = [str(tmp_path / "in"), "--aligned", "-o", str(tmp_path / "rows.csv"), "--why", str(tmp_path / "why")]
    assert main(arguments, model=embedded()) == 0
    files = [path for path in [*(tmp_path / "why").rglob("*"), *tmp_path.glob("rows.csv*")] if path.is_file()]
    assert len(files) > 8 and {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_a_face_that_cannot_be_explained_or_drawn_leaves_the_others_their_pages(
    tmp_path: Path, capsys, monkeypatch
) -> None:
    write_faces(tmp_path / "in", 2)
    write_video(tmp_path / "in" / "v.avi", 2)
    write_video(tmp_path / "in" / "w.avi", 2)
    real, real_timeline = Explainer.explain, why_mf2.save_timeline

    def explain(self, name: str, *given):
        if name.endswith("000.png"):
            raise cv2.error("OpenCV: Assertion failed")
        return real(self, name, *given)

    def timeline(rows, name: str, path: Path):
        if name.endswith("v.avi"):
            raise ValueError("Image size is too large")
        return real_timeline(rows, name, path)

    monkeypatch.setattr(Explainer, "explain", explain)
    monkeypatch.setattr(why_mf2, "save_timeline", timeline)
    arguments = [str(tmp_path / "in"), "--aligned", "-o", str(tmp_path / "rows.csv"), "--why", str(tmp_path / "why")]
    assert main(arguments, model=embedded()) == 1
    told = capsys.readouterr().err
    assert "1 face page, contact sheet, 1 timeline" in told and "left out, 2 times" in told
    assert "face-000.png: no page of face 0 (error: OpenCV" in told and "v.avi: cannot be drawn (ValueError" in told
    assert main(["--picture", str(tmp_path / "rows.csv")]) == 1
    assert "v.avi: cannot be drawn" in capsys.readouterr().err


def test_an_answer_that_is_no_number_has_no_page(tmp_path: Path, capsys) -> None:
    model = load_model(device="cpu")
    with torch.no_grad():
        for weight in model.pipeline.model.classifiers.parameters():
            weight.fill_(float("inf"))
    write_faces(tmp_path / "in", 2)
    arguments = [str(tmp_path / "in"), "--aligned", "--why", str(tmp_path / "why"), "--occlusion"]
    assert main(arguments, model=model) == 1
    shown = capsys.readouterr()
    assert "no answer" in shown.out and "contact sheet" in shown.err and "face page" not in shown.err


ROW = {
    **{"input": "a.png", "frame": 0, "time_s": None, "face_id": 0, "FaceRectX": 1, "FaceRectY": 1},
    **{"FaceRectWidth": 50, "FaceRectHeight": 50, "AU01": 0.5, "AU01_c": 1, "Neutral": 0.5, "top_emotion": "Neutral"},
}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("frame", wrong) for wrong in (None, "x", 10**400, [1], {})),
        *(("FaceRectX", wrong) for wrong in (None, float("inf"), 1e12, "1;2")),
        *(("time_s", wrong) for wrong in (float("inf"), "soon")),
        ("face_id", float("inf")),
    ],
)
def test_rows_that_cannot_be_drawn_are_refused_with_their_field(tmp_path: Path, capsys, field: str, value) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (ROW, {**ROW, field: value})))
    assert main(["--picture", str(tmp_path / "rows.jsonl")]) == 2
    told = capsys.readouterr().err
    assert "rows.jsonl could not be read" in told and "Traceback" not in told


@pytest.mark.parametrize("content", ["", "[]\n", "7\n", "{\n", "null\n", '{"input": 1}\n', "[" * 100_000, "\0\n"])
@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_files_that_hold_no_rows_end_with_a_sentence(tmp_path: Path, capsys, content: str, ending: str) -> None:
    (tmp_path / f"rows.{ending}").write_text(content)
    assert main(["--picture", str(tmp_path / f"rows.{ending}")]) == 2
    assert f"rows.{ending}" in capsys.readouterr().err


def test_boxes_far_from_the_image_cost_no_memory(tmp_path: Path) -> None:
    (face,) = write_faces(tmp_path, 1)
    wide = {"FaceRectX": -4e5, "FaceRectY": 3e5, "FaceRectWidth": 1e6, "FaceRectHeight": 7e5, "input": str(face)}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({**ROW, **one}) + "\n" for one in ({}, wide)))
    assert main(["--picture", str(tmp_path / "rows.jsonl")]) == 0
    os.mkfifo(tmp_path / "pipe.csv")
    assert main(["--picture", str(tmp_path / "pipe.csv")]) == 2
