import pytest

from mf2face.captions.styles import (
    Captions,
    caption_rows,
    join_captions,
    load_captions,
    row_id,
    save_captions,
    write_by_rule,
)
from mf2face.data.schema import described_labels, validate_examples
from mf2face.data.synthetic.faces import MFASynthetic


@pytest.fixture(scope="module")
def faces():
    return MFASynthetic(6, size=64)


def test_captions_find_their_rows_by_id_and_pictures_stay_as_they_are(faces):
    captions = list(write_by_rule(caption_rows(faces), seed=3))
    joined = join_captions(faces, reversed(captions))
    assert validate_examples(joined) == 6 and joined.column_names == faces.column_names
    assert joined["au_caption"] != faces["au_caption"] and set(joined["caption_writer"]) == {"rule"}
    assert joined["au_caption"] == [found.texts["au_caption"] for found in captions]
    assert joined[3]["image"].tobytes() == faces[3]["image"].tobytes()
    assert described_labels(joined) == described_labels(faces) is not None


def test_other_styles_have_columns_of_their_own_or_fill_given_ones(faces):
    captions = list(write_by_rule(caption_rows(faces), "exp_blip"))
    wide = join_captions(faces, captions)
    assert wide["exp_blip_cat"][2] == captions[2].texts["exp_blip_cat"] and wide["au_caption"] == faces["au_caption"]
    filled = join_captions(faces, captions, columns={"emotion_caption": "exp_blip_exp"})
    assert validate_examples(filled) == 6 and filled["emotion_caption"][1] == captions[1].texts["exp_blip_exp"]


def test_rows_without_captions_are_told_or_kept(faces):
    captions = [None, *list(write_by_rule(caption_rows(faces), seed=3))[1:]]
    with pytest.raises(ValueError, match=r"1 of 6 rows have none, among them MFA-synthetic/.*keep_missing=True"):
        join_captions(faces, captions)
    kept = join_captions(faces, captions, keep_missing=True)
    told = list(kept["key_au_caption"])
    assert told[0] == faces["key_au_caption"][0] and told[1:] == [row.texts["key_au_caption"] for row in captions[1:]]
    assert told != list(faces["key_au_caption"])


def test_images_are_read_only_if_asked_and_not_decoded(faces):
    assert all(row.image is None for row in caption_rows(faces))
    assert all(row.image["bytes"] for row in caption_rows(faces, images=True))
    named = list(caption_rows(faces, [f"mine-{n}" for n in range(6)]))
    assert named[2].id == "mine-2" and len(caption_rows(faces)) == 6


def test_a_file_is_whole_or_not_there(tmp_path, faces):
    path, captions = tmp_path / "c.jsonl", list(write_by_rule(caption_rows(faces)))
    assert save_captions(path, captions) == 6 and list(load_captions(path)) == captions

    def breaks():
        yield captions[0]
        raise OSError("no space")

    with pytest.raises(OSError):
        save_captions(path, breaks())
    assert list(load_captions(path)) == captions
    path.write_text('{"id": "a"}\n')
    with pytest.raises(ValueError, match="line 1 is no caption"):
        list(load_captions(path))


def test_errors(faces):
    with pytest.raises(ValueError, match="ids: got 2, expected 6"):
        caption_rows(faces, ["a", "b"])
    with pytest.raises(ValueError, match="the data set has no column corpus, video"):
        row_id({"frame": 1})
    with pytest.raises(ValueError, match=r"columns: got \['poem'\]"):
        join_captions(faces, [Captions(row.id, {"a": "b"}, "m") for row in caption_rows(faces)], columns={"x": "poem"})
