"""From settings to a saved, measured model: the one path that all tasks, sizes and data sets take."""

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import EarlyStoppingCallback, PreTrainedConfig, PreTrainedModel, set_seed

from configuration_mf2.configuration_mf2 import MF2Config
from mf2face.data.examples import LABELS, MF2Collator, MF2Examples
from mf2face.data.metrics import tune_thresholds
from mf2face.data.reference_scores import BASELINES, baseline_scores
from mf2face.files import write_whole
from mf2face.training.arguments import Settings
from mf2face.training.build import (
    Parts,
    build_examples,
    build_model,
    caption_columns,
    details_of,
    fit_caption_lengths,
    load_splits,
    name_data,
    other_style,
    save_parts,
    store_options,
    store_root,
    with_captions,
    with_sources,
)
from mf2face.training.cards import check_base, publish, run_facts, write_card
from mf2face.training.checkpoints import check_same_run, last_good_checkpoint, sole_user, stopped_early
from mf2face.training.evaluation import (
    DETAIL_FIGURES,
    EMOTION_FOUR,
    UNIT_TWO,
    draw_curves,
    draw_scores,
    group_scores,
    metrics_for_trainer,
    probabilities,
    score,
    tables,
    write_scores,
)
from mf2face.training.exp_blip import CaptionedFaces, caption_trainer, measure_captions, stage_one_config
from mf2face.training.finetuning import BalancedExamples, adapt, peft_config, trainable_parameters, with_states
from mf2face.training.language import LANGUAGE_FIGURES, language_scores, word_scores
from mf2face.training.probe import SHIFT_FIGURES, probe_scores
from mf2face.training.reliability import calibrate, coverage
from mf2face.training.stores import collate_stored
from mf2face.training.tower import TOWER_FIGURES, tower_scores
from mf2face.training.trainer import (
    Cost,
    MF2Trainer,
    bfloat16_cost,
    images_seen,
    inference_seconds,
    loss_names,
)
from modeling_mf2.baselines.vl_fau import VLFAUForFaceAnalysis
from modeling_mf2.heads import MF2Classifiers
from modeling_mf2.modeling_mf2 import MF2ForFaceAnalysis
from modeling_mf2.pretraining import MF2ForPreTraining
from processing_mf2.processing_mf2 import MF2Processor


logger = logging.getLogger(__name__)

_SLOW = 4
"""Times as long that bfloat16 may take as float32."""
_MOST_SHIFTED = 800
"""Images of a style not trained on."""
# Arguments that do not change the weights that a run ends with.
CACHE_ONLY_ARGUMENTS = ("store_vision", "no_store", "store_dtype", "rebuild_store")


def run(settings: Settings) -> dict[str, float]:
    """Trains, unless the task is to evaluate, measures and saves. -> scores and costs."""
    if settings.arguments.adapter_options:  # a wrong one is an error before anything is drawn
        peft_config(settings.arguments.task, settings.arguments.adapter_options)
    with sole_user(settings.training):
        if settings.arguments.folds and settings.arguments.fold is None:
            return _run_folds(settings)
        return _run(settings)


def _run_folds(settings: Settings) -> dict[str, float]:
    """A run for each fold of people, in folders of its own. -> the means, and each spread (standard deviation)."""
    runs, count = [], settings.arguments.folds
    for fold in range(1, count + 1):
        training = copy.copy(settings.training)
        training.output_dir = str(settings.folder / f"fold_{fold}")
        runs.append(_run(replace(settings, arguments=replace(settings.arguments, fold=fold), training=training)))
    names = [name for name in runs[0] if all(name in run for run in runs)]
    values = {name: np.array([run[name] for run in runs], float) for name in names}
    figures = {name: float(each.mean()) for name, each in values.items()}
    figures |= {f"{name}/sd": float(each.std(ddof=1)) for name, each in values.items()}
    shown = [
        name for name in names if name in (*UNIT_TWO, *EMOTION_FOUR) or name.startswith(("au_f1/", "au_f1_tuned/"))
    ]
    lines = [f"{'score':<32} {'mean':>7} {'sd':>7}  {count} folds of people, {settings.arguments.dataset}"]
    for name in shown:
        each = "  ".join(f"{value:.4f}" for value in values[name])
        lines.append(f"{name:<32} {figures[name]:7.4f} {figures[f'{name}/sd']:7.4f}  {each}")
    if PartialState().is_main_process:
        write_scores(settings.folder, figures, {})
        write_whole(settings.folder / "metrics.txt", "\n".join(lines) + "\n")
        print("\n".join(["", *lines]))
    return figures


def _run(settings: Settings) -> dict[str, float]:
    cost = Cost()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    on_cpu = settings.training.device.type == "cpu"
    if on_cpu and settings.training.bf16 and (times := bfloat16_cost()) > _SLOW:
        what = "bf16: got True, on a CPU that computes it in software, %.0f times slower than float32: leave it out"
        logger.warning(what, times)
    set_seed(settings.training.seed)
    if settings.trains:
        begun = {name: value for name, value in vars(settings.arguments).items() if name not in CACHE_ONLY_ARGUMENTS}
        check_same_run(settings.folder, begun | {"seed": settings.training.seed})
    settings = with_sources(settings)
    ours, task = settings.arguments, settings.task
    if settings.push_to_hub and task.saves == "adapter":
        check_base(ours.model_name_or_path)
    parts, splits, labels, columns, figures = load_parts(settings, load_splits(ours))
    trainer, examples = make_trainer(settings, parts, splits, columns)
    figures |= _train(trainer, settings, cost) if settings.trains else {}
    parts = parts._replace(model=trainer.model)  # FSDP's parts, put together
    if settings.trains and task.saves == "model" and isinstance(parts.model.config, MF2Config):
        vision = parts.model.config.vision_config
        learned = any(parameter.requires_grad for parameter in parts.model.base_model.vision.parameters())
        vision.label_taught |= learned  # with the branches, whose losses are of labels
    if ours.tower_dtype != "float32" and task.saves != "adapter":
        parts.model.base_model.vision.float()  # one precision in a file, and in what is measured
    if ours.save_half:
        round_to_half(parts.model)
    scores = {}
    if task.measures == "captions":
        scores = measure_captions(settings, parts, examples["test"], *columns)
    elif task.measures == "rendering":
        scores = tower_scores(trainer.model, examples["test"])
    elif task.measures == "labels":
        scores = _measure_labels(settings, parts, trainer, examples, splits)
        if isinstance(parts.model, MF2ForPreTraining | MF2ForFaceAnalysis) and ours.no_store and not ours.streaming:
            scores |= _measure_elsewhere(settings, parts, trainer, splits)
        figures["inference_cpu_seconds"] = inference_seconds(trainer, splits["test"], parts.processor)
    if settings.trains and splits["validation"] is splits["test"]:
        figures["chosen_on_test_images"] = 1.0
    figures |= {
        "train_images": images_seen(settings.training) if ours.streaming else len(splits["train"]),
        "test_images": len(splits["test"]),
        "trainable_parameters": trainable_parameters(parts.model),
    }
    if trainer.is_world_process_zero():
        if task.measures == "labels" and not ours.streaming:
            baselines = baseline_scores(splits["train"], splits["test"], labels.action_units, labels.emotions)
            scores |= {f"baseline/{name}": value for name, value in baselines.items()}
        if isinstance(parts.model, MF2ForPreTraining) and task.measures == "labels" and examples["test"].captions:
            scores |= language_scores(parts.model, parts.processor, examples["test"], examples["validation"])
        figures |= cost.figures()
        _write(settings, parts, scores, figures, splits["test"], trainer.state.log_history, columns)
    return {**{name: value for name, value in scores.items() if isinstance(value, float)}, **figures}


class Loaded(NamedTuple):
    parts: Parts
    splits: dict[str, Dataset]
    """With the captions that the model learns from."""
    labels: PreTrainedConfig
    columns: tuple[str, ...]
    captions_cut: dict[str, float]


def load_parts(settings: Settings, splits: dict[str, Dataset]) -> Loaded:
    """The model, and the rows and columns of text that it learns from."""
    parts = build_model(settings, splits["train"])
    labels = stage_one_config(parts.model.config)
    splits, columns = with_captions(settings, splits, labels), caption_columns(settings, labels)
    reads = settings.trains and settings.task.measures in ("labels", None)
    cut = fit_caption_lengths(settings, parts, splits["train"], columns) if reads else {}
    return Loaded(parts, splits, labels, columns, cut)


def make_trainer(
    settings: Settings,
    parts: Parts,
    splits: Mapping[str, Dataset],
    columns: tuple[str, ...],
    stores: Path | None = None,
) -> tuple[MF2Trainer, dict[str, MF2Examples]]:
    """stores: the folder of stored outputs, if not that of all runs."""
    ours, task, training = settings.arguments, settings.task, settings.training
    if task.measures == "captions":
        examples = build_examples(settings, parts, splits, stores=stores)
        learned = {name: made.dataset[columns[0]][:] for name, made in examples.items() if settings.trains}
        faces = {name: CaptionedFaces(examples[name], captions) for name, captions in learned.items()} or examples
        return caption_trainer(parts, training, faces["train"], faces["validation"]), examples
    examples = build_examples(settings, parts, splits, columns, stores)
    if ours.align and not examples["train"].captions:
        raise ValueError(f"align: the data set {ours.dataset} has no captions to align with, or --use_captions False")
    model = parts.model
    if task.trains in ("adapter", "heads"):
        model = adapt(model, ours.task, ours.adapter_options, ours.dfn_states)
    if not ours.no_store:
        root, how = store_root("states", stores), store_options(settings)
        examples = {name: with_states(model, made, root, **how) for name, made in examples.items()}
    learned = examples["train"]
    if ours.balance and settings.trains:
        learned = BalancedExamples(learned, splits["train"]["emotion"][:])
    trainer = MF2Trainer(
        model=model,
        args=training,
        train_dataset=learned,
        eval_dataset=examples.get("validation"),
        data_collator=MF2Collator(parts.processor.tokenizer.pad_token_id) if ours.no_store else collate_stored,
        compute_metrics=metrics_for_trainer(parts.model.config),
        callbacks=[EarlyStoppingCallback(5)] if training.load_best_model_at_end else [],
    )
    trainer.layer_decay, trainer.limits_warmup = task.layer_decay, "warmup_steps" not in settings.given
    return trainer, examples


def _train(trainer: MF2Trainer, settings: Settings, cost: Cost) -> dict[str, float]:
    """Trains, from the last whole checkpoint if there is one. -> what an epoch costs, if that is known."""
    training = settings.training
    resumed = last_good_checkpoint(training.output_dir)
    cost.begin_training(trainer, resumed)
    steps, training.max_steps = training.max_steps, stopped_early(resumed) or training.max_steps
    trainer.train(resume_from_checkpoint=resumed)
    training.max_steps = steps
    seconds = cost.training_cpu_seconds()
    return {} if seconds is None else {"epoch_cpu_seconds": seconds / trainer.state.epoch}


@torch.no_grad()
def round_to_half(model: PreTrainedModel) -> None:
    """Weights as the half-sized file will hold them, before they are measured."""
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.half())


def _measure_labels(
    settings: Settings,
    parts: Parts,
    trainer: MF2Trainer,
    examples: Mapping[str, MF2Examples],
    splits: Mapping[str, Dataset],
) -> dict[str, float | list]:
    """All processes call it: each predicts its part of the rows."""
    base = {}
    if settings.trains and settings.task.saves == "adapter":
        # Before its own thresholds are tuned: the base answers with those that it came with.
        with trainer.model.disable_adapter():
            scores = measure(trainer, parts.processor, examples, splits, tune=False)
        base = {f"base/{name}": value for name, value in scores.items() if name in (*UNIT_TWO, *EMOTION_FOUR)}
    scores = measure(trainer, parts.processor, examples, splits, tune=settings.trains) | base
    if isinstance(parts.model, VLFAUForFaceAnalysis) and examples["test"].captions:
        scores |= word_scores(parts.model, parts.processor, examples["test"])
    return scores


def _measure_elsewhere(
    settings: Settings, parts: Parts, trainer: MF2Trainer, splits: Mapping[str, Dataset]
) -> dict[str, float]:
    """A style not trained on, and a linear probe on the same tower."""
    config, scores = parts.model.config, {}
    shifted = other_style(settings.arguments, min(_MOST_SHIFTED, len(splits["test"])))
    if shifted is not None:
        options = {"texts": False, "details": details_of(config), "warned": {*LABELS}}
        collator, trainer.data_collator = trainer.data_collator, MF2Collator(parts.processor.tokenizer.pad_token_id)
        result = trainer.predict(MF2Examples(shifted, parts.processor, **options))
        trainer.data_collator = collator
        found = score(config, result.predictions, result.label_ids, config.au_thresholds)
        wanted = (*UNIT_TWO, *EMOTION_FOUR, *DETAIL_FIGURES)
        scores = {f"style_shift/{name}": found[name] for name in wanted if name in found}
    # Its losses would wait for other processes.
    alone = settings.trains and settings.training.world_size == 1
    if alone and config.action_units and splits["validation"] is not splits["test"]:
        scores |= probe_scores(parts.model, parts.processor, splits, shifted)
    return scores


def measure(
    trainer: MF2Trainer,
    processor: MF2Processor,
    examples: Mapping[str, MF2Examples],
    splits: Mapping[str, Dataset],
    tune: bool,
) -> dict[str, float | list]:
    """Scores of the test images. Thresholds are tuned on validation images and kept in the config, unless the config
    has some and `tune` is False, or the validation images are the test's; the processor is calibrated on them too, and
    loses the grades of other weights."""
    rows, config = splits["test"], trainer.model.config
    thresholds, labels = config.au_thresholds, (config.action_units, config.emotions)
    if tune:
        processor.grades = processor.conformal = None
    if (tune or thresholds is None) and splits["validation"] is not rows:
        result = trainer.predict(examples["validation"])
        answers = list(result.predictions[:2])
        if tune and getattr(config, "shape_weight", 0) and config.action_units:
            answers[1] = _calibrated(trainer.model, answers[1], result.label_ids)
        found = probabilities(answers)
        if config.action_units:
            thresholds = config.au_thresholds = tune_thresholds(found[1], result.label_ids[1]).tolist()
        if tune:
            processor.conformal = calibrate(found, result.label_ids, *labels)
    result = trainer.predict(examples["test"])
    answers = (config, result.predictions, result.label_ids, thresholds)
    subjects, groups = (rows[name][:] if name in rows.column_names else None for name in ("subject", "group"))
    scores = score(*answers, subjects) | (group_scores(*answers, groups) if groups else {})
    if processor.conformal is not None:
        scores |= coverage(
            probabilities(result.predictions), result.label_ids, *labels, processor.conformal, thresholds or []
        )
    return scores


def _calibrated(model: torch.nn.Module, au_logits: np.ndarray, labels: Sequence[np.ndarray]) -> np.ndarray:
    """The logits as the heads give them once they are calibrated on these."""
    *_, heads = (module for module in model.modules() if isinstance(module, MF2Classifiers))  # an adapter's are last
    parts = (torch.as_tensor(part, device=heads.unit_scale.device) for part in (au_logits, labels[1], labels[3]))
    logits, units, intensities = parts
    return heads.calibrate(logits.float(), units, intensities.float() if intensities.numel() else None).cpu().numpy()


_NEXT = {
    "model": "mf2 PHOTO.jpg --model {folder}",
    "adapter": "mf2 PHOTO.jpg --adapter {folder}",
    "tower": "python train.py --vision_name_or_path {folder}",
    "compared": "python train.py --model {model} --task evaluate --model_name_or_path {folder}",
}


def _write(
    settings: Settings,
    parts: Parts,
    scores: Mapping[str, float | list],
    figures: Mapping[str, float],
    test_rows: Dataset,
    history: list[dict[str, float]],
    columns: tuple[str, ...],
) -> None:
    """The run's files. metrics.json comes after the weights: a run that has one counts as finished."""
    folder, ours = settings.folder, settings.arguments
    synthetic, data = name_data(ours.dataset, test_rows, "chosen_on_test_images" in figures)
    if settings.trains:
        parts.processor.au_thresholds = getattr(parts.model.config, "au_thresholds", None)
        save_parts(folder, parts, tower_alone=settings.task.saves == "tower", half=ours.save_half)
    write_scores(folder, scores, figures)
    draw_scores(folder, scores, parts.model.config, data)
    draw_curves(folder, history, data, loss_names(parts.model))
    if settings.trains:
        write_card(folder, run_facts(settings, figures, synthetic=synthetic, captions=columns))
    print(f"\n{data}, from images alone; subjects unseen in training; cost {figures['cpu_seconds']:.0f} CPU-seconds")
    print(tables(scores))
    named = {f"baseline/{name}": words for name, words in BASELINES.items()} | LANGUAGE_FIGURES | DETAIL_FIGURES
    named |= SHIFT_FIGURES | TOWER_FIGURES
    print("\n".join(["", *(f"{name:<40} {scores[name]:6.3f}  {named[name]}" for name in named if name in scores)]))
    if settings.trains:
        print(f"\nsaved: {folder}\nnext: {_NEXT[settings.task.saves].format(folder=folder, model=ours.model)}")
    if settings.push_to_hub:
        print(f"\npublished: {publish(folder, settings.training, settings.hub_token)}")
