"""Landmarks of whole folders and videos: found once, in batches, kept in one file beside the images."""

import errno
import json
import logging
import os
import sqlite3
import zlib
import cv2
import numpy as np
import torch
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from tqdm.auto import tqdm
from processing_mf2.image_io import IMAGE_ENDINGS, read_image
from processing_mf2.landmarks import DetectedFace, FaceAlignmentDetector, check_landmarks
from mf2face.data.corpora.label_files import CorpusError, check_folder


logger = logging.getLogger(__name__)

CACHE_NAME = "mf2_landmarks.sqlite"
_TABLE = """CREATE TABLE IF NOT EXISTS faces (image TEXT, detector TEXT, stamp TEXT, landmarks BLOB, confidence BLOB,
box BLOB, score REAL, checksum INTEGER, PRIMARY KEY (image, detector)) WITHOUT ROWID"""
_COLUMNS = ("image", "detector", "stamp", "landmarks", "confidence", "box", "score", "checksum")
_REMOVE = "It is damaged, or another program's: remove it, and the landmarks are found anew"


class Detector(Protocol):
    def detect(self, images: Sequence[torch.Tensor]) -> list[list[DetectedFace]]: ...


@dataclass(frozen=True)
class CachedFace:
    """The largest face of an image."""

    landmarks: np.ndarray
    """(68, 2) float32 in pixels of the image as seen."""
    confidence: np.ndarray
    """(68,) float32"""
    box: np.ndarray
    score: float


class LandmarkCache:
    """What a detector found in the images below `root`; each batch is on the disk before the next begins.

    An image that changed since (its size or its date) is looked at anew, and so is every image when the detector's
    name or settings differ; an entry that the disk changed is found by its checksum. file: where it is kept,
    `mf2_landmarks.sqlite` in `root` unless given, for a corpus that cannot be written to.
    """

    def __init__(
        self,
        root: str | Path,
        detector: Detector | None = None,
        *,
        file: str | Path | None = None,
        batch_size: int = 32,
        **settings: Any,
    ) -> None:
        self.root = check_folder(Path(root), "the images", "Name the folder that the images lie in")
        self.detector = FaceAlignmentDetector(max_batch_size=batch_size, **settings) if detector is None else detector
        told = {"detector": type(self.detector).__name__, "settings": settings}
        self.name = json.dumps(told, sort_keys=True, default=str)
        self.batch_size = batch_size
        self.file = self.root / CACHE_NAME if file is None else Path(file)
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.store = sqlite3.connect(self.file, timeout=60)
            self._open_table()
        except (sqlite3.Error, OSError) as error:
            if _is_damage(error):
                raise CorpusError(self.file, str(error), "a file of landmarks", _REMOVE) from error
            told = "Give another file for it (--landmark_cache), where there is room and the right to write"
            raise CorpusError(self.file, str(error), "a file of landmarks that can be written", told) from error

    def _open_table(self) -> None:
        self.store.execute(_TABLE)
        columns = [row[1] for row in self.store.execute("PRAGMA table_info(faces)")]
        if columns == list(_COLUMNS[:-1]):  # of a version without checksums, whose entries stay good
            self.store.execute("ALTER TABLE faces ADD COLUMN checksum INTEGER")
        elif columns != list(_COLUMNS):
            expected = f"a table of faces with the columns {', '.join(_COLUMNS)}"
            raise CorpusError(self.file, f"the columns {', '.join(columns)}", expected, _REMOVE)

    def __enter__(self) -> "LandmarkCache":
        return self

    def __exit__(self, *raised: object) -> None:
        self.store.close()

    def faces(self, images: Sequence[str], pixels: Sequence[torch.Tensor] | None = None) -> list[CachedFace | None]:
        """Of each image (a path below `root`) the largest face, None if there is none; found now if it is not known.

        pixels: the images, if they are read already, or are frames of a video, which are then named `video#frame`.
        """
        stamps = [self._stamp(image) for image in images]
        known = [self._known(image, stamp) for image, stamp in zip(images, stamps, strict=True)]
        unknown = [place for place, face in enumerate(known) if face is None]
        for start in range(0, len(unknown), self.batch_size):
            places = unknown[start : start + self.batch_size]
            batch = [self._pixels(images[place]) if pixels is None else pixels[place] for place in places]
            found = [_largest(faces, image) for faces, image in zip(self.detector.detect(batch), batch, strict=True)]
            self._keep([(images[place], stamps[place]) for place in places], found)
            for place, face in zip(places, found, strict=True):
                known[place] = (face,)
        return [face[0] for face in known]

    def _pixels(self, image: str) -> torch.Tensor:
        return read_image(self.root / image, name=image)

    def _stamp(self, image: str) -> str:
        try:
            status = os.stat(self.root / image.partition("#")[0])
        except OSError as error:
            told = "It was there when labels were read: fetch it again"
            raise CorpusError(self.root / image, error.strerror, "an image", told) from error
        return f"{status.st_size} {status.st_mtime_ns}"

    def _known(self, image: str, stamp: str) -> tuple[CachedFace | None] | None:
        query = f"SELECT {', '.join(_COLUMNS[2:])} FROM faces WHERE image = ? AND detector = ?"
        try:
            row = self.store.execute(query, (_as_key(image), self.name)).fetchone()
        except sqlite3.DatabaseError as error:
            told = _REMOVE if _is_damage(error) else "Another process may write it: wait for it, or end it"
            raise CorpusError(self.file, str(error), "a file of landmarks", told) from error
        if row is None or row[0] != stamp:
            return None
        *found, checksum = row
        try:
            if checksum is not None and checksum != _checksum(image, *found):
                raise ValueError("bytes of another checksum")
            if found[1] is None:  # looked at, and nobody there
                return (None,)
            return (_as_face(*found[1:]),)
        except (ValueError, TypeError) as error:
            expected = f"the landmarks of {image} as they were written"
            logger.warning("landmark cache: %s: got %s, expected %s; they are found anew", self.file, error, expected)
            return None

    def _keep(self, images: Sequence[tuple[str, str]], found: Sequence[CachedFace | None]) -> None:
        rows = []
        for (image, stamp), face in zip(images, found, strict=True):
            entry = (stamp, *(_blobs(face) if face else (None,) * 4))
            rows.append((_as_key(image), self.name, *entry, _checksum(image, *entry)))
        try:
            with self.store:  # all of a batch or nothing, and on the disk
                self.store.executemany("INSERT OR REPLACE INTO faces VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
        except sqlite3.DatabaseError as error:
            if _is_damage(error):
                raise CorpusError(self.file, str(error), "a file of landmarks", _REMOVE) from error
            told = (
                f"landmark cache: {self.file} cannot be written ({error}); what was found before is kept. Make room, "
            )
            raise OSError(errno.ENOSPC, told + "and start again") from error


def _is_damage(error: Exception) -> bool:
    """Not a full disk, a lock or a lack of rights, which are operational errors of SQLite."""
    return isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)


def _as_key(image: str) -> str:
    """A file name may hold bytes that are no UTF-8; the file of landmarks may not."""
    return image.encode("utf-8", "backslashreplace").decode()


def _checksum(*entry: Any) -> int:
    return zlib.crc32(repr(entry).encode("utf-8", "backslashreplace"))


def _as_face(points: bytes, confidence: bytes, box: bytes, score: float) -> CachedFace:
    numbers = [np.frombuffer(blob, np.float32) for blob in (points, confidence, box)]
    for name, values, size in zip(("landmarks", "confidence", "box"), numbers, (136, 68, 4), strict=True):
        if values.shape != (size,) or not np.isfinite(values).all():
            raise ValueError(f"{name} of {values.size} numbers, some of them not finite or not {size}")
    return CachedFace(numbers[0].reshape(68, 2), *numbers[1:], float(score))


def _blobs(face: CachedFace) -> tuple[bytes, bytes, bytes, float]:
    return face.landmarks.tobytes(), face.confidence.tobytes(), face.box.tobytes(), face.score


def _largest(faces: Sequence[DetectedFace], image: torch.Tensor) -> CachedFace | None:
    if not faces:
        return None
    face = max(faces, key=lambda one: one.area)
    try:
        points = check_landmarks(face.landmarks, *image.shape[1:], "landmarks")
    except ValueError:  # what the network found is no face's shape
        return None
    numbers = (np.asarray(values, np.float32) for values in (points, face.confidence, face.box))
    return CachedFace(*numbers, float(face.score))


def images_below(folder: Path) -> Iterator[str]:
    """Paths of all images below a folder; links to folders are not followed."""
    for place, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            if name.lower().endswith(IMAGE_ENDINGS) and not name.startswith("."):
                yield os.path.relpath(os.path.join(place, name), folder).replace(os.sep, "/")


def find_in_folder(cache: LandmarkCache) -> dict[str, int]:
    """Looks at every image below the cache's folder; how many have a face, have none, or cannot be read."""
    counts = {"images": 0, "faces": 0, "unreadable": 0}
    for batch in _batches(tqdm(images_below(cache.root), desc="landmarks", unit="image"), cache.batch_size):
        readable, pixels = [], []
        for image in batch:
            try:
                pixels.append(cache._pixels(image))
                readable.append(image)
            except (ValueError, OSError) as error:
                logger.warning("%s", error)
        counts["images"] += len(batch)
        counts["unreadable"] += len(batch) - len(readable)
        counts["faces"] += sum(face is not None for face in cache.faces(readable, pixels))
    return counts


def find_in_video(cache: LandmarkCache, video: str) -> list[CachedFace | None]:
    """Of every frame of a video below the cache's folder, which is read once from its start."""
    found: list[CachedFace | None] = []
    frames = ((f"{video}#{number}", image) for number, image in video_frames(cache.root / video))
    for batch in _batches(tqdm(frames, desc=f"landmarks of {video}", unit="frame"), cache.batch_size):
        pixels = [torch.from_numpy(image).permute(2, 0, 1) for _, image in batch]
        found += cache.faces([name for name, _ in batch], pixels)
    return found


def video_frames(video: Path) -> Iterator[tuple[int, np.ndarray]]:
    """Number, from 1, and RGB pixels of every frame."""
    if not video.is_file():
        raise CorpusError(video, "nothing there", "a video", "Name a file that OpenCV can read")
    reader, number = cv2.VideoCapture(str(video)), 0
    try:
        while (frame := reader.read())[0]:
            number += 1
            yield number, np.ascontiguousarray(frame[1][..., ::-1])
    finally:
        reader.release()
    if not number:
        raise CorpusError(
            video, "no frame", "a video", "It may be damaged, or OpenCV lacks its codec: convert it to mp4"
        )


def cut_video(video: str | Path, folder: str | Path, quality: int = 95) -> int:
    """Writes `00001.jpg` and so on, as the readers of corpora expect them; those that are there are kept. How many."""
    folder, number = Path(folder), 0
    folder.mkdir(parents=True, exist_ok=True)
    for number, pixels in video_frames(Path(video)):
        target = folder / f"{number:05d}.jpg"
        if not target.exists():
            _, encoded = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
            temporary = target.with_suffix(".part")
            temporary.write_bytes(encoded.tobytes())
            temporary.replace(target)
    return number


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


__all__ = ['CachedFace', 'LandmarkCache', 'cut_video', 'find_in_folder', 'find_in_video']
