"""Drawn faces: action units move their own regions, landmarks are exact, folds lie on the face."""

from dataclasses import replace

import numpy as np
import pytest

from configuration_mf2.facs import CANONICAL_FACE, LANDMARK_MIRROR, LEFT_INNER_EYE, REGION_RULES, RIGHT_INNER_EYE
from mf2face.data.synthetic.drawing import DRAWABLE_AUS, FOLDS, REST_FACE, DrawnPerson, Scene, draw_face
from mf2face.data.synthetic.faces import draw_example
from mf2face.data.synthetic.subjects import ACTIVE_FROM


THRESHOLD = ACTIVE_FROM / 5
QUIET = Scene(noise=0)
FACES = {
    "light": DrawnPerson(skin=(232, 190, 166)),
    "dark": DrawnPerson(skin=(116, 80, 60), lips=(120, 62, 62), hair=(22, 18, 18)),
    "older": DrawnPerson(age=0.9),
}


# Regions that share pixels: the brows; the lips, their corners and the chin below them.
NEIGHBOURS = (
    {"AU1", "AU2", "AU4"},
    {"AU4", "AU7"},
    {"AU10", "AU12", "AU14", "AU15", "AU17", "AU23", "AU24", "AU25", "AU26"},
)


def region(landmarks: np.ndarray, name: str, size: int) -> np.ndarray:
    """Both squares, one inner-ocular distance wide."""
    rule, inside = REGION_RULES[name], np.zeros((size, size), bool)
    across = landmarks[RIGHT_INNER_EYE] - landmarks[LEFT_INNER_EYE]
    side = int(np.linalg.norm(across))
    for corner in (rule.first, rule.second):
        centre = landmarks[list(corner)].mean(0) + np.array([-across[1], across[0]]) * rule.down
        left, top = (centre - side / 2).round().astype(int)
        inside[max(top, 0) : top + side, max(left, 0) : left + side] = True
    return inside


@pytest.mark.parametrize("strength", [THRESHOLD, 1.0])
@pytest.mark.parametrize("name", DRAWABLE_AUS)
def test_an_action_unit_moves_its_own_region_most(name, strength):
    for person in FACES.values():
        rest, landmarks = draw_face(person, {}, QUIET)
        shown, moved = draw_face(person, {name: strength}, QUIET)
        change = np.abs(rest.astype(int) - shown).mean(-1)

        def changed(au, change=change, landmarks=landmarks, moved=moved):
            return change[region(landmarks, au, 112) | region(moved, au, 112)].mean()

        own = region(landmarks, name, 112) | region(moved, name, 112)
        assert change[own].mean() > 1.5  # grey levels: a person sees it
        assert change[own].mean() > 5 * change[~own].mean()
        apart = [au for au in DRAWABLE_AUS if not any({name, au} <= group for group in NEIGHBOURS) and au != name]
        assert changed(name) > 1.5 * max(changed(au) for au in apart)


@pytest.mark.parametrize("name", DRAWABLE_AUS)
def test_a_stronger_action_unit_changes_more(name):
    rest = draw_face(DrawnPerson(), {}, QUIET)[0].astype(int)
    changes = [
        np.abs(rest - draw_face(DrawnPerson(), {name: s}, QUIET)[0]).sum() for s in (0.0, 0.2, THRESHOLD, 0.7, 1.0)
    ]
    assert changes[0] == 0 and changes == sorted(changes)


def test_the_face_at_rest_is_the_canonical_one_with_closed_lips():
    upright = replace(QUIET, pose=(0.0, 0.0, 0.0, 1.0, 0.0, 0.02))  # undoes the shift that centres a whole head
    landmarks = draw_face(DrawnPerson(), {}, upright, 128)[1]
    assert np.abs(landmarks / 128 - REST_FACE).max() < 1e-3
    assert np.abs(np.array(CANONICAL_FACE)[:60] - REST_FACE[:60]).max() == 0
    assert (landmarks[61:64, 1] == landmarks[[67, 66, 65], 1]).all()


def test_landmarks_scale_with_the_image():
    person, shown, turned = DrawnPerson(), {"AU12": 0.8, "AU25": 0.6}, replace(QUIET, pose=(0.2, 0, 0.1, 0.94, 0, 0))
    small, large = (draw_face(person, shown, turned, size)[1] for size in (112, 224))
    assert np.abs(small * 2 - large).max() < 0.2
    assert (small > 0).all() and (small < 111).all()


@pytest.mark.parametrize("shown", [{}, {"AU1": 1.0, "AU15": 0.5}, {"AU4": 0.7, "AU12": 1.0, "AU26": 0.9, "AU25": 1.0}])
def test_a_mirrored_scene_gives_the_mirrored_face(shown):
    size = 128
    turned = replace(QUIET, pose=(0.22, 0.05, -0.11, 0.94, 0.02, 0.01))
    mirrored = replace(QUIET, pose=(-0.22, 0.05, 0.11, 0.94, -0.02, 0.01))
    pixels, landmarks = draw_face(DrawnPerson(), shown, turned, size)
    flipped, flipped_landmarks = draw_face(DrawnPerson(), shown, mirrored, size)
    expected = landmarks[list(LANDMARK_MIRROR)] * (-1, 1) + (size, 0)
    assert np.abs(expected - flipped_landmarks).max() <= 0.07  # landmarks are sixteenths of a pixel
    assert np.abs(pixels[:, ::-1].astype(int) - flipped).mean() < 2


def test_lids_and_lips_never_cross():
    for index in range(0, 800, 5):
        points = draw_example(index, style="drawn", exact_landmarks=True)[1]
        down = points[8] - points[27]
        for upper, lower in ((37, 41), (38, 40), (43, 47), (44, 46), (51, 62), (62, 66), (66, 57)):
            assert (points[lower] - points[upper]) @ down >= -0.1 * np.linalg.norm(down)


def test_every_action_unit_but_parted_lips_has_folds_on_the_face():
    assert {fold[0] for fold in FOLDS} == {"age", "rest", *DRAWABLE_AUS} - {"AU25"}
    assert all(0.1 < x < 0.9 and 0.1 < y < 0.95 for fold in FOLDS for x, y in fold[1])
