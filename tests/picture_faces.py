"""A face and rows that no model was asked for, for the tests of pictures."""

from pathlib import Path

import cv2
import numpy as np

from configuration_mf2.facs import ACTION_UNITS, CANONICAL_FACE
from mf2face.inference.explain.face_page import EMOTION, Explanation, Occlusion
from mf2face.inference.explain.picture_rows import PictureRows
from mf2face.inference.rows import Columns


EVIL = '<script>alert("$x^2$")</script>&'
UNITS = ("AU1", "AU12", "AU25")
EMOTIONS = ("Neutral", "Happiness", "Anger")
ABOUT = {"synthetic": True, "trained_on": "trained on synthetic faces", "settings": {"model": "tiny"}}


def a_face(name: str = EVIL, *, occlusion: bool = True, units: tuple[str, ...] = UNITS) -> Explanation:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (90, 120, 3), np.uint8)
    grids = {code: np.eye(4)[place : place + 1].T @ np.eye(4)[:1] for place, code in enumerate(units)}
    squares = np.array([[[8, 8], [24, 8], [24, 24], [8, 24]]] * 2, float)
    shares = dict(zip(units, (0.9, 0.8, 0.2), strict=False))
    told = {
        code: {"name": ACTION_UNITS[code].noun, "probability": share, "threshold": 0.5, "active": share >= 0.5}
        for code, share in shares.items()
    }
    words = {"emotion": f"A face of {EVIL}.", "au": dict.fromkeys(units, "The inner brows rest.")}
    about = {"model": "tiny", "synthetic": True, "trained_on": "trained on synthetic faces"}
    return Explanation(
        *(name, 0, image, (10, 5, 90, 85), np.array(CANONICAL_FACE) * 80 + (10, 5), image[:64, :64].copy()),
        *(np.array([[0.8, 0, -8], [0, 0.8, -4], [0, 0, 1.0]]), told, dict(zip(EMOTIONS, (0.1, 0.7, 0.2), strict=True))),
        *({**grids, EMOTION: np.full((4, 4), 1 / 16)}, dict.fromkeys(units, squares), words, about),
        dict.fromkeys(units, Occlusion(0.9, 0.3, (0.88, 0.86))) if occlusion else {},
    )


def some_rows(folder: Path, *, images: int = 2, frames: int = 6, name: str = "v.mp4") -> tuple[PictureRows, list[dict]]:
    """Stills of which the last has no face, and a video of two faces: the second is hidden in frames 2 and 3."""
    columns = Columns(UNITS, EMOTIONS)
    about = {**ABOUT, "settings": {**ABOUT["settings"], "thresholds": dict.fromkeys(UNITS, 0.5)}}
    points = np.array(CANONICAL_FACE) * 40

    def row(input: str, frame: int, time_s: float, number: int, share: float) -> dict:
        units = {code: {"probability": share, "active": share >= 0.5} for code in UNITS}
        emotions = {"Neutral": 1 - share, "Happiness": share, "Anger": 0.0}
        answer = {"action_units": units, "emotions": emotions, "emotion": max(emotions, key=emotions.get)}
        return columns.row(input, frame, time_s, number, (0, 0, 40, 40), 0.9, points, "given", answer)

    rows, nan = [], float("nan")
    for index in range(images):
        path = folder / f"{index}-face.png"
        cv2.imwrite(str(path), np.full((50, 60, 3), 30 * index, np.uint8))
        share = 0.9 - 0.6 * (index % 2)
        rows.append(row(str(path), 0, nan, 0, share) if index < images - 1 else columns.empty_row(str(path), 0, nan))
    for frame in range(frames):
        rows.append(row(name, frame, frame / 10, 0, 0.1 if frame < 3 else 0.8))
        if frame not in (2, 3):
            rows.append(row(name, frame, frame / 10, 1, 0.7))
    kept = PictureRows.of_columns(columns.names, about)
    kept.add(rows)
    return kept, rows
