"""Logits to scores, and scores to files, tables and pictures."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from sklearn.metrics import ConfusionMatrixDisplay
from transformers import EvalPrediction

from configuration_mf2.configuration_mf2 import MF2Config
from mf2face.data.metrics import (
    ActionUnitMetric,
    EmotionMetric,
    action_unit_table,
    emotion_table,
    intensity_scores,
    side_scores,
)
from mf2face.files import whole_file, write_whole


matplotlib.use("Agg")


Scores = dict[str, float | list]


def probabilities(predictions: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(emotion logits, AU logits, ...) -> probabilities, in double precision so that emotions sum to 1."""
    emotion, units = (np.asarray(part, dtype=np.float64) for part in predictions[:2])
    if emotion.shape[1]:
        emotion = np.exp(emotion - emotion.max(axis=1, keepdims=True))
        emotion /= emotion.sum(axis=1, keepdims=True)
    return emotion, 1 / (1 + np.exp(-units))


def score(
    config: MF2Config,
    predictions: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    thresholds: Sequence[float] | None = None,
    subjects: Sequence[str] | None = None,
) -> Scores:
    """Every score by name; AUs at 0.5, and at `thresholds` beside it. With `subjects`, `intervals` too."""
    emotion, units = probabilities(predictions)
    scores: Scores = {"intervals": {}}
    results = []
    if config.action_units:
        answers = {"predictions": units, "references": labels[1], "thresholds": thresholds, "subjects": subjects}
        results.append(ActionUnitMetric(config.action_units).compute(**answers))
    if config.emotions:
        answers = {"predictions": emotion, "references": labels[0], "subjects": subjects}
        results.append(EmotionMetric(config.emotions).compute(**answers))
    if len(predictions) > 2 and predictions[2].size and labels[2].size:
        scores |= side_scores(predictions[2], labels[2], config.action_units)
    if len(predictions) > 3 and predictions[3].size and labels[3].size:
        scores |= intensity_scores(predictions[3], labels[3], config.action_units)
    for found in results:
        scores["intervals"] |= found.pop("intervals", {})
        scores |= found
    return scores


DETAIL_FIGURES = {
    "intensity_icc": "AU intensities 0-5, ICC(3,1), macro",
    "intensity_mae": "AU intensities 0-5, mean absolute error, macro",
    "sides_auc": "an AU's activity on either side of the face, area under the ROC curve, macro",
    "sides_which_auc": "which side is active where one alone is, area under the ROC curve, macro",
}
UNIT_TWO = {"au_f1_macro": "AU F1 at 0.5, macro", "au_f1_tuned_macro": "AU F1 at tuned thresholds, macro"}
EMOTION_FOUR = {
    "emotion_top1": "emotion top-1",
    "emotion_macro_recall": "macro recall",
    "emotion_macro_f1": "macro F1",
    "emotion_ovr_accuracy": "one-vs-rest accuracy",
}
"""One-vs-rest accuracy flatters: none of the four is shown without the others."""


def group_scores(
    config: MF2Config,
    predictions: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    thresholds: Sequence[float] | None,
    groups: Sequence[str],
) -> Scores:
    """`group/<name>/<score>` and `group/<name>/n`: scores of each group of people alone."""
    scores: Scores = {}
    for name in sorted(set(filter(None, groups))):
        rows = np.array([group == name for group in groups])
        own = score(config, *([part[rows] for part in parts] for parts in (predictions, labels)), thresholds)
        scores[f"group/{name}/n"] = int(rows.sum())
        known = {key: own[key] for key in (*UNIT_TWO, *EMOTION_FOUR) if np.isfinite(own.get(key, np.nan))}
        scores |= {f"group/{name}/{key}": value for key, value in known.items()}
    return scores


def metrics_for_trainer(config: MF2Config) -> Callable[[EvalPrediction], dict[str, float]]:
    def compute(result: EvalPrediction) -> dict[str, float]:
        scores = score(config, result.predictions, result.label_ids)
        known = {name: scores[name] for name in ("au_f1_macro", "emotion_top1", "emotion_macro_f1") if name in scores}
        return {**known, "selection": known.get("au_f1_macro", 0.0) + known.get("emotion_macro_f1", 0.0)}

    return compute


def tables(scores: Mapping) -> str:
    makers = {"au_f1_macro": action_unit_table, "emotion_top1": emotion_table}
    return "\n\n".join(table(scores) for name, table in makers.items() if name in scores)


def write_scores(folder: str | Path, scores: Mapping, figures: Mapping[str, float]) -> None:
    """`metrics.json`, flat: every score, its interval as `<name>/low` and `/high`, and the run's own figures."""
    folder = Path(folder)
    flat = {name: value for name, value in scores.items() if isinstance(value, int | float)}
    for name, (low, high) in scores.get("intervals", {}).items():
        flat |= {f"{name}/low": low, f"{name}/high": high}
    write_whole(folder / "metrics.json", json.dumps({**flat, **figures}, indent=2) + "\n")
    if text := tables(scores):
        write_whole(folder / "metrics.txt", text + "\n")
    if "emotion_confusion" in scores:
        write_whole(folder / "confusion.json", json.dumps(np.asarray(scores["emotion_confusion"]).tolist()) + "\n")


def draw_scores(folder: str | Path, scores: Mapping, config: MF2Config, data: str) -> None:
    """`metrics.png`: F1 of each AU with its interval and what answering always yes scores; the emotions' confusion."""
    panels = [name for name in ("au_f1_macro", "emotion_top1") if name in scores]
    if not panels:
        return
    figure, axes = plt.subplots(1, len(panels), figsize=(6.5 * len(panels), 4.5), squeeze=False, layout="constrained")
    for panel, axis in zip(panels, axes[0], strict=True):
        (_draw_units if panel == "au_f1_macro" else _draw_confusion)(axis, scores, config)
    figure.suptitle(data)
    _save(figure, Path(folder) / "metrics.png")


def _draw_units(axis: plt.Axes, scores: Mapping, config: MF2Config) -> None:
    key = "au_f1_tuned" if "au_f1_tuned_macro" in scores else "au_f1"
    absent = scores.get("au_no_positive", ())
    names = [name for name in config.action_units if f"{key}/{name}" in scores and name not in absent]
    if not names:
        return
    values = np.array([scores[f"{key}/{name}"] for name in names])
    bounds = np.array([scores["intervals"].get(f"{key}/{name}", (v, v)) for name, v in zip(names, values, strict=True)])
    prevalence = np.array([scores[f"au_prevalence/{name}"] for name in names])
    axis.bar(names, values, color="#0072B2", label=f"model, macro {scores[f'{key}_macro']:.3f}")
    axis.errorbar(
        names, values, np.abs(bounds.T - values), fmt="none", ecolor="black", capsize=3, label="95 % interval"
    )
    axis.plot(names, 2 * prevalence / (1 + prevalence), "D", color="#E69F00", label="always yes")
    axis.set(ylabel="F1" + (" at tuned thresholds" if key.endswith("tuned") else " at threshold 0.5"), ylim=(0, 1))
    axis.tick_params(axis="x", rotation=60)
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)  # no bar behind it


def _draw_confusion(axis: plt.Axes, scores: Mapping, config: MF2Config) -> None:
    counts = np.asarray(scores["emotion_confusion"], dtype=float)
    there = np.flatnonzero(counts.sum(0) + counts.sum(1))  # neither labelled nor answered: left out
    if not len(there):
        return
    shares, names = counts / counts.sum(axis=1, keepdims=True).clip(1), [config.emotions[i] for i in there]
    display = ConfusionMatrixDisplay(shares[np.ix_(there, there)], display_labels=names)
    style = {"cmap": "cividis", "colorbar": False, "values_format": ".2f", "im_kw": {"vmin": 0, "vmax": 1}}
    display.plot(ax=axis, xticks_rotation=60, text_kw={"fontsize": 7}, **style)
    axis.set(xlabel="answered", ylabel="labelled", title=f"top-1 {scores['emotion_top1']:.3f}, shares of a row")


# Okabe and Ito's colours, distinct to colour-blind eyes, without the yellow, which is faint on white. The numbers of
# colours, dashes and markers share no factor, so that no two of many lines look alike, not even in grey.
_COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_DASHES = ("solid", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (9, 3)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
_MEASURED = {
    "eval_au_f1_macro": "AU F1, macro, at threshold 0.5",
    "eval_emotion_top1": "emotion top-1",
    "eval_emotion_macro_f1": "emotion macro F1",
}
_TEST_IMAGES = re.compile(r",\s*[\d,.]+ test images?$")


def draw_curves(folder: str | Path, history: Sequence[Mapping[str, float]], data: str, losses: Sequence[str]) -> None:
    """`curves.png`: every part of the loss and the validation scores over the steps; no file if neither was logged.

    The title leaves out the number of test images, in which `data` may end.
    """
    panels = [
        ({name: name for name in ("loss", *losses)}, {"title": "training", "ylabel": "loss", "yscale": "log"}),
        (_MEASURED, {"title": "validation", "ylabel": "score", "ylim": (0, 1)}),
    ]
    logged = {name for entry in history for name in entry}
    panels = [({name: lines[name] for name in lines if name in logged}, words) for lines, words in panels]
    panels = [panel for panel in panels if panel[0]]
    if not panels:
        return
    figure, axes = plt.subplots(1, len(panels), figsize=(7 * len(panels), 4.5), squeeze=False, layout="constrained")
    for axis, (lines, words) in zip(axes[0], panels, strict=True):
        _draw_lines(axis, lines, history)
        axis.set(xlabel="step", **words)
    figure.suptitle(f"{_TEST_IMAGES.sub('', data)}: {' and '.join(words['title'] for _, words in panels)} by step")
    _save(figure, Path(folder) / "curves.png")


def _draw_lines(axis: plt.Axes, lines: Mapping[str, str], history: Sequence[Mapping[str, float]]) -> None:
    for number, (name, label) in enumerate(lines.items()):
        points = [(entry["step"], entry[name]) for entry in history if name in entry]
        apart = max(1, len(points) // 8)
        first = number * apart // len(lines) if apart > 1 else 0  # markers of two lines seldom meet
        axis.plot(
            *zip(*points, strict=True),
            **{"color": _COLOURS[number % len(_COLOURS)], "linestyle": _DASHES[number % len(_DASHES)]},
            **{"marker": _MARKERS[number % len(_MARKERS)], "markevery": (first, apart), "markersize": 4.5},
            **{"label": label, "linewidth": 2.0 if name == "loss" else 1.3},
        )
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8, handlelength=5)


def _save(figure: plt.Figure, path: Path) -> None:
    with whole_file(path, shared=True) as part:
        figure.savefig(part, dpi=110, format="png")
    plt.close(figure)
