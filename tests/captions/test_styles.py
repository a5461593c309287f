"""Captions by rule, their columns and inputs, and joining them to a data set."""

import json

import pytest
from datasets import Dataset

from configuration_mf2.baselines import VLFAUConfig
from mf2face.captions.styles import (
    PROCESSOR_INPUTS,
    STYLES,
    CaptionRow,
    CaptionRows,
    Captions,
    CaptionStyle,
    check_captions,
    join_captions,
    row_id,
    save_captions,
    style_of,
    with_rule_captions,
    write_by_rule,
)
from mf2face.data.examples import RowReader
from mf2face.data.schema import described_labels
from mf2face.data.synthetic.faces import MFASynthetic
from processing_mf2 import MF2Processor


ROWS = [CaptionRow(f"c/v/{n}", [n % 2, 1, 0, -1, 0, 0, 1, 0, 0, 0, 0, 0], n % 8) for n in range(40)]


@pytest.mark.parametrize("style", STYLES)
def test_the_rule_writes_every_caption_of_a_style_and_the_same_again_in_any_order(style):
    written = {found.id: found for found in write_by_rule(ROWS, style)}
    assert all(list(found.texts) == list(STYLES[style]) and all(found.texts.values()) for found in written.values())
    assert {found.writer for found in written.values()} == {"rule"}
    assert {found.id: found for found in write_by_rule(reversed(ROWS), style)} == written
    other = {found.id: found for found in write_by_rule(ROWS, style, seed=1)}
    assert sum(other[name] != written[name] for name in written) > 10, "the seed changes nothing"
    assert len({tuple(found.texts.values()) for found in written.values()}) > 15, "always the same words"


def test_nothing_is_written_or_asked_about_unknown_labels():
    style = CaptionStyle("mfa")
    unknown = CaptionRow("a", [-1] * 12, -1)
    assert style.by_rule(unknown).writer == "" and not any(style.by_rule(unknown).texts.values())
    assert style.asked_of(unknown) == ()
    assert style.asked_of(CaptionRow("a", None, "Fear")) == ("emotion_caption",)
    assert style.asked_of(CaptionRow("a", [1] + [-1] * 11, None)) == ("au_caption",)
    assert CaptionStyle("exp_blip").asked_of(ROWS[0]) == ("exp_blip_au", "exp_blip_emot", "exp_blip_exp")


def test_mix_and_cat_are_made_of_the_two_sentences_that_were_paid():
    style = CaptionStyle("exp_blip")
    both = {"exp_blip_au": "A.", "exp_blip_emot": "B.", "exp_blip_exp": "A so B."}
    texts = [style.compose(row, both) for row in ROWS]
    assert {text["exp_blip_cat"] for text in texts} == {"A. B."}
    assert {text["exp_blip_mix"] for text in texts} == {"A.", "B."}
    half = style.compose(ROWS[0], {"exp_blip_emot": "B."})
    assert list(half.values()) == ["", "B.", "B.", "B.", "B."]


def test_a_key_belongs_to_row_labels_style_model_and_prompt():
    style, row = CaptionStyle("mfa"), ROWS[0]
    assert style.key(row, "gpt-4o", "p") == CaptionStyle("mfa", seed=9).key(row, "gpt-4o", "p")
    assert style.key(CaptionRow(row.id, row.au_labels, "Neutral"), "m") == style.key(row, "m"), "a name or its index"
    others = [("other", row.au_labels, row.emotion), (row.id, [1] * 12, row.emotion), (row.id, row.au_labels, 5)]
    keys = {style.key(CaptionRow(*other), "gpt-4o", "p") for other in ((row.id, row.au_labels, row.emotion), *others)}
    keys |= {style.key(row, "gpt-4o", "q"), style.key(row, "other", "p")}
    keys.add(CaptionStyle("vl_fau").key(row, "gpt-4o", "p"))
    keys |= {CaptionStyle("mfa", "bp4d").key(CaptionRow(row.id, row.au_labels, None), "gpt-4o", "p")}
    assert len(keys) == 8


@pytest.fixture(scope="module")
def rows():
    return MFASynthetic(12, "drawn", size=64)


def test_every_caption_of_every_style_has_its_input():
    assert set(PROCESSOR_INPUTS) == {name for names in STYLES.values() for name in names}
    assert style_of(["exp_blip_mix"]) == "exp_blip"
    for wrong in ([], ["exp_blip_mix", "au_caption"], ["caption"]):
        with pytest.raises(ValueError, match="captions: got"):
            style_of(wrong)


def test_what_a_dataset_lacks_is_written_from_its_labels_and_what_it_has_is_kept(rows):
    own = rows.add_column("vl_fau_global", ["my own words"] * len(rows))
    filled = with_rule_captions(own, STYLES["vl_fau"], "mfa")
    assert filled["vl_fau_global"][:] == ["my own words"] * len(rows) and all(filled["vl_fau_local"][:])
    assert filled["emotion_caption"][:] == rows["emotion_caption"][:]
    assert with_rule_captions(filled, STYLES["vl_fau"], "mfa") is filled
    again = with_rule_captions(rows, STYLES["exp_blip"], "mfa", seed=3)
    assert again["exp_blip_exp"][:] == with_rule_captions(rows, ["exp_blip_exp"], "mfa", seed=3)["exp_blip_exp"][:]


def test_a_missing_or_empty_caption_set_is_named(rows):
    with pytest.raises(ValueError, match=r"no column exp_blip_exp.*write_captions.py --style exp_blip"):
        check_captions(rows, ["exp_blip_exp"], "Exp-BLIP")
    with pytest.raises(ValueError, match="every row's vl_fau_local is empty"):
        check_captions(rows.add_column("vl_fau_local", [""] * len(rows)), ["vl_fau_local"], "VL-FAU")
    check_captions(rows, ["au_caption"], "MF²")


def test_descriptions_of_aus_at_rest_are_the_captions_own_and_unknown_aus_have_none():
    """MF²'s emotion caption does not slip in as VL-FAU's description of the face."""
    processor = MF2Processor.for_model(VLFAUConfig.from_size("tiny"))
    row = {"au_labels": [1, 0, -1, *[0] * 9], "emotion": 4, "emotion_caption": "A caption of another system."}
    row |= with_rule_captions(Dataset.from_list([row]), STYLES["vl_fau"], "mfa")[0] | {"image": None}
    (read,) = RowReader(row, processor, texts=STYLES["vl_fau"]).many([row], [0], 0, [{}])
    words = [processor.tokenizer.decode(ids, skip_special_tokens=True) for ids in read["au_input_ids"]]
    assert words[2] == "" and not read["au_attention_mask"][2].any() and all(words[:2]) and all(words[3:])
    text = processor.tokenizer.decode(read["input_ids"], skip_special_tokens=True)
    assert text.split()[:3] == row["vl_fau_global"].lower().split()[:3] and "another system" not in text
    assert "key_au_input_ids" not in read


def test_captions_find_their_rows_by_id_and_pictures_stay_as_they_are(rows):
    captions = list(write_by_rule(CaptionRows(rows), seed=3))
    joined = join_captions(rows, reversed(captions))
    assert joined.column_names == rows.column_names and set(joined["caption_writer"]) == {"rule"}
    assert joined["au_caption"][:] == [one.texts["au_caption"] for one in captions] != rows["au_caption"][:]
    assert joined[3]["image"].tobytes() == rows[3]["image"].tobytes()
    assert described_labels(joined) == described_labels(rows) is not None
    with pytest.raises(ValueError, match=r"1 of 12 rows have none, among them MFA-synthetic/.*keep_missing=True"):
        join_captions(rows, [None, *captions[1:]])
    kept = join_captions(rows, [None, *captions[1:]], keep_missing=True)["key_au_caption"][:]
    assert kept == [rows["key_au_caption"][0], *(one.texts["key_au_caption"] for one in captions[1:])]


def test_other_styles_have_columns_of_their_own_or_fill_given_ones(rows):
    captions = list(write_by_rule(CaptionRows(rows), "exp_blip"))
    wide = join_captions(rows, captions)
    assert wide["exp_blip_cat"][2] == captions[2].texts["exp_blip_cat"]
    assert wide["au_caption"][:] == rows["au_caption"][:]
    filled = join_captions(rows, captions, columns={"emotion_caption": "exp_blip_exp"})
    assert filled["emotion_caption"][1] == captions[1].texts["exp_blip_exp"]


def test_images_are_read_only_if_asked_and_not_decoded(rows):
    assert all(row.image is None for row in CaptionRows(rows))
    assert all(row.image["bytes"] for row in CaptionRows(rows, images=True))
    named = list(CaptionRows(rows, [f"mine-{n}" for n in range(12)]))
    assert named[2].id == "mine-2" and len(CaptionRows(rows)) == 12


def test_a_file_is_whole_or_not_there(tmp_path):
    def breaks():
        yield captions[0]
        raise OSError("no space")

    path, captions = tmp_path / "c.jsonl", list(write_by_rule(ROWS))
    assert save_captions(path, captions) == len(ROWS)
    with pytest.raises(OSError):
        save_captions(path, breaks())
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [{"id": one.id, **one.texts, "caption_writer": one.writer} for one in captions]
    assert list(tmp_path.iterdir()) == [path]


def test_mistakes(rows):
    with pytest.raises(ValueError, match="ids: got 2, expected 12"):
        CaptionRows(rows, ["a", "b"])
    with pytest.raises(ValueError, match="the data set has no column corpus, video"):
        row_id({"frame": 1})
    with pytest.raises(ValueError, match=r"columns: got \['poem'\]"):
        join_captions(rows, [Captions(row.id, {"a": "b"}, "m") for row in CaptionRows(rows)], columns={"x": "poem"})
    with pytest.raises(ValueError, match="style: got 'poem'"):
        CaptionStyle("poem")
