"""Cards say what the run's files say, in a form that the Hub takes, with code that runs."""

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hub_server import LoopbackHub
from huggingface_hub import ModelCard, constants
from PIL import Image

from configuration_mf2 import MF2Config
from mf2face.data.reference_scores import BASELINES
from mf2face.training.arguments import parse_arguments
from mf2face.training.cards import (
    TEMPLATE,
    always_the_commonest,
    always_yes,
    card_data,
    eval_results,
    run_facts,
    write_card,
)
from mf2face.training.evaluation import score, write_scores
from mf2face.training.finetuning import ADAPTERS, adapt
from mf2face.training.language import FIGURES
from mf2face.training.trainer import MF2Trainer
from modeling_mf2 import MF2ForFaceAnalysis, MF2ForPreTraining
from modeling_mf2.vision import MF2VisionTower
from processing_mf2 import MF2Processor


EMBEDDED = sorted(path.parent for path in TEMPLATE.parent.glob("*/run.json"))
FIGURES_OF_THE_RUN = {"cpu_seconds": 812.3, "wall_seconds": 407.5, "train_images": 7201, "test_images": 240}


def finish(
    folder: Path, label_set: str = "mfa", extra: dict | None = None, *options: str, synthetic: bool = True
) -> Path:
    """What the journey leaves, from random answers and by the real writers; then the card."""
    config = MF2Config.from_size("tiny", label_set=label_set, use_au_branch=label_set != "raf_db")
    rng = np.random.default_rng(3)
    units, emotions = len(config.action_units), len(config.emotions)
    predictions = rng.normal(size=(240, emotions)), rng.normal(size=(240, units))
    labels = rng.integers(-1, max(1, emotions), 240), rng.integers(-1, 2, (240, units))
    config.au_thresholds = rng.uniform(0.2, 0.8, units).round(3).tolist() if units else None
    scores = score(config, predictions, labels, config.au_thresholds, [str(i // 8) for i in range(240)])
    processor = MF2Processor.for_model(config)
    arguments, training = parse_arguments(["--output_dir", str(folder), "--use_cpu", "True", *options])
    if arguments.task == "tower":
        MF2VisionTower(config.vision_config).save_pretrained(folder)
    elif arguments.task in ADAPTERS:
        base = folder.parent / "base"
        MF2ForFaceAnalysis(config).save_pretrained(base)
        processor.save_pretrained(base)
        adapt(MF2ForFaceAnalysis.from_pretrained(base.name), arguments.task).save_pretrained(folder)
    else:
        (MF2ForFaceAnalysis if arguments.task == "full" else MF2ForPreTraining)(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    write_scores(folder, scores, {**FIGURES_OF_THE_RUN, **(extra or {})})
    return write_card(folder, run_facts(arguments, training, FIGURES_OF_THE_RUN, synthetic=synthetic))


EXTRA = {"caption_au_f1": 0.51239, "zero_shot_au_auc": 0.61234, "baseline/au_f1_landmarks": 0.54321}
EXTRA |= {"baseline/emotion_top1_ceiling": 0.74219, "group/light skin, older/n": 120.0}
EXTRA |= {"group/light skin, older/au_f1_macro": 0.49871, "group/dark skin, older/au_f1_macro": 0.50018}


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finish(tmp_path_factory.mktemp("runs") / "mf2-drawn", "mfa", EXTRA)


def files(card: Path) -> tuple[dict, dict]:
    return tuple(json.loads((card.parent / name).read_text()) for name in ("run.json", "metrics.json"))


def body(card: Path) -> str:
    return re.sub(r"^```.*?^```$", "", ModelCard.load(card).text, flags=re.MULTILINE | re.DOTALL)


def unaccounted(card: Path) -> set[str]:
    """Every decimal number of the text, and every number of a table's rows, that no file holds."""
    run, metrics = files(card)
    values = [*metrics.values(), *always_yes(metrics).values(), *always_the_commonest(metrics).values()]
    known = {form.format(value) for value in values for form in ("{:.3f}", "{:,.0f}", "{:.1f}")}
    known |= {f"{seconds / 60:.1f}" for seconds in run["cost"].values()}
    known |= set(re.findall(r"\d+(?:\.\d+)*", json.dumps([run, list(FIGURES.values()), list(BASELINES.values())])))
    known |= {number.removesuffix(".0") for number in known if number.count(".") == 1}  # 12.0 epochs are 12
    known |= {"0.5"}  # the usual threshold, a word of the table heads
    text = re.sub(r"AU\d+|F1|top-1|`\w+`", "", body(card))
    rows = "\n".join(line for line in text.splitlines() if line.startswith("|") and "95 %" not in line)
    return (set(re.findall(r"\d+\.\d+(?:\.\d+)*", text)) | set(re.findall(r"\d+(?:,\d{3})*(?:\.\d+)?", rows))) - known


def test_no_number_is_in_the_card_that_is_not_in_the_files(card: Path, tmp_path: Path) -> None:
    assert unaccounted(card) == set()
    _, metrics = files(card)
    text = body(card)
    for name in ("au_f1_macro", "au_f1_tuned/AU12", "au_f1_tuned/AU12/low", "emotion_ovr_accuracy", "emotion_ece"):
        assert f"{metrics[name]:.3f}" in text, name
    for name, value in EXTRA.items():
        assert (f"{value:.3f}" if value < 1 else f"{value:.0f}") in text, name
    forged = tmp_path / "forged"
    forged.mkdir()
    for path in card.parent.glob("*.json"):
        (forged / path.name).write_bytes(path.read_bytes())
    good = f"{metrics['emotion_top1']:.3f}"
    (forged / "README.md").write_text(card.read_text().replace(f" {good} ", " 0.987 ") + "\n| AU1 | 1,234 |\n")
    assert unaccounted(forged / "README.md") == {"0.987", "1,234"}


def test_the_metadata_is_read_back_equal(card: Path) -> None:
    run, metrics = files(card)
    data = ModelCard.load(card).data
    assert data.license == "apache-2.0" and data.library_name == "transformers"
    assert data.pipeline_tag == "image-classification" and data.datasets == ["mfa-synthetic"]
    assert "synthetic" in data.tags and data.metrics == ["accuracy", "f1", "recall"]
    assert data.model_name == "mf2-drawn" and data.base_model is None
    assert data.eval_results == eval_results(run, metrics)
    found = {result.metric_name: result for result in data.eval_results}
    for number in (1, 2, 4, 6, 7, 10, 12, 15, 23, 24, 25, 26):
        for words, key in (("threshold 0.5", "au_f1"), ("the threshold tuned on validation images", "au_f1_tuned")):
            result = found[f"AU{number} F1 at {words}"]
            assert result.metric_value == pytest.approx(metrics[f"{key}/AU{number}"], abs=5e-5)
            threshold = metrics[f"{key.replace('f1', 'threshold')}/AU{number}"]
            assert result.metric_args["threshold"] == pytest.approx(threshold, abs=5e-5)
            assert result.metric_args["interval_95"][0] <= result.metric_value <= result.metric_args["interval_95"][1]
            assert "synthetic" in result.dataset_name and "unseen" in result.dataset_args["protocol"]
    assert {"emotion top-1", "emotion macro recall", "emotion macro F1", "emotion one-vs-rest accuracy"} <= set(found)


def test_the_hub_takes_it_and_refuses_what_is_wrong(card: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with LoopbackHub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        ModelCard.load(card).validate()
        mistakes = {"license": "my own", "pipeline_tag": "faces", "datasets": ["two words"], "tags": 3}
        for field, wrong in mistakes.items():
            broken = ModelCard.load(card)
            broken.data[field] = wrong
            with pytest.raises(ValueError, match=field):
                broken.validate()
        broken = ModelCard.load(card)
        broken.data.eval_results[0].metric_type = None
        with pytest.raises(ValueError, match="needs type and value"):
            broken.validate()


def test_made_again_it_is_the_same(card: Path) -> None:
    before = card.read_bytes()
    assert write_card(card.parent) == card and card.read_bytes() == before
    assert not list(card.parent.glob("*.tmp"))
    assert not re.search(r"\n{3,}|[ \t]+$", card.read_text(), re.MULTILINE), "no stray blanks"


ADAPTER = {"trainable_parameters": 123456, "base/au_f1_macro": 0.43219, "base/au_f1_tuned_macro": 0.45671}


def check_adapter_card(card: Path) -> None:
    assert unaccounted(card) == set() and {"123,456", "0.432", "0.457"} <= set(re.findall(r"[\d,.]*\d", body(card)))
    for words in ("A DFN adapter of the MF² model `base`", "the base without it", "are kept with the adapter"):
        assert words in body(card), words
    run, metrics = files(card)
    data = card_data({**run, "base_models": ["org/base"]}, metrics)
    assert (data.library_name, data.base_model, data.base_model_relation) == ("peft", ["org/base"], "adapter")
    assert {"dfn", "synthetic"} <= set(data.tags) and data.pipeline_tag == "image-classification"
    assert ModelCard.load(card).data.base_model is None, "the name of a folder is nothing on the Hub"
    with LoopbackHub() as hub, pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", hub.url)
        ModelCard.load(card).validate()


@pytest.mark.parametrize("folder", EMBEDDED, ids=lambda path: path.name)
def test_the_cards_in_this_repository_are_those_of_their_files(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / folder.name)
    assert write_card(copy).read_text() == (folder / "README.md").read_text()
    assert unaccounted(copy / "README.md") == set()


def test_the_code_of_every_kind_of_card_runs(card: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = card.parent.parent
    monkeypatch.chdir(folder)  # where the adapter's base is found by name
    cards = [
        card,
        finish(folder / "classes", "bp4d", None, "--task", "full"),
        finish(folder / "feelings", "raf_db", None, "--task", "pretrain"),
        finish(folder / "tower", "mfa", None, "--task", "tower"),
        finish(folder / "adapter", "mfa", ADAPTER, "--task", "dfn", "--model_name_or_path", "base"),
    ]
    check_adapter_card(cards[-1])
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (150, 150, 3), dtype=np.uint8)).save(folder / "face.png")
    programs = [
        "\n".join(re.findall(r"^```python\n(.*?)^```$", c.read_text(), re.MULTILINE | re.DOTALL)) for c in cards
    ]
    assert all(programs)
    runner = "import sys\nfor code in sys.argv[1:]:\n    exec(code, {})\n    print('done')"
    done = subprocess.run(
        [sys.executable, "-c", runner, *programs],
        cwd=folder,
        env={
            **{**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home")},
            "PYTHONPATH": str(Path(__file__).parents[2]),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("done") == len(cards) and "torch.Size([1, 49, 128])" in done.stdout


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


def test_what_is_not_known_is_left_out(card: Path, tmp_path: Path) -> None:
    assert {"## Language", "## By group"} <= set(body(card).splitlines())
    bare = body(finish(tmp_path / "bare", "bp4d", None, "--task", "full"))
    for absent in ("## Language", "## By group", "### Emotions", "compared with", "top-1", "metrics.png", "curves.png"):
        assert absent not in bare, absent
    assert "## Thresholds and calibration" in bare and "Energy was not measured." in bare
    blind = finish(tmp_path / "blind", "mfa", None, "--task", "tower", "--use_labels", "False")
    assert ModelCard.load(blind).data.eval_results is None and "## Results" not in blind.read_text()


def test_the_curves_are_shown_where_they_are(card: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(card.parent, tmp_path / card.parent.name)
    (copy / "curves.png").write_bytes(b"a picture")
    text = write_card(copy).read_text()
    (shown,) = [line for line in text.splitlines() if line.endswith("](curves.png)")]
    assert "synthetic" in shown and "test images" not in shown
    assert shown in text.partition("\n## Training\n")[2].partition("\n## ")[0]
    assert not re.search(r"\n{3,}", text)
    (copy / "curves.png").unlink()
    assert write_card(copy).read_text() == card.read_text() == text.replace(f"{shown}\n\n", "")


def test_settings_read_as_what_they_are(tmp_path: Path) -> None:
    """One is not yes, and a whole number of epochs has no decimals."""
    options = ("--task", "full", "--seed", "1", "--num_train_epochs", "2", "--augment", "True")
    text = finish(tmp_path / "run", "mfa", None, *options).read_text()
    for row in ("| seed | 1 |", "| epochs, at most | 2 |", "| augmentation | yes |", "| learning rate | 0.002 |"):
        assert row in text, row


def test_errors_say_what_is_missing(card: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"run\.json: not found, expected the output folder of a finished"):
        write_card(tmp_path)
    run, metrics = files(card)
    (tmp_path / "run.json").write_text(json.dumps({**run, "kind": "boat"}))
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(ValueError, match="kind is 'boat', expected one of"):
        write_card(tmp_path)


def test_the_trainer_leaves_it_alone(card: Path) -> None:
    before = card.read_bytes()
    MF2Trainer.create_model_card(SimpleNamespace(args=SimpleNamespace(output_dir=str(card.parent))), model_name="other")
    assert card.read_bytes() == before


def test_the_template_is_installed_with_the_packages() -> None:
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).parents[2] / "setup.cfg")
    assert TEMPLATE.is_file() and TEMPLATE.parent.name in setup["options"]["packages"].split()
    assert setup["options.package_data"][TEMPLATE.parent.name] == TEMPLATE.name
