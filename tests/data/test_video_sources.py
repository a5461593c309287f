"""Corpora of videos, in files of their own form: what is read, and what is said of wrong ones."""

import os
from pathlib import Path

import numpy as np
import pytest

from configuration_mf2.facs import EMOTIONS, LABEL_SETS
from mf2face.data.corpora.label_files import CorpusError
from mf2face.data.corpora.read import read_corpus
from mf2face.data.corpora.videos import BP4D, DISFA


AUS = LABEL_SETS["aff_wild2"].action_units
TRACKS = {"AU": "AU_Detection_Challenge", "EXPR": "EXPR_Classification_Challenge"}


def write_aff_wild2(
    root: Path, videos: dict[str, tuple[np.ndarray | None, np.ndarray | None]], split: str = "Train_Set"
) -> None:
    """Label files alone; a track without labels of a video gets no file."""
    (root / "cropped_aligned").mkdir(parents=True, exist_ok=True)
    for name, (units, emotions) in videos.items():
        for track, header, values in (("AU", AUS, units), ("EXPR", EMOTIONS, emotions)):
            folder = root / "annotations" / TRACKS[track] / split
            folder.mkdir(parents=True, exist_ok=True)
            if values is not None:
                lines = [",".join(map(str, np.atleast_1d(row))) for row in values]
                (folder / f"{name}.txt").write_text("\n".join([",".join(header), *lines]) + "\n")


def all_frames(count: int):
    """In place of a disk full of images: frames 1 to `count` in every folder."""
    names = [f"{number:05d}.jpg" for number in range(1, count + 1)]
    return lambda folder: names


@pytest.fixture
def aff_wild2(tmp_path):
    units = np.tile(np.arange(12) % 3 - 1, (6, 1))
    write_aff_wild2(tmp_path, {"1-30_left": (units, np.array([0, 7, -1, 4, 4, 4])), "2": (units, None)})
    write_aff_wild2(tmp_path, {"3": (None, np.array([3, -1]))}, "Validation_Set")
    return tmp_path


def test_aff_wild2_line_i_is_image_i_and_unknown_is_masked_an_au(aff_wild2):
    present = {"1-30_left": [1, 2, 3, 6], "2": [1, 2, 3, 4, 5, 6], "3": [1, 2]}
    frames = read_corpus(
        "aff_wild2", aff_wild2, list_folder=lambda folder: [f"{n:05d}.jpg" for n in present[folder.name]]
    )
    assert frames.image(3) == "cropped_aligned/1-30_left/00006.jpg" and frames.row_id(3) == "aff_wild2/1-30_left/6"
    assert frames.emotion.tolist() == [0, 7, -1, 4] + [-1] * 6 + [3]
    assert frames.au_labels[0].tolist() == [-1, 0, 1] * 4
    assert (frames.au_labels[-1] == -1).all()  # the other track does not know this video
    assert [(v.name, v.subject, v.official) for v in frames.videos] == [
        ("1-30_left", "1-30", "train"),
        ("2", "2", "train"),
        ("3", "3", "validation"),
    ]
    assert frames.counts == {"videos": 3, "label_lines": 14, "lines_without_a_label": 1, "images_missing": 2}
    assert list(frames.missing) == ["cropped_aligned/1-30_left/00004.jpg", "cropped_aligned/1-30_left/00005.jpg"]


def test_labels_are_mapped_by_name_and_what_is_not_labelled_is_unknown(aff_wild2):
    frames = read_corpus("aff_wild2", aff_wild2, label_set="disfa", list_folder=all_frames(6), extra_frames=4)
    own = dict(zip(AUS, [-1, 0, 1] * 4, strict=True))
    assert frames.au_labels[0].tolist() == [own.get(name, -1) for name in LABEL_SETS["disfa"].action_units]
    assert "AU9" not in own and (frames.emotion == -1).all()


def _edit(file: Path, line: int, text: str) -> None:
    lines = file.read_text().split("\n")
    lines[line - 1] = text
    file.write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda au, ex: _edit(au, 4, "0,1"), r"1-30_left.txt, line 4: got 2 values"),
        (lambda au, ex: _edit(au, 3, ",".join(["2"] * 12)), r"line 3, AU1: got 2, expected one of -1, 0, 1"),
        (lambda au, ex: _edit(ex, 2, "8"), r"line 2, expression: got 8, expected one of -1, 0, .*8 emotions"),
        (lambda au, ex: _edit(au, 1, "AU1,AU2,AU4,AU6,AU12,AU15,AU20,AU25"), r"column 5: got 'AU12', .*2022"),
        (lambda au, ex: _edit(ex, 1, "Neutral,Anger,Disgust,Feer"), r"line 1, column 4: got 'Feer', expected 'Fear'"),
        (lambda au, ex: _edit(ex, 7, ""), r"got 6 lines of labels, expected 5, as .*EXPR"),
        (lambda au, ex: ex.write_bytes(b"\xff"), r"line 1: got the byte 0xff, expected UTF-8"),
    ],
)
def test_wrong_label_files_of_aff_wild2(aff_wild2, damage, told):
    files = (aff_wild2 / "annotations" / TRACKS[t] / "Train_Set" / "1-30_left.txt" for t in ("AU", "EXPR"))
    damage(*files)
    with pytest.raises(CorpusError, match=told):
        read_corpus("aff_wild2", aff_wild2, list_folder=all_frames(2))


def test_images_that_do_not_fit_the_labels(aff_wild2, tmp_path):
    with pytest.raises(CorpusError, match=r"labels up to frame 6, .*frames up to 7.*extra_frames=1"):
        read_corpus("aff_wild2", aff_wild2, list_folder=all_frames(7))
    read_corpus("aff_wild2", aff_wild2, list_folder=all_frames(7), extra_frames=5)
    with pytest.raises(CorpusError, match="none of 13 listed images on the disk"):
        read_corpus("aff_wild2", aff_wild2)
    with pytest.raises(CorpusError, match="none of its label folders, expected AU_Detection_Challenge"):
        read_corpus("aff_wild2", tmp_path / "cropped_aligned")
    with pytest.raises(CorpusError, match="nothing there, expected a folder: the aff_wild2 corpus"):
        read_corpus("aff_wild2", tmp_path / "nowhere")
    os.rmdir(aff_wild2 / "cropped_aligned")
    with pytest.raises(CorpusError, match="nothing there, expected a folder: the images"):
        read_corpus("aff_wild2", aff_wild2)


@pytest.fixture
def disfa(tmp_path):
    rng = np.random.default_rng(0)
    for subject in ("SN001", "SN013", "SN003"):
        folder = tmp_path / "ActionUnit_Labels" / subject
        folder.mkdir(parents=True)
        for name in DISFA.action_units:
            values = rng.integers(0, 6, 20)
            (folder / f"{subject}_{name.lower()}.txt").write_text(
                "\n".join(f"{frame},{value}" for frame, value in enumerate(values, 1))
            )
    (tmp_path / "Images").mkdir()
    return tmp_path


def test_disfa_is_active_from_two_and_has_its_folds(disfa):
    frames = read_corpus("disfa", disfa, list_folder=all_frames(20))
    assert frames.au_labels.shape == (60, 8) and (frames.emotion == -1).all()
    assert np.array_equal(frames.au_labels, frames.au_intensities >= 2)
    low = read_corpus("disfa", disfa, list_folder=all_frames(20), threshold=1, label_set="mfa")
    assert (low.au_labels[:, AUS.index("AU7")] == -1).all() and (low.au_intensities[:, AUS.index("AU7")] == -1).all()
    au12 = LABEL_SETS["disfa"].action_units.index("AU12")
    assert np.array_equal(low.au_labels[:, AUS.index("AU12")], frames.au_intensities[:, au12] >= 1)
    assert [video.official for video in frames.videos] == ["fold 1", "fold 3", "fold 2"]
    assert len({number for fold in DISFA.folds for number in fold}) == 27


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("1,0\n2,6", "line 2, intensity: got 6, expected 0 to 5"),
        ("1,0\n2,1", "got 2 lines, expected 20 lines of the same frames"),
        ("frame,intensity\n1,0", "line 1, frame: got 'frame', expected a whole number"),
    ],
)
def test_wrong_files_of_disfa(disfa, text, told):
    (disfa / "ActionUnit_Labels" / "SN003" / "SN003_au26.txt").write_text(text)
    with pytest.raises(CorpusError, match=f"SN003_au26.txt.*{told}"):
        read_corpus("disfa", disfa, list_folder=all_frames(20))


def test_bp4d_codes_nine_as_unknown(tmp_path):
    (tmp_path / "AUCoding" / "AU_OCC").mkdir(parents=True)
    (tmp_path / "2D+3D").mkdir()
    header = ["0", *map(str, range(1, 100))]
    rows = [[2440 + k, *([k % 2] * 98), 9] for k in range(4)]
    rows[2][7] = 9  # AU7
    file = tmp_path / "AUCoding" / "AU_OCC" / "F001_T1.csv"
    file.write_text("\n".join(",".join(map(str, row)) for row in [header, *rows]))
    frames = read_corpus("bp4d", tmp_path, list_folder=lambda folder: [f"{n}.jpg" for n in range(2300, 2443)])
    assert frames.frame.tolist() == [2440, 2441, 2442] and frames.image(0) == "2D+3D/F001/T1/2440.jpg"
    assert frames.au_labels[1].tolist() == [1] * 12 and frames.counts["images_missing"] == 1
    assert frames.au_labels[2].tolist() == [0] * 4 + [-1] + [0] * 7
    assert frames.videos[0].subject == "F001" and frames.videos[0].official == "fold 1"
    assert len({name for fold in BP4D.folds for name in fold.split()}) == 41
    rows[3][12] = 5
    file.write_text("\n".join(",".join(map(str, row)) for row in [header, *rows]))
    with pytest.raises(CorpusError, match=r"F001_T1.csv, line 5, AU12: got 5, expected 0, 1, or 9"):
        read_corpus("bp4d", tmp_path)
    file.write_text("frame,AU1,AU_2\n1,0,0")
    with pytest.raises(CorpusError, match=r"line 1, column 3: got 'AU_2', expected an AU's number"):
        read_corpus("bp4d", tmp_path)
    file.write_text("frame,77\n1,0")
    with pytest.raises(CorpusError, match="got columns of AU77, expected some of AU1, AU2"):
        read_corpus("bp4d", tmp_path)
    file.write_text("frame,1\n5,0\n5,0")
    with pytest.raises(CorpusError, match="line 3, frame: got 5, expected a later frame"):
        read_corpus("bp4d", tmp_path)
    file.write_text("frame,1\n-2,0\n5,0")
    with pytest.raises(CorpusError, match="line 2, frame: got -2, expected a frame number from 0"):
        read_corpus("bp4d", tmp_path)
    file.write_text("frame,1,AU01\n5,0,1")
    with pytest.raises(CorpusError, match="line 1: got AU1 twice, expected each AU in one column"):
        read_corpus("bp4d", tmp_path)


def test_gft_takes_its_test_list_from_the_user(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for name in ("001A", "001B"):
        (tmp_path / "labels" / f"{name}.csv").write_text("frame,1,12\n1,0,1\n2,9,1\n")
    frames = read_corpus("gft", tmp_path, list_folder=all_frames(9), test_subjects=["001B"])
    assert [video.official for video in frames.videos] == ["train", "test"]
    assert frames.au_labels[1].tolist() == [-1] * 5 + [1] + [-1] * 4
    with pytest.raises(ValueError, match=r"test_subjects: got \['9'\], expected subjects that have labels"):
        read_corpus("gft", tmp_path, test_subjects=["9"])


def test_unknown_corpora_and_options_are_named(tmp_path):
    with pytest.raises(ValueError, match="corpus: got 'affwild', expected one of aff_wild2, disfa"):
        read_corpus("affwild", tmp_path)
    with pytest.raises(ValueError, match=r"disfa: got the options \['treshold'\], expected some of .*threshold"):
        read_corpus("disfa", tmp_path, treshold=1)
