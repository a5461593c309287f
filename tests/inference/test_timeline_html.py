"""The timeline for a browser: values at every moment, toggles, gaps."""

from pathlib import Path

from html_pages import Page
from picture_faces import EVIL, some_rows

from mf2face.inference.explain.timeline import save_timeline_html, timeline_html


def test_values_toggles_and_gaps(tmp_path: Path) -> None:
    rows, _ = some_rows(tmp_path, name=EVIL)
    page = Page(save_timeline_html(rows, EVIL, tmp_path / "t.html").read_text(encoding="utf-8"))
    assert [button["data-unit"] for button in page.all("button") if "data-unit" in button] == ["AU1", "AU12", "AU25"]
    first, second = page.data["faces"]
    assert first["units"]["AU12"] == [0.1, 0.1, 0.1, 0.8, 0.8, 0.8] and first["active"]["AU12"] == [0, 0, 0, 1, 1, 1]
    assert second["units"]["AU1"][2:4] == [None, None] and second["seen"][2:4] == [False, False]
    assert len(page.data["edges"]) == len(page.data["times"]) + 1
    assert page.outside == [] and len(page.all("script")) == 2 and "synthetic" in page.words
    charts = [part for part in page.all("div") if part.get("class") == "chart"]
    assert len(charts) == 2 and all(part["role"] == "slider" and part["tabindex"] == "0" for part in charts)
    active = [path["d"] for path in page.all("path") if path.get("class") == "act"]
    assert active[0].startswith("M454.5 ") and active[3].count("M") == 2, "from 0.25 s on; two stretches"


def test_a_video_without_faces_has_a_page_too(tmp_path: Path) -> None:
    rows, _ = some_rows(tmp_path)
    rows.videos["v.mp4"] = [{**row, "face_id": float("nan")} for row in rows.videos["v.mp4"]]
    assert "no face was found" in Page(timeline_html(rows, "v.mp4")).words
