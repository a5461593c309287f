"""What a face can show and where: action units, emotions, the corpora's label sets, 68 landmarks (iBUG order)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ActionUnit:
    noun: str
    verb: str
    """Imperative form, as in Exp-BLIP's supplement, Table 1."""


ACTION_UNITS: dict[str, ActionUnit] = {
    "AU1": ActionUnit("inner brow raiser", "raise inner eyebrow"),
    "AU2": ActionUnit("outer brow raiser", "raise outer eyebrow"),
    "AU4": ActionUnit("brow lowerer", "lower brow"),
    "AU5": ActionUnit("upper lid raiser", "raise upper lid"),
    "AU6": ActionUnit("cheek raiser", "raise cheek"),
    "AU7": ActionUnit("lid tightener", "tighten lids"),
    "AU8": ActionUnit("lips toward each other", "pull lips toward each other"),
    "AU9": ActionUnit("nose wrinkler", "wrinkle nose"),
    "AU10": ActionUnit("upper lip raiser", "raise upper lip"),
    "AU11": ActionUnit("nasolabial deepener", "deepen nasolabial"),
    "AU12": ActionUnit("lip corner puller", "pull lip corner"),
    "AU14": ActionUnit("dimpler", "tighten lip corner"),
    "AU15": ActionUnit("lip corner depressor", "depress lip corner"),
    "AU16": ActionUnit("lower lip depressor", "depress lower lip"),
    "AU17": ActionUnit("chin raiser", "raise chin"),
    "AU18": ActionUnit("lip pucker", "pucker lips"),
    "AU19": ActionUnit("tongue show", "stick tongue out"),
    "AU20": ActionUnit("lip stretch", "stretch lips"),
    "AU21": ActionUnit("neck tightener", "tighten neck"),
    "AU22": ActionUnit("lip funneler", "show lip funneler"),
    "AU23": ActionUnit("lip tightener", "tighten lips"),
    "AU24": ActionUnit("lip pressor", "press lips"),
    "AU25": ActionUnit("lips part", "separate lips"),
    "AU26": ActionUnit("jaw drop", "drop jaw"),
    "AU27": ActionUnit("mouth stretch", "stretch mouth"),
    "AU28": ActionUnit("lip suck", "suck lips"),
    "AU43": ActionUnit("eyes closed", "close eyes"),
}

EMOTIONS: tuple[str, ...] = ("Neutral", "Anger", "Disgust", "Fear", "Happiness", "Sadness", "Surprise", "Other")
"""Aff-Wild2's order, and MFA's."""

UNKNOWN_LABEL = -1
"""An AU or an emotion nobody labelled: masked out of every loss and metric, the frame is kept."""


@dataclass(frozen=True)
class LabelSet:
    action_units: tuple[str, ...] = ()
    emotions: tuple[str, ...] = ()


def _aus(*numbers: int) -> tuple[str, ...]:
    return tuple(f"AU{number}" for number in numbers)


_MFA = LabelSet(_aus(1, 2, 4, 6, 7, 10, 12, 15, 23, 24, 25, 26), EMOTIONS)

LABEL_SETS: dict[str, LabelSet] = {
    "mfa": _MFA,
    "aff_wild2": _MFA,
    "bp4d": LabelSet(_aus(1, 2, 4, 6, 7, 10, 12, 14, 15, 17, 23, 24)),
    "disfa": LabelSet(_aus(1, 2, 4, 6, 9, 12, 25, 26)),
    "gft": LabelSet(_aus(1, 2, 4, 6, 10, 12, 14, 15, 23, 24)),
    # The 17 AUs that Exp-BLIP's supplement scores (its Table 3).
    "raf_au": LabelSet(_aus(1, 2, 4, 5, 6, 7, 9, 10, 12, 15, 16, 17, 22, 24, 25, 26, 27)),
    "emotionet": LabelSet(_aus(1, 2, 4, 5, 6, 9, 12, 17, 20, 25, 26)),
    "affectnet": LabelSet(
        emotions=("Neutral", "Happiness", "Sadness", "Surprise", "Fear", "Disgust", "Anger", "Contempt")
    ),
    "raf_db": LabelSet(emotions=("Surprise", "Fear", "Disgust", "Happiness", "Sadness", "Anger", "Neutral")),
    "raf_db_compound": LabelSet(
        emotions=(
            "Happily Surprised",
            "Happily Disgusted",
            "Sadly Fearful",
            "Sadly Angry",
            "Sadly Surprised",
            "Sadly Disgusted",
            "Fearfully Angry",
            "Fearfully Surprised",
            "Angrily Surprised",
            "Angrily Disgusted",
            "Disgustedly Surprised",
        )
    ),
}


@dataclass(frozen=True)
class RegionRule:
    """Two centres of an AU: each the mean of some landmarks, moved down the face by `down` inner-ocular distances."""

    first: tuple[int, ...]
    second: tuple[int, ...]
    down: float = 0.0

    @property
    def is_midline(self) -> bool:
        """A mirrored face keeps the order of midline centres and swaps the order of the others."""
        return set(self.first) == {LANDMARK_MIRROR[i] for i in self.first}


LANDMARK_MIRROR: tuple[int, ...] = (
    *range(16, -1, -1),  # jaw
    *range(26, 16, -1),  # brows
    *(27, 28, 29, 30, 35, 34, 33, 32, 31),  # nose
    *(45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40),  # eyes
    *(54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55),  # outer lip
    *(64, 63, 62, 61, 60, 67, 66, 65),  # inner lip
)
"""Where each landmark goes when the image is flipped left to right."""

LEFT_INNER_EYE, RIGHT_INNER_EYE = 39, 42
LEFT_OUTER_EYE, RIGHT_OUTER_EYE = 36, 45

_EYES = (tuple(range(36, 42)), tuple(range(42, 48)))

REGION_RULES: dict[str, RegionRule] = {
    "AU1": RegionRule((21,), (22,), -1 / 2),
    "AU2": RegionRule((18,), (25,), -1 / 3),
    "AU4": RegionRule((19,), (24,), 1 / 3),
    "AU5": RegionRule((37, 38), (43, 44)),
    "AU6": RegionRule((41,), (46,), 1.0),
    "AU7": RegionRule(*_EYES),
    "AU8": RegionRule((51,), (57,)),
    "AU9": RegionRule((31,), (35,), -1 / 2),
    "AU10": RegionRule((50,), (52,)),
    "AU11": RegionRule((31, 48), (35, 54)),
    "AU12": RegionRule((48,), (54,)),
    "AU14": RegionRule((48,), (54,)),
    "AU15": RegionRule((48,), (54,)),
    "AU16": RegionRule((58,), (56,)),
    "AU17": RegionRule((58,), (56,), 1 / 2),
    "AU18": RegionRule((51,), (57,)),
    "AU19": RegionRule((62,), (66,)),
    "AU20": RegionRule((48,), (54,)),
    "AU22": RegionRule((51,), (57,)),
    "AU23": RegionRule((51,), (57,)),
    "AU24": RegionRule((51,), (57,)),
    "AU25": RegionRule((51,), (57,)),
    "AU26": RegionRule((58,), (56,), 1 / 2),
    "AU27": RegionRule((58,), (56,), 1 / 2),
    "AU28": RegionRule((51,), (57,)),
    "AU43": RegionRule(*_EYES),
}
"""AU21 (neck tightener) lies outside an aligned face and has no rule."""


_HALF_FACE: dict[int, tuple[float, float]] = {
    # The image's left half and the midline, as fractions of the aligned crop. Proportions of an average adult in a crop
    # 200 mm wide: 63 mm between the pupils, 32 mm between the inner corners of the eyes, 110 mm from pupil to chin.
    **{0: (0.150, 0.385), 1: (0.156, 0.470), 2: (0.168, 0.555), 3: (0.187, 0.640), 4: (0.220, 0.722)},
    **{5: (0.272, 0.797), 6: (0.338, 0.861), 7: (0.414, 0.907), 8: (0.500, 0.922)},
    **{17: (0.210, 0.310), 18: (0.250, 0.277), 19: (0.302, 0.266), 20: (0.356, 0.272), 21: (0.408, 0.288)},
    **{27: (0.500, 0.375), 28: (0.500, 0.430), 29: (0.500, 0.486), 30: (0.500, 0.542)},
    **{31: (0.432, 0.580), 32: (0.465, 0.592), 33: (0.500, 0.600)},
    **{36: (0.265, 0.384), 37: (0.308, 0.362), 38: (0.366, 0.363), 39: (0.420, 0.390), 40: (0.369, 0.402)},
    **{41: (0.309, 0.403)},
    **{48: (0.372, 0.722), 49: (0.420, 0.696), 50: (0.468, 0.682), 51: (0.500, 0.688)},
    **{57: (0.500, 0.780), 58: (0.466, 0.776), 59: (0.420, 0.757)},
    **{60: (0.392, 0.721), 61: (0.466, 0.716), 62: (0.500, 0.719), 66: (0.500, 0.733), 67: (0.466, 0.730)},
}


def _canonical_face() -> tuple[tuple[float, float], ...]:
    points = dict(_HALF_FACE)
    for index, (x, y) in _HALF_FACE.items():
        points[LANDMARK_MIRROR[index]] = (1.0 - x, y)
    return tuple(points[index] for index in range(68))


CANONICAL_FACE: tuple[tuple[float, float], ...] = _canonical_face()
"""The mean face that every aligned crop is brought to: 68 points as fractions of the crop's width and height."""


def resolve_label_set(name: str) -> LabelSet:
    if name not in LABEL_SETS:
        raise ValueError(f"label_set: got {name!r}, expected one of {sorted(LABEL_SETS)}")
    return LABEL_SETS[name]


def check_action_units(names: list[str] | tuple[str, ...], *, need_region: bool = False) -> tuple[str, ...]:
    """Returns the names as a tuple; an unknown or repeated AU, or one without a region rule, is an error."""
    unknown = [name for name in names if name not in ACTION_UNITS]
    if unknown:
        raise ValueError(f"action_units: got {unknown}, expected names among {list(ACTION_UNITS)}")
    if len(set(names)) != len(names):
        raise ValueError(f"action_units: got {list(names)}, in which a name stands twice; expected each once")
    without = [name for name in names if name not in REGION_RULES] if need_region else []
    if without:
        raise ValueError(
            f"action_units: {without} have no region rule, so the AU branch cannot look at them; expected names among "
            f"{list(REGION_RULES)}. Leave them out, or switch the AU branch off (use_au_branch=False)"
        )
    return tuple(names)


LABEL_ARGUMENTS = ("label_set", "action_units", "emotions", "id2label", "label2id", "num_labels", "problem_type")
"""By which a caller of `from_pretrained` chooses labels: our own fields and those of transformers."""


def fields_of_label_names(given: dict, num_labels: int | None, saved: dict) -> dict:
    """The label fields that transformers' `id2label`, `label2id` or `num_labels` ask for; they leave `given`.

    Names that all are action units ask for independent labels, others for one of several classes.
    """
    id2label, label2id = given.pop("id2label", None), given.pop("label2id", None)
    problem = given.pop("problem_type", None)
    if id2label is None and label2id is not None:
        id2label = {index: name for name, index in label2id.items()}
    if id2label is None:
        if num_labels is None:
            return {}
        counts = {len(saved.get(name) or ()) for name in ("emotions", "action_units")}
        if num_labels not in counts:
            raise ValueError(
                f"num_labels: got {num_labels}, but the checkpoint has {sorted(counts)} labels; name the new ones: "
                "id2label={0: 'first', ...}, or emotions=[...], or action_units=[...]"
            )
        return {}
    places = sorted(int(place) for place in id2label)
    if places != list(range(len(places))) or num_labels not in (None, len(places)):
        raise ValueError(
            f"id2label: got {id2label}, expected a name for each of 0 to {(num_labels or len(places)) - 1}"
        )
    names = [name for _, name in sorted(id2label.items(), key=lambda item: int(item[0]))]
    units = all(name in ACTION_UNITS for name in names)
    if problem == "regression" or (problem == "multi_label_classification" and not units):
        raise ValueError(
            f"problem_type: got {problem!r} with id2label {names}, expected 'single_label_classification', or "
            "independent labels that are action units, such as 'AU12'"
        )
    field = "action_units" if units and problem != "single_label_classification" else "emotions"
    target = "action_units" if field == "action_units" else "emotion"
    same = list(saved.get(field) or ()) == names
    unlearned = {} if same or field == "emotions" else {"au_thresholds": None, "au_class_weights": None}
    return {field: names, "classification_target": target, **unlearned}
