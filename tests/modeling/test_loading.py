"""Checkpoints: saved and loaded bit by bit, in part, damaged, of other labels, of old versions, and kept off memory."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from compared_systems import SMALL, SMALL_SWIN, small_batch
from conftest import IMAGE, assert_same, pick, shake, state_of, tiny_batch, tiny_config
from exp_blip_models import SMALL_TOWERS, small_config
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification, AutoModelForPreTraining, PreTrainedModel

from configuration_mf2 import MF2Config
from configuration_mf2.baselines import HSEmotionConfig, MEGraphAUConfig, VLFAUConfig
from configuration_mf2.version import VERSION
from modeling_mf2 import (
    ExpBlipForFaceAnalysis,
    HSEmotionForFaceAnalysis,
    MEGraphAUForFaceAnalysis,
    MF2ForCaptioning,
    MF2ForFaceAnalysis,
    MF2ForImageClassification,
    MF2ForPreTraining,
    MF2Model,
    VLFAUForFaceAnalysis,
)
from modeling_mf2.loading import load_to_answer


CLASSES = [MF2Model, MF2ForPreTraining, MF2ForFaceAnalysis, MF2ForImageClassification, MF2ForCaptioning]


def weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name.removeprefix("mf2."): value for name, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loading")
    torch.manual_seed(0)
    shake(MF2ForPreTraining(tiny_config("vit"))).save_pretrained(folder)
    return folder


@pytest.fixture
def change(saved: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the checkpoint with other tensors."""

    def changed(how: Callable[[dict], dict]) -> Path:
        save_file(how(load_file(saved / "model.safetensors")), tmp_path / "model.safetensors", {"format": "pt"})
        shutil.copy(saved / "config.json", tmp_path)
        return tmp_path

    return changed


@pytest.mark.parametrize("cls", CLASSES)
def test_every_class_loads_every_tensor_of_one_checkpoint(saved: Path, cls: type[PreTrainedModel]) -> None:
    before = (saved / "model.safetensors").read_bytes()
    expected = weights(MF2ForPreTraining.from_pretrained(pretrained_model_name_or_path=saved))
    torch.manual_seed(1)
    model = cls.from_pretrained(saved)
    assert_same(expected, weights(model))
    assert not model.training and not any(p.requires_grad for name, p in model.named_parameters() if "vision" in name)
    again = cls.from_pretrained(None, config=model.config, state_dict=model.state_dict())
    assert_same(again.state_dict(), model.state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert (saved / "model.safetensors").read_bytes() == before, "the file stays when the weights change"


@pytest.mark.parametrize("tower", ["conv", "vit"])
def test_saving_and_loading_changes_no_output(tmp_path: Path, tower: str) -> None:
    model = shake(MF2ForFaceAnalysis(tiny_config(tower))).eval()
    for module in model.mf2.vision.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # running statistics are part of a tower
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    model.save_pretrained(tmp_path)
    again = MF2ForFaceAnalysis.from_pretrained(tmp_path)
    assert weights(again).keys() == weights(model).keys()
    assert_same(again.state_dict(), model.state_dict())
    batch = pick(tiny_batch(model.config), *IMAGE)
    assert_same(again(**batch), model(**batch))
    assert MF2ForFaceAnalysis.from_pretrained(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16
    eager = MF2ForFaceAnalysis.from_pretrained(tmp_path, attn_implementation="eager")
    assert eager(**batch, output_attentions=True).au_cross_attentions is not None


def test_a_checkpoint_that_lacks_weights_starts_training_and_answers_nothing(change, saved: Path) -> None:
    folder = change(lambda tensors: {name: t for name, t in tensors.items() if not name.startswith("classifiers.")})
    model, info = MF2ForFaceAnalysis.from_pretrained(folder, output_loading_info=True)
    assert info["missing_keys"] and all(name.startswith("classifiers.") for name in info["missing_keys"])
    assert_same(weights(model), weights(MF2Model.from_pretrained(saved)))
    spread = 0.2 * model.classifiers.au_weight[0].numel() ** -0.5
    assert 0.3 * spread < model.classifiers.au_weight.std().item() < 1.5 * spread
    assert all(value.isfinite().all() for value in model.state_dict().values())
    with pytest.raises(ValueError, match=r"lacks \d+ weights.*classifiers\.au_bias"):
        load_to_answer(MF2ForFaceAnalysis, folder)
    assert load_to_answer(MF2ForPreTraining, saved).num_parameters() > 0


@pytest.mark.parametrize(
    ("bias", "message"),
    [
        (torch.zeros(9), r"another shape.*classifiers\.emotion\.bias"),
        (torch.full((3,), torch.nan), r"NaN or infinite.*classifiers\.emotion\.bias"),
        (torch.full((3,), torch.inf), r"NaN or infinite.*classifiers\.emotion\.bias"),
    ],
    ids=["shape", "nan", "inf"],
)
def test_a_tensor_that_cannot_answer_is_named(change, bias: torch.Tensor, message: str) -> None:
    folder = change(lambda tensors: {**tensors, "classifiers.emotion.bias": bias})
    with pytest.raises(ValueError, match=message):
        load_to_answer(MF2ForFaceAnalysis, folder, ignore_mismatched_sizes=True)


def test_a_damaged_checkpoint_names_its_file(saved: Path, tmp_path: Path) -> None:
    shutil.copy(saved / "config.json", tmp_path)
    content = (saved / "model.safetensors").read_bytes()
    for damaged in (None, content[: len(content) // 2], b""):
        if damaged is not None:
            (tmp_path / "model.safetensors").write_bytes(damaged)
        with pytest.raises(Exception, match=r"model\.safetensors"):
            MF2Model.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (MF2ForPreTraining, tiny_config()),
        (MF2ForCaptioning, tiny_config("vit")),
        (HSEmotionForFaceAnalysis, HSEmotionConfig.from_size("tiny")),
    ],
    ids=["pretraining", "captioning", "hsemotion"],
)
def test_missing_weights_are_initialised_as_a_new_model_is(kind: type[PreTrainedModel], config) -> None:
    """Spread by spread: on empty memory, which is filled with garbage here, no tensor stays as it was."""
    fresh, loaded = kind(config), kind.from_pretrained(None, config=config, state_dict={}).state_dict()
    for name, tensor in fresh.state_dict().items():
        if tensor.is_floating_point() and "vit" not in str(getattr(config, "vision_config", {})) * ("backbone" in name):
            assert loaded[name].isfinite().all(), name
            if tensor.numel() >= 256:
                assert 0.7 * tensor.std() <= loaded[name].std() <= 1.4 * tensor.std(), name
            if tensor.numel() >= 64:
                spread = max(0.5 * tensor.std(False).item(), 1e-6)
                assert torch.allclose(loaded[name].mean(), tensor.mean(), atol=spread), name


def test_a_label_set_unlike_the_checkpoints_is_an_error(saved: Path) -> None:
    """Also one of the same length: what was learned for AU10 must not answer for AU14."""
    turned = {"action_units": MF2Config.from_pretrained(saved).action_units[::-1]}
    for other in ({"label_set": "disfa"}, turned, {"config": MF2Config.from_pretrained(saved, **turned)}):
        with pytest.raises(ValueError, match=r"action_units: got \[.*but the checkpoint .* has \["):
            MF2ForFaceAnalysis.from_pretrained(saved, **other)


HEADS = {"classifiers.au_weight", "classifiers.au_bias", "classifiers.au_from_face.weight", "au_embedding"}
EMOTION = {"classifiers.emotion.weight", "classifiers.emotion.bias"}
UNITS = {"classifiers.units.weight", "classifiers.units.bias"}


@pytest.mark.parametrize(
    ("cls", "field", "forgets", "keeps"),
    [
        (MF2ForFaceAnalysis, "emotions", EMOTION, HEADS),
        (MF2ForFaceAnalysis, "action_units", HEADS, set()),
        (ExpBlipForFaceAnalysis, "emotions", EMOTION, UNITS),
        (ExpBlipForFaceAnalysis, "action_units", UNITS, EMOTION),
    ],
)
def test_what_was_learned_for_labels_that_stay_is_kept(tmp_path: Path, cls, field: str, forgets, keeps) -> None:
    """An emotion of MF2 is read from the AUs by their place: with other AUs it is learned anew."""
    config = tiny_config("vit") if cls is MF2ForFaceAnalysis else small_config("vit")
    model = shake(cls(config))
    model.save_pretrained(tmp_path)
    anew = cls.from_pretrained(tmp_path, ignore_mismatched_sizes=True, **{field: getattr(config, field)[::-1]})
    moved = {name for name, value in weights(model).items() if not torch.equal(value, weights(anew)[name])}
    assert forgets <= moved and not keeps & moved
    assert moved <= EMOTION | HEADS | {"classifiers.au_from_face.bias"} | forgets


def test_the_recipe_for_fine_tuning_a_classifier(saved: Path) -> None:
    names = {0: "calm", 1: "tense"}
    recipe = {"id2label": names, "label2id": {"calm": 0, "tense": 1}, "num_labels": 2}
    with pytest.raises(ValueError, match="ignore_mismatched_sizes"):
        AutoModelForImageClassification.from_pretrained(saved, **recipe)
    model = AutoModelForImageClassification.from_pretrained(saved, ignore_mismatched_sizes=True, **recipe)
    found = model(torch.randn(3, 3, 64, 64), labels=torch.tensor([0, 1, 1]))
    assert found.logits.shape == (3, 2) and found.loss.isfinite() and model.config.id2label == names
    assert torch.equal(model.mf2.emo_vl.queries, MF2Model.from_pretrained(saved).emo_vl.queries)


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
    assert_same(MF2ForCaptioning.from_pretrained(tmp_path).state_dict(), model.state_dict())


# Weights that accelerate keeps in memory or on disk until their layer runs


VIT = {
    **{"backbone": "vit_tiny_patch16_224", "backbone_kwargs": {"embed_dim": 16, "depth": 4, "num_heads": 2}},
    **pick(SMALL, "image_size", "action_units", "emotions"),
}
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "base": lambda: MF2Model(tiny_config()),
    "pretraining": lambda: MF2ForPreTraining(tiny_config()),
    "face_eva": lambda: MF2ForFaceAnalysis(tiny_config(vision=SMALL_TOWERS["eva"])),
    "captioning": lambda: MF2ForCaptioning(tiny_config()),
    "vl_fau": lambda: VLFAUForFaceAnalysis(VLFAUConfig(**SMALL_SWIN, hidden_size=16, scale_channels=4)),
    "me_graph_au": lambda: MEGraphAUForFaceAnalysis(MEGraphAUConfig(**SMALL, hidden_size=16, neighbors=2)),
    "hsemotion": lambda: HSEmotionForFaceAnalysis(HSEmotionConfig(**VIT)),
    "exp_blip": lambda: ExpBlipForFaceAnalysis(small_config("vit")),
}


@torch.no_grad()
def answers(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    compared = not hasattr(model.config, "vision_config")
    batch = small_batch(model.config) if compared else tiny_batch(model.config)
    texts = [name for name in batch if name.endswith("input_ids") or name.endswith("attention_mask")]
    if isinstance(model, MF2Model | MF2ForFaceAnalysis | ExpBlipForFaceAnalysis):
        batch = {name: batch[name] for name in batch if name not in texts}
    if isinstance(model, MF2ForCaptioning):
        batch = pick(batch, *IMAGE, *texts[:2])
    torch.manual_seed(0)
    found = {name: value for name, value in model(**batch).items() if isinstance(value, torch.Tensor)}
    images = {name: batch[name] for name in IMAGE if name in batch}
    for branch in ("emo", "au"):
        if isinstance(model, MF2ForCaptioning):
            found[f"written_{branch}"] = model.generate(**images, branch=branch, max_length=6)
        if type(model) is MF2Model:  # outside of forward
            found[f"features_{branch}"] = model.get_image_features(**images, branch=branch).pooler_output
    return found


@pytest.mark.parametrize("name", MODELS)
def test_offloaded_weights_give_the_same_answers(name: str, tmp_path: Path) -> None:
    model, again = shake(MODELS[name]()).eval(), shake(MODELS[name]()).eval()
    again.load_state_dict(state_of(model))
    expected, size = answers(model), model.get_memory_footprint()
    model.save_pretrained(tmp_path / "saved")

    def load(places: str | dict, **limits: object) -> PreTrainedModel:
        settings = {"device_map": places, "offload_folder": tmp_path / "offloaded", **limits}
        return type(model).from_pretrained(tmp_path / "saved", **settings).eval()

    cpu_offload(model, execution_device=torch.device("cpu"))
    disk_offload(again, tmp_path / "disk", execution_device=torch.device("cpu"))
    whole = [model, again, load({"": "disk"})]
    assert all(parameter.is_meta for one in whole for parameter in one.parameters())
    partly = load("auto", max_memory={"cpu": int(0.5 * size)})
    assert "disk" in partly.hf_device_map.values()
    for offloaded in (*whole, partly):
        there = [name for name, parameter in offloaded.named_parameters() if not parameter.is_meta]
        found = answers(offloaded)
        assert found.keys() == expected.keys() and len(found) > 0
        for output, value in expected.items():
            torch.testing.assert_close(found[output], value, rtol=1e-4, atol=1e-5, msg=output)
        still = [name for name, parameter in offloaded.named_parameters() if not parameter.is_meta]
        assert still == there, "what was offloaded before is so again"
