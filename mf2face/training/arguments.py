"""The command line of train.py: what is trained, on what, and transformers' own TrainingArguments."""

import argparse
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from transformers import HfArgumentParser, TrainingArguments
from transformers.integrations import is_tensorboard_available

from configuration_mf2.configuration_mf2 import SIZES, MF2Config
from configuration_mf2.facs import LABEL_SETS
from mf2face.training.finetuning import ADAPTERS, STORABLE, peft_config
from mf2face.training.options import read_options
from mf2face.training.tasks import SYSTEMS


_NAME = re.compile(r"[\w.:-]+(/[\w.-]+)?")  # on the Hub, or timm's
_WEIGHTS = re.compile(r"\.(safetensors|bin|pth?|ckpt)$")


@dataclass
class MF2Arguments:
    model: Literal["mf2", "vl_fau", "exp_blip", "me_graph_au", "hsemotion"] = field(
        default="mf2",
        metadata={
            "help": "mf2, or a system that it is compared with: these have the tasks full and evaluate, and exp_blip "
            "pretrain (its stage 1), caption (stage 2) and linear_probe too"
        },
    )
    task: Literal["pretrain", "full", "dfn", "lora", "ia3", "linear_probe", "tower", "caption", "evaluate"] = field(
        default="pretrain",
        metadata={
            "help": "pretrain: alignment with language and classification. full: classification alone, both branches "
            "trained. dfn, lora, ia3, linear_probe: classification, the model of --model_name_or_path "
            "frozen (tiny: the released one). tower: a vision tower from scratch. evaluate: only measure."
        },
    )
    model_size: str = field(
        default="tiny",
        metadata={"help": "one of " + ", ".join(SIZES) + "; of the compared systems tiny or base, hsemotion's b2 too"},
    )
    model_options: list[str] = field(
        default_factory=list,
        metadata={"help": "NAME=VALUE of the model's config, such as use_llga=False or use_edges=False"},
    )
    model_name_or_path: str | None = field(default=None, metadata={"help": "start from this checkpoint"})
    vision_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "pretrained tower: a timm name, a file, or the folder of a checkpoint; without one the tiny size "
            "takes the released tower, unless this says none"
        },
    )
    text_name_or_path: str | None = field(default=None, metadata={"help": "BERT, into both Q-Formers"})
    qformer_name_or_path: str | None = field(default=None, metadata={"help": "BLIP-2, into both Q-Formers"})
    dataset: str = field(default="synthetic", metadata={"help": "synthetic (drawn faces), or a folder of MFA"})
    streaming: bool = field(
        default=False,
        metadata={"help": "rows are read as they come, each process its own, shuffled in a buffer; for --max_steps"},
    )
    num_images: int = field(default=9000, metadata={"help": "synthetic only: how many faces are drawn"})
    style: str = field(default="paint", metadata={"help": "synthetic only: sketch, paint or grain"})
    # Not 0: design choices were made while looking at those people.
    people_seed: int = field(default=1, metadata={"help": "synthetic only: other people are drawn"})
    label_set: str = field(default="mfa", metadata={"help": "one of " + ", ".join(LABEL_SETS)})
    branches: Literal["both", "emo", "au"] = field(default="both", metadata={"help": "leave out a branch"})
    use_labels: bool = field(
        default=True,
        metadata={"help": "tower only: without, it learns landmarks and hidden patches, no AU and no emotion"},
    )
    landmarks: Literal["dataset", "template"] = field(
        default="dataset", metadata={"help": "template: mean-face landmarks, to see what each face's own are worth"}
    )
    caption_set: Literal["au", "emot", "mix", "cat", "exp"] | None = field(
        default=None,
        metadata={"help": "exp_blip: captions of its stage 1, exp unless said; later stages keep them"},
    )
    features: Literal["vision", "qformer"] = field(
        default="qformer", metadata={"help": "exp_blip: what linear_probe and full classify by"}
    )
    language_model_name_or_path: str | None = field(
        default=None, metadata={"help": "exp_blip, caption: an OPT; without one a small one that has read nothing"}
    )
    captions_by_rule: bool | None = field(
        default=None,
        metadata={
            "help": "compared systems: captions that the data set lacks are written from its labels, else an error. "
            "The default for synthetic faces"
        },
    )
    use_captions: bool = field(default=True, metadata={"help": "without, the alignment losses are off"})
    store_vision: bool | None = field(
        default=None,
        metadata={"help": "the frozen tower sees each image once a run; no augmentation then. The tiny size's default"},
    )
    no_store: bool = field(
        default=False, metadata={"help": "dfn, linear_probe: run the frozen model each epoch, not once a run"}
    )
    store_dtype: Literal["float16", "bfloat16", "float32"] = field(
        default="float16", metadata={"help": "dfn, linear_probe: of the stored states"}
    )
    rebuild_store: bool = field(
        default=False,
        metadata={"help": "dfn, linear_probe: compute the stored states anew, as where a file is damaged"},
    )
    adapter_options: list[str] = field(
        default_factory=list,
        metadata={"help": "dfn, lora, ia3: NAME=VALUE of the method's own config, such as bottleneck=128 or r=8"},
    )
    align: bool = field(
        default=False,
        metadata={
            "help": "dfn, lora, ia3: the losses that align images with their captions too, by which the towers of both "
            "modalities learn; the frozen model runs in each epoch then"
        },
    )
    views: int = field(
        default=1,
        metadata={
            "help": "fine-tuning: forms in which training sees each image: itself, and fixed ones "
            "slightly turned, moved, mirrored, which are stored like the image itself"
        },
    )
    save_half: bool = field(default=False, metadata={"help": "16-bit weights in the saved file, measured as such"})
    augment: bool = field(default=False, metadata={"help": "crop, rotate, flip, recolour and hide parts of the crops"})


# Where the paper's Table VI and transformers' defaults differ; the tiny size is for two CPU cores.
_COMMON: dict[str, Any] = {
    "output_dir": "outputs/mf2",
    "weight_decay": 0.05,
    "lr_scheduler_type": "cosine",
    "save_strategy": "epoch",
    "eval_strategy": "epoch",
    "logging_steps": 20,
    "save_total_limit": 2,
    "load_best_model_at_end": True,
    "metric_for_best_model": "selection",
    "greater_is_better": True,
    "remove_unused_columns": False,
    "max_grad_norm": 1.0,
    "per_device_eval_batch_size": 64,
}
PAPER: dict[str, Any] = {
    **{"learning_rate": 1e-4, "warmup_steps": 2000, "num_train_epochs": 30, "per_device_train_batch_size": 56},
}
TINY: dict[str, Any] = {
    **{"learning_rate": 2e-3, "warmup_steps": 50, "num_train_epochs": 4, "per_device_train_batch_size": 64},
}


def parse_arguments(argv: list[str]) -> tuple[MF2Arguments, TrainingArguments]:
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--model", default="mf2")
    first.add_argument("--model_size", default="tiny")
    first.add_argument("--task")
    first.add_argument("--streaming", nargs="?", const="true", default="false")
    known, _ = first.parse_known_args(argv)
    parser = HfArgumentParser((MF2Arguments, TrainingArguments), description="Trains, evaluates and saves MF².")
    defaults = {**_COMMON, **(TINY if known.model_size == "tiny" else PAPER)}
    if known.model in SYSTEMS:
        system = SYSTEMS[known.model]
        defaults |= {"task": system.tasks[0], "output_dir": f"outputs/{known.model}"}
        defaults |= system.tiny if known.model_size == "tiny" else system.defaults
    defaults["restore_callback_states_from_checkpoint"] = True  # how long early stopping has waited
    if known.task == "tower":
        defaults |= {"learning_rate": 1e-3, "num_train_epochs": 6, "output_dir": "outputs/tower"}
    if known.task in ADAPTERS and known.model == "mf2":
        defaults |= {"num_train_epochs": 10, "output_dir": f"outputs/{known.task}"}
        if known.task == "dfn" and known.model_size == "tiny":
            defaults["learning_rate"] = 3e-3
    if known.streaming.lower() in ("true", "1", "yes"):  # a stream has no epochs
        defaults |= {"save_strategy": "steps", "eval_strategy": "steps"}
    parser.set_defaults(**defaults)
    ours, training = parser.parse_args_into_dataclasses(argv)
    check_model(ours)
    check_sources(ours)
    if ours.captions_by_rule is None:
        ours.captions_by_rule = ours.dataset == "synthetic"
    if ours.store_vision is None:
        frozen = ours.task not in ("tower", "evaluate") and ours.model == "mf2"
        frozen = frozen or (ours.model == "exp_blip" and ours.task in ("pretrain", "linear_probe"))
        ours.store_vision = ours.model_size == "tiny" and frozen and not ours.augment
        ours.store_vision = ours.store_vision and not ours.streaming and ours.views == 1
        # Where the states above the tower are stored, or its blocks are read, its output alone is of no use.
        ours.store_vision = ours.store_vision and ours.task != "dfn"
    if ours.adapter_options and ours.task not in ("dfn", "lora", "ia3"):
        raise ValueError(
            f"adapter_options: got {ours.adapter_options} with --task {ours.task}, expected them with dfn, lora or ia3"
        )
    if ours.adapter_options:
        peft_config(ours.task, ours.adapter_options)  # a wrong one is said before anything is drawn or loaded
    if ours.store_vision and ours.task == "dfn":
        raise ValueError("store_vision: got True with --task dfn, expected False: its towers read the vision tower")
    if ours.align and ours.task not in ("dfn", "lora", "ia3"):
        raise ValueError(f"align: got True with --task {ours.task}, expected it with dfn, lora or ia3")
    if ours.streaming or ours.augment or ours.align:  # what comes along changes, or does not come again
        ours.no_store = True
    ours.no_store = ours.no_store or ours.task not in STORABLE or ours.model in SYSTEMS
    elsewhere = ours.streaming or ours.augment or ours.align or ours.store_vision or ours.task in ("pretrain", "tower")
    if ours.views < 1 or (ours.views > 1 and elsewhere):
        raise ValueError(
            f"views: got {ours.views}, expected 1 or more, and 1 with --streaming, --augment, --align, "
            "--store_vision, or when a model is pre-trained"
        )
    if ours.streaming:
        check_streaming(ours, training)
    if "tensorboard" in (training.report_to or ()) and not is_tensorboard_available():
        raise ImportError("report_to: got tensorboard, which is not installed. Run `pip install tensorboard`")
    return ours, training


def check_sources(ours: MF2Arguments) -> None:
    """What is missing is said before anything is drawn or loaded."""
    if ours.num_images < 1:
        raise ValueError(f"num_images: got {ours.num_images}, expected 1 or more")
    for name, source in vars(ours).items():
        if not name.endswith("name_or_path") or not source or Path(source).exists():
            continue
        if _WEIGHTS.search(source) or not _NAME.fullmatch(source):
            raise ValueError(
                f"{name}: there is no folder or file {source}; expected that of a checkpoint, or a name on the Hub"
            )
    if ours.dataset != "synthetic" and not Path(ours.dataset).exists() and not _NAME.fullmatch(ours.dataset):
        raise ValueError(
            f"dataset: there is no folder {ours.dataset}; expected synthetic, a folder that examples/build_dataset.py "
            "wrote, or a name on the Hub"
        )


def check_model(ours: MF2Arguments) -> None:
    """What only some of the models have, or need."""
    sizes = SYSTEMS[ours.model].config.sizes if ours.model in SYSTEMS else SIZES
    if ours.model_size not in sizes:
        raise ValueError(f"model_size: got {ours.model_size!r}, expected one of {list(sizes)} for --model {ours.model}")
    config_class = SYSTEMS[ours.model].config if ours.model in SYSTEMS else MF2Config
    read_options("model_options", ours.model_options, config_class)
    if ours.model not in SYSTEMS:
        if ours.task == "caption":
            raise ValueError("task: got caption with --model mf2, which learns to write in pretrain; expected exp_blip")
        return
    tasks = SYSTEMS[ours.model].tasks
    if ours.task not in tasks:
        raise ValueError(f"task: got {ours.task!r} with --model {ours.model}, expected {' or '.join(tasks)}")
    if ours.streaming and ours.model in ("vl_fau", "exp_blip"):
        raise ValueError(
            f"streaming: got True with --model {ours.model}, expected False: its captions are looked at first"
        )
    ignored: dict[str, Any] = {"branches": "both", "align": False, "views": 1}
    if ours.model != "exp_blip":
        ignored |= {"store_vision": None, "text_name_or_path": None, "qformer_name_or_path": None, "caption_set": None}
    if ours.task != "evaluate":
        ignored |= {"use_captions": True, "landmarks": "dataset"}
    if ours.task == "caption":
        ignored |= {"augment": False, "vision_name_or_path": None, "store_vision": None}
    for name, default in ignored.items():
        if getattr(ours, name) not in (default, "none"):
            raise ValueError(
                f"{name}: got {getattr(ours, name)!r}, which --model {ours.model} --task {ours.task} does not use; "
                f"expected {default!r}"
            )


def check_streaming(ours: MF2Arguments, training: TrainingArguments) -> None:
    if training.max_steps <= 0 and ours.task != "evaluate":
        raise ValueError("max_steps: got none, expected how many steps to train on a stream, which has no end")
    if ours.store_vision:
        raise ValueError("store_vision, streaming: got both, expected one: what streams by is not stored")
    if "epoch" in (training.save_strategy, training.eval_strategy):
        raise ValueError("save_strategy, eval_strategy: got epoch, expected steps: a stream has no epochs")
