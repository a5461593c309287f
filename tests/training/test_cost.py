"""What a run costs is counted over its interruptions."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from mf2face.training.trainer import Cost, cpu_seconds


def spend(seconds: float) -> None:
    until = cpu_seconds() + seconds
    while cpu_seconds() < until:
        sum(range(1000))


def test_a_run_that_goes_on_counts_what_came_before(tmp_path: Path) -> None:
    first, trainer = Cost(), SimpleNamespace()
    spend(0.1)
    first.begin_training(trainer, None)
    spend(0.2)
    trainer.write_beside_checkpoint(tmp_path)
    kept = json.loads((tmp_path / "cost.json").read_text())
    assert 0.18 <= kept["training_cpu_seconds"] <= kept["cpu_seconds"] - 0.08  # a clock of hundredths
    spend(0.1)  # after the checkpoint: is done again, and counts then

    second = Cost()
    second.begin_training(trainer, str(tmp_path))
    assert second.training_cpu_seconds() == pytest.approx(kept["training_cpu_seconds"], abs=0.05)
    assert second.figures() == pytest.approx({name: kept[name] for name in ("cpu_seconds", "wall_seconds")}, abs=0.05)
    spend(0.1)
    assert second.training_cpu_seconds() >= kept["training_cpu_seconds"] + 0.08
