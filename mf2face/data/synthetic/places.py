"""Where and how a rendered person is photographed: lights, camera, background, and what camera and file take away."""

from dataclasses import dataclass, field

import cv2
import numpy as np


RENDERED_STYLES = ("studio", "street", "webcam")


@dataclass(frozen=True)
class Shot:
    """Everything around a face; `Shot()` is an even studio light and a sharp camera."""

    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    """Radians; positive yaw turns to the image's right, positive pitch looks up, positive roll leans clockwise."""
    scale: float = 1.0
    """Of the face, 1 for that of an aligned crop."""
    shift: tuple[float, float] = (0.0, 0.0)
    distance: float = 9.0
    """Decimetres from the camera to the eyes."""
    lights: tuple[tuple[float, float, float], ...] = ((-0.45, 0.5, 0.75), (0.6, 0.15, 0.7))
    light_colours: tuple[tuple[float, float, float], ...] = ((0.85, 0.84, 0.82), (0.30, 0.30, 0.31))
    ambient: tuple[tuple[float, float, float], ...] = ((0.34, 0.34, 0.35), (0, 0, 0), (0.10, 0.10, 0.10), (0, 0, 0))
    shadow_blur: float = 1.0
    exposure: float = 0.0
    """Stops around what suits the skin."""
    contrast: float = 1.0
    balance: tuple[float, float, float] = (1.0, 1.0, 1.0)
    saturation: float = 1.0
    background: np.ndarray = field(default_factory=lambda: np.full((8, 8, 3), 0.42, np.float32))
    """RGB from 0 to 1, stretched over the image."""
    blur: float = 0.0
    motion: tuple[float, float] = (0.0, 0.0)
    noise: float = 0.0
    shrink: float = 1.0
    """The size that the camera saw, as a share."""
    sharpen: float = 0.0
    jpeg: int = 0
    """Quality; 0 for none."""
    is_grey: bool = False
    noise_seed: int = 0
    occluder: tuple[tuple[np.ndarray, float], ...] = ()
    """Lines (points, radius) in fractions of the image, the last one nearest; a hand's fingers, or a thing."""
    occluder_colour: tuple[float, float, float] | None = None
    """None for the person's skin."""
    is_masked: bool = False


def _direction(azimuth: float, elevation: float) -> tuple[float, float, float]:
    across = np.cos(elevation)
    return float(np.sin(azimuth) * across), float(np.sin(elevation)), float(np.cos(azimuth) * across)


def _warmth(rng: np.random.Generator, spread: float) -> np.ndarray:
    """A light's colour, between candles and the sky."""
    warm = rng.normal(0, spread)
    return np.clip(np.array((1 + 0.35 * warm, 1 + 0.04 * warm, 1 - 0.40 * warm)), 0.45, 1.5)


def _lights(style: str, rng: np.random.Generator) -> dict:
    hemisphere = np.zeros((4, 3))
    if style == "studio":
        directions = [
            _direction(rng.uniform(-1.0, 1.0), rng.uniform(0.0, 0.9)),
            _direction(rng.uniform(-1.2, 1.2), rng.uniform(-0.1, 0.6)),
        ]
        colours = [rng.uniform(0.6, 1.0) * _warmth(rng, 0.08), rng.uniform(0.05, 0.45) * _warmth(rng, 0.08)]
        if rng.random() < 0.5:  # a rim light
            directions.append(_direction(rng.choice((-1, 1)) * rng.uniform(2.0, 2.6), rng.uniform(0.1, 0.7)))
            colours.append(rng.uniform(0.3, 0.9) * _warmth(rng, 0.1))
        ambient, blur = rng.uniform(0.08, 0.34) * _warmth(rng, 0.06), rng.uniform(1.0, 2.5)
    elif style == "street":
        sunny = rng.random() < 0.5
        directions = [_direction(rng.uniform(-1.6, 1.6), rng.uniform(0.3, 1.2))]
        colours = [(rng.uniform(0.7, 1.3) if sunny else rng.uniform(0.1, 0.4)) * _warmth(rng, 0.15)]
        ambient, blur = (
            rng.uniform(0.20, 0.55) * _warmth(rng, 0.15) * (0.95, 1.0, 1.08),
            rng.uniform(0.8, 1.3) if sunny else 3.0,
        )
        hemisphere[2] = ambient * rng.uniform(0.25, 0.55)  # the sky above, the ground below
        if rng.random() < 0.4:
            directions.append(_direction(rng.uniform(-2.2, 2.2), rng.uniform(-0.5, 0.4)))
            colours.append(rng.uniform(0.05, 0.3) * _warmth(rng, 0.3))
    else:
        directions = [_direction(rng.normal(0, 0.7), rng.uniform(-0.35, 1.0))]
        colours = [rng.uniform(0.3, 0.9) * _warmth(rng, 0.35)]
        ambient, blur = rng.uniform(0.08, 0.42) * _warmth(rng, 0.3), rng.uniform(0.8, 2.5)
        for _ in range(int(rng.integers(0, 3))):  # a screen, a lamp, a window
            directions.append(_direction(rng.uniform(-1.8, 1.8), rng.uniform(-0.6, 0.8)))
            colours.append(rng.uniform(0.1, 0.6) * _warmth(rng, 0.5))
    hemisphere[0] = ambient
    hemisphere[1] = ambient * rng.normal(0, 0.22)
    hemisphere[2] += ambient * rng.normal(0.15, 0.12)
    hemisphere[3] = ambient * rng.normal(0.05, 0.10)
    return {
        "lights": tuple(directions),
        "light_colours": tuple(tuple(np.asarray(colour).tolist()) for colour in colours),
        "ambient": tuple(map(tuple, hemisphere.tolist())),
        "shadow_blur": float(blur),
    }


_SIDE = 96


def _backdrop(rng: np.random.Generator) -> np.ndarray:
    """Paper or cloth, lit from one side."""
    wall = np.full(
        (_SIDE, _SIDE, 3), rng.uniform(0.05, 0.9) + rng.uniform(-0.08, 0.08, 3) * (rng.random() < 0.5), np.float32
    )
    x, y = np.meshgrid(np.linspace(-1, 1, _SIDE, dtype=np.float32), np.linspace(-1, 1, _SIDE, dtype=np.float32))
    centre = rng.uniform(-0.8, 0.8, 2)
    spot = np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / rng.uniform(0.5, 3))
    return wall * (rng.uniform(0.5, 0.9) + rng.uniform(0.1, 0.6) * spot)[..., None]


def _outdoors(rng: np.random.Generator) -> np.ndarray:
    """Sky, facades with windows, trees, ground."""
    picture = np.zeros((_SIDE, _SIDE, 3), np.float32)
    sky = np.array(((0.55, 0.70, 0.92), (0.82, 0.85, 0.88), (0.9, 0.75, 0.6))[int(rng.integers(3))]) * rng.uniform(
        0.6, 1.05
    )
    picture[:] = sky * np.linspace(0.85, 1.1, _SIDE)[:, None, None]
    left = -10
    while left < _SIDE:
        width, top = int(rng.integers(12, 50)), int(rng.integers(-30, 60))
        wall = (rng.uniform(0.1, 0.7) + rng.uniform(-0.1, 0.1, 3)).clip(0, 1)
        cv2.rectangle(picture, (left, top), (left + width, _SIDE), wall.tolist(), -1)
        pane = (wall * rng.uniform(0.3, 1.7)).clip(0, 1).tolist()
        step = int(rng.integers(6, 16))
        for row in range(top + 4, _SIDE - 12, step):
            for column in range(left + 3, left + width - 4, step):
                cv2.rectangle(picture, (column, row), (column + step // 2, row + step // 2), pane, -1)
        left += width
    for _ in range(int(rng.integers(0, 5))):
        green = (rng.uniform(0.05, 0.4) * np.array((0.8, 1.0, 0.45))).tolist()
        centre = rng.integers(0, _SIDE, 2)
        for spread in rng.normal(0, 8, (12, 2)):
            cv2.circle(picture, tuple((centre + spread).astype(int).tolist()), int(rng.integers(3, 9)), green, -1)
    cv2.rectangle(picture, (0, int(rng.integers(75, 100))), (_SIDE, _SIDE), [float(rng.uniform(0.2, 0.6))] * 3, -1)
    return cv2.GaussianBlur(picture, (0, 0), float(rng.uniform(0.6, 5)))


def _indoors(rng: np.random.Generator) -> np.ndarray:
    """A wall with a shelf, a picture, a door, a lamp."""
    wall = (rng.uniform(0.15, 0.85) + rng.uniform(-0.12, 0.12, 3)).clip(0.02, 1)
    picture = np.full((_SIDE, _SIDE, 3), wall, np.float32)
    for _ in range(int(rng.integers(1, 7))):
        a, b = rng.integers(-15, _SIDE, 2), rng.integers(6, 60, 2)
        colour = (rng.uniform(0.03, 0.9) + rng.uniform(-0.15, 0.15, 3)).clip(0, 1)
        cv2.rectangle(
            picture, tuple(a.tolist()), tuple((a + b).tolist()), colour.tolist(), -1 if rng.random() < 0.75 else 2
        )
        if rng.random() < 0.5:  # books, slats
            for column in range(int(a[0]), int(a[0] + b[0]), int(rng.integers(3, 7))):
                shade = (colour * rng.uniform(0.4, 1.5) + rng.uniform(-0.1, 0.1, 3)).clip(0, 1)
                cv2.line(picture, (column, int(a[1])), (column, int(a[1] + b[1])), shade.tolist(), 2)
    if rng.random() < 0.4:
        lamp = np.zeros((_SIDE, _SIDE), np.float32)
        cv2.circle(lamp, tuple(rng.integers(0, _SIDE, 2).tolist()), int(rng.integers(4, 12)), 1.0, -1)
        picture += (cv2.GaussianBlur(lamp, (0, 0), 2) + 3 * cv2.GaussianBlur(lamp, (0, 0), 16))[..., None] * np.float32(
            (0.9, 0.8, 0.6)
        )
    slope = np.linspace(rng.uniform(0.6, 1.2), rng.uniform(0.6, 1.2), _SIDE, dtype=np.float32)
    picture *= slope[None, :, None]
    return cv2.GaussianBlur(picture, (0, 0), float(rng.uniform(0.4, 4)))


_BACKGROUNDS = {"studio": _backdrop, "street": _outdoors, "webcam": _indoors}


def _camera(style: str, rng: np.random.Generator) -> dict:
    """What sensor, lens and file do; mild in the studio."""
    grey = rng.random() < (0.06 if style == "studio" else 0.10)
    balance = 1 + rng.normal(0, 0.03 if style == "studio" else 0.06, 3)
    camera = {
        "exposure": float(rng.normal(0, 0.22 if style == "studio" else 0.38)),
        "contrast": float(rng.uniform(0.95, 1.45)),
        "balance": tuple(np.clip(balance, 0.8, 1.2).tolist()),
        "saturation": float(rng.uniform(0.7, 1.15)),
        "is_grey": bool(grey),
    }
    chance = rng.random(5)
    if style == "studio":
        camera |= {"distance": float(rng.uniform(9, 22)), "noise": float(rng.gamma(1.2, 0.8))}
        camera |= {"blur": float(rng.uniform(0, 0.7)), "sharpen": float(rng.uniform(0, 0.5) * (chance[0] < 0.4))}
        camera |= {"jpeg": int(rng.integers(75, 96)) if chance[1] < 0.6 else 0}
    elif style == "street":
        camera |= {"distance": float(rng.uniform(7, 40)), "noise": float(rng.gamma(1.3, 1.5))}
        camera |= {"blur": float(rng.uniform(0, 1.2)), "shrink": float(rng.uniform(0.4, 1) if chance[0] < 0.5 else 1)}
        camera |= {"sharpen": float(rng.uniform(0, 0.8) * (chance[1] < 0.4))}
        camera |= {"jpeg": int(rng.integers(35, 96)) if chance[2] < 0.8 else 0}
    else:
        camera |= {"distance": float(rng.uniform(4.2, 9)), "noise": float(rng.gamma(1.6, 2.2))}
        camera |= {
            "shrink": float(rng.uniform(0.33, 0.9) if chance[0] < 0.7 else 1),
            "blur": float(rng.uniform(0, 0.9)),
        }
        camera |= {"motion": tuple((rng.normal(0, 0.010, 2) * (chance[1] < 0.25)).tolist())}
        camera |= {"sharpen": float(rng.uniform(0, 1.2) * (chance[2] < 0.4)), "jpeg": int(rng.integers(20, 85))}
    return camera


_POSE = {"studio": (0.20, 0.10, 0.06), "street": (0.32, 0.15, 0.09), "webcam": (0.24, 0.18, 0.09)}


def draw_shot(style: str, rng: np.random.Generator) -> dict:
    """The fields of a video's shot that stay; the pose is where it begins and ends."""
    pose = np.clip(rng.standard_normal((2, 3)), -2.2, 2.2) * _POSE[style]
    pose[1] = pose[0] + 0.45 * (pose[1] - pose[0])
    place = {
        **_lights(style, rng),
        **_camera(style, rng),
        "background": np.clip(_BACKGROUNDS[style if rng.random() < 0.85 else "webcam"](rng), 0, 1).astype(np.float32),
        "is_masked": bool(rng.random() < 0.015),
    }
    if rng.random() < (0.04 if style == "studio" else 0.10):
        place["occluder"] = _hand(rng)
    elif rng.random() < (0.01 if style == "studio" else 0.03):  # a cup, a phone, a microphone
        place["occluder"] = ((_towards_face(rng, 0.30, 0.45) + rng.normal(0, 0.06, (2, 2)), rng.uniform(0.04, 0.09)),)
        place["occluder_colour"] = tuple(rng.uniform(0.05, 0.7, 3).tolist())
    frame = {"scale": float(rng.uniform(0.80, 0.98)), "shift": tuple(rng.normal(0, 0.014, 2).tolist())}
    return {"pose": pose, "place": place, "frame": frame}


def _towards_face(rng: np.random.Generator, nearest: float, farthest: float) -> np.ndarray:
    """A point so far from the image's middle; seldom above it."""
    angle, away = rng.uniform(-0.2, 1.2) * np.pi, rng.uniform(nearest, farthest)
    return 0.5 + away * np.array((np.cos(angle), np.sin(angle)))


def _hand(rng: np.random.Generator) -> tuple[tuple[np.ndarray, float], ...]:
    """Arm, palm, thumb and four fingers that touch the edge of the face."""
    tip = _towards_face(rng, 0.23, 0.36)
    lean = np.arctan2(*(0.5 - tip)[::-1]) + rng.normal(0, 0.5)
    size, side, bend = rng.uniform(0.85, 1.15), rng.choice((-1, 1)), rng.uniform(0, 0.5)

    def line(start: tuple[float, float], lengths: tuple[float, ...], angle: float, radius: float, curl: float = 0.0):
        points = [np.array(start)]
        for number, length in enumerate(lengths):
            turn = angle + curl * number
            points.append(points[-1] + length * np.array((np.cos(turn), np.sin(turn))))
        (x, y), (cos, sin) = np.array(points).T, (np.cos(lean), np.sin(lean))
        x, y = (x - 0.30) * size, y * side * size
        return np.stack([tip[0] + cos * x - sin * y, tip[1] + sin * x + cos * y], 1), radius * size

    fingers = [
        line((0.10 - 0.4 * abs(y), y), (0.45 * long, 0.33 * long, 0.22 * long), 1.6 * y, 0.025, bend * (0.4 + y))
        for y, long in ((0.074, 0.15), (-0.076, 0.18), (0.026, 0.20), (-0.026, 0.21))
    ]
    palm = [line((-0.8, 0.0), (0.75,), 0.0, 0.062), line((0.0, -0.03), (0.09,), 0.0, 0.08)]
    return (*palm, line((0.0, 0.03), (0.09,), 0.0, 0.08), *fingers, line((-0.02, -0.07), (0.09, 0.08), -0.7, 0.03, 0.5))


def _cover(line: tuple[np.ndarray, float], size: int) -> np.ndarray:
    points, cover = np.round(line[0] * size * 16).astype(np.int32), np.zeros((size, size), np.float32)
    cv2.polylines(cover, [points], False, 1.0, max(round(2 * line[1] * size), 1), cv2.LINE_AA, 4)
    return cover


def occluded(shot: Shot, size: int) -> np.ndarray:
    """(size, size): whether what is held before the face hides it."""
    return np.any([np.zeros((size, size), bool), *(_cover(line, size) > 0.5 for line in shot.occluder)], axis=0)


def occlude(image: np.ndarray, shot: Shot, skin: np.ndarray) -> np.ndarray:
    """Draws a hand or a thing over an image from 0 to 1, round and with a soft shadow."""
    size, colour = len(image), np.float32(skin if shot.occluder_colour is None else shot.occluder_colour)
    shadow = cv2.GaussianBlur(occluded(shot, size).astype(np.float32), (0, 0), size * 0.025)
    image = image * (1 - 0.4 * shadow)[..., None]
    for line in shot.occluder:
        cover = _cover(line, size)
        inside = cv2.distanceTransform((cover > 0.5).astype(np.uint8), cv2.DIST_L2, 3) / (line[1] * size)
        shade = (0.55 + 0.45 * np.sqrt(np.clip(inside * (2 - inside), 0, 1)))[..., None]
        image = image + cover[..., None] * (colour * shade - image)
    return image.astype(np.float32)


def finish(image: np.ndarray, shot: Shot) -> np.ndarray:
    """Linear light (display size, RGB 0 to 1 with background) -> bytes, as a camera and a file leave them."""
    size = len(image)
    per = size / 112  # blur, noise and size are told for 112 pixels
    if shot.shrink < 1:
        small = max(24, round(size * shot.shrink / max(per, 1) ** 0.5))
        image = cv2.resize(
            cv2.resize(image, (small, small), interpolation=cv2.INTER_AREA),
            (size, size),
            interpolation=cv2.INTER_LINEAR,
        )
    if shot.blur > 0.25:
        image = cv2.GaussianBlur(image, (0, 0), shot.blur * per)
    if max(map(abs, shot.motion)) > 0.004:
        steps = [
            np.float32([[1, 0, shot.motion[0] * size * t], [0, 1, shot.motion[1] * size * t]])
            for t in (-1, -0.5, 0, 0.5, 1)
        ]
        image = sum(
            cv2.warpAffine(image, step, (size, size), borderMode=cv2.BORDER_REPLICATE) for step in steps
        ) / np.float32(5)
    if shot.sharpen > 0:
        image = image + np.float32(shot.sharpen) * (image - cv2.GaussianBlur(image, (0, 0), 1.3 * per))
    grey = image @ np.float32((0.299, 0.587, 0.114))
    if shot.is_grey:
        image = np.repeat(grey[..., None], 3, -1)
    elif shot.saturation != 1:
        image = grey[..., None] + np.float32(shot.saturation) * (image - grey[..., None])
    if shot.noise > 0:
        # Sums of bytes: the same on every machine, and near enough to a bell.
        rng = np.random.Generator(np.random.PCG64(shot.noise_seed))
        channels = 1 if shot.is_grey else 3
        grain = np.frombuffer(rng.bytes(size * size * channels * 2), np.uint8).reshape(2, size, size, channels)
        grain = (grain[0].astype(np.float32) + grain[1] - 255) * np.float32(shot.noise / 104 / 255)
        image = image + (grain if channels == 1 else 0.6 * grain + 0.4 * grain.mean(-1, keepdims=True))
    pixels = np.clip(image * 255 + np.float32(0.5), 0, 255).astype(np.uint8)
    if shot.jpeg:
        encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, shot.jpeg])[1]
        pixels = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    return pixels


__all__ = ["RENDERED_STYLES", "Shot", "draw_shot", "finish", "occlude", "occluded"]
