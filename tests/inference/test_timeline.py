"""The timeline: a panel a face, gaps where it was not, pages where faces are many."""

from pathlib import Path

import numpy as np
import pytest
from picture_faces import some_rows

from mf2face.inference.explain.picture_rows import tracks_of
from mf2face.inference.explain.timeline import _steps, clock, draw_timeline, save_timeline


def test_a_panel_a_face_with_its_words(tmp_path: Path) -> None:
    rows, _ = some_rows(tmp_path)
    figure = draw_timeline(rows, "v.mp4", tracks_of(rows, "v.mp4"))
    texts = [*figure.texts, *(text for axis in figure.axes for text in axis.texts)]
    said = "\n".join(text.get_text() for text in texts)
    wanted = ["v.mp4", "6 frames", "face 0", "in sight for 0.", "AU12", "lip corner puller", "Neutral", "synthetic"]
    assert [words for words in wanted if words not in said] == [] and len(figure.axes) == 4
    assert figure.axes[1].get_xlabel() == "time (s)"


def test_nothing_is_drawn_where_there_was_no_face(tmp_path: Path) -> None:
    rows, _ = some_rows(tmp_path)
    x, heights = _steps(tracks_of(rows, "v.mp4")[1], tracks_of(rows, "v.mp4")[1].units["AU12"])
    assert len(x) == len(heights) == 12
    assert x[np.isnan(heights)].tolist() == pytest.approx([0.15, 0.25, 0.25, 0.35])


def test_many_faces_go_on_another_page_and_none_has_one(tmp_path: Path) -> None:
    rows, _ = some_rows(tmp_path, frames=1)
    (row, *_) = rows.videos["v.mp4"]
    rows.videos["v.mp4"] = [{**row, "face_id": float(number)} for number in range(5)]
    saved = save_timeline(rows, "v.mp4", tmp_path / "t.png")
    assert [path.name for path in saved] == ["t.png", "t-2.png"] and all(path.is_file() for path in saved)
    rows.videos["v.mp4"] = [{**row, "face_id": float("nan")}]
    assert save_timeline(rows, "v.mp4", tmp_path / "none.png")[0].is_file()
    with pytest.raises(ValueError, match="expected a video of these rows"):
        save_timeline(rows, "w.mp4", tmp_path / "w.png")
    assert clock(75) == "1:15.0" and clock(3) == "3.0 s"
