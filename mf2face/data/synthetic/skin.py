"""The skin of a rendered person, painted on the chart: colour, shine, pores, brows, stubble, make-up and age."""

from functools import lru_cache

import cv2
import numpy as np

from mf2face.data.synthetic.anatomy import CHART, CHART_ANGLE, FOLD_NAMES, anatomy
from mf2face.data.synthetic.people import Person


_AGE_FOLDS = {
    **{"forehead_inner": 0.30, "forehead_outer": 0.30, "glabella": 0.16, "crow": 0.35, "eye_bag": 0.60},
    **{"nasolabial": 0.40, "marionette": 0.45, "neck": 0.5, "lower_lid": 0.2, "lip_lines": 0.10},
}
"""What age alone engraves, at its end."""


@lru_cache(maxsize=32)
def _noises(cells: int) -> list[np.ndarray]:
    """Smooth noise of so many cells across the chart's width: eight fields of deviation one."""
    rng = np.random.Generator(np.random.PCG64(cells))
    rows, columns = CHART
    shape = (max(cells * rows // columns, 2), cells)
    fields = [
        cv2.resize(rng.standard_normal(shape).astype(np.float32), (columns, rows), interpolation=cv2.INTER_CUBIC)
        for _ in range(8)
    ]
    return [field / field.std() for field in fields]


def noise(rng: np.random.Generator, cells: int) -> np.ndarray:
    field = _noises(cells)[int(rng.integers(8))]
    turns = int(rng.integers(4))
    return field[:: -1 if turns & 1 else 1, :: -1 if turns & 2 else 1]


def bump(distance: np.ndarray, width: float) -> np.ndarray:
    return np.exp(-((distance * np.float32(1 / width)) ** 2))


@lru_cache(maxsize=64)
def _patch(x: float, y: float, radius: float, wide: float = 1.0, tall: float = 1.0) -> np.ndarray:
    """Soft spots at (x, y) and (-x, y) of the mean head, the same for everyone."""
    body = anatomy()
    return bump(np.hypot((np.abs(body.chart_x) - x) / np.float32(wide), (body.chart_y - y) / np.float32(tall)), radius)


def ramp(value: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 up to `low`, 1 from `high`, a line between."""
    return np.clip((value - np.float32(low)) * np.float32(1 / (high - low)), 0, 1)


def brow_line(person: Person, along: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) on the mean head, from the brow's inner end at 0 to the outer one at 1."""
    arch = person.brow_arch * 0.085 * np.sin(np.pi * along**0.8 * 0.93)
    return 0.075 + 0.46 * along, 0.175 + person.brow_height + arch - 0.035 * along


def _brow_alpha(person: Person, rng: np.random.Generator) -> np.ndarray:
    """Strokes of hair from the inner to the outer end, on both sides, over a soft shadow."""
    alpha, body = np.zeros(CHART, np.float32), anatomy()
    strokes = []
    for side in (-1, 1):
        count = int(170 * person.brow_density * person.brow_width)
        along = np.sort(rng.random(count)) ** 0.9
        thick = 0.036 * person.brow_width * np.clip(1.1 - 0.85 * along**1.8, 0.15, 1) * ramp(along, -0.12, 0.10)
        across = rng.uniform(-1, 1, count) * thick
        x, y = brow_line(person, along)
        lean = np.radians(72 - 78 * along**0.6 + rng.normal(0, 10, count))
        length = rng.uniform(0.035, 0.065, count) * (0.7 + 0.5 * person.brow_width)
        roots = np.stack([side * x, y + across], 1)
        tips = np.stack([side * (x + np.cos(lean) * length), y + across * 0.7 + np.sin(lean) * length * 0.55], 1)
        strokes.append(np.stack([body.on_chart(roots), body.on_chart(tips)], 1))
    pixels = np.round(np.concatenate(strokes) * 16).astype(np.int32)
    cv2.polylines(alpha, list(pixels), False, 1.0, 1, cv2.LINE_AA, 4)
    soft = cv2.GaussianBlur(alpha, (0, 0), 3.0)
    return np.clip(0.62 * alpha + 0.75 * soft, 0, 1) * np.float32(0.55 + 0.45 * person.brow_density)


def _beard_alpha(person: Person, rng: np.random.Generator) -> np.ndarray:
    body = anatomy()
    x, y = np.abs(body.chart_x), body.chart_y
    below = ramp(-y + 0.35 * np.clip(x - 0.3, 0, 1), 0.48, 0.66)
    cheeks = 1 - 0.95 * ramp(x, 0.20, 0.30) * ramp(y, -0.86, -0.66) * (1 - ramp(x, 0.56, 0.66))
    mouth = 1 - _patch(0.0, -0.735, 0.145, 1.55)
    throat = ramp(y, -1.32, -1.14)
    jaw = below * cheeks * mouth * throat
    moustache = bump(y + 0.585 + 0.10 * x, 0.062) * (1 - ramp(x, 0.20, 0.27))
    chin = jaw * (1 - ramp(x, 0.22, 0.32))
    shape, amount = {
        "stubble": (np.maximum(jaw, moustache), rng.uniform(0.12, 0.38)),
        "moustache": (moustache, rng.uniform(0.6, 0.95)),
        "goatee": (np.maximum(chin, moustache), rng.uniform(0.55, 0.9)),
        "short": (np.maximum(jaw, moustache), rng.uniform(0.5, 0.75)),
        "full": (np.maximum(jaw, moustache), rng.uniform(0.8, 0.97)),
    }[person.beard]
    grain = np.clip(0.80 + 0.16 * noise(rng, 256) + 0.10 * noise(rng, 64), 0.3, 1.2)
    lips = 1 - np.clip(body.chart_lips * 2, 0, 1)
    return np.clip(shape * np.float32(amount) * grain, 0, 0.96) * lips


def _scalp_alpha(person: Person, ends: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Hair too short to stand off: on shaved heads, and where other hair begins. ends: its height around the head."""
    body = anatomy()
    x, y = np.abs(body.chart_x), body.chart_y
    if person.cut == "bald":
        covered = np.zeros_like(y)
    else:
        grown = 0.66 - 0.10 * ramp(x, 0.15, 0.5) - 0.30 * ramp(x, 0.52, 0.70)
        columns = (np.linspace(-0.5, 0.5, CHART[1]) * CHART_ANGLE / (2 * np.pi) * len(ends)).astype(int)
        line = np.maximum(grown, ends[columns] - 0.04)
        fine = cv2.resize(rng.standard_normal((3, 300)).astype(np.float32), CHART[::-1])
        covered = ramp(y - line + np.float32(0.025) * fine, -0.02, 0.09)
    sides = ramp(x, 0.67, 0.73) * ramp(y, -0.25, 0.05)
    return np.maximum(covered, sides * 0.7) * np.float32(0.45 if person.cut == "bald" else 0.88)


def _spots(colour: np.ndarray, person: Person, rng: np.random.Generator) -> None:
    """Moles, freckles, blemishes."""
    count = int(rng.integers(0, 7) + person.freckles * 60)
    rows, columns = CHART
    at = np.stack([rng.normal(0.5, 0.13, count) * columns, rng.normal(0.52, 0.13, count) * rows], 1)
    layer = np.zeros(CHART, np.float32)
    for (column, row), radius, depth in zip(
        at, rng.uniform(0.6, 2.0, count), rng.uniform(0.15, 0.6, count), strict=True
    ):
        centre = int(column * 16), int(row * 16)
        cv2.circle(layer, centre, int(radius * 16), float(depth), -1, cv2.LINE_AA, 4)
    layer = cv2.GaussianBlur(layer, (0, 0), 0.8)[..., None]
    colour *= 1 - layer * np.float32((0.55, 0.75, 0.85))


def paint_skin(person: Person, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rows, columns, 4): linear RGB and shine; (rows, columns): the relief at rest. ends: heights where hair ends."""
    rng, body = np.random.Generator(np.random.PCG64(person.seed)), anatomy()
    x, y = np.abs(body.chart_x), body.chart_y
    base = np.float32(person.skin)
    light = 1 - 0.6 * person.tone
    tone = (
        1 + np.float32(0.035) * noise(rng, 6) + np.float32(0.03) * noise(rng, 20) + np.float32(0.035) * noise(rng, 90)
    )
    colour = base * tone[..., None]
    # Blood: cheeks, nose, ears, chin; blotches.
    red = 0.8 * _patch(0.40, -0.30, 0.24) + 0.8 * _patch(0.0, -0.36, 0.15)
    red += 0.4 * _patch(0.0, -0.98, 0.16) + 0.6 * ramp(x, 0.68, 0.74)
    red = red * rng.uniform(0.1, 0.75) + np.float32(0.16 * rng.random()) * np.clip(
        noise(rng, 12) + noise(rng, 40), 0, 3
    )
    red += person.make_up * 0.9 * _patch(0.47, -0.24, 0.17, 1.3)
    colour *= 1 - red[..., None] * np.float32((0.02, 0.24, 0.20)) * np.float32(light)
    # Eye sockets and lids; shadow and liner of make-up.
    hollow = _patch(0.29, -0.13, 0.10, 1.5, 0.7) * rng.uniform(0.05, 0.45)
    hollow += _patch(0.31, 0.07, 0.10, 1.5, 0.8) * (rng.uniform(0.0, 0.28) + 0.3 * person.make_up)
    colour *= 1 - hollow[..., None] * np.float32((0.42, 0.50, 0.44))
    if person.make_up > 0:
        shadow = _patch(0.32, 0.065, 0.095, 1.5, 0.75)[..., None] * np.float32(0.55 * person.make_up)
        colour += shadow * (np.float32(rng.uniform(0.02, 0.30, 3)) - colour)
    _spots(colour, person, rng)
    if person.is_male:
        blue = ramp(-y + 0.35 * np.clip(x - 0.3, 0, 1), 0.48, 0.70) * (1 - ramp(-y, 1.15, 1.3))
        colour *= 1 - blue[..., None] * np.float32(rng.uniform(0.0, 0.22)) * np.float32((1.0, 0.85, 0.7))
    scalp = _scalp_alpha(person, ends, rng)[..., None]
    colour += scalp * (np.float32(person.hair) - colour)
    if person.beard != "none":
        beard = _beard_alpha(person, rng)
        colour += beard[..., None] * (np.float32(person.brow) - colour)
    else:
        beard = np.float32(0.0)
    lips = body.chart_lips[..., None]
    stripes = np.float32(1) + np.float32(0.06) * noise(rng, 256)[..., None]
    colour += lips * (np.float32(person.lips) * stripes - colour)
    brows = _brow_alpha(person, rng)[..., None]
    colour += brows * (np.float32(person.brow) - colour)
    shine = 0.65 + 0.5 * _patch(0.0, 0.45, 0.35, 1 / 1.4) + 0.8 * _patch(0.0, -0.30, 0.14)
    shine = np.clip(shine + 0.22 * noise(rng, 128), 0.1, 2.0) * (1 - 0.7 * brows[..., 0]) * (1 - 0.8 * beard)
    shine = shine * (1 - lips[..., 0]) + lips[..., 0] * np.float32(1.2 + 1.6 * person.make_up)
    texture = np.concatenate([np.clip(colour, 0.004, 1), shine[..., None]], -1).astype(np.float32)
    return np.ascontiguousarray(texture), _relief(person, beard, rng)


def _relief(person: Person, beard: np.ndarray | np.float32, rng: np.random.Generator) -> np.ndarray:
    body, age = anatomy(), min(max(person.age, 0.0), 1.0)
    rough = (0.010 + 0.016 * age) * rng.uniform(0.4, 1.6)
    relief = np.float32(rough) * noise(rng, 200) + np.float32(0.6 * rough) * noise(rng, 90)
    relief = relief + beard * np.float32(0.06) * noise(rng, 256)
    half = len(FOLD_NAMES)
    for name, depth in _AGE_FOLDS.items():
        depth = (depth * age**1.6 + (0.07 if name in ("nasolabial", "eye_bag") else 0)) * rng.uniform(0.4, 1.5)
        number = FOLD_NAMES.index(name)
        relief += np.float32(depth) * (body.fold_maps[number] + body.fold_maps[half + number])
    return np.ascontiguousarray(relief, dtype=np.float32)


__all__ = ["brow_line", "bump", "noise", "paint_skin", "ramp"]
