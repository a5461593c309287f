"""The benchmark of inference measures what it says, and its pieces fit together."""

import importlib.util
import json
import resource
import sys
from pathlib import Path
from types import ModuleType

import pytest


FOLDER = Path(__file__).parents[2] / "examples" / "benchmark"


@pytest.fixture(scope="module")
def inference() -> ModuleType:
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location("inference", FOLDER / "inference.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(FOLDER))


def test_inference_compares_pipelines_and_draws_the_curve_of_finished_runs(
    inference: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for count in (1, 2):
        for seed in (0, 1):
            tested = tmp_path / "runs" / f"{count}-{seed}" / "tested"
            tested.mkdir(parents=True)
            scores = {"au_f1_tuned_macro": 0.1 * count + 0.02 * seed, "au_roc_auc_macro": 0.9, "emotion_top1": 0.5}
            for place in (tested, tested.parent):
                (place / "metrics.json").write_text(json.dumps(scores if place == tested else {}))
    (tmp_path / "runs" / "faces-1600").mkdir()
    command = ["--size", "tiny", "--only", "vit", "curve", "--rounds", "1", "--batch_size", "1", "--vit_images", "2"]
    command += ["--queries", "1", "2", "--accuracy", str(tmp_path / "runs"), "--picture", str(tmp_path / "curve.png")]
    figures = inference.main([*command, "--json", str(tmp_path / "figures.json")])
    assert json.loads((tmp_path / "figures.json").read_text()) == figures
    assert figures["f1_2"] == pytest.approx(0.21) and figures["f1_1_sd"] == pytest.approx(0.02 / 2**0.5)
    assert all(figures[name] > 1 for name in ("cost_1", "cost_2")) and figures["over_vit_pipeline"] > 0
    assert (tmp_path / "curve.png").stat().st_size > 5000 and "0.210 ± 0.014" in capsys.readouterr().out


def test_what_a_command_holds_is_not_what_this_process_holds(inference: ModuleType) -> None:
    import inference_command

    mine = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    spent = inference_command.spent_by([sys.executable, "-S", "-c", "held = bytes(range(256)) * 200_000"])
    assert 50 < spent["peak_mb"] < 100 < mine
    with pytest.raises(RuntimeError, match="ended with 3"):
        inference_command.spent_by([sys.executable, "-S", "-c", "raise SystemExit(3)"])


@pytest.mark.slow
def test_inference_measures_the_command_its_memory_and_the_engines(inference: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("onnx"), pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")
    command = ["--size", "tiny", "--only", "folder", "engines", "f1", "memory", "--images", "8", "--rounds", "1"]
    figures = inference.main([*command, "--f1_faces", "64", "--video_minutes", "0.2"])
    wanted = ("folder_over_bare", "onnx_over_eager", "int8_over_eager", "memory_folder_ratio", "memory_video_ratio")
    assert all(figures[name] > 0 for name in wanted) and abs(figures["int8_f1_loss"]) < 0.05
