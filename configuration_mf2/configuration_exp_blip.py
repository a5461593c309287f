"""Configurations of Exp-BLIP, a compared system: BLIP-2 on facial-expression captions (method.md, 7)."""

from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import Blip2Config, PreTrainedConfig

from .configuration_mf2 import SIZES, KnownFieldsMixin, MF2Config, MF2VisionConfig
from .hub_mf2 import SelfContainedMixin


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
    hub_system = "exp_blip"
    hub_auto_classes = ("AutoConfig", "AutoModel", "AutoModelForPreTraining")
    losses: ClassVar[tuple[str, ...]] = ("au", "emotion")
    sizes: ClassVar[dict[str, dict[str, Any]]] = SIZES

    use_au_branch: bool = False
    emotion_max_length: int = 128  # tokens of a caption, which may tell of every AU
    caption_set: Literal["au", "emot", "mix", "cat", "exp"] = "exp"
    features: Literal["vision", "qformer"] = "qformer"
    query_pooling: Literal["mean", "concat"] = "mean"
    frozen_features: bool = True

    def validate_one_branch(self) -> None:
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


__all__ = ["CAPTION_SETS", "ExpBlipCaptionerConfig", "ExpBlipConfig"]
