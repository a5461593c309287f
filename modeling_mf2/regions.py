"""Where an action unit shows: landmarks and the grid of patch tokens to a short token sequence for each AU."""

import math

import torch
from torch import nn

from configuration_mf2.configuration_mf2 import MF2Config
from configuration_mf2.facs import (
    CANONICAL_FACE,
    LEFT_INNER_EYE,
    LEFT_OUTER_EYE,
    REGION_RULES,
    RIGHT_INNER_EYE,
    RIGHT_OUTER_EYE,
)


def landmarks_or_mean(
    landmarks: torch.Tensor | None, batch: int, image_size: int, device: torch.device
) -> torch.Tensor:
    """(batch, 68, 2): for None those of crops in which the face is aligned to the canonical one."""
    if landmarks is None:
        return torch.tensor(CANONICAL_FACE, device=device).expand(batch, -1, -1) * image_size
    if landmarks.shape != (batch, 68, 2):
        raise ValueError(f"landmarks: got {tuple(landmarks.shape)}, expected ({batch}, 68, 2), one set an image")
    return landmarks


def face_axes(landmarks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Unit vectors to the right and down the face, each (batch, 2), and the inner-ocular distance, (batch, 1).

    The direction comes from the outer corners of the eyes, which lie far apart, so that a pixel of landmark error turns
    it little; the unit of length is the distance between the inner corners (points 39 and 42).
    """
    right = landmarks[:, RIGHT_OUTER_EYE] - landmarks[:, LEFT_OUTER_EYE]
    right = right / right.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    down = torch.stack([-right[:, 1], right[:, 0]], dim=-1)
    inner_ocular = (landmarks[:, RIGHT_INNER_EYE] - landmarks[:, LEFT_INNER_EYE]).norm(dim=-1, keepdim=True)
    return right, down, inner_ocular


def region_centres(landmarks: torch.Tensor, averages: torch.Tensor, downs: torch.Tensor) -> torch.Tensor:
    """(batch, 68, 2) -> (batch, AU, 2, 2): two centres of each AU, as x and y in the landmarks' own unit.

    averages: (AU, 2, 68), which landmarks a centre is the mean of; downs: (AU,), how far it is then moved down.
    """
    _, down, inner_ocular = face_axes(landmarks)
    centres = torch.einsum("acp,bpx->bacx", averages, landmarks)
    shift = (down * inner_ocular)[:, None, None, :] * downs[None, :, None, None]
    return centres + shift


def region_points(landmarks: torch.Tensor, centres: torch.Tensor, grid: int, window: float) -> torch.Tensor:
    """Around each centre a square of grid x grid points, along the face's axes: (batch, AU, 2 * grid * grid, 2)."""
    right, down, inner_ocular = face_axes(landmarks)
    steps = torch.linspace(-0.5, 0.5, grid, device=landmarks.device, dtype=landmarks.dtype)
    if grid == 1:
        steps = torch.zeros_like(steps)
    steps = steps * window
    across = steps[None, :, None] * (right * inner_ocular)[:, None, :]  # (batch, grid, 2)
    along = steps[None, :, None] * (down * inner_ocular)[:, None, :]
    offsets = (along[:, :, None] + across[:, None, :]).flatten(1, 2)  # (batch, grid * grid, 2), row by row
    return (centres[:, :, :, None] + offsets[:, None, None]).flatten(2, 3)


def sample_grid(tokens: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Bilinear reading of (batch, height, width, channels) at (batch, points, 2), in cells with the first cell's middle
    at 0.5; beyond the outermost middles the border is continued.

    Written as a product with two triangular weights instead of `grid_sample`: it needs no channels-first copy of the
    tokens, and has the same gradients, in every dtype and on every device.
    """
    _, height, width, _ = tokens.shape
    x, y = points.unbind(-1)  # (batch, points)
    columns = torch.arange(width, device=points.device, dtype=points.dtype)
    rows = torch.arange(height, device=points.device, dtype=points.dtype)
    across = (1 - ((x - 0.5).clamp(0, width - 1)[..., None] - columns).abs()).clamp_min(0)  # (batch, points, width)
    down = (1 - ((y - 0.5).clamp(0, height - 1)[..., None] - rows).abs()).clamp_min(0)
    weights = (down[..., :, None] * across[..., None, :]).flatten(-2)  # (batch, points, height * width)
    return weights.to(tokens.dtype) @ tokens.flatten(1, 2)


def inner_shape(landmarks: torch.Tensor, image_size: int) -> torch.Tensor:
    """(batch, 68, 2) in pixels -> (batch, 102): where the inner landmarks lie beside the mean face's, in fiftieths of
    the crop, once the corners of the eyes and the base of the nose are aligned to it."""
    points = landmarks.float() / image_size
    mean = torch.tensor(CANONICAL_FACE, device=points.device)[None]
    anchors, targets = (
        torch.cat([p[:, [36, 39, 42, 45]], p[:, 31:36].mean(1, keepdim=True)], 1) for p in (points, mean)
    )
    middle, target = anchors.mean(1, keepdim=True), targets.mean(1, keepdim=True)
    a, b = anchors - middle, targets - target
    scale = a.square().sum((1, 2)).clamp_min(1e-6)
    cos = ((a * b).sum((1, 2)) / scale)[:, None]
    sin = ((a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]).sum(1) / scale)[:, None]
    x, y = (points - middle)[:, 17:].unbind(-1)
    aligned = torch.stack([cos * x - sin * y, sin * x + cos * y], -1) + target
    return 50 * (aligned - mean[:, 17:]).flatten(1)


class MF2Geometry(nn.Module):
    """The shape of a face, from its landmarks, as one token."""

    def __init__(self, config: MF2Config) -> None:
        super().__init__()
        width = config.vision_config.hidden_size
        self.image_size = config.vision_config.image_size
        self.shape_in = nn.Linear(2 * 51, 128)
        self.shape_out = nn.Linear(128, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, landmarks: torch.Tensor) -> torch.Tensor:
        """(batch, 68, 2) in pixels of the image -> (batch, 1, width)."""
        shape = inner_shape(landmarks, self.image_size).to(self.shape_in.weight.dtype)
        return self.norm(self.shape_out(nn.functional.gelu(self.shape_in(shape))))[:, None]


class MF2Regions(nn.Module):
    """Reads every AU of every image in one pass, and says which point is which by a learned position."""

    def __init__(self, config: MF2Config) -> None:
        super().__init__()
        self.config = config
        self.positions = nn.Parameter(torch.empty(config.tokens_per_region, config.vision_config.hidden_size))
        rules = [REGION_RULES[name] for name in config.action_units]
        # Plain lists, not buffers: a buffer would follow the model into bfloat16 and move the centres by half a pixel.
        self.averages = [
            [[(index in points) / len(points) for index in range(68)] for points in (rule.first, rule.second)]
            for rule in rules
        ]
        self.downs = [rule.down for rule in rules]

    def forward(self, patch_tokens: torch.Tensor, landmarks: torch.Tensor | None) -> torch.Tensor:
        """patch_tokens: (batch, grid * grid, width), a grid of any fineness over the whole image; landmarks:
        (batch, 68, 2) in pixels of the image, or None for crops in which the face is aligned to the canonical one.
        -> (batch, AU, tokens of a region, width)."""
        vision = self.config.vision_config
        batch, _, width = patch_tokens.shape
        device = patch_tokens.device
        landmarks = landmarks_or_mean(landmarks, batch, vision.image_size, device)
        side = math.isqrt(patch_tokens.shape[1])
        cells = landmarks.float() / (vision.image_size / side)
        averages, downs = torch.tensor(self.averages, device=device), torch.tensor(self.downs, device=device)
        centres = region_centres(cells, averages, downs)
        points = region_points(cells, centres, self.config.region_grid, self.config.region_window)
        grid = patch_tokens.view(batch, side, side, width)
        regions = sample_grid(grid, points.flatten(1, 2)).view(batch, points.shape[1], points.shape[2], width)
        return regions + self.positions.to(regions.dtype)
