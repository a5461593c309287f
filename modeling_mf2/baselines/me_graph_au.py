"""ME-GraphAU's parts (Luo et al., IJCAI 2022): features of each AU, their graph, and edges of many dimensions."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init
from transformers.utils import can_return_tuple

from configuration_mf2.baselines import MEGraphAUConfig
from modeling_mf2.loading import check_unused
from modeling_mf2.losses import (
    FaceAnalysisOutput,
    check_labels,
    classification_losses,
    masked_mean,
    row_weight,
    weighted_sum,
    wide,
)

from .base import ComparedPreTrainedModel, FeatureMaps, face_and_units


class UnitFeatures(nn.Module):
    """AFG: a fully connected layer an AU over the face's tokens, all AUs in one product; its mean is the AU's node."""

    def __init__(self, units: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(units, width, width))
        self.bias = nn.Parameter(torch.empty(units, width))
        self.norm = nn.BatchNorm1d(units * width)

    def init_weights(self) -> None:
        init.normal_(self.weight, std=self.weight.shape[2] ** -0.5)
        init.zeros_(self.bias)

    def forward(self, face: torch.Tensor) -> torch.Tensor:
        """(batch, places, width) -> (batch, AU, places, width)."""
        features = nn.functional.linear(face, self.weight.flatten(0, 1), self.bias.flatten())
        features = self.norm(features.transpose(1, 2)).relu()
        return features.unflatten(1, self.bias.shape).transpose(2, 3)


def nearest(nodes: torch.Tensor, neighbors: int) -> torch.Tensor:
    """Which nodes each node hears: 1 for the K most similar by dot product, (batch, AU, width) -> (batch, AU, AU)."""
    similarity = nodes @ nodes.transpose(1, 2)
    return torch.zeros_like(similarity).scatter(2, similarity.topk(neighbors, dim=-1).indices, 1.0)


class NearestNeighborGraph(nn.Module):
    """FGG: every face has its own graph; a node adds what its K nearest say, their mean."""

    def __init__(self, units: int, width: int, neighbors: int) -> None:
        super().__init__()
        self.neighbors = neighbors
        self.own = nn.Linear(width, width)
        self.others = nn.Linear(width, width)
        self.norm = nn.BatchNorm1d(units)

    def forward(self, nodes: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            heard = nearest(nodes, self.neighbors) / self.neighbors
        return (nodes + self.norm(self.own(nodes) + heard @ self.others(nodes))).relu()


class CrossAttention(nn.Module):
    """softmax(A Wq (B Wk)^T / sqrt(d)) B Wv, with queries and keys of half the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width // 2)
        self.key = nn.Linear(width, width // 2)
        self.value = nn.Linear(width, width)
        self.scale = (width // 2) ** -0.5

    def weights(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return (self.query(query) @ self.key(key).transpose(-1, -2) * self.scale).softmax(dim=-1)


class EdgeFeatures(nn.Module):
    """MEFL: each AU reads the face (FAM), then each ordered pair of AUs each other (ARM); a pair's mean is its edge."""

    def __init__(self, units: int, width: int) -> None:
        super().__init__()
        self.in_face = CrossAttention(width)
        self.in_pair = CrossAttention(width)
        self.project = nn.Linear(width, width)
        self.norm = nn.BatchNorm1d(units * units)

    def forward(self, units: torch.Tensor, face: torch.Tensor) -> torch.Tensor:
        """(batch, AU, places, width), (batch, places, width) -> (batch, AU, AU, width): what the first finds in the
        second."""
        face = face[:, None]
        shown = self.in_face.weights(units, face) @ self.in_face.value(face)
        # The mean over a pair's places comes before its values: what follows is linear, and a map a pair is not needed.
        weights = self.in_pair.weights(shown[:, :, None], shown[:, None]).mean(dim=-2)  # (batch, AU, AU, places)
        edges = torch.einsum("bijp,bjpc->bijc", weights, self.in_pair.value(shown))
        return self.norm(self.project(edges).flatten(1, 2)).unflatten(1, edges.shape[1:3])


class GatedGraphLayer(nn.Module):
    """A residual gated graph layer over all pairs: edges learn of their nodes, and gate what these say."""

    def __init__(self, units: int, width: int) -> None:
        super().__init__()
        self.edge, self.edge_from, self.edge_to = (nn.Linear(width, width) for _ in range(3))
        self.own, self.others = nn.Linear(width, width), nn.Linear(width, width)
        self.edge_norm, self.norm = nn.BatchNorm1d(units * units), nn.BatchNorm1d(units)

    def forward(self, nodes: torch.Tensor, edges: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        heard = self.edge(edges) + self.edge_from(nodes)[:, :, None] + self.edge_to(nodes)[:, None]
        edges = edges + self.edge_norm(heard.flatten(1, 2)).unflatten(1, edges.shape[1:3]).relu()
        gates = edges.sigmoid()
        gates = gates / (gates.sum(dim=2, keepdim=True) + 1e-6)
        said = (gates * self.others(nodes)[:, None]).sum(dim=2)
        return nodes + self.norm(self.own(nodes) + said).relu(), edges


class SimilarityClassifiers(nn.Module):
    """An AU is as probable as its node is similar to the AU's own vector: the cosine of what is positive in both."""

    def __init__(self, units: int, width: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.empty(units, width))

    def init_weights(self) -> None:
        init.normal_(self.vectors, std=self.vectors.shape[1] ** -0.5)

    def forward(self, nodes: torch.Tensor) -> torch.Tensor:
        """(batch, AU, width) -> probabilities (batch, AU)."""
        nodes, vectors = wide(nodes).relu(), wide(self.vectors).relu()
        similarity = nn.functional.normalize(nodes, dim=-1) * nn.functional.normalize(vectors, dim=-1)
        return similarity.sum(dim=-1)


def weighted_asymmetric_loss(
    probabilities: torch.Tensor,
    labels: torch.Tensor,
    class_weights: list[float] | tuple[float, ...] | None = None,
) -> torch.Tensor:
    """Mean of -w (y log p + (1 - y) p log(1 - p)): what is easily seen to be at rest counts little. -1 is left out."""
    check_labels("au_labels", labels, tuple(probabilities.shape), highest=1)
    active = probabilities.clamp_min(1e-8).log()
    at_rest = probabilities * (1 - probabilities).clamp_min(1e-8).log()
    losses = -torch.where(labels == 1, active, at_rest)
    if class_weights is not None:
        losses = losses * torch.tensor(class_weights, device=losses.device, dtype=losses.dtype)
    return masked_mean(losses, labels >= 0, "au")


def edge_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of how two AUs occur together: neither, the second, the first, both; of pairs that are known.

    logits (batch, AU, AU, 4), labels (batch, AU).
    """
    together = 2 * labels[:, :, None] + labels[:, None]
    known = (labels >= 0)[:, :, None] & (labels >= 0)[:, None]
    losses = nn.functional.cross_entropy(wide(logits).movedim(-1, 1), together.clamp_min(0), reduction="none")
    return masked_mean(losses, known)


_CLOSEST = 1e-6  # probabilities are not nearer to 0 and 1 than this, as logits


@dataclass
class MEGraphAUOutput(FaceAnalysisOutput):
    r"""
    edge: how well two AUs' occurring together is read from the edge between them.
    edge_logits (`(batch, AU, AU, 4)`): neither, the second, the first, both; None in the first stage.
    """

    edge: torch.Tensor | None = None
    edge_logits: torch.Tensor | None = None


class MEGraphAUForFaceAnalysis(ComparedPreTrainedModel):
    """Trained in two stages: without edges, then `from_pretrained(first, use_edges=True)`, or at once with edges.

    The emotion head is ours, for comparison: the paper has none, and `emotions=[]` leaves it out.
    """

    config_class = MEGraphAUConfig
    hub_system = "me_graph_au"
    _keys_to_ignore_on_load_unexpected = [r"^graph\."]  # the first stage's, when the second begins

    def __init__(self, config: MEGraphAUConfig) -> None:
        super().__init__(config)
        units, width = len(config.action_units), config.hidden_size
        self.vision = FeatureMaps(config)
        self.narrow = nn.Linear(self.vision.width, width)
        self.narrow_norm = nn.BatchNorm1d(width)
        self.units = UnitFeatures(units, width)
        if config.use_edges:
            self.edges = EdgeFeatures(units, width)
            self.layers = nn.ModuleList(GatedGraphLayer(units, width) for _ in range(config.num_edge_layers))
            self.together = nn.Linear(width, 4)
        else:
            self.graph = NearestNeighborGraph(units, width, config.neighbors)
        self.classifiers = SimilarityClassifiers(units, width)
        self.emotion = nn.Linear((1 + units) * width, len(config.emotions)) if config.emotions else None
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, UnitFeatures | SimilarityClassifiers):
            module.init_weights()

    def look(
        self, pixel_values: torch.Tensor, maps: list[torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """maps: as `FeatureMaps.tokens`.

        -> the face (batch, width), the nodes (batch, AU, width), the edges (batch, AU, AU, width) or None."""
        face = self.narrow(self.vision.tokens(pixel_values, maps))
        face = self.narrow_norm(face.transpose(1, 2)).transpose(1, 2).relu()
        units = self.units(face)
        nodes, edges = units.mean(dim=2), None
        if not self.config.use_edges:
            return face.mean(dim=1), self.graph(nodes), None
        edges = self.edges(units, face)
        for layer in self.layers:
            nodes, edges = layer(nodes, edges)
        return face.mean(dim=1), nodes, edges

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        au_labels: torch.Tensor | None = None,
        emotion_labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: object,
    ) -> MEGraphAUOutput:
        r"""
        au_labels (`(batch, AU)`), emotion_labels (`(batch,)`): -1 where unknown.
        """
        check_unused(self, kwargs)
        maps = self.kept_maps(output_hidden_states)
        face, nodes, edges = self.look(pixel_values, maps)
        probabilities = self.classifiers(nodes)
        logits = probabilities.clamp(_CLOSEST, 1 - _CLOSEST).logit()
        output = MEGraphAUOutput(au_logits=logits, hidden_states=maps and tuple(maps))
        if self.emotion is not None:
            output.emotion_logits = self.emotion(face_and_units(face, nodes))
        if edges is not None:
            output.edge_logits = self.together(edges)
        parts = classification_losses(self.config, output.emotion_logits, emotion_labels, None, None)
        if au_labels is not None:
            weights = self.config.au_class_weights
            parts["au"] = weighted_asymmetric_loss(probabilities, au_labels, weights)
            if edges is not None:
                parts["edge"] = row_weight(len(au_labels)) * edge_loss(output.edge_logits, au_labels)
        for name, part in parts.items():
            output[name] = part
        output.loss = weighted_sum(self.config, parts)
        return output


__all__ = [
    "EdgeFeatures",
    "GatedGraphLayer",
    "MEGraphAUForFaceAnalysis",
    "NearestNeighborGraph",
    "SimilarityClassifiers",
    "UnitFeatures",
    "edge_loss",
    "nearest",
    "weighted_asymmetric_loss",
]
