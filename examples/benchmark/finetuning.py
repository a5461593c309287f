"""Ways to fine-tune a foundation model side by side: what each costs, and what it is worth on another style of faces.

    python examples/benchmark/finetuning.py [--size base] [--json FILE] [--markdown FILE]
    python examples/benchmark/finetuning.py --accuracy [--model FOLDER] [any of train.py's arguments]
    python examples/benchmark/finetuning.py --photos FOLDER [--labels FILE.csv] (to photographs: adaptation.py)

Cost: random weights of `--size`, steps on a few random images, scaled to an epoch of `--images`, one thread; each
method in a process of its own. Seconds are CPU-seconds of that process: neither other work on the machine nor waiting
for a disk counts. A step's forward and backward pass grow with its images and its update does not: they are timed apart
on few images, and an epoch is put together of both. Images are ready tensors: decoding, which a store saves too, is
left out, as is the Trainer's bookkeeping. With a store, steps take as many images as an epoch's do, from a store that
repeats a few.

Memory is the growth of what the process holds at most over what it held with the model loaded: gradients, the
optimiser's state, activations, the adapter. Inference is timed with the adapter and without it, in turns.

Accuracy: a checkpoint (the released one: studio and street) is adapted by `train.py` to another style, with faces of
new people. All methods see the same images, the same seeds and as many epochs, each kept at its best epoch on the same
512 validation images, on which thresholds are tuned too; scores are of 1024 others. The fewer labelled images are the
first of the more. Each run stays in a folder of `--output_dir`; a finished one is read, not repeated.
`gap_closed_*` is (DFN - linear probe) / (full - linear probe) of the means over the seeds, `_sd` the spread by seed;
where the gap, `full_minus_probe_*`, is no larger than its spread, the share says little.
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
    mean_sd,
    options,
    run_once,
    save_splits,
    write_json,
    write_text,
)

from configuration_mf2 import MF2Config
from mf2face.data.synthetic.subjects import FRAMES_PER_SUBJECT
from mf2face.files import RELEASED
from mf2face.training.finetuning import adapt, trainable_parameters
from mf2face.training.stores import StoredExamples, StoreOptions, collate_stored, frozen_states, store_identity
from modeling_mf2 import MF2ForFaceAnalysis


Batch = dict[str, torch.Tensor]
VALIDATION, TEST = 512, 1024  # images
SCORES = {"au_f1_tuned_macro": "au", "au_f1_macro": "au_at_half", "emotion_top1": "emotion"}
SCORE_TITLES = ["method", "AU F1, tuned", "AU F1 at 0.5", "emotion top-1"]
UNTOUCHED = "untouched"
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


def drawn(arguments: argparse.Namespace) -> dict[int, Path]:
    """For each number of labelled images a dataset on disk; validation and test people are the same in all."""
    wrong = [count for count in arguments.labelled if count < 1 or count % FRAMES_PER_SUBJECT]
    if wrong:
        raise ValueError(f"labelled: got {wrong[0]}, expected a multiple of {FRAMES_PER_SUBJECT}, the images a person")
    root, (validation, test) = arguments.output_dir / "data", arguments.held_out
    parts = f"{arguments.style}-{arguments.people_seed}-{validation}-{test}"
    folders = {count: root / f"{parts}-{count}" for count in arguments.labelled}
    if all(folder.is_dir() for folder in folders.values()):
        return folders
    from mf2face.data.synthetic.faces import MFASynthetic

    held = validation + test
    faces = MFASynthetic(held + max(folders), arguments.style, seed=arguments.people_seed).remove_columns("split")
    for count, folder in folders.items():
        if not folder.is_dir():
            splits = {"train": (held, held + count), "validation": (test, held), "test": (0, test)}
            save_splits(folder, {name: faces.select(range(*rows)) for name, rows in splits.items()})
    return folders


def one_run(
    name: str, seed: int, count: int, data: Path, arguments: argparse.Namespace, rest: list[str]
) -> dict[str, float]:
    folder = arguments.output_dir / f"{name}-{count}-{seed}"
    command = ["--model_name_or_path", str(arguments.model), "--dataset", str(data), "--seed", str(seed)]
    command += ["--views", str(arguments.views), *rest]
    if name == UNTOUCHED:
        command += ["--task", "evaluate"]
    else:
        epochs = arguments.epochs[arguments.labelled.index(count)]
        command += ["--task", METHODS[name].task, "--num_train_epochs", str(epochs), "--warmup_steps", "0.1"]
        command += ["--no_store", "True"] if name == "dfn_no_store" else []
        command += ["--learning_rate", arguments.learning_rates[name]] if name in arguments.learning_rates else []
    return run_once(folder, command)


def worth(runs: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    """Of each method's runs, a seed each: means, spreads, and how DFN stands between the linear probe and full."""
    figures: dict[str, float] = {}
    values = {name: {s: [run[key] for run in result] for key, s in SCORES.items()} for name, result in runs.items()}
    for name, scores in values.items():
        for short, result in scores.items():
            figures[f"{name}_{short}"], figures[f"{name}_{short}_sd"] = mean_sd(result)
    if not {"dfn", "linear_probe", "full"} <= set(values):
        return figures
    for short in SCORES.values():
        dfn, probe, full = (values[name][short] for name in ("dfn", "linear_probe", "full"))
        won = [ours - theirs for ours, theirs in zip(dfn, probe, strict=True)]
        gaps = [most - least for most, least in zip(full, probe, strict=True)]
        figures[f"dfn_minus_probe_{short}"], figures[f"dfn_minus_probe_{short}_sd"] = mean_sd(won)
        figures[f"full_minus_probe_{short}"], figures[f"full_minus_probe_{short}_sd"] = mean_sd(gaps)
        if statistics.mean(gaps) > 0:
            figures[f"gap_closed_{short}"] = statistics.mean(won) / statistics.mean(gaps)
        if min(gaps) > 0:
            shares = [part / gap for part, gap in zip(won, gaps, strict=True)]
            figures[f"gap_closed_{short}_sd"] = mean_sd(shares)[1]
    return figures


def measure_worth(arguments: argparse.Namespace, rest: list[str]) -> dict[int, dict[str, float]]:
    figures = {}
    for count, data in drawn(arguments).items():
        runs = {UNTOUCHED: [one_run(UNTOUCHED, 0, count, data, arguments, rest)]}
        for name in arguments.methods_trained:
            runs[name] = [one_run(name, seed, count, data, arguments, rest) for seed in arguments.seeds]
        figures[count] = worth(runs)
    return figures


def number(figures: dict[str, float], name: str, form: str) -> str:
    return format(figures[name], form) if name in figures else "–"


def score(figures: dict[str, float], name: str) -> str:
    return f"{figures[name]:.3f} ± {figures[f'{name}_sd']:.3f}" if name in figures else "–"


def summary(costs: dict[str, float], worths: dict[int, dict[str, float]], arguments: argparse.Namespace) -> str:
    most = max(worths, default=0)
    best = worths.get(most, {})
    titles = ["method", "trainable parameters", "memory, MiB", "first epoch, s", "later epochs, s", "inference / base"]
    titles += ["AU F1", "emotion top-1"]
    rows = []
    for name, method in METHODS.items():
        row = [number(costs, f"{name}_trainable", ",.0f"), number(costs, f"{name}_memory_mb", ",.1f")]
        row += [number(costs, f"{name}_{epoch}_s", ",.2f") for epoch in ("first_epoch", "epoch")]
        row += [number(costs, f"{name}_inference_ratio", ".3f")]
        rows.append([method.title, *row, *(score(best, f"{name}_{short}") for short in ("au", "emotion"))])
    a = arguments
    parts = ["# Ways to fine-tune MF²", markdown_table(titles, rows)]
    if costs:
        text = (
            f"Cost: MF² {a.size}, random weights, one thread. Seconds are CPU-seconds of an epoch of {a.images:,} "
            f"images in batches of {a.epoch_batch}, scaled from steps on {a.batch_size} images ({a.epoch_batch} where "
            "they are read from a store), without decoding images. The first epoch builds the store. Memory: growth of "
            f"a process of its own above the loaded model while training on {a.batch_size} images"
        )
        if "dfn_building_mb" in costs:
            text += f"; DFN with store on {a.epoch_batch}: {costs['dfn_epoch_batch_memory_mb']:,.1f} MiB, while the "
            text += f"store is built: {costs['dfn_building_mb']:,.1f} MiB"
        text += ". Inference: LoRA and IA3 not merged; merged they cost what the base does, as DFN cannot. "
        parts.append(text + "Full fine-tuning and the linear probe leave the model's form as it is: 1 by construction.")
    if worths:
        parts.append(
            f"Accuracy in the table: the tiny model on synthetic faces in the style {a.style} of people seed "
            f"{a.people_seed}, adapted with {most:,} labelled images in {a.views} views each; test people are new. "
            "AU F1 is macro, at thresholds tuned on validation people; mean ± sd of seeds "
            f"{', '.join(map(str, a.seeds))}."
        )
    for count, result in worths.items():
        shown = {UNTOUCHED: "the checkpoint, untouched", **{name: METHODS[name].title for name in a.methods_trained}}
        lines = [[title, *(score(result, f"{name}_{s}") for s in SCORES.values())] for name, title in shown.items()]
        parts += [
            f"{count:,} labelled images",
            markdown_table(SCORE_TITLES, lines),
        ]
        named = [
            name
            for name in result
            if name.startswith(("dfn_minus", "full_minus", "gap_closed")) and not name.endswith("_sd")
        ]
        parts.append("\n".join(f"- {n} {result[n]:.3f} (sd {number(result, f'{n}_sd', '.3f')})" for n in named))
    parts += ["\n".join(f"- {name} {costs[name]:.4g}" for name in RATIOS if name in costs), PAPER]
    return "\n\n".join(part for part in parts if part)


def parse(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = options(__doc__, allow_abbrev=False)
    parser.add_argument("--size", default="tiny", choices=("tiny", "base"), help="cost: of the model")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="cost: which are measured")
    parser.add_argument("--images", type=int, default=2048, help="cost: of an epoch")
    parser.add_argument("--batch_size", type=int, default=4, help="cost: images of a step that is measured")
    parser.add_argument("--epoch_batch", type=int, default=64, help="cost: images of a step of the epoch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no_memory", action="store_true", help="cost: starts no further processes to measure it")
    parser.add_argument("--no_cost", action="store_true", help="accuracy alone")
    parser.add_argument("--accuracy", action="store_true", help="train and score too: many runs")
    parser.add_argument("--model", default=str(RELEASED), help="accuracy: the tiny checkpoint that is adapted")
    parser.add_argument("--style", default="webcam", help="accuracy: the style that it is adapted to")
    parser.add_argument("--people_seed", type=int, default=7, help="accuracy: other people are drawn")
    parser.add_argument("--labelled", nargs="+", type=int, default=[2048, 256], help="accuracy: training images")
    parser.add_argument("--epochs", nargs="+", type=int, default=[10, 30], help="one for each of --labelled")
    parser.add_argument("--views", type=int, default=3, help="accuracy: forms of each image, the same for all methods")
    parser.add_argument("--held_out", nargs=2, type=int, default=[VALIDATION, TEST], help=argparse.SUPPRESS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--methods_trained",
        nargs="+",
        choices=METHODS,
        default=[name for name in METHODS if name not in ("dfn_no_store", "full_tower")],
    )
    parser.add_argument(
        "--learning_rates", nargs="+", default=[], metavar="METHOD=RATE", help="in place of train.py's own"
    )
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/finetuning"), help="where the runs are kept")
    parser.add_argument("--markdown", type=Path, help="write the tables to this file")
    parser.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)  # one method, in its own process
    arguments, rest = parser.parse_known_args(argv)  # the rest is train.py's
    arguments.learning_rates = dict(pair.split("=") for pair in arguments.learning_rates)
    if unknown := set(arguments.learning_rates) - set(METHODS):
        parser.error(f"learning_rates: got {unknown.pop()!r}, expected METHOD=RATE with one of {list(METHODS)}")
    if len(arguments.epochs) != len(arguments.labelled):
        parser.error(f"epochs: got {len(arguments.epochs)}, expected one for each of --labelled {arguments.labelled}")
    if rest and not arguments.accuracy:
        parser.error(f"got {' '.join(rest)}, expected arguments named above; train.py's own need --accuracy")
    return arguments, rest


def main(argv: list[str] | None = None) -> dict[str, float]:
    argv = sys.argv[1:] if argv is None else argv
    if any(option.partition("=")[0] == "--photos" for option in argv):
        import adaptation

        return adaptation.main(argv)
    arguments, rest = parse(argv)
    if arguments.measure:
        print(json.dumps(result := measure(**arguments.measure)))
        return result
    rows = {} if arguments.no_cost else measure_costs(arguments)
    costs = cost_figures(rows, arguments.images, arguments.epoch_batch)
    worths = measure_worth(arguments, rest) if arguments.accuracy else {}
    figures = dict(costs)
    for count, result in worths.items():
        suffix = "" if count == max(worths) else f"_{count}"
        figures |= {f"{name}{suffix}": value for name, value in result.items()}
    text = summary(costs, worths, arguments)
    print(f"\n{text}")
    if arguments.markdown:
        write_text(arguments.markdown, text)
    write_json(arguments.json, figures)
    return figures


if __name__ == "__main__":
    main()
