import numpy as np
import pytest
import torch

from mf2face.data.examples import MF2Collator


PAD = 7


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


def test_batch_is_padded_to_its_longest_row():
    batch = MF2Collator(pad_token_id=PAD)([row(tokens=2, au_tokens=5), row(tokens=6, au_tokens=3)])
    assert batch["pixel_values"].shape == (2, 3, 8, 8) and batch["landmarks"].shape == (2, 68, 2)
    assert batch["input_ids"].tolist() == [[1, 2, PAD, PAD, PAD, PAD], [1, 2, 3, 4, 5, 6]]
    assert batch["attention_mask"].sum(1).tolist() == [2, 6]
    assert batch["au_input_ids"].shape == (2, 2, 5)
    assert batch["au_input_ids"][1].tolist() == [[1, 2, 3, PAD, PAD], [4, 5, 6, PAD, PAD]]
    assert batch["au_attention_mask"].sum(-1).tolist() == [[5, 5], [3, 3]]
    assert batch["au_labels"].tolist() == [[1, 0], [1, 0]] and batch["emotion_labels"].tolist() == [3, 3]
    assert {batch[name].dtype for name in batch if name not in ("pixel_values", "landmarks")} == {torch.int64}


def test_padding_changes_nothing_of_a_row():
    rows = [row(tokens=n) for n in (5, 1, 3)]
    batch = MF2Collator()(rows)
    for index, one in enumerate(rows):
        kept = batch["input_ids"][index][batch["attention_mask"][index].bool()]
        assert kept.equal(one["input_ids"])


def test_missing_labels_are_unknown():
    batch = MF2Collator()([row(), row(au_labels=..., emotion_labels=None)])
    assert batch["au_labels"].tolist() == [[1, 0], [-1, -1]] and batch["emotion_labels"].tolist() == [3, -1]


def test_a_missing_text_is_padding_under_a_mask_of_zeros():
    batch = MF2Collator(PAD)([row(tokens=2, input_ids=..., attention_mask=..., au_input_ids=...), row(tokens=3)])
    assert batch["input_ids"].tolist() == [[PAD] * 3, [1, 2, 3]]
    assert batch["attention_mask"].tolist() == [[0] * 3, [1] * 3]
    assert batch["au_attention_mask"].sum((1, 2)).tolist() == [0, 6]


def test_what_no_row_has_is_left_out():
    one = {"pixel_values": torch.rand(3, 8, 8)}
    assert set(MF2Collator()([one, dict(one)])) == {"pixel_values"}
    batch = MF2Collator()([{**one, "input_ids": [1, 2], "au_labels": None}])
    assert set(batch) == {"pixel_values", "input_ids", "attention_mask"} and batch["attention_mask"].tolist() == [
        [1, 1]
    ]


def test_lists_and_arrays_will_do_and_other_numbers_are_stacked():
    rows = [
        {"pixel_values": np.zeros((3, 4, 4), np.float32), "key_au_input_ids": [1] * n, "frame": n, "subject": "a"}
        for n in (1, 2)
    ]
    batch = MF2Collator(PAD)(rows)
    assert batch["key_au_input_ids"].tolist() == [[1, PAD], [1, 1]]
    assert batch["key_au_attention_mask"].tolist() == [[1, 0], [1, 1]]
    assert batch["frame"].tolist() == [1, 2] and "subject" not in batch


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixel_values": torch.rand(1, 3, 8, 8)}, r"pixel_values: row 1 got \(1, 3, 8, 8\), expected \(3, any, any\)"),
        (
            {"pixel_values": torch.rand(3, 8, 9)},
            r"pixel_values: row 1 got \(3, 8, 9\), expected \(3, 8, 8\) as in row 0",
        ),
        ({"pixel_values": ...}, "pixel_values: row 1 has none"),
        ({"landmarks": torch.rand(5, 2)}, r"landmarks: row 1 got \(5, 2\), expected \(68, 2\)"),
        ({"input_ids": torch.ones(1, 4)}, r"input_ids: row 1 got \(1, 4\) of float32, expected whole numbers"),
        (
            {"attention_mask": torch.ones(3)},
            r"attention_mask: row 1 got \(3,\), expected \(4,\), the shape of input_ids",
        ),
        ({"au_input_ids": torch.ones(4, dtype=torch.long)}, r"au_input_ids: row 1 got \(4,\) of int64"),
        ({"action_units": 1, "au_labels": torch.tensor([1, 0])}, "au_input_ids: row 1 got 1 action units, expected 2"),
        ({"au_labels": torch.tensor([1])}, r"au_labels: row 1 got \(1,\), expected \(2,\) as in row 0"),
        ({"emotion_labels": torch.tensor([1])}, r"emotion_labels: row 1 got \(1,\), expected \(\)"),
    ],
)
def test_a_wrong_shape_names_field_and_row(changes, message):
    with pytest.raises(ValueError, match=message):
        MF2Collator()([row(), row(**changes)])


def test_no_rows():
    with pytest.raises(ValueError, match="rows: got none"):
        MF2Collator()([])
