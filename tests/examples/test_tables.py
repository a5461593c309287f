"""The comparisons' tables, with a stand-in for training: answers that are as good as the plan says."""

import json
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from example_scripts import EXAMPLES, load
from scipy.special import expit, softmax

from configuration_mf2.facs import resolve_label_set
from modeling_mf2.baselines.exp_blip import ExpBlipForPreTraining
from modeling_mf2.losses import allowed_negatives
from modeling_mf2.pretraining import MF2ForPreTraining


LABELS = resolve_label_set("mfa")
SPLITS = {"train": 64, "validation": 160, "test": 240, "style": 240, "adapt": 32, "adapt_validation": 64}


def people(count: int, seed: int) -> Dataset:
    random = np.random.default_rng(seed)
    units = (random.random((count, len(LABELS.action_units))) < 0.4).astype(int)
    subjects = [f"{seed}-{place // 8}" for place in range(count)]
    emotions = random.integers(len(LABELS.emotions), size=count)
    return Dataset.from_dict({"subject": subjects, "au_labels": units.tolist(), "emotion": emotions.tolist()})


class Stage:
    """A work folder, data, and a plan: cell -> noise of its answers, or the error that it raises."""

    def __init__(self, folder: Path, tables, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.tables, self.plan, self.ran, self.figures = folder, tables, {}, [], {}
        self.data = {name: people(count, place) for place, (name, count) in enumerate(SPLITS.items())}
        self.cells = sys.modules["tables_cells"]
        monkeypatch.setattr(tables, "load_data", lambda given: self.data)
        monkeypatch.setattr(self.cells, "fit", self.fit)

    def fit(self, name, seed, rate, epochs, given, data, wanted):
        self.ran.append(f"{name}-{seed}" if "test" in wanted else f"{name}:{rate:g}")
        plan = self.plan.get(f"{name}-{seed}", self.plan.get(f"{name}:{rate:g}", self.plan.get(name, 0.5)))
        if isinstance(plan, Exception):
            raise plan
        after = self.cells.CELLS[name].after
        assert not after or (self.cells.folder_of(after, seed, given) / "model.safetensors").is_file()
        random, answers = np.random.default_rng(seed), {}
        for split in (split for split in wanted if split in data):
            rows = data["adapt_validation" if name.startswith("adapt") and split == "validation" else split]
            units, truth = np.array(rows["au_labels"][:]), np.eye(len(LABELS.emotions))[rows["emotion"][:]]
            if plan is None:  # no answer at all
                truth, units = 0.0 * truth, 0.0 * units
            else:
                truth, units = (part + plan * random.normal(size=part.shape) for part in (truth, units))
            answers[split] = softmax(truth, axis=1), expit(8 * (units - 0.5))
        figures = {"cpu_seconds": 10.0, "loss_before": 1.0, "loss_last": 1.0, "trainable_parameters": 1234}
        figures |= self.figures.get(name, {})
        return self.cells.Fitted(answers, figures, lambda folder: (folder / "model.safetensors").write_text(""))

    def main(self, *more: str, seeds: str = "0 1") -> dict[str, float]:
        command = ["--work_dir", str(self.folder / "work"), "--tower", "tower", "--num_images", "64", "--json"]
        return self.tables.main([*command, str(self.folder / "out.json"), "--seeds", *seeds.split(), *more])

    @property
    def markdown(self) -> str:
        return (self.folder / "work" / "tables.md").read_text()


@pytest.fixture(scope="module")
def tables():
    sys.path.insert(0, str(EXAMPLES / "benchmark"))
    yield load("benchmark/tables")
    sys.path.remove(str(EXAMPLES / "benchmark"))


@pytest.fixture
def stage(tmp_path: Path, tables, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(tmp_path, tables, monkeypatch)


def test_all_tables_have_figures_and_share_runs(stage: Stage) -> None:
    tables = stage.tables.TABLES
    figures = stage.main("--tables", *tables, seeds="0")
    kept = json.loads((stage.folder / "out.json").read_text())
    assert kept == {"seeds": 1, "epochs": 8, **figures}
    runs = [name for name in stage.ran if ":" not in name]
    assert (
        len(runs) == len({*runs}) == len(stage.cells.cells_of(row for table in tables.values() for row in table.rows))
    )
    for name in ("headline/mf2/style", "II/vl_fau/test", "adapt/adapt_dfn/style"):
        for column in ("au_f1", "au_f1_half", "emotion_macro_recall", "emotion_top1", "emotion_ovr_accuracy"):
            values = [figures[f"{name}/{column}/{kind}"] for kind in ("low", "mean", "high")]
            assert values == sorted(values) and 0.2 < values[0] < values[2] < 1
    headlines = ("mf2_minus_probe_style_au_f1", "mf2_minus_best_baseline_style_au_f1", "language_worth_au_f1")
    assert all({key, f"{key}/low", f"{key}/high"} <= {*figures} for key in headlines)
    before = len(stage.ran)
    assert stage.main("--tables", *tables, seeds="0") == figures and len(stage.ran) == before


def test_rates_are_chosen_on_choose_people_and_report_people_are_opened_once(stage: Stage) -> None:
    stage.plan = {"hsemotion:0.0003": 0.4, "hsemotion:0.003": FloatingPointError("loss is nan")}
    stage.main("--systems", "hsemotion")
    assert stage.ran == ["hsemotion:0.0003", "hsemotion:0.001", "hsemotion:0.003", "hsemotion-0", "hsemotion-1"]
    rates = json.loads((stage.folder / "work" / "rates" / "hsemotion.json").read_text())
    assert rates["0.003"] == -1 and rates["0.0003"] > rates["0.001"] > 0
    metrics = json.loads((stage.folder / "work" / "hsemotion-1" / "metrics.json").read_text())
    assert metrics["rate"] == 3e-4 and metrics["au_f1_tuned_macro"] > 0.5
    opened = json.loads((stage.folder / "work" / "opened.json").read_text())
    assert {*opened} == {"hsemotion-0", "hsemotion-1"} and {"commit", "date"} <= {*opened["hsemotion-0"]}


def test_differences_have_paired_intervals_and_stars(stage: Stage) -> None:
    stage.plan = {"mf2": 0.3, "probe_tokens": 0.6, "mf2_no_language": 0.3}
    figures = stage.main("--systems", "mf2", "probe_tokens", "mf2_no_language")
    key = "headline/mf2_minus_{}/style/au_f1/{}"
    assert figures["mf2_minus_probe_style_au_f1/low"] == figures[key.format("probe_tokens", "low")] > 0
    assert [figures[key.format("mf2_no_language", kind)] for kind in ("low", "mean", "high")] == [0, 0, 0]
    table = next(block for block in stage.markdown.split("\n\n") if block.startswith("| MF² less"))
    probe, same = (next(line for line in table.splitlines() if name in line) for name in ("linear probe", "language"))
    assert "*" in probe and "*" not in same


def test_failures_are_reported_retried_and_never_averaged_in(stage: Stage) -> None:
    stage.plan = {"mf2-0": ValueError("captions: every row's is empty"), "hsemotion-1": FloatingPointError("nan")}
    command = ("--tables", "II", "III", "--no_grid")
    figures = stage.main(*command)
    assert figures["failed_runs"] == 3, "DFN of this seed too, which starts from MF²"
    assert figures["II/mf2/test/fewer_seeds"] == figures["III/hsemotion/test/fewer_seeds"] == 1
    assert figures["II/mf2/test/au_f1/sd"] == 0 and "mf2-0 failed: ValueError: captions" in stage.markdown
    assert (
        "hsemotion-1 failed: FloatingPointError: nan" in stage.markdown and "II/vl_fau/test/fewer_seeds" not in figures
    )
    before, stage.plan = len(stage.ran), {}
    assert stage.main(*command, "--read_only") == figures and len(stage.ran) == before
    assert stage.main(*command)["failed_runs"] == 0
    assert {*stage.ran[before:]} == {"mf2-0", "mf2_dfn-0", "hsemotion-1"}


def test_weak_unfinished_and_undefined_rows_are_flagged(stage: Stage) -> None:
    units = np.array(stage.data["style"]["au_labels"][:])
    units[:, 3] = 0
    stage.data["style"] = stage.data["style"].remove_columns("au_labels").add_column("au_labels", units.tolist())
    stage.plan = {"hsemotion": None, "probe_tokens": 0.2, "full": 0.1}
    stage.figures = {"full": {"loss_last": 0.9}}
    figures = stage.main("--systems", "hsemotion", "probe_tokens", "full", "vl_fau", seeds="0")
    assert figures["headline/hsemotion/test/below_chance"] == figures["headline/vl_fau/test/below_probe"] == 1
    assert figures["headline/full/test/not_converged"] == 1 and "headline/vl_fau/test/not_converged" not in figures
    assert figures["headline/full/style/no_positive"] == 1 and "headline/full/test/no_positive" not in figures
    assert not [key for key in figures if "probe_tokens" in key and "below" in key]
    assert "HSEmotion is below the linear probe on report people; it reads: mean of tokens." in stage.markdown
    assert "nan" not in stage.markdown


def test_photographs_are_measured_by_the_emotions_that_they_name(stage: Stage) -> None:
    names = list(LABELS.emotions)
    rows = {
        "subject": [f"p{k // 2}" for k in range(120)],
        "emotion": [names.index("Neutral"), names.index("Happiness")] * 60,
    }
    stage.data["photographs"] = Dataset.from_dict({**rows, "au_labels": [[-1] * len(LABELS.action_units)] * 120})
    figures = stage.main("--systems", "hsemotion", "--no_grid", seeds="0")
    assert figures["headline/hsemotion/photographs/emotion_macro_recall/mean"] > 0.7
    assert 0 < figures["headline/hsemotion/photographs/au_auc/mean"] < 1, "labels of emotion alone"
    assert "headline/hsemotion/photographs/au_f1/mean" not in figures


def test_the_papers_figures_share_no_table_with_ours(stage: Stage) -> None:
    stage.main("--tables", "II", "vlfau4", "--no_grid", seeds="0")
    blocks = stage.markdown.split("\n\n")
    own = next(block for block in blocks if block.startswith("| the paper's |") and "53.35" in block)
    assert "±" not in own and "44.76" in own and "Aff-Wild2" in blocks[blocks.index(own) - 1]
    assert sum("53.35" in block for block in blocks) == 1


def test_systems_that_the_label_set_cannot_train_are_left_out(stage: Stage) -> None:
    with pytest.raises(ValueError, match="systems: got"):
        stage.main("--label_set", "disfa", "--tables", "V", "--dry_run")
    assert stage.cells.lacking("mf2_au_to_emotion", "disfa") == ["emotions"]
    assert not stage.cells.lacking("mf2", "disfa") and stage.main("--label_set", "disfa", "--dry_run") == {}


def test_another_budget_is_refused_and_damaged_metrics_run_again(stage: Stage) -> None:
    command = ("--systems", "hsemotion", "--no_grid")
    stage.main(*command, seeds="0")
    with pytest.raises(ValueError, match=r"hsemotion-0: was run with `.*epochs 8 .*expected .*epochs 9 .*give"):
        stage.main(*command, "--epochs", "9", seeds="0")
    metrics = stage.folder / "work" / "hsemotion-0" / "metrics.json"
    metrics.write_text(metrics.read_text()[:50])  # cut short
    stage.main(*command, seeds="0")
    assert stage.ran == ["hsemotion-0", "hsemotion-0"]


def test_all_systems_get_the_same_budget(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    assert stage.main("--dry_run", "--tables", *stage.tables.TABLES, "--use_cpu", "True") == {} and stage.ran == []
    given = [dict(pairwise(line.split())) for line in capsys.readouterr().out.splitlines()]
    assert len(given) > 60 and all(command["--use_cpu"] == "True" for command in given)
    for shared in ("--per_device_train_batch_size", "--model_size", "--label_set", "--warmup_steps"):
        assert len({command[shared] for command in given}) == 1
    assert {command["--num_train_epochs"] for command in given} == {"8", "2"}, "ME-GraphAU's second stage"
    assert {command.get("--vision_name_or_path") for command in given} == {"tower", "none", None}
    learned = [name for name in stage.cells.CELLS if "stage" not in name]
    assert {len(stage.cells.grid_of(name, stage.tables.parse([]))) for name in learned} == {3}


def test_wrong_argument_is_named_before_any_run(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in ("--dataset nowhere", "--seeds 1 1", "--epochs 0", "--systems nobody"):
        with pytest.raises(SystemExit):
            stage.main(*wrong.split())
        assert wrong.split()[0][2:] in capsys.readouterr().err.splitlines()[-1] and stage.ran == []
    with pytest.raises(ValueError, match=r"systems: got \['hsemotion'\], .* \['II'\]"):
        stage.main("--tables", "II", "--systems", "hsemotion")


def test_hidden_labels_and_captions_of_equal_meaning(stage: Stage) -> None:
    names = LABELS.action_units
    collate = stage.cells.hide_labels(lambda rows: {"au_labels": torch.ones(2, len(names))}, LABELS)
    assert (collate([])["au_labels"] == -1).nonzero()[:, 1].unique().tolist() == [names.index(stage.cells.UNSEEN)]
    wordings, emotions, units = torch.tensor([1, 2, 3]), torch.tensor([4, 4, 5]), torch.zeros(3, 2, dtype=torch.long)
    for kind in (MF2ForPreTraining, ExpBlipForPreTraining):
        for contrast, expected in (("meaning", 4), ("wording", 6)):
            model = SimpleNamespace(config=SimpleNamespace(contrast=contrast))
            keys = kind._said(model, "emo", wordings, units, emotions)
            assert allowed_negatives(keys, keys, torch.ones(3, dtype=torch.bool)).sum() == expected


@pytest.mark.slow
def test_systems_of_every_kind_are_trained_and_answer(tmp_path: Path, tables) -> None:
    command = "--quick --num_images 32 --language_images 4 --seeds 0 --use_cpu True".split()
    systems = [
        "probe_tokens_landmarks",
        "full",
        "mf2_no_language_cpu",
        "mf2_dfn",
        "me_graph_au",
        "exp_blip",
        "mf2_unseen",
    ]
    run = [*command, "--work_dir", str(tmp_path / "work"), "--tables", "headline", "language", "--systems", *systems]
    figures = tables.main(run)
    assert figures["failed_runs"] == 0 and figures["unseen_au_auc"] > 0
    assert all(f"headline/{name}/style/au_f1/mean" in figures for name in systems[:-1])
