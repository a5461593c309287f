"""Rows of a data set to examples (the processor's tensors, one image each), and examples to batches."""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, Image
from datasets.features.features import Array2DExtensionType
from torch.utils.data import default_collate

from configuration_mf2.facs import UNKNOWN_LABEL, LabelSet
from mf2face.captions.styles import CAPTIONS, PROCESSOR_INPUTS
from mf2face.data.schema import described_labels
from mf2face.data.synthetic.subjects import ACTIVE_FROM
from processing_mf2.augmentation import MF2Augmentation
from processing_mf2.captions import parse_au_caption, split_au_caption
from processing_mf2.processing_mf2 import MF2Processor


logger = logging.getLogger(__name__)

LABELS = ("au_labels", "emotion")
DETAILS = {"side_labels": "au_sides", "intensity_labels": "au_intensities"}
"""Inputs of models with `config.sides` and `config.intensities`, and the columns that they are made of."""

# Rows that the processor is given together: enough to share its overhead, few enough for the cache.
_AT_ONCE = 8


class RowReader:
    """Turns rows into examples, which depend on the seed, the epoch and the row's number alone.

    texts: whether captions come along (evaluation needs none): MFA's three, or the columns named. landmarks: without
    them a model reads its regions at the mean face's places; crops are aligned all the same. described: the AUs and
    emotions that the dataset says it counts. details: names in `DETAILS` that are wanted. warned: columns whose absence
    was reported before; several readers share it, so that each is reported once.
    """

    def __init__(
        self,
        first: Mapping[str, Any],
        processor: MF2Processor,
        *,
        texts: bool | Sequence[str] = True,
        augment: MF2Augmentation | None = None,
        seed: int = 0,
        landmarks: bool = True,
        described: LabelSet | None = None,
        details: Collection[str] = (),
        warned: set[str] | None = None,
    ) -> None:
        self.details = {name: column for name, column in DETAILS.items() if name in details and column in first}
        self.processor, self.augment, self.seed, self.landmarks = processor, augment, seed, landmarks
        wanted = (CAPTIONS if texts else ()) if isinstance(texts, bool) else tuple(texts)
        self.captions = [name for name in wanted if name in first]
        self.labels = [name for name in LABELS if name in first]
        if "image" not in first:
            raise ValueError(f"dataset: got the columns {sorted(first)}, expected an `image` among them")
        self._check_labels(first, described)
        if not processor.action_units:  # lists of no label at all
            self.labels = [name for name in self.labels if name != "au_labels"]
        warned = set() if warned is None else warned
        if new := [name for name in (*LABELS, *wanted) if name not in first and name not in warned]:
            warned.update(new)
            logger.warning("dataset has no %s: the losses that need them are off", ", ".join(new))

    def _check_labels(self, first: Mapping[str, Any], described: LabelSet | None) -> None:
        """The same number of labels may still be others: BP4D's 12 AUs are not MFA's."""
        names, advice = self.processor.action_units, "choose the label set that the dataset was built with"
        if "au_labels" in self.labels and (count := len(first["au_labels"])) != len(names):
            expected = f"the model {len(names)}: {', '.join(names)}"
            raise ValueError(f"au_labels: the dataset has {count} an image, {expected}; {advice}")
        for column, kind in (("au_labels", "action_units"), ("emotion", "emotions")):
            if described is None or column not in self.labels:
                continue
            got, expected = (tuple(getattr(labels, kind)) for labels in (described, self.processor))
            if got != expected and (column == "au_labels" or (got and expected)):
                both = f"are {', '.join(got) or 'none'}; the model's are {', '.join(expected) or 'none'}"
                raise ValueError(f"{column}: the dataset's {both}; {advice}, a model of it, or build it anew")

    def columns(self, present: Collection[str], images: bool = True) -> list[str]:
        pictures = [name for name in ("image", "landmarks") if images and name in present]
        return [*self.captions, *self.labels, *self.details.values(), *pictures]

    def many(
        self,
        rows: Sequence[Mapping[str, Any]],
        indexes: Sequence[int],
        epoch: int,
        stored: Sequence[dict[str, torch.Tensor]] | None = None,
    ) -> list[dict[str, Any]]:
        """Equals one row at a time, but for padding; the processor's own work is done once for all."""
        given: dict[str, Any] = {}
        if "au_labels" in self.labels:
            given["au_labels"] = [row["au_labels"] for row in rows]
        if "emotion" in self.labels and self.processor.emotions:
            given["emotion_labels"] = [row["emotion"] for row in rows]
        for name in self.captions:
            argument = PROCESSOR_INPUTS[name]
            if argument != "au_sentences":
                given[argument] = [row[name] for row in rows]
            elif "au_labels" in self.labels:
                given[argument] = [self.sentences(name, *pair, epoch) for pair in zip(rows, indexes, strict=True)]
        if stored is None:
            given |= {"images": [row["image"] for row in rows], "landmarks": [row.get("landmarks") for row in rows]}
            if self.augment is not None:
                given |= {"augment": self.augment, "augment_seed": self.seed * 1_000_003 + epoch}
                given["sample_index"] = list(indexes)
        made = self.processor(**given) if given else {}
        examples = []
        for place, index in enumerate(indexes):
            example = {name: tensor[place] for name, tensor in made.items()} | (stored[place] if stored else {})
            flips = self.augment is not None and self.augment.draw(given["augment_seed"], index).flips
            example |= {name: _detail(name, rows[place][column], flips) for name, column in self.details.items()}
            if not self.landmarks:
                example.pop("landmarks", None)
            examples.append({**example, "index": torch.tensor(index)})
        return examples

    def sentences(self, column: str, row: Mapping[str, Any], index: int, epoch: int) -> list[str]:
        names = self.processor.action_units
        if not row[column]:
            return [""] * len(names)
        if column != "au_caption":  # describes the AUs at rest too
            written, known = parse_au_caption(row[column], names), zip(names, row["au_labels"], strict=True)
            return ["" if state == UNKNOWN_LABEL else written.get(name, "") for name, state in known]
        rng = np.random.default_rng((self.seed, epoch, index))  # words the AUs at rest
        return split_au_caption(row[column], row["au_labels"], names, rng)


def _detail(name: str, values: Sequence, flips: bool) -> torch.Tensor:
    """Of one image; in a flipped one the person's left side is the right."""
    values = torch.tensor(values, dtype=torch.float32)
    if name == "intensity_labels":
        return values
    active = torch.where(values < 0, UNKNOWN_LABEL, (values >= ACTIVE_FROM).long())
    return active.flip(-1) if flips else active


class MF2Examples(torch.utils.data.Dataset):
    """Examples of a dataset on disk or in memory, in any order. Options are those of `RowReader`.

    stored: for each row the tensors that replace its image, such as the tower's output and the landmarks in the crop;
    no augmentation then.
    """

    def __init__(
        self,
        dataset: Dataset,
        processor: MF2Processor,
        *,
        augment: MF2Augmentation | None = None,
        stored: Sequence[dict[str, torch.Tensor]] | None = None,
        **options: Any,
    ) -> None:
        if len(dataset) == 0:
            raise ValueError("dataset: got no rows, expected at least one")
        if stored is not None and augment is not None:
            raise ValueError("augment, stored: got both; what is stored for an image was computed without augmentation")
        present = dataset.column_names
        known = dataset.select_columns([name for name in present if name != "image"])[0] if len(present) > 1 else {}
        first = dict.fromkeys(present) | known
        options.setdefault("described", described_labels(dataset))
        self.read = RowReader(first, processor, augment=augment, **options)
        self.captions, self.labels = self.read.captions, self.read.labels
        self.dataset, self.processor, self.epoch = dataset, processor, 0
        self.stored = stored

    @property
    def stored(self) -> Sequence[dict[str, torch.Tensor]] | None:
        return self._stored

    @stored.setter
    def stored(self, stored: Sequence[dict[str, torch.Tensor]] | None) -> None:
        if stored is not None and len(stored) != len(self.dataset):
            raise ValueError(f"stored: got {len(stored)} rows, expected {len(self.dataset)}, one for each image")
        self._stored = stored
        # Images that are not looked at are not decoded either.
        rows = self.dataset.select_columns(self.read.columns(self.dataset.column_names, stored is None))
        if isinstance(rows.features.get("image"), Image):
            rows = rows.cast_column("image", Image(decode=False))  # the processor decodes, and checks before it does
        self.rows = rows.with_format("arrow")

    def set_epoch(self, epoch: int) -> None:
        self.epoch = int(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indexes: Sequence[int]) -> list[dict[str, Any]]:
        """A loader asks for all rows of a batch at once."""
        indexes, examples = [int(index) for index in indexes], []
        rows = _as_rows(self.rows[indexes])
        for start in range(0, len(indexes), _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            stored = None if self.stored is None else [self.stored[index] for index in indexes[some]]
            examples += self.read.many(rows[some], indexes[some], self.epoch, stored)
        return examples


def _as_rows(table: Any) -> list[dict[str, Any]]:
    """The rows of an Arrow table; landmarks stay numpy arrays, which are read faster than Python's numbers."""
    columns = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        if isinstance(column.type, Array2DExtensionType) and not column.null_count:
            columns[name] = column.combine_chunks().to_numpy(zero_copy_only=False)
        else:
            columns[name] = column.to_pylist()
        if name == "image":
            columns[name] = [as_image(value) for value in columns[name]]
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def as_image(value: Any) -> Any:
    """Bytes or a file as they are, numbers as an array. What lies elsewhere is fetched and not decoded, for `datasets`
    would open any format."""
    if isinstance(value, Mapping) and value.get("bytes") is None and "://" in (value.get("path") or ""):
        feature = Image()
        return feature.embed_storage(pa.array([value], feature.pa_type))[0]["bytes"].as_py()
    return np.array(value) if isinstance(value, list) else value


# Fields of fixed shape; None stands for a size that only has to be the same in all rows.
_IMAGE_SHAPES: dict[str, tuple[int | None, ...]] = {"pixel_values": (3, None, None), "landmarks": (68, 2)}
_LABEL_SHAPES: dict[str, tuple[int | None, ...]] = {"au_labels": (None,), "emotion_labels": ()}
# Ids, their mask and the shape of a row's text.
_TEXTS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("input_ids", "attention_mask", ("tokens",)),
    ("key_au_input_ids", "key_au_attention_mask", ("tokens",)),
    ("au_input_ids", "au_attention_mask", ("action units", "tokens")),
)
_KNOWN = {*_IMAGE_SHAPES, *_LABEL_SHAPES, *(name for ids, mask, _ in _TEXTS for name in (ids, mask))}


@dataclass
class MF2Collator:
    """Rows are dicts of one image each, without a batch dimension.

    Text is padded to the longest of the batch; a row without a text that others have gets padding alone, with a mask
    of zeros. A label missing in a row is -1. What no row has is left out. Further fields of numbers are stacked and
    must be of one shape in all rows; anything else (names, say) is left out.
    """

    pad_token_id: int = 0

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        if not rows:
            raise ValueError("rows: got none, expected at least one")
        present = {field: value for row in reversed(rows) for field, value in row.items() if value is not None}
        batch: dict[str, torch.Tensor] = {}
        for field, shape in _IMAGE_SHAPES.items():
            if field in present:
                batch[field] = _stack(rows, field, shape)
        for ids, mask, shape in _TEXTS:
            if ids in present:
                batch[ids], batch[mask] = self._pad(rows, ids, mask, shape)
        for field, shape in _LABEL_SHAPES.items():
            if field in present:
                unknown = torch.full(torch.as_tensor(present[field]).shape, UNKNOWN_LABEL)
                filled = [{field: unknown if row.get(field) is None else row[field]} for row in rows]
                batch[field] = _stack(filled, field, shape).long()
        for field in dict.fromkeys(field for row in rows for field in row):
            if field not in _KNOWN and _is_numeric(next(row[field] for row in rows if field in row)):
                batch[field] = _stack(rows, field, None)
        return batch

    def _pad(
        self, rows: Sequence[Mapping[str, Any]], ids: str, mask: str, sizes: tuple[str, ...]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        texts: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        for index, row in enumerate(rows):
            if row.get(ids) is None:
                continue
            text = torch.as_tensor(row[ids])
            if text.ndim != len(sizes) or text.is_floating_point():
                got = f"{tuple(text.shape)} of {str(text.dtype).removeprefix('torch.')}"
                raise ValueError(f"{ids}: row {index} got {got}, expected whole numbers: {' x '.join(sizes)}")
            visible = torch.ones_like(text) if row.get(mask) is None else torch.as_tensor(row[mask])
            if visible.shape != text.shape:
                expected = f"{tuple(text.shape)}, the shape of {ids}"
                raise ValueError(f"{mask}: row {index} got {tuple(visible.shape)}, expected {expected}")
            texts[index] = text, visible
        leading = next(iter(texts.values()))[0].shape[:-1]  # () or (action units,)
        for index, (text, _) in texts.items():
            if text.shape[:-1] != leading:
                got = f"{text.shape[0]} action units"
                raise ValueError(f"{ids}: row {index} got {got}, expected {leading[0]} as before")
        shape = (len(rows), *leading, max(1, *(text.shape[-1] for text, _ in texts.values())))
        padded, padded_mask = torch.full(shape, self.pad_token_id), torch.zeros(shape, dtype=torch.long)
        for index, (text, visible) in texts.items():
            padded[index, ..., : text.shape[-1]] = text
            padded_mask[index, ..., : text.shape[-1]] = visible
        return padded, padded_mask


def _is_numeric(value: Any) -> bool:
    if isinstance(value, str | bytes) or value is None:
        return False
    try:
        torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        return False
    return True


def _stack(rows: Sequence[Mapping[str, Any]], field: str, shape: tuple[int | None, ...] | None) -> torch.Tensor:
    """shape: of one row; None for any."""
    values: list[torch.Tensor] = []
    for index, row in enumerate(rows):
        if row.get(field) is None:
            raise ValueError(f"{field}: row {index} has none, but another row has; expected it in all rows or in none")
        value = torch.as_tensor(row[field])
        got = tuple(value.shape)
        if shape and len(shape) == len(got):
            got = tuple(None if size is None else side for size, side in zip(shape, got, strict=True))
        expected = ""
        if shape is not None and got != shape:
            names = ", ".join("any" if size is None else str(size) for size in shape)
            expected = f"({names}), without a batch dimension"
        elif values and value.shape != values[0].shape:
            expected = f"{tuple(values[0].shape)} as in row 0"
        if expected:
            raise ValueError(f"{field}: row {index} got {tuple(value.shape)}, expected {expected}")
        values.append(value)
    return default_collate(values)  # stacks them; in a loader's worker at once where the parent can see them


__all__ = ["DETAILS", "LABELS", "MF2Collator", "MF2Examples", "RowReader", "as_image"]
