import numpy as np
import pytest
from datasets import Dataset, IterableDataset, load_from_disk

from configuration_mf2.facs import EMOTIONS, LABEL_SETS, LabelSet
from mf2face.data.schema import (
    check_leaks,
    describe_labels,
    described_labels,
    mfa_features,
    split_by_subject,
    validate_examples,
)


def example(**changes) -> dict:
    row = {
        "image": np.full((8, 8, 3), 7, np.uint8),
        "landmarks": np.zeros((68, 2), np.float32),
        "landmark_source": "given",
        "au_labels": [0, 1, -1] + [0] * 9,
        "au_intensities": [0.0, 2.5, -1.0] + [0.0] * 9,
        "emotion": -1,
        "subject": "s1",
        "video": "s1-v1",
        "frame": 0,
        "split": "train",
        "au_caption": "",
        "emotion_caption": "",
        "key_au_caption": "",
        "caption_writer": "",
        "group": "",
        "corpus": "none",
        "licence": "none",
    }
    return {**row, **changes}


@pytest.mark.parametrize("name", ["mfa", "disfa", "bp4d", LabelSet(("AU1",), EMOTIONS)])
def test_schema_follows_the_label_set(name):
    features = mfa_features(name)
    count = len((LABEL_SETS[name] if isinstance(name, str) else name).action_units)
    assert features["au_labels"].length == features["au_intensities"].length == count
    assert features["emotion"].dtype == "int8" and features["landmarks"].shape == (68, 2)
    assert list(features) == list(example())


def test_a_row_survives_storage(tmp_path):
    rows = [example(frame=frame) for frame in range(3)]
    stored = Dataset.from_list(rows, features=mfa_features())
    stored.save_to_disk(tmp_path / "rows")
    back = Dataset.load_from_disk(tmp_path / "rows")
    assert validate_examples(rows) == validate_examples(back) == 3
    assert back[1]["emotion"] == -1 and back[1]["au_labels"] == rows[1]["au_labels"]
    assert (np.asarray(back[1]["image"]) == rows[1]["image"]).all()


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("landmarks", np.zeros((5, 2)), r"landmarks: got \(5, 2\) in row 1, expected \(68, 2\)"),
        ("landmarks", np.full((68, 2), np.nan), "landmarks: got 136 values that are not finite in row 1"),
        ("landmarks", None, "landmarks: got"),
        ("landmarks", "abc", "landmarks: got no array in row 1"),
        ("landmarks", np.full((68, 2), 1e6), "landmarks: got x and y from 1e.06 to 1e.06 in row 1, expected .*8 x 8"),
        ("landmarks", np.full((68, 2), -5.0), "landmarks: got x and y from -5 to -5 in row 1"),
        ("image", None, "image in row 1: got NoneType, expected a PIL image"),
        ("image", 3, "image in row 1: got int"),
        ("image", "no image", "image in row 1: there is no file 'no image'"),
        ("image", {"bytes": b"xx", "path": None}, "image in row 1: the bytes is not an image in a format"),
        ("image", {"bytes": None, "path": None}, "image in row 1: got neither bytes nor a path"),
        ("mood", "good", "mood: got an unknown field in row 1, expected only image, landmarks"),
        ("au_labels", [0] * 11, r"au_labels: got \(11,\) in row 1, expected 12 values, one each for AU1"),
        ("au_labels", [0, 2] + [0] * 10, "au_labels: got 2 for AU2 in row 1"),
        ("au_labels", [0.5] + [0] * 11, "au_labels: got 0.5 for AU1 in row 1"),
        ("au_intensities", [0.0] * 3 + [5.5] + [0.0] * 8, "au_intensities: got 5.5 for AU6 in row 1"),
        ("au_intensities", [np.nan] + [0.0] * 11, "au_intensities: got nan for AU1"),
        ("emotion", 8, "emotion: got 8 in row 1, expected 0 to 7"),
        ("emotion", -2, "emotion: got -2"),
        ("emotion", "Anger", "emotion: got 'Anger'"),
        ("emotion", True, "emotion: got True"),
        ("frame", -1, "frame: got -1"),
        ("split", "dev", "split: got 'dev' in row 1, expected one of"),
        ("landmark_source", "guess", "landmark_source: got 'guess'"),
        ("subject", "", "subject: got '' in row 1"),
        ("video", None, "video: got None"),
        ("au_caption", None, "au_caption: got None"),
    ],
)
def test_a_wrong_row_is_named(field, value, told):
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=told):
        validate_examples([example(), example(**{field: value})])


def test_a_missing_field_is_named():
    row = example()
    del row["video"]
    with pytest.raises(ValueError, match="video: got nothing in row 0"):
        validate_examples([row])


def test_a_label_set_without_emotions_takes_none():
    row = example(au_labels=[0] * 8, au_intensities=[0] * 8)
    assert validate_examples([row], "disfa") == 1
    with pytest.raises(ValueError, match="emotion: got 0 in row 0, expected -1: this label set has no emotions"):
        validate_examples([{**row, "emotion": 0}], "disfa")


@pytest.mark.parametrize("name", ["mfa", "disfa", "bp4d"])
def test_the_names_of_labels_stay_with_the_rows(name, tmp_path):
    labels = LABEL_SETS[name]
    rows = Dataset.from_list([{"split": split} for split in ("train", "test", "train")])
    assert described_labels(rows) is None
    described = describe_labels(rows, name)
    described.select([0, 2]).save_to_disk(tmp_path / "rows")
    streamed = describe_labels(IterableDataset.from_generator(lambda: iter([{"split": "train"}])), name)
    survivors = (
        described.select([1]),
        load_from_disk(tmp_path / "rows"),
        described.filter(lambda split: split == "train", input_columns="split").select_columns(["split"]),
        streamed.shuffle(seed=1),
        streamed.filter(lambda split: split == "train", input_columns="split").select_columns(["split"]),
    )
    for rows in survivors:
        found = described_labels(rows)
        assert (found.action_units, found.emotions) == (labels.action_units, labels.emotions)


def test_splits_keep_subjects_together_and_sizes_close():
    rng = np.random.default_rng(0)
    subjects = np.repeat([f"s{i}" for i in range(60)], rng.integers(1, 40, 60)).tolist()
    rng.shuffle(subjects)
    splits = split_by_subject(subjects, seed=1)
    assert splits == split_by_subject(subjects, seed=1) != split_by_subject(subjects, seed=2)
    assert len({(subject, split) for subject, split in zip(subjects, splits, strict=True)}) == 60
    for name, share in (("train", 0.8), ("validation", 0.1), ("test", 0.1)):
        assert splits.count(name) / len(splits) == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize("people", [3, 4, 7])
def test_no_split_is_empty_while_there_are_enough_subjects(people):
    splits = split_by_subject([i // 16 for i in range(16 * people)])
    assert set(splits) == {"train", "validation", "test"}
    assert max(splits.count(name) for name in set(splits)) == splits.count("train")


def test_splits_of_few_subjects_and_zero_shares():
    assert split_by_subject([]) == []
    assert split_by_subject(["only"] * 3) == ["train"] * 3
    assert set(split_by_subject(list("abcdef"), {"train": 1, "test": 1, "validation": 0})) == {"train", "test"}


@pytest.mark.parametrize(
    "sizes",
    [{}, {"train": 0}, {"train": -1, "test": 2}, {"dev": 1}, {"train": np.nan}, {"train": np.inf}, {"train": "0.8"}],
)
def test_wrong_split_sizes(sizes):
    with pytest.raises(ValueError, match="split_sizes: got"):
        split_by_subject(["a", "b"], sizes)


def test_landmarks_may_be_those_of_a_picture_that_exif_turns():
    wide = np.full((10, 40, 3), 7, np.uint8)
    assert validate_examples([example(image=wide, landmarks=np.full((68, 2), (5.0, 39.0)))]) == 1


def test_leaks_are_found():
    def noise(seed):
        return np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)

    clean = [
        example(image=noise(0)),
        example(image=noise(0), frame=1),
        example(image=noise(1), subject="s2", video="s2-v1", split="test"),
    ]
    check_leaks(clean)
    check_leaks(Dataset.from_list(clean, features=mfa_features()))
    for change, told in (
        ({"subject": "s1"}, "subject: got 's1' in train .row 0. and in test .row 3."),
        ({"video": "s1-v1"}, "video: got 's1-v1'"),
        ({"image": noise(0)}, "image: got identical pictures"),
    ):
        leaking = [*clean, example(**{"image": noise(2), "subject": "s3", "video": "s3-v1", "split": "test", **change})]
        with pytest.raises(ValueError, match=told):
            check_leaks(leaking)
        with pytest.raises(ValueError, match=told):
            check_leaks(Dataset.from_list(leaking, features=mfa_features()))
