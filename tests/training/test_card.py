"""Cards hold the numbers of the run's files, in a form that the Hub accepts, with code that runs."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_server import LoopbackHub
from huggingface_hub import ModelCard, get_session
from PIL import Image
from strangers import ALONE
from strangers import run as run_code

from configuration_mf2 import MF2Config
from mf2face.data.reference_scores import BASELINES
from mf2face.training import cards
from mf2face.training.arguments import parse_arguments
from mf2face.training.cards import TEMPLATE, always_the_commonest, always_yes, card_data, run_facts, write_card
from mf2face.training.evaluation import score, write_scores
from mf2face.training.finetuning import METHODS, adapt
from mf2face.training.language import FIGURES
from mf2face.training.reliability import EVIDENCE
from modeling_mf2 import MF2ForFaceAnalysis, MF2ForPreTraining
from modeling_mf2.vision import MF2VisionTower
from processing_mf2 import MF2Processor


RELEASED = sorted(path.parent for path in TEMPLATE.parent.glob("*/run.json"))
BLOCKS = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COSTS = {"cpu_seconds": 812.3, "wall_seconds": 407.5, "train_images": 7201, "test_images": 240}


def finish(folder: Path, label_set: str = "mfa", extra: dict | None = None, *options: str, synthetic=True) -> Path:
    """What a run leaves, from random answers and by the real writers; then the card."""
    config = MF2Config.from_size("tiny", label_set=label_set, use_au_branch=label_set != "raf_db")
    rng = np.random.default_rng(3)
    units, emotions = len(config.action_units), len(config.emotions)
    predictions = rng.normal(size=(240, emotions)), rng.normal(size=(240, units))
    labels = rng.integers(-1, max(1, emotions), 240), rng.integers(-1, 2, (240, units))
    config.au_thresholds = rng.uniform(0.2, 0.8, units).round(3).tolist() if units else None
    scores = score(config, predictions, labels, config.au_thresholds, [str(i // 8) for i in range(240)])
    processor = MF2Processor.for_model(config)
    settings = parse_arguments(["--output_dir", str(folder), "--use_cpu", "True", *options])
    task = settings.arguments.task
    if task.startswith("tower"):
        MF2VisionTower(config.vision_config).save_pretrained(folder)
    elif task in METHODS:
        base = folder.parent / "base"
        MF2ForFaceAnalysis(config).save_pretrained(base)
        processor.save_pretrained(base)
        adapt(MF2ForFaceAnalysis.from_pretrained(base.name), task).save_pretrained(folder)
    else:
        (MF2ForFaceAnalysis if task == "full" else MF2ForPreTraining)(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    write_scores(folder, scores, {**COSTS, **(extra or {})})
    return write_card(folder, run_facts(settings, COSTS, synthetic=synthetic))


EXTRA = {"caption_au_f1": 0.51239, "zero_shot_au_auc": 0.61234, "baseline/au_f1_landmarks": 0.54321}
EXTRA |= {"baseline/emotion_top1_ceiling": 0.74219, "group/light skin, older/n": 120.0}
EXTRA |= {"group/light skin, older/au_f1_macro": 0.49871, "group/dark skin, older/au_f1_macro": 0.50018}
ADAPTER = {"trainable_parameters": 123456, "base/au_f1_macro": 0.43219, "base/au_f1_tuned_macro": 0.45671}


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finish(tmp_path_factory.mktemp("runs") / "mf2-drawn", "mfa", EXTRA)


def files(card: Path) -> tuple[dict, dict]:
    return tuple(json.loads((card.parent / name).read_text()) for name in ("run.json", "metrics.json"))


def body(card: Path) -> str:
    return re.sub(r"^```.*?^```$", "", ModelCard.load(card).text, flags=re.MULTILINE | re.DOTALL)


def numbers_in(content: object) -> list[float]:
    if isinstance(content, dict | list):
        return [
            number for one in (content.values() if isinstance(content, dict) else content) for number in numbers_in(one)
        ]
    return [content] if isinstance(content, float | int) else []


def unaccounted(card: Path) -> set[str]:
    """Every decimal number of the text, and every number of a table's rows, that no file holds."""
    run, metrics = files(card)
    values = [*metrics.values(), *always_yes(metrics).values(), *always_the_commonest(metrics).values()]
    evidence = card.parent / EVIDENCE
    measured = json.loads(evidence.read_text()) if evidence.is_file() else {}
    values += numbers_in(measured)
    known = {form.format(abs(value)) for value in values for form in ("{:.3f}", "{:,.0f}", "{:.1f}")}
    known |= {f"{seconds / 60:.1f}" for seconds in run["cost"].values()}
    words = json.dumps([run, measured, list(FIGURES.values()), list(BASELINES.values())])
    known |= set(re.findall(r"\d+(?:,\d{3})+|\d+(?:\.\d+)*", words))
    known |= {number.removesuffix(".0") for number in known if number.count(".") == 1}  # 12.0 epochs are 12
    known |= {"0.5"}  # the usual threshold, a word of the table heads
    text = re.sub(r"AU\d+|F1|top-1|`\w+`", "", body(card))
    rows = "\n".join(line for line in text.splitlines() if line.startswith("|") and "95 %" not in line)
    return (set(re.findall(r"\d+\.\d+(?:\.\d+)*", text)) | set(re.findall(r"\d+(?:,\d{3})*(?:\.\d+)?", rows))) - known


def test_every_number_of_a_card_is_in_the_runs_files(card: Path, tmp_path: Path) -> None:
    assert unaccounted(card) == set()
    _, metrics = files(card)
    text = body(card)
    for name in ("au_f1_macro", "au_f1_tuned/AU12", "au_f1_tuned/AU12/low", "emotion_ovr_accuracy", "emotion_ece"):
        assert f"{metrics[name]:.3f}" in text, name
    for name, value in EXTRA.items():
        assert (f"{value:.3f}" if value < 1 else f"{value:.0f}") in text, name
    forged = shutil.copytree(card.parent, tmp_path / "forged") / "README.md"
    good = f"{metrics['emotion_top1']:.3f}"
    forged.write_text(card.read_text().replace(f" {good} ", " 0.987 ") + "\n| AU1 | 1,234 |\n")
    assert unaccounted(forged) == {"0.987", "1,234"}


def test_metadata_holds_each_score_with_its_threshold_interval_and_protocol(card: Path) -> None:
    _, metrics = files(card)
    data = ModelCard.load(card).data
    assert (data.license, data.library_name, data.datasets) == ("apache-2.0", "transformers", ["mfa-synthetic"])
    assert "synthetic" in data.tags and data.model_name == "mf2-drawn" and data.base_model is None
    results = {result.metric_name: result for result in data.eval_results}
    for name in MF2Config.from_size("tiny").action_units:
        for words, key in (("threshold 0.5", "au_f1"), ("the threshold tuned on validation images", "au_f1_tuned")):
            result = results[f"{name} F1 at {words}"]
            assert result.metric_value == pytest.approx(metrics[f"{key}/{name}"], abs=5e-5)
            threshold = metrics[f"{key.replace('f1', 'threshold')}/{name}"]
            assert result.metric_args["threshold"] == pytest.approx(threshold, abs=5e-5)
            assert result.metric_args["interval_95"][0] <= result.metric_value <= result.metric_args["interval_95"][1]
            assert "synthetic" in result.dataset_name and "unseen" in result.dataset_args["protocol"]
    assert {"emotion top-1", "emotion macro recall", "emotion macro F1", "emotion one-vs-rest accuracy"} <= set(results)


def check_adapter_card(card: Path) -> None:
    assert unaccounted(card) == set() and {"123,456", "0.432", "0.457"} <= set(re.findall(r"[\d,.]*\d", body(card)))
    run, metrics = files(card)
    data = card_data({**run, "base_models": ["org/base"]}, metrics)
    assert (data.library_name, data.base_model, data.base_model_relation) == ("peft", ["org/base"], "adapter")
    assert {"dfn", "synthetic"} <= set(data.tags)
    assert ModelCard.load(card).data.base_model is None, "the name of a folder is nothing on the Hub"


def test_the_code_of_every_kind_of_card_runs_and_the_hub_accepts_it(card: Path, monkeypatch) -> None:
    folder = card.parent.parent
    monkeypatch.chdir(folder)  # where the adapter's base is found by name
    made = [
        card,
        finish(folder / "classes", "bp4d", None, "--task", "full"),
        finish(folder / "feelings", "raf_db", None, "--task", "pretrain"),
        finish(folder / "tower", "mfa", None, "--task", "tower"),
        finish(folder / "adapter", "mfa", ADAPTER, "--task", "dfn", "--model_name_or_path", "base"),
    ]
    check_adapter_card(made[-1])
    with LoopbackHub() as hub:
        for one in made:  # ModelCard.validate asks a fixed address before huggingface_hub 2.1
            content = {"repoType": "model", "content": str(ModelCard.load(one))}
            response = get_session().post(f"{hub.url}/api/validate-yaml", json=content)
            assert response.status_code == 200, response.text
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (150, 150, 3), dtype=np.uint8)).save(folder / "face.png")
    programs = ["\n".join(BLOCKS.findall(one.read_text())) for one in made]
    assert all(programs)
    runner = "import sys\nfor code in sys.argv[1:]:\n    exec(code, {})\n    print('done')"
    printed = run_code(runner, *programs, cwd=folder, HF_HOME=folder / "home")
    assert printed.count("done") == len(made) and "torch.Size([1, 196, 128])" in printed


@pytest.mark.parametrize("folder", RELEASED, ids=lambda path: path.name)
def test_a_released_card_is_that_of_its_files(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / folder.name)
    assert write_card(copy).read_text() == (folder / "README.md").read_text()
    assert unaccounted(copy / "README.md") == set()


@pytest.mark.parametrize("folder", RELEASED, ids=lambda path: path.name)
def test_a_released_card_runs_as_it_stands_and_its_code_answers_as_the_library(folder: Path, tmp_path: Path) -> None:
    program = ALONE + "\n".join(BLOCKS.findall((folder / "README.md").read_text()))
    printed = run_code(program, cwd=folder.parent, HF_HOME=tmp_path / "home")
    processor = MF2Processor.from_pretrained(folder)
    with torch.no_grad():
        output = MF2ForPreTraining.from_pretrained(folder).eval()(**processor(images=folder / cards.EXAMPLE_FACE))
    answer = processor.post_process_face_analysis(output)[0]
    assert f"{answer['emotion']} {answer['active_action_units']}" in printed


def test_every_table_of_figures_from_drawn_faces_says_synthetic(card: Path, tmp_path: Path) -> None:
    lines = body(card).splitlines()
    heads = [i for i, line in enumerate(lines) if line.startswith("| ---") and "setting" not in lines[i - 1]]
    assert len(heads) == 7, "summary, baselines, AUs, emotions, calibration, groups, language"
    for head in heads:
        above = [line for line in lines[head - 5 : head - 1] if line and not line.startswith("|")]
        assert "synthetic" in " ".join(above).lower(), lines[head - 1]
    (tmp_path / "licensed").mkdir()
    real = finish(tmp_path / "real", "mfa", None, "--dataset", str(tmp_path / "licensed"), synthetic=False).read_text()
    assert "synthetic" not in real.lower() and "drawn" not in real and "licensed, 240 test images" in real
    assert ModelCard(real).data.datasets is None, "the name of somebody's folder is no data set of the Hub"


def test_unknown_figures_leave_their_sections_out_and_settings_read_as_what_they_are(card: Path, tmp_path) -> None:
    assert {"## Language", "## By group"} <= set(body(card).splitlines())
    options = ("--task", "full", "--seed", "1", "--num_train_epochs", "2", "--augment", "heavy")
    bare = body(finish(tmp_path / "bare", "bp4d", None, *options))
    for absent in ("## Language", "## By group", "### Emotions", "compared with", "top-1", "metrics.png", "curves.png"):
        assert absent not in bare, absent
    assert "## Thresholds and calibration" in bare and "Energy was not measured." in bare
    for row in ("| seed | 1 |", "| epochs, at most | 2 |", "| augmentation | heavy |", "| learning rate | 0.002 |"):
        assert row in bare, row
    taught, blind = (
        finish(tmp_path / task, "mfa", None, "--task", task).read_text() for task in ("tower_by_labels", "tower")
    )
    assert "**taught action units and emotions**" in taught and "**no action unit and no emotion label**" in blind


def test_a_card_made_again_is_the_same_and_shows_curves_if_there_are_some(card: Path, tmp_path: Path) -> None:
    before = card.read_bytes()
    assert write_card(card.parent) == card and card.read_bytes() == before
    copy = shutil.copytree(card.parent, tmp_path / card.parent.name)
    (copy / "curves.png").write_bytes(b"a picture")
    text = write_card(copy).read_text()
    (shown,) = [line for line in text.splitlines() if line.endswith("](curves.png)")]
    assert "synthetic" in shown and shown in text.partition("\n## Training\n")[2].partition("\n## ")[0]
    assert not re.search(r"\n{3,}|[ \t]+$", text, re.MULTILINE), "no stray blanks"


def test_missing_and_wrong_files_are_named(card: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"run\.json: not found"):
        write_card(tmp_path)
    run, metrics = files(card)
    (tmp_path / "run.json").write_text(json.dumps({**run, "kind": "boat"}))
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(ValueError, match="kind is 'boat', expected one of"):
        write_card(tmp_path)


def test_facts_name_the_sources_and_no_local_path(tmp_path: Path) -> None:
    (tmp_path / "tower").mkdir()
    options = ["--output_dir", str(tmp_path / "out"), "--use_cpu", "True", "--vision_name_or_path"]
    options += [str(tmp_path / "tower"), "--text_name_or_path", "google-bert/bert-base-uncased", "--max_steps", "7"]
    options += ["--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "3"]
    facts = run_facts(parse_arguments(options), {"cpu_seconds": 812.3}, synthetic=True)
    assert str(tmp_path) not in json.dumps(facts) and facts["name"] == "out"
    assert facts["started_from"] == {"vision tower": "tower", "text": "google-bert/bert-base-uncased"}
    assert facts["base_models"] == ["google-bert/bert-base-uncased"] and facts["cost"] == {"cpu_seconds": 812.3}
    assert facts["settings"]["batch size"] == 24 and facts["settings"]["steps"] == 7
    assert "epochs, at most" not in facts["settings"] and facts["versions"]["torch"] == torch.__version__.split("+")[0]


UNITS = {"au_n/AU1": 10.0, "au_n/AU12": 8.0, "au_prevalence/AU1": 0.2, "au_prevalence/AU12": 0.0}
UNITS |= {"au_f1/AU1": 0.4, "au_f1/AU12": 0.0, "au_f1_macro": 0.2, "au_f1/AU1/low": 0.31, "au_f1/AU1/high": 0.52}
EMOTIONS = {"emotion_n/Fear": 6.0, "emotion_n/Other": 2.0, "emotion_n": 8.0, "emotion_top1": 0.625}
FOUR = {**EMOTIONS, "emotion_macro_recall": 0.51, "emotion_macro_f1": 0.52, "emotion_ovr_accuracy": 0.626}


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]


def test_chance_by_hand() -> None:
    chance = always_yes(UNITS)
    assert chance["au_f1/AU1"] == pytest.approx(1 / 3) and chance["au_f1/AU12"] == 0
    assert chance["au_f1_macro"] == pytest.approx(1 / 6)
    commonest = always_the_commonest(EMOTIONS)  # Fear: 6 of 8 right, precision 0.75, recall 1
    assert commonest["emotion_top1"] == commonest["emotion_ovr_accuracy"] == 0.75
    assert commonest["emotion_macro_recall"] == 0.5
    assert commonest["emotion_macro_f1"] == pytest.approx(0.75 / 1.75)
    assert always_yes({}) == {} and always_the_commonest({}) == {}


def test_tables_stand_beside_chance_without_unknown_columns_and_nothing_known_is_no_table() -> None:
    head, _, first, second, macro = cells(cards.unit_table(UNITS))
    assert head == ["AU", "n", "prevalence", "always yes", "F1 at 0.5", "95 % interval"]
    assert first == ["AU1 inner brow raiser", "10", "0.200", "0.333", "0.400", "0.310 to 0.520"]
    assert second[-1] == "–" and macro == ["macro", "–", "–", "0.167", "0.200", "–"]
    assert cards.without_positives(UNITS) == ["AU12"]
    shown = cells(cards.baseline_table({"au_f1_macro": 0.8, "baseline/au_f1_landmarks": 0.6}))[-1]
    assert shown[1:] == ["AU F1, macro", "0.600", "0.800"]
    shown = cards.language_table({"zero_shot_au_auc": 0.75, "itm_au_accuracy": float("nan")})
    assert f"| `zero_shot_au_auc` | 0.750 | {FIGURES['zero_shot_au_auc']} |" in shown and "itm" not in shown
    for name in ("summary", "baseline", "unit", "emotion", "calibration", "group", "language"):
        assert getattr(cards, f"{name}_table")({"cpu_seconds": 3.0}) == "", name
    assert cards.table(["a", "b"], [["x|y", "1"]]) == "| a | b |\n| --- | ---: |\n| x/y | 1 |"


def test_the_four_emotion_scores_are_shown_together_or_not_at_all() -> None:
    assert "0.625" in cards.summary_table(FOUR) and "0.626" in cards.summary_table(FOUR)
    for missing in ("emotion_top1", "emotion_macro_recall", "emotion_macro_f1"):
        shown = cards.summary_table({name: value for name, value in {**UNITS, **FOUR}.items() if name != missing})
        assert "0.626" not in shown and "0.200" in shown
    shown = cards.group_table({"group/a/n": 4.0, "group/a/emotion_ovr_accuracy": 0.9, "group/a/au_f1_macro": 0.3})
    assert "0.900" not in shown and "0.300" in shown
