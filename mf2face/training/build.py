"""What a run works on: the splits of its data set, its model, and their rows as the model's examples."""

import dataclasses
import logging
import pkgutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import torch
from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from configuration_mf2.baselines import ComparedConfig
from configuration_mf2.configuration_mf2 import MF2VisionConfig
from configuration_mf2.facs import LabelSet, resolve_label_set
from configuration_mf2.json_files import read_json
from mf2face.captions.styles import CAPTIONS, check_captions, with_rule_captions
from mf2face.data.build.own import PREFIX, build_own
from mf2face.data.examples import LABELS, MF2Examples
from mf2face.data.schema import SPLITS, check_leaks
from mf2face.data.streaming import MF2StreamedExamples, stream_splits
from mf2face.data.synthetic.faces import CORPUS, MFASynthetic
from mf2face.data.synthetic.subjects import is_rendered
from mf2face.files import RELEASED
from mf2face.training.arguments import MF2Arguments, Settings, read_options
from mf2face.training.finetuning import MF2Views
from mf2face.training.stores import load_or_store
from mf2face.training.tasks import SYSTEMS, TASKS
from mf2face.training.tower import TowerExamples
from modeling_mf2.baselines.base import load_backbone_weights, occurrence_weights
from modeling_mf2.convert import load_bert_weights, load_blip2_weights, load_vision_weights
from processing_mf2.augmentation import HEAVY, SLIGHT, MF2Augmentation
from processing_mf2.processing_mf2 import MF2Processor


logger = logging.getLogger(__name__)

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
    return pkgutil.resolve_name(settings.task.built_by)(settings, train_rows)


def build_from_config(settings: Settings, train_rows: Dataset | None) -> Parts:
    """As a checkpoint holds it, but for `--model_options`; or new, with the pretrained parts that are named."""
    ours, model_class = settings.arguments, settings.task.model_class
    own = read_options("model_options", ours.model_options, model_class.config_class)
    if ours.model_name_or_path:
        model = model_class.from_pretrained(ours.model_name_or_path, **own)
        check_caption_set(model.config, ours.caption_set, ours.model_name_or_path)
        processor = MF2Processor.from_pretrained(ours.model_name_or_path)
        if not settings.trains and processor.au_thresholds is not None:
            model.config.au_thresholds = processor.au_thresholds  # an adapter's; the config has its base's
        return Parts(model, processor, processor.tokenizer)
    config = _new_config(settings, model_class.config_class, own)
    compared = isinstance(config, ComparedConfig)
    if compared and config.au_class_weights is None and config.action_units and train_rows is not None:
        if isinstance(train_rows, Dataset) and "au_labels" in train_rows.column_names:
            config.au_class_weights = occurrence_weights(torch.tensor(train_rows["au_labels"][:]))
        else:
            logger.warning("au_class_weights: no labels to count before training begins; every AU counts 1")
    processor = MF2Processor.for_model(config)
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


def _new_config(settings: Settings, config_class: type[PreTrainedConfig], own: dict[str, Any]) -> PreTrainedConfig:
    ours, task = settings.arguments, settings.task
    fields = {"label_set": ours.label_set}
    if not issubclass(config_class, ComparedConfig):
        shape = {"label_taught": ours.task == "tower_by_labels"} if task.saves == "tower" else tower_fields(ours)
        fields["vision_config"] = {**shape, "frozen": task.trains != "all", **own.pop("vision_config", {})}
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
    own = {field.name for field in dataclasses.fields(MF2VisionConfig)}
    own -= {"frozen", *(field.name for field in dataclasses.fields(PreTrainedConfig))}
    # What an older file lacks had its default then, not the size's.
    usual = {"do_grayscale": False, "normalize_per_image": False, "alignment": "steady", "backbone_kwargs": {}}
    return usual | {name: saved[name] for name in own if name in saved}


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
    """The rows of each split; the column `split` says which, or the dataset's own splits do."""
    drawn = {"seed": arguments.people_seed, "label_set": arguments.label_set}
    source = arguments.dataset
    if source.startswith(PREFIX):
        template = arguments.landmarks == "template"
        source = str(build_own(source.removeprefix(PREFIX), arguments.label_set, template=template))
    if arguments.streaming:
        return stream_splits(source, n=arguments.num_images, style=arguments.style, **drawn)
    folder = Path(source)
    if source == "synthetic":
        rows = synthetic_faces(arguments.num_images, arguments.style, **drawn)
    elif any((folder / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
        rows = datasets.load_from_disk(source)
    else:
        rows = datasets.load_dataset(source)
    if isinstance(rows, dict):
        splits = {name: rows[name] for name in SPLITS if name in rows}
    else:
        names = rows["split"][:]
        splits = {name: rows.select([i for i, split in enumerate(names) if split == name]) for name in SPLITS}
        if arguments.dataset != "synthetic":
            check_leaks(rows)
    splits = {name: part for name, part in splits.items() if len(part)}
    if "train" not in splits or len(splits) < 2:
        expected = "train, and validation or test, by a column `split` or by files of these names"
        raise ValueError(f"dataset: {arguments.dataset} has rows in the splits {sorted(splits)}, expected {expected}")
    splits.setdefault("validation", splits.get("test"))
    splits.setdefault("test", splits["validation"])
    return splits


def synthetic_faces(n: int, styles: str, **settings: Any) -> Dataset:
    """`n` faces of one style, or of several joined by "+"; rendered ones with what rendering knows of them."""
    names = styles.split("+")
    counts = [n // len(names) + (place < n % len(names)) for place in range(len(names))]
    parts = [
        MFASynthetic(count, style, with_truth=is_rendered(style), **settings)
        for style, count in zip(names, counts, strict=True)
    ]
    return concatenate_datasets(parts) if len(parts) > 1 else parts[0]


def name_data(dataset: str, rows: Dataset) -> tuple[bool, str]:
    """Whether the faces are drawn, and what figures on these test rows are to be called."""
    corpora = set(rows["corpus"][:]) if "corpus" in rows.column_names else set()
    synthetic = dataset == "synthetic" or corpora == {CORPUS}
    return synthetic, f"{'synthetic faces' if synthetic else dataset}, {len(rows)} test images"


def caption_columns(settings: Settings, config: PreTrainedConfig) -> tuple[str, ...]:
    """The columns of text that a compared system learns from."""
    used = [name for name, switch in settings.task.captions.items() if getattr(config, switch or "", True)]
    return tuple(name.format(caption_set=getattr(config, "caption_set", None)) for name in used)


def with_captions(settings: Settings, splits: Mapping[str, Dataset], config: PreTrainedConfig) -> dict[str, Dataset]:
    """The splits with the captions that a compared system needs, written by rule where that is wanted."""
    columns, ours = caption_columns(settings, config), settings.arguments
    if columns and ours.captions_by_rule:
        labels, seed = LabelSet(tuple(config.action_units), tuple(config.emotions)), settings.training.seed
        splits = {name: with_rule_captions(rows, columns, labels, seed=seed) for name, rows in splits.items()}
    if columns and (settings.trains or settings.task.measures == "captions"):
        check_captions(splits["train" if settings.trains else "test"], columns, SYSTEMS[ours.model].title)
    return dict(splits)


def store_root(kind: str) -> Path:
    return Path(datasets.config.HF_DATASETS_CACHE) / f"mf2_{kind}"


def store_options(settings: Settings) -> dict[str, Any]:
    """Frozen outputs are computed where and as the training computes."""
    ours, training = settings.arguments, settings.training
    return {
        **{"dtype": ours.store_dtype, "rebuild": ours.rebuild_store, "device": training.device},
        "precision": "bfloat16" if training.bf16 else "float16" if training.fp16 else "float32",
        **{"workers": training.dataloader_num_workers, "batch_size": training.per_device_eval_batch_size},
    }


def build_examples(
    settings: Settings, parts: Parts, splits: Mapping[str, Dataset], columns: tuple[str, ...] = ()
) -> dict[str, MF2Examples]:
    """columns: of text, for a compared system."""
    ours, task, training = settings.arguments, settings.task, settings.training
    tower = parts.model.base_model.vision if ours.store_vision else None
    if tower is not None and not tower.config.frozen:
        raise ValueError("store_vision: got True with a tower that is trained, expected False: its output changes")
    texts: bool | tuple[str, ...] = columns
    if ours.model not in SYSTEMS:
        texts = ours.use_captions and "captions" in task.learns
    # What a dataset lacks is logged once, not for each split or by each process.
    warned = set() if training.process_index == 0 else {*LABELS, *CAPTIONS}
    shared = {"texts": texts, "landmarks": ours.landmarks == "dataset", "warned": warned}
    examples = {}
    for name in splits if task.measures else ("train",):
        rows, learning = splits[name], name == "train"
        augment = AUGMENTATIONS[ours.augment] if learning else None
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
            made.stored = load_or_store(tower, [plain], store_root("vision"), **store_options(settings))
        if learning and ours.views > 1:
            # Every other view is mirrored.
            slight = {number: replace(SLIGHT, flip=float(number % 2)) for number in range(1, ours.views)}
            views = [MF2Examples(rows, parts.processor, augment=a, seed=n, **shared) for n, a in slight.items()]
            made = MF2Views([made, *views], training.seed)
        examples[name] = made
    return examples
