"""Action units, label sets, region rules, and the canonical face."""

import pytest

from configuration_mf2.facs import (
    ACTION_UNITS,
    CANONICAL_FACE,
    EMOTIONS,
    LABEL_SETS,
    LANDMARK_MIRROR,
    REGION_RULES,
    check_action_units,
    resolve_label_set,
)


def numbers(names):
    return [int(name.removeprefix("AU")) for name in names]


def test_twenty_seven_action_units_in_rising_order_with_both_forms_and_a_region():
    assert len(ACTION_UNITS) == 27 and numbers(ACTION_UNITS) == sorted(numbers(ACTION_UNITS))
    for unit in ACTION_UNITS.values():
        assert unit.noun and unit.verb and unit.noun == unit.noun.lower() and unit.verb == unit.verb.lower()
    assert len({unit.noun for unit in ACTION_UNITS.values()}) == 27
    assert set(REGION_RULES) == set(ACTION_UNITS) - {"AU21"}, "only the neck has no region"
    for label_set in LABEL_SETS.values():
        assert check_action_units(label_set.action_units, need_region=True) == label_set.action_units
        assert label_set.action_units or label_set.emotions
        assert len(set(label_set.emotions)) == len(label_set.emotions)


def test_label_orders_of_the_corpora():
    for name in ("mfa", "aff_wild2"):
        assert numbers(LABEL_SETS[name].action_units) == [1, 2, 4, 6, 7, 10, 12, 15, 23, 24, 25, 26]
        assert LABEL_SETS[name].emotions == EMOTIONS
    assert EMOTIONS == ("Neutral", "Anger", "Disgust", "Fear", "Happiness", "Sadness", "Surprise", "Other")
    assert numbers(LABEL_SETS["disfa"].action_units) == [1, 2, 4, 6, 9, 12, 25, 26]
    assert numbers(LABEL_SETS["bp4d"].action_units) == [1, 2, 4, 6, 7, 10, 12, 14, 15, 17, 23, 24]
    assert {len(LABEL_SETS[name].emotions) for name in ("affectnet", "raf_db", "raf_db_compound")} == {8, 7, 11}
    assert set(LABEL_SETS) >= {"raf_au", "emotionet", "gft", "affectnet", "raf_db"}


def test_rules_and_the_canonical_face_are_symmetric():
    assert [LANDMARK_MIRROR[LANDMARK_MIRROR[i]] for i in range(68)] == list(range(68))
    for name, rule in REGION_RULES.items():
        first, second = ({LANDMARK_MIRROR[i] for i in points} for points in (rule.first, rule.second))
        assert first == set(rule.first if rule.is_midline else rule.second), name
        assert second == set(rule.second if rule.is_midline else rule.first), name
    assert len(CANONICAL_FACE) == 68
    for index, (x, y) in enumerate(CANONICAL_FACE):
        mirrored_x, mirrored_y = CANONICAL_FACE[LANDMARK_MIRROR[index]]
        assert mirrored_x == pytest.approx(1 - x, abs=1e-12) and mirrored_y == y
        assert 0 < x < 1 and 0 < y < 1
    xs, ys = zip(*CANONICAL_FACE, strict=True)
    assert xs[36] < xs[39] < xs[42] < xs[45] and ys[19] < ys[37] < ys[41] < ys[33] < ys[51] < ys[57] < ys[8]
    assert list(xs[:17]) == sorted(xs[:17]) and list(xs[17:27]) == sorted(xs[17:27])


def test_errors_name_what_is_valid():
    assert check_action_units(["AU21"]) == ("AU21",)
    for call, said in (
        (lambda: resolve_label_set("disfaa"), r"label_set: got 'disfaa'.*'disfa'"),
        (lambda: check_action_units(["AU1", "AU3"]), r"action_units: got \['AU3'\].*'AU43'"),
        (lambda: check_action_units(["AU1", "AU1"]), "AU1.*stands twice"),
        (lambda: check_action_units(["AU21"], need_region=True), r"\['AU21'\] have no region.*use_au_branch=False"),
    ):
        with pytest.raises(ValueError, match=said):
            call()
