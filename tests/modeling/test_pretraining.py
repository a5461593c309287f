"""Pre-training: every loss against loops over rows and pairs, what is unknown or missing, and what learns."""

import math
from collections import Counter

import pytest
import torch
from conftest import DETAILS, IMAGE, assert_close, gradients, pick, rows_of, shake, tiny_batch, tiny_config

from configuration_mf2.configuration_mf2 import LOSSES
from modeling_mf2 import MF2ForCaptioning, MF2ForPreTraining
from modeling_mf2.losses import (
    au_loss,
    caption_keys,
    emotion_loss,
    hard_negatives,
    itc_loss,
)


LABELS = ("au_labels", "emotion_labels", "side_labels", "intensity_labels")
CAPTIONS = {
    "emo": ("input_ids", "attention_mask"),
    "key_au": ("key_au_input_ids", "key_au_attention_mask"),
    "au": ("au_input_ids", "au_attention_mask"),
}


def build(tower="conv", **fields):
    torch.manual_seed(0)
    return shake(MF2ForPreTraining(tiny_config(tower, **{**DETAILS, **fields}))).eval()


def parts(output):
    return {name: output[name] for name in LOSSES if getattr(output, name) is not None}


@pytest.mark.parametrize(
    ("left_out", "missing"),
    [
        ((), set()),
        (CAPTIONS["emo"], {"itc_emo", "itm_emo", "itg_emo"}),
        (CAPTIONS["key_au"], {"itg_key_au"}),
        (CAPTIONS["au"], {"itc_au", "itm_au", "itg_au"}),
        (("au_labels",), {"au"}),
        (("emotion_labels",), {"emotion"}),
        ((*CAPTIONS["emo"], *CAPTIONS["key_au"], *CAPTIONS["au"], *LABELS), set(LOSSES)),
        ({"use_au_branch": False}, {"itc_au", "itm_au", "itg_au"}),
        ({"use_emo_branch": False}, {"itc_emo", "itm_emo", "itg_emo", "itg_key_au"}),
        ({"emotions": []}, {"emotion"}),
        (
            {"action_units": [], "use_au_branch": False, "sides": False, "intensities": False},
            {"itc_au", "itm_au", "itg_au", "au", "side", "intensity"},
        ),
    ],
    ids=lambda value: "+".join(sorted(value)),
)
def test_a_loss_is_none_where_its_input_branch_or_label_is_missing(left_out, missing):
    model = build(**(left_out if isinstance(left_out, dict) else {}))
    batch = tiny_batch(model.config)
    everything, read = model(**batch), model(**{name: batch[name] for name in batch if name not in left_out})
    assert set(parts(read)) == set(LOSSES) - missing
    assert (read.loss is None) == (missing == set(LOSSES))
    assert read.loss is None or torch.allclose(read.loss, sum(parts(read).values()))
    # Labels say which captions mean the same, and the loss of the shape is of all of them.
    compared = ("itc", "itm", "shape") if set(left_out) & set(LABELS) else ()
    for name, value in parts(read).items():
        assert value.isfinite() and (name.startswith(compared) or torch.equal(value, everything[name])), name


def mean(values):
    return sum(values) / len(values) if values else 0.0


def align_by_loop(model, name, batch):
    """ITC, ITM and ITG of one branch, a pair at a time, with no padding and nothing shared between passes."""
    base, units = model.mf2, 1 if name == "emo" else len(model.config.action_units)
    branch, tokens = base.branch(name), base.vision(batch["pixel_values"])
    image = base.branch_image(name, tokens, batch["landmarks"])
    ids, mask = (batch[field].flatten(0, -2) for field in CAPTIONS[name])
    texts = [row[kept.bool()] for row, kept in zip(ids, mask, strict=True)]
    rows, temperature = range(len(texts)), branch.temperature.item()
    known = [i for i in rows if len(texts[i])]

    def meaning(row):
        label = batch["au_labels" if name == "au" else "emotion_labels"].flatten()[row].item()
        return ("unknown", row) if label == -1 else (row % units, label)

    def queries(row):
        return branch.queries + (base.au_embedding[row % units] if name == "au" else 0)

    def similarity(i, j):
        read = branch.qformer(queries=queries(i), image=image[i : i + 1]).query_states
        text = branch.qformer(input_ids=texts[j][None], mode="unimodal").text_states
        return (branch.heads.image_features(read) @ branch.heads.text_features(text).T).max().item() / temperature

    def match_loss(i, j, target):
        read = branch.qformer(queries=queries(i), image=image[i : i + 1], input_ids=texts[j][None], mode="two_way")
        logits = branch.heads.itm(read.query_states).mean(1)
        return torch.nn.functional.cross_entropy(logits, torch.tensor([target])).item()

    pairs = {(i, j): similarity(i, j) for i in known for j in known}
    itc, itm, itg = [], [], []
    for i in known:
        others = [j for j in known if texts[j].tolist() != texts[i].tolist() and meaning(j) != meaning(i)]
        of_image = math.log(sum(math.exp(pairs[i, j] - pairs[i, i]) for j in [i, *others]))
        of_text = math.log(sum(math.exp(pairs[j, i] - pairs[i, i]) for j in [i, *others]))
        itc.append((of_image + of_text) / 2)
        itm.append(match_loss(i, i, 1))
        if others:
            itm.append(match_loss(max(others, key=lambda j: pairs[j, i]), i, 0))
            itm.append(match_loss(i, max(others, key=lambda j: pairs[i, j]), 0))
        started = texts[i].clone()
        started[0] = 5
        one_pass = branch.qformer(queries=queries(i), image=image[i : i + 1], input_ids=started[None], mode="causal")
        logits = branch.language_logits(one_pass.text_states)[0, :-1]
        itg += torch.nn.functional.cross_entropy(logits, started[1:], reduction="none").tolist()
    return {f"itc_{name}": mean(itc), f"itm_{name}": mean(itm), f"itg_{name}": mean(itg)}


@pytest.mark.parametrize("name", ["emo", "au"])
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_alignment_against_a_loop_over_pairs(name, rows):
    model = build()
    batch = tiny_batch(model.config, rows)
    ids, mask = CAPTIONS[name]
    if rows > 1:  # equal captions, one of them padded otherwise
        batch[ids][-1], batch[mask][-1] = batch[ids][0], batch[mask][0]
        batch[ids][-1] += 7 * (1 - batch[mask][-1])
    if rows == 5:  # no caption
        batch[mask][2] = 0
    with torch.no_grad():
        expected, found = align_by_loop(model, name, batch), model(**batch)
    for loss, value in expected.items():
        assert found[loss].item() == pytest.approx(value, abs=1e-4), loss


def test_a_row_without_captions_and_labels_counts_nothing():
    model = build()
    batch = tiny_batch(model.config)
    without = rows_of(batch, [0, 1, 3])
    for _, mask in CAPTIONS.values():
        batch[mask][2] = 0
    for name in LABELS:
        batch[name][2] = -1
    found, expected = model(**batch), model(**without)
    assert_close(parts(found), parts(expected), rtol=0, atol=2e-5)
    assert_close(gradients(model, found.loss), gradients(model, expected.loss))


@pytest.mark.parametrize("training", [False, True])
def test_nothing_known_is_zero_and_not_nan(training):
    model = build().train(training)
    batch = tiny_batch(model.config)
    for _, mask in CAPTIONS.values():
        batch[mask].zero_()
    for name in LABELS:
        batch[name].fill_(-1)
    read = model(**batch)
    assert tuple(parts(read)) == LOSSES and all(loss.item() == 0 for loss in parts(read).values())
    assert not any(gradient.any() for gradient in gradients(model, read.loss).values())


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("tower", ["conv", "vit"])
def test_every_trainable_parameter_and_no_frozen_one_gets_a_gradient(tower, frozen):
    model = build(tower, vision={"frozen": frozen}).train(frozen)
    model(**tiny_batch(model.config)).loss.backward()
    for name, parameter in model.named_parameters():
        if frozen and ".vision." in name:
            assert parameter.grad is None, name
        # A bias of keys shifts all scores of a row alike, so softmax gives it no gradient.
        elif parameter.requires_grad:
            assert parameter.grad.isfinite().all() and (frozen or parameter.grad.any() or "k_proj.bias" in name), name


@pytest.mark.parametrize("options", [None, {"use_reentrant": True}])
def test_checkpointing_changes_no_gradient(options):
    found = []
    for checkpointing in (False, True):
        model = build(vision={"frozen": False}).train()
        if checkpointing and options:
            with pytest.warns(UserWarning, match="use_reentrant"):
                model.activation_checkpointing_enable(options)
        elif checkpointing:
            model.activation_checkpointing_enable()
        torch.manual_seed(1)  # wrong pairs are drawn
        found.append(gradients(model, model(**tiny_batch(model.config)).loss))
    assert_close(*found)


def test_evaluation_is_deterministic_and_training_draws_its_negatives():
    model = build()
    model.mf2.au_vl.temperature.data.fill_(1.0)
    batch = tiny_batch(model.config)
    losses = {True: set(), False: set()}
    for training in (True, False):
        model.train(training)
        for seed in range(4):
            torch.manual_seed(seed)
            losses[training].add(model(**batch).itm_au.item())
    assert len(losses[False]) == 1 and len(losses[True]) > 1


def test_each_branch_reads_its_image_once():
    """Tower once; a Q-Former four times: images, texts, pairs, writing; and once for key-AU captions."""
    model = build()
    calls = []
    modules = {"vision": model.mf2.vision, "emo": model.mf2.emo_vl.qformer, "au": model.mf2.au_vl.qformer}
    for name, module in modules.items():
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
    model(**tiny_batch(model.config))
    assert Counter(calls) == {"vision": 1, "emo": 5, "au": 4}


def test_a_share_of_the_pairs_is_drawn_while_training_and_all_are_taken_in_evaluation():
    model, whole = build(au_pair_share=0.5, emo_pair_share=0.25), build()
    batch = tiny_batch(model.config)
    assert_close(parts(model(**batch)), parts(whole(**batch)), rtol=0, atol=0)
    rows = []
    model.mf2.au_vl.qformer.register_forward_hook(lambda module, args, output: rows.append(len(output[0])))
    losses = {model.train()(**batch).itg_au.item() for _ in range(3)}
    assert len(losses) == 3 and rows[0] == 12
    assert set(rows[2::4]) == {3 * 6} and set(rows[3::4]) == {6}
    for name, value in parts(model(**batch)).items():
        assert value.isfinite(), name


def test_sentences_of_other_action_units_are_an_error():
    model = build()
    batch = tiny_batch(model.config)
    batch["au_input_ids"] = batch["au_input_ids"][:, :2]
    with pytest.raises(ValueError, match=r"au_input_ids: got \(4, 2, 5\), expected \(batch, AU, length\) .*\(4, 3\)"):
        model(**batch)


def test_four_samples_are_learned():
    model = MF2ForPreTraining(tiny_config(initializer_range=0.02, vision={"frozen": False})).train()
    batch = tiny_batch(model.config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    first = None
    for _ in range(60):
        read = model(**batch)
        first = first or {name: value.item() for name, value in parts(read).items()}
        optimizer.zero_grad()
        read.loss.backward()
        optimizer.step()
    last = parts(read)
    assert read.loss < sum(first.values()) / 2
    for name in ("itg_emo", "itg_key_au", "itg_au", "au", "emotion"):
        assert last[name] < first[name] / 2, name
    assert last["itc_emo"] < 0.8 * first["itc_emo"] and last["itc_au"] < 0.9 * first["itc_au"]


def test_a_key_au_caption_is_asked_for_by_its_prompt_which_is_not_learned():
    model = build(key_au_prompt_length=2)
    batch = tiny_batch(model.config)
    part = model(**batch).itg_key_au
    writer = MF2ForCaptioning(model.config).eval()
    writer.mf2 = model.mf2
    ids, mask = batch["key_au_input_ids"].clone(), batch["key_au_attention_mask"]
    ids[:, 0] = model.config.emo_config.bos_token_id
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, 1:3] = -100
    expected = writer(ids, attention_mask=mask, labels=labels, **pick(batch, *IMAGE)).loss
    torch.testing.assert_close(part, expected, rtol=1e-5, atol=1e-6)


# Parts of the losses


TEMPERATURE = torch.tensor([0.07], dtype=torch.float64)


def softmax_loss(logits, target):
    """Cross-entropy of one row of numbers."""
    top = max(logits)
    return top + math.log(sum(math.exp(value - top) for value in logits)) - logits[target]


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


def test_many_rows_in_half_precision():
    similarity = torch.zeros(1001, 1001, dtype=torch.bfloat16)
    negatives = ~torch.eye(1001, dtype=torch.bool)
    loss = itc_loss(similarity, similarity, TEMPERATURE.bfloat16(), negatives, torch.ones(1001, dtype=torch.bool))
    assert loss.item() == pytest.approx(math.log(1001), rel=0.01)


def test_caption_keys_are_equal_exactly_for_equal_captions():
    captions = {(2, 7, 3), (2, 7, 7, 3), (2, 3), (7, 2, 3), (2, 7, 3, 0), (0, 2, 7, 3), (0,), (0, 0), (2, 3, 7)}
    captions |= {tuple(torch.randint(0, 30523, (length,)).tolist()) for length in range(3, 60) for _ in range(20)}
    seen = []
    for width, filling in ((64, 0), (61, 0), (64, 99)):
        mask = torch.arange(width) < torch.tensor([len(caption) for caption in captions])[:, None]
        ids = torch.tensor([[*caption, *[filling] * (width - len(caption))] for caption in captions])
        seen.append(caption_keys(ids, mask))
        assert len(set(seen[-1].tolist())) == len(captions) and torch.equal(seen[0], seen[-1])
    assert caption_keys(torch.full((1, 5), 9), torch.zeros(1, 5, dtype=torch.long)).item() == 0


def test_harder_negatives_are_drawn_more_often():
    similarity = torch.tensor([[0.9, 0.1, 0.1 + 0.07 * math.log(3), 0.8]]).expand(4000, -1)
    negatives = torch.tensor([[False, True, True, False]]).expand(4000, -1)
    chosen, _ = hard_negatives(similarity, negatives, TEMPERATURE.float(), sample=True)
    assert set(chosen.tolist()) == {1, 2}
    assert (chosen == 2).float().mean().item() == pytest.approx(0.75, abs=0.03)
