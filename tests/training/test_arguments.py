"""Command line, defaults and checks; splits and new models of the settings that it gives."""

import dataclasses
import re

import pytest
import transformers
from conftest import tiny_config
from datasets import DatasetDict
from peft import get_peft_model

from configuration_mf2 import MF2Config
from configuration_mf2.baselines import VLFAUConfig
from mf2face.data.synthetic.faces import MFASynthetic
from mf2face.training.arguments import MF2Arguments, parse_arguments, read_options
from mf2face.training.build import build_model, load_splits, with_sources
from mf2face.training.finetuning import peft_config
from mf2face.training.tasks import MODELS, PRESETS, TASKS, tasks_of
from modeling_mf2 import MF2ForPreTraining


def test_defaults_are_the_tiny_journey_and_at_full_size_the_papers() -> None:
    settings = parse_arguments([])
    ours, training = settings.arguments, settings.training
    assert (ours.task, ours.model_size, ours.dataset, ours.branches) == ("pretrain", "tiny", "synthetic", "both")
    assert ours.store_vision and training.weight_decay == 0.05 and training.load_best_model_at_end
    for size in ("base", "giant"):
        training = parse_arguments(["--model_size", size]).training
        found = (training.learning_rate, training.warmup_steps, training.num_train_epochs)
        assert found == (1e-4, 2000, 30) and training.per_device_train_batch_size == 56
    settings = parse_arguments(["--model_size", "base", "--learning_rate", "3e-5", "--branches", "au"])
    assert settings.training.learning_rate == 3e-5 and settings.arguments.branches == "au"
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.arguments.branches = "emo"


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_means_its_options_and_lets_training_arguments_overrule(preset: str) -> None:
    settings = parse_arguments(["--preset", preset])
    ours, training, chosen = settings.arguments, settings.training, PRESETS[preset]
    assert {name: getattr(ours, name) for name in chosen.options} == dict(chosen.options) and not settings.deviations
    assert {name: getattr(training, name) for name in chosen.training} == dict(chosen.training)
    if preset.startswith("paper") and ours.model == "mf2":
        assert training.per_device_train_batch_size * training.gradient_accumulation_steps == 56
        assert (training.learning_rate, training.warmup_steps, training.num_train_epochs) == (1e-4, 2000, 30)
    other = parse_arguments(["--preset", preset, "--num_train_epochs", "3", "--output_dir", "elsewhere"])
    assert other.training.num_train_epochs == 3 and other.deviations == "num_train_epochs=3"
    for name, value in {"model_size": "tiny", "task": "lora"}.items():
        if name in chosen.options and chosen.options[name] != value:
            with pytest.raises(ValueError, match=f"{name}: got '{value}', but --preset {preset} means"):
                parse_arguments(["--preset", preset, f"--{name}", value])


def test_the_paper_s_dfn_has_four_towers_of_seven_cells() -> None:
    config = peft_config("dfn", PRESETS["paper-dfn"].options["adapter_options"])
    assert config.pathways == ["visual_emo", "visual_au", "language_emo", "language_au"]
    model = get_peft_model(MF2ForPreTraining(tiny_config(qformer={"num_hidden_layers": 6})), config)
    cells = [name for name, _ in model.named_modules() if re.search(r"\.cells\.\d+$", name)]
    assert len(cells) == 28 and config.modules_to_save == ["classifiers"]


def test_every_row_of_the_table_names_classes_and_options_that_exist() -> None:
    options = {field.name for field in dataclasses.fields(MF2Arguments)}
    theirs = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
    for (model, name), task in TASKS.items():
        assert model in MODELS and name in tasks_of(model)
        assert task.model_class.config_class and set(task.unused) <= options
        assert {*task.training_defaults("tiny"), *task.training_defaults("base"), *task.fixed} <= theirs
    assert not [name for name in theirs if any(option.startswith(name) for option in options)], "parsed one by one"


def test_a_missing_logger_is_an_error_before_anything_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers.integrations, "is_tensorboard_available", lambda: False)
    with pytest.raises(ImportError, match="pip install tensorboard"):
        parse_arguments(["--report_to", "tensorboard"])


def test_help_lists_our_options_by_group(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["--help"])
    printed = capsys.readouterr().out
    assert all(f"--{field.name}" in printed for field in dataclasses.fields(MF2Arguments)) and "stores" in printed
    assert printed.index("used most") < printed.index("--learning_rate") < printed.index("model and task:")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--model vl_fau --views 3", "views: got 3, which --model vl_fau --task full does not use; expected 1"),
        ("--model vl_fau --use_captions False", "use_captions: got False"),
        ("--model vl_fau --branches au", "branches: got 'au'"),
        ("--model vl_fau --store_vision True", "store_vision: got True"),
        (
            "--model vl_fau --preset paper-base",
            "tower_dtype: got 'bfloat16', which --model vl_fau --task full does not",
        ),
        ("--model vl_fau --model_options use_lga=False", "model_options: got 'use_lga=False'"),
        ("--model vl_fau --model_size giant", "model_size: got 'giant', expected one of ['tiny', 'base']"),
        ("--model_size b2", "model_size: got 'b2'"),
        ("--model hsemotion --landmarks template", "landmarks: got 'template'"),
        ("--model hsemotion --caption_set au", "caption_set: got 'au'"),
        ("--model exp_blip --task caption --model_name_or_path . --augment light", "augment: got 'light'"),
        ("--model exp_blip --task caption", "model_name_or_path: got none"),
        ("--model exp_blip --task full", "model_name_or_path: got none"),
        ("--task evaluate", "model_name_or_path: got none"),
        ("--task lora --model_size base", "model_name_or_path: got none"),
        ("--model me_graph_au --task dfn", "expected one of full, evaluate"),
        ("--task caption", "task: got 'caption'"),
        ("--task full --adapter_options r=4", "adapter_options: got ['r=4']"),
        ("--task linear_probe --align True", "align: got True"),
        ("--task dfn --views 2 --augment light", "views: got 2"),
        ("--streaming True", "max_steps: got none"),
        ("--num_images 0", "num_images: got 0"),
        ("--datset x", "--datset: there is no such option; did you mean --dataset"),
        ("--learning_rate fast", "--learning_rate"),
        ("--task pretrian", "'pretrian'"),
        ("--task dfn --model_name_or_path /no/such/folder", "there is no folder or file /no/such/folder"),
        ("--dataset /no/such/folder", "there is no folder /no/such/folder"),
        ("--dataset synthetic+/no/such/folder", "there is no folder /no/such/folder"),
        ("--dataset synthetic+synthetic", "dataset: got synthetic+synthetic, expected different ones"),
        ("--folds 1", "folds, fold: got 1 and None"),
        ("--folds 3 --fold 4", "folds, fold: got 3 and 4"),
        ("--fold 2", "folds, fold: got None and 2"),
        ("--task full --model_name_or_path . --text_name_or_path .", "text_name_or_path, model_name_or_path: got both"),
    ],
)
def test_options_that_are_missing_wrong_or_without_effect_are_refused(argv: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_arguments(argv.split())


@pytest.mark.parametrize(
    "argv",
    [
        "--model vl_fau --task evaluate --use_captions False --model_name_or_path .",
        "--model exp_blip --task caption --vision_name_or_path none --model_name_or_path .",
        "--model hsemotion --model_size b2",
        "--task dfn --store_vision False",
    ],
)
def test_options_at_their_defaults_or_off_are_accepted(argv: str) -> None:
    assert parse_arguments(argv.split())


def test_name_value_pairs_are_read_as_json_or_words() -> None:
    given = ["use_llga=False", "hidden_size=64", "backbone=resnet18", 'loss_weights={"au": 0.5}', "au_thresholds=None"]
    assert read_options("model_options", given, VLFAUConfig) == {
        **{"use_llga": False, "hidden_size": 64, "backbone": "resnet18", "loss_weights": {"au": 0.5}},
        "au_thresholds": None,
    }
    for given in (["hidden"], ["hiden_size=3"], ["hidden_size=3", "hidden_size=4"], ["num_beams=3"]):
        with pytest.raises(ValueError, match=rf"model_options: got '{given[-1]}'.*VLFAUConfig: .*hidden_size"):
            read_options("model_options", given, VLFAUConfig, hidden={"num_beams"})
    with pytest.raises(ValueError, match="of MF2Config"):
        read_options("model_options", ["use_llga=False"], MF2Config)


def test_new_models_have_the_branches_and_labels_that_were_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    def built(argv: str):
        return build_model(with_sources(parse_arguments(argv.split()))).model

    model = built("--branches au --vision_name_or_path none")
    assert model.mf2.emo_vl is None and model.mf2.au_vl is not None and "random weights" in caplog.text
    assert built("--task full --branches emo --label_set affectnet").mf2.au_vl is None
    assert all(parameter.requires_grad for parameter in built("--task tower").vision.parameters())


def test_splits_of_synthetic_faces_and_of_folders(tmp_path) -> None:
    drawn = load_splits(MF2Arguments(num_images=160, style="drawn"))
    assert drawn.keys() == {"train", "validation", "test"}
    assert not set(drawn["train"]["subject"]) & set(drawn["test"]["subject"])
    rows = MFASynthetic(160, "drawn", seed=MF2Arguments().people_seed, cache_dir=tmp_path / "cache")
    rows.save_to_disk(tmp_path / "flat")
    flat = load_splits(MF2Arguments(dataset=str(tmp_path / "flat")))
    assert {name: part["video"][:] for name, part in flat.items()} == {n: p["video"][:] for n, p in drawn.items()}
    DatasetDict({"train": drawn["train"], "test": drawn["test"]}).save_to_disk(tmp_path / "dict")
    named = load_splits(MF2Arguments(dataset=str(tmp_path / "dict")))
    assert set(named["validation"]["subject"]) <= set(drawn["train"]["subject"]) - set(named["train"]["subject"])
    assert named["test"]["video"][:] == drawn["test"]["video"][:]
    same = load_splits(MF2Arguments(dataset=str(tmp_path / "dict"), divide_splits=False))
    assert same["validation"] is same["test"] and len(same["train"]) == len(drawn["train"])
    joined = load_splits(MF2Arguments(num_images=160, dataset=f"synthetic+{tmp_path / 'flat'}"))
    assert {name: len(part) for name, part in joined.items()} == {n: 2 * len(p) for n, p in drawn.items()}
    halves = [load_splits(MF2Arguments(dataset=str(tmp_path / "dict"), folds=2, fold=fold)) for fold in (1, 2)]
    assert not set(halves[0]["test"]["subject"]) & set(halves[1]["test"]["subject"])
    drawn["train"].save_to_disk(tmp_path / "train_only")
    with pytest.raises(ValueError, match=r"rows in the splits \['train'\]"):
        load_splits(MF2Arguments(dataset=str(tmp_path / "train_only")))
