"""Exp-BLIP: its stages by train.py, captioner and classifier as saved and loaded, and how captions are learned."""

import json
from pathlib import Path

import pytest
import torch
from conftest import assert_same, shake, tiny_config
from exp_blip_models import SMALL_TOWERS, TOKENS, small_config, small_opt
from safetensors.torch import load_file
from short_runs import history, short_run
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, TrainingArguments

from configuration_mf2.facs import LABEL_SETS
from mf2face.training import build as training_build
from mf2face.training import run as training_run
from mf2face.training.arguments import parse_arguments
from mf2face.training.build import Parts, build_model, save_parts, trained_task, with_sources
from mf2face.training.checkpoints import last_good_checkpoint
from mf2face.training.exp_blip import (
    WRITTEN,
    CaptionedFaces,
    build_captioner,
    build_classifier,
    caption_inputs,
    caption_trainer,
    load_captioner,
    load_language_model,
    random_language_model,
    write_captions,
)
from mf2face.training.language import CAPTION_FIGURES
from modeling_mf2 import ExpBlipForFaceAnalysis, ExpBlipForPreTraining, MF2ForPreTraining
from modeling_mf2.baselines.exp_blip import generate_captions, to_blip2
from processing_mf2.processing_mf2 import MF2Processor
from processing_mf2.tokenizer import build_tokenizer


pytestmark = pytest.mark.usefixtures("training_alone")

VIT = {"backbone": "vit_tiny_patch16_224", "num_prefix_tokens": 1, "image_size": 112, "hidden_size": 32}
VIT |= {"patch_size": 16, "backbone_kwargs": {"embed_dim": 32, "depth": 1, "num_heads": 2}}


def run(folder: Path, task: str, source: Path | None = None, **options: object) -> dict[str, float]:
    options = {"num_images": 64, "max_steps": 2, "model_name_or_path": source, **options}
    return short_run(folder, model="exp_blip", task=task, **options)


def built(*options: str) -> Parts:
    return build_model(with_sources(parse_arguments(["--model", "exp_blip", "--task", "pretrain", *options])))


@pytest.fixture(scope="module")
def stage_one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained folder for each tower, and one that train.py wrote."""
    folder = tmp_path_factory.mktemp("stage_one")
    torch.manual_seed(0)
    for name, vision in (("conv", {}), ("vit", VIT)):
        options = ["--vision_name_or_path", "none", "--model_options", f"vision_config={json.dumps(vision)}"]
        parts = built("--caption_set", "au", *options)
        shake(parts.model)
        save_parts(folder / name, parts)
    run(folder / "trained", "pretrain", caption_set="cat")
    return folder


@pytest.fixture(scope="module")
def opt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretrained OPT as the Hub has them: byte pairs, one token for start and end, and rows that no word has."""
    folder = tmp_path_factory.mktemp("opt")
    words = ["<s>", "<pad>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    plain = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, [], unk_token="<unk>"))
    plain.pre_tokenizer, plain.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=plain, **special).save_pretrained(folder)
    small_opt(len(words) + 8).save_pretrained(folder)
    return folder


def test_stage_one_learns_from_its_own_captions_alone(stage_one: Path, tmp_path: Path) -> None:
    folder = stage_one / "trained"
    assert ExpBlipForPreTraining.from_pretrained(folder).config.caption_set == "cat"
    assert trained_task(str(folder), "exp_blip") == "pretrain"
    logged = history(folder)[0]
    assert {"itc_emo", "itm_emo", "itg_emo"} <= set(logged) and not {"au", "emotion", "itc_au"} & set(logged)
    card = (folder / "README.md").read_text()
    assert "Its stage 1" not in card and "stage 1" in card and "`cat`" in card and "synthetic" in card.lower()
    with pytest.raises(ValueError, match="is Exp-BLIP's stage 1, which answers nothing"):
        run(tmp_path, "evaluate", folder)
    with pytest.raises(ValueError, match=r"caption_set: got 'au', but .* was trained with 'cat'"):
        run(tmp_path, "caption", folder, caption_set="au")


def test_a_run_that_could_not_save_its_weights_does_not_look_finished(tmp_path: Path, monkeypatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(training_run, "save_parts", full)
        with pytest.raises(OSError, match="No space left"):
            run(tmp_path, "pretrain")
    assert not (tmp_path / "metrics.json").exists()
    run(tmp_path, "pretrain")
    assert (tmp_path / "metrics.json").is_file() and (tmp_path / "model.safetensors").is_file()


def test_stage_two_writes_captions_that_are_kept_and_scored(stage_one: Path, tmp_path: Path) -> None:
    pytest.importorskip("sacrebleu")
    figures = run(tmp_path / "two", "caption", stage_one / "trained")
    lines = [json.loads(line) for line in (tmp_path / "two" / WRITTEN).read_text().splitlines()]
    assert len(lines) == figures["test_images"] and all(line["of_the_labels"] for line in lines)
    assert set(CAPTION_FIGURES) <= set(figures) and figures["caption_pairs"] == len(lines)
    card = (tmp_path / "two" / "README.md").read_text()
    assert all(f"`{name}`" in card for name in CAPTION_FIGURES) and "load_captioner" in card
    again = run(tmp_path / "again", "evaluate", tmp_path / "two")
    assert {name: again[name] for name in CAPTION_FIGURES} == {name: figures[name] for name in CAPTION_FIGURES}
    probe = run(tmp_path / "probe", "linear_probe", tmp_path / "two")
    assert 0 <= probe["emotion_top1"] <= 1


@pytest.mark.parametrize(("task", "features"), [("linear_probe", "vision"), ("full", "qformer")])
def test_features_are_classified(stage_one: Path, tmp_path: Path, task: str, features: str) -> None:
    source = stage_one / "trained"
    figures = run(tmp_path / "out", task, source, features=features)
    model = ExpBlipForFaceAnalysis.from_pretrained(tmp_path / "out")
    assert model.config.features == features and model.config.au_thresholds
    before, after = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "out"))
    moved = {name.split(".")[1] for name in after if name in before and not torch.equal(before[name], after[name])}
    assert moved == (set() if task == "linear_probe" else {"vision", "emo_vl"})
    again = run(tmp_path / "again", "evaluate", tmp_path / "out")
    assert again["au_f1_tuned_macro"] == figures["au_f1_tuned_macro"]
    reloaded, processor, _ = build_classifier(tmp_path / "out", features=features)
    assert torch.equal(reloaded.classifiers.units.weight, model.classifiers.units.weight)
    assert processor.au_thresholds == model.config.au_thresholds
    with pytest.raises(ValueError, match=f"features: got .*, but the heads of .* were trained on '{features}'"):
        build_classifier(tmp_path / "out", features="vision" if features == "qformer" else "qformer")


@pytest.mark.parametrize("task", ["linear_probe", "full"])
def test_an_image_encoder_is_read_before_it_saw_a_caption(tmp_path: Path, task: str, monkeypatch) -> None:
    vision = {"image_size": 64, "hidden_size": 32, "patch_size": 16, **SMALL_TOWERS["vit"]}
    donor = shake(ExpBlipForPreTraining(small_config("vit")), seed=3).mf2.vision
    mae = {name.removeprefix("backbone."): tensor for name, tensor in donor.state_dict().items()}
    torch.save(
        {"model": mae | {"mask_token": torch.ones(1), "decoder_embed.bias": torch.ones(2)}}, tmp_path / "mae.pth"
    )
    options = ["--features", "vision", "--model_options", f"vision_config={json.dumps(vision)}"]

    def classifier(tower: str) -> Parts:
        given = ["--model", "exp_blip", "--task", task, *options, "--vision_name_or_path", tower]
        return build_model(with_sources(parse_arguments(given)))

    model, processor, _ = classifier(str(tmp_path / "mae.pth"))
    assert isinstance(model, ExpBlipForFaceAnalysis) and model.config.features == "vision"
    assert model.config.frozen_features == model.config.vision_config.frozen == (task == "linear_probe")
    assert_same(model.mf2.vision.state_dict(), donor.state_dict())
    assert list(processor.image_processor.image_mean) == [0.5] * 3
    monkeypatch.setattr(training_build, "load_vision_weights", lambda model, tower: tower)
    options = ["--features", "vision", "--model_options", f"vision_config={json.dumps(VIT)}"]
    named = classifier("vit_base_patch16_224.mae").processor.image_processor
    assert list(named.image_mean) == [0.485, 0.456, 0.406] and list(named.image_std) == [0.229, 0.224, 0.225]


def test_stage_one_is_built_as_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = ["--label_set", "disfa", "--caption_set", "mix", "--vision_name_or_path", "none"]
    model, processor, _ = built(*options, "--model_options", 'vision_config={"frozen": false}')
    assert "random weights" in caplog.text and model.config.caption_set == "mix"
    assert not model.config.vision_config.frozen and built().model.config.vision_config.frozen
    assert tuple(processor.action_units) == LABEL_SETS["disfa"].action_units
    donor = shake(MF2ForPreTraining(tiny_config("vit")), seed=3)
    donor.mf2.vision.save_pretrained(tmp_path / "tower")
    config = json.dumps(donor.config.vision_config.to_dict())
    model = built("--model_options", f"vision_config={config}", "--vision_name_or_path", str(tmp_path / "tower")).model
    theirs = donor.mf2.vision.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in model.mf2.vision.state_dict().items())


def test_a_pretrained_opt_keeps_its_words_and_weights(stage_one: Path, opt: Path, tmp_path: Path) -> None:
    words, _ = load_language_model(opt)
    captioner, processor, tokenizer = parts = build_captioner(stage_one / "conv", opt)
    for name, tensor in words.state_dict().items():
        assert torch.equal(captioner.language_model.state_dict()[name], tensor), name
    assert not captioner.config.fresh_language_model and captioner.config.image_token_index == len(tokenizer)
    inputs = caption_inputs(captioner, tokenizer, ["joy"])
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"][0]
    assert inputs["labels"][0, -1] == newline == captioner.generation_config.eos_token_id
    assert tokenizer.decode(inputs["labels"][0, -4:-1]) == "joy"
    save_parts(tmp_path, parts)
    again, processor, tokenizer_again = load_captioner(tmp_path)
    images, settings = torch.randn(2, 3, 112, 112), {"max_new_tokens": 4, "num_beams": 2}
    assert torch.equal(generate_captions(again, images, **settings), generate_captions(captioner, images, **settings))
    assert tokenizer_again.get_vocab() == tokenizer.get_vocab() != processor.tokenizer.get_vocab()
    assert torch.equal(again.language_model.lm_head.weight, captioner.language_model.lm_head.weight)


@pytest.mark.parametrize("features", ["vision", "qformer"])
@pytest.mark.parametrize("tower", ["conv", "vit"])
def test_a_classifier_reads_the_features_of_either_stage(tower: str, features: str, stage_one: Path, tmp_path) -> None:
    parts = build_captioner(stage_one / tower)
    captioner = shake(parts.model, 0.02)
    save_parts(tmp_path, parts)
    images, outputs = torch.randn(2, 3, 112, 112), {}
    for name, source in (("one", stage_one / tower), ("two", tmp_path)):
        model, processor, _ = build_classifier(source, features=features, label_set="disfa")
        assert tuple(processor.action_units) == tuple(model.config.action_units) == LABEL_SETS["disfa"].action_units
        assert model.config.caption_set == "au" and model.config.emotions == []
        outputs[name] = model.features(images)
    assert not torch.allclose(outputs["one"], outputs["two"], atol=1e-3)
    with torch.no_grad():
        seen = captioner.eval().get_image_features(images, return_dict=True)
    tokens = seen.last_hidden_state[:, 1:] if tower == "vit" else seen.last_hidden_state
    expected = tokens if features == "vision" else seen.qformer_outputs.last_hidden_state
    assert torch.allclose(outputs["two"], expected.mean(dim=1), atol=1e-5)
    for probe in (True, False):
        model = build_classifier(stage_one / tower, features=features, linear_probe=probe).model.train()
        assert any(p.requires_grad for name, p in model.named_parameters() if ".vision." in name) != probe


def test_checkpoints_of_another_kind_are_refused(stage_one: Path, opt: Path, tmp_path: Path) -> None:
    MF2ForPreTraining(tiny_config()).save_pretrained(tmp_path / "mf2")
    MF2Processor.from_pretrained(stage_one / "conv").save_pretrained(tmp_path / "mf2")
    (tmp_path / "blip2").mkdir()
    (tmp_path / "blip2" / "config.json").write_text(json.dumps({"model_type": "blip-2"}))
    GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=9)).save_pretrained(tmp_path / "gpt2")
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_text((opt / "config.json").read_text())
    torch.save(small_opt().state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    cases = [
        (lambda: build_classifier(tmp_path / "mf2"), "is a checkpoint of 'mf2', expected one of Exp-BLIP"),
        (lambda: build_classifier(tmp_path / "blip2"), "is a checkpoint of 'blip-2', expected one of Exp-BLIP"),
        (lambda: build_captioner(tmp_path / "mf2"), "is a checkpoint of 'mf2', expected one of 'exp_blip'"),
        (lambda: load_captioner(stage_one / "conv"), "is a checkpoint of 'exp_blip', expected a captioner"),
        (lambda: load_captioner(tmp_path / "blip2"), "is a checkpoint of 'blip-2', expected a captioner"),
        (lambda: built("--model_name_or_path", str(tmp_path / "mf2")), "is a checkpoint of 'mf2'"),
        (lambda: built("--model_name_or_path", str(stage_one / "conv"), "--caption_set", "exp"), "trained with 'au'"),
        (lambda: built("--label_set", "nobody"), "label_set"),
        (lambda: load_language_model(tmp_path / "gpt2"), "is a 'gpt2', expected an OPT"),
        (lambda: load_language_model(tmp_path / "pickled"), r"has no model\.safetensors .*pickled"),
    ]
    for attempt, message in cases:
        with pytest.raises(ValueError, match=message):
            attempt()


TEXTS = ("The face shows joy.", "It drops its jaw and looks sad.")


class Shades(Dataset):
    """Light faces and dark ones."""

    def __init__(self, rows: int = 16) -> None:
        self.rows = rows

    def set_epoch(self, epoch: int) -> None: ...

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        noise = 0.1 * torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(index))
        return {"pixel_values": (1.0 if index % 2 else -1.0) + noise}

    def __getitems__(self, indexes: list[int]) -> list[dict[str, torch.Tensor]]:
        return [self[index] for index in indexes]


def captioner_parts(tower: str = "conv", fresh: bool = True) -> Parts:
    tokenizer = build_tokenizer(TEXTS)
    sizes = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64, "max_position_embeddings": 64}
    words = random_language_model(tokenizer, **sizes)
    tokens = {"start_token_id": tokenizer.bos_token_id, "end_token_id": tokenizer.sep_token_id, "pad_token_id": 0}
    model = ExpBlipForPreTraining(small_config(tower))
    captioner = to_blip2(model, words, **tokens, image_token_id=len(tokenizer), max_new_tokens=24)
    captioner.config.fresh_language_model = fresh
    return Parts(captioner, None, tokenizer)


def arguments(folder: Path, **fields: object) -> TrainingArguments:
    settings = {"use_cpu": True, "disable_tqdm": True, "logging_steps": 1, "save_strategy": "no", "report_to": []}
    settings |= {"remove_unused_columns": False, "per_device_train_batch_size": 8}
    return TrainingArguments(str(folder), **{**settings, **fields})


def faces(rows: int = 16) -> CaptionedFaces:
    return CaptionedFaces(Shades(rows), [TEXTS[index % 2] for index in range(rows)])


def test_inputs_are_a_place_for_each_query_then_the_start_and_the_caption() -> None:
    tokenizer = build_tokenizer(TEXTS)
    captioner = to_blip2(ExpBlipForPreTraining(small_config()), small_opt(), **TOKENS, max_new_tokens=5)
    inputs = caption_inputs(captioner, tokenizer, ["joy", "The face shows joy."])
    joy, *words = (tokenizer.convert_tokens_to_ids(word) for word in ("joy", "the", "face", "shows", "joy", "."))
    assert inputs["input_ids"].tolist() == [[40, 40, 40, 5, joy, 3, 0, 0, 0], [40, 40, 40, 5, *words[:4], 3]]
    skipped = [-100] * 4
    assert inputs["labels"].tolist() == [[*skipped, joy, 3, -100, -100, -100], [*skipped, *words[:4], 3]], "cut to 5"
    assert inputs["attention_mask"].tolist() == [[1] * 6 + [0] * 3, [1] * 9]
    captioner, _, tokenizer = captioner_parts()
    image = Shades()[0]["pixel_values"][None]
    alone = caption_inputs(captioner, tokenizer, TEXTS[:1])
    padded = {name: tensor[:1] for name, tensor in caption_inputs(captioner, tokenizer, TEXTS).items()}
    assert padded["input_ids"].shape[1] > alone["input_ids"].shape[1]
    assert torch.allclose(captioner(image, **alone).loss, captioner(image, **padded).loss, atol=1e-5)


def test_stage_two_learns_to_describe_what_it_sees(tmp_path: Path) -> None:
    settings = {"learning_rate": 1e-2, "max_steps": 30, "lr_scheduler_type": "cosine"}
    trainer = caption_trainer(parts := captioner_parts(), arguments(tmp_path, **settings), faces(), faces(4))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.2 * losses[0], losses
    assert trainer.evaluate()["eval_loss"] < 0.5
    assert write_captions(parts, Shades(6), batch_size=4) == [TEXTS[index % 2].lower() for index in range(6)]


@pytest.mark.parametrize("tower", ["conv", "vit"])
def test_a_pretrained_language_model_stays_as_it_is(tower: str, tmp_path: Path) -> None:
    parts = captioner_parts(tower, fresh=False)
    before = {name: tensor.clone() for name, tensor in parts.model.state_dict().items()}
    caption_trainer(parts, arguments(tmp_path, max_steps=1, learning_rate=1e-2), faces()).train()
    after = parts.model.state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(after[name], before[name])}
    assert changed == {"query_tokens", "qformer", "language_projection", "vision_model"}


def test_a_resumed_run_and_micro_batches_end_like_a_whole_run(tmp_path: Path) -> None:
    ends, losses = [], []
    for name, stops, micro in (("whole", [4], 1), ("pieces", [2, 4], 2)):
        for stop in stops:
            settings = {"save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "constant", "max_steps": stop}
            settings |= {"per_device_train_batch_size": 8 // micro, "gradient_accumulation_steps": micro}
            torch.manual_seed(0)
            parts = captioner_parts("vit")
            trainer = caption_trainer(parts, arguments(tmp_path / name, **settings, learning_rate=1e-3), faces())
            trainer.train(resume_from_checkpoint=last_good_checkpoint(tmp_path / name))
            assert trainer.state.global_step == stop
        ends.append(parts.model.state_dict())
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    for name, tensor in ends[0].items():
        assert torch.allclose(tensor, ends[1][name], atol=2e-4), name


def test_faces_without_a_caption_are_left_out() -> None:
    captioned = CaptionedFaces(Shades(4), ["", TEXTS[0], "", TEXTS[1]])
    assert [example["caption"] for example in captioned] == list(TEXTS)
    assert torch.equal(captioned[1]["pixel_values"], Shades()[3]["pixel_values"])
    with pytest.raises(ValueError, match="captions: got 3, expected 4"):
        CaptionedFaces(Shades(4), [*TEXTS, ""])
    with pytest.raises(ValueError, match="captions: got none"):
        CaptionedFaces(Shades(4), [""] * 4)
