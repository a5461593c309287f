"""The sheet of a face: every figure is on it, and nothing breaks it."""

from pathlib import Path

import pytest
from picture_faces import EVIL, a_face

from mf2face.inference.explain.explanation import disagrees, draw_face_page, save_face_page


def _texts(figure) -> str:
    from matplotlib.text import Text

    return "\n".join(text.get_text() for text in figure.findobj(Text))


def test_every_decision_word_and_origin_is_on_the_sheet() -> None:
    said = _texts(draw_face_page(a_face("smile.png")))
    wanted = ["smile.png", "AU12", "lip corner puller", "0.80  active", "0.20  at rest", "Happiness", "0.70"]
    wanted += ["The inner brows rest.", "its region hidden: 0.30", "as much elsewhere: 0.87", "synthetic", "evidence"]
    assert [words for words in wanted if words not in said] == []


def test_the_maps_are_of_the_emotion_and_the_active_ones_first() -> None:
    figure = draw_face_page(a_face(occlusion=False))
    titles = [text.get_text() for text in figure.texts if text.get_fontweight() == "bold"]
    assert titles[1:] == ["emotion: Happiness", "AU1 inner brow raiser", "AU12 lip corner puller", "AU25 lips part"]


def test_odd_names_a_radar_and_a_face_without_aus_are_drawn(tmp_path: Path) -> None:
    assert save_face_page(a_face(EVIL), tmp_path / "a.png", chart="radar").stat().st_size > 10_000
    assert save_face_page(a_face("\udce9\n日本.png", occlusion=False), tmp_path / "a.png").is_file()
    assert save_face_page(a_face("x" * 300, units=(), occlusion=False), tmp_path / "b.png").is_file()
    with pytest.raises(ValueError, match="chart: got 'pie'"):
        save_face_page(a_face(), tmp_path / "c.png", chart="pie")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_a_sentence_that_contradicts_the_decision_is_marked() -> None:
    face = a_face()
    assert disagrees(face, "AU1") and "otherwise" in _texts(draw_face_page(face))
    face.sentences["au"]["AU1"] = "The inner brows are raised."
    assert not disagrees(face, "AU1")
