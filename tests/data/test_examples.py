"""Rows become examples and batches: the same on every run, streamed or not, lacking only what a row lacks."""

import itertools
import zipfile

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict

from configuration_mf2 import MF2Config
from configuration_mf2.facs import EMOTIONS, LABEL_SETS, LabelSet
from mf2face.data.examples import MF2Collator, MF2Examples, as_image
from mf2face.data.schema import describe_labels, described_labels, mfa_features
from mf2face.data.streaming import MF2StreamedExamples, stream_splits
from mf2face.data.synthetic.faces import MFASynthetic
from processing_mf2 import MF2Augmentation, MF2Processor


PAD = 7


@pytest.fixture(scope="module")
def processor():
    return MF2Processor.for_model(MF2Config.from_size("tiny"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return MFASynthetic(24, "drawn", size=64, cache_dir=tmp_path_factory.mktemp("faces"))


def test_an_example_is_what_the_processor_makes_of_its_row_streamed_or_not(rows, processor):
    example, row = MF2Examples(rows, processor)[5], rows[5]
    batch = processor(row["image"], row["emotion_caption"], landmarks=row["landmarks"])
    for name in ("pixel_values", "landmarks", "input_ids"):
        assert torch.equal(example[name], batch[name][0]), name
    assert example["au_labels"].tolist() == row["au_labels"] and example["emotion_labels"] == row["emotion"]
    assert example["index"] == 5
    assert torch.equal(example["au_attention_mask"].any(-1), torch.tensor(row["au_labels"]) >= 0)
    stream = MF2StreamedExamples(rows.to_iterable_dataset(), processor, buffer=1)
    streamed = next(itertools.islice(stream, 5, None))
    assert streamed.keys() == example.keys()
    assert all(torch.equal(streamed[name], example[name]) for name in example)


def test_augmentation_depends_on_seed_epoch_and_index_alone(rows, processor):
    def pixels(seed, epoch):
        examples = MF2Examples(rows, processor, augment=MF2Augmentation(), seed=seed)
        examples.set_epoch(epoch)
        return examples[2]["pixel_values"]

    assert torch.equal(pixels(1, 4), pixels(1, 4))
    assert not torch.equal(pixels(1, 4), pixels(1, 5))
    assert not torch.equal(pixels(1, 4), pixels(2, 4))


def test_sides_follow_the_flip_and_an_unknown_one_stays_unknown(rows, processor):
    count = len(processor.action_units)
    sides = [[4.0, 1.0], [0.0, 2.0], *[[-1.0, -1.0]] * (count - 2)]
    rows = rows.remove_columns("au_intensities").add_column("au_sides", [sides] * len(rows))
    rows = rows.add_column("au_intensities", [[4.0, -1.0, *[0.5] * (count - 2)]] * len(rows))
    for flip, expected in ((0, [[1, 0], [0, 1], [-1, -1]]), (1, [[0, 1], [1, 0], [-1, -1]])):
        augment = MF2Augmentation(flip=flip)
        example = MF2Examples(rows, processor, augment=augment, details=("side_labels", "intensity_labels"))[3]
        assert example["side_labels"][:3].tolist() == expected
        assert example["intensity_labels"][:3].tolist() == [4.0, -1.0, 0.5]
    assert not {"side_labels", "intensity_labels"} & MF2Examples(rows, processor)[3].keys()


def test_what_the_dataset_lacks_is_left_out_and_reported_once(rows, processor, caplog):
    warned = set()
    for lacking in (["emotion"], ["emotion"], ["emotion", "au_caption"]):
        examples = MF2Examples(rows.remove_columns(lacking), processor, warned=warned)
    said = [record.getMessage().partition(":")[0] for record in caplog.records]
    assert said == ["dataset has no emotion", "dataset has no au_caption"]
    assert not {"emotion_labels", "au_input_ids"} & set(examples[0])
    assert {"au_labels", "input_ids", "key_au_input_ids"} <= set(examples[0])
    assert not {"input_ids", "au_input_ids"} & set(MF2Examples(rows, processor, texts=False)[0])
    assert "landmarks" not in MF2Examples(rows, processor, landmarks=False)[0]


def test_labels_of_other_names_are_refused_also_when_there_are_as_many(rows, processor):
    def described(action_units, emotions=EMOTIONS):
        return describe_labels(rows.select(range(2)), LabelSet(tuple(action_units), tuple(emotions)))

    own, bp4d = LABEL_SETS["mfa"].action_units, LABEL_SETS["bp4d"].action_units
    assert len(bp4d) == len(own) == 12
    for dataset, message in (
        (described(bp4d), r"au_labels: the dataset's are AU1, .*AU14.*; the model's are AU1, .*label set"),
        (described(own[::-1]), "au_labels: the dataset's are AU26, AU25"),  # in another order
        (described(own, EMOTIONS[::-1]), r"emotion: the dataset's are Other, .*; the model's are Neutral"),
    ):
        with pytest.raises(ValueError, match=message):
            MF2Examples(dataset, processor)
    for harmless in (
        described(own, ()),  # no emotion is known
        described(bp4d).remove_columns("au_labels"),
        Dataset.from_list(list(described(own)), features=rows.features),  # nothing is said: their number decides
    ):
        MF2Examples(harmless, processor)
    few = [{**row, "au_labels": [0] * 8, "au_intensities": [0] * 8} for row in rows.select(range(1))]
    with pytest.raises(ValueError, match="au_labels: the dataset has 8 an image, the model 12"):
        MF2Examples(Dataset.from_list(few, features=mfa_features("disfa")), processor)


def test_wrong_datasets_are_named(rows, processor, tmp_path):
    with pytest.raises(ValueError, match="dataset: got no rows"):
        MF2Examples(rows.select([]), processor)
    with pytest.raises(ValueError, match="expected an `image`"):
        MF2Examples(rows.remove_columns("image"), processor)
    with pytest.raises(ValueError, match="stored: got 3 rows, expected 24"):
        MF2Examples(rows, processor, stored=[{}] * 3)
    with pytest.raises(ValueError, match="augment, stored: got both"):
        MF2Examples(rows, processor, stored=[{}] * 24, augment=MF2Augmentation())
    with pytest.raises(ValueError, match="stream without rows"):
        MF2StreamedExamples(rows.to_iterable_dataset().filter(lambda row: False), processor)
    rows.remove_columns("split").save_to_disk(tmp_path / "flat")
    with pytest.raises(ValueError, match="expected a column `split`"):
        stream_splits(str(tmp_path / "flat"))
    rows.filter(lambda split: split == "train", input_columns="split").save_to_disk(tmp_path / "train")
    with pytest.raises(ValueError, match="no rows in the splits validation and test"):
        stream_splits(str(tmp_path / "train"))


def test_an_image_that_lies_elsewhere_is_fetched_but_not_decoded(tmp_path):
    content = b"%!PS-Adobe-3.0 EPSF-3.0"  # datasets would start Ghostscript
    with zipfile.ZipFile(tmp_path / "faces.zip", "w") as archive:
        archive.writestr("face.jpg", content)
    assert as_image({"bytes": None, "path": f"zip://face.jpg::{tmp_path / 'faces.zip'}"}) == content
    here = {"bytes": None, "path": str(tmp_path / "face.jpg")}
    assert as_image(here) is here


def key(example):
    return example["landmarks"].numpy().tobytes()


@pytest.mark.parametrize("shards", [1, 4])
def test_processes_share_the_rows_and_repeat_them_in_another_order(rows, processor, shards):
    stream = rows.to_iterable_dataset(num_shards=shards)
    halves = [MF2StreamedExamples(stream, processor, rank=rank, world_size=2, buffer=8) for rank in range(2)]
    plain = MF2Examples(rows, processor)
    everything = {key(plain[index]) for index in range(len(rows))}
    seen = [list(itertools.islice(half, 24)) for half in halves]
    once, again = ([[key(example) for example in half[start : start + 12]] for half in seen] for start in (0, 12))
    assert len({*once[0], *once[1]}) == 24 and {*once[0], *once[1]} == everything
    assert {*again[0], *again[1]} == everything and again != once
    assert sorted(int(example["index"]) for half in seen for example in half[:12]) == list(range(24))


def test_examples_that_an_interrupted_run_has_seen_are_skipped(rows, processor):
    def batches(skip):
        stream = rows.to_iterable_dataset(num_shards=4)
        examples = MF2StreamedExamples(stream, processor, buffer=6, augment=MF2Augmentation())
        examples.skip, examples.batch_size = skip, 4
        loader = torch.utils.data.DataLoader(examples, 4, collate_fn=list)
        return [[key(example) for example in batch] for batch in itertools.islice(loader, 10 - skip // 4)]

    assert batches(12) == batches(0)[3:]
    examples = MF2StreamedExamples(rows.to_iterable_dataset(), processor)
    examples.skip, examples.batch_size = 5 * 4, 4  # the first of two workers has made batches 0, 2 and 4
    assert [examples._skipped(2, worker) for worker in range(2)] == [3 * 4, 2 * 4]


def test_folders_and_drawn_faces_are_streamed_alike(rows, tmp_path):
    faces = MFASynthetic(60, "drawn", size=64, cache_dir=tmp_path / "cache")
    faces.save_to_disk(tmp_path / "flat")
    flat = stream_splits(str(tmp_path / "flat"), held_out=5)
    parts = {name: faces.filter(lambda split, name=name: split == name, input_columns="split") for name in flat}
    DatasetDict(parts).save_to_disk(tmp_path / "named")
    named = stream_splits(str(tmp_path / "named"), held_out=5)
    for splits in (flat, named, stream_splits("synthetic", held_out=5, n=60, style="drawn", size=64)):
        assert len(splits["validation"]) == len(splits["test"]) == 5
        subjects = [row["subject"] for row in splits["train"].select_columns(["subject"]).take(9)]
        assert subjects == parts["train"]["subject"][:9]
        assert splits["test"]["subject"][:] == parts["test"]["subject"][:5]
        assert splits["test"][0]["image"].size == (64, 64)
        assert all(described_labels(part) == described_labels(rows) is not None for part in splits.values())


def row(tokens=4, au_tokens=3, action_units=2, **changes):
    fields = {
        "pixel_values": torch.rand(3, 8, 8),
        "landmarks": torch.rand(68, 2),
        "input_ids": torch.arange(1, tokens + 1),
        "attention_mask": torch.ones(tokens, dtype=torch.long),
        "au_input_ids": torch.arange(1, action_units * au_tokens + 1).reshape(action_units, au_tokens),
        "au_attention_mask": torch.ones(action_units, au_tokens, dtype=torch.long),
        "au_labels": torch.tensor([1, 0][:action_units]),
        "emotion_labels": 3,
        **changes,
    }
    return {name: value for name, value in fields.items() if value is not ...}


def test_a_batch_is_padded_to_its_longest_row():
    batch = MF2Collator(pad_token_id=PAD)([row(tokens=2, au_tokens=5), row(tokens=6, au_tokens=3)])
    assert batch["pixel_values"].shape == (2, 3, 8, 8) and batch["landmarks"].shape == (2, 68, 2)
    assert batch["input_ids"].tolist() == [[1, 2, PAD, PAD, PAD, PAD], [1, 2, 3, 4, 5, 6]]
    assert batch["attention_mask"].sum(1).tolist() == [2, 6]
    assert batch["au_input_ids"][1].tolist() == [[1, 2, 3, PAD, PAD], [4, 5, 6, PAD, PAD]]
    assert batch["au_attention_mask"].sum(-1).tolist() == [[5, 5], [3, 3]]
    assert batch["au_labels"].tolist() == [[1, 0], [1, 0]] and batch["emotion_labels"].tolist() == [3, 3]
    assert {batch[name].dtype for name in batch if name not in ("pixel_values", "landmarks")} == {torch.int64}


def test_what_one_row_lacks_is_unknown_or_padding_and_what_all_lack_is_left_out():
    lacking = row(2, input_ids=..., attention_mask=..., au_input_ids=..., au_labels=..., emotion_labels=None)
    batch = MF2Collator(PAD)([lacking, row(tokens=3)])
    assert batch["input_ids"].tolist() == [[PAD] * 3, [1, 2, 3]]
    assert batch["attention_mask"].tolist() == [[0] * 3, [1] * 3]
    assert batch["au_attention_mask"].sum((1, 2)).tolist() == [0, 6]
    assert batch["au_labels"].tolist() == [[-1, -1], [1, 0]] and batch["emotion_labels"].tolist() == [-1, 3]
    one = {"pixel_values": np.zeros((3, 8, 8), np.float32), "au_labels": None, "subject": "a"}
    batch = MF2Collator(PAD)([{**one, "key_au_input_ids": [1] * n, "frame": n} for n in (1, 2)])
    assert set(batch) == {"pixel_values", "key_au_input_ids", "key_au_attention_mask", "frame"}
    assert batch["key_au_input_ids"].tolist() == [[1, PAD], [1, 1]] and batch["frame"].tolist() == [1, 2]
    with pytest.raises(ValueError, match="rows: got none"):
        MF2Collator()([])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixel_values": torch.rand(1, 3, 8, 8)}, r"pixel_values: row 1 got \(1, 3, 8, 8\), expected \(3, any, any\)"),
        ({"pixel_values": torch.rand(3, 8, 9)}, r"pixel_values: row 1 got \(3, 8, 9\), expected \(3, 8, 8\) as in row"),
        ({"pixel_values": ...}, "pixel_values: row 1 has none"),
        ({"landmarks": torch.rand(5, 2)}, r"landmarks: row 1 got \(5, 2\), expected \(68, 2\)"),
        ({"input_ids": torch.ones(1, 4)}, r"input_ids: row 1 got \(1, 4\) of float32, expected whole numbers"),
        ({"attention_mask": torch.ones(3)}, r"attention_mask: row 1 got \(3,\), expected \(4,\), the shape of input"),
        ({"au_input_ids": torch.ones(4, dtype=torch.long)}, r"au_input_ids: row 1 got \(4,\) of int64"),
        ({"action_units": 1, "au_labels": torch.tensor([1, 0])}, "au_input_ids: row 1 got 1 action units, expected 2"),
        ({"au_labels": torch.tensor([1])}, r"au_labels: row 1 got \(1,\), expected \(2,\) as in row 0"),
        ({"emotion_labels": torch.tensor([1])}, r"emotion_labels: row 1 got \(1,\), expected \(\)"),
    ],
)
def test_a_wrong_shape_names_field_and_row(changes, message):
    with pytest.raises(ValueError, match=message):
        MF2Collator()([row(), row(**changes)])
