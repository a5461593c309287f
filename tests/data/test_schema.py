"""The schema of the rows, the names of their labels, splits by subject, and leaks."""

from collections import Counter

import numpy as np
import pytest
from datasets import Dataset, Features, IterableDataset, load_from_disk

from configuration_mf2.facs import EMOTIONS, LABEL_SETS, LabelSet
from mf2face.data.schema import SPLIT_SIZES, check_leaks, describe_labels, described_labels, mfa_features, split_counts


@pytest.mark.parametrize("name", ["mfa", "disfa", "bp4d", LabelSet(("AU1",), EMOTIONS)])
def test_schema_follows_the_label_set(name):
    features = mfa_features(name)
    count = len((LABEL_SETS[name] if isinstance(name, str) else name).action_units)
    assert features["au_labels"].length == features["au_intensities"].length == count
    assert features["emotion"].dtype == "int8" and features["landmarks"].shape == (68, 2)


@pytest.mark.parametrize("name", ["mfa", "disfa"])
def test_the_names_of_labels_stay_with_the_rows(name, tmp_path):
    labels = LABEL_SETS[name]
    rows = Dataset.from_list([{"split": split} for split in ("train", "test", "train")])
    assert described_labels(rows) is None
    described = describe_labels(rows, name)
    described.select([0, 2]).save_to_disk(tmp_path / "rows")
    streamed = describe_labels(IterableDataset.from_generator(lambda: iter([{"split": "train"}])), name)
    for rows in (
        described.select([1]),
        load_from_disk(tmp_path / "rows"),
        described.filter(lambda split: split == "train", input_columns="split").select_columns(["split"]),
        streamed.shuffle(seed=1),
        streamed.filter(lambda split: split == "train", input_columns="split").select_columns(["split"]),
    ):
        found = described_labels(rows)
        assert (found.action_units, found.emotions) == (labels.action_units, labels.emotions)


def test_splits_keep_subjects_together_and_sizes_close():
    rng = np.random.default_rng(0)
    counts = {f"s{i}": int(count) for i, count in enumerate(rng.integers(1, 40, 60))}
    split_of = split_counts(counts, seed=1)
    assert split_of == split_counts(counts, seed=1) != split_counts(counts, seed=2) and split_of.keys() == counts.keys()
    for name, share in SPLIT_SIZES.items():
        images = sum(count for subject, count in counts.items() if split_of[subject] == name)
        assert images / sum(counts.values()) == pytest.approx(share, abs=0.02)
    for people in (3, 4, 7):  # no split is empty
        splits = Counter(split_counts(dict.fromkeys(range(people), 16)).values())
        assert set(splits) == {"train", "validation", "test"} and max(splits.values()) == splits["train"]


@pytest.mark.parametrize("sizes", [{}, {"train": 0}, {"train": -1, "test": 2}, {"dev": 1}, {"train": np.nan}])
def test_wrong_split_sizes(sizes):
    with pytest.raises(ValueError, match="split_sizes: got"):
        split_counts({"a": 1, "b": 2}, sizes)


def test_leaks_are_named():
    def example(seed, subject, video, split):
        image = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        return {"image": image, "subject": subject, "video": video, "split": split}

    features = Features({name: mfa_features()[name] for name in ("image", "subject", "video", "split")})
    clean = [example(0, "s1", "v1", "train"), example(0, "s1", "v1", "train"), example(1, "s2", "v2", "test")]
    for added, message in (
        (None, None),
        (example(2, "s1", "v3", "test"), "subject: got 's1' in train .row 0. and in test .row 3."),
        (example(2, "s3", "v1", "test"), "video: got 'v1'"),
        (example(0, "s3", "v3", "test"), "image: got identical pictures"),
    ):
        rows = clean if added is None else [*clean, added]
        for examples in (rows, Dataset.from_list(rows, features=features)):
            if added is None:
                check_leaks(examples)
                continue
            with pytest.raises(ValueError, match=message):
                check_leaks(examples)
