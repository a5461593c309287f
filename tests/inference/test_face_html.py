"""The face page for a browser: a button and a map an AU, texts escaped, nothing fetched."""

from pathlib import Path

from html_pages import Page
from picture_faces import EVIL, a_face

from mf2face.inference.explain.explanation import face_html, save_face_html


def test_every_au_is_a_button_with_its_map_and_words(tmp_path: Path) -> None:
    path = save_face_html(a_face(), tmp_path / "face.html")
    page = Page(path.read_text(encoding="utf-8"))
    names = [button["data-name"] for button in page.all("button") if "data-name" in button]
    assert names == ["emotion", "AU1", "AU12", "AU25"] and set(page.data["maps"]) == set(names)
    one = page.data["maps"]["AU12"]
    assert one["heat"].startswith("data:image/png") and one["regions"].count("Z") == 2
    assert one["lines"][0] == "AU12 lip corner puller: active" and any("region hidden" in line for line in one["lines"])
    assert page.data["first"] == "AU1", "the most sure of the active ones"
    assert page.outside == [] and EVIL in page.words and len(page.all("script")) == 2
    assert "synthetic" in page.words and "evidence" in page.words
    assert all(button.get("aria-label") or button.get("class") == "chip" for button in page.all("button"))


def test_the_heat_is_laid_back_by_the_alignment_s_inverse() -> None:
    page = Page(face_html(a_face()))
    assert {"transform": "matrix(1.25000 0.00000 0.00000 1.25000 10.00000 5.00000)"} in page.all("g")
    assert page.data["near"] == "10.0 5.0 80.0 80.0" and page.data["whole"] == "0 0 120 90"


def test_a_face_without_aus_has_the_emotion_s_map_alone() -> None:
    page = Page(face_html(a_face(units=(), occlusion=False)))
    assert list(page.data["maps"]) == ["emotion"] and page.data["first"] == "emotion"
