"""The Q-Former: its three modes against one another, what sees what, stored keys and values, folding."""

import pytest
import torch
from conftest import shake, tiny_config
from transformers import DynamicCache

from modeling_mf2 import qformer as qformer_mf2
from modeling_mf2.qformer import MF2QFormer


ROWS, QUERIES, LENGTH, IMAGE = 4, 3, 6, 5


def build(attention="sdpa", **fields):
    config = tiny_config(qformer={"num_hidden_layers": 4, **fields}).emo_config
    config._attn_implementation = attention
    config.encoder_hidden_size = 20
    torch.manual_seed(0)
    return shake(MF2QFormer(config)).eval()


@pytest.fixture
def inputs():
    lengths = torch.tensor([6, 3, 5, 1])
    return {
        "queries": torch.randn(ROWS, QUERIES, 32),
        "image": torch.randn(ROWS, IMAGE, 20),
        "input_ids": torch.randint(6, 40, (ROWS, LENGTH)),
        "text_mask": (torch.arange(LENGTH) < lengths[:, None]).long(),
    }


def close(a, b, tolerance=2e-5):
    assert a.shape == b.shape
    torch.testing.assert_close(a, b, atol=tolerance, rtol=0)


def known(states, mask):
    return states[mask.bool()]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_three_ways_to_write_agree(inputs, attention):
    """One causal pass of queries and text, a text pass over stored query keys and values, and token by token."""
    model = build(attention)
    mask = inputs["text_mask"]
    one_pass = model(**inputs, mode="causal")
    read = model(queries=inputs["queries"], image=inputs["image"], output_key_values=True)
    stored = {"query_key_values": read.query_key_values, "mode": "causal"}
    text_pass = model(input_ids=inputs["input_ids"], text_mask=mask, **stored)
    close(one_pass.query_states, read.query_states)
    close(known(text_pass.text_states, mask), known(one_pass.text_states, mask))
    cache, steps = DynamicCache(), []
    for step in range(LENGTH):
        word = {"input_ids": inputs["input_ids"][:, step : step + 1], "text_mask": mask[:, : step + 1]}
        steps.append(model(**word, past_key_values=cache, **stored).text_states)
    close(known(torch.cat(steps, dim=1), mask), known(one_pass.text_states, mask))
    assert cache.get_seq_length() == LENGTH
    cache = DynamicCache()  # and in two pieces, without a mask
    row = {**stored, "query_key_values": [[states[:1] for states in pair] for pair in stored["query_key_values"]]}
    pieces = (inputs["input_ids"][:1, :4], inputs["input_ids"][:1, 4:])
    written = [model(input_ids=ids, past_key_values=cache, **row).text_states for ids in pieces]
    close(torch.cat(written, dim=1), one_pass.text_states[:1])


def test_unimodal_streams_are_alone(inputs):
    model, mask = build(), inputs["text_mask"]
    together = model(**inputs, mode="unimodal")
    close(together.query_states, model(queries=inputs["queries"], image=inputs["image"]).query_states)
    for mode in ("unimodal", "two_way"):  # alone, a text that sees all sees itself
        alone = model(input_ids=inputs["input_ids"], text_mask=mask, mode=mode)
        close(known(together.text_states, mask), known(alone.text_states, mask))


def test_two_way_sees_all_but_padding(inputs):
    model, mask = build(), inputs["text_mask"]
    read = model(**inputs, mode="two_way")
    other = torch.where(mask.bool(), inputs["input_ids"], 39 - inputs["input_ids"] + 6)
    again = model(**{**inputs, "input_ids": other}, mode="two_way")
    close(again.query_states, read.query_states, 1e-6)
    close(known(again.text_states, mask), known(read.text_states, mask), 1e-6)
    cut = model(**{k: v[1:2, :3] if k in ("input_ids", "text_mask") else v[1:2] for k, v in inputs.items()})
    close(cut.query_states, read.query_states[1:2])
    close(cut.text_states, read.text_states[1:2, :3])
    last = inputs["input_ids"].clone()
    last[0, -1] += -1 if last[0, -1] == 39 else 1  # a token that is no padding is seen by everything in its row
    seen = model(**{**inputs, "input_ids": last}, mode="two_way")
    assert (seen.query_states - read.query_states)[0].abs().amin(-1).gt(1e-6).all()
    assert (seen.text_states - read.text_states)[0].abs().amax(-1).gt(1e-4).all()
    close(seen.query_states[1:], read.query_states[1:], 0)


def test_causal_words_see_the_queries_themselves_and_earlier_words(inputs):
    model = build("eager")
    inputs.pop("text_mask")
    read = model(**inputs, mode="causal", output_attentions=True)
    expected = torch.cat([torch.ones(LENGTH, QUERIES), torch.ones(LENGTH, LENGTH).tril()], dim=1).bool()
    for weights in read.text_attentions:
        assert torch.equal(weights > 0, expected.expand(ROWS, 4, -1, -1))


@pytest.mark.parametrize("units", [1, 2])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("text", [False, True])
def test_fewer_query_rows_than_images(inputs, units, training, text):
    """Row r of the images is read by queries r modulo their number."""
    model = build().train(training)
    few = inputs["queries"][:units]
    inputs["queries"] = torch.stack([few[row % units] for row in range(ROWS)])
    if not text:
        inputs = {name: inputs[name] for name in ("queries", "image")}
    inputs["output_key_values"] = True
    all_rows, repeated = model(**inputs), model(**{**inputs, "queries": few})
    close(repeated.query_states, all_rows.query_states)
    for pair, expected in zip(repeated.query_key_values, all_rows.query_key_values, strict=True):
        close(pair[0], expected[0])
        close(pair[1], expected[1])


def test_dropout_is_drawn_for_every_image(inputs):
    model = build(hidden_dropout_prob=0.5).train()
    image = inputs["image"][:1].expand(ROWS, -1, -1)
    first_keys = model(queries=inputs["queries"][:1], image=image, output_key_values=True).query_key_values[0][0]
    assert (first_keys[0] - first_keys[1]).abs().max() > 1e-3


def test_stored_image_keys_and_values(inputs):
    model = build()
    read = model(queries=inputs["queries"], image=inputs["image"], output_key_values=True)
    made = model.image_key_values(inputs["image"])
    assert len(made) == len(read.image_key_values) == 2
    for stored in (made, read.image_key_values):
        again = model(queries=inputs["queries"], image_key_values=stored)
        close(again.query_states, read.query_states, 1e-6)
    order = torch.tensor([2, 0, 3, 1])
    moved = tuple(tuple(states[order] for states in pair) for pair in made)
    again = model(queries=inputs["queries"], image_key_values=moved)
    close(again.query_states, model(queries=inputs["queries"], image=inputs["image"][order]).query_states, 1e-6)


@pytest.mark.parametrize(("frequency", "crossing"), [(1, [0, 1, 2, 3]), (2, [0, 2]), (3, [0, 3]), (9, [0])])
def test_cross_attention_stands_in_every_nth_block(inputs, frequency, crossing):
    model = build(cross_attention_frequency=frequency)
    found = [index for index, layer in enumerate(model.layers) if layer.cross_attention is not None]
    assert found == crossing
    read = model(queries=inputs["queries"], image=inputs["image"], output_key_values=True)
    again = model(queries=inputs["queries"], image_key_values=model.image_key_values(inputs["image"]))
    close(again.query_states, read.query_states, 1e-6)


def test_text_may_be_as_long_as_the_positions_and_queries_need_an_image(inputs):
    model, cache, word = build(), DynamicCache(), torch.ones(1, 25, dtype=torch.long)
    assert model(input_ids=word[:, :24]).text_states.isfinite().all()
    with pytest.raises(ValueError, match=r"input_ids: got 25 tokens, expected at most 24 .*processor"):
        model(input_ids=word)
    model(input_ids=word[:, :20], mode="causal", past_key_values=cache)
    with pytest.raises(ValueError, match="got 25 tokens"):
        model(input_ids=word[:, :5], mode="causal", past_key_values=cache)
    with pytest.raises(ValueError, match=r"image: got None.*image_key_values"):
        model(queries=inputs["queries"])


def test_a_row_that_sees_no_word_stays_finite(inputs):
    inputs["text_mask"][0] = 0
    for attention in ("sdpa", "eager"):
        for dtype in (torch.float32, torch.bfloat16):
            model = build(attention).to(dtype)
            moved = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
            for mode in ("two_way", "causal", "unimodal"):
                read = model(**moved, mode=mode)
                assert read.query_states.isfinite().all() and read.text_states.isfinite().all()


def test_the_feed_forward_net_in_parts_is_the_whole(inputs, monkeypatch):
    model = build()
    whole = model(**inputs)
    monkeypatch.setattr(qformer_mf2, "_ROWS_AT_ONCE", 5)
    with torch.no_grad():
        parts = model(**inputs)
    close(parts.query_states, whole.query_states.detach())
    close(known(parts.text_states, inputs["text_mask"]), known(whole.text_states.detach(), inputs["text_mask"]))


@pytest.mark.parametrize("queries", [1, 3, 4])
def test_few_queries_are_carried_to_the_tokens_and_answer_the_same(queries, monkeypatch):
    model = build()
    attention = model.layers[0].cross_attention
    given = {"queries": torch.randn(1, queries, 32), "image": torch.randn(ROWS, 40, 20)}
    with torch.no_grad():
        assert attention.folds(given["queries"], given["image"]) == (queries < 4)  # 1/40 + 1/8 for each
        folded = model(**given).query_states
        monkeypatch.setattr(type(attention), "folds", lambda *_: False)
        close(folded, model(**given).query_states, 1e-5)


def test_nothing_is_folded_that_learns_or_was_adapted():
    model = build()
    attention, queries, image = model.layers[0].cross_attention, torch.randn(1, 1, 32), torch.randn(ROWS, 40, 20)
    assert not attention.folds(queries, image), "gradients are asked for"
    with torch.no_grad():
        assert attention.folds(queries, image) and not build("eager").layers[0].cross_attention.folds(queries, image)
        read = model(queries=queries, image=image, output_key_values=True)
        assert len(read.image_key_values) == 2
        heard = []
        hook = attention.k_proj.register_forward_hook(lambda *_: heard.append(1))  # as offloading does, too
        model(queries=queries, image=image)
        assert heard and not attention.folds(queries, image)
        hook.remove()
        assert attention.folds(queries, image) and not attention.folds(queries, image[:, :0])
        with torch.autocast("cpu", torch.bfloat16):
            close(model(queries=queries, image=image).query_states.float(), read.query_states, 0.1)
        attention.v_proj = torch.nn.Sequential(attention.v_proj)  # as an adapter wraps it
        assert not attention.folds(queries, image)
        close(model(queries=queries, image=image).query_states, read.query_states, 1e-5)
