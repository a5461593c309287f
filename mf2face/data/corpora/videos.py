"""Readers of corpora whose labels follow the frames of videos: Aff-Wild2, DISFA, BP4D, GFT."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configuration_mf2.facs import UNKNOWN_LABEL
from mf2face.data.corpora.frames import Corpus, Frames, Video, columns_by_name, emotion_codes, frames_on_disk
from mf2face.data.corpora.label_files import (
    CorpusError,
    check_folder,
    check_header,
    csv_rows,
    integer_table,
    label_files,
    read_text,
)
from mf2face.data.schema import as_label_set


_FOLDS = {
    "disfa": (
        "SN002 SN010 SN001 SN026 SN027 SN032 SN030 SN009 SN016",
        "SN013 SN018 SN011 SN028 SN012 SN006 SN031 SN021 SN024",
        "SN003 SN029 SN023 SN025 SN008 SN005 SN007 SN017 SN004",
    ),
    "bp4d": (
        "F001 M007 F018 F008 F002 M004 F010 F009 M012 M001 F016 M014 F023 M008",
        "M011 F003 M010 M002 F005 F022 M018 M017 F013 M016 F020 F011 M013 M005",
        "F007 F015 F006 F019 M006 M009 F012 M003 F004 F021 F017 M015 F014",
    ),
}
FOLDS: Mapping[str, Mapping[str, int]] = {
    corpus: {name: number for number, fold in enumerate(folds, 1) for name in fold.split()}
    for corpus, folds in _FOLDS.items()
}
"""Corpus -> person -> fold, of the three that JÂA-Net and ME-GraphAU use."""


def _official_fold(corpus: str, subject: str) -> str:
    number = FOLDS[corpus].get(subject)
    return "" if number is None else f"fold {number}"


@dataclass
class Labelled:
    """One video's labels, a row a frame, in the order of frames."""

    name: str
    subject: str
    folder: str
    file: Path
    frames: np.ndarray
    au_labels: np.ndarray
    emotion: np.ndarray
    au_intensities: np.ndarray | None = None
    official: str = ""


def check_order(file: Path, frames: np.ndarray, first_line: int) -> None:
    """Each frame once, in order, from 0."""
    wrong = np.flatnonzero(np.diff(frames, prepend=-1) <= 0)
    if len(wrong):
        expected = "a later frame" if wrong[0] else "a frame number from 0"
        where = {"line": first_line + int(wrong[0]), "field": "frame"}
        raise CorpusError(file, frames[wrong[0]], expected, "Each frame once, in order", **where)


@dataclass
class VideoCorpus(Corpus):
    """images: the folder of frames. extra_frames: how many images beyond the labelled ones (or lines of one label file
    beyond the other's) a video may have."""

    images: str = ""
    extra_frames: int = 0

    def labelled(self) -> Iterator[Labelled]:
        raise NotImplementedError

    def read(self) -> Frames:
        videos: list[Video] = []
        parts: list[list[np.ndarray]] = []
        counts = {"videos": 0, "label_lines": 0, "lines_without_a_label": 0, "images_missing": 0}
        missing: list[str] = []
        for labelled in self.labelled():
            known = (labelled.au_labels != UNKNOWN_LABEL).any(1) | (labelled.emotion != UNKNOWN_LABEL)
            video, there = self._on_disk(labelled)
            absent, kept = known & ~there, known & there
            of_video = (1, len(labelled.frames), int((~known).sum()), int(absent.sum()))
            counts = {name: count + more for (name, count), more in zip(counts.items(), of_video, strict=True)}
            missing += [video.image(int(number)) for number in labelled.frames[absent][:20]]
            number = np.full(len(known), len(videos), np.int32)
            columns = [number, labelled.frames.astype(np.int32), labelled.au_labels, labelled.emotion]
            columns += [] if labelled.au_intensities is None else [labelled.au_intensities]
            parts.append([column[kept] for column in columns])
            videos.append(video)
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
        lines = counts["label_lines"] - counts["lines_without_a_label"]
        return self.as_frames(videos, *columns, lines=lines, missing=missing, counts=counts)

    def _on_disk(self, labelled: Labelled) -> tuple[Video, np.ndarray]:
        folder = self.root / labelled.folder
        numbers, digits, ending = frames_on_disk(folder, self.list_folder)
        last = labelled.frames[-1] if len(labelled.frames) else 0
        beyond = numbers[numbers > last] if len(labelled.frames) else numbers
        if len(beyond) > self.extra_frames:
            raise CorpusError(
                *(labelled.file, f"labels up to frame {last}"),
                f"one for each image in {folder}, which has frames up to {beyond[-1]}",
                f"Labels and images are of different versions or videos; extra_frames={len(beyond)} leaves out the "
                "images beyond",
            )
        there = np.isin(labelled.frames, numbers, assume_unique=True)
        video = Video(labelled.name, labelled.subject, labelled.folder, digits, ending, labelled.official)
        return video, there


@dataclass
class AffWild2(VideoCorpus):
    """Aff-Wild2 as ABAW gives it out since 2022: `AU_Detection_Challenge` and `EXPR_Classification_Challenge` (or
    `EXPR_Recognition_Challenge`), each with `Train_Set` and `Validation_Set`, a text file a video; line 0 is the
    header, line i the labels of `cropped_aligned/<video>/<i:05d>.jpg`. -1 is unknown, of each AU by itself; a video
    that one of the two tracks does not label is unknown there. A line may have no image: no face was detected. People
    are not named: `_left` and `_right` are two people of one video and stay together, as do all frames of a video."""

    name = "aff_wild2"
    licence = "Aff-Wild2: academic research only, by agreement with its authors; not to be passed on"
    images: str = "cropped_aligned"
    template = "insightface112"
    advice = "Unpack ABAW's annotations and `cropped_aligned` into one folder and name that folder"
    _TRACKS = {
        "AU": ("AU_Detection_Challenge",),
        "EXPR": ("EXPR_Classification_Challenge", "EXPR_Recognition_Challenge"),
    }
    _VERSION = "Fetch the annotations of ABAW 3 (2022) or later: 12 AUs, 8 emotions"

    def labelled(self) -> Iterator[Labelled]:
        tracks = {track: self._files(track) for track in self._TRACKS}
        if not any(tracks.values()):
            sought = " or ".join(name for names in self._TRACKS.values() for name in names)
            raise CorpusError(self.root, "none of its label folders", f"{sought}, with *.txt files", self.advice)
        check_folder(self.root / self.images, "the images, a folder a video", self.advice)
        own, wanted = as_label_set(self.name), self.label_set
        codes = emotion_codes(own.emotions, wanted.emotions)
        for name in sorted({*tracks["AU"], *tracks["EXPR"]}):
            (au_split, au_file), (split, file) = (files.get(name, ("", None)) for files in tracks.values())
            units = self._read(au_file, own.action_units, own.action_units, (-1, 0, 1))
            emotions = self._read(file, own.emotions, ("expression",), range(-1, 8))
            lines = max(len(units), len(emotions))
            if au_file and file and lines - min(len(units), len(emotions)) > self.extra_frames:
                advice = "Fetch both tracks of the same year, or pass extra_frames to take the lines beyond as unknown"
                expected = f"{len(emotions)}, as {file} has of the same video"
                raise CorpusError(au_file, f"{len(units)} lines of labels", expected, advice)
            units, emotions = (
                np.pad(labels, ((0, lines - len(labels)), (0, 0)), constant_values=UNKNOWN_LABEL)
                for labels in (units, emotions)
            )
            yield Labelled(
                *(name, name.removesuffix("_left").removesuffix("_right"), f"{self.images}/{name}", au_file or file),
                np.arange(1, lines + 1),
                columns_by_name(units, own.action_units, wanted.action_units, UNKNOWN_LABEL),
                codes[emotions[:, 0]],
                official=(au_split or split).split("_")[0].lower(),
            )

    def _files(self, track: str) -> Mapping[str, tuple[str, Path]]:
        """Video -> the split and the label file."""
        files: dict[str, tuple[str, Path]] = {}
        for place in (self.root, self.root / "annotations"):
            for folder in (place / name for name in self._TRACKS[track]):
                for split in ("Train_Set", "Validation_Set"):
                    for file in sorted((folder / split).glob("[!.]*.txt")):
                        if file.stem in files:
                            advice = "A video belongs to one of the two: remove the other file"
                            raise CorpusError(file, "labels again", f"only {files[file.stem][1]}", advice)
                        files[file.stem] = split, file
        return files

    def _read(
        self, file: Path | None, header: Sequence[str], columns: Sequence[str], allowed: Collection[int]
    ) -> np.ndarray:
        if file is None:
            return np.zeros((0, len(columns)), np.int8)
        first, _, rest = read_text(file).partition("\n")
        check_header(file, first.split(","), header, self._VERSION)
        return integer_table(file, rest, columns, allowed, self._VERSION, first_line=2).astype(np.int8)


@dataclass
class DISFA(VideoCorpus):
    """DISFA: `ActionUnit_Labels/SN001/SN001_au1.txt`, a line `frame,intensity` (0 to 5) for each of 4,845 frames and
    12 files a subject; an AU counts as active from intensity 2, as in the literature (`threshold`). 27 subjects of one
    video each; three subject-exclusive folds, those of JÂA-Net and ME-GraphAU, as `fold 1` to `fold 3`. The corpus
    brings videos: `cut_video` (mf2face.data.build.landmark_cache) writes `Images/SN001/00001.jpg` and so on from
    `LeftVideoSN001_comp.avi`; its first frame is 1."""

    name = "disfa"
    licence = "DISFA: academic research only, by agreement with its authors; not to be passed on"
    images: str = "Images"
    advice = "Name the folder that holds ActionUnit_Labels and Images (a folder of frames a subject)"
    action_units = tuple(f"AU{number}" for number in (1, 2, 4, 5, 6, 9, 12, 15, 17, 20, 25, 26))

    threshold: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.threshold <= 5:
            raise ValueError(f"threshold: got {self.threshold}, expected an intensity from 1 to 5")
        super().__post_init__()

    def labelled(self) -> Iterator[Labelled]:
        folder = self.root / "ActionUnit_Labels"
        subjects = label_files(folder, "a folder of label files a subject", "SN*/", "SN001 to SN032", self.advice)
        check_folder(self.root / self.images, "the frames, a folder a subject", self.advice)
        for subject in subjects:
            frames, intensities = self._subject(subject)
            wanted = self.label_set.action_units
            values = columns_by_name(intensities, self.action_units, wanted, UNKNOWN_LABEL)
            labels = np.where(values == UNKNOWN_LABEL, UNKNOWN_LABEL, values >= self.threshold).astype(np.int8)
            yield Labelled(
                *(subject.name, subject.name, f"{self.images}/{subject.name}", subject, frames, labels),
                np.full(len(frames), UNKNOWN_LABEL, np.int8),
                values.astype(np.float32),
                _official_fold(self.name, subject.name),
            )

    def _subject(self, folder: Path) -> tuple[np.ndarray, np.ndarray]:
        columns, frames = [], None
        for name in self.action_units:
            file = folder / f"{folder.name}_{name.lower()}.txt"
            table = integer_table(file, read_text(file), ("frame", "intensity"), None, self.advice)
            wrong = np.flatnonzero((table[:, 1] < 0) | (table[:, 1] > 5))
            if len(wrong):
                got, line = table[wrong[0], 1], int(wrong[0]) + 1
                raise CorpusError(file, got, "0 to 5", "Fetch the file again", line=line, field="intensity")
            if frames is None:
                frames = table[:, 0]
                check_order(file, frames, first_line=1)
            elif not np.array_equal(frames, table[:, 0]):
                expected = f"{len(frames)} lines of the same frames, as in the first file of {folder.name}"
                raise CorpusError(file, f"{len(table)} lines", expected, "Fetch the file again")
            columns.append(table[:, 1])
        return frames, np.stack(columns, 1)


@dataclass
class OccurrenceCorpus(VideoCorpus):
    """Corpora with a csv a video: a header of AU numbers after the frames' column; 0, 1, and 9 for unknown."""

    extra_frames: int = 10**9  # only a part of each video is coded

    def occurrences(self, file: Path) -> tuple[np.ndarray, np.ndarray]:
        first, _, rest = read_text(file).partition("\n")
        header = next(csv_rows(file, first), (1, []))[1]
        names = [name.strip().upper().removeprefix("AU").lstrip("0") for name in header[1:]]
        for place, (name, read) in enumerate(zip(header[1:], names, strict=True), start=2):
            if not read.isdigit():
                advice = f"{self.advice}. The file's first line names its columns"
                raise CorpusError(file, repr(name), "an AU's number", advice, line=1, field=f"column {place}")
        names = [f"AU{name}" for name in names]
        if twice := [name for name in names if names.count(name) > 1]:
            raise CorpusError(file, f"{twice[0]} twice", "each AU in one column", self.advice, line=1)
        if not set(names) & set(self.label_set.action_units):
            got = ", ".join(names[:12]) or "no AU"
            expected = f"some of {', '.join(self.label_set.action_units)}"
            raise CorpusError(file, f"columns of {got}", expected, self.advice, line=1)
        table = integer_table(file, rest, ("frame", *names), None, self.advice, first_line=2)
        coded = columns_by_name(table[:, 1:], names, self.label_set.action_units, 9)
        wrong = np.argwhere(~np.isin(coded, (0, 1, 9)))
        if len(wrong):
            line, column = wrong[0]
            name = self.label_set.action_units[column]
            advice = f"{self.advice}. Occurrence codes are wanted, not intensities"
            raise CorpusError(file, coded[line, column], "0, 1, or 9 (unknown)", advice, line=int(line) + 2, field=name)
        frames = table[:, 0]
        check_order(file, frames, first_line=2)
        return frames, np.where(coded == 9, UNKNOWN_LABEL, coded).astype(np.int8)

    def read_file(self, file: Path, subject: str, folder: str, official: str) -> Labelled:
        frames, labels = self.occurrences(file)
        unknown = np.full(len(frames), UNKNOWN_LABEL, np.int8)
        return Labelled(file.stem, subject, folder, file, frames, labels, unknown, official=official)


@dataclass
class BP4D(OccurrenceCorpus):
    """BP4D-Spontaneous: `AUCoding/AU_OCC/F001_T1.csv`, a header of AU numbers and a line a coded frame: its number,
    then 0, 1, or 9 for unknown; images `2D+3D/F001/T1/<frame>.jpg`. 41 subjects, 8 tasks each; three subject-exclusive
    folds, those of JÂA-Net and ME-GraphAU, as `fold 1` to `fold 3`. Frames outside the coded 20 seconds of a task have
    images and no labels."""

    name = "bp4d"
    licence = "BP4D-Spontaneous: by agreement with Binghamton University; not to be passed on"
    images: str = "2D+3D"
    advice = "Name the folder that holds AUCoding/AU_OCC and 2D+3D"

    def labelled(self) -> Iterator[Labelled]:
        folder, pattern = self.root / "AUCoding" / "AU_OCC", "[FM][0-9][0-9][0-9]_T[0-9]*.csv"
        files = label_files(folder, "a csv file a subject and task", pattern, "F001_T1.csv", self.advice)
        check_folder(self.root / self.images, "the images, a folder a subject and one a task", self.advice)
        for file in files:
            subject, task = file.stem.split("_")
            yield self.read_file(file, subject, f"{self.images}/{subject}/{task}", _official_fold(self.name, subject))


@dataclass
class GFT(OccurrenceCorpus):
    """GFT (Sayette Group Formation Task): `labels/001A.csv`, one a subject, in BP4D's form (a header of AU numbers,
    then frame, 0, 1, or 9), images `images/001A/<frame>.jpg`, cut from the videos. 96 subjects in groups of three, one
    video each; the letters A to C are three people at one table. `test_subjects` names those of the corpus's own test
    list (18), which is not repeated here: they become `test`, the others `train`."""

    name = "gft"
    licence = "GFT: academic research only, by agreement with its authors; not to be passed on"
    images: str = "images"
    advice = "Name the folder that holds labels (a csv file a subject) and images (a folder of frames a subject)"

    test_subjects: Collection[str] = ()

    def labelled(self) -> Iterator[Labelled]:
        folder, pattern = self.root / "labels", "[0-9][0-9][0-9][A-C].csv"
        paths = label_files(folder, "a csv file a subject", pattern, "001A.csv", self.advice)
        files = {file.stem: file for file in paths}
        check_folder(self.root / self.images, "the frames, a folder a subject", self.advice)
        if unknown := sorted(set(self.test_subjects) - set(files)):
            expected = f"subjects that have labels, such as {paths[0].stem}"
            raise ValueError(f"test_subjects: got {unknown}, expected {expected}")
        for name, file in files.items():
            official = "" if not self.test_subjects else "test" if name in self.test_subjects else "train"
            yield self.read_file(file, name, f"{self.images}/{name}", official)


__all__ = ["BP4D", "DISFA", "FOLDS", "GFT", "AffWild2"]
