"""DFN's parts: what a config may be, cells by hand, towers silent at first, ports, and the states they read."""

import enum
import itertools
import json

import pytest
import torch
from conftest import assert_same, tiny_config
from peft import PeftModel, get_peft_model
from peft.utils import PeftType

from modeling_mf2 import DFNConfig, MF2ForFaceAnalysis
from modeling_mf2.dfn.config import extend_peft_types, spread_layers
from modeling_mf2.dfn.layer import DFNCell, DFNLayer, DFNTower
from modeling_mf2.dfn.port import DFNPort, PathwayShape


SHAPES = {
    "visual": PathwayShape(3, 4, tokens=3, shared=1),
    "language": PathwayShape(3, 4),
    "vision": PathwayShape(2, 6, tokens=5),
}
VISUAL = {"bottleneck": 2, "pathways": ["visual"]}


def make_port(branch="emo"):
    return DFNPort(branch, 4, 3, SHAPES)


def hidden():
    visual = (torch.randn(1, 3, 4), torch.randn(2, 3, 4), torch.randn(2, 3, 4))
    return {"visual": visual, "vision": (torch.randn(2, 5, 6), torch.randn(2, 5, 6))}


def test_the_type_is_a_real_member_and_adding_it_twice_changes_nothing():
    before = list(PeftType)
    extend_peft_types()
    assert list(PeftType) == before and PeftType("DFN") is PeftType.DFN and PeftType.DFN.value == "DFN"
    assert isinstance(PeftType.DFN, PeftType) and PeftType.LORA in before
    with pytest.raises(ImportError, match=r"peft: got version .* PeftType .*setup.cfg"):
        extend_peft_types(enum.IntEnum("PeftType", ["LORA"]))


def test_layers_are_spread_and_settings_may_differ_by_pathway():
    assert spread_layers(7, 13, "visual_emo") == [0, 2, 4, 6, 8, 10, 12]
    assert spread_layers(7, 5, "visual_emo") == [0, 1, 2, 3, 4] and spread_layers([3, 1], 5, "visual_emo") == [1, 3]
    with pytest.raises(ValueError, match=r"layers: got 5 for 'visual_emo', expected 0 .* to 4"):
        spread_layers([0, 5], 5, "visual_emo")
    assert DFNConfig().pathways == ["visual_emo", "visual_au", "language_emo", "language_au"]
    assert DFNConfig(pathways=["vision_au", "visual"]).pathways == ["visual_emo", "visual_au", "vision_au"]
    config = DFNConfig(layers={"vision": 2, "visual_au": [0, 1]}, pooling={"visual_emo": "all"})
    layers = [config.of_pathway("layers", name) for name in ("vision_emo", "visual_au", "visual_emo")]
    assert layers == [2, [0, 1], 7]
    assert [config.of_pathway("pooling", name) for name in ("visual_emo", "visual_au")] == ["all", "mean"]


def test_bad_fields_are_named():
    for field, *values in (
        ("pathways", ["visual_mouth"], [], None),
        ("layers", 0, [-1], {"mouth": 3}, True, 2.0),
        *(("bottleneck", 0, "wide"), ("slots", 0, True), ("gate_temperature", "a", 0.0), ("dropout", 1.0)),
        *(("output_layer", "False"), ("pooling", "max"), ("readout", "cat"), ("activation", "sine"), ("heads", "some")),
    ):
        for value in values:
            with pytest.raises((ValueError, TypeError), match=f"{field}: got"):
                DFNConfig(**{field: value})


VALUES = [None, True, 1, -1, 2.5, float("inf"), 10**9, "x", "", [], ["x"], [1], [None], [["visual"]], {}, {"x": 1}]
# peft reads these before it asks the method's own config.
READ_BY_PEFT = {"peft_type", "auto_mapping", "base_model_name_or_path", "revision", "peft_version", "inference_mode"}


def test_each_field_of_an_adapter_s_file_loads_or_is_named(tmp_path):
    def make():
        return MF2ForFaceAnalysis(tiny_config(qformer={"num_hidden_layers": 2}))

    own = DFNConfig(bottleneck=4, layers=3, pathways=["visual", "vision"])
    get_peft_model(make(), own).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    good = json.loads(file.read_text())
    base, wrong = make(), {}
    for place, field in enumerate(sorted(set(good) - READ_BY_PEFT)):
        for value in VALUES[place % 2 :: 2]:
            file.write_text(json.dumps({**good, field: value}))
            try:
                PeftModel.from_pretrained(base, tmp_path).unload()
            except Exception as error:
                if not isinstance(error, ValueError | TypeError) or field not in str(error):
                    wrong[field, repr(value)] = error
                base = make()
    assert wrong == {}


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
    kind = {"bottleneck": 2, "pooling": pooling, "readout": readout, "output_layer": output_layer}
    layer, states = DFNLayer(make_port(), "default", DFNConfig(**kind, pathways=["visual", "vision"])), hidden()
    last = states["visual"][-1]
    found = layer(last, **states)
    assert torch.equal(found, last)
    (found * torch.randn_like(found)).sum().backward()
    assert any(parameter.grad.abs().sum() > 0 for parameter in layer.parameters())
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    states["visual"] = tuple(state.requires_grad_() for state in states["visual"])
    changed = layer(last.detach(), **states)
    assert changed.shape == last.shape and not torch.equal(changed, last)
    changed.sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())
    assert all(state.grad is None for state in states["visual"]), "no graph reaches the states"


def test_a_single_token_is_read_like_its_mean():
    shape = PathwayShape(2, 4, tokens=1)
    port, states = DFNPort("emo", 4, 1, {"visual": shape}), (torch.randn(3, 1, 4), torch.randn(3, 1, 4))
    for pooling, readout in itertools.product(("mean", "all", 1), ("add", "mix")):
        config = DFNConfig(pooling=pooling, readout=readout, pathways=["visual"], init_weights=False)
        tower = DFNTower("visual_emo", shape, port, config)
        assert tower(tower.select(states, None)).shape == (3, 1, 4)


def test_tokens_are_pooled_before_the_tower_by_neighbors_and_without_padding():
    port = make_port("au")
    tower = DFNTower("vision_au", SHAPES["vision"], port, DFNConfig(pathways=["vision"], pooling=2, readout="mix"))
    states = (torch.randn(2, 5, 6), torch.randn(2, 5, 6))
    normal = torch.nn.functional.layer_norm(states[1], (6,))
    expected = torch.stack([normal[:, :3].mean(1), normal[:, 2:].mean(1)], dim=1)
    torch.testing.assert_close(tower.select(states, None)[1], expected)
    for name, pooling, said in (("vision_au", 6, "at most its 5 tokens"), ("language_au", 2, "'mean', 'cls' or 'all'")):
        with pytest.raises(ValueError, match=rf"pooling: got {pooling} for '{name}', expected {said}"):
            DFNTower(name, SHAPES[name.partition("_")[0]], port, DFNConfig(pooling=pooling))
    tower = DFNTower("language_emo", SHAPES["language"], make_port(), DFNConfig(bottleneck=2))
    states = tuple(torch.randn(2, 4, 4) for _ in range(3))
    found = tower.select(states, torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]))
    torch.testing.assert_close(found[1][0], states[1][0, :2].mean(0))
    torch.testing.assert_close(found[2][1], states[2][1].mean(0))
    tower = DFNTower("language_emo", SHAPES["language"], make_port(), DFNConfig(pooling={"language": "cls"}))
    assert_same(dict(enumerate(tower.select(states, None))), {place: state[:, 0] for place, state in enumerate(states)})
    assert tower(tower.select(states, None)).shape == (2, 1, 4)


def test_each_kind_of_row_mixes_its_tokens_in_its_own_way():
    """Rows take turns: of 2 kinds, the rows 1 and 3 are of the second."""
    shape = PathwayShape(1, 4, tokens=5, kinds=2)
    config = DFNConfig(pooling="all", readout="mix", slots=2, init_weights=False)
    tower, states = DFNTower("vision_au", shape, make_port("au"), config), [torch.randn(4, 5, 4)]
    before = tower(states)
    with torch.no_grad():
        tower.mix[0, 1, 1] = torch.randn(5)  # the second kind's second slot, which the second query gets
    assert (tower(states) != before).any(-1).tolist() == [[False] * 3, [False, True, False]] * 2
    with torch.no_grad():
        tower.spread[0] = 0  # the first kind gets nothing
    assert tower(states).abs().sum((1, 2)).gt(0).tolist() == [False, True] * 2


def test_a_port_alone_changes_nothing_and_takes_stored_states_in_the_branchs_dtype():
    port, last = make_port(), torch.randn(2, 3, 4)
    assert port(last, visual=(last, last)) is last
    assert not port.frozen and not port.reads("visual") and not list(port.parameters()) and not port.state_dict()
    stored = torch.randn(2, 1, 3, 4, dtype=torch.float16)
    assert torch.equal(port.from_states({"last_emo": stored}), stored[:, 0].float())
    assert port.to(torch.bfloat16).from_states({"last_emo": stored}).dtype == torch.bfloat16
    layer = DFNLayer(make_port(), "default", DFNConfig(**VISUAL))
    for merge in (layer.merge, layer.unmerge):
        with pytest.raises(NotImplementedError, match="DFN cannot be merged"):
            merge()
    short = {"last_emo": stored, "visual_emo.0": torch.randn(1, 4), "visual_emo": torch.randn(2, 1, 1, 4)}
    for reader, states, said in (
        (port, {"last_au": stored}, "expected 'last_emo'"),
        (layer, {"last_emo": stored}, r"expected 'visual_emo.0' among them"),
        (layer, short, "got 1 hidden states of 'visual_emo', expected 2"),
    ):
        with pytest.raises(ValueError, match=said):
            reader.from_states(states)
