"""Parts of the inputs for several machines: divided alike, merged into what one run writes, refused if they differ."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from analysis_media import embedded, face_at, write_faces, write_video

from mf2face.inference.analyze import analyze
from mf2face.inference.cli import main
from mf2face.inference.rows import OutputError
from mf2face.inference.shards import Shard, merge_shards


class ByGrey:
    """Finds two faces, in an order that changes, or none: by the grey of the frame alone."""

    def detect(self, images: Sequence[np.ndarray]) -> list:
        greys = [int(image[0, -1, 0]) // 5 for image in images]
        pairs = [[face_at(2 + grey % 20, 2), face_at(50, 10)][:: 1 if grey % 2 else -1] for grey in greys]
        return [[] if grey == 3 else pair for grey, pair in zip(greys, pairs, strict=True)]


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    write_faces(tmp_path / "in", 4)
    (tmp_path / "in" / "more").mkdir()
    write_video(tmp_path / "in" / "more" / "a.avi", 7)
    write_video(tmp_path / "in" / "more" / "b.avi", 5)
    (tmp_path / "in" / "face-002.png").write_text("no image")
    (tmp_path / "in" / "empty").mkdir()
    return tmp_path / "in"


def run(inputs: Path, output: Path, shard: str | None = None, **settings: object) -> None:
    # The last digit of a probability depends on the batch that a face is in, unless it is alone.
    settings = {"detector": ByGrey(), "batch_size": 1, **settings}
    analyze([str(inputs), str(inputs / "empty")], output, model=embedded(), shard=shard, **settings)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("count", [1, 3, 11])
def test_merged_shards_are_what_one_run_writes(inputs: Path, tmp_path: Path, ending: str, count: int) -> None:
    whole, merged = tmp_path / f"whole.{ending}", tmp_path / f"merged.{ending}"
    run(inputs, whole)
    for index in range(count, 0, -1):
        run(inputs, merged, f"{index}/{count}")
    assert not merged.exists()
    summary = merge_shards(merged)
    if ending == "parquet":
        tables = [pyarrow.parquet.read_table(path) for path in (whole, merged)]
        assert str(tables[0].to_pylist()) == str(tables[1].to_pylist()) and tables[0].schema.equals(tables[1].schema)
    else:
        assert whole.read_bytes() == merged.read_bytes()
    about = [json.loads(Path(f"{path}.about.json").read_text()) for path in (whole, merged)]
    for one in about:  # folders are read before files
        one["skipped"].sort(key=str)
    ignored = ("seconds", "bytes") if ending == "parquet" else ("seconds",)
    first, second = ({**one, **dict.fromkeys(ignored)} for one in about)
    assert first == second
    assert (summary.frames, summary.without_face, summary.left_out) == (15, 2, 2)
    run(inputs, merged)  # the merged output is continued like that of one run
    assert json.loads(Path(f"{merged}.about.json").read_text())["frames"] == 0


def test_a_stopped_shard_is_refused_until_it_is_continued(inputs: Path, tmp_path: Path) -> None:
    class Stops(ByGrey):
        def detect(self, images: Sequence[np.ndarray]) -> list:
            if int(images[0][0, -1, 0]) // 5 >= 3 and images[0].shape[-1] == 96:
                raise KeyboardInterrupt
            return super().detect(images)

    Stops.__name__ = "ByGrey"
    merged = tmp_path / "m.csv"
    run(inputs, merged, "1/2")
    with pytest.raises(KeyboardInterrupt):
        run(inputs, merged, "2/2", detector=Stops())
    with pytest.raises(OutputError, match=r"m-2-of-2\.csv is not finished \(interrupted\); run --shard 2/2"):
        merge_shards(merged)
    run(inputs, merged, "2/2")
    run(inputs, tmp_path / "whole.csv")
    assert merge_shards(merged).frames == 15
    assert merged.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_shards_that_do_not_fit_are_named_and_nothing_is_written(inputs: Path, tmp_path: Path) -> None:
    merged = tmp_path / "m.csv"

    def refused(match: str) -> None:
        with pytest.raises(OutputError, match=match):
            merge_shards(merged)
        assert not merged.exists() and not Path(f"{merged}.about.json").exists()

    refused(r"got none beside .*m-1-of-8\.csv")
    for index in (1, 3):
        run(inputs, merged, f"{index}/3")
    refused("1 of 3 are missing; run --shard 2/3")
    first, second, third = (tmp_path / f"m-{index}-of-3.csv" for index in (1, 2, 3))
    for suffix in ("", ".about.json"):
        Path(f"{second}{suffix}").write_bytes(Path(f"{third}{suffix}").read_bytes())
    refused(r"m-2-of-3\.csv is not of shard 2/3")
    run(inputs, merged, "2/3", overwrite=True, thresholds=0.9)
    refused(r"m-2-of-3\.csv was made with thresholds.*m-1-of-3\.csv:")
    (inputs / "face-000.png").rename(inputs / "face-999.png")
    run(inputs, merged, "2/3", overwrite=True)
    refused("was made with inputs '6 with hash")
    (inputs / "face-999.png").rename(inputs / "face-000.png")
    with pytest.raises(OutputError, match="inputs"):
        run(inputs, merged, "2/3")
    run(inputs, merged, "2/3", overwrite=True)
    content = first.read_bytes()
    first.write_bytes(content[:-9])
    refused(r"m-1-of-3\.csv has \d+ bytes, expected")
    first.write_bytes(content.replace(b"input,frame", b"frame,input"))
    refused("columns")
    first.write_bytes(content)
    about = Path(f"{first}.about.json")
    kept = about.read_text()
    about.write_text("[]")
    refused("could not be merged")
    about.write_text(kept)
    (tmp_path / "m-01-of-3.csv").write_bytes(content)
    refused("expected shard 1/3 once")
    (tmp_path / "m-01-of-3.csv").rename(tmp_path / "m-1-of-4.csv")
    refused(r"some of \[3, 4\]")
    (tmp_path / "m-1-of-4.csv").rename(tmp_path / "m-4-of-3.csv")
    refused(r"m-4-of-3\.csv, expected 1 to 3")
    (tmp_path / "m-4-of-3.csv").unlink()
    merge_shards(merged)
    with pytest.raises(OutputError, match="is there"):
        merge_shards(merged)
    merge_shards(merged, overwrite=True)


def test_every_input_is_in_one_shard_and_shards_are_balanced() -> None:
    for files in range(20):
        for count in range(1, 12):
            parts = [Shard(index, count).part(list(map(str, range(files)))) for index in range(1, count + 1)]
            assert [int(one) for part in parts for one in part] == list(range(files))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1
    names = [Shard(index, 12).path("a/b.c.csv").name for index in range(1, 13)]
    assert names == sorted(names) and names[1] == "b.c-02-of-12.csv"


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "1/0", "a/b", "-1/2", "1/2/3", ""])
def test_a_shard_that_cannot_be_is_named(shard: str) -> None:
    with pytest.raises(ValueError, match=r"shard: got .*expected i/n"):
        Shard.parse(shard)


def test_the_command_divides_and_merges(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(tmp_path / "rows.csv")
    for index, code in ((1, 1), (2, 0)):
        options = ["--aligned", "-o", output, "--shard", f"{index}/2", "--batch_size", "2"]
        assert main([str(inputs), *options], model=embedded()) == code
    assert "rows-2-of-2.csv" in capsys.readouterr().err
    assert main(["merge", output]) == 0
    assert f"rows: {output}" in capsys.readouterr().err
    assert main(["merge", output]) == 4 and "--overwrite" in capsys.readouterr().err
    assert main(["merge", str(tmp_path / "rows.txt")]) == 2
    assert main(["--camera", "0", "--aligned", "--shard", "1/2"], model=embedded()) == 2
    assert "camera 0" in capsys.readouterr().err
    # More shards than inputs: one without any is empty, and no failure.
    assert main([str(inputs / "face-000.png"), "--aligned", "-o", output, "--shard", "1/2"], model=embedded()) == 4
    assert main([str(inputs / "face-000.png"), "--aligned", "--shard", "1/2"], model=embedded()) == 0
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]
