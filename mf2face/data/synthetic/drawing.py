"""Plain drawn faces, made in milliseconds and without a bank: for tests, where images need to be quick, not real.

Fixed-point polygons and integer filters: the same parameters give the same bytes on every machine.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import cv2
import numpy as np

from configuration_mf2.facs import CANONICAL_FACE, LANDMARK_MIRROR


Colour = tuple[int, int, int]
DRAWABLE_AUS: tuple[str, ...] = tuple(f"AU{i}" for i in (1, 2, 4, 6, 7, 9, 10, 12, 14, 15, 17, 23, 24, 25, 26))

# Folds of the image's left half, in fractions of the aligned crop: cause, three points, width, depth (dark below 0).
# One whose middle lies on x = 0.5 has no mirror image.
_LEFT_FOLDS = (
    ("rest", (0.462, 0.400), (0.470, 0.470), (0.452, 0.540), 0.020, -0.16),
    ("rest", (0.428, 0.560), (0.420, 0.584), (0.438, 0.600), 0.008, -0.40),
    ("age", (0.330, 0.190), (0.420, 0.182), (0.499, 0.188), 0.007, -0.45),
    ("age", (0.412, 0.595), (0.368, 0.640), (0.345, 0.695), 0.010, -0.50),
    ("AU1", (0.352, 0.222), (0.425, 0.198), (0.492, 0.208), 0.012, -0.75),
    ("AU1", (0.372, 0.186), (0.430, 0.164), (0.494, 0.172), 0.010, -0.65),
    ("AU2", (0.196, 0.262), (0.238, 0.226), (0.300, 0.222), 0.012, -0.75),
    ("AU2", (0.206, 0.228), (0.248, 0.190), (0.306, 0.188), 0.010, -0.65),
    ("AU4", (0.462, 0.275), (0.470, 0.308), (0.463, 0.345), 0.013, -0.65),
    ("AU4", (0.260, 0.322), (0.325, 0.312), (0.400, 0.335), 0.034, -0.60),
    ("AU6", (0.228, 0.378), (0.205, 0.366), (0.180, 0.344), 0.009, -0.70),
    ("AU6", (0.230, 0.406), (0.208, 0.416), (0.184, 0.424), 0.009, -0.70),
    ("AU6", (0.250, 0.462), (0.310, 0.486), (0.390, 0.462), 0.012, -0.55),
    ("AU6", (0.225, 0.545), (0.285, 0.610), (0.375, 0.595), 0.030, -0.42),
    ("AU7", (0.280, 0.412), (0.340, 0.424), (0.405, 0.406), 0.011, -0.85),
    ("AU7", (0.275, 0.362), (0.340, 0.346), (0.405, 0.366), 0.016, -0.60),
    ("AU9", (0.472, 0.470), (0.447, 0.474), (0.420, 0.496), 0.011, -0.75),
    ("AU9", (0.474, 0.496), (0.446, 0.502), (0.416, 0.524), 0.011, -0.75),
    ("AU9", (0.468, 0.398), (0.500, 0.404), (0.532, 0.398), 0.010, -0.65),
    ("AU10", (0.424, 0.590), (0.400, 0.618), (0.402, 0.660), 0.016, -0.75),
    ("AU10", (0.478, 0.625), (0.470, 0.640), (0.462, 0.662), 0.014, -0.65),
    ("AU12", (0.352, 0.628), (0.336, 0.670), (0.338, 0.730), 0.013, -0.80),
    ("AU12", (0.300, 0.640), (0.295, 0.690), (0.310, 0.740), 0.040, 0.30),
    ("AU14", (0.345, 0.688), (0.336, 0.718), (0.346, 0.752), 0.018, -1.00),
    ("AU14", (0.318, 0.690), (0.308, 0.720), (0.318, 0.750), 0.026, 0.40),
    ("AU15", (0.362, 0.740), (0.340, 0.770), (0.338, 0.808), 0.015, -0.85),
    ("AU15", (0.310, 0.740), (0.300, 0.775), (0.305, 0.810), 0.024, 0.30),
    ("AU17", (0.430, 0.830), (0.500, 0.810), (0.570, 0.830), 0.016, -0.75),
    ("AU17", (0.455, 0.842), (0.462, 0.848), (0.470, 0.845), 0.012, -0.75),
    ("AU17", (0.448, 0.870), (0.456, 0.876), (0.464, 0.872), 0.012, -0.75),
    ("AU23", (0.478, 0.662), (0.480, 0.690), (0.480, 0.718), 0.007, -0.62),
    ("AU23", (0.446, 0.668), (0.452, 0.694), (0.456, 0.718), 0.007, -0.62),
    ("AU23", (0.480, 0.738), (0.480, 0.765), (0.478, 0.800), 0.007, -0.62),
    ("AU24", (0.405, 0.675), (0.500, 0.662), (0.595, 0.675), 0.028, 0.40),
    ("AU24", (0.425, 0.806), (0.500, 0.814), (0.575, 0.806), 0.022, -0.50),
    ("AU24", (0.385, 0.722), (0.500, 0.727), (0.615, 0.722), 0.018, -0.75),
    ("AU26", (0.412, 0.800), (0.404, 0.845), (0.425, 0.885), 0.024, -0.42),
    ("AU26", (0.345, 0.700), (0.330, 0.760), (0.350, 0.830), 0.036, -0.26),
)  # fmt: skip
# How far each landmark goes at full strength; one inner-ocular distance is 0.16.
_AU_OFFSETS: dict[str, dict[int, tuple[float, float]]] = {
    "AU1": {21: (-0.002, -0.046), 20: (0, -0.030), 19: (0, -0.008)},
    "AU2": {17: (0, -0.026), 18: (0, -0.044), 19: (0, -0.036), 20: (0, -0.010)},
    "AU4": {21: (0.024, 0.034), 20: (0.020, 0.032), 19: (0.012, 0.030), 18: (0.006, 0.018), 38: (0, 0.005)},
    "AU6": {41: (0, -0.006), 40: (0, -0.004), 36: (0.003, 0)},
    "AU7": {37: (0, 0.010), 38: (0, 0.010), 40: (0, -0.012), 41: (0, -0.013)},
    "AU9": {31: (-0.005, -0.018), 32: (-0.002, -0.012), 33: (0, -0.010), 30: (0, -0.008), 21: (0.003, 0.008)},
    "AU10": {49: (-0.008, -0.018), 50: (-0.010, -0.036), 51: (0, -0.022), 61: (-0.002, -0.012), 62: (0, -0.008)},
    "AU12": {
        **{48: (-0.046, -0.038), 60: (-0.043, -0.035), 49: (-0.024, -0.012), 59: (-0.024, -0.008), 57: (0, 0.006)},
        **{58: (-0.006, 0.006), 61: (-0.008, 0.005), 67: (-0.008, 0.005), 62: (0, 0.006), 66: (0, 0.006)},
    },
    "AU14": {48: (-0.014, -0.002), 60: (-0.016, -0.002), 49: (-0.004, 0.003), 59: (-0.004, -0.003)},
    "AU15": {48: (-0.002, 0.044), 60: (-0.002, 0.040), 49: (0, 0.014), 59: (-0.004, 0.022)},
    "AU17": {
        **{57: (0, -0.016), 58: (0, -0.016), 59: (0, -0.006), 66: (0, -0.010), 67: (0, -0.010), 62: (0, -0.010)},
        **{61: (0, -0.010), 51: (0, -0.006), 50: (0, -0.006), 8: (0, -0.020), 7: (0, -0.016), 6: (0, -0.008)},
    },
    "AU23": {
        **{48: (0.034, 0), 60: (0.034, 0), 49: (0.018, 0.006), 59: (0.018, -0.008), 50: (0.006, 0.008), 51: (0, 0.006)},
        **{57: (0, -0.013), 58: (0.008, -0.013), 61: (0.008, 0), 67: (0.008, 0)},
    },
    "AU24": {
        **{49: (-0.004, 0.016), 50: (0, 0.030), 51: (0, 0.028), 57: (0, -0.038), 58: (0, -0.036), 59: (-0.004, -0.020)},
        **{48: (-0.012, 0), 60: (-0.012, 0)},
    },
    "AU25": {
        **{61: (0, -0.013), 62: (0, -0.014), 50: (0, -0.007), 51: (0, -0.007), 67: (0, 0.034), 66: (0, 0.037)},
        **{58: (0, 0.028), 57: (0, 0.030), 59: (0, 0.016)},
    },
    "AU26": {
        **{8: (0, 0.066), 7: (0, 0.064), 6: (0.002, 0.056), 5: (0.004, 0.040), 4: (0.004, 0.020), 57: (0, 0.022)},
        **{58: (0, 0.020), 59: (0.002, 0.012), 66: (0, 0.010), 67: (0, 0.008), 62: (0, 0.010), 61: (0, 0.008)},
    },
}
# (upper landmark, lower landmark, least distance): lids, the upper lip, between the lips, the lower lip.
_KEPT_APART = (
    *((upper, lower, 0.010) for upper, lower in ((37, 41), (38, 40), (43, 47), (44, 46))),
    *((upper, lower, 0.006) for upper, lower in ((50, 61), (51, 62), (52, 63))),
    *((upper, lower, 0.0) for upper, lower in ((61, 67), (62, 66), (63, 65))),
    *((upper, lower, 0.006) for upper, lower in ((67, 58), (66, 57), (65, 56))),
)
# Left halves of what the landmarks leave out, from outside to the middle.
_FOREHEAD = ((0.152, 0.290), (0.185, 0.190), (0.265, 0.110), (0.380, 0.066), (0.500, 0.055))
_HAIR = ((0.160, 0.385), (0.105, 0.300), (0.150, 0.110), (0.315, 0.005), (0.500, -0.020))
_NECK = ((-0.300, 1.400), (0.200, 1.050), (0.310, 0.960), (0.300, 0.780), (0.500, 0.780))
_PUPIL = ((0.342, 0.384),)


def _rest_face() -> np.ndarray:
    """The mean face with closed lips, so that parting them is AU25's alone."""
    face = np.array(CANONICAL_FACE)
    face[[61, 62, 63, 65, 66, 67], 1] = 0.727
    face[[60, 64], 1] = 0.724
    return face


def _au_table() -> np.ndarray:
    """(AUs, 68, 2): both sides' offsets."""
    table = np.zeros((len(DRAWABLE_AUS), 68, 2))
    for row, name in zip(table, DRAWABLE_AUS, strict=True):
        for index, (dx, dy) in _AU_OFFSETS[name].items():
            row[LANDMARK_MIRROR[index]] = (-dx, dy)
            row[index] = (dx, dy)
    return table


def _shape_modes() -> np.ndarray:
    """(modes, 68, 2): the landmarks' displacement at one standard deviation of each shape trait."""
    centred, modes = REST_FACE - (0.5, 0.55), np.zeros((6, 68, 2))
    jaw, brows, nose, mouth = slice(0, 17), slice(17, 27), slice(27, 36), slice(48, 68)
    modes[0, :, 0] = 0.05 * centred[:, 0]  # face width
    modes[1, jaw, 0] = centred[jaw, 0] * np.clip(centred[jaw, 1], 0, None) * 0.28  # jaw width
    modes[2, brows, 1] = 0.007  # brow height
    modes[3, nose, 0] = 0.10 * centred[nose, 0]  # nose width
    modes[4, mouth, 0] = 0.06 * centred[mouth, 0]  # mouth width
    modes[5, 48:60, 1] = 0.14 * (REST_FACE[48:60, 1] - 0.727)  # lip thickness
    return modes


def _mirrored(points: tuple[tuple[float, float], ...]) -> list[tuple[float, float]]:
    return [(1 - x, y) for x, y in points]


REST_FACE = _rest_face()
SHAPE_MODES, _AU_TABLE = _shape_modes(), _au_table()
FOLDS = tuple(
    (cause, tuple(points), width, depth)
    for cause, *own, width, depth in _LEFT_FOLDS
    for points in ([own] if own[1][0] == 0.5 else [own, _mirrored(own)])
)
"""Cause, points, width and depth; pairs of both sides follow each other."""
_OUTLINES = {name: (*half, *_mirrored(half)[-2::-1]) for name, half in
             (("forehead", _FOREHEAD), ("hair", _HAIR), ("neck", _NECK))}  # fmt: skip
_OUTLINES |= {"pupils": (*_PUPIL, *_mirrored(_PUPIL)), "folds": tuple(point for fold in FOLDS for point in fold[1])}
_STARTS = dict(zip(_OUTLINES, np.cumsum([68, *map(len, list(_OUTLINES.values())[:-1])]), strict=True))
_REST = np.concatenate([REST_FACE, *(np.array(points) for points in _OUTLINES.values())])
_NEAR = (((_REST[:, None] - REST_FACE) ** 2).sum(-1) + 4e-4) ** -1.5
_NEAR = np.where(np.arange(len(_REST))[:, None] < 68, np.eye(len(_REST), 68), _NEAR / _NEAR.sum(1, keepdims=True))
_DEPTH = 0.20 * np.sqrt(np.clip(1 - ((_REST[:, 0] - 0.5) / 0.40) ** 2, 0, None)) - 0.10
_DEPTH += np.interp(_REST[:, 1], (0.36, 0.55, 0.62), (0, 0.1, 0)) * np.clip(1 - abs(_REST[:, 0] - 0.5) / 0.09, 0, 1)
_LEAF = np.sin(np.pi * np.linspace(0.04, 0.96, 9)) ** 0.7
_T = np.linspace(0, 1, 9)
_CURVE = np.stack([(1 - _T) * (1 - 2 * _T), 4 * _T * (1 - _T), _T * (2 * _T - 1)], 1)


@dataclass(frozen=True)
class DrawnPerson:
    """Colours are RGB."""

    shape: tuple[float, ...] = (0.0,) * 6
    skin: Colour = (214, 168, 138)
    lips: Colour = (176, 92, 88)
    hair: Colour = (62, 44, 34)
    iris: Colour = (88, 66, 46)
    clothes: Colour = (70, 90, 120)
    tone: str = "light"
    age: float = 0.0

    @property
    def group(self) -> str:
        return f"{self.tone} skin, {'older' if self.age >= 0.5 else 'younger'}"


@dataclass(frozen=True)
class Scene:
    pose: tuple[float, ...] = (0.0, 0.0, 0.0, 0.94, 0.0, 0.0)
    """Yaw, pitch and roll in radians, scale, shift to the right and down."""
    background: np.ndarray = field(default_factory=lambda: np.full((2, 2, 3), 128, np.uint8))
    """A coarse grid of colours, stretched over the image."""
    light: np.ndarray = field(default_factory=lambda: np.full((2, 2, 3), 128, np.uint8))
    """A coarse grid of gains; 128 leaves a pixel as it is."""
    noise: int = 4
    """Largest change of a grey level."""
    noise_seed: int = 0


def drawn_person(rng: np.random.Generator) -> DrawnPerson:
    tone = ("light", "medium", "dark")[int(rng.integers(3))]
    skin = np.array({"light": (232, 190, 166), "medium": (192, 142, 108), "dark": (116, 80, 60)}[tone])
    colours = (skin + rng.integers(-13, 14), 0.6 * skin + 0.4 * np.array((150, 50, 70)), *rng.integers(20, 150, (3, 3)))
    shape = tuple(np.clip(rng.standard_normal(len(SHAPE_MODES)), -2, 2).tolist())
    return DrawnPerson(shape, *(tuple(colour.astype(int).tolist()) for colour in colours), tone, float(rng.random()))


def drawn_scene(video: np.random.Generator, frame: np.random.Generator) -> Scene:
    """What stays through a video, and what shakes from frame to frame."""
    pose = np.clip(video.standard_normal(6), -2, 2) * (0.13, 0.08, 0.10, 0.035, 0.016, 0.016)
    pose += (frame.random(6) - 0.5) * (0.12, 0.08, 0.08, 0.01, 0.006, 0.006) + (0, 0, 0, 0.92, 0, 0)
    wall = np.clip(video.integers(50, 210) + video.integers(-30, 31, (5, 5, 3)), 0, 255)
    light = np.clip(128 * (0.78 + 0.4 * video.random()) * (0.75 + 0.5 * video.random((3, 3, 1))), 40, 220)
    light = np.repeat(light, 3, 2).astype(np.uint8)
    return Scene(tuple(pose.tolist()), wall.astype(np.uint8), light, 6, int(frame.integers(2**63)))


def _placed(levels: np.ndarray, shape: np.ndarray, pose: np.ndarray, size: int) -> np.ndarray:
    """Pixels (a pixel's centre is an integer) of the 68 landmarks and all outlines."""
    by_person, by_aus = np.tensordot(shape, SHAPE_MODES, 1), np.tensordot(levels, _AU_TABLE, 1)
    for upper, lower, gap in _KEPT_APART:  # lids and lips may touch and not cross
        rest = REST_FACE + by_person + by_aus
        by_aus[lower, 1] += max(0.0, rest[upper, 1] + gap - rest[lower, 1])
    follows = np.where((np.arange(len(_REST)) < 68) | (np.arange(len(_REST)) >= _STARTS["folds"]), 1.0, 0.0)
    points = _REST + _NEAR @ by_person + follows[:, None] * (_NEAR @ by_aus)
    yaw, pitch, roll, scale, right, down = pose
    x, y = points[:, 0] - 0.5, points[:, 1] - 0.55
    turned_x = np.cos(yaw) * x + np.sin(yaw) * _DEPTH
    turned_y = np.cos(pitch) * y - np.sin(pitch) * (_DEPTH * np.cos(yaw) - x * np.sin(yaw))
    placed_x = scale * (np.cos(roll) * turned_x - np.sin(roll) * turned_y) + 0.5 + right
    placed_y = scale * (np.sin(roll) * turned_x + np.cos(roll) * turned_y) + 0.53 + down
    return np.stack([placed_x, placed_y], 1) * size - 0.5


def _relief(lines: np.ndarray, levels: np.ndarray, age: float, width: float, size: int) -> np.ndarray:
    """A grey image, 128 where the skin is even."""
    strength = dict(zip(DRAWABLE_AUS, levels.tolist(), strict=True)) | {"age": 0.55 * age, "rest": 1.0}
    grey = np.full((size, size), 128, np.uint8)
    for (cause, _, wide, depth), line in zip(FOLDS, lines, strict=True):
        if strength[cause] > 0.03:
            along = np.gradient(line, axis=0)
            across = np.stack([-along[:, 1], along[:, 0]], 1) / (np.linalg.norm(along, axis=1, keepdims=True) + 1e-6)
            across *= (0.56 * width * wide * (0.55 + 0.45 * strength[cause]) * _LEAF)[:, None]
            leaf = np.round(np.concatenate([line + across, (line - across)[::-1]]) * 16).astype(np.int32)
            shade = int(np.clip(128 * (1 + 0.85 * depth * strength[cause]), 0, 255))
            cv2.fillPoly(grey, [leaf], shade, cv2.LINE_AA, 4)
    odd = 2 * round(0.015 * width) + 1
    return cv2.GaussianBlur(grey, (odd, odd), 0.008 * width, hint=cv2.ALGO_HINT_ACCURATE) if odd > 1 else grey


def draw_face(
    person: DrawnPerson, action_units: Mapping[str, float], scene: Scene, size: int = 112
) -> tuple[np.ndarray, np.ndarray]:
    """RGB pixels and the exact 68 landmarks in pixels (the first pixel spans 0 to 1, so its centre is 0.5)."""
    levels = np.array([action_units.get(name, 0.0) for name in DRAWABLE_AUS])
    levels = np.sqrt(np.clip(levels, 0, 1) * (0.5 + 0.5 * np.clip(levels, 0, 1)))
    points = np.round(_placed(levels, np.array(person.shape), np.array(scene.pose), size) * 16) / 16
    fixed, width = (points * 16).astype(np.int32), scene.pose[3] * size
    outlines = {name: fixed[start : start + len(_OUTLINES[name])] for name, start in _STARTS.items()}
    thin = max(1, round(0.009 * width))
    pixels = cv2.resize(scene.background, (size, size), interpolation=cv2.INTER_LINEAR_EXACT)

    def fill(colour: Colour, *shapes: np.ndarray) -> None:
        cv2.fillPoly(pixels, shapes, tuple(int(value) for value in colour), cv2.LINE_AA, 4)

    def stroke(colour: Colour, line: np.ndarray, thickness: int, closed: bool = False) -> None:
        cv2.polylines(pixels, [line], closed, tuple(int(value) for value in colour), thickness, cv2.LINE_AA, 4)

    skin, lips = np.array(person.skin), np.array(person.lips)
    lips = lips + 0.65 * levels[DRAWABLE_AUS.index("AU24")] * (skin - lips)  # lips that press each other pale
    fill(person.hair, outlines["hair"])
    fill(0.7 * skin, outlines["neck"])
    fill(skin, np.concatenate([fixed[:17], outlines["forehead"][::-1]]))
    relief = _relief(_CURVE @ points[_STARTS["folds"] :].reshape(-1, 3, 2), levels, person.age, width, size)
    pixels = cv2.multiply(pixels, cv2.merge([relief] * 3), scale=1 / 128)
    upper, lower = fixed[60:65], fixed[[64, 65, 66, 67, 60]]
    fill((52, 18, 22), fixed[60:68])
    opening = points[66, 1] - points[62, 1]
    if opening > 0.012 * width:
        drop = np.array([0, round(16 * min(0.55 * opening, 0.026 * width))], np.int32)
        fill((232, 226, 214), np.concatenate([upper[1:-1], (upper[1:-1] + drop)[::-1]]))
    fill(0.85 * lips, np.concatenate([fixed[48:55], upper[::-1]]))
    fill(lips, np.concatenate([fixed[[54, *range(55, 60), 48]], lower[::-1]]))
    stroke(0.35 * lips, upper, thin)
    for eye, brow, pupil in ((slice(36, 42), slice(17, 22), 0), (slice(42, 48), slice(22, 27), 1)):
        fill((228, 224, 220), fixed[eye])
        layer, inside = pixels.copy(), np.zeros((size, size), np.uint8)
        for colour, radius in ((person.iris, 0.021), ((12, 10, 12), 0.009)):
            cv2.circle(
                layer, tuple(outlines["pupils"][pupil].tolist()), round(16 * radius * width), colour, -1, cv2.LINE_AA, 4
            )
        cv2.fillPoly(inside, [fixed[eye]], 1, cv2.LINE_8, 4)
        pixels[inside > 0] = layer[inside > 0]
        stroke((34, 22, 22), fixed[eye], thin, closed=True)
        stroke(person.hair, fixed[brow], max(1, round(0.025 * width)))
    stroke(0.6 * skin, fixed[31:36], thin)
    fill(person.clothes, outlines["neck"] + np.array([0, round(16 * 0.22 * width)], np.int32))
    light = cv2.resize(scene.light, (size, size), interpolation=cv2.INTER_LINEAR_EXACT)
    noise = np.frombuffer(np.random.Generator(np.random.PCG64(scene.noise_seed)).bytes(size * size * 3), np.uint8)
    pixels = cv2.multiply(pixels, light, scale=1 / 128)
    pixels = cv2.addWeighted(pixels, 1.0, noise.reshape(pixels.shape), scene.noise / 128, -scene.noise)
    return pixels, (points[:68] + 0.5).astype(np.float32)
