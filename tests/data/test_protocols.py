"""Splits completed by people, folds of people, and several corpora as one data set."""

from collections import Counter

import numpy as np
import pytest
from datasets import Dataset

from configuration_mf2.facs import EMOTIONS, LABEL_SETS
from mf2face.data.protocols import combine, complete_splits, divide, fold_of_people, fold_splits, people_of
from mf2face.data.schema import describe_labels, described_labels, mfa_features


def rows_of(corpus, people, images=4, split="train", labels="mfa"):
    """Every person of a corpus in so many small pictures, none like another; the first AU active, the rest at rest."""
    units, emotions = LABEL_SETS[labels].action_units, LABEL_SETS[labels].emotions
    made = []
    for person in people:
        for number in range(images):
            seed = abs(hash((corpus, person, number))) % 2**32
            image = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
            row = {"image": image, "landmarks": np.zeros((68, 2), np.float32), "frame": number, "split": split}
            row |= {"au_labels": [1, *[0] * (len(units) - 1)], "au_intensities": [-1.0] * len(units)}
            row |= {"emotion": len(emotions) - 1, "subject": person, "video": f"{person}-v", "corpus": corpus}
            made.append(row)
    features = mfa_features(labels)
    text = dict.fromkeys(set(features) - set(made[0]), "")
    return describe_labels(Dataset.from_list([row | text for row in made], features=features), labels)


def people(count, prefix="p"):
    return [f"{prefix}{number}" for number in range(count)]


def test_a_missing_test_or_validation_split_is_made_of_whole_people():
    train, validation = rows_of("a", people(10)), rows_of("a", people(6, "v"), split="validation")
    splits = complete_splits({"train": train, "validation": validation})
    assert len(splits["validation"]) == len(splits["test"]) == 12 and splits["train"] is train
    assert not set(people_of(splits["validation"])) & set(people_of(splits["test"]))
    splits = complete_splits({"train": train, "test": validation})
    assert (len(splits["train"]), len(splits["validation"])) == (36, 4) and splits["test"] is validation
    assert not set(people_of(splits["train"])) & set(people_of(splits["validation"]))
    alone, nameless = rows_of("a", ["v0"]), validation.remove_columns(["subject", "video"])
    for held, divided in ((validation, False), (alone, True), (nameless, True)):
        splits = complete_splits({"train": train, "validation": held}, divided)
        assert splits["test"] is splits["validation"] is held
    assert divide(alone, {"train": 0.9, "validation": 0.1}) is None


def test_three_folds_are_the_corpus_s_own_and_others_are_even():
    disfa = rows_of("disfa", ["SN002", "SN013", "SN003", "SN029"], labels="disfa")
    assert fold_of_people(people_of(disfa), 3) == dict(zip(people_of(disfa)[::4], (1, 2, 3, 3), strict=True))
    rows, tested = rows_of("own", people(11)), []
    for fold in range(1, 5):
        splits = fold_splits(rows, 4, fold)
        sides = {name: set(people_of(part)) for name, part in splits.items()}
        assert sum(map(len, sides.values())) == 11 == len(set.union(*sides.values())) and all(sides.values())
        assert len(sides["test"]) in (2, 3)
        tested += sides["test"]
    assert Counter(tested) == dict.fromkeys({("own", name) for name in people(11)}, 1)
    with pytest.raises(ValueError, match="folds: got 4 for 3 people"):
        fold_splits(rows_of("own", people(3)), 4, 1)


def test_corpora_are_joined_by_the_names_of_their_labels():
    mfa = {name: rows_of("aff_wild2", people(4, name), split=name) for name in ("train", "validation", "test")}
    disfa = {"train": rows_of("disfa", ["SN001"], labels="disfa").remove_columns("au_intensities")}
    faces = {"train": rows_of("affectnet", people(2), labels="affectnet")}
    splits = combine({"mfa": mfa, "disfa": disfa, "affectnet": faces}, "mfa")
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 28, "validation": 16, "test": 16}
    train, units = splits["train"], LABEL_SETS["mfa"].action_units
    assert described_labels(train).action_units == tuple(units) and train.features == mfa["train"].features
    by_corpus = {row["corpus"]: row for row in train}
    known = [name for name, state in zip(units, by_corpus["disfa"]["au_labels"], strict=True) if state != -1]
    assert known == [name for name in units if name in LABEL_SETS["disfa"].action_units]
    assert by_corpus["disfa"]["au_labels"][0] == 1 and by_corpus["disfa"]["emotion"] == -1
    assert by_corpus["affectnet"]["au_labels"] == [-1] * 12
    last = LABEL_SETS["affectnet"].emotions[-1]
    assert by_corpus["affectnet"]["emotion"] == (EMOTIONS.index(last) if last in EMOTIONS else -1)


def test_people_or_pictures_in_two_splits_of_joined_corpora_are_named():
    one = {"train": rows_of("a", people(3)), "validation": rows_of("a", people(2, "v"), split="validation")}
    other = {"train": rows_of("a", people(2, "v")[:1], images=2)}
    with pytest.raises(ValueError, match=r"subject: got 'v0' in train .* and in validation"):
        combine({"one": one, "other": other}, "mfa")
    renamed = other["train"].map(lambda row: {"subject": "x", "video": "x"})
    with pytest.raises(ValueError, match="image: got identical pictures in train"):
        combine({"one": one, "other": {"train": describe_labels(renamed, "mfa")}}, "mfa")
    alike = rows_of("b", ["v0"])  # another corpus's v0 is another person
    assert len(combine({"one": one, "other": {"train": alike}}, "mfa")["train"]) == 16
    bare = Dataset.from_list([{"emotion": 1}])
    with pytest.raises(ValueError, match="dataset: other does not say which labels it counts"):
        combine({"one": one, "other": {"train": bare}}, "mfa")
