from dataclasses import replace

import numpy as np
import pytest

from configuration_mf2.facs import CANONICAL_FACE, LANDMARK_MIRROR
from mf2face.data.synthetic.drawing import Identity, Scene, draw_face
from mf2face.data.synthetic.faces import draw_example
from mf2face.data.synthetic.geometry import DRAWABLE_AUS, REST_FACE, SHAPE_MODES, place_face


QUIET = Scene(noise=0)


def test_the_face_at_rest_is_the_canonical_one_with_closed_lips():
    upright = np.array([0.0, 0.0, 0.0, 1.0, 0.0, 0.02])  # undoes the shift that centres a whole head
    nobody = np.zeros(len(SHAPE_MODES))
    landmarks, *_ = place_face(np.zeros(len(DRAWABLE_AUS)), nobody, 0.0, 0.0, upright, 100)
    assert np.abs((landmarks + 0.5) / 100 - REST_FACE).max() < 1e-9
    assert np.abs(np.array(CANONICAL_FACE)[:60] - REST_FACE[:60]).max() == 0
    assert (landmarks[61:64, 1] == landmarks[[67, 66, 65], 1]).all()


def test_landmarks_scale_with_the_image():
    person, shown = Identity(), {"AU12": 0.8, "AU25": 0.6}
    small, large = (draw_face(person, shown, replace(QUIET, yaw=0.2, roll=0.1), size)[1] for size in (112, 224))
    assert np.abs(small * 2 - large).max() < 0.2
    assert (small > 0).all() and (small < 111).all()


@pytest.mark.parametrize("shown", [{}, {"AU1": 1.0, "AU15": 0.5}, {"AU4": 0.7, "AU12": 1.0, "AU26": 0.9, "AU25": 1.0}])
def test_a_mirrored_scene_gives_the_mirrored_face(shown):
    person, size = Identity(asymmetry=0.08), 128
    turned = Scene(noise=0, yaw=0.22, pitch=0.05, roll=-0.11, shift=(0.02, 0.01), gaze=(0.004, 0.0))
    mirrored = replace(turned, yaw=-0.22, roll=0.11, shift=(-0.02, 0.01), gaze=(-0.004, 0.0))
    pixels, landmarks = draw_face(person, shown, turned, size)
    flipped, flipped_landmarks = draw_face(replace(person, asymmetry=-0.08), shown, mirrored, size)
    expected = landmarks[list(LANDMARK_MIRROR)] * (-1, 1) + (size, 0)
    assert np.abs(expected - flipped_landmarks).max() <= 0.07  # landmarks are sixteenths of a pixel
    assert np.abs(pixels[:, ::-1].astype(int) - flipped).mean() < 2


def test_lids_and_lips_never_cross():
    for index in range(0, 800, 5):
        points = draw_example(index, exact_landmarks=True)[1]
        down = points[8] - points[27]
        for upper, lower in ((37, 41), (38, 40), (43, 47), (44, 46), (51, 62), (62, 66), (66, 57)):
            assert (points[lower] - points[upper]) @ down >= -0.1 * np.linalg.norm(down)
