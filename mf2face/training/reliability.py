"""Conformal cuts from held-out people, and grades of labels from measured evidence, kept with the checkpoint.

Split conformal prediction, each class by itself: of faces that show an AU at most 1 - confidence are called at rest, of
faces at rest at most so many active. That is an order statistic a class. crepes and MAPIE (both BSD, both light) find
the same ones, but hand out prediction sets only, not the cuts that a checkpoint keeps for inference without them.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from configuration_mf2.facs import ACTION_UNITS
from configuration_mf2.json_files import read_json
from mf2face.files import write_whole
from processing_mf2.reliability import GRADES


LEVELS = ("0.8", "0.9", "0.95", "0.99")
EVIDENCE = "reliability.json"

Answers = tuple[np.ndarray, np.ndarray]
"""Emotions (images, emotions) and AUs (images, AUs): probabilities; or their labels (images,) and (images, AUs)."""


def lowest_cut(scores: np.ndarray, level: float) -> float:
    """What a further score of the kind reaches with probability `level`; 0 where too few are known to say."""
    rank = math.floor((len(scores) + 1) * (1 - level) + 1e-9)
    return math.floor(1e6 * np.sort(scores)[rank - 1]) / 1e6 if rank else 0.0


def calibrate(
    probabilities: Answers, labels: Answers, action_units: Sequence[str], emotions: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Level -> label -> cuts, as `processor_config.json` keeps them, from people that the model did not learn from."""
    conformal: dict[str, dict[str, Any]] = {}
    for level in LEVELS:
        confidence, cuts = float(level), {}
        for place, unit in enumerate(action_units):
            shown, known = probabilities[1][:, place], labels[1][:, place]
            active = lowest_cut(shown[known == 1], confidence)
            at_rest = round(1 - lowest_cut(1 - shown[known == 0], confidence), 6)
            if active > at_rest:  # better than asked: nothing is left that cannot be told
                active = at_rest = round((active + at_rest) / 2, 6)
            cuts[unit] = [active, at_rest]
        for place, emotion in enumerate(emotions):
            cuts[emotion] = lowest_cut(probabilities[0][labels[0] == place, place], confidence)
        conformal[level] = cuts
    return conformal


def coverage(
    probabilities: Answers,
    labels: Answers,
    action_units: Sequence[str],
    emotions: Sequence[str],
    conformal: Mapping[str, Mapping[str, Any]],
    thresholds: Sequence[float],
) -> dict[str, float]:
    """`coverage_90/AU12`: the share of faces whose state is not contradicted, the mean of faces that show it and faces
    at rest; `told_90/AU12`: the share that is told. Emotions: the true one is in the set; one alone is. `..._au` and
    `..._emotion`: their means."""
    figures: dict[str, float] = {}
    for level, cuts in conformal.items():
        percent, kinds = f"{float(level) * 100:g}", {"au": action_units, "emotion": emotions}
        for place, unit in enumerate(action_units):
            shown, known = probabilities[1][:, place], labels[1][:, place]
            active, at_rest = shown >= cuts[unit][0], shown <= cuts[unit][1]
            told = (active != at_rest) & (active == (shown >= thresholds[place]))  # as `conformal_state` has it
            contradicted = {1: told & at_rest, 0: told & active}
            shares = [1 - contradicted[state][known == state].mean() for state in (0, 1) if (known == state).any()]
            if shares:
                figures[f"coverage_{percent}/{unit}"] = np.mean(shares)
                figures[f"told_{percent}/{unit}"] = told[known >= 0].mean()
        possible = probabilities[0] >= [cuts[emotion] for emotion in emotions]
        if emotions:  # as `emotion_set` has it
            possible[np.arange(len(possible)), probabilities[0].argmax(1)] = True
        for place, emotion in enumerate(emotions):
            if (rows := labels[0] == place).any():
                figures[f"coverage_{percent}/{emotion}"] = possible[rows, place].mean()
                figures[f"told_{percent}/{emotion}"] = (possible[rows].sum(1) == 1).mean()
        for kind, names in kinds.items():
            for what in (f"coverage_{percent}", f"told_{percent}"):
                if values := [figures[f"{what}/{name}"] for name in names if f"{what}/{name}" in figures]:
                    figures[f"{what}_{kind}"] = np.mean(values)
    return {name: float(value) for name, value in figures.items()}


RULE: Mapping[str, Mapping[str, float]] = {
    "reliable": {"test": 0.9, "style_shift": 0.85, "photographs": 0.85, "recall": 0.6},
    "usable": {"test": 0.8, "style_shift": 0.7, "photographs": 0.7, "recall": 0.35},
}
"""What a label has to reach for a grade; else it is `experimental`. test, style_shift: area under the ROC curve on
people and on a rendering style that training did not see. photographs: the same, the lower end of its 95 % interval
over people; a label that none of them is labelled for is `usable` if all else is as of a reliable one. recall: of an
emotion, on photographs. A checkpoint that was not measured on photographs is experimental."""

SIGN_OF: Mapping[str, str] = {
    **dict.fromkeys(("AU1", "AU2", "AU25", "AU26"), "Surprise"),
    **dict.fromkeys(("AU4", "AU7", "AU10", "AU23", "AU24"), "Anger"),
    **dict.fromkeys(("AU6", "AU12"), "Happiness"),
    **{"AU9": "Disgust", "AU15": "Sadness", "AU17": "Sadness"},
}
"""The emotion whose photographs an AU's score has to tell from neutral ones, where photographs have no AU labels."""


def photograph_figure(label: str, figures: Mapping[str, float]) -> str | None:
    """The name of the figure of `examples/benchmark/photographs.py` that a label is graded by."""
    names = [f"{label.lower()}_auc"]
    if label in ACTION_UNITS and label in SIGN_OF:
        names.append(f"{label.lower()}_{SIGN_OF[label].lower()}_auc")
    return next((name for name in names if f"{name}_low" in figures), None)


def evidence_of(
    label: str, rendered: Mapping[str, Mapping[str, float]], photographs: Mapping[str, float]
) -> dict[str, float | str]:
    """rendered: `test` and `style_shift`, scores of `mf2face.data.metrics`."""
    kind = "au" if label in ACTION_UNITS else "emotion"
    found = {where: scores.get(f"{kind}_roc_auc/{label}") for where, scores in rendered.items()}
    if name := photograph_figure(label, photographs):
        found |= {"photographs": photographs[f"{name}_low"], "figure": name}
        found |= {end: photographs[f"{name}{key}"] for end, key in (("value", ""), ("high", "_high"))}
        if kind == "emotion":
            found["recall"] = photographs.get(f"{label.lower()}_recall")
    return {key: value for key, value in found.items() if value is not None}


def grade_of(evidence: Mapping[str, Any]) -> str:
    """By `RULE`, from `evidence_of`."""
    measured = {"test", "style_shift"} <= evidence.keys()
    enough = {
        grade: measured and all(evidence[key] >= value for key, value in least.items() if key in evidence)
        for grade, least in RULE.items()
    }
    if "photographs" not in evidence:
        return "usable" if enough["reliable"] else GRADES[-1]
    return next((grade for grade in RULE if enough[grade]), GRADES[-1])


def write_grades(
    folder: str | Path,
    rendered: Mapping[str, Mapping[str, float]],
    photographs: Mapping[str, float],
    facts: Mapping[str, Any],
    figures: Mapping[str, float],
    conformal: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """Grades into the checkpoint's processor_config.json, their evidence into `reliability.json` beside it.

    facts: what the data were. figures: more measurements to keep. conformal: new cuts in place of the checkpoint's.
    """
    folder = Path(folder)
    saved = read_json(folder / "processor_config.json")
    labels = [*saved["action_units"], *saved["emotions"]]
    evidence = {label: evidence_of(label, rendered, photographs) for label in labels}
    grades = {label: grade_of(evidence[label]) if photographs else GRADES[-1] for label in labels}
    labelled = {label: {"grade": grades[label], **evidence[label]} for label in labels}
    content = {"data": dict(facts), "rule": RULE, "labels": labelled, "figures": dict(figures)}
    write_whole(folder / EVIDENCE, json.dumps(content, indent=2) + "\n")
    saved |= {"grades": grades} | ({} if conformal is None else {"conformal": dict(conformal)})
    write_whole(folder / "processor_config.json", json.dumps(saved, indent=2) + "\n")
    return grades
