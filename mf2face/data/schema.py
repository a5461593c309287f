"""The one schema of every MFA example, synthetic or real; splits by subject, and the leak check."""

import hashlib
from collections.abc import Collection, Hashable, Iterable, Mapping
from typing import Any

import numpy as np
from datasets import Array2D, Dataset, Features, Image, IterableDataset, List, Value

from configuration_mf2.facs import LabelSet, resolve_label_set


SPLITS = ("train", "validation", "test")
SPLIT_SIZES: Mapping[str, float] = {"train": 0.8, "validation": 0.1, "test": 0.1}

_CAPTIONS = ("au_caption", "emotion_caption", "key_au_caption", "caption_writer")
_ACTION_UNITS, _EMOTIONS = "Action units", "Emotions"


def as_label_set(label_set: str | LabelSet) -> LabelSet:
    return resolve_label_set(label_set) if isinstance(label_set, str) else label_set


def mfa_features(label_set: str | LabelSet = "mfa") -> Features:
    """Landmarks are pixels from the image's corner (a pixel's middle ends in .5). Labels and intensities follow the
    label set's AUs; -1 is unknown."""
    count = len(as_label_set(label_set).action_units) or -1  # arrow has no lists of a fixed length of 0
    text = Value("string")
    return Features(
        {
            "image": Image(),
            "landmarks": Array2D((68, 2), "float32"),
            "landmark_source": text,  # exact (synthetic), detector, given (by the corpus), a template (the mean face)
            "au_labels": List(Value("int8"), length=count),
            "au_intensities": List(Value("float32"), length=count),
            "emotion": Value("int8"),  # an index; no ClassLabel, which has no room for "unknown"
            **{"subject": text, "video": text, "frame": Value("int32"), "split": text},
            **dict.fromkeys((*_CAPTIONS, "group", "corpus", "licence"), text),
        }
    )


def describe_labels(dataset: Dataset | IterableDataset, label_set: str | LabelSet) -> Dataset | IterableDataset:
    """Writes into the data set which AUs and emotions its labels count: BP4D and Aff-Wild2 both have 12 AUs."""
    labels = as_label_set(label_set)
    lines = (f"{_ACTION_UNITS}: {', '.join(labels.action_units)}", f"{_EMOTIONS}: {', '.join(labels.emotions)}")
    dataset.info.description = "\n".join(lines)
    return dataset


def described_labels(dataset: Dataset | IterableDataset) -> LabelSet | None:
    """What `describe_labels` wrote, or None."""
    lines = dict(line.split(": ", 1) for line in (dataset.info.description or "").splitlines() if ": " in line)
    if _ACTION_UNITS not in lines or _EMOTIONS not in lines:
        return None
    return LabelSet(*(tuple(filter(None, lines[name].split(", "))) for name in (_ACTION_UNITS, _EMOTIONS)))


def positive_shares(sizes: Mapping[Any, float], names: Collection = SPLITS) -> dict[Any, float]:
    """The splits that get any images."""
    shares = [isinstance(share, int | float | np.number) and 0 <= share < float("inf") for share in sizes.values()]
    if set(sizes) - set(names) or not all(shares) or not any(sizes.values()):
        raise ValueError(f"split_sizes: got {dict(sizes)}, expected shares of {names}, none below 0, not all 0")
    return {name: share for name, share in sizes.items() if share > 0}


def split_counts(
    counts: Mapping[Hashable, int],
    sizes: Mapping[Any, float] = SPLIT_SIZES,
    seed: int = 0,
    names: Collection = SPLITS,
) -> dict[Hashable, Any]:
    """Each subject's split, from how many images there are of it: as near to `sizes` as whole subjects allow. names:
    what splits may be called."""
    shares = positive_shares(sizes, names)
    wanted = {name: share / sum(shares.values()) for name, share in shares.items()}
    total = sum(counts.values())
    order = sorted(counts)
    np.random.default_rng(seed).shuffle(order)
    order.sort(key=lambda subject: -counts[subject])
    taken = dict.fromkeys(wanted, 0)
    members: dict[str, list] = {name: [] for name in wanted}
    for subject in order:
        name = max(wanted, key=lambda split: wanted[split] * total - taken[split])
        taken[name] += counts[subject]
        members[name].append(subject)
    for name in wanted:
        if not members[name] and len(order) >= len(wanted):
            members[name].append(members[max(members, key=lambda split: len(members[split]))].pop())
    return {subject: name for name, its_subjects in members.items() for subject in its_subjects}


def _image_digest(image: object) -> bytes:
    if isinstance(image, Mapping):
        if image.get("bytes") is None:
            with open(image["path"], "rb") as file:
                return hashlib.file_digest(file, "sha256").digest()
        return hashlib.sha256(image["bytes"]).digest()
    pixels = np.ascontiguousarray(image)
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).digest()


def check_leaks(examples: Iterable[Mapping]) -> None:
    """Raises if a subject, a video or an identical image stands in two splits."""
    if isinstance(examples, Dataset | IterableDataset) and examples.features and "image" in examples.features:
        examples = examples.cast_column("image", Image(decode=False))
    seen: dict[tuple[str, Hashable], tuple[str, int]] = {}
    for row, example in enumerate(examples):
        corpus = example.get("corpus")  # names of two corpora may be alike
        keys = {name: (corpus, example[name]) for name in ("subject", "video")}
        for field, value in {**keys, "image": _image_digest(example["image"])}.items():
            split, first_row = seen.setdefault((field, value), (example["split"], row))
            if split != example["split"]:
                what = "identical pictures" if field == "image" else f"{value[1]!r}"
                raise ValueError(
                    f"{field}: got {what} in {split} (row {first_row}) and in {example['split']} (row {row}), expected "
                    "each in one split only. Split by subject"
                )


__all__ = ["SPLITS", "as_label_set", "check_leaks", "describe_labels", "described_labels", "mfa_features"]
