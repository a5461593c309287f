"""`train.py --dry_run`: what a run needs, from a few of its steps on a few of its rows; nothing is kept.

Memory and time grow evenly with the batch: two small batches say how much is fixed, and how much an image takes.
"""

import copy
import json
import logging
import math
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import default_collate
from transformers import TrainerCallback, TrainingArguments

from mf2face.captions.styles import CAPTIONS
from mf2face.data.examples import LABELS, MF2Examples
from mf2face.training.arguments import Settings
from mf2face.training.build import load_splits, store_options, store_root, with_sources
from mf2face.training.run import load_parts, make_trainer
from mf2face.training.stores import StoreOptions, frozen_outputs
from mf2face.training.trainer import MF2Trainer


Figures = dict[str, float]

GB = 1e9
_DRAWN, _ROWS = 160, 64  # synthetic faces that are made, and rows that are used, in place of all
_ADAM_BYTES = 12  # of a trained float32 weight: its gradient and two moments
MODEL_INPUTS = ("pixel_values", "landmarks")
_SHORT = {
    **{"save_strategy": "no", "eval_strategy": "no", "load_best_model_at_end": False, "report_to": []},
    **{"logging_steps": 10**9, "max_steps": 4, "lr_scheduler_type": "constant", "disable_tqdm": True},
}

_LONG = 3.0
"""Seconds of a step that tells how long one of many images takes."""


def dry_run(settings: Settings) -> Figures:
    """Prints what the run needs. ValueError: the device, or a disk, is too small for it."""
    if not settings.trains:
        raise ValueError("dry_run: got True with --task evaluate, expected a task that trains")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    settings = with_sources(settings)
    if settings.arguments.folds:  # one of them; the others take as long
        settings = replace(settings, arguments=replace(settings.arguments, fold=1))
    splits, images = _few_rows(settings)
    device_gb = device_bytes(settings.training.device) / GB  # on a CPU before it holds the weights
    parts, splits, _, columns, _ = load_parts(settings, splits)
    _check_weights(settings, parts.model, device_gb)
    with tempfile.TemporaryDirectory() as folder:
        scratch = replace(settings, training=_changed(settings.training, output_dir=folder))
        trainer, _ = make_trainer(scratch, parts, splits, columns, Path(folder))
        figures = {f"{name}_images": count for name, count in images.items()} | {"device_gb": device_gb}
        figures |= _parameters(trainer.model)
        figures |= _store_figures(settings, trainer.model, parts, splits["train"], images)
        figures |= _step_figures(scratch, trainer, images)
    figures |= _disk_figures(settings, trainer.model, figures)
    if settings.training.process_index == 0:
        print(table(settings, figures))
    _check_room(settings, figures)
    return figures


def _few_rows(settings: Settings) -> tuple[dict[str, Dataset], dict[str, int]]:
    """Some rows of each split, with long captions, and how many the run has."""
    ours = settings.arguments
    if ours.dataset == "synthetic" and not ours.streaming:
        few = min(ours.num_images, _DRAWN)
        splits = load_splits(replace(ours, num_images=few))
        images = {name: round(len(rows) / few * ours.num_images) for name, rows in splits.items()}
    else:
        splits = load_splits(ours)
        images = {name: len(rows) for name, rows in splits.items() if isinstance(rows, Dataset)}
    return {name: _with_long_captions(rows) for name, rows in splits.items()}, images


def _with_long_captions(rows: Dataset) -> Dataset:
    if not isinstance(rows, Dataset):
        return rows  # a stream
    rows = rows.select(range(min(len(rows), 2048)))
    texts = [rows[name][:] for name in CAPTIONS if name in rows.column_names]
    length = lambda row: sum(len(text[row] or "") for text in texts)  # noqa: E731
    return rows.select(sorted(range(len(rows)), key=length, reverse=True)[:_ROWS])


def _changed(training: TrainingArguments, **values: Any) -> TrainingArguments:
    changed = copy.copy(training)
    for name, value in values.items():
        setattr(changed, name, value)
    return changed


def _bytes(model: torch.nn.Module, trained: bool) -> int:
    return sum(p.nbytes for p in model.parameters() if p.requires_grad is trained)


def _parameters(model: torch.nn.Module) -> Figures:
    counts = {"trained": 0, "frozen": 0}
    for parameter in model.parameters():
        counts["trained" if parameter.requires_grad else "frozen"] += parameter.numel()
    return {
        **{f"{name}_parameters": count for name, count in counts.items()},
        "weights_gb": sum(_bytes(model, trained) for trained in (True, False)) / GB,
    }


def _store_figures(
    settings: Settings, model: torch.nn.Module, parts: Any, rows: Dataset, images: Mapping[str, int]
) -> Figures:
    """Size and time of the stores that the run builds, by one batch of images."""
    ours = settings.arguments
    stored = [parts.model.base_model.vision] if ours.store_vision else []
    stored += [] if ours.no_store else [model]
    if not stored:
        return {}
    plain, count = MF2Examples(rows, parts.processor, texts=False, warned={*LABELS}), min(8, len(rows))
    how = store_options(settings)
    options = StoreOptions(**how)
    size = seconds = 0.0
    for frozen in stored:
        times = []
        for _ in range(2):
            begun = time.perf_counter()
            found = plain.__getitems__(range(count))
            inputs = default_collate([{name: example[name] for name in MODEL_INPUTS} for example in found])
            outputs = frozen_outputs(frozen, inputs, options)
            times.append(time.perf_counter() - begun)
        seconds += min(times) / count
        size += sum(tensor.nbytes for name, tensor in outputs.items() if "." not in name) / count
    total = images["train"] * ours.views + sum(images.get(name, 0) for name in ("validation", "test"))
    return {
        **{"store_kb_per_image": size / 1e3, "store_gb": size * total / GB},
        "store_hours": seconds * total / settings.training.world_size / 3600,
    }


class _Step(NamedTuple):
    peak: int  # bytes beyond weights and the optimizer's state
    seconds: float
    optimizer: int  # bytes of its state


class _Watch(TrainerCallback):
    """Memory of the second step, seconds of the later ones, from the end of the one before: images are read and changed
    between two steps. The first one makes the optimizer's state."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.times, self.peak, self.ended = device, [], 0, 0.0

    def on_step_begin(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
        elif state.global_step == 1:
            self.profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
            self.profile.start()

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        if state.global_step > 2:
            self.times.append(time.perf_counter() - self.ended)
        if state.global_step == 2:
            self.peak = self._peak()
        self.ended = time.perf_counter()

    def _peak(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self.before
        self.profile.stop()
        return allocated_peak(self.profile)


def allocated_peak(profiled: profile) -> int:
    """The most bytes that were allocated on the CPU at once, since a profile with `profile_memory` began."""
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "trace.json")
        profiled.export_chrome_trace(file)
        with open(file, encoding="utf-8") as opened:
            events = json.load(opened)["traceEvents"]
    return max((event["args"]["Total Allocated"] for event in events if event.get("name") == "[memory]"), default=0)


def _probe(settings: Settings, trainer: MF2Trainer, size: int) -> _Step:
    accumulated = min(settings.training.gradient_accumulation_steps, 4)
    sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated}
    training = _changed(settings.training, **_SHORT, **sizes)
    watch = _Watch(training.device)
    probe = type(trainer)(
        model=trainer.model,
        args=training,
        train_dataset=trainer.train_dataset,
        data_collator=trainer.data_collator,
        callbacks=[watch],
    )
    probe.layer_decay = trainer.layer_decay
    try:
        probe.train()
    except torch.OutOfMemoryError as error:
        has = device_bytes(training.device) / GB
        raise ValueError(_too_small(settings, has, f"not even {size} images a step fit")) from error
    state = [value for values in probe.optimizer.state.values() for value in values.values()]
    size = sum(value.nbytes for value in state if isinstance(value, torch.Tensor))
    return _Step(watch.peak, statistics.median(watch.times) / accumulated, size)


def _step_figures(settings: Settings, trainer: MF2Trainer, images: Mapping[str, int]) -> Figures:
    training = settings.training
    batch, accumulated = training.per_device_train_batch_size, training.gradient_accumulation_steps
    few = max(2, min(4, batch // 8))
    sizes = min(few, batch), min(2 * few, batch)  # no more than the run takes
    small, large = (_probe(settings, trainer, size) for size in sizes)
    slope = max(large.peak - small.peak, 0) / max(sizes[1] - sizes[0], 1)
    fixed = max(large.peak - slope * sizes[1], 0)
    if training.world_size > 1:
        fixed += _bytes(trainer.model, True)  # DDP's copies of the gradients
    held = _bytes(trainer.model, True) + _bytes(trainer.model, False) + large.optimizer
    timed, room = {sizes[0]: small.seconds, sizes[1]: large.seconds}, device_bytes(training.device) - held - fixed
    while timed[max(timed)] < _LONG and (size := min(4 * max(timed), batch)) > max(timed) and slope * size < room:
        timed[size] = _probe(settings, trainer, size).seconds  # of few images most is not theirs
    *_, less, most = (min(timed), *sorted(timed))
    pace = min(max((timed[most] - timed[less]) / max(most - less, 1), 0), timed[most] / most)
    seconds = accumulated * (timed[most] + pace * (batch - most))
    steps, epochs = training.max_steps, training.num_train_epochs
    if images.get("train"):
        each = math.ceil(math.ceil(images["train"] / (batch * training.world_size)) / accumulated)
        steps = steps if steps > 0 else math.ceil(epochs * each)
        epochs = steps / each
    figures = {
        **{"optimizer_gb": large.optimizer / GB, "step_gb": (fixed + slope * batch) / GB},
        **{"step_gb_per_image": slope / GB, "steps": steps, "step_seconds": seconds},
        **{"hours": steps * seconds / 3600, "evaluation_hours": _evaluation_hours(settings, trainer, images, epochs)},
    }
    figures["memory_gb"] = held / GB + figures["step_gb"]
    return figures


def _evaluation_hours(settings: Settings, trainer: MF2Trainer, images: Mapping[str, int], epochs: float) -> float:
    rows = trainer.eval_dataset
    if rows is None or settings.task.measures == "rendering":  # not by the Trainer
        return 0.0
    trainer.compute_metrics, times = None, []
    for _ in range(2):
        begun = time.perf_counter()
        trainer.predict(rows)
        times.append(time.perf_counter() - begun)
    rounds = epochs if settings.training.eval_strategy != "no" else 0
    seen = images.get("validation", len(rows)) * (1 + rounds) + images.get("test", 0)
    return min(times) / len(rows) * seen / settings.training.world_size / 3600


def _disk_figures(settings: Settings, model: torch.nn.Module, figures: Figures) -> Figures:
    training, apart = settings.training, settings.task.saves != "adapter"
    trained = _bytes(model, True) / GB
    figures = {"checkpoint_gb": trained + (0 if training.save_only_model else figures["optimizer_gb"])}
    figures["frozen_file_gb"] = _bytes(model, False) / GB if apart else 0.0
    kept = training.save_total_limit or math.ceil(training.num_train_epochs)
    saved = 0 if training.save_strategy == "no" else kept + 1  # an old one goes when the new one is whole
    final = trained + 2 * figures["frozen_file_gb"] if saved else trained + figures["frozen_file_gb"]
    return {**figures, "output_gb": saved * figures["checkpoint_gb"] + final}


def device_bytes(device: torch.device) -> int:
    """Memory of a GPU; on a CPU what is available."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _check_weights(settings: Settings, model: torch.nn.Module, device_gb: float) -> None:
    """Before anything is moved to the device."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    adds = settings.task.trains in ("adapter", "heads")
    needed = _bytes(model, True) + _bytes(model, False) + (0 if adds else _ADAM_BYTES * trained)
    if needed > device_gb * GB:
        what = f"weights, gradients and optimizer alone take {needed / GB:.1f} GB"
        raise ValueError(_too_small(settings, device_gb, what))


def _too_small(settings: Settings, device_gb: float, what: str) -> str:
    training, ours = settings.training, settings.arguments
    options = {
        "--activation_checkpointing True": not training.activation_checkpointing,
        "--bf16 True": not (training.bf16 or training.fp16),
        "--tower_dtype bfloat16": getattr(ours, "tower_dtype", None) == "float32",
        "--store_vision True": ours.store_vision is False and "tokens" in settings.task.stores,
        "--task dfn": settings.task.trains == "above the tower",
    }
    has = f"{training.device} has {device_gb:.1f} GB"
    helps = ", ".join(option for option, open_ in options.items() if open_)
    return f"device: {has}, {what}. What takes less: {helps or 'a smaller --model_size'}"


def _check_room(settings: Settings, figures: Figures) -> None:
    training = settings.training
    if figures["memory_gb"] > figures["device_gb"]:
        batch, accumulated = training.per_device_train_batch_size, training.gradient_accumulation_steps
        room = figures["device_gb"] - figures["memory_gb"] + batch * figures["step_gb_per_image"]
        fits = int(room / max(figures["step_gb_per_image"], 1e-9))
        what = f"{batch} images a step need {figures['memory_gb']:.1f} GB"
        if 0 < fits < batch:
            fits = max(size for size in range(1, fits + 1) if batch * accumulated % size == 0)
            parts = batch * accumulated // fits
            what += f"; --per_device_train_batch_size {fits} --gradient_accumulation_steps {parts} is the same step and"
            what += " fits"
        raise ValueError(_too_small(settings, figures["device_gb"], what))
    needs = {settings.folder: figures["output_gb"]}
    cache = store_root("states").parent
    needs[cache] = needs.get(cache, 0.0) + figures.get("store_gb", 0.0)
    for folder, needed in needs.items():
        free = _free(folder)
        if needed > free:
            advice = "give another --output_dir, or save less (--save_total_limit, --save_only_model)"
            if folder == cache:
                advice = "set HF_DATASETS_CACHE to another disk, or go without (--no_store, --store_vision False)"
            raise ValueError(f"{folder}: {needed:.1f} GB are needed, {free:.1f} GB are free; {advice}")


def _free(folder: Path) -> float:
    folder = Path(folder).absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free / GB


def table(settings: Settings, figures: Figures) -> str:
    ours, training, f = settings.arguments, settings.training, figures
    batch, accumulated = training.per_device_train_batch_size, training.gradient_accumulation_steps
    stores = "none"
    if "store_gb" in f:
        stores = f"{f['store_kb_per_image']:,.1f} kB an image, {f['store_gb']:.2f} GB, {f['store_hours']:.2f} hours"
    frozen = f" + {f['frozen_file_gb']:.2f} GB of frozen weights" if f["frozen_file_gb"] else ""
    hours = f["hours"] + f["evaluation_hours"] + f.get("store_hours", 0.0)
    what = f"{ours.model} {ours.task}, {ours.model_size}" + (f", one of {ours.folds} folds" if ours.folds else "")
    rows = {
        "run": f"{what}, {training.world_size} x {training.device}; not started",
        "parameters": f"{f['trained_parameters']:,} trained, {f['frozen_parameters']:,} frozen",
        "memory": f"{f['memory_gb']:.2f} GB of {f['device_gb']:.1f} GB: weights {f['weights_gb']:.2f}, optimizer "
        f"{f['optimizer_gb']:.2f}, gradients and activations of {batch} images {f['step_gb']:.2f}",
        "stores": stores,
        "disk": f"{f['output_gb']:.2f} GB in {settings.folder} ({f['checkpoint_gb']:.2f} GB a checkpoint{frozen})",
        "steps": f"{f['steps']:,} of {batch} x {accumulated} x {training.world_size} images, {f['step_seconds']:.2f} s",
        "hours": f"{hours:.2f}: training {f['hours']:.2f}, evaluation {f['evaluation_hours']:.2f}",
    }
    return "\n".join(f"{name:<12}{value}" for name, value in rows.items())


__all__ = ["allocated_peak", "device_bytes", "dry_run", "table"]
