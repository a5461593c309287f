"""Corpora of pictures, in files of their own form."""

from pathlib import Path

import numpy as np
import pytest

from configuration_mf2.facs import EMOTIONS, LABEL_SETS
from mf2face.data.corpora.images import AffectNet
from mf2face.data.corpora.label_files import CorpusError
from mf2face.data.corpora.read import read_corpus


RAF_AU = LABEL_SETS["raf_au"].action_units


def everything(root: Path):
    """In place of pictures: whatever a label file lists is there."""

    class Anything(frozenset):
        def __contains__(self, name):
            return True

    return lambda folder: Anything()


def raf_au(root: Path, text: str, **options):
    (root / "aligned").mkdir(exist_ok=True)
    (root / "RAFAU_label.txt").write_text(text)
    names = [f"{n:04d}_aligned.jpg" for n in range(1, 10)]
    return read_corpus("raf_au", root, list_folder=lambda folder: names, **options)


def test_raf_au_merges_sides_or_leaves_them_unknown(tmp_path):
    text = "0001.jpg 17+B22+T24 \n0002.jpg null\n0003.jpg L12+R12+L4+26\n9999.jpg 1\n"
    frames = raf_au(tmp_path, text)
    active = [{name for name, label in zip(RAF_AU, row, strict=True) if label == 1} for row in frames.au_labels]
    assert active == [{"AU17", "AU22", "AU24"}, set(), {"AU12", "AU4", "AU26"}]
    assert (frames.au_labels >= 0).all() and frames.image(0) == "aligned/0001_aligned.jpg"
    assert frames.counts["images_missing"] == 1 and frames.missing == ["aligned/9999_aligned.jpg"]
    apart = raf_au(tmp_path, text, sides=False).au_labels
    assert apart[2][RAF_AU.index("AU12")] == 1 and apart[2][RAF_AU.index("AU4")] == -1
    assert raf_au(tmp_path, text, label_set="mfa").au_labels.shape == (3, 12)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("0001.jpg 17+X22", "line 1, AUs: got 'X22', expected such as 17, B22 or T24"),
        ("0001.jpg 1\n0001.jpg 2", "line 2, image: got '0001.jpg' again"),
        ("0001.jpg", "line 1: got '0001.jpg', expected a picture and its AUs"),
        ("../0001.jpg 1", "line 1, image: got '../0001.jpg', expected a path below the folder"),
    ],
)
def test_wrong_lines_of_raf_au(tmp_path, text, told):
    with pytest.raises(CorpusError, match=told):
        raf_au(tmp_path, text)


def test_emotionet_codes_999_as_unknown(tmp_path):
    (tmp_path / "images").mkdir()
    file = tmp_path / "EmotioNet_FACS_aws_2020_24600.csv"
    file.write_text(
        "URL,URL orig,'AU 1','AU 2','AU 12'\n'http://a.org/x/N_1.jpg',y,1,999,0\n'http://a/N_2.jpg',y,0,,1\n"
    )
    frames = read_corpus("emotionet", tmp_path, list_folder=everything(tmp_path))
    assert frames.image(0) == "images/N_1.jpg"
    assert frames.au_labels[:, :2].tolist() == [[1, -1], [0, -1]] and (frames.au_labels[:, 2] == -1).all()
    file.write_text("URL,'AU 1'\n'http://a/N_1.jpg',2\n")
    with pytest.raises(CorpusError, match=r"line 2, AU1: got '2', expected 0, 1, 999"):
        read_corpus("emotionet", tmp_path)
    file.write_text("picture,AU 1\n")
    with pytest.raises(CorpusError, match="got picture, AU 1, expected URL"):
        read_corpus("emotionet", tmp_path)


POINTS = ";".join(f"{value:.2f}" for value in np.arange(136) / 2)


def affect_net(root: Path, rows: list[str], header: str | None = None) -> Path:
    (root / AffectNet.images).mkdir(exist_ok=True)
    lines = [",".join(AffectNet.columns) if header is None else header, *rows]
    (root / "training.csv").write_text("\n".join(lines))
    return root


def test_affectnet_of_2017(tmp_path):
    codes = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    rows = [f"1/{code}.jpg,0,0,9,9,{POINTS},{code},0.5,-0.5" for code in codes]
    root = affect_net(tmp_path, rows)
    (root / "validation.csv").write_text("2/v.jpg,0,0,9,9,,1,0,0\n")  # without a header, as it is given out
    frames = read_corpus("affectnet", root, list_folder=everything(root))
    names = LABEL_SETS["affectnet"].emotions
    assert [names[code] if code >= 0 else None for code in frames.emotion] == [*names, None, None, "Happiness"]
    assert frames.counts["pictures_without_a_face"] == 1 and frames.videos[-1].official == "validation"
    assert (
        np.allclose(frames.landmarks[0].reshape(-1), np.arange(136) / 2 + 0.5) and np.isnan(frames.landmarks[-1]).all()
    )
    mapped = read_corpus("affectnet", root, label_set="mfa", list_folder=everything(root)).emotion
    assert [EMOTIONS[code] if code >= 0 else None for code in mapped[:8]] == [*names[:7], None]  # no Contempt in MFA


@pytest.mark.parametrize(
    ("rows", "header", "told"),
    [
        ([f"1/a.jpg,0,0,9,9,{POINTS},11,0,0"], None, "line 2, expression: got '11', expected 0 to 10"),
        (["1/a.jpg,0,0,9,9,1;2;3,1,0,0"], None, "line 2, landmarks: got 3 values, expected 136 numbers"),
        (["1/a.jpg,0,0"], None, "line 2: got 3 fields, expected 9"),
        (["/abs/a.jpg,0,0,9,9,,1,0,0"], None, "line 2, subDirectory_filePath: got '/abs/a.jpg'"),
        ([], "subDirectory_filepath,face_x", "line 1, column 1: got 'subDirectory_filepath'.*Did you mean"),
    ],
)
def test_wrong_lines_of_affectnet(tmp_path, rows, header, told):
    with pytest.raises(CorpusError, match=told):
        read_corpus("affectnet", affect_net(tmp_path, rows, header), list_folder=everything(tmp_path))


def test_affectnet_of_2021(tmp_path):
    for split, numbers in (("train_set", (0, 10)), ("val_set", (3,))):
        (tmp_path / split / "annotations").mkdir(parents=True)
        (tmp_path / split / "images").mkdir()
        for number in numbers:
            np.save(tmp_path / split / "annotations" / f"{number}_exp.npy", np.array(str(number % 8)))
            np.save(tmp_path / split / "annotations" / f"{number}_lnd.npy", np.arange(136.0))
    frames = read_corpus("affectnet", tmp_path, list_folder=everything(tmp_path))
    assert frames.emotion.tolist() == [0, 2, 3] and frames.image(2) == "val_set/images/3.jpg"
    assert [video.official for video in frames.videos] == ["train", "train", "validation"]
    assert np.allclose(frames.landmarks[1, 0], (0.5, 1.5))
    np.save(tmp_path / "train_set" / "annotations" / "0_exp.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(CorpusError, match=r"0_exp.npy: got Object arrays cannot be loaded.*can run code"):
        read_corpus("affectnet", tmp_path)


@pytest.mark.parametrize(("corpus", "part", "codes"), [("raf_db", "basic", 7), ("raf_db_compound", "compound", 11)])
def test_raf_db(tmp_path, corpus, part, codes):
    for folder in ("EmoLabel", "Image/aligned"):
        (tmp_path / part / folder).mkdir(parents=True)
    file = tmp_path / part / "EmoLabel" / "list_patition_label.txt"
    file.write_text("".join(f"train_{code:05d}.jpg {code}\n" for code in range(1, codes + 1)) + "test_0001.jpg 1\n")
    frames = read_corpus(corpus, tmp_path, list_folder=everything(tmp_path))
    assert frames.emotion.tolist() == [*range(codes), 0] and frames.videos[-1].official == "test"
    assert frames.image(0) == f"{part}/Image/aligned/train_00001_aligned.jpg"
    if part == "basic":
        mapped = read_corpus(corpus, tmp_path, list_folder=everything(tmp_path), label_set="mfa")
        assert [EMOTIONS[code] for code in mapped.emotion[:7]] == list(LABEL_SETS["raf_db"].emotions)
    file.write_text(f"train_1.jpg {codes + 1}\n")
    with pytest.raises(
        CorpusError, match=rf"line 1: got 'train_1.jpg {codes + 1}', expected a picture and 1 to {codes}"
    ):
        read_corpus(corpus, tmp_path)
    file.write_text("face_1.jpg 1\n")
    with pytest.raises(CorpusError, match="expected a name that begins with train_ or test_"):
        read_corpus(corpus, tmp_path)
