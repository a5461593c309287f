"""One image of a corpus to one row of MFA: read, landmarks, aligned crop, captions by rule."""

import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch

from processing_mf2.alignment_mf2 import alignment_matrix, resize_matrix, transform_points, warp
from processing_mf2.captions_mf2 import RuleCaptioner
from processing_mf2.image_reading_mf2 import read_image
from processing_mf2.landmarks_mf2 import check_landmarks, check_orientation, template_landmarks

from .frames_mf2 import Frames
from .image_metadata_mf2 import without_metadata
from .landmark_cache_mf2 import CachedFace, LandmarkCache
from .near_images_mf2 import HASH_BYTES, image_hash


if TYPE_CHECKING:
    from .building_mf2 import BuildOptions

_CHUNK = 32


@dataclass(frozen=True)
class Problem:
    """Why an image was left out."""

    image: str
    kind: str
    """unreadable, no face, or landmarks (the corpus's own are wrong)"""
    told: str


@dataclass(frozen=True)
class Crop:
    encoded: bytes
    landmarks: np.ndarray
    source: str
    fingerprint: np.ndarray


class RowMaker:
    """Rows in chunks: images of one chunk are in memory at a time."""

    def __init__(
        self, frames: Frames, split: Sequence[str], options: "BuildOptions", cache: LandmarkCache | None
    ) -> None:
        self.frames, self.split, self.options, self.cache = frames, split, options, cache
        self.captioner = RuleCaptioner(frames.label_set)

    def __enter__(self) -> "RowMaker":
        self.pool = ThreadPoolExecutor(self.options.workers)
        return self

    def __exit__(self, *raised: object) -> None:
        self.pool.shutdown(cancel_futures=True)

    def make(self, rows: np.ndarray, bar: Any) -> tuple[list[dict], np.ndarray, np.ndarray, list[Problem]]:
        """Rows of the schema, their hashes, which rows of the frames they are, and what was left out."""
        made, hashes, kept, problems = [], [], [], []
        for start in range(0, len(rows), _CHUNK):
            chunk = rows[start : start + _CHUNK]
            for row, crop in zip(chunk, self._crops(chunk), strict=True):
                if isinstance(crop, Problem):
                    problems.append(crop)
                    continue
                made.append(self._row(int(row), crop))
                hashes.append(crop.fingerprint)
                kept.append(int(row))
            bar.update(len(chunk))
        return made, np.array(hashes, np.uint8).reshape(-1, HASH_BYTES), np.array(kept, int), problems

    def _crops(self, rows: np.ndarray) -> list[Crop | Problem]:
        read = list(self.pool.map(self._read, rows))
        faces: dict[int, CachedFace | None] = {}
        if self.options.landmarks == "detector":
            good = [place for place, pixels in enumerate(read) if not isinstance(pixels, Problem)]
            names = [self.frames.image(rows[place]) for place in good]
            found = self.cache.faces(names, [read[place] for place in good])
            faces = dict(zip(good, found, strict=True))
        jobs = [
            (int(row), pixels, faces.get(place)) for place, (row, pixels) in enumerate(zip(rows, read, strict=True))
        ]
        return list(self.pool.map(lambda job: self._crop(*job), jobs))

    def _read(self, row: int) -> torch.Tensor | Problem:
        name = self.frames.image(row)
        try:
            return read_image(self.frames.root / name, name=name)
        except (ValueError, OSError) as error:
            told = str(error).replace(f"{self.frames.root}/", "")  # it is published with the data set
            return Problem(name, "unreadable", told)

    def _crop(self, row: int, pixels: torch.Tensor | Problem, face: CachedFace | None) -> Crop | Problem:
        if isinstance(pixels, Problem):
            return pixels
        name, height, width = self.frames.image(row), *pixels.shape[1:]
        points, source = None, "template"
        if self.options.landmarks == "detector" and face is not None:
            if face.confidence.mean() >= self.options.min_confidence:
                points, source = face.landmarks, "detector"
        elif self.options.landmarks == "corpus" and self.frames.landmarks is not None:
            if not np.isnan(self.frames.landmarks[row]).any():
                points, source = self.frames.landmarks[row], "given"
        if points is None and self.options.landmarks != "template" and self.options.on_no_face != "template":
            return Problem(name, "no face", f"no landmarks from the {self.options.landmarks}")
        if points is None:
            return self._ready(row, pixels)
        try:
            points = check_landmarks(points, height, width, name)
            check_orientation(points, name)
        except ValueError as error:
            return Problem(name, "landmarks" if source == "given" else "no face", str(error))
        side = self.options.crop_size
        border = round(side * self.options.margin)
        matrix = np.array([[1, 0, border], [0, 1, border], [0, 0, 1]]) @ alignment_matrix(points, side, side)
        crop = warp(pixels, matrix, side + 2 * border, side + 2 * border)
        return self._encoded(crop, transform_points(matrix, points), source)

    def _ready(self, row: int, pixels: torch.Tensor) -> Crop:
        """A picture that is aligned already: its compressed pixels as they are, if it is small enough and needs no
        turning. Whatever its file says beside them is left behind."""
        height, width = pixels.shape[1:]
        if max(height, width) <= 2 * self.options.crop_size:
            plain = without_metadata((self.frames.root / self.frames.image(row)).read_bytes())
            if plain is not None and _shows(plain, pixels):
                whole = pixels.round().to(torch.uint8).permute(1, 2, 0).numpy()
                return Crop(plain, template_landmarks(height, width), "template", image_hash(whole))
        scale = self.options.crop_size / max(height, width)
        size = (max(1, round(height * scale)), max(1, round(width * scale))) if scale < 1 else (height, width)
        crop = warp(pixels, resize_matrix(height, width, *size), *size)
        return self._encoded(crop, template_landmarks(*size), "template")

    def _encoded(self, crop: torch.Tensor, points: np.ndarray, source: str) -> Crop:
        pixels = crop.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
        _, encoded = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, self.options.quality])
        border = (pixels.shape[0] - self.options.crop_size) // 2
        inner = pixels[border : pixels.shape[0] - border, border : pixels.shape[1] - border] if border > 0 else pixels
        return Crop(encoded.tobytes(), points.astype(np.float32), source, image_hash(inner))

    def _row(self, row: int, crop: Crop) -> dict[str, Any]:
        frames = self.frames
        video, labels, emotion = frames.videos[frames.video[row]], frames.au_labels[row], int(frames.emotion[row])
        name = frames.row_id(row)
        rng = np.random.default_rng((self.options.seed, zlib.crc32(name.encode())))
        texts, writer = {"au_caption": "", "emotion_caption": "", "key_au_caption": ""}, ""
        if self.options.captions:
            texts = {
                "au_caption": self.captioner.au_caption(labels, rng),
                "emotion_caption": self.captioner.emotion_caption(labels, emotion, rng),
                "key_au_caption": self.captioner.key_au_caption(labels, emotion, rng),
            }
            writer = "rule"
        unknown = np.full(len(labels), -1, np.float32)
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
            "caption_writer": writer,
            "group": "",
            "corpus": frames.corpus,
            "licence": frames.licence,
        }


def _shows(content: bytes, pixels: torch.Tensor) -> bool:
    try:
        return torch.equal(read_image(content), pixels)
    except ValueError:
        return False


__all__ = ["Problem", "RowMaker"]
