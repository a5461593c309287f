"""HSEmotion adapter, a compared system: an EfficientNet and a linear layer that names the emotion."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from transformers.utils import can_return_tuple

from configuration_mf2.baselines import AFFECTNET_ORDER, HSEmotionConfig
from modeling_mf2.loading import check_unused
from modeling_mf2.losses import FaceAnalysisOutput, classification_losses, weighted_sum
from modeling_mf2.weights import read_weights

from .base import ComparedPreTrainedModel, FeatureMaps


class HSEmotionForFaceAnalysis(ComparedPreTrainedModel):
    """The AU head is ours, for comparison: HSEmotion has none, and `use_au_head=False` leaves it out."""

    config_class = HSEmotionConfig
    hub_system = "hsemotion"

    def __init__(self, config: HSEmotionConfig) -> None:
        super().__init__(config)
        self.vision = FeatureMaps(config)
        self.dropout = nn.Dropout(config.drop_rate)
        units = len(config.action_units) if config.use_au_head else 0
        self.emotion = nn.Linear(self.vision.width, len(config.emotions)) if config.emotions else None
        self.units = nn.Linear(self.vision.width, units) if units else None
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        au_labels: torch.Tensor | None = None,
        emotion_labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: object,
    ) -> FaceAnalysisOutput:
        r"""
        au_labels (`(batch, AU)`), emotion_labels (`(batch,)`): -1 where unknown.
        """
        check_unused(self, kwargs)
        maps = self.kept_maps(output_hidden_states)
        face = self.dropout(self.vision.tokens(pixel_values, maps).mean(dim=1))
        emotion_logits = None if self.emotion is None else self.emotion(face)
        au_logits = None if self.units is None else self.units(face)
        parts = classification_losses(self.config, emotion_logits, emotion_labels, au_logits, au_labels)
        return FaceAnalysisOutput(
            loss=weighted_sum(self.config, parts),
            emotion_logits=emotion_logits,
            au_logits=au_logits,
            hidden_states=maps and tuple(maps),
            **parts,
        )


@dataclass
class HSEmotionReport:
    """copied: emotions whose outputs were taken over by name. fresh: those that the source cannot name; their output is
    0 until it is trained. unused: what the source can name and the model does not ask for."""

    copied: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)


def _read(source: str | Path) -> dict[str, torch.Tensor]:
    if not Path(source).is_file():
        raise ValueError(f"source: got {source}, which is no file; expected the weights of an HSEmotion release")
    try:
        return read_weights(source)
    except ValueError as error:
        raise ValueError(
            f"source: {source} is a whole pickled model, as HSEmotion releases them, or damaged, and loading it would "
            "run its code. If you trust it, export its weights once: import timm, torch; model = "
            f"torch.load({str(source)!r}, map_location='cpu', weights_only=False); torch.save(model.state_dict(), "
            "'hsemotion_state.pt'); then give that file"
        ) from error


def _source_names(rows: int) -> tuple[str, ...]:
    if rows in (8, 10):  # valence and arousal stand behind the eight
        return AFFECTNET_ORDER
    if rows == 7:
        return tuple(name for name in AFFECTNET_ORDER if name != "Contempt")
    raise ValueError(f"classifier: got {rows} outputs, expected 7, 8 or 10, as HSEmotion's releases have them")


@torch.no_grad()
def load_hsemotion_weights(model: HSEmotionForFaceAnalysis, source: str | Path) -> HSEmotionReport:
    """A release's weights (safetensors, or a state dict by `torch.save`): the backbone whole, emotions by their names.

    The AU head, which no release has, stays as it was.
    """
    state = {key.removeprefix("model."): tensor for key, tensor in _read(source).items()}
    heads = {key: state.pop(key) for key in list(state) if key.startswith("classifier.")}
    weight, bias = (next((t for key, t in heads.items() if key.endswith(kind)), None) for kind in ("weight", "bias"))
    if weight is None or bias is None:
        raise ValueError(f"source: {source} has no classifier.weight and classifier.bias, expected HSEmotion's head")
    backbone = model.vision.backbone
    ours = {name: tuple(tensor.shape) for name, tensor in backbone.state_dict().items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in state.items()}
    differ = sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
    if differ or weight.shape[1] != model.vision.width:
        raise ValueError(
            f"source: {source} does not fit backbone {model.config.backbone!r}, which was left as it was: "
            f"{len(differ)} tensors differ {differ[:5]}; expected tf_efficientnet_b0 (image_size 224) or "
            "tf_efficientnet_b2 (260): HSEmotionConfig.from_size('base') or 'b2'"
        )
    names = _source_names(len(weight))
    backbone.load_state_dict(state)
    report = HSEmotionReport(unused=[name for name in names if name not in model.config.emotions])
    for row, name in enumerate(model.config.emotions):
        known = name in names
        (report.copied if known else report.fresh).append(name)
        model.emotion.weight[row] = weight[names.index(name)] if known else 0
        model.emotion.bias[row] = bias[names.index(name)] if known else 0
    return report


__all__ = ["HSEmotionForFaceAnalysis", "load_hsemotion_weights"]
