"""Images a second in pre-training and at inference on a GPU, and how long the paper's data would take so.

python examples/benchmark/gpu.py [--size giant] [--batch_size 56] [--compile] [--stored_tokens] [--json FILE]
    [--parts steps memory dfn launch]

memory: the dry run's estimate against what two steps of train.py take. dfn: its store of random images, and steps from
it. launch: two steps of train.py by each file of examples/accelerate that this machine has the GPUs for. With --json
in results/, what ran is noted for the table in docs/paper.md.

Weights, images and captions are random and made on the device: nothing is loaded, decoded or copied meanwhile, so these
are figures of the model, not of a data loader. A training step is forward, backward and AdamW with all losses; the
tower is frozen. Weights and AdamW's state are bfloat16; with --mixed what is trained is float32 under autocast, as
`train.py --bf16` has it. Each round is a few steps between two synchronisations, after a warm-up; figures are medians.
Memory is what tensors took at most (on a CPU: what the process held). Without --device cpu a GPU is required.
"""

import argparse
import gc
import itertools
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

import torch
from accelerate.utils import send_to_device
from report import options, record_run, write_json
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedModel

from configuration_mf2 import MF2Config
from configuration_mf2.facs import CANONICAL_FACE
from mf2face.training.arguments import parse_arguments
from mf2face.training.build import load_splits, with_sources
from mf2face.training.dry_run import GB, allocated_peak, dry_run
from mf2face.training.finetuning import adapt
from mf2face.training.run import load_parts, make_trainer
from mf2face.training.stores import StoredExamples, frozen_states
from modeling_mf2 import MF2ForFaceAnalysis, MF2ForPreTraining


ROOT = Path(__file__).resolve().parents[2]
Batch = dict[str, torch.Tensor]
TRAINING_IMAGES, VALIDATION_IMAGES = 31_320, 3_376  # the paper's
PAPER = "The paper's own figures, on an RTX A6000: 62.3 min an epoch, 5.1 min for inference."
WORDS = (6, 2000)  # token ids that are none of the special ones
WARM_UP = 3


def captions(shape: tuple[int, ...], shortest: int, longest: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random `[CLS]` words `[SEP]`, padded to `width`."""
    lengths = torch.randint(shortest, longest + 1, (*shape, 1))
    places = torch.arange(width)
    mask = (places < lengths).long()
    ids = torch.where(places == lengths - 1, 3, torch.randint(*WORDS, (*shape, width))) * mask
    ids[..., 0] = 2
    return ids, mask


def sentences(images: int, active: torch.Tensor, width: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """(images, AU, width): of an active AU a sentence of its own, of one at rest a short one, which others share."""
    units = active.shape[1]
    written, at_rest = captions((images, units), 12, width, width), captions((units, 4), 6, 9, width)
    drawn = torch.randint(4, (images, units))
    return tuple(
        torch.where(active[..., None].bool(), own, shared[torch.arange(units), drawn])
        for own, shared in zip(written, at_rest, strict=True)
    )


def random_batch(config: MF2Config, images: int, stored_tokens: bool, dtype: torch.dtype) -> Batch:
    vision = config.vision_config
    size, units = vision.image_size, len(config.action_units)
    batch = {
        "landmarks": torch.tensor(CANONICAL_FACE) * size + torch.randn(images, 68, 2),
        "au_labels": (torch.rand(images, units) < 0.3).long(),
        "emotion_labels": torch.randint(len(config.emotions), (images,)),
    }
    if stored_tokens:
        length = vision.num_prefix_tokens + vision.grid_size**2
        batch["image_tokens"] = torch.randn(images, length, vision.hidden_size).to(dtype)
    else:
        batch["pixel_values"] = torch.randn(images, 3, size, size).to(dtype)
    longest = config.emotion_max_length
    batch["input_ids"], batch["attention_mask"] = captions((images,), 16, longest, longest)
    batch["key_au_input_ids"], batch["key_au_attention_mask"] = captions((images,), 24, 64, 64)
    batch["au_input_ids"], batch["au_attention_mask"] = sentences(images, batch["au_labels"])
    for name in ("attention_mask", "key_au_attention_mask", "au_attention_mask"):
        batch[name][0] = 0  # an image without captions, as real data has them
    return batch


def build(
    model_class: type[PreTrainedModel], arguments: argparse.Namespace, checkpointing: bool = False
) -> PreTrainedModel:
    config = MF2Config.from_size(arguments.size)
    if arguments.pair_share:
        config.emo_pair_share = config.au_pair_share = arguments.pair_share
    torch.manual_seed(0)
    with torch.device(arguments.device):
        model = model_class(config).to(torch.bfloat16)
    if arguments.mixed:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    if arguments.compile:
        torch._dynamo.config.recompile_limit = 64  # one block is used in many shapes: both branches, four passes
        model.mf2.vision.compile()
        blocks = [*model.mf2.emo_vl.qformer.layers, *model.mf2.au_vl.qformer.layers]
        for block in () if checkpointing else blocks:  # a block is compiled or recomputed: both together may fail
            block.compile()
    if checkpointing:
        model.activation_checkpointing_enable()
    return model


def begin(device: torch.device) -> str:
    """-> the device in words."""
    if device.type == "cpu":
        return f"CPU, {torch.get_num_threads()} threads"
    torch.set_float32_matmul_precision("high")
    return torch.cuda.get_device_name(device)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_a_step(step: Callable[[], None], arguments: argparse.Namespace) -> float:
    for _ in range(WARM_UP):
        step()
    times = []
    for _ in range(arguments.rounds):
        wait(arguments.device)
        start = time.perf_counter()
        for _ in range(arguments.steps):
            step()
        wait(arguments.device)
        times.append((time.perf_counter() - start) / arguments.steps)
    return statistics.median(times)


def peak_memory_gb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def host_syncs(step: Callable[[], None], device: torch.device) -> dict[str, float]:
    """How often the processor waits for the GPU in a step; where is printed."""
    if device.type == "cpu":
        return {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    result = [warning for warning in caught if "called a synchronizing" in str(warning.message)]
    places = Counter(f"{'/'.join(warning.filename.split('/')[-2:])}:{warning.lineno}" for warning in result)
    print(f"waits for the GPU in a training step: {dict(places)}")
    return {"host_syncs_per_step": float(len(result))}


def batches(config: MF2Config, stored_tokens: bool, arguments: argparse.Namespace) -> Iterator[Batch]:
    torch.manual_seed(1)
    made = [random_batch(config, arguments.batch_size, stored_tokens, torch.bfloat16) for _ in range(3)]
    return itertools.cycle([{k: value.to(arguments.device) for k, value in batch.items()} for batch in made])


def training_step(
    model: PreTrainedModel, stored_tokens: bool, arguments: argparse.Namespace
) -> Callable[[], torch.Tensor]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-4, weight_decay=0.05, fused=arguments.device.type == "cuda")
    given = batches(model.config, stored_tokens, arguments)

    def step() -> torch.Tensor:
        with torch.autocast(arguments.device.type, torch.bfloat16) if arguments.mixed else nullcontext():
            loss = model(**next(given)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def inference_step(model: PreTrainedModel, stored_tokens: bool, arguments: argparse.Namespace) -> Callable[[], None]:
    given = batches(model.config, stored_tokens, arguments)

    @torch.no_grad()
    def step() -> None:
        with torch.autocast(arguments.device.type, torch.bfloat16) if arguments.mixed else nullcontext():
            batch = next(given)
            model(**{name: batch[name] for name in ("pixel_values", "image_tokens", "landmarks") if name in batch})

    return step


def measure_training(
    stored_tokens: bool, checkpointing: bool, arguments: argparse.Namespace
) -> dict[str, float] | None:
    """None if the memory does not suffice."""
    try:
        free(arguments.device)
        model = build(MF2ForPreTraining, arguments, checkpointing).train()
        step = training_step(model, stored_tokens, arguments)
        figures = {"train_images_per_s": arguments.batch_size / seconds_a_step(step, arguments)}
        figures["train_peak_memory_gb"] = peak_memory_gb(arguments.device)
        figures |= host_syncs(step, arguments.device)
        loss = step().item()
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss}: such steps measure nothing")
        return {**figures, "gradient_checkpointing": float(checkpointing)}
    except torch.OutOfMemoryError:
        return None


def measure_inference(stored_tokens: bool, arguments: argparse.Namespace) -> dict[str, float]:
    free(arguments.device)
    step = inference_step(build(MF2ForFaceAnalysis, arguments).eval(), stored_tokens, arguments)
    figures = {"inference_images_per_s": arguments.batch_size / seconds_a_step(step, arguments)}
    return {**figures, "inference_peak_memory_gb": peak_memory_gb(arguments.device)}


def measure(stored_tokens: bool, arguments: argparse.Namespace) -> dict[str, float]:
    trained = None if arguments.checkpointing else measure_training(stored_tokens, False, arguments)
    if trained is None:
        if not arguments.checkpointing:
            print("without gradient checkpointing the memory does not suffice: with it, then")
        trained = measure_training(stored_tokens, True, arguments)
    if trained is None:
        raise SystemExit(f"batch_size: {arguments.batch_size} images do not fit; choose a smaller --batch_size")
    figures = trained | measure_inference(stored_tokens, arguments)
    figures["epoch_minutes"] = TRAINING_IMAGES / figures["train_images_per_s"] / 60
    figures["inference_seconds"] = VALIDATION_IMAGES / figures["inference_images_per_s"]
    return {f"{name}_stored_tokens": value for name, value in figures.items()} if stored_tokens else figures


def measure_memory(size: str, batch_size: int, device: str, *more: str) -> dict[str, float]:
    """The dry run's estimate, and the allocator's high-water mark of a model's construction and two steps."""
    with tempfile.TemporaryDirectory() as folder:
        command = f"--model_size {size} --num_images 160 --vision_name_or_path none --output_dir {folder}".split()
        command += ["--per_device_train_batch_size", str(batch_size), "--store_vision", "False"]
        command += [*more, *(["--use_cpu", "True"] if device == "cpu" else [])]
        estimate = dry_run(parse_arguments(command))["memory_gb"]
        command += "--max_steps 2 --save_strategy no --eval_strategy no --load_best_model_at_end False".split()
        settings = with_sources(parse_arguments([*command, "--disable_tqdm", "True"]))
        splits = load_splits(settings.arguments)
        profiled = profile(activities=[ProfilerActivity.CPU], profile_memory=True) if device == "cpu" else nullcontext()
        free(torch.device(device))
        with profiled:
            parts, splits, _, columns, _ = load_parts(settings, splits)
            make_trainer(settings, parts, splits, columns, Path(folder))[0].train()
    measured = allocated_peak(profiled) if device == "cpu" else torch.cuda.max_memory_allocated()
    figures = {"dry_run_memory_gb": estimate, "measured_memory_gb": measured / GB}
    return {**figures, "dry_run_memory_error": abs(estimate * GB / measured - 1)}


def measure_dfn(arguments: argparse.Namespace) -> dict[str, float]:
    """Random images: what decoding costs is not in it."""
    free(arguments.device)
    torch.manual_seed(0)
    config = MF2Config.from_size(arguments.size)
    model = adapt(MF2ForFaceAnalysis(config), "dfn")
    count, side = arguments.batch_size, config.vision_config.image_size
    faces = torch.tensor(CANONICAL_FACE) * side
    images = [{"pixel_values": torch.randn(3, side, side), "landmarks": faces} for _ in range(count)]
    labels = random_batch(config, count, True, torch.float32)
    labels = {name: labels[name] for name in ("au_labels", "emotion_labels")}
    with tempfile.TemporaryDirectory() as folder:
        how = {"device": arguments.device, "precision": "bfloat16", "batch_size": max(1, count // 4)}
        frozen_states(model, images[:1], Path(folder) / "warm_up", data="random", **how)
        begun = time.perf_counter()
        store = frozen_states(model, images, Path(folder) / "store", data="random", **how)
        seconds = time.perf_counter() - begun
        states = StoredExamples(store, labels)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)

        def step() -> None:
            batch = send_to_device(states.__getitems__(range(count)), arguments.device)
            model.train()(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        figures = {"dfn_images_per_s": count / seconds_a_step(step, arguments)}
        figures["dfn_store_kb_per_image"] = sum(t[0].nbytes for t in store.shards[0].values()) / 1e3
    figures["dfn_epoch_minutes"] = TRAINING_IMAGES / figures["dfn_images_per_s"] / 60
    return {**figures, "store_images_per_s": count / seconds, "store_minutes": TRAINING_IMAGES * seconds / count / 60}


def launches(device: str) -> dict[str, list[str]]:
    """What starts train.py on the processes that this machine has room for, by name."""
    accelerate, configs = [sys.executable, "-m", "accelerate.commands.launch"], ROOT / "examples" / "accelerate"
    if device == "cpu":
        return {"ddp": [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]}
    count = str(torch.cuda.device_count())
    found = {"ddp": count != "1", "fsdp": True, "deepspeed_zero2": find_spec("deepspeed") is not None}
    return {
        name: [*accelerate, "--config_file", str(configs / f"{name}.yaml"), "--num_processes", count]
        for name, possible in found.items()
        if possible
    }


def measure_launches(arguments: argparse.Namespace) -> dict[str, float]:
    """1: two steps ran, and the weights are there; 0: they did not."""
    figures, device = {}, arguments.device.type
    for name, command in launches(device).items():
        with tempfile.TemporaryDirectory() as folder:
            command += ["train.py", "--num_images", "160", "--max_steps", "2", "--output_dir", folder]
            command += "--eval_strategy no --save_strategy no --load_best_model_at_end False".split()
            command += ["--use_cpu", "True"] if device == "cpu" else ["--bf16", "True"]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            figures[f"launch_{name}"] = float(done.returncode == 0 and (Path(folder) / "model.safetensors").is_file())
        if figures[f"launch_{name}"]:
            record_run(arguments.json, f"examples/accelerate/{name}.yaml", device, "tiny, two steps")
        else:
            print(f"{name}: {done.stderr[-500:]}")
    return figures


def measure_steps(arguments: argparse.Namespace) -> dict[str, float]:
    figures = measure(False, arguments)
    chosen = [name for name in ("mixed", "compile", "checkpointing") if getattr(arguments, name)]
    for name in ("pre-training and inference", *(f"--{name}" for name in chosen)):
        record_run(arguments.json, name, arguments.device.type, f"{arguments.size}, {arguments.batch_size} images")
    return figures | measure(True, arguments) if arguments.stored_tokens else figures


def measure_part(part: str, arguments: argparse.Namespace) -> dict[str, float]:
    device, settings = arguments.device.type, f"{arguments.size}, {arguments.batch_size} images"
    if part == "memory":
        precision = ["--bf16", "True"] if arguments.mixed else []
        figures = measure_memory(arguments.size, arguments.batch_size, device, *precision)
        record_run(arguments.json, "memory as the dry run estimates it", device, settings)
        return figures
    figures = {"steps": measure_steps, "dfn": measure_dfn, "launch": measure_launches}[part](arguments)
    if part == "dfn":
        record_run(arguments.json, "DFN: a store, and steps from it", device, settings)
    return figures


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = options(__doc__)
    parser.add_argument("--parts", nargs="+", choices=("steps", "memory", "dfn", "launch"), default=["steps"])
    parser.add_argument("--size", default="giant", choices=("tiny", "base", "giant"))
    parser.add_argument("--batch_size", type=int, default=56)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="of a round")
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--pair_share", type=float, help="of the pairs ITM and ITG take, instead of the config's own")
    parser.add_argument("--mixed", action="store_true", help="trained weights in float32, under autocast")
    parser.add_argument("--compile", action="store_true", help="torch.compile the tower and the Q-Formers' blocks")
    parser.add_argument("--checkpointing", action="store_true", help="even where the memory suffices without")
    parser.add_argument("--stored_tokens", action="store_true", help="also with the tower's output given")
    arguments = parser.parse_args(argv)
    if arguments.device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device: got cuda, but torch finds no GPU here; for a dry run pass --device cpu --size tiny")
    name = begin(arguments.device)
    chosen = [key for key in ("mixed", "compile", "checkpointing") if getattr(arguments, key)]
    print(f"MF2 {arguments.size} on {name}: batch {arguments.batch_size}, {', '.join(['bfloat16', *chosen])}")
    figures: dict[str, float] = {}
    for part in arguments.parts:
        figures |= measure_part(part, arguments)
    for figure, value in figures.items():
        print(f"{figure:40} {value:12.2f}")
    print(
        f"epoch: {TRAINING_IMAGES:,} images, inference: {VALIDATION_IMAGES:,} images, extrapolated from the rates",
        end="",
    )
    cpu = arguments.device.type == "cpu"
    print(", which are the CPU's: they say nothing of a GPU" if cpu else " above")
    print(PAPER)
    write_json(arguments.json, figures)
    return figures


if __name__ == "__main__":
    main()
