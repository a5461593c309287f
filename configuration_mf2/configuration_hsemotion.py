"""Configuration of the HSEmotion adapter, a compared system: an EfficientNet that was trained to name emotions."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from .compared_config import TINY_BACKBONE, ComparedConfig


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
    hub_auto_classes = ("AutoConfig", "AutoModel", "AutoModelForPreTraining")
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


__all__ = ["HSEmotionConfig"]
