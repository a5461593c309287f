"""What a run trains, chooses and reports on: splits completed by people, folds, several corpora as one data set."""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset, Features, Image, Value, concatenate_datasets

from configuration_mf2.facs import UNKNOWN_LABEL, LabelSet
from mf2face.data.corpora.frames import columns_by_name, emotion_codes
from mf2face.data.corpora.videos import FOLDS
from mf2face.data.schema import (
    SPLITS,
    as_label_set,
    check_leaks,
    describe_labels,
    described_labels,
    mfa_features,
    split_counts,
)


Splits = dict[str, Any]
_LABELS = ("au_labels", "au_intensities", "emotion")


def people_of(rows: Dataset) -> list[Hashable] | None:
    """Each row's corpus and person (or video); None where the rows name neither."""
    for name in ("subject", "video"):
        if name in rows.column_names and any(names := rows[name][:]):
            return list(
                zip(rows["corpus"][:] if "corpus" in rows.column_names else [""] * len(rows), names, strict=True)
            )
    return None


def divide(rows: Dataset, shares: Mapping[str, float], seed: int = 0) -> Splits | None:
    """The rows in parts that share no person; None where there are too few people."""
    people = people_of(rows) or ()
    if len(counts := Counter(people)) < len(shares):
        return None
    side = split_counts(counts, shares, seed)
    return {name: rows.select([row for row, one in enumerate(people) if side[one] == name]) for name in shares}


def complete_splits(splits: Mapping[str, Any], divided: bool = True) -> Splits:
    """Adds `validation`, to choose on, or `test`, to report on, where a data set lacks it.

    Half of the people in validation become the test, or a tenth of those in training the validation split. Without
    `divided`, and where too few people are known, both are the same rows.
    """
    if {"validation", "test"} <= set(splits):
        return dict(splits)
    source, shares = "validation", {"validation": 0.5, "test": 0.5}
    if "validation" not in splits:
        source, shares = "train", {"train": 0.9, "validation": 0.1}
    parts = divide(splits[source], shares) if divided and isinstance(splits[source], Dataset) else None
    if parts is None:
        same = splits.get("validation", splits.get("test"))
        parts = {"validation": same, "test": same}
    return {**splits, **parts}


def fold_of_people(people: Sequence[Hashable], count: int, seed: int = 0) -> dict[Hashable, int]:
    """Each person's fold, from 1: the corpus's own three (DISFA, BP4D), else folds of about as many images."""
    images = Counter(people)
    official = {one: FOLDS.get(one[0], {}).get(one[1]) for one in images}
    if count == 3 and all(official.values()):
        return official
    folds = range(1, count + 1)
    return split_counts(images, dict.fromkeys(folds, 1.0), seed, folds)


def fold_splits(rows: Dataset, count: int, fold: int, seed: int = 0) -> Splits:
    """The people of `fold` are the test; a tenth of the others is chosen on."""
    people = people_of(rows) or []
    if len(set(people)) <= count:
        raise ValueError(f"folds: got {count} for {len(set(people))} people, expected more people than folds")
    fold_of = fold_of_people(people, count, seed)
    tested = np.array([fold_of[one] == fold for one in people])
    parts = divide(rows.select(np.flatnonzero(~tested)), {"train": 0.9, "validation": 0.1}, seed)
    return {**parts, "test": rows.select(np.flatnonzero(tested))}


def _relabelled(rows: Dataset, name: str, wanted: LabelSet, columns: Sequence[str]) -> Dataset:
    """MFA's columns and further ones, with the wanted labels, -1 where the corpus does not have one."""
    own, features = described_labels(rows), mfa_features(wanted)
    if own is None:
        advice = "build it with examples/build_dataset.py, or describe_labels(rows, label_set) before it is saved"
        raise ValueError(f"dataset: {name} does not say which labels it counts; {advice}")
    count, present = len(rows), rows.column_names
    made: dict[str, list] = {}
    for column, fill in (("au_labels", UNKNOWN_LABEL), ("au_intensities", -1.0)):
        values = np.full((count, len(own.action_units)), fill, np.float32)
        if column in present and own.action_units:
            values = np.array(rows[column][:], np.float32)
        made[column] = columns_by_name(values, own.action_units, wanted.action_units, fill).tolist()
    emotion = np.array(rows["emotion"][:] if "emotion" in present else [UNKNOWN_LABEL] * count)
    made["emotion"] = emotion_codes(own.emotions, wanted.emotions)[emotion].tolist()
    lacking = [column for column in columns if column not in {*present, *made}]
    made |= {column: ["" if features[column] == Value("string") else None] * count for column in lacking}
    labels = Dataset.from_dict(made, features=Features({column: features[column] for column in made}))
    kept = rows.select_columns([column for column in columns if column in present and column not in made])
    return concatenate_datasets([kept, labels], axis=1).select_columns(list(columns))


def combine(parts: Mapping[str, Mapping[str, Dataset]], label_set: str | LabelSet) -> Splits:
    """Several data sets as one, each label by its name. A person or picture in two splits is an error."""
    wanted, every = as_label_set(label_set), [rows for splits in parts.values() for rows in splits.values()]
    columns = [name for name in mfa_features(wanted) if any(name in rows.column_names for rows in every)]
    columns = list(dict.fromkeys([*columns, *_LABELS]))
    columns += [n for n in every[0].column_names if n not in columns and all(n in rows.column_names for rows in every)]
    joined: dict[str, list[Dataset]] = {}
    for name, splits in parts.items():
        for split, rows in splits.items():
            joined.setdefault(split, []).append(_relabelled(rows, name, wanted, columns))
    combined = {name: describe_labels(concatenate_datasets(joined[name]), wanted) for name in SPLITS if name in joined}
    undecoded = {name: rows.cast_column("image", Image(decode=False)) for name, rows in combined.items()}
    check_leaks({**row, "split": name} for name, rows in undecoded.items() for row in rows)
    return combined


__all__ = ["combine", "complete_splits", "divide", "fold_of_people", "fold_splits", "people_of"]
