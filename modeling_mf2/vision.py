"""The vision tower: images to patch tokens. Frozen by default, and frozen only here."""

import difflib
import math
from contextlib import AbstractContextManager, nullcontext

import timm
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init

from configuration_mf2.configuration_mf2 import MF2VisionConfig


def no_graph_if(frozen: bool) -> AbstractContextManager:
    """Not while a graph is captured: an exported program with a gradient switch in it cannot be loaded."""
    if not frozen or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return nullcontext()
    return torch.no_grad()


def products_are_faster(query: torch.Tensor) -> bool:
    """Whether attention is to be learned by plain products: on a CPU the backward pass of sdpa in bfloat16 takes up to
    nine times as long."""
    return query.dtype == torch.bfloat16 and query.device.type == "cpu" and torch.is_grad_enabled()


def keep_own_start(backbone: nn.Module) -> None:
    """Marks layers that a backbone has initialised itself, unless on the meta device."""
    for module in backbone.modules():
        module.keeps_own_start = not any(parameter.is_meta for parameter in module.parameters(recurse=False))


def init_backbone(module: nn.Module) -> bool:
    """Keeps what `keep_own_start` marked, or initialises a layer of `MF2ConvTower`: PyTorch's rule, zeros in a block's
    outputs. False: the model's own rule applies."""
    if getattr(module, "keeps_own_start", False):
        return True
    if isinstance(module, MF2ConvTower):
        init.normal_(module.positions, std=0.02)
    elif not getattr(module, "in_conv_tower", False) or not isinstance(module, nn.Linear | nn.Conv2d):
        return False
    elif getattr(module, "starts_at_zero", False):
        init.zeros_(module.weight)
        init.zeros_(module.bias)
    else:
        init.kaiming_uniform_(module.weight, a=math.sqrt(5))
        if module.bias is not None:
            bound = module.weight[0].numel() ** -0.5
            init.uniform_(module.bias, -bound, bound)
    return True


class MF2TowerBlock(nn.Module):
    """A pre-norm attention block that starts as the identity."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, 4 * width)
        self.mlp_out = nn.Linear(4 * width, width)
        for layer in (self.attention_out, self.mlp_out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
            layer.starts_at_zero = True

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        batch, length, width = tokens.shape
        qkv = self.qkv(self.norm1(tokens)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (batch, heads, length, width / heads)
        if products_are_faster(query):
            attended = (query @ key.transpose(2, 3) * query.shape[-1] ** -0.5).softmax(-1) @ value
        else:
            attended = nn.functional.scaled_dot_product_attention(query, key, value)
        tokens = tokens + self.attention_out(attended.transpose(1, 2).reshape(batch, length, width))
        return tokens + self.mlp_out(nn.functional.gelu(self.mlp_in(self.norm2(tokens))))


# Convolutions of `MF2ConvTower` by patch size: sixteenths of the width, and stride. All halve the image four times.
_PLANS = {
    16: ((3, 2), (4, 1), (6, 2), (8, 2), (12, 1), (16, 2), (16, 1)),
    8: ((2, 2), (4, 2), (8, 1), (12, 2), (12, 1), (16, 2), (16, 1)),
}
_FINE_LAYER = 5
"""Convolutions of the plan for patches of 8 until the map that its tokens are made of."""


class MF2ConvTower(nn.Module):
    """Seven convolutions, four of them halving the image, then attention blocks over cells of 16 pixels. With patches
    of 8, each token is its own place in a finer map of the convolutions, and the cell around it.

    With a few thousand images a plain patch ViT does not learn; this does, in minutes on two CPU cores.
    """

    num_prefix_tokens = 0

    def __init__(self, width: int, image_size: int, patch_size: int, num_blocks: int = 2, in_channels: int = 3) -> None:
        """in_channels: 1 averages the image's channels, for grey images."""
        super().__init__()
        self.num_features, self.in_channels = width, in_channels
        if width % 4:
            raise ValueError(f"hidden_size: got {width}, expected a multiple of 4 with backbone 'conv'")
        if patch_size not in _PLANS or image_size % 16 or in_channels not in (1, 3):
            raise ValueError(
                f"patch_size, image_size, in_channels: got {patch_size}, {image_size} and {in_channels}, expected with "
                f"backbone 'conv' one of {list(_PLANS)}, a multiple of 16, and 1 or 3"
            )
        plan = [(share * width // 16, stride) for share, stride in _PLANS[patch_size]]
        layers: list[nn.Module] = []
        channels = in_channels
        for out_channels, stride in plan:
            layers += [
                nn.Conv2d(channels, out_channels, 3, stride, 1, bias=False),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(),
            ]
            channels = out_channels
        self.convolutions = nn.Sequential(*layers)
        self.positions = nn.Parameter(0.02 * torch.randn(1, (image_size // 16) ** 2, width))
        self.blocks = nn.ModuleList(MF2TowerBlock(width) for _ in range(num_blocks))
        self.lateral = nn.Conv2d(plan[_FINE_LAYER - 1][0], width, 1) if patch_size == 8 else None
        self.norm = nn.LayerNorm(width)
        for layer in self.modules():
            layer.in_conv_tower = True

    @property
    def map_layers(self) -> list[nn.Module]:
        """Layers whose maps an adapter may read: at most four times as fine as the tokens, not the blocks' input."""
        return [layer for layer in self.convolutions if isinstance(layer, nn.ReLU)][2:-1]

    def forward(self, pixel_values: torch.Tensor, maps: list[torch.Tensor] | None = None) -> torch.Tensor:
        """maps: filled with the output of each layer of the convolutions."""
        features = pixel_values.mean(1, keepdim=True) if self.in_channels == 1 else pixel_values
        fine = None
        for number, layer in enumerate(self.convolutions, 1):
            features = layer(features)
            if number == 3 * _FINE_LAYER:
                fine = features
            if maps is not None:
                maps.append(features)
        side = features.shape[-1]
        tokens = features.flatten(2).transpose(1, 2)  # (batch, cells, width)
        tokens = tokens + self.positions
        for block in self.blocks:
            tokens = block(tokens)
        if self.lateral is not None:
            cells = tokens.transpose(1, 2).unflatten(2, (side, side))
            cells = cells.repeat_interleave(2, 2).repeat_interleave(2, 3)
            tokens = (self.lateral(fine) + cells).flatten(2).transpose(1, 2)  # (batch, grid * grid, width)
        return self.norm(tokens)


def timm_model(name: str, **arguments: object) -> nn.Module:
    try:
        model = timm.create_model(name, pretrained=False, **arguments)
    except RuntimeError as error:
        if "Unknown model" not in str(error):
            raise
        near = difflib.get_close_matches(name, timm.list_models(), n=8, cutoff=0.4)
        raise ValueError(
            f"backbone: got {name!r}, expected 'conv' or a name of timm.list_models(), such as {near}"
        ) from error
    for module in model.modules():
        if hasattr(module, "qkv_bias_separate"):  # EVA: multiply by its layer, not by the bare weight of a layer that
            module.qkv_bias_separate = True  # may be offloaded or have an adapter
    return model


def _timm_backbone(config: MF2VisionConfig) -> nn.Module:
    arguments = {"num_classes": 0, "global_pool": "", **config.backbone_kwargs}
    try:
        return timm_model(config.backbone, img_size=config.image_size, **arguments)
    except TypeError as error:
        # A ViT takes the size it runs at; what takes none (ResNet, ConvNeXt) has no patch tokens either.
        raise ValueError(
            f"backbone: got {config.backbone!r}, expected a timm ViT, whose features are patch tokens and which takes "
            f"{sorted(arguments)} ({error})"
        ) from error


class MF2VisionTower(PreTrainedModel):
    """(batch, 3, size, size) -> (batch, prefix + grid * grid, hidden_size)."""

    config_class = MF2VisionConfig
    base_model_prefix = "vision"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _supports_sdpa = True

    def __init__(self, config: MF2VisionConfig) -> None:
        super().__init__(config)
        if config.backbone == "conv":
            self.backbone = MF2ConvTower(
                config.hidden_size, config.image_size, config.patch_size, **config.backbone_kwargs
            )
        else:
            self.backbone = _timm_backbone(config)
        self._check_backbone()
        keep_own_start(self.backbone)
        if config.frozen:
            self.eval()
        self.post_init()

    def _check_backbone(self) -> None:
        actual = {
            "hidden_size": self.backbone.num_features,
            "num_prefix_tokens": getattr(self.backbone, "num_prefix_tokens", 0),
        }
        patch_embed = getattr(self.backbone, "patch_embed", None)
        if patch_embed is not None and hasattr(patch_embed, "patch_size"):
            actual["patch_size"] = patch_embed.patch_size[0]
        for field, value in actual.items():
            if value != getattr(self.config, field):
                raise ValueError(
                    f"vision_config.{field}: got {getattr(self.config, field)}, expected {value} with backbone "
                    f"{self.config.backbone!r}"
                )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if not init_backbone(module):
            super()._init_weights(module)
        # Built on the meta device, timm's rotary and window tables come back empty.
        if hasattr(module, "init_non_persistent_buffers"):
            module.init_non_persistent_buffers()

    def train(self, mode: bool = True) -> "MF2VisionTower":
        if self.config.frozen:
            # Here, because from_pretrained makes new parameters, which want gradients, and then calls eval().
            self.requires_grad_(False)
        return super().train(mode and not self.config.frozen)

    @property
    def num_states(self) -> int:
        """Number of states from `look_deep`; 0 where the backbone is no plain sequence of blocks."""
        blocks = getattr(self.backbone, "blocks", None)
        if not isinstance(blocks, nn.ModuleList | nn.Sequential) or not len(blocks):
            return 0
        return len(getattr(self.backbone, "map_layers", ())) + len(blocks) + 1

    def look_deep(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Returns the tokens of `forward` and all states: maps of convolutions as (finer) grids of tokens, with zeros
        for missing channels, then the tokens before the first block and after each block, the last behind the norm."""
        states: list[torch.Tensor] = []

        def keep_map(_: nn.Module, __: tuple, output: torch.Tensor) -> None:
            tokens = output.flatten(2).transpose(1, 2)
            states.append(nn.functional.pad(tokens, (0, self.config.hidden_size - tokens.shape[-1])))

        blocks = self.backbone.blocks
        hooks = [layer.register_forward_hook(keep_map) for layer in getattr(self.backbone, "map_layers", ())]
        hooks += [blocks[0].register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))]
        hooks += [block.register_forward_hook(lambda _, __, output: states.append(output)) for block in blocks]
        try:
            tokens = self(pixel_values)
        finally:
            for hook in hooks:
                hook.remove()
        return tokens, (*states[:-1], tokens)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        size = self.config.image_size
        if pixel_values.ndim != 4 or pixel_values.shape[1:] != (3, size, size):
            raise ValueError(
                f"pixel_values: got {tuple(pixel_values.shape)}, expected (batch, 3, {size}, {size}); let the "
                "checkpoint's own processor prepare the images"
            )
        with no_graph_if(self.config.frozen):
            # Called as a module, so that offloaded weights are there; without classes and pooling it is the features.
            return self.backbone(pixel_values.to(self.dtype))
