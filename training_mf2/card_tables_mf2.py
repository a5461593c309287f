"""The tables of a model card, from flat figures: every number of a run, beside chance and what else is known."""

import logging
import math
from collections.abc import Mapping, Sequence

import numpy as np

from configuration_mf2.facs_mf2 import ACTION_UNITS
from dataset_mf2.baselines_mf2 import BASELINES
from dataset_mf2.scores_mf2 import name_emotion_scores, scores_from_confusion

from .language_mf2 import CAPTION_FIGURES, FIGURES, WORD_FIGURES


logger = logging.getLogger(__name__)

Figures = Mapping[str, float]
MISSING = "–"
EMOTION_FOUR = {
    "emotion_top1": "emotion top-1",
    "emotion_macro_recall": "macro recall",
    "emotion_macro_f1": "macro F1",
    "emotion_ovr_accuracy": "one-vs-rest accuracy",
}
"""One-vs-rest accuracy flatters: none of the four is shown without the others."""

UNIT_TWO = {"au_f1_macro": "AU F1 at 0.5, macro", "au_f1_tuned_macro": "AU F1 at tuned thresholds, macro"}

LANGUAGE = FIGURES | WORD_FIGURES | CAPTION_FIGURES
_LANGUAGE_KINDS = ("itm_", "caption_", "zero_shot_", "retrieval_")
# What captions' scores were made of.
_COUNTS = ("caption_pairs", "caption_no_reference", "caption_empty", "caption_references")


def names_of(figures: Figures, kind: str) -> list[str]:
    return [key.partition("/")[2] for key in figures if key.startswith(f"{kind}/") and key.count("/") == 1]


def always_yes(figures: Figures) -> dict[str, float]:
    """F1 of an AU for who always says that it is active: 2p / (1 + p) at prevalence p."""
    scores = {}
    for name in names_of(figures, "au_prevalence"):
        prevalence = figures[f"au_prevalence/{name}"]
        scores[f"au_f1/{name}"] = 2 * prevalence / (1 + prevalence)
    return {**scores, "au_f1_macro": float(np.mean(list(scores.values())))} if scores else {}


def always_the_commonest(figures: Figures) -> dict[str, float]:
    names = names_of(figures, "emotion_n")
    counts = np.array([figures[f"emotion_n/{name}"] for name in names])
    if not counts.sum():
        return {}
    confusion = np.zeros((len(names), len(names)))
    confusion[:, counts.argmax()] = counts
    return {name: float(value) for name, value in name_emotion_scores(scores_from_confusion(confusion), names).items()}


def number(figures: Figures, key: str) -> str:
    return f"{figures[key]:.3f}" if math.isfinite(figures.get(key, math.nan)) else MISSING


def count(figures: Figures, key: str) -> str:
    return f"{figures[key]:,.0f}" if key in figures else MISSING


def interval(figures: Figures, key: str) -> str:
    low, high = f"{key}/low", f"{key}/high"
    return f"{figures[low]:.3f} to {figures[high]:.3f}" if low in figures and high in figures else MISSING


def number_and_interval(figures: Figures, key: str) -> str:
    bounds = interval(figures, key)
    return number(figures, key) if bounds == MISSING else f"{number(figures, key)} ({bounds})"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown. A column in which nothing is known is left out; so is a row, and a table without any."""
    rows = [row for row in rows if set(row[1:]) != {MISSING}]
    kept = [0, *(i for i in range(1, len(header)) if any(row[i] != MISSING for row in rows))]
    if not rows or len(kept) == 1:
        return ""
    is_number = [all(row[i] == MISSING or row[i][:1].isdigit() for row in rows) for i in range(len(header))]
    lines = [header, ["---:" if right else "---" for right in is_number], *rows]
    return "\n".join(f"| {' | '.join(line[i].replace('|', '/') for i in kept)} |" for line in lines)


def _four(figures: Figures, words: str) -> list[str]:
    known = [key for key in EMOTION_FOUR if key in figures]
    if known and len(known) < len(EMOTION_FOUR):
        logger.warning("%s: only %s of the emotion scores are known, so none is shown in the card", words, known)
    if len(known) < len(EMOTION_FOUR):
        return [MISSING] * len(EMOTION_FOUR)
    return [number_and_interval(figures, key) for key in EMOTION_FOUR]


def summary_table(figures: Figures) -> str:
    base = {key.removeprefix("base/"): value for key, value in figures.items() if key.startswith("base/")}
    lines = {"**this checkpoint**": figures, "the base without it": base, "always yes": always_yes(figures)}
    lines["always the commonest emotion"] = always_the_commonest(figures)
    rows = [
        [words, *(number_and_interval(scores, key) for key in UNIT_TWO), *_four(scores, words)]
        for words, scores in lines.items()
    ]
    return table(["", *UNIT_TWO.values(), *EMOTION_FOUR.values()], rows)


def baseline_table(figures: Figures) -> str:
    """From keys `baseline/<name>`, the names being those of `BASELINES`."""
    kinds = {"au_f1_": ("AU F1, macro", "au_f1_macro"), "emotion_top1_": ("emotion top-1", "emotion_top1")}
    rows = []
    for name, words in BASELINES.items():
        score, own = next(kind for start, kind in kinds.items() if name.startswith(start))
        if f"baseline/{name}" in figures and name != "au_f1_all_active":  # the summary's "always yes"
            rows.append([words, score, number(figures, f"baseline/{name}"), number(figures, own)])
    return table(["compared with", "score", "value", "this checkpoint"], rows)


def unit_table(figures: Figures) -> str:
    chance = always_yes(figures)
    header = ["AU", "n", "prevalence", "always yes", "F1 at 0.5", "95 % interval"]
    header += ["F1 at tuned threshold", "95 % interval"]
    rows = []
    for name in [*names_of(figures, "au_n"), "macro"]:
        key = "_macro" if name == "macro" else f"/{name}"
        row = [f"{name} {ACTION_UNITS[name].noun}" if name in ACTION_UNITS else name]
        row += [count(figures, f"au_n{key}"), number(figures, f"au_prevalence{key}"), number(chance, f"au_f1{key}")]
        for kind in ("au_f1", "au_f1_tuned"):
            row += [number(figures, kind + key), interval(figures, kind + key)]
        rows.append(row)
    return table(header, rows)


def emotion_table(figures: Figures) -> str:
    kinds = {"recall": "recall", "f1": "F1", "ovr_accuracy": "one-vs-rest accuracy"}
    header = ["emotion", "n", *(word for name in kinds.values() for word in (name, "95 % interval"))]
    rows = []
    for name in names_of(figures, "emotion_n"):
        row = [name, count(figures, f"emotion_n/{name}")]
        for kind in kinds:
            row += [number(figures, f"emotion_{kind}/{name}"), interval(figures, f"emotion_{kind}/{name}")]
        rows.append(row)
    return table(header, rows)


def calibration_table(figures: Figures) -> str:
    rows = []
    for name in [*names_of(figures, "au_n"), "macro"]:
        key = "_macro" if name == "macro" else f"/{name}"
        kinds = ("au_threshold_tuned", "au_accuracy_tuned", "au_roc_auc", "au_ece")
        rows.append([name, *(number(figures, kind + key) for kind in kinds)])
    rows.append(["emotion, confidence of the answer", MISSING, MISSING, MISSING, number(figures, "emotion_ece")])
    return table(["", "threshold", "accuracy at it", "ROC-AUC", "calibration error"], rows)


def group_table(figures: Figures) -> str:
    """From keys `group/<group>/<score>`, `n` being its images."""
    groups: dict[str, dict[str, float]] = {}
    for key, value in figures.items():
        if key.startswith("group/") and key.count("/") >= 2:
            _, group, score = key.split("/", 2)
            groups.setdefault(group, {})[score] = value
    header = ["group", "n", *UNIT_TWO.values(), *EMOTION_FOUR.values()]
    rows = [
        [group, count(scores, "n"), *(number_and_interval(scores, key) for key in UNIT_TWO), *_four(scores, group)]
        for group, scores in groups.items()
    ]
    return table(header, rows)


def language_table(figures: Figures) -> str:
    told = {*LANGUAGE, *_COUNTS}
    unknown = [name for name in figures if name.startswith(_LANGUAGE_KINDS) and name not in told and "/" not in name]
    if unknown:
        logger.warning("no words for %s in language_mf2.FIGURES: left out of the card", unknown)
    rows = [
        [f"`{name}`", number(figures, name), interval(figures, name), meaning] for name, meaning in LANGUAGE.items()
    ]
    rows = [row for row in rows if row[1] != MISSING]
    return table(["figure", "value", "95 % interval", "what it is"], rows)


def without_positives(figures: Figures) -> list[str]:
    """AUs that no test image shows: their F1 is 0 by convention."""
    return [name for name in names_of(figures, "au_prevalence") if figures[f"au_prevalence/{name}"] == 0]


__all__ = [
    *("baseline_table", "calibration_table", "emotion_table", "group_table", "language_table", "summary_table"),
    *("unit_table", "without_positives"),
]
