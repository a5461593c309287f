"""Synthetic subjects, their expressions from frame to frame, the scenes, and the annotations.

Image i depends on (seed, style, i) alone: every random choice comes from a generator keyed by what it belongs to.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from configuration_mf2.facs import EMOTIONS, UNKNOWN_LABEL, LabelSet
from mf2face.data.synthetic.actions import RENDERED_AUS
from mf2face.data.synthetic.drawing import DRAWABLE_AUS, DrawnPerson, Scene, drawn_person, drawn_scene
from mf2face.data.synthetic.people import Person, draw_person
from mf2face.data.synthetic.places import RENDERED_STYLES, Shot, draw_shot


_STYLE_KEYS = {"studio": 3, "street": 4, "webcam": 5, "drawn": 1}
"""What each style's random numbers are keyed by."""
STYLES = tuple(_STYLE_KEYS)
"""The last one is for tests: plain faces in a millisecond."""
FRAMES_PER_VIDEO, VIDEOS_PER_SUBJECT = 8, 2
FRAMES_PER_SUBJECT = FRAMES_PER_VIDEO * VIDEOS_PER_SUBJECT
ACTIVE_FROM = 2.0
"""The intensity, of 5, from which an AU counts as active."""
AU_FLIPS, EMOTION_SWAPS, UNKNOWNS = 0.02, 0.08, 0.02
"""Annotators' errors, and the labels they left out."""
BLINKS = 0.03
"""The share of rendered frames in which a blink shuts the eyes."""

# How often an emotion comes with each AU, in percent: EMFACS-like prototypes that overlap.
_PROTOTYPES: dict[str, tuple[int, ...]] = {
    # AU           1   2   4   6   7   9  10  12  14  15  17  23  24  25  26
    "Neutral": (    3,  3,  3,  3,  4,  1,  3,  3,  5,  3,  4,  3,  4,  5,  3),
    "Anger": (      3,  4, 88,  6, 66,  8, 22,  3,  8,  8, 40, 72, 54, 20,  8),
    "Disgust": (    4,  4, 50, 18, 40, 66, 86,  5, 10, 22, 34,  5,  6, 36,  8),
    "Fear": (      84, 58, 66,  4, 34,  3,  8,  5,  3, 10,  5,  5,  3, 66, 40),
    "Happiness": (  5,  5,  3, 82, 34,  3, 22, 95, 16,  2,  3,  3,  3, 62, 24),
    "Sadness": (   76,  8, 66, 10, 20,  3,  8,  3, 12, 82, 56,  5, 16, 10,  4),
    "Surprise": (  86, 90,  4,  3,  3,  2,  4, 10,  3,  3,  3,  2,  2, 82, 86),
    "Other": (      6, 54,  8, 36, 52,  4, 12, 44, 70,  8, 22, 52, 44, 16, 50),
}  # fmt: skip
# What rendered faces show beside, or at other odds: percent with each emotion; 3 where nothing is said.
_MORE_PROTOTYPES: dict[str, dict[str, int]] = {
    "AU10": {"Anger": 36},
    "AU23": {"Anger": 52},
    "AU24": {"Anger": 34},
    "AU25": {"Anger": 48, "Neutral": 10},
    "AU26": {"Anger": 24},
    "AU5": {"Fear": 62, "Surprise": 58, "Anger": 34, "Other": 8},
    "AU16": {"Disgust": 24, "Anger": 20, "Fear": 12},
    "AU18": {"Other": 12, "Neutral": 4},
    "AU20": {"Fear": 52, "Other": 6},
    "AU22": {"Anger": 12, "Other": 6},
    "AU27": {"Surprise": 18, "Fear": 8, "Anger": 6, "Other": 6},
    "AU43": {"Neutral": 7, "Happiness": 6, "Sadness": 7, "Disgust": 7, "Other": 7},
}
# Muscles that cannot pull at once: of two drawn together, the second is dropped with this probability.
_RIVALS = (
    ("AU24", "AU25", 1.0),
    ("AU24", "AU26", 0.8),
    ("AU12", "AU15", 0.8),
    ("AU12", "AU23", 0.6),
    ("AU14", "AU15", 0.5),
)
_RENDERED_RIVALS = (
    *_RIVALS,
    *(("AU43", other, 1.0) for other in ("AU5", "AU7")),
    *(("AU27", other, 1.0) for other in ("AU26", "AU24", "AU23", "AU17", "AU18", "AU22")),
    *(("AU22", other, 1.0) for other in ("AU24", "AU23", "AU18", "AU12", "AU20")),
    *(("AU18", other, 1.0) for other in ("AU24", "AU12", "AU20", "AU16", "AU25")),
    *(("AU16", other, 1.0) for other in ("AU24", "AU17")),
    ("AU24", "AU10", 0.8),
)
# Lips that part of necessity, whether or not anything else parts them.
_PARTS_LIPS = {"AU26": 0.9, "AU27": 1.0, "AU16": 0.7, "AU22": 0.7, "AU10": 0.45}


@dataclass(frozen=True)
class Annotation:
    """One image's truth, and what the annotators wrote; arrays follow `shown_aus`, emotions index EMOTIONS."""

    true_intensities: np.ndarray
    true_emotion: int
    intensities: np.ndarray
    """-1 where unknown."""
    labels: np.ndarray
    emotion: int


def keyed_rng(seed: int, style: str, kind: int, index: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, _STYLE_KEYS[style], kind, index))))


_SUBJECT, _EXPRESSION, _SCENE, _FRAME, _ANNOTATOR, _DETECTOR, _WRITER, _SIDES, _HABITS, _GAZE, _BLINK = range(11)


def is_rendered(style: str) -> bool:
    return style in RENDERED_STYLES


def shown_aus(style: str) -> tuple[str, ...]:
    """The action units that a style can show."""
    return RENDERED_AUS if is_rendered(style) else DRAWABLE_AUS


@lru_cache(maxsize=64)
def subject(seed: int, style: str, index: int) -> DrawnPerson | Person:
    rng = keyed_rng(seed, style, _SUBJECT, index)
    return draw_person(rng) if is_rendered(style) else drawn_person(rng)


def _odds(style: str, emotion: str) -> np.ndarray:
    """How often each AU comes with an emotion."""
    odds = dict(zip(DRAWABLE_AUS, _PROTOTYPES[emotion], strict=True))
    if is_rendered(style):
        odds |= {name: more.get(emotion, odds.get(name, 3)) for name, more in _MORE_PROTOTYPES.items()}
    return np.array([odds.get(name, 3) for name in shown_aus(style)]) / 100


@lru_cache(maxsize=64)
def _keyframes(seed: int, style: str, video: int) -> tuple[float, list[int], np.ndarray]:
    """When a video's three expressions peak, their emotions and the AU intensities (3, AUs)."""
    rng, names = keyed_rng(seed, style, _EXPRESSION, video), shown_aus(style)
    emotions = rng.integers(len(EMOTIONS), size=3).tolist()
    intensities = np.zeros((3, len(names)))
    for row, emotion in zip(intensities, emotions, strict=True):
        odds = _odds(style, EMOTIONS[emotion])
        is_active = rng.random(len(odds)) < odds
        for first, second, drop in _RENDERED_RIVALS if is_rendered(style) else _RIVALS:
            first, second = names.index(first), names.index(second)
            is_active[second] &= not (is_active[first] and rng.random() < drop)
        faint = np.where(rng.random(len(odds)) < 0.35, 1.5 * rng.random(len(odds)), 0.0)
        row[:] = np.where(is_active, ACTIVE_FROM + 3.0 * rng.random(len(odds)), faint)
        if is_rendered(style):
            _follow_lips(row, names)
    return float(rng.random()), emotions, intensities


def _follow_lips(row: np.ndarray, names: tuple[str, ...]) -> None:
    parted, pressed, gaping = (names.index(name) for name in ("AU25", "AU24", "AU27"))
    if row[gaping] < ACTIVE_FROM:  # a mouth that gapes a little has parted lips and a dropped jaw
        row[gaping] = 0.0
    row[parted] = max(row[parted], *(row[names.index(name)] * share for name, share in _PARTS_LIPS.items()))
    if row[parted] >= ACTIVE_FROM:
        row[pressed] = min(row[pressed], 1.0)


def expression(seed: int, style: str, index: int) -> tuple[np.ndarray, int]:
    """True intensities and emotion: a video goes smoothly from one expression to the next.

    A rendered person blinks now and then (AU45); a single frame shows that as closed eyes, and it counts as AU43.
    """
    video, frame = divmod(index, FRAMES_PER_VIDEO)
    phase, emotions, intensities = _keyframes(seed, style, video)
    time = min(max((frame + 0.5 * phase - 0.5) / 3, 0.0), 2.0)
    before = min(int(time), 1)
    share = min(max(2.4 * (time - before - 0.5) + 0.5, 0.0), 1.0)
    share = share * share * (3 - 2 * share)
    # Tenths, downwards, so that a printed 2.0 and an active label agree.
    between = intensities[before] + (intensities[before + 1] - intensities[before]) * share
    if is_rendered(style):
        blinks, shut = keyed_rng(seed, style, _BLINK, index).random(2)
        eyes = shown_aus(style).index("AU43")
        between[eyes] = max(between[eyes], (blinks < BLINKS) * (ACTIVE_FROM + 3.0 * shut))
    return np.floor(between * 10 + 1e-6) / 10, emotions[before + (share >= 0.5)]


def annotate(seed: int, style: str, index: int) -> Annotation:
    true_intensities, true_emotion = expression(seed, style, index)
    rng = keyed_rng(seed, style, _ANNOTATOR, index)
    flips, unknown, borderline = rng.random((3, len(shown_aus(style))))
    is_active = true_intensities >= ACTIVE_FROM
    wrong = np.where(is_active, np.floor(borderline * 20) / 10, ACTIVE_FROM + np.floor(borderline * 10) / 10)
    intensities = np.where(flips < AU_FLIPS, wrong, true_intensities)
    labels = (intensities >= ACTIVE_FROM).astype(np.int8)
    is_unknown = unknown < UNKNOWNS
    emotion = true_emotion
    if rng.random() < EMOTION_SWAPS:
        emotion = (true_emotion + 1 + int(rng.integers(len(EMOTIONS) - 1))) % len(EMOTIONS)
    if rng.random() < UNKNOWNS:
        emotion = UNKNOWN_LABEL
    return Annotation(
        true_intensities,
        true_emotion,
        np.where(is_unknown, UNKNOWN_LABEL, intensities),
        np.where(is_unknown, UNKNOWN_LABEL, labels).astype(np.int8),
        emotion,
    )


def sides(seed: int, style: str, index: int) -> np.ndarray:
    """(RENDERED_AUS, 2): true intensities of the person's left and right side; the stronger one is the AU's."""
    intensities, video = expression(seed, style, index)[0], index // FRAMES_PER_VIDEO
    rng = keyed_rng(seed, style, _SIDES, video)
    count = len(intensities)
    weaker = np.clip(1 - np.abs(rng.normal(0, 0.08, count)), 0.6, 1)
    one_sided = rng.random(count) < 0.07
    weaker = np.where(one_sided, 0.45 * rng.random(count), weaker)
    is_left = rng.random(count) < 0.5
    return intensities[:, None] * np.where(np.stack([is_left, ~is_left], 1), 1.0, weaker[:, None])


def gaze(seed: int, style: str, index: int) -> tuple[float, float]:
    """Radians to the person's left, and up: at the camera, aside, or wandering."""
    rng = keyed_rng(seed, style, _GAZE, index // FRAMES_PER_VIDEO)
    base = np.clip(rng.normal(0, (0.15, 0.08)), (-0.45, -0.25), (0.45, 0.22))
    frame = keyed_rng(seed, style, _FRAME, index).normal(0, 0.02, 2)
    return float(base[0] + frame[0]), float(base[1] + frame[1])


def habits(seed: int, style: str, index: int) -> np.random.Generator:
    """For what a face does that means nothing; the same through a video."""
    return keyed_rng(seed, style, _HABITS, index // FRAMES_PER_VIDEO)


@lru_cache(maxsize=64)
def _rendered_shot(seed: int, style: str, video: int) -> dict:
    return draw_shot(style, keyed_rng(seed, style, _SCENE, video))


def shot(seed: int, style: str, index: int) -> Shot:
    """Light, camera and place of a rendered frame."""
    video, frame = divmod(index, FRAMES_PER_VIDEO)
    drawn, rng = _rendered_shot(seed, style, video), keyed_rng(seed, style, _FRAME, index)
    share = frame / (FRAMES_PER_VIDEO - 1)
    shake = rng.normal(0, 1, 6) * (0.015, 0.012, 0.01, 0.008, 0.004, 0.004)
    yaw, pitch, roll = (drawn["pose"][0] * (1 - share) + drawn["pose"][1] * share + shake[:3]).tolist()
    shift_x, shift_y = (np.array(drawn["frame"]["shift"]) + shake[4:]).tolist()
    scale = drawn["frame"]["scale"] + float(shake[3])
    place = {"yaw": yaw, "pitch": pitch, "roll": roll, "scale": scale, "shift": (shift_x, shift_y)}
    return Shot(**place, **drawn["place"], noise_seed=int(rng.integers(2**63)))


def scene(seed: int, style: str, index: int) -> Scene:
    """Pose, light and background of a drawn frame."""
    video, frame = (
        keyed_rng(seed, style, kind, at) for kind, at in ((_SCENE, index // FRAMES_PER_VIDEO), (_FRAME, index))
    )
    return drawn_scene(video, frame)


def detected(landmarks: np.ndarray, seed: int, style: str, index: int, size: int) -> np.ndarray:
    """Landmarks with a detector's error: 1.5 pixels (standard deviation) at 112, in proportion at other sizes."""
    error = keyed_rng(seed, style, _DETECTOR, index).standard_normal(landmarks.shape)
    return (landmarks + np.round(error * 1.5 * size / 112 * 64) / 64).astype(np.float32)


def writer_rng(seed: int, style: str, index: int) -> np.random.Generator:
    return keyed_rng(seed, style, _WRITER, index)


def check_drawable(label_set: LabelSet, style: str) -> list[int]:
    """Positions of the label set's AUs among those of a style; its emotions must be the eight shown, or none."""
    names = shown_aus(style)
    if missing := [name for name in label_set.action_units if name not in names]:
        raise ValueError(
            f"label_set: {missing} cannot be drawn, expected AUs among {list(names)} of the style {style!r}. "
            "Choose a set without them, or another style"
        )
    if label_set.emotions not in ((), EMOTIONS):
        raise ValueError(f"label_set: got emotions {label_set.emotions}, expected none or {EMOTIONS}, the ones drawn")
    return [names.index(name) for name in label_set.action_units]
