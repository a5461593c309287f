"""ME-GraphAU, a compared system: AUs as nodes of a graph whose edges are learned from the face."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.utils import can_return_tuple

from configuration_mf2.configuration_me_graph_au import MEGraphAUConfig

from .accumulation_mf2 import BatchShare, count_of, row_weight
from .au_graph import (
    EdgeFeatures,
    GatedGraphLayer,
    NearestNeighborGraph,
    SimilarityClassifiers,
    UnitFeatures,
    edge_loss,
    weighted_asymmetric_loss,
)
from .compared_model import ComparedPreTrainedModel, FaceAnalysisOutput, face_and_units
from .feature_maps import FeatureMaps


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

    def look(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """-> the face (batch, width), the nodes (batch, AU, width), the edges (batch, AU, AU, width) or None."""
        face = self.narrow(self.vision.tokens(pixel_values))
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
        share: BatchShare | None = None,
        **kwargs: object,
    ) -> MEGraphAUOutput:
        r"""
        au_labels (`(batch, AU)`), emotion_labels (`(batch,)`): -1 where unknown.
        share: what the Trainer tells one of several micro-batches of a step.
        """
        self.check_unused(kwargs)
        face, nodes, edges = self.look(pixel_values)
        probabilities = self.classifiers(nodes)
        output = MEGraphAUOutput(au_logits=probabilities.clamp(_CLOSEST, 1 - _CLOSEST).logit())
        if self.emotion is not None:
            output.emotion_logits = self.emotion(face_and_units(face, nodes))
        if edges is not None:
            output.edge_logits = self.together(edges)
        parts = self.classification_losses(output.emotion_logits, emotion_labels, None, None, share)
        if au_labels is not None:
            weights = self.config.au_class_weights
            parts["au"] = weighted_asymmetric_loss(probabilities, au_labels, weights, count_of(share, "au"))
            if edges is not None:
                parts["edge"] = row_weight(share, len(au_labels)) * edge_loss(output.edge_logits, au_labels)
        for name, part in parts.items():
            output[name] = part
        output.loss = self.weighted_sum(parts)
        return output


__all__ = ["MEGraphAUForFaceAnalysis"]
