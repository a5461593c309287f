"""Where an adapter may read a branch's hidden states. Needs no peft: a base model without adapters has ports too."""

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class PathwayShape:
    """What flows through a pathway: `states` tensors (rows, `tokens`, `width`), the embedding state first.

    tokens: None where it differs from text to text. shared: how many of the first states are the same for all samples.
    kinds: rows are of so many kinds in turn (AUs): row r is of kind r modulo their number.
    """

    states: int
    width: int
    tokens: int | None = None
    shared: int = 0
    kinds: int = 1


class DFNPort(nn.Module):
    """Hands on the last state of its branch. An adapter puts a layer in its place that reads the others too.

    pathways: their shapes, by what they are called when the port is: `visual` (the queries), `language` (text),
    `vision` (the vision tower); in an adapter's config the branch's name follows, as in `visual_emo`.
    """

    is_dfn_port = True
    frozen = False  # whether an adapter reads the branch, which is then neither trained nor in training mode

    def __init__(self, branch: str, width: int, tokens: int, pathways: dict[str, PathwayShape]) -> None:
        super().__init__()
        self.branch, self.width, self.tokens = branch, width, tokens
        self.pathways = {f"{kind}_{branch}": shape for kind, shape in pathways.items()}
        # A port has no parameters; this says, also to peft, on which device and in which dtype its branch is.
        self.register_buffer("weight", torch.empty(0), persistent=False)

    def reads(self, kind: str) -> bool:
        return False

    def forward(
        self, last: torch.Tensor, mask: torch.Tensor | None = None, **hidden: tuple[torch.Tensor, ...]
    ) -> torch.Tensor:
        return last

    def from_states(self, states: dict[str, torch.Tensor]) -> torch.Tensor:
        """The last state of a batch that was stored, (rows, tokens, width)."""
        name = f"last_{self.branch}"
        if name not in states:
            raise ValueError(
                f"states: got {sorted(states)}, expected {name!r} among them; build the store of this model"
            )
        return states[name].flatten(0, 1).to(self.weight)


def repeated(states: torch.Tensor, rows: int) -> torch.Tensor:
    """States that are the same for all samples, once for each: row r is row r modulo their number."""
    count = states.shape[0]  # not len(), which an exporter would take for a constant
    return states if count == rows else states.repeat(rows // count, *[1] * (states.ndim - 1))


__all__ = ["DFNPort", "PathwayShape", "repeated"]
