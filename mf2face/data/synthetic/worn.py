"""What stands off the skin: hair, headwear, glasses, earrings and a mask, as triangles around the head.

Hair and hats are one surface, the hood: rays from the head's centre, moved outwards by the hair's thickness and
falling straight below the ears. Where it ends is a line around the head, which a cut chooses.
"""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from mf2face.data.synthetic.anatomy import anatomy
from mf2face.data.synthetic.bank import HOOD_CENTRE, HOOD_SHAPE
from mf2face.data.synthetic.people import Colour, Person
from mf2face.data.synthetic.raster import CLOTH, GLOSS, HAIR


STRANDS = (96, 640)
"""Rows and columns of the texture of hair: height above the eyes from -2 to 2, around the head."""


@dataclass
class Mesh:
    points: np.ndarray
    triangles: np.ndarray
    attributes: np.ndarray
    material: int | np.ndarray
    """One of all triangles, or one each; as the colour."""
    colour: np.ndarray


def _plain(points: np.ndarray, triangles: np.ndarray, material: int, colour: Colour | np.ndarray) -> Mesh:
    points = points.astype(np.float32)
    return Mesh(points, triangles, np.zeros_like(points), material, np.float32(colour))


def _degrees(columns: np.ndarray, count: int) -> np.ndarray:
    """From the front, -180 to 180, of columns of so many around the head."""
    return (columns / count * 360 + 180) % 360 - 180


@dataclass(frozen=True)
class Cut:
    """Heights above the eyes, in decimetres, at which hair ends: over the forehead, the temples, the ears, behind."""

    front: float
    temple: float
    side: float
    back: float
    thickness: float
    top: float = 1.0
    """Thickness of the crown over that of the sides."""
    curl: float = 0.0
    parted: bool = False
    layers: int = 3


_CUTS: dict[str, Cut] = {
    "receding": Cut(1.02, 0.55, 0.02, -0.55, 0.035, 0.6),
    "buzz": Cut(0.66, 0.36, 0.06, -0.45, 0.025),
    "short": Cut(0.64, 0.34, 0.02, -0.5, 0.075, 1.5),
    "side": Cut(0.60, 0.32, -0.06, -0.55, 0.085, 1.6, parted=True),
    "quiff": Cut(0.68, 0.38, 0.08, -0.45, 0.050, 4.2),
    "fringe": Cut(0.26, 0.10, -0.30, -0.65, 0.11, 1.2),
    "bob": Cut(0.30, 0.05, -0.90, -0.95, 0.15),
    "curtain": Cut(0.66, 0.08, -1.15, -1.3, 0.13, parted=True),
    "long": Cut(0.64, 0.26, -1.75, -1.9, 0.13, 1.1),
    "tied": Cut(0.66, 0.34, 0.0, -0.6, 0.045, 1.1),
    "curls": Cut(0.56, 0.18, -0.55, -0.8, 0.20, 1.3, curl=1.0, layers=4),
    "afro": Cut(0.60, 0.30, -0.10, -0.5, 0.34, 1.2, curl=1.6, layers=4),
}
_HATS: dict[str, Cut] = {
    "beanie": Cut(0.42, 0.30, 0.02, -0.35, 0.10, 1.3, layers=1),
    "cap": Cut(0.40, 0.34, 0.22, 0.0, 0.09, 1.4, layers=1),
    "scarf": Cut(0.62, 0.40, -1.90, -1.9, 0.10, layers=1),
    "band": Cut(0.48, 0.45, 0.35, 0.2, 0.13, layers=1),
}


def _around(cut: Cut) -> np.ndarray:
    """The height of the end in each column of the hood's texture."""
    degrees = np.abs(_degrees(np.arange(STRANDS[1]), STRANDS[1]))
    corner = max(cut.temple, cut.front - 0.10) if cut.front > 0.5 and not cut.parted else cut.front
    at = [0, 38, 62, 80, 104, 128, 180]
    heights = [cut.front, corner, cut.temple, cut.side - 0.10, cut.side + 0.04, min(cut.side, cut.back), cut.back]
    if cut.parted and cut.side < -0.5:
        heights[1] = 0.5 * (cut.front + cut.temple) - 0.06
    return np.interp(degrees, at, heights).astype(np.float32)


@lru_cache(maxsize=4)
def _strand_fields(curl: bool) -> list[np.ndarray]:
    rng = np.random.Generator(np.random.PCG64(7 + curl))
    rows, columns = STRANDS
    fields = []
    for _ in range(6):
        if curl:
            fine = cv2.GaussianBlur(rng.standard_normal(STRANDS).astype(np.float32), (0, 0), 1.2)
            coarse = cv2.resize(rng.standard_normal((24, 48)).astype(np.float32), (columns, rows))
            field = fine / fine.std() + 0.8 * coarse
        else:
            field = np.zeros(STRANDS, np.float32)
            for cells, down, share in ((640, 4, 0.7), (280, 4, 0.8), (110, 4, 0.8), (40, 3, 0.6)):
                small = rng.standard_normal((down, cells)).astype(np.float32)
                field += share * cv2.resize(small, (columns, rows), interpolation=cv2.INTER_LINEAR)
        order = field.ravel().argsort().argsort()  # even density from 0 to 1
        fields.append((order / order.size).reshape(STRANDS).astype(np.float32))
    return fields


def strands_of(person: Person) -> tuple[np.ndarray, np.ndarray]:
    """The texture of a person's hair; where it ends around the head, and how fast it grows thick from there."""
    rng = np.random.Generator(np.random.PCG64([person.seed, 1]))
    cut = _HATS.get(person.headwear) or _CUTS.get(person.cut)
    if cut is None:
        return np.ones(STRANDS, np.float32), np.full((2, STRANDS[1]), 9.0, np.float32)
    # Under a hat, hair keeps its own end below the hat's.
    cut = _CUTS.get(person.cut, cut)
    field = _strand_fields(cut.curl > 0)[int(rng.integers(6))]
    field = np.roll(field, int(rng.integers(STRANDS[1])), 1)
    wave = rng.uniform(0, 5) if cut.curl == 0 else 0.0
    rows, columns = np.meshgrid(*(np.arange(count, dtype=np.float32) for count in STRANDS), indexing="ij")
    shift = wave * np.sin(rows / rng.uniform(4, 9) + rng.uniform(0, 6))
    # Combed aside, over the forehead only: strands run down and outwards from a parting, or all to one side.
    turn = _degrees(columns, STRANDS[1])
    aside = np.clip((turn - rng.uniform(-15, 15)) / 8, -1, 1) if cut.parted else rng.choice((-1, 1))
    comb = rng.uniform(90, 190) if cut.parted else rng.uniform(0, 70)
    shift = shift + comb * aside * np.clip((78 - np.abs(turn)) / 40, 0, 1) * (rows * (4 / STRANDS[0]) - 2)
    source = (columns + shift.astype(np.float32)) % STRANDS[1]
    field = cv2.remap(field, source, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    ends = _around(cut)
    ragged = 0.04 if cut.front > 0.5 else 0.07
    jitter = rng.standard_normal(48).astype(np.float32) * ragged
    ends = ends + np.interp(np.arange(STRANDS[1]), np.linspace(0, STRANDS[1], 48), jitter).astype(np.float32) * 0.6
    around = _degrees(np.arange(STRANDS[1]), STRANDS[1])
    if cut.front < 0.5:  # a fringe to one side
        ends += np.float32(rng.uniform(-0.15, 0.15)) * np.clip(around / 40, -1, 1) * (np.abs(around) < 60)
    ends += np.float32(rng.normal(0, 0.03))
    # Hair that is combed back begins thinly over the forehead.
    is_thin = (np.abs(around) < 75) & (cut.front > 0.5) & (cut.curl == 0)
    growth = np.where(is_thin, rng.uniform(3, 6), 12.0)
    return np.ascontiguousarray(field), np.stack([ends, growth]).astype(np.float32)


def _hood(skin: np.ndarray, cut: Cut, ends: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Skin points (rows, columns, 3), offsets of the outermost hair, and heights by which hair ends."""
    rows, columns = HOOD_SHAPE
    vertices, weights = anatomy().bank.hood
    anchors = (skin[vertices] * weights[..., None]).sum(2)
    outward = anchors - np.array(HOOD_CENTRE, np.float32)
    outward /= np.linalg.norm(outward, axis=-1, keepdims=True)
    heights = anchors[..., 1].copy()
    degrees = np.abs(_degrees(np.arange(columns), columns))
    end = ends[np.arange(columns) * STRANDS[1] // columns]
    # Below the ears, hair that is long enough hangs.
    falls = (degrees > 48) & (end < -0.30)
    for column in np.flatnonzero(falls):
        leave = int(np.argmax(heights[:, column] < (0.02 if degrees[column] < 115 else -0.25)))
        depth = max(heights[leave, column] - end[column] + 0.15, 0.3)
        below = np.linspace(0, depth, rows - leave, dtype=np.float32)
        anchors[leave:, column] = anchors[leave, column] - below[:, None] * (0, 1, 0)
        anchors[leave:, column, 0] *= 1 + 0.12 * below
        outward[leave:, column] = outward[leave, column] * (1, 0.2, 1)
        heights[leave:, column] = anchors[leave:, column, 1]
    crown = np.clip((heights - 0.45) / 0.5, 0, 1)
    thick = cut.thickness * (1 + (cut.top - 1) * crown) * np.clip((heights - end[None]) / 0.30, 0.22, 1)
    small = rng.standard_normal((6, 10)).astype(np.float32)
    lumps = cv2.resize(np.concatenate([small, small[:, :1]], 1), (columns + 1, rows), interpolation=cv2.INTER_CUBIC)[
        :, :-1
    ]
    thick = thick * np.clip(1 + (0.16 + 0.12 * cut.curl) * lumps, 0.4, 1.8)
    if cut.curl:
        thick += 0.03 * cut.curl * rng.standard_normal((rows, columns)).astype(np.float32) * (thick > 0.03)
    # Hair that covers the ears stands off them.
    over_ears = (np.abs(degrees - 95) < 32)[None] & (heights < 0.30) & (end < -0.2)[None]
    thick = thick + 0.16 * over_ears
    thick = cv2.GaussianBlur(np.concatenate([thick[:, -2:], thick, thick[:, :2]], 1).astype(np.float32), (3, 3), 0.7)[
        :, 2:-2
    ]
    return anchors.astype(np.float32), (outward * thick[..., None]).astype(np.float32), heights.astype(np.float32)


@lru_cache
def _grid_triangles(rows: int, columns: int) -> np.ndarray:
    """Triangles of a grid that closes around, facing outwards."""
    row, column = np.meshgrid(np.arange(rows - 1), np.arange(columns), indexing="ij")
    here, right = row * (columns + 1) + column, row * (columns + 1) + column + 1
    below, across = here + columns + 1, right + columns + 1
    return np.concatenate([np.stack([here, below, across], -1), np.stack([here, across, right], -1)]).reshape(-1, 3)


def _layer(anchors: np.ndarray, offsets: np.ndarray, heights: np.ndarray, share: float, attribute: float) -> tuple:
    """One shell of the hood; it begins and ends behind the head, where the seam is not seen."""
    rows, columns = heights.shape
    order = (np.arange(columns + 1) + columns // 2) % columns
    points = (anchors + share * offsets)[:, order].reshape(-1, 3)
    around = np.broadcast_to(0.5 + np.arange(columns + 1) / columns, (rows, columns + 1))
    tall = heights[:, order]
    attributes = np.stack([around, tall, np.full_like(tall, attribute)], -1).reshape(-1, 3)
    return points.astype(np.float32), attributes.astype(np.float32)


def _end_at(around: np.ndarray, ends: np.ndarray) -> np.ndarray:
    return ends[np.minimum((around % 1 * len(ends)).astype(int), len(ends) - 1)]


def hair(person: Person, skin: np.ndarray, ends: np.ndarray) -> list[Mesh]:
    rng = np.random.Generator(np.random.PCG64([person.seed, 2]))
    cut = _CUTS.get(person.cut)
    meshes: list[Mesh] = []
    if cut is None or (person.headwear == "scarf"):
        return meshes
    flat = person.headwear != "none"
    anchors, offsets, heights = _hood(skin, cut, ends, rng)
    offsets = offsets * float(rng.uniform(0.8, 1.25))
    if flat:
        offsets = offsets * np.where(heights > 0.2, 0.3, 1.0)[..., None].astype(np.float32)
    triangles = _grid_triangles(*HOOD_SHAPE)
    for number in range(cut.layers):
        share = (number + 1) / cut.layers
        points, attributes = _layer(anchors, offsets, heights, share, number / max(cut.layers - 1, 1))
        seen = attributes[:, 1] > _end_at(attributes[:, 0], ends) - 0.25
        kept = triangles[seen[triangles].any(1)]
        meshes.append(Mesh(points, kept, attributes, HAIR, np.float32(person.hair)))
    if person.cut == "tied" and rng.random() < 0.5:
        meshes.append(_ball(np.array((0, 1.22, -0.95)), 0.30 * rng.uniform(0.9, 1.1, 3), HAIR, person.hair))
    return meshes


def _ball(centre: np.ndarray, radii: np.ndarray | float, material: int, colour: Colour) -> Mesh:
    down, around = np.meshgrid(np.linspace(0, np.pi, 10), np.arange(17) * 2 * np.pi / 16, indexing="ij")
    rays = np.stack([np.sin(down) * np.sin(around), np.cos(down), np.sin(down) * np.cos(around)], -1)
    points = (centre + radii * rays).reshape(-1, 3).astype(np.float32)
    attributes = np.stack([around / 6.3, np.full_like(around, 1.5) + 0.3 * np.cos(down), np.zeros_like(around)], -1)
    attributes = attributes.reshape(-1, 3).astype(np.float32)
    return Mesh(points, _grid_triangles(10, 16), attributes, material, np.float32(colour))


def headwear(person: Person, skin: np.ndarray) -> list[Mesh]:
    hat = _HATS.get(person.headwear)
    if hat is None:
        return []
    rng = np.random.Generator(np.random.PCG64([person.seed, 3]))
    ends = _around(hat)
    anchors, offsets, heights = _hood(skin, hat, ends, rng)
    points, attributes = _layer(anchors, offsets, heights, 1.0, 0.0)
    grid = points.reshape(HOOD_SHAPE[0], -1, 3)
    low, tall = (values.reshape(grid.shape[:2]) for values in (_end_at(attributes[:, 0], ends), attributes[:, 1]))
    edge = _cut_off(grid, tall, low[0])
    if person.headwear == "band":
        _cut_off(grid[::-1], -tall[::-1], -low[0] - 0.35)
    meshes = [Mesh(points, _grid_triangles(*HOOD_SHAPE), attributes, CLOTH, np.float32(person.fabric))]
    if person.headwear == "cap":
        meshes.append(_brim(edge, person))
    return meshes


def _cut_off(grid: np.ndarray, heights: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Draws all rows below a height of each column onto it; the edge (columns, 3)."""
    columns = np.arange(grid.shape[1])
    last = np.clip((heights <= low).argmax(0) - 1, 0, None)
    last = np.where((heights > low).all(0), len(grid) - 2, last)
    above, below = heights[last, columns], heights[last + 1, columns]
    share = np.clip((above - low) / np.maximum(above - below, 1e-6), 0, 1)[:, None]
    edge = grid[last, columns] * (1 - share) + grid[last + 1, columns] * share
    is_below = np.arange(len(grid))[:, None] > last
    grid[is_below] = np.broadcast_to(edge, grid.shape)[is_below]
    return edge


def _brim(edge: np.ndarray, person: Person) -> Mesh:
    columns = np.arange(-10, 11) + HOOD_SHAPE[1] // 2
    edge = edge[columns]
    share = np.cos(np.linspace(-1, 1, len(columns)) * np.pi / 2)[:, None]
    tip = edge + share * np.array((0.0, -0.10, 0.62))
    triangles = _strip_triangles(len(columns))
    return _plain(np.concatenate([edge, tip]), triangles, CLOTH, np.float32(person.fabric) * 0.8)


def _strip_triangles(count: int, closed: bool = False) -> np.ndarray:
    """Triangles between two lines of so many points."""
    here = np.arange(count if closed else count - 1)
    after = (here + 1) % count
    lower, upper = np.stack([here, here + count, after], 1), np.stack([after, here + count, after + count], 1)
    return np.concatenate([lower, upper])


def _ribbon(line: np.ndarray, width: float, across: np.ndarray, colour: Colour, closed: bool = False) -> Mesh:
    """A flat shining band along a line of points."""
    points = np.concatenate([line - across * width / 2, line + across * width / 2])
    return _plain(points, _strip_triangles(len(line), closed), GLOSS, colour)


def glasses(person: Person, skin: np.ndarray) -> list[Mesh]:
    if person.eyewear == "none":
        return []
    rng, body = np.random.Generator(np.random.PCG64([person.seed, 4])), anatomy()
    eyes = [skin[vertices].mean(0) for vertices in body.eye_vertices]
    bridge = skin[body.bank.landmarks[0][27]].mean(0)
    half_width, half_height = rng.uniform(0.215, 0.27), rng.uniform(0.14, 0.22)
    square, width = rng.uniform(2, 4), {"thin": 0.016, "thick": 0.045, "sunglasses": 0.04}[person.eyewear]
    angle = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    unit = np.stack([np.cos(angle), np.sin(angle)], 1)
    unit = np.sign(unit) * np.abs(unit) ** (2 / square)
    front = max(eyes[0][2], bridge[2] - 0.12) + 0.24
    up, meshes, ends = np.array((0, 1.0, 0)), [], []
    for sign, eye in zip((1, -1), eyes, strict=True):
        centre = np.array((sign * max(abs(eye[0]), half_width + 0.055), eye[1] - 0.035))
        rim = np.concatenate([centre + unit * (half_width, half_height), np.full((28, 1), front)], 1)
        rim[:, 2] -= 0.22 * (rim[:, 0] ** 2)
        normal = np.concatenate([unit / np.linalg.norm(unit, axis=1, keepdims=True), np.zeros((28, 1))], 1)
        meshes.append(_ribbon(rim, width, normal, person.frame, closed=True))
        outer, inner = rim[0 if sign > 0 else 14], rim[14 if sign > 0 else 0]
        ends.append(inner + np.array((0, 0.03, 0)))
        temple = np.linspace(outer, np.array((sign * 0.76, outer[1] + 0.02, -0.72)), 6)
        meshes.append(_ribbon(temple, max(width, 0.02), up, person.frame))
        if person.eyewear == "sunglasses":
            here, fan = np.arange(28), np.concatenate([rim, rim.mean(0, keepdims=True)])
            triangles = np.stack([here, (here + 1) % 28, np.full(28, 28)], 1)
            meshes.append(_plain(fan, triangles, GLOSS, (0.012, 0.012, 0.014)))
    middle = (ends[0] + ends[1]) / 2 + (0, 0.015, 0.02)
    return [*meshes, _ribbon(np.stack([ends[0], middle, ends[1]]), width, up, person.frame)]


def earrings(person: Person, skin: np.ndarray) -> list[Mesh]:
    """A stud, a hoop or a drop at both lobes, of gold or silver."""
    if person.earrings == "none":
        return []
    rng, meshes = np.random.Generator(np.random.PCG64([person.seed, 5])), []
    metal = ((0.75, 0.52, 0.18), (0.62, 0.62, 0.64))[int(rng.integers(2))]
    radius, angle = rng.uniform(0.06, 0.15), np.linspace(0, 2 * np.pi, 20, endpoint=False)
    for lobe in skin[list(anatomy().lobes)]:
        outside = lobe + np.array((0.02 * np.sign(lobe[0]), 0.03, 0.02))
        if person.earrings == "hoop":
            unit = np.stack([0 * angle, np.sin(angle), np.cos(angle)], 1)
            ring = outside - (0, radius, 0) + radius * unit
            meshes += [_ribbon(ring, 0.022, across, metal, closed=True) for across in (np.array((1.0, 0, 0)), unit)]
        else:
            meshes.append(_ball(outside, 0.026, GLOSS, metal))
        if person.earrings == "drop":
            size = radius * np.array((0.25, 0.6, 0.25))
            meshes.append(_ball(outside - (0, 0.04 + size[1], 0), size, GLOSS, person.fabric))
    return meshes


def mask(skin: np.ndarray, normals: np.ndarray, colour: np.ndarray) -> Mesh:
    """A cloth over nose, mouth and chin: the skin there, moved outwards and smoothed."""
    body = anatomy()
    mean = body.bank.mean
    triangles = body.bank.triangles[body.bank.parts == 0]
    x, y = np.abs(mean[:, 0]), mean[:, 1]
    inside = (y < -0.20 - 0.25 * x) & (y > -1.13) & (x < 0.62) & (mean[:, 2] > -0.35)
    kept = triangles[inside[triangles].all(1)]
    points = skin + normals * 0.06
    tent = np.interp(y, (-1.1, -0.95, -0.5, -0.2), (0.28, 0.36, 0.48, 0.30)) - 0.9 * x**2
    points[:, 2] = np.where(inside, np.maximum(points[:, 2], tent), points[:, 2])
    return _plain(points, kept, CLOTH, colour)


__all__ = ["STRANDS", "Mesh", "earrings", "glasses", "hair", "headwear", "mask", "strands_of"]
