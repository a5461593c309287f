"""Your own pictures, by table or by folders."""

import json

import numpy as np
import pytest
from PIL import Image

from configuration_mf2.facs import EMOTIONS
from mf2face.data.build.own import build_own
from mf2face.data.build.splits import plan_mfa
from mf2face.data.corpora.label_files import CorpusError
from mf2face.data.corpora.read import protocol, read_corpus
from mf2face.data.synthetic.faces import draw_example
from mf2face.training.arguments import MF2Arguments, parse_arguments
from mf2face.training.build import load_splits


@pytest.fixture
def folder(tmp_path):
    for name in ("a.jpg", "b.jpg", "c.png"):
        (tmp_path / name).touch()
    return tmp_path


def read(folder, text, **options):
    (folder / "labels.csv").write_text(text, encoding="utf-8")
    return read_corpus("own", folder, **options)


def test_a_table_says_what_is_known(folder):
    rows = ("a.jpg,happy,1,,anna", '"b.jpg",,0,1,bo', "c.png,Fear,,0,anna", "d.jpg,Anger,1,1,x\n")
    frames = read(folder, "\n".join(["image,emotion,AU12,AU1,subject", *rows]))
    assert [EMOTIONS[code] if code >= 0 else None for code in frames.emotion] == ["Happiness", None, "Fear"]
    units = frames.label_set.action_units
    assert frames.au_labels[:, units.index("AU12")].tolist() == [1, 0, -1]
    assert frames.au_labels[:, units.index("AU1")].tolist() == [-1, 1, 0]
    assert (frames.au_labels[:, units.index("AU6")] == -1).all()
    assert [video.subject for video in frames.videos[:3]] == ["anna", "bo", "anna"]
    assert list(frames.missing) == ["d.jpg"]
    assert frames.landmarks is None and "labels.csv" in protocol("own")


def test_a_table_may_lie_elsewhere(folder, tmp_path_factory):
    table = tmp_path_factory.mktemp("labels") / "mine.csv"
    table.write_text("image,emotion\na.jpg,Fear\n")
    assert len(read_corpus("own", folder, labels=str(table))) == 1
    with pytest.raises(CorpusError, match=r"got no .*elsewhere\.csv"):
        read_corpus("own", folder, labels=str(table.with_name("elsewhere.csv")))


def test_own_pictures_are_built_once_and_again_when_a_label_changes(tmp_path, monkeypatch):
    """Rendered faces: their landmarks come with the table, so that no detector is asked."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rows = []
    for index in range(0, 64, 4):
        pixels, points = draw_example(index, style="studio", seed=5)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
        emotion = ("Contempt", "happy", "Anger")[index % 3]
        rows.append(
            {"image": f"{index}.png", "emotion": emotion, "subject": f"p{index // 16}", "landmarks": points.tolist()}
        )
    (tmp_path / "labels.jsonl").write_text("\n".join(map(json.dumps, rows)))
    built = build_own(tmp_path)
    splits = load_splits(MF2Arguments(dataset=f"own:{tmp_path}", task="dfn"))
    assert {row["corpus"] for rows in splits.values() for row in rows} == {"own"} and len(splits) == 3
    emotions = {EMOTIONS[code] for rows in splits.values() for code in rows["emotion"]}
    assert emotions == {"Happiness", "Anger"}, "Contempt is no emotion of the label set: unknown, and left out"
    people = [set(rows["subject"]) for rows in splits.values()]
    assert sum(map(len, people)) == len(set.union(*people)) == 4
    assert build_own(tmp_path) == built and [*built.parent.iterdir()] == [built]
    (tmp_path / "labels.jsonl").write_text("\n".join(map(json.dumps, rows[:-2])))
    assert build_own(tmp_path) != built
    with pytest.raises(ValueError, match="dataset: there is no folder"):
        parse_arguments(["--task", "dfn", "--dataset", f"own:{tmp_path}/nowhere"])


def test_landmarks_come_with_jsonl(folder):
    points = np.random.default_rng(0).uniform(0, 50, (68, 2)).round(2).tolist()
    rows = [{"image": "a.jpg", "landmarks": points, "AU1": 1, "split": "val"}, {"image": "b.jpg", "split": "train"}]
    (folder / "labels.jsonl").write_text("\n".join(map(json.dumps, rows)))
    frames = read_corpus("own", folder)
    assert np.allclose(frames.landmarks[0], points) and np.isnan(frames.landmarks[1]).all()
    assert [video.official for video in frames.videos] == ["validation", "train"]
    for line, message in (
        ('{"image": "a.jpg", "landmarks": [[1, 2]]}', r"line 1, landmarks: got \(1, 2\), expected 68 pairs"),
        ('{"image": "a.jpg"', r"labels.jsonl, line 1: got .*expected one JSON object a line"),
        ('{"image": "a.jpg", "emotion": 0}', "line 1, emotion: got '0', expected one of Neutral"),  # a code is no name
    ):
        (folder / "labels.jsonl").write_text(line)
        with pytest.raises(CorpusError, match=message):
            read_corpus("own", folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,emtion\na.jpg,Fear", "line 1, column 2: got 'emtion', .*Did you mean 'emotion'"),
        ("image,au12\na.jpg,1", "line 1, column 2: got 'au12', .*Did you mean 'AU12'"),
        ("image,AU13\na.jpg,1", "line 1, column 2: got 'AU13'"),
        ("emotion\nFear", "line 1: got emotion, expected a column `image`"),
        ("image,AU1,AU1\na.jpg,1,1", "got AU1 twice"),
        ("image,emotion\na.jpg,Feer", "line 2, emotion: got 'Feer', expected one of Neutral, .*Did you mean 'Fear'"),
        ("image,AU1\na.jpg,3", "line 2, AU1: got '3', expected 1, 0, or nothing"),
        ("image,AU1\na.jpg", "line 2: got 1 fields, expected 2: image, AU1"),
        ("image,split\na.jpg,eval", "line 2, split: got 'eval', expected one of train, validation, test"),
        ("image\na.jpg\na.jpg", "line 3, image: got 'a.jpg' again"),
        ("image\n/faces/a.jpg", "line 2, image: got '/faces/a.jpg'"),
        ("image\n", "got no row"),
        ("image\nx.jpg", "none of 1 listed images on the disk, expected images such as x.jpg"),
    ],
)
def test_wrong_tables(folder, text, message):
    with pytest.raises(CorpusError, match=message):
        read(folder, text)


def test_people_are_who_the_field_names(folder):
    rows = [{"image": "a.jpg", "subject": 0}, {"image": "b.jpg", "subject": 0, "video": 1}]
    (folder / "labels.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [video.subject for video in read_corpus("own", folder).videos] == ["0", "0"]
    (folder / "labels.jsonl").unlink()
    frames = read(folder, "image,subject\na.jpg,s1 \nb.jpg,s1")
    assert [video.subject for video in frames.videos] == ["s1", "s1"]


def test_a_folder_a_class(tmp_path):
    pictures = {
        **{"train/Anger/3.jpg": "Anger", "train/happy/1.jpg": "Happiness", "train/happy/x/2.PNG": "Happiness"},
        "val/Sadness/4.jpg": "Sadness",
    }
    (tmp_path / "val" / ".hidden").mkdir(parents=True)
    for name in (*pictures, "val/Sadness/n.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    frames = read_corpus("own", tmp_path, label_set="affectnet")
    emotions = frames.label_set.emotions
    assert {frames.image(row): emotions[code] for row, code in enumerate(frames.emotion)} == pictures
    assert {video.official for video in frames.videos} == {"train", "validation"}
    for make, message in (
        (lambda: (tmp_path / "train/Hapiness").mkdir(), r"Hapiness, emotion: got 'Hapiness', .*Did you mean 'Happin"),
        (lambda: (tmp_path / "train/Anger/up").symlink_to(tmp_path / "train/Anger"), "got a link to a folder that it"),
        (lambda: (tmp_path / "self").symlink_to("self"), r"self: got Too many levels .*Remove the link"),
        (lambda: (tmp_path / "Fear").mkdir(), "got Fear beside train, val, expected splits or classes"),
    ):
        make()
        with pytest.raises(CorpusError, match=message):
            read_corpus("own", tmp_path)
        for name in ("train/Hapiness", "self"):
            path = tmp_path / name
            path.unlink() if path.is_symlink() else path.is_dir() and path.rmdir()
    with pytest.raises(CorpusError, match="got no picture"):
        read_corpus("own", tmp_path / "val" / ".hidden")


def test_an_emotion_of_another_name_is_mapped_when_asked(folder):
    text = "image,emotion\na.jpg,Contempt\nb.jpg,Fear\nc.png,contemptuous"
    with pytest.raises(CorpusError, match=r"line 2, emotion: got 'Contempt'.*--map Contempt=Other"):
        read(folder, text)
    frames = read(folder, text, emotion_map={"contempt": "other"})
    assert [frames.label_set.emotions[code] for code in frames.emotion] == ["Other", "Fear", "Other"]
    assert frames.counts["contempt_taken_as_Other"] == 2
    frames = read(folder, text, emotion_map={"Contempt": "unknown"})
    assert frames.emotion.tolist()[::2] == [-1, -1]
    with pytest.raises(ValueError, match=r"map: got Contempt=Othr, expected one of Neutral, .*Did you mean 'Other'"):
        read(folder, text, emotion_map={"Contempt": "Othr"})


def test_a_blank_split_leaves_the_written_ones_and_goes_to_train(folder):
    text = "image,emotion,split\na.jpg,Fear,test\nb.jpg,Anger,\nc.png,Fear,val"
    for name in ("own", "mine"):  # a corpus that its owner named keeps its split too
        frames, split = plan_mfa(read(folder, text, name=name))
        assert split == ["test", "train", "validation"]
        assert frames.counts["blank_splits_taken_as_train"] == 1
    frames, split = plan_mfa(read(folder, "image,emotion,split\na.jpg,Fear,\nb.jpg,Anger,\nc.png,Fear,"))
    assert set(split) == {"train", "validation", "test"} and "blank_splits_taken_as_train" not in frames.counts


def test_nothing_is_dropped_unless_asked(folder):
    frames = read(folder, "image,emotion,AU1\na.jpg,Fear,\nb.jpg,Fear,\nc.png,,1")
    assert len(plan_mfa(frames)[0]) == 3
    with pytest.raises(CorpusError, match=r"require='both'.*emotions of 2.*action units of 1.*--require"):
        plan_mfa(frames, require="both")
