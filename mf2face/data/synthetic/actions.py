"""Action units as shapes and folds of a rendered head, each side with its own intensity, and the eyes' direction."""

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from mf2face.data.synthetic.anatomy import FOLD_NAMES, anatomy


# What an action unit does at intensity 5. Shapes of the bank or of `anatomy`; "name*" has a left and a right half.
_SHAPES: dict[str, dict[str, float]] = {
    "AU1": {"browInnerUp": 0.9, "frontalis_inner*": 0.95},
    "AU2": {"browOuterUp*": 1.0, "frontalis_outer*": 0.85},
    "AU4": {"browDown*": 0.9, "corrugator*": 1.0, "eyeSquint*": 0.15},
    "AU5": {"eyeWide*": 1.25},
    "AU6": {"cheekSquint*": 0.9, "cheek_lift*": 0.7, "eyeSquint*": 0.40},
    "AU7": {"eyeSquint*": 1.0, "eyeBlink*": 0.16},
    "AU9": {"noseSneer*": 1.15, "procerus*": 1.0, "browDown*": 0.35, "mouthUpperUp*": 0.20, "cheekSquint*": 0.3},
    "AU10": {"mouthUpperUp*": 1.0, "levator*": 0.9, "noseSneer*": 0.30},
    "AU12": {"mouthSmile*": 1.10, "cheekSquint*": 0.10, "cheek_lift*": 0.25},
    "AU14": {"mouthDimple*": 0.65, "dimpler*": 1.2, "mouthPress*": 0.25},
    "AU15": {"mouthFrown*": 0.65, "triangularis*": 0.85},
    "AU16": {"mouthLowerDown*": 1.0},
    "AU17": {"mouthShrugLower": 0.75, "mentalis*": 0.8, "mouthShrugUpper": 0.20},
    "AU18": {"mouthPucker": 0.95, "lip_narrow*": 0.3},
    "AU20": {"mouthStretch*": 0.45, "risorius*": 1.5},
    "AU22": {"mouthFunnel": 0.95},
    "AU23": {"lip_narrow*": 0.75, "mouthRollLower": 0.30, "mouthRollUpper": 0.25, "lip_bulge*": 0.5},
    "AU24": {"mouthRollLower": 0.65, "mouthRollUpper": 0.60, "lip_thin*": 0.6, "lip_bulge*": 0.9, "mentalis*": 0.25},
    "AU25": {"mouthLowerDown*": 0.55, "mouthUpperUp*": 0.22, "jawOpen": 0.14},
    "AU26": {"jawOpen": 0.62},
    "AU27": {"jawOpen": 1.1, "mouthStretch*": 0.2, "mouthFunnel": 0.15},
    "AU43": {"eyeBlink*": 0.97},
}
RENDERED_AUS: tuple[str, ...] = tuple(_SHAPES)

# Which furrows come with an action unit, at intensity 5.
_FURROWS: dict[str, dict[str, float]] = {
    "AU1": {"forehead_inner": 1.0},
    "AU2": {"forehead_outer": 1.0},
    "AU4": {"glabella": 1.0},
    "AU6": {"crow": 1.0, "cheek": 1.0, "lower_lid": 0.5},
    "AU7": {"lid_pinch": 1.0, "lower_lid": 0.3},
    "AU9": {"nose": 1.1, "levator": 0.7, "glabella": 0.25},
    "AU10": {"levator": 1.0},
    "AU12": {"nasolabial": 0.9, "smile": 0.8},
    "AU14": {"dimple": 1.0},
    "AU15": {"frown": 1.0},
    "AU16": {"press": 0.15, "chin": 0.2},
    "AU17": {"chin": 1.0},
    "AU18": {"lip_lines": 0.8},
    "AU20": {"stretch": 1.0, "neck": 0.6},
    "AU22": {"lip_lines": 0.4},
    "AU23": {"lip_lines": 1.0, "press": 0.25},
    "AU24": {"press": 1.0},
    "AU26": {"jaw": 0.6},
    "AU27": {"jaw": 1.0, "nasolabial": 0.3},
}
# Shapes that two action units make together, beyond what each does alone.
_TOGETHER: tuple[tuple[tuple[str, str], dict[str, float]], ...] = (
    (("AU12", "AU25"), {"mouthUpperUp*": 0.50, "mouthLowerDown*": 0.15}),
    (("AU6", "AU12"), {"cheekSquint*": 0.35, "cheek_lift*": 0.35}),
    (("AU1", "AU4"), {"frontalis_inner*": 0.40, "corrugator*": 0.20}),
    (("AU25", "AU26"), {"mouthLowerDown*": -0.25}),
    (("AU10", "AU25"), {"mouthUpperUp*": 0.20}),
)
# What happens of itself, and means nothing.
_HABITS: tuple[tuple[str, float, float], ...] = (
    *(("mouthLeft", 0.05, 0.35), ("mouthRight", 0.05, 0.35), ("jawLeft", 0.04, 0.4), ("jawRight", 0.04, 0.4)),
    *(("cheekPuff", 0.02, 0.35), ("jawForward", 0.04, 0.5)),
)


_FAINT = 0.8
"""Exponent of intensities: the eye notices a faint change and hardly one strong change more."""


@lru_cache
def _tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(AUs, 2 sides, shapes), (AUs, 2, folds of both sides) and (combinations, 2, shapes)."""
    names = anatomy().shapes[0]
    folds = np.zeros((len(RENDERED_AUS), 2, 2 * len(FOLD_NAMES)), np.float32)

    def row(recipe: Mapping[str, float]) -> np.ndarray:
        weights = np.zeros((2, len(names)), np.float32)
        for name, weight in recipe.items():
            if name.endswith("*"):
                for side, suffix in enumerate(("Left", "Right")):
                    weights[side, names[name[:-1] + suffix]] = weight
            else:  # both sides pull at one shape
                weights[:, names[name]] = weight / 2
        return weights

    shapes = np.stack([row(_SHAPES[name]) for name in RENDERED_AUS])
    for number, name in enumerate(RENDERED_AUS):
        for fold, weight in _FURROWS.get(name, {}).items():
            for side in range(2):
                folds[number, side, side * len(FOLD_NAMES) + FOLD_NAMES.index(fold)] = weight
    return shapes, folds, np.stack([row(recipe) for _, recipe in _TOGETHER])


def shape_weights(sides: np.ndarray) -> np.ndarray:
    """(AUs, 2) intensities 0 to 1 of the left and the right side -> a weight of each shape."""
    shapes, _, together = _tables()
    sides = sides**_FAINT
    weights = np.tensordot(sides, shapes, 2)
    for number, ((first, second), _) in enumerate(_TOGETHER):
        both = np.minimum(sides[RENDERED_AUS.index(first)], sides[RENDERED_AUS.index(second)])
        weights += both @ together[number]
    names = anatomy().shapes[0]
    # A mouth that is pressed shut does not open; nor do lids pass each other.
    pressed = float(sides[RENDERED_AUS.index("AU24")].mean())
    weights[names["jawOpen"]] *= 1 - 0.7 * pressed
    weights[names["jawOpen"]] = min(weights[names["jawOpen"]], 1.15)
    for side in ("Left", "Right"):
        blink, squint, wide = (names[f"eye{name}{side}"] for name in ("Blink", "Squint", "Wide"))
        weights[wide] *= 1 - min(weights[blink], 1)
        weights[squint] *= 1 - 0.8 * min(max(weights[blink] - 0.2, 0), 1)
        weights[blink] = min(weights[blink], 1.02)
    return weights


def fold_weights(sides: np.ndarray) -> np.ndarray:
    """(AUs, 2) intensities 0 to 1 -> a depth of each fold, left ones first."""
    return np.tensordot(sides, _tables()[1], 2)


def add_habits(weights: np.ndarray, rng: np.random.Generator) -> None:
    names = anatomy().shapes[0]
    for name, odds, most in _HABITS:
        if rng.random() < odds:
            weights[names[name]] += most * rng.random()


def add_gaze(weights: np.ndarray, gaze: tuple[float, float]) -> None:
    """Lids follow the eyes. gaze: radians to the person's left, and up."""
    names, (left, up) = anatomy().shapes[0], gaze
    sideways = min(abs(left) / 0.6, 1)
    pair = ("OutLeft", "InRight") if left > 0 else ("InLeft", "OutRight")
    for name in pair:
        weights[names[f"eyeLook{name}"]] += sideways
    for side in ("Left", "Right"):
        weights[names[f"eyeLook{'Up' if up > 0 else 'Down'}{side}"]] += min(abs(up) / 0.45, 1)


__all__ = ["RENDERED_AUS", "add_gaze", "add_habits", "fold_weights", "shape_weights"]
