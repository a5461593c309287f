"""Every row once before any comes twice, on whichever process; and a run that continues sees what is next."""

import itertools

import pytest
import torch
from datasets import DatasetDict

from configuration_mf2 import MF2Config
from mf2face.data.examples import MF2Examples
from mf2face.data.schema import described_labels
from mf2face.data.streaming import MF2StreamedExamples, stream_splits
from mf2face.data.synthetic.faces import MFASynthetic
from processing_mf2 import MF2Augmentation, MF2Processor


@pytest.fixture(scope="module")
def processor():
    return MF2Processor.for_model(MF2Config.from_size("tiny"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return MFASynthetic(24, size=64, cache_dir=tmp_path_factory.mktemp("faces"))


def take(examples, count):
    return list(itertools.islice(examples, count))


def key(example):
    return example["landmarks"].numpy().tobytes()


@pytest.mark.parametrize("shards", [1, 4])
def test_processes_share_the_rows_and_repeat_them_in_another_order(rows, processor, shards):
    stream = rows.to_iterable_dataset(num_shards=shards)
    halves = [MF2StreamedExamples(stream, processor, rank=rank, world_size=2, buffer=8) for rank in range(2)]
    plain = MF2Examples(rows, processor)
    everything = {key(plain[index]) for index in range(len(rows))}
    seen = [take(half, 24) for half in halves]
    once = [[key(example) for example in half[:12]] for half in seen]
    assert len({*once[0], *once[1]}) == 24 and {*once[0], *once[1]} == everything
    again = [[key(example) for example in half[12:]] for half in seen]
    assert {*again[0], *again[1]} == everything and again != once
    numbers = [int(example["index"]) for half in seen for example in half[:12]]
    assert sorted(numbers) == list(range(24))


def test_an_example_is_that_of_the_data_set_at_hand(rows, processor):
    streamed = take(MF2StreamedExamples(rows.to_iterable_dataset(), processor, buffer=1), 3)[2]
    plain = MF2Examples(rows, processor)[2]
    assert streamed.keys() == plain.keys()
    assert all(torch.equal(streamed[name], plain[name]) for name in plain)


def test_what_was_seen_is_skipped(rows, processor):
    def batches(skip):
        examples = MF2StreamedExamples(
            rows.to_iterable_dataset(num_shards=4), processor, buffer=6, augment=MF2Augmentation()
        )
        examples.skip, examples.batch_size = skip, 4
        loader = torch.utils.data.DataLoader(examples, 4, collate_fn=list)
        return [[key(example) for example in batch] for batch in itertools.islice(loader, 10 - skip // 4)]

    whole, rest = batches(0), batches(12)
    assert rest == whole[3:]
    examples = MF2StreamedExamples(rows.to_iterable_dataset(), processor)
    examples.skip, examples.batch_size = 5 * 4, 4  # the first of two workers has made batches 0, 2 and 4
    assert [examples._skipped(2, worker) for worker in range(2)] == [3 * 4, 2 * 4]


def test_a_folder_of_mfa_and_drawn_faces_are_streamed_alike(rows, processor, tmp_path):
    faces = MFASynthetic(60, size=64, cache_dir=tmp_path / "cache")
    faces.save_to_disk(tmp_path / "flat")
    flat = stream_splits(str(tmp_path / "flat"), held_out=5)
    drawn = stream_splits("synthetic", held_out=5, n=60, size=64)
    parts = {name: faces.filter(lambda split, name=name: split == name, input_columns="split") for name in flat}
    DatasetDict(parts).save_to_disk(tmp_path / "named")
    named = stream_splits(str(tmp_path / "named"), held_out=5)
    for splits in (flat, drawn, named):
        assert len(splits["validation"]) == len(splits["test"]) == 5
        subjects = [row["subject"] for row in splits["train"].select_columns(["subject"]).take(9)]
        assert subjects == parts["train"]["subject"][:9]
        assert splits["test"]["subject"][:] == parts["test"]["subject"][:5]
        assert splits["test"][0]["image"].size == (64, 64)
        for part in splits.values():  # streams, and rows kept of them
            assert described_labels(part) == described_labels(rows) is not None
    other = MF2Processor.for_model(MF2Config.from_size("tiny", label_set="bp4d"))
    with pytest.raises(ValueError, match=r"au_labels: the dataset's AUs are AU1, .*; the model's are AU1, "):
        MF2StreamedExamples(drawn["train"], other)


def test_mistakes(rows, processor, tmp_path):
    with pytest.raises(ValueError, match="stream without rows"):
        MF2StreamedExamples(rows.to_iterable_dataset().filter(lambda row: False), processor)
    rows.remove_columns("split").save_to_disk(tmp_path / "flat")
    with pytest.raises(ValueError, match="expected a column `split`"):
        stream_splits(str(tmp_path / "flat"))
    train = rows.filter(lambda split: split == "train", input_columns="split")
    train.save_to_disk(tmp_path / "train")
    with pytest.raises(ValueError, match="no rows in the splits validation and test"):
        stream_splits(str(tmp_path / "train"))
