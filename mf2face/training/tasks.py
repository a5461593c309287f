"""Everything that train.py can do, as one table: a row a model and task. Loads neither torch nor a model."""

import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal


@dataclass(frozen=True)
class System:
    """A compared system: its name and paper, for cards."""

    title: str
    paper: str


SYSTEMS: Mapping[str, System] = {
    "vl_fau": System(
        "VL-FAU",
        "Towards End-to-End Explainable Facial Action Unit Recognition via Vision-Language Joint Learning (Ge et al.)",
    ),
    "exp_blip": System(
        "Exp-BLIP",
        "Describe Your Facial Expressions by Linking Image Encoders and Large Language Models (Yuan et al.)",
    ),
    "me_graph_au": System(
        "ME-GraphAU",
        "Learning Multi-dimensional Edge Feature-based AU Relation Graph for Facial Action Unit Recognition "
        "(Luo et al.)",
    ),
    "hsemotion": System("HSEmotion", "HSEmotion: High-Speed Emotion Recognition Library (Savchenko)"),
}

# Where transformers' defaults differ from the paper's Table VI. The tiny size is for two CPU cores.
COMMON: Mapping[str, Any] = {
    "weight_decay": 0.05,
    "lr_scheduler_type": "cosine",
    "save_strategy": "epoch",
    "eval_strategy": "epoch",
    "logging_steps": 20,
    "save_total_limit": 2,
    "load_best_model_at_end": True,
    "metric_for_best_model": "selection",
    "greater_is_better": True,
    "remove_unused_columns": False,
    "max_grad_norm": 1.0,
    "per_device_eval_batch_size": 64,
    "restore_callback_states_from_checkpoint": True,  # how long early stopping has waited
}
PAPER = {"learning_rate": 1e-4, "warmup_steps": 2000, "num_train_epochs": 30, "per_device_train_batch_size": 56}
SMALL = {"learning_rate": 5e-4, "warmup_steps": 0.1, "num_train_epochs": 10, "per_device_train_batch_size": 64}
TINY = {"learning_rate": 2e-3, "warmup_steps": 50, "num_train_epochs": 4, "per_device_train_batch_size": 64}
WARMUP_SHARE = 0.1
"""Of a run so short that the default warm-up would be more than a third of it."""


@dataclass(frozen=True)
class Preset:
    """Settings that belong together, by `--preset`."""

    options: Mapping[str, Any]
    """Ours: another value beside the preset is an error."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """TrainingArguments, before the task's defaults; what is given on the command line goes first, and the card says
    so."""


# Table VI's batch of 56 in parts; precision, checkpointing and parts are ours, so that a run fits on one A6000 (48 GB).
_FITS = {"bf16": True, "activation_checkpointing": True, "dataloader_num_workers": 4}
# A tower reads one vector a state, as IISAN's read a CLS token: a text's [CLS], and the mean of the queries.
_PAPER_DFN = ('pathways=["visual", "language"]', 'pooling={"visual": "mean", "language": "cls"}', "layers=7")
_PAPER_DFN += ("bottleneck=64", "dropout=0.0", "readout=add")
PRESETS: Mapping[str, Preset] = {
    "paper-giant": Preset(
        {"model_size": "giant", "tower_dtype": "bfloat16"},
        {
            **_FITS,
            "per_device_train_batch_size": 14,
            "gradient_accumulation_steps": 4,
            "per_device_eval_batch_size": 32,
        },
    ),
    "paper-base": Preset(
        {"model_size": "base", "tower_dtype": "bfloat16"},
        {**_FITS, "per_device_train_batch_size": 28, "gradient_accumulation_steps": 2},
    ),
    "small": Preset({"model_size": "small"}),
    "tiny": Preset({"model_size": "tiny"}),
    # All four towers learn: those of text by the contrastive loss, so that captions are needed and nothing is stored.
    "paper-dfn": Preset({"task": "dfn", "align": True, "adapter_options": list(_PAPER_DFN)}, PAPER),
    "paper-vl-fau": Preset({"model": "vl_fau", "model_size": "base", "augment": "light"}),
}


@dataclass(frozen=True)
class Task:
    builds: str
    """The model's class."""
    trains: Literal["all", "above the tower", "adapter", "heads"]
    learns: tuple[Literal["captions", "labels"], ...]
    """The losses' sources; a batch holds captions only where they are learned from."""
    measures: Literal["labels", "captions", "rendering"] | None = "labels"
    stores: tuple[Literal["tokens", "states"], ...] = ()
    """Outputs of frozen parts that are computed once: the tower's tokens, the states that the trained part reads."""
    captions: Mapping[str, str | None] = field(default_factory=dict)
    """Columns of text of a compared system, each with the field of its config that switches it off."""
    built_by: str = "mf2face.training.build:build_from_config"
    needs: str | None = None
    """The checkpoint that `model_name_or_path` has to name."""
    adapts_released: bool = False
    """At the tiny size the released checkpoint is the default."""
    saves: Literal["model", "tower", "adapter", "compared"] = "model"
    pipeline_tag: str = "image-classification"
    layer_decay: float | None = None
    augmentation: Mapping[str, float] = field(default_factory=dict)
    """What `--augment light` changes otherwise than by default."""
    unused: tuple[str, ...] = ()
    """Options that would have no effect, and are refused."""
    output: str = "mf2"
    defaults: Mapping[str, Any] = field(default_factory=dict)
    tiny: Mapping[str, Any] = field(default_factory=dict)
    full_size: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Training arguments that nothing overrules."""

    @property
    def model_class(self) -> type:
        return pkgutil.resolve_name(self.builds)

    def training_defaults(self, size: str) -> dict[str, Any]:
        of_size = {"tiny": TINY, "small": SMALL}.get(size, PAPER)
        own = self.tiny if size == "tiny" else self.full_size
        return {**COMMON, "output_dir": f"outputs/{self.output}", **of_size, **self.defaults, **own}


LAYER_DECAY = 0.95  # Exp-BLIP's supplement, Table 12
_FOR_ADAPTERS = ("align", "adapter_options", "dfn_states")
_FOR_EXP_BLIP = ("caption_set", "features", "language_model_name_or_path")
_FIXED_INPUT = ("use_captions", "landmarks")
_COMPARED_UNUSED = (*_FOR_ADAPTERS, "branches", "views")
_NO_QFORMER = (
    "tower_dtype",
    "store_vision",
    "text_name_or_path",
    "qformer_name_or_path",
    "tokenizer_name_or_path",
    *_FOR_EXP_BLIP,
)

_MF2 = Task(
    builds="modeling_mf2.modeling_mf2:MF2ForFaceAnalysis",
    trains="above the tower",
    learns=("labels",),
    stores=("tokens",),
    unused=(*_FOR_ADAPTERS, *_FOR_EXP_BLIP),
)
_ADAPTER = replace(
    _MF2,
    trains="adapter",
    saves="adapter",
    needs="the model that is adapted",
    adapts_released=True,
    unused=_FOR_EXP_BLIP,
    defaults={"num_train_epochs": 10},
)
_TOWER = replace(
    _MF2,
    builds="mf2face.training.tower:MF2ForTowerTraining",
    trains="all",
    stores=(),
    saves="tower",
    pipeline_tag="image-feature-extraction",
    unused=(*_MF2.unused, "views", "store_vision"),
    output="tower",
    defaults={"learning_rate": 1e-3, "num_train_epochs": 6},
)
_EXP_BLIP = Task(
    builds="modeling_mf2.baselines.exp_blip:ExpBlipForPreTraining",
    trains="above the tower",
    learns=("captions",),
    captions={"exp_blip_{caption_set}": None},
    saves="compared",
    output="exp_blip",
    full_size={"num_train_epochs": 20, "per_device_train_batch_size": 32, "learning_rate": 1e-5, "warmup_steps": 1000},
)
_EXP_BLIP_UNUSED = (*_COMPARED_UNUSED, *_FIXED_INPUT, "streaming")
_EXP_BLIP_CLASSIFIER = replace(
    _EXP_BLIP,
    builds="modeling_mf2.baselines.exp_blip:ExpBlipForFaceAnalysis",
    built_by="mf2face.training.exp_blip:build_classifier_of",
    needs="the folder of its stage 1 (--task pretrain) or stage 2 (--task caption), whose features are classified",
    learns=("labels",),
    captions={},
    unused=(*_EXP_BLIP_UNUSED, "language_model_name_or_path"),
)


def _compared(
    name: str, builds: str, full_size: Mapping[str, Any], unused: tuple[str, ...] = (), **fields: Any
) -> dict[tuple[str, str], Task]:
    """The rows of a system whose backbone is trained too, as its authors do, so at a lower rate."""
    unused = (*_COMPARED_UNUSED, *_NO_QFORMER, *unused)
    train = Task(
        builds,
        trains="all",
        **{"learns": ("labels",), **fields},
        saves="compared",
        output=name,
        unused=(*unused, *_FIXED_INPUT),
        tiny={"learning_rate": 1e-3},
        full_size=full_size,
    )
    return {(name, "full"): train, (name, "evaluate"): replace(train, unused=unused, needs="the model to measure")}


TASKS: Mapping[tuple[str, str], Task] = {
    ("mf2", "pretrain"): replace(
        _MF2,
        builds="modeling_mf2.pretraining:MF2ForPreTraining",
        learns=("captions", "labels"),
        unused=(*_MF2.unused, "views"),
    ),
    ("mf2", "full"): _MF2,
    ("mf2", "dfn"): replace(
        _ADAPTER,
        stores=("states",),  # it reads the tower's blocks: the tokens alone are of no use
        unused=(*_ADAPTER.unused, "store_vision"),
        output="dfn",
        tiny={"learning_rate": 3e-3},
    ),
    ("mf2", "lora"): replace(_ADAPTER, output="lora", unused=(*_ADAPTER.unused, "dfn_states")),
    ("mf2", "ia3"): replace(_ADAPTER, output="ia3", unused=(*_ADAPTER.unused, "dfn_states")),
    ("mf2", "linear_probe"): replace(
        _ADAPTER,
        trains="heads",
        saves="model",
        stores=("tokens", "states"),
        unused=_MF2.unused,
        output="linear_probe",
    ),
    ("mf2", "tower"): replace(
        _TOWER,
        learns=(),
        measures="rendering",
        unused=(*_TOWER.unused, "streaming", "use_captions"),
        tiny={"learning_rate": 2e-3, "num_train_epochs": 12, "warmup_steps": 100},
        fixed={"load_best_model_at_end": False, "eval_strategy": "no"},
    ),
    ("mf2", "tower_by_labels"): _TOWER,
    ("mf2", "evaluate"): replace(_MF2, needs="the model to measure"),
    **_compared(
        "vl_fau",
        "modeling_mf2.baselines.vl_fau:VLFAUForFaceAnalysis",
        learns=("captions", "labels"),
        captions={"vl_fau_global": "use_glga", "vl_fau_local": "use_llga"},
        unused=("streaming",),
        augmentation=dict.fromkeys(("rotate", "brightness", "contrast", "saturation"), 0.0),  # crop, flip and cutout
        full_size={"num_train_epochs": 15, "per_device_train_batch_size": 64, "weight_decay": 5e-4},
    ),
    **_compared(
        "me_graph_au",
        "modeling_mf2.baselines.me_graph_au:MEGraphAUForFaceAnalysis",
        full_size={"num_train_epochs": 20, "per_device_train_batch_size": 64, "weight_decay": 5e-4},
    ),
    **_compared(
        "hsemotion",
        "modeling_mf2.baselines.hsemotion:HSEmotionForFaceAnalysis",
        full_size={"num_train_epochs": 10, "per_device_train_batch_size": 64},
    ),
    ("exp_blip", "pretrain"): replace(
        _EXP_BLIP,
        measures=None,  # the alignment is measured by what the other tasks make of its features
        stores=("tokens",),
        pipeline_tag="image-feature-extraction",
        layer_decay=LAYER_DECAY,
        unused=(*_EXP_BLIP_UNUSED, "features", "language_model_name_or_path"),
        fixed={"load_best_model_at_end": False, "eval_strategy": "no"},
    ),
    ("exp_blip", "caption"): replace(
        _EXP_BLIP,
        builds="modeling_mf2.baselines.exp_blip:ExpBlipTowerCaptioner",
        built_by="mf2face.training.exp_blip:build_captioner_of",
        needs="the folder of its stage 1 (--task pretrain)",
        trains="all",
        measures="captions",
        pipeline_tag="image-to-text",
        layer_decay=LAYER_DECAY,
        unused=(*_EXP_BLIP_UNUSED, "features", "augment", "vision_name_or_path", "store_vision", "model_options"),
        fixed={"metric_for_best_model": "loss", "greater_is_better": False},
    ),
    ("exp_blip", "linear_probe"): replace(_EXP_BLIP_CLASSIFIER, trains="heads", stores=("tokens",)),
    ("exp_blip", "full"): replace(_EXP_BLIP_CLASSIFIER, trains="all", layer_decay=LAYER_DECAY),
    ("exp_blip", "evaluate"): replace(
        _EXP_BLIP_CLASSIFIER, needs="the model to measure", unused=(*_COMPARED_UNUSED, "streaming")
    ),
}
"""`evaluate` measures like the task that trained the checkpoint. The first task of a model is its default."""

MODELS = tuple(dict.fromkeys(model for model, _ in TASKS))


def tasks_of(model: str) -> tuple[str, ...]:
    """The tasks of a model, its default first."""
    return tuple(task for name, task in TASKS if name == model)
