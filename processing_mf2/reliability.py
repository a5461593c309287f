"""How far answers can be trusted: a grade a label, and conformal prediction from cuts that a checkpoint keeps."""

from collections.abc import Mapping, Sequence
from typing import Any


GRADES = ("reliable", "usable", "experimental")
CANNOT_TELL = "cannot tell"

Cuts = Mapping[str, Any]
"""For each emotion the lowest probability of faces that show it; for each AU that, and the highest of faces at rest."""


def check_grades(grades: Any, labels: Sequence[str]) -> dict[str, str] | None:
    """Label -> one of `GRADES`; a label that has none was not measured, and is experimental."""
    if grades is None:
        return None
    if not isinstance(grades, Mapping) or (wrong := set(grades) - set(labels)):
        got = sorted(wrong) if isinstance(grades, Mapping) else type(grades).__name__
        raise ValueError(f"grades: got {got!r:.80}, expected grades of {list(labels)}")
    if wrong := [grade for grade in grades.values() if grade not in GRADES]:
        raise ValueError(f"grades: got {wrong[0]!r:.40}, expected one of {list(GRADES)}")
    return {label: grades.get(label, GRADES[-1]) for label in labels}


def check_conformal(conformal: Any, action_units: Sequence[str], emotions: Sequence[str]) -> dict[str, Cuts] | None:
    """Confidence level -> cuts of every label."""
    if conformal is None:
        return None
    if not isinstance(conformal, Mapping) or not conformal:
        raise ValueError(f"conformal: got {conformal!r:.80}, expected cuts by confidence level")
    for level, cuts in conformal.items():
        try:
            numbers = {unit: list(cuts[unit]) for unit in action_units} | {name: [cuts[name]] for name in emotions}
            good = 0 < float(level) < 1 and all(len(numbers[unit]) == 2 for unit in action_units)
            good = good and all(0 <= cut <= 1 for label in numbers.values() for cut in label)
        except (TypeError, ValueError, LookupError) as error:
            raise ValueError(f"conformal[{level!r}]: {error!r:.80}, expected cuts of every label") from error
        if not good:
            raise ValueError(f"conformal[{level!r}]: expected a level between 0 and 1, and two cuts an AU, of 0 to 1")
    return {str(level): dict(cuts) for level, cuts in conformal.items()}


def conformal_cuts(confidence: float | None, conformal: Mapping[str, Cuts] | None) -> Cuts | None:
    """The cuts of the lowest calibrated level that is at least `confidence`."""
    if confidence is None:
        return None
    if isinstance(confidence, bool) or not isinstance(confidence, int | float) or not 0 < confidence < 1:
        raise ValueError(f"confidence: got {confidence!r:.40}, expected a number between 0 and 1, such as 0.9")
    if conformal is None:
        raise ValueError(
            "confidence: this checkpoint is not calibrated (no `conformal` in its processor_config.json), expected one "
            "that is: train.py calibrates on validation people; or leave confidence out"
        )
    levels = sorted((float(level), level) for level in conformal)
    enough = [level for value, level in levels if value >= confidence - 1e-9]
    if not enough:
        known = ", ".join(level for _, level in levels)
        raise ValueError(f"confidence: got {confidence}, expected at most {levels[-1][1]}; it is calibrated at {known}")
    return conformal[enough[0]]


def conformal_state(probability: float, threshold: float, cuts: Sequence[float]) -> str:
    """Of faces that show an AU at most 1 - confidence are called at rest, and of faces at rest so many active.

    It never contradicts the decision at the threshold: there it cannot tell.
    """
    active, at_rest = probability >= cuts[0], probability <= cuts[1]
    if active == at_rest or active != (probability >= threshold):
        return CANNOT_TELL
    return "active" if active else "at rest"


def emotion_set(probabilities: Mapping[str, float], cuts: Cuts) -> list[str]:
    """Emotions that cannot be ruled out, the most probable first; that one is always among them."""
    first, *others = sorted(probabilities, key=lambda name: -probabilities[name])
    return [first, *(name for name in others if probabilities[name] >= cuts[name])]


def add_reliability(result: dict[str, Any], grades: Mapping[str, str] | None, cuts: Cuts | None) -> dict[str, Any]:
    """Grades, and with `cuts` each AU's `state` and the face's `emotion_set`."""
    for name, unit in result.get("action_units", {}).items():
        if grades is not None:
            unit["grade"] = grades[name]
        if cuts is not None:
            unit["state"] = conformal_state(unit["probability"], unit["threshold"], cuts[name])
    if "emotions" in result:
        if grades is not None:
            result["emotion_grade"] = grades[result["emotion"]]
        if cuts is not None:
            result["emotion_set"] = emotion_set(result["emotions"], cuts)
    return result
