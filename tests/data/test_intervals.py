import time

import numpy as np
import pytest

from configuration_mf2.facs import EMOTIONS, LABEL_SETS
from mf2face.data.metrics import action_unit_intervals, action_unit_scores, emotion_intervals, emotion_scores


MFA = LABEL_SETS["mfa"].action_units


def example(n=600, subjects=20, seed=0):
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, len(MFA))) < 0.3).astype(int)
    probabilities = np.clip(0.4 * labels + 0.6 * rng.random(labels.shape), 0, 1)
    labels[rng.random(labels.shape) < 0.1] = -1
    emotions = rng.integers(-1, len(EMOTIONS), n)
    softmax = rng.dirichlet(np.ones(len(EMOTIONS)), n)
    return probabilities, labels, softmax, emotions, rng.integers(0, subjects, n)


def test_intervals_hold_the_score_and_have_its_name():
    probabilities, labels, softmax, emotions, subjects = example()
    thresholds = np.full(len(MFA), 0.4)
    intervals = action_unit_intervals(probabilities, labels, subjects, MFA, thresholds=thresholds)
    scores = action_unit_scores(probabilities, labels, MFA, thresholds=thresholds)
    assert {f"au_f1{suffix}/{au}" for suffix in ("", "_tuned") for au in MFA} < set(intervals) < set(scores)
    assert all(low <= scores[name] <= high and low < high for name, (low, high) in intervals.items())
    intervals = emotion_intervals(softmax, emotions, subjects, EMOTIONS)
    scores = emotion_scores(softmax, emotions, EMOTIONS)
    for name in ("emotion_top1", "emotion_macro_recall", "emotion_macro_f1", "emotion_ovr_accuracy"):
        assert intervals[name][0] <= scores[name] <= intervals[name][1]
    assert set(intervals) < set(scores)


def test_resampled_scores_equal_scores_of_the_resampled_images():
    probabilities, labels, softmax, emotions, subjects = example(n=90, subjects=5)
    # The same draws, taken the long way: copy the images of each drawn subject.
    draws = np.random.default_rng(7).multinomial(5, np.full(5, 1 / 5), size=40)
    rows = [np.concatenate([np.flatnonzero(subjects == s).repeat(k) for s, k in enumerate(draw)]) for draw in draws]
    f1 = [action_unit_scores(probabilities[row], labels[row], MFA)["au_f1_macro"] for row in rows]
    expected = np.quantile(f1, (0.025, 0.975))
    settings = {"resamples": 40, "seed": 7}
    assert action_unit_intervals(probabilities, labels, subjects, MFA, **settings)["au_f1_macro"] == pytest.approx(
        expected
    )
    recall = [emotion_scores(softmax[row], emotions[row], EMOTIONS)["emotion_macro_recall"] for row in rows]
    named = emotion_intervals(softmax, emotions, subjects, EMOTIONS, **settings)
    assert named["emotion_macro_recall"] == pytest.approx(np.quantile(recall, (0.025, 0.975)))


def test_images_of_few_subjects_tell_less_than_of_many():
    rng = np.random.default_rng(0)
    quality = rng.random(10).repeat(100) < 0.5  # every subject wholly right or wholly wrong
    labels = np.ones((1000, 1), int)
    probabilities = np.where(quality, 0.9, 0.1)[:, None]
    width = {}
    for name, subjects in (("ten", np.arange(10).repeat(100)), ("thousand", np.arange(1000))):
        low, high = action_unit_intervals(probabilities, labels, subjects, ("AU1",))["au_f1/AU1"]
        width[name] = high - low
    assert width["ten"] > 4 * width["thousand"]


def test_seed_decides_and_names_of_subjects_do_not():
    probabilities, labels, _, _, subjects = example(n=100)
    once = action_unit_intervals(probabilities, labels, subjects, MFA, seed=1)
    assert once == action_unit_intervals(probabilities, labels, [f"p{s:02d}" for s in subjects], MFA, seed=1)
    assert once != action_unit_intervals(probabilities, labels, subjects, MFA, seed=2)


def test_one_subject_or_no_label_gives_no_interval():
    probabilities, labels, softmax, emotions, subjects = example(n=10)
    assert action_unit_intervals(probabilities, labels, ["a"] * 10, MFA) == {}
    assert action_unit_intervals(probabilities[:1], labels[:1], ["a"], MFA) == {}
    assert emotion_intervals(softmax, emotions, ["a"] * 10, EMOTIONS) == {}
    assert action_unit_intervals(probabilities, np.full_like(labels, -1), subjects, MFA) == {}
    assert emotion_intervals(softmax, np.full(10, -1), subjects, EMOTIONS) == {}


def test_au_without_a_positive_label_has_no_interval_of_its_own():
    probabilities, labels, _, _, subjects = example(n=100)
    labels[:, 2] = 0
    intervals = action_unit_intervals(probabilities, labels, subjects, MFA)
    assert "au_f1/AU4" not in intervals and {"au_f1/AU1", "au_f1_macro"} < set(intervals)


def test_errors():
    probabilities, labels, _, _, subjects = example(n=10)
    with pytest.raises(ValueError, match=r"subjects: got shape \(9,\), expected \(10,\)"):
        action_unit_intervals(probabilities, labels, subjects[:9], MFA)
    with pytest.raises(ValueError, match="resamples 0"):
        action_unit_intervals(probabilities, labels, subjects, MFA, resamples=0)


def test_a_thousand_resamples_of_five_thousand_images_are_quick():
    probabilities, labels, softmax, emotions, subjects = example(n=5000, subjects=200)
    start = time.process_time()
    action_unit_intervals(probabilities, labels, subjects, MFA)
    emotion_intervals(softmax, emotions, subjects, EMOTIONS)
    seconds = time.process_time() - start
    print(f"{seconds:.2f} CPU-seconds")
    assert seconds < 3
