"""Faces by a detector, by a file, or the frame as a crop; they keep their number while they can be followed."""

import csv
import dataclasses
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from analysis_media import FakeDetector, face_at

from mf2face.inference.faces import (
    DETECT_EVERY,
    AlignedCrops,
    DetectedFaces,
    Face,
    FaceTracker,
    GivenLandmarks,
    check_detector,
    quality_of,
)
from mf2face.inference.media import Frame
from mf2face.inference.rows import PATIENCE
from processing_mf2.detection import MediaPipeDetector
from processing_mf2.landmarks import template_landmarks


def frame(name: str = "a.png", number: int = 0) -> Frame:
    return Frame(name, number, float("nan"), np.zeros((3, 80, 100), np.uint8))


def write(path: Path, rows: list[tuple], extra: tuple[str, ...] = ("input", "frame")) -> Path:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        # OpenFace writes a space behind each comma.
        writer.writerow([*extra, *(f" {axis}_{point}" for axis in "xy" for point in range(68))])
        for *told, shift in rows:
            points = template_landmarks(60, 60) + shift
            writer.writerow([*told, *points[:, 0], *points[:, 1]])
    return path


def test_a_crop_is_one_face_that_fills_it() -> None:
    ((face,),) = AlignedCrops().faces([frame()])
    assert face.box == (0, 0, 100, 80) and face.source == "template" and not face.given
    assert np.isnan(face.score) and np.allclose(face.landmarks, template_landmarks(80, 100))
    ((other,),) = AlignedCrops("ffhq").faces([frame()])
    assert other.box == face.box and other.source == "ffhq" and other.given
    assert np.allclose(other.landmarks, template_landmarks(80, 100, "ffhq"))


def test_the_usual_detector_is_refused_before_it_would_download(monkeypatch, tmp_path: Path) -> None:
    pytest.importorskip("face_alignment")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(OSError, match=r"mf2 setup.*--aligned.*--landmarks"):
        check_detector()
    with pytest.raises(OSError, match=r"checkpoints.*s3fd.*2DFAN4"):
        check_detector("face_alignment")
    assert not any(tmp_path.iterdir())


def test_given_landmarks_find_their_image_by_path_or_by_file_name(tmp_path: Path) -> None:
    rows = [("in/a.png", 0, 3), ("in/a.png", 0, 20), ("v.mp4", 4, 0), ("x/same.png", 0, 0), ("y/same.png", 0, 0)]
    source = GivenLandmarks(write(tmp_path / "l.csv", rows))
    for name in ("in/a.png", "./in/a.png", "elsewhere/a.png"):
        ((first, second),) = source.faces([frame(name)])
        assert np.allclose(first.landmarks, template_landmarks(60, 60) + 3, atol=1e-4) and first.source == "given"
        assert second.box[0] == pytest.approx(first.box[0] + 17)
    assert [len(found) for found in source.faces([frame("v.mp4", 3), frame("v.mp4", 4)])] == [0, 1]
    unknown, ambiguous, known = source.faces([frame("b.png"), frame("same.png"), frame("y/same.png")])
    assert "no landmarks of it" in unknown and "no landmarks of it" in ambiguous and len(known) == 1


def test_openface_s_file_of_one_video_counts_from_one_and_says_what_failed(tmp_path: Path) -> None:
    path = write(tmp_path / "o.csv", [(1, 1, 0), (2, 0, 0), (3, 1, 5)], ("frame", " success"))
    source = GivenLandmarks(path, only="v.mp4")
    assert [len(found) for found in source.faces([frame("v.mp4", number) for number in range(3)])] == [1, 0, 1]
    with pytest.raises(ValueError, match="no column input"):
        GivenLandmarks(path)


def test_a_file_that_holds_no_landmarks_says_what_it_lacks(tmp_path: Path) -> None:
    path = tmp_path / "l.csv"
    for text, said in (("", "no column x_0"), ("input,x_0\na,1\n", "no column x_1")):
        path.write_text(text)
        with pytest.raises(ValueError, match=said):
            GivenLandmarks(path)
    write(path, [])
    with pytest.raises(ValueError, match="holds no face"):
        GivenLandmarks(path)
    path.write_text(path.read_text() + "a.png,0," + ",".join(["x"] * 136) + "\n")
    with pytest.raises(ValueError, match="line 2"):
        GivenLandmarks(path)
    with pytest.raises(ValueError, match="could not be read"):
        GivenLandmarks(tmp_path / "gone.csv")


def test_a_frame_that_breaks_the_detector_is_named_and_the_others_are_looked_at() -> None:
    class Breaks(FakeDetector):
        def detect(self, images):
            if any(image.shape[1] == 31 for image in images):
                raise RuntimeError("Calculated padded input size: (1 x 1). Kernel size: (3 x 3).\nand more")
            return [[face_at(0, 0)] for _ in images]

    narrow = Frame("n.png", 0, float("nan"), np.zeros((3, 31, 46), np.uint8))
    first, second, third = DetectedFaces(Breaks([])).faces([frame(), narrow, frame()])
    assert len(first) == len(third) == 1
    assert isinstance(second, str) and "RuntimeError" in second and "\n" not in second

    class NoWeights(FakeDetector):
        def detect(self, images):
            raise OSError("no weights")

    with pytest.raises(OSError, match="no weights"):
        DetectedFaces(NoWeights([])).faces([frame(), frame()])


ROW_CHANGES = [
    (("a.png,0", "a.png,-1"), "line 2: frame: got '-1'"),
    (("a.png,0", "a.png,0.5"), "frame: got '0.5'"),
    (("a.png,0", "a.png,inf"), "frame: got 'inf'"),
    (("a.png,0", ",0"), "input: got an empty cell"),
    ((r"(.{400}).*", r"\1"), "line 2: .*cells, expected 138"),
    ((r"$", ",7"), "line 2: got 139 cells"),
    *(((r",[^,]*$", f",{value}"), f"y_67: got '{value}'") for value in ("nan", "inf", "", "1e300")),
]


@pytest.mark.parametrize(("change", "said"), ROW_CHANGES)
def test_damaged_rows_of_landmarks_are_refused_with_their_line(tmp_path: Path, change, said: str) -> None:
    path = write(tmp_path / "l.csv", [("a.png", 0, 3)])
    head, row = path.read_text().splitlines()
    path.write_text(f"{head}\n{re.sub(change[0], change[1], row, count=1)}\n")
    with pytest.raises(ValueError, match=said):
        GivenLandmarks(path)


@pytest.mark.parametrize("column", ["x_0", "frame"])
def test_a_column_of_landmarks_that_is_there_twice_is_refused(tmp_path: Path, column: str) -> None:
    path = write(tmp_path / "l.csv", [("a.png", 0, 3)])
    head, row = path.read_text().splitlines()
    path.write_text(f"{head},{column}\n{row},5\n")
    with pytest.raises(ValueError, match=f"column {column} more than once"):
        GivenLandmarks(path)


def test_a_row_of_nothing_but_nan_is_a_frame_without_a_face_and_escaped_names_are_read_back(tmp_path: Path) -> None:
    path = write(tmp_path / "l.csv", [("'-a.png", 0, 3), ("b.png", 0, 0)])
    path.write_text(path.read_text() + "\nv.mp4,3," + ",".join(["NaN"] * 136) + "\n")
    found, nobody = GivenLandmarks(path).faces([frame("-a.png"), frame("v.mp4", 3)])
    assert len(found) == 1 and "no landmarks" in nobody


def test_a_pipe_of_landmarks_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "l.csv")
    with pytest.raises(ValueError, match="no file"):
        GivenLandmarks(tmp_path / "l.csv")


class Following(MediaPipeDetector):
    """Counts what it is asked for; a face is lost in frame 12."""

    def __init__(self) -> None:
        super().__init__()
        self.detected: list[int] = []
        self.number = -1

    def detect(self, images):
        self.detected.append(self.number)
        return [[face_at(self.number, 0)]]

    def follow(self, image, faces):
        return [None if self.number == 12 else face_at(self.number, 0) for _ in faces]


def test_faces_of_a_video_are_detected_now_and_then_and_when_one_is_lost() -> None:
    detector = Following()
    source = DetectedFaces(detector)
    for name in ("a.mp4", "b.mp4"):
        for number in range(17):
            detector.number = number
            (((face,),),) = [source.faces([dataclasses.replace(frame(name, number), is_moving=True)])]
            assert face.box[0] == number
        assert detector.detected == [0, DETECT_EVERY, 2 * DETECT_EVERY, 12], name
        detector.detected.clear()


def test_a_face_s_quality_is_marked() -> None:
    random = np.random.default_rng(0)
    sharp = random.integers(0, 255, (3, 200, 200), dtype=np.uint8)
    face = Face((20, 20, 180, 180), 0.9, template_landmarks(160, 160) + 20, "mediapipe", pose=(0.0, 10, 0))
    assert quality_of(sharp, face) == ""
    smooth = np.broadcast_to(np.arange(200, dtype=np.uint8), (3, 200, 200))
    assert quality_of(smooth, face) == "blurred"
    small = dataclasses.replace(face, landmarks=template_landmarks(30, 30), pose=(0.0, -50, 0))
    assert quality_of(sharp, small) == "small profile"
    assert quality_of(sharp, dataclasses.replace(face, landmarks=face.landmarks + 60)) == "cut_off"
    assert quality_of(smooth, dataclasses.replace(face, given=False)) == ""
    far = dataclasses.replace(face, box=(-50, -50, -10, -10), landmarks=face.landmarks - 300)
    assert quality_of(sharp, far) == "cut_off"


def square(left: float, top: float = 0.0, side: float = 10.0) -> list[float]:
    return [left, top, left + side, top + side]


def test_the_nearer_of_two_faces_keeps_the_number() -> None:
    tracker = FaceTracker()
    tracker.follow([square(0)])
    assert tracker.follow([square(4), square(1)]) == [1, 0]
    assert tracker.follow([square(300)]) == [2]  # far from all that was there


def test_a_face_that_is_hidden_too_long_comes_back_as_another() -> None:
    for hidden, expected in ((PATIENCE, 0), (PATIENCE + 1, 1)):
        tracker = FaceTracker()
        tracker.follow([square(0)])
        for _ in range(hidden):
            tracker.follow([])
        assert tracker.follow([square(0)]) == [expected]
