"""Images of a corpus to rows of MFA: aligned crops, landmarks, captions by rule, and hashes that find copies."""

import contextlib
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

import cv2
import numpy as np

from configuration_mf2.facs import UNKNOWN_LABEL
from mf2face.data.build.landmark_cache import CachedFace, LandmarkCache
from mf2face.data.build.metadata import without_metadata
from mf2face.data.corpora.frames import Frames
from processing_mf2.captions import RuleCaptioner
from processing_mf2.geometry import alignment_matrix, resize_matrix, transform_points, warp
from processing_mf2.image_io import read_image
from processing_mf2.landmarks import TEMPLATES, check_landmarks, check_orientation, template_landmarks


HASH_BYTES = 32
NEAR_BITS = 28
"""Hashes of 256 bits that differ in at most so many are near-identical images. Of drawn faces, copies at two thirds of
the size and JPEG quality 60 differ in 28 at most, two people in 50 at least."""

_BLOCK = 2048
_CHUNK = 32


@dataclass(frozen=True)
class BuildOptions:
    """How images become rows.

    landmarks: a detector's, the corpus's, or of pictures that are aligned already and stay as they are a template's;
    `template` is the corpus's own (else MF²'s). margin: kept around the aligned crop for augmentation, as a share of
    its side. on_no_face: `template` takes the picture as aligned. min_confidence: mean of a detector's landmarks; less
    counts as no face. near: images that all but repeat one in a split held further out are kept and listed, dropped,
    or an error; `tell` is `keep`, and keeps people or videos that stand in two splits as well.
    """

    landmarks: Literal["detector", "corpus", "template", "insightface112", "ffhq"] = "detector"
    crop_size: int = 224
    margin: float = 0.125
    quality: int = 95
    shard_rows: int = 1000
    on_no_face: Literal["raise", "skip", "template"] = "raise"
    min_confidence: float = 0.0
    skip_unreadable: bool = False
    near: Literal["keep", "drop", "raise", "tell"] = "keep"
    captions: bool = True
    seed: int = 0
    workers: int = 2

    def __post_init__(self) -> None:
        for option in fields(self):
            if (allowed := get_args(option.type)) and getattr(self, option.name) not in allowed:
                raise ValueError(f"{option.name}: got {getattr(self, option.name)!r}, expected one of {allowed}")
        ranges = {"crop_size": (32, 1024), "shard_rows": (1, 10**6), "workers": (1, 256), "quality": (1, 100)}
        ranges |= {"margin": (0, 1), "min_confidence": (0, 1), "seed": (0, 2**32 - 1)}
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name}: got {getattr(self, name)!r}, expected {low} to {high}")

    def shard_settings(self) -> dict[str, Any]:
        """The options that a finished shard depends on."""
        settings = {k: v for k, v in asdict(self).items() if k not in ("workers", "near", "skip_unreadable")}
        return settings | {"on_no_face": "template" if self.on_no_face == "template" else ""}


@dataclass(frozen=True)
class Problem:
    """Why an image is left out. kind: unreadable, no face, or landmarks (the corpus's own are wrong)."""

    image: str
    kind: str
    reason: str


@dataclass(frozen=True)
class Crop:
    encoded: bytes
    landmarks: np.ndarray
    source: str
    hash: np.ndarray


class RowMaker:
    """Makes rows in chunks: the images of one chunk are in memory at a time."""

    def __init__(
        self, frames: Frames, split: Sequence[str], options: BuildOptions, cache: LandmarkCache | None
    ) -> None:
        self.frames, self.split, self.options, self.cache = frames, split, options, cache
        self.captioner = RuleCaptioner(frames.label_set)

    def __enter__(self) -> "RowMaker":
        self.pool = ThreadPoolExecutor(self.options.workers)
        return self

    def __exit__(self, *raised: object) -> None:
        self.pool.shutdown(cancel_futures=True)

    def make(self, rows: np.ndarray, bar: Any) -> tuple[list[dict], np.ndarray, np.ndarray, list[Problem]]:
        """Rows of the schema, their hashes, their places in the frames, and what was left out."""
        made, hashes, kept, problems = [], [], [], []
        for start in range(0, len(rows), _CHUNK):
            chunk = rows[start : start + _CHUNK]
            for row, crop in zip(chunk.tolist(), self._crops(chunk), strict=True):
                if isinstance(crop, Problem):
                    problems.append(crop)
                    continue
                made.append(self._row(row, crop))
                hashes.append(crop.hash)
                kept.append(row)
            bar.update(len(chunk))
        return made, np.array(hashes, np.uint8).reshape(-1, HASH_BYTES), np.array(kept, int), problems

    def _crops(self, rows: np.ndarray) -> list[Crop | Problem]:
        images = list(self.pool.map(self._read, rows))
        faces: list[CachedFace | None] = [None] * len(rows)
        if self.options.landmarks == "detector":
            good = [place for place, pixels in enumerate(images) if not isinstance(pixels, Problem)]
            detected = self.cache.faces([self.frames.image(rows[k]) for k in good], [images[k] for k in good])
            for place, face in zip(good, detected, strict=True):
                faces[place] = face
        return list(self.pool.map(self._crop, rows.tolist(), images, faces))

    def _read(self, row: int) -> np.ndarray | Problem:
        name = self.frames.image(row)
        try:
            return read_image(self.frames.root / name, name=name)
        except (ValueError, OSError) as error:
            # The list of problems is published with the data set: no path of this machine.
            return Problem(name, "unreadable", str(error).replace(f"{self.frames.root}/", ""))

    def _crop(self, row: int, pixels: np.ndarray | Problem, face: CachedFace | None) -> Crop | Problem:
        if isinstance(pixels, Problem):
            return pixels
        options, frames, name = self.options, self.frames, self.frames.image(row)
        points, source = None, "template"
        if options.landmarks == "detector":
            if face is not None and face.confidence.mean() >= options.min_confidence:
                points, source = face.landmarks, "detector"
        elif options.landmarks == "corpus" and frames.landmarks is not None:
            if not np.isnan(frames.landmarks[row]).any():
                points, source = frames.landmarks[row], "given"
        if points is None and options.landmarks not in TEMPLATES and options.on_no_face != "template":
            return Problem(name, "no face", f"no landmarks from the {options.landmarks}")
        if points is None:
            return self._aligned_already(row, pixels)
        try:
            points = check_landmarks(points, *pixels.shape[1:], name)
            check_orientation(points, name)
        except ValueError as error:
            return Problem(name, "landmarks" if source == "given" else "no face", str(error))
        border = round(options.crop_size * options.margin)
        side = options.crop_size + 2 * border
        shift = np.array([[1, 0, border], [0, 1, border], [0, 0, 1]])
        matrix = shift @ alignment_matrix(points, options.crop_size, options.crop_size)
        return self._encoded(warp(pixels, matrix, side, side), transform_points(matrix, points), source)

    def _aligned_already(self, row: int, pixels: np.ndarray) -> Crop:
        """Keeps the compressed pixels of a picture that is small enough and upright, without its file's metadata."""
        height, width = pixels.shape[1:]
        template = self.options.landmarks
        if template not in TEMPLATES or template == "template":
            template = self.frames.template
        if max(height, width) <= 2 * self.options.crop_size:
            plain = without_metadata((self.frames.root / self.frames.image(row)).read_bytes())
            with contextlib.suppress(ValueError):
                if plain is not None and np.array_equal(read_image(plain), pixels):
                    whole = pixels.round().astype(np.uint8).transpose(1, 2, 0)
                    return Crop(plain, template_landmarks(height, width, template), template, image_hash(whole))
        scale = self.options.crop_size / max(height, width)
        size = (max(1, round(height * scale)), max(1, round(width * scale))) if scale < 1 else (height, width)
        crop = warp(pixels, resize_matrix(height, width, *size), *size)
        return self._encoded(crop, template_landmarks(*size, template), template)

    def _encoded(self, crop: np.ndarray, points: np.ndarray, source: str) -> Crop:
        pixels = np.ascontiguousarray(crop.round().clip(0, 255).astype(np.uint8).transpose(1, 2, 0))
        _, encoded = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, self.options.quality])
        border = (pixels.shape[0] - self.options.crop_size) // 2
        inner = pixels[border : pixels.shape[0] - border, border : pixels.shape[1] - border] if border > 0 else pixels
        return Crop(encoded.tobytes(), points.astype(np.float32), source, image_hash(inner))

    def _row(self, row: int, crop: Crop) -> dict[str, Any]:
        frames, captioner = self.frames, self.captioner
        video, labels, emotion = frames.videos[frames.video[row]], frames.au_labels[row], int(frames.emotion[row])
        texts = dict.fromkeys(("au_caption", "emotion_caption", "key_au_caption"), "")
        if self.options.captions:
            rng = np.random.default_rng((self.options.seed, zlib.crc32(frames.row_id(row).encode())))
            texts["au_caption"] = captioner.au_caption(labels, rng)
            texts["emotion_caption"] = captioner.emotion_caption(labels, emotion, rng)
            texts["key_au_caption"] = captioner.key_au_caption(labels, emotion, rng)
        unknown = np.full(len(labels), UNKNOWN_LABEL, np.float32)
        return {
            "image": {"bytes": crop.encoded, "path": None},
            "landmarks": np.asarray(crop.landmarks, np.float32),
            "landmark_source": crop.source,
            "au_labels": labels,
            "au_intensities": unknown if frames.au_intensities is None else frames.au_intensities[row],
            "emotion": emotion,
            "subject": video.subject,
            "video": video.name,
            "frame": int(frames.frame[row]),
            "split": self.split[row],
            **texts,
            "caption_writer": "rule" if self.options.captions else "",
            "group": "",
            "corpus": frames.corpus,
            "licence": frames.licence,
        }


def image_hash(pixels: np.ndarray) -> np.ndarray:
    """(32,) bytes of an RGB picture: which of its 16 x 16 slowest cosine waves are stronger than their median."""
    grey = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
    waves = cv2.dct(small)[:16, :16].ravel()
    return np.packbits(waves > np.median(waves))


def near_pairs(held_out: np.ndarray, training: np.ndarray) -> np.ndarray:
    """(pairs, 2) places of hashes that differ in at most `NEAR_BITS`; memory does not grow with their number."""
    first, second = (np.ascontiguousarray(h).view(np.uint64).reshape(-1, HASH_BYTES // 8) for h in (held_out, training))
    pairs = [np.zeros((0, 2), np.int64)]
    for start in range(0, len(first), _BLOCK):
        block = first[start : start + _BLOCK]
        for low in range(0, len(second), _BLOCK):
            other = second[low : low + _BLOCK]
            bits = np.zeros((len(block), len(other)), np.uint16)
            for word in range(HASH_BYTES // 8):
                bits += np.bitwise_count(block[:, None, word] ^ other[None, :, word])
            pairs.append(np.argwhere(bits <= NEAR_BITS) + np.array([start, low]))
    return np.concatenate(pairs)


__all__ = ["HASH_BYTES", "BuildOptions", "Problem", "RowMaker", "image_hash", "near_pairs"]
