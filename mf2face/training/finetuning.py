"""Fine-tuning with the foundation model frozen: DFN, LoRA, IA3 and a linear probe, on images or on stored states."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import IA3Config, LoraConfig, PeftConfig, get_peft_model
from transformers import PreTrainedModel

from configuration_mf2.facs import UNKNOWN_LABEL
from mf2face.data.examples import MF2Examples
from mf2face.training.arguments import read_options
from mf2face.training.stores import StoredExamples, load_or_store
from modeling_mf2.dfn.config import DFNConfig


_HEADS = ["classifiers"]
_ATTENTION = r".*_vl\.qformer\.layers\.\d+\.(?:attention|cross_attention)\."
_FEED_FORWARD = r".*_vl\.qformer\.layers\.\d+\.query_feed_forward\.down_proj"
_FACE_TOKENS = 49
"""At most so many states of the whole face are stored; more are averaged."""

# DFN was chosen on validation images by examples/benchmark/finetuning.py's data: the vision tower's states are worth
# more than the queries', and the places within a region or a face more than their mean. LoRA and IA3 are set as their
# papers set them for attention layers.
_DFN = {"pathways": ["visual", "vision"], "layers": 7, "pooling": {"visual": "mean", "vision": "all"}}
# At giant the branches' last states are 639 kB an image in 16 bits; 25 GB for the paper's 31,320 images leave 159 kB.
_COMPACT = {"pathways": ["vision"], "layers": 3, "pooling": {"vision_au": "mean", "vision_emo": 6}}
_WIDE = 1024
_LORA = {"r": 16, "lora_alpha": 32, "target_modules": f"{_ATTENTION}(?:q_proj|v_proj)", "modules_to_save": _HEADS}
_IA3 = {"target_modules": f"(?:{_ATTENTION}(?:k_proj|v_proj)|{_FEED_FORWARD})", "feedforward_modules": _FEED_FORWARD}
METHODS: Mapping[str, tuple[type[PeftConfig], Mapping[str, Any]]] = {
    "dfn": (DFNConfig, {**_DFN, "readout": "mix", "dropout": 0.1}),
    "lora": (LoraConfig, _LORA),
    "ia3": (IA3Config, {**_IA3, "modules_to_save": _HEADS}),
}
_SET_BY_PEFT = ("peft_type", "task_type", "inference_mode", "auto_mapping", "base_model_name_or_path", "revision")
_SET_BY_PEFT += ("peft_version", "base")


def peft_config(method: str, options: Sequence[str] = (), **shape: Any) -> PeftConfig:
    """The config of one of `METHODS`, with `options` (NAME=VALUE). shape: of the model, as `_fit_dfn` takes it."""
    if method not in METHODS:
        raise ValueError(f"task: got {method!r}, expected one of {list(METHODS)}")
    config_class, own = METHODS[method]
    own = _fit_dfn(own, **shape) if method == "dfn" else own
    return config_class(**{**own, **read_options("adapter_options", options, config_class, _SET_BY_PEFT)})


def _fit_dfn(
    own: Mapping[str, Any], face_tokens: int = _FACE_TOKENS, branch: str | None = None, compact: bool = False
) -> dict[str, Any]:
    """face_tokens: of the tower's states, 0 if they cannot be read. branch: the model's only one."""
    own = {**own, **(_COMPACT if compact else {})}
    if not face_tokens:
        return own | {"pathways": ["visual", "language"], "pooling": "mean"}
    if branch:
        own["pathways"] = [name.replace("vision", f"vision_{branch}") for name in own["pathways"]]
    if compact:
        return own
    if face_tokens > _FACE_TOKENS and branch != "au":
        own["pooling"] = {**own["pooling"], "vision_emo": _FACE_TOKENS}
    return own


def adapt(
    model: PreTrainedModel, method: str, options: Sequence[str] = (), dfn_states: str | None = None
) -> torch.nn.Module:
    """The model with all but the method's own part, or the heads of a linear probe, frozen."""
    if method != "linear_probe":
        vision, config = model.base_model.vision, model.config
        reads_tower = vision.num_states and any("vision" in name for name in model.adapter_pathways)
        face_tokens = vision.config.num_prefix_tokens + vision.config.grid_size**2 if reads_tower else 0
        branch = None if config.use_emo_branch and config.use_au_branch else "emo" if config.use_emo_branch else "au"
        compact = dfn_states == "compact" or (dfn_states is None and vision.config.hidden_size > _WIDE)
        shape = {"face_tokens": face_tokens, "branch": branch, "compact": compact}
        return get_peft_model(model, peft_config(method, options, **shape))
    if options:
        raise ValueError(f"adapter_options: got {list(options)}, expected none: a linear probe has no config")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.split(".")[0] in _HEADS)
    return model


def trainable_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


class MF2Views(torch.utils.data.Dataset):
    """Several fixed forms of each image, of which every epoch draws one anew; they do not depend on the run's seed, so
    that they can be stored."""

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
        return [self.views[view][index] for view, index in zip(drawn, indexes, strict=True)]


class BalancedExamples(torch.utils.data.Dataset):
    """Examples whose rarer emotions come several times an epoch, at most eight."""

    def __init__(self, examples: Any, emotions: Sequence[int], rows: Sequence[int] | None = None) -> None:
        """rows: of the examples, which are used; emotions: of these."""
        self.examples, emotions = examples, np.asarray(emotions)
        counts = np.bincount(emotions[emotions >= 0], minlength=1)
        repeats = np.where(emotions >= 0, np.clip(counts.max() // counts[emotions].clip(1), 1, 8), 1)
        self.rows = np.repeat(np.arange(len(emotions)) if rows is None else np.asarray(rows), repeats)

    def __getattr__(self, name: str) -> Any:
        if name == "examples":  # not yet there while a worker unpickles
            raise AttributeError(name)
        return getattr(self.examples, name)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.examples[int(self.rows[index])]

    def __getitems__(self, indexes: Sequence[int]) -> Any:
        return self.examples.__getitems__(self.rows[list(indexes)].tolist())


def with_states(
    model: torch.nn.Module, examples: MF2Examples | MF2Views, root: str | Path, **options: Any
) -> StoredExamples:
    """The examples as stored states and labels; a store of them that is missing under `root` is built."""
    views = examples.views if isinstance(examples, MF2Views) else [examples]
    return StoredExamples(load_or_store(model, views, root, **options), _labels(views[0]))


def _labels(examples: MF2Examples) -> dict[str, torch.Tensor]:
    rows, processor = examples.dataset, examples.processor
    units = len(processor.action_units)
    names = {"au_labels": ("au_labels", units, (units,)), "emotion_labels": ("emotion", len(processor.emotions), ())}
    labels = {"index": torch.arange(len(rows))}
    for name, (column, classes, shape) in names.items():
        known = column in examples.labels and classes
        labels[name] = torch.tensor(rows[column][:]).long() if known else torch.full((len(rows), *shape), UNKNOWN_LABEL)
    return labels
