"""What the README shows is executed, and what it counts is counted again."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def test_the_python_blocks_run_in_their_order(tmp_path: Path) -> None:
    assert len(blocks("python")) >= 3
    (tmp_path / "model_cards").symlink_to(ROOT / "model_cards")
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks("python"))],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"'name': 'lip corner puller', 'probability': 0\.\d+, 'threshold': 0\.5", done.stdout)


def test_the_commands_name_files_and_extras_that_exist() -> None:
    run, test = blocks("bash")[:2]
    assert run.startswith("pip install -e . && accelerate launch ")
    for command in blocks("bash"):
        files = re.findall(r"[\w/.-]+\.py", command)
        assert all((ROOT / file).is_file() for file in files), files
    for named in re.findall(r"`(?:python )?([\w/.-]+\.(?:py|md|yaml))", README):
        assert (ROOT / named).is_file(), named
    assert "<!-- test command -->\n```bash\n" + test in README
    assert 'pip install -e ".[dev]"' in test and "pytest" in test


def test_the_counts_are_those_of_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    sys.path.insert(0, str(ROOT / "examples" / "benchmark"))
    import params

    figures = params.main(["--size", "giant"])
    capsys.readouterr()
    assert figures["emo_vl_trainable"] == figures["au_vl_trainable"] == 186_702_654
    assert figures["both_trainable"] == 373_405_308
    assert figures["vision_tower_trainable"] == 0
    for value in (
        figures["vision_tower_frozen"],
        figures["emo_vl_trainable"],
        figures["au_identity_and_region_positions"] + figures["classifiers"],
    ):
        assert f"{value:,}" in README


def test_the_results_are_those_of_the_released_checkpoint() -> None:
    metrics = json.loads((ROOT / "model_cards" / "mf2-tiny-synthetic" / "metrics.json").read_text())
    rows = {
        "AU F1, macro": ("au_f1_tuned_macro", *(f"baseline/au_f1_{n}" for n in ("all_active", "landmarks", "ceiling"))),
        "emotion top-1": (
            "emotion_top1",
            *(f"baseline/emotion_top1_{n}" for n in ("commonest", "landmarks", "from_true_aus")),
        ),
        "AUs named": ("caption_au_f1",),
        "AU by text": ("zero_shot_au_auc",),
    }
    for title, names in rows.items():
        (line,) = re.findall(rf"^\| {title}.*$", README, flags=re.MULTILINE)
        shown = re.findall(r"\d\.\d{3}", line)
        assert shown == [f"{metrics[name]:.3f}" for name in names], title


def test_the_figures_of_fine_tuning_are_those_of_the_benchmark() -> None:
    folder = ROOT / "examples" / "benchmark" / "results"
    worth, cost = (
        json.loads((folder / f"finetuning_{name}.json").read_text()) for name in ("accuracy_tiny", "cost_base")
    )
    methods = {"linear probe": "linear_probe", "DFN, states stored": "dfn", "LoRA": "lora", "full fine-tuning": "full"}
    for title, name in methods.items():
        (line,) = re.findall(rf"^\| {title} \|(.*)\|$", README, flags=re.MULTILINE)
        scores = [
            f"{worth[f'{name}_{score}']:.3f} ± {worth[f'{name}_{score}_sd']:.3f}" if f"{name}_{score}" in worth else ""
            for score in ("au", "emotion")
        ]
        costs = [
            f"{cost[f'{name}_{figure}']:,.0f}" if f"{name}_{figure}" in cost else ""
            for figure in ("trainable", "epoch_s", "memory_mb")
        ]
        assert [cell.strip() for cell in line.split("|")] == scores + costs, title
    few = [worth[f"{name}_au_256"] for name in ("dfn", "linear_probe", "full")]
    (said,) = re.findall(r"no better than a linear probe\s+\((.*?)\),.*?\((.*?)\)", README, flags=re.DOTALL)
    assert re.findall(r"\d\.\d{3}", " ".join(said)) == [f"{value:.3f}" for value in few]


def test_the_figures_of_inference_are_those_of_the_benchmark() -> None:
    figures = json.loads((ROOT / "examples" / "benchmark" / "results" / "inference_base.json").read_text())
    shown = {"`mf2` over": "folder_over_bare", "action units and emotion of": "over_vit_pipeline"}
    shown |= {"speed by ONNX": "onnx_over_eager", "speed by 8 bits": "int8_over_eager"}
    shown |= {"macro AU F1 that 8 bits": "int8_f1_loss", "peak memory for ten": "memory_folder_ratio"}
    shown |= {"peak memory for a video": "memory_video_ratio"}
    for title, name in shown.items():
        (line,) = re.findall(rf"^\| {title}.*\| ([\d.]+) \|$", README, flags=re.MULTILINE)
        assert line == format(figures[name], ".4f" if name == "int8_f1_loss" else ".2f"), title
    (said,) = re.findall(r"The curve says why(.*?)points", README, flags=re.DOTALL)
    gained = f"{100 * (figures['f1_32'] - figures['f1_4']):.1f}"
    assert re.findall(r"\d\.\d+", said) == [f"{figures['cost_4']:.2f}", f"{figures['cost_32']:.2f}", gained]


def test_the_figures_of_the_compared_systems_are_those_of_the_benchmark() -> None:
    figures = json.loads((ROOT / "examples" / "benchmark" / "results" / "tables_tiny.json").read_text())
    titles = {"mf2": r"MF² \(pre-train\)", "mf2_dfn": r"MF² \+ DFN", "vl_fau": "VL-FAU", "hsemotion": "HSEmotion"}
    titles |= {"exp_blip": "Exp-BLIP", "me_graph_au": "ME-GraphAU"}
    titles |= {"mf2_without_emo_vl": "MF² without Emo-VL", "mf2_without_au_vl": "MF² without AU-VL"}
    assert figures["failed_runs"] == 0
    for name, title in titles.items():
        (line,) = re.findall(rf"^\| {title} \|(.*±.*)\|$", README, flags=re.MULTILINE)
        columns = ("au", "au_tuned", "top1", "macro_recall", "macro_f1", "avg")
        found = [tuple(100 * figures[f"all/{name}/{column}/{kind}"] for kind in ("mean", "sd")) for column in columns]
        assert [cell.strip() for cell in line.split("|")] == [f"{mean:.1f} ± {sd:.1f}" for mean, sd in found], name
    parts = [f"{100 * figures[f'vlfau4/{name}/avg_tuned/mean']:.1f}" for name in ("vl_fau_1", "vl_fau")]
    (said,) = re.findall(r"Of VL-FAU's parts.*?\)", README, flags=re.DOTALL)
    assert re.findall(r"\d+\.\d", said) == parts
    longer = json.loads((ROOT / "examples" / "benchmark" / "results" / "hsemotion_20_epochs.json").read_text())
    (said,) = re.findall(r"HSEmotion with 20 epochs.*?\. MF²", README, flags=re.DOTALL)
    expected = [f"{100 * longer[name]:.1f}" for name in ("au_f1_tuned_macro", "emotion_top1")]
    assert re.findall(r"\d+\.\d", said) == expected


def test_the_figures_of_exp_blip_s_caption_sets_are_those_of_the_benchmark() -> None:
    figures = json.loads((ROOT / "examples" / "benchmark" / "results" / "exp_blip_tiny.json").read_text())
    assert figures["failed_runs"] == 0
    for name in ("emot", "au", "mix", "cat", "exp"):
        (line,) = re.findall(
            rf"^\| {'AU' if name == 'au' else name.title()} \|(.* / .*)\|$", README, flags=re.MULTILINE
        )
        expected = []
        for read_by in ("probe", "tuned"):
            for features in ("vision", "qformer"):
                row = f"exp_blip_{name}_{features}_{read_by}".replace("exp_blip_exp_qformer_tuned", "exp_blip")
                expected += [figures[f"expblip/{row}/{column}/mean"] for column in ("au_tuned", "top1")]
        told = ("bleu_4", "au_facts", "emotion_facts")
        expected += [figures[f"captions/exp_blip_{name}_stage2/{column}/mean"] for column in told]
        assert re.findall(r"\d+\.\d", line) == [f"{100 * value:.1f}" for value in expected], name
