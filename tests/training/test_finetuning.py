"""Fine-tuning by every method: what is trained and saved, views, stored states, and options."""

import json
from pathlib import Path

import datasets
import pytest
import torch
from datasets import DatasetDict
from peft import PeftModel
from safetensors.torch import load_file
from short_runs import assert_same_weights, history, short_run

import train
from configuration_mf2 import MF2Config
from mf2face.data.examples import MF2Examples
from mf2face.data.synthetic.faces import MFASynthetic
from mf2face.training.arguments import parse_arguments
from mf2face.training.build import build_model
from mf2face.training.finetuning import METHODS, MF2Views, adapt, peft_config, trainable_parameters
from modeling_mf2 import MF2ForFaceAnalysis
from processing_mf2 import MF2Processor
from processing_mf2.augmentation import SLIGHT


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose weights are random: enough to see what moves."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    config = MF2Config.from_size("tiny")
    MF2Processor.for_model(config).save_pretrained(folder)
    MF2ForFaceAnalysis(config).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


pytestmark = pytest.mark.usefixtures("training_alone")


@pytest.mark.parametrize("task", (*METHODS, "linear_probe"))
def test_every_method_trains_its_own_part_and_the_heads(base: Path, tmp_path: Path, task: str) -> None:
    trained = short_run(tmp_path / "out", task=task, model_name_or_path=base)["trainable_parameters"]
    for entry in history(tmp_path / "out"):
        assert entry["au"] + entry["emotion"] + entry["shape"] == pytest.approx(entry["loss"], rel=1e-3)
    whole = MF2ForFaceAnalysis.from_pretrained(base)
    assert trainable_parameters(adapt(MF2ForFaceAnalysis.from_pretrained(base), task)) == trained
    heads, everything = (sum(p.numel() for p in part.parameters()) for part in (whole.classifiers, whole))
    if task == "linear_probe":
        assert trained == heads
        tuned = MF2ForFaceAnalysis.from_pretrained(tmp_path / "out")
        moved = {n for n, p in tuned.state_dict().items() if not torch.equal(p, whole.state_dict()[n])}
        assert moved and all(name.startswith("classifiers.") for name in moved)
        return
    assert heads < trained < everything / 5
    saved = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert any("classifiers" in name for name in saved)
    tuned = PeftModel.from_pretrained(MF2ForFaceAnalysis.from_pretrained(base), tmp_path / "out").eval()
    image = torch.randn(2, 3, 112, 112)
    with torch.no_grad():
        assert not torch.equal(tuned(pixel_values=image).au_logits, whole.eval()(pixel_values=image).au_logits)
        with tuned.disable_adapter():
            assert torch.equal(tuned(pixel_values=image).au_logits, whole(pixel_values=image).au_logits)


@pytest.mark.parametrize("task", ["dfn", "linear_probe"])
def test_stored_states_train_the_same_weights_and_damage_is_named(base: Path, tmp_path: Path, task: str) -> None:
    options = {"task": task, "model_name_or_path": base, "store_dtype": "float32", "store_vision": False}
    short_run(tmp_path / "plain", **options, no_store=True)
    if task == "linear_probe":
        short_run(tmp_path / "damaged", **options)
        for shard in (tmp_path / "cache" / "mf2_states").glob("*/states-*.safetensors"):
            shard.write_bytes(shard.read_bytes()[:100])
        with pytest.raises(
            OSError, match=r"states-00000\.safetensors: missing, damaged or cut short .*--rebuild_store"
        ):
            short_run(tmp_path / "stored", **options)
        options["rebuild_store"] = True
    short_run(tmp_path / "stored", **options)
    assert list((tmp_path / "cache" / "mf2_states").glob("*/store.json"))
    name = "model.safetensors" if task == "linear_probe" else "adapter_model.safetensors"
    assert_same_weights(tmp_path / "stored", tmp_path / "plain", name, atol=1e-5, rtol=1e-4)


def test_views_are_the_same_for_every_seed(base: Path, tmp_path: Path) -> None:
    options = {"model_name_or_path": base, "views": 3, "num_images": 48}
    short_run(tmp_path / "full", **options, task="full")
    assert not list((tmp_path / "cache").glob("mf2_states/*/store.json"))
    short_run(tmp_path / "first", **options, task="dfn", seed=1)
    stores = sorted((tmp_path / "cache" / "mf2_states").glob("*/store.json"))
    assert sorted(json.loads(store.read_text())["identity"]["views"] for store in stores) == [1, 1, 3]
    short_run(tmp_path / "second", **options, task="dfn", seed=2)
    assert sorted((tmp_path / "cache" / "mf2_states").glob("*/store.json")) == stores


def test_views_are_drawn_anew_in_each_epoch(base: Path) -> None:
    rows, processor = MFASynthetic(16, "drawn", size=112), MF2Processor.from_pretrained(base)
    plain = MF2Examples(rows, processor, texts=False)
    views = MF2Views([plain, *(MF2Examples(rows, processor, texts=False, augment=SLIGHT, seed=n) for n in (1, 2))])

    def pixels(found: list) -> torch.Tensor:
        return torch.stack([example["pixel_values"] for example in found])

    every = torch.stack([pixels(view.__getitems__(range(16))) for view in views.views])
    drawn = []
    for epoch in range(8):
        views.set_epoch(epoch)
        found = pixels(views.__getitems__(range(16)))
        drawn.append((every == found).flatten(2).all(-1).float().argmax(0))
        assert torch.equal(found, every[drawn[-1], torch.arange(16)])
    share = torch.stack(drawn).flatten().bincount(minlength=3) / 128
    assert share.min() > 0.2 and len({tuple(one.tolist()) for one in drawn}) == 8


def test_the_paper_s_preset_trains_the_towers_of_both_modalities(base: Path, tmp_path: Path) -> None:
    options = {"preset": "paper-dfn", "model_name_or_path": base, "tower_dtype": "bfloat16"}
    short_run(tmp_path / "out", **options)
    saved = load_file(tmp_path / "out" / "adapter_model.safetensors")
    written = {name: tensor.abs().sum() for name, tensor in saved.items() if name.endswith("up.weight")}
    for pathway in ("visual_emo", "visual_au", "language_emo", "language_au"):
        assert any(pathway in name and moved > 0 for name, moved in written.items()), pathway
    assert not (tmp_path / "cache" / "mf2_states").exists()
    settings = json.loads((tmp_path / "out" / "run.json").read_text())["settings"]
    assert settings["preset"] == "paper-dfn, but max_steps=3, per_device_train_batch_size=16, warmup_steps=0"
    with pytest.raises(ValueError, match="align: the data set synthetic has no captions"):
        short_run(tmp_path / "none", **options, use_captions=False)


def test_a_folder_with_checkpoints_of_other_settings_is_refused(base: Path, tmp_path: Path) -> None:
    source = {"model_name_or_path": base, "num_images": 48}
    short_run(tmp_path, **source, task="dfn", adapter_options=["bottleneck=8"])
    before = (tmp_path / "adapter_model.safetensors").read_bytes()
    for other in ({"task": "dfn", "adapter_options": ["bottleneck=8", "activation=tanh"]}, {"task": "lora"}):
        with pytest.raises(ValueError, match=r"output_dir: .* holds the checkpoints of another run .*now"):
            short_run(tmp_path, **source, **other)
    assert (tmp_path / "adapter_model.safetensors").read_bytes() == before


def test_thresholds_are_not_tuned_on_the_images_that_are_scored(base: Path, tmp_path: Path) -> None:
    rows = MFASynthetic(96, "drawn", size=112)
    parts = {name: rows.filter(lambda split, n=name: split == n, input_columns="split") for name in ("train", "test")}
    DatasetDict(parts).save_to_disk(tmp_path / "rows")
    source = {"dataset": tmp_path / "rows", "model_name_or_path": base, "no_store": True, "divide_splits": False}
    short_run(tmp_path / "out", **source, task="linear_probe")
    assert "the epoch chosen on these images" in (tmp_path / "out" / "README.md").read_text()
    assert MF2ForFaceAnalysis.from_pretrained(tmp_path / "out").config.au_thresholds is None


def test_options_of_a_method_reach_its_config_or_are_refused(base: Path) -> None:
    config = peft_config("dfn", ["bottleneck=16", 'pooling={"visual": "all"}', "readout=add"])
    assert (config.bottleneck, config.pooling, config.readout) == (16, {"visual": "all"}, "add")
    assert peft_config("lora", ["r=4"]).r == 4
    with pytest.raises(ValueError, match=r"adapter_options: got 'bottlenek=16', expected NAME=VALUE, each name once"):
        peft_config("dfn", ["bottlenek=16"])
    assert peft_config("dfn", ["output_layer=False"]).output_layer is False
    with pytest.raises(ValueError, match="each name once"):
        peft_config("dfn", ["slots=2", "slots=3"])
    for options, message in (
        ("bottleneck=wide", "bottleneck: got 'wide'"),
        ("peft_type=LORA", "adapter_options: got 'peft_type=LORA'"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            train.main(["--task", "dfn", "--adapter_options", options])
    with pytest.raises(ValueError, match="modules_to_save: got 'classifer', expected modules of MF2ForFaceAnalysis"):
        adapt(MF2ForFaceAnalysis.from_pretrained(base), "dfn", ['modules_to_save=["classifer"]'])
    with pytest.raises(ValueError, match="a linear probe has no config"):
        adapt(MF2ForFaceAnalysis.from_pretrained(base), "linear_probe", ["r=4"])
    with pytest.raises(ValueError, match=r"task: got 'prefix', expected one of \['dfn', 'lora'"):
        peft_config("prefix")


def test_a_tower_that_pretraining_trained_is_frozen_in_what_builds_on_it(tmp_path: Path) -> None:
    config = MF2Config.from_size("tiny", vision_config={"frozen": False})
    processor = MF2Processor.for_model(config)
    MF2ForFaceAnalysis(config).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    for task, more in (("lora", []), ("full", []), ("full", ["--model_options", 'vision_config={"frozen": false}'])):
        model = build_model(parse_arguments(["--task", task, "--model_name_or_path", str(tmp_path), *more])).model
        tower = model.train().base_model.vision
        assert tower.training is bool(more) and model.config.vision_config.frozen is (not more)
        assert any(weight.requires_grad for weight in tower.parameters()) is bool(more)


@pytest.mark.parametrize("branch", ["emo", "au"])
def test_dfn_also_adapts_a_model_of_one_branch(branch: str) -> None:
    config = MF2Config.from_size("tiny", use_emo_branch=branch == "emo", use_au_branch=branch == "au")
    model = adapt(MF2ForFaceAnalysis(config), "dfn")
    assert set(model.peft_config["default"].pathways) == {f"visual_{branch}", f"vision_{branch}"}
    assert model(pixel_values=torch.randn(1, 3, 112, 112)).emotion_logits.shape == (1, 8)


def test_an_adapter_is_measured_again_with_its_own_thresholds(base: Path, tmp_path: Path) -> None:
    first = short_run(tmp_path / "lora", task="lora", model_name_or_path=base)
    second = short_run(tmp_path / "again", task="evaluate", model_name_or_path=tmp_path / "lora")
    names = [name for name in first if name.startswith(("au_f1", "au_threshold", "emotion_")) and "/" not in name]
    assert names and {name: second[name] for name in names} == pytest.approx({name: first[name] for name in names})
    thresholds = MF2Processor.from_pretrained(tmp_path / "lora").au_thresholds
    assert thresholds != MF2ForFaceAnalysis.from_pretrained(base).config.au_thresholds
