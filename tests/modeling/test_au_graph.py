import itertools
import math

import pytest
import torch
from compared_systems import as_linear
from torch import nn

from modeling_mf2.baselines.me_graph_au import (
    EdgeFeatures,
    GatedGraphLayer,
    NearestNeighborGraph,
    SimilarityClassifiers,
    UnitFeatures,
    edge_loss,
    nearest,
    weighted_asymmetric_loss,
)


BATCH, UNITS, PLACES, WIDTH = 2, 4, 5, 6


def stirred(module: nn.Module) -> nn.Module:
    """In evaluation mode, with running statistics that are not 0 and 1."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape))
        for name, buffer in module.named_buffers():
            if "running" in name:
                buffer.copy_(torch.rand(buffer.shape) + 0.5)
    return module.double().eval()


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def normed(norm: nn.BatchNorm1d, channel: int, values: torch.Tensor) -> torch.Tensor:
    scale = norm.weight[channel] / (norm.running_var[channel] + norm.eps).sqrt()
    return (values - norm.running_mean[channel]) * scale + norm.bias[channel]


def test_every_unit_has_its_own_layer_over_the_face():
    units, face = stirred(UnitFeatures(UNITS, WIDTH)), draw(BATCH, PLACES, WIDTH)
    found = units(face)
    assert found.shape == (BATCH, UNITS, PLACES, WIDTH)
    for unit, place in itertools.product(range(UNITS), range(PLACES)):
        plain = as_linear(units.weight[unit], units.bias[unit])(face[:, place])
        columns = [normed(units.norm, unit * WIDTH + c, plain[:, c]) for c in range(WIDTH)]
        assert torch.allclose(found[:, unit, place], torch.stack(columns, dim=1).relu(), rtol=0, atol=1e-9)


def test_each_node_hears_its_nearest():
    nodes = draw(BATCH, UNITS, WIDTH)
    heard = nearest(nodes, 2)
    for image, unit in itertools.product(range(BATCH), range(UNITS)):
        products = [float(nodes[image, unit] @ nodes[image, other]) for other in range(UNITS)]
        expected = sorted(range(UNITS), key=lambda other: -products[other])[:2]
        assert sorted(heard[image, unit].nonzero().flatten().tolist()) == sorted(expected)


def test_the_graph_adds_the_mean_of_what_neighbors_say():
    graph, nodes = stirred(NearestNeighborGraph(UNITS, WIDTH, 3)), draw(BATCH, UNITS, WIDTH)
    found, heard = graph(nodes), nearest(nodes, 3)
    for image, unit in itertools.product(range(BATCH), range(UNITS)):
        others = [graph.others(nodes[image, other]) for other in range(UNITS) if heard[image, unit, other]]
        told = graph.own(nodes[image, unit]) + sum(others) / 3
        expected = (nodes[image, unit] + normed(graph.norm, unit, told)).relu()
        assert torch.allclose(found[image, unit], expected, rtol=0, atol=1e-9)


def attended(layer: nn.Module, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """softmax(A Wq (B Wk)^T / sqrt(d)) B Wv of two matrices, a row at a time."""
    keys, values = layer.key(key), layer.value(key)
    rows = []
    for row in layer.query(query):
        weights = torch.stack([row @ other / math.sqrt(WIDTH // 2) for other in keys]).softmax(dim=0)
        rows.append(sum(weight * value for weight, value in zip(weights, values, strict=True)))
    return torch.stack(rows)


def test_edges_are_those_of_a_loop_over_all_pairs():
    edges, units, face = stirred(EdgeFeatures(UNITS, WIDTH)), draw(BATCH, UNITS, PLACES, WIDTH), draw(2, PLACES, WIDTH)
    found = edges(units, face)
    for image in range(BATCH):
        shown = [attended(edges.in_face, units[image, unit], face[image]) for unit in range(UNITS)]
        for first, second in itertools.product(range(UNITS), range(UNITS)):
            pair = edges.project(attended(edges.in_pair, shown[first], shown[second])).mean(dim=0)
            expected = normed(edges.norm, first * UNITS + second, pair)
            assert torch.allclose(found[image, first, second], expected, rtol=0, atol=1e-9)


def test_gated_layer_is_that_of_a_loop_over_nodes():
    layer, nodes, edges = stirred(GatedGraphLayer(UNITS, WIDTH)), draw(BATCH, UNITS, WIDTH), draw(BATCH, 4, 4, WIDTH)
    new_nodes, new_edges = layer(nodes, edges)
    for image, first in itertools.product(range(BATCH), range(UNITS)):
        seen = []
        for second in range(UNITS):
            heard = layer.edge(edges[image, first, second])
            heard = heard + layer.edge_from(nodes[image, first]) + layer.edge_to(nodes[image, second])
            edge = edges[image, first, second] + normed(layer.edge_norm, first * UNITS + second, heard).relu()
            assert torch.allclose(new_edges[image, first, second], edge, rtol=0, atol=1e-9)
            seen.append(edge.sigmoid())
        gates = [gate / (sum(seen) + 1e-6) for gate in seen]
        said = sum(gate * layer.others(nodes[image, second]) for second, gate in enumerate(gates))
        told = normed(layer.norm, first, layer.own(nodes[image, first]) + said).relu()
        assert torch.allclose(new_nodes[image, first], nodes[image, first] + told, rtol=0, atol=1e-9)


def test_probabilities_are_cosines_of_what_is_positive():
    classify, nodes = stirred(SimilarityClassifiers(UNITS, WIDTH)), draw(BATCH, UNITS, WIDTH)
    nodes[0, 0] = -1.0
    found = classify(nodes)
    assert found[0, 0] == 0 and found.isfinite().all() and (found >= 0).all() and (found <= 1 + 1e-9).all()
    for unit in range(UNITS):
        expected = nn.functional.cosine_similarity(nodes[:, unit].relu(), classify.vectors[unit].relu()[None])
        assert torch.allclose(found[:, unit], expected, atol=1e-9)


def test_asymmetric_loss_of_a_plain_loop():
    probabilities = torch.tensor([[0.9, 0.2], [0.3, 0.7], [0.5, 0.5]], dtype=torch.float64)
    labels, weights = torch.tensor([[1, 0], [1, 0], [-1, 1]]), [0.5, 1.5]
    terms = []
    for row, unit in itertools.product(range(3), range(2)):
        p, label = probabilities[row, unit].item(), labels[row, unit].item()
        if label >= 0:
            terms.append(-weights[unit] * (math.log(p) if label else p * math.log(1 - p)))
    assert math.isclose(weighted_asymmetric_loss(probabilities, labels, weights).item(), sum(terms) / 5, rel_tol=1e-9)
    assert weighted_asymmetric_loss(probabilities, torch.full((3, 2), -1)) == 0
    extreme = torch.tensor([[0.0, 1.0]], requires_grad=True)
    loss = weighted_asymmetric_loss(extreme, torch.tensor([[1, 0]]))
    loss.backward()
    assert loss.isfinite() and extreme.grad.isfinite().all()
    with pytest.raises(ValueError, match="au_labels: got shape"):
        weighted_asymmetric_loss(probabilities, labels[:2])


def test_edge_loss_names_how_two_units_occur_together():
    logits, labels = draw(3, UNITS, UNITS, 4), torch.randint(0, 2, (3, UNITS))
    labels[0, 1] = -1
    terms = []
    for row, first, second in itertools.product(range(3), range(UNITS), range(UNITS)):
        pair = (labels[row, first].item(), labels[row, second].item())
        if -1 not in pair:
            kind = {(0, 0): 0, (0, 1): 1, (1, 0): 2, (1, 1): 3}[pair]
            terms.append(-logits[row, first, second].log_softmax(0)[kind].item())
    assert math.isclose(edge_loss(logits, labels).item(), sum(terms) / len(terms), rel_tol=1e-9)
    assert edge_loss(logits, torch.full_like(labels, -1)) == 0
