"""A dry run: it says what a run needs, refuses what does not fit, and leaves nothing."""

from pathlib import Path

import datasets
import pytest
from short_runs import command, short_run

import train
from mf2face.training import dry_run as module
from mf2face.training.stores import StateStore


SMALL = {"num_images": 96, "max_steps": None, "eval_strategy": None, "save_strategy": None, "num_train_epochs": 2}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def dry(folder: Path, **options: object) -> dict[str, float]:
    return train.main(command(folder, **{**SMALL, "dry_run": True, **options}))


def test_a_dry_run_says_what_a_run_needs_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = dry(tmp_path / "out")
    printed = capsys.readouterr().out
    assert not (tmp_path / "out").exists() and not list((tmp_path / "cache").glob("mf2_*"))
    for name in ("parameters", "memory", "stores", "disk", "steps", "hours"):
        assert f"\n{name} " in printed
    assert figures["steps"] == 2 * 5  # 80 of the 96 images, 16 at a time, twice
    weights = 4 * (figures["trained_parameters"] + figures["frozen_parameters"]) / 1e9
    assert figures["memory_gb"] > figures["weights_gb"] + figures["optimizer_gb"] and figures["step_gb"] > 0
    assert figures["weights_gb"] == pytest.approx(weights) and figures["hours"] > 0
    assert figures["optimizer_gb"] == pytest.approx(8 * figures["trained_parameters"] / 1e9, rel=0.01)
    assert figures["checkpoint_gb"] == pytest.approx(12 * figures["trained_parameters"] / 1e9, rel=0.01)


def test_the_sizes_of_store_and_checkpoint_are_those_of_the_run(tmp_path: Path) -> None:
    figures = dry(tmp_path / "out", task="dfn")
    ours = short_run(tmp_path / "out", **{**SMALL, "task": "dfn", "num_train_epochs": 1})
    stores = [StateStore(path.parent) for path in (tmp_path / "cache" / "mf2_states").glob("*/store.json")]
    size = sum(shard[name].nbytes for store in stores for shard in store.shards for name in shard)
    assert figures["store_gb"] == pytest.approx(size / 1e9) and sum(map(len, stores)) == 96
    assert figures["trained_parameters"] == ours["trainable_parameters"]
    newest = next((tmp_path / "out").glob("checkpoint-*"))
    saved = sum((newest / name).stat().st_size for name in ("adapter_model.safetensors", "optimizer.pt"))
    assert figures["checkpoint_gb"] == pytest.approx(saved / 1e9, rel=0.05)


@pytest.mark.parametrize(
    ("has", "expected"),
    [
        (1e6, r"device: cpu has 0\.0 GB, weights, gradients and optimizer alone take .*--task dfn"),
        (
            0.15e9,
            r"16 images a step need .*--per_device_train_batch_size \d+ --gradient_accumulation_steps \d+ is the ",
        ),
    ],
)
def test_a_device_that_is_too_small_is_refused_with_what_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has: float, expected: str
) -> None:
    monkeypatch.setattr(module, "device_bytes", lambda _: has)
    with pytest.raises(ValueError, match=expected):
        dry(tmp_path / "out")


def test_a_disk_that_is_too_small_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_free", lambda folder: 1e-6 if folder == tmp_path / "cache" else 1e3)
    with pytest.raises(ValueError, match=r"cache: .* GB are needed, 0\.0 GB are free; set HF_DATASETS_CACHE"):
        dry(tmp_path / "out", task="dfn")
    monkeypatch.setattr(module, "_free", lambda folder: 1e3 if folder == tmp_path / "cache" else 1e-6)
    with pytest.raises(ValueError, match=r"out: .* give another --output_dir"):
        dry(tmp_path / "out", task="dfn")


def test_only_what_trains_has_a_dry_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dry_run: got True with --task evaluate"):
        dry(tmp_path / "out", task="evaluate", model_name_or_path=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["vl_fau", "me_graph_au", "hsemotion", "exp_blip"])
def test_compared_systems_have_one_too(tmp_path: Path, model: str) -> None:
    assert dry(tmp_path / "out", model=model)["memory_gb"] > 0
