"""Every example and every benchmark runs; what it measured is not judged here."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from configuration_mf2.facs import LABEL_SETS
from mf2face.data.metrics import action_unit_scores
from mf2face.data.synthetic.faces import draw_example, synthetic_truth
from modeling_mf2 import MF2ForFaceAnalysis
from processing_mf2 import MF2Processor


EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str) -> ModuleType:
    path = EXAMPLES / f"{name}.py"
    sys.path.insert(0, str(path.parent))
    try:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(path.parent))


def test_examples_are_short() -> None:
    assert [path.name for path in EXAMPLES.glob("*.py") if len(path.read_text().splitlines()) > 80] == []


def test_quickstart_names_its_result_and_saves_what_it_can_load_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quickstart = load("quickstart")
    first = quickstart.main(["--random", "--save", str(tmp_path)])
    assert "RANDOM weights" in capsys.readouterr().out
    assert set(first) == {"emotion", "emotions", "action_units", "active_action_units"}
    assert list(first["action_units"])[:3] == ["AU1", "AU2", "AU4"]
    again = quickstart.main(["--checkpoint", str(tmp_path)])
    # Loaded weights lie elsewhere in memory, which may change the last bit of a sum.
    assert again["emotions"] == pytest.approx(first["emotions"], abs=1e-5)
    for name, unit in again["action_units"].items():
        assert unit["probability"] == pytest.approx(first["action_units"][name]["probability"], abs=1e-5)
    printed = capsys.readouterr().out
    assert "RANDOM" not in printed and "AU12  lip corner puller" in printed and "186,702,654" in printed


def test_the_released_checkpoint_is_what_the_quickstart_shows(capsys: pytest.CaptureFixture[str]) -> None:
    result = load("quickstart").main([])
    assert "RANDOM" not in capsys.readouterr().out
    truth = synthetic_truth(8)
    active = {name for name, state in zip(LABEL_SETS["mfa"].action_units, truth["au_labels"][7], strict=True) if state}
    assert len(active ^ set(result["active_action_units"])) <= 2


def test_the_released_checkpoint_reads_people_that_it_has_not_seen() -> None:
    """Its card says 0.86 and 0.63 of 896 images; always answering yes, or one emotion, gives 0.4 and 0.2."""
    released = EXAMPLES.parent / "model_cards" / "mf2-tiny-synthetic"
    model, processor = MF2ForFaceAnalysis.from_pretrained(released).eval(), MF2Processor.from_pretrained(released)
    drawn = [draw_example(index, seed=2) for index in range(160)]
    with torch.no_grad():
        found = model(**processor(images=[face for face, _ in drawn], landmarks=[points for _, points in drawn]))
    truth = synthetic_truth(160, seed=2)
    units = torch.sigmoid(found.au_logits).double().numpy()
    assert action_unit_scores(units, truth["au_labels"], LABEL_SETS["mfa"].action_units)["au_f1_macro"] > 0.75
    assert (found.emotion_logits.argmax(1).numpy() == truth["emotion"]).mean() > 0.45


def test_a_finished_run_is_released_without_code(tmp_path: Path) -> None:
    run, target = tmp_path / "run", tmp_path / "released"
    load("quickstart").main(["--random", "--save", str(run)])
    release = load("release_checkpoint").main
    with pytest.raises(FileNotFoundError, match=r"metrics\.json, README\.md not found; expected the output"):
        release(run, target)
    for name in ("metrics.json", "README.md"):
        (run / name).write_text("{}")
    with pytest.raises(ValueError, match=r"bytes, expected at most 12000000; train with --save_half True"):
        release(run, target)
    model = MF2ForFaceAnalysis.from_pretrained(run)
    model.save_pretrained(run, state_dict={name: tensor.half() for name, tensor in model.state_dict().items()})
    release(run, target)
    assert not list(target.glob("*.py")) and "auto_map" not in (target / "config.json").read_text()
    again = MF2ForFaceAnalysis.from_pretrained(target)
    assert again.dtype == torch.float32
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name].half().to(tensor.dtype)), name


def test_the_gallery_draws_its_sheets(tmp_path: Path) -> None:
    load("synthetic_gallery").main(["--out", str(tmp_path), "--size", "64", "--subjects", "2"])
    sheets = sorted(path.name for path in tmp_path.glob("*.png"))
    assert "synthetic_styles.png" in sheets and len(sheets) == 5


def test_the_gallery_of_rendered_people_writes_sheets_and_a_film(tmp_path: Path) -> None:
    written = load("rendered_gallery").main(["--out", str(tmp_path), "--size", "32", "--subjects", "1"])
    assert len(written) == 5 and all(path.stat().st_size > 2000 for path in written)


BENCHMARKS = {
    "synthetic": ("--quick", "images_per_cpu_s_112", "knn_f1", "landmark_jitter_f1", "au_ceiling"),
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


@pytest.mark.parametrize("name", BENCHMARKS)
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


def test_gpu_measures_rates_and_extrapolates_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--device", "cpu", "--size", "tiny", "--batch_size", "3", "--rounds", "1", "--steps", "1"]
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
    assert gpu.main([*small, "--mixed", "--checkpointing"])["gradient_checkpointing"] == 1


def test_gpu_says_that_there_is_none(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    gpu = load("benchmark/gpu")
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stopped:
        gpu.main([])
    assert stopped.value.code == 2
    assert "finds no GPU" in capsys.readouterr().err


def test_finetuning_measures_the_cost_of_every_method(tmp_path: Path) -> None:
    finetuning = load("benchmark/finetuning")
    table, small = tmp_path / "table.md", ["--batch_size", "1", "--epoch_batch", "4", "--rounds", "1", "--images", "8"]
    files = ["--json", str(tmp_path / "figures.json"), "--markdown", str(table)]
    figures = finetuning.main([*small, "--no_memory", *files])
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


SCORES_OF = {"evaluate": (0.2, 0.3), "linear_probe": (0.5, 0.4), "dfn": (0.62, 0.55), "full": (0.7, 0.6)}


def test_finetuning_compares_methods_on_the_same_faces_and_repeats_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    finetuning, runs = load("benchmark/finetuning"), []

    def recorder(command: list[str]) -> None:
        given = dict(zip(command[::2], command[1::2], strict=True))
        units, emotion = SCORES_OF[given["--task"]]
        shift = 0.01 * int(given["--seed"]) * (given["--task"] == "dfn")
        scores = {"au_f1_tuned_macro": units + shift, "au_f1_macro": units - 0.1, "emotion_top1": emotion}
        (Path(given["--output_dir"]) / "metrics.json").write_text(json.dumps(scores))
        runs.append(given)

    monkeypatch.setattr("train.main", recorder)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    command = ["--no_cost", "--accuracy", "--labelled", "32", "16", "--held_out", "16", "32", "--style", "grain"]
    command += ["--methods_trained", "full", "linear_probe", "dfn", "--output_dir", str(tmp_path / "runs")]
    command += ["--model", "paint", "--learning_rates", "full=1e-4", "--markdown", str(tmp_path / "table.md")]
    figures = finetuning.main(command)
    assert len(runs) == 2 * (1 + 3 * 3) and {run["--model_name_or_path"] for run in runs} == {"paint"}
    assert {run["--task"] for run in runs if "--learning_rate" in run} == {"full"}
    trained = {(run["--dataset"][-3:], run["--num_train_epochs"]) for run in runs if run["--task"] != "evaluate"}
    assert trained == {("-32", "10"), ("-16", "30")}
    for suffix in ("", "_16"):
        assert figures[f"dfn_minus_probe_au{suffix}"] == pytest.approx(0.13)
        assert figures[f"dfn_minus_probe_au_sd{suffix}"] == pytest.approx(0.01)
        assert figures[f"gap_closed_au{suffix}"] == pytest.approx(0.13 / 0.2)
        assert figures[f"gap_closed_au_sd{suffix}"] == pytest.approx(0.01 / 0.2)
        assert figures[f"gap_closed_au_at_half{suffix}"] == pytest.approx(0.6)
        assert figures[f"gap_closed_emotion{suffix}"] == pytest.approx(0.75)
        assert figures[f"untouched_au{suffix}"] == 0.2
    assert "| the checkpoint, untouched | 0.200 ± 0.000 |" in (tmp_path / "table.md").read_text()
    more, fewer = (datasets.load_from_disk(path) for path in sorted({run["--dataset"] for run in runs}, reverse=True))
    assert {name: len(part) for name, part in more.items()} == {"train": 32, "validation": 16, "test": 32}
    assert fewer["train"]["subject"][:] == more["train"]["subject"][:16]
    assert fewer["test"]["subject"][:] == more["test"]["subject"][:]
    people = [set(part["subject"][:]) for part in more.values()]
    assert len(set.union(*people)) == sum(map(len, people)) == 5
    assert finetuning.main(command) == figures and len(runs) == 20
    with pytest.raises(ValueError, match=r"full-32-0: was run with .* 1e-4`, expected .* 1e-3`; give another"):
        finetuning.main([*command, "--learning_rates", "full=1e-3"])
    with pytest.raises(ValueError, match=r"labelled: got 20, expected a multiple of 16"):
        finetuning.main([*command, "--labelled", "20", "16"])


def test_finetuning_closes_no_gap_where_there_is_none() -> None:
    runs = {
        name: [{"au_f1_tuned_macro": units, "au_f1_macro": units, "emotion_top1": emotion}]
        for name, (units, emotion) in (SCORES_OF | {"full": (0.5, 0.6)}).items()
    }
    figures = load("benchmark/finetuning").worth(runs)
    assert "gap_closed_au" not in figures and figures["gap_closed_emotion"] == pytest.approx(0.75)


@pytest.mark.slow
def test_finetuning_trains_scores_and_measures_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    load("quickstart").main(["--random", "--save", str(tmp_path / "base")])
    command = ["--accuracy", "--model", str(tmp_path / "base"), "--output_dir", str(tmp_path / "runs"), "--rounds", "1"]
    command += ["--methods", "full", "dfn", "--methods_trained", "full", "linear_probe", "dfn", "--seeds", "0"]
    command += ["--labelled", "32", "--epochs", "1", "--held_out", "32", "32", "--use_cpu", "True"]
    figures = load("benchmark/finetuning").main([*command, "--disable_tqdm", "True"])
    assert 1 < figures["dfn_memory_mb"] < figures["full_memory_mb"] < 500
    assert {"dfn_minus_probe_au", "dfn_minus_probe_emotion", "untouched_au"} <= set(figures)


def test_build_dataset_makes_a_folder_of_pictures_trainable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import datasets
    from PIL import Image

    for number in range(8):
        for emotion in ("happy", "Anger"):
            target = tmp_path / "mine" / emotion / f"{number}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw_example(16 * number, size=64)[0]).save(target)
    build = load("build_dataset")
    command = ["own", str(tmp_path / "mine"), str(tmp_path / "built"), "--require", "emotion"]
    command += ["--landmarks", "template"]
    report = build.main([*command, "--near", "tell", "--sizes", "train=0.5", "validation=0.5"])
    assert {name: counts["images"] for name, counts in report["counts"].items()} == {"train": 8, "validation": 8}
    assert "train: 8 images" in capsys.readouterr().out
    rows = datasets.load_dataset(str(tmp_path / "built"), streaming=True)["train"]
    assert {row["corpus"] for row in rows} == {"own"}
    captions = load("write_captions")
    captions.main(["--dataset", str(tmp_path / "built"), "--out", str(tmp_path / "captions")])
    captioned = datasets.load_from_disk(tmp_path / "captions" / "dataset")
    assert len(captioned) == 16 and set(captioned["split"]) == {"train", "validation"}
    with pytest.raises(FileNotFoundError, match="dataset: there is no folder"):
        captions.main(["--dataset", str(tmp_path / "nowhere")])
    with pytest.raises(ValueError, match=r"own: got the options \['licens'\]"):
        build.main([*command, "--reader", "licens=mine"])


@pytest.mark.slow
def test_data_measures_the_loader_and_the_memory_of_a_build() -> None:
    figures = load("benchmark/data").main(["--quick", "--only", "loader", "memory"])
    assert {"loader_ratio", "loader_with_texts_ratio", "build_memory_ratio"} <= set(figures)
    assert all(value > 0 for value in figures.values())
