"""Whether a checkpoint has all that an answer needs: no weight missing, none of another shape, none NaN or infinite."""

from typing import Any


_NAMED = 8


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"


def check_loading_info(info: dict[str, Any], source: object) -> None:
    """info: what `from_pretrained(..., output_loading_info=True)` returns beside the model."""
    missing = sorted(info["missing_keys"])
    mismatched = sorted(str(key[0]) if isinstance(key, tuple | list) else str(key) for key in info["mismatched_keys"])
    for names, what in ((missing, "lacks"), (mismatched, "has in another shape")):
        if names:
            raise ValueError(
                f"{source}: {what} {len(names)} weights that the model answers with: {_listed(names)}; expected a "
                "trained checkpoint that has all of them: a vision tower or a bare MF2Model has to be trained first"
            )


def check_finite(weights: Any, source: object) -> None:
    """weights: a model, or tensors by their names."""
    wrong = [
        name
        for name, tensor in (weights if isinstance(weights, dict) else weights.state_dict()).items()
        if tensor.is_floating_point() and tensor.device.type != "meta" and not tensor.isfinite().all()
    ]
    if wrong:
        raise ValueError(
            f"{source}: {len(wrong)} tensors hold NaN or infinite values: {_listed(sorted(wrong))}; expected finite "
            "numbers: training diverged or the file is damaged; take another checkpoint"
        )


__all__ = ["check_finite", "check_loading_info"]
