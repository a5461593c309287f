"""What a DFN may be: names, ranges, and a file that gives back the same."""

import enum
import json

import pytest
from peft import PeftConfig, PeftModel, get_peft_model
from peft.utils import PeftType

from modeling_mf2 import DFNConfig, MF2ForFaceAnalysis
from modeling_mf2.dfn.config import extend_peft_types, spread_layers


def test_the_type_is_a_real_member_and_adding_it_twice_changes_nothing():
    before = list(PeftType)
    extend_peft_types()
    assert list(PeftType) == before and PeftType("DFN") is PeftType.DFN and PeftType.DFN.value == "DFN"
    assert isinstance(PeftType.DFN, PeftType) and PeftType.LORA in before


def test_seven_of_twelve_blocks_are_the_embedding_state_and_every_second():
    assert spread_layers(7, 13, "visual_emo") == [0, 2, 4, 6, 8, 10, 12]
    assert spread_layers(7, 5, "visual_emo") == [0, 1, 2, 3, 4]
    assert spread_layers([3, 1], 5, "visual_emo") == [1, 3]
    with pytest.raises(ValueError, match=r"layers: got 5 for 'visual_emo', expected 0 .* to 4"):
        spread_layers([0, 5], 5, "visual_emo")


def test_a_kind_stands_for_both_branches():
    assert DFNConfig().pathways == ["visual_emo", "visual_au", "language_emo", "language_au"]
    assert DFNConfig(pathways=["vision_au", "visual"]).pathways == ["visual_emo", "visual_au", "vision_au"]


def test_layers_and_pooling_may_differ_by_pathway():
    config = DFNConfig(layers={"vision": 2, "visual_au": [0, 1]}, pooling={"visual_emo": "all"})
    found = [config.of_pathway("layers", name) for name in ("vision_emo", "visual_au", "visual_emo")]
    assert found == [2, [0, 1], 7]
    assert [config.of_pathway("pooling", name) for name in ("visual_emo", "visual_au")] == ["all", "mean"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pathways": ["visual_mouth"]}, "pathways: got 'visual_mouth', expected pathways among"),
        ({"pathways": []}, "pathways: got"),
        ({"layers": 0}, "layers: got 0, expected how many"),
        ({"layers": [-1]}, "layers: got"),
        ({"layers": {"mouth": 3}}, "layers: got 'mouth'"),
        ({"bottleneck": 0}, "bottleneck: got 0"),
        ({"slots": 0}, "slots: got 0"),
        ({"bottleneck": "wide"}, "bottleneck: got 'wide', expected a whole number"),
        ({"slots": True}, "slots: got True, expected a whole number"),
        ({"output_layer": "False"}, "output_layer: got 'False', expected True or False"),
        ({"gate_temperature": "a"}, "gate_temperature: got 'a', expected a number"),
        ({"layers": True}, "layers: got True"),
        ({"layers": 2.0}, "layers: got 2.0"),
        ({"pathways": None}, "pathways: got None, expected a list"),
        ({"gate_temperature": 0.0}, "gate_temperature: got 0.0"),
        ({"dropout": 1.0}, "dropout: got 1.0"),
        ({"pooling": "max"}, "pooling: got 'max', expected one of"),
        ({"readout": "cat"}, "readout: got 'cat'"),
        ({"activation": "sine"}, "activation: got 'sine'"),
        ({"heads": "some"}, "heads: got 'some'"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises((ValueError, TypeError), match=message):
        DFNConfig(**fields)


def test_a_file_gives_back_the_same(tmp_path):
    config = DFNConfig(layers={"visual": [0, 2]}, bottleneck=8, pathways=["visual"], pooling="all", dropout=0.1)
    config.save_pretrained(tmp_path)
    loaded = PeftConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, DFNConfig) and loaded.to_dict() == config.to_dict()


def test_a_peft_whose_types_cannot_be_extended_is_named():
    with pytest.raises(ImportError, match=r"peft: got version .* PeftType .*setup.cfg"):
        extend_peft_types(enum.IntEnum("PeftType", ["LORA"]))


VALUES = [None, True, 1, -1, 2.5, float("inf"), 10**9, "x", "", [], ["x"], [1], [None], [["visual"]], {}, {"x": 1}]
# peft reads these before it asks the method's own config.
READ_BY_PEFT = {"peft_type", "auto_mapping", "base_model_name_or_path", "revision", "peft_version", "inference_mode"}


def test_each_field_of_an_adapter_s_file_loads_or_is_named(make_config, tmp_path):
    def make():
        return MF2ForFaceAnalysis(make_config())

    own = DFNConfig(bottleneck=4, layers=3, pathways=["visual", "vision"])
    get_peft_model(make(), own).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    good = json.loads(file.read_text())
    base, wrong = make(), {}
    for field in sorted(set(good) - READ_BY_PEFT):
        for value in VALUES:
            file.write_text(json.dumps({**good, field: value}))
            try:
                PeftModel.from_pretrained(base, tmp_path).unload()
            except (ValueError, TypeError) as error:
                if field not in str(error):
                    wrong[field, repr(value)] = error
                base = make()
            except Exception as error:
                wrong[field, repr(value)] = error
                base = make()
    assert wrong == {}
