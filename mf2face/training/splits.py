"""What a run learns from and is measured on: the splits of a data set, and their rows as a model's examples."""

from dataclasses import replace
from pathlib import Path

import datasets
from datasets import Dataset
from transformers import PreTrainedModel, TrainingArguments

from mf2face.captions.styles import CAPTIONS
from mf2face.data.examples import LABELS, MF2Examples
from mf2face.data.schema import SPLITS, check_leaks
from mf2face.data.streaming import MF2StreamedExamples, stream_splits
from mf2face.data.synthetic.faces import CORPUS, MFASynthetic
from mf2face.training.arguments import MF2Arguments
from mf2face.training.finetuning import MF2Views
from mf2face.training.stores import load_or_store_vision
from mf2face.training.tasks import SYSTEMS, captions_of
from modeling_mf2.pretraining import MF2ForPreTraining
from processing_mf2.geometry import SLIGHT, MF2Augmentation
from processing_mf2.processing_mf2 import MF2Processor


def load_splits(arguments: MF2Arguments) -> dict[str, Dataset]:
    """The rows of each split; the column `split` says which, or the dataset's own splits do."""
    if arguments.streaming:
        drawn = {"n": arguments.num_images, "style": arguments.style, "seed": arguments.people_seed}
        return stream_splits(arguments.dataset, **drawn, label_set=arguments.label_set)
    if arguments.dataset == "synthetic":
        rows = MFASynthetic(
            arguments.num_images, arguments.style, seed=arguments.people_seed, label_set=arguments.label_set
        )
    elif (Path(arguments.dataset) / "dataset_info.json").is_file() or (
        Path(arguments.dataset) / "dataset_dict.json"
    ).is_file():
        rows = datasets.load_from_disk(arguments.dataset)
    else:
        rows = datasets.load_dataset(arguments.dataset)
    if isinstance(rows, dict):
        splits = {name: rows[name] for name in SPLITS if name in rows}
    else:
        names = rows["split"][:]
        splits = {name: rows.select([i for i, split in enumerate(names) if split == name]) for name in SPLITS}
        if arguments.dataset != "synthetic":
            check_leaks(rows)
    splits = {name: part for name, part in splits.items() if len(part)}
    if "train" not in splits or not set(splits) & {"validation", "test"}:
        raise ValueError(
            f"dataset: {arguments.dataset} has rows in the splits {sorted(splits)}, expected train, and validation or "
            "test, by a column `split` or by files of these names"
        )
    splits.setdefault("validation", splits.get("test"))
    splits.setdefault("test", splits["validation"])
    return splits


def name_data(dataset: str, rows: Dataset) -> tuple[bool, str]:
    """Whether the faces are drawn, and what figures on these test rows are to be called."""
    corpora = set(rows["corpus"][:]) if "corpus" in rows.column_names else set()
    synthetic = dataset == "synthetic" or corpora == {CORPUS}
    return synthetic, f"{'synthetic faces' if synthetic else dataset}, {len(rows)} test images"


def build_examples(
    arguments: MF2Arguments,
    training: TrainingArguments,
    model: PreTrainedModel,
    processor: MF2Processor,
    splits: dict[str, Dataset],
) -> dict[str, MF2Examples]:
    if arguments.store_vision and arguments.task != "tower" and not model.base_model.vision.config.frozen:
        raise ValueError(
            "store_vision: got True with a vision tower that is trained, expected False: what it answers changes"
        )
    examples = {}
    # What a dataset lacks is said once: not for each split, nor by each process.
    told = set() if training.process_index == 0 else {*LABELS, *CAPTIONS}
    for name, rows in splits.items():
        learning = name == "train"
        if learning and arguments.task == "tower" and not arguments.use_labels:
            rows = rows.remove_columns([label for label in LABELS if label in (rows.column_names or LABELS)])
            told.update(LABELS)
        streamed = {"rank": training.process_index, "world_size": training.world_size} if learning else {}
        texts: bool | tuple[str, ...] = isinstance(model, MF2ForPreTraining) and arguments.use_captions
        if arguments.model in SYSTEMS:
            texts = captions_of(model)
        shared = {"texts": texts, "landmarks": arguments.landmarks == "dataset", "warned": told}
        made = (MF2StreamedExamples if learning and arguments.streaming else MF2Examples)(
            rows,
            processor,
            **(streamed if arguments.streaming else {}),
            augment=MF2Augmentation() if learning and arguments.augment else None,
            seed=training.seed,
            **shared,
        )
        if arguments.store_vision and arguments.task != "tower":
            plain = MF2Examples(rows, processor, texts=False, warned=told)
            root = Path(datasets.config.HF_DATASETS_CACHE) / "mf2_vision"
            made.stored = load_or_store_vision(model.base_model.vision, plain, root)
        if learning and arguments.views > 1:
            # Every other one is mirrored.
            slight = [replace(SLIGHT, flip=float(number % 2)) for number in range(1, arguments.views)]
            views = [MF2Examples(rows, processor, augment=s, seed=n, **shared) for n, s in enumerate(slight, start=1)]
            made = MF2Views([made, *views], training.seed)
        examples[name] = made
    return examples


__all__ = ["build_examples", "load_splits"]
