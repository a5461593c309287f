"""Runs over images, folders and videos: rows in order, faces followed, memory flat, and continued where a run ended."""

import csv
import dataclasses
import json
import math
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from analysis_media import FakeCamera, FakeDetector, embedded, face_at, write_cut_video, write_faces, write_video

import mf2face
from mf2face.data.synthetic.faces import draw_example
from mf2face.inference import analyze as analyze_mf2
from mf2face.inference.analyze import BatchSize, analyze
from mf2face.inference.annotate import AnnotatedVideo, FrameView
from mf2face.inference.cli import main
from mf2face.inference.media import Frame
from mf2face.inference.model import AnalysisModel, load_model
from mf2face.inference.rows import Columns, OutputError, has_face, unit_column


def write_landmarks(path: Path, faces: list[np.ndarray], names: list[str]) -> None:
    """A file of one image names none."""
    head = [f"{axis}_{point}" for axis in "xy" for point in range(68)]
    rows = [[name, *points.T.flat] if name else [*points.T.flat] for name, points in zip(names, faces, strict=True)]
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([["input", *head] if names[0] else head, *rows])


def test_a_row_says_what_the_pipeline_says(tmp_path: Path) -> None:
    """With given landmarks, and with a template, whatever else is in the batch."""
    model, places = embedded(), write_faces(tmp_path, 5)
    names = [path.name for path in places]
    write_landmarks(tmp_path / "l.csv", [draw_example(index, seed=2)[1] for index in range(5)], names)
    for settings in ({"aligned": True}, {"landmarks": tmp_path / "l.csv"}):
        rows = mf2face.analyze([str(path) for path in places], model=model, **settings).rows
        assert [row["input"] for row in rows] == [str(path) for path in places]
        points = None if "aligned" in settings else draw_example(3, seed=2)[1]
        expected = model.pipeline({"image": str(places[3]), "landmarks": points})[0]
        assert rows[3]["top_emotion"] == expected["emotion"]
        assert rows[3]["landmark_source"] == ("template" if points is None else "given")
        for name, unit in expected["action_units"].items():
            assert rows[3][unit_column(name)] == pytest.approx(unit["probability"], abs=1e-4)
            assert rows[3][f"{unit_column(name)}_c"] == unit["active"]
        for name, share in expected["emotions"].items():
            assert rows[3][name] == pytest.approx(share, abs=1e-4)
        assert rows[3]["x_30"] == pytest.approx(expected["landmarks"][30][0], abs=0.01)


def test_other_landmarks_are_another_run(tmp_path: Path) -> None:
    model, (face,), out = embedded(), write_faces(tmp_path, 1), tmp_path / "rows.csv"
    settings = {"model": model, "landmarks": tmp_path / "l.csv"}
    write_landmarks(tmp_path / "l.csv", [draw_example(0, seed=2)[1]], [""])
    assert analyze(str(face), out, **settings).faces == 1
    write_landmarks(tmp_path / "l.csv", [draw_example(0, seed=2)[1] + 1], [""])
    with pytest.raises(OutputError, match="was made with landmark_file"):
        analyze(str(face), out, **settings)


def test_faces_of_a_video_keep_their_numbers_and_empty_frames_their_row(tmp_path: Path) -> None:
    walk = [[face_at(2 + 3 * step, 2), face_at(50, 10)][:: 1 if step % 2 else -1] for step in range(4)]
    detector = FakeDetector([*walk, [], [face_at(51, 11, score=0.4)]])
    video = write_video(tmp_path / "v.avi", 8)
    summary = analyze(str(video), detector=detector, model=embedded())
    seen = [(row["frame"], row["face_id"] if has_face(row) else None) for row in summary.rows]
    ids = [(0, 0), (0, 1), (1, 1), (1, 0), (2, 0), (2, 1), (3, 1), (3, 0), (4, None), (5, 0), (6, None), (7, None)]
    assert seen == ids
    assert (summary.frames, summary.faces, summary.without_face) == (8, 9, 3)
    assert summary.rows[9]["FaceScore"] == 0.4 and summary.rows[9]["time_s"] == pytest.approx(0.5)
    assert summary.rows[9]["landmark_source"] == "FakeDetector"


def test_a_hundred_faces_in_a_picture_are_a_hundred_rows(tmp_path: Path) -> None:
    write_video(tmp_path / "crowd.avi", 1)
    cv2.imwrite(str(tmp_path / "crowd.png"), np.zeros((400, 400, 3), np.uint8))
    crowd = [face_at(40 * x, 40 * y) for y in range(10) for x in range(10)]
    bad = face_at(0, 0)
    bad.landmarks[:] = 7  # what a network may find in a wall
    summary = analyze(tmp_path / "crowd.png", detector=FakeDetector([[*crowd, bad]]), model=embedded(), batch_size=64)
    assert [row["face_id"] for row in summary.rows[:-1]] == list(range(100))
    assert not has_face(summary.rows[-1]) and "one spot or one line" in summary.rows[-1]["error"]
    assert summary.rows[57]["FaceRectX"] == 280 and summary.left_out == 1
    assert "one spot or one line" in summary.skipped[0][1] and not summary.skipped[0][1].startswith("inputs")


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_stopped_run_goes_on_to_what_an_unstopped_one_writes(tmp_path: Path, ending: str) -> None:
    write_faces(tmp_path / "in", 3)
    video = write_video(tmp_path / "in" / "v.avi", 12)
    # Named in another order after the stop; a third is seen at the start, and a fourth there when it is forgotten.
    walk = [[face_at(2 + 2 * step, 2), face_at(50, 10)][:: 1 if step < 7 else -1] for step in range(12)]
    for step in (0, 9):
        walk[step].append(face_at(2, 44, 18))
    walk[6] = []
    faces = [[face_at(10, 10, 90)]] * 3
    settings = {"model": embedded(), "batch_size": 5}
    whole, cut = tmp_path / f"whole.{ending}", tmp_path / f"cut.{ending}"
    analyze(tmp_path / "in", whole, detector=FakeDetector([*faces, *walk]), **settings)

    class Interrupted(FakeDetector):
        def detect(self, images: Sequence[np.ndarray]) -> list:
            if self.seen >= 10:
                raise KeyboardInterrupt
            return super().detect(images)

    Interrupted.__name__ = "FakeDetector"  # its name stands in the rows
    with pytest.raises(KeyboardInterrupt):
        analyze(tmp_path / "in", cut, detector=Interrupted([*faces, *walk]), **settings)
    about = json.loads(Path(f"{cut}.about.json").read_text())
    assert about["frames"] == 10 and about["finished"] is False and about["stopped"] == "interrupted"
    assert about["synthetic"] is True and about["settings"]["model"] == "mf2-tiny-rendered"
    rest = analyze(tmp_path / "in", cut, detector=FakeDetector(walk[7:]), **settings)
    assert rest.frames == 5 and rest.resumed == 4
    if ending == "parquet":
        import pyarrow.parquet

        both = [pyarrow.parquet.read_table(path).to_pylist() for path in (whole, cut)]
        assert str(both[0]) == str(both[1])
    else:
        assert whole.read_bytes() == cut.read_bytes()
    again = analyze(str(tmp_path / "in"), cut, detector=FakeDetector([]), **settings)
    assert again.frames == 0 and str(video) not in dict(again.skipped)


def test_a_cut_ends_every_track_also_where_a_run_goes_on(tmp_path: Path) -> None:
    video, still = write_cut_video(tmp_path / "v.avi"), [[face_at(20, 20)]] * 12
    rows = analyze(video, detector=FakeDetector(still), model=embedded(), batch_size=1).rows
    assert [(row["scene"], row["face_id"]) for row in rows] == [*[(0, 0)] * 7, *[(1, 1)] * 5]
    whole = tmp_path / "whole.csv"
    analyze(video, whole, detector=FakeDetector(still), model=embedded(), batch_size=1)
    lines = whole.read_bytes().splitlines(keepends=True)
    for left in (4, 7, 8, 9, 10):  # the header, and rows before, at and behind the cut
        cut = tmp_path / f"{left}.csv"
        cut.write_bytes(b"".join(lines[:left]))
        about = json.loads(Path(f"{whole}.about.json").read_text())
        Path(f"{cut}.about.json").write_text(json.dumps({**about, "finished": False, "bytes": 0}))
        analyze(video, cut, detector=FakeDetector(still), model=embedded(), batch_size=1)
        assert cut.read_bytes() == whole.read_bytes(), left


def test_what_breaks_the_detector_or_the_model_is_a_row_with_its_reason(tmp_path: Path) -> None:
    class Breaks(FakeDetector):
        def detect(self, images):
            if len(images) > 1 or self.seen == 1:
                self.seen += len(images) == 1
                raise RuntimeError("too narrow")
            return super().detect(images)

    write_faces(tmp_path / "in", 3)
    summary = analyze(tmp_path / "in", tmp_path / "r.csv", detector=Breaks([[face_at(10, 10)]] * 3), model=embedded())
    with open(tmp_path / "r.csv") as file:
        rows = list(csv.DictReader(file))
    assert [bool(row["error"]) for row in rows] == [False, True, False] and "too narrow" in rows[1]["error"]
    assert (summary.frames, summary.faces, summary.left_out, summary.without_face) == (3, 2, 1, 0)
    assert "too narrow" in summary.skipped[0][1]


def test_rows_of_other_settings_and_of_cameras_are_not_continued(tmp_path: Path, monkeypatch) -> None:
    write_faces(tmp_path / "in", 1)
    out, settings = tmp_path / "out.csv", {"model": embedded(), "aligned": True}
    analyze(tmp_path / "in", out, **settings)
    with pytest.raises(OutputError, match="thresholds"):
        analyze(tmp_path / "in", out, thresholds=0.9, **settings)
    monkeypatch.setattr(cv2, "VideoCapture", FakeCamera(10**6))
    with pytest.raises(OutputError, match="camera cannot be continued"):
        analyze(0, out, seconds=0.01, **settings)
    analyze(0, out, seconds=0.01, overwrite=True, **settings)
    with open(out) as file:
        assert {row["input"] for row in csv.DictReader(file)} == {"camera:0"}


def test_a_camera_that_is_pulled_out_leaves_its_rows(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", FakeCamera(7))
    with pytest.raises(OSError, match="still plugged in"):
        analyze(0, tmp_path / "out.jsonl", aligned=True, model=embedded())
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["frame"] for row in rows] == list(range(7)) and {row["face_id"] for row in rows} == {0}


def test_captions_come_only_when_asked_for(tmp_path: Path) -> None:
    (path,) = write_faces(tmp_path, 1)
    plain = analyze(path, aligned=True, model=embedded()).rows[0]
    told = analyze(path, aligned=True, model=embedded(), caption=True).rows[0]
    assert "caption" not in plain and told["caption"].endswith(".") and told["caption_disagrees"] in (0, 1)
    assert told["AU12"] == pytest.approx(plain["AU12"], abs=1e-5)


def test_memory_does_not_grow_with_a_video_in_which_nobody_is_seen(tmp_path: Path) -> None:
    video = write_video(tmp_path / "v.avi", 50)

    def peak(times: int) -> int:
        copies = [tmp_path / f"copy-{times}-{number}.avi" for number in range(times)]
        for copy in copies:
            copy.symlink_to(video)
        sizes = []
        sink = SimpleNamespace(add=lambda rows: sizes.append(len(rows)))
        tracemalloc.start()
        analyze([str(copy) for copy in copies], sink, detector=FakeDetector([]), model=embedded())
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert sum(sizes) == 50 * times
        return found

    peak(1)
    assert peak(10) < peak(2) + 500_000


def test_a_crowd_is_aligned_batch_by_batch_to_the_same_rows(tmp_path: Path, monkeypatch) -> None:
    video, faces = write_video(tmp_path / "v.avi", 6), [[face_at(5, 5), face_at(50, 20)]] * 6
    rows = []
    for most in (analyze_mf2._MOST_ALIGNED, 3):
        monkeypatch.setattr(analyze_mf2, "_MOST_ALIGNED", most)
        rows.append(analyze(video, detector=FakeDetector(faces), model=embedded(), batch_size=4).rows)
    assert str(rows[0]) == str(rows[1])  # NaN is not equal to itself


def test_decoded_frames_are_held_in_bounds_however_large_the_batch(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(analyze_mf2, "_MOST_BYTES", 3 * 96 * 64 * 3)
    sizes = []
    detector = SimpleNamespace(detect=lambda images: sizes.append(len(images)) or [[] for _ in images])
    analyze(write_video(tmp_path / "v.avi", 10), detector=detector, model=embedded(), batch_size=64)
    assert sizes == [3, 3, 3, 1]


@pytest.mark.parametrize(("fixed", "falling", "expected"), [(0.01, 1, 8), (1, 0, 4), (0, 1, 64)])
def test_the_batch_size_grows_while_a_face_gets_cheaper_by_it(fixed: float, falling: float, expected: int) -> None:
    batch = BatchSize()
    for _ in range(40):
        each = falling / batch.size + fixed * (batch.size if falling else 1)
        batch.learn(batch.size, each * batch.size)
    assert batch.size == expected


def test_a_given_batch_size_is_kept_and_can_be_halved() -> None:
    fixed = BatchSize(5)
    fixed.learn(5, 1.0)
    assert fixed.size == 5 and fixed.shrink() and fixed.size == 2 and fixed.shrink() and not fixed.shrink()
    with pytest.raises(ValueError, match="batch_size: got 0"):
        BatchSize(0)


def model_that(answers) -> AnalysisModel:
    """The embedded model behind a function of its pipeline, the images and the settings of the call."""
    real = embedded().pipeline

    class Pipeline:
        model, processor = real.model, real.processor

        def __call__(self, images: list, **settings):
            return answers(real, images, **settings)

    return dataclasses.replace(embedded(), pipeline=Pipeline())


def test_a_batch_too_large_for_the_device_is_halved(tmp_path: Path) -> None:
    tried = []

    def small(real, images: list, batch_size: int, **settings):
        tried.append(batch_size)
        if batch_size > 3:
            raise torch.OutOfMemoryError("too large")
        return real(images, batch_size=batch_size, **settings)

    write_faces(tmp_path, 4)
    summary = analyze(tmp_path, model=model_that(small), aligned=True)
    assert tried == [4, 2] and summary.faces == 4 and summary.batch_size == 2


def test_an_answer_that_is_no_number_is_a_marked_row_and_never_neutral(tmp_path: Path) -> None:
    model = load_model(device="cpu")
    with torch.no_grad():
        for weight in model.pipeline.model.classifiers.parameters():
            weight.fill_(float("nan"))
    write_faces(tmp_path, 2)
    summary = analyze(tmp_path, aligned=True, model=model)
    assert (summary.frames, summary.faces, summary.without_face, summary.left_out) == (2, 2, 0, 2)
    assert "finite" in summary.skipped[0][1]
    for row in summary.rows:
        assert has_face(row) and row["top_emotion"] is None and row["FaceRectWidth"] > 0
        assert all(math.isnan(row[name]) for name in row if name.startswith("AU") or name == "Neutral")


def test_a_face_that_breaks_the_model_leaves_the_others_their_rows(tmp_path: Path) -> None:
    write_faces(tmp_path, 3)
    bad = cv2.imread(str(tmp_path / "face-001.png"))[..., ::-1].transpose(2, 0, 1)

    def breaks(real, images: list, **settings):
        if any(np.array_equal(image["image"], bad) for image in images):
            raise IndexError("tile\nand more")
        return real(images, **settings)

    summary = analyze(tmp_path, aligned=True, model=model_that(breaks))
    assert [has_face(row) for row in summary.rows] == [True, False, True]
    assert "(IndexError: tile)" in summary.skipped[0][1] and summary.without_face == 0


def frames_of(path: Path) -> tuple[list[np.ndarray], float]:
    video, frames = cv2.VideoCapture(str(path)), []
    while (read := video.read())[0]:
        frames.append(read[1].astype(int))
    return frames, video.get(cv2.CAP_PROP_FPS)


def test_every_frame_is_there_with_its_face_in_it(tmp_path: Path) -> None:
    source, out = write_video(tmp_path / "v.avi", 8, fps=10, size=(160, 128)), tmp_path / "out.mp4"
    detector = FakeDetector([[face_at(20 + 4 * number, 30, side=60)] for number in range(4)])
    options = ["--every", "2", "-o", str(tmp_path / "rows.csv"), "--annotate", str(out), "--quiet"]
    assert main([str(source), *options], model=embedded(), detector=detector) == 0
    frames, fps = frames_of(out)
    assert len(frames) == 4 and fps == pytest.approx(5, rel=0.01) and frames[0].shape[1] == 480, (
        "narrow ones are enlarged"
    )
    below = len(frames[0]) - 304  # where the panel of 12 AUs begins
    top = below - 384
    greens = [(frame[top:below, :, 1] - frame[top:below, :, 2] > 40).nonzero()[1] for frame in frames]
    assert all(len(green) > 100 for green in greens)
    assert [green.min() / 3 for green in greens] == pytest.approx([20, 24, 28, 32], abs=4)
    assert frames[0][:20].mean() > 180 and frames[0][below:].std() > 10, "the banner, and the panel"
    assert sorted(path.name for path in tmp_path.iterdir() if "lock" not in path.name) == sorted(
        ["v.avi", "out.mp4", "rows.csv", "rows.csv.about.json"]
    )


def test_a_run_that_fails_leaves_no_video(tmp_path: Path) -> None:
    frame = Frame("v", 0, 0.0, np.zeros((3, 30, 41), np.uint8), is_moving=True)
    draw = FrameView(Columns((), ()), {}, {}).draw
    with pytest.raises(ZeroDivisionError), AnnotatedVideo(tmp_path / "a.mp4", draw) as video:
        video.add(frame, [])
        raise ZeroDivisionError
    with AnnotatedVideo(tmp_path / "b.mp4", draw):
        pass
    assert not any(tmp_path.iterdir())
    with AnnotatedVideo(tmp_path / "one.mp4", draw) as video:
        video.add(frame, [])
    assert len(frames_of(tmp_path / "one.mp4")[0]) == 1


@pytest.mark.parametrize("options", [["--annotate", "a.avi"], ["--annotate", "a.mp4", "-o", "{rows}"]])
def test_what_cannot_be_annotated_is_refused(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "rows.csv").touch()
    source = write_video(tmp_path / "v.avi", 2)
    with pytest.raises(SystemExit):
        main([str(source), *(option.format(rows=tmp_path / "rows.csv") for option in options)])
    assert "--annotate" in capsys.readouterr().err
