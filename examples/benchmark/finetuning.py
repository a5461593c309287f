"""What ways to fine-tune a foundation model cost, side by side; what they are worth is measured by tables.py.

    python examples/benchmark/finetuning.py [--size base] [--json FILE] [--markdown FILE]
    python examples/benchmark/finetuning.py --photos FOLDER [--labels FILE.csv] (worth on photographs: adaptation.py)

Random weights of `--size`, steps on a few random images, scaled to an epoch of `--images`, one thread; each method in a
process of its own. Seconds are CPU-seconds of that process: neither other work on the machine nor waiting for a disk
counts. A step's forward and backward pass grow with its images and its update does not: they are timed apart on few
images, and an epoch is put together of both. Images are ready tensors: decoding, which a store saves too, is left out,
as is the Trainer's bookkeeping. With a store, steps take as many images as an epoch's do, from a store that repeats a
few.

Memory is the growth of what the process holds at most over what it held with the model loaded: gradients, the
optimiser's state, activations, the adapter. Inference is timed with the adapter and without it, in turns.
"""

import argparse
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
from report import (
    cpu_seconds,
    in_turns,
    markdown_table,
    options,
    write_json,
    write_text,
)

from configuration_mf2 import MF2Config
from mf2face.training.finetuning import adapt, trainable_parameters
from mf2face.training.stores import StoredExamples, StoreOptions, collate_stored, frozen_states, store_identity
from modeling_mf2 import MF2ForFaceAnalysis


Batch = dict[str, torch.Tensor]
PAPER = """\
The paper's own figures, its Table IV (its data, its model, an RTX A6000; not to be compared with the columns above):

| | emotion accuracy, average % | training, min an epoch | inference, min | trainable |
|---|---|---|---|---|
| MF² + DFN | 84.40 | 12.6 | 6.4 | 52.88 M |
| without DFN | 83.48 | 62.3 | 5.1 | 373.4 M |
| without Emo-VL | 82.42 | 8.4 | 4.5 | 186.7 M |
| without AU-VL | 81.87 | 4.1 | 2.1 | 186.7 M |
"""


INPUTS, LABELS = ("pixel_values", "landmarks"), ("au_labels", "emotion_labels")
_SHORT = 5  # times as many rounds of what takes little time: steps from a store, inference


class Method(NamedTuple):
    title: str
    task: str  # of train.py
    stored: bool


METHODS = {
    "full_tower": Method("full fine-tuning, tower too", "full", False),
    "full": Method("full fine-tuning, tower frozen", "full", False),
    "lora": Method("LoRA", "lora", False),
    "ia3": Method("IA3", "ia3", False),
    "linear_probe": Method("linear probe, with store", "linear_probe", True),
    "dfn_no_store": Method("DFN, no store", "dfn", False),
    "dfn": Method("DFN, with store", "dfn", True),
}


RATIOS = (
    *("epoch_ratio_full_over_dfn", "epoch_ratio_frozen_tower_over_dfn", "epoch_ratio_lora_over_dfn"),
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
    once = cpu_seconds(lambda: store_identity(model, count, 1, "random", None, StoreOptions()))
    start = time.process_time()
    store = frozen_states(model, images, folder, data="random", batch_size=count)
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
    measured = in_turns({"adapted": adapted, "base": base}, rounds, cpu_seconds)
    return statistics.median(spent["adapted"] / spent["base"] for spent in measured)


def measure(name: str, size: str, batch_size: int, epoch_batch: int, rounds: int) -> dict[str, float]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = MF2Config.from_size(size)
    config.vision_config.frozen = name != "full_tower"
    model = MF2ForFaceAnalysis(config)
    batch = {k: v for k, v in random_batch(config, batch_size, False, torch.float32).items() if k in INPUTS + LABELS}
    _load_the_optimiser()
    memory, task = Memory(), METHODS[name].task
    model = model if task == "full" else adapt(model, task)
    result = {"trainable": trainable_parameters(model)}
    images = batch_size
    with tempfile.TemporaryDirectory() as folder:
        memory.restart()
        if METHODS[name].stored:
            examples, figures = build_store(model, batch, Path(folder) / "store")
            result |= {**figures, "building_mb": memory.grown()}
            few, many = ([row % batch_size for row in range(rows)] for rows in (batch_size, epoch_batch))
            memory.restart()
            step_seconds(model, lambda: collate_stored(examples.__getitems__(few)), 1)
            result["memory_mb"] = memory.grown()
            memory.restart()
            images = epoch_batch
            result |= step_seconds(model, lambda: collate_stored(examples.__getitems__(many)), _SHORT * rounds)
            result["epoch_batch_memory_mb"] = memory.grown()
        else:
            result |= step_seconds(model, lambda: batch, rounds)
            result["memory_mb"] = memory.grown()
        result["image_s"] = result.pop("batch_s") / images
        # What trains the model itself, or its heads, leaves its cost as it is.
        adapted = hasattr(model, "disable_adapter")
        result["inference_ratio"] = inference_ratio(model, batch, _SHORT * rounds) if adapted else 1.0
    return {figure: value for figure, value in result.items() if value is not None}


def _load_the_optimiser() -> None:
    """What torch imports at the first step is no method's memory."""
    layer = torch.nn.Linear(2, 2)
    layer(torch.ones(2)).sum().backward()
    torch.optim.AdamW(layer.parameters(), fused=True).step()


def measure_apart(name: str, **settings: int | str) -> dict[str, float]:
    """The same in a process of its own."""
    known = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, __file__, "--measure", json.dumps({"name": name, **settings})]
    done = subprocess.run(command, check=True, env=known, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def epoch_seconds(result: dict[str, float], images: int, epoch_batch: int) -> tuple[float, float]:
    """First, with the store's building, and later ones."""
    later = images * result["image_s"] + images / epoch_batch * result["update_s"]
    return later + result.get("store_once_s", 0.0) + images * result.get("store_image_s", 0.0), later


def cost_figures(rows: dict[str, dict[str, float]], images: int, epoch_batch: int) -> dict[str, float]:
    """Each method's own, with its name in front, and what they are to each other."""
    for result in rows.values():
        result["first_epoch_s"], result["epoch_s"] = epoch_seconds(result, images, epoch_batch)
    figures = {f"{name}_{figure}": value for name, result in rows.items() for figure, value in result.items()}
    dfn = rows.get("dfn", {})
    # Full fine-tuning of what DFN reads, which the tower is a part of.
    for name, other in {"full": "full_tower", "frozen_tower": "full", "lora": "lora"}.items() if dfn else ():
        if other in rows:
            figures[f"epoch_ratio_{name}_over_dfn"] = rows[other]["epoch_s"] / dfn["epoch_s"]
    if "memory_mb" in dfn and "full" in rows:
        figures["memory_ratio_dfn_over_full"] = dfn["memory_mb"] / rows["full"]["memory_mb"]
    if dfn:
        figures["inference_ratio"] = dfn["inference_ratio"]
    return figures


def measure_costs(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    one = measure if arguments.no_memory else measure_apart
    shared = {"size": arguments.size, "batch_size": arguments.batch_size, "epoch_batch": arguments.epoch_batch}
    rows = {}
    for name in arguments.methods:
        result = one(name, **shared, rounds=arguments.rounds)
        rows[name] = {key: v for key, v in result.items() if not (arguments.no_memory and key.endswith("_mb"))}
        print(f"{METHODS[name].title}: " + ", ".join(f"{key} {value:.4g}" for key, value in rows[name].items()))
    return rows


def number(figures: dict[str, float], name: str, form: str) -> str:
    return format(figures[name], form) if name in figures else "–"


def summary(costs: dict[str, float], a: argparse.Namespace) -> str:
    titles = ["method", "trainable parameters", "memory, MiB", "first epoch, s", "later epochs, s", "inference / base"]
    forms = {"trainable": ",.0f", "memory_mb": ",.1f", "first_epoch_s": ",.2f", "epoch_s": ",.2f"}
    forms["inference_ratio"] = ".3f"
    rows = [[m.title, *(number(costs, f"{n}_{key}", form) for key, form in forms.items())] for n, m in METHODS.items()]
    text = (
        f"MF² {a.size}, random weights, one thread. Seconds are CPU-seconds of an epoch of {a.images:,} images in "
        f"batches of {a.epoch_batch}, scaled from steps on {a.batch_size} images ({a.epoch_batch} where they are read "
        "from a store), without decoding images. The first epoch builds the store. Memory: growth of a process of its "
        f"own above the loaded model while training on {a.batch_size} images"
    )
    if "dfn_building_mb" in costs:
        text += f"; DFN with store on {a.epoch_batch}: {costs['dfn_epoch_batch_memory_mb']:,.1f} MiB, while the "
        text += f"store is built: {costs['dfn_building_mb']:,.1f} MiB"
    text += (
        ". Inference: LoRA and IA3 not merged; merged they cost what the base does, as DFN cannot. Full fine-tuning "
    )
    text += "and the linear probe leave the model's form as it is: 1 by construction."
    ratios = "\n".join(f"- {name} {costs[name]:.4g}" for name in RATIOS if name in costs)
    return "\n\n".join(["# What fine-tuning MF² costs", markdown_table(titles, rows), text, ratios, PAPER])


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = options(__doc__, allow_abbrev=False)
    parser.add_argument("--size", default="tiny", choices=("tiny", "base"), help="of the model")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="which are measured")
    parser.add_argument("--images", type=int, default=2048, help="of an epoch")
    parser.add_argument("--batch_size", type=int, default=4, help="images of a step that is measured")
    parser.add_argument("--epoch_batch", type=int, default=64, help="images of a step of the epoch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no_memory", action="store_true", help="starts no further processes to measure it")
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    parser.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)  # one method, in its own process
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> dict[str, float]:
    argv = sys.argv[1:] if argv is None else argv
    if any(option.partition("=")[0] == "--photos" for option in argv):
        import adaptation

        return adaptation.main(argv)
    arguments = parse(argv)
    if arguments.measure:
        print(json.dumps(result := measure(**arguments.measure)))
        return result
    figures = cost_figures(measure_costs(arguments), arguments.images, arguments.epoch_batch)
    text = summary(figures, arguments)
    print(f"\n{text}")
    if arguments.markdown:
        write_text(arguments.markdown, text)
    write_json(arguments.json, figures)
    return figures


if __name__ == "__main__":
    main()
