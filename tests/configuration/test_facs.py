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


def test_twenty_seven_action_units_in_rising_order_with_both_forms():
    assert len(ACTION_UNITS) == 27
    assert numbers(ACTION_UNITS) == sorted(numbers(ACTION_UNITS))
    for unit in ACTION_UNITS.values():
        assert unit.noun and unit.verb and unit.noun == unit.noun.lower() and unit.verb == unit.verb.lower()
    assert len({unit.noun for unit in ACTION_UNITS.values()}) == 27


def test_label_orders_of_the_corpora():
    for name in ("mfa", "aff_wild2"):
        assert numbers(LABEL_SETS[name].action_units) == [1, 2, 4, 6, 7, 10, 12, 15, 23, 24, 25, 26]
        assert LABEL_SETS[name].emotions == EMOTIONS
    assert EMOTIONS == ("Neutral", "Anger", "Disgust", "Fear", "Happiness", "Sadness", "Surprise", "Other")
    assert numbers(LABEL_SETS["disfa"].action_units) == [1, 2, 4, 6, 9, 12, 25, 26]
    assert numbers(LABEL_SETS["bp4d"].action_units) == [1, 2, 4, 6, 7, 10, 12, 14, 15, 17, 23, 24]
    assert {len(LABEL_SETS[name].emotions) for name in ("affectnet", "raf_db", "raf_db_compound")} == {8, 7, 11}
    assert set(LABEL_SETS) >= {"raf_au", "emotionet", "gft", "affectnet", "raf_db"}


@pytest.mark.parametrize("name", LABEL_SETS)
def test_every_action_unit_of_every_label_set_has_a_region(name):
    units, emotions = LABEL_SETS[name].action_units, LABEL_SETS[name].emotions
    assert check_action_units(units, need_region=True) == units
    assert units or emotions
    assert len(set(emotions)) == len(emotions)


def test_only_the_neck_has_no_region():
    assert set(ACTION_UNITS) - set(REGION_RULES) == {"AU21"}
    assert not set(REGION_RULES) - set(ACTION_UNITS)


def test_stated_region_centres():
    stated = {
        **{"AU1": ((21,), (22,), -1 / 2), "AU2": ((18,), (25,), -1 / 3), "AU4": ((19,), (24,), 1 / 3)},
        **{"AU6": ((41,), (46,), 1), "AU9": ((31,), (35,), -1 / 2), "AU10": ((50,), (52,), 0)},
        **{"AU7": (tuple(range(36, 42)), tuple(range(42, 48)), 0)},
        **dict.fromkeys(("AU12", "AU14", "AU15"), ((48,), (54,), 0)),
        **dict.fromkeys(("AU17", "AU26"), ((58,), (56,), 1 / 2)),
        **dict.fromkeys(("AU23", "AU24", "AU25"), ((51,), (57,), 0)),
    }
    for name, (first, second, down) in stated.items():
        rule = REGION_RULES[name]
        assert (rule.first, rule.second, rule.down) == (first, second, down), name


def test_a_rule_is_symmetric_or_lies_on_the_midline():
    for name, rule in REGION_RULES.items():
        mirrored = {LANDMARK_MIRROR[i] for i in rule.first}
        assert mirrored == (set(rule.first) if rule.is_midline else set(rule.second)), name
        if rule.is_midline:
            assert {LANDMARK_MIRROR[i] for i in rule.second} == set(rule.second), name


def test_mirroring_twice_changes_nothing():
    assert sorted(LANDMARK_MIRROR) == list(range(68))
    assert [LANDMARK_MIRROR[LANDMARK_MIRROR[i]] for i in range(68)] == list(range(68))
    assert [i for i in range(68) if LANDMARK_MIRROR[i] == i] == [8, 27, 28, 29, 30, 33, 51, 57, 62, 66]


def test_canonical_face_is_a_symmetric_upright_face():
    assert len(CANONICAL_FACE) == 68
    for index, (x, y) in enumerate(CANONICAL_FACE):
        mirrored_x, mirrored_y = CANONICAL_FACE[LANDMARK_MIRROR[index]]
        assert mirrored_x == pytest.approx(1 - x, abs=1e-12) and mirrored_y == y
        assert 0 < x < 1 and 0 < y < 1
    xs, ys = zip(*CANONICAL_FACE, strict=True)
    assert xs[36] < xs[39] < xs[42] < xs[45]
    assert ys[19] < ys[37] < ys[41] < ys[33] < ys[51] < ys[57] < ys[8]
    assert list(xs[:17]) == sorted(xs[:17]) and list(xs[17:27]) == sorted(xs[17:27])


def test_errors_name_what_is_valid():
    with pytest.raises(ValueError, match=r"label_set: got 'disfaa'.*'disfa'"):
        resolve_label_set("disfaa")
    with pytest.raises(ValueError, match=r"action_units: got \['AU3'\].*'AU43'"):
        check_action_units(["AU1", "AU3"])
    with pytest.raises(ValueError, match=r"AU1.*stands twice"):
        check_action_units(["AU1", "AU1"])
    with pytest.raises(ValueError, match=r"\['AU21'\] have no region rule.*'AU43'.*use_au_branch=False"):
        check_action_units(["AU21"], need_region=True)
    assert check_action_units(["AU21"]) == ("AU21",)
