"""The labels of a whole corpus as columns, a few bytes a frame: what every reader gives and the builder takes."""

import contextlib
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from configuration_mf2.facs import UNKNOWN_LABEL, LabelSet
from mf2face.data.corpora.label_files import CorpusError, check_folder
from mf2face.data.schema import as_label_set


Required = Literal["both", "au", "emotion", "any"]
REQUIRED: tuple[str, ...] = ("both", "au", "emotion", "any")
_FRAME = re.compile(r"(\d+)(\.(?:jpe?g|png|bmp|webp))", re.IGNORECASE)
_LISTED_MISSING = 20

ListFolder = Callable[[Path], Sequence[str]]


@dataclass(frozen=True)
class Video:
    """Frames of one video, or a single picture.

    subject: the person; where the corpus names none, the video or the picture. folder: of the frames, below the corpus;
    of a picture its whole path. digits: of a frame's file name, at least; None for a single picture. official: the
    corpus's own split or fold.
    """

    name: str
    subject: str
    folder: str = ""
    digits: int | None = None
    ending: str = ""
    official: str = ""

    def image(self, frame: int) -> str:
        return self.folder if self.digits is None else f"{self.folder}/{frame:0{self.digits}d}{self.ending}"


@dataclass(frozen=True)
class Frames:
    """Rows are sorted by video and frame. -1 is unknown, for each AU by itself.

    video: (rows,) places in `videos`. au_labels: (rows, AUs) int8. landmarks: (rows, 68, 2) float32 in pixels of the
    image, NaN where the corpus has none. template: the alignment of the images (`processing_mf2.landmarks.TEMPLATES`),
    if they are aligned crops. counts: what was read and left out. missing: the first of the listed images that are not
    on the disk. split_is_given: the owner of the pictures wrote a split.
    """

    corpus: str
    licence: str
    root: Path
    label_set: LabelSet
    videos: Sequence[Video]
    video: np.ndarray
    frame: np.ndarray
    au_labels: np.ndarray
    emotion: np.ndarray
    au_intensities: np.ndarray | None = None
    landmarks: np.ndarray | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    missing: Sequence[str] = ()
    protocol: str = ""
    split_is_given: bool = False
    template: str = "template"

    def __len__(self) -> int:
        return len(self.video)

    def image(self, row: int) -> str:
        """Its path below `root`."""
        return self.videos[self.video[row]].image(int(self.frame[row]))

    def row_id(self, row: int) -> str:
        """The id of the row in the data set, by which captions find their image."""
        return f"{self.corpus}/{self.videos[self.video[row]].name}/{int(self.frame[row])}"

    def select(self, rows: np.ndarray, **counts: int) -> "Frames":
        """Rows by number or mask; `counts` are added to those before."""
        columns = ("video", "frame", "au_labels", "emotion", "au_intensities", "landmarks")
        present = {name: column for name in columns if (column := getattr(self, name)) is not None}
        chosen: dict[str, Any] = {name: column[rows] for name, column in present.items()}
        return replace(self, **chosen, counts={**self.counts, **counts})

    def has_labels(self, required: Required) -> np.ndarray:
        """(rows,) whether a row has the labels asked for."""
        if required not in REQUIRED:
            raise ValueError(f"require: got {required!r}, expected one of {REQUIRED}")
        units, emotion = (self.au_labels != UNKNOWN_LABEL).any(1), self.emotion != UNKNOWN_LABEL
        return {"both": units & emotion, "au": units, "emotion": emotion, "any": units | emotion}[required]


def keep_labelled(frames: Frames, required: Required = "both") -> Frames:
    kept = frames.has_labels(required)
    if not kept.any():
        emotions, units = (frames.has_labels(kind).sum() for kind in ("emotion", "au"))
        raise CorpusError(
            *(frames.root, f"no image of {len(frames)} with the labels asked for", f"some (require={required!r})"),
            f"It holds emotions of {emotions}, action units of {units}. Choose --require, or another label set",
        )
    return frames.select(kept, **{f"without_{required}_labels": int((~kept).sum())})


def every_and_changes(frames: Frames, every: int = 10) -> Frames:
    """Exp-BLIP's rule: of each video every tenth frame, and those whose labels differ from the frame before."""
    if every < 1:
        raise ValueError(f"every: got {every}, expected how many frames lie between two that are kept, from 1")
    starts = np.flatnonzero(np.diff(frames.video, prepend=-1))
    first = np.repeat(frames.frame[starts], np.diff(np.append(starts, len(frames))))
    labels = np.concatenate([frames.au_labels, frames.emotion[:, None]], axis=1)
    changed = np.ones(len(frames), bool)
    changed[1:] = (labels[1:] != labels[:-1]).any(1)
    changed[starts] = True
    kept = changed | ((frames.frame - first) % every == 0)
    return frames.select(kept, left_out_by_sampling=int((~kept).sum()))


def frames_on_disk(folder: Path, list_folder: ListFolder = os.listdir) -> tuple[np.ndarray, int, str]:
    """Numbers of the frames in a folder, the digits of their file names and the ending; none if there is no folder."""
    try:
        names = list_folder(folder)
    except FileNotFoundError:
        return np.zeros(0, np.int32), 5, ".jpg"
    except OSError as error:
        advice = "A link may lead back to itself, or rights may be missing"
        raise CorpusError(folder, error.strerror, "a folder of frames", advice) from error
    matches = [match for name in names if (match := _FRAME.fullmatch(name))]
    if not matches:
        return np.zeros(0, np.int32), 1, ".jpg"
    digits, ending = min(len(match[1]) for match in matches), matches[0][2]
    numbers = np.array([int(match[1]) for match in matches], np.int32)
    numbers.sort()
    twice = numbers[1:][np.diff(numbers) == 0]
    if len(twice):
        advice = "Remove the copies, or images of other endings"
        raise CorpusError(folder, f"two images of frame {twice[0]}", "one a frame", advice)
    for match in matches:
        if match[1] != f"{int(match[1]):0{digits}d}" or match[2] != ending:
            expected = f"{0:0{digits}d}{ending} and so on: numbers of one length and one ending"
            raise CorpusError(folder, repr(match[0]), expected, "Rename the frames of this folder alike")
    return numbers, digits, ending


def stills(
    names: Sequence[str], root: Path, list_folder: ListFolder, *, subjects: Sequence[str] = (), official: Sequence = ()
) -> tuple[list[Video], np.ndarray]:
    """Pictures by path: a video each, and which of them are on the disk."""
    listed: dict[str, frozenset[str]] = {}
    videos, there = [], np.ones(len(names), bool)
    for place, name in enumerate(names):
        folder, _, file = name.rpartition("/")
        if folder not in listed:
            listed[folder] = frozenset()
            with contextlib.suppress(OSError):
                entries = list_folder(root / folder)
                listed[folder] = entries if isinstance(entries, frozenset) else frozenset(entries)
        there[place] = file in listed[folder]
        stem = name.rpartition(".")[0] or name
        subject = subjects[place] if len(subjects) else ""
        videos.append(Video(stem, subject or stem, name, official=official[place] if len(official) else ""))
    ((name, count),) = Counter(video.name for video in videos).most_common(1) or (("", 0),)
    if count > 1:
        raise CorpusError(root, f"images that differ in their ending alone: {name}.*", "one of them", "Rename one")
    return videos, there


def columns_by_name(values: np.ndarray, names: Sequence[str], wanted: Sequence[str], fill: float) -> np.ndarray:
    """Columns of `wanted` names; what the corpus does not label is `fill`, which says unknown, and never 0."""
    out = np.full((len(values), len(wanted)), fill, values.dtype)
    for column, name in enumerate(wanted):
        if name in names:
            out[:, column] = values[:, list(names).index(name)]
    return out


def emotion_codes(names: Sequence[str], wanted: Sequence[str]) -> np.ndarray:
    """The wanted emotion of each code of the corpus; the last, which -1 finds, is unknown."""
    known = [wanted.index(name) if name in wanted else UNKNOWN_LABEL for name in names]
    return np.array([*known, UNKNOWN_LABEL], np.int8)


@dataclass
class Corpus:
    """A reader of one corpus; its fields are its options, its docstring (printed, and copied into cards) its files and
    protocol.

    label_set: the AUs and emotions wanted, by name; the corpus's own unless given. list_folder: `os.listdir`, or a list
    of what is on another disk.
    """

    root: str | Path
    _: KW_ONLY
    label_set: Any = None
    list_folder: ListFolder = os.listdir

    name: ClassVar[str]
    licence: ClassVar[str]
    advice: ClassVar[str]
    template: ClassVar[str] = "template"

    def __post_init__(self) -> None:
        self.root = check_folder(Path(self.root), f"the {self.name} corpus", self.advice)
        self.label_set = as_label_set(self.label_set or self.name)

    def read(self) -> Frames:
        raise NotImplementedError

    def as_frames(
        self, videos: Sequence[Video], *columns: np.ndarray, lines: int, missing: Sequence[str], **more: Any
    ) -> Frames:
        """lines: how many images the label files list. missing: those that are not on the disk."""
        if lines and not len(columns[0]):
            expected = f"images such as {missing[0] if missing else '...'}"
            raise CorpusError(self.root, f"none of {lines:,} listed images on the disk", expected, self.advice)
        more |= {"template": self.template, "missing": list(missing[:_LISTED_MISSING])}
        more["protocol"] = " ".join((self.__doc__ or "").split())
        return Frames(self.name, self.licence, self.root, self.label_set, videos, *columns, **more)


__all__ = ["REQUIRED", "Corpus", "Frames", "Video", "every_and_changes", "keep_labelled"]
