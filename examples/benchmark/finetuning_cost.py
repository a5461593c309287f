"""What a step, an epoch and an answer cost by each way of fine-tuning: random weights, random images, one thread.

Run by finetuning.py; each method is measured in a process of its own, in which this file is the script.

Seconds are CPU-seconds of that process, so that others on the machine do not count; waiting for a disk does not
either. A step's forward and backward pass grow with its images and its update does not: they are timed apart, on few
images, and an epoch is put together of both. Images are ready tensors: decoding them, which a store saves as well, is
not in it. With a store, steps take as many images as an epoch's do, read from a real store that holds a few over and
over. The Trainer's own bookkeeping, the same for all, is left out.

Memory is the growth of what the process holds at most over what it held with the model loaded: gradients, the
optimiser's state, activations, the adapter. Inference is timed with the adapter and without it, in turns.
"""

import contextlib
import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from gpu import random_batch

from configuration_mf2 import MF2Config
from mf2face.training.finetuning import adapt, trainable_parameters
from mf2face.training.stores import StoredExamples, collate_stored, frozen_states, store_identity
from modeling_mf2 import MF2ForFaceAnalysis


Batch = dict[str, torch.Tensor]
INPUTS, LABELS = ("pixel_values", "landmarks"), ("au_labels", "emotion_labels")
_DTYPE = "float16"
_SHORT = 5  # times as many rounds of what takes little time: steps from a store, inference


class Method(NamedTuple):
    title: str
    task: str  # of train.py
    stored: bool


METHODS = {
    "full": Method("full fine-tuning", "full", False),
    "lora": Method("LoRA", "lora", False),
    "ia3": Method("IA3", "ia3", False),
    "linear_probe": Method("linear probe, with store", "linear_probe", True),
    "dfn_no_store": Method("DFN, no store", "dfn", False),
    "dfn": Method("DFN, with store", "dfn", True),
}


RATIOS = (
    *("epoch_ratio_full_over_dfn", "epoch_ratio_lora_over_dfn"),
    *("memory_ratio_dfn_over_full", "inference_ratio"),
)


class Memory:
    """MiB held at most since `restart`, above what was held at first. Nothing, where the system does not say."""

    def __init__(self) -> None:
        self.held = self._read("VmRSS")

    @staticmethod
    def _read(field: str) -> float | None:
        status = Path("/proc/self/status")
        if not status.exists():
            return None
        return int(status.read_text().split(f"{field}:")[1].split()[0]) / 2**10

    def restart(self) -> None:
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back to the system
            Path("/proc/self/clear_refs").write_text("5")

    def grown(self) -> float | None:
        return None if self.held is None else self._read("VmHWM") - self.held


def cpu_seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def step_seconds(model: torch.nn.Module, batch_of: Callable[[], Batch], rounds: int) -> dict[str, float]:
    """Medians of the batch's part (reading, forward, backward) and the update's; a first step warms up."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-4, weight_decay=0.05, fused=True)

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    model.train()
    parts = [
        (cpu_seconds(lambda: model(**batch_of()).loss.backward()), cpu_seconds(update)) for _ in range(rounds + 1)
    ][1:]
    batch_s, update_s = (statistics.median(times) for times in zip(*parts, strict=True))
    return {"batch_s": batch_s, "update_s": update_s}


def build_store(model: torch.nn.Module, batch: Batch, folder: Path) -> tuple[StoredExamples, dict[str, float]]:
    """What depends on the model's size alone, its fingerprint, is timed apart from what each image costs."""
    count = len(batch["pixel_values"])
    images = [{name: batch[name][row] for name in INPUTS} for row in range(count)]
    once = cpu_seconds(lambda: store_identity(model, count, 1, "random", None, _DTYPE))
    start = time.process_time()
    store = frozen_states(model, images, folder, data="random", dtype=_DTYPE, batch_size=count)
    spent = time.process_time() - start
    figures = {"store_once_s": once, "store_image_s": max(spent - once, 0.0) / count}
    figures["store_image_kb"] = store.nbytes / count / 2**10
    return StoredExamples(store, {name: batch[name] for name in LABELS}), figures


def inference_ratio(model: torch.nn.Module, batch: Batch, rounds: int) -> float:
    images = {name: batch[name] for name in INPUTS}

    @torch.no_grad()
    def adapted() -> None:
        model(**images)

    def base() -> None:
        with model.disable_adapter():
            adapted()

    model.eval()
    ratios = []
    for number in range(rounds + 1):
        calls = {"adapted": adapted, "base": base}
        spent = {name: cpu_seconds(calls[name]) for name in sorted(calls, reverse=bool(number % 2))}
        ratios.append(spent["adapted"] / spent["base"])
    return statistics.median(ratios[1:])


def measure(name: str, size: str, batch_size: int, epoch_batch: int, rounds: int) -> dict[str, float]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = MF2Config.from_size(size)
    model = MF2ForFaceAnalysis(config)
    batch = {k: v for k, v in random_batch(config, batch_size, False, torch.float32).items() if k in INPUTS + LABELS}
    _load_the_optimiser()
    memory, task = Memory(), METHODS[name].task
    model = model if task == "full" else adapt(model, task)
    found = {"trainable": trainable_parameters(model)}
    images = batch_size
    with tempfile.TemporaryDirectory() as folder:
        memory.restart()
        if METHODS[name].stored:
            examples, figures = build_store(model, batch, Path(folder) / "store")
            found |= {**figures, "building_mb": memory.grown()}
            few, many = ([row % batch_size for row in range(rows)] for rows in (batch_size, epoch_batch))
            memory.restart()
            step_seconds(model, lambda: collate_stored(examples.__getitems__(few)), 1)
            found["memory_mb"] = memory.grown()
            memory.restart()
            images = epoch_batch
            found |= step_seconds(model, lambda: collate_stored(examples.__getitems__(many)), _SHORT * rounds)
            found["epoch_batch_memory_mb"] = memory.grown()
        else:
            found |= step_seconds(model, lambda: batch, rounds)
            found["memory_mb"] = memory.grown()
        found["image_s"] = found.pop("batch_s") / images
        # What trains the model itself, or its heads, leaves its cost as it is.
        adapted = hasattr(model, "disable_adapter")
        found["inference_ratio"] = inference_ratio(model, batch, _SHORT * rounds) if adapted else 1.0
    return {figure: value for figure, value in found.items() if value is not None}


def _load_the_optimiser() -> None:
    """What torch imports at the first step is no method's memory."""
    layer = torch.nn.Linear(2, 2)
    layer(torch.ones(2)).sum().backward()
    torch.optim.AdamW(layer.parameters(), fused=True).step()


def measure_apart(name: str, **settings: int | str) -> dict[str, float]:
    """The same in a process of its own."""
    known = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, __file__, json.dumps({"name": name, **settings})]
    done = subprocess.run(command, check=True, env=known, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def epoch_seconds(found: dict[str, float], images: int, epoch_batch: int) -> tuple[float, float]:
    """First, with the store's building, and later ones."""
    later = images * found["image_s"] + images / epoch_batch * found["update_s"]
    return later + found.get("store_once_s", 0.0) + images * found.get("store_image_s", 0.0), later


def cost_figures(rows: dict[str, dict[str, float]], images: int, epoch_batch: int) -> dict[str, float]:
    """Each method's own, with its name in front, and what they are to each other."""
    for found in rows.values():
        found["first_epoch_s"], found["epoch_s"] = epoch_seconds(found, images, epoch_batch)
    figures = {f"{name}_{figure}": value for name, found in rows.items() for figure, value in found.items()}
    dfn = rows.get("dfn", {})
    for other in ("full", "lora") if dfn else ():
        if other in rows:
            figures[f"epoch_ratio_{other}_over_dfn"] = rows[other]["epoch_s"] / dfn["epoch_s"]
    if "memory_mb" in dfn and "full" in rows:
        figures["memory_ratio_dfn_over_full"] = dfn["memory_mb"] / rows["full"]["memory_mb"]
    if dfn:
        figures["inference_ratio"] = dfn["inference_ratio"]
    return figures


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
