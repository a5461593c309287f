"""Towers of cells that read frozen hidden states, and the layer that stands in a port's place and owns them."""

from typing import Any

import torch
from torch import nn

from .config import POOLINGS, DFNConfig, spread_layers
from .port import DFNPort, PathwayShape, repeated


try:
    from peft.tuners.tuners_utils import BaseTunerLayer
except ImportError:
    raise


Selected = dict[str, list[torch.Tensor]]

_ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}


class DFNCell(nn.Module):
    """FC down -> activation -> FC up over g * hidden state + (1 - g) * cell before."""

    def __init__(self, width: int, config: DFNConfig) -> None:
        super().__init__()
        self.down = nn.Linear(width, config.bottleneck)
        self.activation = _ACTIVATIONS[config.activation]()
        self.dropout = nn.Dropout(config.dropout)
        self.up = nn.Linear(config.bottleneck, width)
        self.gate = nn.Parameter(torch.zeros(1))
        self.temperature = config.gate_temperature

    def forward(
        self, seen: torch.Tensor, state: torch.Tensor | None, written: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """-> (state, what of it the cells have written)."""
        share = torch.sigmoid(self.gate / self.temperature)
        mixed = share * seen
        if state is not None:
            mixed = mixed + (1 - share) * state
        own = self.up(self.dropout(self.activation(self.down(mixed))))
        return mixed + own, own if written is None else (1 - share) * written + own


class DFNTower(nn.Module):
    """A cell for each hidden state it reads. Its result is what is added to the branch's last state: 0 at first."""

    def __init__(self, pathway: str, shape: PathwayShape, port: DFNPort, config: DFNConfig) -> None:
        super().__init__()
        self.kind = pathway.rpartition("_")[0]
        self.layers = spread_layers(config.of_pathway("layers", pathway), shape.states, pathway)
        self.shared = [layer for layer in self.layers if layer < shape.shared]
        self.pooling = config.of_pathway("pooling", pathway)
        tokens = self._tokens_read(pathway, shape)
        self.pooled = self.pooling in ("mean", "cls", 1)
        self.are_queries = self.kind == "visual" and tokens == port.tokens
        self.cells = nn.ModuleList(DFNCell(shape.width, config) for _ in self.layers)
        self.output = None
        if config.output_layer or shape.width != port.width:
            self.output = nn.Linear(shape.width, port.width)
        self.mix = self.spread = None
        if config.readout == "mix" and tokens is not None and not self.pooled:
            slots = min(config.slots, port.tokens)
            self.mix = nn.Parameter(torch.full((len(self.layers), shape.kinds, slots, tokens), 1 / tokens))
            turns = torch.eye(slots).repeat(-(-port.tokens // slots), 1)[: port.tokens]  # queries take slots in turn
            self.spread = nn.Parameter(turns.repeat(shape.kinds, 1, 1))
        if config.init_weights:
            self._start_at_zero()

    def _tokens_read(self, pathway: str, shape: PathwayShape) -> int | None:
        """None where it differs from text to text."""
        if self.pooling in POOLINGS:
            return shape.tokens if self.pooling == "all" else 1
        if shape.tokens is None or self.pooling > shape.tokens:
            expected = "'mean', 'cls' or 'all'" if shape.tokens is None else f"at most its {shape.tokens} tokens"
            raise ValueError(f"pooling: got {self.pooling} for {pathway!r}, expected {expected}")
        return self.pooling

    def _start_at_zero(self) -> None:
        for layer in [self.output] if self.output is not None else [cell.up for cell in self.cells]:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    @torch.no_grad()
    def select(self, hidden: tuple[torch.Tensor, ...], mask: torch.Tensor | None) -> list[torch.Tensor]:
        """What is read of the hidden states: (rows, width) each, or (rows, tokens, width). No parameter has a say, so
        that it can be stored."""
        states = [hidden[layer].detach() for layer in self.layers]
        if self.kind == "vision":  # a ViT's blocks do not end in a norm
            states = [nn.functional.layer_norm(state.float(), state.shape[-1:]) for state in states]
        if self.pooling == "all":
            return states
        if not self.pooled:
            return [nn.functional.adaptive_avg_pool1d(state.mT, self.pooling).mT for state in states]
        if self.pooling == "cls":
            return [state[:, 0] for state in states]
        if mask is None:
            return [state.mean(dim=1) for state in states]
        shown = mask[..., None].to(states[0].dtype)
        return [(state * shown).sum(dim=1) / shown.sum(dim=1).clamp_min(1) for state in states]

    def forward(self, states: list[torch.Tensor]) -> torch.Tensor:
        """-> (rows, 1 or tokens of the branch, its width)."""
        rows, dtype = max(state.shape[0] for state in states), self.cells[0].gate.dtype
        states = [seen.to(dtype) for seen in states]
        state = written = None
        if self.mix is not None:  # before the cells: there are fewer slots than tokens
            states = [self._mixed(*pair) for pair in zip(self.mix, states, strict=True)]
        for cell, seen in zip(self.cells, states, strict=True):
            if state is not None:
                seen = repeated(seen, rows)
                state, written = repeated(state, rows), repeated(written, rows)
            state, written = cell(seen, state, written)
        result = written if self.output is None else self.output(state)
        if self.pooled:
            return result[:, None]
        if self.spread is not None:
            return self._mixed(self.spread, result)
        per_query = self.are_queries or self.kind == "language"
        return result if per_query else result.mean(dim=1, keepdim=True)

    @staticmethod
    def _mixed(weights: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        by_kind = tokens.unflatten(0, (-1, len(weights)))  # (samples, kinds, tokens, width)
        return torch.einsum("kqt,nktw->nkqw", weights, by_kind).flatten(0, 1)


class DFNLayer(nn.Module, BaseTunerLayer):
    """In a port's place: adds what the active adapter's towers make of the hidden states to the last one."""

    adapter_layer_names = ("dfn_towers",)
    is_dfn_port = True

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: DFNConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.dfn_towers = nn.ModuleDict()
        self.merged_adapters = []
        self.recorded: dict[str, torch.Tensor | list[torch.Tensor]] | None = None
        self.set_adapter(adapter_name)
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: DFNConfig) -> None:
        port = self.get_base_layer()
        built = [name for name in config.pathways if name in port.pathways]
        towers = nn.ModuleDict({name: DFNTower(name, port.pathways[name], port, config) for name in built})
        if not any(parameter.is_meta for parameter in towers.parameters()):  # those get a place with their weights
            towers.to(port.weight.device, port.weight.dtype)
        self.dfn_towers[adapter_name] = towers
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise_unmergeable()

    def unmerge(self) -> None:
        raise_unmergeable()

    @property
    def in_features(self) -> int:
        return self.get_base_layer().width

    out_features = in_features

    @property
    def branch(self) -> str:
        return self.get_base_layer().branch

    @property
    def pathways(self) -> dict[str, PathwayShape]:
        return self.get_base_layer().pathways

    @property
    def active_towers(self) -> dict[str, DFNTower] | None:
        """None where no adapter is at work; an adapter may read nothing of this branch."""
        names = [] if self.disable_adapters else [name for name in self.active_adapters if name in self.dfn_towers]
        return dict(self.dfn_towers[names[0]].items()) if names else None

    @property
    def frozen(self) -> bool:
        return self.active_towers is not None

    def reads(self, kind: str) -> bool:
        return any(tower.kind == kind for tower in (self.active_towers or {}).values())

    def forward(
        self, last: torch.Tensor, mask: torch.Tensor | None = None, **hidden: tuple[torch.Tensor, ...]
    ) -> torch.Tensor:
        towers = self.active_towers
        if towers is None:
            return self.base_layer(last, mask=mask, **hidden)
        last = last.detach()
        selected = {
            name: tower.select(hidden[tower.kind], mask)
            for name, tower in towers.items()
            if hidden.get(tower.kind) is not None
        }
        if self.recorded is not None:
            self.recorded |= {f"last_{self.branch}": last, **selected}
        return self._added(last, selected)

    def _added(self, last: torch.Tensor, selected: Selected) -> torch.Tensor:
        for name, states in selected.items():
            last = last + repeated(self.active_towers[name](states), last.shape[0]).to(last.dtype)
        return last

    def from_states(self, states: dict[str, torch.Tensor]) -> torch.Tensor:
        """The same from a batch that was stored: no backbone is needed."""
        last = self.get_base_layer().from_states(states)
        return self._added(last, {name: self._stored(name, states) for name in self.active_towers or {}})

    def _stored(self, name: str, states: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        tower = self.active_towers[name]
        own = [] if len(tower.shared) == len(tower.layers) else None
        try:
            shared = [states[f"{name}.{layer}"] for layer in tower.shared]
            own = list(states[name].flatten(0, 1).unbind(1)) if own is None else own
        except KeyError as error:
            raise ValueError(
                f"states: got {sorted(states)}, expected {error.args[0]!r} among them, which the active adapter reads; "
                "build the store with this adapter"
            ) from error
        if len(shared) + len(own) != len(tower.layers):
            raise ValueError(
                f"states: got {len(own)} hidden states of {name!r}, expected {len(tower.layers) - len(shared)}; build "
                "the store with this adapter"
            )
        return shared + own


def raise_unmergeable(*_: Any) -> None:
    raise NotImplementedError(
        "DFN cannot be merged: its towers read hidden states beside the frozen model, and no change of the model's own "
        "weights does the same. Keep the adapter beside the model, or call unload() to be rid of it"
    )


__all__ = ["DFNCell", "DFNLayer", "DFNTower", "raise_unmergeable"]
