import math
from collections import Counter

import pytest
import torch

from configuration_mf2.configuration_mf2 import LOSSES
from modeling_mf2 import MF2ForCaptioning, MF2ForPreTraining


LABELS = ("au_labels", "emotion_labels")
CAPTIONS = {
    "emo": ("input_ids", "attention_mask"),
    "key_au": ("key_au_input_ids", "key_au_attention_mask"),
    "au": ("au_input_ids", "au_attention_mask"),
}


@pytest.fixture
def build(make_config, shaken):
    def build(tower="conv", **fields):
        torch.manual_seed(0)
        return shaken(MF2ForPreTraining(make_config(tower, **fields))).eval()

    return build


def rows_of(batch, rows):
    return {name: value[rows] for name, value in batch.items()}


def parts(output):
    return {name: output[name] for name in LOSSES if getattr(output, name) is not None}


def assert_equal_parts(found, expected, tolerance=2e-5):
    assert parts(found).keys() == parts(expected).keys()
    for name, value in parts(expected).items():
        assert found[name].item() == pytest.approx(value.item(), abs=tolerance), name


@pytest.mark.parametrize("tower", ["conv", "vit"])
def test_every_loss_stands_in_the_output(build, make_batch, tower):
    model = build(tower)
    read = model(**make_batch(model.config))
    assert tuple(parts(read)) == LOSSES
    assert all(loss.ndim == 0 and loss.isfinite() and loss > 0 for loss in parts(read).values())
    torch.testing.assert_close(read.loss, sum(parts(read).values()))
    assert read.emotion_logits.shape == (4, 3) and read.au_logits.shape == (4, 3)


@pytest.mark.parametrize(
    ("left_out", "missing"),
    [
        (CAPTIONS["emo"], {"itc_emo", "itm_emo", "itg_emo"}),
        (CAPTIONS["key_au"], {"itg_key_au"}),
        (CAPTIONS["au"], {"itc_au", "itm_au", "itg_au"}),
        (("au_labels",), {"au"}),
        (("emotion_labels",), {"emotion"}),
        ((*CAPTIONS["emo"], *CAPTIONS["key_au"], *CAPTIONS["au"], *LABELS), set(LOSSES)),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else None,
)
def test_a_loss_is_none_where_its_input_is_missing(build, make_batch, left_out, missing):
    model = build()
    batch = make_batch(model.config)
    everything = model(**batch)
    read = model(**{name: value for name, value in batch.items() if name not in left_out})
    assert set(parts(read)) == set(LOSSES) - missing
    assert (read.loss is None) == (missing == set(LOSSES))
    compared = ("itc", "itm") if set(left_out) & set(LABELS) else ()  # labels say which captions mean the same
    for name, value in parts(read).items():
        assert name.startswith(compared) or torch.equal(value, everything[name]), name


@pytest.mark.parametrize(
    ("fields", "missing"),
    [
        ({"use_au_branch": False}, {"itc_au", "itm_au", "itg_au"}),
        ({"use_emo_branch": False}, {"itc_emo", "itm_emo", "itg_emo", "itg_key_au"}),
        ({"emotions": []}, {"emotion"}),
        ({"action_units": [], "use_au_branch": False}, {"itc_au", "itm_au", "itg_au", "au"}),
    ],
    ids=lambda value: str(value if isinstance(value, dict) else sorted(value)),
)
def test_a_loss_is_none_where_its_branch_or_label_is_missing(build, make_batch, fields, missing):
    model = build(**fields)
    read = model(**make_batch(model.config))
    assert set(parts(read)) == set(LOSSES) - missing and read.loss.isfinite()


def test_a_mask_of_ones_is_the_default(build, make_batch):
    model = build()
    batch = make_batch(model.config)
    for _, mask in CAPTIONS.values():
        batch[mask] = torch.ones_like(batch[mask])
    assert_equal_parts(model(**{name: value for name, value in batch.items() if "mask" not in name}), model(**batch), 0)


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
        one_pass = branch.qformer(
            queries=queries(i), image=image[i : i + 1], input_ids=started[None], mode="causal"
        ).text_states
        losses = torch.nn.functional.cross_entropy(
            branch.language_logits(one_pass)[0, :-1], started[1:], reduction="none"
        )
        itg += losses.tolist()
    return {
        kind: sum(values) / len(values) if values else 0.0
        for kind, values in ((f"itc_{name}", itc), (f"itm_{name}", itm), (f"itg_{name}", itg))
    }


@pytest.mark.parametrize("name", ["emo", "au"])
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_alignment_against_a_loop_over_pairs(build, make_batch, name, rows):
    model = build()
    batch = make_batch(model.config, rows)
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


def test_a_row_without_captions_and_labels_counts_nothing(build, make_batch):
    model = build()
    batch = make_batch(model.config)
    without = rows_of(batch, [0, 1, 3])
    for _, mask in CAPTIONS.values():
        batch[mask][2] = 0
    for name in LABELS:
        batch[name][2] = -1
    assert_equal_parts(model(**batch), model(**without))
    model(**batch).loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model(**without).loss.backward()
    for name, expected in gradients.items():
        torch.testing.assert_close(model.get_parameter(name).grad, expected, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("training", [False, True])
def test_nothing_known_is_zero_and_not_nan(build, make_batch, training):
    model = build().train(training)
    batch = make_batch(model.config)
    for _, mask in CAPTIONS.values():
        batch[mask].zero_()
    for name in LABELS:
        batch[name].fill_(-1)
    read = model(**batch)
    assert tuple(parts(read)) == LOSSES and all(loss.item() == 0 for loss in parts(read).values())
    read.loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or not parameter.grad.any(), name


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("tower", ["conv", "vit"])
def test_every_trainable_parameter_and_no_frozen_one_gets_a_gradient(build, make_batch, tower, frozen):
    model = build(tower, vision={"frozen": frozen}).train(frozen)
    model(**make_batch(model.config)).loss.backward()
    for name, parameter in model.named_parameters():
        if frozen and ".vision." in name:
            assert parameter.grad is None, name
        else:  # a bias of keys shifts all scores of a row alike, so softmax gives it no gradient
            assert parameter.grad.isfinite().all() and (frozen or parameter.grad.any() or "k_proj.bias" in name), name


def test_checkpointing_changes_no_gradient(build, make_batch):
    gradients = []
    for checkpointing in (False, True):
        model = build(vision={"frozen": False}).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        torch.manual_seed(1)
        model(**make_batch(model.config)).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, rtol=1e-3, atol=1e-5, msg=name)


def test_evaluation_is_deterministic_and_training_draws_its_negatives(build, make_batch):
    model = build()
    model.mf2.au_vl.temperature.data.fill_(1.0)
    batch = make_batch(model.config)
    losses = {True: set(), False: set()}
    for training in (True, False):
        model.train(training)
        for seed in range(4):
            torch.manual_seed(seed)
            losses[training].add(model(**batch).itm_au.item())
    assert len(losses[False]) == 1 and len(losses[True]) > 1


def test_each_branch_reads_its_image_once(build, make_batch):
    """Tower once; a Q-Former four times: images, texts, pairs, writing; and once for key-AU captions."""
    model = build()
    calls = []
    modules = {"vision": model.mf2.vision, "emo": model.mf2.emo_vl.qformer, "au": model.mf2.au_vl.qformer}
    for name, module in modules.items():
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
    model(**make_batch(model.config))
    assert Counter(calls) == {"vision": 1, "emo": 5, "au": 4}


def test_a_share_of_the_pairs_is_drawn_while_training_and_all_are_taken_in_evaluation(build, make_batch):
    model, whole = build(au_pair_share=0.5, emo_pair_share=0.25), build()
    batch = make_batch(model.config)
    assert_equal_parts(model(**batch), whole(**batch), 0)
    rows = []
    model.mf2.au_vl.qformer.register_forward_hook(lambda module, args, output: rows.append(len(output[0])))
    losses = {model.train()(**batch).itg_au.item() for _ in range(3)}
    assert len(losses) == 3 and rows[0] == 12
    assert set(rows[2::4]) == {3 * 6} and set(rows[3::4]) == {6}
    for name, value in parts(model(**batch)).items():
        assert value.isfinite(), name


def test_sentences_of_other_action_units_are_an_error(build, make_batch):
    model = build()
    batch = make_batch(model.config)
    batch["au_input_ids"] = batch["au_input_ids"][:, :2]
    with pytest.raises(ValueError, match=r"au_input_ids: got \(4, 2, 5\), expected \(batch, AU, length\) .*\(4, 3\)"):
        model(**batch)


def test_four_samples_are_learned(make_config, make_batch):
    model = MF2ForPreTraining(make_config(initializer_range=0.02, vision={"frozen": False})).train()
    batch = make_batch(model.config)
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


def test_a_key_au_caption_is_asked_for_by_its_prompt_which_is_not_learned(build, make_batch):
    model = build(key_au_prompt_length=2)
    batch = make_batch(model.config)
    part = model(**batch).itg_key_au
    writer = MF2ForCaptioning(model.config).eval()
    writer.mf2 = model.mf2
    ids, mask = batch["key_au_input_ids"].clone(), batch["key_au_attention_mask"]
    ids[:, 0] = model.config.emo_config.bos_token_id
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, 1:3] = -100
    images = {name: batch[name] for name in ("pixel_values", "landmarks")}
    expected = writer(ids, attention_mask=mask, labels=labels, **images).loss
    torch.testing.assert_close(part, expected, rtol=1e-5, atol=1e-6)
