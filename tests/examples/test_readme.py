"""What the README shows is executed, and what it counts is counted again."""

import json
import re
from pathlib import Path

import pytest
from example_scripts import load
from strangers import run


ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def test_the_python_blocks_run_in_their_order(tmp_path: Path) -> None:
    assert len(blocks("python")) >= 3
    (tmp_path / "model_cards").symlink_to(ROOT / "model_cards")
    printed = run("\n".join(blocks("python")), cwd=tmp_path, HF_HOME=tmp_path / "home")
    assert re.search(r"'name': 'lip corner puller', 'probability': 0\.\d+, 'threshold': 0\.5", printed)


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
    figures = load("benchmark/params").main(["--size", "giant"])
    capsys.readouterr()
    assert figures["both_trainable"] == 2 * figures["emo_vl_trainable"] == 2 * figures["au_vl_trainable"] == 373_405_308
    heads = figures["au_identity_and_region_positions"] + figures["classifiers"]
    for value in (figures["vision_tower_frozen"], figures["emo_vl_trainable"], heads):
        assert f"{value:,}" in README


def row(title: str) -> list[str]:
    """The cells of the README's only table row with this title (a regular expression)."""
    (cells,) = re.findall(rf"^\| {title}.*?\|(.*)\|$", README, flags=re.MULTILINE)
    return [cell.strip() for cell in cells.split("|")]


def said(pattern: str) -> list[str]:
    """The decimal numbers of the README's only passage that matches."""
    (passage,) = re.findall(pattern, README, flags=re.DOTALL)
    return re.findall(r"\d+\.\d+", passage)


def results(name: str) -> dict[str, float]:
    return json.loads((ROOT / "examples" / "benchmark" / "results" / f"{name}.json").read_text())


def percent(*values: float) -> list[str]:
    return [f"{100 * value:.1f}" for value in values]


def test_the_results_are_those_of_the_released_checkpoint() -> None:
    metrics = json.loads((ROOT / "model_cards" / "mf2-tiny-synthetic" / "metrics.json").read_text())
    f1, top1 = "baseline/au_f1_", "baseline/emotion_top1_"
    rows = {
        "AU F1, macro": ("au_f1_tuned_macro", f"{f1}all_active", f"{f1}landmarks", f"{f1}ceiling"),
        "emotion top-1": ("emotion_top1", f"{top1}commonest", f"{top1}landmarks", f"{top1}from_true_aus"),
        "AUs named": ("caption_au_f1",),
        "AU by text": ("zero_shot_au_auc",),
    }
    for title, names in rows.items():
        assert re.findall(r"\d\.\d{3}", " ".join(row(title))) == [f"{metrics[name]:.3f}" for name in names], title


def test_the_figures_of_fine_tuning_are_those_of_the_benchmark() -> None:
    worth, cost = results("finetuning_accuracy_tiny"), results("finetuning_cost_base")
    methods = {"linear probe": "linear_probe", "DFN, states stored": "dfn", "LoRA": "lora", "full fine-tuning": "full"}
    for title, name in methods.items():
        scores = [f"{name}_{score}" for score in ("au", "emotion")]
        expected = [f"{worth[key]:.3f} ± {worth[f'{key}_sd']:.3f}" if key in worth else "" for key in scores]
        costs = [f"{name}_{figure}" for figure in ("trainable", "epoch_s", "memory_mb")]
        expected += [f"{cost[key]:,.0f}" if key in cost else "" for key in costs]
        assert row(title) == expected, title
    few = [f"{worth[f'{name}_au_256']:.3f}" for name in ("dfn", "linear_probe", "full")]
    assert said(r"no better than a linear probe\s+\(.*?\),.*?\(.*?\)") == few


def test_the_figures_of_inference_are_those_of_the_benchmark() -> None:
    figures = results("inference_base")
    shown = {"`mf2` over": "folder_over_bare", "action units and emotion of": "over_vit_pipeline"}
    shown |= {"speed by ONNX": "onnx_over_eager", "speed by 8 bits": "int8_over_eager"}
    shown |= {"macro AU F1 that 8 bits": "int8_f1_loss", "peak memory for ten": "memory_folder_ratio"}
    shown |= {"peak memory for a video": "memory_video_ratio"}
    for title, name in shown.items():
        assert row(title) == [format(figures[name], ".4f" if name == "int8_f1_loss" else ".2f")], title
    gained = percent(figures["f1_32"] - figures["f1_4"])
    assert said(r"The curve says why.*?points") == [f"{figures[f'cost_{n}']:.2f}" for n in (4, 32)] + gained


def test_the_figures_on_photographs_are_those_of_the_benchmark() -> None:
    figures = results("photographs")
    passage = re.search(r"In (\d+)\s+photographs.*?landmarks, (\d+) times.*?does (\d+) photographs", README, re.DOTALL)
    whole = ("photographs", "over_face_alignment", "photos_per_s")
    assert list(passage.groups()) == [f"{figures[name]:.0f}" for name in whole]
    parts = [100 * figures["faces_found"], figures["detect_ms"], figures["landmarks_ms"]]
    assert said(r"In 939\s+photographs.*?photographs a CPU-second") == [f"{part:.1f}" for part in parts]
    more = [figures["large_ms"], figures["video_fps"], 100 * figures["landmark_disagreement_inner"]]
    assert said(r"At 1920 pixels.*?from dlib's") == [f"{part:.1f}" for part in more]
    shards = [f"{figures[name]:.2f}" for name in ("two_shards_over_one", "two_shards_over_one_with_start")]
    assert said(r"two processes against one:.*?program's start") == shards
    assert said(r"rows are there in\s+half a second.*?here") == [f"{figures['cold_start_onnx_s']:.1f}"]
    worth = ("au12_happiness_auc", "emotion_macro_recall", "emotion_chance")
    assert said(r"with an AUC of.*?chance [\d.]+") == [f"{figures[name]:.3f}" for name in worth]


def test_the_figures_of_the_compared_systems_are_those_of_the_benchmark() -> None:
    figures, longer = results("tables_tiny"), results("hsemotion_20_epochs")
    titles = {"mf2": r"MF² \(pre-train\)", "mf2_dfn": r"MF² \+ DFN", "exp_blip": "Exp-BLIP", "hsemotion": "HSEmotion"}
    titles |= {"mf2_without_emo_vl": "MF² without Emo-VL", "mf2_without_au_vl": "MF² without AU-VL"}
    titles |= {"vl_fau": "VL-FAU", "me_graph_au": "ME-GraphAU"}
    assert figures["failed_runs"] == 0
    for name, title in titles.items():
        columns = [f"all/{name}/{column}" for column in ("au", "au_tuned", "top1", "macro_recall", "macro_f1", "avg")]
        expected = [f"{100 * figures[f'{key}/mean']:.1f} ± {100 * figures[f'{key}/sd']:.1f}" for key in columns]
        assert row(f"{title} ") == expected, name
    parts = percent(*(figures[f"vlfau4/{name}/avg_tuned/mean"] for name in ("vl_fau_1", "vl_fau")))
    assert said(r"Of VL-FAU's parts.*?\)") == parts
    expected = percent(longer["au_f1_tuned_macro"], longer["emotion_top1"])
    assert said(r"HSEmotion with 20 epochs.*?top-1\)") == expected


def test_the_figures_of_exp_blip_s_caption_sets_are_those_of_the_benchmark() -> None:
    figures = results("exp_blip_tiny")
    assert figures["failed_runs"] == 0
    for name in ("emot", "au", "mix", "cat", "exp"):
        rows = [f"exp_blip_{name}_{features}_{by}" for by in ("probe", "tuned") for features in ("vision", "qformer")]
        rows = [cell.replace("exp_blip_exp_qformer_tuned", "exp_blip") for cell in rows]
        expected = [figures[f"expblip/{cell}/{column}/mean"] for cell in rows for column in ("au_tuned", "top1")]
        written = ("bleu_4", "au_facts", "emotion_facts")
        expected += [figures[f"captions/exp_blip_{name}_stage2/{column}/mean"] for column in written]
        cells = row(r"AU (?=\|.* / )" if name == "au" else f"{name.title()} ")
        assert re.findall(r"\d+\.\d", " ".join(cells)) == percent(*expected), name
