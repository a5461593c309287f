"""Data sets larger than the disk, read as streams: each process its own rows, epoch after epoch."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import torch
from datasets import Dataset, Image, IterableDataset
from datasets.distributed import split_dataset_by_node

from mf2face.data.examples import RowReader, as_image
from mf2face.data.protocols import complete_splits
from mf2face.data.schema import SPLITS, described_labels
from mf2face.data.synthetic.faces import MFASynthetic
from processing_mf2.processing_mf2 import MF2Processor


_SHARDS = 64
_UNDECODED = Image(decode=False)


class MF2StreamedExamples(torch.utils.data.IterableDataset):
    """Endless examples: each epoch reads all rows in another order. Options are those of `RowReader`.

    Each of `world_size` processes reads its own rows, and none twice before all were read. `buffer` rows are held,
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
        self.captions, self.labels = self.read.captions, self.read.labels
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
            number = None
            for number, row in enumerate(self.rows):
                if left:
                    left -= 1
                    continue
                if isinstance(row["image"], dict):
                    row = {**row, "image": as_image(row["image"])}
                # A number that no other row of this pass has, on no process and in no worker.
                index = (number * workers + place) * self.world_size + self.rank
                yield self.read.many([row], [index], epoch)[0]
            if number is None:
                reader = f"process {self.rank} of {self.world_size}, worker {place} of {workers}"
                advice = f"the stream has {self.rows.num_shards} shards: take fewer --dataloader_num_workers"
                raise ValueError(f"dataset: got no row for {reader}; {advice}")

    def _skipped(self, workers: int, place: int) -> int:
        """This worker's part of the examples that were seen: workers take turns, a batch each."""
        return len(range(place, self.skip // self.batch_size, workers)) * self.batch_size


def undecoded(rows: IterableDataset) -> IterableDataset:
    return rows.cast_column("image", _UNDECODED) if rows.features and "image" in rows.features else rows


def stream_splits(
    dataset: str, held_out: int = 1000, divided: bool = True, **synthetic: Any
) -> dict[str, Dataset | IterableDataset]:
    """The train split as a stream; of validation and test the first `held_out` rows.

    dataset: synthetic (then `synthetic` is what `MFASynthetic` takes), a folder of MFA, or a name on the Hub. Subjects
    in two splits are not searched for: that would take a pass over all rows. divided: as `complete_splits` takes it.
    """
    if dataset == "synthetic":
        rows = MFASynthetic(**synthetic, streaming=True)
    elif any((Path(dataset) / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
        rows = datasets.load_from_disk(dataset)
    else:
        rows = datasets.load_dataset(dataset, streaming=True)
    if isinstance(rows, dict) and set(rows) & set(SPLITS) == {"train"}:
        rows = rows["train"]
    if not isinstance(rows, dict):
        stream = _as_stream(rows)
        if stream.features is not None and "split" not in stream.features:
            expected = "a column `split`, or files named train, validation and test"
            raise ValueError(f"dataset: {dataset} has the columns {sorted(stream.features)}, expected {expected}")
        rows = {name: stream.filter(_is_split, input_columns="split", fn_kwargs={"name": name}) for name in SPLITS}
    splits = {"train": _as_stream(rows["train"])}
    for name in ("validation", "test"):
        if name in rows and len(kept := _first(_as_stream(rows[name]), held_out)):
            splits[name] = kept
    if len(splits) == 1:
        raise ValueError(f"dataset: {dataset} has no rows in the splits validation and test, expected one of them")
    return complete_splits(splits, divided)


def _is_split(split: str, name: str) -> bool:
    return split == name


def _as_stream(rows: Dataset | IterableDataset) -> IterableDataset:
    if isinstance(rows, IterableDataset):
        return rows
    stream = rows.to_iterable_dataset(num_shards=min(_SHARDS, len(rows)))
    stream.info.description = rows.info.description  # names the labels
    return stream


def _first(stream: IterableDataset, count: int) -> Dataset:
    raw = undecoded(stream)
    rows = list(raw.take(count))
    if not rows:
        return Dataset.from_list([])
    kept = Dataset.from_list(rows, features=raw.features).cast_column("image", Image())
    kept.info.description = raw.info.description
    return kept


__all__ = ["MF2StreamedExamples", "stream_splits"]
