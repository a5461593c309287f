"""Logits to named results: probabilities, thresholds, decisions."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from configuration_mf2.facs import ACTION_UNITS

from .image_io import is_tensor
from .reliability import add_reliability, conformal_cuts


Thresholds = float | Sequence[float] | Mapping[str, float] | None


UNIT_SUFFIXES = {"left": "_L", "right": "_R", "intensity": "_i"}
"""Entries of an action unit's result that not every model has, and how a column of them is called: AU12_L, AU12_i."""
ANSWERS = ("emotion_logits", "au_logits", "au_side_logits", "au_intensities")
"""Outputs of a model that results are made of; few models have the last two."""


class NotFiniteError(ValueError):
    """A model answered with NaN or an infinite value."""


def _array(values: Any) -> np.ndarray:
    return np.asarray(values.detach().float().cpu() if is_tensor(values) else values)


def check_finite(values: Any, name: str) -> None:
    """NaN is below every threshold: without this check it would read "Neutral, no AU"."""
    values = _array(values)
    if not np.isfinite(values).all():
        raise NotFiniteError(
            f"{name}: got {values[~np.isfinite(values)][0]} from the model, expected finite numbers; its weights are "
            "damaged, or its precision is too low: load it again, in float32"
        )


def resolve_thresholds(
    thresholds: Thresholds, action_units: Sequence[str], usual: Sequence[float] | None = None, name: str = "thresholds"
) -> list[float]:
    """One threshold an AU, from one for all, one each, or some by name; the rest from `usual`, or 0.5."""
    usual = [0.5] * len(action_units) if usual is None else list(usual)
    if thresholds is None:
        values = usual
    elif isinstance(thresholds, Mapping):
        unknown = sorted(set(thresholds) - set(action_units))
        if unknown or not thresholds:
            raise ValueError(f"{name}: got {unknown}, expected names among {list(action_units)}")
        values = [thresholds.get(unit, value) for unit, value in zip(action_units, usual, strict=True)]
    elif isinstance(thresholds, int | float):
        values = [thresholds] * len(action_units)
    else:
        values = list(thresholds) if isinstance(thresholds, Iterable) else [thresholds]
    try:
        values = [float(value) for value in values]
    except (TypeError, ValueError):
        values = [repr(value)[:40] for value in values]
    if len(values) != len(action_units) or not all(isinstance(value, float) and 0 <= value <= 1 for value in values):
        raise ValueError(
            f"{name}: got {values}, expected {len(action_units)} numbers from 0 to 1, one for each of "
            f"action_units {list(action_units)}"
        )
    return values


def _answers(outputs: Any, name: str, labels: Sequence[str], sides: tuple[int, ...] = ()) -> np.ndarray | None:
    values = outputs.get(name) if isinstance(outputs, dict) else getattr(outputs, name, None)
    if values is None:
        return None
    values = _array(values).astype(np.float32)
    if values.ndim != 2 + len(sides) or values.shape[1:] != (len(labels), *sides):
        expected = ", ".join(map(str, ("batch", len(labels), *sides)))
        raise ValueError(
            f"{name}: got shape {values.shape}, expected ({expected}) for {list(labels)}; load the "
            "processor of the model's own checkpoint, or make one by MF2Processor.for_model(model.config)"
        )
    check_finite(values, name)
    return values


def _probabilities(
    outputs: Any, name: str, labels: Sequence[str], sides: tuple[int, ...] = ()
) -> list[list[float]] | None:
    logits = _answers(outputs, name, labels, sides)
    if logits is None:
        return None
    if name == "emotion_logits":
        shares = np.exp(logits - logits.max(-1, keepdims=True))
        return (shares / shares.sum(-1, keepdims=True)).tolist()
    with np.errstate(over="ignore"):
        return (1 / (1 + np.exp(-logits))).tolist()


class FaceResults:
    """Of labels and thresholds; a base of `MF2Processor`."""

    action_units: list[str]
    emotions: list[str]
    au_thresholds: list[float] | None
    grades: dict[str, str] | None = None
    conformal: dict[str, Any] | None = None

    def thresholds(self, given: Thresholds = None) -> list[float]:
        """One threshold an AU: given (one for all, one each, or by name), else this processor's, else 0.5."""
        return resolve_thresholds(given, self.action_units, self.au_thresholds)

    def post_process_face_analysis(
        self,
        outputs: Any,
        thresholds: Thresholds = None,
        image_index: Sequence[int] | None = None,
        confidence: float | None = None,
    ) -> list[dict[str, Any]]:
        """Named results, a dict a face, from `emotion_logits` (batch, emotion) and `au_logits` (batch, AU); what the
        model did not predict is absent. Of `au_side_logits` and `au_intensities` each action unit has the probabilities
        `left` and `right` (the person's sides) and its `intensity` from 0 to 5.

        image_index: as returned with `return_landmark_source=True`; each result then names its image.
        confidence: adds each AU's `state` (active, at rest, cannot tell) and `emotion_set`, by conformal prediction.
        """
        limits, cuts = self.thresholds(thresholds), conformal_cuts(confidence, self.conformal)
        emotion_rows = _probabilities(outputs, "emotion_logits", self.emotions)
        au_rows = _probabilities(outputs, "au_logits", self.action_units)
        side_rows = _probabilities(outputs, "au_side_logits", self.action_units, (2,))
        intensities = _answers(outputs, "au_intensities", self.action_units)
        if emotion_rows is None and au_rows is None:
            raise ValueError("outputs: got neither emotion_logits nor au_logits, expected those of a face analysis")
        count = len(emotion_rows if au_rows is None else au_rows)
        if image_index is not None and len(image_index) != count:
            raise ValueError(f"image_index: got {len(image_index)}, expected {count}, one for each face")
        results: list[dict[str, Any]] = []
        for row in range(count):
            result = {} if image_index is None else {"image_index": int(image_index[row])}
            if emotion_rows is not None:
                named = dict(zip(self.emotions, emotion_rows[row], strict=True))
                result |= {"emotion": max(named, key=named.get), "emotions": named}
            if au_rows is not None:
                units = {
                    au: {"name": ACTION_UNITS[au].noun, "probability": p, "threshold": limit, "active": p >= limit}
                    for au, p, limit in zip(self.action_units, au_rows[row], limits, strict=True)
                }
                for au, (left, right) in zip(units, side_rows[row] if side_rows else (), strict=False):
                    units[au] |= {"left": left, "right": right}
                for au, intensity in zip(units, () if intensities is None else intensities[row].tolist(), strict=False):
                    units[au]["intensity"] = intensity
                result |= {"action_units": units, "active_action_units": [au for au in units if units[au]["active"]]}
            results.append(add_reliability(result, self.grades, cuts))
        return results
