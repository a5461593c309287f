"""Exported models answer as torch does, say what they are of, and are never half there."""

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import shake, tiny_config
from peft import get_peft_model

from modeling_mf2 import DFNConfig, MF2ForFaceAnalysis, MF2Model, export


pytest.importorskip("onnx"), pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")


Adapted = tuple[torch.nn.Module, Path]
Exported = tuple[MF2ForFaceAnalysis, Path]


def answers_of(file: Path, model: torch.nn.Module, faces: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(torch's, onnxruntime's) of each output."""
    inputs = [value[:faces] for value in export.example_inputs(model, 5)]
    given = {name: value.numpy() for name, value in zip(export.INPUTS, inputs, strict=True)}
    answers = export.session(file).run(None, given)
    with torch.no_grad():
        ours = export.ImageOnly(model.eval())(*inputs)
    return [(first, torch.from_numpy(second)) for first, second in zip(ours, answers, strict=True)]


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    """The hardest of all: with an adapter that reads every block. One without is in test_engines."""
    torch.manual_seed(0)
    details = {"sides": True, "intensities": True, "geometry_token": True, "shape_weight": 2}
    details["au_thresholds"] = [0.2, 0.3, 0.4]
    base = MF2ForFaceAnalysis(tiny_config("vit", qformer={"num_hidden_layers": 2}, **details))
    wrapped = shake(get_peft_model(base, DFNConfig(bottleneck=4))).train()
    return wrapped, export.export_onnx(wrapped, tmp_path_factory.mktemp("onnx"))


@pytest.fixture
def exported(adapted: Adapted) -> Exported:
    return adapted[0].get_base_model(), adapted[1]


def test_onnx_answers_as_torch_for_any_number_of_faces(adapted: Adapted) -> None:
    wrapped, file = adapted
    model = wrapped.get_base_model()
    whole, alone = answers_of(file, model, 5), answers_of(file, model, 1)
    for (ours, theirs), one in zip(whole, alone, strict=True):
        assert ours.shape == theirs.shape and len(ours) == 5 and ours.std() > 1e-3
        torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)
        for answer in one:
            torch.testing.assert_close(answer, ours[:1], atol=1e-4, rtol=1e-4)
    with wrapped.disable_adapter():  # it is in the graph
        assert all((ours - theirs).abs().max() > 1e-3 for ours, theirs in answers_of(file, model, 3))


def test_the_file_says_what_it_is_of_and_nothing_else_is_left(exported: Exported) -> None:
    model, file = exported
    run = export.session(file)
    facts = export.read_facts(run)
    assert facts["action_units"] == ["AU1", "AU6", "AU25"] and facts["emotions"] == ["Neutral", "Happiness", "Other"]
    assert facts["au_thresholds"] == [0.2, 0.3, 0.4] and facts["image_size"] == 64 and facts["precision"] == "float32"
    outputs = ["emotion_logits", "au_logits", "au_side_logits", "au_intensities"]
    assert [value.name for value in run.get_outputs()] == outputs
    assert all(value.shape[0] == "batch" for value in (*run.get_inputs(), *run.get_outputs()))
    assert {path.name for path in file.parent.iterdir()} <= {export.FILE, export.INT8_FILE}
    assert export.weights_mark(model.classifiers.state_dict()) == facts["weights"]
    other = shake(MF2ForFaceAnalysis(model.config), seed=3)
    assert export.weights_mark(other.classifiers.state_dict()) != facts["weights"]


def test_int8_is_smaller_close_and_known_as_such(exported: Exported) -> None:
    model, file = exported
    small = export.quantize_onnx(file)
    assert small.stat().st_size < file.stat().st_size
    facts = export.read_facts(export.session(small))
    assert facts["precision"] == "int8" and facts["action_units"] == ["AU1", "AU6", "AU25"]
    for ours, theirs in answers_of(small, model, 5):
        assert 0 < (ours - theirs).abs().max() < 0.1 * ours.abs().max()


def test_models_and_graphs_that_cannot_be_exported_are_refused(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TypeError, match="got MF2Model, expected MF2ForFaceAnalysis"):
        export.export_onnx(MF2Model(tiny_config()), tmp_path)
    with pytest.raises(ValueError, match=r"got weights of torch.bfloat16, expected torch.float32"):
        export.export_onnx(MF2ForFaceAnalysis(tiny_config()).bfloat16(), tmp_path)
    assert not list(tmp_path.iterdir())
    (model, file), real = exported, export.session
    monkeypatch.setattr(export, "session", lambda _: real(file))  # of other weights
    with pytest.raises(RuntimeError, match=r"differs from torch by .*nothing was written"):
        export.check_equal(shake(MF2ForFaceAnalysis(model.config), seed=3), file)


def test_what_is_missing_or_damaged_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cut.onnx").write_bytes(b"\x08\x0a\x12")
    with pytest.raises(ValueError, match=r"cut.onnx: onnxruntime cannot read it .*export it again"):
        export.session(tmp_path / "cut.onnx")
    with pytest.raises(FileNotFoundError, match=r"gone\.onnx"):
        export.session(tmp_path / "gone.onnx")
    real = importlib.import_module

    def without(name: str, *rest: object) -> object:
        if name.startswith("onnx"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(ImportError, match=r'onnxscript is not installed .*pip install -e "\.\[export\]"'):
        export.export_onnx(MF2ForFaceAnalysis(tiny_config()), tmp_path)


def test_what_a_killed_export_left_is_removed_and_a_damaged_file_not_quantized(
    exported: Exported, tmp_path: Path
) -> None:
    file = Path(shutil.copy(exported[1], tmp_path))
    digest = export.read_facts(export.session(file))["content"].encode()
    file.write_bytes(file.read_bytes().replace(digest, digest[::-1]))
    with pytest.raises(ValueError, match="damaged"):
        export.quantize_onnx(file)
    assert [path.name for path in tmp_path.iterdir()] == [export.FILE]
    shutil.copy(exported[1], tmp_path)
    (tmp_path / ".export-dead").mkdir()
    (tmp_path / ".export-dead" / "model.onnx").write_bytes(b"half")
    (tmp_path / ".export.lock").touch()
    export.quantize_onnx(file)
    assert {path.name for path in tmp_path.iterdir()} == {export.FILE, export.INT8_FILE}


def test_the_digest_of_a_file_covers_the_weights_beside_it(tmp_path: Path) -> None:
    (file := tmp_path / "model.onnx").write_bytes(b"graph " + export.NO_DIGEST.encode())
    digests = [export.digest_of(file, export.NO_DIGEST)]
    for weights in (b"1", b"1", b"2"):
        (tmp_path / "model.onnx.data").write_bytes(weights)
        digests.append(export.digest_of(file, export.NO_DIGEST))
    assert digests[1] == digests[2] and len(set(digests)) == 3


def test_onnxruntime_writes_nothing_about_its_user(exported: Exported, tmp_path: Path) -> None:
    script = "import sys; from modeling_mf2.export import session; session(sys.argv[1]); import onnxruntime"
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-c", script, str(exported[1])]
    subprocess.run(command, cwd=Path(__file__).parents[2], env=environment, check=True)
    assert not [path for path in tmp_path.rglob("*") if "onnx" in str(path).lower() or "Microsoft" in str(path)]
