"""What the configurations of all compared systems share: a backbone, the labels, and what each loss counts."""

import copy
import dataclasses
import math
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .configuration_mf2 import KnownFieldsMixin, check_backbone_kwargs, check_normalisation
from .facs_mf2 import check_action_units, fields_of_label_names, resolve_label_set
from .hub_mf2 import SelfContainedMixin


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

TINY_BACKBONE: dict[str, Any] = {
    **{"backbone": "conv", "backbone_kwargs": {"width": 128}, "image_size": 112},
    **{"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)},
}
"""MF²'s own small tower, so that every system can start from the same weights."""

# What a checkpoint's fields are derived from; a new label set brings new ones.
_OF_LABELS = ("action_units", "emotions", "au_class_weights", "au_thresholds", "id2label", "label2id")


@strict
class ComparedConfig(KnownFieldsMixin, SelfContainedMixin, PreTrainedConfig):
    r"""
    backbone (`str`): a timm model name, or `"conv"` for MF²'s small tower (`backbone_kwargs` then has its `width`).
    frozen (`bool`): no gradient enters the backbone and it stays in evaluation mode.
    label_set (`str`): as [`MF2Config`] has it; without emotions there is no emotion head, without AUs no AU head.
    au_class_weights (`list`): one factor an AU on its loss; `occurrence_weights` makes them from training labels.
    loss_weights (`dict`): what each named loss counts; a name left out counts 1.
    """

    losses: ClassVar[tuple[str, ...]] = ("au", "emotion")
    sizes: ClassVar[dict[str, dict[str, Any]]] = {"tiny": TINY_BACKBONE, "base": {}}
    needs_action_units: ClassVar[bool] = True
    # What the processor asks of every model; of these only VL-FAU reads text.
    emotion_max_length: ClassVar[int] = 61
    au_max_length: ClassVar[int] = 169

    backbone: str = "swin_base_patch4_window7_224"
    backbone_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    image_size: int = 224
    image_mean: list[float] | tuple[float, ...] = IMAGENET_MEAN
    image_std: list[float] | tuple[float, ...] = IMAGENET_STD
    frozen: bool = False
    label_set: str = "mfa"
    action_units: list[str] | tuple[str, ...] | None = None
    emotions: list[str] | tuple[str, ...] | None = None
    au_class_weights: list[float] | tuple[float, ...] | None = None
    au_thresholds: list[float] | tuple[float, ...] | None = None
    loss_weights: dict[str, float | int] = dataclasses.field(default_factory=dict)

    bounds = {"image_size": 4096}

    def __post_init__(self, **kwargs: Any) -> None:
        labels = resolve_label_set(self.label_set)
        self.action_units = list(labels.action_units if self.action_units is None else self.action_units)
        self.emotions = list(labels.emotions if self.emotions is None else self.emotions)
        names = self.emotions or self.action_units
        self.id2label = dict(enumerate(names))
        self.label2id = {name: index for index, name in enumerate(names)}
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "ComparedConfig":
        """Fields given to `from_pretrained` replace saved ones before anything is derived from them."""
        fields = {field.name for field in dataclasses.fields(cls)} - {"dtype"}
        given = {name: kwargs.pop(name) for name in fields & set(kwargs)}
        given |= fields_of_label_names(given, kwargs.pop("num_labels", None), config_dict)
        given.pop("classification_target", None)  # there are heads for both
        dropped = _OF_LABELS if "label_set" in given else ()
        saved = {name: value for name, value in config_dict.items() if name not in dropped}
        return super().from_dict({**saved, **given}, **kwargs)

    @classmethod
    def from_size(cls, size: str, **overrides: Any) -> "ComparedConfig":
        """`tiny` trains on two CPU cores; `base` is the system's published shape."""
        if size not in cls.sizes:
            raise ValueError(f"size: got {size!r}, expected one of {list(cls.sizes)}")
        return cls(**{**copy.deepcopy(cls.sizes[size]), **overrides})

    @property
    def vision_config(self) -> "ComparedConfig":
        """Where the processor looks for the size of an image."""
        return self

    @property
    def thresholds(self) -> list[float]:
        return list(self.au_thresholds) if self.au_thresholds is not None else [0.5] * len(self.action_units)

    def adopt_tokenizer(self, tokenizer: Any) -> None:
        """Nothing to take over from it: no text is read."""

    def validate_labels(self) -> None:
        check_action_units(self.action_units)
        if len(set(self.emotions)) != len(self.emotions) or len(self.emotions) == 1:
            raise ValueError(f"emotions: got {self.emotions}, expected none, or at least two, each once")
        if not self.action_units and (self.needs_action_units or not self.emotions):
            raise ValueError(
                f"action_units: got none from label_set {self.label_set!r}, expected at least one for "
                f"{self.model_type!r}; choose a label set that has action units"
            )

    def validate_lists(self) -> None:
        for field in ("au_class_weights", "au_thresholds"):
            values = getattr(self, field)
            if values is not None and len(values) != len(self.action_units):
                raise ValueError(
                    f"{field}: got {len(values)} values, expected {len(self.action_units)}, one for each of "
                    f"{self.action_units}"
                )

    def validate_ranges(self) -> None:
        checks = {
            "au_thresholds": (self.au_thresholds or [], 1),
            "au_class_weights": (self.au_class_weights or [], math.inf),
            "loss_weights": (self.loss_weights.values(), math.inf),
        }
        for field, (values, most) in checks.items():
            wrong = [value for value in values if not (0 <= value <= most and math.isfinite(value))]
            if wrong:
                raise ValueError(f"{field}: got {wrong[0]}, expected finite numbers from 0 to {most}")
        unknown = sorted(set(self.loss_weights) - set(self.losses))
        if unknown:
            raise ValueError(f"loss_weights: got {unknown}, expected names among {list(self.losses)}")
        check_backbone_kwargs(self.backbone_kwargs)
        check_normalisation(self)
        if self.image_size < 1:
            raise ValueError(f"image_size: got {self.image_size}, expected at least 1 pixel")


__all__ = ["ComparedConfig"]
