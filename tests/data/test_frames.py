"""Columns of labels: which rows are kept, and how frames are found on the disk."""

from pathlib import Path

import numpy as np
import pytest

from configuration_mf2.facs import LABEL_SETS
from mf2face.data.corpora.frames import Frames, Video, every_and_changes, frames_on_disk, keep_labelled, stills
from mf2face.data.corpora.label_files import CorpusError


def make_frames(videos: list[int], emotion: np.ndarray, au: np.ndarray | None = None) -> Frames:
    """As many frames a video as `videos` says, numbered from 1."""
    count = sum(videos)
    labels = np.zeros((count, 12), np.int8) if au is None else au
    return Frames(
        *("own", "none", Path(), LABEL_SETS["mfa"]),
        [Video(f"v{k}", f"v{k}", f"images/v{k}", 5, ".jpg") for k in range(len(videos))],
        np.repeat(np.arange(len(videos), dtype=np.int32), videos),
        np.concatenate([np.arange(1, size + 1, dtype=np.int32) for size in videos]),
        labels,
        emotion.astype(np.int8),
    )


def test_labels_asked_for_decide_what_is_kept():
    units = np.zeros((4, 12), np.int8)
    units[1:3] = -1
    units[2, 5] = 1  # one known AU is enough
    frames = make_frames([4], np.array([0, 1, 2, -1]), units)
    kept = {name: keep_labelled(frames, name).frame.tolist() for name in ("both", "au", "emotion", "any")}
    assert kept == {"both": [1, 3], "au": [1, 3, 4], "emotion": [1, 2, 3], "any": [1, 2, 3, 4]}
    assert keep_labelled(frames).counts == {"without_both_labels": 2}
    with pytest.raises(CorpusError, match=r"no image of 1 with the labels asked for.*--require"):
        keep_labelled(frames.select(np.array([1])))
    with pytest.raises(ValueError, match="require: got 'all'"):
        keep_labelled(frames, "all")


def test_every_tenth_frame_and_every_change_by_hand():
    emotion = np.zeros(30, int)
    emotion[[13, 14]] = 4  # frames 14 and 15 of the first video: a change to it, and one back at frame 16
    frames = make_frames([25, 5], emotion)
    kept = every_and_changes(frames)
    assert kept.frame[kept.video == 0].tolist() == [1, 11, 14, 16, 21]
    assert kept.frame[kept.video == 1].tolist() == [1]  # a new video begins anew
    assert kept.counts["left_out_by_sampling"] == 24
    assert len(every_and_changes(frames, 1)) == 30


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["00002.jpg", "00001.jpg", "00010.jpg"], ([1, 2, 10], 5, ".jpg")),
        (["9.png", "10.png"], ([9, 10], 1, ".png")),
        (["00002.jpg", "00001.jpg", ".DS_Store", "Thumbs.db"], ([1, 2], 5, ".jpg")),
        (["notes.txt"], ([], 1, ".jpg")),
    ],
)
def test_frames_are_found_whatever_their_digits(names, found):
    numbers, digits, ending = frames_on_disk(Path("v"), lambda folder: names)
    assert (numbers.tolist(), digits, ending) == found
    video = Video("v", "v", "v", digits, ending)
    assert {video.image(int(n)) for n in numbers} == {f"v/{name}" for name in names if name[0].isdigit()}


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["1.jpg", "1.png"], "two images of frame 1"),
        (["001.jpg", "1.jpg"], "two images of frame 1"),
        (["001.jpg", "2.jpg"], "got '001.jpg', expected 0.jpg and so on"),
        (["1.jpg", "2.png"], "got '2.png', expected 0.jpg"),
    ],
)
def test_folders_of_mixed_names_are_refused(names, told):
    with pytest.raises(CorpusError, match=told):
        frames_on_disk(Path("v"), lambda folder: names)


def test_pictures_are_listed_once_a_folder():
    asked = []

    def list_folder(folder):
        asked.append(folder.name)
        return ["a.jpg", "b.jpg"]

    videos, there, missing = stills(["x/a.jpg", "x/b.jpg", "x/c.jpg"], Path("r"), list_folder, subjects=["s", "", "s"])
    assert asked == ["x"] and there.tolist() == [True, True, False] and missing == ["x/c.jpg"]
    assert [video.subject for video in videos] == ["s", "x/b", "s"] and videos[0].image(0) == "x/a.jpg"
    with pytest.raises(CorpusError, match=r"differ in their ending alone: x/a\.\*"):
        stills(["x/a.jpg", "x/a.png"], Path("r"), list_folder)
