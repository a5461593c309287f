"""Which face of a frame is which of the frames before: a number for each, as long as it can be followed."""

from collections.abc import Sequence

import numpy as np


LEAST_OVERLAP = 0.2
"""Intersection over union; between sampled frames a head moves by up to half its width."""

PATIENCE = 5
"""Looked-at frames for which a face may be hidden and still keep its number."""


def overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union of (n, 4) and (m, 4) boxes (left, top, right, bottom): (n, m)."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(-1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1][None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


class FaceTracker:
    """`follow` a video's frames in their order. The best overlapping pair is joined first; each face has one number."""

    def __init__(self) -> None:
        self.next_id = 0
        self.boxes = np.zeros((0, 4))
        self.ids: list[int] = []
        self.unseen: list[int] = []

    def follow(self, boxes: Sequence[Sequence[float]]) -> list[int]:
        found = np.asarray(boxes, np.float64).reshape(-1, 4)
        numbers = [-1] * len(found)
        scores = overlaps(self.boxes, found)
        for place in np.argsort(-scores, axis=None, kind="stable"):
            old, new = divmod(int(place), max(1, len(found)))
            if scores[old, new] < LEAST_OVERLAP:
                break
            if numbers[new] < 0 and self.ids[old] not in numbers:
                numbers[new] = self.ids[old]
        for new, number in enumerate(numbers):
            if number < 0:
                numbers[new], self.next_id = self.next_id, self.next_id + 1
        self.remember(found, numbers)
        return numbers

    def remember(self, boxes: np.ndarray, numbers: Sequence[int]) -> None:
        """A frame whose faces have their numbers already, such as one of an output that is resumed."""
        hidden = [
            (box, number, unseen + 1)
            for box, number, unseen in zip(self.boxes, self.ids, self.unseen, strict=True)
            if number not in numbers and unseen < PATIENCE
        ]
        self.boxes = np.array([*np.asarray(boxes).reshape(-1, 4), *(box for box, _, _ in hidden)]).reshape(-1, 4)
        self.ids = [*numbers, *(number for _, number, _ in hidden)]
        self.unseen = [0] * len(numbers) + [unseen for _, _, unseen in hidden]
        self.next_id = max([self.next_id, *(number + 1 for number in numbers)])


__all__ = ["FaceTracker", "overlaps"]
