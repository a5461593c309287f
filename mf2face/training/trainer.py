"""MF2Trainer: layer decay, streams, micro-batches of one step, sealed checkpoints, cost."""

import json
import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from datasets import Dataset
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from configuration_mf2.configuration_mf2 import LOSSES, TOWER_LOSSES
from configuration_mf2.facs import UNKNOWN_LABEL
from configuration_mf2.json_files import read_json
from mf2face.data.examples import LABELS, MF2Collator, MF2Examples
from mf2face.data.streaming import MF2StreamedExamples
from mf2face.training.checkpoints import SealedCheckpoints, add_frozen_weights, checkpoint_folder, disk_may_be_full
from mf2face.training.grad_cache import MicroBatch, micro_batches
from mf2face.training.stores import weights_digest
from mf2face.training.tasks import LAYER_DECAY, WARMUP_SHARE
from modeling_mf2.weights import vision_name
from processing_mf2.processing_mf2 import MF2Processor


logger = logging.getLogger(__name__)

_IN_TOWER = re.compile(r"(?:^backbone|(?:^|\.)(?:vision\.backbone|vision_model\.backbone|vision_model))\.(.+)$")


def _layer_numbers(names: Sequence[str]) -> tuple[dict[str, int], int]:
    """Layers of a tower's parameters by timm's names (0: where the image enters), and the last, behind all blocks."""
    parts = {name: re.match(r"(convolutions|blocks)\.(\d+)\.", name) for name in names}
    numbered = {name: (match[1], int(match[2])) for name, match in parts.items() if match}
    blocks = [number for part, number in numbered.values() if part == "blocks"]
    if not blocks:
        raise ValueError("layer decay: the tower has no plain sequence of blocks, expected a ViT or 'conv', or decay 1")
    first = max((number // 3 + 1 for part, number in numbered.values() if part == "convolutions"), default=1)
    last = first + max(blocks) + 1
    numbers = {name: last if name.startswith(("norm.", "fc_norm.", "head.")) else first - 1 for name in names}
    numbers |= {name: n // 3 if part == "convolutions" else first + n for name, (part, n) in numbered.items()}
    return numbers, last


def layerwise_groups(
    model: nn.Module, lr: float, decay: float = LAYER_DECAY, weight_decay: float = 0.05
) -> list[dict[str, Any]]:
    """Optimizer groups as in BEiT and BLIP-2: layer l of a tower of L layers learns at lr * decay ** (L - l), all else
    at lr. Layer 0 is where the image enters, L the final norm. Biases and norms have no weight decay."""
    matches = {name: _IN_TOWER.search(name) for name, _ in model.named_parameters()}
    inside = {name: vision_name(match[1]) for name, match in matches.items() if match}
    numbers, last = _layer_numbers(list(inside.values())) if inside and decay != 1 else ({}, 0)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        steps = last - numbers.get(inside.get(name, ""), last)
        decayed = parameter.ndim > 1 and not name.endswith("bias")
        rate = {"lr": lr * decay**steps, "weight_decay": weight_decay if decayed else 0.0}
        groups.setdefault((steps, decayed), {"params": [], **rate})["params"].append(parameter)
    return list(groups.values())


def layerwise_optimizer(model: nn.Module, training: TrainingArguments, decay: float) -> torch.optim.Optimizer:
    groups = layerwise_groups(model, training.learning_rate, decay, training.weight_decay)
    betas = (training.adam_beta1, training.adam_beta2)
    return torch.optim.AdamW(groups, lr=training.learning_rate, betas=betas, eps=training.adam_epsilon)


# What is answered, and the labels of it.
_ANSWERS = {
    **{"emotion_logits": "emotion_labels", "au_logits": "au_labels"},
    **{"au_side_logits": "side_labels", "au_intensities": "intensity_labels"},
}
_EVALUATION_INPUTS = ("pixel_values", "image_tokens", "landmarks", "states", *_ANSWERS.values())
_CAPTIONS = ("input_ids", "au_input_ids", "key_au_input_ids")


class MF2Trainer(Trainer):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        model, training, examples = kwargs.get("model"), kwargs.get("args"), kwargs.get("train_dataset")
        if training is not None and training.ddp_find_unused_parameters is None:
            training.ddp_find_unused_parameters = leaves_parameters_unused(model, examples)
        super().__init__(*args, **kwargs)
        self.layer_decay: float | None = None
        self._frozen_digest: str | None = None
        self.limits_warmup = False
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, float] = {}
        self._batches: list[dict[str, Any]] = []  # of one step, before they know each other
        self._micro_batches: list[MicroBatch] = []
        if isinstance(self.train_dataset, MF2StreamedExamples):
            self.add_callback(EpochOfStream())
        # Older checkpoints go when the new one is sealed, not before: the callback removes them, not the Trainer.
        self.sealed = SealedCheckpoints(self.args.save_total_limit)
        self.add_callback(self.sealed)
        self.args.save_total_limit = None

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        if self.layer_decay is not None and self.optimizer is None:
            self.optimizer = layerwise_optimizer(self.model, self.args, self.layer_decay)
        return super().create_optimizer(*args, **kwargs)

    def create_scheduler(self, num_training_steps: int, *args: Any, **kwargs: Any) -> Any:
        if self.limits_warmup and 3 * self.args.warmup_steps > num_training_steps:
            long = f"{self.args.warmup_steps} are more than a third of this run's {num_training_steps} steps"
            logger.warning("warmup_steps: %s; %d %% of them are taken", long, 100 * WARMUP_SHARE)
            self.args.warmup_steps = WARMUP_SHARE
        return super().create_scheduler(num_training_steps, *args, **kwargs)

    def get_train_dataloader(self) -> DataLoader:
        if not isinstance(self.train_dataset, MF2StreamedExamples):
            return super().get_train_dataloader()
        # The rows are this process's own already; Accelerate would split them once more.
        return DataLoader(
            self.train_dataset,
            self.args.train_batch_size,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            # Its own: each iterator draws a number, and a resumed run makes one more.
            generator=torch.Generator().manual_seed(self.args.seed),
        )

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        if isinstance(self.train_dataset, MF2StreamedExamples):
            step = int(str(resume_from_checkpoint).rsplit("-", 1)[-1]) if resume_from_checkpoint else 0
            # Skipped before decoding; the Trainer would prepare every row and drop it.
            self.train_dataset.batch_size = self.args.train_batch_size
            self.train_dataset.skip = step * self.args.gradient_accumulation_steps * self.args.train_batch_size
            self.args.ignore_data_skip = True
        try:
            with disk_may_be_full(lambda: checkpoint_folder(self.args, self.state)):
                result = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        except torch.OutOfMemoryError as error:
            got = f"per_device_train_batch_size: {self.args.per_device_train_batch_size} images do not fit on"
            advice = "the same command with --dry_run True says what does, and which options take less"
            raise torch.OutOfMemoryError(f"{got} {self.args.device}; {advice}") from error
        if self.is_fsdp_enabled:
            self._join_shards()
        return result

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """A checkpoint of a run (an internal call) has its frozen weights in a file that all of them share."""
        apart = _internal_call and isinstance(self.model, PreTrainedModel)
        apart = apart and not (self.is_fsdp_enabled or self.is_deepspeed_enabled)
        frozen = {name: p for name, p in self.model.named_parameters() if not p.requires_grad} if apart else {}
        kept = self.model._keys_to_ignore_on_save if frozen else None
        try:
            if frozen:
                self.model._keys_to_ignore_on_save = {*(kept or ()), *frozen}
            super().save_model(output_dir, _internal_call)
        finally:
            if frozen:
                self.model._keys_to_ignore_on_save = kept
        if frozen and self.args.should_save:
            self._frozen_digest = self._frozen_digest or weights_digest(frozen)
            add_frozen_weights(Path(output_dir), frozen, self._frozen_digest)

    def _join_shards(self) -> None:
        """Gathers the trained model on every process."""
        sharded = self.model
        weights = get_model_state_dict(sharded, options=StateDictOptions(full_state_dict=True))
        whole = next(kind for kind in type(sharded).__mro__ if not issubclass(kind, FSDPModule))(sharded.config)
        whole.load_state_dict(weights)
        self.model = self.model_wrapped = whole.to(self.args.device).eval()
        self.accelerator.free_memory()
        self.is_fsdp_enabled = False

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, torch.Tensor | int | None]:
        batches, number = super().get_batch_samples(epoch_iterator, num_batches, device)
        # Compared at the first of them: after a resume, the state of the random numbers is loaded in between.
        self._batches, self._micro_batches = (batches if len(batches) > 1 else []), []
        return batches, number

    def _micro_batch(self, model: nn.Module) -> MicroBatch | None:
        """One of several micro-batches of a step, or None."""
        if self._batches:
            batches, self._batches = send_to_device(self._batches, self.args.device), []
            compares = getattr(self.accelerator.unwrap_model(model), "compares_rows", False)
            compares = compares and not batches[0].keys().isdisjoint(_CAPTIONS)
            self._micro_batches = micro_batches(model, batches, compares)
        return self._micro_batches.pop(0) if self._micro_batches else None

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        micro_batch = self._micro_batch(model) if model.training else None
        inputs = inputs if micro_batch is None else micro_batch.inputs
        with nullcontext() if micro_batch is None else micro_batch.entered():
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        if loss is None:
            raise ValueError(f"loss: got none from a batch with {sorted(inputs)}, expected captions or labels for one")
        if model.training:
            names = loss_names(self.accelerator.unwrap_model(model))
            parts = {name: outputs[name].detach() for name in names if outputs.get(name) is not None}
            if not torch.isfinite(loss):
                raise FloatingPointError(self._explain(loss, parts, inputs))
            weight = 1 / self.current_gradient_accumulation_steps
            for name, part in parts.items():
                self._sums[name] = self._sums.get(name, 0.0) + weight * part.float()
                self._counts[name] = self._counts.get(name, 0) + weight
        return (loss, outputs) if return_outputs else loss

    def _explain(self, loss: torch.Tensor, parts: dict[str, torch.Tensor], inputs: dict[str, Any]) -> str:
        bad = {name: part.item() for name, part in parts.items() if not torch.isfinite(part)} or "none of the parts"
        rows = inputs["index"].tolist() if "index" in inputs else "?"
        where = f"loss is {loss.item()} at step {self.state.global_step}, rows {rows} of the training data"
        return f"{where}; not finite: {bad}. Lower the learning rate, or look at these rows"

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor | None, tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
        """Answers from images alone, in the order of `_ANSWERS`, and their labels; empty rows where there are none."""
        inputs = {name: inputs[name] for name in _EVALUATION_INPUTS if name in inputs}
        inputs = send_to_device(inputs, self.args.device)
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**inputs)
        logits = [outputs.get(name) for name in _ANSWERS]
        rows = next(len(tensor) for tensor in logits if tensor is not None)
        logits = [torch.zeros(rows, 0, device=self.args.device) if given is None else given for given in logits]
        shapes = [(rows,), *(tuple(given.shape) for given in logits[1:])]
        labels = [
            inputs.get(name, torch.full(shape, UNKNOWN_LABEL, device=self.args.device))
            for name, shape in zip(_ANSWERS.values(), shapes, strict=True)
        ]
        loss = outputs.get("loss")
        return None if loss is None else loss.detach(), tuple(logits), tuple(labels)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs and self._counts:
            names = sorted(self._counts)
            means = torch.stack([self._sums[name] / self._counts[name] for name in names])
            means = self.accelerator.reduce(means, reduction="mean")
            logs |= {name: round(value, 4) for name, value in zip(names, means.tolist(), strict=True)}
            self._sums, self._counts = {}, {}
        super().log(logs, *args, **kwargs)


def loss_names(model: nn.Module) -> tuple[str, ...]:
    """Fields of a model's output that are parts of its loss."""
    return getattr(model, "loss_names", (*LOSSES, *TOWER_LOSSES))


class EpochOfStream(TrainerCallback):
    """Counts the share of `max_steps` as the epoch of a stream, which has no length."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        state.epoch = state.global_step / state.max_steps


def leaves_parameters_unused(model: nn.Module | None, examples: Any) -> bool:
    """Whether the columns leave some parameters without a gradient, which DDP has to search for, at a cost.

    A single missing caption or label does not: its graph exists, with weight 0.
    """
    if not getattr(model, "compares_rows", False) or examples is None:
        return True  # no text is read, or a head is not used
    needed = {"emotion_caption"} if model.config.use_emo_branch else set()
    needed |= {"au_caption", "au_labels"} if model.config.use_au_branch else set()
    needed |= {"au_labels"} if model.config.action_units else set()
    needed |= {"emotion"} if model.config.emotions else set()
    return not needed <= {*getattr(examples, "captions", ()), *getattr(examples, "labels", ())}


_COST_FILE = "cost.json"  # in a checkpoint: the cost until then


def cpu_seconds() -> float:
    """CPU time of this process and of children it waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def bfloat16_cost() -> float:
    """Time of a product in bfloat16 on this CPU over that in float32: below 1, or tens where it is done in software."""
    spent = {}
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.ones(512, 512, dtype=dtype)
        times = []
        for _ in range(2):
            begun = time.thread_time()
            matrix @ matrix
            times.append(time.thread_time() - begun)
        spent[dtype] = min(times)
    return spent[torch.bfloat16] / spent[torch.float32]


class Cost:
    """Cost of a run from here on; work that a resumed run repeats counts once."""

    def __init__(self) -> None:
        self._begun = _now()
        self._begun_training: float | None = None
        self._known = True
        self._before = {"cpu_seconds": 0.0, "wall_seconds": 0.0, "training_cpu_seconds": 0.0}

    def begin_training(self, trainer: MF2Trainer, checkpoint: str | None) -> None:
        trainer.sealed.write_beside = self._save
        saved = None if checkpoint is None else Path(checkpoint) / _COST_FILE
        self._known = saved is None or saved.is_file()
        if saved is not None and self._known:
            self._before = read_json(saved)
        self._begun_training = cpu_seconds()

    def figures(self) -> dict[str, float]:
        return {name: now - self._begun[name] + self._before[name] for name, now in _now().items()}

    def training_cpu_seconds(self) -> float | None:
        """None after a checkpoint without its cost. Stores are built before training, and do not count."""
        if not self._known:
            return None
        return cpu_seconds() - self._begun_training + self._before["training_cpu_seconds"]

    def _save(self, checkpoint: Path) -> None:
        if self._known:
            costs = {**self.figures(), "training_cpu_seconds": self.training_cpu_seconds()}
            (checkpoint / _COST_FILE).write_text(json.dumps(costs), encoding="utf-8")


def _now() -> dict[str, float]:
    return {"cpu_seconds": cpu_seconds(), "wall_seconds": time.perf_counter()}


def inference_seconds(trainer: MF2Trainer, rows: Dataset, processor: MF2Processor, most: int = 256) -> float:
    """CPU-seconds from all test images to answers without stores, extrapolated from the first `most`."""
    timed = MF2Examples(rows.select(range(min(most, len(rows)))), processor, texts=False, warned={*LABELS})
    collator, trainer.data_collator = trainer.data_collator, MF2Collator(processor.tokenizer.pad_token_id)
    begun = cpu_seconds()
    trainer.predict(timed)
    trainer.data_collator = collator
    return (cpu_seconds() - begun) * len(rows) / len(timed)


def images_seen(training: TrainingArguments) -> int:
    return training.max_steps * training.train_batch_size * training.gradient_accumulation_steps * training.world_size
