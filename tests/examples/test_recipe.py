"""The recipe of the paper's tables: the same commands as a lab's, on rendered people at the tiny size."""

import json
from pathlib import Path

import datasets
import pytest
from example_scripts import EXAMPLES, load

from mf2face.training.finetuning import adapt
from modeling_mf2.dfn.states import compute_states


TINY = ["rendered", "160", "--preset", "tiny", "--writer", "rule", "--epochs", "1"]
CPU = ["--use_cpu", "True", "--per_device_train_batch_size", "32"]


def test_the_table_of_what_has_been_run_follows_from_what_benchmarks_noted() -> None:
    page = (EXAMPLES.parent / "docs" / "paper.md").read_text()
    where = load("benchmark/run_where")
    assert where.filled(page) == page and "never" in page, "run examples/benchmark/run_where.py"
    assert {*json.loads(where.RUNS.read_text())} <= {*where.ROWS}


def test_arithmetic_of_the_papers_size() -> None:
    """On the meta device: DFN's store of the paper's images, and what a checkpoint holds."""
    scale = load("benchmark/paper_scale")
    assert 31_320 * scale.stored_bytes("giant", "compact") <= 25e9
    model = adapt(scale.MF2ForFaceAnalysis(scale.MF2Config.from_size("tiny")), "dfn", dfn_states="compact").eval()
    images = {"pixel_values": scale.torch.zeros(1, 3, 112, 112), "landmarks": scale.torch.rand(1, 68, 2) * 112}
    states = compute_states(model, images)
    counted = sum(2 * state.numel() for name, state in states.items() if "." not in name)
    assert scale.stored_bytes("tiny", "compact") == counted < scale.stored_bytes("tiny", "all")


@pytest.mark.slow
def test_the_recipe_runs_from_build_to_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    recipe = load("paper/recipe")
    trained = [*recipe.OURS, "paper_dfn"]
    work = [*TINY, *CPU, "--work_dir", str(tmp_path / "work")]
    needs = recipe.main([*work, "--dry_run", "--json", str(tmp_path / "needs.json")])
    assert [row["step"] for row in needs] == trained and not (tmp_path / "work").exists()
    assert all(row["hours"] > 0 and row["euros"] > 0 and row["disk_gb"] > 0 for row in needs)
    assert json.loads((tmp_path / "needs.json").read_text()) == needs
    recipe.main([*work, "--json", str(tmp_path / "scores.json")])
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert len(scores) >= 3 * len(trained) and all(0 <= score <= 1 for score in scores.values())
    text = (tmp_path / "work" / "tables.md").read_text()
    assert "Table II" in text and "rendered (synthetic) faces" in text and "not run" not in text
    for step in trained:
        assert (tmp_path / "work" / step / "README.md").is_file()


@pytest.mark.slow
def test_gpu_runs_every_part_on_a_cpu(tmp_path: Path) -> None:
    small = "--device cpu --size tiny --batch_size 16 --rounds 1 --steps 1 --parts memory dfn launch".split()
    figures = load("benchmark/gpu").main([*small, "--json", str(tmp_path / "figures.json")])
    assert figures["dry_run_memory_error"] < 0.15 and figures["launch_ddp"] == 1
    assert figures["dfn_images_per_s"] > figures["store_images_per_s"] > 0
