"""Training of a vision tower from scratch, by a readout of all its patch tokens."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple

from configuration_mf2.configuration_mf2 import MF2Config
from modeling_mf2.loading import check_unused
from modeling_mf2.losses import classification_losses, row_weight
from modeling_mf2.modeling_mf2 import MF2PreTrainedModel
from modeling_mf2.vision import MF2VisionTower


# Normalised pixels: smaller variation within a patch is noise, and not to be magnified.
_FLAT = 0.1
_MOST_HIDDEN = 0.6
_WEIGHTS = {"au": 2.0, "emotion": 0.5, "landmark": 2.0, "pixel": 1.0}


def patches_of(images: torch.Tensor, size: int) -> torch.Tensor:
    """(batch, channels, height, width) -> (batch, patches, channels * size * size), in the tower's order of tokens."""
    return nn.functional.unfold(images, size, stride=size).transpose(1, 2)


def hide_patches(images: torch.Tensor, size: int) -> torch.Tensor:
    """Greys out patches: a random share of each image, up to `_MOST_HIDDEN`."""
    batch, _, height, width = images.shape
    share = _MOST_HIDDEN * torch.rand(batch, 1, 1, 1, device=images.device)
    kept = torch.rand(batch, 1, height // size, width // size, device=images.device) >= share
    return images * nn.functional.interpolate(kept.to(images.dtype), scale_factor=size)


@dataclass
class MF2TowerOutput(ModelOutput):
    """loss: the sum of what is given, weighted by `_WEIGHTS`; with neither AU nor emotion labels, the image too."""

    loss: torch.Tensor | None = None
    au: torch.Tensor | None = None
    emotion: torch.Tensor | None = None
    landmark: torch.Tensor | None = None
    pixel: torch.Tensor | None = None
    emotion_logits: torch.Tensor | None = None
    au_logits: torch.Tensor | None = None
    landmark_points: torch.Tensor | None = None


class MF2ForTowerTraining(MF2PreTrainedModel):
    """The tower with a readout of AUs, emotion and landmarks; only `model.vision` is kept.

    Without labels it learns landmarks and hidden patches only, as a tower that was pretrained on other data.
    """

    base_model_prefix = "vision"

    def __init__(self, config: MF2Config) -> None:
        super().__init__(config)
        vision = config.vision_config
        if vision.frozen:
            raise ValueError("vision_config.frozen: got True, expected False: a frozen tower cannot be trained")
        self.vision = MF2VisionTower(vision)
        width = vision.grid_size**2 * vision.hidden_size
        self.dropout = nn.Dropout(0.3)
        self.units = nn.Linear(width, len(config.action_units)) if config.action_units else None
        self.emotion = nn.Linear(width, len(config.emotions)) if config.emotions else None
        self.landmarks = nn.Linear(width, 68 * 2)
        self.pixels = nn.Linear(vision.hidden_size, 3 * vision.patch_size**2)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear) and module.in_features == self.landmarks.in_features:  # a readout
            init.normal_(module.weight, std=0.1 * module.in_features**-0.5)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        landmarks: torch.Tensor | None = None,
        au_labels: torch.Tensor | None = None,
        emotion_labels: torch.Tensor | None = None,
        **kwargs: object,
    ) -> MF2TowerOutput:
        check_unused(self, kwargs)
        vision = self.config.vision_config
        unlabelled = au_labels is None and emotion_labels is None and self.training
        seen = hide_patches(pixel_values, vision.patch_size) if unlabelled else pixel_values
        tokens = self.vision(seen)[:, vision.num_prefix_tokens :]
        face = self.dropout(tokens.flatten(1))
        output = MF2TowerOutput(
            au_logits=self.units(face) if self.units is not None else None,
            emotion_logits=self.emotion(face) if self.emotion is not None else None,
            landmark_points=self.landmarks(face).view(-1, 68, 2),
        )
        labels = (output.emotion_logits, emotion_labels, output.au_logits, au_labels)
        parts, weight = classification_losses(self.config, *labels), row_weight(len(tokens))
        if landmarks is not None:
            places = 2 * landmarks.float() / vision.image_size - 1  # the crop spans -1 to 1
            parts["landmark"] = weight * nn.functional.mse_loss(output.landmark_points.float(), places)
        if unlabelled:
            whole = patches_of(pixel_values.float(), vision.patch_size)
            whole = (whole - whole.mean(-1, keepdim=True)) / (whole.std(-1, keepdim=True) + _FLAT)
            parts["pixel"] = weight * nn.functional.mse_loss(self.pixels(tokens).float(), whole)
        for name, part in parts.items():
            output[name] = part
        output.loss = sum(_WEIGHTS[name] * part for name, part in parts.items()) if parts else None
        return output
