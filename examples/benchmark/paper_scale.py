"""What the paper's size costs, as far as a CPU can say it: stores, checkpoints, the dry run's estimates.

python examples/benchmark/paper_scale.py [--parts arithmetic memory stores processes states] [--json FILE]

arithmetic: bytes and operations of the giant model on the meta device, and what an H200 would take for them at 40 % of
    its peak (an assumption, not a measurement).
memory: the dry run's estimate of a step's memory against the allocator's high-water mark of that step.
stores: seconds of an image of rendered people in training, with and without stored outputs (CPU-seconds).
processes: seconds in which one process and two build a store.
states: AU F1 and emotion accuracy of DFN on rendered people, by all states and by the compact ones.
"""

import argparse
import multiprocessing
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import torch
from gpu import TRAINING_IMAGES, VALIDATION_IMAGES, measure_memory, random_batch
from report import cpu_seconds, in_turns, options, origin, read_json, record_run, show, write_json
from torch.utils.flop_counter import FlopCounterMode

from configuration_mf2 import MF2Config
from mf2face.data.examples import MF2Collator, MF2Examples
from mf2face.data.synthetic.faces import MFASynthetic
from mf2face.training.dry_run import GB
from mf2face.training.finetuning import adapt
from mf2face.training.stores import StoredExamples, collate_stored, frozen_states
from modeling_mf2 import MF2ForFaceAnalysis, MF2ForPreTraining
from modeling_mf2.dfn.states import compute_states
from processing_mf2 import MF2Processor


H200_FLOPS, USED = 989e12, 0.4  # dense bfloat16; the share of it that is assumed
RENDERED = "studio"
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
        found = measure_memory(size, getattr(arguments, f"batch_{size}"), "cpu")
        figures |= {f"{name}_{size}": value for name, value in found.items()}
    errors = [value for name, value in figures.items() if name.startswith("dry_run_memory_error")]
    return {**figures, "dry_run_memory_error": max(errors)}


def measure_stores(arguments: argparse.Namespace) -> Figures:
    """CPU-seconds of an image in later epochs: decoding, the frozen part or its store, the trained part, AdamW."""
    count, size = arguments.images, arguments.size
    torch.manual_seed(0)
    base = MF2ForFaceAnalysis(MF2Config.from_size(size))
    processor = MF2Processor.for_model(base.config)
    rows = MFASynthetic(count, RENDERED, size=base.config.vision_config.image_size)
    examples = MF2Examples(rows, processor, texts=False)
    labels = {name: torch.stack([examples[i][name] for i in range(count)]) for name in ("au_labels", "emotion_labels")}
    figures: Figures = {"images": count}
    with tempfile.TemporaryDirectory() as folder:
        tokens = frozen_states(base.mf2.vision, examples, Path(folder) / "tokens", data=RENDERED, batch_size=8)
        figures["vision_store_kb_per_image"] = sum(t[0].nbytes for t in tokens.shards[0].values()) / 1e3
        stored = MF2Examples(rows, processor, texts=False, stored=tokens)
        collator = MF2Collator(processor.tokenizer.pad_token_id)
        step = training_step(base)
        calls = {
            "images": lambda: step(collator(examples.__getitems__(range(count)))),
            "tokens": lambda: step(collator(stored.__getitems__(range(count)))),
        }
        spent = in_turns(calls, arguments.rounds, cpu_seconds)
        means = {name: statistics.median(times[name] for times in spent) / count for name in calls}
        figures |= {f"full_{name}_s_per_image": seconds for name, seconds in means.items()}
        figures["store_speedup"] = means["images"] / means["tokens"]
        for task in ("linear_probe", "dfn"):
            model = adapt(base, task)
            states = StoredExamples(frozen_states(model, examples, Path(folder) / task, data=RENDERED), labels)
            step = training_step(model)
            calls = {
                "images": lambda step=step: step(collator(examples.__getitems__(range(count)))),
                "states": lambda step=step, s=states: step(collate_stored(s.__getitems__(range(count)))),
            }
            spent = in_turns(calls, arguments.rounds, cpu_seconds)
            ratios = [times["images"] / times["states"] for times in spent]
            figures[f"store_speedup_{task}"] = statistics.median(ratios)
    return figures


def training_step(model: torch.nn.Module) -> Callable[[dict], None]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-4, fused=True)
    model.train()

    def step(batch: dict) -> None:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def build_alone(folder: Path, size: str, count: int, start: object, spent: object) -> None:
    """In a process of its own: builds a store with all that begin at the same time."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    base = MF2ForFaceAnalysis(MF2Config.from_size(size))
    side = base.config.vision_config.image_size
    examples = MF2Examples(MFASynthetic(count, RENDERED, size=side), MF2Processor.for_model(base.config), texts=False)
    start.wait()
    begun = time.perf_counter()
    frozen_states(base.mf2.vision, examples, folder, data=RENDERED, batch_size=4, shard_rows=4)
    spent.put(time.perf_counter() - begun)


def measure_processes(arguments: argparse.Namespace) -> Figures:
    context, seconds = multiprocessing.get_context("spawn"), {1: [], 2: []}
    MFASynthetic(arguments.images, RENDERED, size=MF2Config.from_size(arguments.size).vision_config.image_size)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.rounds):
            for count in (1, 2):
                start, spent = context.Barrier(count), context.Queue()
                store = Path(folder) / f"{count}-{number}"
                given = (store, arguments.size, arguments.images, start, spent)
                workers = [context.Process(target=build_alone, args=given) for _ in range(count)]
                for worker in workers:
                    worker.start()
                seconds[count].append(max(spent.get() for _ in workers))
                for worker in workers:
                    worker.join()
                shutil.rmtree(store)
    best = {count: min(times) for count, times in seconds.items()}
    return {
        **{f"store_seconds_{count}_process": value for count, value in best.items()},
        "two_process_speedup": best[1] / best[2],
    }


def measure_states(arguments: argparse.Namespace) -> Figures:
    """The released checkpoint adapted to rendered people; thresholds from validation people."""
    import train

    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in arguments.seeds:
            for states in ("all", "compact"):
                command = f"--task dfn --dfn_states {states} --style {RENDERED} --num_images {arguments.faces}"
                command += f" --seed {seed} --use_cpu True --disable_tqdm True --output_dir {folder}/{states}-{seed}"
                scores = train.main(command.split())
                for name, score in {"au_f1": "au_f1_tuned_macro", "emotion_top1": "emotion_top1"}.items():
                    found.setdefault(f"dfn_{states}_{name}", []).append(scores[score])
    figures = {name: statistics.fmean(values) for name, values in found.items()}
    for name in ("au_f1", "emotion_top1"):
        lost = [a - b for a, b in zip(found[f"dfn_all_{name}"], found[f"dfn_compact_{name}"], strict=True)]
        figures |= {f"dfn_compact_loses_{name}": statistics.fmean(lost), f"dfn_compact_loses_{name}_most": max(lost)}
    return figures


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
    parser.add_argument("--images", type=int, default=32, help="stores, processes: rendered images")
    parser.add_argument("--faces", type=int, default=2000, help="states: rendered faces, test people included")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    arguments = parser.parse_args(argv)
    datasets.disable_progress_bars()
    figures: Figures = {}
    for part in arguments.parts:
        figures |= PARTS[part](arguments)
        if part in RECORDED:
            record_run(arguments.json, RECORDED[part], "cpu", arguments.size)
    show(figures, "{:45} {:14,.4f}", None)
    write_json(arguments.json, {**(read_json(arguments.json) if arguments.json else {} or {}), **figures, **origin()})
    return figures


if __name__ == "__main__":
    main()
