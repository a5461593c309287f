"""Rows as pictures need them: from every kind of file the same, and series with gaps where no face was."""

import json
from pathlib import Path

import numpy as np
import pytest
from picture_faces import ABOUT, EMOTIONS, UNITS, some_rows

from mf2face.inference.explain.picture_rows import read_picture_rows, thumbnails, tracks_of
from mf2face.inference.rows import Columns, RowFile


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_every_kind_of_file_gives_the_rows_of_the_run(tmp_path: Path, ending: str) -> None:
    kept, rows = some_rows(tmp_path)
    path = tmp_path / f"rows.{ending}"
    about = {**ABOUT, "settings": {**ABOUT["settings"], "thresholds": dict.fromkeys(UNITS, 0.5)}}
    file = RowFile(path, Columns(UNITS, EMOTIONS), about)
    file.add(rows)
    file.close(finished=True)
    read = read_picture_rows(path)
    assert str(read) == str(kept), "NaN is not equal to itself"
    assert read.about["model"] == "tiny" and read.thresholds["AU12"] == 0.5


def test_tracks_have_gaps_and_spans(tmp_path: Path) -> None:
    first, second = tracks_of(some_rows(tmp_path)[0], "v.mp4")
    assert first.seen.all() and second.seen.tolist() == [True, True, False, False, True, True]
    assert np.isnan(second.units["AU12"][2:4]).all() and not second.active["AU12"][2:4].any()
    assert second.top()[1:3] == ["Happiness", None]
    assert first.edges.tolist() == pytest.approx([0, 0.05, 0.15, 0.25, 0.35, 0.45, 0.55])
    stretches = [(name, round(start, 3), round(stop, 3)) for name, start, stop in first.stretches()]
    assert stretches == [("Neutral", 0, 0.25), ("Happiness", 0.25, 0.55)]


def test_thumbnails_are_square_and_a_lost_image_is_none(tmp_path: Path) -> None:
    kept, _ = some_rows(tmp_path)
    (tmp_path / "0-face.png").unlink()
    lost, whole = thumbnails(kept.stills, 50)
    assert lost is None and whole.shape == (50, 50, 3)


def test_what_is_no_file_of_rows_is_refused_by_name(tmp_path: Path) -> None:
    for name, content in {"a.csv": "x,y\n1,2\n", "b.jsonl": "no json\n", "c.csv": "", "d.parquet": "no"}.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=name):
            read_picture_rows(tmp_path / name)
    with pytest.raises(ValueError, match=r"gone\.csv"):
        read_picture_rows(tmp_path / "gone.csv")
    (tmp_path / "a.csv.about.json").write_text(json.dumps({}))
    with pytest.raises(ValueError, match="no column input"):
        read_picture_rows(tmp_path / "a.csv")
