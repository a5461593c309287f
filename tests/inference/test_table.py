"""What the terminal shows: every line fits, every figure is named, nothing is cut at its telling end."""

import io

import numpy as np
import pytest

from mf2face.inference.rows import Columns
from mf2face.inference.table import FaceTable


COLUMNS = Columns(("AU1", "AU12"), ("Neutral", "Happiness"), caption=True)
LIMITS = {"AU1": 0.25, "AU12": 0.75}


def row(name: str = "photos/face.png", face: int = 0) -> dict:
    answer = {"emotion": "Happiness", "emotions": {"Neutral": 0.25, "Happiness": 0.75}}
    answer["action_units"] = {
        "AU1": {"probability": 0.125, "active": False},
        "AU12": {"probability": 1.0, "active": True},
    }
    return COLUMNS.row(name, 3, 0.12, face, (10, 20, 110, 140), 0.9, np.zeros((68, 2)), "given", answer)


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")


def show(rows: list[dict], encoding: str = "utf-8", **settings) -> list[str]:
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    table = FaceTable(out, COLUMNS, LIMITS, **settings)
    table.add(rows)
    table.close()
    out.flush()
    return out.buffer.getvalue().decode(encoding).strip("\n").splitlines()


def test_a_line_a_face_under_a_head() -> None:
    long = "a/very/long/path/of/many/folders/and/at/its/end/the-name-of-the-file.png"
    lines = show([row(), row(face=1), COLUMNS.empty_row(long, 0, float("nan")), row(long)])
    head, rule, first, second, third, fourth = lines[:6]
    assert set(rule) == {"─"}
    assert first.split() == ["photos/face.png", "3", "0.12", "s", "0", *"10 20 100 120 Happiness 0.75 AU12".split()]
    assert second.split()[0] == "3"  # the same input is named once
    assert "the-name-of-the-file.png" in third and third.endswith("no face found") and len(set(third)) > 5
    assert first.index("Happiness") == head.index("emotion") == third.index("no face") == fourth.index("Happiness")
    assert lines[-1] == "AU12 lip corner puller"
    assert all(len(line) <= 120 for line in lines)


def test_a_narrow_terminal_leaves_the_box_out_and_continues_long_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    units = tuple(f"AU{number}" for number in (1, 2, 4, 6, 7, 10, 12))
    columns, out = Columns(units, ("Happiness",)), io.StringIO()
    answer = {"emotion": "Happiness", "emotions": {"Happiness": 0.5}}
    answer["action_units"] = {name: {"probability": 1.0, "active": True} for name in units}
    seen = columns.row("v.mp4", 12345, 1234.5, 0, (1, 2, 3, 4), 0.9, np.zeros((68, 2)), "given", answer)
    FaceTable(out, columns, LIMITS).add([seen])
    head, _, first, second = out.getvalue().splitlines()
    assert "width" not in head and max(map(len, (head, first, second))) <= 80
    assert second.split()[-1] == "AU12" and second.index("AU") == first.index("AU") == head.index("active")


def test_a_single_image_shows_every_figure_with_its_name_and_threshold() -> None:
    lines = show([{**row(), "caption": "The face shows happiness."}], detailed=True)
    assert "100 x 120 pixels at 10, 20" in lines[0] and "score 0.90" in lines[0] and "landmarks: given" in lines[0]
    emotions = [line.split()[0] for line in lines if line.startswith(("Happiness", "Neutral"))]
    assert emotions == ["Happiness", "Neutral"]  # the likeliest first
    weak, strong = (next(line for line in lines if line.startswith(name)) for name in ("AU01", "AU12"))
    assert "inner brow raiser" in weak and "0.12  0.25" in weak and not weak.endswith("active")
    assert "1.00  0.75" in strong and strong.endswith("active") and strong.count("█") == 23
    assert weak.index("│") - weak.index("█") == 6  # a quarter of the bar
    assert '"The face shows happiness."' in lines[-1]
    assert show([COLUMNS.empty_row("a.png", 0, 0.0)], detailed=True) == ["a.png: no face found"]


def test_a_terminal_that_knows_ascii_only_gets_ascii() -> None:
    for detailed in (False, True):
        lines = show([row("x" * 90)], encoding="ascii", detailed=detailed)
        assert any("Happiness" in line for line in lines)


def test_a_face_without_an_answer_is_shown_as_such() -> None:
    nothing = COLUMNS.row("a.png", 0, float("nan"), 0, (10, 20, 110, 140), 0.9, np.zeros((68, 2)), "given", {})
    assert "no answer" in show([nothing, row()])[2]
    assert "no answer" in show([nothing], detailed=True)[0]
