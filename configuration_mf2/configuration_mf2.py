"""Configurations of MF²: the vision tower, a Q-Former, and the model: one tower and up to two Q-Former branches."""

import dataclasses
import math
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .base import (
    FaceConfig,
    KnownFieldsMixin,
    check_backbone_kwargs,
    check_least,
    check_normalisation,
    check_tokenizer_size,
)
from .facs import check_action_units
from .hub import AUTO_CLASSES, SelfContainedMixin


# Those of transformers that BERT-type models are trained with; the table itself needs torch.
_ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu")


@strict
class MF2VisionConfig(KnownFieldsMixin, SelfContainedMixin, PreTrainedConfig):
    r"""
    backbone (`str`): a timm model name, or `"conv"` for the small convolutional tower that two CPU cores can train.
    backbone_kwargs (`dict`): handed to `timm.create_model`, or to the convolutional tower.
    patch_size (`int`): pixels a side that one patch token stands for.
    num_prefix_tokens (`int`): class and register tokens that stand before the patch tokens.
    do_grayscale (`bool`), normalize_per_image (`bool`), alignment (`str`): how the processor prepares images; see
        [`MF2ImageProcessor`].
    label_taught (`bool`): whether the tower was trained with labels of action units and emotions.
    frozen (`bool`): no gradient enters the tower and it stays in evaluation mode.
    """

    model_type = "mf2_vision"
    base_config_key = "vision_config"

    backbone: str = "vit_base_patch16_224"
    backbone_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    image_size: int = 224
    patch_size: int = 16
    hidden_size: int = 768
    num_prefix_tokens: int = 1
    image_mean: float | list[float] | tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: float | list[float] | tuple[float, ...] = (0.5, 0.5, 0.5)
    do_grayscale: bool = False
    normalize_per_image: bool = False
    alignment: Literal["steady", "five_points"] = "steady"
    label_taught: bool = False
    frozen: bool = True

    bounds = {"image_size": 4096, "patch_size": 4096, "hidden_size": 16384, "num_prefix_tokens": 1024}

    def validate_backbone_kwargs(self) -> None:
        check_backbone_kwargs(self.backbone_kwargs)

    def validate_normalisation(self) -> None:
        check_normalisation(self)

    def validate_grid(self) -> None:
        if self.patch_size < 1 or self.image_size < 1 or self.image_size % self.patch_size:
            raise ValueError(
                f"image_size: got {self.image_size}, expected a multiple of patch_size ({self.patch_size}), so that "
                "the patch tokens form a whole grid"
            )

    @property
    def grid_size(self) -> int:
        return self.image_size // self.patch_size


@strict
class MF2QFormerConfig(KnownFieldsMixin, SelfContainedMixin, PreTrainedConfig):
    r"""
    Defaults are BLIP-2's: BERT-base with cross-attention in every second block and 32 queries.

    encoder_hidden_size (`int`): width of the image tokens; the composed [`MF2Config`] sets it from its vision tower.
    projection_dim (`int`): width of the space in which images and sentences are compared.
    bos_token_id (`int`): `[DEC]`, which starts a sentence to be written; a sentence to be read starts with `[CLS]`.
    """

    model_type = "mf2_qformer"
    base_config_key = "emo_config"  # of a whole model this is Emo-VL's; AU-VL's is `MF2Config.au_config`

    vocab_size: int = 30523  # bert-base-uncased and [DEC]
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    max_position_embeddings: int = 512
    initializer_range: float | int = 0.02
    layer_norm_eps: float | int = 1e-12
    cross_attention_frequency: int = 2
    encoder_hidden_size: int = 768
    num_query_tokens: int = 32
    projection_dim: int = 256
    pad_token_id: int = 0
    bos_token_id: int = 30522
    eos_token_id: int = 102

    bounds = {
        **{"vocab_size": 1_000_000, "hidden_size": 16384, "num_hidden_layers": 256, "num_attention_heads": 1024},
        **{"intermediate_size": 65536, "max_position_embeddings": 65536, "encoder_hidden_size": 16384},
        **{"num_query_tokens": 4096, "projection_dim": 16384},
    }

    def validate_counts(self) -> None:
        if not 0 <= self.layer_norm_eps < 1:
            raise ValueError(f"layer_norm_eps: got {self.layer_norm_eps}, expected 0 or more, less than 1")
        counts = ("num_query_tokens", "num_hidden_layers", "num_attention_heads", "cross_attention_frequency")
        check_least(self, dict.fromkeys(counts, 1))

    def validate_dropout_and_activation(self) -> None:
        for field in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            if not 0 <= getattr(self, field) < 1:
                raise ValueError(f"{field}: got {getattr(self, field)}, expected 0 or more, less than 1")
        if self.hidden_act not in _ACTIVATIONS:
            raise ValueError(f"hidden_act: got {self.hidden_act!r}, expected one of {list(_ACTIVATIONS)}")

    def validate_heads(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size: got {self.hidden_size}, expected a multiple of num_attention_heads "
                f"({self.num_attention_heads})"
            )


LOSSES = (
    *("itc_emo", "itm_emo", "itg_emo", "itg_key_au"),
    *("itc_au", "itm_au", "itg_au"),
    *("au", "emotion", "side", "intensity", "shape"),
)
TOWER_LOSSES = ("landmark", "part", "depth", "normal", "identity", "pixel")
"""What a vision tower that is trained from scratch learns; of fixed weight."""

_TINY_QFORMER = {
    **{"vocab_size": 2048, "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4},
    **{"intermediate_size": 512, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    **{"max_position_embeddings": 192, "projection_dim": 64, "num_query_tokens": 8, "bos_token_id": 5},
    **{"eos_token_id": 3, "initializer_range": 0.05},  # a narrow net's signals die out at BERT's 0.02
}
_SMALL_QFORMER = {
    **_TINY_QFORMER,
    **{"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 1024},
    **{"projection_dim": 128, "initializer_range": 0.03},
}

# Grey, aligned on what expressions move least, by its own mean and deviation: then renders teach about photographs.
_CONV_TOWER = {
    **{"backbone": "conv", "patch_size": 8, "num_prefix_tokens": 0},
    **{"do_grayscale": True, "normalize_per_image": True, "alignment": "five_points"},
}
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "vision_config": {
            **{**_CONV_TOWER, "image_size": 112, "hidden_size": 128, "backbone_kwargs": {"in_channels": 1}},
        },
        "emo_config": _TINY_QFORMER,
        "au_config": {**_TINY_QFORMER, "num_query_tokens": 4},
        **{"emo_pair_share": 0.25, "au_pair_share": 0.0625, "initializer_range": 0.05},
        **{"au_only_loss_weight": 0.5, "geometry_token": True, "shape_weight": 2},
    },
    # The same, wider and deeper: 29 million parameters, for a GPU or a night.
    "small": {
        "vision_config": {
            **{**_CONV_TOWER, "image_size": 160, "hidden_size": 320},
            "backbone_kwargs": {"in_channels": 1, "num_blocks": 6},
        },
        "emo_config": _SMALL_QFORMER,
        "au_config": {**_SMALL_QFORMER, "num_query_tokens": 4},
        **{"emo_pair_share": 0.25, "au_pair_share": 0.0625, "initializer_range": 0.03},
        **{"au_only_loss_weight": 0.5, "geometry_token": True, "shape_weight": 2},
    },
    # Four queries an AU, not the paper's 32, which alone cost as much as the tower: see the curve of inference.py.
    "base": {
        "vision_config": {},
        "emo_config": {},
        "au_config": {"num_query_tokens": 4},
        "au_only_loss_weight": 0.5,
    },
    # BLIP-2's EVA ViT-g/14, the paper's size: without its last block, and its final norm is BLIP-2's `ln_vision`.
    "giant": {
        "vision_config": {
            "backbone": "eva_giant_patch14_224",
            "backbone_kwargs": {"depth": 39},
            **{"image_size": 224, "patch_size": 14, "hidden_size": 1408, "num_prefix_tokens": 1},
            **{"image_mean": _CLIP_MEAN, "image_std": _CLIP_STD},
        },
        "emo_config": {},
        "au_config": {},
        "au_only_loss_weight": 0.5,
    },
}


@strict
class MF2Config(FaceConfig):
    r"""
    use_emo_branch, use_au_branch (`bool`): Emo-VL and AU-VL; at least one (the paper's Table IV leaves out either).
    region_grid (`int`): an AU's centre is read on a square grid of this many points a side; every AU has two centres.
    region_window (`float`): side of that grid, in inner-ocular distances.
    initial_temperature (`float`): of the contrastive loss (the paper's Table VI); learned from there.
    emo_pair_share, au_pair_share (`float`): share of a batch's pairs, drawn anew each step, that ITM and ITG take while
        training; ITC takes all.
    sides (`bool`): also whether each AU is active on the person's left and right side.
    intensities (`bool`): also how strong each AU is, from 0 to 5, by the one score that decides whether it is active.
    geometry_token (`bool`): each branch also reads a token made of the aligned inner landmarks.
    shape_weight (`float`): weight, beside 1 of what the branches see, of what the aligned inner landmarks alone say of
        AUs and emotions. Each learns by itself (the loss `shape`), answers are the mean. 0: there is no such head.
    contrast (`str`): what the contrastive loss takes for negatives: those of another `"meaning"` by their labels, or,
        the paper's equation 3 to the letter, of another `"wording"`.
    au_only_loss_weight (`float`): while training, the share of the label losses that is of what the AUs' states
        say alone. Without it the classifiers lean on what Emo-VL, with the whole face in view, learns by heart.
    emotion_max_length, au_max_length (`int`): tokens of an emotion caption, and of all AU sentences of an image.
    key_au_prompt_length (`int`): tokens with which every key-AU caption starts. They are asked for, not learned:
        without them Emo-VL writes an emotion caption.
    classification_target (`str`): what [`MF2ForImageClassification`] answers with: `"emotion"` where the label set has
        emotions, else `"action_units"`.
    """

    model_type = "mf2"
    losses: ClassVar[tuple[str, ...]] = LOSSES
    renamed: ClassVar[dict[str, str]] = {"units_alone_share": "au_only_loss_weight"}
    sizes: ClassVar[dict[str, dict[str, Any]]] = SIZES
    hub_auto_classes = tuple(AUTO_CLASSES)
    sub_configs_defaults = {
        "vision_config": MF2VisionConfig,
        "emo_config": MF2QFormerConfig,
        "au_config": MF2QFormerConfig,
    }

    vision_config: dict | PreTrainedConfig | None = None
    emo_config: dict | PreTrainedConfig | None = None
    au_config: dict | PreTrainedConfig | None = None
    use_emo_branch: bool = True
    use_au_branch: bool = True
    region_grid: int = 3
    region_window: float | int = 1.0
    sides: bool = False
    intensities: bool = False
    geometry_token: bool = False
    shape_weight: float | int = 0.0
    initial_temperature: float | int = 0.07
    contrast: Literal["meaning", "wording"] = "meaning"
    emo_pair_share: float | int = 1.0
    au_pair_share: float | int = 1.0
    au_only_loss_weight: float | int = 0.0
    emotion_max_length: int = 61
    au_max_length: int = 169
    key_au_prompt_length: int = 0
    classification_target: Literal["emotion", "action_units"] | None = None
    initializer_range: float | int = 0.02
    tie_word_embeddings: bool = True

    bounds = {"region_grid": 64, "region_window": 1000}

    def __post_init__(self, **kwargs: Any) -> None:
        self.resolve_labels()
        num_labels = kwargs.pop("num_labels", None)
        if self.classification_target is None:
            self.classification_target = "emotion" if self.emotions else "action_units"
        names = self.emotions if self.classification_target == "emotion" else self.action_units
        if not names or len(self.emotions) == 1:
            raise ValueError(
                f"classification_target: got {self.classification_target!r}, but label_set {self.label_set!r} has here "
                f"action_units {self.action_units} and emotions {self.emotions}; expected at least one action unit, or "
                "two emotions, to choose from"
            )
        if num_labels not in (None, len(names)):
            raise ValueError(
                f"num_labels: got {num_labels}, expected {len(names)} as label_set {self.label_set!r} has it for "
                f"classification_target {self.classification_target!r}; leave it out"
            )
        self.name_outputs(names)
        self.problem_type = (
            "single_label_classification" if self.classification_target == "emotion" else "multi_label_classification"
        )
        super().__post_init__(**kwargs)
        for branch in (self.emo_config, self.au_config):
            branch.encoder_hidden_size = self.vision_config.hidden_size

    def adopt_tokenizer(self, tokenizer: Any) -> None:
        """Takes over the ids of the tokens that start, end and pad a sentence."""
        for branch in (self.emo_config, self.au_config):
            check_tokenizer_size(tokenizer, branch.vocab_size, " in emo_config and au_config")
            branch.pad_token_id = tokenizer.pad_token_id
            branch.bos_token_id = tokenizer.bos_token_id
            branch.eos_token_id = tokenizer.sep_token_id

    @property
    def tokens_per_region(self) -> int:
        return 2 * self.region_grid**2

    @property
    def first_config(self) -> MF2QFormerConfig:
        """Of the branch whose states an output names `hidden_states`."""
        return self.emo_config if self.use_emo_branch else self.au_config

    @property
    def hidden_size(self) -> int:
        return self.first_config.hidden_size

    @property
    def num_hidden_layers(self) -> int:
        return self.first_config.num_hidden_layers

    @property
    def num_attention_heads(self) -> int:
        return self.first_config.num_attention_heads

    @property
    def vocab_size(self) -> int:
        return self.emo_config.vocab_size

    @vocab_size.setter
    def vocab_size(self, size: int) -> None:
        self.emo_config.vocab_size = self.au_config.vocab_size = size

    def validate_branches(self) -> None:
        if not (self.use_emo_branch or self.use_au_branch):
            raise ValueError("use_emo_branch, use_au_branch: got False twice, expected at least one branch")
        check_action_units(self.action_units, need_region=self.use_au_branch)
        if self.use_au_branch and not self.action_units:
            raise ValueError(
                f"use_au_branch: label_set {self.label_set!r} has no action units; name some in action_units, or "
                "switch the AU branch off (use_au_branch=False)"
            )
        if (self.sides or self.intensities) and not self.action_units:
            raise ValueError(
                f"sides, intensities: got {self.sides} and {self.intensities}, but label_set {self.label_set!r} has no "
                "action units, which they are of; expected False"
            )
        if self.emo_config.vocab_size != self.au_config.vocab_size:
            raise ValueError(
                f"au_config.vocab_size: got {self.au_config.vocab_size}, expected {self.emo_config.vocab_size} as in "
                "emo_config: both branches read the same tokenizer's ids"
            )

    def validate_regions(self) -> None:
        if self.region_grid < 1 or not self.region_window > 0:
            raise ValueError(
                f"region_grid, region_window: got {self.region_grid} and {self.region_window}, expected at least 1 "
                "point a side and a window larger than 0"
            )

    def validate_losses(self) -> None:
        for field in ("emo_pair_share", "au_pair_share"):
            if not 0 < getattr(self, field) <= 1:
                raise ValueError(f"{field}: got {getattr(self, field)}, expected a share above 0, at most 1")
        if not 0 <= self.au_only_loss_weight <= 1:
            raise ValueError(f"au_only_loss_weight: got {self.au_only_loss_weight}, expected a share from 0 to 1")
        if not 0 < self.initial_temperature < math.inf:
            raise ValueError(f"initial_temperature: got {self.initial_temperature}, expected a number above 0")

    def validate_lengths(self) -> None:
        longest = min(self.emo_config.max_position_embeddings, self.au_config.max_position_embeddings)
        for field in ("emotion_max_length", "au_max_length"):
            if not 3 <= getattr(self, field) <= longest:
                raise ValueError(
                    f"{field}: got {getattr(self, field)}, expected 3 to {longest} tokens (max_position_embeddings)"
                )


__all__ = ["MF2Config", "MF2QFormerConfig", "MF2VisionConfig"]
