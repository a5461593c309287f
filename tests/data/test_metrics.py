import numpy as np
import pytest

from configuration_mf2.facs import EMOTIONS, LABEL_SETS
from mf2face.data.metrics import (
    ActionUnitMetric,
    EmotionMetric,
    IntensityMetric,
    action_unit_intervals,
    action_unit_scores,
    action_unit_table,
    emotion_scores,
    emotion_table,
    intensity_scores,
    tune_thresholds,
)


MFA = LABEL_SETS["mfa"].action_units


@pytest.fixture
def faces():
    rng = np.random.default_rng(0)
    labels = rng.integers(-1, 2, (60, len(MFA)))
    emotions = rng.integers(-1, len(EMOTIONS), 60)
    return (
        rng.random((60, len(MFA))),
        labels,
        rng.dirichlet(np.ones(len(EMOTIONS)), 60),
        emotions,
        rng.integers(0, 6, 60),
    )


def test_action_unit_metric_gives_the_pure_functions_scores(faces):
    probabilities, labels, _, _, subjects = faces
    thresholds = tune_thresholds(probabilities, labels)
    result = ActionUnitMetric().compute(
        predictions=probabilities, references=labels, thresholds=thresholds, subjects=subjects, resamples=50
    )
    intervals = result.pop("intervals")
    assert result == action_unit_scores(probabilities, labels, MFA, thresholds=thresholds)
    assert intervals == action_unit_intervals(probabilities, labels, subjects, MFA, thresholds=thresholds, resamples=50)


def test_metrics_add_up_batches(faces):
    probabilities, labels, softmax, emotions, _ = faces
    action_units, emotion = ActionUnitMetric(), EmotionMetric()
    for part in (slice(0, 25), slice(25, 60)):
        action_units.add_batch(predictions=probabilities[part], references=labels[part])
        emotion.add_batch(predictions=softmax[part], references=emotions[part])
    assert action_units.compute() == action_unit_scores(probabilities, labels, MFA)
    assert emotion.compute() == emotion_scores(softmax, emotions, EMOTIONS)


def test_intensity_metric(faces):
    _, labels, _, _, _ = faces
    levels = np.where(labels == 1, 3.0, labels)
    predictions = np.linspace(0, 5, levels.size).reshape(levels.shape)
    result = IntensityMetric(MFA).compute(predictions=predictions, references=levels)
    assert result == intensity_scores(predictions, levels, MFA)


def test_other_label_sets():
    disfa = LABEL_SETS["disfa"].action_units
    result = ActionUnitMetric(disfa).compute(predictions=[[0.9] * 8], references=[[1] * 8])
    assert result["au_f1/AU9"] == 1 and "au_f1/AU7" not in result
    with pytest.raises(ValueError, match=r"action_units: got \['AU3'\]"):
        ActionUnitMetric(["AU3"])
    with pytest.raises(ValueError, match="probabilities: got shape"):
        ActionUnitMetric(disfa).compute(predictions=[[0.9] * 12], references=[[1] * 12])


def test_tables_name_everything_they_show(faces):
    probabilities, labels, softmax, emotions, subjects = faces
    labels[:, 0] = -1
    scores = ActionUnitMetric().compute(
        predictions=probabilities, references=labels, thresholds=np.full(12, 0.3), subjects=subjects
    )
    lines = action_unit_table(scores).splitlines()
    assert lines[0].split() == "AU n prevalence F1 CI threshold F1 tuned CI threshold".split()
    assert [line.split()[0] for line in lines[2:14]] == list(MFA)
    low, high = scores["intervals"]["au_f1/AU12"]
    row = next(line for line in lines if line.startswith("AU12"))
    assert f"{scores['au_f1/AU12']:.3f}" in row and f"{low:.3f}-{high:.3f}" in row and "0.500" in row and "0.300" in row
    assert lines[14].startswith("macro") and lines[-1] == "No label, not in the macro average: AU1"
    assert all(len(line) <= 120 for line in lines)

    scores = emotion_scores(softmax, emotions, EMOTIONS)
    lines = emotion_table(scores).splitlines()
    assert all(name in lines[0] for name in ("recall", "F1", "one-vs-rest"))
    assert [line.split()[0] for line in lines[2:]] == [*EMOTIONS, "macro", "top-1"]
    assert f"{scores['emotion_ovr_accuracy']:.3f}" in lines[-2] and f"{scores['emotion_top1']:.3f}" in lines[-1]
    assert "nan" not in emotion_table(emotion_scores(softmax, np.full(60, -1), EMOTIONS))
