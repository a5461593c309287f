"""What a run works on: the splits of its data set, its model, and their rows as the model's examples."""

import dataclasses
import logging
import pkgutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import timm
import torch
from datasets import Dataset, IterableDataset, concatenate_datasets
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from configuration_mf2.baselines import ComparedConfig
from configuration_mf2.configuration_mf2 import MF2Config, MF2VisionConfig
from configuration_mf2.facs import LabelSet, resolve_label_set
from configuration_mf2.json_files import read_json
from mf2face.captions.styles import CAPTIONS, PROCESSOR_INPUTS, check_captions, with_rule_captions
from mf2face.data.build.own import PREFIX, build_own
from mf2face.data.examples import LABELS, MF2Examples, RowReader
from mf2face.data.protocols import combine, complete_splits, fold_splits
from mf2face.data.schema import SPLITS, check_leaks
from mf2face.data.streaming import MF2StreamedExamples, stream_splits
from mf2face.data.synthetic.faces import CORPUS, MFASynthetic
from mf2face.data.synthetic.subjects import STYLES, is_rendered
from mf2face.files import RELEASED
from mf2face.training.arguments import MF2Arguments, Settings, dataset_names, read_options
from mf2face.training.finetuning import MF2Views
from mf2face.training.stores import load_or_store
from mf2face.training.tasks import SYSTEMS, TASKS
from mf2face.training.tower import TowerExamples
from modeling_mf2.baselines.base import load_backbone_weights, occurrence_weights
from modeling_mf2.convert import load_bert_weights, load_blip2_weights, load_vision_weights
from processing_mf2.augmentation import HEAVY, SLIGHT, MF2Augmentation
from processing_mf2.detection import MediaPipeDetector
from processing_mf2.image_io import read_image
from processing_mf2.processing_mf2 import PREPARATION, MF2Processor, encode_texts
from processing_mf2.tokenizer import load_bert_tokenizer, tokenizer_of_weights


logger = logging.getLogger(__name__)

CHOSEN = ", the epoch chosen on these images"
AUGMENTATIONS = {"none": None, "light": MF2Augmentation(), "heavy": HEAVY}

LANGUAGE_TOKENIZER = "language_tokenizer"
"""The folder of a tokenizer that is not the processor's."""


class Parts(NamedTuple):
    model: PreTrainedModel
    processor: MF2Processor
    tokenizer: PreTrainedTokenizerBase
    """The processor's, or that of the captioner's language model."""


def with_sources(settings: Settings) -> Settings:
    """Settings that name the weights to start from, and the task that trained them where they are only measured."""
    ours, task = settings.arguments, settings.task
    checkpoint, tower = ours.model_name_or_path, ours.vision_name_or_path
    if checkpoint is None and task.adapts_released:
        checkpoint = str(RELEASED)
    if checkpoint or tower == "none":
        tower = None
    elif tower is None and task.saves != "tower" and ours.model_size == "tiny" and RELEASED.is_dir():
        tower = str(RELEASED)
    if not settings.trains:
        task = TASKS[ours.model, trained_task(checkpoint, ours.model)]
        if task.measures is None:
            stage = f"{checkpoint} is {SYSTEMS[ours.model].title}'s stage 1, which answers nothing"
            raise ValueError(f"model_name_or_path: {stage}; expected what --task caption, linear_probe or full made")
    elif ours.align:
        learner = TASKS[ours.model, "pretrain"]
        task = replace(task, builds=learner.builds, learns=learner.learns)
    ours = replace(ours, model_name_or_path=checkpoint, vision_name_or_path=tower)
    return replace(settings, task=task, arguments=ours)


def trained_task(checkpoint: str, model: str) -> str:
    """The task that made a checkpoint: pretrain, caption, or full for any that classifies."""
    try:
        saved, _ = PreTrainedConfig.get_config_dict(checkpoint)
    except OSError:  # an adapter's folder has no config.json
        return "full"
    if saved.get("exp_blip"):
        return "caption" if model == "exp_blip" else "full"
    pretrained = any(name.endswith("ForPreTraining") for name in saved.get("architectures") or ())
    return "pretrain" if pretrained and saved.get("model_type") == model else "full"


def build_model(settings: Settings, train_rows: Dataset | None = None) -> Parts:
    """A model, in most cases by `build_from_config`. train_rows: their labels tell how rare each AU is."""
    parts = pkgutil.resolve_name(settings.task.built_by)(settings, train_rows)
    if (dtype := settings.arguments.tower_dtype) != "float32":
        tower = getattr(parts.model.base_model, "vision", None)
        if tower is None or not tower.config.frozen:
            raise ValueError(f"tower_dtype: got {dtype!r} without a frozen tower, expected 'float32'")
        tower.to(getattr(torch, dtype))
    return parts


def build_from_config(settings: Settings, train_rows: Dataset | None) -> Parts:
    """As a checkpoint holds it, but for `--model_options`; or new, with the pretrained parts that are named."""
    ours, model_class = settings.arguments, settings.task.model_class
    own = read_options("model_options", ours.model_options, model_class.config_class)
    if ours.model_name_or_path:
        model = model_class.from_pretrained(ours.model_name_or_path, **own)
        check_caption_set(model.config, ours.caption_set, ours.model_name_or_path)
        processor = MF2Processor.from_pretrained(ours.model_name_or_path)
        if settings.trains and settings.task.trains != "all" and model.config.model_type == "mf2":
            # As in a new model: pre-training may have trained the tower too, what builds on it does not unless told to.
            vision = model.base_model.vision
            vision.config.frozen = own.get("vision_config", {}).get("frozen", True)
            vision.requires_grad_(not vision.config.frozen)
        if not settings.trains and processor.au_thresholds is not None:
            model.config.au_thresholds = processor.au_thresholds  # an adapter's; the config has its base's
        return Parts(model, processor, processor.tokenizer)
    if ours.model == "mf2" and "au_sides" in (getattr(train_rows, "column_names", None) or ()):
        own = {"sides": True, "intensities": True, **own}  # which rendering knows
    config = _new_config(settings, model_class.config_class, own)
    compared = isinstance(config, ComparedConfig)
    if compared and config.au_class_weights is None and config.action_units and train_rows is not None:
        if isinstance(train_rows, Dataset) and "au_labels" in train_rows.column_names:
            config.au_class_weights = occurrence_weights(torch.tensor(train_rows["au_labels"][:]))
        else:
            logger.warning("au_class_weights: no labels to count before training begins; every AU counts 1")
    tokenizer = _pretrained_tokenizer(ours)
    if tokenizer is not None:
        config.vocab_size = len(tokenizer)
    processor = MF2Processor.for_model(config, tokenizer)
    model = model_class(config)
    tower, blip2 = ours.vision_name_or_path, ours.qformer_name_or_path
    has_vision = blip2 is not None and tower is None and ours.model == "exp_blip"
    if tower is not None:
        report = (load_backbone_weights if compared else load_vision_weights)(model, tower)
        logger.info("%s", f"backbone from {tower}, without {len(report)} tensors" if compared else report)
    elif settings.task.saves != "tower" and not has_vision:
        logger.warning("the vision tower has random weights: name some in --vision_name_or_path")
    if ours.text_name_or_path is not None:
        logger.info("%s", load_bert_weights(model, ours.text_name_or_path))
    if blip2 is not None:
        logger.info("%s", load_blip2_weights(model, blip2, vision=has_vision))
    return Parts(model, processor, processor.tokenizer)


def _pretrained_tokenizer(ours: MF2Arguments) -> PreTrainedTokenizerBase | None:
    """That of the named weights; None for our own, of the rule's captions."""
    if ours.tokenizer_name_or_path is not None:
        return load_bert_tokenizer(ours.tokenizer_name_or_path)
    weights = [name for name in (ours.text_name_or_path, ours.qformer_name_or_path) if name is not None]
    return tokenizer_of_weights(*weights) if weights else None


def _new_config(settings: Settings, config_class: type[PreTrainedConfig], own: dict[str, Any]) -> PreTrainedConfig:
    ours, task = settings.arguments, settings.task
    fields: dict[str, Any] = {"label_set": ours.label_set}
    tower = ours.vision_name_or_path
    pixels = {}
    if tower and not Path(tower).exists() and timm.is_model(tower):  # MAE's, say, has another mean than timm's own ViT
        known = timm.get_pretrained_cfg(tower)
        pixels = {"image_mean": list(known.mean), "image_std": list(known.std)}
    if not issubclass(config_class, ComparedConfig):
        shape = {"label_taught": ours.task == "tower_by_labels"} if task.saves == "tower" else tower_fields(ours)
        fields["vision_config"] = {**shape, "frozen": task.trains != "all", **pixels, **own.pop("vision_config", {})}
    else:
        fields |= pixels | (_same_tower(tower_fields(ours)) if ours.model_size == "tiny" else {})
    if "branches" not in task.unused:
        has_units = bool(resolve_label_set(ours.label_set).action_units)
        fields |= {"use_emo_branch": ours.branches != "au", "use_au_branch": ours.branches != "emo" and has_units}
    if ours.caption_set is not None:
        fields["caption_set"] = ours.caption_set
    return config_class.from_size(ours.model_size, **fields | own)


def tower_fields(arguments: MF2Arguments) -> dict[str, Any]:
    """The shape of the tower that a run starts from, and how its images are prepared, where a folder tells it."""
    file = Path(arguments.vision_name_or_path or "none") / "config.json"
    saved = read_json(file) if file.is_file() else {}
    saved = saved.get("vision_config", saved) if isinstance(saved, dict) else {}
    if saved.get("model_type") != MF2VisionConfig.model_type:
        return {}
    vision = MF2VisionConfig.from_dict(saved)  # what a file lacks has the class's default, not the size's
    own = {field.name for field in dataclasses.fields(MF2VisionConfig)}
    own -= {"frozen", *(field.name for field in dataclasses.fields(PreTrainedConfig))}
    return {name: getattr(vision, name) for name in own}


def _same_tower(shape: Mapping[str, Any]) -> dict[str, Any]:
    """A compared system's fields for MF²'s small tower and its images; none for a timm tower, which is named."""
    if shape.get("backbone") != "conv":
        return {}
    kwargs = {"width": shape["hidden_size"], "patch_size": shape["patch_size"], **shape["backbone_kwargs"]}
    images = ("image_size", "image_mean", "image_std", *PREPARATION)
    return {"backbone_kwargs": kwargs, **{name: shape[name] for name in images}}


def check_caption_set(config: PreTrainedConfig, caption_set: str | None, source: object) -> None:
    if caption_set not in (None, getattr(config, "caption_set", None)):
        trained = f"{source} was trained with {config.caption_set!r}"
        raise ValueError(f"caption_set: got {caption_set!r}, but {trained}; name that, or train another stage 1")


def save_parts(folder: Path, parts: Parts, *, tower_alone: bool = False, half: bool = False) -> None:
    model, processor, tokenizer = parts
    if tower_alone:
        model.vision.save_pretrained(folder)
    else:
        state = {name: t.half() if t.is_floating_point() else t for name, t in model.state_dict().items()}
        model.save_pretrained(folder, state_dict=state if half else None)
    processor.save_pretrained(folder)
    if tokenizer is not processor.tokenizer:
        tokenizer.save_pretrained(Path(folder) / LANGUAGE_TOKENIZER)


def load_splits(arguments: MF2Arguments) -> dict[str, Dataset]:
    """The rows to train, choose and report on: by the column `split` or the dataset's own splits, completed by people
    (`complete_splits`), or of one fold. Where too few people are known, validation and test are the same object."""
    names, divided = dataset_names(arguments.dataset), arguments.divide_splits
    if arguments.streaming:
        drawn = {"style": arguments.style, **_synthetic_options(arguments)}
        return stream_splits(_source(names[0], arguments), divided=divided, n=arguments.num_images, **drawn)
    parts = {name: _load_rows(name, arguments) for name in names}
    for name, splits in parts.items():
        usable = len(splits) if arguments.folds else "train" in splits and (len(splits) > 1 or len(parts) > 1)
        if not usable:
            expected = "train, and validation or test, by a column `split` or by files of these names"
            raise ValueError(f"dataset: {name} has rows in the splits {sorted(splits)}, expected {expected}")
        if len(splits) > 1 and not arguments.folds:
            parts[name] = complete_splits(splits, divided)
    splits = parts[names[0]] if len(names) == 1 else combine(parts, arguments.label_set)
    if arguments.folds:
        rows = concatenate_datasets(list(splits.values())) if len(splits) > 1 else next(iter(splits.values()))
        return fold_splits(rows, arguments.folds, arguments.fold)
    if len(splits) < 3:
        raise ValueError(f"dataset: {arguments.dataset} has no validation and no test split, expected one in some part")
    return splits


def _synthetic_options(arguments: MF2Arguments) -> dict[str, Any]:
    return {"seed": arguments.people_seed, "label_set": arguments.label_set}


def _source(name: str, arguments: MF2Arguments) -> str:
    """The folder or name of a data set; of your own pictures, that of the data set which is built of them."""
    if not name.startswith(PREFIX):
        return name
    template = arguments.landmarks == "template"
    return str(build_own(name.removeprefix(PREFIX), arguments.label_set, template=template))


def _load_rows(name: str, arguments: MF2Arguments) -> dict[str, Dataset]:
    """The rows of one data set, by those of its splits that have any."""
    source = _source(name, arguments)
    if name == "synthetic":
        rows = synthetic_faces(arguments.num_images, arguments.style, **_synthetic_options(arguments))
    elif any((Path(source) / file).is_file() for file in ("dataset_info.json", "dataset_dict.json")):
        rows = datasets.load_from_disk(source)
    else:
        rows = datasets.load_dataset(source)
    if not isinstance(rows, dict):
        if name != "synthetic" and not arguments.folds:
            check_leaks(rows)
        sides = rows["split"][:]
        rows = {side: rows.select([i for i, one in enumerate(sides) if one == side]) for side in SPLITS}
    rows = {side: rows[side] for side in SPLITS if side in rows and len(rows[side])}
    if arguments.landmarks == "detector":
        rows = {side: with_detected_landmarks(part) for side, part in rows.items()}
    return rows


_detector = cache(MediaPipeDetector)


def with_detected_landmarks(rows: Dataset) -> Dataset:
    """The rows with landmarks as the detector finds them, where it finds a face."""
    features = datasets.Features({"landmarks": rows.features["landmarks"]})
    settings = {"remove_columns": rows.column_names, "features": features, "desc": "landmarks"}
    return concatenate_datasets([rows.remove_columns("landmarks"), rows.map(_as_detected, **settings)], axis=1)


def _as_detected(row: Mapping[str, Any]) -> dict[str, Any]:
    faces = _detector().detect([read_image(row["image"])])[0]
    return {"landmarks": np.array(faces[0].landmarks if faces else row["landmarks"], np.float32)}


def synthetic_faces(n: int, styles: str, **settings: Any) -> Dataset:
    """`n` faces of one style, or of several joined by "+"; rendered ones with what rendering knows of them."""
    names = styles.split("+")
    counts = [n // len(names) + (place < n % len(names)) for place in range(len(names))]
    parts = [
        MFASynthetic(count, style, with_truth=is_rendered(style), **settings)
        for style, count in zip(names, counts, strict=True)
    ]
    return concatenate_datasets(parts) if len(parts) > 1 else parts[0]


def name_data(dataset: str, rows: Dataset, chosen: bool = False) -> tuple[bool, str]:
    """Whether the faces are synthetic, and what figures on these test rows are to be called. chosen: on these rows."""
    corpora = set(rows["corpus"][:]) if "corpus" in rows.column_names else set()
    synthetic = dataset == "synthetic" or corpora == {CORPUS}
    return synthetic, f"{'synthetic faces' if synthetic else dataset}, {len(rows)} test images{CHOSEN * chosen}"


def caption_columns(settings: Settings, config: PreTrainedConfig) -> tuple[str, ...]:
    """The columns of text that a compared system learns from."""
    used = [name for name, switch in settings.task.captions.items() if getattr(config, switch or "", True)]
    return tuple(name.format(caption_set=getattr(config, "caption_set", None)) for name in used)


def with_captions(settings: Settings, splits: Mapping[str, Dataset], config: PreTrainedConfig) -> dict[str, Dataset]:
    """The splits with the captions that a compared system needs, written by rule where that is wanted."""
    columns, ours = caption_columns(settings, config), settings.arguments
    if columns and ours.captions_by_rule:
        labels, seed = LabelSet(tuple(config.action_units), tuple(config.emotions)), settings.training.seed
        written = {id(rows): with_rule_captions(rows, columns, labels, seed=seed) for rows in splits.values()}
        splits = {name: written[id(rows)] for name, rows in splits.items()}  # what was one object stays one
    if columns and (settings.trains or settings.task.measures == "captions"):
        check_captions(splits["train" if settings.trains else "test"], columns, SYSTEMS[ours.model].title)
    return dict(splits)


def other_style(arguments: MF2Arguments, n: int) -> Dataset | None:
    """`n` faces of the same kind in a style that is not trained on, of other people."""
    trained = arguments.style.split("+")
    kind = [style for style in STYLES if is_rendered(style) == is_rendered(trained[0]) and style not in trained]
    if arguments.dataset != "synthetic" or not kind:
        return None
    rows = synthetic_faces(n, kind[-1], seed=arguments.people_seed, label_set=arguments.label_set)
    return with_detected_landmarks(rows) if arguments.landmarks == "detector" else rows


def details_of(config: PreTrainedConfig) -> list[str]:
    """Labels that a model learns from beside those of AUs and emotions."""
    switches = {"side_labels": "sides", "intensity_labels": "intensities"}
    return [name for name, field in switches.items() if getattr(config, field, False)]


def store_root(kind: str, stores: Path | None = None) -> Path:
    return (stores or Path(datasets.config.HF_DATASETS_CACHE)) / f"mf2_{kind}"


def store_options(settings: Settings) -> dict[str, Any]:
    """Frozen outputs are computed where and as the training computes."""
    ours, training = settings.arguments, settings.training
    return {
        **{"dtype": ours.store_dtype, "rebuild": ours.rebuild_store, "device": training.device},
        "precision": "bfloat16" if training.bf16 else "float16" if training.fp16 else "float32",
        **{"workers": training.dataloader_num_workers, "batch_size": training.per_device_eval_batch_size},
    }


CAPTIONS_COUNTED = 4096


def fit_caption_lengths(
    settings: Settings, parts: Parts, rows: Dataset | IterableDataset, columns: tuple[str, ...] = ()
) -> dict[str, float]:
    """Raises the limits of a new model to what 99 % of the training captions need, counted on up to `CAPTIONS_COUNTED`
    images. -> the share of images whose caption is cut all the same, by column."""
    ours, processor, config = settings.arguments, parts.processor, parts.model.config
    if isinstance(rows, Dataset):
        rows = rows.select(np.unique(np.linspace(0, len(rows) - 1, CAPTIONS_COUNTED).astype(int)))
    rows = rows.select_columns([name for name in rows.column_names if name in (*LABELS, *CAPTIONS, *columns)])
    rows = list(rows if isinstance(rows, Dataset) else rows.take(CAPTIONS_COUNTED // 4))
    reader = RowReader(
        {**rows[0], "image": None}, processor, texts=_texts(settings, columns), warned={*LABELS, *CAPTIONS}
    )
    limits = {"text": "emotion_max_length", "au_sentences": "au_max_length", "key_au_captions": "au_max_length"}
    found: dict[str, np.ndarray] = {}
    for column in reader.captions:
        if PROCESSOR_INPUTS[column] == "au_sentences":
            texts = [reader.sentences(column, row, index, 0) for index, row in enumerate(rows)]
        else:
            texts = [[row[column] or ""] for row in rows]
        words = sorted({text for some in texts for text in some})
        length = dict(zip(words, map(len, encode_texts(processor.tokenizer, words, sys.maxsize, column)), strict=True))
        found[column] = np.array([sum(length[text] for text in some) for some in texts])
    fixed = ours.model_name_or_path or not isinstance(config, MF2Config)
    for column, lengths in found.items():
        name = limits[PROCESSOR_INPUTS[column]]
        if not fixed and not any(option.startswith(f"{name}=") for option in ours.model_options):
            longest = min(branch.max_position_embeddings for branch in (config.emo_config, config.au_config))
            needed = int(np.percentile(lengths, 99, method="higher"))
            limit = min(max(getattr(config, name), needed), longest)
            setattr(config, name, limit), setattr(processor, name, limit)
    shares = {}
    for column, lengths in found.items():
        limit = getattr(config, limits[PROCESSOR_INPUTS[column]])
        shares[f"captions_cut/{column}"] = float((lengths > limit).mean())
        cut, level = (lengths > limit).sum(), logging.WARNING if (lengths > limit).mean() > 0.01 else logging.INFO
        counts = (column, lengths.max(), limit, cut, len(lengths))
        logger.log(level, "%s: at most %d tokens, the limit is %d: %d of %d are cut", *counts)
    return shares


def _texts(settings: Settings, columns: tuple[str, ...]) -> bool | tuple[str, ...]:
    """Which captions examples have: MF²'s three, none, or the columns of a compared system."""
    if settings.arguments.model in SYSTEMS:
        return columns
    return settings.arguments.use_captions and "captions" in settings.task.learns


def build_examples(
    settings: Settings,
    parts: Parts,
    splits: Mapping[str, Dataset],
    columns: tuple[str, ...] = (),
    stores: Path | None = None,
) -> dict[str, MF2Examples]:
    """columns: of text, for a compared system. stores: the folder of stored outputs, if not that of all runs."""
    ours, task, training = settings.arguments, settings.task, settings.training
    tower = parts.model.base_model.vision if ours.store_vision else None
    if tower is not None and not tower.config.frozen:
        raise ValueError("store_vision: got True with a tower that is trained, expected False: its output changes")
    texts = _texts(settings, columns)
    # What a dataset lacks is logged once, not for each split or by each process.
    warned = set() if training.process_index == 0 else {*LABELS, *CAPTIONS}
    shared = {"texts": texts, "landmarks": ours.landmarks != "template", "warned": warned}
    shared["details"] = details_of(parts.model.config)
    examples = {}
    for name in splits if task.measures else ("train",):
        rows, learning = splits[name], name == "train"
        augment = AUGMENTATIONS[ours.augment] if learning else None
        if ours.augment == "light" and augment is not None:
            augment = replace(augment, **task.augmentation)
        if task.measures == "rendering":
            grid = parts.model.config.vision_config.grid_size
            examples[name] = TowerExamples(rows, parts.processor, grid, augment, training.seed)
            continue
        own = {"augment": augment, "seed": training.seed, **shared}
        if learning and ours.streaming:
            ranks = {"rank": training.process_index, "world_size": training.world_size}
            examples[name] = MF2StreamedExamples(rows, parts.processor, **ranks, **own)
            continue
        made = MF2Examples(rows, parts.processor, **own)
        if tower is not None:
            plain = MF2Examples(rows, parts.processor, texts=False, warned=warned)
            made.stored = load_or_store(tower, [plain], store_root("vision", stores), **store_options(settings))
        if learning and ours.views > 1:
            # Every other view is mirrored.
            slight = {number: replace(SLIGHT, flip=float(number % 2)) for number in range(1, ours.views)}
            views = [MF2Examples(rows, parts.processor, augment=a, seed=n, **shared) for n, a in slight.items()]
            made = MF2Views([made, *views], training.seed)
        examples[name] = made
    return examples
