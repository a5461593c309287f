"""The contact sheet for a browser: cards with alt texts, facts to filter and sort by, links to the face pages."""

from pathlib import Path

import pytest
from html_pages import Page
from picture_faces import EVIL, some_rows

from mf2face.inference.explain import contact_sheet as contact_html_mf2
from mf2face.inference.explain.contact_sheet import contact_html, save_contact_html


def test_cards_have_pictures_alt_texts_and_facts(tmp_path: Path) -> None:
    rows, _ = some_rows(tmp_path)
    rows.stills[0]["caption"] = EVIL
    rows.pages = {(rows.stills[0]["input"], 0): "a folder/0-face0.html"}
    page = Page(contact_html(rows, rows.stills))
    assert len(page.all("figure")) == len(page.data) == 2
    assert page.all("img")[0]["alt"] == "face 0 of 0-face.png, Happiness, AU1 AU12 AU25"
    assert page.data[0]["active"] == ["AU1", "AU12", "AU25"] and page.data[0]["values"]["Happiness"] == 0.9
    assert page.data[1]["top"] is None and page.data[1]["active"] == []
    assert page.outside == ["a%20folder/0-face0.html"] and EVIL in page.words
    values = [option["value"] for option in page.all("option")]
    assert values[:2] == ["", "Happiness"] and {"#", "Neutral", "AU12"} <= set(values)


def test_many_faces_go_on_in_another_file(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(contact_html_mf2, "FACES_A_FILE", 1)
    rows, _ = some_rows(tmp_path)
    assert [path.name for path in save_contact_html(rows, tmp_path / "s.html")] == ["s.html", "s-2.html"]
    with pytest.raises(ValueError, match="timeline"):
        save_contact_html(some_rows(tmp_path, images=0)[0], tmp_path / "s.html")
