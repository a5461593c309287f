"""Each system reads its own captions: from the dataset, or written from the labels, and never another's."""

import pytest
from datasets import Dataset

from mf2face.captions.styles import PROCESSOR_INPUTS, STYLES, check_captions, style_of, with_rule_captions
from mf2face.data.examples import RowReader
from mf2face.data.synthetic.faces import MFASynthetic
from processing_mf2 import MF2Processor
from processing_mf2.captions import RuleCaptioner


@pytest.fixture(scope="module")
def rows() -> Dataset:
    return MFASynthetic(12, size=64)


@pytest.fixture(scope="module")
def processor() -> MF2Processor:
    from configuration_mf2.baselines import VLFAUConfig

    return MF2Processor.for_model(VLFAUConfig.from_size("tiny"))


def test_every_caption_of_every_style_has_its_input() -> None:
    assert set(PROCESSOR_INPUTS) == {name for names in STYLES.values() for name in names}
    assert style_of(["exp_blip_mix"]) == "exp_blip"
    for wrong in ([], ["exp_blip_mix", "au_caption"], ["caption"]):
        with pytest.raises(ValueError, match="captions: got"):
            style_of(wrong)


def test_what_a_dataset_lacks_is_written_from_its_labels_and_what_it_has_is_kept(rows: Dataset) -> None:
    own = rows.add_column("vl_fau_global", ["my own words"] * len(rows))
    filled = with_rule_captions(own, STYLES["vl_fau"], "mfa")
    assert filled["vl_fau_global"][:] == ["my own words"] * len(rows) and all(filled["vl_fau_local"][:])
    assert filled["emotion_caption"][:] == rows["emotion_caption"][:]
    assert with_rule_captions(filled, STYLES["vl_fau"], "mfa") is filled
    again = with_rule_captions(rows, STYLES["exp_blip"], "mfa", seed=3)
    assert again["exp_blip_exp"][:] == with_rule_captions(rows, ["exp_blip_exp"], "mfa", seed=3)["exp_blip_exp"][:]


def test_a_missing_or_empty_caption_set_is_named(rows: Dataset) -> None:
    with pytest.raises(ValueError, match=r"no column exp_blip_exp.*write_captions.py --style exp_blip"):
        check_captions(rows, ["exp_blip_exp"], "Exp-BLIP")
    with pytest.raises(ValueError, match="every row's vl_fau_local is empty"):
        check_captions(rows.add_column("vl_fau_local", [""] * len(rows)), ["vl_fau_local"], "VL-FAU")
    check_captions(rows, ["au_caption"], "MF²")


def test_descriptions_of_aus_at_rest_are_the_captions_own_and_unknown_aus_have_none(processor: MF2Processor) -> None:
    """MF²'s emotion caption does not slip in as VL-FAU's description of the face."""
    states = [1, 0, -1, *[0] * 9]
    row = {"au_labels": states, "emotion": 4, "emotion_caption": "A caption of another system.", "image": None}
    table = Dataset.from_list([{name: value for name, value in row.items() if name != "image"}])
    row |= with_rule_captions(table, STYLES["vl_fau"], "mfa")[0]
    reader = RowReader(row, processor, texts=STYLES["vl_fau"])
    (read,) = reader.many([row], [0], 0, [{}])
    words = [processor.tokenizer.decode(ids, skip_special_tokens=True) for ids in read["au_input_ids"]]
    written = RuleCaptioner("mfa").vl_fau_local(states)
    assert words[2] == "" and not read["au_attention_mask"][2].any()
    assert all(words[:2]) and all(words[3:])
    assert "not" in written[1] or written[1]  # it describes the AU at rest
    said = processor.tokenizer.decode(read["input_ids"], skip_special_tokens=True)
    assert said.split()[:3] == row["vl_fau_global"].lower().split()[:3] and "another system" not in said
    assert "key_au_input_ids" not in read
