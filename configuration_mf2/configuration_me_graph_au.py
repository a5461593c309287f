"""Configuration of ME-GraphAU, a compared system: a graph of AUs with multi-dimensional edges (Luo et al., 2022)."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from .compared_config import TINY_BACKBONE, ComparedConfig


@strict
class MEGraphAUConfig(ComparedConfig):
    r"""
    hidden_size (`int`): width of nodes and edges.
    neighbors (`int`): K, how many nodes each node hears (the authors take 4 for BP4D's 12 AUs, 3 for DISFA's 8).
    use_edges (`bool`): the second stage, edge features and the gated graph; without it the first, AFG and its graph.
    num_edge_layers (`int`): gated graph layers.
    loss_weights (`dict`): `edge` is the paper's lambda; 0.05 unless given (the authors' value for BP4D).
    """

    model_type = "me_graph_au"
    hub_system = "me_graph_au"
    hub_auto_classes = ("AutoConfig", "AutoModel", "AutoModelForPreTraining")
    losses: ClassVar[tuple[str, ...]] = ("au", "emotion", "edge")
    sizes: ClassVar[dict[str, dict[str, Any]]] = {"tiny": {**TINY_BACKBONE, "hidden_size": 64}, "base": {}}

    hidden_size: int = 512
    neighbors: int = 4
    use_edges: bool = True
    num_edge_layers: int = 2

    bounds = {**ComparedConfig.bounds, "hidden_size": 16384, "num_edge_layers": 256}

    def __post_init__(self, **kwargs: Any) -> None:
        self.loss_weights = {"edge": 0.05, **self.loss_weights}
        super().__post_init__(**kwargs)

    def validate_graph(self) -> None:
        if not self.action_units:
            return  # which validate_labels tells
        if not 1 <= self.neighbors <= len(self.action_units):
            raise ValueError(
                f"neighbors: got {self.neighbors}, expected 1 to {len(self.action_units)}, the number of action units"
            )
        for field in ("hidden_size", "num_edge_layers"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}: got {getattr(self, field)}, expected at least 1")
        if self.hidden_size % 2:
            raise ValueError(f"hidden_size: got {self.hidden_size}, expected an even number: queries have half of it")


__all__ = ["MEGraphAUConfig"]
