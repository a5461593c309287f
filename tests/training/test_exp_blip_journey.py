"""Exp-BLIP by train.py: captions teach its features, which then write captions and answer for labels."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import train
from mf2face.data.synthetic.faces import MFASynthetic
from mf2face.training import exp_blip as exp_blip_journey
from mf2face.training.exp_blip import WRITTEN, kind_of_checkpoint
from mf2face.training.language import CAPTION_FIGURES
from modeling_mf2 import ExpBlipForFaceAnalysis, ExpBlipForPreTraining


SMALL = ["--model", "exp_blip", "--num_images", "64", "--use_cpu", "True", "--disable_tqdm", "True", "--max_steps", "2"]
SMALL += ["--logging_steps", "1", "--per_device_train_batch_size", "16", "--eval_strategy", "steps", "--warmup_steps"]
SMALL += ["0", "--eval_steps", "2", "--save_strategy", "steps", "--save_steps", "2"]


def run(folder: Path, task: str, *more: str) -> dict[str, float]:
    return train.main(["--task", task, "--output_dir", str(folder), *SMALL, *more])


@pytest.fixture(scope="module")
def stage_one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exp_blip") / "one"
    run(folder, "pretrain", "--caption_set", "cat")
    return folder


def test_stage_one_learns_from_its_own_captions_alone(stage_one: Path) -> None:
    model = ExpBlipForPreTraining.from_pretrained(stage_one)
    assert model.config.caption_set == "cat" and kind_of_checkpoint(str(stage_one)) == "stage one"
    (log,) = stage_one.glob("checkpoint-*/trainer_state.json")
    logged = json.loads(log.read_text())["log_history"][0]
    assert {"itc_emo", "itm_emo", "itg_emo"} <= set(logged) and not {"au", "emotion", "itc_au"} & set(logged)
    card = (stage_one / "README.md").read_text()
    assert "Its stage 1" not in card and "stage 1" in card and "`cat`" in card and "synthetic" in card.lower()
    with pytest.raises(ValueError, match="is Exp-BLIP's stage 1, which answers nothing"):
        run(stage_one.parent / "no", "evaluate", "--model_name_or_path", str(stage_one))
    with pytest.raises(ValueError, match=r"caption_set: got 'au', but .* was trained with 'cat'"):
        run(stage_one.parent / "no", "caption", "--model_name_or_path", str(stage_one), "--caption_set", "au")


def test_a_run_that_could_not_save_its_weights_does_not_look_finished(tmp_path: Path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(exp_blip_journey._StageOne, "save", full)  # of the end; its checkpoints are whole
        with pytest.raises(OSError, match="No space left"):
            run(tmp_path, "pretrain")
    assert not (tmp_path / "metrics.json").exists()
    run(tmp_path, "pretrain")
    assert (tmp_path / "metrics.json").is_file() and (tmp_path / "model.safetensors").is_file()


def test_stage_two_writes_captions_that_are_kept_and_scored(stage_one: Path, tmp_path: Path) -> None:
    pytest.importorskip("sacrebleu")
    figures = run(tmp_path / "two", "caption", "--model_name_or_path", str(stage_one))
    lines = [json.loads(line) for line in (tmp_path / "two" / WRITTEN).read_text().splitlines()]
    assert len(lines) == figures["test_images"] and all(line["of_the_labels"] for line in lines)
    assert set(CAPTION_FIGURES) <= set(figures) and figures["caption_pairs"] == len(lines)
    card = (tmp_path / "two" / "README.md").read_text()
    assert all(f"`{name}`" in card for name in CAPTION_FIGURES) and "load_captioner" in card
    again = run(tmp_path / "again", "evaluate", "--model_name_or_path", str(tmp_path / "two"))
    assert {name: again[name] for name in CAPTION_FIGURES} == {name: figures[name] for name in CAPTION_FIGURES}
    # Its features are classified by, too.
    probe = run(tmp_path / "probe", "linear_probe", "--model_name_or_path", str(tmp_path / "two"))
    assert 0 <= probe["emotion_top1"] <= 1


@pytest.mark.parametrize(("task", "features"), [("linear_probe", "vision"), ("full", "qformer")])
def test_features_are_classified_by(stage_one: Path, tmp_path: Path, task: str, features: str) -> None:
    figures = run(tmp_path / "out", task, "--model_name_or_path", str(stage_one), "--features", features)
    model = ExpBlipForFaceAnalysis.from_pretrained(tmp_path / "out")
    assert model.config.features == features and model.config.au_thresholds
    before, after = (load_file(folder / "model.safetensors") for folder in (stage_one, tmp_path / "out"))
    moved = {name.split(".")[1] for name in after if name in before and not torch.equal(before[name], after[name])}
    assert moved == (set() if task == "linear_probe" else {"vision", "emo_vl"})
    again = run(tmp_path / "again", "evaluate", "--model_name_or_path", str(tmp_path / "out"))
    assert again["au_f1_tuned_macro"] == figures["au_f1_tuned_macro"]


def test_what_is_missing_is_named(stage_one: Path, tmp_path: Path) -> None:
    for task in ("caption", "full"):
        with pytest.raises(ValueError, match="model_name_or_path: got none"):
            run(tmp_path / "no", task)
    MFASynthetic(40, size=64).save_to_disk(tmp_path / "rows")
    with pytest.raises(ValueError, match="no column exp_blip_exp, which Exp-BLIP learns from"):
        run(tmp_path / "no", "pretrain", "--dataset", str(tmp_path / "rows"))
    with pytest.raises(ValueError, match="task: got caption with --model mf2"):
        train.main(["--task", "caption"])
