"""The benchmark's tables, with a stand-in for train.py."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
from example_scripts import EXAMPLES, load


FAKE = """
import json, math, os, sys, time
from pathlib import Path

given = sys.argv[1:]
folder = Path(given[given.index("--output_dir") + 1])
tested = folder.name == "tested"
name, seed = (folder.parent if tested else folder).name.rsplit("-", 1)
plan = json.loads((Path(__file__).parent / "plan.json").read_text())
with open(Path(__file__).parent / "runs.txt", "a") as file:
    file.write(("tested " * tested + f"{name}-{seed}\\n").replace(" ", "/"))
if "--model_name_or_path" in given:
    assert (Path(given[given.index("--model_name_or_path") + 1]) / "metrics.json").is_file()
if folder.name in plan.get("fail", ()):
    print("a word of no use\\n" * 40 + "ValueError: captions: every row's vl_fau_local is empty")
    sys.exit(3)
if folder.name in plan.get("hang", ()) and not (folder / "checkpoint").exists():
    (folder / "checkpoint").write_text(str(os.getpid()))
    time.sleep(60)
if folder.name in plan.get("lacking", ()):
    print("dataset has no au_caption: the losses that need them are off")
score = 0.5 + 0.02 * int(seed)
metrics = {"au_f1_macro": score, "au_f1_tuned_macro": score + 0.1, "cpu_seconds": 10.0, "wall_seconds": 11.0}
metrics |= {"bleu_4": score, "cider": 10 * score, "fact_au_f1_macro": score}
metrics |= {"train_images": 96, "test_images": 48, "trainable_parameters": 1234567}
for unit in ("AU1", "AU12"):
    metrics |= {f"au_n/{unit}": 48.0, f"au_prevalence/{unit}": 0.25, f"au_f1/{unit}": score}
    metrics[f"au_f1_tuned/{unit}"] = score
metrics |= {"emotion_top1": score, "emotion_macro_recall": score, "emotion_macro_f1": score}
metrics["emotion_ovr_accuracy"] = 0.875
for emotion in ("Neutral", "Fear"):
    metrics |= {f"emotion_n/{emotion}": 9.0, f"emotion_ovr_accuracy/{emotion}": 0.9}
if tested:
    assert "evaluate" in given and Path(given[given.index("--dataset") + 1], "test").is_dir()
    metrics |= {"cpu_seconds": 1.0, "train_images": 64, "test_images": 24, "au_f1/AU1": 0.75}
metrics |= plan.get("metrics", {}).get(folder.name, {})
(folder / "metrics.json").write_text(json.dumps(metrics))
(folder / "config.json").write_text(json.dumps({"vision_config": {"backbone": "of-the-stand-in"}}))
sys.exit(folder.name in plan.get("crash", ()))
"""


class Stage:
    """A folder with the stand-in and its plan."""

    def __init__(self, folder: Path):
        self.folder, train = folder, folder / "train.py"
        train.write_text(FAKE)
        self.plan()
        self.command = f"--train {train} --work_dir {folder}/work --num_images 96 --style drawn --test_images 0".split()
        self.command += f"--markdown {folder}/tables.md --json {folder}/out/figures.json".split()

    def plan(self, **plan: object) -> None:
        (self.folder / "plan.json").write_text(json.dumps(plan))

    @property
    def ran(self) -> list[str]:
        path = self.folder / "runs.txt"
        return path.read_text().split() if path.exists() else []

    @property
    def markdown(self) -> str:
        return (self.folder / "tables.md").read_text()


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


@pytest.fixture(scope="module")
def tables():
    sys.path.insert(0, str(EXAMPLES / "benchmark"))
    yield load("benchmark/tables")
    sys.path.remove(str(EXAMPLES / "benchmark"))


def test_all_tables_have_figures_and_share_runs(stage: Stage, tables) -> None:
    figures = tables.main([*stage.command, "--seeds", "0", "1"])
    assert json.loads((stage.folder / "out" / "figures.json").read_text()) == figures
    runs = 2 * len(tables.cells_of(tables.SYSTEMS))
    assert len(stage.ran) == len(set(stage.ran)) == runs and figures["failed_runs"] == 0
    for name, table in tables.TABLES.items():
        for row in table.rows:
            column = {"V": "top1", "all": "top1", "expblip": "top1", "captions": "bleu_4"}.get(name, "avg")
            mean, sd = figures[f"{name}/{row}/{column}/mean"], figures[f"{name}/{row}/{column}/sd"]
            assert (mean, sd) == pytest.approx((0.875, 0) if name in ("III", "IV") else (0.51, 0.02 / math.sqrt(2)))
    assert figures["II/mf2/AU12_tuned/mean"] == pytest.approx(0.51)
    assert figures["III/hsemotion/Fear/mean"] == 0.9 and figures["IV/mf2/trainable_parameters/mean"] == 1234567
    assert tables.main([*stage.command, "--seeds", "0", "1"]) == figures and len(stage.ran) == runs


def test_systems_are_scored_on_further_subjects(stage: Stage, tables) -> None:
    command = [*stage.command, "--tables", "II", "--systems", "vl_fau", "me_graph_au", "--seeds", "0"]
    command += ["--test_images", "24"]
    figures = tables.main(command)
    assert figures["II/vl_fau/AU1/mean"] == 0.75 and "of other people" in stage.markdown
    (budget,) = [line for line in stage.markdown.splitlines() if line.startswith("| VL-FAU | `vl_fau`")]
    assert [cell.strip() for cell in budget.split("|")[6:]] == ["96", "24", "1,234,567", "10", ""], "cost is training's"
    assert budget.split("|")[3].strip() == "of-the-stand-in"
    assert stage.ran.count("tested/vl_fau-0") == 1 and "tested/me_graph_au_stage1-0" not in stage.ran
    before = len(stage.ran)
    assert tables.main(command) == figures and len(stage.ran) == before


def test_papers_figures_share_no_column_with_synthetic_ones(stage: Stage, tables) -> None:
    tables.main([*stage.command, "--seeds", "0", "1", "--tables", "II", "vlfau4"])
    head, *blocks = stage.markdown.split("\n\n")
    assert "synthetic faces" in head
    rows = [row.split(" | ") for row in stage.markdown.splitlines() if "MF² + DFN" in row and "53.35" in row]
    assert len(rows[0]) == len("name AU1 AU12 avg papers".split()) and rows[0][-1] == "53.35 |"
    assert rows[0][1] == "51.0 ± 1.4" and "±" not in rows[0][-1]
    ours = [block for block in blocks if "±" in block and block.startswith("|")]
    assert ours and all("the paper's own" not in block for block in ours)
    assert all("the paper's avg, on its data" in block.splitlines()[0] for block in ours if "53.35" in block)
    own = next(block for block in blocks if block.startswith("| the paper's |") and "53.35" in block)
    assert "±" not in own and "44.76" in own and "| 57.80 |" in own
    assert "Aff-Wild2" in blocks[blocks.index(own) - 1]
    assert "MF² + DFN" in next(block for block in blocks if "More epochs" in block)
    assert (stage.folder / "work" / "action_units.png").stat().st_size > 10_000
    assert "](work/action_units.png)" in stage.markdown


def test_failed_runs_are_reported_and_retried_and_others_continue(
    stage: Stage, tables, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.plan(fail=["vl_fau-0", "mf2-0"], crash=["exp_blip-1"])  # the last one after it wrote its figures
    command = [*stage.command, "--seeds", "0", "1", "--tables", "II"]
    figures = tables.main(command)
    assert figures["failed_runs"] == 4  # DFN of this seed too, which starts from MF²
    assert "mf2_dfn-0" not in stage.ran and {"me_graph_au-0", "vl_fau-1", "mf2_dfn-1"} <= set(stage.ran)
    assert figures["II/mf2/avg/mean"] == 0.52 and figures["II/mf2/avg/fewer_seeds"] == 1
    printed = capsys.readouterr().out
    assert "vl_fau_local is empty" in printed and printed.count("a word of no use") < 100
    assert "vl_fau-0 ended with 3" in stage.markdown and "† mean of fewer seeds" in stage.markdown
    failed = tables.main([*stage.command, "--seeds", "0", "--systems", "mf2", "vl_fau", "--tables", "II", "IV"])
    assert set(failed) == {"failed_runs"} and "| VL-FAU | failed |" in stage.markdown
    stage.plan()
    before = len(stage.ran)
    assert tables.main(command)["failed_runs"] == 0
    assert stage.ran[before:] == ["vl_fau-0", "mf2-0", "mf2_dfn-0", "exp_blip-1"]


def test_undefined_scores_and_empty_captions_are_flagged(stage: Stage, tables) -> None:
    unseen = {"au_prevalence/AU12": 0.0, "au_f1/AU12": 0.0, "emotion_n/Fear": 0.0}
    broken = {"au_f1_macro": math.nan, "emotion_ovr_accuracy": math.inf}
    mute = {"caption_pairs": 9.0, "caption_references": 1.0, "fact_claims": 0.0, "fact_contradicted": 0.0}
    metrics = {"mf2-0": unseen, "mf2-1": broken | unseen, "exp_blip_au_stage2-0": mute | {"caption_empty": 9.0}}
    stage.plan(metrics=metrics, lacking=["mf2-0"])
    command = [*stage.command, "--seeds", "0", "1", "--systems", "mf2", "--tables", "II", "III"]
    figures = tables.main(command)
    assert all(math.isfinite(value) for value in figures.values())
    assert figures["II/mf2/AU12/no_positive"] == 1 and figures["II/mf2/AU12/mean"] == 0
    assert "II/mf2/AU1/no_positive" not in figures and figures["III/mf2/Fear/no_positive"] == 1
    assert figures["II/mf2/avg/not_finite"] == 1 and figures["II/mf2/avg/mean"] == 0.5
    assert "nan" not in stage.markdown.lower() and "inf" not in stage.markdown.lower().replace("inference", "")
    assert "0.0 ± 0.0*" in stage.markdown and "* no test image shows it" in stage.markdown
    assert "mf2-0: dataset has no au_caption" in stage.markdown
    command = [*stage.command, "--seeds", "0", "--tables", "captions", "--systems", "exp_blip_au_stage2"]
    figures, table = tables.main(command), "captions/exp_blip_au_stage2"
    assert figures[f"{table}/contradicted/untold"] == figures[f"{table}/cider/untold"] == 1
    assert f"{table}/bleu_4/untold" not in figures and figures[f"{table}/empty/mean"] == 9
    assert "0.0§" in stage.markdown and "±" not in stage.markdown.split("##")[-1]


def test_systems_that_the_label_set_cannot_train_are_reported(stage: Stage, tables) -> None:
    command = [*stage.command, "--seeds", "0", "--label_set", "disfa", "--tables", "II", "V", "expblip"]
    figures = tables.main(command)
    assert figures["failed_runs"] == 0 and "## Table V" not in stage.markdown and "## Table II" in stage.markdown
    assert not [name for name in stage.ran if "emot" in name] and "exp_blip_au_qformer_probe-0" in stage.ran
    assert "mf2_au_to_emotion was not run: label set disfa has no emotions" in stage.markdown


def test_killed_tables_stop_their_runs_and_continue(stage: Stage, tables) -> None:
    stage.plan(hang=["vl_fau-0", "me_graph_au-0"])
    command = [*stage.command, "--seeds", "0", "--systems", "me_graph_au", "vl_fau", "mf2", "--tables", "II"]
    process = subprocess.Popen([sys.executable, EXAMPLES / "benchmark" / "tables.py", *command, "--jobs", "2"])
    marks = [stage.folder / "work" / name / "checkpoint" for name in ("vl_fau-0", "me_graph_au-0")]
    until = time.monotonic() + 60
    while not all(mark.exists() and mark.read_text() for mark in marks) and time.monotonic() < until:
        time.sleep(0.05)  # two hang side by side
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143
    for mark in marks:
        with pytest.raises(ProcessLookupError):
            os.kill(int(mark.read_text()), 0)
    assert set(stage.ran) == {"me_graph_au_stage1-0", "me_graph_au-0", "vl_fau-0"}
    tables.main(command)
    assert set(stage.ran[3:]) == {"vl_fau-0", "me_graph_au-0", "mf2-0"} and len(stage.ran) == 6


def test_another_budget_is_refused_and_damaged_metrics_run_again(stage: Stage, tables) -> None:
    command = [*stage.command, "--seeds", "0", "--systems", "mf2", "--tables", "II"]
    tables.main(command)
    with pytest.raises(ValueError, match=r"mf2-0: was run with `.*--num_train_epochs 8 .*expected .*epochs 9 .*give"):
        tables.main([*command, "--epochs", "9"])
    metrics = stage.folder / "work" / "mf2-0" / "metrics.json"
    metrics.write_text(metrics.read_text()[:50])  # cut short
    assert tables.main(command)["II/mf2/avg/mean"] == 0.5 and stage.ran == ["mf2-0", "mf2-0"]


def test_all_systems_get_the_same_budget(stage: Stage, tables, capsys: pytest.CaptureFixture[str]) -> None:
    assert tables.main([*stage.command, "--dry_run", "--quick", "--use_cpu", "True"]) == {} and stage.ran == []
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if "--output_dir" in line]
    assert len(lines) == len(tables.cells_of(tables.SYSTEMS))
    given = [dict(pairwise(line)) for line in lines]
    for shared in ("--dataset", "--num_images", "--people_seed", "--model_size", "--per_device_train_batch_size"):
        assert len({command[shared] for command in given}) == 1
    epochs = {Path(command["--output_dir"]).name[:-2]: int(command["--num_train_epochs"]) for command in given}
    for system in tables.SYSTEMS:
        sum_of_stages = sum(epochs[cell] for cell in tables.cells_of([system]))
        if system.startswith("exp_blip") and not system.endswith("stage2"):
            # Two stages on captions come before what is learned from labels.
            assert sum_of_stages == (3 if system.endswith("to_emotion") else 4)
        else:
            assert sum_of_stages == (4 if system == "mf2_dfn" else 2)
    assert all(command["--use_cpu"] == "True" for command in given)


def test_wrong_argument_is_named_before_any_run(stage: Stage, tables, capsys) -> None:
    for wrong in ("--dataset nowhere", "--seeds 1 1", "--epochs 0", "--systems nobody"):
        with pytest.raises(SystemExit):
            tables.main([*stage.command, *wrong.split()])
        assert wrong.split()[0][2:] in capsys.readouterr().err.splitlines()[-1] and stage.ran == []
    with pytest.raises(ValueError, match=r"systems: got \['hsemotion'\], .* \['II'\]"):
        tables.main([*stage.command, "--tables", "II", "--systems", "hsemotion"])
