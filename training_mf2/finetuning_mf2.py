"""Fine-tuning with the foundation model frozen: DFN and the methods it is compared with, on the same data and seed."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import IA3Config, LoraConfig, PeftConfig, get_peft_model
from transformers import PreTrainedModel

from configuration_mf2.facs_mf2 import UNKNOWN_LABEL
from dataset_mf2.collator_mf2 import MF2Collator
from dataset_mf2.examples_mf2 import MF2Examples
from modeling_mf2.dfn_config import DFNConfig
from modeling_mf2.dfn_states import frozen_states, store_identity
from modeling_mf2.dfn_store import StoredExamples


ADAPTERS = ("dfn", "lora", "ia3", "linear_probe")
# Nothing that these train lies below the states that they read: the states can be computed once.
STORABLE = ("dfn", "linear_probe")
_HEADS = ["classifiers"]
_INPUTS = ("pixel_values", "image_tokens", "landmarks")
_ATTENTION = r".*_vl\.qformer\.layers\.\d+\.(?:attention|cross_attention)\."
_FEED_FORWARD = r".*_vl\.qformer\.layers\.\d+\.query_feed_forward\.down_proj"


def peft_config(task: str) -> PeftConfig:
    """The methods as their papers set them for attention layers; the task heads are trained beside each of them."""
    if task == "dfn":
        return DFNConfig()
    if task == "lora":
        target = _ATTENTION + r"(?:q_proj|v_proj)"
        return LoraConfig(r=16, lora_alpha=32, target_modules=target, modules_to_save=_HEADS)
    if task == "ia3":
        target = f"(?:{_ATTENTION}(?:k_proj|v_proj)|{_FEED_FORWARD})"
        return IA3Config(target_modules=target, feedforward_modules=_FEED_FORWARD, modules_to_save=_HEADS)
    raise ValueError(f"task: got {task!r}, expected one of {list(ADAPTERS)}")


def adapt(model: PreTrainedModel, task: str) -> torch.nn.Module:
    """The model as `task` trains it: what is not the method's own, or a head, is frozen."""
    if task != "linear_probe":
        return get_peft_model(model, peft_config(task))
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


def with_states(model: torch.nn.Module, examples: MF2Examples, root: str | Path, dtype: str) -> StoredExamples:
    """These examples as stored states and labels. The store lies under `root`, built where there is none of them."""
    processor = examples.processor.image_processor.to_dict()
    data = f"{examples.dataset._fingerprint} landmarks={examples.read.landmarks}"
    identity = store_identity(model, len(examples), 1, data, processor, dtype)
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    collate = MF2Collator(examples.processor.tokenizer.pad_token_id)
    store = frozen_states(
        model, _Images(examples), Path(root) / name, data=data, processor=processor, dtype=dtype, collate=collate
    )
    return StoredExamples(store, _labels(examples))


def _labels(examples: MF2Examples) -> dict[str, torch.Tensor]:
    rows, units = examples.dataset, len(examples.processor.action_units)
    names = {"au_labels": "au_labels", "emotion_labels": "emotion"}
    shapes: Mapping[str, Sequence[int]] = {"au_labels": (len(rows), units), "emotion_labels": (len(rows),)}
    found: dict[str, Any] = {}
    for name, column in names.items():
        known = column in examples.labels and (column != "emotion" or examples.processor.emotions)
        found[name] = torch.tensor(rows[column][:]) if known else torch.full(shapes[name], UNKNOWN_LABEL)
    return {**{name: labels.long() for name, labels in found.items()}, "index": torch.arange(len(rows))}
