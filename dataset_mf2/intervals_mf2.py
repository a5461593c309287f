"""Confidence intervals of scores by resampling subjects: images of one person are not independent, persons are."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from .scores_mf2 import (
    DEFAULT_THRESHOLD,
    action_unit_counts,
    check_action_unit_rows,
    check_emotion_rows,
    check_thresholds,
    f1_from_counts,
    name_emotion_scores,
    scores_from_confusion,
)


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
    confidence: float = 0.95,
    seed: int = 0,
) -> Intervals:
    """Of `au_f1/...` and `au_f1_macro`, and of their `_tuned` forms if thresholds are given."""
    probabilities, labels = check_action_unit_rows(probabilities, labels, action_units)
    subject_of, weights = _resample(subjects, len(labels), resamples, confidence, seed)
    scored = [i for i, known in enumerate((labels != -1).any(0)) if known]
    if weights is None or not scored:
        return {}
    cuts = {"": np.full(len(action_units), DEFAULT_THRESHOLD)}
    if thresholds is not None:
        cuts["_tuned"] = check_thresholds(thresholds, action_units)
    intervals: Intervals = {}
    for suffix, cut in cuts.items():
        events = np.stack(action_unit_counts(probabilities, labels, cut, axis=None), 1)  # (images, 3, AUs)
        # Counts add up, so a resample is a weighted sum over subjects: one product serves all AUs and resamples.
        counts = weights @ _sum_by_subject(events, subject_of)  # (resamples, 3 * AUs)
        f1 = f1_from_counts(*np.split(counts, 3, axis=1))[:, scored]
        bounds = _bounds(f1, confidence)
        # Without a positive label F1 is 0 by convention, which no interval should dress up.
        of_au = zip(scored, bounds, strict=True)
        intervals.update({f"au_f1{suffix}/{action_units[i]}": pair for i, pair in of_au if (labels[:, i] == 1).any()})
        intervals[f"au_f1{suffix}_macro"] = _bounds(f1.mean(1, keepdims=True), confidence)[0]
    return intervals


def emotion_intervals(
    probabilities: ArrayLike,
    labels: ArrayLike,
    subjects: Sequence,
    emotions: Sequence[str],
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Intervals:
    """Of every score that the confusion matrix gives: the four over all emotions, and each emotion's own."""
    probabilities, labels = check_emotion_rows(probabilities, labels, emotions)
    subject_of, weights = _resample(subjects, len(labels), resamples, confidence, seed)
    known, size = labels != -1, len(emotions)
    if weights is None or not known.any():
        return {}
    cell = labels * size + probabilities.argmax(1)
    events = (cell[:, None] == np.arange(size * size)) & known[:, None]
    confusion = (weights @ _sum_by_subject(events, subject_of)).reshape(-1, size, size)
    named = name_emotion_scores(scores_from_confusion(confusion), emotions)
    bounds = _bounds(np.stack(list(named.values()), 1), confidence)
    return dict(zip(named, bounds, strict=True))


def _resample(
    subjects: Sequence, rows: int, resamples: int, confidence: float, seed: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Each row's subject number, and how often each resample drew each subject; `None` if there is only one."""
    subjects = np.asarray(subjects)
    if subjects.shape != (rows,):
        raise ValueError(f"subjects: got shape {subjects.shape}, expected ({rows},), one for each image")
    if resamples < 1 or not 0 < confidence < 1:
        raise ValueError(f"got resamples {resamples} and confidence {confidence}, expected at least 1 and within 0..1")
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


def _bounds(values: np.ndarray, confidence: float) -> list[tuple[float, float]]:
    """(resamples, scores) -> a pair a score."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, (tail, 1 - tail), axis=0)
    return [(float(a), float(b)) for a, b in zip(low, high, strict=True)]
