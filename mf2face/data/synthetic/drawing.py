"""Draws one synthetic face with OpenCV: a pure function of who it is, what the face does and the scene around it.

Fixed-point polygons, integer filters and integer noise: the same parameters give the same bytes on every machine.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import cv2
import numpy as np

from mf2face.data.synthetic.geometry import CURVE_SLICES, DRAWABLE_AUS, FOLD_SIDES, FOLDS, SHAPE_MODES, place_face


STYLES = ("sketch", "paint", "grain")

Colour = tuple[int, int, int]

_SHIFT = 4  # fixed-point bits of OpenCV's drawing functions
_FOLD_CAUSES = np.array([(*DRAWABLE_AUS, "age", "rest").index(fold.cause) for fold in FOLDS])
_FOLD_WIDTHS, _FOLD_DEPTHS = np.array([fold.width for fold in FOLDS]), np.array([fold.depth for fold in FOLDS])
_FOLD_SOFT = np.array([fold.is_soft for fold in FOLDS])
_LEAF = np.sin(np.pi * np.linspace(0.04, 0.96, 9)) ** 0.7
_FAINTEST = 0.03


@dataclass(frozen=True)
class Identity:
    """A person; colours are RGB."""

    shape: tuple[float, ...] = (0.0,) * len(SHAPE_MODES)
    skin: Colour = (214, 168, 138)
    lips: Colour = (176, 92, 88)
    hair: Colour = (62, 44, 34)
    iris: Colour = (88, 66, 46)
    clothes: Colour = (70, 90, 120)
    hair_style: str = "short"
    """bald, short, fringe or long"""
    beard: float = 0.0
    moustache: float = 0.0
    glasses: Colour | None = None
    age: float = 0.0
    brow_thickness: float = 1.0
    asymmetry: float = 0.0


@dataclass(frozen=True)
class Scene:
    """Pose, gaze, light, background, occluder and noise."""

    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    scale: float = 0.94
    shift: tuple[float, float] = (0.0, 0.0)
    gaze: tuple[float, float] = (0.0, 0.0)
    eye_opening: float = 0.0
    background: np.ndarray = field(default_factory=lambda: np.full((2, 2, 3), 128, np.uint8))
    """A coarse grid of colours, stretched over the image."""
    light: np.ndarray = field(default_factory=lambda: np.full((2, 2, 3), 128, np.uint8))
    """A coarse grid of gains; 128 leaves a pixel as it is."""
    occluder: tuple[tuple[float, float], ...] = ()
    """A polygon in fractions of the image."""
    occluder_colour: Colour = (120, 100, 90)
    noise: int = 4
    """Largest change of a grey level."""
    noise_seed: int = 0


def mix(first: Colour, second: Colour, share: float) -> Colour:
    return tuple(round(a + (b - a) * share) for a, b in zip(first, second, strict=True))


class _Canvas:
    """Pixels, and the outlines to fill them with, in OpenCV's fixed point."""

    def __init__(self, pixels: np.ndarray, curves: np.ndarray):
        self.pixels = pixels
        self.curves = curves

    def curve(self, name: str) -> np.ndarray:
        return self.curves[CURVE_SLICES[name]]

    def fill(self, colour: Colour, *outlines: np.ndarray) -> None:
        """Outlines inside the first one are holes."""
        cv2.fillPoly(self.pixels, outlines, colour, cv2.LINE_AA, _SHIFT)

    def stroke(self, colour: Colour, line: np.ndarray, thickness: int, closed: bool = False) -> None:
        cv2.polylines(self.pixels, [line], closed, colour, thickness, cv2.LINE_AA, _SHIFT)

    def disc(self, colour: Colour, centre: np.ndarray, radius: float) -> None:
        centre = (int(centre[0]), int(centre[1]))
        cv2.circle(self.pixels, centre, max(1, round(radius * 16)), colour, -1, cv2.LINE_AA, _SHIFT)


def _fixed(points: np.ndarray) -> np.ndarray:
    return np.round(points * 16).astype(np.int32)


def _stretched(grid: np.ndarray, size: int) -> np.ndarray:
    return cv2.resize(grid, (size, size), interpolation=cv2.INTER_LINEAR_EXACT)


def _blurred(pixels: np.ndarray, sigma: float) -> np.ndarray:
    width = 2 * round(2 * sigma) + 1
    return pixels if width < 3 else cv2.GaussianBlur(pixels, (width, width), sigma, hint=cv2.ALGO_HINT_ACCURATE)


def _relief(
    folds: np.ndarray, levels: np.ndarray, identity: Identity, face_width: float, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Two grey images, 128 where the skin is even: soft shades and fine creases."""
    causes = np.concatenate([levels, [0.55 * identity.age, 1.0]])[_FOLD_CAUSES]
    causes = causes * (1 + identity.asymmetry * FOLD_SIDES)
    seen = np.flatnonzero(causes > _FAINTEST)
    lines, causes, depths = folds[seen], causes[seen], _FOLD_DEPTHS[seen]
    along = np.gradient(lines, axis=1)
    across = np.stack([-along[..., 1], along[..., 0]], -1) / (np.sqrt((along**2).sum(-1, keepdims=True)) + 1e-6)
    half = 0.56 * face_width * _FOLD_WIDTHS[seen] * (0.55 + 0.45 * causes)
    across *= (half[:, None] * _LEAF)[..., None]
    leaves = _fixed(np.concatenate([lines + across, (lines - across)[:, ::-1]], 1))
    # The lit lip of a crease lies below it, whatever way the crease was listed.
    lit = leaves + np.array([0, 16 * face_width * 0.011]).astype(np.int32)
    greys = np.clip(128 * (1 + np.where(_FOLD_SOFT[seen], 1.0, 0.8) * depths * causes), 0, 255).astype(int).tolist()
    soft, fine = np.full((size, size), 128, np.uint8), np.full((size, size), 128, np.uint8)
    is_soft = _FOLD_SOFT[seen].tolist()
    for leaf, grey, in_soft in zip(leaves, greys, is_soft, strict=True):
        if in_soft:
            cv2.fillPoly(soft, [leaf], grey, cv2.LINE_AA, _SHIFT)
    for leaf, grey, in_soft in zip(lit, greys, is_soft, strict=True):
        if not in_soft and grey < 128:
            cv2.fillPoly(fine, [leaf], 128 + (128 - grey) // 4, cv2.LINE_AA, _SHIFT)
    for leaf, grey, in_soft in zip(leaves, greys, is_soft, strict=True):
        if not in_soft:
            cv2.fillPoly(fine, [leaf], grey, cv2.LINE_AA, _SHIFT)
    return _blurred(soft, 0.018 * face_width), _blurred(fine, 0.007 * face_width)


def _stubble(canvas: _Canvas, identity: Identity, face_width: float) -> np.ndarray:
    """A grey image, 128 where no beard grows."""
    shade = _Canvas(np.full(canvas.pixels.shape[:2], 128, np.uint8), canvas.curves)
    for name, density in (("beard", identity.beard), ("moustache", identity.moustache)):
        if density:
            shade.fill(round(128 * (1 - density)), shade.curve(name))
    shade.pixels = _blurred(shade.pixels, 0.014 * face_width)
    shade.fill(128, np.concatenate([shade.curve("upper_lip_outer"), shade.curve("lower_lip_outer")]))
    return shade.pixels


def _draw_behind(canvas: _Canvas, identity: Identity) -> None:
    if identity.hair_style == "long":
        canvas.fill(mix(identity.hair, (0, 0, 0), 0.25), canvas.curve("long_hair"))
    shade = mix(identity.skin, (40, 20, 20), 0.30)
    canvas.fill(shade, canvas.curve("neck"))
    canvas.fill(identity.clothes, canvas.curve("shoulders"))
    if identity.hair_style != "long":
        for side in ("left", "right"):
            canvas.fill(mix(identity.skin, (60, 20, 20), 0.15), canvas.curve(f"ear_{side}"))


def _draw_eyes(canvas: _Canvas, identity: Identity, pupils: np.ndarray, gaze: np.ndarray, face_width: float) -> None:
    """Whole eyeballs: the skin drawn over them leaves the lids open."""
    for side, pupil in zip(("left", "right"), pupils, strict=True):
        canvas.fill((228, 224, 220), canvas.curve(f"eye_{side}"))
        centre = _fixed(pupil + gaze)
        canvas.disc(mix(identity.iris, (0, 0, 0), 0.35), centre, 0.0235 * face_width)
        canvas.disc(identity.iris, centre, 0.018 * face_width)
        canvas.disc((12, 10, 12), centre, 0.009 * face_width)
        canvas.disc((245, 245, 245), centre - round(0.1 * face_width), 0.0045 * face_width)


def _draw_mouth_inside(canvas: _Canvas, opening: float, face_width: float) -> None:
    upper, lower = canvas.curve("upper_lip_inner"), canvas.curve("lower_lip_inner")
    canvas.fill((52, 18, 22), np.concatenate([upper, lower]))
    if opening > 0.012 * face_width:
        drop = np.array([0, round(16 * min(0.55 * opening, 0.026 * face_width))], np.int32)
        canvas.fill((232, 226, 214), np.concatenate([upper[2:-2], (upper[2:-2] + drop)[::-1]]))
    if opening > 0.05 * face_width:
        rise = np.array([0, -round(16 * 0.30 * opening)], np.int32)
        canvas.fill((150, 70, 74), np.concatenate([lower[4:-4], (lower[4:-4] + rise)[::-1]]))


def _draw_skin_and_lips(canvas: _Canvas, identity: Identity, opening: float, face_width: float) -> None:
    upper, lower = canvas.curve("upper_lip_inner"), canvas.curve("lower_lip_inner")
    holes = [canvas.curve("eye_left"), canvas.curve("eye_right")]
    parted = opening > 0.006 * face_width
    if parted:
        holes.append(np.concatenate([upper, lower]))
    canvas.fill(identity.skin, canvas.curve("face"), *holes)
    canvas.fill(mix(identity.lips, (40, 10, 20), 0.20), np.concatenate([canvas.curve("upper_lip_outer"), upper[::-1]]))
    lower_outer = canvas.curve("lower_lip_outer")
    canvas.fill(identity.lips, np.concatenate([lower_outer, lower[::-1]]))
    middle = (lower_outer[6:-6] + lower[5:-5]) // 2
    thickness = (lower_outer[9, 1] - lower[8, 1]) / 16 / face_width
    gloss = 0.28 * min(1.0, max(0.0, 30 * thickness - 0.6))  # a lip drawn thin has no round to shine
    canvas.stroke(mix(identity.lips, (255, 235, 225), gloss), middle, max(1, round(0.009 * face_width)))


def _draw_lines(canvas: _Canvas, identity: Identity, opening: float, face_width: float) -> None:
    ink = mix(identity.skin, (30, 12, 14), 0.78)
    thin, thick = max(1, round(0.007 * face_width)), max(1, round(0.009 * face_width))
    for side in ("left", "right"):
        canvas.stroke(mix(identity.skin, ink, 0.40), canvas.curve(f"lid_crease_{side}"), thin)
        canvas.stroke(mix(identity.skin, ink, 0.45), canvas.curve(f"eye_{side}"), thin, closed=True)
        canvas.stroke((34, 22, 22), canvas.curve(f"lid_{side}"), thick)
        canvas.fill(mix(identity.skin, (20, 6, 8), 0.62), canvas.curve(f"nostril_{side}"))
        line = canvas.curve(f"brow_{side}")
        # A brow tapers to its outer end.
        taper = np.linspace(0.45, 1.0, len(line))
        taper[0] = 0.15
        offset = np.zeros_like(line)
        offset[:, 1] = np.round(16 * 0.011 * face_width * identity.brow_thickness * taper)
        canvas.fill(mix(identity.hair, identity.skin, 0.15), np.concatenate([line - offset, (line + offset)[::-1]]))
    canvas.stroke(mix(identity.skin, ink, 0.35), canvas.curve("nose_base"), thin)
    closed = opening <= 0.006 * face_width
    lip_line = mix(identity.lips, (30, 6, 10), 0.8 if closed else 0.45)
    canvas.stroke(lip_line, canvas.curve("upper_lip_inner"), thick if closed else thin)


def _draw_in_front(canvas: _Canvas, identity: Identity, scene: Scene, face_width: float) -> None:
    if identity.hair_style != "bald":
        canvas.fill(identity.hair, canvas.curve("hair_fringe" if identity.hair_style == "fringe" else "hair"))
    if identity.glasses is not None:
        thickness = max(1, round(0.012 * face_width))
        for side in ("left", "right"):
            canvas.stroke(identity.glasses, canvas.curve(f"lens_{side}"), thickness, closed=True)
            canvas.stroke(identity.glasses, canvas.curve(f"temple_{side}"), thickness)
        bridge = np.stack([canvas.curve("lens_left")[7], canvas.curve("lens_right")[7]])
        canvas.stroke(identity.glasses, bridge, thickness)
    if scene.occluder:
        size = len(canvas.pixels)
        canvas.fill(scene.occluder_colour, _fixed(np.array(scene.occluder) * size))


def _finish(pixels: np.ndarray, style: str, scene: Scene, size: int) -> np.ndarray:
    """The style's medium, the light and the sensor's noise."""
    pixels = cv2.multiply(pixels, _stretched(scene.light, size), scale=1 / 128)
    rng = np.random.Generator(np.random.PCG64(scene.noise_seed))
    channels = 1 if style == "grain" else 3
    noise = np.frombuffer(rng.bytes(size * size * channels), np.uint8).reshape(size, size, channels)
    amount = scene.noise
    if style == "sketch":
        grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
        around = _blurred(grey, 0.03 * size)
        pencil = cv2.divide(grey, around, scale=235)
        pixels = cv2.cvtColor(cv2.addWeighted(pencil, 0.75, grey, 0.25, 0), cv2.COLOR_GRAY2RGB)
    elif style == "grain":
        grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
        pixels = cv2.merge([cv2.LUT(grey, curve) for curve in _FILM])
        noise = cv2.cvtColor(_blurred(noise[..., 0], 0.6), cv2.COLOR_GRAY2RGB)
        amount *= 3
    # Powers of two keep the weighted sum exact.
    return cv2.addWeighted(pixels, 1.0, noise, amount / 128, -amount)


_GREYS = np.arange(256)
_REDDER = np.where(_GREYS < 128, 128 - (128 - _GREYS) * 4 // 5, _GREYS).astype(np.uint8)  # shaded skin lets red through
_FILM = tuple((low + _GREYS * (high - low) // 255).astype(np.uint8) for low, high in ((34, 244), (26, 232), (20, 206)))


def draw_face(
    identity: Identity, action_units: Mapping[str, float], scene: Scene, size: int = 112, style: str = "paint"
) -> tuple[np.ndarray, np.ndarray]:
    """RGB pixels and the exact 68 landmarks in pixels (the first pixel spans 0 to 1, so its centre is 0.5).

    `action_units` maps names to strengths from 0 to 1, one fifth of FACS' intensity; what is left out is 0.
    """
    if unknown := [name for name in action_units if name not in DRAWABLE_AUS]:
        raise ValueError(f"action_units: got {unknown}, expected AUs that can be drawn: {list(DRAWABLE_AUS)}")
    if style not in STYLES:
        raise ValueError(f"style: got {style!r}, expected one of {list(STYLES)}")
    if not 32 <= size <= 1024:
        raise ValueError(f"size: got {size}, expected 32 to 1024 pixels")
    # The eye notices a faint change and hardly one strong change more.
    levels = np.array([action_units.get(name, 0.0) for name in DRAWABLE_AUS])
    levels = np.sqrt(np.clip(levels, 0, 1) * (0.5 + 0.5 * np.clip(levels, 0, 1)))
    pose = np.array([scene.yaw, scene.pitch, scene.roll, scene.scale, *scene.shift])
    landmarks, curves, folds, pupils = place_face(
        levels, np.array(identity.shape), identity.asymmetry, scene.eye_opening, pose, size
    )
    face_width = scene.scale * size
    # Lips that press each other pale.
    lips = mix(identity.lips, identity.skin, 0.65 * float(levels[DRAWABLE_AUS.index("AU24")]))
    identity = replace(identity, lips=lips)
    opening = float(landmarks[66, 1] - landmarks[62, 1])
    canvas = _Canvas(_stretched(scene.background, size), _fixed(curves))
    _draw_behind(canvas, identity)
    _draw_eyes(canvas, identity, pupils, np.array(scene.gaze) * face_width, face_width)
    _draw_mouth_inside(canvas, opening, face_width)
    _draw_skin_and_lips(canvas, identity, opening, face_width)
    soft, fine = _relief(folds, levels, identity, face_width, size)
    relief = cv2.multiply(soft, fine, scale=1 / 128)
    if identity.beard or identity.moustache:
        relief = cv2.multiply(relief, _stubble(canvas, identity, face_width), scale=1 / 128)
    relief = cv2.merge([cv2.LUT(relief, _REDDER), relief, relief])
    canvas.pixels = cv2.multiply(canvas.pixels, relief, scale=1 / 128)
    _draw_lines(canvas, identity, opening, face_width)
    _draw_in_front(canvas, identity, scene, face_width)
    # OpenCV draws at whole numbers for centres; the schema counts from the image's edge.
    return _finish(canvas.pixels, style, scene, size), (_fixed(landmarks) / 16 + 0.5).astype(np.float32)
