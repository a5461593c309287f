"""BERT's and BLIP-2's weights come with their words: small models under a WordPiece vocabulary of BERT's size."""

import json
import string

import huggingface_hub.constants
import pytest
import torch
from conftest import assert_same, shake
from datasets import Dataset
from safetensors.torch import save_file
from test_convert import CLOSE, EVA, TEXT, assert_answers_as, blip2_config, lavis_state
from transformers import BertConfig, BertForPreTraining, BertTokenizer, Blip2ForImageTextRetrieval

from configuration_mf2 import MF2Config
from mf2face.captions.styles import CAPTIONS
from mf2face.training.arguments import parse_arguments
from mf2face.training.build import build_model, fit_caption_lengths, save_parts, with_sources
from modeling_mf2 import MF2ForPreTraining
from modeling_mf2.convert import load_bert_weights
from modeling_mf2.weights import read_weights
from processing_mf2 import MF2Processor
from processing_mf2.tokenizer import build_tokenizer, caption_vocabulary


WORDS, POSITIONS = 30_522, 64
BERT = {**TEXT, "vocab_size": WORDS, "max_position_embeddings": POSITIONS}
CAPTIONED = ["The brows are lowered; flibbertigibbet!", "AU12 (lip corner puller): a naïve smile", "fear"]


def bert_vocabulary() -> list[str]:
    """Special tokens where BERT has them, letters, our captions' words and pieces, and made-up words."""
    words = ["[PAD]", *(f"[unused{number}]" for number in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += [f"{start}{sign}" for start in ("", "##") for sign in string.printable.lower() if not sign.isspace()]
    words = list(dict.fromkeys([*words, *(word for word in caption_vocabulary() if not word.startswith("["))]))
    return [*words, *(f"word{number}" for number in range(WORDS - len(words)))]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Folders of BERT and BLIP-2 with their tokenizers, a file of LAVIS beside one, EVA's, and the models."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("text")
    bert = shake(BertForPreTraining(BertConfig(**BERT))).eval()
    config = blip2_config()
    config.qformer_config.vocab_size, config.qformer_config.max_position_embeddings = WORDS + 1, POSITIONS
    blip2 = shake(Blip2ForImageTextRetrieval(config)).eval()
    bert.save_pretrained(folder / "bert")
    blip2.save_pretrained(folder / "blip2")
    (folder / "lavis").mkdir()
    lavis = lavis_state(blip2, bert)
    torch.save({"model": lavis}, folder / "lavis" / "blip2_pretrained.pth")
    eva = {k.removeprefix("visual_encoder."): v for k, v in lavis.items() if k.startswith("visual_encoder.")}
    save_file(eva, folder / "eva_vit_g.safetensors")
    tokenizer = BertTokenizer({word: index for index, word in enumerate(bert_vocabulary())})
    for name in ("bert", "blip2", "lavis"):
        if name == "blip2":
            tokenizer.add_special_tokens({"bos_token": "[DEC]"})  # as BLIP-2 ships it
        tokenizer.save_pretrained(folder / name)
    return folder, bert, blip2


def build(folder, *options):
    branch = {**TEXT, "projection_dim": 16, "num_query_tokens": 6, "max_position_embeddings": POSITIONS}
    branch |= {"hidden_dropout_prob": 0.1, "initializer_range": 0.02}
    vision = {"backbone": "eva_giant_patch14_224", "backbone_kwargs": EVA, "image_size": 28, "patch_size": 14}
    vision |= {"hidden_size": 24, "num_prefix_tokens": 1}
    parts = {"vision_config": vision, "emo_config": branch, "au_config": {**branch, "num_query_tokens": 4}}
    own = [f"{name}={json.dumps(fields)}" for name, fields in parts.items()]
    argv = ["--vision_name_or_path", str(folder / "eva_vit_g.safetensors"), "--model_options", *own]
    argv += [
        "geometry_token=False",
        "emotion_max_length=32",
        "au_max_length=60",
        "initializer_range=0.02",
        *map(str, options),
    ]
    settings = with_sources(parse_arguments(argv))
    made = build_model(settings)
    made.model.eval()
    return settings, made


@pytest.mark.parametrize("kind", ["bert", "blip2", "lavis", "bert and blip2"])
@torch.no_grad()
def test_pretrained_text_means_the_source_s_words(kind, sources, tmp_path):
    folder, bert, blip2 = sources
    path = folder / ("lavis/blip2_pretrained.pth" if kind == "lavis" else kind.split()[-1])
    options = ["--text_name_or_path", folder / "bert"] if "bert" in kind else []
    options += [] if kind == "bert" else ["--qformer_name_or_path", path]
    _, parts = build(folder, *options)
    tokenizer, model = parts.processor.tokenizer, parts.model.mf2
    theirs = BertTokenizer.from_pretrained(folder / ("bert" if kind == "bert" else "blip2"))
    texts = tokenizer(CAPTIONED, padding=True, return_tensors="pt")
    assert texts["input_ids"].tolist() == theirs(CAPTIONED, padding=True)["input_ids"] and len(tokenizer) == WORDS + 1
    assert (tokenizer.bos_token, tokenizer.bos_token_id, model.config.emo_config.bos_token_id) == (
        "[DEC]",
        WORDS,
        WORDS,
    )
    state = read_weights(path)
    (rows,) = {name: tensor for name, tensor in state.items() if name.endswith("word_embeddings.weight")}.values()
    for branch in (model.emo_vl, model.au_vl):
        assert torch.equal(branch.qformer.word_embeddings.weight[: len(rows)], rows)
    ids, mask = texts["input_ids"], texts["attention_mask"]
    if kind == "bert":
        read = model.emo_vl.qformer(input_ids=ids, text_mask=mask, mode="two_way").text_states
        expected = bert.bert(ids, attention_mask=mask).last_hidden_state
        torch.testing.assert_close(read[mask > 0], expected[mask > 0], **CLOSE)
    else:
        model.vision.backbone.norm.load_state_dict(blip2.vision_model.post_layernorm.state_dict())  # not in EVA's file
        inputs = {"pixel_values": torch.randn(3, 3, 28, 28), "input_ids": ids, "attention_mask": mask}
        assert_answers_as(model, blip2, inputs)
    if kind != "blip2":
        return
    save_parts(tmp_path, parts)
    again = MF2Processor.from_pretrained(tmp_path)
    assert again.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert_same(MF2ForPreTraining.from_pretrained(tmp_path).state_dict(), parts.model.state_dict())


def test_another_tokenizer_than_the_weights_is_refused(sources, tmp_path, monkeypatch):
    folder, _, _ = sources
    text = ("--text_name_or_path", folder / "bert")
    build_tokenizer().save_pretrained(tmp_path / "ours")
    with pytest.raises(
        ValueError, match=r"bos_token_id: .*bert has 30522 words, but .* with 5: its tokenizer is anothe"
    ):
        build(folder, *text, "--tokenizer_name_or_path", tmp_path / "ours")
    config = MF2Config.from_size("tiny", emo_config=BERT, au_config=BERT, emotion_max_length=20, au_max_length=60)
    MF2Processor.for_model(config)
    with pytest.raises(ValueError, match="bos_token_id: "):
        load_bert_weights(MF2ForPreTraining(config), folder / "bert")
    shorter = BertTokenizer({word: index for index, word in enumerate(bert_vocabulary()[:-500])})
    for name in ("cased", "alone"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").symlink_to(folder / "blip2" / "model.safetensors")
    shorter.save_pretrained(tmp_path / "cased")
    with pytest.raises(
        ValueError, match=r"tokenizer: .*bert has 30523 words and .*cased has 30023 words, which differ"
    ):
        build(folder, *text, "--qformer_name_or_path", tmp_path / "cased")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"tokenizer: none lies beside .*alone, .*--tokenizer_name_or_path"):
        build(folder, "--qformer_name_or_path", tmp_path / "alone")
    assert len(build(folder, *text, "--qformer_name_or_path", tmp_path / "alone")[1].processor.tokenizer) == WORDS + 1


def test_limits_of_captions_follow_the_data_and_what_is_cut_is_counted(caplog):
    long, short = "a smile spreads over the whole face and " * 12, "a smile"
    units = [1, *[0] * 11]
    rows = Dataset.from_dict(
        {
            **{"au_labels": [units] * 200, "emotion": [4] * 200, "key_au_caption": [short] * 200},
            "emotion_caption": [*[long] * 197, *[long * 2] * 1, "", ""],
            "au_caption": [f"1. AU1 (Inner Brow Raiser): {long * 2}"] * 200,
        }
    )
    caplog.set_level("INFO")
    found = {}
    for given in ([], ["--model_options", "emotion_max_length=61"]):
        settings = with_sources(parse_arguments(given))
        parts = build_model(settings)
        shares = fit_caption_lengths(settings, parts, rows)
        limits = parts.processor.emotion_max_length, parts.processor.au_max_length
        assert limits == (parts.model.config.emotion_max_length, parts.model.config.au_max_length)
        found[bool(given)] = *limits, *(shares[f"captions_cut/{name}"] for name in CAPTIONS)
    assert found[False] == (134, 192, 0.005, 1.0, 0.0)  # 192: the tiny size's positions
    assert found[True] == (61, 192, 0.99, 1.0, 0.0)
    assert "emotion_caption: at most 266 tokens, the limit is 134: 1 of 200 are cut" in caplog.text
