"""Frames and label files without images, for tests of corpora."""

from pathlib import Path

import numpy as np

from configuration_mf2.facs import EMOTIONS, LABEL_SETS
from mf2face.data.corpora.frames import Frames, Video


AUS = LABEL_SETS["aff_wild2"].action_units
TRACKS = {"AU": "AU_Detection_Challenge", "EXPR": "EXPR_Classification_Challenge"}


def make_frames(videos: list[int], emotion: np.ndarray, au: np.ndarray | None = None) -> Frames:
    """As many frames a video as `videos` says, numbered from 1."""
    count = sum(videos)
    labels = np.zeros((count, 12), np.int8) if au is None else au
    return Frames(
        *("own", "none", Path(), LABEL_SETS["mfa"]),
        [Video(f"v{k}", f"v{k}", f"images/v{k}", 5, ".jpg") for k in range(len(videos))],
        np.repeat(np.arange(len(videos), dtype=np.int32), videos),
        np.concatenate([np.arange(1, size + 1, dtype=np.int32) for size in videos]),
        labels,
        emotion.astype(np.int8),
    )


def write_aff_wild2(
    root: Path, videos: dict[str, tuple[np.ndarray | None, np.ndarray | None]], split: str = "Train_Set"
) -> None:
    """Label files alone; a track without labels of a video gets no file."""
    (root / "cropped_aligned").mkdir(parents=True, exist_ok=True)
    for name, (units, emotions) in videos.items():
        for track, header, values in (("AU", AUS, units), ("EXPR", EMOTIONS, emotions)):
            folder = root / "annotations" / TRACKS[track] / split
            folder.mkdir(parents=True, exist_ok=True)
            if values is not None:
                lines = [",".join(map(str, np.atleast_1d(row))) for row in values]
                (folder / f"{name}.txt").write_text("\n".join([",".join(header), *lines]) + "\n")


def all_frames(count: int):
    """In place of a disk full of images: frames 1 to `count` in every folder."""
    names = [f"{number:05d}.jpg" for number in range(1, count + 1)]
    return lambda folder: names
