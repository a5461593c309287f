"""Every benchmark runs; what it measured is not judged here, how its figures follow from each other is."""

import argparse
import csv
import json
import resource
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from example_scripts import load
from PIL import Image

from mf2face.data.synthetic.faces import draw_example, synthetic_truth


BENCHMARKS = {
    "synthetic": (
        "--quick --styles webcam",
        *("images_per_cpu_s_112", "two_process_speedup", "facts_auc", "knn_f1", "webcam_landmark_jitter_f1"),
        *("au_ceiling", "emotion_ceiling", "small_net_auc"),
    ),
    "params": ("--size tiny", "emo_vl_trainable", "au_vl_trainable", "both_trainable"),
    "qformer": ("--small --rounds 1", "forward_32", "train_32", "forward_384", "train_384"),
    "vl_fau": ("--small --rounds 1", "branch_speedup", "branch_speedup_maps"),
    "pretraining": (
        *("--batch_size 2 --rounds 1 --no_memory", "step_ratio", "step_s", "reference_step_s", "default_step_s"),
    ),
    "pipeline": (
        "--images 4 --batch_size 2 --rounds 1 --load_size tiny",
        *("pipeline_over_bare", "cold_load_ratio"),
    ),
    "data": ("--quick --only labels", "label_lines", "label_lines_per_s"),
}


MINUTES = ("synthetic", "pipeline")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in MINUTES else []) for name in BENCHMARKS]
)
def test_a_benchmark_writes_the_figures_that_it_returns(name: str, tmp_path: Path) -> None:
    """Scripts that compare two sides stop where their results differ."""
    options, *wanted = BENCHMARKS[name]
    figures = load(f"benchmark/{name}").main([*options.split(), "--json", str(tmp_path / "figures.json")])
    assert json.loads((tmp_path / "figures.json").read_text()) == figures
    assert all(figures[figure] > 0 for figure in wanted)
    assert figures.get("output_difference", 0) < 1e-5


@pytest.mark.slow
def test_pretraining_measures_the_memory_of_a_process_of_its_own() -> None:
    pretraining = load("benchmark/pretraining")
    batch = pretraining.real_batch("tiny", 2)
    held = bytearray(2 * 2**30)  # what this process holds, or held, is not counted
    held[::4096] = b"1" * len(held[::4096])
    assert 100 < pretraining.peak_memory("tiny", "ours", batch) < 1800


def test_gpu_measures_rates_and_extrapolates_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = "--device cpu --size tiny --batch_size 3 --rounds 1 --steps 1".split()
    gpu = load("benchmark/gpu")
    figures = gpu.main([*small, "--stored_tokens", "--json", str(tmp_path / "figures.json")])
    assert json.loads((tmp_path / "figures.json").read_text()) == figures
    for suffix in ("", "_stored_tokens"):
        rate, inference = figures[f"train_images_per_s{suffix}"], figures[f"inference_images_per_s{suffix}"]
        assert figures[f"epoch_minutes{suffix}"] == pytest.approx(31_320 / rate / 60)
        assert figures[f"inference_seconds{suffix}"] == pytest.approx(3_376 / inference)
        assert figures[f"train_peak_memory_gb{suffix}"] > 0 and figures[f"inference_peak_memory_gb{suffix}"] > 0
    printed = capsys.readouterr().out.splitlines()
    assert "CPU" in printed[0] and all(str(paper) not in line for line in printed[:-1] for paper in ("62.3", "5.1 min"))
    assert gpu.main([*small, "--mixed", "--checkpointing", "--pair_share", "0.5"])["gradient_checkpointing"] == 1
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stopped:
        gpu.main([])
    assert stopped.value.code == 2 and "finds no GPU" in capsys.readouterr().err


def test_gpu_s_lines_for_a_gpu_for_little_memory_and_for_what_does_not_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu, cuda, called = load("benchmark/gpu"), torch.device("cuda"), []
    for name in ("synchronize", "empty_cache", "reset_peak_memory_stats", "set_sync_debug_mode"):
        monkeypatch.setattr(torch.cuda, name, lambda *_, name=name: called.append(name))
    for name, value in {"max_memory_allocated": 2**30, "device_count": 2, "get_device_name": "H"}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    gpu.wait(cuda), gpu.free(cuda)
    assert gpu.peak_memory_gb(cuda) == 1 and gpu.begin(cuda) == "H" and called[0] == "synchronize"
    syncs = gpu.host_syncs(lambda: warnings.warn("called a synchronizing CUDA operation", stacklevel=1), cuda)
    assert syncs == {"host_syncs_per_step": 1} and called[-2:] == ["set_sync_debug_mode"] * 2
    assert {"ddp", "fsdp"} <= gpu.launches("cuda").keys() and "2" in gpu.launches("cuda")["fsdp"]
    torch.set_float32_matmul_precision("highest")
    options = {"size": "tiny", "batch_size": 2, "checkpointing": False, "mixed": False, "compile": False}
    given = argparse.Namespace(**options, device=torch.device("cpu"), pair_share=None, json=None)
    monkeypatch.setattr(gpu, "seconds_a_step", lambda *_: 1.0)
    monkeypatch.setattr(gpu, "training_step", lambda *_: lambda: torch.tensor(torch.nan))
    with pytest.raises(FloatingPointError, match="the loss is nan"):
        gpu.measure_training(True, False, given)
    monkeypatch.setattr(gpu, "training_step", raising(torch.OutOfMemoryError))
    with pytest.raises(SystemExit, match="batch_size: 2 images do not fit"):
        gpu.measure(True, given)
    monkeypatch.setattr(gpu, "launches", lambda _: {"ddp": [sys.executable, "-c", "raise SystemExit('no')"]})
    assert gpu.measure_launches(given) == {"launch_ddp": 0} and "ddp: no" in capsys.readouterr().out


def raising(error: type[Exception]) -> Callable:
    def call(*_: object) -> None:
        raise error

    return call


def test_finetuning_measures_the_cost_of_every_method(tmp_path: Path) -> None:
    finetuning = load("benchmark/finetuning")
    table, small = tmp_path / "table.md", "--batch_size 1 --epoch_batch 4 --rounds 1 --images 8 --no_memory".split()
    figures = finetuning.main([*small, "--json", str(tmp_path / "figures.json"), "--markdown", str(table)])
    assert json.loads((tmp_path / "figures.json").read_text()) == figures
    for method in finetuning.METHODS:
        epoch = 8 * figures[f"{method}_image_s"] + 2 * figures[f"{method}_update_s"]
        assert figures[f"{method}_epoch_s"] == pytest.approx(epoch)
        building = figures.get(f"{method}_store_once_s", 0) + 8 * figures.get(f"{method}_store_image_s", 0)
        assert figures[f"{method}_first_epoch_s"] == pytest.approx(epoch + building)
        assert (building > 0) == finetuning.METHODS[method].stored
    assert figures["epoch_ratio_lora_over_dfn"] == figures["lora_epoch_s"] / figures["dfn_epoch_s"] > 1
    assert figures["full_trainable"] > figures["dfn_trainable"] == figures["dfn_no_store_trainable"]
    assert figures["inference_ratio"] == figures["dfn_inference_ratio"] > 0
    assert not any(name.endswith("_mb") for name in figures), "of a process that held other things"
    ours, _, papers = table.read_text().partition("The paper's own figures")
    assert "52.88" in papers and "52.88" not in ours and f"{figures['dfn_trainable']:,}" in ours


@pytest.mark.slow
def test_finetuning_measures_memory() -> None:
    figures = load("benchmark/finetuning").main("--rounds 1 --methods full dfn".split())
    assert 1 < figures["dfn_memory_mb"] < figures["full_memory_mb"] < 500


@pytest.mark.slow
def test_data_measures_the_loader_and_the_memory_of_a_build() -> None:
    figures = load("benchmark/data").main(["--quick", "--only", "loader", "memory"])
    assert {"loader_ratio", "loader_with_texts_ratio", "build_memory_ratio"} <= set(figures)
    assert all(value > 0 for value in figures.values())


# The inference benchmark


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
    command = "--size tiny --only vit curve --rounds 1 --batch_size 1 --vit_images 2 --queries 1 2 --accuracy".split()
    files = [tmp_path / "runs", "--picture", tmp_path / "curve.png", "--json", tmp_path / "figures.json"]
    figures = inference.main([*command, *map(str, files)])
    kept = json.loads((tmp_path / "figures.json").read_text())
    assert kept.items() >= figures.items() and "--size tiny" in kept["curve/run"]
    assert figures["f1_2"] == pytest.approx(0.21) and figures["f1_1_sd"] == pytest.approx(0.02 / 2**0.5)
    assert all(figures[name] > 1 for name in ("cost_1", "cost_2")) and figures["over_vit_pipeline"] > 0
    assert (tmp_path / "curve.png").stat().st_size > 5000 and "0.210 ± 0.014" in capsys.readouterr().out


def test_what_a_command_holds_is_not_what_this_process_holds(inference: ModuleType) -> None:
    mine = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    spent = inference.spent_by([sys.executable, "-S", "-c", "held = bytes(range(256)) * 200_000"])
    assert 50 < spent["peak_mb"] < 100 < mine
    with pytest.raises(RuntimeError, match="ended with 3"):
        inference.spent_by([sys.executable, "-S", "-c", "raise SystemExit(3)"])


@pytest.mark.slow
def test_inference_measures_the_command_its_memory_and_the_engines(inference: ModuleType) -> None:
    pytest.importorskip("onnx"), pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")
    command = "--size tiny --only folder engines f1 memory --images 8 --rounds 1 --f1_faces 64 --video_minutes 0.2"
    figures = inference.main(command.split())
    figures |= inference.main("--only routes compare --routes_faces 3 --compare_rows 1000".split())
    assert figures["routes_max_difference"] <= 1e-3 and figures["routes_decisions_differ"] == 0
    assert figures["routes_faces"] == 3 and 0 < figures["compare_seconds"] < 10
    wanted = ("folder_over_bare", "onnx_over_eager", "int8_over_eager", "memory_folder_ratio", "memory_video_ratio")
    assert all(figures[name] > 0 for name in wanted) and abs(figures["int8_f1_loss"]) < 0.05


# The benchmark on photographs


def photographs() -> ModuleType:
    return load("benchmark/photographs")


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "labels.csv"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "emotion", "subject", "AU12"])
        for number in range(120):
            emotion = ("Happiness", "Neutral", "Fear")[min(2, number // 55)]
            writer.writerow([f"images/{number}.jpg", emotion, f"p{number % 40}", "1" if number < 55 else "0"])
    return path


def test_the_two_parts_share_no_person(labels: Path) -> None:
    parts = [photographs().read_labels(labels, labels.parent, part) for part in ("choose", "report")]
    people = [{row["subject"] for row in part.values()} for part in parts]
    assert not people[0] & people[1] and all(len(one) > 5 for one in people)
    assert sum(map(len, parts)) == len(photographs().read_labels(labels, labels.parent, None)) == 120
    labels.write_text("image,mood\na.jpg,good\n")
    with pytest.raises(SystemExit, match=r"labels\.csv.*emotion"):
        photographs().read_labels(labels, labels.parent, None)


def test_scores_follow_from_the_largest_face_of_each_photograph(labels: Path) -> None:
    known = photographs().read_labels(labels, labels.parent, None)
    rows = []
    for number, (name, row) in enumerate(known.items()):
        happy = row["emotion"] == "Happiness"
        answer = {"Happiness": 0.9 * happy, "Neutral": 0.5, "Fear": 0.0}
        units = {"AU12": 0.8 if happy else 0.1, "AU06": 0.5}
        rows.append({"input": name, "face_id": 0, **units, **answer})
        rows.append({"input": name, "face_id": 1, "AU12": 1 - units["AU12"], "AU06": number, **answer})
    figures = photographs().scores(rows, known)
    assert figures["au12_happiness_auc"] == figures["au12_auc"] == 1 and figures["au6_happiness_auc"] == 0.5
    assert figures["emotion_macro_recall"] == 1 and figures["emotion_chance"] == 0.5  # fear has too few photographs
    assert figures["au12_happiness_auc_low"] == 1 and "au1_fear_auc" not in figures
    assert figures["happiness_auc"] == figures["happiness_recall"] == figures["neutral_recall"] == 1
    assert photographs().scores([{**row, "face_id": float("nan")} for row in rows], known) == {}


def test_copies_are_harmed_as_named() -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    made = {kind: change(image.copy()) for kind, change in photographs().COPIES.items()}
    assert made["grey"].shape == (60, 90) and made["tiny"].shape == (10, 15, 3)
    assert made["deep"].dtype == np.uint16 and np.array_equal(made["deep"] >> 8, image)
    assert made["blurred"].std() < 0.7 * image.std() and (made["covered"] != image).any(2).mean() < 0.1
    import cv2

    for kind in ("grey", "deep"):
        encoded = cv2.imencode(".png", made[kind])[1].tobytes()
        pixels = photographs().processing_mf2.image_io.read_image(encoded)
        expected = image[..., ::-1] if kind == "deep" else np.repeat(made[kind][..., None], 3, 2)
        np.testing.assert_allclose(pixels.transpose(1, 2, 0), expected, atol=0.6)


def test_a_checkpoint_is_calibrated_graded_and_its_card_written_anew(tmp_path: Path) -> None:
    released = sorted(path.parent for path in (Path(__file__).parents[2] / "model_cards").glob("*/run.json"))[0]
    folder = tmp_path / "model"
    shutil.copytree(released, folder)
    saved = json.loads((folder / "processor_config.json").read_text())
    (folder / "processor_config.json").write_text(json.dumps(saved | {"conformal": None, "grades": None}))
    reliability, evidence = load("benchmark/reliability"), tmp_path / "photographs.json"
    measured = {"photographs": 900, "mediapipe_landmarks": 1.0}
    measured |= {f"au12_happiness_auc{end}": 0.99 for end in ("", "_low", "_high")}
    evidence.write_text(json.dumps(measured | {"model_checksum": 1}))
    command = [str(folder), "--photographs", str(evidence), "--styles", "drawn", "drawn", "--images", "96"]
    with pytest.raises(SystemExit):
        reliability.main(command)
    evidence.write_text(json.dumps(measured | {"model_checksum": reliability.checksum(folder / "model.safetensors")}))
    figures = reliability.main([*command, "--json", str(tmp_path / "figures.json")])
    assert {"test/coverage_90_au", "style_shift/au_f1_macro", "grey_au_f1_difference"} <= set(figures)
    saved, card = json.loads((folder / "processor_config.json").read_text()), (folder / "README.md").read_text()
    assert set(saved["grades"]) == {*saved["action_units"], *saved["emotions"]} and set(saved["conformal"]) >= {"0.9"}
    assert "How far to trust each answer" in card and f"| {saved['grades']['AU12']} |" in card
    assert f"{figures['style_shift/coverage_90_au']:.3f}" in card and "faces, style drawn" in card
    assert list((folder / ".eval_results").glob("*.yaml"))


def test_adaptation_answers_photographs_by_people_that_it_did_not_learn_from(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    adaptation, rows = load("benchmark/adaptation"), []
    monkeypatch.setattr(adaptation, "LEAST", 2)
    truth = synthetic_truth(64, "drawn", seed=5)
    for index in range(0, 64, 2):
        pixels, points = draw_example(index, style="drawn", seed=5)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
        emotion = ("Happiness", "Neutral", "")[min(2, truth["emotion"][index] % 3)]
        rows.append(
            {"image": f"{index}.png", "emotion": emotion, "subject": f"p{index // 4}", "landmarks": points.tolist()}
        )
    (tmp_path / "labels.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = ["--photos", str(tmp_path), "--labelled", "12", "--steps", "1", "--folds", "3"]
    figures = adaptation.main([*command, "--json", str(tmp_path / "figures.json")])
    assert json.loads((tmp_path / "figures.json").read_text()) == figures and figures["chance"] == 0.5
    for method in ("released", *(f"{method}_12" for method in adaptation.TASKS)):
        assert 0 <= figures[f"{method}_macro_recall_low"] <= figures[f"{method}_macro_recall"] <= 1


def test_an_interval_is_over_people(labels: Path) -> None:
    values = np.repeat(np.random.default_rng(0).normal(size=20), 50)
    low, high = photographs().interval(lambda chosen: values[chosen].mean(), np.repeat(np.arange(20), 50))
    assert low < values.mean() < high and high - low > 0.5 * values.std()


def test_transfer_trains_on_renders_alone_and_scores_crops(monkeypatch: pytest.MonkeyPatch) -> None:
    transfer = load("benchmark/transfer")
    monkeypatch.setattr(transfer, "LEAST", 2)
    crops, units, emotions = transfer.render(["studio", "webcam"], 48, 0)
    assert crops.shape == (48, transfer.SIDE, transfer.SIDE) and 0 < units.mean() < 0.6
    names = transfer.units_of(["studio", "webcam"])
    net = transfer.train((crops, units, emotions), 0.03, 0)
    assert 0.5e6 < sum(weight.numel() for weight in net.parameters()) < 1.1e6
    figures = transfer.measure(net, names, crops, [transfer.EMOTIONS[emotion] for emotion in emotions])
    assert 0 <= figures["transfer_macro_recall"] <= 1 and all(0 <= value <= 1 for value in figures.values())


def test_transfer_renders_the_same_expressions_without_one_thing() -> None:
    transfer = load("benchmark/transfer")
    whole, units, emotions = transfer.render(["webcam"], 2, 0)
    for part in transfer._WITHOUT:
        crops, same_units, same_emotions = transfer.render(["webcam"], 2, 0, part)
        assert (same_units == units).all() and (same_emotions == emotions).all()
        assert part == "teeth" or (crops != whole).any()
