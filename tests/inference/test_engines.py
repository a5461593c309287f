"""The command and `analyze` give the same rows by onnxruntime as by torch, and never those of another checkpoint."""

import csv
import importlib
import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from analysis_media import write_faces
from conftest import shake, tiny_config

from mf2face import analyze
from mf2face.files import cache_folder
from mf2face.inference.cli import main
from mf2face.inference.engine import ENGINES
from mf2face.inference.model import load_model
from modeling_mf2 import MF2ForPreTraining
from modeling_mf2.export import FILE, INT8_FILE
from processing_mf2 import MF2Processor, build_tokenizer


pytest.importorskip("onnx"), pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")


def checkpoint(folder: Path, seed: int = 7, **fields: object) -> None:
    tokenizer = build_tokenizer()
    qformer = {"vocab_size": len(tokenizer), "max_position_embeddings": 192, "num_hidden_layers": 2}
    config = tiny_config(qformer=qformer, emotion_max_length=61, au_max_length=169, **fields)
    MF2Processor.for_model(config, tokenizer).save_pretrained(folder)
    shake(MF2ForPreTraining(config), seed=seed).save_pretrained(folder)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Module-wide, so that the export is done once."""
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(folder)
    yield folder
    os.environ.pop("XDG_CACHE_HOME")
    if before is not None:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    folder = tmp_path_factory.mktemp("here")
    write_faces(folder / "in", 5)
    checkpoint(folder / "model")
    return folder


def rows_by(place: Path, engine: str, out: Path) -> list[dict[str, str]]:
    arguments = [str(place / "in"), "--aligned", "--model", str(place / "model"), "--engine", engine, "-o", str(out)]
    assert main(arguments) == 0
    with open(out) as file:
        return list(csv.DictReader(file))


def differences(first: list[dict[str, str]], second: list[dict[str, str]]) -> float:
    worst = 0.0
    assert len(first) == len(second) == 5
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys() and one["input"] == other["input"]
        for name in one:
            if name.startswith("AU") and not name.endswith("_c"):
                worst = max(worst, abs(float(one[name]) - float(other[name])))
    return worst


def test_the_command_gives_the_same_rows_and_exports_once(place: Path, tmp_path: Path, capsys) -> None:
    by_torch = rows_by(place, "torch", tmp_path / "torch.csv")
    capsys.readouterr()
    assert differences(by_torch, rows_by(place, "onnx", tmp_path / "onnx.csv")) < 1e-5
    assert f"exported once, into {cache_folder('engines')}" in capsys.readouterr().err
    assert 0 < differences(by_torch, rows_by(place, "int8", tmp_path / "int8.csv")) < 0.05
    told = capsys.readouterr().err
    assert "8 bits" in told and "exported once" not in told
    rows_by(place, "int8", tmp_path / "again.csv")
    assert "engine" not in capsys.readouterr().err.replace("--engine", "")
    arguments = [str(place / "in"), "--aligned", "--model", str(place / "model"), "-o", str(tmp_path / "int8.csv")]
    assert main(arguments) == 4, "rows of another engine are not mixed in"
    (kept,) = cache_folder("engines").glob("model-*")
    (kept / INT8_FILE).write_bytes(b"cut")
    assert differences(by_torch, rows_by(place, "int8", tmp_path / "mended.csv")) < 0.05


def test_analyze_takes_a_file_beside_the_checkpoint_and_refuses_anothers(place: Path, tmp_path: Path) -> None:
    load_model(place / "model", engine="int8")
    (made,) = cache_folder("engines").glob("model-*")
    there = shutil.copytree(place / "model", tmp_path / "model")
    for name in (FILE, INT8_FILE):
        shutil.copy(made / name, there)
    path, kept = place / "in" / "face-000.png", sorted(cache_folder("engines").rglob("*.onnx"))
    found = {engine: analyze(path, engine=engine, model=there, aligned=True).rows[0] for engine in ENGINES}
    assert found["onnx"]["AU06"] == pytest.approx(found["torch"]["AU06"], abs=1e-5)
    assert found["int8"]["AU06"] == pytest.approx(found["torch"]["AU06"], abs=0.05)
    assert sorted(cache_folder("engines").rglob("*.onnx")) == kept, "nothing had to be exported"
    with pytest.raises(ValueError, match="caption: got engine 'onnx', expected 'torch'"):
        analyze(path, engine="onnx", caption=True, model=there, aligned=True)
    checkpoint(there, seed=4)
    with pytest.raises(
        ValueError, match=r"model.onnx is not of the checkpoint .* weights: got .*export the checkpoint"
    ):
        analyze(path, engine="onnx", model=there, aligned=True)
    checkpoint(there, action_units=["AU1", "AU12", "AU25"])
    with pytest.raises(
        ValueError, match=r"action_units: got \['AU1', 'AU6', 'AU25'\], expected \['AU1', 'AU12', 'AU25'\]"
    ):
        analyze(path, engine="int8", model=there, aligned=True)


def test_an_engine_uses_as_many_threads_as_torch_and_only_a_cpu(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(place / "model", device="cpu", engine="onnx")
    assert model.pipeline.run.get_session_options().intra_op_num_threads == torch.get_num_threads()
    with pytest.raises(ValueError, match="engine, device: got 'onnx' and 'cuda'; expected cpu"):
        load_model(place / "model", device="cuda", engine="onnx")
    with pytest.raises(ValueError, match=r"engine: got 'onx', expected one of \['torch', 'onnx', 'int8'\]"):
        load_model(place / "model", engine="onx")


def test_a_missing_package_ends_the_command_with_a_sentence(place: Path, monkeypatch, capsys) -> None:
    real = importlib.import_module

    def without(name: str, *rest: object) -> object:
        if name.startswith("onnx"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", without)
    assert main([str(place / "in"), "--aligned", "--engine", "onnx"]) == 2
    assert "onnxruntime is not installed" in (told := capsys.readouterr().err) and 'pip install -e ".[export]"' in told


def test_a_file_with_a_flipped_bit_is_refused_wherever_the_bit_is(place: Path, tmp_path: Path) -> None:
    load_model(place / "model", engine="int8")
    (made,) = cache_folder("engines").glob("model-*")
    there = shutil.copytree(place / "model", tmp_path / "model")
    (face,) = write_faces(tmp_path / "one", 1)
    for engine, name in (("onnx", FILE), ("int8", INT8_FILE)):
        content = (made / name).read_bytes()
        for share in (0.01, 0.2, 0.4, 0.6, 0.8, 0.99):
            damaged = bytearray(content)
            damaged[int(share * len(content))] ^= 16
            (there / name).write_bytes(damaged)
            with pytest.raises(ValueError, match=name):
                load_model(there, engine=engine)
        (there / name).write_bytes(content)
        assert analyze(face, engine=engine, model=there, aligned=True).faces == 1


@pytest.mark.parametrize(
    "facts", ["[]", "{}", "7", "{", '{"mf2_version": 1}', '{"mf2_version": "0.1.0", "content": []}']
)
def test_facts_of_a_wrong_type_end_the_command_with_a_sentence(place: Path, tmp_path: Path, facts: str, capsys) -> None:
    import onnx

    load_model(place / "model", engine="onnx")
    (made,) = cache_folder("engines").glob("model-*")
    there = shutil.copytree(place / "model", tmp_path / "model")
    content = onnx.load(made / FILE)
    onnx.helper.set_model_props(content, {"mf2": facts})
    onnx.save(content, there / FILE)
    arguments = [str(place / "in"), "--aligned", "--model", str(there), "--engine", "onnx"]
    assert main(arguments) == 2
    assert FILE in (told := capsys.readouterr().err) and "export" in told


@pytest.mark.parametrize("answer", [float("nan"), None])
def test_an_engine_that_fails_or_gives_no_number_leaves_a_line_of_each_image(
    place: Path, answer: float | None, capsys
) -> None:
    model = load_model(place / "model", device="cpu", engine="onnx")

    class Damaged:
        def run(self, names: list, given: dict) -> list:
            if answer is None:
                raise IndexError("[ONNXRuntimeError] : 1 : FAIL")
            return [np.full((len(given["landmarks"]), 3), answer, np.float32) for _ in names]

    model.pipeline.run = Damaged()
    assert main([str(place / "in"), "--aligned", "--format", "csv"], model=model) == 1
    shown = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(shown.out)))
    assert len(rows) == 5 and "left out, 5 times" in shown.err
    assert all(row["top_emotion"] == "" and row["AU06_c"] == "NaN" for row in rows)
