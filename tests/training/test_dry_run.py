"""A dry run: it says what a run needs, refuses what does not fit, and leaves nothing."""

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import torch
from short_runs import command, short_run

import train
from mf2face.training import dry_run as module
from mf2face.training.arguments import parse_arguments
from mf2face.training.stores import StateStore


SMALL = {"num_images": 96, "max_steps": None, "eval_strategy": None, "save_strategy": None, "num_train_epochs": 1}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
        yield folder


def dry(folder: Path, **options: object) -> list[str]:
    return command(folder, **{**SMALL, "dry_run": True, **options})


def check_figures(figures: dict[str, float]) -> None:
    assert figures["steps"] == math.ceil(figures["train_images"] / 16) and figures["hours"] > 0
    weights = 4 * (figures["trained_parameters"] + figures["frozen_parameters"]) / 1e9
    assert figures["weights_gb"] == pytest.approx(weights) and figures["step_gb"] > 0
    parts = sum(figures[f"{name}_gb"] for name in ("weights", "optimizer", "step"))
    assert figures["memory_gb"] == pytest.approx(parts)
    assert figures["optimizer_gb"] <= 8.08 * figures["trained_parameters"] / 1e9


@pytest.mark.usefixtures("training_alone")
def test_a_dry_run_says_what_the_run_needs_and_leaves_nothing(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    figures = train.main(dry(out, task="dfn"))
    printed = capsys.readouterr().out
    assert not out.exists() and not list(cache.glob("mf2_*"))
    assert all(f"\n{name} " in printed for name in ("parameters", "memory", "stores", "disk", "steps", "hours"))
    check_figures(figures)
    ours = short_run(out, **{**SMALL, "task": "dfn"})
    stores = [StateStore(path.parent) for path in cache.glob("mf2_states/*/store.json")]
    size = sum(shard[name].nbytes for store in stores for shard in store.shards for name in shard)
    assert figures["store_gb"] == pytest.approx(size / 1e9) and sum(map(len, stores)) == 96
    assert figures["trained_parameters"] == ours["trainable_parameters"]
    newest = next(out.glob("checkpoint-*"))
    states = torch.load(newest / "optimizer.pt", weights_only=True)["state"].values()
    kept = sum(state[name].nbytes for state in states for name in ("exp_avg", "exp_avg_sq"))
    assert figures["optimizer_gb"] == pytest.approx(kept / 1e9, rel=0.01), "heads without labels have no state"
    saved = sum((newest / name).stat().st_size for name in ("adapter_model.safetensors", "optimizer.pt"))
    assert figures["checkpoint_gb"] == pytest.approx(saved / 1e9, rel=0.05)


NEEDS = {"memory_gb": 40.0, "device_gb": 24.0, "step_gb_per_image": 0.5, "output_gb": 9.0, "store_gb": 25.0}


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ({}, r"device: cpu has .* 56 images a step need 40\.0 GB; --per_device_train_batch_size 14 --gradient"),
        ({"device_gb": 80}, r"cache\d+: 25\.0 GB are needed, 9\.5 GB are free; set HF_DATASETS_CACHE"),
        ({"device_gb": 80, "store_gb": 1, "output_gb": 10}, r"out: 10\.0 GB are needed, .* give another --output_dir"),
    ],
    ids=["device", "stores", "output"],
)
def test_what_is_too_small_is_named_with_what_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figures: dict[str, float], expected: str
) -> None:
    monkeypatch.setattr(module, "_free", lambda _: 9.5)
    settings = parse_arguments(dry(tmp_path / "out", per_device_train_batch_size=56))
    with pytest.raises(ValueError, match=expected) as raised:
        module._check_room(settings, NEEDS | figures)
    assert figures or ("--gradient_accumulation_steps 4" in str(raised.value) and "--bf16 True" in str(raised.value))


def test_weights_that_do_not_fit_are_refused_before_anything_is_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "device_bytes", lambda _: 1e6)
    with pytest.raises(ValueError, match=r"device: cpu has 0\.0 GB, weights, gradients and optimizer alone take .*dfn"):
        train.main(dry(tmp_path / "out"))


def test_a_step_of_few_images_is_tried_with_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    step = module._Step(peak=10**9, seconds=0.5, optimizer=0)
    monkeypatch.setattr(module, "_probe", lambda _, __, size: tried.append(size) or step)
    monkeypatch.setattr(module, "_evaluation_hours", lambda *_: 0.0)
    for batch, expected in {1: [1, 1], 3: [2, 3], 56: [4, 8, 32, 56]}.items():
        settings = parse_arguments(dry(tmp_path, per_device_train_batch_size=batch))
        figures = module._step_figures(settings, SimpleNamespace(model=torch.nn.Linear(1, 1)), {"train": 560})
        assert tried == expected and figures["step_gb"] == 1 and figures["step_seconds"] == 0.5
        tried.clear()


def test_reading_and_changing_images_counts_as_time_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(module._Watch, "_peak", lambda _: 0)
    watch = module._Watch(torch.device("cpu"))
    for step, (reads, learns) in enumerate([(1.0, 5.0), (1.0, 5.0), (2.0, 0.5), (3.0, 0.5)], 1):
        clock.now += reads
        watch.on_step_begin(None, SimpleNamespace(global_step=0), None)
        clock.now += learns
        watch.on_step_end(None, SimpleNamespace(global_step=step), None)
    assert watch.times == [2.5, 3.5], "the first two make the optimizer's state and measure memory"


def test_only_what_trains_has_a_dry_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dry_run: got True with --task evaluate"):
        train.main(dry(tmp_path / "out", task="evaluate", model_name_or_path=tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{}, {"task": "tower"}, *({"model": name} for name in ("vl_fau", "hsemotion", "exp_blip"))], ids=str
)
def test_every_system_has_one(tmp_path: Path, options: dict) -> None:
    check_figures(train.main(dry(tmp_path / "out", gradient_accumulation_steps=1, **options)))
