"""A cell by hand, a tower that is silent at first, and no graph behind the states that towers read."""

import pytest
import torch

from modeling_mf2 import DFNConfig
from modeling_mf2.dfn.layer import DFNCell, DFNLayer, DFNTower
from modeling_mf2.dfn.port import DFNPort, PathwayShape


SHAPES = {
    "visual": PathwayShape(3, 4, tokens=3, shared=1),
    "language": PathwayShape(3, 4),
    "vision": PathwayShape(2, 6, tokens=5),
}


def make_port(branch="emo"):
    return DFNPort(branch, 4, 3, SHAPES)


def hidden(rows=2, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    return {
        "visual": (draw(1, 3, 4), draw(rows, 3, 4), draw(rows, 3, 4)),
        "vision": (draw(rows, 5, 6), draw(rows, 5, 6)),
    }


def test_a_cell_by_hand():
    cell = DFNCell(1, DFNConfig(bottleneck=1))
    with torch.no_grad():
        for parameter, value in zip(cell.parameters(), (0.1, 2.0, 1.0, 3.0, 0.5), strict=True):
            parameter.fill_(value)  # gate, down.weight, down.bias, up.weight, up.bias
    share = 1 / (1 + torch.exp(torch.tensor(-1.0)))  # 0.1 / temperature 0.1
    mixed = share * 2 + (1 - share) * 4
    own = 3 * (2 * mixed + 1) + 0.5
    state, written = cell(torch.tensor([[2.0]]), torch.tensor([[4.0]]), torch.tensor([[10.0]]))
    torch.testing.assert_close(state.squeeze(), mixed + own)
    torch.testing.assert_close(written.squeeze(), (1 - share) * 10 + own)


@pytest.mark.parametrize("pooling", ["mean", "all", 2])
@pytest.mark.parametrize("readout", ["add", "mix"])
@pytest.mark.parametrize("output_layer", [False, True])
def test_every_kind_of_tower_is_silent_at_first_and_learns(pooling, readout, output_layer):
    config = DFNConfig(
        bottleneck=2, pooling=pooling, readout=readout, output_layer=output_layer, pathways=["visual", "vision"]
    )
    layer, states = DFNLayer(make_port(), "default", config), hidden()
    last = states["visual"][-1]
    found = layer(last, **states)
    assert torch.equal(found, last)
    (found * torch.randn_like(found)).sum().backward()
    assert any(parameter.grad.abs().sum() > 0 for parameter in layer.parameters())
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    changed = layer(last, **states)
    assert changed.shape == last.shape and not torch.equal(changed, last)
    changed.sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


@pytest.mark.parametrize("pooling", ["mean", "all", 1])
@pytest.mark.parametrize("readout", ["add", "mix"])
def test_a_single_token_is_read_like_its_mean(pooling, readout):
    shape = PathwayShape(2, 4, tokens=1)
    port = DFNPort("emo", 4, 1, {"visual": shape})
    config = DFNConfig(pooling=pooling, readout=readout, pathways=["visual"], init_weights=False)
    tower, states = DFNTower("visual_emo", shape, port, config), (torch.randn(3, 1, 4), torch.randn(3, 1, 4))
    assert tower(tower.select(states, None)).shape == (3, 1, 4)


def test_a_number_pools_tokens_that_follow_one_another():
    port = DFNPort("au", 4, 3, SHAPES)
    tower = DFNTower("vision_au", SHAPES["vision"], port, DFNConfig(pathways=["vision"], pooling=2, readout="mix"))
    states = (torch.randn(2, 5, 6), torch.randn(2, 5, 6))
    found = tower.select(states, None)
    normal = torch.nn.functional.layer_norm(states[1], (6,))
    torch.testing.assert_close(found[1], torch.stack([normal[:, :3].mean(1), normal[:, 2:].mean(1)], dim=1))
    for name, pooling, expected in (("vision_au", 6, "at most its 5 tokens"), ("language_au", 2, "'mean' or 'all'")):
        with pytest.raises(ValueError, match=rf"pooling: got {pooling} for '{name}', expected {expected}"):
            DFNTower(name, SHAPES[name.partition("_")[0]], port, DFNConfig(pooling=pooling))


def test_each_kind_of_row_mixes_its_tokens_in_its_own_way():
    """Rows take turns: of 2 kinds, the rows 1 and 3 are of the second."""
    shape = PathwayShape(1, 4, tokens=5, kinds=2)
    tower = DFNTower(
        "vision_au", shape, make_port("au"), DFNConfig(pooling="all", readout="mix", slots=2, init_weights=False)
    )
    states = [torch.randn(4, 5, 4)]
    before = tower(states)
    with torch.no_grad():
        tower.mix[0, 1, 1] = torch.randn(5)  # the second kind's second slot, which the second query gets
    changed = (tower(states) != before).any(-1)
    assert changed.tolist() == [[False] * 3, [False, True, False]] * 2
    with torch.no_grad():
        tower.spread[0] = 0  # the first kind gets nothing
    assert tower(states).abs().sum((1, 2)).gt(0).tolist() == [False, True] * 2


def test_pooling_comes_before_the_tower_and_leaves_padding_out():
    tower = DFNTower("language_emo", SHAPES["language"], make_port(), DFNConfig(bottleneck=2))
    states = tuple(torch.randn(2, 4, 4) for _ in range(3))
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    found = tower.select(states, mask)
    torch.testing.assert_close(found[1][0], states[1][0, :2].mean(0))
    torch.testing.assert_close(found[2][1], states[2][1].mean(0))


def test_no_graph_reaches_the_states_even_if_they_ask_for_gradients():
    layer, states = DFNLayer(make_port(), "default", DFNConfig(bottleneck=2, init_weights=False)), hidden()
    states["visual"] = tuple(state.requires_grad_() for state in states["visual"])
    layer(states["visual"][-1], **states).sum().backward()
    assert all(state.grad is None for state in states["visual"])


def test_towers_of_the_two_branches_share_nothing():
    config = DFNConfig(bottleneck=2, init_weights=False)
    layers = [DFNLayer(make_port(branch), "default", config) for branch in ("emo", "au")]
    assert [list(layer.active_towers) for layer in layers] == [
        ["visual_emo", "language_emo"],
        ["visual_au", "language_au"],
    ]
    assert len({id(parameter) for layer in layers for parameter in layer.parameters()}) == 2 * 2 * 3 * 5


def test_half_precision_states_and_a_full_precision_adapter():
    layer = DFNLayer(make_port().to(torch.bfloat16), "default", DFNConfig(bottleneck=2, pathways=["visual"]))
    assert next(layer.parameters()).dtype == torch.bfloat16
    layer.dfn_towers.float()
    states = {"visual": tuple(state.bfloat16() for state in hidden()["visual"])}
    found = layer(states["visual"][-1], **states)
    assert found.dtype == torch.bfloat16 and torch.equal(found, states["visual"][-1])


def test_merging_says_why_not():
    layer = DFNLayer(make_port(), "default", DFNConfig(bottleneck=2))
    for merge in (layer.merge, layer.unmerge):
        with pytest.raises(NotImplementedError, match="DFN cannot be merged: its towers read hidden states"):
            merge()


def test_states_of_another_adapter_are_refused():
    layer = DFNLayer(make_port(), "default", DFNConfig(bottleneck=2, pathways=["visual"]))
    last = {"last_emo": torch.randn(2, 1, 3, 4)}
    with pytest.raises(ValueError, match=r"expected 'visual_emo.0' among them"):
        layer.from_states(last)
    with pytest.raises(ValueError, match="got 1 hidden states of 'visual_emo', expected 2"):
        layer.from_states({**last, "visual_emo.0": torch.randn(1, 4), "visual_emo": torch.randn(2, 1, 1, 4)})
