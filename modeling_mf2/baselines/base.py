"""Backbones of the compared systems: images to the feature maps of four stages, or to the tokens of the last."""

import math
from contextlib import nullcontext
from pathlib import Path

import timm
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init

from configuration_mf2.baselines import ComparedConfig
from configuration_mf2.facs import UNKNOWN_LABEL
from modeling_mf2.loading import FacePreTrainedModel, fetched
from modeling_mf2.vision import MF2ConvTower, init_backbone, keep_own_start, no_graph_if, timm_model
from modeling_mf2.weights import VISION_PREFIX, no_place_in_tower, read_weights, vision_name


STAGES = 4
# Of the small tower's seven convolutions, by patch size, those after which a stage ends; the last stage is its tokens.
_CONV_STAGES = {16: (1, 2, 4), 8: (0, 2, 4)}
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
            shape = {"width": 128, "patch_size": 16, **config.backbone_kwargs}
            self.conv_stages = _CONV_STAGES.get(shape["patch_size"], ())
            self.backbone: nn.Module = MF2ConvTower(image_size=config.image_size, **shape)
        else:
            self.backbone = _timm_backbone(config)
        keep_own_start(self.backbone)

    @property
    def width(self) -> int:
        return self.backbone.num_features

    @property
    def channels(self) -> list[int]:
        if isinstance(self.backbone, MF2ConvTower):
            ends = [self.backbone.convolutions[_LAYERS_A_CONVOLUTION * index] for index in self.conv_stages]
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

    def tokens(self, pixel_values: torch.Tensor, maps: list[torch.Tensor] | None = None) -> torch.Tensor:
        """(batch, places, width) of the last stage, row by row; class and register tokens are left out. maps: filled
        with those of `stages`."""
        pixel_values = self._checked(pixel_values)
        conv = isinstance(self.backbone, MF2ConvTower)
        with no_graph_if(self.frozen), nullcontext() if conv else fetched(self.backbone):
            if maps is None:
                features = self.backbone(pixel_values) if conv else self.backbone.forward_features(pixel_values)
            elif conv:
                maps += self._conv_stages(pixel_values)
                features = maps[-1]
            else:
                features, stages = self.backbone.forward_intermediates(pixel_values, indices=STAGES, norm=True)
                maps += stages
        if features.ndim == 3:
            return features[:, getattr(self.backbone, "num_prefix_tokens", 0) :]
        if getattr(self.backbone, "output_fmt", None) == "NHWC":
            return features.flatten(1, 2)
        return features.flatten(2).transpose(1, 2)

    def _conv_stages(self, images: torch.Tensor) -> list[torch.Tensor]:
        outputs: list[torch.Tensor] = []
        tokens = self.backbone(images, outputs)
        maps = [outputs[_LAYERS_A_CONVOLUTION * (end + 1) - 1] for end in self.conv_stages]
        return [*maps, tokens.transpose(1, 2).unflatten(2, (math.isqrt(tokens.shape[1]), -1))]

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


class ComparedPreTrainedModel(FacePreTrainedModel):
    config_class = ComparedConfig
    base_model_prefix = ""
    input_modalities = ("image",)
    relabel_hint = (
        "Load it with its own labels, or train a new model (its backbone can be taken over by load_backbone_weights)"
    )
    # A device map keeps each on one device: a backbone of any kind, and what has weights beside its submodules.
    _no_split_modules = ["FeatureMaps", "UnitFeatures"]
    vision: FeatureMaps

    def get_input_embeddings(self) -> None:
        """There is no text that goes in; FSDP asks."""
        return None

    def kept_maps(self, output_hidden_states: bool | None) -> list[torch.Tensor] | None:
        """What the backbone fills with its stages, where a call or else the config asks for hidden states."""
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        return [] if wanted else None

    @property
    def loss_names(self) -> tuple[str, ...]:
        """The parts of the loss, as fields of the output."""
        return self.config.losses

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if hasattr(module, "init_non_persistent_buffers"):
            # Built on the meta device, timm's tables come back empty.
            module.init_non_persistent_buffers()
        if init_backbone(module):
            return
        if isinstance(module, nn.Linear | nn.Conv2d):
            # Signals keep their size whatever the width.
            init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                init.zeros_(module.bias)
        else:
            super()._init_weights(module)


def face_and_units(face: torch.Tensor, units: torch.Tensor) -> torch.Tensor:
    """What an emotion head reads: face (batch, width), units (batch, AU, width) -> (batch, (1 + AU) * width).

    MF²'s own classifier reads the face and every AU too; systems whose papers have no emotions are so compared on both.
    """
    return torch.cat([face[:, None], units], dim=1).flatten(1)


def occurrence_weights(au_labels: torch.Tensor) -> list[float]:
    """VL-FAU's equation 9 from training labels (rows, AU), -1 unknown: the rarer an AU, the more its loss counts.

    Equation 9 makes the weights' sum 1, and equation 8 divides by the number of AUs once more. Here their mean is 1, as
    ME-GraphAU has it: the AU loss then stands beside the other losses on one scale. The literal equation is
    `loss_weights={"au": 1 / AUs}`. An AU that is never active has no rate to balance, and keeps weight 1.
    """
    known = (au_labels != UNKNOWN_LABEL).sum(dim=0).double()
    active = (au_labels == 1).sum(dim=0).double()
    seen = active > 0
    inverse = torch.where(seen, known / active.clamp_min(1), torch.zeros_like(known))
    mean = inverse.sum() / seen.sum().clamp_min(1)
    return torch.where(seen, inverse / mean.clamp_min(1e-12), torch.ones_like(known)).tolist()


__all__ = [
    "ComparedPreTrainedModel",
    "FeatureMaps",
    "face_and_units",
    "load_backbone_weights",
    "occurrence_weights",
]
