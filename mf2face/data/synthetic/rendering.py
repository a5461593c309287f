"""Renders a person: shapes, projection, shadows, shading, then the camera. A pure function of its arguments.

The same machine gives the same bytes. Another processor, or another version of numba or OpenCV, may round sums
otherwise, which moves a grey level here and there, and on an edge a pixel.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np

from mf2face.data.synthetic.actions import RENDERED_AUS, add_gaze, add_habits, fold_weights, shape_weights
from mf2face.data.synthetic.anatomy import CHART, anatomy
from mf2face.data.synthetic.bank import PARTS
from mf2face.data.synthetic.people import MEAN_ARCH, Person
from mf2face.data.synthetic.places import Shot, finish, occlude, occluded
from mf2face.data.synthetic.raster import LASHES, SKIN, add_folds, moved_points, rasterize, shade, vertex_normals
from mf2face.data.synthetic.skin import brow_line, paint_skin
from mf2face.data.synthetic.worn import Mesh, earrings, glasses, hair, headwear, mask, strands_of


SEEN = ("background", "skin", "lips", "eyes", "mouth", "hair", "worn", "clothes", "occluder")
"""Values of `Truth.parts`."""
_SHADOW_SIDE = 192
_SHADOW_WIDTH = 3.6
"""Pixels and decimetres of the shadow map."""


@dataclass(frozen=True)
class Truth:
    """What only a renderer knows of an image."""

    parts: np.ndarray
    """(size, size), indices of SEEN."""
    depth: np.ndarray
    """(size, size), decimetres nearer than the eyes; NaN behind everything."""
    normals: np.ndarray
    """(size, size, 3), x to the right, y up, z to the camera."""
    visibility: np.ndarray
    """(68,): whether each landmark is seen."""
    gaze: tuple[float, float]
    """Radians, in the camera's frame: to the image's right, and up."""
    pose: tuple[float, float, float]
    """Pitch, yaw, roll in degrees."""
    sides: np.ndarray
    """(RENDERED_AUS, 2) intensities from 0 to 5, the person's left and right."""


class Sitter:
    """A person made ready to be rendered many times: head, skin, hair and what is worn."""

    def __init__(self, person: Person, size: int):
        bank = anatomy().bank
        self.person = person
        names, offsets = anatomy().shapes
        brows = [names[f"frontalis_{part}{side}"] for part in ("inner", "outer") for side in ("Left", "Right")]
        self.points = bank.mean + np.tensordot(person.head, bank.components, 1).astype(np.float32)
        self.points -= np.float32(person.brow_rest) * offsets[brows].sum(0)
        self.strands, self.ends = strands_of(person)
        texture, relief = paint_skin(person, self.ends[0])
        if size <= 160:
            half = CHART[1] // 2, CHART[0] // 2
            texture = cv2.resize(texture, half, interpolation=cv2.INTER_AREA)
            relief = cv2.resize(relief, half, interpolation=cv2.INTER_AREA)
        self.texture, self.relief = np.ascontiguousarray(texture), np.ascontiguousarray(relief)
        self.folds = _folds(self.relief.shape)
        accessories = [made for make in (headwear, glasses, earrings) for made in make(person, self.points)]
        self.worn = [self._body(), *hair(person, self.points, self.ends[0]), *accessories]
        self.mesh = joined(self.worn)
        across = (np.abs(bank.mean[bank.landmarks[0][17:27], 0]) * bank.landmarks[1][17:27]).sum(1)
        along = np.clip((across - 0.075) / 0.46, 0, 1)
        usual = replace(person, brow_height=0.0, brow_arch=MEAN_ARCH)
        self.brows = brow_line(person, along)[1] - brow_line(usual, along)[1]
        landmarks = self.landmarks(self.points)
        eyes, mouth = landmarks[[36, 39, 42, 45]].mean(0), landmarks[[48, 54]].mean(0)
        across = np.linalg.norm(landmarks[45] - landmarks[36])
        # The width of an aligned crop of this face, in decimetres.
        self.crop = float(0.5 * (across / 0.47 + np.linalg.norm(eyes - mouth) / 0.337))
        self.middle = ((eyes + mouth) / 2 - (0, 0, 0.35)).astype(np.float32)

    def landmarks(self, points: np.ndarray) -> np.ndarray:
        """(68, 3): the bank's, and brows where the person's are painted."""
        vertices, weights = anatomy().bank.landmarks
        found = (points[vertices] * weights[..., None]).sum(1)
        found[17:27, 1] += self.brows
        return found

    def _body(self) -> Mesh:
        bank, person = anatomy().bank, self.person
        attributes = anatomy().attributes.copy()
        attributes[np.unique(bank.triangles[bank.parts == PARTS.index("lashes")]), 2] = person.lashes
        colours = np.zeros((len(bank.triangles), 3), np.float32)
        own = {"skin": person.clothes, "eye": person.iris, "teeth": person.teeth, "lashes": (0.02, 0.02, 0.02)}
        for part, colour in own.items():
            colours[bank.parts == PARTS.index(part)] = colour
        return Mesh(self.points, bank.triangles, attributes, bank.parts, colours)

    def with_mask(self, points: np.ndarray) -> list[Mesh]:
        normals = np.empty_like(points)
        vertex_normals(points, anatomy().bank.triangles, normals)
        tint = np.float32((0.45, 0.62, 0.72)) if self.person.seed % 3 else np.float32(self.person.fabric)
        return [*self.worn, mask(points, normals, tint)]


class Joined(NamedTuple):
    """Several meshes as one; `points` begin with those of the body, which each frame puts in anew."""

    points: np.ndarray
    triangles: np.ndarray
    materials: np.ndarray
    attributes: np.ndarray
    colours: np.ndarray
    casters: tuple[np.ndarray, np.ndarray]
    """Triangles that cast shadows, and their materials: those in the mouth and of the eyes need not."""


def joined(meshes: list[Mesh]) -> Joined:
    starts = np.cumsum([0, *(len(mesh.points) for mesh in meshes[:-1])])
    counts = [len(mesh.triangles) for mesh in meshes]
    every = list(zip(meshes, counts, strict=True))
    materials = np.concatenate([np.broadcast_to(mesh.material, count) for mesh, count in every]).astype(np.int32)
    triangles = np.concatenate([mesh.triangles + start for mesh, start in zip(meshes, starts, strict=True)])
    triangles, casts = triangles.astype(np.int32), (materials == SKIN) | (materials > LASHES)
    return Joined(
        np.concatenate([mesh.points for mesh in meshes]).astype(np.float32),
        triangles,
        materials,
        np.concatenate([mesh.attributes for mesh in meshes]).astype(np.float32),
        np.concatenate([np.broadcast_to(mesh.colour, (count, 3)) for mesh, count in every]).astype(np.float32),
        (triangles[casts], materials[casts]),
    )


_FOLDS: dict[tuple[int, ...], np.ndarray] = {}


def _folds(shape: tuple[int, ...]) -> np.ndarray:
    """The fold maps in the size of a relief."""
    if shape not in _FOLDS:
        maps = anatomy().fold_maps
        if maps.shape[1:] != shape:
            maps = np.stack([cv2.resize(fold, shape[::-1], interpolation=cv2.INTER_AREA) for fold in maps])
        _FOLDS[shape] = np.ascontiguousarray(maps)
    return _FOLDS[shape]


def rotation(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """From the head's axes to the camera's: x to the image's right, y up, z to the camera."""
    cy, sy, cp, sp, cr, sr = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch), np.cos(roll), np.sin(roll)
    turn = np.array(((cy, 0, sy), (0, 1, 0), (-sy, 0, cy)))
    nod = np.array(((1, 0, 0), (0, cp, sp), (0, -sp, cp)))
    lean = np.array(((cr, sr, 0), (-sr, cr, 0), (0, 0, 1)))
    return (lean @ nod @ turn).astype(np.float32)


def _shaped(sitter: Sitter, sides: np.ndarray, gaze: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """The head's points with an expression on it."""
    body, person = anatomy(), sitter.person
    names, offsets = body.shapes
    weights = shape_weights(sides)
    add_habits(weights, rng)
    add_gaze(weights, gaze)
    droop = person.lid_droop
    for side in ("Left", "Right"):
        weights[names[f"eye{'Blink' if droop > 0 else 'Wide'}{side}"]] += abs(droop)
    chosen = np.flatnonzero(np.abs(weights) > 1e-4)
    points = np.empty_like(sitter.points)
    moved_points(sitter.points, offsets[chosen], weights[chosen].astype(np.float32), points)
    # At rest the bank's teeth stand in the lips.
    points[body.upper_teeth] += np.float32((0, -0.02, -0.07))
    points[body.lower_teeth] += np.float32((0, -0.05, -0.09))
    lips = sitter.landmarks(points)
    if (lips[[61, 62, 63], 1] - lips[[67, 66, 65], 1]).max() < 0.045:  # closed lips hide what lies behind them
        points[body.behind_lips] = np.float32((0, -0.7, -0.6))
    else:  # teeth end before the corners of the mouth
        low, high = lips[60, 0] + np.float32(0.02), lips[64, 0] - np.float32(0.02)
        points[body.behind_lips, 0] = np.clip(points[body.behind_lips, 0], low, high)
    return points


def _occlusion(depth: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """How open each pixel is to the light around, by what stands nearer beside it."""
    side = len(depth)
    lowest = depth[seen].min() if seen.any() else 0.0
    filled = np.where(seen, depth, lowest).astype(np.float32)
    small = cv2.resize(filled, (side // 4, side // 4), interpolation=cv2.INTER_AREA)
    dark = np.zeros_like(filled)
    for sigma, strength in ((1.3, 3.2), (3.5, 1.3)):
        around = cv2.resize(
            cv2.GaussianBlur(small, (0, 0), sigma * side / 168), (side, side), interpolation=cv2.INTER_LINEAR
        )
        dark += np.float32(0.45) * np.clip((around - filled) * np.float32(strength), 0, 1)
    return np.clip(1 - dark, 0.12, 1).astype(np.float32)


def _light(points: np.ndarray, mesh: Joined, sitter: Sitter, shot: Shot) -> tuple[np.ndarray, ...]:
    """Light directions, colours, ambient; axes, map and numbers of the first light's shadow."""
    lights = np.array(shot.lights, np.float32)
    lights /= np.linalg.norm(lights, axis=1, keepdims=True)
    first = lights[0]
    across = np.cross((0, 1, 0.01), first)
    across /= np.linalg.norm(across)
    axes = np.stack([across, np.cross(first, across), first]).astype(np.float32)
    seen = points @ axes.T
    scale, centre = _SHADOW_SIDE / _SHADOW_WIDTH, _SHADOW_SIDE / 2
    shadow = np.empty((_SHADOW_SIDE, _SHADOW_SIDE), np.float32)
    faces, weights = np.empty(shadow.shape, np.int32), np.empty((*shadow.shape, 2), np.float32)
    flat = np.ascontiguousarray(seen[:, :2] * np.float32(scale) + np.float32(centre))
    rasterize(
        *(flat, np.ascontiguousarray(seen[:, 2]), *mesh.casters),
        *(mesh.attributes, sitter.strands, sitter.ends, False, shadow, faces, weights),
    )
    numbers = np.array((scale, centre, 0.045, max(shot.shadow_blur, 1.2)), np.float32)
    colours, ambient = np.array(shot.light_colours, np.float32), np.array(shot.ambient, np.float32)
    return lights, colours, ambient, axes, shadow, numbers


def _placed(points: np.ndarray, sitter: Sitter, shot: Shot) -> tuple[np.ndarray, np.ndarray]:
    """Points in the camera's axes, and the head's rotation; the shoulders follow the head by a third."""
    head = rotation(shot.yaw, shot.pitch, shot.roll)
    trunk = rotation(shot.yaw * 0.35, shot.pitch * 0.2, shot.roll * 0.35)
    follows = np.clip((points[:, 1:2] + np.float32(1.95)) * np.float32(2), 0, 1)
    points = points - sitter.middle
    placed = points @ head.T * follows + points @ trunk.T * (1 - follows)
    return np.ascontiguousarray(placed, dtype=np.float32), head


def render_face(
    sitter: Sitter,
    action_units: Mapping[str, float] | np.ndarray,
    shot: Shot,
    size: int = 112,
    *,
    gaze: tuple[float, float] = (0.0, 0.0),
    habits: np.random.Generator | None = None,
    with_truth: bool = False,
) -> tuple[np.ndarray, np.ndarray, Truth | None]:
    """RGB pixels, the exact 68 landmarks in pixels (the first pixel spans 0 to 1) and, if asked for, what else is true.

    action_units: strengths from 0 to 1 by name, or an array (RENDERED_AUS, 2) of the person's left and right side.
    gaze: radians to the person's left, and up. habits: what the face does that means nothing.
    """
    sides, person = _sides(action_units), sitter.person
    habits = habits if habits is not None else np.random.Generator(np.random.PCG64(0))
    shaped = _shaped(sitter, sides, gaze, habits)
    mesh = joined(sitter.with_mask(shaped)) if shot.is_masked else sitter.mesh
    points, head = _placed(np.concatenate([shaped, mesh.points[len(shaped) :]]), sitter, shot)

    side = round(size * (1.8 if size <= 160 else 1.5))
    focal = shot.scale * side / sitter.crop * shot.distance
    centre = np.array((0.5 + shot.shift[0], 0.5535 + shot.shift[1])) * side - 0.5

    def project(at: np.ndarray) -> np.ndarray:
        away = np.float32(focal) / (np.float32(shot.distance) - at[:, 2:])
        return np.ascontiguousarray(at[:, :2] * away * (1, -1) + centre, dtype=np.float32)

    depth, faces = np.empty((side, side), np.float32), np.empty((side, side), np.int32)
    weights = np.zeros((side, side, 2), np.float32)
    rasterize(
        *(project(points), np.ascontiguousarray(points[:, 2]), mesh.triangles, mesh.materials, mesh.attributes),
        *(sitter.strands, sitter.ends, True, depth, faces, weights),
    )
    normals = np.empty_like(points)
    vertex_normals(points, mesh.triangles, normals)
    seen, linear = faces >= 0, np.zeros((side, side, 3), np.float32)
    shade(
        (mesh.triangles, mesh.materials, points, normals, mesh.attributes, mesh.colours),
        (faces, weights, _occlusion(depth, seen)),
        (sitter.texture, _folded(sitter, sides)),
        *(sitter.strands, head, _light(points, mesh, sitter, shot)),
        np.stack([points[vertices].mean(0) for vertices in anatomy().eye_vertices]).astype(np.float32),
        *(_gaze_axes(gaze, head), _face_numbers(person, sitter.relief), linear),
    )
    landmarks_at = (sitter.landmarks(shaped) - sitter.middle) @ head.T
    landmarks = (project(landmarks_at) + np.float32(0.5)) * np.float32(size / side)
    pixels = finish(_developed(linear, seen, person, shot, size), shot)
    truth = None
    if with_truth:
        buffers = faces, depth, normals, weights
        seen_truth = _truth(buffers, mesh, (landmarks_at, landmarks), person, shot, size)
        x, y, z = _gaze_axes(gaze, head).mean(0).tolist()
        looks = float(np.arctan2(x, z)), float(np.arctan2(y, np.hypot(x, z)))
        pose = tuple(np.degrees((shot.pitch, shot.yaw, shot.roll)).tolist())
        truth = Truth(*seen_truth, looks, pose, np.round(sides * 5, 2))
    return pixels, landmarks.astype(np.float32), truth


def _folded(sitter: Sitter, sides: np.ndarray) -> np.ndarray:
    """The skin's relief with the expression's folds."""
    relief = np.empty_like(sitter.relief)
    folds = fold_weights(sides) * np.float32(sitter.person.wrinkles)
    chosen = np.flatnonzero(folds > 0.02).astype(np.int32)
    add_folds(sitter.relief, sitter.folds, chosen, folds[chosen].astype(np.float32), relief)
    return relief


def _sides(action_units: Mapping[str, float] | np.ndarray) -> np.ndarray:
    if not isinstance(action_units, np.ndarray):
        if unknown := [name for name in action_units if name not in RENDERED_AUS]:
            raise ValueError(f"action_units: got {unknown}, expected AUs that can be rendered: {list(RENDERED_AUS)}")
        action_units = np.repeat([[action_units.get(name, 0.0)] for name in RENDERED_AUS], 2, 1)
    return np.clip(action_units, 0, 1).astype(np.float32)


def _gaze_axes(gaze: tuple[float, float], head: np.ndarray) -> np.ndarray:
    """Where each eye looks, in the camera's axes; both meet a little before the infinite."""
    axes = []
    for converge in (-0.04, 0.04):
        left, up = gaze[0] + converge, gaze[1]
        axes.append((np.sin(left) * np.cos(up), np.sin(up), np.cos(left) * np.cos(up)))
    return np.ascontiguousarray(np.array(axes) @ head.T, dtype=np.float32)


def _face_numbers(person: Person, relief: np.ndarray) -> tuple[np.float32, ...]:
    """In the order of FACE_NUMBERS."""
    rows_per_decimetre = relief.shape[0] / 2.8
    numbers = (2.2, 0.10 + 0.40 * person.shine, 0.030 * rows_per_decimetre, 0.19, 0.62)
    return tuple(map(np.float32, (*numbers, person.collar, person.neckline, 1.1)))


def _developed(linear: np.ndarray, seen: np.ndarray, person: Person, shot: Shot, size: int) -> np.ndarray:
    """Linear light -> RGB from 0 to 1 at the image's size, over the background."""
    small = cv2.resize(linear, (size, size), interpolation=cv2.INTER_AREA)
    alpha = cv2.resize(seen.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)[..., None]
    middle = small[size // 4 : size * 4 // 5, size // 4 : size * 3 // 4].mean(-1)
    middle = middle[middle > 0.002]
    place = int(0.7 * len(middle))
    bright = float(np.partition(middle, place)[place]) if len(middle) else 0.5
    skin = float(np.mean(person.skin))
    target = (0.10 + 0.55 * skin) * 2.0**shot.exposure
    colour = small / np.maximum(alpha, 1e-3) * np.float32(target / max(bright, 1e-3)) * np.float32(shot.balance)
    # A shoulder instead of clipping.
    colour = np.where(colour > 0.55, 0.55 + (colour - 0.55) / (1 + 1.1 * (colour - 0.55)), np.maximum(colour, 0))
    colour = np.clip(colour, 0, 1) ** np.float32(1 / 2.2)
    colour = np.clip(0.5 + (colour - 0.5) * np.float32(shot.contrast), 0, 1)
    behind = cv2.resize(shot.background, (size, size), interpolation=cv2.INTER_LINEAR)
    image = (colour * alpha + behind * (1 - alpha)).astype(np.float32)
    if shot.occluder:
        hand = np.clip(np.float32(person.skin) / skin * np.float32(target) * np.float32(shot.balance), 0, 1)
        image = occlude(image, shot, hand ** np.float32(1 / 2.2))
    return image


def _truth(
    buffers: tuple, mesh: Joined, points: tuple[np.ndarray, np.ndarray], person: Person, shot: Shot, size: int
) -> tuple[np.ndarray, ...]:
    """Parts, depth, normals and visibility. points: landmarks in the camera's axes, and in pixels."""
    (faces, depth, normals, weights), (landmarks_at, landmarks) = buffers, points
    side = len(faces)
    rows = np.minimum(((np.arange(size) + 0.5) * side / size).astype(int), side - 1)
    at = np.ix_(rows, rows)
    faces, deep = faces[at], np.where(faces[at] >= 0, depth[at], np.nan)
    of_material = np.array([1, 4, 3, 4, 4, 3, 5, 6, 6])
    parts = np.where(faces >= 0, of_material[mesh.materials[faces]], 0)
    share = np.concatenate([weights[at], 1 - weights[at].sum(-1, keepdims=True)], -1)[..., None]
    corners = mesh.triangles[faces]
    lips = np.zeros(len(normals), np.float32)
    lips[: len(anatomy().bank.lips)] = anatomy().bank.lips
    parts[(parts == 1) & ((lips[corners] * share[..., 0]).sum(-1) > 0.4)] = 2
    across, down = (mesh.attributes[:, k][corners] * share[..., 0] for k in (0, 1))
    is_cloth = down.sum(-1) > person.collar + person.neckline * np.abs(across.sum(-1) - 0.5)
    parts[(parts == 1) & is_cloth] = 7
    parts[occluded(shot, size)] = 8
    facing = (normals[corners] * share).sum(2)
    facing = np.where((faces >= 0)[..., None], facing / (np.linalg.norm(facing, axis=-1, keepdims=True) + 1e-9), 0)
    column, row = np.floor(landmarks).astype(int).T
    inside = (column >= 0) & (row >= 0) & (column < size) & (row < size)
    column, row = np.clip(column, 0, size - 1), np.clip(row, 0, size - 1)
    near = np.nan_to_num(deep[row, column], nan=-9) < landmarks_at[:, 2] + 0.12
    visible = inside & near & ~np.isin(parts[row, column], (6, 8))
    return parts.astype(np.uint8), deep.astype(np.float16), facing.astype(np.float16), visible


__all__ = ["SEEN", "Sitter", "Truth", "render_face", "rotation"]
