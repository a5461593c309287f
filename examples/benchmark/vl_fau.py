"""VL-FAU's branches, all AUs in a few products, against a loop over as many branch modules: time and outputs.

    python examples/benchmark/vl_fau.py [--json FILE]

A branch is the refinement of the paper's equations 2-3 and its classifier: 512 channels, 7 x 7 places, 12 AUs, one
thread, forward and backward, both sides in turns in one run. `branch_speedup` is for 8 images and what recognition
needs of a branch, its AU's logit: ours never writes out the refined maps for it. `branch_speedup_maps` is for what the
local decoder needs as well: every refined map is written out, and a gradient comes into each of its values. That moves
the same bytes on both sides.
"""

import statistics
from collections.abc import Callable
from functools import partial

import torch
from report import in_turns, options, write_json
from torch import nn

from configuration_mf2.baselines import VLFAUConfig
from modeling_mf2.baselines.vl_fau import DualLevelRefinement, UnitClassifiers


CHANNELS, SIDE, UNITS, REDUCTION = 512, 7, 12, 16
BATCHES = (1, 8, 32)


class Branch(nn.Module):
    """One AU's, as equations 2-3 are usually written: after CBAM, on (batch, channels, height, width)."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        narrow = channels // reduction
        self.mlp = nn.Sequential(nn.Linear(channels, narrow), nn.ReLU(), nn.Linear(narrow, channels))
        self.spatial = nn.Conv2d(2, 1, 3, padding=1)
        self.classifier = nn.Linear(channels, 1)

    def forward(self, face: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        attention = torch.sigmoid(self.mlp(face.amax(dim=(2, 3))) + self.mlp(face.mean(dim=(2, 3))))
        refined = attention[:, :, None, None] * face
        pooled = torch.cat([refined.amax(dim=1, keepdim=True), refined.mean(dim=1, keepdim=True)], dim=1)
        refined = self.spatial(pooled) * refined
        return self.classifier(refined.mean(dim=(2, 3))), refined


class Together(nn.Module):
    """Ours, with the weights of a list of branches."""

    def __init__(self, branches: nn.ModuleList, channels: int, reduction: int) -> None:
        super().__init__()
        config = VLFAUConfig(hidden_size=channels, reduction=reduction)
        self.refine = DualLevelRefinement(len(branches), config)
        self.units = UnitClassifiers(len(branches), channels)
        weights = {
            "refine.down_weight": [branch.mlp[0].weight for branch in branches],
            "refine.down_bias": [branch.mlp[0].bias for branch in branches],
            "refine.up_weight": [branch.mlp[2].weight for branch in branches],
            "refine.up_bias": [branch.mlp[2].bias for branch in branches],
            "refine.spatial_weight": [branch.spatial.weight[0] for branch in branches],
            "refine.spatial_bias": [branch.spatial.bias[0] for branch in branches],
            "units.weight": [branch.classifier.weight[0] for branch in branches],
            "units.bias": [branch.classifier.bias[0] for branch in branches],
        }
        self.load_state_dict({name: torch.stack(parts).detach() for name, parts in weights.items()})

    def forward(self, face: torch.Tensor, maps: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        attended = self.refine(face.flatten(2).transpose(1, 2).contiguous(), tuple(face.shape[2:]))
        return self.units(attended.mean()), attended.maps() if maps else None


def in_a_loop(branches: nn.ModuleList, face: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    found = [branch(face) for branch in branches]
    return torch.cat([logit for logit, _ in found], dim=1), [refined for _, refined in found]


def train(call: Callable[[], tuple], directions: list[torch.Tensor] | torch.Tensor | None) -> None:
    """Backward from the logits, and from every value of the maps where directions are given for them."""
    logits, maps = call()
    if directions is None:
        logits.sum().backward()
        return
    many = isinstance(maps, list)
    torch.autograd.backward(
        [logits, *maps] if many else [logits, maps],
        [torch.ones_like(logits), *directions] if many else [torch.ones_like(logits), directions],
    )


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--small", action="store_true", help="a few narrow branches: shows that the script works")
    arguments = parser.parse_args(argv)

    torch.manual_seed(0)
    torch.set_num_threads(1)
    channels, units = (32, 3) if arguments.small else (CHANNELS, UNITS)
    branches = nn.ModuleList(Branch(channels, REDUCTION) for _ in range(units))
    ours = Together(branches, channels, REDUCTION)
    figures: dict[str, float] = {"output_difference": 0.0}
    print(f"{units} branches, {channels} channels, {SIDE} x {SIDE} places, forward + backward, 1 thread")
    print(f"{'images':>6} {'read of a branch':>18} {'loop':>9} {'ours':>9} {'speedup':>8}")
    for batch in BATCHES:
        face = torch.randn(batch, channels, SIDE, SIDE, requires_grad=True)
        with torch.no_grad():
            (theirs, maps), (logits, refined) = in_a_loop(branches, face), ours(face, maps=True)
            stacked = torch.stack(maps, dim=1).flatten(3).transpose(2, 3)
            difference = max((theirs - logits).abs().max().item(), (stacked - refined).abs().max().item())
        figures["output_difference"] = max(figures["output_difference"], difference)
        directions = torch.randn_like(refined)
        loop_directions = [part.transpose(1, 2).reshape(maps[0].shape) for part in directions.unbind(1)]
        cases = {"": (None, None), "_maps": (loop_directions, directions)}
        for name, (of_loop, of_ours) in cases.items():
            calls = {
                "loop": partial(train, partial(in_a_loop, branches, face), of_loop),
                "ours": partial(train, partial(ours, face, bool(name)), of_ours),
            }
            rounds = in_turns(calls, arguments.rounds)
            loop, together = (statistics.median(times[side] for times in rounds) for side in calls)
            ratio = statistics.median(times["loop"] / times["ours"] for times in rounds)
            read = "logits and maps" if name else "logits"
            print(f"{batch:6} {read:>18} {1e3 * loop:6.1f} ms {1e3 * together:6.1f} ms {ratio:8.2f}")
            figures[f"branch_speedup{name}" if batch == 8 else f"branch_speedup{name}_batch_{batch}"] = ratio
    print(f"largest difference of logits and maps: {figures['output_difference']:.1e}")
    write_json(arguments.json, figures)
    return figures


if __name__ == "__main__":
    main()
