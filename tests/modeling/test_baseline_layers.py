"""The compared systems' layers against loops over their papers' equations, and the likeliest descriptions."""

import itertools
import math

import pytest
import torch
from torch import nn

from configuration_mf2.baselines import VLFAUConfig
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
from modeling_mf2.baselines.vl_fau import (
    Attended,
    AttentionDecoder,
    DualLevelRefinement,
    MultiScaleCombination,
    top_words,
)


EXACT = {"rtol": 0, "atol": 1e-9}


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def stirred(module: nn.Module) -> nn.Module:
    """In evaluation mode, with parameters of about one and running statistics that are not 0 and 1."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape) / max(1, parameter[0].numel()) ** 0.5)
        for name, buffer in module.named_buffers():
            if "running" in name:
                buffer.copy_(torch.rand(buffer.shape) + 0.5)
    return module.double().eval()


def as_linear(weight: torch.Tensor, bias: torch.Tensor) -> nn.Linear:
    """One of a stack of layers, as a module of its own."""
    layer = nn.Linear(weight.shape[1], weight.shape[0]).to(weight.dtype)
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer


# ME-GraphAU


BATCH, UNITS, PLACES, WIDTH = 2, 4, 5, 6


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
        assert torch.allclose(found[:, unit, place], torch.stack(columns, dim=1).relu(), **EXACT)


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
        assert torch.allclose(found[image, unit], expected, **EXACT)


def attended(layer: nn.Module, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """softmax(A Wq (B Wk)^T / sqrt(d)) B Wv of two matrices, a row at a time."""
    keys, values = layer.key(key), layer.value(key)
    rows = []
    for row in layer.query(query):
        weights = torch.stack([row @ other / math.sqrt(WIDTH // 2) for other in keys]).softmax(dim=0)
        rows.append(sum(weight * value for weight, value in zip(weights, values, strict=True)))
    return torch.stack(rows)


def test_edges_are_those_of_a_loop_over_all_pairs():
    edges, units = stirred(EdgeFeatures(UNITS, WIDTH)), draw(BATCH, UNITS, PLACES, WIDTH)
    face = draw(BATCH, PLACES, WIDTH)
    found = edges(units, face)
    for image in range(BATCH):
        shown = [attended(edges.in_face, units[image, unit], face[image]) for unit in range(UNITS)]
        for first, second in itertools.product(range(UNITS), range(UNITS)):
            pair = edges.project(attended(edges.in_pair, shown[first], shown[second])).mean(dim=0)
            expected = normed(edges.norm, first * UNITS + second, pair)
            assert torch.allclose(found[image, first, second], expected, **EXACT)


def test_gated_layer_is_that_of_a_loop_over_nodes():
    layer, nodes, edges = stirred(GatedGraphLayer(UNITS, WIDTH)), draw(BATCH, UNITS, WIDTH), draw(BATCH, 4, 4, WIDTH)
    new_nodes, new_edges = layer(nodes, edges)
    for image, first in itertools.product(range(BATCH), range(UNITS)):
        seen = []
        for second in range(UNITS):
            heard = layer.edge(edges[image, first, second])
            heard = heard + layer.edge_from(nodes[image, first]) + layer.edge_to(nodes[image, second])
            edge = edges[image, first, second] + normed(layer.edge_norm, first * UNITS + second, heard).relu()
            assert torch.allclose(new_edges[image, first, second], edge, **EXACT)
            seen.append(edge.sigmoid())
        gates = [gate / (sum(seen) + 1e-6) for gate in seen]
        said = sum(gate * layer.others(nodes[image, second]) for second, gate in enumerate(gates))
        told = normed(layer.norm, first, layer.own(nodes[image, first]) + said).relu()
        assert torch.allclose(new_nodes[image, first], nodes[image, first] + told, **EXACT)


def test_probabilities_are_cosines_of_what_is_positive():
    classify, nodes = stirred(SimilarityClassifiers(UNITS, WIDTH)), draw(BATCH, UNITS, WIDTH)
    nodes[0, 0] = -1.0
    found = classify(nodes)
    assert found[0, 0] == 0 and found.isfinite().all() and (found >= 0).all() and (found <= 1 + 1e-9).all()
    for unit in range(UNITS):
        expected = nn.functional.cosine_similarity(nodes[:, unit].relu(), classify.vectors[unit].relu()[None])
        assert torch.allclose(found[:, unit], expected, **EXACT)


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


# VL-FAU's layers


CONFIG = VLFAUConfig(hidden_size=64, scale_channels=6, reduction=4, vocab_size=40, bos_token_id=5)
SIZE = (4, 5)


def face() -> torch.Tensor:
    return draw(2, SIZE[0] * SIZE[1], CONFIG.hidden_size).requires_grad_()


def test_refinement_is_what_one_branch_after_the_other_computes():
    """Equations 2 and 3 as they are written, an AU at a time, in values and in gradients."""
    refine, images = stirred(DualLevelRefinement(UNITS, CONFIG)), face()
    refined = refine(images, SIZE).maps()
    whole = images.transpose(1, 2).unflatten(2, SIZE)
    branches = []
    for unit in range(UNITS):
        down = as_linear(refine.down_weight[unit], refine.down_bias[unit])
        up = as_linear(refine.up_weight[unit], refine.up_bias[unit])
        largest, average = (up(down(pooled).relu()) for pooled in (whole.amax(dim=(2, 3)), whole.mean(dim=(2, 3))))
        attended = torch.sigmoid(largest + average)[:, :, None, None] * whole
        pooled = torch.stack([attended.amax(dim=1), attended.mean(dim=1)], dim=1)
        weight, bias = refine.spatial_weight[unit : unit + 1], refine.spatial_bias[unit : unit + 1]
        branches.append(nn.functional.conv2d(pooled, weight, bias, padding=1) * attended)
    expected = torch.stack(branches, dim=1).flatten(3).transpose(2, 3)
    assert torch.allclose(refined, expected, **EXACT)
    direction = torch.randn_like(expected)
    found, wanted = (torch.autograd.grad(maps, images, direction)[0] for maps in (refined, expected))
    assert torch.allclose(found, wanted, **EXACT)
    refine = DualLevelRefinement(UNITS, CONFIG)
    refine.init_weights()  # lets everything through
    assert (refine(face().float(), SIZE).spatial - 1).abs().max() < 0.5


def test_factors_answer_as_the_maps_that_they_stand_for():
    images = face()
    for attended in (Attended(images), stirred(DualLevelRefinement(UNITS, CONFIG))(images, SIZE)):
        maps = attended.maps()
        weights = torch.rand(maps.shape[:3], dtype=torch.float64)
        assert torch.allclose(attended.weighted(weights), torch.einsum("bqp,bqpc->bqc", weights, maps), **EXACT)
        assert torch.allclose(attended.mean(), maps.mean(dim=2), **EXACT)
        assert torch.equal(attended.repeated(2).maps(), maps.repeat_interleave(2, dim=1))
    factors = [draw(*shape).requires_grad_() for shape in ((2, 3, 4), (2, 2, 4), (2, 2, 3))]
    assert torch.autograd.gradcheck(lambda *parts: Attended(*parts).maps(), factors)


def test_scales_are_combined_as_equation_1_says_whatever_their_sizes():
    channels, sizes = [3, 4, 5, 6], [(28, 20), (14, 10), (7, 5), (4, 3)]
    combine = stirred(MultiScaleCombination(channels, CONFIG))
    stages = [draw(2, c, *size) for c, size in zip(channels, sizes, strict=True)]
    combined, size = combine(stages)
    assert size == (4, 3) and combined.shape == (2, 12, CONFIG.hidden_size)
    each = zip(stages, combine.convolutions, (7, 4, 2, 1), strict=True)
    joined = [nn.functional.conv2d(stage, one.weight, one.bias, stride, padding=1) for stage, one, stride in each]
    joined = torch.cat(joined, dim=1)
    for row, column in ((0, 0), (3, 2), (1, 1)):
        expected = joined[:, :, row, column] @ combine.join.weight.T + combine.join.bias
        assert torch.allclose(combined[:, row * 3 + column], expected, **EXACT)


# VL-FAU's decoder


PAD, END, BEGIN, VOCABULARY, CELLS = 0, 3, 5, 7, 8


@pytest.fixture
def decoder():
    config = VLFAUConfig(
        **{"hidden_size": CELLS, "word_size": 6, "reduction": 2, "vocab_size": VOCABULARY},
        **{"pad_token_id": PAD, "eos_token_id": END, "bos_token_id": BEGIN},
    )
    return AttentionDecoder(config).double()


@pytest.fixture
def maps():
    return Attended(draw(2, 4, CELLS), draw(2, 3, CELLS).sigmoid(), draw(2, 3, 4))


def spoken() -> tuple[torch.Tensor, torch.Tensor]:
    """(images, branches, length): one description is missing, one is its first token alone, the others differ."""
    mask = (torch.arange(6) < torch.tensor([[6, 3, 0], [5, 1, 4]])[..., None]).long()
    return torch.randint(1, VOCABULARY, (2, 3, 6)) * mask, mask


def plain(decoder: AttentionDecoder, image: torch.Tensor, words: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Equations 4-6 for one map (places, width) and one description, with torch's own cell -> logits and what was
    seen, a row for each word."""
    cell = nn.LSTMCell(decoder.gates_word.in_features + CELLS, CELLS, dtype=torch.float64)
    with torch.no_grad():
        cell.weight_ih.copy_(torch.cat([decoder.gates_word.weight, decoder.gates_seen.weight], dim=1))
        cell.weight_hh.copy_(decoder.gates_state.weight)
        cell.bias_ih.copy_(decoder.gates_word.bias)
        cell.bias_hh.zero_()
    start = decoder.first_state(image.mean(dim=0))
    hidden, memory = start[:CELLS].tanh(), start[CELLS:]
    logits, seen = [], []
    for word in words:
        scores = [decoder.attend((decoder.attend_map(v) + decoder.attend_state(hidden)).relu()) for v in image]
        alpha = torch.cat(scores).softmax(dim=0)
        seen.append(sum(weight * v for weight, v in zip(alpha, image, strict=True)))
        read = torch.cat([decoder.words.weight[word], seen[-1]])
        hidden, memory = (part[0] for part in cell(read[None], (hidden[None], memory[None])))
        logits.append(decoder.vocabulary(hidden))
    return torch.stack(logits), torch.stack(seen)


def test_losses_and_what_was_seen_are_those_of_a_plain_loop(decoder, maps):
    """Equation 10: a mean over the words of a description, then over the descriptions; a missing one does not count."""
    ids, mask = spoken()
    found, each, hits = decoder(maps, ids, mask), [], 0
    for image, branch in itertools.product(range(2), range(3)):
        length = int(mask[image, branch].sum())
        if length < 2:
            assert found.seen[image, branch].abs().sum() == 0
            continue
        words = [BEGIN, *ids[image, branch, 1 : length - 1].tolist()]
        logits, seen = plain(decoder, maps.maps()[image, branch], words)
        targets = ids[image, branch, 1:length]
        each.append(-sum(row.log_softmax(0)[word] for row, word in zip(logits, targets, strict=True)) / len(targets))
        hits += sum(int(word in row.topk(5).indices) for row, word in zip(logits, targets, strict=True))
        assert torch.allclose(found.seen[image, branch], seen.mean(dim=0), **EXACT)
    assert torch.allclose(found.loss, torch.stack(each).mean(), **EXACT)
    assert (found.hits, found.words) == (hits, int(mask[..., 1:].sum()))


def test_the_first_token_and_padding_do_not_matter_and_without_any_word_nothing_is_lost(decoder, maps):
    ids, mask = spoken()
    first = decoder(maps, ids, mask).loss
    other = torch.where(mask.bool(), ids, 6)
    other[..., 0] = 2
    wider = (nn.functional.pad(other, (0, 3), value=4), nn.functional.pad(mask, (0, 3)))
    assert torch.allclose(decoder(maps, *wider).loss, first)
    for length in (1, 4):
        found = decoder(maps, *[torch.zeros(2, 3, length, dtype=torch.long)] * 2)
        found.loss.backward()
        assert found.loss == 0 and found.words == 0 and found.seen.isfinite().all()


def test_a_wide_enough_beam_finds_the_likeliest_of_all_descriptions(decoder, maps):
    """Against all descriptions of at most three words, each with its exact probability."""
    words = [word for word in range(VOCABULARY) if word not in (PAD, BEGIN)]
    every = [list(found) for found in itertools.product(words, repeat=3)]
    best, likeliest = -torch.inf, None
    for said in every:
        said = said[: said.index(END) + 1] if END in said else said
        logits, _ = plain(decoder, maps.maps()[1, 2], [BEGIN, *said[:-1]])
        score = sum(row.log_softmax(0)[word] for row, word in zip(logits, said, strict=True))
        if score > best + 1e-12:
            best, likeliest = score, said
    found = decoder.write(maps, max_length=4, num_beams=150)[1, 2].tolist()
    assert [token for token in found[1:] if token != PAD] == likeliest


def test_one_beam_is_greedy_and_branches_do_not_disturb_each_other(decoder, maps):
    found = decoder.write(maps, max_length=6, num_beams=1)
    for image, branch in itertools.product(range(2), range(3)):
        said = [BEGIN]
        while said[-1] != END and len(said) < 6:
            row = plain(decoder, maps.maps()[image, branch], said)[0][-1]
            row[[PAD, BEGIN]] = -torch.inf
            said.append(int(row.argmax()))
        padded = [*said, *[PAD] * (found.shape[-1] - len(said))]
        assert found[image, branch].tolist() == padded
    alone = Attended(maps.face[1:], maps.channel[1:, :1], maps.spatial[1:, :1])
    several = decoder.write(maps, max_length=6, num_beams=3)[1, 0].tolist()
    single = decoder.write(alone, max_length=6, num_beams=3)[0, 0].tolist()
    assert [token for token in several if token != PAD] == [token for token in single if token != PAD]


def test_a_word_that_ties_with_others_is_not_among_the_likeliest_by_luck():
    assert not top_words(torch.zeros(1, 10), torch.tensor([0])).any()
    logits = torch.arange(10.0)[None].expand(10, -1)
    assert top_words(logits, torch.arange(10)).tolist() == [False] * 5 + [True] * 5
