import numpy as np
import pytest

from configuration_mf2.facs import LEFT_INNER_EYE, REGION_RULES, RIGHT_INNER_EYE
from mf2face.data.synthetic.drawing import Identity, Scene, draw_face
from mf2face.data.synthetic.geometry import DRAWABLE_AUS
from mf2face.data.synthetic.subjects import ACTIVE_FROM


THRESHOLD = ACTIVE_FROM / 5
QUIET = Scene(noise=0)
FACES = {
    "light": Identity(skin=(232, 190, 166)),
    "dark": Identity(skin=(116, 80, 60), lips=(120, 62, 62), hair=(22, 18, 18)),
    "bearded, glasses": Identity(beard=0.4, moustache=0.4, glasses=(30, 30, 40), age=0.9),
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
        assert change[own].mean() > 2.5  # grey levels: a person sees it
        assert change[own].mean() > 5 * change[~own].mean()
        apart = [au for au in DRAWABLE_AUS if not any({name, au} <= group for group in NEIGHBOURS) and au != name]
        assert changed(name) > 2 * max(changed(au) for au in apart)


@pytest.mark.parametrize("name", DRAWABLE_AUS)
def test_a_stronger_action_unit_changes_more(name):
    rest = draw_face(Identity(), {}, QUIET)[0].astype(int)
    changes = [np.abs(rest - draw_face(Identity(), {name: s}, QUIET)[0]).sum() for s in (0.0, 0.2, THRESHOLD, 0.7, 1.0)]
    assert changes[0] == 0 and changes == sorted(changes)


def test_wrong_drawing_arguments():
    with pytest.raises(ValueError, match=r"action_units: got \['AU5'\], expected"):
        draw_face(Identity(), {"AU5": 1.0}, Scene())
    with pytest.raises(ValueError, match="style: got 'oil'"):
        draw_face(Identity(), {}, Scene(), style="oil")
    with pytest.raises(ValueError, match="size: got 4"):
        draw_face(Identity(), {}, Scene(), 4)
