import pytest
from huggingface_hub.errors import StrictDataclassError

from configuration_mf2.baselines import MEGraphAUConfig


def test_edges_count_little_unless_told_otherwise():
    assert MEGraphAUConfig().loss_weights == {"edge": 0.05}
    assert MEGraphAUConfig(loss_weights={"edge": 0.01, "au": 2.0}).loss_weights == {"edge": 0.01, "au": 2.0}


def test_what_cannot_be_built_is_refused():
    for message, fields in {
        "neighbors: got 13, expected 1 to 12": {"neighbors": 13},
        "hidden_size: got 7, expected an even number": {"hidden_size": 7},
        "num_edge_layers: got 0": {"num_edge_layers": 0},
    }.items():
        with pytest.raises((ValueError, StrictDataclassError), match=message):
            MEGraphAUConfig(**fields)
