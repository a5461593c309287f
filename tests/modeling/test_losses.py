"""Label losses and parts of ITC; test_pretraining.py compares ITC, ITM and ITG with a loop over pairs."""

import math

import pytest
import torch

from modeling_mf2.losses import (
    allowed_negatives,
    au_loss,
    caption_keys,
    emotion_loss,
    hard_negatives,
    itc_loss,
    masked_mean,
    meaning_keys,
)


TEMPERATURE = torch.tensor([0.07], dtype=torch.float64)


def softmax_loss(logits, target):
    """Cross-entropy of one row of numbers."""
    top = max(logits)
    return top + math.log(sum(math.exp(value - top) for value in logits)) - logits[target]


def mean(values):
    return sum(values) / len(values) if values else 0.0


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("share", ["all", "some", "none"])
@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 3.0]])
def test_au_loss_against_a_loop(rows, share, weights):
    logits = (4 * torch.randn(rows, 3, dtype=torch.float64)).requires_grad_()
    labels = torch.randint(0, 2, (rows, 3))
    if share == "some":
        labels[::2, 1] = -1
        labels[-1, 0] = -1
    if share == "none":
        labels[:] = -1
    loss = au_loss(logits, labels, weights)
    expected = []
    for row in range(rows):
        for unit in range(3):
            if labels[row, unit] != -1:
                probability = 1 / (1 + math.exp(-logits[row, unit].item()))
                right = probability if labels[row, unit] == 1 else 1 - probability
                expected.append(-math.log(right) * (weights[unit] if weights else 1))
    assert loss.item() == pytest.approx(mean(expected), abs=1e-6)
    loss.backward()
    assert logits.grad.isfinite().all() and not logits.grad[labels == -1].any()
    assert torch.equal(au_loss(logits, labels.float(), weights), loss)
    assert (loss.item() == 0) == (share == "none")


@pytest.mark.parametrize("labels", [[2], [-1], [0, 3], [-1, 1], [0, -1, 2, 2, -1], [-1] * 5])
def test_emotion_loss_against_a_loop(labels):
    logits = torch.randn(len(labels), 4, dtype=torch.float64, requires_grad=True)
    loss = emotion_loss(logits, torch.tensor(labels))
    expected = [softmax_loss(row, label) for row, label in zip(logits.tolist(), labels, strict=True) if label != -1]
    assert loss.item() == pytest.approx(mean(expected), abs=1e-6)
    loss.backward()
    assert logits.grad.isfinite().all() and not logits.grad[torch.tensor(labels) == -1].any()


def test_an_infinite_loss_of_an_unknown_row_does_not_spread():
    values = torch.tensor([1.0, torch.inf, torch.nan, 3.0])
    assert masked_mean(values, torch.tensor([True, False, False, True])).item() == 2
    assert masked_mean(values, torch.zeros(4, dtype=torch.bool)).item() == 0


def test_many_rows_in_half_precision():
    similarity = torch.zeros(1001, 1001, dtype=torch.bfloat16)
    negatives = ~torch.eye(1001, dtype=torch.bool)
    loss = itc_loss(similarity, similarity, TEMPERATURE.bfloat16(), negatives, torch.ones(1001, dtype=torch.bool))
    assert loss.item() == pytest.approx(math.log(1001), rel=0.01)


def test_caption_keys_are_equal_exactly_for_equal_captions():
    captions = {(2, 7, 3), (2, 7, 7, 3), (2, 3), (7, 2, 3), (2, 7, 3, 0), (0, 2, 7, 3), (0,), (0, 0), (2, 3, 7)}
    captions |= {tuple(torch.randint(0, 30523, (length,)).tolist()) for length in range(3, 60) for _ in range(20)}
    captions = sorted(captions)
    seen = {}
    for width, filling in ((64, 0), (61, 0), (64, 99)):
        ids, mask = torch.full((len(captions), width), filling), torch.zeros(len(captions), width, dtype=torch.long)
        for row, caption in enumerate(captions):
            ids[row, : len(caption)], mask[row, : len(caption)] = torch.tensor(caption), 1
        keys = caption_keys(ids, mask)
        assert keys.dtype == torch.int64 and len(set(keys.tolist())) == len(captions)
        assert seen.setdefault("keys", keys).tolist() == keys.tolist()
        assert caption_keys(ids.view(1, -1, width), mask.bool().view(1, -1, width))[0].tolist() == keys.tolist()
    assert caption_keys(torch.full((1, 5), 9), torch.zeros(1, 5, dtype=torch.long)).item() == 0


@pytest.mark.parametrize("sample", [True, False])
def test_hard_negatives_are_other_known_captions(sample):
    for seed in range(60):
        torch.manual_seed(seed)
        rows = int(torch.randint(1, 6, ()))
        keys, valid = torch.randint(0, 3, (rows,)), torch.rand(rows) < 0.7
        negatives = allowed_negatives(keys, keys, valid)
        similarity = torch.randn(rows, rows, requires_grad=True)
        chosen, found = hard_negatives(similarity, negatives, torch.tensor([0.01]), sample)
        assert chosen.shape == found.shape == (rows,) and not chosen.requires_grad
        for row in range(rows):
            others = [j for j in range(rows) if valid[j] and keys[j] != keys[row]]
            assert found[row].item() == bool(others)
            assert 0 <= chosen[row] < rows
            if others:
                assert chosen[row].item() in others
            if others and not sample:
                assert chosen[row].item() == max(others, key=lambda j: similarity[row, j].item())


def test_harder_negatives_are_drawn_more_often():
    similarity = torch.tensor([[0.9, 0.1, 0.1 + 0.07 * math.log(3), 0.8]]).expand(4000, -1)
    negatives = torch.tensor([[False, True, True, False]]).expand(4000, -1)
    chosen, _ = hard_negatives(similarity, negatives, TEMPERATURE.float(), sample=True)
    assert set(chosen.tolist()) == {1, 2}
    assert (chosen == 2).float().mean().item() == pytest.approx(0.75, abs=0.03)


def test_what_means_the_same_is_no_negative_however_it_is_worded():
    said = torch.tensor([10, 11, 12, 12, 13])
    states = torch.tensor([[0, 1], [0, 1], [0, 0], [1, 1], [0, -1]])
    keys = meaning_keys(said, states, states[:, 1] != -1)
    found = allowed_negatives(keys, keys, torch.ones(5, dtype=torch.bool))
    expected = [[0, 0, 1, 1, 1], [0, 0, 1, 1, 1], [1, 1, 0, 0, 1], [1, 1, 0, 0, 1], [1, 1, 1, 1, 0]]
    assert found.int().tolist() == expected  # rows 2 and 3 are worded alike; of row 4 the meaning is unknown
    without = meaning_keys(said, None, None)
    found = allowed_negatives(without, without, torch.ones(5, dtype=torch.bool))
    assert torch.equal(found, said[:, None] != said[None, :])
