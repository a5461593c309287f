"""What a run tells of itself beside its scores, for `run.json` and the card that is made of it."""

import os
import platform
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from configuration_mf2.version_mf2 import VERSION
from dataset_mf2.synthetic_faces import CORPUS

from .arguments_mf2 import MF2Arguments
from .finetuning_mf2 import ADAPTERS
from .systems_mf2 import SYSTEMS


HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_LIBRARIES = ("torch", "transformers", "peft", "timm", "accelerate", "datasets")


def _warm_up(steps: float) -> float | str:
    """transformers reads what is less than 1 as a share."""
    return f"{steps:.0%} of all" if 0 < steps < 1 else steps


def run_facts(
    arguments: MF2Arguments,
    training: TrainingArguments,
    figures: Mapping[str, float],
    *,
    synthetic: bool,
    energy_kwh: float | None = None,
    captions: Sequence[str] | None = None,
) -> dict[str, Any]:
    """What `run.json` keeps of a run beside its scores: data, settings, cost, machine. No path of this machine.

    captions: the columns of text that a compared system learned from.
    """
    drawn = arguments.dataset == "synthetic"
    sources = {
        "model": arguments.model_name_or_path,
        "vision tower": arguments.vision_name_or_path,
        "text": arguments.text_name_or_path,
        "language model": arguments.language_model_name_or_path,
        "Q-Former": arguments.qformer_name_or_path,
    }
    sources = {part: name for part, name in sources.items() if name not in (None, "", "none")}
    settings = {
        "system": SYSTEMS[arguments.model].title if arguments.model in SYSTEMS else None,
        "task": arguments.task,
        "label set": arguments.label_set,
        "branches": arguments.branches if arguments.model == "mf2" else None,
        "model options": ", ".join(arguments.model_options) or None,
        "landmarks": {"dataset": "each face's own", "template": "the mean face's"}[arguments.landmarks],
        "labels used": arguments.use_labels if arguments.task == "tower" else None,
        "features": arguments.features
        if arguments.task in ("linear_probe", "full") and arguments.model == "exp_blip"
        else None,
        "captions used": ", ".join(captions) or False if captions is not None else learns_from_captions(arguments),
        "views of an image": arguments.views if arguments.views > 1 else None,
        "adapter options": ", ".join(arguments.adapter_options) or None,
        "states stored as": None if arguments.no_store else arguments.store_dtype,
        "augmentation": arguments.augment,
        "seed": training.seed,
        "epochs, at most": training.num_train_epochs if training.max_steps <= 0 else None,
        "steps": training.max_steps if training.max_steps > 0 else None,
        "learning rate": training.learning_rate,
        "schedule": str(getattr(training.lr_scheduler_type, "value", training.lr_scheduler_type)),
        "warm-up steps": _warm_up(training.warmup_steps),
        "weight decay": training.weight_decay,
        "batch size": training.train_batch_size * training.gradient_accumulation_steps * training.world_size,
        "precision": "bf16" if training.bf16 else "fp16" if training.fp16 else "fp32",
        "weights saved as": "fp16" if arguments.save_half else "fp32",
    }
    return {
        "kind": "compared" if arguments.model in SYSTEMS else kind_of(arguments.task),
        "system": arguments.model,
        "name": training.hub_model_id or Path(training.output_dir).resolve().name,
        "dataset": CORPUS if drawn else _public(arguments.dataset),
        "synthetic": bool(synthetic),
        "drawn": {name: getattr(arguments, name) for name in ("style", "people_seed", "num_images")} if drawn else {},
        "started_from": {part: _public(name) for part, name in sources.items()},
        "base_models": [name for name in sources.values() if _is_hub_name(name)],
        "settings": {name: value for name, value in settings.items() if value is not None},
        "cost": {name: figures[name] for name in ("cpu_seconds", "wall_seconds") if name in figures},
        "energy_kwh": energy_kwh,
        "processes": training.world_size,
        "hardware": hardware_words(training),
        "versions": {"mf2": VERSION, "python": platform.python_version(), **_library_versions()},
    }


def learns_from_captions(arguments: MF2Arguments) -> bool | str:
    return arguments.align or (arguments.use_captions and arguments.task == "pretrain")


def kind_of(task: str) -> str:
    """Of `card_mf2.KINDS`; a linear probe's heads are saved with the whole model."""
    return "tower" if task == "tower" else "adapter" if task in ADAPTERS and task != "linear_probe" else "model"


def _is_hub_name(name: str) -> bool:
    return bool(HUB_NAME.fullmatch(name)) and not Path(name).exists()


def _public(name: str) -> str:
    """Of a path the last part: where it lies is nobody's business."""
    return name if _is_hub_name(name) else Path(name).name


def hardware_words(training: TrainingArguments) -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    words = f"{cores} CPU core{'' if cores == 1 else 's'} ({_cpu_name()})"
    if training.device.type == "cuda":
        import torch

        words = f"{max(training.n_gpu, 1) * training.world_size} x {torch.cuda.get_device_name()}, {words}"
    return words


def _cpu_name() -> str:
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), flags=re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.machine()


def _library_versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


__all__ = ["HUB_NAME", "hardware_words", "kind_of", "learns_from_captions", "run_facts"]
