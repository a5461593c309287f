"""The inference benchmark."""

import json
import resource
import sys
from pathlib import Path
from types import ModuleType

import pytest
from matplotlib import pyplot as plt
from test_scripts import load


@pytest.fixture(scope="module")
def inference() -> ModuleType:
    return load("benchmark/inference")


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


def test_the_number_of_queries_beside_each_point_is_within_the_frame(
    inference: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = (1, 4, 32)
    figures = {f"{name}_{count}": 0.7 for count in queries for name in ("f1", "emotion")}
    figures |= {f"{name}_{count}_sd": 0.01 for count in queries for name in ("f1", "emotion")}
    figures |= {f"cost_{count}{by}": 1 + count / 16 for count in queries for by in ("", "_cpu")}
    drawn = []
    monkeypatch.setattr(plt, "close", drawn.append)
    inference.draw_curve(figures, queries, "base", tmp_path / "curve.png")
    monkeypatch.undo()
    (axis,) = drawn[0].axes
    frame = axis.get_window_extent()
    for text in axis.texts:
        extent = text.get_window_extent()
        assert frame.x0 < extent.x0 and extent.x1 < frame.x1 - 2, text.get_text()
    assert [text.get_text() for text in axis.texts] == ["1", "4", "32"]
    plt.close(drawn[0])
    assert [path.name for path in tmp_path.iterdir()] == ["curve.png"]


def test_what_a_command_holds_is_not_what_this_process_holds(inference: ModuleType) -> None:
    mine = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    spent = inference.spent_by([sys.executable, "-S", "-c", "held = bytes(range(256)) * 200_000"])
    assert 50 < spent["peak_mb"] < 100 < mine
    with pytest.raises(RuntimeError, match="ended with 3"):
        inference.spent_by([sys.executable, "-S", "-c", "raise SystemExit(3)"])


@pytest.mark.slow
def test_inference_measures_the_command_its_memory_and_the_engines(inference: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("onnx"), pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")
    command = ["--size", "tiny", "--only", "folder", "engines", "f1", "memory", "--images", "8", "--rounds", "1"]
    figures = inference.main([*command, "--f1_faces", "64", "--video_minutes", "0.2"])
    wanted = ("folder_over_bare", "onnx_over_eager", "int8_over_eager", "memory_folder_ratio", "memory_video_ratio")
    assert all(figures[name] > 0 for name in wanted) and abs(figures["int8_f1_loss"]) < 0.05
