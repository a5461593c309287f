import numpy as np
import pytest
from sklearn import metrics as sk

from configuration_mf2.facs import EMOTIONS, LABEL_SETS
from mf2face.data.metrics import (
    action_unit_scores,
    emotion_scores,
    expected_calibration_error,
    intensity_scores,
    intraclass_correlation,
    tune_thresholds,
)


MFA = LABEL_SETS["mfa"].action_units


def au_example(n=400, seed=0, unknown=0.1):
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, len(MFA))) < rng.uniform(0.05, 0.6, len(MFA))).astype(int)
    probabilities = np.clip(0.35 * labels + rng.random(labels.shape) * 0.65, 0, 1)
    labels[rng.random(labels.shape) < unknown] = -1
    return probabilities, labels


def emotion_example(n=400, seed=0, unknown=0.1):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(EMOTIONS), n)
    logits = rng.normal(size=(n, len(EMOTIONS))) + 1.5 * (labels[:, None] == np.arange(len(EMOTIONS)))
    labels[rng.random(n) < unknown] = -1
    probabilities = np.exp(logits)
    return probabilities / probabilities.sum(1, keepdims=True), labels


def has_nan(scores):
    return any(np.isnan(value) for value in scores.values() if isinstance(value, float))


@pytest.mark.parametrize("seed", range(5))
def test_action_unit_scores_equal_scikit_learn(seed):
    probabilities, labels = au_example(seed=seed)
    thresholds = np.linspace(0.2, 0.7, len(MFA))
    scores = action_unit_scores(probabilities, labels, MFA, thresholds=thresholds)
    for i, au in enumerate(MFA):
        known = labels[:, i] != -1
        true, probability = labels[known, i], probabilities[known, i]
        assert scores[f"au_n/{au}"] == known.sum()
        assert scores[f"au_prevalence/{au}"] == pytest.approx(true.mean())
        assert scores[f"au_f1/{au}"] == pytest.approx(sk.f1_score(true, probability >= 0.5, zero_division=0))
        assert scores[f"au_accuracy/{au}"] == pytest.approx(sk.accuracy_score(true, probability >= 0.5))
        tuned = probability >= thresholds[i]
        assert scores[f"au_f1_tuned/{au}"] == pytest.approx(sk.f1_score(true, tuned, zero_division=0))
        assert scores[f"au_threshold/{au}"] == 0.5 and scores[f"au_threshold_tuned/{au}"] == thresholds[i]
        assert scores[f"au_roc_auc/{au}"] == pytest.approx(sk.roc_auc_score(true, probability))
    for name in ("au_f1", "au_f1_tuned", "au_accuracy", "au_roc_auc", "au_ece"):
        assert scores[f"{name}_macro"] == pytest.approx(np.mean([scores[f"{name}/{au}"] for au in MFA]))


@pytest.mark.parametrize("seed", range(5))
def test_emotion_scores_equal_scikit_learn(seed):
    probabilities, labels = emotion_example(seed=seed)
    scores = emotion_scores(probabilities, labels, EMOTIONS)
    true, predicted = labels[labels != -1], probabilities.argmax(1)[labels != -1]
    classes = range(len(EMOTIONS))
    assert scores["emotion_top1"] == pytest.approx(sk.accuracy_score(true, predicted))
    assert scores["emotion_macro_recall"] == pytest.approx(sk.balanced_accuracy_score(true, predicted))
    assert scores["emotion_macro_f1"] == pytest.approx(sk.f1_score(true, predicted, labels=classes, average="macro"))
    assert scores["emotion_confusion"] == sk.confusion_matrix(true, predicted, labels=classes).tolist()
    one_vs_rest = [sk.accuracy_score(true == i, predicted == i) for i in classes]
    assert [scores[f"emotion_ovr_accuracy/{name}"] for name in EMOTIONS] == pytest.approx(one_vs_rest)
    assert scores["emotion_ovr_accuracy"] == pytest.approx(np.mean(one_vs_rest))
    assert scores["emotion_n"] == len(true)


def test_never_saying_an_emotion_scores_seven_eighths_one_vs_rest():
    labels = np.arange(8).repeat(10)
    always_other = np.eye(8)[np.full(80, 7)]
    scores = emotion_scores(always_other, labels, EMOTIONS)
    assert scores["emotion_ovr_accuracy/Fear"] == 0.875 and scores["emotion_top1"] == 0.125


def test_tuned_thresholds_are_the_best_there_are():
    probabilities, labels = au_example(n=120, seed=3)
    probabilities, labels = probabilities[:, :3].round(2), labels[:, :3]  # rounded: ties
    thresholds = tune_thresholds(probabilities, labels)
    for i in range(3):
        known = labels[:, i] != -1
        true, probability = labels[known, i], probabilities[known, i]
        best = max(sk.f1_score(true, probability >= cut, zero_division=0) for cut in np.linspace(0, 1.01, 203))
        assert sk.f1_score(true, probability >= thresholds[i]) == pytest.approx(best)


def test_threshold_stays_at_a_half_where_nothing_is_better():
    labels = np.array([[1, 0], [0, 0], [1, -1]])
    assert tune_thresholds([[0.9, 0.2], [0.1, 0.3], [0.7, 0.9]], labels).tolist() == [0.5, 0.5]


def test_au_without_a_positive_label_scores_zero_and_is_listed():
    probabilities, labels = au_example(n=20)
    labels[:, 3] = 0
    labels[:, 5] = -1
    scores = action_unit_scores(probabilities, labels, MFA)
    assert scores["au_no_positive"] == ["AU6"] and scores["au_no_label"] == ["AU10"]
    assert scores["au_f1/AU6"] == 0 and "au_roc_auc/AU6" not in scores
    assert scores["au_n/AU10"] == 0 and "au_f1/AU10" not in scores
    with_label = [scores[f"au_f1/{au}"] for au in MFA if au != "AU10"]
    assert scores["au_f1_macro"] == pytest.approx(np.mean(with_label))  # the zero counts, the unlabelled one does not
    assert not has_nan(scores)


@pytest.mark.parametrize("n", [1, 5])
def test_all_masked_is_flagged_and_without_nan(n):
    scores = action_unit_scores(np.full((n, 12), 0.5), np.full((n, 12), -1), MFA, thresholds=np.full(12, 0.3))
    assert scores["au_no_label"] == list(MFA) and scores["au_f1_macro"] == 0 and not has_nan(scores)
    assert tune_thresholds(np.full((n, 12), 0.2), np.full((n, 12), -1)).tolist() == [0.5] * 12
    scores = emotion_scores(np.full((n, 8), 1 / 8), np.full(n, -1), EMOTIONS)
    assert scores["emotion_no_positive"] == list(EMOTIONS) and scores["emotion_n"] == 0 and not has_nan(scores)
    scores = intensity_scores(np.zeros((n, 12)), np.full((n, 12), -1), MFA)
    assert scores["au_intensity_no_label"] == list(MFA) and scores["au_icc_macro"] == 0 and not has_nan(scores)


def test_one_image():
    scores = action_unit_scores([[0.9, 0.2]], [[1, 0]], ("AU1", "AU2"))
    assert scores["au_f1/AU1"] == 1 and scores["au_accuracy/AU2"] == 1 and scores["au_no_positive"] == ["AU2"]
    scores = emotion_scores(np.eye(8)[[3]], [3], EMOTIONS)
    assert (
        scores["emotion_top1"] == 1 and scores["emotion_recall/Fear"] == 1 and len(scores["emotion_no_positive"]) == 7
    )
    assert not has_nan(intensity_scores([[2.0]], [[2.0]], ("AU1",)))


def test_icc_by_hand_and_by_its_invariants():
    # Shrout and Fleiss (1979), ratings by judges 1 and 2 of their six targets; mean squares by hand.
    first, second = np.array([9, 6, 8, 7, 10, 6.0]), np.array([2, 1, 4, 1, 5, 2.0])
    ratings = np.stack([first, second], 1)
    between = 2 * ratings.mean(1).var(ddof=1)
    residual = (first - second).var(ddof=1) / 2
    assert intraclass_correlation(first, second) == pytest.approx((between - residual) / (between + residual))
    rng = np.random.default_rng(0)
    true = rng.uniform(0, 5, 200)
    assert intraclass_correlation(true, true) == pytest.approx(1)
    assert intraclass_correlation(true + 0.7, true) == pytest.approx(1)  # consistency: a constant offset is forgiven
    assert intraclass_correlation(5 - true, true) == pytest.approx(-1)
    assert abs(intraclass_correlation(rng.uniform(0, 5, 200), true)) < 0.2
    assert intraclass_correlation(np.ones(5), np.ones(5)) == 0


def test_intensity_scores_mask_unknown_levels():
    predictions = np.array([[1.0, 5.0], [2.0, 0.0], [4.0, 1.0]])
    labels = np.array([[1.0, -1.0], [3.0, np.nan], [4.0, 3.0]])
    scores = intensity_scores(predictions, labels, ("AU1", "AU2"))
    assert scores["au_mae/AU1"] == pytest.approx(1 / 3) and scores["au_mae/AU2"] == 2
    assert scores["au_intensity_n/AU2"] == 1 and scores["au_icc/AU2"] == 0


def test_calibration_error():
    assert expected_calibration_error([0.8] * 5, [1, 1, 1, 1, 0]) == pytest.approx(0)
    assert expected_calibration_error([1.0, 1.0], [0, 0]) == 1
    assert expected_calibration_error([], []) == 0
    rng = np.random.default_rng(0)
    p = rng.random(50_000)
    assert expected_calibration_error(p, rng.random(50_000) < p) < 0.01


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: action_unit_scores(np.zeros((3, 11)), np.zeros((3, 12)), MFA), r"probabilities: got shape \(3, 11\)"),
        (lambda: action_unit_scores(np.zeros((3, 12)), np.zeros((2, 12)), MFA), "labels: got 2 rows, expected 3"),
        (lambda: action_unit_scores(np.zeros((0, 12)), np.zeros((0, 12)), MFA), "at least one image"),
        (lambda: action_unit_scores(np.full((1, 12), 3.0), np.zeros((1, 12)), MFA), "apply a sigmoid"),
        (lambda: action_unit_scores(np.full((1, 12), np.nan), np.zeros((1, 12)), MFA), "probabilities: got"),
        (lambda: action_unit_scores(np.zeros((1, 12)), np.full((1, 12), 2), MFA), "labels: got values"),
        (lambda: action_unit_scores(np.zeros((1, 12)), np.zeros((1, 12)), MFA, thresholds=[0.5]), "thresholds: got"),
        (lambda: emotion_scores(np.full((1, 8), 0.5), [1], EMOTIONS), "a row that sums to 4.000"),
        (lambda: emotion_scores(np.full((1, 8), 1 / 8), [8], EMOTIONS), "labels: got values"),
        (lambda: intensity_scores([[np.nan]], [[1.0]], ("AU1",)), "predictions: got NaN"),
    ],
)
def test_errors_say_what_was_got(call, message):
    with pytest.raises(ValueError, match=message):
        call()
