"""Tables from flat figures: chance counted by hand, nothing invented, no flattering score alone."""

import pytest

from mf2face.training.cards import (
    always_the_commonest,
    always_yes,
    baseline_table,
    calibration_table,
    emotion_table,
    group_table,
    language_table,
    summary_table,
    table,
    unit_table,
    without_positives,
)
from mf2face.training.language import FIGURES


UNITS = {"au_n/AU1": 10.0, "au_n/AU12": 8.0, "au_prevalence/AU1": 0.2, "au_prevalence/AU12": 0.0}
UNITS |= {"au_f1/AU1": 0.4, "au_f1/AU12": 0.0, "au_f1_macro": 0.2, "au_f1/AU1/low": 0.31, "au_f1/AU1/high": 0.52}
EMOTIONS = {"emotion_n/Fear": 6.0, "emotion_n/Other": 2.0, "emotion_n": 8.0, "emotion_top1": 0.625}
FOUR = {**EMOTIONS, "emotion_macro_recall": 0.51, "emotion_macro_f1": 0.52, "emotion_ovr_accuracy": 0.626}


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]


def test_chance_by_hand() -> None:
    chance = always_yes(UNITS)
    assert chance["au_f1/AU1"] == pytest.approx(1 / 3) and chance["au_f1/AU12"] == 0
    assert chance["au_f1_macro"] == pytest.approx(1 / 6)
    commonest = always_the_commonest(EMOTIONS)  # Fear: 6 of 8 right, precision 0.75, recall 1
    assert commonest["emotion_top1"] == 0.75 and commonest["emotion_macro_recall"] == 0.5
    assert commonest["emotion_macro_f1"] == pytest.approx(0.75 / 1.75)
    assert commonest["emotion_ovr_accuracy"] == 0.75
    assert always_yes({}) == {} and always_the_commonest({}) == {}


def test_units_stand_beside_always_yes_and_what_is_unknown_has_no_column() -> None:
    head, _, first, second, macro = cells(unit_table(UNITS))
    assert head == ["AU", "n", "prevalence", "always yes", "F1 at 0.5", "95 % interval"]
    assert first == ["AU1 inner brow raiser", "10", "0.200", "0.333", "0.400", "0.310 to 0.520"]
    assert second[-1] == "–" and macro == ["macro", "–", "–", "0.167", "0.200", "–"]
    assert without_positives(UNITS) == ["AU12"]


def test_the_four_emotion_scores_are_shown_together_or_not_at_all(caplog: pytest.LogCaptureFixture) -> None:
    assert "0.625" in summary_table(FOUR) and "0.626" in summary_table(FOUR)
    for missing in ("emotion_top1", "emotion_macro_recall", "emotion_macro_f1"):
        caplog.clear()
        shown = summary_table({name: value for name, value in {**UNITS, **FOUR}.items() if name != missing})
        assert "0.626" not in shown and "0.200" in shown
        assert "none is shown" in caplog.text
    shown = group_table({"group/a/n": 4.0, "group/a/emotion_ovr_accuracy": 0.9, "group/a/au_f1_macro": 0.3})
    assert "0.900" not in shown and "0.300" in shown


def test_baselines_and_language_come_with_their_words(caplog: pytest.LogCaptureFixture) -> None:
    shown = cells(baseline_table({"au_f1_macro": 0.8, "baseline/au_f1_landmarks": 0.6}))[-1]
    assert shown == ["logistic regression on the landmarks alone", "AU F1, macro", "0.600", "0.800"]
    shown = language_table({"zero_shot_au_auc": 0.75, "caption_of_the_day": 1.0, "itm_au_accuracy": float("nan")})
    assert f"| `zero_shot_au_auc` | 0.750 | {FIGURES['zero_shot_au_auc']} |" in shown
    assert "caption_of_the_day" not in shown and "caption_of_the_day" in caplog.text and "itm" not in shown


def test_nothing_known_is_no_table() -> None:
    tables = (summary_table, baseline_table, unit_table, emotion_table, calibration_table, group_table, language_table)
    for make in tables:
        assert make({"cpu_seconds": 3.0}) == "", make.__name__
    assert table(["a", "b"], [["x", "–"]]) == ""
    assert table(["a", "b"], [["x|y", "1"]]) == "| a | b |\n| --- | ---: |\n| x/y | 1 |"
