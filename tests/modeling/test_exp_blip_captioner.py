import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import QFORMER, shake, tiny_config
from exp_blip_models import SMALL_TOWERS, TOKENS, faces_and_captions, small_config, small_opt
from transformers import AutoModelForImageTextToText, Blip2ForConditionalGeneration, BloomConfig, BloomForCausalLM

from modeling_mf2 import ExpBlipForFaceAnalysis, ExpBlipForPreTraining, ExpBlipTowerCaptioner, MF2ForPreTraining
from modeling_mf2.baselines.exp_blip import generate_captions, load_from_captioner, to_blip2


CLOSE = {"atol": 1e-5, "rtol": 0}


def stage_one(tower: str = "conv", **fields) -> ExpBlipForPreTraining:
    return shake(ExpBlipForPreTraining(small_config(tower, **fields))).eval()


def captioner_of(model: ExpBlipForPreTraining, **settings) -> Blip2ForConditionalGeneration:
    return to_blip2(model, small_opt(), **{**TOKENS, "max_new_tokens": 6, **settings})


@torch.no_grad()
def seen_by(model: ExpBlipForPreTraining, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = model.mf2.look(images, None)
    return tokens, model.mf2.read("emo", tokens).query_states


@pytest.mark.parametrize("tower", SMALL_TOWERS)
def test_blip2_sees_what_stage_one_saw(tower):
    model = stage_one(tower)
    captioner = captioner_of(model)
    assert type(captioner) is (ExpBlipTowerCaptioner if tower == "conv" else Blip2ForConditionalGeneration)
    images = faces_and_captions(model.config)["pixel_values"]
    tokens, states = seen_by(model, images)
    with torch.no_grad():
        seen = captioner.get_image_features(images, return_dict=True)
    assert torch.allclose(seen.last_hidden_state, tokens, **CLOSE)
    assert torch.allclose(seen.qformer_outputs.last_hidden_state, states, **CLOSE)
    assert torch.equal(captioner.query_tokens, model.mf2.emo_vl.queries)


@pytest.mark.parametrize("tower", ["vit", "eva"])
def test_every_tensor_of_the_tower_has_one_place(tower):
    """Moving any tensor of the captioner's tower or Q-Former moves what is read back, and nothing is left over."""
    model = stage_one(tower)
    captioner = captioner_of(model)
    back = ExpBlipForFaceAnalysis(small_config(tower)).eval()
    filled = load_from_captioner(back, captioner.state_dict())
    theirs = [name for name in captioner.state_dict() if not name.startswith("language_")]
    biases = sum(name.endswith("q_bias") for name in filled)  # of three of EVA's, one of BLIP-2's
    assert len(filled) - biases == len(theirs)
    for name in filled:
        assert torch.equal(back.mf2.state_dict()[name], model.mf2.state_dict()[name]), name


@pytest.mark.parametrize("tower", ["conv", "vit"])
def test_a_captioner_is_the_same_after_saving_and_writes_the_same(tower, tmp_path):
    model = stage_one(tower)
    captioner = shake(captioner_of(model), scale=0.02)
    captioner.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(again) is type(captioner)
    for name, tensor in captioner.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert again.generation_config.num_beams == 5 and again.config.exp_blip["caption_set"] == "exp"
    images = faces_and_captions(model.config)["pixel_values"]
    assert torch.equal(generate_captions(again, images), generate_captions(captioner, images))
    batch = {"pixel_values": images[:1], "input_ids": torch.tensor([[40, 40, 40, 5, 7, 3]])}
    batch["labels"] = torch.tensor([[-100, -100, -100, -100, 7, 3]])
    assert torch.equal(again(**batch).loss, captioner.eval()(**batch).loss)


def test_a_carried_tower_counts_its_loss_as_blip2_does():
    """The same model twice, once with BLIP-2's tower and once with ours in its place."""
    model = stage_one("vit")
    words = small_opt()
    plain = to_blip2(model, words, **TOKENS)
    carried = to_blip2(model, words, **TOKENS, carry_tower=True)
    carried.language_projection.load_state_dict(plain.language_projection.state_dict())
    batch = {"pixel_values": faces_and_captions(model.config)["pixel_values"][:1]}
    batch["input_ids"] = torch.tensor([[40, 40, 40, 5, 7, 9, 3]])
    batch["labels"] = torch.tensor([[-100, -100, -100, -100, 7, 9, 3]])
    assert torch.allclose(carried(**batch).loss, plain(**batch).loss, **CLOSE)


def test_five_beams_write_words_and_never_the_place_of_a_query():
    captioner = captioner_of(stage_one())
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():  # the likeliest token of all, were it allowed
        captioner.language_model.get_input_embeddings().weight[40] = 5.0
    written = generate_captions(captioner, images)
    assert written.shape[0] == 3 and 3 <= written.shape[1] <= 6 and (written != 40).all()
    one = generate_captions(captioner, images, num_beams=1, min_new_tokens=1)
    several = generate_captions(captioner, images, num_return_sequences=2, output_scores=True)
    assert len(several) == 6 and len(one) == 3
    assert torch.equal(captioner.train() and generate_captions(captioner, images), written) and captioner.training


@torch.no_grad()
def test_the_language_model_is_told_of_the_image():
    captioner = captioner_of(stage_one())
    ids = torch.tensor([[40, 40, 40, 5]]).expand(2, -1)
    one, other = captioner(torch.randn(2, 3, 64, 64), input_ids=ids).logits[:, -1]
    assert not torch.allclose(one, other, atol=1e-4)


def test_a_language_model_is_taken_as_it_is():
    words = small_opt(words=60)  # OPT has more rows than words
    before = {name: tensor.clone() for name, tensor in words.state_dict().items()}
    captioner = to_blip2(stage_one(), words, **TOKENS)
    assert captioner.language_model is words and captioner.config.text_config is words.config
    for name, tensor in captioner.language_model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert captioner.get_output_embeddings().weight is words.get_input_embeddings().weight


def test_what_stage_two_made_of_the_features_is_read_back(tmp_path):
    for tower in SMALL_TOWERS:
        model = stage_one(tower)
        captioner = shake(captioner_of(model), scale=0.02, seed=11).eval()
        images = faces_and_captions(model.config)["pixel_values"]
        classifier = ExpBlipForFaceAnalysis(small_config(tower)).eval()
        load_from_captioner(classifier, captioner.state_dict())
        with torch.no_grad():
            states = captioner.get_image_features(images, return_dict=True).qformer_outputs.last_hidden_state
        assert torch.allclose(classifier.features(images), states.mean(dim=1), **CLOSE), tower
        assert not torch.allclose(states, seen_by(model, images)[1], atol=1e-3)
        other = ExpBlipForFaceAnalysis(small_config(tower, emo_config={**QFORMER, "num_query_tokens": 7}))
        with pytest.raises(ValueError, match=r"does not fit this model, which was left as it was: .*queries"):
            load_from_captioner(other, captioner.state_dict())


def test_models_of_another_kind_are_refused():
    mf2 = MF2ForPreTraining(tiny_config())
    with pytest.raises(ValueError, match="model: got MF2ForPreTraining, expected a stage-1 model"):
        captioner_of(mf2)
    bloom = BloomForCausalLM(BloomConfig(vocab_size=40, hidden_size=32, n_layer=1, n_head=2))
    with pytest.raises(ValueError, match="language_model: got a 'bloom', expected an OPT"):
        to_blip2(stage_one(), bloom, **TOKENS)


STRANGER = """
import importlib.util, sys
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in (getattr(f, "__module__", "") + str(f)).lower()]
for room in ("configuration_mf2", "processing_mf2", "modeling_mf2", "mf2face"):
    while (spec := importlib.util.find_spec(room)) is not None:
        sys.path.remove(str(__import__("pathlib").Path(list(spec.submodule_search_locations)[0]).parent))
        importlib.invalidate_caches()
        sys.path_importer_cache.clear()
import torch
from transformers import AutoModel, AutoModelForImageTextToText, AutoModelForPreTraining
images, captioner, classifier = torch.load("images.pt"), sys.argv[1], sys.argv[2]
with torch.no_grad():
    model = AutoModelForImageTextToText.from_pretrained(captioner, trust_remote_code=True).eval()
    torch.save(model.generate(images, generation_config=model.generation_config), captioner + "/answers.pt")
    model = AutoModel.from_pretrained(classifier, trust_remote_code=True).eval()
    torch.save(model(images).au_logits, classifier + "/answers.pt")
stage_one = AutoModelForPreTraining.from_pretrained(classifier, trust_remote_code=True)
assert type(stage_one).__name__ == "ExpBlipForPreTraining"
model.save_pretrained(classifier + "_again")
"""


@torch.no_grad()
def test_checkpoints_carry_their_code(tmp_path):
    """A process without our packages loads the captioner with our tower, and the classifier."""
    captioner, classifier = captioner_of(stage_one()), shake(ExpBlipForFaceAnalysis(small_config())).eval()
    images = torch.randn(2, 3, 64, 64)
    torch.save(images, tmp_path / "images.pt")
    places = [tmp_path / "captioner", tmp_path / "classifier", tmp_path / "classifier_again"]
    captioner.save_pretrained(places[0])
    classifier.save_pretrained(places[1])
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-c", STRANGER, *map(str, places[:2])]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    written = captioner.generate(images, generation_config=captioner.generation_config)
    assert torch.equal(torch.load(places[0] / "answers.pt"), written)
    assert torch.equal(torch.load(places[1] / "answers.pt"), classifier(images).au_logits)
    maps = [json.loads((place / "config.json").read_text())["auto_map"] for place in places]
    assert maps[0]["AutoModelForImageTextToText"] == "baselines_exp_blip.ExpBlipTowerCaptioner"
    assert maps[1] == maps[2]
    code = [{path.name: path.read_text() for path in place.glob("*.py")} for place in places]
    assert code[1] == code[2] and "modeling_vl_fau.py" not in {*code[0], *code[1]}
