"""Rows of the processor to one batch: pad text, stack the rest, fill unknown labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import default_collate

from configuration_mf2.facs_mf2 import UNKNOWN_LABEL


# Fields of fixed shape; None stands for a size that only has to be the same in all rows.
_IMAGE_SHAPES: dict[str, tuple[int | None, ...]] = {"pixel_values": (3, None, None), "landmarks": (68, 2)}
_LABEL_SHAPES: dict[str, tuple[int | None, ...]] = {"au_labels": (None,), "emotion_labels": ()}
# Ids, their mask and how many dimensions they have: tokens, or AUs x tokens.
_TEXTS: tuple[tuple[str, str, int], ...] = (
    ("input_ids", "attention_mask", 1),
    ("key_au_input_ids", "key_au_attention_mask", 1),
    ("au_input_ids", "au_attention_mask", 2),
)


@dataclass
class MF2Collator:
    """Rows are dicts of one image each, without a batch dimension.

    Text is padded to the longest of the batch; a row without a text that others have gets padding alone, with a mask
    of zeros. A label missing in a row is -1. What no row has is left out. Further fields of numbers are stacked and
    have to be of one shape in all rows; anything else (names, say) is left out.
    """

    pad_token_id: int = 0

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        if not rows:
            raise ValueError("rows: got none, expected at least one")
        batch: dict[str, torch.Tensor] = {}
        for field, shape in _IMAGE_SHAPES.items():
            if _present(rows, field):
                batch[field] = _stack(rows, field, shape)
        for ids, mask, ndim in _TEXTS:
            if _present(rows, ids):
                batch[ids], batch[mask] = self._pad(rows, ids, mask, ndim)
        for field, shape in _LABEL_SHAPES.items():
            if _present(rows, field):
                batch[field] = _stack(_fill_unknown(rows, field), field, shape).long()
        known = {*_IMAGE_SHAPES, *_LABEL_SHAPES, *(name for ids, mask, _ in _TEXTS for name in (ids, mask))}
        for field in dict.fromkeys(field for row in rows for field in row):
            if field not in known and _is_numeric(next(row[field] for row in rows if field in row)):
                batch[field] = _stack(rows, field, None)
        return batch

    def _pad(
        self, rows: Sequence[Mapping[str, Any]], ids: str, mask: str, ndim: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        texts, masks = [], []
        for index, row in enumerate(rows):
            if row.get(ids) is None:
                texts.append(None)
                masks.append(None)
                continue
            text = torch.as_tensor(row[ids])
            expected = "(tokens,)" if ndim == 1 else "(action units, tokens)"
            if text.ndim != ndim or text.is_floating_point():
                raise ValueError(
                    f"{ids}: row {index} got {_described(text)}, expected whole numbers of shape {expected}"
                )
            seen = torch.ones_like(text) if row.get(mask) is None else torch.as_tensor(row[mask])
            if seen.shape != text.shape:
                raise ValueError(
                    f"{mask}: row {index} got {tuple(seen.shape)}, expected {tuple(text.shape)}, the shape of {ids}"
                )
            texts.append(text)
            masks.append(seen)
        given = [text for text in texts if text is not None]
        leading = given[0].shape[:-1]  # () or (action units,)
        for index, text in enumerate(texts):
            if text is not None and text.shape[:-1] != leading:
                raise ValueError(
                    f"{ids}: row {index} got {text.shape[0]} action units, expected {leading[0]} as before"
                )
        shape = (len(rows), *leading, max(1, *(text.shape[-1] for text in given)))
        padded, padded_mask = torch.full(shape, self.pad_token_id), torch.zeros(shape, dtype=torch.long)
        for index, (text, seen) in enumerate(zip(texts, masks, strict=True)):
            if text is not None:
                padded[index, ..., : text.shape[-1]] = text
                padded_mask[index, ..., : text.shape[-1]] = seen
        return padded, padded_mask


def _present(rows: Sequence[Mapping[str, Any]], field: str) -> bool:
    return any(row.get(field) is not None for row in rows)


def _is_numeric(value: Any) -> bool:
    if isinstance(value, str | bytes) or value is None:
        return False
    try:
        torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        return False
    return True


def _described(tensor: torch.Tensor) -> str:
    return f"{tuple(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"


def _fill_unknown(rows: Sequence[Mapping[str, Any]], field: str) -> list[dict[str, Any]]:
    shape = next(torch.as_tensor(row[field]).shape for row in rows if row.get(field) is not None)
    unknown = torch.full(shape, UNKNOWN_LABEL)
    return [{field: unknown if row.get(field) is None else row[field]} for row in rows]


def _stack(rows: Sequence[Mapping[str, Any]], field: str, shape: tuple[int | None, ...] | None) -> torch.Tensor:
    values = []
    for index, row in enumerate(rows):
        if row.get(field) is None:
            raise ValueError(f"{field}: row {index} has none, but another row has; expected it in all rows or in none")
        value = torch.as_tensor(row[field])
        fits = shape is None or (
            value.ndim == len(shape) and all(size in (None, got) for size, got in zip(shape, value.shape, strict=True))
        )
        if not fits:
            names = ", ".join("any" if size is None else str(size) for size in shape)
            raise ValueError(
                f"{field}: row {index} got {tuple(value.shape)}, expected ({names}), without a batch dimension"
            )
        if values and value.shape != values[0].shape:
            raise ValueError(
                f"{field}: row {index} got {tuple(value.shape)}, expected {tuple(values[0].shape)} as in row 0"
            )
        values.append(value)
    return default_collate(values)  # stacks them; in a loader's worker at once where the parent can see them
