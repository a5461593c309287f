"""What the paper's size costs, as far as a CPU can say it: stores, checkpoints, the dry run's estimates.

python examples/benchmark/paper_scale.py [--parts arithmetic memory stores processes states] [--json FILE]

arithmetic: bytes and operations of the giant model on the meta device, and what an H200 would take for them at 40 % of
    its peak (an assumption, not a measurement).
memory: the dry run's estimate of a step's memory against the allocator's high-water mark of that step.
stores: CPU-seconds of an image of rendered people in training, with stored outputs and without.
processes: seconds in which one process and two build a store.
states: AU F1 and emotion accuracy of DFN on rendered people, by all states and by the compact ones; thresholds are
    tuned on validation people.
"""

import argparse
import itertools
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import torch
from gpu import TRAINING_IMAGES, VALIDATION_IMAGES, measure_memory, random_batch
from report import cpu_seconds, options, read_json, record_run, show, write_json
from torch.utils.flop_counter import FlopCounterMode

from configuration_mf2 import MF2Config
from mf2face.data.examples import MF2Examples
from mf2face.data.synthetic.faces import MFASynthetic
from mf2face.training.arguments import parse_arguments
from mf2face.training.build import with_sources
from mf2face.training.dry_run import GB
from mf2face.training.finetuning import adapt
from mf2face.training.run import load_parts, make_trainer
from mf2face.training.stores import frozen_states
from mf2face.training.trainer import MF2Trainer
from modeling_mf2 import MF2ForFaceAnalysis, MF2ForPreTraining
from modeling_mf2.dfn.states import compute_states
from processing_mf2 import MF2Processor


H200_FLOPS, USED = 989e12, 0.4  # dense bfloat16; the share of it that is assumed
RENDERED, UNSEEN = "studio", "webcam"  # the released checkpoint has learned studio and street
Figures = dict[str, float]


def meta_model(model_class: type, size: str, dfn_states: str | None = None, **fields: object) -> torch.nn.Module:
    with torch.device("meta"):
        model = model_class(MF2Config.from_size(size, **fields))
        return model if dfn_states is None else adapt(model, "dfn", dfn_states=dfn_states)


def meta_images(config: MF2Config, images: int = 1) -> dict[str, torch.Tensor]:
    side = config.vision_config.image_size
    shapes = {"pixel_values": (images, 3, side, side), "landmarks": (images, 68, 2)}
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def stored_bytes(size: str, dfn_states: str) -> int:
    """Of an image's states in 16 bits."""
    model = meta_model(MF2ForFaceAnalysis, size, dfn_states)
    states = compute_states(model, meta_images(model.config))
    return sum(2 * state.numel() for name, state in states.items() if "." not in name)


def operations(call: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def training_operations(config: MF2Config, images: int = 2) -> int:
    """Of a step of pre-training, forward and backward; the tower is only as deep as it has to be."""
    torch.manual_seed(0)
    model = MF2ForPreTraining(config).train()
    batch = random_batch(config, images, True, torch.float32)
    return operations(lambda: model(**batch).loss.backward()) // images


def measure_arithmetic(arguments: argparse.Namespace) -> Figures:
    model = meta_model(MF2ForPreTraining, "giant")
    trained, frozen = (sum(p.numel() for p in model.parameters() if p.requires_grad is kind) for kind in (True, False))
    figures = {
        **{"trained_parameters_giant": trained, "frozen_parameters_giant": frozen},
        "checkpoint_gb_giant": 12 * trained / GB,  # float32 weights, two moments
        "frozen_file_gb_giant": 4 * frozen / GB,
        "dfn_store_kb_per_image": stored_bytes("giant", "compact") / 1e3,
        "dfn_store_kb_per_image_all_states": stored_bytes("giant", "all") / 1e3,
        "dfn_store_kb_per_image_base": stored_bytes("base", "compact") / 1e3,
    }
    figures["dfn_store_gb"] = figures["dfn_store_kb_per_image"] * TRAINING_IMAGES / 1e6
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        config = MF2Config.from_size("base")
        images = [{"pixel_values": torch.randn(3, 224, 224), "landmarks": 224 * torch.rand(68, 2)} for _ in range(2)]
        base = adapt(MF2ForFaceAnalysis(config), "dfn", dfn_states="compact")
        store = frozen_states(base, images, Path(folder) / "store", data="random")
        figures["dfn_store_kb_per_image_base_measured"] = sum(t[0].nbytes for t in store.shards[0].values()) / 1e3
    answers = meta_model(MF2ForFaceAnalysis, "giant").eval()
    with torch.no_grad():
        inference = operations(lambda: answers(**meta_images(answers.config)))
        tower = operations(lambda: answers.mf2.vision(meta_images(answers.config)["pixel_values"]))
    shallow = {"backbone": "eva_giant_patch14_224", "backbone_kwargs": {"depth": 1}, "patch_size": 14}
    giant = MF2Config.from_size("giant").vision_config.to_dict()
    learned = training_operations(MF2Config.from_size("giant", vision_config={**giant, **shallow}))
    figures |= {"inference_tflop_per_image": inference / 1e12, "training_tflop_per_image": (learned + tower) / 1e12}
    rate = H200_FLOPS * USED
    figures["epoch_minutes_assumed_h200"] = (learned + tower) * TRAINING_IMAGES / rate / 60
    figures["inference_seconds_assumed_h200"] = inference * VALIDATION_IMAGES / rate
    return figures


def measure_memories(arguments: argparse.Namespace) -> Figures:
    figures: Figures = {}
    for size in arguments.sizes:
        options = getattr(arguments, f"options_{size}").split()
        found = measure_memory(size, getattr(arguments, f"batch_{size}"), "cpu", *options)
        figures |= {f"{name}_{size}": value for name, value in found.items()}
    errors = [value for name, value in figures.items() if name.startswith("dry_run_memory_error")]
    return {**figures, "dry_run_memory_error": max(errors)}


# Runs of train.py, their option that stores frozen outputs, and the one that does not. In the first, the tower is all
# that is frozen and nearly all that is computed; in the others more is learned or runs behind it.
TOWER = "--model exp_blip --task linear_probe --features vision"
STORED = {
    "store_speedup": (TOWER, "--store_vision True", "--store_vision False"),
    "store_speedup_full_emo_vl": ("--task full --branches emo", "--store_vision True", "--store_vision False"),
    "store_speedup_full": ("--task full", "--store_vision True", "--store_vision False"),
    "store_speedup_pretrain": ("--task pretrain", "--store_vision True", "--store_vision False"),
    "store_speedup_dfn": ("--task dfn", "", "--no_store True"),
}


def run_of(command: str, rows: datasets.Dataset, size: str, folder: Path) -> tuple[MF2Trainer, float]:
    """Trainer of an epoch over these rows, and the CPU-seconds in which its stores were built."""
    how = "--num_train_epochs 1 --save_strategy no --eval_strategy no --load_best_model_at_end False --use_cpu True"
    how += f" --vision_name_or_path none --disable_tqdm True --model_size {size} --output_dir {folder / 'out'}"
    how += f" --per_device_train_batch_size {min(8, len(rows))} --per_device_eval_batch_size 8"
    if "dfn" in command:
        how = how.replace("--vision_name_or_path none", f"--model_name_or_path {untrained(size, folder)}")
    torch.manual_seed(0)
    settings = with_sources(parse_arguments(f"{command} {how}".split()))
    parts, splits, _, columns, _ = load_parts(settings, {"train": rows})
    begun = time.process_time()
    trainer, _ = make_trainer(settings, parts, splits, columns, folder)
    return trainer, time.process_time() - begun


def untrained(size: str, folder: Path) -> Path:
    if not (folder / size).is_dir():
        model = MF2ForFaceAnalysis(MF2Config.from_size(size))
        model.save_pretrained(folder / size)
        MF2Processor.for_model(model.config).save_pretrained(folder / size)
    return folder / size


def measure_stores(arguments: argparse.Namespace) -> Figures:
    """CPU-seconds of an image in an epoch from images, over those in a later epoch from the store."""
    side = MF2Config.from_size(arguments.size).vision_config.image_size
    figures: Figures = {}
    for name in arguments.tasks:
        task, stored, plain = STORED[name]
        count = arguments.images if task == TOWER else arguments.few
        rows, spent, folder = MFASynthetic(count, RENDERED, size=side), {}, Path(tempfile.mkdtemp())
        for kind, how in {"images": plain, "store": stored}.items():
            trainer, built = run_of(f"{task} {how}", rows, arguments.size, folder)
            spent[kind] = cpu_seconds(trainer.train) / count
            figures[f"{name}_{kind}_s_per_image"] = spent[kind]
        figures |= {name: spent["images"] / spent["store"], f"{name}_build_s_per_image": built / count}
        figures[f"{name}_over_images"] = count
        shutil.rmtree(folder)
    return figures


def build_alone(folder: Path, size: str, count: int, start: object, spent: object) -> None:
    """In a process of its own: builds a store with all that begin at the same time."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    base = MF2ForFaceAnalysis(MF2Config.from_size(size))
    side = base.config.vision_config.image_size
    examples = MF2Examples(MFASynthetic(count, RENDERED, size=side), MF2Processor.for_model(base.config), texts=False)
    start.wait()
    begun, used = time.perf_counter(), time.process_time()
    frozen_states(base.mf2.vision, examples, folder, data=RENDERED, batch_size=4, shard_rows=4)
    spent.put((time.perf_counter() - begun, time.process_time() - used))


def measure_processes(arguments: argparse.Namespace) -> Figures:
    """By the clock, which wants two free cores, and by the CPU time of the busier process, which does not."""
    count = arguments.built
    context, spent = multiprocessing.get_context("spawn"), {1: [], 2: []}
    MFASynthetic(count, RENDERED, size=MF2Config.from_size(arguments.size).vision_config.image_size)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        for number, processes in itertools.product(range(arguments.rounds), (1, 2)):
            start, found = context.Barrier(processes), context.Queue()
            given = (Path(folder) / f"{processes}-{number}", arguments.size, count, start, found)
            workers = [context.Process(target=build_alone, args=given) for _ in range(processes)]
            for worker in workers:
                worker.start()
            each = [found.get() for _ in workers]
            spent[processes].append([max(values) for values in zip(*each, strict=True)])
            for worker in workers:
                worker.join()
    clock, used = ({n: min(times[kind] for times in spent[n]) for n in spent} for kind in (0, 1))
    return {
        **{f"store_seconds_{n}_process": seconds for n, seconds in clock.items()},
        "two_process_speedup": clock[1] / clock[2],
        "two_process_speedup_by_cpu_time": used[1] / used[2],
        "load_average_before": load,
    }


def measure_states(arguments: argparse.Namespace) -> Figures:
    """The released checkpoint adapted to rendered people in a style that it has not seen."""
    import train

    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed, states in itertools.product(arguments.seeds, ("all", "compact")):
            command = f"--task dfn --dfn_states {states} --style {UNSEEN} --num_images {arguments.faces}"
            command += f" --seed {seed} --use_cpu True --disable_tqdm True --output_dir {folder}/{states}-{seed}"
            scores = train.main(command.split())
            for name, score in {"au_f1": "au_f1_tuned_macro", "emotion_top1": "emotion_top1"}.items():
                found.setdefault(f"dfn_{states}_{name}", []).append(scores[score])
                found.setdefault(f"dfn_base_{name}", []).append(scores[f"base/{score}"])
    figures = {name: statistics.fmean(values) for name, values in found.items()}
    for name in ("au_f1", "emotion_top1"):
        lost = [a - b for a, b in zip(found[f"dfn_all_{name}"], found[f"dfn_compact_{name}"], strict=True)]
        figures |= {f"dfn_compact_loses_{name}": statistics.fmean(lost), f"dfn_compact_loses_{name}_most": max(lost)}
    return {**figures, "states_seeds": len(arguments.seeds), "states_faces": arguments.faces}


PARTS = {
    "arithmetic": measure_arithmetic,
    "memory": measure_memories,
    "stores": measure_stores,
    "processes": measure_processes,
    "states": measure_states,
}
RECORDED = {"memory": "memory as the dry run estimates it", "processes": "a store by two processes"}


def main(argv: list[str] | None = None) -> Figures:
    parser = options(__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--size", default="base", choices=("tiny", "base"), help="stores, processes: of the model")
    parser.add_argument("--sizes", nargs="+", default=["tiny", "base"], help="memory: of the models")
    parser.add_argument("--batch_tiny", type=int, default=64, help="memory: images of the step that is estimated")
    parser.add_argument("--batch_base", type=int, default=8)
    parser.add_argument("--options_tiny", default="", help="memory: of train.py, for the step")
    parser.add_argument("--options_base", default="")
    parser.add_argument("--tasks", nargs="+", choices=STORED, default=list(STORED), help="stores: of which runs")
    parser.add_argument("--images", type=int, default=512, help="stores: rendered images of the first run")
    parser.add_argument("--few", type=int, default=8, help="stores: rendered images of the other runs")
    parser.add_argument("--built", type=int, default=32, help="processes: rendered images of a store")
    parser.add_argument("--rounds", type=int, default=2, help="processes: of which the fastest counts")
    parser.add_argument("--faces", type=int, default=2000, help="states: rendered faces, test people included")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    arguments = parser.parse_args(argv)
    datasets.disable_progress_bars()
    figures: Figures = {}
    for part in arguments.parts:
        figures |= PARTS[part](arguments)
        if part in RECORDED:
            record_run(arguments.json, RECORDED[part], "cpu", arguments.size)
        if arguments.json:  # part by part: they take long, and may be measured on different days
            write_json(arguments.json, {**(read_json(arguments.json) or {}), **figures}, part)
    show(figures, "{:45} {:14,.4f}", None)
    return figures


if __name__ == "__main__":
    main()
