"""Metrics in the form of the `evaluate` library, which need no download, and the tables that print their scores."""

from collections.abc import Mapping, Sequence

import datasets
import evaluate
from numpy.typing import ArrayLike

from configuration_mf2.facs_mf2 import EMOTIONS, LABEL_SETS, check_action_units

from .intervals_mf2 import Intervals, action_unit_intervals, emotion_intervals
from .scores_mf2 import action_unit_scores, emotion_scores, intensity_scores


_INTERVALS = "intervals"


class _NamedMetric(evaluate.Metric):
    """A metric that knows the names of its columns. Examples stay in memory, so that no two runs share a cache file."""

    def __init__(self, names: Sequence[str], **kwargs):
        self.names = tuple(names)
        super().__init__(**{"keep_in_memory": True, **kwargs})

    def _describe(self, description: str, predictions: datasets.Features, references: datasets.Features):
        return evaluate.MetricInfo(
            description=description,
            citation="",
            inputs_description=f"Columns in this order: {', '.join(self.names)}. A reference of -1 is masked.",
            features=datasets.Features({"predictions": predictions, "references": references}),
        )


class ActionUnitMetric(_NamedMetric):
    """Predictions are probabilities (images, AUs), references 1, 0 or -1."""

    def __init__(self, action_units: Sequence[str] = LABEL_SETS["mfa"].action_units, **kwargs):
        super().__init__(check_action_units(tuple(action_units)), **kwargs)

    def _info(self):
        floats, integers = datasets.List(datasets.Value("float64")), datasets.List(datasets.Value("int64"))
        return self._describe("F1, accuracy, ROC-AUC and calibration of action units", floats, integers)

    def _compute(
        self,
        predictions: ArrayLike,
        references: ArrayLike,
        thresholds: ArrayLike | None = None,
        subjects: Sequence | None = None,
        **bootstrap,
    ) -> dict:
        """With `subjects`, one an image, the result holds `intervals`; `bootstrap` goes to `action_unit_intervals`."""
        scores = action_unit_scores(predictions, references, self.names, thresholds=thresholds)
        if subjects is not None:
            scores[_INTERVALS] = action_unit_intervals(
                predictions, references, subjects, self.names, thresholds=thresholds, **bootstrap
            )
        return scores


class EmotionMetric(_NamedMetric):
    """Predictions are probabilities (images, emotions), references an index or -1."""

    def __init__(self, emotions: Sequence[str] = EMOTIONS, **kwargs):
        super().__init__(emotions, **kwargs)

    def _info(self):
        floats, integer = datasets.List(datasets.Value("float64")), datasets.Value("int64")
        return self._describe("Top-1, macro recall, macro F1 and one-vs-rest accuracy of emotions", floats, integer)

    def _compute(
        self, predictions: ArrayLike, references: ArrayLike, subjects: Sequence | None = None, **bootstrap
    ) -> dict:
        """With `subjects`, one an image, the result holds `intervals`; `bootstrap` goes to `emotion_intervals`."""
        scores = emotion_scores(predictions, references, self.names)
        if subjects is not None:
            scores[_INTERVALS] = emotion_intervals(predictions, references, subjects, self.names, **bootstrap)
        return scores


class IntensityMetric(_NamedMetric):
    """Predictions and references are intensities 0-5 (images, AUs); a negative reference is unknown."""

    def __init__(self, action_units: Sequence[str] = LABEL_SETS["mfa"].action_units, **kwargs):
        super().__init__(check_action_units(tuple(action_units)), **kwargs)

    def _info(self):
        floats = datasets.List(datasets.Value("float64"))
        return self._describe("ICC(3,1) and mean absolute error of action unit intensities", floats, floats)

    def _compute(self, predictions: ArrayLike, references: ArrayLike) -> dict:
        return intensity_scores(predictions, references, self.names)


def action_unit_table(scores: Mapping, intervals: Intervals | None = None) -> str:
    """One line an AU: labelled images, prevalence, F1 with its interval, threshold; the tuned ones behind, if any."""
    intervals = scores.get(_INTERVALS, {}) if intervals is None else intervals
    names = [key.partition("/")[2] for key in scores if key.startswith("au_n/")]
    suffixes = [suffix for suffix in ("", "_tuned") if f"au_f1{suffix}_macro" in scores]
    rows = [["AU", "n", "prevalence"]]
    for suffix in suffixes:
        rows[0] += [f"F1{suffix.replace('_', ' ')}", "CI", "threshold"]
    for name in names:
        prevalence = scores.get(f"au_prevalence/{name}")
        row = [name, f"{scores[f'au_n/{name}']:.0f}", "-" if prevalence is None else f"{prevalence:.3f}"]
        for suffix in suffixes:
            row += _value_and_interval(f"au_f1{suffix}/{name}", scores, intervals)
            row.append(f"{scores[f'au_threshold{suffix}/{name}']:.3f}")
        rows.append(row)
    macro = ["macro", "", ""]
    for suffix in suffixes:
        macro += [*_value_and_interval(f"au_f1{suffix}_macro", scores, intervals), ""]
    notes = {"No positive label, F1 set to 0": "au_no_positive", "No label, not in the macro average": "au_no_label"}
    return _align([*rows, macro]) + _notes(scores, notes)


def emotion_table(scores: Mapping, intervals: Intervals | None = None) -> str:
    """One line an emotion and one for all; one-vs-rest accuracy always stands beside the others."""
    intervals = scores.get(_INTERVALS, {}) if intervals is None else intervals
    names = [key.partition("/")[2] for key in scores if key.startswith("emotion_n/")]
    rows = [["emotion", "n", "recall", "CI", "F1", "CI", "one-vs-rest acc.", "CI"]]
    for name in names:
        row = [name, f"{scores[f'emotion_n/{name}']:.0f}"]
        for kind in ("recall", "f1", "ovr_accuracy"):
            row += _value_and_interval(f"emotion_{kind}/{name}", scores, intervals)
        rows.append(row)
    mean = ["macro", f"{scores['emotion_n']:.0f}"]
    for key in ("emotion_macro_recall", "emotion_macro_f1", "emotion_ovr_accuracy"):
        mean += _value_and_interval(key, scores, intervals)
    top1 = ["top-1", "", *_value_and_interval("emotion_top1", scores, intervals), "", "", "", ""]
    notes = {"No image of this emotion, its recall and F1 set to 0": "emotion_no_positive"}
    return _align([*rows, mean, top1]) + _notes(scores, notes)


def _value_and_interval(key: str, scores: Mapping, intervals: Intervals) -> list[str]:
    value = f"{scores[key]:.3f}" if key in scores else "-"
    return [value, f"{intervals[key][0]:.3f}-{intervals[key][1]:.3f}" if key in intervals else "-"]


def _align(rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _notes(scores: Mapping, notes: Mapping[str, str]) -> str:
    return "".join(f"\n{text}: {', '.join(scores[key])}" for text, key in notes.items() if scores.get(key))
