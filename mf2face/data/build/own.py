"""`own:FOLDER` as a data set: your pictures and labels, read, cropped and split by people once, kept in the cache."""

import hashlib
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np

from configuration_mf2.facs import LABEL_SETS, resolve_label_set
from mf2face.data.build.landmark_cache import open_cache
from mf2face.data.build.mfa import BuildOptions, build_mfa, summary
from mf2face.data.build.splits import plan_mfa
from mf2face.data.corpora.frames import Frames
from mf2face.data.corpora.read import read_corpus
from mf2face.files import cache_folder, locked


logger = logging.getLogger(__name__)

PREFIX = "own:"


def build_own(folder: str | Path, label_set: str = "mfa", *, template: bool = False, **reader: Any) -> Path:
    """The folder of the built data set. Pictures in which no face is found are left out.

    template: each picture is one aligned face. reader: options of the corpus `own`; unless it says, an emotion of
    another label set (Contempt, of MFA's) counts as unknown.
    """
    emotions = resolve_label_set(label_set).emotions
    others = {name: "unknown" for labels in LABEL_SETS.values() for name in labels.emotions if name not in emotions}
    reader = {"label_set": label_set, "emotion_map": others, **reader}
    frames, split = plan_mfa(read_corpus("own", folder, **reader))
    landmarks = "template" if template else "detector" if frames.landmarks is None else "corpus"
    options = BuildOptions(landmarks=landmarks, on_no_face="skip", skip_unreadable=True, near="tell")
    out = cache_folder("own") / f"{Path(folder).resolve().name}-{_digest(frames, split, options)}"
    out.parent.mkdir(parents=True, exist_ok=True)
    with locked(out.parent / f".{out.name}.lock"):
        if out.exists():
            return out
        detect = landmarks == "detector"
        cache = open_cache(folder, file=out.parent / "landmarks.sqlite") if detect else None
        report = build_mfa(frames, split, out, options, cache)
    logger.info("%s", summary(report, out))
    return out


def _digest(frames: Frames, split: list[str], options: BuildOptions) -> str:
    """Changes with labels, splits and pictures."""
    digest = hashlib.sha256(repr((str(frames.root.resolve()), options, frames.label_set, split)).encode())
    for column in (frames.video, frames.frame, frames.au_labels, frames.emotion, frames.landmarks):
        digest.update(b"" if column is None else np.ascontiguousarray(column).tobytes())
    for row in range(len(frames)):
        status = os.stat(frames.root / frames.image(row))
        digest.update(repr((frames.image(row), status.st_size, status.st_mtime_ns)).encode("utf-8", "backslashreplace"))
    return digest.hexdigest()[:16]


__all__ = ["PREFIX", "build_own"]
