"""Scores against scikit-learn, thresholds, intervals over people, tables, and the `evaluate` metrics."""

import numpy as np
import pytest
from sklearn import metrics as sk

from configuration_mf2.facs import EMOTIONS, LABEL_SETS
from mf2face.data.metrics import (
    FEWEST_POSITIVES,
    ActionUnitMetric,
    EmotionMetric,
    action_unit_intervals,
    action_unit_scores,
    action_unit_table,
    emotion_intervals,
    emotion_scores,
    emotion_table,
    expected_calibration_error,
    icc,
    intensity_scores,
    side_scores,
    tune_thresholds,
)
from mf2face.data.reference_scores import BASELINES, baseline_scores, centred_landmarks, logistic
from mf2face.data.synthetic.faces import MFASynthetic, synthetic_truth


MFA = LABEL_SETS["mfa"].action_units


def example(n=400, subjects=20, seed=0):
    """AU probabilities and labels, emotion probabilities and labels, subjects; a tenth of the labels is unknown."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, len(MFA))) < rng.uniform(0.05, 0.6, len(MFA))).astype(int)
    probabilities = np.clip(0.35 * labels + rng.random(labels.shape) * 0.65, 0, 1)
    labels[rng.random(labels.shape) < 0.1] = -1
    emotions = rng.integers(0, len(EMOTIONS), n)
    softmax = np.exp(rng.normal(size=(n, len(EMOTIONS))) + 1.5 * (emotions[:, None] == np.arange(len(EMOTIONS))))
    emotions[rng.random(n) < 0.1] = -1
    return probabilities, labels, softmax / softmax.sum(1, keepdims=True), emotions, rng.integers(0, subjects, n)


def has_nan(scores):
    return any(np.isnan(value) for value in scores.values() if isinstance(value, float))


@pytest.mark.parametrize("seed", range(2))
def test_action_unit_scores_equal_scikit_learn(seed):
    probabilities, labels, *_ = example(seed=seed)
    thresholds = np.linspace(0.2, 0.7, len(MFA))
    scores = action_unit_scores(probabilities, labels, MFA, thresholds=thresholds)
    for i, au in enumerate(MFA):
        known = labels[:, i] != -1
        true, probability = labels[known, i], probabilities[known, i]
        expected = {
            "au_n": known.sum(),
            "au_prevalence": true.mean(),
            "au_f1": sk.f1_score(true, probability >= 0.5, zero_division=0),
            "au_accuracy": sk.accuracy_score(true, probability >= 0.5),
            "au_f1_tuned": sk.f1_score(true, probability >= thresholds[i], zero_division=0),
            "au_threshold": 0.5,
            "au_threshold_tuned": thresholds[i],
            "au_roc_auc": sk.roc_auc_score(true, probability),
        }
        assert {name: scores[f"{name}/{au}"] for name in expected} == pytest.approx(expected)
    for name in ("au_f1", "au_f1_tuned", "au_accuracy", "au_roc_auc", "au_ece"):
        assert scores[f"{name}_macro"] == pytest.approx(np.mean([scores[f"{name}/{au}"] for au in MFA]))


@pytest.mark.parametrize("seed", range(2))
def test_emotion_scores_equal_scikit_learn(seed):
    _, _, probabilities, labels, _ = example(seed=seed)
    scores, classes = emotion_scores(probabilities, labels, EMOTIONS), range(len(EMOTIONS))
    true, predicted = labels[labels != -1], probabilities.argmax(1)[labels != -1]
    assert scores["emotion_top1"] == pytest.approx(sk.accuracy_score(true, predicted))
    assert scores["emotion_macro_recall"] == pytest.approx(sk.balanced_accuracy_score(true, predicted))
    assert scores["emotion_macro_f1"] == pytest.approx(sk.f1_score(true, predicted, labels=classes, average="macro"))
    assert scores["emotion_confusion"] == sk.confusion_matrix(true, predicted, labels=classes).tolist()
    one_vs_rest = [sk.accuracy_score(true == i, predicted == i) for i in classes]
    assert [scores[f"emotion_ovr_accuracy/{name}"] for name in EMOTIONS] == pytest.approx(one_vs_rest)
    assert scores["emotion_ovr_accuracy"] == pytest.approx(np.mean(one_vs_rest)) and scores["emotion_n"] == len(true)
    always_other = emotion_scores(np.eye(8)[np.full(80, 7)], np.arange(8).repeat(10), EMOTIONS)
    assert always_other["emotion_ovr_accuracy/Fear"] == 0.875 and always_other["emotion_top1"] == 0.125


def test_tuned_thresholds_are_the_best_there_are():
    probabilities, labels, *_ = example(n=400, seed=3)
    often = (labels == 1).sum(0) >= FEWEST_POSITIVES
    rare = ~often
    rare[0] = True
    labels[np.flatnonzero(labels[:, 0] == 1)[5:], 0] = 0  # five positive ones are left
    tuned = tune_thresholds(probabilities, labels)
    known = labels != -1
    (pooled,) = tune_thresholds(probabilities[known][:, None], labels[known][:, None])
    assert set(tuned[rare]) == {pooled}
    probabilities, labels = probabilities[:, ~rare][:, :3].round(2), labels[:, ~rare][:, :3]  # rounded: ties
    for i, threshold in enumerate(tune_thresholds(probabilities, labels)):
        known = labels[:, i] != -1
        true, probability = labels[known, i], probabilities[known, i]
        best = max(sk.f1_score(true, probability >= cut, zero_division=0) for cut in np.linspace(0, 1.01, 203))
        assert sk.f1_score(true, probability >= threshold) == pytest.approx(best)
    nothing_better = tune_thresholds([[0.9, 0.2], [0.1, 0.3], [0.7, 0.9]], np.array([[1, 0], [0, 0], [1, -1]]))
    assert nothing_better.tolist() == [0.5, 0.5]


def test_what_has_no_positive_or_no_label_is_listed_and_never_nan():
    probabilities, labels, softmax, emotions, subjects = example(n=60)
    labels[:, 3], labels[:, 5] = 0, -1
    scores = action_unit_scores(probabilities, labels, MFA)
    assert scores["au_no_positive"] == ["AU6"] and scores["au_no_label"] == ["AU10"]
    assert scores["au_f1/AU6"] == 0 and "au_roc_auc/AU6" not in scores
    assert scores["au_n/AU10"] == 0 and "au_f1/AU10" not in scores
    with_label = [scores[f"au_f1/{au}"] for au in MFA if au != "AU10"]
    assert scores["au_f1_macro"] == pytest.approx(np.mean(with_label))  # the zero counts, the unlabelled one does not
    intervals = action_unit_intervals(probabilities, labels, subjects, MFA)
    assert "au_f1/AU6" not in intervals and {"au_f1/AU1", "au_f1_macro"} < set(intervals)
    for n in (1, 5):
        nothing = action_unit_scores(np.full((n, 12), 0.5), np.full((n, 12), -1), MFA, thresholds=np.full(12, 0.3))
        assert nothing["au_no_label"] == list(MFA) and nothing["au_f1_macro"] == 0 and not has_nan(nothing)
        assert tune_thresholds(np.full((n, 12), 0.2), np.full((n, 12), -1)).tolist() == [0.5] * 12
        nobody = emotion_scores(np.full((n, 8), 1 / 8), np.full(n, -1), EMOTIONS)
        assert nobody["emotion_no_positive"] == list(EMOTIONS) and nobody["emotion_n"] == 0 and not has_nan(nobody)
    assert not has_nan(scores)
    assert action_unit_intervals(probabilities, np.full_like(labels, -1), subjects, MFA) == {}
    assert emotion_intervals(softmax, np.full(60, -1), subjects, EMOTIONS) == {}
    assert action_unit_intervals(probabilities, labels, ["a"] * 60, MFA) == {}
    assert emotion_intervals(softmax, emotions, ["a"] * 60, EMOTIONS) == {}


def test_calibration_error():
    assert expected_calibration_error([0.8] * 5, [1, 1, 1, 1, 0]) == pytest.approx(0)
    assert expected_calibration_error([1.0, 1.0], [0, 0]) == 1
    assert expected_calibration_error([], []) == 0
    rng = np.random.default_rng(0)
    p = rng.random(50_000)
    assert expected_calibration_error(p, rng.random(50_000) < p) < 0.01


ZEROS = np.zeros((1, 12))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: action_unit_scores(np.zeros((3, 11)), np.zeros((3, 12)), MFA), r"probabilities: got shape \(3, 11\)"),
        (lambda: action_unit_scores(np.zeros((3, 12)), np.zeros((2, 12)), MFA), "labels: got 2 rows, expected 3"),
        (lambda: action_unit_scores(np.zeros((0, 12)), np.zeros((0, 12)), MFA), "at least one image"),
        (lambda: action_unit_scores(np.full((1, 12), 3.0), ZEROS, MFA), "apply a sigmoid"),
        (lambda: action_unit_scores(np.full((1, 12), np.nan), ZEROS, MFA), "probabilities: got"),
        (lambda: action_unit_scores(ZEROS, np.full((1, 12), 2), MFA), "labels: got values"),
        (lambda: action_unit_scores(ZEROS, ZEROS, MFA, thresholds=[0.5]), "thresholds: got"),
        (lambda: emotion_scores(np.full((1, 8), 0.5), [1], EMOTIONS), "a row that sums to 4.000"),
        (lambda: emotion_scores(np.full((1, 8), 1 / 8), [8], EMOTIONS), "labels: got values"),
        (lambda: action_unit_intervals(ZEROS, ZEROS, ["a", "b"], MFA), r"subjects: got shape \(2,\), expected \(1,\)"),
        (lambda: action_unit_intervals(ZEROS, ZEROS, ["a"], MFA, resamples=0), "resamples: got 0"),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_intervals_hold_the_score_and_have_its_name():
    probabilities, labels, softmax, emotions, subjects = example(600)
    thresholds = np.full(len(MFA), 0.4)
    intervals = action_unit_intervals(probabilities, labels, subjects, MFA, thresholds=thresholds)
    scores = action_unit_scores(probabilities, labels, MFA, thresholds=thresholds)
    assert {f"au_f1{suffix}/{au}" for suffix in ("", "_tuned") for au in MFA} < set(intervals) < set(scores)
    assert all(low <= scores[name] <= high and low < high for name, (low, high) in intervals.items())
    intervals = emotion_intervals(softmax, emotions, subjects, EMOTIONS)
    scores = emotion_scores(softmax, emotions, EMOTIONS)
    assert all(low <= scores[name] <= high for name, (low, high) in intervals.items()) and set(intervals) < set(scores)


def test_resampled_scores_equal_scores_of_the_resampled_images():
    probabilities, labels, softmax, emotions, subjects = example(n=90, subjects=5)
    # The same draws, taken the long way: copy the images of each drawn subject.
    draws = np.random.default_rng(7).multinomial(5, np.full(5, 1 / 5), size=40)
    rows = [np.concatenate([np.flatnonzero(subjects == s).repeat(k) for s, k in enumerate(draw)]) for draw in draws]
    f1 = [action_unit_scores(probabilities[row], labels[row], MFA)["au_f1_macro"] for row in rows]
    settings, bounds = {"resamples": 40, "seed": 7}, (0.025, 0.975)
    named = action_unit_intervals(probabilities, labels, [f"p{s}" for s in subjects], MFA, **settings)
    assert named["au_f1_macro"] == pytest.approx(np.quantile(f1, bounds))
    recall = [emotion_scores(softmax[row], emotions[row], EMOTIONS)["emotion_macro_recall"] for row in rows]
    named = emotion_intervals(softmax, emotions, subjects, EMOTIONS, **settings)
    assert named["emotion_macro_recall"] == pytest.approx(np.quantile(recall, bounds))


def test_evaluate_gives_the_functions_scores_batch_by_batch():
    probabilities, labels, softmax, emotions, subjects = example(60, 6)
    metric, thresholds = ActionUnitMetric(MFA), tune_thresholds(probabilities, labels)
    for part in (slice(0, 25), slice(25, 60)):
        metric.add_batch(predictions=probabilities[part], references=labels[part])
    result = metric.compute(thresholds=thresholds, subjects=subjects)
    intervals = result.pop("intervals")
    assert result == action_unit_scores(probabilities, labels, MFA, thresholds=thresholds)
    assert intervals == action_unit_intervals(probabilities, labels, subjects, MFA, thresholds=thresholds)
    result = EmotionMetric(EMOTIONS).compute(predictions=softmax, references=emotions)
    assert result == emotion_scores(softmax, emotions, EMOTIONS)


def test_tables_name_everything_they_show():
    probabilities, labels, softmax, emotions, subjects = example(60, 6)
    labels[:, 0] = -1
    options = {"thresholds": np.full(12, 0.3), "subjects": subjects}
    scores = ActionUnitMetric(MFA).compute(predictions=probabilities, references=labels, **options)
    lines = action_unit_table(scores).splitlines()
    assert [line.split()[0] for line in lines[2:15]] == [*MFA, "macro"] and lines[-1].endswith("average: AU1")
    low, high = scores["intervals"]["au_f1/AU12"]
    shown = (f"{scores['au_f1/AU12']:.3f}", f"{low:.3f}-{high:.3f}", "0.500", "0.300")
    assert all(text in next(line for line in lines if line.startswith("AU12")) for text in shown)
    scores = emotion_scores(softmax, emotions, EMOTIONS)
    lines = emotion_table(scores).splitlines()
    assert all(name in lines[0] for name in ("recall", "F1", "one-vs-rest"))
    assert [line.split()[0] for line in lines[2:]] == [*EMOTIONS, "macro", "top-1"]
    assert f"{scores['emotion_ovr_accuracy']:.3f}" in lines[-2] and f"{scores['emotion_top1']:.3f}" in lines[-1]


@pytest.fixture(scope="module")
def faces():
    return MFASynthetic(320, "drawn", seed=5)


def test_every_baseline_of_synthetic_faces_is_there_and_in_order(faces):
    train, test = faces.select(range(240)), faces.select(range(240, 320))
    scores = baseline_scores(train, test, MFA, EMOTIONS)
    assert set(scores) == set(BASELINES)
    assert all(0 <= value <= 1 for value in scores.values())
    assert scores["au_f1_ceiling"] > 0.9 > scores["au_f1_landmarks"] > scores["au_f1_all_active"]
    assert scores["emotion_top1_ceiling"] > scores["emotion_top1_from_true_aus"] > scores["emotion_top1_commonest"]


def test_the_truth_of_chosen_rows_is_that_of_their_images(faces):
    """Rows in any order: an index that was off by one would be a ceiling near chance."""
    test = faces.select(np.random.default_rng(0).permutation(320)[:100])
    assert baseline_scores(faces, test, MFA, EMOTIONS)["au_f1_ceiling"] > 0.9
    truth, labels = synthetic_truth(320, "drawn", seed=5)["emotion"], np.array(faces["emotion"][:])
    scores = baseline_scores(faces, faces, MFA, EMOTIONS)
    assert scores["emotion_top1_ceiling"] == pytest.approx(np.mean((truth == labels)[labels >= 0]))


def test_what_the_rows_lack_is_left_out(faces):
    bare = faces.remove_columns(["landmarks", "emotion", "corpus"])
    assert set(baseline_scores(bare, bare, MFA, EMOTIONS)) == {"au_f1_all_active"}


def test_landmarks_lose_place_size_and_tilt_alone():
    points = np.random.default_rng(0).normal(size=(2, 68, 2))
    turn = np.array([[0.8, -0.6], [0.6, 0.8]])
    np.testing.assert_allclose(centred_landmarks(points @ turn.T * 3 + 7), centred_landmarks(points), atol=1e-9)
    wider = points * [2, 1]
    assert np.abs(centred_landmarks(wider) - centred_landmarks(points)).max() > 0.1


def test_a_target_that_never_varies_is_answered_with_what_it_is():
    train = np.random.default_rng(0).normal(size=(20, 3))
    targets = np.stack([np.ones(20), np.full(20, -1), train[:, 0] > 0], 1).astype(int)
    answers = logistic(train, targets, train, 10.0)
    assert answers[:, 0].tolist() == [1] * 20 and answers[:, 1].tolist() == [0] * 20
    assert (answers[:, 2] == targets[:, 2]).mean() > 0.9


def test_icc_is_that_of_shrout_and_fleiss():
    """Their Table 4, ICC(3,1) = 0.71 of four judges; of two judges who differ by a constant it is 1."""
    ratings = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], float)
    assert icc(ratings) == pytest.approx(0.71, abs=0.005)
    assert icc(np.array([[0.0, 1], [2, 3], [4, 5]])) == pytest.approx(1)


def test_intensities_and_sides_are_scored_where_they_are_known():
    labels = np.array([[0.0, -1], [2, -1], [5, -1], [-1, 3]])
    scores = intensity_scores(np.where(labels < 0, 9, labels + 0.5), labels, ("AU6", "AU12"))
    assert "intensity_icc/AU12" not in scores, "one known label"
    assert scores["intensity_icc"] == pytest.approx(1) and scores["intensity_mae"] == pytest.approx(0.5)
    sides = np.array([[[1, 0]], [[0, 1]], [[1, 1]], [[0, 0]], [[-1, 1]]])
    good = np.array([[[2.0, 1]], [[1, 2]], [[3, 3]], [[0, 0]], [[9, -9]]])
    assert side_scores(good, sides, ("AU12",))["sides_which_auc"] == 1
    assert side_scores(good, sides, ("AU12",))["sides_auc"] == 1 > side_scores(-good, sides, ("AU12",))["sides_auc"]
    assert side_scores(good[3:4], sides[3:4], ("AU12",)) == {}
