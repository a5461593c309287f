"""Readers of corpora of single pictures: RAF-AU, EmotioNet, AffectNet (2017 and 2021), RAF-DB (basic and compound)."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from configuration_mf2.facs import LABEL_SETS, UNKNOWN_LABEL, LabelSet
from mf2face.data.corpora.frames import Frames, ListFolder, check_some_are_there, stills
from mf2face.data.corpora.label_files import (
    CorpusError,
    Duplicates,
    check_folder,
    csv_rows,
    near_names,
    read_text,
    safe_path,
)
from mf2face.data.corpora.videos import _NAMED_MISSING, columns_by_name, emotion_codes
from mf2face.data.schema import as_label_set


class ImageCorpus:
    """What the readers of pictures share. Who is seen is not known: nothing keeps pictures of one person together.

    label_set: the AUs and emotions wanted, by name; the corpus's own unless given.
    """

    name: str
    licence: str
    advice: str

    def __init__(
        self,
        root: str | Path,
        *,
        label_set: str | LabelSet | None = None,
        list_folder: ListFolder = os.listdir,
    ) -> None:
        self.root = check_folder(Path(root), f"the {self.name} corpus", self.advice)
        self.label_set = as_label_set(self.own_labels if label_set is None else label_set)
        self.list_folder = list_folder
        self.counts: dict[str, int] = {}

    @property
    def own_labels(self) -> str:
        return self.name

    def read(self) -> Frames:
        raise NotImplementedError

    def to_frames(
        self,
        names: Sequence[str],
        *,
        au_labels: np.ndarray | None = None,
        emotion: np.ndarray | None = None,
        official: Sequence[str] = (),
        subjects: Sequence[str] = (),
        landmarks: np.ndarray | None = None,
    ) -> Frames:
        videos, there, missing = stills(names, self.root, self.list_folder, official=official, subjects=subjects)
        check_some_are_there(self.root, len(names), int(there.sum()), missing, self.advice)
        units = len(self.label_set.action_units)
        frames = Frames(
            *(self.name, self.licence, self.root, self.label_set, videos),
            np.arange(len(names), dtype=np.int32),
            np.zeros(len(names), np.int32),
            np.full((len(names), units), UNKNOWN_LABEL, np.int8) if au_labels is None else au_labels,
            np.full(len(names), UNKNOWN_LABEL, np.int8) if emotion is None else emotion,
            landmarks=landmarks,
            counts={"label_lines": len(names), "images_missing": len(missing), **self.counts},
            missing=missing[:_NAMED_MISSING],
            protocol=" ".join((self.__doc__ or "").split()),
        )
        return frames.select(there)


class RAFAU(ImageCorpus):
    """RAF-AU: `RAFAU_label.txt`, a line `0001.jpg 17+B22+T24` or `0001.jpg null`, pictures `aligned/0001_aligned.jpg`
    (100 x 100) or, with images="original", `original/0001.jpg`. 4,601 pictures, coded completely: an AU that is not
    listed is absent. L and R mark a side, T and B the upper or lower lip; they are merged, or with sides=False an AU
    that was coded on one side alone is unknown. Exp-BLIP scores 17 of the AUs."""

    name = "raf_au"
    licence = "RAF-AU: non-commercial research, by agreement with its authors; not to be passed on"
    advice = "Name the folder that holds RAFAU_label.txt and aligned (or original)"
    _CODE = re.compile(r"([LRTB]?)(\d{1,2})")

    def __init__(
        self, root: str | Path, *, images: Literal["aligned", "original"] = "aligned", sides: bool = True, **options
    ) -> None:
        self.images, self.sides = images, sides
        super().__init__(root, **options)

    def read(self) -> Frames:
        file = self.root / "RAFAU_label.txt"
        check_folder(self.root / self.images, "the pictures", self.advice)
        names, labels, duplicates = [], [], Duplicates(file)
        for number, line in enumerate(read_text(file).split("\n"), start=1):
            if not (fields := line.split()):
                continue
            if len(fields) != 2:
                expected = "a picture and its AUs, such as `0001.jpg 17+B22+T24`, or `0001.jpg null`"
                raise CorpusError(file, repr(line[:60]), expected, self.advice, line=number)
            name = safe_path(fields[0], file, number)
            duplicates.add(name, number)
            stem, _, ending = name.rpartition(".")
            names.append(f"{self.images}/{stem}{'_aligned' if self.images == 'aligned' else ''}.{ending}")
            labels.append(self._coded(fields[1], file, number))
        return self.to_frames(names, au_labels=np.array(labels, np.int8).reshape(len(names), -1))

    def _coded(self, text: str, file: Path, line: int) -> list[int]:
        codes = [] if text.lower() == "null" else text.split("+")
        found: dict[str, set[str]] = {}
        for code in codes:
            if (match := self._CODE.fullmatch(code.strip())) is None:
                told = "An AU's number, with L, R, T or B before it, `+` between AUs, or null"
                raise CorpusError(file, repr(code), "such as 17, B22 or T24", told, line=line, field="AUs")
            found.setdefault(f"AU{int(match[2])}", set()).add(match[1])
        one_sided = UNKNOWN_LABEL if not self.sides else 1
        return [
            0 if name not in found else 1 if "" in found[name] or len(found[name]) > 1 else one_sided
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
            expected = "URL, then columns such as 'AU 1'"
            raise CorpusError(file, ", ".join(header)[:120] or "no header", expected, self.advice, line=1)
        names, labels, duplicates = [], [], Duplicates(file)
        for line, fields in rows:
            if len(fields) != len(header):
                expected = f"{len(header)} fields, as in the header"
                raise CorpusError(file, f"{len(fields)} fields", expected, self.advice, line=line)
            address = fields[0].strip().strip("'\"").rstrip("/").rpartition("/")[2]
            name = f"images/{safe_path(address, file, line, 'URL')}"
            duplicates.add(name, line)
            names.append(name)
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
        names, codes, official, points = self._npy() if (self.root / "train_set").is_dir() else self._csv()
        codes, faces = np.array(codes, np.int64), np.array(codes) != 10
        self.counts = {"pictures_without_a_face": int((~faces).sum())}
        kept = np.flatnonzero(faces)
        emotions = emotion_codes(LABEL_SETS["affectnet"].emotions, self.label_set.emotions)
        return self.to_frames(
            [names[place] for place in kept],
            emotion=emotions[np.where(codes[kept] < 8, codes[kept], -1)],
            official=[official[place] for place in kept],
            landmarks=np.stack([points[place] for place in kept]) if len(kept) else None,
        )

    def _csv(self) -> tuple[list[str], list[int], list[str], list[np.ndarray]]:
        names, codes, official, points = [], [], [], []
        found = [(split, self.root / f"{file}.csv") for split, file in (("train", "training"), ("validation",) * 2)]
        found = [(split, file) for split, file in found if file.is_file()]
        if not found:
            raise CorpusError(self.root, "neither of them", "training.csv, or a folder train_set", self.advice)
        check_folder(self.root / self.images, "the pictures of the 2017 form", self.advice)
        for split, file in found:
            duplicates = Duplicates(file)
            for line, fields in csv_rows(file, read_text(file)):
                if line == 1 and "/" not in fields[0]:
                    self._check_header(file, fields)
                    continue
                if len(fields) != len(self.columns):
                    expected = f"{len(self.columns)}: {', '.join(self.columns)}"
                    raise CorpusError(file, f"{len(fields)} fields", expected, self.advice, line=line)
                name = f"{self.images}/{safe_path(fields[0], file, line, self.columns[0])}"
                duplicates.add(name, line)
                names.append(name)
                codes.append(self._expression(fields[6], file, line))
                points.append(_landmarks(fields[5].split(";"), file, line))
                official.append(split)
        return names, codes, official, points

    def _check_header(self, file: Path, fields: Sequence[str]) -> None:
        for place, (name, wanted) in enumerate(zip(fields, self.columns, strict=False), start=1):
            if name.strip() != wanted:
                told = f"{near_names(name, self.columns)}{self.advice}"
                raise CorpusError(file, repr(name), repr(wanted), told, line=1, field=f"column {place}")

    def _expression(self, text: str, file: Path, line: int | None = None) -> int:
        if text.strip() not in map(str, range(11)):
            told = "0 to 7 are emotions, 8 none, 9 uncertain, 10 no face"
            raise CorpusError(file, repr(text[:40]), "0 to 10", told, line=line, field="expression")
        return int(text)

    def _npy(self) -> tuple[list[str], list[int], list[str], list[np.ndarray]]:
        names, codes, official, points = [], [], [], []
        for split, folder in (("train", "train_set"), ("validation", "val_set")):
            if not (self.root / folder).is_dir():
                continue
            notes = check_folder(self.root / folder / "annotations", "annotations of the 2021 form", self.advice)
            for file in sorted(notes.glob("*_exp.npy"), key=lambda path: (len(path.name), path.name)):
                stem = file.name.removesuffix("_exp.npy")
                codes.append(self._expression(str(_load_array(file)), file))
                beside = file.with_name(f"{stem}_lnd.npy")
                values = _load_array(beside).reshape(-1) if beside.is_file() else []
                points.append(_landmarks(values, beside, None))
                names.append(f"{folder}/images/{stem}.jpg")
                official.append(split)
        return names, codes, official, points


def _load_array(file: Path) -> np.ndarray:
    try:
        return np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        told = "Fetch it again; an array of Python objects is refused, for opening one can run code"
        raise CorpusError(file, str(error), "a plain numpy array", told) from error


def _landmarks(values: Sequence, file: Path, line: int | None) -> np.ndarray:
    """(68, 2); NaN where there are none. A pixel's middle ends in .5 here, and is a whole number in the corpus."""
    if len(values) <= 1:
        return np.full((68, 2), np.nan, np.float32)
    try:
        points = np.array(values, np.float32).reshape(68, 2)
    except ValueError as error:
        told = "x and y in turn; or leave the field empty"
        raise CorpusError(file, f"{len(values)} values", "136 numbers", told, line=line, field="landmarks") from error
    return points + np.float32(0.5)


class RAFDB(ImageCorpus):
    """RAF-DB: `EmoLabel/list_patition_label.txt` (the corpus spells it so), a line `train_00001.jpg 5`, pictures
    `Image/aligned/train_00001_aligned.jpg` (100 x 100) or, with images="original", `Image/original/train_00001.jpg`,
    both below `basic` or `compound`. Basic codes 1 to 7: Surprise, Fear, Disgust, Happiness, Sadness, Anger, Neutral;
    compound codes 1 to 11. A name says whether its picture is for `train` or `test`."""

    name = "raf_db"
    licence = "RAF-DB: non-commercial research, by agreement with its authors; not to be passed on"
    advice = "Name the folder that holds basic (or compound), with EmoLabel and Image in it"
    part = "basic"

    def __init__(self, root: str | Path, *, images: Literal["aligned", "original"] = "aligned", **options) -> None:
        self.images = images
        super().__init__(root, **options)

    def read(self) -> Frames:
        base = f"{self.part}/" if (self.root / self.part).is_dir() else ""
        file = self.root / base / "EmoLabel" / "list_patition_label.txt"
        check_folder(self.root / base / "Image" / self.images, "the pictures", self.advice)
        own = LABEL_SETS[self.own_labels].emotions
        names, codes, official, duplicates = [], [], [], Duplicates(file)
        for number, line in enumerate(read_text(file).split("\n"), start=1):
            if not (fields := line.split()):
                continue
            if len(fields) != 2 or not fields[1].isdigit() or not 1 <= int(fields[1]) <= len(own):
                expected = f"a picture and 1 to {len(own)}, such as `train_00001.jpg 5`"
                raise CorpusError(file, repr(line[:60]), expected, self.advice, line=number)
            name = safe_path(fields[0], file, number)
            split = name.partition("_")[0]
            if split not in ("train", "test"):
                expected = "a name that begins with train_ or test_"
                raise CorpusError(file, repr(name), expected, self.advice, line=number, field="image")
            duplicates.add(name, number)
            stem, _, ending = name.rpartition(".")
            suffix = "_aligned" if self.images == "aligned" else ""
            names.append(f"{base}Image/{self.images}/{stem}{suffix}.{ending}")
            codes.append(int(fields[1]) - 1)
            official.append(split)
        emotions = emotion_codes(own, self.label_set.emotions)[np.array(codes, np.int64)]
        return self.to_frames(names, emotion=emotions, official=official)


class RAFDBCompound(RAFDB):
    __doc__ = RAFDB.__doc__
    name = "raf_db_compound"
    part = "compound"


IMAGE_CORPORA: Mapping[str, type[ImageCorpus]] = {
    reader.name: reader for reader in (RAFAU, EmotioNet, AffectNet, RAFDB, RAFDBCompound)
}


__all__ = ["IMAGE_CORPORA", "RAFAU", "RAFDB", "AffectNet", "EmotioNet", "RAFDBCompound"]
