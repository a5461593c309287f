"""Beyond transformers' Trainer: layer decay, a full disk, micro-batches that know each other, streams, unused
parameters."""

import copy
import os
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import DETAILS
from exp_blip_models import TOKENS, small_config, small_opt
from safetensors.torch import load_file
from transformers import TrainingArguments

from configuration_mf2.configuration_mf2 import LOSSES
from mf2face.data.streaming import MF2StreamedExamples
from mf2face.training.checkpoints import damage, last_good_checkpoint
from mf2face.training.trainer import MF2Trainer, layerwise_groups, layerwise_optimizer, leaves_parameters_unused
from modeling_mf2 import ExpBlipForPreTraining, MF2ForFaceAnalysis, MF2ForPreTraining
from modeling_mf2 import losses as losses_mf2
from modeling_mf2.baselines.exp_blip import to_blip2
from modeling_mf2.losses import hard_negatives


LOGGED = ("loss", "grad_norm", *LOSSES)


def collate(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


@pytest.fixture
def make_trainer(make_config, make_batch, tmp_path):
    def make(rows: int = 8, **arguments) -> MF2Trainer:
        torch.manual_seed(0)
        model = MF2ForPreTraining(make_config(initializer_range=0.02, **DETAILS))
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


def test_checkpoints_hold_what_is_trained_and_share_one_file_of_what_is_frozen(make_trainer, tmp_path):
    trainer = make_trainer(save_strategy="steps", save_steps=1, save_total_limit=2)
    trainer.train()
    folders = [tmp_path / f"checkpoint-{step}" for step in (3, 4)]
    shared = [next(folder.glob("model-frozen-*.safetensors")) for folder in folders]
    assert shared[0].name == shared[1].name and os.path.samefile(*shared) and shared[0].stat().st_nlink == 2
    trained = {*load_file(folders[1] / "model-trained.safetensors")}
    assert trained == {name for name, p in trainer.model.named_parameters() if p.requires_grad} | {
        name for name, _ in trainer.model.named_buffers() if name in trainer.model.state_dict()
    }
    again = copy.deepcopy(MF2ForPreTraining.from_pretrained(folders[1]).state_dict())  # not mapped
    assert all(torch.equal(tensor, again[name]) for name, tensor in trainer.model.state_dict().items())
    (folders[1] / "model-trained.safetensors").write_bytes(b"cut")
    assert last_good_checkpoint(tmp_path) == str(folders[0])
    resumed = make_trainer(save_strategy="steps", save_steps=1)
    resumed.train(resume_from_checkpoint=str(folders[0]))
    assert all(torch.equal(tensor, again[name]) for name, tensor in resumed.model.state_dict().items())
    trainer.save_model(tmp_path / "final")
    assert set(load_file(tmp_path / "final" / "model.safetensors")) == set(again)


def test_without_hard_links_each_checkpoint_has_its_own_copy(make_trainer, tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    make_trainer(save_strategy="steps", save_steps=2).train()
    files = list(tmp_path.glob("checkpoint-*/model-frozen-*.safetensors"))
    assert len(files) == 2 and not os.path.samefile(*files) and damage(files[1].parent) is None


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
        batches = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
        trainer = make_trainer(**batches, train_sampling_strategy="sequential", max_steps=3)
        found.append((losses(trainer), trainer.model.state_dict()))
    for one, other in zip(found[0][0], found[1][0], strict=True):
        for name in LOGGED:
            assert one[name] == pytest.approx(other[name], rel=1e-3), name
    for name, tensor in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], tensor, rtol=1e-3, atol=3e-4, msg=name)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_batch_of_one_and_a_last_batch_of_one(make_trainer, steps):
    for rows, size in ((1, 1), (5, 2)):
        trainer = make_trainer(rows, per_device_train_batch_size=size, gradient_accumulation_steps=steps)
        for entry in losses(trainer):
            assert set(LOGGED) <= set(entry)
            assert all(torch.tensor(entry[name]).isfinite() for name in LOGGED)


@pytest.mark.parametrize(
    "arguments", [{"bf16": True}, {"activation_checkpointing": True}, {"bf16": True, "gradient_accumulation_steps": 2}]
)
def test_ways_to_save_memory(make_trainer, arguments):
    plain, saving = losses(make_trainer(max_steps=2)), losses(make_trainer(max_steps=2, **arguments))
    assert saving[0]["loss"] == pytest.approx(plain[0]["loss"], rel=0.1)


def test_a_default_warm_up_longer_than_a_third_of_the_run_becomes_a_share(make_trainer):
    rates = {}
    for limits in (False, True):
        trainer = make_trainer(max_steps=10, warmup_steps=4)
        trainer.limits_warmup = limits
        schedule = trainer.create_scheduler(10, torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0))
        rates[limits] = [schedule.lr_lambdas[0](step) for step in (1, 4)]
    assert rates[False] == pytest.approx([0.25, 1.0]) and rates[True][0] == 1.0


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
        examples = trainer.train_dataset
        stream.read = SimpleNamespace(many=lambda rows, indexes, epoch: [examples[row["number"]] for row in rows])
        trainer.train_dataset = stream
        return trainer

    whole, continued = make(), make()
    whole.train()
    continued.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert continued.state.global_step == 6
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, continued.model.state_dict()[name]), name


def test_ddp_looks_for_unused_parameters_only_where_there_are_any(make_config, make_batch):
    """What the rule says is what a batch shows: a parameter that wants a gradient and gets none."""
    inputs = {"emotion_caption": "input_ids", "au_caption": "au_input_ids", "emotion": "emotion_labels"}
    for kind in (MF2ForPreTraining, MF2ForFaceAnalysis):
        for missing in (None, *inputs):
            model = kind(make_config())
            batch = make_batch(model.config)
            batch.pop(inputs.get(missing), None)
            model(**batch).loss.backward()
            unused = any(p.requires_grad and p.grad is None for p in model.parameters())
            columns = {"captions": {"emotion_caption", "au_caption"}, "labels": {"au_labels", "emotion"}}
            columns = SimpleNamespace(**{name: names - {missing} for name, names in columns.items()})
            assert leaves_parameters_unused(model, columns) == unused, (kind, missing)


def rates(model, **settings) -> dict[str, tuple[float, float]]:
    """Parameter -> its rate and its weight decay; each stands in one group."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = layerwise_groups(model, **settings)
    found = [(names[id(p)], (group["lr"], group["weight_decay"])) for group in groups for p in group["params"]]
    assert len(dict(found)) == len(found)
    return dict(found)


def stage_one(tower: str, frozen: bool = False, **vision) -> ExpBlipForPreTraining:
    return ExpBlipForPreTraining(small_config(tower, vision={"frozen": frozen, **vision}))


def in_tower(found: dict[str, tuple[float, float]]) -> dict[str, float]:
    return {name.removeprefix("mf2.vision.backbone."): lr for name, (lr, _) in found.items() if ".vision." in name}


def test_layers_of_a_tower_learn_as_the_formula_has_it():
    """Three blocks: the image enters at layer 0, block i is layer i + 1, the final norm layer 4, at the full rate."""
    kwargs = {"embed_dim": 32, "depth": 3, "num_heads": 2}
    found = rates(stage_one("vit", backbone_kwargs=kwargs), lr=1.0, decay=0.5)
    layers = {"cls_token": 0, "pos_embed": 0, "patch_embed": 0, "norm": 4}
    for name, lr in in_tower(found).items():
        part, _, rest = name.partition(".")
        layer = int(rest.split(".")[0]) + 1 if part == "blocks" else layers[part]
        assert lr == pytest.approx(0.5 ** (4 - layer)), name
    assert len(in_tower(found)) == 4 + 3 * 12 + 2
    assert {lr for name, (lr, _) in found.items() if ".vision." not in name} == {1.0}
    # Seven convolutions and one block: layers 0 to 6, 7, and the final norm.
    inside = in_tower(rates(stage_one("conv"), lr=1.0, decay=0.5))
    for number in range(7):
        for place in (3 * number, 3 * number + 1):  # a convolution and its norm
            assert inside[f"convolutions.{place}.weight"] == pytest.approx(0.5 ** (8 - number))
    assert inside["positions"] == pytest.approx(0.5**2) and inside["blocks.0.qkv.weight"] == 0.5
    assert inside["norm.weight"] == 1.0


@pytest.mark.parametrize("tower", ["conv", "vit", "eva"])
def test_both_stages_of_exp_blip_have_the_same_rates(tower):
    model = stage_one(tower)
    captioner = to_blip2(model, small_opt(), **TOKENS)
    captioner.language_model.requires_grad_(False)
    ours, theirs = rates(model, lr=1e-5), rates(captioner, lr=1e-5)
    assert not [name for name in theirs if name.startswith("language_model.")]
    # Tensors that BLIP-2 keeps in one piece are decayed likewise: only weights are compared.
    counted = [
        Counter(rate for name, rate in found.items() if name.startswith(prefix) and rate[1])
        for found, prefix in ((ours, "mf2.vision."), (theirs, "vision_model."))
    ]
    assert counted[0] == counted[1]


def test_biases_and_norms_are_not_decayed_and_what_is_frozen_is_left_out():
    model = stage_one("vit", frozen=True)
    found = rates(model, lr=1.0, weight_decay=0.05)
    assert not in_tower(found)
    for name, (_, decay) in found.items():
        kept = name.endswith("bias") or "norm" in name or name.endswith("temperature")
        assert decay == (0.0 if kept else 0.05), name
    model.mf2.vision.requires_grad_(True)
    model.mf2.vision.backbone.patch_embed.requires_grad_(False)  # the others keep their layers
    lower = in_tower(rates(model, lr=1.0, decay=0.5))
    assert lower["cls_token"] == 0.25 and lower["norm.weight"] == 1


def test_the_layerwise_optimizer_is_the_arguments_own(tmp_path):
    model = stage_one("vit")
    settings = {"learning_rate": 1e-3, "weight_decay": 0.1, "adam_beta2": 0.98, "adam_epsilon": 1e-6}
    groups = layerwise_optimizer(model, TrainingArguments(str(tmp_path), use_cpu=True, **settings), 1.0).param_groups
    assert {group["lr"] for group in groups} == {1e-3} and {group["weight_decay"] for group in groups} == {0.0, 0.1}
    assert all(group["betas"] == (0.9, 0.98) and group["eps"] == 1e-6 for group in groups)
    assert sum(len(group["params"]) for group in groups) == sum(p.requires_grad for p in model.parameters())


def test_layer_decay_needs_a_sequence_of_blocks():
    bare = torch.nn.ModuleDict({"vision": torch.nn.ModuleDict({"backbone": torch.nn.Linear(2, 2)})})
    with pytest.raises(ValueError, match="layer decay: the tower has no"):
        layerwise_groups(bare, 1.0)
    assert layerwise_groups(bare, 1.0, decay=1.0)
