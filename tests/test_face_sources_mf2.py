"""Faces of a frame by a detector, by a file, or the frame as a crop; each says where its landmarks are from."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from analysis_media import FakeDetector, face_at

from analysis_mf2.face_sources_mf2 import AlignedCrops, DetectedFaces, GivenLandmarks, check_weights
from analysis_mf2.media_mf2 import Frame
from processing_mf2.landmarks_mf2 import template_landmarks


def frame(name: str = "a.png", number: int = 0) -> Frame:
    return Frame(name, number, float("nan"), torch.zeros(3, 80, 100, dtype=torch.uint8))


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


def test_a_detector_s_faces_come_frame_by_frame() -> None:
    source = DetectedFaces(FakeDetector([[face_at(0, 0), face_at(50, 20, score=0.7)], []]))
    first, second = source.faces([frame(), frame()])
    assert [face.box for face in first] == [(0, 0, 40, 40), (50, 20, 90, 60)] and second == []
    assert first[1].score == 0.7 and first[0].source == "FakeDetector"


def test_the_usual_detector_is_refused_before_it_would_download(monkeypatch, tmp_path: Path) -> None:
    pytest.importorskip("face_alignment")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(OSError, match=r"s3fd.*2DFAN4.*checkpoints.*--aligned.*--landmarks"):
        check_weights()
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
