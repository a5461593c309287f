"""Backbones of the compared systems: images to the feature maps of four stages, or to the tokens of the last."""

from contextlib import nullcontext
from pathlib import Path

import timm
import torch
from torch import nn
from transformers import PreTrainedModel

from configuration_mf2.compared_config import ComparedConfig

from .offload_mf2 import fetched
from .source_names_mf2 import VISION_PREFIX, no_place_in_tower, vision_name
from .vision_mf2 import MF2ConvTower, keep_own_start, no_graph_if, timm_model
from .weight_files_mf2 import read_weights


STAGES = 4
# Of the small tower's seven convolutions, those after which a stage ends; the last stage ends behind its blocks.
_CONV_STAGES = (1, 2, 4)
_LAYERS_A_CONVOLUTION = 3


def _timm_backbone(config: ComparedConfig) -> nn.Module:
    arguments = {"num_classes": 0, "global_pool": "", **config.backbone_kwargs}
    try:
        return timm_model(config.backbone, img_size=config.image_size, **arguments)
    except TypeError as error:
        if "img_size" not in str(error):
            raise ValueError(f"backbone_kwargs: {config.backbone!r} does not take them ({error})") from error
        return timm_model(config.backbone, **arguments)  # a CNN takes images of any size


class FeatureMaps(nn.Module):
    """`stages` for what combines scales, `tokens` for what looks at the last stage only."""

    def __init__(self, config: ComparedConfig) -> None:
        super().__init__()
        self.image_size, self.frozen = config.image_size, config.frozen
        if config.backbone == "conv":
            width = config.backbone_kwargs.get("width", 128)
            others = {name: value for name, value in config.backbone_kwargs.items() if name != "width"}
            self.backbone: nn.Module = MF2ConvTower(width, config.image_size, 16, **others)
        else:
            self.backbone = _timm_backbone(config)
        keep_own_start(self.backbone)

    @property
    def width(self) -> int:
        return self.backbone.num_features

    @property
    def channels(self) -> list[int]:
        if isinstance(self.backbone, MF2ConvTower):
            ends = [self.backbone.convolutions[_LAYERS_A_CONVOLUTION * index] for index in _CONV_STAGES]
            return [*(layer.out_channels for layer in ends), self.width]
        return [stage["num_chs"] for stage in list(self.backbone.feature_info)[-STAGES:]]

    def train(self, mode: bool = True) -> "FeatureMaps":
        if self.frozen:
            self.requires_grad_(False)
        return super().train(mode and not self.frozen)

    def stages(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        """Four maps (batch, channels, height, width), the finest first."""
        pixel_values = self._checked(pixel_values)
        with no_graph_if(self.frozen):
            if isinstance(self.backbone, MF2ConvTower):
                return self._conv_stages(pixel_values)
            with fetched(self.backbone):
                return self.backbone.forward_intermediates(
                    pixel_values, indices=STAGES, norm=True, intermediates_only=True
                )

    def tokens(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(batch, places, width) of the last stage, row by row; class and register tokens are left out."""
        pixel_values = self._checked(pixel_values)
        conv = isinstance(self.backbone, MF2ConvTower)
        with no_graph_if(self.frozen), nullcontext() if conv else fetched(self.backbone):
            features = self.backbone(pixel_values) if conv else self.backbone.forward_features(pixel_values)
        if features.ndim == 3:
            return features[:, getattr(self.backbone, "num_prefix_tokens", 0) :]
        if getattr(self.backbone, "output_fmt", None) == "NHWC":
            return features.flatten(1, 2)
        return features.flatten(2).transpose(1, 2)

    def _conv_stages(self, images: torch.Tensor) -> list[torch.Tensor]:
        outputs: list[torch.Tensor] = []
        tokens = self.backbone(images, outputs)
        maps = [outputs[_LAYERS_A_CONVOLUTION * (end + 1) - 1] for end in _CONV_STAGES]
        return [*maps, tokens.transpose(1, 2).unflatten(2, outputs[-1].shape[-2:])]

    def _checked(self, pixel_values: torch.Tensor) -> torch.Tensor:
        size = self.image_size
        if pixel_values.ndim != 4 or pixel_values.shape[1:] != (3, size, size):
            raise ValueError(
                f"pixel_values: got {tuple(pixel_values.shape)}, expected (batch, 3, {size}, {size}); let the "
                "checkpoint's own processor prepare the images"
            )
        return pixel_values.to(next(self.parameters()).dtype)


@torch.no_grad()
def load_backbone_weights(model: PreTrainedModel, source: str | Path) -> list[str]:
    """Pretrained weights into a compared system's backbone: timm's by name (downloads), a file, or a folder of MF² or
    of a compared system. All of the backbone is filled, or nothing. -> the source's keys that were of no use."""
    backbone = model.vision.backbone
    if not Path(source).exists() and timm.is_model(str(source)):
        state = timm.create_model(str(source), pretrained=True).state_dict()
    else:
        state = read_weights(source)
        if any(VISION_PREFIX.match(key) for key in state):
            state = {key: tensor for key, tensor in state.items() if VISION_PREFIX.match(key)}
    given, ours = {vision_name(key): tensor for key, tensor in state.items()}, backbone.state_dict()
    missing = [name for name in ours if name not in given]
    unknown = [name for name in given if name not in ours and no_place_in_tower(name) is None]
    shapes = [name for name in ours if name in given and ours[name].shape != given[name].shape]
    if missing or unknown or shapes:
        raise ValueError(
            f"{source} does not fit backbone {model.config.backbone!r}, which was left as it was: {len(missing)} "
            f"tensors of ours it does not have {missing[:5]}, {len(unknown)} of its own have no place {unknown[:5]}, "
            f"{len(shapes)} of other shapes {shapes[:5]}; build the model with the source's backbone and "
            "backbone_kwargs"
        )
    for name, tensor in ours.items():
        tensor.copy_(given[name])
    return [name for name in given if name not in ours]


__all__ = ["FeatureMaps", "load_backbone_weights"]
