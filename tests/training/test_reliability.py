"""Conformal cuts cover as asked, and grades follow from evidence by the rule."""

import json
from pathlib import Path

import numpy as np

from mf2face.training.reliability import (
    LEVELS,
    RULE,
    calibrate,
    coverage,
    evidence_of,
    grade_of,
    lowest_cut,
    write_grades,
)
from processing_mf2.reliability import GRADES


UNITS, EMOTIONS = ["AU1", "AU12", "AU25"], ["Neutral", "Happiness", "Fear"]


def faces(count: int, seed: int, unsure: float = 1.0) -> tuple:
    rng = np.random.default_rng(seed)
    units, emotion = rng.integers(-1, 2, (count, 3)), rng.integers(-1, 3, count)
    logits = np.array([0.5, 2, 5]) * np.where(units == 1, 1, -1) + unsure * rng.normal(size=(count, 3))
    moods = rng.normal(size=(count, 3)) * unsure + 2 * np.eye(3)[emotion.clip(0)]
    shares = np.exp(moods) / np.exp(moods).sum(1, keepdims=True)
    return (shares, 1 / (1 + np.exp(-logits))), (emotion, units)


def test_a_cut_is_an_order_statistic() -> None:
    scores = np.array([0.5, 0.1, 0.9, 0.3, 0.7, 0.2, 0.8, 0.4, 0.6])
    assert lowest_cut(scores, 0.9) == 0.1 and lowest_cut(scores, 0.8) == 0.2
    assert lowest_cut(scores, 0.95) == lowest_cut(scores[:3], 0.9) == lowest_cut(scores[:0], 0.5) == 0.0


def test_coverage_holds_on_people_like_those_and_sets_are_nested() -> None:
    conformal = calibrate(*faces(4000, 0), UNITS, EMOTIONS)
    figures = coverage(*faces(8000, 1), UNITS, EMOTIONS, conformal, [0.5] * len(UNITS))
    told = []
    for level in LEVELS:
        percent = f"{float(level) * 100:g}"
        for name in (*UNITS, *EMOTIONS):
            assert figures[f"coverage_{percent}/{name}"] > float(level) - 0.02
        told.append(figures[f"told_{percent}/AU1"])
    assert told == sorted(told, reverse=True) and told[-1] < 0.4
    assert figures["told_90/AU25"] == 1 and abs(figures["coverage_90/AU1"] - 0.9) < 0.02
    shifted = coverage(*faces(8000, 2, unsure=3.0), UNITS, EMOTIONS, conformal, [0.5] * len(UNITS))
    strict = coverage(*faces(8000, 1), UNITS, EMOTIONS, conformal, [0.9] * len(UNITS))
    assert strict["told_90/AU25"] < figures["told_90/AU25"] and strict["coverage_90_au"] >= figures["coverage_90_au"]
    assert shifted["coverage_90_au"] < 0.88, "another style is not covered as asked, and the figure says it"


def test_the_rule() -> None:
    best = {"test": 0.99, "style_shift": 0.99, "photographs": 0.99}
    assert grade_of(best) == "reliable" and grade_of({}) == grade_of({"test": 0.99}) == "experimental"
    rendered = {key: value for key, value in best.items() if key != "photographs"}
    assert grade_of(rendered) == "usable" and grade_of(rendered | {"test": 0.85}) == "experimental"
    for key in best:
        assert grade_of(best | {key: RULE["usable"][key]}) == "usable"
        assert grade_of(best | {key: RULE["usable"][key] - 0.01}) == "experimental"
    assert grade_of(best | {"recall": 0.4}) == "usable" and grade_of(best | {"recall": 0.1}) == "experimental"
    measured = {"au12_happiness_auc": 0.9, "au12_happiness_auc_low": 0.8, "au12_happiness_auc_high": 0.95}
    rendered = {"test": {"au_roc_auc/AU12": 0.97}, "style_shift": {"au_roc_auc/AU12": 0.9}}
    found = evidence_of("AU12", rendered, measured)
    assert (found["test"], found["photographs"], found["figure"]) == (0.97, 0.8, "au12_happiness_auc")
    own = {"au12_auc": 0.7, "au12_auc_low": 0.6, "au12_auc_high": 0.8}
    assert evidence_of("AU12", rendered, measured | own)["photographs"] == 0.6, "labels of the AU itself come first"


def test_grades_and_their_evidence_lie_with_the_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "processor_config.json"
    file.write_text(json.dumps({"action_units": UNITS, "emotions": EMOTIONS, "au_max_length": 169}))
    scores = {
        f"{kind}_roc_auc/{name}": 0.95 for kind, names in (("au", UNITS), ("emotion", EMOTIONS)) for name in names
    }
    rendered = {"test": scores, "style_shift": scores}
    seen = {f"fear_auc{end}": 0.9 for end in ("", "_low", "_high")} | {"fear_recall": 0.2}
    grades = write_grades(tmp_path, rendered, seen, {"test": "those"}, {"grey_au_f1_difference": 0.0}, {"0.9": {}})
    assert grades == {**dict.fromkeys([*UNITS, *EMOTIONS], "usable"), "Fear": "experimental"}
    saved, evidence = json.loads(file.read_text()), json.loads((tmp_path / "reliability.json").read_text())
    assert saved["grades"] == grades and saved["conformal"] == {"0.9": {}} and saved["au_max_length"] == 169
    assert {label: found["grade"] for label, found in evidence["labels"].items()} == grades
    assert evidence["rule"] == RULE and evidence["labels"]["Fear"]["recall"] == 0.2
    unseen = write_grades(tmp_path, rendered, {}, {}, {})
    assert set(unseen.values()) == {GRADES[-1]}, "nothing was measured on photographs"
