"""Rows of MFA, as they stand in a dataset, to the single examples that the collator makes batches of."""

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import fsspec
import numpy as np
import torch
from datasets import Dataset, Image
from datasets.features.features import Array2DExtensionType

from configuration_mf2.facs_mf2 import UNKNOWN_LABEL, LabelSet
from processing_mf2.augmentation_mf2 import MF2Augmentation
from processing_mf2.captions_mf2 import parse_au_caption, split_au_caption
from processing_mf2.processing_mf2 import MF2Processor

from .builder_mf2 import described_labels
from .caption_columns_mf2 import CAPTIONS, PROCESSOR_INPUTS


logger = logging.getLogger(__name__)

LABELS = ("au_labels", "emotion")

# Rows that the processor is given together: enough to share its overhead, few enough for the cache.
_AT_ONCE = 8


class RowReader:
    """What one row becomes: it depends on the seed, the epoch and the row's number alone.

    texts: whether captions come along (evaluation needs none): MFA's three, or the columns named. landmarks: without
    them a model reads its regions at the mean face's places; crops are aligned all the same. described: the AUs and
    emotions that the dataset says it counts. told: columns whose absence the user knows of; what is said here is added,
    so that several readers say it once.
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
        told: set[str] | None = None,
    ) -> None:
        self.processor, self.augment, self.seed, self.landmarks = processor, augment, seed, landmarks
        wanted = (CAPTIONS if texts else ()) if isinstance(texts, bool) else tuple(texts)
        self.captions = [name for name in wanted if name in first]
        self.labels = [name for name in LABELS if name in first]
        self._check(first)
        if not processor.action_units:  # lists of no label at all
            self.labels = [name for name in self.labels if name != "au_labels"]
        self._check_names(described)
        self._tell([name for name in (*LABELS, *wanted) if name not in first], told)

    def _tell(self, missing: Sequence[str], told: set[str] | None) -> None:
        told = set() if told is None else told
        new = [name for name in missing if name not in told]
        told.update(new)
        if new:
            logger.warning("dataset has no %s: the losses that need them are off", ", ".join(new))

    def _check_names(self, described: LabelSet | None) -> None:
        """As many labels as the model's may still be others: BP4D's 12 AUs are not MFA's."""
        if described is None:
            return
        both = (
            ("au_labels", "AUs", described.action_units, self.processor.action_units),
            ("emotion", "emotions", described.emotions, self.processor.emotions),
        )
        for column, what, got, expected in both:
            unread = column not in self.labels or (column == "emotion" and not (got and expected))
            if not unread and tuple(got) != tuple(expected):
                raise ValueError(
                    f"{column}: the dataset's {what} are {', '.join(got) or 'none'}; the model's are "
                    f"{', '.join(expected) or 'none'}. Choose the label set that the dataset was built with, or a "
                    "model of it, or build the dataset with the model's label set"
                )

    def _check(self, first: Mapping[str, Any]) -> None:
        if "image" not in first:
            raise ValueError(f"dataset: got the columns {sorted(first)}, expected an `image` among them")
        if "au_labels" in self.labels:
            count, names = len(first["au_labels"]), self.processor.action_units
            if count != len(names):
                raise ValueError(
                    f"au_labels: the dataset has {count} an image, the model {len(names)}: {', '.join(names)}; choose "
                    "the label set that the dataset was built with"
                )

    def columns(self, present: Collection[str], images: bool = True) -> list[str]:
        pictures = [name for name in ("image", "landmarks") if images and name in present]
        return [*self.captions, *self.labels, *pictures]

    def __call__(
        self, row: Mapping[str, Any], index: int, epoch: int, stored: dict[str, torch.Tensor] | None = None
    ) -> dict[str, Any]:
        return self.many([row], [index], epoch, None if stored is None else [stored])[0]

    def many(
        self,
        rows: Sequence[Mapping[str, Any]],
        indexes: Sequence[int],
        epoch: int,
        stored: Sequence[dict[str, torch.Tensor]] | None = None,
    ) -> list[dict[str, Any]]:
        """The same as one by one, but for padding; the processor's own work is done once for all."""
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
                given[argument] = [self._sentences(name, *of_row, epoch) for of_row in zip(rows, indexes, strict=True)]
        if stored is None:
            given |= {"images": [row["image"] for row in rows], "landmarks": [row.get("landmarks") for row in rows]}
            if self.augment is not None:
                given |= {"augment": self.augment, "augment_seed": self.seed * 1_000_003 + epoch}
                given["sample_index"] = list(indexes)
        made = self.processor(**given) if given else {}
        examples = []
        for place, index in enumerate(indexes):
            example = {name: tensor[place] for name, tensor in made.items()} | (stored[place] if stored else {})
            if not self.landmarks:
                example.pop("landmarks", None)
            examples.append({**example, "index": torch.tensor(index)})
        return examples

    def _sentences(self, column: str, row: Mapping[str, Any], index: int, epoch: int) -> list[str]:
        names = self.processor.action_units
        if not row[column]:
            return [""] * len(names)
        if column != "au_caption":  # it tells of the AUs at rest too
            written, known = parse_au_caption(row[column], names), zip(names, row["au_labels"], strict=True)
            return ["" if state == UNKNOWN_LABEL else written.get(name, "") for name, state in known]
        rng = np.random.default_rng((self.seed, epoch, index))  # words the AUs at rest
        return split_au_caption(row[column], row["au_labels"], names, rng)


class HasReader:
    """What a set of examples has of its rows."""

    read: RowReader

    @property
    def captions(self) -> list[str]:
        return self.read.captions

    @property
    def labels(self) -> list[str]:
        return self.read.labels


class MF2Examples(HasReader, torch.utils.data.Dataset):
    """Examples of a dataset that is at hand, in any order. Options as `RowReader` has them.

    stored: for each row the tensors that stand in for its image, such as the tower's output and the landmarks in the
    crop; no augmentation then.
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
        """What a loader asks for: the rows of a batch."""
        indexes, examples = [int(index) for index in indexes], []
        rows = _as_rows(self.rows[indexes])
        for start in range(0, len(indexes), _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            stored = None if self.stored is None else [self.stored[index] for index in indexes[some]]
            examples += self.read.many(rows[some], indexes[some], self.epoch, stored)
        return examples


def _as_rows(table: Any) -> list[dict[str, Any]]:
    """Of an Arrow table; landmarks stay numbers of numpy, for as Python's they would take longest of all."""
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
    """Bytes, or a file, as they are, and numbers as an array; of what lies elsewhere the bytes, not decoded: `datasets`
    would open any format."""
    if isinstance(value, Mapping) and value.get("bytes") is None and "://" in (value.get("path") or ""):
        with fsspec.open(value["path"], "rb") as file:
            return file.read()
    return np.array(value) if isinstance(value, list) else value


__all__ = ["HasReader", "MF2Examples", "RowReader", "as_image"]
