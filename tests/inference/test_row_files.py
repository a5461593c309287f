"""Outputs grow by whole frames, survive a kill at any byte, and are continued only by the run they belong to."""

import csv
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

from mf2face.inference.rows import Columns, OutputError, RowFile, format_of


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
    assert [[int(float(one["face_id"])) for one in group] for group in more.last_frames] == [[0, 1], [1], []]
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
    path, names = (
        tmp_path / "out.parquet",
        [os.fsdecode(b"\xff.png"), "\\xff.png", "\\x5cxff.png", "\ufffd.png", "a\\b"],
    )
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
    out.lock.release()  # as the system does for a process that is killed
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


def test_what_is_no_file_or_damaged_is_said_and_left_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "folder.csv").mkdir()
    for name in ("pipe.csv", "folder.csv"):
        for overwrite in (False, True):
            with pytest.raises(OutputError, match=rf"{name} is no file; expected one to write"):
                RowFile(tmp_path / name, COLUMNS, dict(ABOUT), overwrite=overwrite)
    assert (tmp_path / "pipe.csv").is_fifo()
    lines = ",".join(COLUMNS.names) + "\n" + ",".join(["face.png"] * len(COLUMNS.names)) + "\n"
    for name, content in (("bad.parquet", b"PAR1 and no more"), ("bad.csv", lines.encode())):
        write(tmp_path / name, frames())
        (tmp_path / name).write_bytes(content)
        with pytest.raises(OutputError, match="damaged"):
            RowFile(tmp_path / name, COLUMNS, dict(ABOUT))
        (tmp_path / f"{name}.about.json").write_text("[]")
        with pytest.raises(OutputError, match="damaged"):
            RowFile(tmp_path / name, COLUMNS, dict(ABOUT))
        write(tmp_path / name, frames(), overwrite=True)
    bad = {f"bad.{ending}{more}" for ending in ("parquet", "csv") for more in ("", ".about.json")}
    assert {path.name for path in tmp_path.iterdir()} == {"pipe.csv", "folder.csv", *bad}


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
    with pytest.raises(ValueError, match=r"'\.xlsx'"):
        format_of("a.xlsx")


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_rows_of_people_are_private_and_names_that_look_like_formulas_are_continued(
    tmp_path: Path, ending: str
) -> None:
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


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_an_output_that_was_killed_before_its_facts_were_written_is_begun_anew(tmp_path: Path, ending: str) -> None:
    header = ",".join(COLUMNS.names) + "\n"
    for content in ("", header[:9], header) if ending == "csv" else ("",):
        path = tmp_path / f"out.{ending}"
        path.write_text(content)
        write(path, frames()[:1])
        assert write(path, []).done == {"ä, b.mp4": 0}
        for file in tmp_path.iterdir():
            file.unlink()


@pytest.mark.parametrize("wrong", ["inf", "1e400", "x", "[1]"])
def test_a_row_with_a_wrong_number_is_a_damaged_output(tmp_path: Path, wrong: str) -> None:
    path = tmp_path / "out.csv"
    write(path, frames()[:2])
    lines = path.read_text().splitlines()
    lines[1] = lines[1].replace(",0,0.0,0,", f",{wrong},0.0,0,")
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(OutputError, match="damaged"):
        RowFile(path, COLUMNS, json.loads(json.dumps(ABOUT)))


@pytest.mark.parametrize("text", ["null", "[]", "3", '{"settings": 3}', "[" * 100_000])
def test_facts_that_are_none_are_named(tmp_path: Path, text: str) -> None:
    out = tmp_path / "rows.csv"
    write(out, frames())
    Path(f"{out}.about.json").write_text(text)
    with pytest.raises(OutputError, match=r"rows.csv.about.json, .* damaged"):
        write(out, frames())
