from mf2face.data.synthetic.geometry import DRAWABLE_AUS, FOLD_SIDES, FOLDS


def test_every_cause_is_known_and_every_action_unit_but_parting_lips_folds_skin():
    causes = {fold.cause for fold in FOLDS}
    assert causes == {"age", "rest", *DRAWABLE_AUS} - {"AU25"}


def test_folds_come_in_mirrored_pairs_or_cross_the_middle():
    assert len(FOLDS) == len(FOLD_SIDES)
    for index, (fold, side) in enumerate(zip(FOLDS, FOLD_SIDES, strict=True)):
        mirrored = tuple((1 - x, y) for x, y in fold.points)
        if side == -1:
            assert FOLDS[index + 1] == fold._replace(points=mirrored) and FOLD_SIDES[index + 1] == 1
        elif side == 0:
            assert sorted((round(x, 9), y) for x, y in mirrored) == sorted(fold.points)


def test_folds_lie_on_the_face():
    for fold in FOLDS:
        assert all(0.1 < x < 0.9 and 0.1 < y < 0.95 for x, y in fold.points)
        assert 0 < fold.width < 0.1 and -1 <= fold.depth <= 1 and fold.depth != 0
