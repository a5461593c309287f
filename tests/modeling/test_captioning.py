"""Captions: writing with and without a cache, prompts, lengths, losses; zero-shot answers of transformers' pipeline."""

import numpy as np
import pytest
import torch
from conftest import IMAGE, pick, rows_of, shake, tiny_batch, tiny_config
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoModelForZeroShotImageClassification,
    DynamicCache,
    GenerationConfig,
    pipeline,
)

from modeling_mf2 import MF2ForCaptioning, MF2ForPreTraining
from modeling_mf2.modeling_mf2 import CACHE_NAME
from processing_mf2 import MF2Processor, build_tokenizer, face_pipeline


START, END, PAD = 5, 3, 0
BRANCHES = ["emo", "au"]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return shake(MF2ForCaptioning(tiny_config(emotion_max_length=10))).eval()


@pytest.fixture
def images(model):
    return pick(tiny_batch(model.config, 2), *IMAGE)


WAYS = {
    "greedy": {},
    "beam": {"num_beams": 3},
    "beams returned": {"num_beams": 3, "num_return_sequences": 2},
    "sampled": {"do_sample": True, "temperature": 1.5, "top_k": 0},
}


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("way", WAYS)
def test_the_cache_changes_no_token(model, images, branch, way):
    def write(seed=3, **settings):
        torch.manual_seed(seed)
        return model.generate(**images, branch=branch, max_length=10, **WAYS[way], **settings)

    written = write()
    assert torch.equal(written, write(use_cache=False))
    shapes = {"emo": (2,), "au": (2, 3)}
    if way == "beams returned":
        shapes = {"emo": (4,), "au": (2, 3, 2)}
    assert written.shape[:-1] == shapes[branch] and 2 <= written.shape[-1] <= 10
    tokens = written.flatten(0, -2)
    assert (tokens[:, 0] == START).all()
    if branch == "au":  # regions differ, and so do their sentences
        assert len({tuple(row) for row in tokens.tolist()}) > 1
    if way == "sampled":
        assert not torch.equal(written, write(seed=4))
    if way == "greedy":
        logits = model(tokens, **images, branch=branch).logits
        for row, words in enumerate(tokens.tolist()):
            for place, token in enumerate(words[1 : words.index(END) + 1 if END in words else None]):
                assert logits[row, place].argmax().item() == token, "the likeliest of a full pass"


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_a_cache_is_taken_by_its_new_and_its_old_name(model, images, name):
    """transformers 5.24 renamed it; checkpoints and their users are on both sides."""
    whole = model.generate(**images, max_length=10)
    start, query_key_values = whole[:, :2], model.see(**images)
    full = model(whole, query_key_values=query_key_values).logits
    cache = DynamicCache()
    model(start, query_key_values=query_key_values, **{name: cache})
    rest = model(whole[:, 2:], query_key_values=query_key_values, **{name: cache})
    assert torch.allclose(rest.logits, full[:, 2:], atol=1e-5)
    assert rest[CACHE_NAME] is cache and cache.get_seq_length() == whole.shape[1]
    mine = DynamicCache()
    assert torch.equal(model.generate(**images, max_length=10, **{name: mine}), whole)
    assert mine.get_seq_length() == whole.shape[1] - 1


def test_images_are_rows_of_their_own(model, images):
    for branch in BRANCHES:
        together = model.generate(**images, branch=branch, max_length=8)
        for row in range(2):
            alone = model.generate(**rows_of(images, slice(row, row + 1)), branch=branch, max_length=8)
            length = alone.shape[-1]
            assert torch.equal(alone[0], together[row][..., :length])
            assert (together[row][..., length:] == PAD).all()


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("way", ["greedy", "beam"])
def test_a_prompt_is_continued(model, images, branch, way):
    prompt = torch.tensor([[START, 11, 12, 13]])
    lead = (2,) if branch == "emo" else (2, 3)
    settings = {**images, "branch": branch, **WAYS[way]}
    written = model.generate(**settings, input_ids=prompt)
    assert written.shape[:-1] == lead and written.shape[-1] > 4
    assert (written.flatten(0, -2)[:, :4] == prompt).all()
    for other in (
        {"input_ids": prompt, "use_cache": False},
        {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)},
        {"input_ids": prompt, "attention_mask": torch.ones_like(prompt), "use_cache": False},
        {"input_ids": prompt.expand(2 if branch == "emo" else 6, -1)},
    ):
        assert torch.equal(model.generate(**settings, **other), written), other.keys()


def test_a_masked_word_of_a_prompt_is_not_read(model, images):
    mask = torch.tensor([[0, 1, 1]])
    prompts = [torch.tensor([[word, START, 11]]) for word in (9, 20)]
    written = [model.generate(**images, branch="au", input_ids=ids, attention_mask=mask) for ids in prompts]
    assert torch.equal(written[0][..., 1:], written[1][..., 1:])


@pytest.mark.parametrize("branch", BRANCHES)
def test_a_caption_ends_where_it_ends(model, images, branch):
    bias = model.mf2.branch(branch).heads.language.bias.requires_grad_(False)
    bias[END] = 1e4
    written = model.generate(**images, branch=branch).flatten(0, -2).tolist()
    assert written == [[START, END]] * len(written)
    bias[END] = -1e4
    longest = {"emo": model.config.emotion_max_length, "au": model.config.au_max_length}[branch]
    assert model.generate(**images, branch=branch).shape[-1] == longest
    assert model.generate(**images, branch=branch, max_new_tokens=4).shape[-1] == 5
    assert model.generate(**images, branch=branch, max_length=6).shape[-1] == 6


def test_generation_follows_the_configuration(model, tmp_path, images):
    """Also from a checkpoint that another class has saved, and that says nothing of generation."""
    assert isinstance(model.generation_config, GenerationConfig)
    model.save_pretrained(tmp_path / "own")
    pretrained = MF2ForPreTraining(model.config)
    pretrained.mf2 = model.mf2
    pretrained.save_pretrained(tmp_path / "other")
    config, prompt = model.config, torch.tensor([[START, 7]])
    expected = {branch: model.generate(**images, branch=branch) for branch in BRANCHES}
    for folder in ("own", "other"):
        again = AutoModelForImageTextToText.from_pretrained(tmp_path / folder).eval()
        assert type(again) is MF2ForCaptioning
        for branch in BRANCHES:
            assert torch.equal(again.generate(**images, branch=branch), expected[branch])
        # A prompt asks for another kind of caption, which may be longer.
        longest = again.generate(**images, input_ids=prompt, min_length=config.emotion_max_length + 2)
        assert config.emotion_max_length < longest.shape[1] <= config.au_max_length
    with pytest.raises(ValueError, match="input_ids: got 5 rows, expected 1 for all, or 2"):
        model.generate(**images, input_ids=prompt.expand(5, -1))


def test_stored_image_tokens_stand_for_the_image(model, images):
    tokens = model.mf2.vision(images["pixel_values"])
    for branch in BRANCHES:
        stored = model.generate(image_tokens=tokens, landmarks=images["landmarks"], branch=branch)
        assert torch.equal(stored, model.generate(**images, branch=branch))
        seen = model.see(**images, branch=branch)
        assert seen.shape == ((2 if branch == "emo" else 6), 3, 2, 4, (3 if branch == "emo" else 2), 8)
        ids = torch.tensor([[START, 8, 9]]).expand(len(seen), -1)
        logits = model(ids, query_key_values=seen, branch=branch).logits
        assert torch.equal(logits, model(ids, **images, branch=branch).logits)


def test_a_missing_branch_is_named():
    model = MF2ForCaptioning(tiny_config(use_au_branch=False)).eval()
    batch = tiny_batch(model.config, 1)
    assert model.generate(batch["pixel_values"], max_length=4).shape[0] == 1
    with pytest.raises(ValueError, match=r"branch: got 'au', expected one of \['emo'\]"):
        model.generate(batch["pixel_values"], branch="au")
    with pytest.raises(ValueError, match="expected one of the two, got neither"):
        model.generate()


def test_loss_equals_that_of_pretraining(model):
    other = MF2ForPreTraining(model.config).eval()
    other.mf2.load_state_dict(model.mf2.state_dict())
    batch = tiny_batch(model.config)
    expected = other(**batch)
    images = pick(batch, *IMAGE)
    for branch, prefix, loss in (("emo", "", "itg_emo"), ("emo", "key_au_", "itg_key_au"), ("au", "au_", "itg_au")):
        ids, mask = (batch[prefix + name].flatten(0, -2).clone() for name in ("input_ids", "attention_mask"))
        ids[:, 0] = START
        labels = torch.where(mask.bool(), ids, -100)
        read = model(ids, mask, **images, branch=branch, labels=labels)
        assert read.loss.item() == pytest.approx(expected[loss].item(), abs=1e-5), loss
        assert read.logits.shape == (*ids.shape, 40)


def test_the_zero_shot_pipeline_of_transformers_chooses_as_ours_does(tmp_path):
    tokenizer = build_tokenizer()
    qformer = {"vocab_size": len(tokenizer), "max_position_embeddings": 192}
    config = tiny_config(qformer=qformer, emotion_max_length=61, au_max_length=169)
    processor, trained = MF2Processor.for_model(config, tokenizer), shake(MF2ForPreTraining(config)).eval()
    trained.save_pretrained(tmp_path)
    model, info = AutoModelForZeroShotImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    face = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 80, 3), dtype=np.uint8))
    parts = {"image_processor": processor.image_processor, "tokenizer": processor.tokenizer}
    choose = pipeline("zero-shot-image-classification", model=model, **parts)
    asked = {"candidate_labels": ["tired", "calm", "young"], "hypothesis_template": "The face shows {}."}
    expected = face_pipeline("zero-shot-image-classification", trained, processor)(face, **asked)
    for found in (choose(face, **asked), *choose([face, face], batch_size=2, **asked)):
        scores = {answer["label"]: answer["score"] for answer in expected}
        assert {answer["label"]: answer["score"] for answer in found} == pytest.approx(scores, abs=1e-5)
