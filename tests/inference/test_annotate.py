"""A video comes back with what was found in it, at its own pace, whole or not at all."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from analysis_media import FakeDetector, embedded, face_at, write_video

from mf2face.inference.annotate import AnnotatedVideo
from mf2face.inference.cli import main
from mf2face.inference.media import Frame
from mf2face.inference.rows import Columns


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
    assert len(frames) == 4 and fps == pytest.approx(5, rel=0.01) and frames[0].shape == (128, 160, 3)
    greens = [(frame[..., 1] - frame[..., 2] > 40).nonzero()[1] for frame in frames]
    assert all(len(green) > 100 for green in greens)
    assert [green.min() for green in greens] == pytest.approx([20, 24, 28, 32], abs=4)
    assert sorted(path.name for path in tmp_path.iterdir() if "lock" not in path.name) == sorted(
        ["v.avi", "out.mp4", "rows.csv", "rows.csv.about.json"]
    )


def test_a_run_that_fails_leaves_no_video(tmp_path: Path) -> None:
    frame = Frame("v", 0, 0.0, np.zeros((3, 30, 41), np.uint8), is_moving=True)
    with pytest.raises(ZeroDivisionError), AnnotatedVideo(tmp_path / "a.mp4", Columns((), ())) as video:
        video.add(frame, [])
        raise ZeroDivisionError
    with AnnotatedVideo(tmp_path / "b.mp4", Columns((), ())):
        pass
    assert not any(tmp_path.iterdir())
    with AnnotatedVideo(tmp_path / "one.mp4", Columns((), ())) as video:
        video.add(frame, [])
    assert len(frames_of(tmp_path / "one.mp4")[0]) == 1


@pytest.mark.parametrize("options", [["--annotate", "a.avi"], ["--annotate", "a.mp4", "-o", "{rows}"]])
def test_what_cannot_be_annotated_is_refused(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "rows.csv").touch()
    source = write_video(tmp_path / "v.avi", 2)
    with pytest.raises(SystemExit):
        main([str(source), *(option.format(rows=tmp_path / "rows.csv") for option in options)])
    assert "--annotate" in capsys.readouterr().err
