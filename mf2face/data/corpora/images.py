"""Readers of corpora of single pictures: RAF-AU, EmotioNet, AffectNet (2017 and 2021), RAF-DB (basic and compound)."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from configuration_mf2.facs import LABEL_SETS, UNKNOWN_LABEL
from mf2face.data.corpora.frames import Corpus, Frames, columns_by_name, emotion_codes, stills
from mf2face.data.corpora.label_files import (
    CorpusError,
    Listing,
    check_folder,
    check_header,
    check_width,
    csv_rows,
    read_text,
)


Folder = Literal["aligned", "original"]


class ImageCorpus(Corpus):
    """A corpus of pictures. It does not say who is seen: nothing keeps pictures of one person together."""

    def to_frames(
        self,
        names: Sequence[str],
        *,
        au_labels: np.ndarray | None = None,
        emotion: np.ndarray | None = None,
        official: Sequence[str] = (),
        subjects: Sequence[str] = (),
        landmarks: np.ndarray | None = None,
        counts: dict[str, int] | None = None,
        **more: Any,
    ) -> Frames:
        count, units = len(names), len(self.label_set.action_units)
        videos, there = stills(names, self.root, self.list_folder, official=official, subjects=subjects)
        columns = (
            np.arange(count, dtype=np.int32),
            np.zeros(count, np.int32),
            np.full((count, units), UNKNOWN_LABEL, np.int8) if au_labels is None else au_labels,
            np.full(count, UNKNOWN_LABEL, np.int8) if emotion is None else emotion,
        )
        missing = [names[place] for place in np.flatnonzero(~there)]
        more["landmarks"] = None if landmarks is None else landmarks[there]
        more["counts"] = {"label_lines": count, "images_missing": len(missing), **(counts or {})}
        return self.as_frames(videos, *(c[there] for c in columns), lines=count, missing=missing, **more)

    def pairs(self, file: Path, expected: str) -> Iterator[tuple[int, str, str]]:
        """Line number, picture and label of a file of two words a line."""
        listing = Listing(file)
        for number, line in enumerate(read_text(file).split("\n"), start=1):
            if not (words := line.split()):
                continue
            if len(words) != 2:
                raise CorpusError(file, repr(line[:60]), expected, self.advice, line=number)
            yield number, listing.path(words[0], number), words[1]


def _in_folder(name: str, images: Folder) -> str:
    """`0001.jpg` is called `0001_aligned.jpg` in the folder of aligned pictures."""
    stem, _, ending = name.rpartition(".")
    return f"{images}/{stem}{'_aligned' if images == 'aligned' else ''}.{ending}"


@dataclass
class RAFAU(ImageCorpus):
    """RAF-AU: `RAFAU_label.txt`, a line `0001.jpg 17+B22+T24` or `0001.jpg null`, pictures `aligned/0001_aligned.jpg`
    (100 x 100) or, with images="original", `original/0001.jpg`. 4,601 pictures, coded completely: an AU that is not
    listed is absent. L and R mark a side, T and B the upper or lower lip; they are merged, or with sides=False an AU
    that was coded on one side alone is unknown. Exp-BLIP scores 17 of the AUs."""

    name = "raf_au"
    licence = "RAF-AU: non-commercial research, by agreement with its authors; not to be passed on"
    advice = "Name the folder that holds RAFAU_label.txt and aligned (or original)"
    _CODE = re.compile(r"([LRTB]?)(\d{1,2})")

    images: Folder = "aligned"
    sides: bool = True

    def read(self) -> Frames:
        file = self.root / "RAFAU_label.txt"
        check_folder(self.root / self.images, "the pictures", self.advice)
        names, labels = [], []
        expected = "a picture and its AUs, such as `0001.jpg 17+B22+T24`, or `0001.jpg null`"
        for line, name, codes in self.pairs(file, expected):
            names.append(_in_folder(name, self.images))
            labels.append(self._coded(codes, file, line))
        return self.to_frames(names, au_labels=np.array(labels, np.int8).reshape(len(names), -1))

    def _coded(self, text: str, file: Path, line: int) -> list[int]:
        sides: dict[str, set[str]] = {}
        for code in [] if text.lower() == "null" else text.split("+"):
            if (match := self._CODE.fullmatch(code.strip())) is None:
                advice = "An AU's number, with L, R, T or B before it, `+` between AUs, or null"
                raise CorpusError(file, repr(code), "such as 17, B22 or T24", advice, line=line, field="AUs")
            sides.setdefault(f"AU{int(match[2])}", set()).add(match[1])
        one_sided = 1 if self.sides else UNKNOWN_LABEL
        return [
            0 if name not in sides else 1 if "" in sides[name] or len(sides[name]) > 1 else one_sided
            for name in self.label_set.action_units
        ]


class EmotioNet(ImageCorpus):
    """EmotioNet, the hand-coded list (`EmotioNet_FACS*.csv`, saved from the xlsx): a column of addresses, then columns
    such as `AU 1`; 1 active, 0 inactive, 999 unknown. The corpus gives addresses, not pictures: they are looked for in
    `images/` under the address's last part. An empty cell is unknown."""

    name = "emotionet"
    licence = "EmotioNet: research only, by agreement with its authors; not to be passed on"
    advice = "Name the folder that holds EmotioNet_FACS*.csv and images (the fetched pictures)"
    _CODES = {"1": 1, "0": 0, "999": UNKNOWN_LABEL, "": UNKNOWN_LABEL, "1.0": 1, "0.0": 0, "999.0": UNKNOWN_LABEL}

    def read(self) -> Frames:
        files = sorted(self.root.glob("EmotioNet_FACS*.csv"))
        if len(files) != 1:
            got = ", ".join(file.name for file in files) or "none"
            raise CorpusError(self.root, got, "one file named EmotioNet_FACS*.csv", self.advice)
        file = files[0]
        rows = csv_rows(file, read_text(file))
        _, header = next(rows, (1, []))
        plain = [name.strip().strip("'\"").replace(" ", "") for name in header]
        columns = {place: name for place, name in enumerate(plain) if re.fullmatch(r"AU\d{1,2}", name)}
        if not plain or not plain[0].lower().startswith("url") or not columns:
            got, expected = ", ".join(header)[:120] or "no header", "URL, then columns such as 'AU 1'"
            raise CorpusError(file, got, expected, self.advice, line=1)
        names, labels, listing = [], [], Listing(file)
        for line, fields in rows:
            check_width(file, fields, header, self.advice, line)
            address = fields[0].strip().strip("'\"").rstrip("/").rpartition("/")[2]
            names.append(f"images/{listing.path(address, line, 'URL')}")
            labels.append([self._code(fields[place], file, line, name) for place, name in columns.items()])
        values = np.array(labels, np.int8).reshape(len(names), len(columns))
        wanted = columns_by_name(values, list(columns.values()), self.label_set.action_units, UNKNOWN_LABEL)
        return self.to_frames(names, au_labels=wanted)

    def _code(self, text: str, file: Path, line: int, field: str) -> int:
        if (code := self._CODES.get(text.strip().strip("'\""))) is None:
            raise CorpusError(file, repr(text), "0, 1, 999 (unknown) or nothing", self.advice, line=line, field=field)
        return code


class AffectNet(ImageCorpus):
    """AffectNet in both forms. 2017: `training.csv` and `validation.csv` (path below `Manually_Annotated_Images`, box,
    68 landmarks, expression, valence, arousal). 2021: `train_set` and `val_set`, each `images/<n>.jpg` and
    `annotations/<n>_exp.npy` (`_lnd.npy`: landmarks). Codes 0 to 7: Neutral, Happy, Sad, Surprise, Fear, Disgust,
    Anger, Contempt; 8 and 9 (none, uncertain) are unknown, 10 (no face) is left out. The corpus's landmarks come along.
    Its validation set is `validation`; a test set was never given out."""

    name = "affectnet"
    licence = "AffectNet: non-commercial research, by agreement with its authors; not to be passed on"
    advice = "Name the folder that holds training.csv and Manually_Annotated_Images (2017), or train_set (2021)"
    images = "Manually_Annotated_Images"
    columns = (
        *("subDirectory_filePath", "face_x", "face_y", "face_width", "face_height"),
        *("facial_landmarks", "expression", "valence", "arousal"),
    )

    def read(self) -> Frames:
        rows = list(self._npy() if (self.root / "train_set").is_dir() else self._csv())
        faces = [row for row in rows if row[1] != 10]
        names, codes, official, points = zip(*faces, strict=True) if faces else ((), (), (), ())
        codes = np.array(codes, np.int64)
        emotions = emotion_codes(LABEL_SETS["affectnet"].emotions, self.label_set.emotions)
        return self.to_frames(
            names,
            emotion=emotions[np.where(codes < 8, codes, -1)],
            official=official,
            landmarks=np.stack(points) if points else None,
            counts={"pictures_without_a_face": len(rows) - len(faces)},
        )

    def _csv(self) -> Iterator[tuple[str, int, str, np.ndarray]]:
        """Name, code, split and landmarks of each picture."""
        files = {split: self.root / f"{name}.csv" for split, name in (("train", "training"), ("validation",) * 2)}
        if not any(file.is_file() for file in files.values()):
            raise CorpusError(self.root, "neither of them", "training.csv, or a folder train_set", self.advice)
        check_folder(self.root / self.images, "the pictures of the 2017 form", self.advice)
        for split, file in files.items():
            listing = Listing(file)
            for line, fields in csv_rows(file, read_text(file)) if file.is_file() else ():
                if line == 1 and "/" not in fields[0]:
                    check_header(file, fields, self.columns, self.advice)
                    continue
                check_width(file, fields, self.columns, self.advice, line)
                name = f"{self.images}/{listing.path(fields[0], line, self.columns[0])}"
                yield name, _expression(fields[6], file, line), split, _landmarks(fields[5].split(";"), file, line)

    def _npy(self) -> Iterator[tuple[str, int, str, np.ndarray]]:
        for split, folder in (("train", "train_set"), ("validation", "val_set")):
            if not (self.root / folder).is_dir():
                continue
            notes = check_folder(self.root / folder / "annotations", "annotations of the 2021 form", self.advice)
            for file in sorted(notes.glob("*_exp.npy"), key=lambda path: (len(path.name), path.name)):
                stem = file.name.removesuffix("_exp.npy")
                points = file.with_name(f"{stem}_lnd.npy")
                values = _load_array(points).reshape(-1) if points.is_file() else []
                code = _expression(str(_load_array(file)), file)
                yield f"{folder}/images/{stem}.jpg", code, split, _landmarks(values, points, None)


def _expression(text: str, file: Path, line: int | None = None) -> int:
    if text.strip() not in map(str, range(11)):
        advice = "0 to 7 are emotions, 8 none, 9 uncertain, 10 no face"
        raise CorpusError(file, repr(text[:40]), "0 to 10", advice, line=line, field="expression")
    return int(text)


def _load_array(file: Path) -> np.ndarray:
    try:
        return np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        advice = "Fetch it again; an array of Python objects is refused, for opening one can run code"
        raise CorpusError(file, str(error), "a plain numpy array", advice) from error


def _landmarks(values: Sequence, file: Path, line: int | None) -> np.ndarray:
    """(68, 2); NaN where there are none. A pixel's middle ends in .5 here, and is a whole number in the corpus."""
    if len(values) <= 1:
        return np.full((68, 2), np.nan, np.float32)
    try:
        points = np.array(values, np.float32).reshape(68, 2)
    except ValueError as error:
        advice = "x and y in turn; or leave the field empty"
        raise CorpusError(file, f"{len(values)} values", "136 numbers", advice, line=line, field="landmarks") from error
    return points + np.float32(0.5)


@dataclass
class RAFDB(ImageCorpus):
    """RAF-DB: `EmoLabel/list_patition_label.txt` (the corpus spells it so), a line `train_00001.jpg 5`, pictures
    `Image/aligned/train_00001_aligned.jpg` (100 x 100) or, with images="original", `Image/original/train_00001.jpg`,
    both below `basic` or `compound`. Basic codes 1 to 7: Surprise, Fear, Disgust, Happiness, Sadness, Anger, Neutral;
    compound codes 1 to 11. A name says whether its picture is for `train` or `test`."""

    name = "raf_db"
    licence = "RAF-DB: non-commercial research, by agreement with its authors; not to be passed on"
    advice = "Name the folder that holds basic (or compound), with EmoLabel and Image in it"
    part = "basic"

    images: Folder = "aligned"

    def read(self) -> Frames:
        base = f"{self.part}/" if (self.root / self.part).is_dir() else ""
        file = self.root / base / "EmoLabel" / "list_patition_label.txt"
        check_folder(self.root / base / "Image" / self.images, "the pictures", self.advice)
        own = LABEL_SETS[self.name].emotions
        names, codes, official = [], [], []
        expected = f"a picture and 1 to {len(own)}, such as `train_00001.jpg 5`"
        for line, name, code in self.pairs(file, expected):
            if not code.isdigit() or not 1 <= int(code) <= len(own):
                raise CorpusError(file, repr(f"{name} {code}"), expected, self.advice, line=line)
            split = name.partition("_")[0]
            if split not in ("train", "test"):
                expected_name = "a name that begins with train_ or test_"
                raise CorpusError(file, repr(name), expected_name, self.advice, line=line, field="image")
            names.append(f"{base}Image/{_in_folder(name, self.images)}")
            codes.append(int(code) - 1)
            official.append(split)
        emotions = emotion_codes(own, self.label_set.emotions)[np.array(codes, np.int64)]
        return self.to_frames(names, emotion=emotions, official=official)


class RAFDBCompound(RAFDB):
    __doc__ = RAFDB.__doc__
    name = "raf_db_compound"
    part = "compound"


__all__ = ["RAFAU", "RAFDB", "AffectNet", "EmotioNet", "ImageCorpus", "RAFDBCompound"]
