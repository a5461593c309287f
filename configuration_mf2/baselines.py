"""What the configurations of all compared systems share: a backbone, the labels, and what each loss counts."""

import dataclasses
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import Blip2Config, PreTrainedConfig

from .base import (
    FaceConfig,
    KnownFieldsMixin,
    check_backbone_kwargs,
    check_least,
    check_normalisation,
    check_tokenizer_size,
)
from .configuration_mf2 import SIZES, MF2Config, MF2VisionConfig
from .hub import SelfContainedMixin


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

TINY_BACKBONE: dict[str, Any] = {
    **{"backbone": "conv", "backbone_kwargs": {"width": 128}, "image_size": 112},
    **{"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)},
}
"""MF²'s own small tower, so that every system can start from the same weights."""


@strict
class ComparedConfig(FaceConfig):
    r"""
    backbone (`str`): a timm model name, or `"conv"` for MF²'s small tower (`backbone_kwargs` then has its `width` and
        `patch_size`).
    frozen (`bool`): no gradient enters the backbone and it stays in evaluation mode.
    """

    hub_auto_classes = ("AutoConfig", "AutoModel", "AutoModelForPreTraining")
    sizes: ClassVar[dict[str, dict[str, Any]]] = {"tiny": TINY_BACKBONE, "base": {}}
    needs_action_units: ClassVar[bool] = True
    # What the processor asks of every model; of these only VL-FAU reads text.
    emotion_max_length: ClassVar[int] = 61
    au_max_length: ClassVar[int] = 169

    backbone: str = "swin_base_patch4_window7_224"
    backbone_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    image_size: int = 224
    image_mean: float | list[float] | tuple[float, ...] = IMAGENET_MEAN
    image_std: float | list[float] | tuple[float, ...] = IMAGENET_STD
    do_grayscale: bool = False
    normalize_per_image: bool = False
    alignment: Literal["steady", "five_points"] = "steady"
    frozen: bool = False

    bounds = {"image_size": 4096}

    def __post_init__(self, **kwargs: Any) -> None:
        self.resolve_labels()
        self.name_outputs(self.emotions or self.action_units)
        super().__post_init__(**kwargs)

    @property
    def vision_config(self) -> "ComparedConfig":
        """Where the processor looks for the size of an image."""
        return self

    def adopt_tokenizer(self, tokenizer: Any) -> None:
        """Nothing to take over from it: no text is read."""

    def validate_labels(self) -> None:
        super().validate_labels()
        if not self.action_units and (self.needs_action_units or not self.emotions):
            raise ValueError(
                f"action_units: got none from label_set {self.label_set!r}, expected at least one for "
                f"{self.model_type!r}; choose a label set that has action units"
            )

    def validate_images(self) -> None:
        check_backbone_kwargs(self.backbone_kwargs)
        check_normalisation(self)
        check_least(self, {"image_size": 1})


ABLATIONS: dict[int, dict[str, bool]] = {
    1: {"use_marl": False, "use_llga": False, "use_glga": False},
    2: {"use_marl": True, "use_llga": False, "use_glga": False},
    3: {"use_marl": True, "use_llga": True, "use_glga": False},
    4: {"use_marl": True, "use_llga": False, "use_glga": True},
    5: {"use_marl": True, "use_llga": True, "use_glga": True},
}
"""The rows of the paper's Table 4."""

TEXT_LOSSES = ("local_text", "global_text", "global_au")


@strict
class VLFAUConfig(ComparedConfig):
    r"""
    use_marl (`bool`): multi-scale combination and a refinement branch for each AU; without it the last stage, pooled.
    use_llga, use_glga (`bool`): the local and the global description, and what is learned from them.
    hidden_size (`int`): width of the combined features and of the decoders' states (d = h = 512 in the paper).
    scale_channels (`int`): channels that each stage brings to the combination: 4 x 256 are the paper's 1024.
    reduction (`int`): how much narrower the channel attention's hidden layer is (CBAM's 16; the paper has no number).
    local_max_length, global_max_length (`int`): tokens of one AU's description, and of the face's.
    num_beams (`int`): of the search by which descriptions are written; 1 is greedy.
    """

    model_type = "vl_fau"
    hub_system = "vl_fau"
    losses: ClassVar[tuple[str, ...]] = ("au", "emotion", *TEXT_LOSSES)
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {
            **TINY_BACKBONE,
            **{"hidden_size": 128, "scale_channels": 32, "reduction": 4, "word_size": 64, "vocab_size": 2048},
            **{"pad_token_id": 0, "bos_token_id": 5, "eos_token_id": 3},
        },
        "base": {},
    }

    use_marl: bool = True
    use_llga: bool = True
    use_glga: bool = True
    hidden_size: int = 512
    scale_channels: int = 256
    reduction: int = 16
    word_size: int = 512
    vocab_size: int = 30523  # bert-base-uncased and [DEC]
    pad_token_id: int = 0
    bos_token_id: int = 30522
    eos_token_id: int = 102
    local_max_length: int = 40
    global_max_length: int = 120
    num_beams: int = 3

    bounds = {
        **ComparedConfig.bounds,
        **{"hidden_size": 16384, "scale_channels": 16384, "word_size": 16384, "vocab_size": 1_000_000},
        **{"local_max_length": 65536, "global_max_length": 65536, "num_beams": 1024},
    }

    def adopt_tokenizer(self, tokenizer: Any) -> None:
        """Takes over the ids of the tokens that start, end and pad a description."""
        check_tokenizer_size(tokenizer, self.vocab_size)
        self.pad_token_id = tokenizer.pad_token_id
        self.bos_token_id = tokenizer.bos_token_id
        self.eos_token_id = tokenizer.sep_token_id

    @property
    def emotion_max_length(self) -> int:
        """The processor's limit for a text of the whole face."""
        return self.global_max_length

    @property
    def au_max_length(self) -> int:
        """The processor's limit for the texts of all AUs of an image together."""
        return self.local_max_length * len(self.action_units)

    def validate_parts(self) -> None:
        if self.use_llga and not self.use_marl:
            raise ValueError(
                "use_llga: got True with use_marl=False; expected local descriptions only where each AU has features "
                "of its own. Take one of ABLATIONS, the rows of the paper's Table 4"
            )

    def validate_counts(self) -> None:
        check_least(self, dict.fromkeys(("hidden_size", "scale_channels", "word_size", "num_beams", "reduction"), 1))
        check_least(self, dict.fromkeys(("local_max_length", "global_max_length", "vocab_size"), 3))
        if self.reduction > self.hidden_size:
            raise ValueError(f"reduction: got {self.reduction}, expected at most hidden_size ({self.hidden_size})")


@strict
class MEGraphAUConfig(ComparedConfig):
    r"""
    hidden_size (`int`): width of nodes and edges.
    neighbors (`int`): K, how many nodes each node hears (the authors take 4 for BP4D's 12 AUs, 3 for DISFA's 8).
    use_edges (`bool`): the second stage, edge features and the gated graph; without it the first, AFG and its graph.
    num_edge_layers (`int`): gated graph layers.
    loss_weights (`dict`): `edge` is the paper's lambda; 0.05 unless given (the authors' value for BP4D).
    """

    model_type = "me_graph_au"
    hub_system = "me_graph_au"
    losses: ClassVar[tuple[str, ...]] = ("au", "emotion", "edge")
    sizes: ClassVar[dict[str, dict[str, Any]]] = {"tiny": {**TINY_BACKBONE, "hidden_size": 64}, "base": {}}

    hidden_size: int = 512
    neighbors: int = 4
    use_edges: bool = True
    num_edge_layers: int = 2

    bounds = {**ComparedConfig.bounds, "hidden_size": 16384, "num_edge_layers": 256}

    def __post_init__(self, **kwargs: Any) -> None:
        self.loss_weights = {"edge": 0.05, **self.loss_weights}
        super().__post_init__(**kwargs)

    def validate_graph(self) -> None:
        if not self.action_units:
            return  # an error of validate_labels
        if not 1 <= self.neighbors <= len(self.action_units):
            raise ValueError(
                f"neighbors: got {self.neighbors}, expected 1 to {len(self.action_units)}, the number of action units"
            )
        check_least(self, {"hidden_size": 1, "num_edge_layers": 1})
        if self.hidden_size % 2:
            raise ValueError(f"hidden_size: got {self.hidden_size}, expected an even number: queries have half of it")


AFFECTNET_ORDER = ("Anger", "Contempt", "Disgust", "Fear", "Happiness", "Neutral", "Sadness", "Surprise")
"""What the eight outputs of the released weights mean, in their order; those with seven leave out Contempt."""


@strict
class HSEmotionConfig(ComparedConfig):
    r"""
    use_au_head (`bool`): an AU head beside the emotions, so that both tasks can be compared; HSEmotion has none.
    drop_rate (`float`): dropout before the heads.
    """

    model_type = "hsemotion"
    hub_system = "hsemotion"
    needs_action_units: ClassVar[bool] = False
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": TINY_BACKBONE,
        "base": {},
        "b2": {"backbone": "tf_efficientnet_b2", "image_size": 260},
    }

    backbone: str = "tf_efficientnet_b0"
    use_au_head: bool = True
    drop_rate: float | int = 0.0

    def validate_heads(self) -> None:
        if not self.emotions and not (self.use_au_head and self.action_units):
            raise ValueError(
                f"emotions: label_set {self.label_set!r} has none, and there is no AU head; expected one of the two"
            )
        if not 0 <= self.drop_rate < 1:
            raise ValueError(f"drop_rate: got {self.drop_rate}, expected 0 or more, less than 1")


CAPTION_SETS = ("au", "emot", "mix", "cat", "exp")
"""AU-BLIP, Emot-BLIP, Mix-BLIP, Cat-BLIP and Exp-BLIP: one system, trained on five sets of captions."""


@strict
class ExpBlipConfig(MF2Config):
    r"""
    Stage 1 and the classifier on its features. Of MF²'s parts it has the tower and Emo-VL, whose shape is BLIP-2's.

    caption_set (`str`): which captions the model learns from, one of `CAPTION_SETS`.
    features (`str`): what the classifier reads: the image encoder's tokens, `"vision"`, or the queries, `"qformer"`.
    query_pooling (`str`): `"mean"` of the queries, or all of them, `"concat"`. The supplement names neither.
    frozen_features (`bool`): a linear probe; without it the whole way from the image to the heads is fine-tuned.
    vision_config: its `frozen` says whether stage 1 trains the tower. The authors' settings for ViT-G freeze it in
        stage 1 and train it, with layer-wise decay, in stage 2.
    """

    model_type = "exp_blip"
    # It reads no landmarks.
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        size: {**SIZES[size], "geometry_token": False, "shape_weight": 0.0} for size in SIZES
    }
    hub_system = "exp_blip"
    hub_auto_classes = ("AutoConfig", "AutoModel", "AutoModelForPreTraining")

    use_au_branch: bool = False
    contrast: Literal["meaning", "wording"] = "wording"
    emotion_max_length: int = 128  # tokens of a caption, which may tell of every AU
    caption_set: Literal["au", "emot", "mix", "cat", "exp"] = "exp"
    features: Literal["vision", "qformer"] = "qformer"
    query_pooling: Literal["mean", "concat"] = "mean"
    frozen_features: bool = True

    def validate_one_branch(self) -> None:
        if self.geometry_token or self.shape_weight:
            got = f"got {self.geometry_token} and {self.shape_weight}, expected False and 0"
            raise ValueError(f"geometry_token, shape_weight: {got}: Exp-BLIP reads no landmarks")
        if self.use_au_branch or not self.use_emo_branch:
            raise ValueError(
                f"use_emo_branch, use_au_branch: got {self.use_emo_branch} and {self.use_au_branch}, expected True and "
                "False: Exp-BLIP has one Q-Former, which reads the whole face"
            )

    @property
    def feature_size(self) -> int:
        if self.features == "vision":
            return self.vision_config.hidden_size
        return self.emo_config.hidden_size * (self.emo_config.num_query_tokens if self.query_pooling == "concat" else 1)


@strict
class ExpBlipCaptionerConfig(KnownFieldsMixin, SelfContainedMixin, Blip2Config):
    r"""
    Stage 2 with a tower that is no `Blip2VisionModel`, such as the small convolutional one.

    tower_config ([`MF2VisionConfig`]): the tower that stands in the place of BLIP-2's, whose `vision_config` then tells
        only the width of its tokens.
    exp_blip (`dict`): the configuration of stage 1.
    """

    model_type = "exp_blip_captioner"
    hub_system = "exp_blip_captioner"
    hub_auto_classes = ("AutoConfig", "AutoModelForImageTextToText")
    sub_configs_defaults = {**Blip2Config.sub_configs_defaults, "tower_config": MF2VisionConfig}

    tower_config: dict | PreTrainedConfig | None = None
    exp_blip: dict | None = None
    use_decoder_only_language_model: bool = True  # which Blip2Config writes without declaring it


__all__ = [
    "CAPTION_SETS",
    "ComparedConfig",
    "ExpBlipCaptionerConfig",
    "ExpBlipConfig",
    "HSEmotionConfig",
    "MEGraphAUConfig",
    "VLFAUConfig",
]
