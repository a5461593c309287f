import numpy as np
import pytest

from mf2face.data.synthetic.faces import draw_example
from mf2face.data.synthetic.subjects import ACTIVE_FROM, annotate, expression


def test_detector_error_is_the_default_and_scales():
    for size in (112, 224):
        errors = [
            draw_example(i, size=size)[1] - draw_example(i, size=size, exact_landmarks=True)[1] for i in range(40)
        ]
        assert np.std(errors) == pytest.approx(1.5 * size / 112, rel=0.05)
        assert abs(np.mean(errors)) < 0.1


def test_labels_agree_with_intensities_and_errors_are_rare():
    notes = [annotate(0, "paint", index) for index in range(3000)]
    labels, intensities = (np.stack([getattr(note, name) for note in notes]) for name in ("labels", "intensities"))
    truth = np.stack([note.true_intensities for note in notes]) >= ACTIVE_FROM
    known = labels >= 0
    assert (known == (intensities >= 0)).all() and intensities.max() <= 5
    assert (labels[known] == (intensities >= ACTIVE_FROM)[known]).all()
    assert (labels != truth)[known].mean() == pytest.approx(0.02, abs=0.004)
    assert (~known).mean() == pytest.approx(0.02, abs=0.004)
    emotions, true_emotions = (
        np.array([getattr(note, name) for note in notes]) for name in ("emotion", "true_emotion")
    )
    assert (emotions < 0).mean() == pytest.approx(0.02, abs=0.01)
    assert (emotions != true_emotions)[emotions >= 0].mean() == pytest.approx(0.08, abs=0.02)
    assert np.bincount(true_emotions).min() > 0.08 * len(notes) and np.bincount(true_emotions).max() < 0.17 * len(notes)
    assert (truth.mean(0) > 0.06).all() and (truth.mean(0) < 0.5).all()


def test_a_video_goes_smoothly():
    steps = [
        np.abs(expression(0, "paint", 8 * video + frame + 1)[0] - expression(0, "paint", 8 * video + frame)[0]).mean()
        for video in range(60)
        for frame in range(7)
    ]
    strangers = [
        np.abs(expression(0, "paint", 8 * v)[0] - expression(0, "paint", 8 * v + 8)[0]).mean() for v in range(60)
    ]
    assert np.mean(steps) < 0.6 * np.mean(strangers)
