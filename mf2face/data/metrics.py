"""Probabilities and labels to named scores: action units, emotions, thresholds, intervals, tables, `evaluate` metrics.

Labels of -1 are masked. A score that would divide by zero is 0, as scikit-learn's `zero_division=0`, and enters the
macro average; its AU or emotion is listed under `..._no_positive`. An AU without any label is left out of the macro
averages and listed under `au_no_label`. All scores lie in 0..1, never NaN.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import roc_auc_score


DEFAULT_THRESHOLD = 0.5
_CALIBRATION_BINS = 15


def divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Elementwise, 0 where the denominator is 0."""
    numerator, denominator = np.broadcast_arrays(np.asarray(numerator, float), np.asarray(denominator, float))
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator != 0)


def _check(
    probabilities: ArrayLike, labels: ArrayLike, names: Sequence[str], *, emotions: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays. A row of labels has one for each AU, or is the index of an emotion."""
    probabilities, labels = np.asarray(probabilities, float), np.asarray(labels)
    shapes = {"probabilities": (probabilities, (len(names),)), "labels": (labels, () if emotions else (len(names),))}
    for name, (values, shape) in shapes.items():
        if values.ndim != len(shape) + 1 or values.shape[1:] != shape or not len(values):
            expected = f"({', '.join(['images', *map(str, shape)])}) with at least one image, for {list(names)}"
            raise ValueError(f"{name}: got shape {values.shape}, expected {expected}")
    if len(probabilities) != len(labels):
        raise ValueError(f"labels: got {len(labels)} rows, expected {len(probabilities)}, as many as predictions")
    if not ((probabilities >= 0) & (probabilities <= 1)).all():  # false for NaN, too
        got = f"values between {probabilities.min():.3g} and {probabilities.max():.3g}"
        raise ValueError(f"probabilities: got {got}, expected 0 to 1; apply a sigmoid or a softmax to logits first")
    highest = len(names) - 1 if emotions else 1
    if not np.isin(labels, range(-1, highest + 1)).all():
        raise ValueError(f"labels: got values {np.unique(labels)[:12]}, expected -1 (unknown) to {highest}")
    sums = probabilities.sum(1)
    if emotions and np.abs(sums - 1).max() > 1e-2:
        raise ValueError(f"probabilities: got a row that sums to {sums[np.abs(sums - 1).argmax()]:.3f}, expected 1")
    return probabilities, labels.astype(int)


def f1_from_counts(true_positive: np.ndarray, false_positive: np.ndarray, false_negative: np.ndarray) -> np.ndarray:
    return divide(2 * true_positive, 2 * true_positive + false_positive + false_negative)


FEWEST_POSITIVES = 20
"""An AU with fewer positive labels takes the threshold that all AUs share: its own would be chance."""


def tune_thresholds(probabilities: ArrayLike, labels: ArrayLike) -> np.ndarray:
    """One threshold an AU, the one of best F1 on these (validation) images; AUs with fewer than 20 positive labels
    share that of best F1 over the labels of all AUs, or 0.5 if there is no positive one.

    An AU is active from its threshold on (>=). Of equally good thresholds the one nearest to 0.5 is taken.
    """
    columns = [f"column {i}" for i in range(np.shape(probabilities)[-1])]
    probabilities, labels = _check(probabilities, labels, columns)
    known = labels != -1
    enough = (labels == 1).sum(0) >= FEWEST_POSITIVES
    shared = DEFAULT_THRESHOLD if enough.all() else _best_cut(probabilities[known], labels[known] == 1)
    thresholds = np.full(labels.shape[1], shared)
    for column in np.flatnonzero(enough):
        there = known[:, column]
        thresholds[column] = _best_cut(probabilities[there, column], labels[there, column] == 1)
    return thresholds


def _best_cut(scores: np.ndarray, positive: np.ndarray) -> float:
    if not positive.any():
        return DEFAULT_THRESHOLD
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], np.cumsum(positive[order])
    # A cut lies between two different scores; the last one accepts everything.
    ends = np.flatnonzero(np.append(scores[:-1] != scores[1:], True))
    f1 = 2 * hits[ends] / (ends + 1 + positive.sum())
    upper, lower = scores[ends], np.append(scores[ends[:-1] + 1], 0.0)
    # Anywhere in (lower, upper] decides the same on these images: 0.5 if it lies within, else the middle.
    inside = (lower < DEFAULT_THRESHOLD) & (upper >= DEFAULT_THRESHOLD)
    cuts = np.where(inside, DEFAULT_THRESHOLD, (lower + upper) / 2)
    cuts = np.where(cuts > lower, cuts, upper)  # neighbours too close to have a middle
    best = np.flatnonzero(f1 >= f1.max() - 1e-12)
    return float(cuts[best[np.abs(cuts[best] - DEFAULT_THRESHOLD).argmin()]])


def _cuts(thresholds: ArrayLike | None, action_units: Sequence[str]) -> dict[str, np.ndarray]:
    """Suffix of a score's name -> the thresholds that it is measured at."""
    cuts = {"": np.full(len(action_units), DEFAULT_THRESHOLD)}
    if thresholds is not None:
        cuts["_tuned"] = thresholds = np.asarray(thresholds, float)
        if thresholds.shape != (len(action_units),) or not np.isfinite(thresholds).all():
            expected = f"{len(action_units)} numbers, one for each of {list(action_units)}"
            raise ValueError(f"thresholds: got {thresholds.tolist()}, expected {expected}")
    return cuts


def expected_calibration_error(confidence: ArrayLike, correct: ArrayLike) -> float:
    """Mean distance between confidence and frequency over bins of equal width, weighted by the bins' sizes."""
    confidence, correct = np.asarray(confidence, float), np.asarray(correct, float)
    if not confidence.size:
        return 0.0
    bins = np.minimum((confidence * _CALIBRATION_BINS).astype(int), _CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, confidence - correct, _CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / confidence.size)


def action_unit_scores(
    probabilities: ArrayLike, labels: ArrayLike, action_units: Sequence[str], *, thresholds: ArrayLike | None = None
) -> dict[str, float | list[str]]:
    """Scores at threshold 0.5 and, given `thresholds` tuned elsewhere, at these (`..._tuned`). `au_roc_auc/...` stands
    only for AUs of which both classes occur."""
    probabilities, labels = _check(probabilities, labels, action_units)
    known, positive = labels != -1, labels == 1
    n = known.sum(0)
    scored = n > 0
    scores: dict[str, float | list[str]] = {}

    def add(name: str, values: np.ndarray, among: np.ndarray, *, macro: bool = True) -> None:
        scores.update({f"{name}/{action_units[i]}": float(values[i]) for i in np.flatnonzero(among)})
        if macro:
            scores[f"{name}_macro"] = float(values[among].mean()) if among.any() else 0.0

    everywhere = np.ones(len(action_units), bool)
    add("au_n", n, everywhere, macro=False)
    add("au_prevalence", divide(positive.sum(0), n), scored, macro=False)
    for suffix, cut in _cuts(thresholds, action_units).items():
        true_positive, false_positive, false_negative = action_unit_counts(probabilities, labels, cut)
        add(f"au_threshold{suffix}", cut, everywhere, macro=False)
        add(f"au_f1{suffix}", f1_from_counts(true_positive, false_positive, false_negative), scored)
        add(f"au_accuracy{suffix}", divide(n - false_positive - false_negative, n), scored)
    both = (positive.sum(0) > 0) & (positive.sum(0) < n)
    columns = [(labels[k, i], probabilities[k, i]) for i, k in enumerate(known.T)]
    auc = [roc_auc_score(*column) if use else 0.0 for column, use in zip(columns, both, strict=True)]
    add("au_roc_auc", np.array(auc), both)
    add("au_ece", np.array([expected_calibration_error(p, y) for y, p in columns]), scored)
    scores["au_no_positive"] = [action_units[i] for i in np.flatnonzero(scored & ~positive.any(0))]
    scores["au_no_label"] = [action_units[i] for i in np.flatnonzero(~scored)]
    return scores


def intensity_scores(intensities: ArrayLike, labels: ArrayLike, action_units: Sequence[str]) -> dict[str, float]:
    """(images, AU) from 0 to 5, labels of -1 masked: `intensity_icc`, ICC(3,1), and `intensity_mae`, each AU's and the
    mean over those whose labels vary."""
    predicted, labels = np.asarray(intensities, float), np.asarray(labels, float)
    scores: dict[str, float] = {}
    for column, name in enumerate(action_units):
        known = labels[:, column] >= 0
        pair = np.stack([predicted[known, column], labels[known, column]], 1)
        if len(pair) > 1 and np.ptp(pair[:, 1]) > 0:
            scores[f"intensity_icc/{name}"] = icc(pair)
            scores[f"intensity_mae/{name}"] = float(np.abs(pair[:, 0] - pair[:, 1]).mean())
    return scores | _means(scores, ("intensity_icc", "intensity_mae"))


def icc(ratings: np.ndarray) -> float:
    """ICC(3,1) of (targets, raters): consistency of single ratings (Shrout and Fleiss)."""
    targets, raters = ratings.shape
    rows, columns, mean = ratings.mean(1, keepdims=True), ratings.mean(0, keepdims=True), ratings.mean()
    between = raters * ((rows - mean) ** 2).sum() / (targets - 1)
    residual = ((ratings - rows - columns + mean) ** 2).sum() / ((targets - 1) * (raters - 1))
    return float(divide(between - residual, between + (raters - 1) * residual))


def side_scores(logits: ArrayLike, labels: ArrayLike, action_units: Sequence[str]) -> dict[str, float]:
    """(images, AU, 2), labels 1, 0 or -1: `sides_auc` of both sides' activity, and `sides_which_auc`, of which side it
    is where one alone is active; each AU's and the mean over those of which both occur."""
    logits, labels = np.asarray(logits, float), np.asarray(labels)
    scores: dict[str, float] = {}
    for column, name in enumerate(action_units):
        known = (labels[:, column] >= 0).all(1)
        side, active = logits[known, column], labels[known, column]
        one = active[:, 0] != active[:, 1]
        pairs = {
            "sides_auc": (active.ravel(), side.ravel()),
            "sides_which_auc": (active[one, 0], (side @ (1, -1))[one]),
        }
        for kind, (truth, score) in pairs.items():
            if len(np.unique(truth)) == 2:
                scores[f"{kind}/{name}"] = float(roc_auc_score(truth, score))
    return scores | _means(scores, ("sides_auc", "sides_which_auc"))


def _means(scores: Mapping[str, float], kinds: Sequence[str]) -> dict[str, float]:
    each = {kind: [value for name, value in scores.items() if name.startswith(f"{kind}/")] for kind in kinds}
    return {kind: float(np.mean(values)) for kind, values in each.items() if values}


def action_unit_counts(
    probabilities: np.ndarray, labels: np.ndarray, thresholds: np.ndarray, *, axis: int | None = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True positives, false positives and false negatives an AU; with `axis=None` an image and AU."""
    predicted = probabilities >= thresholds
    events = (predicted & (labels == 1), predicted & (labels == 0), ~predicted & (labels == 1))
    return tuple(event if axis is None else event.sum(axis) for event in events)


def confusion_scores(confusion: np.ndarray, emotions: Sequence[str]) -> dict[str, np.ndarray]:
    """(..., C, C) -> scores (...,) by name: top-1; recall, F1 and one-vs-rest accuracy, each emotion's and the mean."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    true, predicted, n = confusion.sum(-1), confusion.sum(-2), confusion.sum((-2, -1))
    values = {
        "recall": divide(hits, true),
        "f1": f1_from_counts(hits, predicted - hits, true - hits),
        # One-vs-rest: an image of another emotion that is not called this one counts as right.
        "ovr_accuracy": divide(n[..., None] - true - predicted + 2 * hits, n[..., None]),
    }
    means = {"recall": "emotion_macro_recall", "f1": "emotion_macro_f1", "ovr_accuracy": "emotion_ovr_accuracy"}
    scores = {"emotion_top1": divide(hits.sum(-1), n)} | {means[kind]: values[kind].mean(-1) for kind in means}
    for kind, each in values.items():
        scores |= {f"emotion_{kind}/{name}": each[..., i] for i, name in enumerate(emotions)}
    return scores


def emotion_scores(
    probabilities: ArrayLike, labels: ArrayLike, emotions: Sequence[str]
) -> dict[str, float | list[str] | list[list[int]]]:
    """Top-1 accuracy, macro recall, macro F1 and one-vs-rest accuracy: the last never stands alone, for always "no"
    scores 87.5 % on eight balanced emotions."""
    probabilities, labels = _check(probabilities, labels, emotions, emotions=True)
    predicted, known, size = probabilities.argmax(1), labels != -1, len(emotions)
    cells = np.bincount(labels[known] * size + predicted[known], minlength=size * size)
    confusion = cells.reshape(size, size)  # rows: the true emotion, columns: the predicted one
    scores: dict = {name: float(value) for name, value in confusion_scores(confusion, emotions).items()}
    scores["emotion_ece"] = expected_calibration_error(probabilities.max(1)[known], (predicted == labels)[known])
    scores["emotion_n"] = float(known.sum())
    scores.update({f"emotion_n/{name}": float(n) for name, n in zip(emotions, confusion.sum(1), strict=True)})
    scores["emotion_confusion"] = confusion.tolist()
    some = [i for i, n in enumerate(confusion.sum(1)) if 0 < n < known.sum()]
    auc = {f"emotion_roc_auc/{emotions[i]}": roc_auc_score(labels[known] == i, probabilities[known, i]) for i in some}
    scores.update({name: float(value) for name, value in auc.items()})  # one against the rest
    scores["emotion_no_positive"] = [name for name, n in zip(emotions, confusion.sum(1), strict=True) if not n]
    return scores


Intervals = dict[str, tuple[float, float]]
"""Score name -> lower and upper bound. Empty if there is only one subject: then nothing can be said."""


def action_unit_intervals(
    probabilities: ArrayLike,
    labels: ArrayLike,
    subjects: Sequence,
    action_units: Sequence[str],
    *,
    thresholds: ArrayLike | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Intervals:
    """Of `au_f1/...` and `au_f1_macro`, and of their `_tuned` forms if thresholds are given."""
    probabilities, labels = _check(probabilities, labels, action_units)
    subject_of, weights = _resample(subjects, len(labels), resamples, seed)
    scored = [i for i, known in enumerate((labels != -1).any(0)) if known]
    if weights is None or not scored:
        return {}
    intervals: Intervals = {}
    for suffix, cut in _cuts(thresholds, action_units).items():
        events = np.stack(action_unit_counts(probabilities, labels, cut, axis=None), 1)  # (images, 3, AUs)
        # Counts add up, so a resample is a weighted sum over subjects: one product serves all AUs and resamples.
        counts = weights @ _sum_by_subject(events, subject_of)  # (resamples, 3 * AUs)
        f1 = f1_from_counts(*np.split(counts, 3, axis=1))[:, scored]
        bounds = _bounds(f1)
        # Without a positive label F1 is 0 by convention, which no interval should dress up.
        of_au = zip(scored, bounds, strict=True)
        intervals.update({f"au_f1{suffix}/{action_units[i]}": pair for i, pair in of_au if (labels[:, i] == 1).any()})
        intervals[f"au_f1{suffix}_macro"] = _bounds(f1.mean(1, keepdims=True))[0]
    return intervals


def emotion_intervals(
    probabilities: ArrayLike,
    labels: ArrayLike,
    subjects: Sequence,
    emotions: Sequence[str],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Intervals:
    """Of every score that the confusion matrix gives: the four over all emotions, and each emotion's own."""
    probabilities, labels = _check(probabilities, labels, emotions, emotions=True)
    subject_of, weights = _resample(subjects, len(labels), resamples, seed)
    known, size = labels != -1, len(emotions)
    if weights is None or not known.any():
        return {}
    cell = labels * size + probabilities.argmax(1)
    events = (cell[:, None] == np.arange(size * size)) & known[:, None]
    confusion = (weights @ _sum_by_subject(events, subject_of)).reshape(-1, size, size)
    named = confusion_scores(confusion, emotions)
    bounds = _bounds(np.stack(list(named.values()), 1))
    return dict(zip(named, bounds, strict=True))


def _resample(subjects: Sequence, rows: int, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Each row's subject number, and how often each resample drew each subject; `None` if there is only one."""
    subjects = np.asarray(subjects)
    if subjects.shape != (rows,):
        raise ValueError(f"subjects: got shape {subjects.shape}, expected ({rows},), one for each image")
    if resamples < 1:
        raise ValueError(f"resamples: got {resamples}, expected at least 1")
    names, subject_of = np.unique(subjects, return_inverse=True)
    size = len(names)
    if size < 2:
        return subject_of, None
    weights = np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), size=resamples)
    return subject_of, weights.astype(np.float64)


def _sum_by_subject(events: np.ndarray, subject_of: np.ndarray) -> np.ndarray:
    """(images, ...) -> (subjects, everything else)."""
    order = np.argsort(subject_of, kind="stable")
    starts = np.searchsorted(subject_of[order], np.arange(subject_of.max() + 1))
    return np.add.reduceat(events.reshape(len(events), -1)[order].astype(np.float64), starts, axis=0)


def _bounds(values: np.ndarray) -> list[tuple[float, float]]:
    """(resamples, scores) -> the 95 % interval of each score."""
    low, high = np.quantile(values, (0.025, 0.975), axis=0)
    return [(float(a), float(b)) for a, b in zip(low, high, strict=True)]


class ActionUnitMetric(evaluate.Metric):
    """F1, accuracy, ROC-AUC and calibration of action units: probabilities (images, AUs) against 1, 0 or -1."""

    scores, intervals = staticmethod(action_unit_scores), staticmethod(action_unit_intervals)
    reference = datasets.List(datasets.Value("int64"))

    def __init__(self, names: Sequence[str], **options: Any) -> None:
        self.names = tuple(names)
        super().__init__(**{"keep_in_memory": True, **options})  # so that no two runs share a cache file

    def _info(self) -> evaluate.MetricInfo:
        predictions = datasets.List(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description=type(self).__doc__,
            citation="",
            inputs_description=f"Columns in this order: {', '.join(self.names)}. A reference of -1 is masked.",
            features=datasets.Features({"predictions": predictions, "references": self.reference}),
        )

    def _compute(self, predictions: ArrayLike, references: ArrayLike, subjects: Sequence | None = None, **options: Any):
        """With `subjects`, one an image, the result holds `intervals`."""
        scores = self.scores(predictions, references, self.names, **options)
        if subjects is not None:
            scores["intervals"] = self.intervals(predictions, references, subjects, self.names, **options)
        return scores


class EmotionMetric(ActionUnitMetric):
    """Top-1, macro recall, macro F1 and one-vs-rest accuracy of emotions: probabilities against an index or -1."""

    scores, intervals = staticmethod(emotion_scores), staticmethod(emotion_intervals)
    reference = datasets.Value("int64")


def action_unit_table(scores: Mapping) -> str:
    """One line an AU: labelled images, prevalence, F1 with its interval, threshold; the tuned ones behind, if any."""
    names = [key.partition("/")[2] for key in scores if key.startswith("au_n/")]
    suffixes = [suffix for suffix in ("", "_tuned") if f"au_f1{suffix}_macro" in scores]
    header, macro, rows = ["AU", "n", "prevalence"], ["macro", "", ""], []
    for name in names:
        prevalence = scores.get(f"au_prevalence/{name}")
        rows.append([name, f"{scores[f'au_n/{name}']:.0f}", "-" if prevalence is None else f"{prevalence:.3f}"])
    for suffix in suffixes:
        header += [f"F1{suffix.replace('_', ' ')}", "CI", "threshold"]
        macro += [*_value_and_interval(f"au_f1{suffix}_macro", scores), ""]
        for row in rows:
            row += _value_and_interval(f"au_f1{suffix}/{row[0]}", scores)
            row.append(f"{scores[f'au_threshold{suffix}/{row[0]}']:.3f}")
    notes = {"No positive label, F1 set to 0": "au_no_positive", "No label, not in the macro average": "au_no_label"}
    return _align([header, *rows, macro]) + _notes(scores, notes)


def emotion_table(scores: Mapping) -> str:
    """One line an emotion and one for all; one-vs-rest accuracy always stands beside the others."""
    names = [key.partition("/")[2] for key in scores if key.startswith("emotion_n/")]
    rows = [["emotion", "n", "recall", "CI", "F1", "CI", "one-vs-rest acc.", "CI"]]
    for name in names:
        row = [name, f"{scores[f'emotion_n/{name}']:.0f}"]
        for kind in ("recall", "f1", "ovr_accuracy"):
            row += _value_and_interval(f"emotion_{kind}/{name}", scores)
        rows.append(row)
    mean = ["macro", f"{scores['emotion_n']:.0f}"]
    for key in ("emotion_macro_recall", "emotion_macro_f1", "emotion_ovr_accuracy"):
        mean += _value_and_interval(key, scores)
    top1 = ["top-1", "", *_value_and_interval("emotion_top1", scores), "", "", "", ""]
    notes = {"No image of this emotion, its recall and F1 set to 0": "emotion_no_positive"}
    return _align([*rows, mean, top1]) + _notes(scores, notes)


def _value_and_interval(key: str, scores: Mapping) -> list[str]:
    value, intervals = f"{scores[key]:.3f}" if key in scores else "-", scores.get("intervals", {})
    return [value, f"{intervals[key][0]:.3f}-{intervals[key][1]:.3f}" if key in intervals else "-"]


def _align(rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _notes(scores: Mapping, notes: Mapping[str, str]) -> str:
    return "".join(f"\n{text}: {', '.join(scores[key])}" for text, key in notes.items() if scores.get(key))


__all__ = [
    *("ActionUnitMetric", "EmotionMetric", "Intervals", "tune_thresholds"),
    *("action_unit_intervals", "action_unit_scores", "action_unit_table"),
    *("emotion_intervals", "emotion_scores", "emotion_table", "confusion_scores"),
]
