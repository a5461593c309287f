"""The model that is asked, its adapter's own thresholds, and what it was trained on, from its files."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from analysis_media import embedded, write_faces
from conftest import tiny_config
from peft import LoraConfig, get_peft_model

from mf2face.inference.cli import main
from mf2face.inference.model import EMBEDDED, load_model
from modeling_mf2 import MF2ForPreTraining
from processing_mf2 import MF2Processor, build_tokenizer


def test_the_embedded_model_says_that_it_is_synthetic() -> None:
    model = embedded()
    assert model.name == "mf2-tiny-rendered" and model.synthetic is True and "synthetic" in model.trained_on
    columns = model.columns(caption=False)
    assert columns.action_units == tuple(json.loads((EMBEDDED / "config.json").read_text())["action_units"])
    assert columns.emotions[0] == "Neutral" and not columns.caption
    model.check_caption()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, tokenizer = tmp_path_factory.mktemp("base"), build_tokenizer()
    qformer = {"vocab_size": len(tokenizer), "max_position_embeddings": 192}
    config = tiny_config(qformer=qformer, emotion_max_length=61, au_max_length=169, use_emo_branch=False, emotions=[])
    MF2Processor.for_model(config, tokenizer).save_pretrained(folder)
    MF2ForPreTraining(config).save_pretrained(folder)
    return folder


def test_a_model_of_your_own_says_what_its_files_say(base: Path) -> None:
    model = load_model(base, device="cpu")
    assert model.synthetic is None and "do not say" in model.trained_on and model.columns(False).emotions == ()
    with pytest.raises(ValueError, match="no branch that writes"):
        model.check_caption()
    for synthetic in (True, False):
        (base / "run.json").write_text(json.dumps({"synthetic": synthetic}))
        assert load_model(base, device="cpu").synthetic is synthetic
    (base / "run.json").unlink()
    (base / "README.md").write_text("---\ntags:\n- mf2\n- synthetic\n---\n# card\n")
    assert load_model(base, device="cpu").synthetic is True
    (base / "README.md").unlink()


def test_an_adapter_finds_its_base_and_brings_its_thresholds(base: Path, tmp_path: Path) -> None:
    wrapped = get_peft_model(
        MF2ForPreTraining.from_pretrained(base), LoraConfig(target_modules=r".*au_vl.*cross_attention\.q_proj")
    )
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora_B" in name:
                weight += 0.5
    wrapped.save_pretrained(tmp_path)
    processor = MF2Processor.from_pretrained(base)
    processor.au_thresholds = [0.1, 0.2, 0.3]
    processor.save_pretrained(tmp_path)
    (tmp_path / "run.json").write_text('{"synthetic": true}')
    for given in (None, base):
        model = load_model(given, tmp_path, "cpu")
        assert model.pipeline.processor.au_thresholds == [0.1, 0.2, 0.3]
        assert model.synthetic is True and model.adapter == str(tmp_path) and model.name == str(base)
    face = torch.zeros(64, 64, 3, dtype=torch.uint8)
    answers = [
        one.pipeline(face)[0]["action_units"]["AU6"]["probability"] for one in (model, load_model(base, device="cpu"))
    ]
    assert answers[0] != pytest.approx(answers[1], abs=1e-6)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"cut")
    with pytest.raises(OSError, match="damaged or cut short"):
        load_model(None, tmp_path)


def each(damages: dict[str, list[bytes]]) -> list[tuple[str, bytes]]:
    return [(name, content) for name, contents in damages.items() for content in contents]


MF2 = b'{"model_type": "mf2", '
DAMAGED_FOLDERS = {
    "config.json": [
        b"{",
        b"[]",
        MF2 + b'"vision_config": 7}',
        MF2 + b'"region_grid": "two"}',
        b'{"model_type": "bert"}',
    ],
    "processor_config.json": [b"[]", b'{"au_thresholds": "high"}', b'{"image_processor": 7}'],
    "tokenizer.json": [b"{}", b"{"],
    "model.safetensors": [b"", b"\xff" * 100],
    "run.json": [b"[]", b"7"],
}
LORA = b'{"peft_type": "LORA", '
DAMAGED_ADAPTERS = {
    "adapter_config.json": [
        *(b"{", b"[" * 100_000, b"[]", b"{}", b'{"peft_type": 7}', b'{"peft_type": ["LORA"]}'),
        LORA + b'"r": "eight", "base_model_name_or_path": null}',
        LORA + b'"base_model_name_or_path": 7}',
    ],
    "adapter_model.safetensors": [b"", b"\xff" * 100],
}


@pytest.mark.parametrize(("name", "content"), each(DAMAGED_FOLDERS))
def test_a_damaged_folder_ends_the_command_with_a_sentence(base, tmp_path, name, content, capsys):
    there = shutil.copytree(base, tmp_path / "model")
    (there / name).write_bytes(content)
    (face,) = write_faces(tmp_path, 1)
    assert main([str(face), "--aligned", "--model", str(there)]) == (0 if name == "run.json" else 2)
    assert "Traceback" not in capsys.readouterr().err


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    wrapped = get_peft_model(MF2ForPreTraining.from_pretrained(base), LoraConfig(target_modules=r".*au_vl.*q_proj"))
    wrapped.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("name", "content"), each(DAMAGED_ADAPTERS))
def test_a_damaged_adapter_ends_the_command_with_a_sentence(base, adapter, tmp_path, name, content, capsys):
    there = shutil.copytree(adapter, tmp_path / "adapter")
    (there / name).write_bytes(content)
    (face,) = write_faces(tmp_path, 1)
    for model in (["--model", str(base)], []):
        assert main([str(face), "--aligned", *model, "--adapter", str(there)]) == 2
        told = capsys.readouterr().err
        assert "Traceback" not in told
        assert b"base_model" in content or f"{name}: " in told


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"use_dora": "1"}, r"adapter_config.json: use_dora: got '1'"),
        ({"use_rslora": float("inf")}, r"adapter_config.json: use_rslora: got inf"),
        ({"megatron_config": -1}, "adapter_config.json"),
        ({"target_modules": "nothing"}, "adapter_config.json"),
        ({}, "adapter_model.safetensors: a folder"),
    ],
)
def test_an_adapter_that_peft_cannot_load_is_named(base, adapter, tmp_path, fields, named):
    there = shutil.copytree(adapter, tmp_path / "adapter")
    config, weights = there / "adapter_config.json", there / "adapter_model.safetensors"
    config.write_text(json.dumps({**json.loads(config.read_text()), **fields}))
    if not fields:
        weights.unlink()
        weights.mkdir()
    with pytest.raises((ValueError, OSError), match=named):
        load_model(base, there)


def test_labels_of_the_processor_are_the_model_s(tmp_path: Path) -> None:
    shutil.copytree(EMBEDDED, tmp_path / "model")
    for name in ("processor_config.json", "config.json"):
        file = tmp_path / "model" / name
        whole = file.read_text()
        fields = {key: value for key, value in json.loads(whole).items() if key not in ("conformal", "grades")}
        file.write_text(json.dumps({**fields, "emotions": ["1", *fields["emotions"][1:]]}))
        with pytest.raises(ValueError, match=r"processor_config.json has emotions .* config.json"):
            load_model(tmp_path / "model")
        file.write_text(whole)
    load_model(tmp_path / "model")
