import pytest

from configuration_mf2.facs import LABEL_SETS
from mf2face.captions.styles import STYLES, CaptionRow, CaptionStyle, write_by_rule, writer_mark
from processing_mf2.captions import parse_au_caption


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
    texts = [
        style.compose(row, {"exp_blip_au": "A.", "exp_blip_emot": "B.", "exp_blip_exp": "A so B."}) for row in ROWS
    ]
    assert {text["exp_blip_cat"] for text in texts} == {"A. B."}
    assert {text["exp_blip_mix"] for text in texts} == {"A.", "B."}
    half = style.compose(ROWS[0], {"exp_blip_emot": "B."})
    assert list(half.values()) == ["", "B.", "B.", "B.", "B."]


def test_local_descriptions_name_every_known_action_unit():
    found = next(iter(write_by_rule(ROWS, "vl_fau"))).texts["vl_fau_local"]
    names = LABEL_SETS["mfa"].action_units
    assert list(parse_au_caption(found, names)) == [au for au in names if au != "AU6"]


def test_a_key_belongs_to_row_labels_style_model_and_prompt():
    style, row = CaptionStyle("mfa"), ROWS[0]
    assert style.key(row, "gpt-4o", "p") == CaptionStyle("mfa", seed=9).key(row, "gpt-4o", "p")
    others = [CaptionRow("other", row.au_labels, row.emotion), CaptionRow(row.id, [1] * 12, row.emotion)]
    others += [CaptionRow(row.id, row.au_labels, 5)]
    keys = {style.key(other, "gpt-4o", "p") for other in (row, *others)}
    keys |= {
        style.key(row, "gpt-4o", "q"),
        style.key(row, "other", "p"),
        CaptionStyle("vl_fau").key(row, "gpt-4o", "p"),
    }
    keys |= {CaptionStyle("mfa", "bp4d").key(CaptionRow(row.id, row.au_labels, None), "gpt-4o", "p")}
    assert len(keys) == 8
    assert style.key(CaptionRow(row.id, row.au_labels, "Neutral"), "m") == style.key(row, "m"), "a name or its index"


def test_errors():
    with pytest.raises(ValueError, match=r"style: got 'poem', expected one of \['mfa', 'exp_blip', 'vl_fau'\]"):
        CaptionStyle("poem")
    assert writer_mark("gpt-4o", ["au_caption"]) == "gpt-4o (rule: au_caption)"
