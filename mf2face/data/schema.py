"""The one schema of every MFA example, synthetic or real; its validation, splits by subject, and the leak check."""

import hashlib
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence

import numpy as np
from datasets import Array2D, Dataset, Features, Image, IterableDataset, List, Value

from configuration_mf2.facs import UNKNOWN_LABEL, LabelSet, resolve_label_set
from processing_mf2.image_io import image_size


SPLITS = ("train", "validation", "test")
SPLIT_SIZES: Mapping[str, float] = {"train": 0.8, "validation": 0.1, "test": 0.1}
LANDMARK_SOURCES = ("exact", "detector", "given", "template")
"""Known exactly (drawn faces), found by a detector (or given its error), part of a corpus, or the mean face."""

_TEXTS = ("landmark_source", "subject", "video", "split", "au_caption", "emotion_caption", "key_au_caption")
_TEXTS += ("caption_writer", "group", "corpus", "licence")
_MAY_BE_EMPTY = ("au_caption", "emotion_caption", "key_au_caption", "caption_writer", "group")


def as_label_set(label_set: str | LabelSet) -> LabelSet:
    return resolve_label_set(label_set) if isinstance(label_set, str) else label_set


def mfa_features(label_set: str | LabelSet = "mfa") -> Features:
    """Landmarks are pixels from the image's corner (a pixel's middle ends in .5). Labels and intensities follow the
    label set's AUs; -1 is unknown."""
    count = len(as_label_set(label_set).action_units) or -1  # arrow has no lists of a fixed length of 0
    return Features(
        {
            "image": Image(),
            "landmarks": Array2D((68, 2), "float32"),
            "landmark_source": Value("string"),
            "au_labels": List(Value("int8"), length=count),
            "au_intensities": List(Value("float32"), length=count),
            "emotion": Value("int8"),  # an index; no ClassLabel, which has no room for "unknown"
            "subject": Value("string"),
            "video": Value("string"),
            "frame": Value("int32"),
            "split": Value("string"),
            "au_caption": Value("string"),
            "emotion_caption": Value("string"),
            "key_au_caption": Value("string"),
            "caption_writer": Value("string"),
            "group": Value("string"),
            "corpus": Value("string"),
            "licence": Value("string"),
        }
    )


_ACTION_UNITS, _EMOTIONS = "Action units", "Emotions"


def describe_labels(dataset: Dataset | IterableDataset, label_set: str | LabelSet) -> Dataset | IterableDataset:
    """Writes into the data set itself which AUs and emotions its labels count: 12 numbers do not tell BP4D's 12 AUs
    from Aff-Wild2's."""
    labels = as_label_set(label_set)
    lines = (f"{_ACTION_UNITS}: {', '.join(labels.action_units)}", f"{_EMOTIONS}: {', '.join(labels.emotions)}")
    dataset.info.description = "\n".join(lines)
    return dataset


def described_labels(dataset: Dataset | IterableDataset) -> LabelSet | None:
    """What `describe_labels` wrote; None if nobody did."""
    lines = dict(line.split(": ", 1) for line in (dataset.info.description or "").splitlines() if ": " in line)
    if _ACTION_UNITS not in lines or _EMOTIONS not in lines:
        return None
    return LabelSet(*(tuple(filter(None, lines[name].split(", "))) for name in (_ACTION_UNITS, _EMOTIONS)))


def _problem(example: Mapping, label_set: LabelSet, row: int) -> tuple[str, object, str] | None:
    """The first wrong field: its name, what it holds, what it should hold. A wrong image raises by itself."""
    fields = mfa_features(label_set)
    for field in fields:
        if field not in example:
            return field, "nothing", "a value: the schema's fields are " + ", ".join(fields)
    for field in example:
        if field not in fields:
            return field, "an unknown field", "only " + ", ".join(fields)
    for field in _TEXTS:
        if not isinstance(example[field], str) or (not example[field] and field not in _MAY_BE_EMPTY):
            return field, repr(example[field]), "a text" if field in _MAY_BE_EMPTY else "a text that is not empty"
    for field, allowed in (("split", SPLITS), ("landmark_source", LANDMARK_SOURCES)):
        if example[field] not in allowed:
            return field, repr(example[field]), f"one of {allowed}"
    size = None if _is_remote(example["image"]) else image_size(example["image"], name=f"image in row {row}")
    landmarks = _as_numbers(example["landmarks"])
    if landmarks is None or landmarks.shape != (68, 2):
        return "landmarks", getattr(landmarks, "shape", "no array"), "(68, 2), pixels of the image, x before y"
    if not np.isfinite(landmarks).all():
        return "landmarks", f"{(~np.isfinite(landmarks)).sum()} values that are not finite", "finite pixels"
    low, high = landmarks.min(), landmarks.max()
    # Of both axes the longer side: EXIF may turn the stored picture.
    if size and not (-max(size) / 2 <= low and high <= 1.5 * max(size)):
        expected = f"pixels of the image of {size[1]} x {size[0]}, at most half its size outside"
        return "landmarks", f"x and y from {low:g} to {high:g}", expected
    labels, intensities = _as_numbers(example["au_labels"]), _as_numbers(example["au_intensities"])
    names = label_set.action_units
    for field, values in (("au_labels", labels), ("au_intensities", intensities)):
        if values is None or values.shape != (len(names),):
            return field, getattr(values, "shape", "no list"), f"{len(names)} values, one each for {', '.join(names)}"
    for name, label, intensity in zip(names, labels, intensities, strict=True):
        if label not in (0, 1, UNKNOWN_LABEL):
            return "au_labels", f"{label:g} for {name}", "0, 1 or -1 (unknown)"
        if not (0 <= intensity <= 5 or intensity == UNKNOWN_LABEL):
            return "au_intensities", f"{intensity:g} for {name}", "0 to 5, or -1 (unknown)"
    emotions = len(label_set.emotions)
    if not _is_integer(example["emotion"]) or not UNKNOWN_LABEL <= example["emotion"] < emotions:
        expected = f"0 to {emotions - 1}, or -1 (unknown)" if emotions else "-1: this label set has no emotions"
        return "emotion", repr(example["emotion"]), expected
    if not _is_integer(example["frame"]) or example["frame"] < 0:
        return "frame", repr(example["frame"]), "a frame number from 0"
    return None


def _is_remote(image: object) -> bool:
    """A streamed corpus may name what its reader fetches: "hf://...", "zip://a.png::..."."""
    path = image.get("path") if isinstance(image, Mapping) and image.get("bytes") is None else image
    return isinstance(path, str) and "://" in path


def _is_integer(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _as_numbers(values: object) -> np.ndarray | None:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        return None


def _without_decoding(examples: Iterable[Mapping]) -> Iterable[Mapping]:
    if isinstance(examples, Dataset | IterableDataset) and examples.features and "image" in examples.features:
        return examples.cast_column("image", Image(decode=False))
    return examples


def validate_examples(examples: Iterable[Mapping], label_set: str | LabelSet = "mfa") -> int:
    """Checks every row and returns how many there are; the first wrong one is an error that names row and field."""
    resolved, count = as_label_set(label_set), 0
    for row, example in enumerate(_without_decoding(examples)):
        if problem := _problem(example, resolved, row):
            field, got, expected = problem
            raise ValueError(f"{field}: got {got} in row {row}, expected {expected}. Correct or leave out the row")
        count = row + 1
    return count


def split_by_subject(
    subjects: Sequence[Hashable], sizes: Mapping[str, float] = SPLIT_SIZES, seed: int = 0
) -> list[str]:
    """Each image's split: all images of a subject stay together, and the splits come as near to `sizes` as that allows.

    `subjects` names the subject of each image. A corpus that knows videos only passes those.
    """
    split_of = split_counts(Counter(subjects), sizes, seed)
    return [split_of[subject] for subject in subjects]


def split_counts(
    counts: Mapping[Hashable, int], sizes: Mapping[str, float] = SPLIT_SIZES, seed: int = 0
) -> dict[Hashable, str]:
    """Each subject's split, from how many images there are of it."""
    unknown = [name for name in sizes if name not in SPLITS]
    if unknown or not all(_is_share(share) for share in sizes.values()) or not any(sizes.values()):
        raise ValueError(f"split_sizes: got {dict(sizes)}, expected shares of {SPLITS}, none below 0, not all 0")
    wanted = {name: share / sum(sizes.values()) for name, share in sizes.items() if share > 0}
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


def _is_share(value: object) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and 0 <= value < float("inf")


def _image_digest(image: object) -> bytes:
    if isinstance(image, Mapping):
        if image.get("bytes") is None:
            with open(image["path"], "rb") as file:
                return hashlib.sha256(file.read()).digest()
        return hashlib.sha256(image["bytes"]).digest()
    pixels = np.ascontiguousarray(image)
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).digest()


def check_leaks(examples: Iterable[Mapping]) -> None:
    """An error if a subject, a video or an identical image stands in two splits."""
    seen: dict[tuple[str, Hashable], tuple[str, int]] = {}
    for row, example in enumerate(_without_decoding(examples)):
        found = {"subject": example["subject"], "video": example["video"], "image": _image_digest(example["image"])}
        for field, value in found.items():
            split, first_row = seen.setdefault((field, value), (example["split"], row))
            if split != example["split"]:
                what = "identical pictures" if field == "image" else f"{value!r}"
                raise ValueError(
                    f"{field}: got {what} in {split} (row {first_row}) and in {example['split']} (row {row}), expected "
                    "each in one split only. Split by subject: split_by_subject()"
                )
