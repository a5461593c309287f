"""Cross-attention of the queries, mapped from tokens to the face.

The weights are worked out beside the model, from what its cross-attention is given: attention implementation, answers
and weights stay as they are, whichever of eager, sdpa or flash attention the model uses.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from configuration_mf2.configuration_mf2 import MF2Config
from configuration_mf2.facs import REGION_RULES
from modeling_mf2.regions import face_axes, region_centres, region_points, sample_grid


@dataclass(frozen=True)
class FaceAttention:
    """Maps of a batch of faces; a map's weights are shares of the attention that sum to 1."""

    units: torch.Tensor | None
    """(faces, AU, side, side): of each AU's queries over the patch grid; only patches of its region have a weight."""
    face: torch.Tensor | None
    """(faces, side, side): of the emotion queries."""
    nowhere: torch.Tensor | None
    """(faces,): the share of the emotion queries' attention that went to tokens of no place (class, registers, the
    landmarks')."""
    corners: torch.Tensor | None
    """(faces, AU, 2, 4, 2): the two squares in which an AU is looked for, in crop pixels."""


@contextlib.contextmanager
def watched(branch: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Inside, the list fills with the cross-attention weights (rows, heads, queries, tokens), one a layer and pass."""
    seen: list[torch.Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Any, ...], _: Any) -> None:
        queries, read, mask = inputs
        keys, _ = module.key_values(read) if isinstance(read, torch.Tensor) else read
        asked = module.q_proj(queries).unflatten(-1, (module.num_heads, module.head_dim)).transpose(1, 2)
        scores = asked @ keys.transpose(-1, -2) * module.scaling
        seen.append(nn.functional.softmax(scores if mask is None else scores + mask, -1, dtype=torch.float32))

    crossing = [layer.cross_attention for layer in branch.qformer.layers if layer.cross_attention is not None]
    hooks = [module.register_forward_hook(keep) for module in crossing]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _points(config: MF2Config, landmarks: torch.Tensor, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points of the AU tokens, (faces, AU, tokens, 2), and centres of the regions, (faces, AU, 2, 2), in cells."""
    cells = landmarks.float() / (config.vision_config.image_size / side)
    rules = [REGION_RULES[name] for name in config.action_units]
    averages = torch.zeros(len(rules), 2, 68, device=cells.device)
    for row, rule in enumerate(rules):
        for place, points in enumerate((rule.first, rule.second)):
            averages[row, place, list(points)] = 1 / len(points)
    downs = torch.tensor([rule.down for rule in rules], device=cells.device)
    centres = region_centres(cells, averages, downs)
    return region_points(cells, centres, config.region_grid, config.region_window), centres


def reading_weights(config: MF2Config, landmarks: torch.Tensor, side: int) -> torch.Tensor:
    """(faces, AU, tokens, side * side): the bilinear weights with which an AU's tokens are read from the patch grid."""
    points, _ = _points(config, landmarks, side)
    cells = torch.eye(side * side, device=points.device).view(1, side, side, -1).expand(len(points), -1, -1, -1)
    return sample_grid(cells, points.flatten(1, 2)).unflatten(1, points.shape[1:3])


def region_corners(config: MF2Config, landmarks: torch.Tensor) -> torch.Tensor:
    """(faces, AU, 2, 4, 2) in crop pixels: the squares that a region's tokens span, going round."""
    _, centres = _points(config, landmarks, config.vision_config.image_size)
    right, down, unit = face_axes(landmarks.float())
    half = config.region_window * unit / 2
    signs = ((-1, -1), (1, -1), (1, 1), (-1, 1))
    steps = torch.stack([(x * right + y * down) * half for x, y in signs], dim=1)  # (faces, 4, 2)
    return centres[:, :, :, None] + steps[:, None, None]


def maps_of(
    config: MF2Config, landmarks: torch.Tensor, au: list[torch.Tensor], emo: list[torch.Tensor]
) -> FaceAttention:
    """au, emo: the weights of each layer that attends to the image, as `watched` gives them."""
    units = face = nowhere = corners = None
    if au:
        side = config.vision_config.grid_size
        tokens = _mean(au).unflatten(0, (-1, len(config.action_units)))  # (faces, AU, tokens)
        tokens = tokens[..., : config.tokens_per_region]  # a token of the landmarks has no place
        tokens = tokens / tokens.sum(-1, keepdim=True).clamp_min(1e-12)
        read = reading_weights(config, landmarks, side)
        units = torch.einsum("bat,batc->bac", tokens, read).unflatten(-1, (side, side))
        corners = region_corners(config, landmarks)
    if emo:
        tokens = _mean(emo)
        side = config.vision_config.grid_size
        placed = tokens[:, config.vision_config.num_prefix_tokens :][:, : side**2]
        nowhere = 1 - placed.sum(-1)
        face = (placed / placed.sum(-1, keepdim=True).clamp_min(1e-12)).unflatten(-1, (side, side))
    return FaceAttention(units, face, nowhere, corners)


def _mean(layers: list[torch.Tensor]) -> torch.Tensor:
    """Over layers, heads and queries: (rows, tokens)."""
    return torch.stack([weights.mean((1, 2)) for weights in layers]).mean(0)


@torch.no_grad()
def attention_maps(model: nn.Module, landmarks: torch.Tensor, **images: torch.Tensor) -> tuple[FaceAttention, Any]:
    """The maps, and the answers of the very pass that they are of.

    landmarks: in crop pixels. images: `pixel_values` or `image_tokens`. An adapter adds to what the queries found; what
    is shown is where they looked.
    """
    core = getattr(model, "mf2", None)
    if core is None or not hasattr(core, "branch_names"):
        raise ValueError(
            f"model: got {type(model).__name__}, which has no queries that look at a face; expected MF2ForPreTraining "
            "or MF2ForFaceAnalysis"
        )
    with contextlib.ExitStack() as stack:
        seen = {name: stack.enter_context(watched(core.branch(name))) for name in core.branch_names}
        output = model(landmarks=landmarks, **images)
    return maps_of(model.config, landmarks, seen.get("au", []), seen.get("emo", [])), output


def to_pixels(grid: np.ndarray, size: int) -> np.ndarray:
    """(side, side) -> (size, size) of the same sum: each patch's weight spread smoothly around its middle.

    By quadratic B-splines, which reach one and a half patches and leave no edges that the model does not know of.
    """
    side = len(grid)
    places = (np.arange(size) + 0.5) * side / size - 0.5  # in patches, the first's middle at 0
    away = np.abs(places[:, None] - np.arange(side))
    spread = np.where(away <= 0.5, 0.75 - away**2, 0.5 * np.clip(1.5 - away, 0, None) ** 2)
    spread /= spread.sum(0)
    return spread @ grid @ spread.T
