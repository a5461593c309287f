"""The schema of the rows, the names of their labels, splits by subject, and leaks."""

from collections import Counter

import numpy as np
import pytest
from datasets import Dataset, IterableDataset, load_from_disk

from configuration_mf2.facs import EMOTIONS, LABEL_SETS, LabelSet
from mf2face.data.schema import (
    SPLIT_SIZES,
    check_leaks,
    describe_labels,
    described_labels,
    mfa_features,
    split_counts,
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


def split_images(subjects, sizes=SPLIT_SIZES, seed=0):
    split_of = split_counts(Counter(subjects), sizes, seed)
    return [split_of[subject] for subject in subjects]


def test_splits_keep_subjects_together_and_sizes_close():
    rng = np.random.default_rng(0)
    subjects = np.repeat([f"s{i}" for i in range(60)], rng.integers(1, 40, 60)).tolist()
    rng.shuffle(subjects)
    splits = split_images(subjects, seed=1)
    assert splits == split_images(subjects, seed=1) != split_images(subjects, seed=2)
    assert len({(subject, split) for subject, split in zip(subjects, splits, strict=True)}) == 60
    for name, share in (("train", 0.8), ("validation", 0.1), ("test", 0.1)):
        assert splits.count(name) / len(splits) == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize("people", [3, 4, 7])
def test_no_split_is_empty_while_there_are_enough_subjects(people):
    splits = split_images([i // 16 for i in range(16 * people)])
    assert set(splits) == {"train", "validation", "test"}
    assert max(splits.count(name) for name in set(splits)) == splits.count("train")


@pytest.mark.parametrize(
    "sizes",
    [{}, {"train": 0}, {"train": -1, "test": 2}, {"dev": 1}, {"train": np.nan}, {"train": np.inf}, {"train": "0.8"}],
)
def test_wrong_split_sizes(sizes):
    with pytest.raises(ValueError, match="split_sizes: got"):
        split_images(["a", "b"], sizes)


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
    for change, message in (
        ({"subject": "s1"}, "subject: got 's1' in train .row 0. and in test .row 3."),
        ({"video": "s1-v1"}, "video: got 's1-v1'"),
        ({"image": noise(0)}, "image: got identical pictures"),
    ):
        leaking = [*clean, example(**{"image": noise(2), "subject": "s3", "video": "s3-v1", "split": "test", **change})]
        with pytest.raises(ValueError, match=message):
            check_leaks(leaking)
        with pytest.raises(ValueError, match=message):
            check_leaks(Dataset.from_list(leaking, features=mfa_features()))
