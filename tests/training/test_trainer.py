"""Beyond transformers' Trainer: checkpoints that outlive a full disk, micro-batches that know each other."""

from pathlib import Path

import pytest
import torch
from transformers import TrainingArguments

from configuration_mf2.configuration_mf2 import LOSSES
from mf2face.data.streaming import MF2StreamedExamples
from mf2face.training.checkpoints import damage, last_good_checkpoint
from mf2face.training.trainer import MF2Trainer, leaves_parameters_unused
from modeling_mf2 import MF2ForFaceAnalysis, MF2ForPreTraining
from modeling_mf2 import losses as losses_mf2
from modeling_mf2.losses import hard_negatives


def collate(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


@pytest.fixture
def make_trainer(make_config, make_batch, tmp_path):
    def make(rows: int = 8, **arguments) -> MF2Trainer:
        torch.manual_seed(0)
        model = MF2ForPreTraining(make_config(initializer_range=0.02))
        batch = make_batch(model.config, rows)
        examples = [dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True)]
        defaults = {"output_dir": str(tmp_path), "use_cpu": True, "disable_tqdm": True, "max_steps": 4}
        defaults |= {"per_device_train_batch_size": 4, "logging_steps": 1, "save_strategy": "no", "learning_rate": 1e-3}
        training = TrainingArguments(**{**defaults, **arguments})
        return MF2Trainer(model=model, args=training, train_dataset=examples, data_collator=collate)

    return make


def test_a_full_disk_costs_the_new_checkpoint_alone(make_trainer, tmp_path, monkeypatch):
    """And with a limit of one, the old one goes only when the new one is whole."""
    trainer = make_trainer(save_strategy="steps", save_steps=1, save_total_limit=1)
    write, seen = torch.save, []

    def full(value, file, *args, **kwargs):
        if "checkpoint-3" in str(file) and str(file).endswith("optimizer.pt"):
            seen.extend(path.name for path in tmp_path.glob("checkpoint-*"))
            Path(file).write_bytes(b"half")
            raise OSError(28, "No space left on device", str(file))
        return write(value, file, *args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"is full .*checkpoint-3 was not saved.* then continues from checkpoint-2"):
        trainer.train()
    assert sorted(seen) == ["checkpoint-2", "checkpoint-3"]
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    assert damage(tmp_path / "checkpoint-2") is None
    monkeypatch.undo()
    again = make_trainer(save_strategy="steps", save_steps=1, save_total_limit=1)
    again.train(resume_from_checkpoint=last_good_checkpoint(tmp_path))
    assert again.state.global_step == 4 and damage(tmp_path / "checkpoint-4") is None


def losses(trainer: MF2Trainer) -> list[dict[str, float]]:
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def test_accumulated_steps_log_and_learn_what_large_batches_do(make_trainer, monkeypatch):
    """All rows are one batch, all pairs are taken, and the negatives are the hardest, not drawn ones."""

    def hardest(similarity, negatives, temperature, sample):
        return hard_negatives(similarity, negatives, temperature, sample=False)

    monkeypatch.setattr(losses_mf2, "hard_negatives", hardest)
    found = []
    for size, steps in ((8, 1), (3, 3)):
        trainer = make_trainer(
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            train_sampling_strategy="sequential",
            max_steps=3,
        )
        found.append((losses(trainer), trainer.model.state_dict()))
    for one, other in zip(found[0][0], found[1][0], strict=True):
        for name in ("loss", "grad_norm", *LOSSES):
            assert one[name] == pytest.approx(other[name], rel=1e-3), name
    for name, tensor in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], tensor, rtol=1e-3, atol=3e-4, msg=name)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_batch_of_one_and_a_last_batch_of_one(make_trainer, steps):
    for rows, size in ((1, 1), (5, 2)):
        trainer = make_trainer(rows, per_device_train_batch_size=size, gradient_accumulation_steps=steps)
        for entry in losses(trainer):
            assert {"loss", "grad_norm", *LOSSES} <= set(entry)
            assert all(torch.tensor(entry[name]).isfinite() for name in ("loss", "grad_norm", *LOSSES))


@pytest.mark.parametrize(
    "arguments", [{"bf16": True}, {"activation_checkpointing": True}, {"bf16": True, "gradient_accumulation_steps": 2}]
)
def test_ways_to_save_memory(make_trainer, arguments):
    plain, saving = losses(make_trainer(max_steps=2)), losses(make_trainer(max_steps=2, **arguments))
    assert saving[0]["loss"] == pytest.approx(plain[0]["loss"], rel=0.1)


class Reshuffled:
    """Stands in for the rows of a stream: ready for the model, in another order each pass."""

    def __init__(self, examples: list[dict]) -> None:
        self.examples, self.order = examples, []

    def set_epoch(self, epoch: int) -> None:
        self.order = torch.randperm(len(self.examples), generator=torch.Generator().manual_seed(epoch)).tolist()

    def __iter__(self):
        return iter({"image": None, "number": number} for number in self.order)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_streamed_run_that_continues_draws_the_same_numbers(make_trainer, tmp_path, steps):
    """From a checkpoint within the second pass, in which hard negatives are drawn at random."""

    def make() -> MF2Trainer:
        trainer = make_trainer(7, max_steps=6, save_strategy="steps", save_steps=4, gradient_accumulation_steps=steps)
        stream = MF2StreamedExamples.__new__(MF2StreamedExamples)
        stream.rows, stream.rank, stream.world_size = Reshuffled(trainer.train_dataset), 0, 1
        stream.read = lambda row, index, epoch: trainer.train_dataset.rows.examples[row["number"]]
        trainer.train_dataset = stream
        return trainer

    whole, continued = make(), make()
    whole.train()
    continued.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert continued.state.global_step == 6
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, continued.model.state_dict()[name]), name


class Columns:
    def __init__(self, *captions: str, labels: tuple[str, ...] = ("au_labels", "emotion")) -> None:
        self.captions, self.labels = captions, labels


def test_ddp_looks_for_unused_parameters_only_where_there_are_any(make_config, make_batch):
    """What the rule says is what a batch shows: a parameter that wants a gradient and gets none."""
    captions = ("emotion_caption", "au_caption")
    drop = {"emotion_caption": "input_ids", "au_caption": "au_input_ids", "emotion": "emotion_labels"}
    for kind in (MF2ForPreTraining, MF2ForFaceAnalysis):
        for missing in (None, "emotion_caption", "au_caption", "emotion"):
            model = kind(make_config())
            batch = make_batch(model.config)
            if missing:
                batch.pop(drop[missing])
            model(**batch).loss.backward()
            unused = any(p.requires_grad and p.grad is None for p in model.parameters())
            labels = tuple(name for name in ("au_labels", "emotion") if name != missing)
            columns = Columns(*(name for name in captions if name != missing), labels=labels)
            assert leaves_parameters_unused(model, columns) == unused, (kind, missing)
