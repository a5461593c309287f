"""Baselines: what needs no image, what landmarks tell, and what annotators' errors leave to be had."""

import numpy as np
import pytest

from configuration_mf2.facs import LABEL_SETS
from mf2face.data.reference_scores import BASELINES, baseline_scores, centred_landmarks, logistic
from mf2face.data.synthetic.faces import MFASynthetic, synthetic_truth


MFA = LABEL_SETS["mfa"]


@pytest.fixture(scope="module")
def faces():
    return MFASynthetic(320, "paint", seed=5)


def test_every_baseline_of_synthetic_faces_is_there_and_in_order(faces):
    train, test = faces.select(range(240)), faces.select(range(240, 320))
    scores = baseline_scores(train, test, MFA.action_units, MFA.emotions)
    assert set(scores) == set(BASELINES)
    assert all(0 <= value <= 1 for value in scores.values())
    assert scores["au_f1_ceiling"] > 0.9 > scores["au_f1_landmarks"] > scores["au_f1_all_active"]
    assert scores["emotion_top1_ceiling"] > scores["emotion_top1_from_true_aus"] > scores["emotion_top1_commonest"]


def test_the_truth_of_chosen_rows_is_that_of_their_images(faces):
    """Rows in any order: an index that was off by one would be a ceiling near chance."""
    test = faces.select(np.random.default_rng(0).permutation(320)[:100])
    assert baseline_scores(faces, test, MFA.action_units, MFA.emotions)["au_f1_ceiling"] > 0.9
    truth, labels = synthetic_truth(320, seed=5)["emotion"], np.array(faces["emotion"][:])
    scores = baseline_scores(faces, faces, MFA.action_units, MFA.emotions)
    assert scores["emotion_top1_ceiling"] == pytest.approx(np.mean((truth == labels)[labels >= 0]))


def test_what_the_rows_lack_is_left_out(faces):
    bare = faces.remove_columns(["landmarks", "emotion", "corpus"])
    assert set(baseline_scores(bare, bare, MFA.action_units, MFA.emotions)) == {"au_f1_all_active"}


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
