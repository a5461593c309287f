"""Data sets larger than the disk: rows are read as they come, each process its own, again and again."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import torch
from datasets import Dataset, Image, IterableDataset
from datasets.distributed import split_dataset_by_node

from mf2face.data.examples import HasReader, RowReader, as_image
from mf2face.data.schema import SPLITS, described_labels
from mf2face.data.synthetic.faces import MFASynthetic
from processing_mf2.processing_mf2 import MF2Processor


_SHARDS = 64
_UNDECODED = Image(decode=False)


class MF2StreamedExamples(HasReader, torch.utils.data.IterableDataset):
    """Examples without end: when the rows are through, they come again in another order. Options as in `RowReader`.

    Each of `world_size` processes reads rows of its own, and none twice before all were read. `buffer` rows are held,
    undecoded, of which the next is drawn. skip: how many examples an interrupted run has already seen, in batches of
    `batch_size`.
    """

    def __init__(
        self,
        rows: IterableDataset,
        processor: MF2Processor,
        *,
        rank: int = 0,
        world_size: int = 1,
        buffer: int = 1000,
        seed: int = 0,
        **options: Any,
    ) -> None:
        first = next(iter(undecoded(rows)), None)
        if first is None:
            raise ValueError("dataset: got a stream without rows, expected at least one")
        options.setdefault("described", described_labels(rows))
        self.read = RowReader(first, processor, seed=seed, **options)
        rows = undecoded(rows).select_columns(self.read.columns(first))
        rows = rows.shuffle(seed=seed, buffer_size=buffer) if buffer > 1 else rows
        self.rows = split_dataset_by_node(rows, rank, world_size)
        self.processor, self.rank, self.world_size = processor, rank, world_size
        self.skip, self.batch_size = 0, 1

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = torch.utils.data.get_worker_info()
        workers, place = (worker.num_workers, worker.id) if worker else (1, 0)
        left = self._skipped(workers, place)
        for epoch in itertools.count():
            self.rows.set_epoch(epoch)
            found = False
            for number, row in enumerate(self.rows):
                found = True
                if left:
                    left -= 1
                    continue
                if isinstance(row["image"], dict):
                    row = {**row, "image": as_image(row["image"])}
                # A number that no other row of this pass has, on no process and in no worker.
                yield self.read(row, (number * workers + place) * self.world_size + self.rank, epoch)
            if not found:
                raise ValueError(
                    f"dataset: got no row for process {self.rank} of {self.world_size}, worker {place} of {workers}; "
                    f"the stream has {self.rows.num_shards} shards: take fewer --dataloader_num_workers"
                )

    def _skipped(self, workers: int, place: int) -> int:
        """Of all examples that were seen, those of this worker: workers take turns, a batch each."""
        return len(range(place, self.skip // self.batch_size, workers)) * self.batch_size


def undecoded(rows: IterableDataset) -> IterableDataset:
    return rows.cast_column("image", _UNDECODED) if rows.features and "image" in rows.features else rows


def stream_splits(dataset: str, held_out: int = 1000, **synthetic: Any) -> dict[str, Dataset | IterableDataset]:
    """The train split as a stream; of validation and test the first `held_out` rows.

    dataset: synthetic (then `synthetic` is what `MFASynthetic` takes), a folder of MFA, or a name on the Hub. Subjects
    that stand in two splits are not looked for: that would take a pass over all rows.
    """
    if dataset == "synthetic":
        found = MFASynthetic(**synthetic, streaming=True)
    elif any((Path(dataset) / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
        found = datasets.load_from_disk(dataset)
    else:
        found = datasets.load_dataset(dataset, streaming=True)
    if isinstance(found, dict) and set(found) & set(SPLITS) == {"train"}:
        found = found["train"]
    if not isinstance(found, dict):
        column = _as_stream(found)
        if column.features is not None and "split" not in column.features:
            raise ValueError(
                f"dataset: {dataset} has the columns {sorted(column.features)}, expected a column `split`, or files "
                "named train, validation and test"
            )
        found = {name: column.filter(_is_of, input_columns="split", fn_kwargs={"name": name}) for name in SPLITS}
    splits = {"train": _as_stream(found["train"])}
    for name in ("validation", "test"):
        if name in found and len(rows := _kept(_as_stream(found[name]), held_out)):
            splits[name] = rows
    if len(splits) == 1:
        raise ValueError(f"dataset: {dataset} has no rows in the splits validation and test, expected one of them")
    splits.setdefault("validation", splits.get("test"))
    splits.setdefault("test", splits["validation"])
    return splits


def _is_of(split: str, name: str) -> bool:
    return split == name


def _as_stream(rows: Dataset | IterableDataset) -> IterableDataset:
    if isinstance(rows, IterableDataset):
        return rows
    stream = rows.to_iterable_dataset(num_shards=min(_SHARDS, len(rows)))
    stream.info.description = rows.info.description  # names the labels
    return stream


def _kept(rows: IterableDataset, most: int) -> Dataset:
    raw = undecoded(rows)
    found = list(raw.take(most))
    if not found:
        return Dataset.from_list([])
    kept = Dataset.from_list(found, features=raw.features).cast_column("image", Image())
    kept.info.description = raw.info.description
    return kept


__all__ = ["MF2StreamedExamples", "stream_splits"]
