"""Reference scores: constant answers, landmarks alone, and the ceiling that labelling errors set."""

from collections.abc import Mapping, Sequence

import numpy as np
from datasets import Dataset
from sklearn.linear_model import LogisticRegression

from configuration_mf2.facs import UNKNOWN_LABEL
from mf2face.data.metrics import action_unit_scores
from mf2face.data.synthetic.faces import CORPUS, synthetic_truth
from mf2face.data.synthetic.subjects import FRAMES_PER_SUBJECT, FRAMES_PER_VIDEO


BASELINES: dict[str, str] = {
    "au_f1_all_active": "every AU called active in every image",
    "au_f1_landmarks": "logistic regression on the landmarks alone",
    "au_f1_ceiling": "the image's true AUs, against the annotators' labels with their errors",
    "emotion_top1_commonest": "the training data's commonest emotion, always",
    "emotion_top1_landmarks": "logistic regression on the landmarks alone",
    "emotion_top1_from_true_aus": "logistic regression on the image's true AUs",
    "emotion_top1_ceiling": "the image's true emotion, against the annotators' labels with their errors",
}


def centred_landmarks(landmarks: np.ndarray) -> np.ndarray:
    """(images, 68, 2) -> (images, 136), without the head's place, size and tilt."""
    points = landmarks - landmarks.mean(1, keepdims=True)
    eyes = points[:, 42:48].mean(1) - points[:, 36:42].mean(1)
    turn = (eyes[:, 0] - 1j * eyes[:, 1]) / (np.abs(eyes[:, 0] + 1j * eyes[:, 1]) ** 2)
    turned = (points[..., 0] + 1j * points[..., 1]) * turn[:, None]
    return np.concatenate([turned.real, turned.imag], 1)


def logistic(train: np.ndarray, targets: np.ndarray, test: np.ndarray, c: float) -> np.ndarray:
    """One regression a column of targets, fitted where it is known. A constant target is repeated."""
    mean, scale = train.mean(0), train.std(0) + 1e-6
    train, test = (train - mean) / scale, (test - mean) / scale
    answers = []
    for column in targets.T:
        known = column != UNKNOWN_LABEL
        values = np.unique(column[known])
        if len(values) < 2:
            answers.append(np.full(len(test), values[0] if len(values) else 0))
        else:
            answers.append(LogisticRegression(C=c, max_iter=400).fit(train[known], column[known]).predict(test))
    return np.stack(answers, 1)


def baseline_scores(
    train: Dataset, test: Dataset, action_units: Sequence[str], emotions: Sequence[str]
) -> dict[str, float]:
    """The `BASELINES` that the columns of these rows allow; those of the drawing only for synthetic faces."""
    columns = set(train.column_names) & set(test.column_names)
    points = None
    if "landmarks" in columns:
        points = [centred_landmarks(np.asarray(part.with_format("numpy")["landmarks"][:])) for part in (train, test)]
    drawn = "corpus" in columns and set(test["corpus"][:]) == {CORPUS}
    truth = [_truth(part) for part in (train, test)] if drawn else None
    scores: dict[str, float] = {}
    if "au_labels" in columns and action_units:
        labels = [np.asarray(part["au_labels"][:]) for part in (train, test)]
        answers = {"au_f1_all_active": np.ones(labels[1].shape)}
        if points is not None:
            answers["au_f1_landmarks"] = logistic(points[0], labels[0], points[1], 0.1)
        if truth is not None and truth[1]["au_labels"].shape == labels[1].shape:
            answers["au_f1_ceiling"] = truth[1]["au_labels"]
        for name, answer in answers.items():
            scores[name] = action_unit_scores(answer.astype(float), labels[1], list(action_units))["au_f1_macro"]
    if "emotion" in columns and emotions:
        labels = [np.asarray(part["emotion"][:]) for part in (train, test)]
        known = labels[0][labels[0] != UNKNOWN_LABEL]
        answers = {"emotion_top1_commonest": np.full(len(test), np.bincount(known).argmax() if len(known) else 0)}
        if points is not None:
            answers["emotion_top1_landmarks"] = logistic(points[0], labels[0][:, None], points[1], 0.1)[:, 0]
        if truth is not None:
            seen = [part["au_labels"].astype(float) for part in truth]
            answers["emotion_top1_from_true_aus"] = logistic(seen[0], labels[0][:, None], seen[1], 1.0)[:, 0]
            answers["emotion_top1_ceiling"] = truth[1]["emotion"]
        right = labels[1] != UNKNOWN_LABEL
        if right.any():
            scores |= {name: float((answer == labels[1])[right].mean()) for name, answer in answers.items()}
    return scores


def _truth(rows: Dataset) -> Mapping[str, np.ndarray]:
    """The labels that these rows were drawn from."""
    drawings = np.array(["-".join(name.split("-")[:2]) for name in rows["subject"][:]])
    index = np.array([_index(*place) for place in zip(rows["video"][:], rows["frame"][:], strict=True)])
    truth: dict[str, np.ndarray] = {}
    for drawing in np.unique(drawings):
        own, (style, seed) = drawings == drawing, drawing.split("-")
        for name, values in synthetic_truth(int(index[own].max()) + 1, style, seed=int(seed)).items():
            truth.setdefault(name, np.zeros((len(rows), *values.shape[1:]), values.dtype))[own] = values[index[own]]
    return truth


def _index(video: str, frame: int) -> int:
    """The number of an image, from its row."""
    _, _, subject, place = video.split("-")
    return int(subject) * FRAMES_PER_SUBJECT + int(place) * FRAMES_PER_VIDEO + frame // 10


__all__ = ["BASELINES", "baseline_scores", "centred_landmarks", "logistic"]
