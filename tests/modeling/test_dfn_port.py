"""A port alone changes nothing, needs no peft, and stored states come back out of it as they went in."""

import pytest
import torch

from modeling_mf2.dfn.port import DFNPort, PathwayShape, repeated


@pytest.fixture
def port():
    return DFNPort("emo", 4, 3, {"visual": PathwayShape(3, 4, 3, shared=1), "language": PathwayShape(3, 4)})


def test_hands_on_the_last_state_and_has_no_parameters(port):
    last = torch.randn(2, 3, 4)
    assert port(last, visual=(last, last)) is last
    assert not port.frozen and not port.reads("visual") and not list(port.parameters()) and not port.state_dict()
    assert set(port.pathways) == {"visual_emo", "language_emo"}


def test_stored_states_take_the_branchs_dtype(port):
    stored = torch.randn(2, 1, 3, 4, dtype=torch.float16)
    assert torch.equal(port.from_states({"last_emo": stored}), stored[:, 0].float())
    assert port.to(torch.bfloat16).from_states({"last_emo": stored}).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="expected 'last_emo'"):
        port.from_states({"last_au": stored})


def test_rows_that_are_the_same_for_all_samples_repeat_in_turn():
    assert repeated(torch.tensor([[1.0], [2.0]]), 4)[:, 0].tolist() == [1, 2, 1, 2]
