"""`mf2face.Analyzer`: rows of a batch are those of one run, wherever it is unpickled; a bad item is a marked row."""

import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from analysis_media import embedded, write_faces, write_video
from PIL import Image

import mf2face
from mf2face import Analyzer


SETTINGS = {"aligned": True, "batch_size": 1}


@pytest.fixture
def items(tmp_path: Path) -> list[str]:
    faces = write_faces(tmp_path, 3)
    faces[1].write_text("no image")
    video = write_video(tmp_path / "v.avi", 4)
    return [str(path) for path in (faces[0], video, tmp_path / "gone.png", faces[1], faces[2])]


def plain(rows: list[dict]) -> str:
    """NaN is not equal to itself; and without errors."""
    return str([{**row, "error": None} for row in rows if not row["error"]])


def by_rows(columns: dict) -> list[dict]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def test_rows_are_those_of_one_run_and_bad_items_are_marked(items: list[str]) -> None:
    expected = mf2face.analyze(items, model=embedded(), **SETTINGS)
    rows = Analyzer(**SETTINGS)(items)
    assert plain(rows) == str(expected.rows) and len(expected.rows) == 6
    errors = [(row["input"], row["error"]) for row in rows if row["error"]]
    assert errors == expected.skipped and len(errors) == 2
    assert [row["input"] for row in rows][5:7] == items[2:4]  # in the place of their items
    bad = next(row for row in rows if row["error"])
    assert np.isnan(bad["face_id"]) and np.isnan(bad["AU12"]) and bad["top_emotion"] is None


def test_images_of_any_kind_and_one_video_twice(items: list[str]) -> None:
    analyzer, path = Analyzer(**SETTINGS), items[0]
    content = Path(path).read_bytes()
    kinds = [path, Image.open(path), {"bytes": content, "path": path}, {"bytes": content, "path": None}, content]
    pixels = np.array(Image.open(path))
    rows = analyzer([*kinds, pixels, items[1], items[1], None])
    assert [row["input"] for row in rows[:6]] == [path, path, path, "3", "4", "5"]
    assert len({plain([{**row, "input": ""}]) for row in rows[:6]}) == 1
    assert plain(rows[6:10]) == plain(rows[10:14]) and [row["frame"] for row in rows[6:10]] == [0, 1, 2, 3]
    assert rows[14]["input"] == "8" and "NoneType" in rows[14]["error"] and len(rows) == 15


def test_columns_have_one_type_whatever_is_in_the_batch(items: list[str]) -> None:
    analyzer = Analyzer(column="file", name="id", keep=["subject"], **SETTINGS)
    batch = {"file": np.array(items, object), "id": [f"n{place}" for place in range(5)], "subject": np.arange(5)}
    columns = analyzer(batch)
    assert list(columns["input"]) == ["n0", *["n1"] * 4, "n2", "n3", "n4"] and columns["subject"][1:5] == [1] * 4
    assert columns["error"][0] == "" and "zero" not in columns["error"][6] and columns["error"][6]
    assert plain(by_rows({**columns, "input": [""] * 8})).count("AU12_c") == 6
    for some in ([0], [2], []):
        part = analyzer({name: [values[place] for place in some] for name, values in batch.items()})
        assert {name: getattr(one, "dtype", None) for name, one in part.items()} == {
            name: getattr(one, "dtype", None) for name, one in columns.items()
        }
        assert len(part["input"]) == len(some)
    assert columns["frame"].dtype == np.int64 and columns["face_id"].dtype == columns["AU12_c"].dtype == np.float64


def test_landmarks_of_a_file_are_found_by_name(items: list[str], tmp_path: Path) -> None:
    mf2face.analyze(items[0], tmp_path / "rows.csv", model=embedded(), aligned=True)
    rows = Analyzer(landmarks=tmp_path / "rows.csv", batch_size=1)({"image": [items[0]], "path": [items[4]]})
    assert "has no landmarks of it" in rows["error"][0] and np.isnan(rows["face_id"][0])
    rows = Analyzer(landmarks=tmp_path / "rows.csv", batch_size=1)([items[0]])
    assert rows[0]["landmark_source"] == "given" and rows[0]["error"] is None


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: Analyzer(embedded()), TypeError, "model: got AnalysisModel"),
        (lambda: Analyzer(keep="subject"), TypeError, "keep: got 'subject'"),
        (lambda: Analyzer(every=0), ValueError, "every: got 0"),
        (lambda: Analyzer(**SETTINGS)("a.png"), TypeError, "batch: got str"),
        (lambda: Analyzer(**SETTINGS)({"file": []}), ValueError, "expected 'image'"),
        (lambda: Analyzer(keep=["frame"], **SETTINGS)({"image": [], "frame": []}), ValueError, "keep: got 'frame'"),
        (lambda: Analyzer(aligned=True, landmarks="mediapipe")([]), ValueError, "expected one of them"),
    ],
)
def test_what_cannot_be_is_named(call, error, match) -> None:
    with pytest.raises(error, match=match):
        call()


def _in_a_process(content: bytes, batch: list[str]) -> tuple[int, list[dict]]:
    return os.getpid(), pickle.loads(content)(batch)


def test_it_pickles_into_a_fresh_process(items: list[str]) -> None:
    analyzer = Analyzer(**SETTINGS)
    expected, content = analyzer(items), pickle.dumps(analyzer)
    assert len(content) < 1000, "a model was pickled"
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        process, rows = pool.apply(_in_a_process, (content, items))
    assert_same(rows, expected)
    assert os.getpid() != process


def assert_same(rows: list[dict], expected: list[dict]) -> None:
    """In another process weights lie elsewhere in memory, which may change the last digit."""
    assert len(rows) == len(expected)
    for row, one in zip(rows, expected, strict=True):
        numbers = {name: value for name, value in one.items() if isinstance(value, float)}
        assert {name: row[name] for name in numbers} == pytest.approx(numbers, abs=1e-5, nan_ok=True)
        assert {**row, **dict.fromkeys(numbers)} == {**one, **dict.fromkeys(numbers)}


def test_datasets_map_in_two_processes(items: list[str], tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    batch = {"image": [*items, *items[::-1]], "subject": list("abcdefghij")}
    rows, analyzer = datasets.Dataset.from_dict(batch), Analyzer(keep=["subject"], **SETTINGS)
    settings = {"batched": True, "batch_size": 2, "remove_columns": rows.column_names}
    found = rows.map(analyzer, num_proc=2, **settings, cache_file_name=str(tmp_path / "rows.arrow"))
    assert_same(list(found), by_rows(analyzer(batch)))
    assert "".join(found["subject"]) == "abbbbcdefghiiiij" and sum(map(bool, found["error"])) == 4
