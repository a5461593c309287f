"""A row of a dataset becomes the same example on every run, and lacks only what the row lacks."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset

from configuration_mf2 import MF2Config
from configuration_mf2.facs import EMOTIONS, LABEL_SETS, LabelSet
from mf2face.data.examples import MF2Collator, MF2Examples, as_image
from mf2face.data.schema import describe_labels, mfa_features
from mf2face.data.synthetic.faces import MFASynthetic
from processing_mf2 import MF2Augmentation, MF2Processor


@pytest.fixture(scope="module")
def processor():
    return MF2Processor.for_model(MF2Config.from_size("tiny"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return MFASynthetic(12, size=64, seed=3, cache_dir=tmp_path_factory.mktemp("faces"))


def test_an_example_is_what_the_processor_makes_of_its_row(rows, processor):
    example = MF2Examples(rows, processor)[5]
    row = rows[5]
    batch = processor(row["image"], row["emotion_caption"], landmarks=row["landmarks"])
    for name in ("pixel_values", "landmarks", "input_ids"):
        assert torch.equal(example[name], batch[name][0]), name
    assert example["au_labels"].tolist() == row["au_labels"] and example["emotion_labels"] == row["emotion"]
    assert example["index"] == 5
    known = torch.tensor(row["au_labels"]) >= 0
    assert torch.equal(example["au_attention_mask"].any(-1), known)


def test_rows_make_a_batch(rows, processor):
    examples = MF2Examples(rows, processor)
    batch = MF2Collator(processor.tokenizer.pad_token_id)([examples[i] for i in range(4)])
    assert batch["pixel_values"].shape == (4, 3, 112, 112) and batch["au_input_ids"].shape[:2] == (4, 12)
    assert batch["index"].tolist() == [0, 1, 2, 3]


def test_augmentation_depends_on_seed_epoch_and_index_alone(rows, processor):
    def pixels(seed, epoch, index=2):
        examples = MF2Examples(rows, processor, augment=MF2Augmentation(), seed=seed)
        examples.set_epoch(epoch)
        return examples[index]["pixel_values"]

    assert torch.equal(pixels(1, 4), pixels(1, 4))
    assert not torch.equal(pixels(1, 4), pixels(1, 5))
    assert not torch.equal(pixels(1, 4), pixels(2, 4))


def test_what_the_dataset_lacks_is_left_out_and_said_once(rows, processor, caplog):
    examples = MF2Examples(rows.remove_columns(["emotion", "au_caption"]), processor)
    assert "dataset has no emotion, au_caption" in caplog.text
    assert not {"emotion_labels", "au_input_ids"} & set(examples[0])
    assert {"au_labels", "input_ids", "key_au_input_ids"} <= set(examples[0])
    assert not {"input_ids", "au_input_ids"} & set(MF2Examples(rows, processor, texts=False)[0])
    assert "landmarks" not in MF2Examples(rows, processor, landmarks=False)[0]


def test_what_the_user_knows_is_not_said_again(rows, processor, caplog):
    told = set()
    for lacking in (["emotion"], ["emotion"], ["emotion", "au_caption"]):
        MF2Examples(rows.remove_columns(lacking), processor, told=told)
    said = [record.getMessage().partition(":")[0] for record in caplog.records]
    assert said == ["dataset has no emotion", "dataset has no au_caption"]


def test_labels_of_other_names_are_refused_also_when_there_are_as_many(rows, processor):
    def described(action_units, emotions=EMOTIONS):
        return describe_labels(rows.select(range(2)), LabelSet(tuple(action_units), tuple(emotions)))

    own = LABEL_SETS["mfa"].action_units
    assert len(LABEL_SETS["bp4d"].action_units) == len(own) == 12
    with pytest.raises(ValueError, match=r"the dataset's AUs are AU1, .*AU14.*; the model's are AU1, .*label set"):
        MF2Examples(described(LABEL_SETS["bp4d"].action_units), processor)
    with pytest.raises(ValueError, match="au_labels: the dataset's AUs are AU26, AU25"):  # in another order
        MF2Examples(described(own[::-1]), processor)
    with pytest.raises(ValueError, match=r"emotion: the dataset's emotions are Other, .*; the model's are Neutral"):
        MF2Examples(described(own, EMOTIONS[::-1]), processor)
    for harmless in (
        described(own, ()),  # no emotion is known
        described(LABEL_SETS["bp4d"].action_units).remove_columns("au_labels"),
        Dataset.from_list(list(described(own)), features=rows.features),  # nothing is said: their number decides
    ):
        MF2Examples(harmless, processor)
    narrow = mfa_features("disfa")
    with pytest.raises(ValueError, match="au_labels: the dataset has 8 an image, the model 12"):
        few = [{**row, "au_labels": [0] * 8, "au_intensities": [0] * 8} for row in rows.select(range(1))]
        MF2Examples(Dataset.from_list(few, features=narrow), processor)


def test_mistakes(rows, processor):
    with pytest.raises(ValueError, match="dataset: got no rows"):
        MF2Examples(rows.select([]), processor)
    with pytest.raises(ValueError, match="expected an `image`"):
        MF2Examples(rows.remove_columns("image"), processor)
    with pytest.raises(ValueError, match="stored: got 3 rows, expected 12"):
        MF2Examples(rows, processor, stored=[{}] * 3)
    with pytest.raises(ValueError, match="augment, stored: got both"):
        MF2Examples(rows, processor, stored=[{}] * 12, augment=MF2Augmentation())
    disfa = MF2Processor.for_model(MF2Config.from_size("tiny", label_set="disfa"))
    with pytest.raises(ValueError, match="au_labels: the dataset has 12 an image, the model 8: AU1, "):
        MF2Examples(rows, disfa)


def test_an_image_that_lies_elsewhere_is_fetched_but_not_decoded(tmp_path: Path) -> None:
    (tmp_path / "face.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0")  # datasets would start Ghostscript
    assert as_image({"bytes": None, "path": f"file://{tmp_path / 'face.jpg'}"}) == b"%!PS-Adobe-3.0 EPSF-3.0"
    here = {"bytes": None, "path": str(tmp_path / "face.jpg")}
    assert as_image(here) is here
