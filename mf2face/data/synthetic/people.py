"""Who a rendered person is: head, skin, hair, eyes, clothes and what is worn, drawn at random from a generator."""

from dataclasses import dataclass

import numpy as np

from mf2face.data.synthetic.anatomy import anatomy
from mf2face.data.synthetic.bank import FACTS


Colour = tuple[float, float, float]
"""Linear RGB."""

_TONES = np.array(
    [
        *((244, 216, 200), (234, 196, 172), (218, 174, 146), (198, 152, 118), (172, 124, 92), (140, 96, 68)),
        *((106, 70, 50), (74, 50, 40)),
    ]
)
"""sRGB of skin, from light to dark."""
_HAIRS = np.array([(22, 18, 17), (44, 31, 24), (78, 54, 38), (120, 86, 56), (172, 136, 92), (136, 66, 36)])
_GREY_HAIR = np.array((176, 174, 170))
_IRISES = np.array([(58, 36, 22), (88, 58, 34), (112, 86, 48), (92, 110, 84), (96, 124, 146), (120, 136, 144)])
CUTS = (
    "bald", "receding", "buzz", "short", "side", "quiff", "fringe", "bob", "curtain", "long", "tied", "curls", "afro",
)  # fmt: skip
BEARDS = ("none", "stubble", "moustache", "goatee", "short", "full")
HEADWEAR = ("none", "beanie", "cap", "scarf", "band")
EARRINGS = ("none", "stud", "hoop", "drop")
EYEWEAR = ("none", "thin", "thick", "sunglasses")
MEAN_ARCH = 0.64
"""Of brows, for which the bank's landmarks are placed."""


@dataclass(frozen=True)
class Person:
    seed: int
    """Of the skin's and the hair's texture."""
    head: np.ndarray
    """Weights of the bank's components."""
    age: float = 0.3
    """Child below 0, adult from 0 to old at 1."""
    is_male: bool = False
    tone: float = 0.3
    """Place among the skin tones, light 0 to dark 1."""
    skin: Colour = (0.6, 0.38, 0.27)
    lips: Colour = (0.45, 0.18, 0.16)
    hair: Colour = (0.03, 0.02, 0.015)
    brow: Colour = (0.03, 0.02, 0.015)
    iris: Colour = (0.1, 0.05, 0.02)
    brow_width: float = 1.0
    brow_arch: float = 1.0
    brow_density: float = 0.8
    brow_height: float = 0.0
    brow_rest: float = 0.0
    """How far the brows lie below the bank's, in strengths of the muscles that raise them."""
    cut: str = "short"
    beard: str = "none"
    headwear: str = "none"
    eyewear: str = "none"
    earrings: str = "none"
    frame: Colour = (0.02, 0.02, 0.02)
    fabric: Colour = (0.2, 0.2, 0.3)
    clothes: Colour = (0.1, 0.12, 0.2)
    collar: float = 0.945
    """Where clothes begin, as a fraction of the chart's height, and how steeply a neckline falls to the middle."""
    neckline: float = 0.0
    make_up: float = 0.0
    freckles: float = 0.0
    wrinkles: float = 0.3
    """How deep folds are, 0.4 on a child to 1.4."""
    shine: float = 0.5
    teeth: Colour = (0.7, 0.66, 0.56)
    lashes: float = 0.6
    lid_droop: float = 0.0
    asymmetry: tuple[float, float] = (0.0, 0.0)
    """Of the upper and the lower face: by how much the left side does more than the right."""

    @property
    def group(self) -> str:
        tone = "light" if self.tone < 0.36 else "medium" if self.tone < 0.66 else "dark"
        return f"{tone} skin, {'older' if self.age >= 0.5 else 'younger'}"


def linear(srgb: np.ndarray | tuple) -> np.ndarray:
    return (np.asarray(srgb, np.float64) / 255) ** 2.2


def _colour(values: np.ndarray) -> Colour:
    return tuple(np.clip(values, 0.004, 0.95).tolist())


def skin_of(tone: float, rng: np.random.Generator) -> np.ndarray:
    at = np.clip(tone, 0, 1) * (len(_TONES) - 1)
    index = min(int(at), len(_TONES) - 2)
    srgb = _TONES[index] + (_TONES[index + 1] - _TONES[index]) * (at - index)
    return linear(srgb * rng.uniform(0.96, 1.04) * rng.uniform(0.975, 1.025, 3))


def _cut_odds(is_male: bool, age: float, curly: float) -> np.ndarray:
    """Of CUTS."""
    if is_male:
        values = np.array((8 + 14 * max(age, 0), 4 + 22 * max(age, 0), 14, 26, 18, 14, 7, 1, 2, 3, 2, 6, 0))
    else:
        values = np.array((0.7, 0, 2, 8, 7, 3, 5, 16, 14, 24, 16, 8, 0))
    values = values + curly * np.array((*[0] * 11, 20, 22))
    return values / values.sum()


def draw_person(rng: np.random.Generator) -> Person:
    """Light, age, glasses, hair and skin say nothing about what a face will do."""
    bank = anatomy().bank
    number = int(rng.integers(len(bank.heads)))
    facts = dict(zip(FACTS, bank.facts[number].tolist(), strict=True))
    # Neighbours of a baked head: no two people share one.
    head = 0.80 * bank.heads[number] + 0.22 * rng.standard_normal(bank.heads.shape[1])
    is_male, age = facts["gender"] > 0.5, (facts["age"] - 0.6) / 0.4
    tone = float(np.clip(rng.normal(0.24 + 0.52 * facts["african"] + 0.10 * facts["asian"], 0.13), 0, 1))
    skin = skin_of(tone, rng)
    hair = _HAIRS[rng.choice(6, p=(0.24, 0.24, 0.22, 0.14, 0.10, 0.06) if tone < 0.4 else (0.7, 0.25, 0.05, 0, 0, 0))]
    if rng.random() < 0.03:
        hair = rng.uniform(40, 190, 3)  # dyed
    grey = np.clip((age - 0.45) * 2.2 * rng.random() + 0.25 * (age > 0.75), 0, 1)
    brow = linear((0.75 * hair + 0.25 * np.array((40, 30, 26))) * (1 - 0.5 * grey) + 0.5 * grey * _GREY_HAIR)
    hair = linear((hair * (1 - grey) + grey * _GREY_HAIR) * rng.uniform(0.8, 1.2))
    painted = not is_male and rng.random() < 0.45
    lips = skin * (0.86, 0.55, 0.55) * rng.uniform(0.75, 1.0)
    if painted:
        lips = 0.35 * lips + 0.65 * linear(rng.uniform((120, 20, 30), (210, 100, 110)))
    bearded = is_male and age > 0.05 and rng.random() < 0.55
    irises = (0.42, 0.28, 0.10, 0.06, 0.09, 0.05) if tone < 0.4 else (0.75, 0.23, 0.02, 0, 0, 0)
    return Person(
        seed=int(rng.integers(2**31)),
        head=head.astype(np.float32),
        age=float(age),
        is_male=bool(is_male),
        tone=tone,
        skin=_colour(skin),
        lips=_colour(lips),
        hair=_colour(hair),
        brow=_colour(np.minimum(brow, skin * 0.6)),
        iris=_colour(linear(_IRISES[rng.choice(6, p=irises)] * rng.uniform(0.85, 1.25))),
        brow_width=float(rng.uniform(0.75, 1.3) * (1.15 if is_male else 0.85)),
        brow_arch=float(rng.uniform(0.2, 1.3) * (0.7 if is_male else 1.0)),
        brow_density=float(rng.uniform(0.5, 1.0)),
        brow_height=float(rng.normal(0, 0.012)),
        brow_rest=float(np.clip(rng.normal(0.6, 0.35), -0.3, 1.2)),
        cut=str(rng.choice(CUTS, p=_cut_odds(is_male, age, facts["african"]))),
        beard=str(rng.choice(BEARDS[1:], p=(0.36, 0.10, 0.14, 0.25, 0.15))) if bearded else "none",
        headwear=str(rng.choice(HEADWEAR, p=(0.89, 0.035, 0.03, 0.03, 0.015))),
        eyewear=str(rng.choice(EYEWEAR, p=(0.80, 0.10, 0.08, 0.02))),
        earrings=str(rng.choice(EARRINGS, p=(0.93, 0.05, 0.02, 0.0) if is_male else (0.55, 0.2, 0.13, 0.12))),
        frame=_colour(linear(rng.uniform(5, 60, 3) if rng.random() < 0.7 else rng.uniform(60, 200, 3))),
        fabric=_colour(linear(rng.uniform(20, 150) + rng.uniform(-15, 60, 3) * rng.random())),
        clothes=_colour(linear(rng.uniform(10, 90) + rng.uniform(0, 130, 3) * rng.random())),
        collar=float(rng.uniform(0.925, 0.975)),
        neckline=float(rng.uniform(-0.3, 0.15) if rng.random() < 0.6 else 0.0),
        make_up=float(rng.uniform(0.2, 0.8)) if painted else 0.0,
        freckles=float(rng.random() ** 3 * (1 - tone)),
        wrinkles=float(np.clip(0.55 + 0.6 * age, 0.4, 1.15) * rng.uniform(0.5, 1.3)),
        shine=float(rng.uniform(0.15, 0.75)),
        teeth=_colour(np.array((0.72, 0.68, 0.58)) * rng.uniform(0.75, 1.1) * (1, 1, rng.uniform(0.85, 1.1))),
        lashes=float(rng.uniform(0.15, 0.4) if is_male else rng.uniform(0.3, 0.8)),
        lid_droop=float(np.clip(rng.normal(0.02, 0.09), -0.15, 0.25)),
        asymmetry=tuple(np.clip(rng.normal(0, 0.07, 2), -0.2, 0.2).tolist()),
    )


__all__ = [
    "BEARDS",
    "CUTS",
    "EARRINGS",
    "EYEWEAR",
    "HEADWEAR",
    "MEAN_ARCH",
    "Colour",
    "Person",
    "draw_person",
    "linear",
    "skin_of",
]
