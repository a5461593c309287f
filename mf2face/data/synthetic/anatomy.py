"""What the mean head tells once for all people: the skin's chart, muscles beyond the bank's, folds, landmarks.

The chart is a cylinder around the head's axis: the skin's textures lie on it. Its features are placed by (x, y) of the
mean head seen from the front.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import cv2
import numpy as np

from mf2face.data.synthetic.bank import PARTS, Bank, load_bank
from mf2face.data.synthetic.raster import rasterize


CHART = (448, 512)
"""Rows and columns of the skin's textures."""
CHART_ANGLE = np.radians(190)
"""What they span around the head, the front in the middle."""
_TOP, _BOTTOM, _AXIS = 1.3, -1.5, -0.75

# More than the bank's actions show: AU-like offsets as blobs (x, y, radius x, radius y, offset) of the person's left.
_MUSCLES: dict[str, tuple[tuple[float, float, float, float, tuple[float, float, float]], ...]] = {
    "corrugator": (
        (0.14, 0.19, 0.13, 0.10, (-0.026, -0.060, 0.025)),
        (0.34, 0.21, 0.16, 0.08, (-0.014, -0.045, 0.015)),
        (0.03, 0.15, 0.05, 0.08, (0.0, -0.01, 0.03)),
    ),
    "frontalis_inner": ((0.12, 0.22, 0.12, 0.12, (0.0, 0.075, 0.0)),),
    "frontalis_outer": ((0.44, 0.20, 0.16, 0.12, (0.0, 0.070, 0.0)),),
    "procerus": ((0.06, 0.05, 0.08, 0.09, (-0.01, -0.025, 0.03)), (0.11, -0.28, 0.07, 0.09, (0.01, 0.05, 0.03))),
    "cheek_lift": ((0.36, -0.25, 0.17, 0.11, (0.0, 0.045, 0.055)),),
    "triangularis": ((0.27, -0.76, 0.10, 0.09, (0.012, -0.055, 0.0)), (0.34, -0.84, 0.10, 0.09, (0.012, -0.02, 0.02))),
    "lip_narrow": ((0.25, -0.73, 0.13, 0.10, (-0.075, 0.0, 0.015)),),
    "lip_thin": (
        (0.0, -0.655, 0.20, 0.035, (0.0, -0.040, -0.02)),
        (0.0, -0.830, 0.18, 0.040, (0.0, 0.045, -0.02)),
    ),
    "lip_bulge": ((0.0, -0.60, 0.16, 0.05, (0.0, 0.0, 0.025)), (0.0, -0.90, 0.16, 0.05, (0.0, 0.01, 0.035))),
    "mentalis": ((0.0, -0.98, 0.17, 0.10, (0.0, 0.055, 0.045)), (0.0, -0.86, 0.12, 0.05, (0.0, 0.05, 0.02))),
    "levator": ((0.14, -0.64, 0.09, 0.06, (0.0, 0.055, 0.01)), (0.17, -0.40, 0.06, 0.07, (0.015, 0.025, 0.02))),
    "risorius": ((0.25, -0.735, 0.09, 0.09, (0.060, 0.010, -0.02)), (0.34, -0.74, 0.08, 0.12, (0.02, 0.0, 0.02))),
    "dimpler": ((0.27, -0.73, 0.07, 0.06, (0.030, -0.006, -0.07)), (0.38, -0.72, 0.09, 0.12, (0.0, 0.0, 0.035))),
}

_Points = tuple[tuple[float, float], ...]
# Furrows on the person's left: the cause, its line from the front, width and depth; a wide one is a bulge if positive.
FOLDS: tuple[tuple[str, _Points, float, float], ...] = (
    *(
        ("forehead_inner", ((0.0, y - 0.012), (0.11, y), (0.22, y - 0.005), (0.30, y - 0.03)), 0.016, 1.0)
        for y in (0.33, 0.41, 0.49, 0.57)
    ),
    *(
        ("forehead_outer", ((0.22, y - 0.01), (0.33, y + 0.005), (0.44, y - 0.02), (0.54, y - 0.07)), 0.016, 1.0)
        for y in (0.34, 0.42, 0.50)
    ),
    ("glabella", ((0.050, 0.10), (0.062, 0.17), (0.055, 0.26), (0.040, 0.32)), 0.018, 1.5),
    ("glabella", ((0.085, 0.14), (0.105, 0.19), (0.100, 0.24)), 0.014, 0.7),
    ("glabella", ((0.0, 0.12), (0.0, 0.24)), 0.030, -0.7),
    ("glabella", ((0.10, 0.25), (0.20, 0.285), (0.30, 0.28)), 0.040, -0.8),
    ("nose", ((0.0, 0.045), (0.05, 0.040), (0.10, 0.02)), 0.013, 1.0),
    ("nose", ((0.0, 0.010), (0.05, 0.000), (0.10, -0.02)), 0.013, 0.8),
    ("nose", ((0.03, -0.07), (0.08, -0.10), (0.13, -0.17)), 0.013, 1.0),
    ("nose", ((0.05, -0.13), (0.09, -0.16), (0.14, -0.23)), 0.013, 1.0),
    ("nose", ((0.13, -0.28), (0.17, -0.33), (0.175, -0.42)), 0.020, 1.2),
    ("crow", ((0.475, -0.01), (0.53, 0.03), (0.59, 0.09)), 0.013, 0.9),
    ("crow", ((0.485, -0.03), (0.55, -0.02), (0.62, 0.01)), 0.013, 0.9),
    ("crow", ((0.480, -0.06), (0.54, -0.08), (0.60, -0.10)), 0.013, 0.9),
    ("lower_lid", ((0.20, -0.11), (0.28, -0.145), (0.37, -0.14), (0.44, -0.10)), 0.016, 0.9),
    ("cheek", ((0.19, -0.17), (0.27, -0.225), (0.37, -0.22), (0.46, -0.16)), 0.020, 0.7),
    ("cheek", ((0.25, -0.30), (0.36, -0.29), (0.46, -0.27)), 0.075, -1.0),
    ("lid_pinch", ((0.20, -0.085), (0.29, -0.115), (0.40, -0.09)), 0.013, 1.1),
    ("lid_pinch", ((0.22, -0.105), (0.29, -0.135), (0.38, -0.115)), 0.022, -0.6),
    ("nasolabial", ((0.150, -0.36), (0.215, -0.45), (0.270, -0.56), (0.305, -0.68)), 0.022, 1.3),
    ("nasolabial", ((0.24, -0.40), (0.30, -0.49), (0.35, -0.60)), 0.050, -0.7),
    ("levator", ((0.150, -0.36), (0.200, -0.43), (0.225, -0.53), (0.235, -0.60)), 0.020, 1.4),
    ("levator", ((0.06, -0.50), (0.09, -0.56), (0.12, -0.61)), 0.018, 0.8),
    ("smile", ((0.315, -0.62), (0.345, -0.69), (0.345, -0.77)), 0.020, 1.0),
    ("dimple", ((0.290, -0.68), (0.310, -0.73), (0.295, -0.79)), 0.024, 2.4),
    ("dimple", ((0.345, -0.66), (0.36, -0.73), (0.345, -0.80)), 0.030, -0.8),
    ("frown", ((0.265, -0.755), (0.300, -0.82), (0.315, -0.89)), 0.020, 1.7),
    ("frown", ((0.20, -0.80), (0.24, -0.84), (0.26, -0.90)), 0.035, 0.5),
    ("frown", ((0.33, -0.78), (0.37, -0.86), (0.37, -0.93)), 0.035, -0.7),
    ("chin", ((0.0, -0.905), (0.10, -0.925), (0.17, -0.97)), 0.022, 1.4),
    *(
        ("chin", ((x, y), (x + 0.018, y - 0.008), (x + 0.03, y + 0.004)), 0.016, 0.75)
        for x, y in ((0.01, -0.975), (0.06, -0.96), (0.10, -0.985), (0.03, -1.015), (0.08, -1.03), (0.0, -1.04))
    ),
    *(("lip_lines", ((x, -0.575), (x * 1.03, -0.64)), 0.011, 0.5) for x in (0.03, 0.075, 0.12, 0.165)),
    *(("lip_lines", ((x, -0.845), (x * 1.05, -0.91)), 0.011, 0.4) for x in (0.03, 0.075, 0.12)),
    ("press", ((0.0, -0.588), (0.09, -0.592), (0.19, -0.64)), 0.034, -1.1),
    ("press", ((0.0, -0.890), (0.09, -0.885), (0.18, -0.84)), 0.034, -1.1),
    ("press", ((0.0, -0.935), (0.10, -0.93), (0.19, -0.88)), 0.022, 1.0),
    ("press", ((0.25, -0.70), (0.272, -0.735), (0.25, -0.78)), 0.018, 1.0),
    ("jaw", ((0.20, -0.86), (0.215, -0.94), (0.18, -1.02)), 0.030, 0.8),
    ("jaw", ((0.30, -0.62), (0.37, -0.74), (0.36, -0.88)), 0.040, 0.5),
    ("stretch", ((0.30, -0.66), (0.34, -0.74), (0.32, -0.84)), 0.022, 1.0),
    ("stretch", ((0.36, -0.68), (0.40, -0.76), (0.38, -0.86)), 0.022, 0.6),
    ("eye_bag", ((0.20, -0.12), (0.29, -0.165), (0.39, -0.145)), 0.018, 0.9),
    ("marionette", ((0.265, -0.78), (0.285, -0.86), (0.28, -0.94)), 0.016, 0.9),
    ("neck", ((0.0, -1.30), (0.25, -1.28), (0.45, -1.22)), 0.020, 0.8),
)  # fmt: skip
FOLD_NAMES: tuple[str, ...] = tuple(dict.fromkeys(name for name, *_ in FOLDS))


def chart_of(points: np.ndarray) -> np.ndarray:
    """(..., 3) points of the mean head -> (..., 2) fractions of the chart's width and height."""
    angle = np.arctan2(points[..., 0], points[..., 2] - _AXIS)
    return np.stack([angle / CHART_ANGLE + 0.5, (_TOP - points[..., 1]) / (_TOP - _BOTTOM)], -1)


@dataclass(frozen=True)
class Anatomy:
    bank: Bank

    @cached_property
    def skin_vertices(self) -> np.ndarray:
        return np.unique(self.bank.triangles[self.bank.parts == PARTS.index("skin")])

    @cached_property
    def eye_vertices(self) -> tuple[np.ndarray, np.ndarray]:
        """The person's left and right eyeball."""
        eyes = np.unique(self.bank.triangles[self.bank.parts == PARTS.index("eye")])
        is_left = self.bank.mean[eyes, 0] > 0
        return eyes[is_left], eyes[~is_left]

    @cached_property
    def lobes(self) -> tuple[int, ...]:
        """The lowest vertices of the person's left and right ear."""
        ears, mean = np.flatnonzero(self.bank.ears > 0.5), self.bank.mean
        return tuple(min(ears[mean[ears, 0] * sign > 0], key=lambda vertex: mean[vertex, 1]) for sign in (1, -1))

    @cached_property
    def upper_teeth(self) -> np.ndarray:
        """Vertices of the upper row; the lower row follows the jaw."""
        teeth = np.unique(self.bank.triangles[self.bank.parts == PARTS.index("teeth")])
        return teeth[np.linalg.norm(self.bank.actions["jawOpen"][teeth], axis=1) < 0.1]

    @cached_property
    def behind_lips(self) -> np.ndarray:
        parts = [PARTS.index("teeth"), PARTS.index("tongue")]
        return np.unique(self.bank.triangles[np.isin(self.bank.parts, parts)])

    @cached_property
    def lower_teeth(self) -> np.ndarray:
        teeth = np.unique(self.bank.triangles[self.bank.parts == PARTS.index("teeth")])
        return np.setdiff1d(teeth, self.upper_teeth)

    @cached_property
    def shapes(self) -> tuple[dict[str, int], np.ndarray]:
        """All offsets that an expression is made of: the bank's actions, and muscles as `nameLeft`, `nameRight`."""
        mean, weight = self.bank.mean, np.zeros(len(self.bank.mean))
        weight[self.skin_vertices] = np.clip((mean[self.skin_vertices, 2] + 0.45) / 0.3, 0, 1)
        # Lids and what lies behind them stay.
        for rim in self.bank.lids.values():
            distance = np.linalg.norm(mean[:, None, :2] - mean[rim][None, :, :2], axis=-1).min(1)
            weight *= np.clip(distance / 0.07 - 0.15, 0, 1)
        shapes = dict(self.bank.actions)
        for name, blobs in _MUSCLES.items():
            for side, sign in (("Left", 1), ("Right", -1)):
                offset = np.zeros_like(mean)
                for x, y, radius_x, radius_y, move in blobs:
                    away = ((mean[:, 0] * sign - x) / radius_x) ** 2 + ((mean[:, 1] - y) / radius_y) ** 2
                    half = 0.5 if x == 0 else 1.0
                    offset += half * (np.exp(-away) * weight)[:, None] * np.array(move) * (sign, 1, 1)
                shapes[name + side] = offset.astype(np.float32)
        return {name: number for number, name in enumerate(shapes)}, np.stack(list(shapes.values()))

    @cached_property
    def attributes(self) -> np.ndarray:
        """What the shader needs at each vertex: the chart on skin, (x, y, depth) in mouth and eyes, lashes' stripes."""
        bank = self.bank
        values = np.zeros((len(bank.mean), 3), np.float32)
        values[:, :2] = chart_of(bank.mean)
        foremost = bank.mean[bank.lips > 0.3, 2].max()
        for part in ("mouth", "teeth", "tongue", "eye"):
            inside = np.unique(bank.triangles[bank.parts == PARTS.index(part)])
            if part == "mouth":
                values[inside, 2] = np.minimum(bank.mean[inside, 2] - foremost + 0.16, 0)
            else:
                values[inside] = bank.mean[inside] - (0, 0, foremost - (0.10 if part == "teeth" else 0.16))
        lashes = np.unique(bank.triangles[bank.parts == PARTS.index("lashes")])
        rims = np.concatenate(list(bank.lids.values()))
        away = np.linalg.norm(bank.mean[lashes][:, None] - bank.mean[rims][None], axis=-1).min(1)
        away[bank.mean[lashes, 1] < -0.03] *= 4  # lower lashes are short
        values[lashes] = np.stack([bank.mean[lashes, 0] * 2, away / 0.09, np.ones(len(lashes))], 1)
        return values

    @cached_property
    def _front(self) -> np.ndarray:
        """The chart's coordinates of what is seen at (x, y) from the front, 200 pixels a decimetre; half the head."""
        bank, scale = self.bank, 200
        front = np.full((600, 240, 2), np.nan, np.float32)
        xy = np.stack([bank.mean[:, 0] * scale + 20, (_TOP - bank.mean[:, 1]) * scale], 1).astype(np.float32)
        triangles = bank.triangles[bank.parts == PARTS.index("skin")]
        faces, weights = _raster(xy, bank.mean[:, 2], triangles, front.shape[:2])
        seen = faces >= 0
        chart = chart_of(bank.mean)[triangles[faces[seen]]]
        share = np.concatenate([weights[seen], 1 - weights[seen].sum(-1, keepdims=True)], -1)
        front[seen] = (chart * share[..., None]).sum(1)
        return front

    def on_chart(self, points: np.ndarray) -> np.ndarray:
        """(n, 2) points (x, y) of the front -> pixels of the chart."""
        sign = np.where(points[:, 0] < 0, -1, 1)
        columns = np.clip(np.abs(points[:, 0]) * 200 + 20, 0, self._front.shape[1] - 1).astype(int)
        rows = np.clip((_TOP - points[:, 1]) * 200, 0, self._front.shape[0] - 1).astype(int)
        at = np.nan_to_num(self._front[rows, columns], nan=0.9)
        at[:, 0] = 0.5 + (at[:, 0] - 0.5) * sign
        return at * (CHART[1] - 1, CHART[0] - 1)

    def _spread(self, values: np.ndarray, outside: np.ndarray | float) -> np.ndarray:
        """A value of each vertex, laid on the chart."""
        bank = self.bank
        xy = (chart_of(bank.mean) * (CHART[1] - 1, CHART[0] - 1)).astype(np.float32)
        triangles = bank.triangles[bank.parts == PARTS.index("skin")]
        # Triangles behind the head would smear across the whole chart.
        triangles = triangles[np.ptp(xy[triangles, 0], axis=1) < CHART[1] / 3]
        radius = np.hypot(bank.mean[:, 0], bank.mean[:, 2] - _AXIS)
        faces, weights = _raster(xy, radius, triangles, CHART)
        share = np.concatenate([weights, 1 - weights.sum(-1, keepdims=True)], -1)
        return np.where(faces >= 0, (values[triangles[faces]] * share).sum(-1), outside).astype(np.float32)

    @cached_property
    def chart_x(self) -> np.ndarray:
        """x of the mean head at each texel."""
        return self._spread(self.bank.mean[:, 0], np.sin(np.linspace(-0.5, 0.5, CHART[1]) * CHART_ANGLE) * 0.8)

    @cached_property
    def chart_y(self) -> np.ndarray:
        return np.repeat(np.linspace(_TOP, _BOTTOM, CHART[0], dtype=np.float32)[:, None], CHART[1], 1)

    @cached_property
    def chart_lips(self) -> np.ndarray:
        return np.clip(cv2.GaussianBlur(self._spread(self.bank.lips, 0.0), (0, 0), 1.2) * 1.25, 0, 1)

    @cached_property
    def fold_maps(self) -> np.ndarray:
        """(2 x FOLD_NAMES, rows, columns): the person's left, then right; furrows are negative."""
        maps = np.zeros((len(FOLD_NAMES), *CHART), np.float32)
        per_decimetre = CHART[0] / (_TOP - _BOTTOM)
        for name, line, width, depth in FOLDS:
            dense = _smooth_line(np.array(line))
            sigma = width * per_decimetre * 0.85
            pixels = self.on_chart(dense)
            low = np.maximum(np.floor(pixels.min(0) - 10 * sigma), 0).astype(int)
            high = np.minimum(np.ceil(pixels.max(0) + 10 * sigma), CHART[::-1]).astype(int)
            canvas = np.zeros(high[::-1] - low[::-1], np.float32)
            line = np.round((pixels - low) * 16).astype(np.int32).reshape(-1, 1, 2)
            cv2.polylines(canvas, [line], False, 1.0, 1, cv2.LINE_AA, 4)
            furrow = cv2.GaussianBlur(canvas, (0, 0), sigma)
            furrow /= max(float(furrow.max()), 1e-6)
            if depth > 0:
                lips = cv2.GaussianBlur(canvas, (0, 0), 2.4 * sigma)
                furrow -= 0.45 * lips / max(float(lips.max()), 1e-6)
            maps[FOLD_NAMES.index(name), low[1] : high[1], low[0] : high[0]] -= depth * furrow
        right = maps[:, :, ::-1]
        return np.ascontiguousarray(np.concatenate([maps, right]))


def _smooth_line(points: np.ndarray, samples: int = 40) -> np.ndarray:
    """A Catmull-Rom curve through the points."""
    padded = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    at = np.linspace(0, len(points) - 1, samples)
    index = np.minimum(at.astype(int), len(points) - 2)
    t = (at - index)[:, None]
    before, first, second, after = (padded[index + k] for k in range(4))
    return first + 0.5 * t * (
        second
        - before
        + t * (2 * before - 5 * first + 4 * second - after + t * (3 * (first - second) + after - before))
    )


def _raster(xy, depth, triangles, shape) -> tuple[np.ndarray, np.ndarray]:
    zbuffer, faces = np.empty(shape, np.float32), np.empty(shape, np.int32)
    weights = np.zeros((*shape, 2), np.float32)
    nothing = np.zeros((1, 1), np.float32)
    rasterize(
        *(xy, depth.astype(np.float32), triangles, np.zeros(len(triangles), np.int32)),
        *(np.zeros((len(xy), 3), np.float32), nothing, nothing, False, zbuffer, faces, weights),
    )
    return faces, weights


@lru_cache
def anatomy() -> Anatomy:
    return Anatomy(load_bank())


__all__ = ["CHART", "CHART_ANGLE", "FOLD_NAMES", "Anatomy", "anatomy", "chart_of"]
