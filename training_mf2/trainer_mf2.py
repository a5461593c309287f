"""The Trainer: transformers' own, which also names each part of the loss, stops at a NaN, trusts no half checkpoint."""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from configuration_mf2.configuration_mf2 import LOSSES
from configuration_mf2.facs_mf2 import UNKNOWN_LABEL


logger = logging.getLogger(__name__)

_COMPLETE = "complete.json"
_SEEN_IN_EVALUATION = ("pixel_values", "image_tokens", "landmarks", "au_labels", "emotion_labels")


class MF2Trainer(Trainer):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, int] = {}
        self.add_callback(CompleteCheckpoints())

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        if loss is None:
            raise ValueError(
                f"loss: got none from a batch with {sorted(inputs)}, expected captions or labels for at least one loss"
            )
        if model.training:
            parts = {name: outputs[name].detach() for name in LOSSES if outputs.get(name) is not None}
            if not torch.isfinite(loss):
                raise FloatingPointError(self._explain(loss, parts, inputs))
            for name, part in parts.items():
                self._sums[name] = self._sums.get(name, 0.0) + part.float()
                self._counts[name] = self._counts.get(name, 0) + 1
        return (loss, outputs) if return_outputs else loss

    def _explain(self, loss: torch.Tensor, parts: dict[str, torch.Tensor], inputs: dict[str, Any]) -> str:
        bad = {name: part.item() for name, part in parts.items() if not torch.isfinite(part)} or "none of the parts"
        rows = inputs["index"].tolist() if "index" in inputs else "?"
        return (
            f"loss is {loss.item()} at step {self.state.global_step}, rows {rows} "
            f"of the training data; not finite: {bad}. Nothing was saved from this step: lower the learning rate, or "
            "look at these rows"
        )

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
        """From images alone: (emotion logits, AU logits) and their labels; nothing else is kept."""
        inputs = self._prepare_inputs({name: inputs[name] for name in _SEEN_IN_EVALUATION if name in inputs})
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**inputs)
        logits = [outputs.get("emotion_logits"), outputs.get("au_logits")]
        rows = next(tensor for tensor in logits if tensor is not None).shape[0]
        labels = [inputs.get("emotion_labels"), inputs.get("au_labels")]
        for place, found in enumerate(logits):
            if found is None:
                logits[place] = torch.zeros(rows, 0, device=self.args.device)
            if labels[place] is None:
                shape = (rows,) if place == 0 else (rows, logits[1].shape[1])
                labels[place] = torch.full(shape, UNKNOWN_LABEL, device=self.args.device)
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


class CompleteCheckpoints(TrainerCallback):
    """Writes, last of all, what a checkpoint consists of: one that was cut short is then known by its sizes."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}
            temporary = folder / f"{_COMPLETE}.tmp"
            temporary.write_text(json.dumps(sizes))
            temporary.replace(folder / _COMPLETE)


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint; None if nothing is."""
    try:
        sizes = json.loads((folder / _COMPLETE).read_text())
    except (OSError, ValueError):
        return f"{_COMPLETE} is missing: it was not written to its end"
    for name, size in sizes.items():
        path = folder / name
        found = path.stat().st_size if path.exists() else None
        if found != size:
            return f"{name} has {found} bytes, {size} were written" if found is not None else f"{name} is missing"
    return None


def last_good_checkpoint(output_dir: str | Path) -> str | None:
    """The newest whole checkpoint. Damaged ones are named, and passed over."""
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if path.name.split("-")[-1].isdigit()]
    for folder in sorted(folders, key=lambda path: -int(path.name.split("-")[-1])):
        reason = damage(folder)
        if reason is None:
            return str(folder)
        logger.warning("%s is passed over: %s", folder, reason)
    return None
