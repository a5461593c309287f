"""Geometry of drawn faces, in fractions of the aligned crop: skin folds, landmarks, outlines, and their movement."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from configuration_mf2.facs import CANONICAL_FACE, LANDMARK_MIRROR


class Fold(NamedTuple):
    cause: str
    """An AU, "age", or "rest" for the relief every face has."""
    points: tuple[tuple[float, float], tuple[float, float], tuple[float, float]]
    width: float
    depth: float
    """Dark below 0, light above."""
    is_soft: bool
    """A broad shade rather than a crease."""


# The image's left half. A fold whose middle lies on x = 0.5 has no mirror image.
_LEFT_FOLDS: tuple[Fold, ...] = (
    Fold("rest", ((0.462, 0.400), (0.470, 0.470), (0.452, 0.540)), 0.020, -0.16, True),
    Fold("rest", ((0.500, 0.400), (0.500, 0.470), (0.500, 0.550)), 0.020, 0.16, True),
    Fold("rest", ((0.290, 0.350), (0.350, 0.338), (0.425, 0.365)), 0.034, -0.20, True),
    Fold("rest", ((0.400, 0.805), (0.500, 0.815), (0.600, 0.805)), 0.022, -0.20, True),
    Fold("rest", ((0.205, 0.540), (0.235, 0.680), (0.315, 0.800)), 0.055, -0.14, True),
    Fold("rest", ((0.270, 0.500), (0.320, 0.520), (0.360, 0.560)), 0.050, 0.08, True),
    Fold("rest", ((0.428, 0.560), (0.420, 0.584), (0.438, 0.600)), 0.008, -0.40, False),
    Fold("rest", ((0.482, 0.625), (0.485, 0.645), (0.484, 0.670)), 0.009, -0.14, True),
    Fold("age", ((0.330, 0.190), (0.420, 0.182), (0.499, 0.188)), 0.007, -0.45, False),
    Fold("age", ((0.235, 0.215), (0.270, 0.195), (0.320, 0.190)), 0.007, -0.30, False),
    Fold("age", ((0.300, 0.432), (0.345, 0.446), (0.400, 0.430)), 0.008, -0.35, False),
    Fold("age", ((0.412, 0.595), (0.368, 0.640), (0.345, 0.695)), 0.010, -0.50, False),
    Fold("age", ((0.240, 0.385), (0.215, 0.378), (0.195, 0.366)), 0.006, -0.40, False),
    Fold("age", ((0.365, 0.755), (0.350, 0.780), (0.348, 0.805)), 0.007, -0.30, False),
    Fold("AU1", ((0.352, 0.222), (0.425, 0.198), (0.492, 0.208)), 0.012, -0.75, False),
    Fold("AU1", ((0.372, 0.186), (0.430, 0.164), (0.494, 0.172)), 0.010, -0.65, False),
    Fold("AU1", ((0.400, 0.244), (0.440, 0.232), (0.484, 0.238)), 0.008, -0.45, False),
    Fold("AU1", ((0.385, 0.204), (0.430, 0.182), (0.480, 0.190)), 0.014, 0.25, True),
    Fold("AU2", ((0.196, 0.262), (0.238, 0.226), (0.300, 0.222)), 0.012, -0.75, False),
    Fold("AU2", ((0.206, 0.228), (0.248, 0.190), (0.306, 0.188)), 0.010, -0.65, False),
    Fold("AU2", ((0.225, 0.262), (0.262, 0.246), (0.300, 0.248)), 0.010, -0.40, False),
    Fold("AU4", ((0.462, 0.275), (0.470, 0.308), (0.463, 0.345)), 0.013, -0.65, False),
    Fold("AU4", ((0.500, 0.285), (0.500, 0.320), (0.500, 0.350)), 0.018, 0.16, True),
    Fold("AU4", ((0.260, 0.322), (0.325, 0.312), (0.400, 0.335)), 0.034, -0.60, True),
    Fold("AU6", ((0.228, 0.378), (0.205, 0.366), (0.180, 0.344)), 0.009, -0.70, False),
    Fold("AU6", ((0.228, 0.392), (0.202, 0.392), (0.176, 0.386)), 0.009, -0.70, False),
    Fold("AU6", ((0.230, 0.406), (0.208, 0.416), (0.184, 0.424)), 0.009, -0.70, False),
    Fold("AU6", ((0.250, 0.462), (0.310, 0.486), (0.390, 0.462)), 0.012, -0.55, False),
    Fold("AU6", ((0.250, 0.535), (0.310, 0.522), (0.365, 0.545)), 0.065, 0.26, True),
    Fold("AU6", ((0.225, 0.545), (0.285, 0.610), (0.375, 0.595)), 0.030, -0.42, True),
    Fold("AU7", ((0.280, 0.412), (0.340, 0.424), (0.405, 0.406)), 0.011, -0.85, False),
    Fold("AU7", ((0.285, 0.404), (0.340, 0.412), (0.400, 0.400)), 0.010, 0.45, False),
    Fold("AU7", ((0.275, 0.362), (0.340, 0.346), (0.405, 0.366)), 0.016, -0.60, True),
    Fold("AU9", ((0.472, 0.470), (0.447, 0.474), (0.420, 0.496)), 0.011, -0.75, False),
    Fold("AU9", ((0.474, 0.496), (0.446, 0.502), (0.416, 0.524)), 0.011, -0.75, False),
    Fold("AU9", ((0.472, 0.446), (0.452, 0.448), (0.430, 0.464)), 0.009, -0.60, False),
    Fold("AU9", ((0.468, 0.398), (0.500, 0.404), (0.532, 0.398)), 0.010, -0.65, False),
    Fold("AU9", ((0.472, 0.420), (0.500, 0.426), (0.528, 0.420)), 0.009, -0.55, False),
    Fold("AU9", ((0.420, 0.545), (0.398, 0.562), (0.388, 0.590)), 0.014, -0.45, True),
    Fold("AU10", ((0.424, 0.590), (0.400, 0.618), (0.402, 0.660)), 0.016, -0.75, False),
    Fold("AU10", ((0.478, 0.625), (0.470, 0.640), (0.462, 0.662)), 0.014, -0.65, False),
    Fold("AU10", ((0.415, 0.652), (0.440, 0.638), (0.465, 0.643)), 0.030, 0.24, True),
    Fold("AU12", ((0.352, 0.628), (0.336, 0.670), (0.338, 0.730)), 0.013, -0.80, False),
    Fold("AU12", ((0.350, 0.706), (0.344, 0.722), (0.352, 0.742)), 0.012, -0.70, False),
    Fold("AU12", ((0.300, 0.640), (0.295, 0.690), (0.310, 0.740)), 0.040, 0.30, True),
    Fold("AU14", ((0.345, 0.688), (0.336, 0.718), (0.346, 0.752)), 0.018, -1.00, False),
    Fold("AU14", ((0.318, 0.690), (0.308, 0.720), (0.318, 0.750)), 0.026, 0.40, True),
    Fold("AU15", ((0.362, 0.740), (0.340, 0.770), (0.338, 0.808)), 0.015, -0.85, False),
    Fold("AU15", ((0.372, 0.750), (0.385, 0.772), (0.400, 0.785)), 0.020, -0.50, True),
    Fold("AU15", ((0.310, 0.740), (0.300, 0.775), (0.305, 0.810)), 0.024, 0.30, True),
    Fold("AU17", ((0.430, 0.830), (0.500, 0.810), (0.570, 0.830)), 0.016, -0.75, False),
    Fold("AU17", ((0.455, 0.842), (0.462, 0.848), (0.470, 0.845)), 0.012, -0.75, False),
    Fold("AU17", ((0.480, 0.862), (0.487, 0.868), (0.495, 0.864)), 0.012, -0.75, False),
    Fold("AU17", ((0.448, 0.870), (0.456, 0.876), (0.464, 0.872)), 0.012, -0.75, False),
    Fold("AU17", ((0.476, 0.886), (0.484, 0.891), (0.492, 0.888)), 0.011, -0.65, False),
    Fold("AU17", ((0.440, 0.860), (0.500, 0.848), (0.560, 0.860)), 0.040, 0.25, True),
    Fold("AU23", ((0.478, 0.662), (0.480, 0.690), (0.480, 0.718)), 0.007, -0.62, False),
    Fold("AU23", ((0.446, 0.668), (0.452, 0.694), (0.456, 0.718)), 0.007, -0.62, False),
    Fold("AU23", ((0.480, 0.738), (0.480, 0.765), (0.478, 0.800)), 0.007, -0.62, False),
    Fold("AU23", ((0.456, 0.738), (0.452, 0.765), (0.444, 0.796)), 0.007, -0.62, False),
    Fold("AU24", ((0.405, 0.675), (0.500, 0.662), (0.595, 0.675)), 0.028, 0.40, True),
    Fold("AU24", ((0.405, 0.782), (0.500, 0.790), (0.595, 0.782)), 0.028, 0.40, True),
    Fold("AU24", ((0.425, 0.806), (0.500, 0.814), (0.575, 0.806)), 0.022, -0.50, True),
    Fold("AU24", ((0.425, 0.648), (0.500, 0.640), (0.575, 0.648)), 0.022, -0.50, True),
    Fold("AU24", ((0.385, 0.722), (0.500, 0.727), (0.615, 0.722)), 0.018, -0.75, False),
    Fold("AU26", ((0.412, 0.800), (0.404, 0.845), (0.425, 0.885)), 0.024, -0.42, True),
    Fold("AU26", ((0.440, 0.860), (0.500, 0.870), (0.560, 0.860)), 0.060, 0.16, True),
    Fold("AU26", ((0.345, 0.700), (0.330, 0.760), (0.350, 0.830)), 0.036, -0.26, True),
)


def _both_sides() -> tuple[tuple[Fold, ...], np.ndarray]:
    folds, sides = [], []
    for fold in _LEFT_FOLDS:
        is_midline = fold.points[1][0] == 0.5
        folds.append(fold)
        sides.append(0 if is_midline else -1)
        if not is_midline:
            folds.append(fold._replace(points=tuple((1 - x, y) for x, y in fold.points)))
            sides.append(1)
    return tuple(folds), np.array(sides)


FOLDS, FOLD_SIDES = _both_sides()
"""Every fold, and which side of the face it is on: -1 left in the image, 0 across the middle, 1 right."""

DRAWABLE_AUS: tuple[str, ...] = tuple(f"AU{i}" for i in (1, 2, 4, 6, 7, 9, 10, 12, 14, 15, 17, 23, 24, 25, 26))

Offsets = dict[int, tuple[float, float]]

# How far each landmark goes at full strength; one inner-ocular distance is 0.16.
_AU_OFFSETS: dict[str, Offsets] = {
    "AU1": {21: (-0.002, -0.046), 20: (0, -0.030), 19: (0, -0.008)},
    "AU2": {17: (0, -0.026), 18: (0, -0.044), 19: (0, -0.036), 20: (0, -0.010)},
    "AU4": {
        **{21: (0.024, 0.034), 20: (0.020, 0.032), 19: (0.012, 0.030), 18: (0.006, 0.018), 17: (0, 0.006)},
        **{37: (0, 0.003), 38: (0, 0.005)},
    },
    "AU6": {41: (0, -0.006), 40: (0, -0.004), 36: (0.003, 0)},
    "AU7": {37: (0, 0.010), 38: (0, 0.010), 40: (0, -0.012), 41: (0, -0.013)},
    "AU9": {31: (-0.005, -0.018), 32: (-0.002, -0.012), 33: (0, -0.010), 30: (0, -0.008), 21: (0.003, 0.008)},
    "AU10": {
        **{49: (-0.008, -0.018), 50: (-0.010, -0.036), 51: (0, -0.022), 61: (-0.002, -0.012), 62: (0, -0.008)},
        **{31: (-0.003, -0.004)},
    },
    "AU12": {
        **{48: (-0.046, -0.038), 60: (-0.043, -0.035), 49: (-0.024, -0.012), 59: (-0.024, -0.008), 50: (-0.004, 0.003)},
        **{58: (-0.006, 0.006), 51: (0, 0.004), 57: (0, 0.006), 61: (-0.008, 0.005), 67: (-0.008, 0.005)},
        **{62: (0, 0.006), 66: (0, 0.006)},
    },
    "AU14": {48: (-0.014, -0.002), 60: (-0.016, -0.002), 49: (-0.004, 0.003), 59: (-0.004, -0.003)},
    "AU15": {
        **{48: (-0.002, 0.044), 60: (-0.002, 0.040), 49: (0, 0.014), 59: (-0.004, 0.022), 61: (0, 0.003)},
        **{67: (0, 0.003)},
    },
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
        **{61: (0, -0.013), 62: (0, -0.014), 50: (0, -0.007), 51: (0, -0.007), 49: (0, -0.002), 60: (0.006, 0.002)},
        **{67: (0, 0.034), 66: (0, 0.037), 58: (0, 0.028), 57: (0, 0.030), 59: (0, 0.016), 48: (0.002, 0.002)},
    },
    "AU26": {
        **{8: (0, 0.066), 7: (0, 0.064), 6: (0.002, 0.056), 5: (0.004, 0.040), 4: (0.004, 0.020), 3: (0.002, 0.008)},
        **{57: (0, 0.022), 58: (0, 0.020), 59: (0.002, 0.012), 66: (0, 0.010), 67: (0, 0.008), 62: (0, 0.010)},
        **{61: (0, 0.008), 48: (0.006, 0.004), 60: (0.006, 0.004)},
    },
}
# A dropped jaw widens parted lips: added with the product of both strengths.
_PARTED_AND_DROPPED: Offsets = {
    **{67: (0, 0.036), 66: (0, 0.040), 58: (0, 0.034), 57: (0, 0.036), 59: (0, 0.022), 48: (0.008, 0.006)},
    **{60: (0.006, 0.008), 62: (0, -0.008), 61: (0, -0.006)},
}


def _mirrored(offsets: Offsets) -> np.ndarray:
    table = np.zeros((68, 2))
    for index, (dx, dy) in offsets.items():
        table[LANDMARK_MIRROR[index]] = (-dx, dy)
        table[index] = (dx, dy)
    return table


def _rest_face() -> np.ndarray:
    """The mean face with closed lips, so that parting them is AU25's alone."""
    face = np.array(CANONICAL_FACE)
    face[[61, 62, 63, 65, 66, 67], 1] = 0.727
    face[[60, 64], 1] = 0.724
    return face


REST_FACE = _rest_face()


def _shape_modes() -> np.ndarray:
    """(modes, 68, 2): the landmarks' displacement at one standard deviation of each shape trait."""
    centred = REST_FACE - (0.5, 0.55)
    jaw, brows, nose, mouth = slice(0, 17), slice(17, 27), slice(27, 36), slice(48, 68)
    modes = np.zeros((12, 68, 2))
    modes[0, :, 0] = 0.05 * centred[:, 0]  # face width
    modes[1, jaw, 0] = centred[jaw, 0] * np.clip(centred[jaw, 1], 0, None) * 0.28  # jaw width
    modes[2, jaw, 1] = 0.035 * np.clip(centred[jaw, 1], 0, None)  # chin length
    for eye in (slice(36, 42), slice(42, 48)):
        modes[3, eye] = 0.08 * (REST_FACE[eye] - REST_FACE[eye].mean(0))  # eye size
        modes[4, eye, 0] = 0.006 * np.sign(centred[36 if eye.start == 36 else 45, 0])  # eye distance
    modes[5, brows, 1] = 0.007  # brow height
    modes[6, brows, 1] = 0.05 * (np.abs(centred[brows, 0]) - 0.19)  # brow tilt
    modes[7, nose, 1] = 0.06 * np.clip(centred[nose, 1] + 0.15, 0, None)  # nose length
    modes[8, nose, 0] = 0.10 * centred[nose, 0]  # nose width
    modes[9, mouth, 0] = 0.06 * centred[mouth, 0]  # mouth width
    modes[10, 48:60, 1] = 0.14 * (REST_FACE[48:60, 1] - 0.727)  # lip thickness
    modes[11, mouth, 1] = 0.006  # mouth height
    return modes


SHAPE_MODES = _shape_modes()
_AU_TABLE = np.stack([_mirrored(_AU_OFFSETS[name]) for name in DRAWABLE_AUS] + [_mirrored(_PARTED_AND_DROPPED)])
_SIDE = np.sign(REST_FACE[:, 0] - 0.5)


# Outlines beside the landmarks, each from the outer left to the middle (or around, when it has a twin on the right).
_OUTLINES: dict[str, tuple[tuple[float, float], ...]] = {
    "forehead": ((0.152, 0.290), (0.185, 0.190), (0.265, 0.110), (0.380, 0.066), (0.500, 0.055)),
    "hair_outer": ((0.146, 0.420), (0.108, 0.260), (0.165, 0.095), (0.315, 0.005), (0.500, -0.020)),
    "hairline": ((0.160, 0.385), (0.178, 0.250), (0.235, 0.165), (0.350, 0.122), (0.500, 0.108)),
    "fringe": ((0.160, 0.385), (0.172, 0.290), (0.205, 0.210), (0.330, 0.150), (0.500, 0.095)),
    "long_hair": ((0.130, 1.060), (0.055, 0.850), (0.060, 0.500), (0.085, 0.230), (0.230, 0.020), (0.500, -0.030)),
    "neck": ((0.300, 1.120), (0.315, 0.960), (0.300, 0.780), (0.500, 0.780)),
    "shoulders": ((-0.300, 1.400), (-0.050, 1.120), (0.200, 1.050), (0.330, 1.000), (0.500, 1.060)),
    "moustache": ((0.372, 0.735), (0.395, 0.680), (0.450, 0.640), (0.500, 0.648)),
    "ear": ((0.165, 0.370), (0.122, 0.362), (0.102, 0.415), (0.118, 0.495), (0.150, 0.545), (0.175, 0.500)),
    "nostril": ((0.450, 0.588), (0.466, 0.582), (0.480, 0.592), (0.466, 0.598)),
    "lens": (
        *((0.235, 0.405), (0.255, 0.345), (0.345, 0.335), (0.425, 0.350), (0.438, 0.405), (0.410, 0.460)),
        *((0.340, 0.475), (0.265, 0.460)),
    ),
    "lid_crease": ((0.262, 0.370), (0.306, 0.346), (0.366, 0.346), (0.416, 0.372)),
    "pupil": ((0.342, 0.384),),
    "temple": ((0.235, 0.395), (0.130, 0.385)),
}
TWINS = ("ear", "nostril", "lens", "lid_crease", "pupil", "temple")
"""Outlines with one of them on each side: `ear_left` and `ear_right`; the others run once across the face."""
_FOLLOWING_AUS = ("nostril", "lid_crease", "moustache")


def _attachment(points: np.ndarray) -> np.ndarray:
    """(points, 68) weights by which a point moves with the landmarks near it."""
    distance = ((points[:, None] - REST_FACE[None]) ** 2).sum(-1)
    weights = (distance + 4e-4) ** -1.5
    return weights / weights.sum(1, keepdims=True)


def _depth(points: np.ndarray) -> np.ndarray:
    """How far a point of the face stands towards the viewer: an ellipsoid with a nose."""
    across = np.abs(points[:, 0] - 0.5)
    ball = 0.20 * np.sqrt(np.clip(1 - (across / 0.40) ** 2, 0, None)) - 0.10
    ridge = np.interp(points[:, 1], (0.36, 0.55, 0.62), (0.0, 0.10, 0.0)) * np.clip(1 - across / 0.09, 0, None)
    return ball + ridge


def _spline(count: int, closed: bool, samples: int) -> np.ndarray:
    """(curve points, count) Catmull-Rom weights."""
    segments = count if closed else count - 1
    weights = np.zeros((segments * samples + (not closed), count))
    for row in range(len(weights)):
        segment, t = divmod(row / samples, 1.0)
        cubic = (-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, -(t**2) + t**3)
        for step, weight in enumerate(cubic):
            index = int(segment) + step - 1
            weights[row, index % count if closed else min(max(index, 0), count - 1)] += weight / 2
    return weights


def _layout() -> tuple[np.ndarray, dict[str, list[int]], np.ndarray]:
    """All control points at rest, which of them make each outline, and which of them follow the action units."""
    points, names, follows = [tuple(p) for p in REST_FACE], {}, [1.0] * 68
    for name, left in _OUTLINES.items():
        right = [(1 - x, y) for x, y in left]
        parts = {f"{name}_left": left, f"{name}_right": right} if name in TWINS else {name: (*left, *right[-2::-1])}
        for part, its_points in parts.items():
            names[part] = list(range(len(points), len(points) + len(its_points)))
            points += its_points
            follows += [float(name in _FOLLOWING_AUS)] * len(its_points)
    return np.array(points), names, np.array(follows)


_CONTROL, _NAMES, _FOLLOWS = _layout()
_FOLD_POINTS = np.array([fold.points for fold in FOLDS]).reshape(-1, 2)
_REST = np.concatenate([_CONTROL, _FOLD_POINTS])
_ATTACH = np.concatenate([np.eye(68), _attachment(_REST[68:])])
_ATTACH_AUS = _ATTACH * np.concatenate([_FOLLOWS, np.ones(len(_FOLD_POINTS))])[:, None]
_DEPTH = _depth(_REST)

# name: (control points, closed, samples a segment)
_CURVES: dict[str, tuple[Sequence[int], bool, int]] = {
    "face": ([*range(17), *_NAMES["forehead"][::-1]], True, 3),
    "eye_left": (range(36, 42), True, 3),
    "eye_right": (range(42, 48), True, 3),
    "lid_left": (range(36, 40), False, 4),
    "lid_right": (range(42, 46), False, 4),
    "brow_left": (range(17, 22), False, 3),
    "brow_right": (range(26, 21, -1), False, 3),
    "upper_lip_outer": (range(48, 55), False, 3),
    "lower_lip_outer": ([54, *range(55, 60), 48], False, 3),
    "upper_lip_inner": (range(60, 65), False, 4),
    "lower_lip_inner": ([64, 65, 66, 67, 60], False, 4),
    "nose_base": (range(31, 36), False, 3),
    "hair": ([*_NAMES["hair_outer"], *_NAMES["hairline"][::-1]], True, 2),
    "hair_fringe": ([*_NAMES["hair_outer"], *_NAMES["fringe"][::-1]], True, 2),
    "long_hair": (_NAMES["long_hair"], True, 2),
    "neck": (_NAMES["neck"], False, 2),
    "shoulders": (_NAMES["shoulders"], False, 2),
    "beard": ([*range(2, 15), *_NAMES["moustache"][::-1]], True, 2),
    "moustache": ([*_NAMES["moustache"], 53, 52, 51, 50, 49], True, 2),
    **{f"{name}_{side}": (_NAMES[f"{name}_{side}"], name in ("ear", "nostril", "lens"), 2)
       for name in TWINS if name != "pupil" for side in ("left", "right")},
}  # fmt: skip


def _curve_weights() -> tuple[np.ndarray, dict[str, slice]]:
    blocks, slices, start = [], {}, 0
    for name, (indices, closed, samples) in _CURVES.items():
        block = np.zeros((len(spline := _spline(len(indices), closed, samples)), len(_CONTROL)))
        np.add.at(block.T, list(indices), spline.T)
        blocks.append(block)
        slices[name] = slice(start, start + len(block))
        start += len(block)
    return np.concatenate(blocks), slices


_CURVE_WEIGHTS, CURVE_SLICES = _curve_weights()
_FOLD_T = np.linspace(0, 1, 9)
_FOLD_WEIGHTS = np.stack(
    [(1 - _FOLD_T) * (1 - 2 * _FOLD_T), 4 * _FOLD_T * (1 - _FOLD_T), _FOLD_T * (2 * _FOLD_T - 1)], axis=1
)


# (upper landmark, lower landmark, least distance): lids, the upper lip, between the lips, the lower lip.
_KEPT_APART = (
    *((upper, lower, 0.010) for upper, lower in ((37, 41), (38, 40), (43, 47), (44, 46))),
    *((upper, lower, 0.006) for upper, lower in ((50, 61), (51, 62), (52, 63))),
    *((upper, lower, 0.0) for upper, lower in ((61, 67), (62, 66), (63, 65))),
    *((upper, lower, 0.006) for upper, lower in ((67, 58), (66, 57), (65, 56))),
)


def place_face(
    strengths: np.ndarray, shape: np.ndarray, asymmetry: float, eye_opening: float, pose: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pixels (a pixel's centre is an integer) of 68 landmarks, all curves, all folds (folds, 9, 2) and the pupils.

    `strengths`: one of DRAWABLE_AUS each, 0 to 1. `pose`: yaw, pitch, roll in radians, scale, shift x, shift y.
    """
    levels = np.append(strengths, strengths[13] * strengths[14])
    by_person = np.tensordot(shape, SHAPE_MODES, 1)
    by_person[[37, 38, 43, 44], 1] -= 0.010 * eye_opening
    by_aus = np.tensordot(levels, _AU_TABLE, 1) * (1 + asymmetry * _SIDE)[:, None]
    # Lids and lips may touch and not cross.
    landmarks = REST_FACE + by_person + by_aus
    for upper, lower, gap in _KEPT_APART:
        by_aus[lower, 1] += max(0.0, landmarks[upper, 1] + gap - landmarks[lower, 1])
        landmarks[lower, 1] = max(landmarks[lower, 1], landmarks[upper, 1] + gap)
    points = _REST + _ATTACH @ by_person + _ATTACH_AUS @ by_aus
    yaw, pitch, roll, scale, shift_x, shift_y = pose
    x, y = points[:, 0] - 0.5, points[:, 1] - 0.55
    turned_x = np.cos(yaw) * x + np.sin(yaw) * _DEPTH
    turned_y = np.cos(pitch) * y - np.sin(pitch) * (_DEPTH * np.cos(yaw) - x * np.sin(yaw))
    pixels = np.empty_like(points)
    pixels[:, 0] = scale * (np.cos(roll) * turned_x - np.sin(roll) * turned_y) + 0.5 + shift_x
    pixels[:, 1] = scale * (np.sin(roll) * turned_x + np.cos(roll) * turned_y) + 0.53 + shift_y
    pixels = pixels * size - 0.5
    count = len(_CONTROL)
    folds = np.matmul(_FOLD_WEIGHTS, pixels[count:].reshape(-1, 3, 2))
    pupils = pixels[[_NAMES["pupil_left"][0], _NAMES["pupil_right"][0]]]
    return pixels[:68], _CURVE_WEIGHTS @ pixels[:count], folds, pupils
