"""Rows: their columns, their files that survive a kill at any byte and are continued, and their table in a terminal."""

import csv
import dataclasses
import io
import itertools
import json
import math
import os
import resource
import signal
import stat
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from mf2face.inference.result import Result
from mf2face.inference.rows import (
    Columns,
    OutputError,
    RowFile,
    box_of,
    csv_lines,
    format_of,
    has_face,
    unescape_cell,
)
from mf2face.inference.table import FaceTable


NAMED = Columns(("AU1", "AU12"), ("Neutral", "Happiness"), caption=True)
ANSWER = {
    "emotion": "Happiness",
    "emotions": {"Neutral": 0.25, "Happiness": 0.75},
    "action_units": {
        "AU1": {"probability": 0.1234567, "active": False},
        "AU12": {"probability": 0.6, "active": True},
    },
    "captions": {"emotion": "The face shows happiness."},
}


def test_columns_have_one_name_each_in_the_order_of_their_users() -> None:
    names = [name for name in NAMED.names if not name.startswith(("x_", "y_"))]
    assert len(NAMED.names) == len(set(NAMED.names)) == len(names) + 136
    assert names[:4] == ["input", "frame", "time_s", "face_id"] and names[4].startswith("FaceRect")
    assert names[9:14] == ["Pitch", "Roll", "Yaw", "AU01", "AU12"] and names[-2:] == ["scene", "error"]
    assert "caption" not in Columns((), ()).names and "top_emotion" not in Columns((), ()).names


def test_a_face_s_row() -> None:
    points = np.arange(136).reshape(68, 2) / 3
    row = NAMED.row("a.png", 7, 0.28, 2, (10, 20, 40.004, 70), 0.98765, points, "given", ANSWER, (1.04, 2, -3), "small")
    assert (row["Pitch"], row["Yaw"], row["Roll"], row["quality"]) == (1.0, 2, -3, "small")
    assert list(row) == NAMED.names and has_face(row)
    assert (row["FaceRectWidth"], row["FaceRectHeight"], row["FaceScore"]) == (30.0, 50, 0.9877)
    assert (row["x_1"], row["y_67"]) == (0.67, 45.0)
    assert (row["AU01"], row["AU01_c"], row["AU12_c"]) == (0.123457, 0, 1)
    assert (row["top_emotion"], row["caption"]) == ("Happiness", "The face shows happiness.")
    assert box_of(row) == (10, 20, 40, 70)


def test_sides_intensity_and_the_change_from_neutral_have_columns_of_their_own(monkeypatch) -> None:
    columns = Columns(("AU12",), (), unit_details=("left", "right", "intensity"), relative=True)
    assert [name for name in columns.names if name.startswith("AU")] == [
        *("AU12", "AU12_c", "AU12_L", "AU12_R", "AU12_i", "AU12_rel")
    ]
    unit = {"probability": 0.75, "active": True, "left": 0.875, "right": 0.125, "intensity": 2.25}
    answer, points = {"action_units": {"AU12": unit}}, np.zeros((68, 2))
    row = columns.row("a", 0, 0.0, 0, (0, 0, 9, 9), 0.9, points, "given", answer, neutral={"AU12": 0.25})
    assert [row[f"AU12_{suffix}"] for suffix in ("L", "R", "i", "rel")] == [0.875, 0.125, 2.25, 0.5]
    assert columns.measures["AU_i"] == "0 to 5"
    out = io.StringIO()
    FaceTable(out, columns, {"AU12": 0.5}, detailed=True).add([row])
    assert "active  left 0.88  right 0.12  intensity 2.2  from neutral +0.50" in out.getvalue()


def test_a_row_without_a_face_has_its_place_and_nothing_else() -> None:
    row = NAMED.empty_row("v.mp4", 3, 0.1)
    assert (row["input"], row["frame"], row["time_s"]) == ("v.mp4", 3, 0.1) and not has_face(row)
    others = [value for name, value in row.items() if name not in ("input", "frame", "time_s", "scene")]
    assert all(value is None or math.isnan(value) for value in others)
    assert row["landmark_source"] is None and math.isnan(row["AU12_c"])


@pytest.mark.parametrize(
    "name", ["=1+1", "+a", "-x.jpg", "@b", "\ttab", "\rcr", "'=quoted", "''-twice", "'plain", "a=b", ""]
)
def test_a_name_is_no_formula_in_a_csv_and_comes_back_as_it_was(name: str) -> None:
    line = csv_lines([[name, -0.5, float("nan")]])
    ((cell, *numbers),) = csv.reader(io.StringIO(line))
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r")) and numbers == ["-0.5", "NaN"]
    assert unescape_cell(cell) == name


def test_a_run_in_words_counts_everything_and_keeps_memory_flat() -> None:
    summary = Result(frames=1, faces=2, without_face=1200, seconds=0.5, resumed=3, output="out.csv")
    for index in range(5000):
        summary.skip(f"{index}.png", "holds zero bytes")
    assert summary.left_out == 5000 and len(summary.skipped) == 1000
    assert summary.facts()["skipped"][0] == {"input": "0.png", "why": "holds zero bytes"}
    text = summary.text()
    for figure in ("1 image ", "2 faces", "2.0 images a second", "1,200 images without", "3 inputs", "5,000 times"):
        assert figure in text
    assert "  7.png: holds zero bytes" in text and "4,992 more" in text and len(text.splitlines()) < 17
    assert "rows: out.csv" in text and "mf2 --picture out.csv" in text.splitlines()[-1]
    assert repr(summary) == "<Result: 1 image, 2 faces, 5,000 left out, rows in out.csv>"


def test_a_result_is_short_in_a_terminal_and_a_table_in_jupyter() -> None:
    result = Result(frames=30, faces=30, noun="frame", rows=[shown_row("<b>.png")] * 30)
    assert repr(result) == "<Result: 30 frames, 30 faces>"
    shown = result._repr_html_()
    assert "&lt;b&gt;.png" in shown and "<b>" not in shown and "10 further rows" in shown and "x_1" not in shown
    assert shown.count("<tr>") == 21 and len(result.to_pandas()) == 30
    assert Result()._repr_html_() == "<p>Result: 0 images, 0 faces</p>"


def test_a_run_that_was_stopped_says_by_what_and_whether_it_continues() -> None:
    stopped = {"frames": 3, "stopped": "interrupted"}
    out = {"output": "out.csv"}
    for settings, continues in ((out, True), ({**out, "continues": False}, False), ({}, False)):
        text = Result(**stopped, **settings).text()
        assert "interrupted" in text and ("the same command continues" in text) == continues


COLUMNS = Columns(("AU1",), ("Neutral", "Other"), caption=True)
ABOUT = {"settings": {"model": "m", "every": 1}, "synthetic": True}
POINTS = np.linspace(0, 50, 136).reshape(68, 2)


def row(input: str, frame: int, face: int = 0) -> dict:
    answer = {"emotion": "Other", "emotions": {"Neutral": 0.25, "Other": 0.75}}
    answer["action_units"] = {"AU1": {"probability": 0.5, "active": True}}
    answer["captions"] = {"emotion": f'says "{face}", and more'}
    return COLUMNS.row(input, frame, frame / 10, face, (face, 0, face + 9, 9), 0.9, POINTS, "given", answer)


def frames() -> list[list[dict]]:
    """Two faces, then one, then none, then a picture whose name is not UTF-8."""
    return [
        [row("ä, b.mp4", 0), row("ä, b.mp4", 0, 1)],
        [row("ä, b.mp4", 1, 1)],
        [COLUMNS.empty_row("ä, b.mp4", 2, 0.2)],
        [row("ä, b.mp4", 3, 1), row("ä, b.mp4", 3, 2)],
        [row(os.fsdecode(b"\xff.png"), 0)],
    ]


def write(path: Path, groups: list[list[dict]], finished: bool = True, **settings) -> RowFile:
    out = RowFile(path, COLUMNS, json.loads(json.dumps(ABOUT)), **settings)
    for group in groups:
        if out.done.get(group[0]["input"], -1) < group[0]["frame"]:
            out.add(group)
    out.close(finished=finished)
    return out


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_what_is_read_back_is_what_was_given(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"new/folder/out.{ending}"
    write(path, frames()[:4])
    if ending == "csv":
        with open(path, encoding="utf-8", newline="") as file:
            found = list(csv.DictReader(file))
    elif ending == "jsonl":
        found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    else:
        table = pyarrow.parquet.read_table(path)
        assert json.loads(table.schema.metadata[b"mf2"])["synthetic"] is True
        found = table.to_pylist()
        assert found[3]["face_id"] is None and math.isnan(found[3]["AU01"])
    assert list(found[0]) == COLUMNS.names and len(found) == 6
    assert [float(one["frame"]) for one in found] == [0, 0, 1, 2, 3, 3]
    assert found[1]["input"] == "ä, b.mp4" and found[1]["caption"] == 'says "1", and more'
    assert float(found[0]["x_67"]) == pytest.approx(POINTS[67, 0], abs=0.01)
    missing = {"csv": ("NaN", ""), "jsonl": (None, None), "parquet": (None, None)}[ending]
    assert (found[3]["face_id"], found[3]["caption"]) == missing
    about = json.loads(Path(f"{path}.about.json").read_text())
    assert about["finished"] is True and about["settings"] == ABOUT["settings"]
    assert sorted(one.name for one in path.parent.iterdir()) == [path.name, f"{path.name}.about.json"]


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_kill_at_any_byte_leaves_an_output_that_goes_on_to_the_same_end(tmp_path: Path, ending: str) -> None:
    whole, cut = tmp_path / f"whole.{ending}", tmp_path / f"cut.{ending}"
    write(whole, frames())
    content = whole.read_bytes()
    for size in [*range(1, len(content), 307), len(content) - 1, len(content)]:
        write(cut, [], finished=False, overwrite=True)  # only its header and the facts
        cut.write_bytes(content[:size])
        write(cut, frames())
        assert cut.read_bytes() == content, size


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_finished_output_is_not_done_again_and_takes_more(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"out.{ending}"
    write(path, frames()[:3])
    more = RowFile(path, COLUMNS, dict(ABOUT))
    assert more.done == {"ä, b.mp4": 2} and more.last_input == "ä, b.mp4" and more.next_id == 2
    assert [[int(float(one["face_id"])) for one in group] for _, group in more.last_frames] == [[0, 1], [1], []]
    more.add(frames()[3])
    more.close(finished=True)
    again = tmp_path / f"again.{ending}"
    write(again, frames()[:4])
    if ending == "csv":
        assert path.read_bytes() == again.read_bytes()
    else:
        tables = [pyarrow.parquet.read_table(one).to_pylist() for one in (path, again)]
        assert str(tables[0]) == str(tables[1])  # NaN is not equal to itself
        assert not Path(f"{path}.partial").exists()


def test_parquet_keeps_names_that_are_not_utf8_and_continues_them_once(tmp_path: Path) -> None:
    path = tmp_path / "out.parquet"
    names = [os.fsdecode(b"\xff.png"), "\\xff.png", "\\x5cxff.png", "\ufffd.png", "a\\b"]
    write(path, [[row(name, 0)] for name in names])
    kept = pyarrow.parquet.read_table(path)["input"].to_pylist()
    assert len(set(kept)) == len(names) and kept[0] == "\\xff.png" and kept[3:] == names[3:]
    assert list(write(path, [[row(name, 0)] for name in names]).done) == names
    assert pyarrow.parquet.read_table(path)["input"].to_pylist() == kept


def test_parquet_s_rows_outlive_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "out.parquet"
    out = RowFile(path, COLUMNS, dict(ABOUT))
    out.add(frames()[0])
    out.add(frames()[1])  # and no close
    out.lock.close()  # as the system does for a process that is killed
    assert not path.exists()
    again = RowFile(path, COLUMNS, dict(ABOUT))
    assert again.done == {"ä, b.mp4": 0}  # the last frame may be half there
    again.close(finished=False)
    assert pyarrow.parquet.read_table(path).num_rows == 2


def test_another_run_s_rows_are_not_mixed_in(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    write(path, frames())
    other = {"settings": {"model": "m", "every": 5}}
    with pytest.raises(OutputError, match=r"every 1 \(now 5\).*--overwrite"):
        RowFile(path, COLUMNS, other)
    with pytest.raises(OutputError, match="has not the columns"):
        RowFile(path, Columns(("AU2",), ()), dict(ABOUT))
    Path(f"{path}.about.json").unlink()
    before = path.read_bytes()
    with pytest.raises(OutputError, match=r"about\.json"):
        RowFile(path, COLUMNS, dict(ABOUT))
    assert path.read_bytes() == before
    RowFile(path, COLUMNS, other, overwrite=True).close(finished=True)
    assert path.read_text().count("\n") == 1


def test_an_output_is_written_by_one_run_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    first = RowFile(path, COLUMNS, dict(ABOUT))
    first.add(frames()[0])
    for overwrite in (False, True):
        with pytest.raises(OutputError, match=r"out\.csv is being written by another run; wait"):
            RowFile(path, COLUMNS, dict(ABOUT), overwrite=overwrite)
    first.close(finished=True)
    assert write(path, frames()).done == {"ä, b.mp4": 0}
    with pytest.raises(OutputError, match="was made with"):  # a refusal holds nothing
        RowFile(path, COLUMNS, {"settings": {"model": "other"}})
    write(path, frames(), overwrite=True)


def test_what_is_no_file_is_said_and_left_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "folder.csv").mkdir()
    for name, overwrite in itertools.product(("pipe.csv", "folder.csv"), (False, True)):
        with pytest.raises(OutputError, match=rf"{name} is no file"):
            RowFile(tmp_path / name, COLUMNS, dict(ABOUT), overwrite=overwrite)
    assert (tmp_path / "pipe.csv").is_fifo()
    assert {path.name for path in tmp_path.iterdir()} == {"pipe.csv", "folder.csv"}


LINES = ",".join(COLUMNS.names) + "\n" + ",".join(["face.png"] * len(COLUMNS.names)) + "\n"


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("bad.parquet", "PAR1 and no more"),
        ("bad.csv", LINES),
        *(("bad.csv", wrong) for wrong in ("inf", "1e400", "x", "[1]")),
        *(("bad.csv.about.json", wrong) for wrong in ("null", "[]", "3", '{"settings": 3}', "[" * 100_000)),
        ("bad.parquet.about.json", "[]"),
    ],
)
def test_a_damaged_output_or_its_facts_are_named_and_can_be_overwritten(tmp_path: Path, file: str, text: str) -> None:
    path = tmp_path / file.removesuffix(".about.json")
    write(path, frames()[:2])
    if len(text) < 6 and path.name == file:  # a wrong number in a row
        text = path.read_text().replace(",0,0.0,0,", f",{text},0.0,0,", 1)
    (tmp_path / file).write_text(text)
    with pytest.raises(OutputError, match="damaged"):
        RowFile(path, COLUMNS, json.loads(json.dumps(ABOUT)))
    assert (tmp_path / file).read_text() == text
    write(path, frames(), overwrite=True)
    assert {one.name for one in tmp_path.iterdir()} == {path.name, f"{path.name}.about.json"}


def test_a_full_disk_leaves_whole_rows_and_says_how_to_go_on(tmp_path: Path) -> None:
    """The system's limit of a file's size stands for the disk's: writing fails half-way through a row in both."""
    path, whole = tmp_path / "out.csv", tmp_path / "whole.csv"
    write(whole, frames())
    limits, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    out = RowFile(path, COLUMNS, dict(ABOUT))
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (whole.stat().st_size * 2 // 3, limits[1]))
        with pytest.raises(OutputError, match=r"File too large.*Make room"):
            for group in frames():
                out.add(group)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    out.close(finished=False)
    left = path.read_bytes()
    assert whole.read_bytes().startswith(left) and left.endswith(b"\n") and left.count(b"\n") >= 3
    write(path, frames())
    assert path.read_bytes() == whole.read_bytes()


def test_where_nothing_can_be_written_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        RowFile(tmp_path / "file" / "out.csv", COLUMNS, dict(ABOUT))
    assert format_of("a.CSV") == "csv" and format_of("rows", "jsonl") == "jsonl"


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_rows_of_people_are_private_and_names_that_look_like_formulas_are_continued(tmp_path, ending):
    path = tmp_path / f"out.{ending}"
    names = ["-x.jpg", "=1+1.png", "'@.png", "z.png"]
    write(path, [[row(name, 0)] for name in names])
    if ending == "csv":
        assert not [line for line in path.read_text().splitlines() if line[0] in "=+-@"]
    for file in tmp_path.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    again = RowFile(path, COLUMNS, json.loads(json.dumps(ABOUT)))
    assert list(again.done) == names
    again.close(finished=True)


HEADER = ",".join(COLUMNS.names) + "\n"


@pytest.mark.parametrize(
    ("ending", "content"), [("csv", ""), ("csv", HEADER[:9]), ("csv", HEADER), ("jsonl", ""), ("parquet", "")]
)
def test_an_output_that_was_killed_before_its_facts_were_written_is_begun_anew(tmp_path, ending, content):
    path = tmp_path / f"out.{ending}"
    path.write_text(content)
    write(path, frames()[:1])
    assert write(path, []).done == {"ä, b.mp4": 0}


LIMITS = {"AU1": 0.25, "AU12": 0.75}


def shown_row(name: str = "photos/face.png", face: int = 0) -> dict:
    units = {"AU1": {"probability": 0.125, "active": False}, "AU12": {"probability": 1.0, "active": True}}
    answer = {**ANSWER, "action_units": units, "captions": {}}
    return NAMED.row(name, 3, 0.12, face, (10, 20, 110, 140), 0.9, np.zeros((68, 2)), "given", answer)


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")


def show(rows: list[dict], encoding: str = "utf-8", **settings) -> list[str]:
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    table = FaceTable(out, NAMED, LIMITS, **settings)
    table.add(rows)
    table.close()
    out.flush()
    return out.buffer.getvalue().decode(encoding).strip("\n").splitlines()


def test_a_line_a_face_under_a_head() -> None:
    long = "a/very/long/path/of/many/folders/and/at/its/end/the-name-of-the-file.png"
    lines = show([shown_row(), shown_row(face=1), NAMED.empty_row(long, 0, float("nan")), shown_row(long)])
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
    lines = show([{**shown_row(), "caption": "The face shows happiness."}], detailed=True)
    assert "100 x 120 pixels at 10, 20" in lines[0] and "score 0.90" in lines[0] and "landmarks: given" in lines[0]
    emotions = [line.split()[0] for line in lines if line.startswith(("Happiness", "Neutral"))]
    assert emotions == ["Happiness", "Neutral"]  # the likeliest first
    weak, strong = (next(line for line in lines if line.startswith(name)) for name in ("AU01", "AU12"))
    assert "inner brow raiser" in weak and "0.12  0.25" in weak and not weak.endswith("active")
    assert "1.00  0.75" in strong and strong.endswith("active") and strong.count("█") == 23
    assert weak.index("│") - weak.index("█") == 6  # a quarter of the bar
    assert '"The face shows happiness."' in lines[-1]
    assert show([NAMED.empty_row("a.png", 0, 0.0)], detailed=True) == ["a.png: no face found"]


def test_states_have_columns_and_the_table_shows_them_with_grades() -> None:
    columns = dataclasses.replace(NAMED, states=True)
    units = {name: {**unit, "state": "cannot tell"} for name, unit in ANSWER["action_units"].items()}
    answer = {**ANSWER, "action_units": units, "emotion_set": ["Happiness", "Neutral"]}
    row = columns.row("a.png", 0, 0.0, 0, (0, 0, 9, 9), 0.9, np.zeros((68, 2)), "given", answer)
    assert list(row) == columns.names and columns.is_text("AU12_state") and columns.is_text("emotion_set")
    assert (row["AU12_state"], row["emotion_set"]) == ("cannot tell", "Happiness|Neutral")
    assert columns.empty_row("a.png", 0, 0.0)["AU12_state"] is None and columns.row(
        *("a.png", 0, 0.0, 0, (0, 0, 9, 9), 0.9, np.zeros((68, 2)), "given", {})
    )["emotion_set"] in ("", None)
    grades = {"AU01": "experimental", "AU12": "reliable", "Neutral": "usable", "Happiness": "usable"}
    out = io.StringIO()
    FaceTable(out, columns, LIMITS, grades, detailed=True).add([row])
    weak, strong, happy = (
        next(line for line in out.getvalue().splitlines() if line.startswith(name)) for name in ("AU01", "AU12", "Happ")
    )
    assert weak.endswith("experimental  cannot tell") and "reliable" in strong and strong.endswith("cannot tell")
    assert happy.split()[-3:] == ["usable", "top", "possible"]
    lines = show([shown_row()], grades=grades)
    assert lines[-1] == "AU12 lip corner puller reliable · Happiness usable"


def test_a_terminal_that_knows_ascii_only_gets_ascii() -> None:
    for detailed in (False, True):
        lines = show([shown_row("x" * 90)], encoding="ascii", detailed=detailed)
        assert any("Happiness" in line for line in lines)


def test_a_face_without_an_answer_is_shown_as_such() -> None:
    nothing = NAMED.row("a.png", 0, float("nan"), 0, (10, 20, 110, 140), 0.9, np.zeros((68, 2)), "given", {})
    assert "no answer" in show([nothing, shown_row()])[2]
    assert "no answer" in show([nothing], detailed=True)[0]
