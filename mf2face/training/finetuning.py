"""Fine-tuning with the foundation model frozen: DFN and the methods it is compared with, on the same data and seed."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets.fingerprint import generate_fingerprint
from peft import IA3Config, LoraConfig, PeftConfig, get_peft_model
from transformers import PreTrainedModel

from configuration_mf2.facs import UNKNOWN_LABEL
from mf2face.data.examples import MF2Collator, MF2Examples
from mf2face.training.options import read_options
from mf2face.training.stores import StoredExamples, frozen_states, store_identity
from modeling_mf2.dfn.config import DFNConfig


ADAPTERS = ("dfn", "lora", "ia3", "linear_probe")
# Nothing that these train lies below the states that they read: the states can be computed once.
STORABLE = ("dfn", "linear_probe")
_HEADS = ["classifiers"]
_INPUTS = ("pixel_values", "image_tokens", "landmarks")
_ATTENTION = r".*_vl\.qformer\.layers\.\d+\.(?:attention|cross_attention)\."
_FEED_FORWARD = r".*_vl\.qformer\.layers\.\d+\.query_feed_forward\.down_proj"


# Chosen on validation images by examples/benchmark/finetuning.py's data: the vision tower's states are worth more than
# the queries', and the places within a region or a face more than their mean.
_DFN: Mapping[str, Any] = {
    "pathways": ["visual", "vision"],
    "layers": 7,
    "pooling": {"visual": "mean", "vision": "all"},
    "readout": "mix",
    "dropout": 0.1,
}
_FACE_TOKENS = 49  # of a face as a whole so many are stored at most: more are averaged


_FILLED_IN = {"peft_type", "task_type", "inference_mode", "base", "auto_mapping", "base_model_name_or_path", "revision"}
_FILLED_IN |= {"peft_version"}


def peft_config(
    task: str, options: Sequence[str] = (), face_tokens: int = _FACE_TOKENS, branch: str | None = None
) -> PeftConfig:
    """The methods as their papers set them for attention layers; the task heads are trained beside each of them.

    options: NAME=VALUE of the method's own config, in place of what stands here. face_tokens: in each state of the
    model's vision tower; 0 where its states cannot be read. branch: the only one that the model has, if it has one.
    """
    if task == "dfn":
        own: dict[str, Any] = dict(_DFN)
        if not face_tokens:
            own |= {"pathways": ["visual", "language"], "pooling": "mean"}
        elif branch:
            own["pathways"] = ["visual", f"vision_{branch}"]
        if face_tokens > _FACE_TOKENS and branch != "au":
            own["pooling"] = {**_DFN["pooling"], "vision_emo": _FACE_TOKENS}
        config_class: type[PeftConfig] = DFNConfig
    elif task == "lora":
        target = _ATTENTION + r"(?:q_proj|v_proj)"
        own = {"r": 16, "lora_alpha": 32, "target_modules": target, "modules_to_save": _HEADS}
        config_class = LoraConfig
    elif task == "ia3":
        target = f"(?:{_ATTENTION}(?:k_proj|v_proj)|{_FEED_FORWARD})"
        own = {"target_modules": target, "feedforward_modules": _FEED_FORWARD, "modules_to_save": _HEADS}
        config_class = IA3Config
    else:
        raise ValueError(f"task: got {task!r}, expected one of {[name for name in ADAPTERS if name != 'linear_probe']}")
    return config_class(**{**own, **read_options("adapter_options", options, config_class, _FILLED_IN)})


def adapt(model: PreTrainedModel, task: str, options: Sequence[str] = ()) -> torch.nn.Module:
    """The model as `task` trains it: what is not the method's own, or a head, is frozen."""
    if task != "linear_probe":
        vision = model.base_model.vision
        reads_tower = vision.num_states and any("vision" in name for name in model.adapter_pathways)
        face_tokens = vision.config.num_prefix_tokens + vision.config.grid_size**2 if reads_tower else 0
        config = model.config
        branch = None if config.use_emo_branch and config.use_au_branch else "emo" if config.use_emo_branch else "au"
        return get_peft_model(model, peft_config(task, options, face_tokens, branch))
    if options:
        raise ValueError(f"adapter_options: got {list(options)}, expected none: a linear probe has no config")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.split(".")[0] in _HEADS)
    return model


def trainable_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


class _Images:
    """Of examples what the frozen part reads."""

    def __init__(self, examples: MF2Examples) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: tensor for name, tensor in self.examples[index].items() if name in _INPUTS}


class MF2Views(torch.utils.data.Dataset):
    """Examples of which each image is there in several forms, one drawn anew in each epoch: as it is, and changed a
    little in ways that do not depend on the run, so that they can be stored."""

    def __init__(self, views: Sequence[MF2Examples], seed: int = 0) -> None:
        self.views, self.seed, self.epoch = list(views), seed, 0

    def __getattr__(self, name: str) -> Any:
        if name == "views":  # not yet there while a worker unpickles
            raise AttributeError(name)
        return getattr(self.views[0], name)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = int(epoch)

    def __len__(self) -> int:
        return len(self.views[0])

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indexes: Sequence[int]) -> list[dict[str, Any]]:
        drawn = [np.random.default_rng((self.seed, self.epoch, int(i))).integers(len(self.views)) for i in indexes]
        found: list[Any] = [None] * len(indexes)
        for number in set(drawn):
            places = [place for place, view in enumerate(drawn) if view == number]
            examples = self.views[number].__getitems__([indexes[place] for place in places])
            for place, example in zip(places, examples, strict=True):
                found[place] = example
        return found


def with_states(
    model: torch.nn.Module, examples: MF2Examples | MF2Views, root: str | Path, dtype: str, rebuild: bool = False
) -> StoredExamples:
    """These examples as stored states and labels. The store lies under `root`, built where there is none of them."""
    views = examples.views if isinstance(examples, MF2Views) else [examples]
    first = views[0]
    processor = first.processor.image_processor.to_dict()
    data = f"{generate_fingerprint(first.dataset)} landmarks={first.read.landmarks}"
    data += "".join(f" view={view.read.seed} {view.read.augment}" for view in views[1:])
    identity = store_identity(model, len(first), len(views), data, processor, dtype)
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    collate = MF2Collator(first.processor.tokenizer.pad_token_id)
    images, *more = (_Images(view) for view in views)
    store = frozen_states(
        model,
        images,
        Path(root) / name,
        data=data,
        processor=processor,
        more_views=more,
        dtype=dtype,
        rebuild=rebuild,
        collate=collate,
    )
    return StoredExamples(store, _labels(first))


def _labels(examples: MF2Examples) -> dict[str, torch.Tensor]:
    rows, units = examples.dataset, len(examples.processor.action_units)
    names = {"au_labels": "au_labels", "emotion_labels": "emotion"}
    shapes: Mapping[str, Sequence[int]] = {"au_labels": (len(rows), units), "emotion_labels": (len(rows),)}
    found: dict[str, Any] = {}
    for name, column in names.items():
        known = column in examples.labels and (column != "emotion" or examples.processor.emotions)
        found[name] = torch.tensor(rows[column][:]) if known else torch.full(shapes[name], UNKNOWN_LABEL)
    return {**{name: labels.long() for name, labels in found.items()}, "index": torch.arange(len(rows))}
