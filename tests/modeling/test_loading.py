"""Loading: what is missing is initialised for training and refused for answers; labels are renamed on request."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import shake, tiny_config
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification, AutoModelForPreTraining

from configuration_mf2.baselines import HSEmotionConfig
from configuration_mf2.version import VERSION
from modeling_mf2 import HSEmotionForFaceAnalysis, MF2ForCaptioning, MF2ForFaceAnalysis, MF2ForPreTraining, MF2Model
from modeling_mf2.loading import load_to_answer


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loading")
    torch.manual_seed(0)
    shake(MF2ForPreTraining(tiny_config("vit"))).save_pretrained(folder)
    return folder


def test_the_file_stays_as_it_is_when_the_weights_change(saved: Path) -> None:
    before = (saved / "model.safetensors").read_bytes()
    model = MF2ForPreTraining.from_pretrained(saved)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert (saved / "model.safetensors").read_bytes() == before


@pytest.fixture
def change(saved: Path, tmp_path: Path):
    """A copy of the checkpoint with other tensors."""

    def changed(how) -> Path:
        tensors = load_file(saved / "model.safetensors")
        save_file(how(tensors), tmp_path / "model.safetensors", metadata={"format": "pt"})
        (tmp_path / "config.json").write_bytes((saved / "config.json").read_bytes())
        return tmp_path

    return changed


def test_a_checkpoint_that_lacks_weights_starts_training_and_answers_nothing(change) -> None:
    folder = change(lambda tensors: {name: t for name, t in tensors.items() if not name.startswith("classifiers.")})
    assert MF2ForFaceAnalysis.from_pretrained(folder).classifiers.emotion.weight.isfinite().all()
    with pytest.raises(ValueError, match=r"lacks \d+ weights.*classifiers\.au_bias"):
        load_to_answer(MF2ForFaceAnalysis, folder)


def test_a_tensor_of_another_shape_is_named(change) -> None:
    folder = change(lambda tensors: {**tensors, "classifiers.emotion.bias": torch.zeros(9)})
    with pytest.raises(ValueError, match=r"another shape.*classifiers\.emotion\.bias"):
        load_to_answer(MF2ForFaceAnalysis, folder, ignore_mismatched_sizes=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(change, value: float) -> None:
    folder = change(lambda tensors: {**tensors, "classifiers.emotion.bias": torch.full((3,), value)})
    with pytest.raises(ValueError, match=r"NaN or infinite.*classifiers\.emotion\.bias"):
        load_to_answer(MF2ForFaceAnalysis, folder)


def test_a_whole_checkpoint_answers(saved: Path) -> None:
    assert load_to_answer(MF2ForPreTraining, saved).num_parameters() > 0


@pytest.mark.parametrize("tower", ["conv", "vit"])
def test_missing_weights_are_initialised_as_a_new_model_is(tower: str) -> None:
    """Spread by spread; on empty memory, which is filled with garbage here, no tensor stays as it was."""
    config = tiny_config(tower)
    for kind in (MF2ForPreTraining, MF2ForCaptioning):
        fresh, loaded = kind(config), kind.from_pretrained(None, config=config, state_dict={})
        for name, tensor in fresh.state_dict().items():
            other = loaded.state_dict()[name]
            if tensor.is_floating_point() and (tower == "conv" or "backbone" not in name):
                assert other.isfinite().all(), name
                assert torch.allclose(other.mean(), tensor.mean(), atol=max(0.5 * tensor.std(False).item(), 1e-6)) or (
                    tensor.numel() < 64
                ), name
                if tensor.numel() >= 256:
                    assert 0.7 * tensor.std() <= other.std() <= 1.4 * tensor.std(), name


def test_a_compared_systems_small_tower_is_initialised_whole() -> None:
    config = HSEmotionConfig.from_size("tiny")
    fresh = HSEmotionForFaceAnalysis(config)
    loaded = HSEmotionForFaceAnalysis.from_pretrained(None, config=config, state_dict={})
    for name, tensor in fresh.vision.state_dict().items():
        other = loaded.vision.state_dict()[name]
        assert other.isfinite().all() if other.is_floating_point() else True
        if tensor.is_floating_point() and tensor.numel() >= 256:
            assert 0.7 * tensor.std() <= other.std() <= 1.4 * tensor.std(), name


def test_the_recipe_for_fine_tuning_a_classifier(saved: Path) -> None:
    names = {0: "calm", 1: "tense"}
    recipe = {"id2label": names, "label2id": {"calm": 0, "tense": 1}, "num_labels": 2}
    with pytest.raises(ValueError, match="ignore_mismatched_sizes"):
        AutoModelForImageClassification.from_pretrained(saved, **recipe)
    model = AutoModelForImageClassification.from_pretrained(saved, ignore_mismatched_sizes=True, **recipe)
    images = torch.randn(3, 3, 64, 64)
    found = model(images, labels=torch.tensor([0, 1, 1]))
    assert found.logits.shape == (3, 2) and found.loss.isfinite() and model.config.id2label == names
    whole = MF2Model.from_pretrained(saved)
    assert torch.equal(model.mf2.emo_vl.queries, whole.emo_vl.queries)


def test_a_users_own_subclass_is_saved_and_loads_as_itself_and_as_ours(saved: Path, tmp_path: Path) -> None:
    class Mine(MF2ForFaceAnalysis):
        """With a layer more than ours."""

        def __init__(self, config) -> None:
            super().__init__(config)
            self.extra = torch.nn.Linear(2, 2)
            self.post_init()

    model = Mine.from_pretrained(saved)
    model.save_pretrained(tmp_path)
    assert torch.equal(Mine.from_pretrained(tmp_path).extra.weight, model.extra.weight)
    ours = AutoModelForPreTraining.from_pretrained(tmp_path)
    assert type(ours) is MF2ForPreTraining
    assert torch.equal(ours.classifiers.emotion.weight, model.classifiers.emotion.weight)


def test_a_checkpoint_of_0_1_with_its_flat_code_loads_and_is_saved_anew(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    for file in tmp_path.glob("*.py"):
        file.unlink()
    (tmp_path / "facs_mf2.py").write_text("raise RuntimeError('code of 0.1 is not run')\n")
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"mf2_version": "0.1.0", "auto_map": {"AutoModelForPreTraining": "modeling_mf2.MF2ForPreTraining"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = AutoModelForPreTraining.from_pretrained(tmp_path)
    assert torch.equal(model.mf2.emo_vl.queries, MF2Model.from_pretrained(saved).emo_vl.queries)
    model.save_pretrained(tmp_path)
    again = json.loads((tmp_path / "config.json").read_text())
    assert again["mf2_version"] == VERSION and again["auto_map"] == model.config.to_dict()["auto_map"]


def test_loading_by_keyword_and_without_a_source(saved: Path) -> None:
    model = MF2ForPreTraining.from_pretrained(pretrained_model_name_or_path=saved)
    assert type(model.config).from_pretrained(pretrained_model_name_or_path=saved).emotions == model.config.emotions
    again = MF2ForPreTraining.from_pretrained(None, config=model.config, state_dict=model.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_tokens_are_added_to_both_branches(saved: Path, tmp_path: Path) -> None:
    model = MF2ForCaptioning.from_pretrained(saved)
    before = model.mf2.au_vl.qformer.word_embeddings.weight.clone()
    assert model.resize_token_embeddings(43).num_embeddings == 43
    for branch in (model.mf2.emo_vl, model.mf2.au_vl):
        assert branch.qformer.word_embeddings.num_embeddings == branch.heads.language.bias.numel() == 43
        assert branch.qformer.config.vocab_size == 43
    assert torch.equal(model.mf2.au_vl.qformer.word_embeddings.weight[:40], before)
    assert model.config.vocab_size == 43 and model.config.au_config.vocab_size == 43
    model.save_pretrained(tmp_path)
    again = MF2ForCaptioning.from_pretrained(tmp_path)
    assert torch.equal(again.mf2.emo_vl.heads.language.bias, model.mf2.emo_vl.heads.language.bias)
