"""Your own pictures: a folder with a csv or jsonl file, or a folder a class."""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from configuration_mf2.facs import ACTION_UNITS, UNKNOWN_LABEL
from mf2face.data.corpora.frames import Frames
from mf2face.data.corpora.images import ImageCorpus
from mf2face.data.corpora.label_files import CorpusError, Listing, check_width, csv_rows, near_names, read_text
from mf2face.data.schema import SPLITS
from processing_mf2.image_io import IMAGE_ENDINGS


_SYNONYMS: Mapping[str, str] = {
    **{"happy": "Happiness", "joy": "Happiness", "sad": "Sadness", "angry": "Anger", "fearful": "Fear"},
    **{"afraid": "Fear", "scared": "Fear", "disgusted": "Disgust", "surprised": "Surprise", "contemptuous": "Contempt"},
}
_UNKNOWN = "unknown"
_SPLIT_NAMES = {**{name: name for name in SPLITS}, "val": "validation", "valid": "validation"}
_COLUMNS = ("image", "emotion", "subject", "video", "split", "landmarks")
_AU_CODES = {"": UNKNOWN_LABEL, "-1": UNKNOWN_LABEL, "0": 0, "1": 1, "0.0": 0, "1.0": 1, "True": 1, "False": 0}


@dataclass
class _Own(ImageCorpus):
    """emotion_map: name in the file -> emotion of the label set, or "unknown". labels: the file, if elsewhere."""

    name: str = "own"
    licence: str = "as its owner says"
    label_set: Any = "mfa"
    emotion_map: Mapping[str, str] | None = None
    labels: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.mapped, self.counts = {}, Counter()
        known = {emotion.lower(): emotion for emotion in (*self.label_set.emotions, _UNKNOWN)}
        for word, emotion in (self.emotion_map or {}).items():
            if (name := known.get(str(emotion).lower())) is None:
                advice = f"{near_names(str(emotion), list(known.values()))}Write --map NAME=EMOTION"
                raise ValueError(f"map: got {word}={emotion}, expected one of {', '.join(known.values())}. {advice}")
            self.mapped[str(word).strip().lower()] = name
        self.codes = dict.fromkeys(("", "-1", _UNKNOWN), UNKNOWN_LABEL)
        self.codes |= {name.lower(): code for code, name in enumerate(self.label_set.emotions)}

    def emotion_code(self, text: str, file: Path, line: int | None = None) -> int:
        word, names = text.strip().lower(), self.label_set.emotions
        meant = _SYNONYMS.get(word, word).lower()
        if word and (mapped := next((name for name in (word, meant) if name in self.mapped), None)):
            self.counts[f"{mapped}_taken_as_{self.mapped[mapped]}"] += 1
            meant = self.mapped[mapped].lower()
        if meant in self.codes:
            return self.codes[meant]
        other = "Other" if "Other" in names else _UNKNOWN
        advice = f"Write one of these names, nothing if it is unknown, or map it: --map {text.strip()[:40]}={other}"
        expected = f"one of {', '.join(names)}" if names else "nothing: this label set has no emotions"
        raise CorpusError(file, repr(text[:40]), expected, near_names(text, names) + advice, line=line, field="emotion")

    def to_frames(self, names: Sequence[str], *, official: Sequence[str] = (), **columns: Any) -> Frames:
        """A split that is written for some pictures is kept; the others are trained on."""
        is_given, counts = any(official), dict(self.counts)
        if is_given and (blank := sum(not split for split in official)):
            counts["blank_splits_taken_as_train"] = blank
            official = [split or "train" for split in official]
        return super().to_frames(names, official=official, counts=counts, split_is_given=is_given, **columns)


class OwnTable(_Own):
    """A folder with pictures and one file labels.csv or labels.jsonl: `image` (a path below the folder), and any of
    `emotion` (a name, empty if unknown), `AU1`, `AU2`, ... (1, 0, empty if unknown), `subject` (who is seen: give it,
    for it keeps people apart in the splits; else `video`), `split` (train, validation, test), and in jsonl `landmarks`
    (68 pairs of pixels, a pixel's middle ends in .5)."""

    advice = "Name a folder that holds labels.csv or labels.jsonl and the pictures that it lists"

    def read(self) -> Frames:
        usual = [self.root / name for name in ("labels.csv", "labels.jsonl")]
        files = [file for file in ([Path(self.labels)] if self.labels else usual) if file.is_file()]
        if len(files) != 1:
            got = " and ".join(path.name for path in files) or (f"no {self.labels}" if self.labels else "neither")
            raise CorpusError(self.root, got, "one of labels.csv and labels.jsonl", self.advice)
        file, listing = files[0], Listing(files[0])
        columns: dict[str, list] = defaultdict(list)
        for line, row in self._jsonl(file) if file.suffix == ".jsonl" else self._csv(file):
            columns["image"].append(listing.path(str(row.get("image") or ""), line))
            columns["emotion"].append(self.emotion_code(_text(row.get("emotion")), file, line))
            columns["split"].append(_split(row, file, line))
            columns["subject"].append(_text(row.get("subject")) or _text(row.get("video")))
            columns["landmarks"].append(_points(row.get("landmarks"), file, line))
            units = [_au_code(row.get(unit), unit, file, line) for unit in self.label_set.action_units]
            columns["units"].append(units)
        if not columns["image"]:
            raise CorpusError(file, "no row", "a line a picture", self.advice)
        points = np.stack(columns["landmarks"])
        return self.to_frames(
            columns["image"],
            au_labels=np.array(columns["units"], np.int8).reshape(len(points), -1),
            emotion=np.array(columns["emotion"], np.int8),
            official=columns["split"],
            subjects=columns["subject"],
            landmarks=None if np.isnan(points).all() else points,
        )

    def _check_columns(self, names: list[str], file: Path, line: int) -> None:
        known = (*_COLUMNS, *ACTION_UNITS)
        for place, name in enumerate(names, start=1):
            if name not in known:
                expected = f"{', '.join(_COLUMNS)}, AU1, AU2, ..."
                advice = f"{near_names(name, known)}Rename the column, or remove it"
                raise CorpusError(file, repr(name), expected, advice, line=line, field=f"column {place}")
            if names.count(name) > 1:
                raise CorpusError(file, f"{name} twice", "each column once", "Rename one", line=line)
        if "image" not in names:
            raise CorpusError(file, ", ".join(names), "a column `image`", self.advice, line=line)

    def _csv(self, file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        rows = csv_rows(file, read_text(file))
        _, header = next(rows, (1, []))
        names = [name.strip() for name in header]
        self._check_columns(names, file, 1)
        for line, fields in rows:
            check_width(file, fields, names, "Put a field that holds a comma between quotation marks", line)
            yield line, dict(zip(names, fields, strict=True))

    def _jsonl(self, file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        for line, text in enumerate(read_text(file).split("\n"), start=1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
                if not isinstance(row, dict):
                    raise ValueError(f"a {type(row).__name__}")
            except (ValueError, RecursionError) as error:
                raise CorpusError(file, str(error), "one JSON object a line", "Correct the line", line=line) from error
            self._check_columns(list(row), file, line)
            yield line, row


def _text(value: Any) -> str:
    """A field's text without blanks around it; jsonl may number people from 0."""
    return "" if value is None else str(value).strip()


def _au_code(value: Any, name: str, file: Path, line: int) -> int:
    if (text := _text(value)) not in _AU_CODES:
        advice = "Labels say whether an AU is active, not how strongly"
        raise CorpusError(file, repr(text[:40]), "1, 0, or nothing (unknown)", advice, line=line, field=name)
    return _AU_CODES[text]


def _split(row: Mapping[str, Any], file: Path, line: int) -> str:
    text = _text(row.get("split")).lower()
    if text and text not in _SPLIT_NAMES:
        expected = f"one of {', '.join(SPLITS)}"
        raise CorpusError(file, repr(text[:40]), expected, "A blank one is train", line=line, field="split")
    return _SPLIT_NAMES.get(text, "")


def _points(value: Any, file: Path, line: int) -> np.ndarray:
    if value is None or value == "":
        return np.full((68, 2), np.nan, np.float32)
    try:
        points = np.array(value, np.float32)
    except (ValueError, TypeError):
        points = np.zeros(0)
    if points.shape != (68, 2) or not np.isfinite(points).all():
        advice = "Landmarks in pixels of the picture, in iBUG order; in jsonl only"
        raise CorpusError(file, f"{points.shape}", "68 pairs", advice, line=line, field="landmarks")
    return points


class OwnFolders(_Own):
    """A folder a class, named as the emotion (Happiness, happy, ...), pictures in it or in folders below it; around
    them there may be folders train, validation (val) and test. Nothing says who is seen."""

    advice = "Name a folder that holds a folder an emotion, with pictures in it"

    def read(self) -> Frames:
        names, codes, official = [], [], []
        top = self._folders(self.root)
        splits = {name: _SPLIT_NAMES[name.lower()] for name in top if name.lower() in _SPLIT_NAMES}
        if splits and len(splits) < len(top):
            others = ", ".join(sorted(set(top) - set(splits)))
            raise CorpusError(self.root, f"{others} beside {', '.join(splits)}", "splits or classes", self.advice)
        for prefix, split in splits.items() if splits else (("", ""),):
            for folder in self._folders(self.root / prefix):
                inside = f"{prefix}/{folder}" if prefix else folder
                code = self.emotion_code(folder, self.root / inside)
                pictures = sorted(self._pictures(inside, ()))
                names += pictures
                codes += [code] * len(pictures)
                official += [split] * len(pictures)
        if not names:
            raise CorpusError(self.root, "no picture", f"files that end in {', '.join(IMAGE_ENDINGS)}", self.advice)
        return self.to_frames(names, emotion=np.array(codes, np.int8), official=official)

    def _folders(self, folder: Path) -> list[str]:
        return sorted(e.name for e in os.scandir(folder) if not e.name.startswith(".") and _is_folder(e))

    def _pictures(self, folder: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
        """Links are followed, for corpora are often linked; one that leads back up would never end."""
        status = (self.root / folder).stat()
        here = status.st_dev, status.st_ino
        if here in above:
            got, expected = "a link to a folder that it lies in", "folders without such a loop"
            raise CorpusError(self.root / folder, got, expected, "Remove the link")
        for entry in os.scandir(self.root / folder):
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                yield from self._pictures(f"{folder}/{entry.name}", (*above, here))
            elif entry.name.lower().endswith(IMAGE_ENDINGS):
                yield f"{folder}/{entry.name}"


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:  # a link that leads to itself
        raise CorpusError(entry.path, error.strerror, "a picture or a folder", "Remove the link") from error


def own_corpus(root: str | Path, **options: Any) -> ImageCorpus:
    """The reader that fits what lies in the folder."""
    has_table = options.get("labels") or any((Path(root) / name).is_file() for name in ("labels.csv", "labels.jsonl"))
    return (OwnTable if has_table else OwnFolders)(root, **options)


__all__ = ["OwnFolders", "OwnTable", "own_corpus"]
