"""Pages, sheets and timelines: every figure is on them, nothing a user wrote becomes markup, nothing is fetched."""

import json
import os
import stat
from pathlib import Path
from urllib.parse import unquote

import cv2
import numpy as np
import pytest
import torch
from analysis_media import FakeDetector, embedded, face_at, write_faces, write_video
from html_pages import Page
from picture_faces import ABOUT, EMOTIONS, EVIL, UNITS, a_face, some_rows

from mf2face.inference.cli import main
from mf2face.inference.explain import folder as why_folder
from mf2face.inference.explain import row_pictures
from mf2face.inference.explain.explainer import Explainer
from mf2face.inference.explain.face_page import draw_face_page, face_html
from mf2face.inference.explain.page import (
    ACTIVE,
    AT_REST,
    as_json,
    banner,
    heat_rgba,
    ink_on,
    over_grey,
    page,
    shortened,
    text,
)
from mf2face.inference.explain.picture_rows import read_picture_rows, thumbnails, tracks_of
from mf2face.inference.explain.row_pictures import (
    clock,
    contact_html,
    draw_contact_sheet,
    draw_timeline,
    save_contact_html,
    save_contact_sheet,
    save_timeline,
    save_timeline_html,
    summary,
)
from mf2face.inference.model import load_model
from mf2face.inference.rows import Columns, RowFile


def _lightness(colour: str) -> float:
    rgb = np.array([[[int(colour[place : place + 2], 16) for place in (1, 3, 5)]]], np.uint8)
    return float(cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB)[0, 0, 0])


def _texts(sheet) -> str:
    from matplotlib.text import Text

    return "\n".join(part.get_text() for part in sheet.figure.findobj(Text))


def test_colours_stay_apart_in_grey_and_heat_is_clear_where_there_is_none() -> None:
    assert abs(_lightness(ACTIVE) - _lightness(AT_REST)) > 60 and ink_on("#f0e442") != ink_on("#0072b2")
    heat = heat_rgba(np.linspace(0, 3, 64)[None])
    assert heat[0, 0, 3] == 0 and heat[0, -1, 3] > 200 and (heat_rgba(np.zeros((2, 2)))[..., 3] == 0).all()
    red = np.array([[[200, 0, 0]]], np.uint8)
    assert np.ptp(over_grey(red, np.zeros((1, 1))), axis=-1).max() == 0, "the image itself is grey"


def test_text_and_data_cannot_become_markup_and_a_page_may_load_nothing() -> None:
    about = {"model": EVIL, "grades": {"AU1": "usable", "AU2": "experimental", "AU12": "usable"}}
    made = page("Why", EVIL, EVIL, "<p></p>", about, style="", script="", data={EVIL: EVIL + "</script>"}, note=EVIL)
    assert "<script>alert" not in made and made.count("</script>") == 2
    assert "default-src 'none'" in made and "http://" not in made and "https://" not in made
    assert json.loads(as_json({"a": EVIL})) == {"a": EVIL} and "&lt;" in text("\udce9<")
    data = {"a": np.array([0.123456, np.nan]), "b": np.bool_(True), "c": np.int64(3), "d": (1.5,)}
    assert len(shortened("x" * 50, 20)) == 20 and "\udce9" not in shortened("\udce9\n", 9)
    assert "do not say which model" in banner({}) and "usable: AU1 AU12 · experimental: AU2" in banner(about)
    assert json.loads(as_json(data)) == {"a": [0.1235, None], "b": True, "c": 3, "d": [1.5]}


def test_the_face_sheet_shows_every_decision_and_marks_a_contradicting_sentence(tmp_path: Path) -> None:
    face = a_face("smile.png")
    wanted = ["smile.png", "AU12", "lip corner puller", "0.80  active", "0.20  at rest", "Happiness", "0.70"]
    wanted += ["The inner brows rest.", "its region hidden: 0.30", "as much elsewhere: 0.87", "SYNTHETIC", "evidence"]
    sheet = draw_face_page(face)
    said = _texts(sheet)
    assert not [words for words in wanted if words not in said]
    assert face.disagrees("AU1") and "disagrees" in said and not face.disagrees("emotion")
    assert "mf-disagrees" not in face_html(face).partition("</style>")[2]
    face.sentences |= {"au": {"AU1": "The inner brows are raised."}, "key_au": "AU25 (lips part) is decisive."}
    assert not face.disagrees("AU1") and face.disagrees("key_au")
    assert face_html(face).partition("</style>")[2].count("mf-disagrees") == 1
    titles = [part.get_text() for part in sheet.figure.texts if part.get_fontweight() == "bold"]
    assert titles[1:] == ["emotion: Happiness", "AU1 inner brow raiser", "AU12 lip corner puller", "AU25 lips part"]
    for odd in (a_face("\udce9\n日本.png", occlusion=False), a_face("x" * 300, units=(), occlusion=False)):
        assert odd.save_png(tmp_path / "a.png").stat().st_size > 10_000


def test_the_face_page_has_a_button_and_a_map_for_every_au(tmp_path: Path) -> None:
    path = a_face().save_html(tmp_path / "face.html")
    made = Page(path.read_text(encoding="utf-8"))
    maps = {button["data-name"]: button for button in made.all("button") if "data-name" in button}
    assert list(maps) == ["AU1", "AU12", "AU25"]
    one, lines = maps["AU12"], json.loads(maps["AU12"]["data-lines"])
    assert one["data-heat"].startswith("data:image/png") and one["data-regions"].count("Z") == 2
    assert lines[0] == "AU12 lip corner puller: active" and any("region hidden" in line for line in lines)
    (photo,) = made.all("svg")
    assert photo["data-first"] == "AU1", "the most sure of the active ones"
    assert made.outside == [] and EVIL in made.words and len(made.all("script")) == 2
    assert "synthetic" in made.words and "evidence" in made.words
    (panel,) = [part for part in made.all("section") if "data-matrix" in part]
    assert panel["data-matrix"] == "1.25000 0.00000 0.00000 1.25000 10.00000 5.00000" and "data-heat" in panel
    assert panel["data-near"] == photo["viewbox"] == "10.0 5.0 80.0 80.0" and photo["data-whole"] == "0 0 120 90"
    assert 'data-first="emotion"' in face_html(a_face(units=(), occlusion=False))
    assert 'srcdoc="&lt;!doctype' in a_face()._repr_html_()


def test_the_contact_sheet_names_every_face(tmp_path: Path, monkeypatch) -> None:
    rows, _ = some_rows(tmp_path, images=3)
    (tmp_path / "1-face.png").unlink()
    wanted = ["2 faces in 3 images", "Happiness", "0.90", "AU1 AU12 AU25", "no face found", "image\nnot there"]
    wanted += ["0-face.png", "SYNTHETIC", "no AU active"]
    said = _texts(draw_contact_sheet(rows, rows.stills))
    assert not [words for words in wanted if words not in said]
    assert summary(rows).endswith("Happiness 1 · Neutral 1")
    rows.stills *= 4
    monkeypatch.setattr(row_pictures, "FACES_A_PAGE", 1)
    for save, ending, size in ((save_contact_sheet, "png", 1), (save_contact_html, "html", 12)):
        saved = save(rows, tmp_path / f"s.{ending}")
        assert len(saved) == size and all(map(Path.is_file, saved))
    assert [path.name for path in saved[:2]] == ["s.html", "s-02.html"], "names sort as their numbers"
    made = Page(saved[1].read_text(encoding="utf-8"))
    assert {"s.html", "s-12.html"} <= set(made.outside) and len(made.all("figure")) == 1
    for save, ending in ((save_contact_sheet, "png"), (save_contact_html, "html")):
        with pytest.raises(ValueError, match="videos have a timeline"):
            save(some_rows(tmp_path, images=0)[0], tmp_path / f"none.{ending}")


def test_the_contact_page_has_cards_with_alt_texts_facts_and_links(tmp_path: Path) -> None:
    rows, _ = some_rows(tmp_path)
    rows.stills[0] |= {"caption": EVIL, "caption_disagrees": True}
    rows.pages = {(rows.stills[0]["input"], 0): "a folder/0-face0.html"}
    made = Page(contact_html(rows, rows.stills, tmp_path / "out"))
    assert len(made.all("figure")) == len(made.data) == 2
    assert made.all("img")[0]["alt"] == "face 0 of 0-face.png, Happiness, AU1 AU12 AU25"
    assert made.data[0]["active"] == ["AU1", "AU12", "AU25"] and made.data[0]["values"]["Happiness"] == 0.9
    assert made.data[1]["top"] is None and made.data[1]["active"] == []
    assert made.outside == ["a%20folder/0-face0.html", "../1-face.png"], "to a page, or to the image"
    assert len(made.all("a")) == 4, "each picture is a link, and its name"
    assert EVIL in made.words and made.words.count("disagrees with the decisions") == 1
    values = [option["value"] for option in made.all("option")]
    assert values[:2] == ["", "Happiness"] and {"#", "Neutral", "AU12"} <= set(values)


def test_the_timeline_has_a_panel_a_face_and_further_pages(tmp_path: Path) -> None:
    rows, _ = some_rows(tmp_path)
    sheet = draw_timeline(rows, "v.mp4", tracks_of(rows, "v.mp4"), "6 frames")
    wanted = ["v.mp4", "6 frames", "face 0", "seen for 0.", "AU12", "lip corner puller", "Neutral", "SYNTHETIC"]
    said = _texts(sheet)
    assert not [words for words in wanted if words not in said] and len(sheet.figure.axes) == 4
    assert sheet.figure.axes[1].get_xlabel() == "time (s)" and clock(75) == "1:15.0" and clock(3) == "3.0 s"
    rows.videos["v.mp4"] = [{**rows.videos["v.mp4"][0], "face_id": float(number)} for number in range(5)]
    assert [path.name for path in save_timeline(rows, "v.mp4", tmp_path / "t.png")] == ["t.png", "t-2.png"]
    rows.videos["v.mp4"] = [{**rows.videos["v.mp4"][0], "face_id": float("nan")}]
    assert save_timeline(rows, "v.mp4", tmp_path / "none.png")[0].is_file()
    (empty,) = save_timeline_html(rows, "v.mp4", tmp_path / "none.html")
    assert "no face was found" in Page(empty.read_text()).words
    with pytest.raises(ValueError, match="expected a video of these rows"):
        save_timeline(rows, "w.mp4", tmp_path / "w.png")


def test_the_timeline_page_has_values_toggles_and_gaps(tmp_path: Path) -> None:
    rows, _ = some_rows(tmp_path, name=EVIL)
    (path,) = save_timeline_html(rows, EVIL, tmp_path / "t.html")
    made = Page(path.read_text(encoding="utf-8"))
    assert [button["data-unit"] for button in made.all("button") if "data-unit" in button] == ["AU1", "AU12", "AU25"]
    first, second = made.data["faces"]
    assert first["units"]["AU12"] == [0.1, 0.1, 0.1, 0.8, 0.8, 0.8] and first["active"]["AU12"] == [0, 0, 0, 1, 1, 1]
    assert second["units"]["AU1"][2:4] == [None, None] and second["seen"][2:4] == [False, False]
    assert len(made.data["edges"]) == len(made.data["times"]) + 1
    assert made.outside == [] and len(made.all("script")) == 2 and "synthetic" in made.words
    charts = [part for part in made.all("div") if part.get("class") == "chart"]
    assert len(charts) == 2 and all(part["role"] == "slider" and part["tabindex"] == "0" for part in charts)
    active = [path["d"] for path in made.all("path") if path.get("class") == "act"]
    assert active[0].startswith("M454.5 ") and active[3].count("M") == 2, "from 0.25 s on; two stretches"


def test_what_the_model_cannot_tell_is_a_third_state(tmp_path: Path) -> None:
    face = a_face()
    face.action_units["AU12"]["state"] = "cannot tell"
    words = Page(face_html(face)).words
    assert "0.80 cannot tell" in words and "AU12?" in words and "0.80  cannot tell" in _texts(draw_face_page(face))
    rows, _ = some_rows(tmp_path)
    rows.states = True
    for row in (rows.stills[0], *rows.videos["v.mp4"]):
        row["AU12_state"] = "cannot tell"
    assert "AU1 AU25 AU12?" in Page(contact_html(rows, rows.stills)).words
    track = tracks_of(rows, "v.mp4")[0]
    assert track.unsure["AU12"].all() and not track.active["AU12"].any() and track.active["AU25"].any()
    (path,) = save_timeline_html(rows, "v.mp4", tmp_path / "t.html")
    pale = [part["d"] for part in Page(path.read_text()).all("path") if part.get("class") == "pale"]
    assert [bool(path) for path in pale] == [False, True, False] * 2
    assert "pale blue: cannot tell" in _texts(draw_timeline(rows, "v.mp4", [track], ""))


def test_a_long_video_has_a_bounded_timeline(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(row_pictures, "STEPS", 3)
    rows, _ = some_rows(tmp_path)
    (path,) = save_timeline_html(rows, "v.mp4", tmp_path / "t.html")
    made = Page(path.read_text(encoding="utf-8"))
    first, second = made.data["faces"]
    assert first["units"]["AU12"] == [0.1, 0.45, 0.8] and first["active"]["AU12"] == [0, 1, 1]
    assert second["units"]["AU12"] == [0.7, None, 0.7] and second["seen"] == [True, False, True]
    assert made.data["edges"] == [0, 0.15, 0.35, 0.55] and "each step the mean of 2" in made.words


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_every_kind_of_file_gives_the_rows_of_the_run(tmp_path: Path, ending: str) -> None:
    kept, rows = some_rows(tmp_path)
    path = tmp_path / f"rows.{ending}"
    about = {**ABOUT, "settings": {**ABOUT["settings"], "thresholds": dict.fromkeys(UNITS, 0.5)}}
    file = RowFile(path, Columns(UNITS, EMOTIONS), about)
    file.add(rows)
    file.close(finished=True)
    read = read_picture_rows(path)
    assert str(read) == str(kept), "NaN is not equal to itself"
    assert read.about["model"] == "tiny" and read.thresholds["AU12"] == 0.5


def test_a_lost_image_has_no_thumbnail_and_tracks_have_stretches(tmp_path: Path) -> None:
    kept, _ = some_rows(tmp_path)
    stretches = [
        (name, round(start, 3), round(stop, 3)) for name, start, stop in tracks_of(kept, "v.mp4")[0].stretches()
    ]
    assert stretches == [("Neutral", 0, 0.25), ("Happiness", 0.25, 0.55)]
    (tmp_path / "0-face.png").unlink()
    lost, whole = thumbnails(kept.stills, 50)
    assert lost is None and whole.shape == (50, 50, 3)


def test_a_folder_gets_a_page_a_face_a_contact_sheet_and_a_timeline_a_video(tmp_path: Path, capsys) -> None:
    write_faces(tmp_path / "in" / "a", 1)
    write_faces(tmp_path / "in" / "b", 1)
    write_video(tmp_path / "in" / "v.avi", 3)
    out, rows = tmp_path / "why", tmp_path / "rows.csv"
    detector = FakeDetector([[face_at(10, 10, 90)], [face_at(10, 10, 90)], *[[face_at(10, 5)]] * 3])
    arguments = [str(tmp_path / "in"), "-o", str(rows), "--why", str(out)]
    assert main(arguments, model=embedded(), detector=detector) == 0
    printed = capsys.readouterr().err
    assert "2 face pages, contact sheet, 1 timeline" in printed
    names = sorted(str(path.relative_to(out)) for path in out.rglob("[!.]*") if path.is_file())
    stems = ["a/face-000-face0", "b/face-000-face0", "contact_sheet", "v-timeline"]
    assert names == sorted(f"{stem}.{ending}" for stem in stems for ending in ("png", "html"))
    sheet = Page((out / "contact_sheet.html").read_text())
    assert sheet.outside == ["a/face-000-face0.html", "b/face-000-face0.html"] and "synthetic" in sheet.words
    before = (out / "v-timeline.html").read_bytes()
    files = [path for path in [*out.rglob("*"), *tmp_path.glob("rows.csv*")] if path.is_file()]
    assert len(files) > 8 and {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}, "people are on them"

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
    for printed in ("2 images looked at", "2 inputs stood in"):
        assert main(arguments, model=embedded()) == 0
        assert printed in capsys.readouterr().err and len((folder / "rows.csv").read_text().splitlines()) == 3
    assert sorted(path.name for path in (folder / "why").glob("*.png")) == [
        *("contact_sheet.png", "face-000-face0.png", "face-001-face0.png")
    ]
    write_faces(folder / "why", 1, first=7)  # a photograph that somebody put there is one
    assert main([str(folder), "--aligned", "--format", "csv"], model=embedded()) == 0
    assert capsys.readouterr().out.count("\n") == 4


def test_rows_from_before_without_pages_are_told(tmp_path: Path, capsys) -> None:
    write_faces(tmp_path / "in", 2)
    arguments = [str(tmp_path / "in"), "--aligned", "-o", str(tmp_path / "rows.csv")]
    why = ["--why", str(tmp_path / "why")]
    for more, printed in (
        ([], "2 images"),
        (why, "no page of 2 faces whose rows were there before; --overwrite makes them"),
        ([*why, "--overwrite"], "2 face pages"),
    ):
        assert main([*arguments, *more], model=embedded()) == 0
        assert printed in capsys.readouterr().err
        assert (tmp_path / "why").exists() == bool(more), "unasked, no picture is written"


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


def test_a_face_that_cannot_be_explained_or_drawn_leaves_the_others_their_pages(tmp_path, capsys, monkeypatch):
    write_faces(tmp_path / "in", 2)
    write_video(tmp_path / "in" / "v.avi", 2)
    write_video(tmp_path / "in" / "w.avi", 2)
    real, real_timeline = Explainer.explain, why_folder.save_timeline

    def explain(self, name: str, *given):
        if name.endswith("000.png"):
            raise cv2.error("OpenCV: Assertion failed")
        return real(self, name, *given)

    def timeline(rows, name: str, path: Path):
        if name.endswith("v.avi"):
            raise ValueError("Image size is too large")
        return real_timeline(rows, name, path)

    monkeypatch.setattr(Explainer, "explain", explain)
    monkeypatch.setattr(why_folder, "save_timeline", timeline)
    arguments = [str(tmp_path / "in"), "--aligned", "-o", str(tmp_path / "rows.csv"), "--why", str(tmp_path / "why")]
    assert main(arguments, model=embedded()) == 1
    printed = capsys.readouterr().err
    assert "1 face page, contact sheet, 1 timeline" in printed and "left out, 2 times" in printed
    assert (
        "face-000.png: no page of face 0 (error: OpenCV" in printed and "v.avi: cannot be drawn (ValueError" in printed
    )
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
    printed = capsys.readouterr().err
    assert "rows.jsonl could not be read" in printed and "Traceback" not in printed


@pytest.mark.parametrize("content", ["", "[]\n", "7\n", "{\n", "null\n", '{"input": 1}\n', "[" * 100_000, "\0\n"])
def test_files_that_hold_no_rows_end_with_a_sentence(tmp_path: Path, capsys, content: str) -> None:
    for ending in ("csv", "jsonl", "parquet"):
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
