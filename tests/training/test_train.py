"""train.py: it learns, evaluates and saves, and a killed run ends like a whole one."""

import json
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from datasets import DatasetDict
from safetensors.torch import load_file
from short_runs import DYING, ROOT, assert_same_weights, history, short_run
from short_runs import command as short_command
from strangers import start

import train
from mf2face.data.schema import SPLITS
from mf2face.data.synthetic.faces import MFASynthetic
from mf2face.training import run as run_module
from modeling_mf2 import MF2ForFaceAnalysis
from modeling_mf2.vision import MF2VisionTower
from processing_mf2 import MF2Processor


EPOCHS = {"num_images": 160, "warmup_steps": 2, "max_steps": None, "eval_strategy": None, "save_strategy": None}
TOKEN = "hf_" + "ThisIsASecretOfTheUser"


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tower")
    short_run(folder, **EPOCHS, task="tower", num_train_epochs=1, hub_token=TOKEN)
    return folder


def command(tower: Path, folder: Path, **options: object) -> list[str]:
    return short_command(folder, **{**EPOCHS, "vision_name_or_path": tower, **options})


def test_a_tower_is_trained_and_kept_and_the_token_is_in_no_file(tower: Path) -> None:
    kept = MF2VisionTower.from_pretrained(tower)
    assert kept(torch.zeros(1, 3, 112, 112)).shape == (1, 196, 128)
    first = history(tower)[0]
    assert {"landmark", "identity", "pixel"} <= set(first) and not {"au", "emotion", "part"} & set(first)
    fresh = MF2VisionTower(kept.config)
    assert not torch.equal(kept.backbone.convolutions[0].weight, fresh.backbone.convolutions[0].weight)
    written = {str(path): path.read_bytes() for path in tower.rglob("*") if path.is_file()}
    for path in filter(zipfile.is_zipfile, list(written)):  # as torch.save writes
        archive = zipfile.ZipFile(path)
        written |= {f"{path}/{name}": archive.read(name) for name in archive.namelist()}
    assert any("training_args.bin/" in name for name in written)
    assert [name for name, content in written.items() if TOKEN.encode() in content] == []


def test_the_journey_learns_measures_and_saves(tower: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = train.main(command(tower, tmp_path, num_train_epochs=2, logging_steps=2))
    printed = capsys.readouterr().out
    assert "synthetic faces, " in printed and "AU12" in printed and "one-vs-rest" in printed
    written = json.loads((tmp_path / "metrics.json").read_text())
    for name in ("au_f1_macro", "au_f1_tuned_macro", "emotion_top1", "emotion_ovr_accuracy", "cpu_seconds"):
        assert written[name] == figures[name]
    assert all(isinstance(value, int | float) and np.isfinite(value) for value in written.values())
    for name in ("metrics.png", "curves.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    parts = history(tmp_path)
    assert {"itm_emo", "itg_emo", "itg_key_au", "itc_emo", "itc_au", "itm_au", "itg_au", "au", "emotion"} <= set(
        parts[0]
    )
    assert parts[-1]["itg_emo"] < 0.9 * parts[0]["itg_emo"]

    model = MF2ForFaceAnalysis.from_pretrained(tmp_path)
    assert MF2Processor.from_pretrained(tmp_path).au_thresholds == model.config.au_thresholds
    stored = load_file(tower / "model.safetensors")
    for name, tensor in model.mf2.vision.state_dict().items():
        assert torch.equal(tensor, stored[name]), f"the frozen tower's {name} has changed"
    again = short_run(tmp_path / "again", **EPOCHS, task="evaluate", model_name_or_path=tmp_path)
    for name in ("au_f1_tuned_macro", "emotion_top1"):
        assert again[name] == figures[name]


@pytest.mark.slow
def test_rendered_people_teach_sides_and_intensities_and_another_style_is_measured(tmp_path: Path) -> None:
    """The tower of the run before decides its shape and how images are prepared."""
    faces = {"style": "studio+street", "num_images": 96, "max_steps": 2, "eval_strategy": "no", "save_strategy": "no"}
    tower = short_run(tmp_path / "tower", **faces, task="tower", model_options='vision_config={"hidden_size": 32}')
    assert 0 < tower["tower/part_accuracy"] < 1 and tower["tower/landmark_error"] < 0.5
    options = {"vision_name_or_path": tmp_path / "tower", "load_best_model_at_end": False, "augment": "heavy"}
    figures = short_run(tmp_path / "mf2", **faces, **options)
    expected = {"intensity_icc", "sides_auc", "probe/au_f1_macro", "style_shift/au_f1_macro"}
    expected |= {"style_shift/probe_au_f1_macro", "style_shift/sides_auc", "baseline/au_f1_ceiling"}
    assert expected <= set(figures) and expected <= set(json.loads((tmp_path / "mf2" / "metrics.json").read_text()))
    model = MF2ForFaceAnalysis.from_pretrained(tmp_path / "mf2")
    assert model.config.sides and model.config.intensities and model.config.geometry_token
    assert model.config.vision_config.hidden_size == 32 and not model.config.vision_config.label_taught
    processor = MF2Processor.from_pretrained(tmp_path / "mf2").image_processor
    assert processor.alignment == "five_points" and processor.do_grayscale and processor.normalize_per_image


def run_killed(step: int, arguments: list[str]) -> None:
    done = start(f"{DYING}train.main(sys.argv[1:])", *arguments, cwd=ROOT, DIE_AT=step)
    assert done.killed, done.output[-2000:]


@pytest.mark.usefixtures("training_alone")
def test_a_killed_run_ends_with_the_same_weights_when_the_command_is_repeated(
    tower: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In its second pass, of four steps."""
    options = {"vision_name_or_path": tower, "max_steps": 6, "save_steps": 2, "eval_steps": 2, "save_total_limit": 3}
    options |= {"augment": "light", "logging_steps": 20}
    short_run(tmp_path / "whole", **options)
    interrupted = short_command(tmp_path / "killed", **options)
    run_killed(5, interrupted)
    # The last checkpoint is cut short as well, as by a full disk: the one before it has to do.
    last = tmp_path / "killed" / "checkpoint-4"
    weights = last / "model-trained.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    begun = json.loads((last.with_name("checkpoint-2") / "cost.json").read_text())
    figures = train.main(interrupted)
    assert begun["cpu_seconds"] > 0 and figures["cpu_seconds"] > begun["cpu_seconds"]
    at_its_end = train.main(interrupted)  # only measured again
    assert at_its_end["epoch_cpu_seconds"] == pytest.approx(figures["epoch_cpu_seconds"], rel=0.5)
    assert f"{last.name} is passed over: model-trained.safetensors has 1000 bytes" in caplog.text
    assert_same_weights(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.slow
def test_a_run_that_stopped_early_stops_there_however_often_it_is_killed(tower: Path, tmp_path: Path) -> None:
    """Nothing gets better: the first pass is the best one, and five more are waited for."""
    arguments = command(tower, tmp_path, task="full", num_train_epochs=12, learning_rate=0, logging_steps=20)
    run_killed(4 * 8 + 3, arguments)  # of 8 steps a pass, in the fifth
    for _ in ("continued", "killed while it was measured"):
        train.main(arguments)
        kept = sorted(int(path.name.split("-")[1]) for path in tmp_path.glob("checkpoint-*"))
        assert kept[-1] == 6 * 8


@pytest.mark.usefixtures("training_alone")
def test_a_loss_that_is_no_number_stops_the_run_and_says_where(tower: Path, tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"loss is (nan|inf) at step \d+, rows \[\d+"):
        short_run(tmp_path, vision_name_or_path=tower, max_steps=20, learning_rate=1e30, max_grad_norm=0)


@pytest.mark.parametrize(("times", "told"), [(0.5, False), (25.0, True)])
def test_half_precision_that_a_cpu_computes_in_software_is_named_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, times: float, told: bool
) -> None:
    class Begun(Exception):
        pass

    def begin(_: object) -> None:
        raise Begun

    monkeypatch.setattr(run_module, "bfloat16_cost", lambda: times)
    monkeypatch.setattr(run_module, "check_same_run", lambda *_: None)
    monkeypatch.setattr(run_module, "with_sources", begin)
    with pytest.raises(Begun):
        short_run(tmp_path, bf16=True)
    assert [record.getMessage().startswith("bf16: got True") for record in caplog.records].count(True) == told


@pytest.mark.usefixtures("training_alone")
def test_stored_tokens_stand_in_for_images(tower: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    options = {"vision_name_or_path": tower, "max_steps": 2, "num_images": 160}
    top1 = [
        short_run(tmp_path / str(stored), store_vision=stored, **options)["emotion_top1"] for stored in (False, True)
    ]
    assert list((tmp_path / "cache" / "mf2_vision").glob("*/store.json"))
    assert top1[0] == pytest.approx(top1[1], abs=0.1)
    assert_same_weights(tmp_path / "False", tmp_path / "True", atol=5e-3)


CAPTIONS = ["emotion_caption", "au_caption", "key_au_caption"]


@pytest.mark.usefixtures("training_alone")
def test_a_tower_trained_with_the_branches_is_said_to_be_taught_labels(tower: Path, tmp_path: Path) -> None:
    options = {"vision_name_or_path": tower, "max_steps": 1, "use_captions": False, "num_images": 48}
    options["store_vision"] = False
    for folder, frozen in (("kept", "true"), ("trained", "false")):
        short_run(tmp_path / folder, **options, model_options=f'vision_config={{"frozen": {frozen}}}')
        taught = json.loads((tmp_path / folder / "config.json").read_text())["vision_config"].get("label_taught", False)
        assert taught is (frozen == "false")
        assert ("taught action units" in (tmp_path / folder / "README.md").read_text()) is taught


@pytest.mark.parametrize("lacking", ["captions, and an AU is never active", "emotions, and all images but one"])
def test_a_dataset_that_lacks_something_is_trained_on_all_the_same(
    tower: Path, tmp_path: Path, lacking: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What is missing is messages once, and no score is NaN."""
    rows = MFASynthetic(96, "drawn", seed=1)
    parts = {name: rows.filter(lambda split, n=name: split == n, input_columns="split") for name in SPLITS}
    if lacking.startswith("captions"):
        at_rest = [[0, *labels[1:]] for labels in parts["train"]["au_labels"][:]]
        plain = parts["train"].remove_columns("au_labels")
        parts["train"] = plain.add_column("au_labels", at_rest, feature=rows.features["au_labels"])
        parts = {name: part.remove_columns(CAPTIONS) for name, part in parts.items()}
    else:
        parts = {name: part.remove_columns("emotion") for name, part in parts.items()}
        parts["train"] = parts["train"].select([0])
    DatasetDict(parts).save_to_disk(tmp_path / "rows")
    source = {"dataset": tmp_path / "rows", "vision_name_or_path": tower, "store_vision": False}
    short_run(tmp_path, **source, max_steps=2, per_device_train_batch_size=40)
    messages = [record.getMessage() for record in caplog.records if "dataset has no" in record.getMessage()]
    assert len(messages) == 1 and (CAPTIONS[0] if lacking.startswith("captions") else "emotion") in messages[0]
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert all(np.isfinite(value) for value in written.values())
    assert "NaN" not in (tmp_path / "README.md").read_text() and 0 <= written["au_f1_tuned_macro"] <= 1


@pytest.mark.slow
def test_a_few_minutes_teach_what_all_ones_does_not_know(tmp_path: Path) -> None:
    """Always answering yes has about 0.40 macro F1 on these faces, and the most frequent emotion 0.13 top-1."""
    longer = ["--style", "drawn", "--num_images", "2400", "--use_cpu", "True", "--disable_tqdm", "True"]
    tower = train.main(["--task", "tower_by_labels", *longer, "--output_dir", str(tmp_path / "tower")])
    assert tower["au_f1_macro"] > 0.6 and tower["emotion_top1"] > 0.35
    vision = ["--vision_name_or_path", str(tmp_path / "tower")]
    whole = train.main([*vision, *longer, "--store_vision", "True", "--output_dir", str(tmp_path / "mf2")])
    assert whole["au_f1_macro"] > 0.6 and whole["emotion_top1"] > 0.35


@pytest.mark.usefixtures("training_alone")
def test_folds_are_averaged_with_their_spread(tmp_path: Path) -> None:
    figures = short_run(tmp_path, task="full", folds=2)
    folds = [tmp_path / f"fold_{number}" for number in (1, 2)]
    found = [json.loads((fold / "metrics.json").read_text()) for fold in folds]
    assert sum(one["test_images"] for one in found) == 96
    for name in ("emotion_top1", "au_f1_macro"):
        values = [one[name] for one in found]
        assert (figures[name], figures[f"{name}/sd"]) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert json.loads((tmp_path / "metrics.json").read_text())["emotion_top1"] == figures["emotion_top1"]
    assert "2 folds of people" in (tmp_path / "metrics.txt").read_text()
    assert "| fold tested on | 2 of 2 |" in (folds[1] / "README.md").read_text()
