"""Logits to named results: which emotion, which action units, how sure, and against which threshold."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from configuration_mf2.facs_mf2 import ACTION_UNITS


def resolve_thresholds(
    thresholds: float | Sequence[float] | dict[str, float] | None,
    action_units: Sequence[str],
    usual: Sequence[float] | None = None,
    name: str = "thresholds",
) -> list[float]:
    """One threshold an AU, from one for all, one each, or some by name; what is not given is as `usual`, or 0.5."""
    usual = [0.5] * len(action_units) if usual is None else list(usual)
    if thresholds is None:
        values = usual
    elif isinstance(thresholds, dict):
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


class NotFiniteError(ValueError):
    """A model answered with NaN or an infinite value."""


def check_finite(values: torch.Tensor, name: str) -> None:
    """An error if there is anything else than numbers: of NaN every comparison is false, so it would read "Neutral"."""
    if not torch.isfinite(values).all():
        raise NotFiniteError(
            f"{name}: got {values[~torch.isfinite(values)][0].item()} from the model, expected finite numbers; its "
            "weights are damaged, or its precision is too low for them: load it again, in float32"
        )


def named_results(
    outputs: Any,
    action_units: Sequence[str],
    emotions: Sequence[str],
    thresholds: Sequence[float],
    image_index: Sequence[int] | None = None,
) -> list[dict[str, Any]]:
    """A dict a face; what the model did not predict is absent from it."""
    emotion_rows = _probabilities(outputs, "emotion_logits", emotions)
    au_rows = _probabilities(outputs, "au_logits", action_units)
    if emotion_rows is None and au_rows is None:
        raise ValueError("outputs: got neither emotion_logits nor au_logits, expected the output of a face analysis")
    count = len(emotion_rows if au_rows is None else au_rows)
    if image_index is not None and len(image_index) != count:
        raise ValueError(f"image_index: got {len(image_index)}, expected {count}, one for each face")
    results: list[dict[str, Any]] = []
    for row in range(count):
        result = {} if image_index is None else {"image_index": int(image_index[row])}
        if emotion_rows is not None:
            named = dict(zip(emotions, emotion_rows[row], strict=True))
            result |= {"emotion": max(named, key=named.get), "emotions": named}
        if au_rows is not None:
            units = {
                au: {
                    **{"name": ACTION_UNITS[au].noun, "probability": probability},
                    **{"threshold": threshold, "active": probability >= threshold},
                }
                for au, probability, threshold in zip(action_units, au_rows[row], thresholds, strict=True)
            }
            result |= {"action_units": units, "active_action_units": [au for au in units if units[au]["active"]]}
        results.append(result)
    return results


def _probabilities(outputs: Any, name: str, labels: Sequence[str]) -> list[list[float]] | None:
    logits = outputs.get(name) if isinstance(outputs, dict) else getattr(outputs, name, None)
    if logits is None:
        return None
    logits = torch.as_tensor(logits).detach().float().cpu()
    if logits.ndim != 2 or logits.shape[1] != len(labels):
        raise ValueError(
            f"{name}: got shape {tuple(logits.shape)}, expected (batch, {len(labels)}) for {list(labels)}; load the "
            "processor of the model's own checkpoint, or make one by MF2Processor.for_model(model.config)"
        )
    check_finite(logits, name)
    return (logits.softmax(-1) if name == "emotion_logits" else logits.sigmoid()).tolist()
