"""VL-FAU's vision: scales combined (its equation 1), and a refinement branch an AU (equations 2-3), all AUs at once."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init

from configuration_mf2.configuration_vl_fau import VLFAUConfig

from .offload_mf2 import fetched


# Channels that are searched together for the largest one.
_LANES = 32


class _WriteOut(torch.autograd.Function):
    """Maps from their three factors. What autograd would make of it keeps one more tensor of their size, and takes
    twice the time backward: these maps are the largest tensors of the model."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, face: torch.Tensor, channel: torch.Tensor, spatial: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(face, channel, spatial)
        return (channel[:, :, None] * face[:, None]).mul_(spatial[..., None])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        face, channel, spatial = ctx.saved_tensors
        seen = gradient * face[:, None]
        of_channel = (spatial[:, :, None] @ seen).squeeze(2)
        of_spatial = (seen @ channel[..., None]).squeeze(3)
        torch.mul(gradient, channel[:, :, None], out=seen)
        return seen.mul_(spatial[..., None]).sum(dim=1), of_channel, of_spatial


@dataclass
class Attended:
    """Feature maps of one or several branches over the same face, kept as factors: the paper's V-hat of branch i is
    `face` times its channel attention times its spatial attention, and is written out only by `maps`.

    face (batch, places, width); channel (batch, branches, width) and spatial (batch, branches, places), or None for
    the face itself as the only branch.
    """

    face: torch.Tensor
    channel: torch.Tensor | None = None
    spatial: torch.Tensor | None = None

    def maps(self) -> torch.Tensor:
        """(batch, branches, places, width)."""
        if self.channel is None:
            return self.face[:, None]
        return _WriteOut.apply(self.face, self.channel, self.spatial)

    def weighted(self, weights: torch.Tensor) -> torch.Tensor:
        """Sum over the places, weights (batch, branches, places) -> (batch, branches, width)."""
        if self.channel is None:
            return weights @ self.face
        return self.channel * ((weights * self.spatial) @ self.face)

    def mean(self) -> torch.Tensor:
        branches = 1 if self.channel is None else self.channel.shape[1]
        places = self.face.shape[1]
        return self.weighted(self.face.new_full((len(self.face), branches, places), 1 / places))

    def repeated(self, times: int) -> "Attended":
        """Every branch several times in a row, for the beams of a search."""
        if self.channel is None:
            shape = (len(self.face), times)
            ones = self.face.new_ones(*shape, self.face.shape[2]), self.face.new_ones(*shape, self.face.shape[1])
            return Attended(self.face, *ones)
        return Attended(self.face, self.channel.repeat_interleave(times, 1), self.spatial.repeat_interleave(times, 1))


class MultiScaleCombination(nn.Module):
    """Equation 1: a 3x3 convolution brings each stage to the size of the last, a linear layer joins them."""

    def __init__(self, channels: list[int], config: VLFAUConfig) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(count, config.scale_channels, 3, padding=1) for count in channels)
        self.join = nn.Linear(config.scale_channels * len(channels), config.hidden_size)

    def forward(self, stages: list[torch.Tensor]) -> tuple[torch.Tensor, tuple[int, int]]:
        """-> (batch, places, hidden), and the last stage's height and width."""
        size = tuple(stages[-1].shape[-2:])
        maps = []
        for stage, layer in zip(stages, self.convolutions, strict=True):
            strides = tuple(-(-have // want) for have, want in zip(stage.shape[-2:], size, strict=True))
            with fetched(layer):
                found = nn.functional.conv2d(stage, layer.weight, layer.bias, strides, layer.padding)
            maps.append(found.flatten(2).transpose(1, 2))
        return self.join(torch.cat(maps, dim=-1)), size


def largest_channel(channel: torch.Tensor, face: torch.Tensor) -> torch.Tensor:
    """Which channel of a refined map is largest at each place: (batch, branches, width), (batch, places, width) ->
    (batch, branches, places). In two rounds, as a maximum without its place is many times faster to find."""
    products = channel[:, :, None] * face[:, None]
    lanes = _LANES if products.shape[-1] % _LANES == 0 else 1
    lined = products.unflatten(-1, (-1, lanes))
    lane = lined.amax(-2).argmax(-1)
    rows = lined.gather(-1, lane[..., None, None].expand(*lined.shape[:-1], 1)).squeeze(-1)
    return rows.argmax(-1) * lanes + lane


class DualLevelRefinement(nn.Module):
    """DAIR: what CBAM does to a map, by weights of each AU's own. Their leading dimension counts the AUs."""

    def __init__(self, units: int, config: VLFAUConfig) -> None:
        super().__init__()
        width, narrow = config.hidden_size, max(1, config.hidden_size // config.reduction)
        self.down_weight = nn.Parameter(torch.empty(units, narrow, width))
        self.down_bias = nn.Parameter(torch.empty(units, narrow))
        self.up_weight = nn.Parameter(torch.empty(units, width, narrow))
        self.up_bias = nn.Parameter(torch.empty(units, width))
        self.spatial_weight = nn.Parameter(torch.empty(units, 2, 3, 3))
        self.spatial_bias = nn.Parameter(torch.empty(units))

    def init_weights(self) -> None:
        for weight in (self.down_weight, self.up_weight):
            init.normal_(weight, std=weight.shape[2] ** -0.5)
        init.normal_(self.spatial_weight, std=0.02)
        init.zeros_(self.down_bias)
        init.zeros_(self.up_bias)
        # Equation 3 has no sigmoid: attention starts near 1 everywhere, not near 0.
        init.ones_(self.spatial_bias)

    def channel_attention(self, face: torch.Tensor) -> torch.Tensor:
        """Equation 2: (batch, places, width) -> (batch, AU, width)."""
        pooled = torch.cat([face.amax(dim=1), face.mean(dim=1)])
        hidden = nn.functional.linear(pooled, self.down_weight.flatten(0, 1), self.down_bias.flatten()).relu()
        # The MLP's second layer is linear: it takes the sum of both poolings, and its bias twice.
        hidden = hidden.view(2, len(face), *self.down_bias.shape).sum(dim=0).transpose(0, 1)
        both = torch.baddbmm(2 * self.up_bias[:, None], hidden, self.up_weight.transpose(1, 2))
        return both.sigmoid().transpose(0, 1)

    def forward(self, face: torch.Tensor, size: tuple[int, int]) -> Attended:
        """Equations 2-3. The refined maps themselves are never written out."""
        channel = self.channel_attention(face)
        with torch.no_grad():
            index = largest_channel(channel, face)  # (batch, AU, places)
        largest = channel.gather(2, index) * face.gather(2, index.transpose(1, 2)).transpose(1, 2)
        average = channel @ face.transpose(1, 2) / face.shape[2]
        pooled = torch.stack([largest, average], dim=2).flatten(1, 2).unflatten(-1, size)  # (batch, AU * 2, h, w)
        spatial = nn.functional.conv2d(
            pooled, self.spatial_weight, self.spatial_bias, padding=1, groups=len(self.spatial_bias)
        )
        return Attended(face, channel, spatial.flatten(2))


class UnitClassifiers(nn.Module):
    """One weight vector an AU: (batch, AU, width) -> (batch, AU)."""

    def __init__(self, units: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(units, width))
        self.bias = nn.Parameter(torch.empty(units))

    def init_weights(self) -> None:
        init.normal_(self.weight, std=self.weight.shape[1] ** -0.5)
        init.zeros_(self.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return (features * self.weight).sum(dim=-1) + self.bias


__all__ = ["Attended", "DualLevelRefinement", "MultiScaleCombination", "UnitClassifiers"]
