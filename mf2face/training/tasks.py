"""The compared systems: how each is built, what it reads beside the image, and what its authors trained it with."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedConfig, PreTrainedModel

from configuration_mf2.baselines import ExpBlipConfig, HSEmotionConfig, MEGraphAUConfig, VLFAUConfig
from configuration_mf2.facs import LabelSet
from mf2face.captions.styles import CAPTIONS, caption_column, with_rule_captions
from mf2face.training.options import read_options
from modeling_mf2.baselines.base import ComparedPreTrainedModel, load_backbone_weights, occurrence_weights
from modeling_mf2.baselines.exp_blip import ExpBlipForFaceAnalysis, ExpBlipForPreTraining
from modeling_mf2.baselines.hsemotion import HSEmotionForFaceAnalysis
from modeling_mf2.baselines.me_graph_au import MEGraphAUForFaceAnalysis
from modeling_mf2.baselines.vl_fau import VLFAUForFaceAnalysis
from processing_mf2.processing_mf2 import MF2Processor


logger = logging.getLogger(__name__)


# The backbone is trained too, as its authors do: what is good for MF²'s parts above a frozen tower is too much.
_BACKBONE_TOO: Mapping[str, Any] = {"learning_rate": 1e-3}


@dataclass(frozen=True)
class System:
    """title and paper: for cards. captions: the columns of text that it learns from. tasks: of train.py, the first one
    unless said. defaults: what its authors trained it with; tiny: what the small size is trained with."""

    title: str
    paper: str
    config: type[PreTrainedConfig]
    model: type[PreTrainedModel]
    captions: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ("full", "evaluate")
    defaults: Mapping[str, Any] = field(default_factory=dict)
    tiny: Mapping[str, Any] = field(default_factory=lambda: _BACKBONE_TOO)


SYSTEMS: Mapping[str, System] = {
    "vl_fau": System(
        "VL-FAU",
        "Towards End-to-End Explainable Facial Action Unit Recognition via Vision-Language Joint Learning (Ge et al.)",
        VLFAUConfig,
        VLFAUForFaceAnalysis,
        ("vl_fau_global", "vl_fau_local"),
        defaults={"num_train_epochs": 15, "per_device_train_batch_size": 64, "weight_decay": 5e-4},
    ),
    "exp_blip": System(
        "Exp-BLIP",
        "Describe Your Facial Expressions by Linking Image Encoders and Large Language Models (Yuan et al.)",
        ExpBlipConfig,
        ExpBlipForFaceAnalysis,
        tasks=("pretrain", "caption", "linear_probe", "full", "evaluate"),
        defaults={
            **{"num_train_epochs": 20, "per_device_train_batch_size": 32, "learning_rate": 1e-5, "warmup_steps": 1000},
        },
        tiny={},
    ),
    "me_graph_au": System(
        "ME-GraphAU",
        "Learning Multi-dimensional Edge Feature-based AU Relation Graph for Facial Action Unit Recognition "
        "(Luo et al.)",
        MEGraphAUConfig,
        MEGraphAUForFaceAnalysis,
        defaults={"num_train_epochs": 20, "per_device_train_batch_size": 64, "weight_decay": 5e-4},
    ),
    "hsemotion": System(
        "HSEmotion",
        "HSEmotion: High-Speed Emotion Recognition Library (Savchenko)",
        HSEmotionConfig,
        HSEmotionForFaceAnalysis,
        defaults={"num_train_epochs": 10, "per_device_train_batch_size": 64},
    ),
}
"""By their names on the command line, and in a checkpoint's `model_type`."""


def captions_of(model: PreTrainedModel) -> tuple[str, ...]:
    """The columns of text that a model learns from."""
    system = SYSTEMS.get(model.config.model_type)
    if system is None:
        return CAPTIONS
    if isinstance(model, ExpBlipForPreTraining):
        return (caption_column(model.config.caption_set),)
    unused = {"vl_fau_local": "use_llga", "vl_fau_global": "use_glga"}
    return tuple(name for name in system.captions if getattr(model.config, unused.get(name, ""), True))


def build_system(
    name: str,
    size: str,
    *,
    label_set: str = "mfa",
    checkpoint: str | None = None,
    backbone: str | None = None,
    options: list[str] | tuple[str, ...] = (),
    train_rows: Dataset | None = None,
) -> tuple[ComparedPreTrainedModel, MF2Processor]:
    """A model and its processor: as a checkpoint holds them, but for `options`, or new with a pretrained backbone.

    options: NAME=VALUE of the system's config. train_rows: their labels tell how rare each AU is; without them all AUs
    count alike.
    """
    system = SYSTEMS[name]
    fields = read_options("model_options", options, system.config)
    if checkpoint:
        model = system.model.from_pretrained(checkpoint, **fields)
        return model, MF2Processor.from_pretrained(checkpoint)
    config = system.config.from_size(size, **{"label_set": label_set, **fields})
    if config.au_class_weights is None and config.action_units and train_rows is not None:
        config.au_class_weights = _class_weights(train_rows)
    processor = MF2Processor.for_model(config)
    model = system.model(config)
    if backbone is None:
        logger.warning("the backbone has random weights: name some in --vision_name_or_path")
    else:
        unused = load_backbone_weights(model, backbone)
        logger.info("backbone: all of it from %s, which has %d tensors of no use here", backbone, len(unused))
    return model, processor


def _class_weights(rows: Dataset) -> list[float] | None:
    if not isinstance(rows, Dataset) or "au_labels" not in rows.column_names:
        logger.warning("au_class_weights: no labels to count before training begins; every AU counts 1")
        return None
    return occurrence_weights(torch.tensor(rows["au_labels"][:]))


def with_captions(
    splits: Mapping[str, Dataset], model: PreTrainedModel, *, by_rule: bool, seed: int = 0
) -> dict[str, Dataset]:
    """The splits with the captions that the model learns from; those that they lack only `by_rule`."""
    if not by_rule:
        return dict(splits)
    captions = captions_of(model)
    labels = LabelSet(tuple(model.config.action_units), tuple(model.config.emotions))
    return {name: with_rule_captions(rows, captions, labels, seed=seed) for name, rows in splits.items()}


__all__ = ["SYSTEMS", "System", "build_system", "captions_of", "with_captions"]
