"""The labels of a whole corpus as columns, a few bytes a frame: what every reader gives and the builder takes."""

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from configuration_mf2.facs import UNKNOWN_LABEL, LabelSet
from mf2face.data.corpora.label_files import CorpusError


Required = Literal["both", "au", "emotion", "any"]
REQUIRED: tuple[str, ...] = ("both", "au", "emotion", "any")
_IMAGE = re.compile(r"(\d+)(\.(?:jpe?g|png|bmp|webp))", re.IGNORECASE)

ListFolder = Callable[[Path], Sequence[str]]


@dataclass(frozen=True)
class Video:
    """Frames of one video, or a single picture."""

    name: str
    subject: str
    """Who is seen; where the corpus does not say, what must stay together all the same: the video, or the picture."""
    folder: str = ""
    """Of its frames, below the corpus; of a picture its whole path."""
    digits: int | None = None
    """In a frame's file name, at least; None: a single picture."""
    ending: str = ""
    official: str = ""
    """The split or fold that the corpus itself puts it into."""

    def image(self, frame: int) -> str:
        return self.folder if self.digits is None else f"{self.folder}/{frame:0{self.digits}d}{self.ending}"


@dataclass(frozen=True)
class Frames:
    """Rows are sorted by video and frame. -1 is unknown, of each AU by itself."""

    corpus: str
    licence: str
    root: Path
    label_set: LabelSet
    videos: Sequence[Video]
    video: np.ndarray
    """(rows,) places in `videos`"""
    frame: np.ndarray
    au_labels: np.ndarray
    """(rows, AUs) int8"""
    emotion: np.ndarray
    au_intensities: np.ndarray | None = None
    landmarks: np.ndarray | None = None
    """(rows, 68, 2) float32 in pixels of the image, where the corpus brings them; NaN where it does not."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """What was read and left out, by name."""
    missing: Sequence[str] = ()
    """The first of the listed images that are not on the disk."""
    protocol: str = ""
    split_is_given: bool = False
    """The owner of the pictures wrote a split, which is used unless another is asked for."""

    def __len__(self) -> int:
        return len(self.video)

    def image(self, row: int) -> str:
        """Its path below `root`."""
        return self.videos[self.video[row]].image(int(self.frame[row]))

    def row_id(self, row: int) -> str:
        """The same as of the row in the data set: by it captions find their image again."""
        return f"{self.corpus}/{self.videos[self.video[row]].name}/{int(self.frame[row])}"

    def select(self, rows: np.ndarray, **told: int) -> "Frames":
        """Rows by number or mask; what is told is added to the counts."""
        columns = ("video", "frame", "au_labels", "emotion", "au_intensities", "landmarks")
        chosen: dict[str, Any] = {
            name: None if getattr(self, name) is None else getattr(self, name)[rows] for name in columns
        }
        return replace(self, **chosen, counts={**self.counts, **told})


def has_labels(frames: Frames, required: Required) -> np.ndarray:
    if required not in REQUIRED:
        raise ValueError(f"require: got {required!r}, expected one of {REQUIRED}")
    units = (frames.au_labels != UNKNOWN_LABEL).any(1) if frames.au_labels.shape[1] else np.zeros(len(frames), bool)
    emotion = frames.emotion != UNKNOWN_LABEL
    return {"both": units & emotion, "au": units, "emotion": emotion, "any": units | emotion}[required]


def keep_labelled(frames: Frames, required: Required = "both") -> Frames:
    kept = has_labels(frames, required)
    if not kept.any():
        held = {"emotions": has_labels(frames, "emotion").sum(), "action units": has_labels(frames, "au").sum()}
        there = ", ".join(f"{what} of {count}" for what, count in held.items())
        raise CorpusError(
            *(frames.root, f"no image of {len(frames)} with the labels asked for", f"some (require={required!r})"),
            f"It holds {there}. Choose --require any, au or emotion, and a label set that the corpus labels",
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


def frames_on_disk(folder: Path, list_folder: ListFolder = os.listdir) -> tuple[np.ndarray, int, str] | None:
    """Numbers of the frames in a folder, the digits of their file names and the ending; None if there is no folder."""
    try:
        names = list_folder(folder)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CorpusError(
            folder, error.strerror, "a folder of frames", "A link may lead back to itself, or rights may be missing"
        ) from error
    if (numbered := _numbered_alike(names)) is not None:
        numbers, digits, ending = numbered
    else:
        found = [match for name in names if (match := _IMAGE.fullmatch(name))]
        if not found:
            return np.zeros(0, np.int32), 1, ".jpg"
        digits, ending = min(len(match[1]) for match in found), found[0][2]
        numbers = np.array([int(match[1]) for match in found], np.int32)
    numbers.sort()
    twice = numbers[1:][np.diff(numbers) == 0]
    if len(twice):
        told = "Remove the copies, or images of other endings"
        raise CorpusError(folder, f"two images of frame {twice[0]}", "one a frame", told)
    for match in found if numbered is None else ():
        if match[1] != f"{int(match[1]):0{digits}d}" or match[2] != ending:
            expected = f"{0:0{digits}d}{ending} and so on: numbers of one length and one ending"
            raise CorpusError(folder, repr(match[0]), expected, "Rename the frames of this folder alike")
    return numbers, digits, ending


def _numbered_alike(names: Sequence[str]) -> tuple[np.ndarray, int, str] | None:
    """Most corpora: all names as long as the first, and alike but for the digits. Read without a step for each."""
    if not names or (first := _IMAGE.fullmatch(names[0])) is None:
        return None
    digits, ending = len(first[1]), first[2]
    joined = "".join(names)
    size = digits + len(ending)
    if digits > 9 or len(joined) != size * len(names) or not joined.isascii():
        return None
    table = np.frombuffer(joined.encode(), np.uint8).reshape(-1, size)
    values = table[:, :digits].astype(np.int32) - ord("0")
    alike = (table[:, digits:] == table[0, digits:]).all() and ((values >= 0) & (values <= 9)).all()
    return (values @ 10 ** np.arange(digits - 1, -1, -1, dtype=np.int32), digits, ending) if alike else None


def stills(
    names: Sequence[str], root: Path, list_folder: ListFolder, *, subjects: Sequence[str] = (), official: Sequence = ()
) -> tuple[list[Video], np.ndarray, list[str]]:
    """Pictures by path: a video each, which of them are on the disk, and those that are not."""
    listed: dict[str, frozenset[str]] = {}
    videos, there, missing = [], np.ones(len(names), bool), []
    for place, name in enumerate(names):
        folder, _, file = name.rpartition("/")
        if folder not in listed:
            try:
                found = list_folder(root / folder)
                listed[folder] = found if isinstance(found, frozenset) else frozenset(found)
            except OSError:
                listed[folder] = frozenset()
        if file not in listed[folder]:
            there[place] = False
            missing.append(name)
        stem = name.rpartition(".")[0] or name
        subject = subjects[place] if len(subjects) else ""
        videos.append(Video(stem, subject or stem, name, official=official[place] if len(official) else ""))
    if len({video.name for video in videos}) < len(videos):
        name = next(name for name, count in Counter(video.name for video in videos).items() if count > 1)
        raise CorpusError(root, f"images that differ in their ending alone: {name}.*", "one of them", "Rename one")
    return videos, there, missing


def check_some_are_there(root: Path, listed: int, present: int, first: Sequence[str], advice: str) -> None:
    if listed and not present:
        got = f"none of {listed:,} listed images on the disk"
        raise CorpusError(root, got, f"images such as {first[0] if first else '...'}", advice)


__all__ = ["Frames", "Video", "every_and_changes", "keep_labelled"]
