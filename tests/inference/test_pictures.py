"""Pages, sheets and timelines: every figure is on them, nothing a user wrote becomes markup, nothing is fetched."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from html_pages import Page
from picture_faces import ABOUT, EMOTIONS, EVIL, UNITS, a_face, some_rows

from configuration_mf2 import facs
from mf2face.inference.explain import contact_sheet
from mf2face.inference.explain.contact_sheet import (
    contact_html,
    draw_contact_sheet,
    save_contact_html,
    save_contact_sheet,
    summary,
)
from mf2face.inference.explain.explanation import disagrees, draw_face_page, face_html
from mf2face.inference.explain.page import (
    ACTIVE,
    AT_REST,
    as_json,
    emotion_colours,
    heat_rgba,
    ink_on,
    origin,
    over_grey,
    page,
    shortened,
    text,
)
from mf2face.inference.explain.picture_rows import read_picture_rows, thumbnails, tracks_of
from mf2face.inference.explain.timeline import clock, draw_timeline, save_timeline, save_timeline_html, timeline_html
from mf2face.inference.rows import Columns, RowFile


def _lightness(colour: str) -> float:
    rgb = np.array([[[int(colour[place : place + 2], 16) for place in (1, 3, 5)]]], np.uint8)
    return float(cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB)[0, 0, 0])


def _texts(figure) -> str:
    from matplotlib.text import Text

    return "\n".join(text.get_text() for text in figure.findobj(Text))


def _missing(wanted: list[str], said: str) -> list[str]:
    return [words for words in wanted if words not in said]


def test_colours_stay_apart_in_grey_and_heat_is_clear_where_there_is_none() -> None:
    assert abs(_lightness(ACTIVE) - _lightness(AT_REST)) > 60 and ink_on("#f0e442") != ink_on("#0072b2")
    assert len(set(emotion_colours(facs.EMOTIONS).values())) == len(facs.EMOTIONS)
    heat = heat_rgba(np.linspace(0, 3, 64)[None])
    assert heat[0, 0, 3] == 0 and heat[0, -1, 3] > 200 and (heat_rgba(np.zeros((2, 2)))[..., 3] == 0).all()
    assert (np.diff(cv2.cvtColor(heat[..., :3], cv2.COLOR_RGB2LAB)[0, :, 0].astype(int)) >= 0).all()
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = 200
    assert np.ptp(over_grey(red, np.zeros((4, 4))), axis=-1).max() == 0, "the image itself is grey"


def test_origin_and_names_can_be_shown() -> None:
    assert "synthetic" in origin({"model": "m", "trained_on": "trained on synthetic faces"})
    assert "with a" in origin({"model": "m", "adapter": "a"}) and "do not say which model" in origin({})
    assert shortened("a.png", 10) == "a.png" and shortened("x" * 50 + "end.png", 20).endswith("end.png")
    assert len(shortened("x" * 50, 20)) == 20 and "\udce9" not in shortened("\udce9\n", 9)


def test_text_and_data_cannot_become_markup_and_a_page_may_load_nothing() -> None:
    made = page(EVIL, "<p></p>", style="", script="", data={EVIL: EVIL + "</script>"}, footer=EVIL)
    assert "<script>alert" not in made and made.count("</script>") == 2
    assert "default-src 'none'" in made and "http://" not in made and "https://" not in made
    assert json.loads(as_json({"a": EVIL})) == {"a": EVIL} and "&lt;" in text("\udce9<")
    data = {"a": np.array([0.123456, np.nan]), "b": np.bool_(True), "c": np.int64(3), "d": (1.5,)}
    assert json.loads(as_json(data)) == {"a": [0.1235, None], "b": True, "c": 3, "d": [1.5]}


def test_the_face_sheet_shows_every_decision_and_marks_a_contradicting_sentence(tmp_path: Path) -> None:
    face = a_face("smile.png")
    wanted = ["smile.png", "AU12", "lip corner puller", "0.80  active", "0.20  at rest", "Happiness", "0.70"]
    wanted += ["The inner brows rest.", "its region hidden: 0.30", "as much elsewhere: 0.87", "synthetic", "evidence"]
    assert _missing(wanted, _texts(draw_face_page(face))) == []
    assert disagrees(face, "AU1") and "otherwise" in _texts(draw_face_page(face))
    face.sentences["au"]["AU1"] = "The inner brows are raised."
    assert not disagrees(face, "AU1")
    titles = [part.get_text() for part in draw_face_page(face).texts if part.get_fontweight() == "bold"]
    assert titles[1:] == ["emotion: Happiness", "AU1 inner brow raiser", "AU12 lip corner puller", "AU25 lips part"]
    for odd in (a_face("\udce9\n日本.png", occlusion=False), a_face("x" * 300, units=(), occlusion=False)):
        assert odd.save_png(tmp_path / "a.png").stat().st_size > 10_000


def test_the_face_page_has_a_button_and_a_map_for_every_au(tmp_path: Path) -> None:
    path = a_face().save_html(tmp_path / "face.html")
    made = Page(path.read_text(encoding="utf-8"))
    maps = {button["data-name"]: button for button in made.all("button") if "data-name" in button}
    assert list(maps) == ["emotion", "AU1", "AU12", "AU25"]
    one, lines = maps["AU12"], json.loads(maps["AU12"]["data-lines"])
    assert one["data-heat"].startswith("data:image/png") and one["data-regions"].count("Z") == 2
    assert lines[0] == "AU12 lip corner puller: active" and any("region hidden" in line for line in lines)
    assert made.data["first"] == "AU1", "the most sure of the active ones"
    assert made.outside == [] and EVIL in made.words and len(made.all("script")) == 2
    assert "synthetic" in made.words and "evidence" in made.words
    assert {"transform": "matrix(1.25000 0.00000 0.00000 1.25000 10.00000 5.00000)"} in made.all("g")
    assert made.data["near"] == "10.0 5.0 80.0 80.0" and made.data["whole"] == "0 0 120 90"
    assert Page(face_html(a_face(units=(), occlusion=False))).data["first"] == "emotion"


def test_the_contact_sheet_names_every_face(tmp_path: Path, monkeypatch) -> None:
    rows, _ = some_rows(tmp_path, images=3)
    (tmp_path / "1-face.png").unlink()
    wanted = ["2 faces in 3 images", "Happiness", "0.90", "AU1 AU12 AU25", "no face found", "image\nnot there"]
    wanted += ["0-face.png", "synthetic", "no AU active"]
    assert _missing(wanted, _texts(draw_contact_sheet(rows, rows.stills))) == []
    assert summary(rows).endswith("Happiness 1 · Neutral 1")
    monkeypatch.setattr(contact_sheet, "FACES_A_PAGE", 2)
    monkeypatch.setattr(contact_sheet, "FACES_A_FILE", 2)
    for save, ending in ((save_contact_sheet, "png"), (save_contact_html, "html")):
        saved = save(rows, tmp_path / f"s.{ending}")
        assert [path.name for path in saved] == [f"s.{ending}", f"s-2.{ending}"] and all(map(Path.is_file, saved))
        with pytest.raises(ValueError, match="videos have a timeline"):
            save(some_rows(tmp_path, images=0)[0], tmp_path / f"none.{ending}")


def test_the_contact_page_has_cards_with_alt_texts_facts_and_links(tmp_path: Path) -> None:
    rows, _ = some_rows(tmp_path)
    rows.stills[0]["caption"] = EVIL
    rows.pages = {(rows.stills[0]["input"], 0): "a folder/0-face0.html"}
    made = Page(contact_html(rows, rows.stills))
    assert len(made.all("figure")) == len(made.data) == 2
    assert made.all("img")[0]["alt"] == "face 0 of 0-face.png, Happiness, AU1 AU12 AU25"
    assert made.data[0]["active"] == ["AU1", "AU12", "AU25"] and made.data[0]["values"]["Happiness"] == 0.9
    assert made.data[1]["top"] is None and made.data[1]["active"] == []
    assert made.outside == ["a%20folder/0-face0.html"] and EVIL in made.words
    values = [option["value"] for option in made.all("option")]
    assert values[:2] == ["", "Happiness"] and {"#", "Neutral", "AU12"} <= set(values)


def test_the_timeline_has_a_panel_a_face_and_further_pages(tmp_path: Path) -> None:
    rows, _ = some_rows(tmp_path)
    figure = draw_timeline(rows, "v.mp4", tracks_of(rows, "v.mp4"))
    wanted = ["v.mp4", "6 frames", "face 0", "in sight for 0.", "AU12", "lip corner puller", "Neutral", "synthetic"]
    assert _missing(wanted, _texts(figure)) == [] and len(figure.axes) == 4
    assert figure.axes[1].get_xlabel() == "time (s)" and clock(75) == "1:15.0" and clock(3) == "3.0 s"
    rows.videos["v.mp4"] = [{**rows.videos["v.mp4"][0], "face_id": float(number)} for number in range(5)]
    assert [path.name for path in save_timeline(rows, "v.mp4", tmp_path / "t.png")] == ["t.png", "t-2.png"]
    rows.videos["v.mp4"] = [{**rows.videos["v.mp4"][0], "face_id": float("nan")}]
    assert save_timeline(rows, "v.mp4", tmp_path / "none.png")[0].is_file()
    assert "no face was found" in Page(timeline_html(rows, "v.mp4")).words
    with pytest.raises(ValueError, match="expected a video of these rows"):
        save_timeline(rows, "w.mp4", tmp_path / "w.png")


def test_the_timeline_page_has_values_toggles_and_gaps(tmp_path: Path) -> None:
    rows, _ = some_rows(tmp_path, name=EVIL)
    made = Page(save_timeline_html(rows, EVIL, tmp_path / "t.html").read_text(encoding="utf-8"))
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


def test_tracks_have_gaps_and_spans_and_a_lost_image_no_thumbnail(tmp_path: Path) -> None:
    kept, _ = some_rows(tmp_path)
    first, second = tracks_of(kept, "v.mp4")
    assert first.seen.all() and second.seen.tolist() == [True, True, False, False, True, True]
    assert np.isnan(second.units["AU12"][2:4]).all() and not second.active["AU12"][2:4].any()
    assert second.top()[1:3] == ["Happiness", None]
    assert first.edges.tolist() == pytest.approx([0, 0.05, 0.15, 0.25, 0.35, 0.45, 0.55])
    stretches = [(name, round(start, 3), round(stop, 3)) for name, start, stop in first.stretches()]
    assert stretches == [("Neutral", 0, 0.25), ("Happiness", 0.25, 0.55)]
    (tmp_path / "0-face.png").unlink()
    lost, whole = thumbnails(kept.stills, 50)
    assert lost is None and whole.shape == (50, 50, 3)
