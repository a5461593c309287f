"""Rows of MFA, as they stand in a dataset, to the single examples that the collator makes batches of."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from processing_mf2.augmentation_mf2 import MF2Augmentation
from processing_mf2.captions_mf2 import split_au_caption
from processing_mf2.processing_mf2 import MF2Processor


logger = logging.getLogger(__name__)

CAPTIONS = ("emotion_caption", "au_caption", "key_au_caption")
LABELS = ("au_labels", "emotion")


class MF2Examples(torch.utils.data.Dataset):
    """What an example is depends on the seed, the epoch and its index alone: a run that is resumed sees the same.

    texts: whether captions come along (evaluation needs none). stored: for each row the tensors that stand in for its
    image, such as the tower's output and the landmarks in the crop; no augmentation then. landmarks: without them a
    model reads its regions at the mean face's places; crops are aligned all the same.
    """

    def __init__(
        self,
        dataset: Dataset,
        processor: MF2Processor,
        *,
        texts: bool = True,
        augment: MF2Augmentation | None = None,
        seed: int = 0,
        stored: Sequence[dict[str, torch.Tensor]] | None = None,
        landmarks: bool = True,
    ) -> None:
        if len(dataset) == 0:
            raise ValueError("dataset: got no rows, expected at least one")
        if stored is not None and len(stored) != len(dataset):
            raise ValueError(f"stored: got {len(stored)} rows, expected {len(dataset)}, one for each image")
        if stored is not None and augment is not None:
            raise ValueError("augment, stored: got both; what is stored for an image was computed without augmentation")
        self.dataset, self.processor, self.augment = dataset, processor, augment
        self.seed, self.epoch, self.stored, self.landmarks = seed, 0, stored, landmarks
        present = set(dataset.column_names)
        self.captions = [name for name in CAPTIONS if texts and name in present]
        self.labels = [name for name in LABELS if name in present]
        self._check(present, texts)
        used = [*self.captions, *self.labels, *({"image", "landmarks"} & present if stored is None else ())]
        self.rows = dataset.select_columns(used)

    def _check(self, present: set[str], texts: bool) -> None:
        if "image" not in present:
            raise ValueError(f"dataset: got the columns {sorted(present)}, expected an `image` among them")
        missing = [name for name in (*LABELS, *(CAPTIONS if texts else ())) if name not in present]
        if missing:
            logger.warning("dataset has no %s: the losses that need them are off", ", ".join(missing))
        if "au_labels" in self.labels:
            count, names = len(self.dataset[0]["au_labels"]), self.processor.action_units
            if count != len(names):
                raise ValueError(
                    f"au_labels: the dataset has {count} an image, the model {len(names)}: {', '.join(names)}; choose "
                    "the label set that the dataset was built with"
                )

    def set_epoch(self, epoch: int) -> None:
        self.epoch = int(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[int(index)]
        given: dict[str, Any] = {}
        if "au_labels" in self.labels:
            given["au_labels"] = [row["au_labels"]]
        if "emotion" in self.labels and self.processor.emotions:
            given["emotion_labels"] = [row["emotion"]]
        if "emotion_caption" in self.captions:
            given["text"] = [row["emotion_caption"]]
        if "key_au_caption" in self.captions:
            given["key_au_captions"] = [row["key_au_caption"]]
        if "au_caption" in self.captions and "au_labels" in self.labels:
            given["au_sentences"] = [self._sentences(row, int(index))]
        if self.stored is None:
            given |= {"images": [row["image"]], "landmarks": [row.get("landmarks")]}
            if self.augment is not None:
                given |= {"augment": self.augment, "augment_seed": self.seed * 1_000_003 + self.epoch}
                given["sample_index"] = [int(index)]
        example = {name: tensor[0] for name, tensor in self.processor(**given).items()} if given else {}
        if self.stored is not None:
            example |= self.stored[int(index)]
        if not self.landmarks:
            example.pop("landmarks", None)
        return {**example, "index": torch.tensor(int(index))}

    def _sentences(self, row: dict[str, Any], index: int) -> list[str]:
        names = self.processor.action_units
        if not row["au_caption"]:
            return [""] * len(names)
        rng = np.random.default_rng((self.seed, self.epoch, index))  # words the AUs at rest
        return split_au_caption(row["au_caption"], row["au_labels"], names, rng)


__all__ = ["MF2Examples"]
