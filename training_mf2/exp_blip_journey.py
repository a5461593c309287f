"""Exp-BLIP's two stages from arguments to a saved model: alignment with captions, then writing them."""

import json
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedConfig, TrainingArguments

from configuration_mf2.configuration_exp_blip import ExpBlipConfig
from dataset_mf2.caption_columns_mf2 import caption_column, check_captions, with_rule_captions
from dataset_mf2.caption_scores_mf2 import caption_scores, fact_scores
from dataset_mf2.collator_mf2 import MF2Collator
from dataset_mf2.examples_mf2 import MF2Examples
from processing_mf2.processing_mf2 import MF2Processor

from .arguments_mf2 import MF2Arguments
from .card_facts_mf2 import run_facts
from .card_mf2 import write_card
from .checkpoints_mf2 import check_same_run
from .cost_mf2 import Cost
from .evaluation_mf2 import draw_curves, write_text
from .exp_blip_mf2 import build_captioner, build_stage_one, load_captioner, save_captioner
from .exp_blip_stage_two import CaptionedFaces, train_captioner, write_captions
from .finetuning_mf2 import trainable_parameters
from .language_mf2 import CAPTION_FIGURES
from .layer_decay_mf2 import LAYER_DECAY
from .options_mf2 import read_options
from .publish_mf2 import publish
from .splits_mf2 import build_examples, load_splits, name_data
from .trainer_mf2 import MF2Trainer, last_good_checkpoint, loss_names


WRITTEN = "captions.jsonl"


def kind_of_checkpoint(source: str) -> str:
    """`stage one`, `captioner`, `classifier`, or the model type of another system."""
    saved, _ = PreTrainedConfig.get_config_dict(source)
    if saved.get("exp_blip"):
        return "captioner"
    if saved.get("model_type") != ExpBlipConfig.model_type:
        return str(saved.get("model_type"))
    return "stage one" if "ExpBlipForPreTraining" in (saved.get("architectures") or []) else "classifier"


def is_about_captions(arguments: MF2Arguments) -> bool:
    """Whether a run trains or measures what learns from captions, and not the classifier on its features."""
    if arguments.task != "evaluate":
        return arguments.task in ("pretrain", "caption")
    kind = kind_of_checkpoint(arguments.model_name_or_path) if arguments.model_name_or_path else "none"
    if kind == "stage one":
        raise ValueError(
            f"model_name_or_path: {arguments.model_name_or_path} is Exp-BLIP's stage 1, which answers nothing; "
            "expected a captioner (--task caption) or a classifier (--task linear_probe or full) made of it"
        )
    return kind == "captioner"


def run_captions(
    arguments: MF2Arguments, training: TrainingArguments, tower: str | None, cost: Cost, token: str | None
) -> dict[str, float]:
    """tower: where a new model's tower starts."""
    if arguments.task == "caption" and arguments.model_name_or_path is None:
        raise ValueError("model_name_or_path: got none with --task caption, expected the folder of Exp-BLIP's stage 1")
    wants_push, training.push_to_hub = training.push_to_hub, False
    folder = Path(training.output_dir)
    if arguments.task != "evaluate":
        check_same_run(folder, vars(arguments) | {"seed": training.seed})
    splits = load_splits(arguments)
    stage = _StageOne if arguments.task == "pretrain" else _StageTwo
    journey = stage(arguments, training, tower, splits)
    trainer = None if arguments.task == "evaluate" else journey.train(cost)
    scores = journey.measure(folder)
    figures = {
        "train_images": len(splits["train"]),
        "test_images": len(splits["test"]),
        "trainable_parameters": trainable_parameters(journey.model),
        **cost.figures(),
    }
    synthetic, data = name_data(arguments.dataset, splits["test"])
    if not training.should_save:  # another process writes
        return {**scores, **figures}
    if trainer is not None:
        journey.save(folder)
    # After the weights: who finds it takes the run for finished.
    write_text(folder / "metrics.json", json.dumps({**scores, **figures}, indent=2) + "\n")
    if trainer is not None:
        arguments.vision_name_or_path = journey.started_from
        draw_curves(folder, trainer.state.log_history, data, journey.losses)
        learned = [caption_column(journey.caption_set)]
        facts = run_facts(arguments, training, figures, synthetic=synthetic, captions=learned)
        write_card(folder, facts)
    print(f"\n{data}; captions {journey.caption_set}; cost {figures['cpu_seconds']:.0f} CPU-seconds")
    for name, words in CAPTION_FIGURES.items():
        if name in scores:
            print(f"{name:<22} {scores[name]:6.3f}  {words}")
    if wants_push:
        print(f"\npublished: {publish(folder, training, token)}")
    return {**scores, **figures}


class _StageOne:
    def __init__(
        self, arguments: MF2Arguments, training: TrainingArguments, tower: str | None, splits: dict[str, Dataset]
    ) -> None:
        fields = read_options("model_options", arguments.model_options, ExpBlipConfig)
        self.started_from = None if arguments.model_name_or_path else tower
        self.model, self.processor = build_stage_one(
            arguments.model_size,
            checkpoint=arguments.model_name_or_path,
            **({} if arguments.model_name_or_path else {"label_set": arguments.label_set}),
            caption_set=arguments.caption_set,
            tower=self.started_from,
            bert=arguments.text_name_or_path,
            blip2=arguments.qformer_name_or_path,
            train_tower=not fields.get("vision_config", {}).get("frozen", True),
            **fields,
        )
        self.caption_set, self.losses = self.model.config.caption_set, loss_names(self.model)
        splits = _captioned(arguments, training, splits, self.caption_set, self.model.config.label_set)
        self.training = training
        self.examples = build_examples(arguments, training, self.model, self.processor, {"train": splits["train"]})

    def train(self, cost: Cost) -> MF2Trainer:
        # No label is learned, so nothing says which epoch was the best.
        self.training.load_best_model_at_end, self.training.eval_strategy = False, "no"
        trainer = MF2Trainer(
            model=self.model,
            args=self.training,
            train_dataset=self.examples["train"],
            data_collator=MF2Collator(self.processor.tokenizer.pad_token_id),
        )
        trainer.layer_decay = LAYER_DECAY
        resumed = last_good_checkpoint(self.training.output_dir)
        cost.begin_training(trainer, resumed)
        trainer.train(resume_from_checkpoint=resumed)
        self.model = trainer.model  # FSDP's parts, put together
        return trainer

    def measure(self, folder: Path) -> dict[str, float]:
        return {}  # what alignment is worth is what its features are worth to a classifier, or to stage 2

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)


class _StageTwo:
    losses, started_from = (), None

    def __init__(
        self, arguments: MF2Arguments, training: TrainingArguments, tower: str | None, splits: dict[str, Dataset]
    ) -> None:
        source = arguments.model_name_or_path
        caption_scores([], [])  # a library that it needs is missed now, and not when all is trained
        if arguments.task == "evaluate":
            self.model, self.processor, self.tokenizer = load_captioner(source)
        else:
            self.model, self.processor, self.tokenizer = build_captioner(
                source, arguments.language_model_name_or_path, caption_set=arguments.caption_set
            )
        stage_one: dict[str, Any] = self.model.config.exp_blip
        self.caption_set, self.label_set = stage_one["caption_set"], stage_one["label_set"]
        self.splits = _captioned(arguments, training, splits, self.caption_set, self.label_set)
        self.training = training
        self.faces = {name: _faces(rows, self.processor) for name, rows in self.splits.items()}

    def train(self, cost: Cost) -> MF2Trainer:
        self.training.metric_for_best_model, self.training.greater_is_better = "loss", False
        captioned = {name: CaptionedFaces.of(faces, self.caption_set) for name, faces in self.faces.items()}
        splits = captioned["train"], captioned["validation"]
        trainer = train_captioner(self.model, self.tokenizer, self.training, *splits, begin=cost.begin_training)
        self.model = trainer.model
        return trainer

    @torch.no_grad()
    def measure(self, folder: Path) -> dict[str, float]:
        """Of captions written with five beams from test images alone, which are kept beside the labels' own."""
        rows = self.splits["test"]
        self.model.to(self.training.device).eval()
        written = write_captions(self.model, self.tokenizer, self.faces["test"])
        own = rows[caption_column(self.caption_set)][:]
        lines = [
            json.dumps({"written": text, "of_the_labels": label}) for text, label in zip(written, own, strict=True)
        ]
        if self.training.should_save:
            write_text(folder / WRITTEN, "\n".join(lines) + "\n")
        labels = [rows[name][:] if name in rows.column_names else None for name in ("au_labels", "emotion")]
        return caption_scores(written, own) | fact_scores(written, *labels, self.label_set)

    def save(self, folder: Path) -> None:
        save_captioner(folder, self.model, self.processor, self.tokenizer)


def _faces(rows: Dataset, processor: MF2Processor) -> MF2Examples:
    return MF2Examples(rows, processor, texts=False)


def _captioned(
    arguments: MF2Arguments, training: TrainingArguments, splits: dict[str, Dataset], caption_set: str, label_set: str
) -> dict[str, Dataset]:
    columns = [caption_column(caption_set)]
    if arguments.captions_by_rule:
        splits = {n: with_rule_captions(rows, columns, label_set, seed=training.seed) for n, rows in splits.items()}
    check_captions(splits["test" if arguments.task == "evaluate" else "train"], columns, "Exp-BLIP")
    return splits


__all__ = ["is_about_captions", "kind_of_checkpoint", "run_captions"]
