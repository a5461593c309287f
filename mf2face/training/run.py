"""From arguments to a saved, measured model: the one path that tiny and giant, synthetic and real data take."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import torch
from datasets import Dataset
from transformers import EarlyStoppingCallback, PreTrainedModel, TrainingArguments, set_seed

from configuration_mf2.baselines import ExpBlipConfig
from configuration_mf2.configuration_mf2 import MF2Config
from configuration_mf2.facs import resolve_label_set
from mf2face.captions.styles import check_captions
from mf2face.data.examples import MF2Collator, MF2Examples
from mf2face.data.metrics import tune_thresholds
from mf2face.data.reference_scores import BASELINES, baseline_scores
from mf2face.training.arguments import MF2Arguments
from mf2face.training.cards import EMOTION_FOUR, UNIT_TWO, kind_of, run_facts, write_card
from mf2face.training.checkpoints import as_sole_user, check_same_run, stopped_early
from mf2face.training.evaluation import (
    draw_curves,
    draw_scores,
    group_scores,
    metrics_for_trainer,
    probabilities,
    score,
    tables,
    write_scores,
)
from mf2face.training.exp_blip import build_classifier, kind_of_checkpoint, run_captions, uses_caption_stage
from mf2face.training.finetuning import ADAPTERS, adapt, trainable_parameters, with_states
from mf2face.training.language import FIGURES, WORD_FIGURES, language_scores, word_scores
from mf2face.training.options import read_options
from mf2face.training.publish import check_base, publish, take_token
from mf2face.training.splits import build_examples, load_splits, name_data
from mf2face.training.stores import collate_stored
from mf2face.training.tasks import SYSTEMS, build_system, captions_of, with_captions
from mf2face.training.trainer import (
    LAYER_DECAY,
    Cost,
    MF2Trainer,
    images_seen,
    inference_seconds,
    last_good_checkpoint,
    loss_names,
)
from modeling_mf2.baselines.exp_blip import ExpBlipForFaceAnalysis
from modeling_mf2.baselines.vl_fau import VLFAUForFaceAnalysis
from modeling_mf2.convert import load_bert_weights, load_blip2_weights, load_vision_weights
from modeling_mf2.modeling_mf2 import MF2ForFaceAnalysis
from modeling_mf2.pretraining import MF2ForPreTraining
from modeling_mf2.tower import MF2ForTowerTraining
from processing_mf2.processing_mf2 import MF2Processor


logger = logging.getLogger(__name__)

# The released checkpoint, whose tower stands in for a downloaded one; `make checkpoint` trains both anew.
RELEASED = Path(__file__).resolve().parents[2] / "model_cards" / "mf2-tiny-synthetic"

# Arguments that do not change the weights that a run ends with.
CACHE_ONLY_ARGUMENTS = ("store_vision", "no_store", "store_dtype", "rebuild_store")

TASK_MODELS = {"pretrain": MF2ForPreTraining, "tower": MF2ForTowerTraining}  # any other: MF2ForFaceAnalysis


def checkpoint_classes(checkpoint: str) -> list[str]:
    """Names of the classes that a checkpoint says it is of; none for an adapter's folder."""
    try:
        return MF2Config.from_pretrained(checkpoint).architectures or []
    except FileNotFoundError:
        return []


def build_model(arguments: MF2Arguments, train_rows: Dataset | None = None) -> tuple[PreTrainedModel, MF2Processor]:
    if arguments.task == "evaluate" and arguments.model_name_or_path is None:
        raise ValueError("model_name_or_path: got none, expected the model that --task evaluate is about")
    if arguments.model == "exp_blip":
        return build_exp_blip(arguments)
    if arguments.model in SYSTEMS:
        if arguments.model_name_or_path is None:
            arguments.vision_name_or_path = pretrained_tower(arguments)
        return build_system(
            arguments.model,
            arguments.model_size,
            label_set=arguments.label_set,
            checkpoint=arguments.model_name_or_path,
            backbone=arguments.vision_name_or_path,
            options=arguments.model_options,
            train_rows=train_rows,
        )
    model_class = MF2ForPreTraining if arguments.align else TASK_MODELS.get(arguments.task, MF2ForFaceAnalysis)
    if arguments.task in ADAPTERS and arguments.model_name_or_path is None and arguments.model_size == "tiny":
        arguments.model_name_or_path = str(RELEASED)
    if arguments.model_name_or_path:
        if arguments.task == "evaluate" and "MF2ForPreTraining" in checkpoint_classes(arguments.model_name_or_path):
            model_class = MF2ForPreTraining  # it can also be asked what language is worth
        fields = read_options("model_options", arguments.model_options, MF2Config)
        model = model_class.from_pretrained(arguments.model_name_or_path, **fields)
        processor = MF2Processor.from_pretrained(arguments.model_name_or_path)
        if arguments.task == "evaluate" and processor.au_thresholds is not None:
            model.config.au_thresholds = processor.au_thresholds  # an adapter's; the config has its base's
        return model, processor
    if arguments.task in ADAPTERS:
        raise ValueError(f"model_name_or_path: got none, expected the model that --task {arguments.task} is about")
    labels = resolve_label_set(arguments.label_set)
    settings: dict[str, Any] = {
        "label_set": arguments.label_set,
        "use_emo_branch": arguments.branches != "au",
        "use_au_branch": arguments.branches != "emo" and bool(labels.action_units),
        "vision_config": {"frozen": arguments.task != "tower"},
    }
    config = MF2Config.from_size(
        arguments.model_size, **settings | read_options("model_options", arguments.model_options, MF2Config)
    )
    processor = MF2Processor.for_model(config)
    model = model_class(config)
    arguments.vision_name_or_path = pretrained_tower(arguments)
    if arguments.vision_name_or_path:
        logger.info("%s", load_vision_weights(model, arguments.vision_name_or_path))
    elif arguments.task != "tower":
        logger.warning("the vision tower has random weights: name one in --vision_name_or_path")
    if arguments.text_name_or_path:
        logger.info("%s", load_bert_weights(model, arguments.text_name_or_path))
    if arguments.qformer_name_or_path:
        logger.info("%s", load_blip2_weights(model, arguments.qformer_name_or_path, vision=False))
    return model, processor


def build_exp_blip(arguments: MF2Arguments) -> tuple[PreTrainedModel, MF2Processor]:
    """The classifier on the features of a stage; what learns to write is built by `exp_blip_journey`."""
    source = arguments.model_name_or_path
    if source is None:
        raise ValueError(
            f"model_name_or_path: got none with --model exp_blip --task {arguments.task}, expected the folder of its "
            "stage 1 (--task pretrain) or stage 2 (--task caption), whose features are classified by"
        )
    if arguments.task == "evaluate":
        return ExpBlipForFaceAnalysis.from_pretrained(source), MF2Processor.from_pretrained(source)
    fields = read_options("model_options", arguments.model_options, ExpBlipConfig)
    if kind_of_checkpoint(source) != "classifier":  # it has learned nothing for a label
        fields = {"label_set": arguments.label_set, **fields}
    return build_classifier(
        source, features=arguments.features, linear_probe=arguments.task == "linear_probe", **fields
    )


def pretrained_tower(arguments: MF2Arguments) -> str | None:
    """What the tower starts from, as the card says; a tiny one from the released tower, unless told `none`."""
    tower = arguments.vision_name_or_path
    if tower is None and arguments.task != "tower" and arguments.model_size == "tiny" and RELEASED.is_dir():
        return str(RELEASED)
    return None if tower == "none" else tower


@as_sole_user
def run(arguments: MF2Arguments, training: TrainingArguments) -> dict[str, float]:
    cost = Cost()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    set_seed(training.seed)
    token = take_token(training)
    if arguments.model == "exp_blip" and uses_caption_stage(arguments):
        return run_captions(arguments, training, pretrained_tower(arguments), cost, token)
    # Once, when all is measured: the Trainer would push half-trained weights and its own card.
    wants_push, training.push_to_hub = training.push_to_hub, False
    if arguments.task == "tower" and not arguments.use_labels:
        training.load_best_model_at_end = False  # its AU and emotion readouts learn nothing, and can judge nothing
    if arguments.task != "evaluate":
        begun = {name: value for name, value in vars(arguments).items() if name not in CACHE_ONLY_ARGUMENTS}
        check_same_run(Path(training.output_dir), begun | {"seed": training.seed})
    splits = load_splits(arguments)
    model, processor = build_model(arguments, splits["train"])
    if arguments.model in SYSTEMS:
        splits = with_captions(splits, model, by_rule=arguments.captions_by_rule, seed=training.seed)
        if arguments.task != "evaluate":
            check_captions(splits["train"], captions_of(model), SYSTEMS[arguments.model].title)
    if wants_push and kind_of(arguments.task) == "adapter":
        check_base(arguments.model_name_or_path)
    examples = build_examples(arguments, training, model, processor, splits)
    if arguments.align and not examples["train"].captions:
        raise ValueError(
            f"align: the data set {arguments.dataset} has no captions, or --use_captions is False; expected captions, "
            "which the alignment losses are about"
        )
    if arguments.task in ADAPTERS:
        model = adapt(model, arguments.task, arguments.adapter_options)
    if not arguments.no_store:
        root = Path(datasets.config.HF_DATASETS_CACHE) / "mf2_states"
        how = (root, arguments.store_dtype, arguments.rebuild_store)
        examples = {name: with_states(model, made, *how) for name, made in examples.items()}
    trainer = MF2Trainer(
        model=model,
        args=training,
        train_dataset=examples["train"],
        eval_dataset=examples["validation"],
        data_collator=MF2Collator(processor.tokenizer.pad_token_id) if arguments.no_store else collate_stored,
        compute_metrics=metrics_for_trainer(model.config),
        callbacks=[EarlyStoppingCallback(5)] if training.load_best_model_at_end else [],
    )
    if arguments.model == "exp_blip" and arguments.task == "full":
        trainer.layer_decay = LAYER_DECAY
    resumed = None if arguments.task == "evaluate" else last_good_checkpoint(training.output_dir)
    figures: dict[str, float] = {}
    if arguments.task != "evaluate":
        cost.begin_training(trainer, resumed)
        steps, training.max_steps = training.max_steps, stopped_early(resumed) or training.max_steps
        trainer.train(resume_from_checkpoint=resumed)
        training.max_steps = steps
        if (seconds := cost.training_cpu_seconds()) is not None:
            figures["epoch_cpu_seconds"] = seconds / trainer.state.epoch
        model = trainer.model  # FSDP's parts, put together
    if arguments.save_half:
        round_to_half(model)
    before = base_scores(trainer, examples, splits) if kind_of(arguments.task) == "adapter" else {}
    scores = measure(trainer, examples, splits, tune=arguments.task != "evaluate") | before
    if isinstance(model, VLFAUForFaceAnalysis) and examples["test"].captions:
        scores |= word_scores(model, processor, examples["test"])  # on all processes: its losses ask all of them
    synthetic, data = name_data(arguments.dataset, splits["test"])
    figures |= {
        "inference_cpu_seconds": inference_seconds(trainer, splits["test"], processor),
        "train_images": images_seen(training) if arguments.streaming else len(splits["train"]),
        "test_images": len(splits["test"]),
        "trainable_parameters": trainable_parameters(model),
    }
    if trainer.is_world_process_zero():
        folder = Path(training.output_dir)
        labels = model.config.action_units, model.config.emotions
        baselines = {} if arguments.streaming else baseline_scores(splits["train"], splits["test"], *labels)
        scores |= {f"baseline/{name}": value for name, value in baselines.items()}
        if isinstance(model, MF2ForPreTraining) and examples["test"].captions:
            scores |= language_scores(model, processor, examples["test"], examples["validation"])
        figures |= cost.figures()
        save(folder, arguments, model, processor)
        write_scores(folder, scores, figures)
        draw_scores(folder, scores, model.config, data)
        draw_curves(folder, trainer.state.log_history, data, loss_names(model))
        if arguments.task != "evaluate":
            write_card(
                folder,
                run_facts(
                    arguments,
                    training,
                    figures,
                    synthetic=synthetic,
                    captions=captions_of(model) if arguments.model in SYSTEMS else None,
                ),
            )
        print(
            f"\n{data}, from images alone; subjects unseen in training; cost {figures['cpu_seconds']:.0f} CPU-seconds"
        )
        print(tables(scores))
        print(comparison(scores))
        if wants_push:
            print(f"\npublished: {publish(folder, training, token)}")
    return {**{name: value for name, value in scores.items() if isinstance(value, float)}, **figures}


def comparison(scores: Mapping[str, float]) -> str:
    """The baselines, and what language is worth, a line each with what it means."""
    named = {f"baseline/{name}": words for name, words in BASELINES.items()} | FIGURES | WORD_FIGURES
    lines = [f"{name:<40} {scores[name]:6.3f}  {words}" for name, words in named.items() if name in scores]
    return "\n".join(["", *lines])


def measure(
    trainer: MF2Trainer, examples: dict[str, MF2Examples], splits: Mapping[str, Dataset], tune: bool
) -> dict[str, float]:
    """Thresholds are tuned on validation images and kept in the config, unless it has some and they are measured as
    they are, or those images are the test's; scores are of the test images."""
    rows = splits["test"]
    config = trainer.model.config
    thresholds = config.au_thresholds
    tune = tune or thresholds is None
    if tune and config.action_units and splits["validation"] is not rows:
        found = trainer.predict(examples["validation"])
        thresholds = tune_thresholds(probabilities(found.predictions)[1], found.label_ids[1]).tolist()
        config.au_thresholds = thresholds
    found = trainer.predict(examples["test"])
    answers = (config, found.predictions, found.label_ids, thresholds)
    subjects, groups = (rows[name][:] if name in rows.column_names else None for name in ("subject", "group"))
    return score(*answers, subjects) | (group_scores(*answers, groups) if groups else {})


def base_scores(
    trainer: MF2Trainer, examples: dict[str, MF2Examples], splits: Mapping[str, Dataset]
) -> dict[str, float]:
    """The same scores of the model without its adapter, with the thresholds that it came with."""
    with trainer.model.disable_adapter():
        scores = measure(trainer, examples, splits, tune=False)
    return {f"base/{name}": value for name, value in scores.items() if name in (*UNIT_TWO, *EMOTION_FOUR)}


@torch.no_grad()
def round_to_half(model: PreTrainedModel) -> None:
    """Weights as the half-sized file will hold them, before they are measured."""
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.half())


def save(folder: Path, arguments: MF2Arguments, model: PreTrainedModel, processor: MF2Processor) -> None:
    if arguments.task == "evaluate":
        return
    processor.au_thresholds = model.config.au_thresholds
    if arguments.task == "tower":
        model.vision.save_pretrained(folder)
    else:
        halved = {name: tensor.half() for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
        model.save_pretrained(folder, state_dict={**model.state_dict(), **halved} if arguments.save_half else None)
    processor.save_pretrained(folder)


__all__ = ["run"]
