"""The contact sheet: every face with its emotion and AUs; pages where they are many."""

from pathlib import Path

import pytest
from picture_faces import some_rows

from mf2face.inference.explain import contact_sheet as contact_sheet_mf2
from mf2face.inference.explain.contact_sheet import draw_contact_sheet, save_contact_sheet, summary


def test_every_face_is_named_with_what_it_shows(tmp_path: Path) -> None:
    rows, _ = some_rows(tmp_path, images=3)
    (tmp_path / "1-face.png").unlink()
    figure = draw_contact_sheet(rows, rows.stills)
    said = "\n".join(text.get_text() for text in figure.axes[0].texts)
    wanted = ["2 faces in 3 images", "Happiness", "0.90", "AU1 AU12 AU25", "no face found", "image\nnot there"]
    wanted += ["0-face.png", "synthetic", "no AU active"]
    assert [words for words in wanted if words not in said] == []
    assert summary(rows).endswith("Happiness 1 · Neutral 1")


def test_pages_follow_and_videos_alone_have_none(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(contact_sheet_mf2, "FACES_A_PAGE", 2)
    rows, _ = some_rows(tmp_path, images=3)
    saved = save_contact_sheet(rows, tmp_path / "sheet.png")
    assert [path.name for path in saved] == ["sheet.png", "sheet-2.png"] and all(path.is_file() for path in saved)
    with pytest.raises(ValueError, match="videos have a timeline"):
        save_contact_sheet(some_rows(tmp_path, images=0)[0], tmp_path / "none.png")
