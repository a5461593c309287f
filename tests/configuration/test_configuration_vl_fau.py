import pytest
from huggingface_hub.errors import StrictDataclassError

from configuration_mf2.baselines import ABLATIONS, VLFAUConfig
from processing_mf2.processing_mf2 import MF2Processor


def test_the_papers_sizes_are_the_defaults():
    config = VLFAUConfig.from_size("base")
    assert (config.backbone, config.image_size, config.hidden_size) == ("swin_base_patch4_window7_224", 224, 512)
    assert 4 * config.scale_channels == 1024
    assert [config.use_marl, config.use_llga, config.use_glga] == [True] * 3


def test_the_rows_of_table_4_are_configurations_and_no_other_combination_without_branches_is():
    rows = [VLFAUConfig.from_size("tiny", **switches) for switches in ABLATIONS.values()]
    assert [(row.use_marl, row.use_llga, row.use_glga) for row in rows] == [
        (False, False, False),
        (True, False, False),
        (True, True, False),
        (True, False, True),
        (True, True, True),
    ]
    with pytest.raises((ValueError, StrictDataclassError), match="use_llga: got True with use_marl=False"):
        VLFAUConfig(use_marl=False)


def test_what_cannot_be_built_is_refused():
    for message, fields in {
        "num_beams: got 0": {"num_beams": 0},
        "local_max_length: got 2": {"local_max_length": 2},
        "reduction: got 1024": {"reduction": 1024},
        "vocab_size: the tokenizer has": {},
    }.items():
        with pytest.raises((ValueError, StrictDataclassError), match=message):
            config = VLFAUConfig(**fields, vocab_size=100, bos_token_id=5)
            MF2Processor.for_model(config)
