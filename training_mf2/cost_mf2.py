"""What a run costs, in seconds of CPU and by the wall; one that was interrupted is counted with its earlier parts."""

import json
import os
import time
from pathlib import Path

from datasets import Dataset
from transformers import TrainingArguments

from configuration_mf2.json_mf2 import read_json
from dataset_mf2.collator_mf2 import MF2Collator
from dataset_mf2.examples_mf2 import LABELS, MF2Examples
from processing_mf2.processing_mf2 import MF2Processor

from .trainer_mf2 import MF2Trainer


_FILE = "cost.json"  # in a checkpoint: what the run had cost until then


def cpu_seconds() -> float:
    """Of this process and of those that it waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


class Cost:
    """Begins when it is made. What an interrupted run did after its last checkpoint is done again, and counts once."""

    def __init__(self) -> None:
        self._begun = _now()
        self._begun_training: float | None = None
        self._knows = True
        self._before = {"cpu_seconds": 0.0, "wall_seconds": 0.0, "training_cpu_seconds": 0.0}

    def begin_training(self, trainer: MF2Trainer, checkpoint: str | None) -> None:
        """checkpoint: from which an interrupted run goes on."""
        trainer.write_beside_checkpoint = self._save
        told = None if checkpoint is None else Path(checkpoint) / _FILE
        self._knows = told is None or told.is_file()
        if told is not None and self._knows:
            self._before = read_json(told)
        self._begun_training = cpu_seconds()

    def figures(self) -> dict[str, float]:
        return {name: now - self._begun[name] + self._before[name] for name, now in _now().items()}

    def training_cpu_seconds(self) -> float | None:
        """None where a checkpoint of before does not tell what it had cost. Stores are built before, and not in it."""
        if not self._knows:
            return None
        return cpu_seconds() - self._begun_training + self._before["training_cpu_seconds"]

    def _save(self, checkpoint: Path) -> None:
        if self._knows:
            costs = {**self.figures(), "training_cpu_seconds": self.training_cpu_seconds()}
            (checkpoint / _FILE).write_text(json.dumps(costs), encoding="utf-8")


def _now() -> dict[str, float]:
    return {"cpu_seconds": cpu_seconds(), "wall_seconds": time.perf_counter()}


def inference_seconds(trainer: MF2Trainer, rows: Dataset, processor: MF2Processor, most: int = 256) -> float:
    """CPU-seconds from all test images to answers, nothing stored; measured on the first ones, where there are many."""
    timed = MF2Examples(rows.select(range(min(most, len(rows)))), processor, texts=False, told={*LABELS})
    collator, trainer.data_collator = trainer.data_collator, MF2Collator(processor.tokenizer.pad_token_id)
    begun = cpu_seconds()
    trainer.predict(timed)
    trainer.data_collator = collator
    return (cpu_seconds() - begun) * len(rows) / len(timed)


def images_seen(training: TrainingArguments) -> int:
    """By a run on a stream."""
    return training.max_steps * training.train_batch_size * training.gradient_accumulation_steps * training.world_size


__all__ = ["Cost", "cpu_seconds", "images_seen", "inference_seconds"]
