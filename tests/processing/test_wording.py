import re

import pytest

from configuration_mf2.facs import ACTION_UNITS, LABEL_SETS
from processing_mf2.wording import AU_WORDING, EMOTION_WORDING, emotion_wording, third_person


def test_every_au_has_wording_of_its_own():
    assert set(AU_WORDING) == set(ACTION_UNITS)
    for kind in ("active", "rest"):
        phrases = [phrase for wording in AU_WORDING.values() for phrase in getattr(wording, kind)]
        assert len(set(phrases)) == len(phrases)
    states = [{*wording.active} & {*other.rest} for wording in AU_WORDING.values() for other in AU_WORDING.values()]
    assert not any(states)
    assert len({wording.cue for wording in AU_WORDING.values()}) == len(AU_WORDING)
    for wording in AU_WORDING.values():  # an article exactly before the singular
        assert wording.cue.startswith(("a ", "an ")) != bool(
            re.search(r"(brows|eyes|cheeks|lids|lips|folds|corners)\b", wording.cue)
        )
    assert all(len(wording.active) >= 3 and len(wording.rest) >= 2 for wording in AU_WORDING.values())


def test_every_emotion_of_every_label_set_is_named_and_known_by_its_aus():
    for name in {name for label_set in LABEL_SETS.values() for name in label_set.emotions}:
        wording = emotion_wording(name)
        assert wording.phrase and wording.phrase[0].islower()
        assert set(wording.typical) <= set(ACTION_UNITS)
        assert bool(wording.typical) == (name not in ("Neutral", "Other"))
    assert set(LABEL_SETS["mfa"].emotions) < set(EMOTION_WORDING)


def test_compound_emotion_is_typical_by_its_parts():
    wording = emotion_wording("Angrily Surprised")
    assert wording.phrase == "an angrily surprised expression"
    assert set(wording.typical) == {*EMOTION_WORDING["Anger"].typical, *EMOTION_WORDING["Surprise"].typical}
    assert emotion_wording("Pride").phrase == "pride" and not emotion_wording("Pride").typical


@pytest.mark.parametrize(
    ("verb", "expected"),
    [
        ("press lips", "presses lips"),
        ("stretch mouth", "stretches mouth"),
        ("raise inner eyebrow", "raises inner eyebrow"),
        ("show lip funneler", "shows lip funneler"),
        ("carry", "carries"),
        ("play", "plays"),
    ],
)
def test_verbs_are_conjugated(verb, expected):
    assert third_person(verb) == expected
