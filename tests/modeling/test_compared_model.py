import math

import pytest
import torch
from compared_systems import SMALL, SMALL_SWIN, check_strangers, small_batch
from conftest import tiny_config
from transformers import TrainingArguments, default_data_collator

from mf2face.training.trainer import MF2Trainer
from modeling_mf2 import (
    HSEmotionForFaceAnalysis,
    MEGraphAUForFaceAnalysis,
    MF2ForFaceAnalysis,
    VLFAUForFaceAnalysis,
)
from modeling_mf2.baselines.base import face_and_units, occurrence_weights


def test_weights_are_inverse_to_how_often_an_action_unit_occurs():
    """Equation 9, times the number of AUs: 1/2, 1/4 and 1/4 of the known labels are active."""
    labels = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0], [0, 0, 0], [-1, -1, -1]])
    inverse = [2.0, 4.0, 4.0]
    expected = [3 * part / sum(inverse) for part in inverse]
    assert occurrence_weights(labels) == pytest.approx(expected)


def test_unknown_labels_change_no_rate():
    labels = torch.randint(0, 2, (50, 4))
    labels[0] = 1
    more = torch.cat([labels, torch.full((30, 4), -1)])
    assert occurrence_weights(more) == pytest.approx(occurrence_weights(labels))


@pytest.mark.parametrize("silent", [0, -1])
def test_an_action_unit_that_never_occurs_leaves_all_weights_finite_and_the_others_alone(silent):
    labels = torch.tensor([[1, silent], [0, silent], [0, silent]])
    assert occurrence_weights(labels) == [1.0, 1.0]
    assert occurrence_weights(torch.full((3, 2), silent)) == [1.0, 1.0]
    three = torch.cat([torch.randint(0, 2, (20, 2)), torch.full((20, 1), silent)], dim=1)
    found = occurrence_weights(three)
    assert all(math.isfinite(weight) for weight in found) and found[2] == 1
    assert found[:2] == pytest.approx(occurrence_weights(three[:, :2]))


def test_the_emotion_head_reads_the_face_and_every_unit():
    face, units = torch.randn(2, 3), torch.randn(2, 4, 3)
    read = face_and_units(face, units)
    assert torch.equal(read[:, :3], face) and torch.equal(read[:, 3:].view(2, 4, 3), units)


def test_checkpoints_carry_their_code(tmp_path):
    models = {
        kind.config_class.model_type: kind(kind.config_class(**fields, **sizes))
        for kind, fields, sizes in (
            (VLFAUForFaceAnalysis, SMALL_SWIN, {"vocab_size": 40, "bos_token_id": 5, "hidden_size": 32}),
            (MEGraphAUForFaceAnalysis, SMALL, {"neighbors": 2, "hidden_size": 32}),
            (HSEmotionForFaceAnalysis, SMALL, {}),
        )
    }
    check_strangers(models, tmp_path)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_our_trainer_logs_each_part_of_the_loss_by_its_name(micro_batches, tmp_path):
    model = VLFAUForFaceAnalysis(VLFAUForFaceAnalysis.config_class(**SMALL, vocab_size=40, bos_token_id=5))
    batch = small_batch(model.config)
    rows = [dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True)]
    settings = {"per_device_train_batch_size": 4 // micro_batches, "gradient_accumulation_steps": micro_batches}
    training = TrainingArguments(
        str(tmp_path), use_cpu=True, disable_tqdm=True, max_steps=1, logging_steps=1, save_strategy="no", **settings
    )
    trainer = MF2Trainer(model=model, args=training, train_dataset=rows, data_collator=default_data_collator)
    trainer.train()
    (logged,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert {name for name in model.loss_names if name in logged} == set(model.loss_names)
    assert logged["loss"] == pytest.approx(sum(logged[name] for name in model.loss_names), abs=1e-3)


def test_mf2_and_a_compared_system_do_not_take_each_others_checkpoints(tmp_path):
    HSEmotionForFaceAnalysis(HSEmotionForFaceAnalysis.config_class(**SMALL)).save_pretrained(tmp_path / "theirs")
    tiny_config().save_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match="is a checkpoint of 'mf2', expected one of 'hsemotion'"):
        HSEmotionForFaceAnalysis.from_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match="is a checkpoint of 'hsemotion', expected one of 'mf2'"):
        MF2ForFaceAnalysis.from_pretrained(tmp_path / "theirs")
