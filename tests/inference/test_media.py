"""Every input as frames with the right pixels, number and time; what cannot be read is named and left out."""

import math
import os
from pathlib import Path

import cv2
import pytest
from analysis_media import FakeCamera, slowing, turned, write_cut_video, write_faces, write_video

from mf2face.inference import media as media_mf2
from mf2face.inference.media import Sampling, count_frames, files_of, find_inputs, read_frames


def read(path: Path | int, sampling: Sampling | None = None, **settings) -> tuple[list, list[tuple[str, str]]]:
    notes: list[tuple[str, str]] = []
    given = [path if isinstance(path, int) else str(path)]
    frames = list(read_frames(given, sampling or Sampling(), note=lambda *told: notes.append(told), **settings))
    return frames, notes


def test_a_folder_is_read_in_the_order_of_names_and_what_is_no_image_stays_out(tmp_path: Path) -> None:
    write_faces(tmp_path / "b", 2)
    write_faces(tmp_path / "a" / "deep", 1)
    (tmp_path / "notes.pdf").write_text("x")
    (tmp_path / "b" / "._face.png").write_text("what a Mac leaves")
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    names = [str(Path(one).relative_to(tmp_path)) for one in files_of([str(tmp_path)])]
    assert names == ["a/deep/face-000.png", "b/face-000.png", "b/face-001.png"]
    assert count_frames([str(tmp_path)], Sampling()) == 3
    frames, notes = read(tmp_path)
    assert [frame.number for frame in frames] == [0] * 3 and all(math.isnan(frame.time_s) for frame in frames)
    assert frames[0].pixels.shape == (3, 112, 112) and not notes


def test_unreadable_files_and_empty_folders_are_named_and_the_others_read(tmp_path: Path) -> None:
    write_faces(tmp_path, 1)
    for name in ("zero.jpg", "zero.mp4"):
        (tmp_path / name).touch()
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "text.mp4").write_text("no video")
    frames, notes = read(tmp_path)
    assert len(frames) == 1
    told = {Path(name).name: why for name, why in notes}
    assert set(told) == {"zero.jpg", "zero.mp4", "text.png", "text.mp4"}
    assert "zero.jpg" not in told["zero.jpg"], "its name stands before it"
    assert "zero bytes" in told["zero.jpg"] and "zero bytes" in told["zero.mp4"]
    (tmp_path / "empty").mkdir()
    assert "no image or video" in read(tmp_path / "empty")[1][0][1]
    assert "no file" in read(tmp_path / "gone.png")[1][0][1]
    assert "No such file" in read(tmp_path / "gone.mp4")[1][0][1]


def test_a_list_holds_a_path_a_line_and_nothing_comes_twice(tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("# mine\na.png\n\nb.png\na.png\n")
    assert find_inputs([str(listed), "b.png", 0]) == ["a.png", "b.png", 0]
    assert find_inputs(["./a.png", "b/../a.png", "a.png"]) == ["a.png"]
    listed.write_text("\n")
    for wrong, said in (([], "got none"), (str(listed), "got no line"), (tmp_path / "no.txt", "could not be read")):
        with pytest.raises(ValueError, match=said):
            find_inputs(wrong)
    with pytest.raises(TypeError, match="got float"):
        find_inputs(0.5)


@pytest.mark.parametrize("ending", [".mp4", ".avi"])
def test_frames_of_a_video_have_their_own_numbers_and_times(tmp_path: Path, ending: str) -> None:
    video = write_video(tmp_path / f"v{ending}")
    frames, notes = read(video, Sampling(every=7))
    assert [(frame.number, round(frame.time_s, 3)) for frame in frames] == [(0, 0.0), (7, 0.7), (14, 1.4)]
    greys = [float(frame.pixels[:, 40:].mean()) for frame in frames]
    assert greys == pytest.approx([0, 35, 70], abs=6)  # a codec loses a little
    assert not notes
    assert [frame.number for frame in read(video, Sampling(fps=4))[0]] == [0, 3, 5, 8, 10, 13, 15, 18]
    assert len(read(video, Sampling(fps=500))[0]) == 20
    assert len(read(video, Sampling(seconds=0.5))[0]) == 5
    assert [frame.number for frame in read(video, Sampling(every=7), after=lambda name: 7)[0]] == [14]
    counts = [count_frames([str(video)], Sampling(**how)) for how in ({"every": 7}, {"fps": 4}, {"seconds": 0.5})]
    assert counts == [3, 8, 5]


def test_a_variable_frame_rate_is_sampled_by_the_clock_and_not_by_the_number(tmp_path: Path) -> None:
    video = slowing(write_video(tmp_path / "v.mp4"), tmp_path / "slow.mp4")
    frames, notes = read(video)
    assert [round(frame.time_s, 1) for frame in frames[9:13]] == [0.9, 1.0, 1.4, 1.8] and len(frames) == 20
    times = [round(frame.time_s, 1) for frame in read(video, Sampling(fps=2))[0]]
    assert times == [0.0, 0.5, 1.0, 1.8, 2.2, 2.6, 3.0, 3.8, 4.2, 4.6]  # the first frame at or after each half second
    assert not notes


def test_another_scene_is_a_cut_and_another_light_is_none(tmp_path: Path) -> None:
    video = write_cut_video(tmp_path / "v.avi")
    assert [frame.number for frame in read(video)[0] if frame.is_cut] == [7]
    rest = read(video, after=lambda name: 6)[0]
    assert [frame.number for frame in rest] == [7, 8, 9, 10, 11] and rest[0].is_cut, "also where a run goes on"


def test_a_phone_s_video_stands_upright(tmp_path: Path) -> None:
    frame = read(turned(write_video(tmp_path / "v.mp4"), tmp_path / "phone.mp4"))[0][0]
    assert frame.pixels.shape == (3, 96, 64)
    assert frame.pixels[:, :, -8:].mean() > 200 > 60 > frame.pixels[:, :, :8].mean()


def test_a_video_that_was_cut_off_gives_its_frames_and_says_so(tmp_path: Path) -> None:
    for ending in (".avi", ".mkv"):
        content = write_video(tmp_path / f"v{ending}", 40).read_bytes()
        (tmp_path / f"cut{ending}").write_bytes(content[: len(content) // 2])
        frames, notes = read(tmp_path / f"cut{ending}")
        assert 5 < len(frames) < 35
        assert f"ends after {len(frames)} of 40 frames" in notes[0][1]
    content = (tmp_path / "v.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(content[:-1000])  # of its index, and of one frame at most
    assert "cut off" in read(tmp_path / "cut.avi")[1][0][1]
    content = write_video(tmp_path / "v.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) // 2])  # its index stood at the end
    frames, notes = read(tmp_path / "cut.mp4")
    assert not frames and "cut off" in notes[0][1]


def test_a_camera_has_a_clock_and_says_when_it_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="camera 97: could not be opened"):
        read(97)
    monkeypatch.setattr(cv2, "VideoCapture", FakeCamera(5))
    seen = []
    with pytest.raises(OSError, match="gives no more images after 5"):
        for frame in read_frames([1]):
            seen.append(frame)
    assert [frame.number for frame in seen] == list(range(5)) and seen[0].input == "camera:1"
    assert seen[0].time_s <= seen[4].time_s < 5 and count_frames([1], Sampling()) is None
    monkeypatch.setattr(cv2, "VideoCapture", FakeCamera(10**6))
    assert len(read(0, Sampling(seconds=0.05))[0]) < 10**5


@pytest.mark.parametrize("wrong", [{"every": 0}, {"fps": 0.0}, {"seconds": float("nan")}, {"every": 2, "fps": 5.0}])
def test_sampling_that_cannot_be_is_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sampling(**wrong)


def test_pipes_and_devices_are_not_waited_for(tmp_path: Path) -> None:
    for name in ("x.mp4", "x.png"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "zero.avi").symlink_to("/dev/zero")
    frames, notes = read(tmp_path)
    assert not frames and {Path(name).name for name, _ in notes} == {"x.mp4", "x.png", "zero.avi"}
    assert all("no file" in why for _, why in notes)
    assert count_frames([str(tmp_path)], Sampling()) == 1  # the image is not opened to be counted
    os.mkfifo(tmp_path / "list.txt")
    with pytest.raises(ValueError, match="no file"):
        find_inputs(str(tmp_path / "list.txt"))
    (tmp_path / "names.txt").write_text("a\0b.mp4\na\0b.png\n" + "n" * 5000 + ".png\n")
    assert len(read(tmp_path / "names.txt")[1]) == 1
    assert len(list(read_frames(find_inputs(str(tmp_path / "names.txt"))))) == 0


@pytest.mark.parametrize(("method", "said"), [("grab", "damaged"), ("retrieve", "3 frames could not be decoded")])
def test_a_video_that_breaks_the_decoder_ends_there(tmp_path: Path, method: str, said: str, monkeypatch) -> None:
    video = write_video(tmp_path / "v.avi", 6)
    write_faces(tmp_path, 1, first=7)

    class Breaks:
        def __init__(self, *given, reader=cv2.VideoCapture) -> None:
            self.reader, self.calls = reader(*given), 0

        def __getattr__(self, name: str):
            self.calls += name == method
            if self.calls > 3 and name == method:
                raise cv2.error("OpenCV: Assertion failed")
            return getattr(self.reader, name)

    monkeypatch.setattr(cv2, "VideoCapture", Breaks)
    frames, notes = read(video.parent)
    assert [frame.number for frame in frames if frame.is_moving] == [0, 1, 2] and len(frames) == 4
    assert len(notes) == 1 and said in notes[0][1]


def test_frames_larger_than_the_limit_are_refused_before_they_are_decoded(tmp_path: Path, monkeypatch) -> None:
    video = write_video(tmp_path / "v.avi", 2)
    monkeypatch.setattr(media_mf2, "MOST_VIDEO_PIXELS", 96 * 64 - 1)
    frames, notes = read(video)
    assert not frames and "96 x 64 pixels" in notes[0][1]


def test_an_image_whose_decoder_raises_anything_is_noted(tmp_path: Path, monkeypatch) -> None:
    write_faces(tmp_path, 2)
    real = media_mf2.read_image
    tile = lambda path, **settings: [][0] if path.endswith("000.png") else real(path, **settings)  # noqa: E731
    monkeypatch.setattr(media_mf2, "read_image", tile)
    frames, notes = read(tmp_path)
    assert len(frames) == 1 and notes[0][1].startswith("IndexError: ")
