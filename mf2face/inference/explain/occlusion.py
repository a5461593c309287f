"""Does hiding an action unit's region take its probability away, and more so than hiding as much elsewhere?"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import nn

from mf2face.inference.explain.attention import region_corners


CONTROLS = 3
CAUTION = (
    "A drop is evidence, not a proof: a face with a hole is no usual face, and what one region shows, others may show "
    "too. It counts by how far it exceeds the drop of the controls."
)


@dataclass(frozen=True)
class Occlusion:
    probability: float
    """Without occlusion."""
    hidden: float
    """With the region covered."""
    controls: tuple[float, ...]
    """With an equally large and equally shaped place elsewhere covered, each."""

    @property
    def drop(self) -> float:
        return self.probability - self.hidden

    @property
    def control_drop(self) -> float:
        return self.probability - float(np.mean(self.controls)) if self.controls else float("nan")

    def text(self) -> str:
        if not self.controls:
            return f"region hidden: {self.probability:.2f} → {self.hidden:.2f}; no room for a control in this crop"
        elsewhere = float(np.mean(self.controls))
        return (
            f"region hidden: {self.probability:.2f} → {self.hidden:.2f}; as much hidden elsewhere (mean of "
            f"{len(self.controls)}): → {elsewhere:.2f}"
        )


def region_mask(corners: np.ndarray, size: int) -> np.ndarray:
    """(2, 4, 2) -> (size, size) bool: the pixels whose middles lie in one of the squares."""
    mask = np.zeros((size, size), np.uint8)
    for square in corners:
        cv2.fillConvexPoly(mask, np.round((square - 0.5) * 256).astype(np.int32), 1, shift=8)
    return mask.astype(bool)


def control_masks(mask: np.ndarray, face: np.ndarray, count: int = CONTROLS) -> list[np.ndarray]:
    """The same shape moved to where it covers most of the rest of the face; none touches the region, and they share
    as little as possible. face: (size, size) bool."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return []
    size, step = len(mask), max(1, len(mask) // 28)
    ups = np.arange(-rows[0], size - rows[-1], step)
    sides = np.arange(-columns[0], size - columns[-1], step)
    moved = [np.roll(mask, (up, side), (0, 1)) for up in ups for side in sides]
    moved = [shape for shape in moved if not (shape & mask).any()]
    chosen: list[np.ndarray] = []
    value = face.astype(np.float64)
    while moved and len(chosen) < count:
        best = max(moved, key=lambda shape: value[shape].sum())
        if (best & face).sum() < 0.5 * mask.sum():
            break  # beside the face nothing is hidden
        chosen.append(best)
        value[best] -= 1
        moved = [shape for shape in moved if (shape & best).sum() < 0.5 * mask.sum()]
    return chosen


def face_mask(landmarks: np.ndarray, size: int) -> np.ndarray:
    """The hull of the landmarks, and the forehead above the brows as far again as the eyes lie below them."""
    eyes = landmarks[36:48].mean(0)
    raised = landmarks[17:27] + (landmarks[17:27].mean(0) - eyes) * 1.2
    hull = cv2.convexHull(np.concatenate([landmarks, raised]).astype(np.float32))
    mask = np.zeros((size, size), np.uint8)
    cv2.fillConvexPoly(mask, np.round(hull * 256).astype(np.int32), 1, shift=8)
    return mask.astype(bool)


def hide(crop: torch.Tensor, mask: np.ndarray, face: np.ndarray) -> torch.Tensor:
    """(3, size, size) with the mask in the mean colour of the rest of the face."""
    chosen = torch.from_numpy(mask).to(crop.device)
    rest = torch.from_numpy(face & ~mask).to(crop.device)
    mean = crop[:, rest if rest.any() else ~chosen].mean(1)
    return torch.where(chosen, mean[:, None, None], crop)


@torch.no_grad()
def occlusion_check(
    model: nn.Module,
    pixel_values: torch.Tensor,
    landmarks: torch.Tensor,
    *,
    action_units: Sequence[str] | None = None,
    batch_size: int = 32,
) -> dict[str, Occlusion]:
    """An answer for each AU, or for those named, of one face: (3, size, size) and (68, 2) in crop pixels."""
    config = model.config
    if not config.use_au_branch:
        raise ValueError("occlusion: the model has no AU branch, so no AU has a region that could be hidden")
    units = list(config.action_units if action_units is None else action_units)
    unknown = [unit for unit in units if unit not in config.action_units]
    if unknown:
        raise ValueError(f"action_units: got {unknown}, expected names among {list(config.action_units)}")
    size = config.vision_config.image_size
    corners = region_corners(config, landmarks[None])[0].cpu().numpy()
    face = face_mask(landmarks.float().cpu().numpy(), size)
    masks = [region_mask(corners[config.action_units.index(unit)], size) for unit in units]
    tries = [[mask, *control_masks(mask, face)] for mask in masks]
    flat = [mask for of_unit in tries for mask in of_unit]
    rows: list[torch.Tensor] = []
    for start in range(-1, len(flat), batch_size):
        part = flat[max(start, 0) : start + batch_size]
        crops = [hide(pixel_values, mask, face) for mask in part]
        crops = torch.stack([pixel_values, *crops] if start < 0 else crops)
        logits = model(pixel_values=crops, landmarks=landmarks.expand(len(crops), -1, -1)).au_logits
        rows.append(logits.float().sigmoid().cpu())
    shares = torch.cat(rows)
    found, place = {}, 1
    for unit, of_unit in zip(units, tries, strict=True):
        column = shares[:, config.action_units.index(unit)]
        hidden, *controls = column[place : place + len(of_unit)].tolist()
        found[unit] = Occlusion(float(column[0]), hidden, tuple(controls))
        place += len(of_unit)
    return found
