"""The tables of a model card, from flat figures: every number of a run, beside chance and what else is known."""

import json
import logging
import math
import os
import platform
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from safetensors import safe_open
from transformers import PreTrainedConfig, TrainingArguments

from configuration_mf2.configuration_mf2 import MF2Config, MF2VisionConfig
from configuration_mf2.facs import ACTION_UNITS
from configuration_mf2.json_files import read_json
from configuration_mf2.version import VERSION
from mf2face.data.metrics import confusion_scores
from mf2face.data.reference_scores import BASELINES
from mf2face.data.synthetic.faces import CORPUS
from mf2face.training.arguments import MF2Arguments
from mf2face.training.evaluation import write_text
from mf2face.training.finetuning import ADAPTERS
from mf2face.training.language import CAPTION_FIGURES, FIGURES, WORD_FIGURES
from mf2face.training.tasks import SYSTEMS
from processing_mf2.processing_mf2 import MF2Processor


logger = logging.getLogger(__name__)

Figures = Mapping[str, float]
MISSING = "–"
EMOTION_FOUR = {
    "emotion_top1": "emotion top-1",
    "emotion_macro_recall": "macro recall",
    "emotion_macro_f1": "macro F1",
    "emotion_ovr_accuracy": "one-vs-rest accuracy",
}
"""One-vs-rest accuracy flatters: none of the four is shown without the others."""

UNIT_TWO = {"au_f1_macro": "AU F1 at 0.5, macro", "au_f1_tuned_macro": "AU F1 at tuned thresholds, macro"}

LANGUAGE = FIGURES | WORD_FIGURES | CAPTION_FIGURES
_LANGUAGE_KINDS = ("itm_", "caption_", "zero_shot_", "retrieval_")
# What captions' scores were made of.
_COUNTS = ("caption_pairs", "caption_no_reference", "caption_empty", "caption_references")


def names_of(figures: Figures, kind: str) -> list[str]:
    return [key.partition("/")[2] for key in figures if key.startswith(f"{kind}/") and key.count("/") == 1]


def always_yes(figures: Figures) -> dict[str, float]:
    """F1 of an AU for who always says that it is active: 2p / (1 + p) at prevalence p."""
    scores = {}
    for name in names_of(figures, "au_prevalence"):
        prevalence = figures[f"au_prevalence/{name}"]
        scores[f"au_f1/{name}"] = 2 * prevalence / (1 + prevalence)
    return {**scores, "au_f1_macro": float(np.mean(list(scores.values())))} if scores else {}


def always_the_commonest(figures: Figures) -> dict[str, float]:
    names = names_of(figures, "emotion_n")
    counts = np.array([figures[f"emotion_n/{name}"] for name in names])
    if not counts.sum():
        return {}
    confusion = np.zeros((len(names), len(names)))
    confusion[:, counts.argmax()] = counts
    return {name: float(value) for name, value in confusion_scores(confusion, names).items()}


def number(figures: Figures, key: str) -> str:
    return f"{figures[key]:.3f}" if math.isfinite(figures.get(key, math.nan)) else MISSING


def count(figures: Figures, key: str) -> str:
    return f"{figures[key]:,.0f}" if key in figures else MISSING


def interval(figures: Figures, key: str) -> str:
    low, high = f"{key}/low", f"{key}/high"
    return f"{figures[low]:.3f} to {figures[high]:.3f}" if low in figures and high in figures else MISSING


def number_and_interval(figures: Figures, key: str) -> str:
    bounds = interval(figures, key)
    return number(figures, key) if bounds == MISSING else f"{number(figures, key)} ({bounds})"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown. A column in which nothing is known is left out; so is a row, and a table without any."""
    rows = [row for row in rows if set(row[1:]) != {MISSING}]
    kept = [0, *(i for i in range(1, len(header)) if any(row[i] != MISSING for row in rows))]
    if not rows or len(kept) == 1:
        return ""
    is_number = [all(row[i] == MISSING or row[i][:1].isdigit() for row in rows) for i in range(len(header))]
    lines = [header, ["---:" if right else "---" for right in is_number], *rows]
    return "\n".join(f"| {' | '.join(line[i].replace('|', '/') for i in kept)} |" for line in lines)


def _four(figures: Figures, words: str) -> list[str]:
    known = [key for key in EMOTION_FOUR if key in figures]
    if known and len(known) < len(EMOTION_FOUR):
        logger.warning("%s: only %s of the emotion scores are known, so none is shown in the card", words, known)
    if len(known) < len(EMOTION_FOUR):
        return [MISSING] * len(EMOTION_FOUR)
    return [number_and_interval(figures, key) for key in EMOTION_FOUR]


def summary_table(figures: Figures) -> str:
    base = {key.removeprefix("base/"): value for key, value in figures.items() if key.startswith("base/")}
    lines = {"**this checkpoint**": figures, "the base without it": base, "always yes": always_yes(figures)}
    lines["always the commonest emotion"] = always_the_commonest(figures)
    rows = [
        [words, *(number_and_interval(scores, key) for key in UNIT_TWO), *_four(scores, words)]
        for words, scores in lines.items()
    ]
    return table(["", *UNIT_TWO.values(), *EMOTION_FOUR.values()], rows)


def baseline_table(figures: Figures) -> str:
    """From keys `baseline/<name>`, the names being those of `BASELINES`."""
    kinds = {"au_f1_": ("AU F1, macro", "au_f1_macro"), "emotion_top1_": ("emotion top-1", "emotion_top1")}
    rows = []
    for name, words in BASELINES.items():
        score, own = next(kind for start, kind in kinds.items() if name.startswith(start))
        if f"baseline/{name}" in figures and name != "au_f1_all_active":  # the summary's "always yes"
            rows.append([words, score, number(figures, f"baseline/{name}"), number(figures, own)])
    return table(["compared with", "score", "value", "this checkpoint"], rows)


def unit_table(figures: Figures) -> str:
    chance = always_yes(figures)
    header = ["AU", "n", "prevalence", "always yes", "F1 at 0.5", "95 % interval"]
    header += ["F1 at tuned threshold", "95 % interval"]
    rows = []
    for name in [*names_of(figures, "au_n"), "macro"]:
        key = "_macro" if name == "macro" else f"/{name}"
        row = [f"{name} {ACTION_UNITS[name].noun}" if name in ACTION_UNITS else name]
        row += [count(figures, f"au_n{key}"), number(figures, f"au_prevalence{key}"), number(chance, f"au_f1{key}")]
        for kind in ("au_f1", "au_f1_tuned"):
            row += [number(figures, kind + key), interval(figures, kind + key)]
        rows.append(row)
    return table(header, rows)


def emotion_table(figures: Figures) -> str:
    kinds = {"recall": "recall", "f1": "F1", "ovr_accuracy": "one-vs-rest accuracy"}
    header = ["emotion", "n", *(word for name in kinds.values() for word in (name, "95 % interval"))]
    rows = []
    for name in names_of(figures, "emotion_n"):
        row = [name, count(figures, f"emotion_n/{name}")]
        for kind in kinds:
            row += [number(figures, f"emotion_{kind}/{name}"), interval(figures, f"emotion_{kind}/{name}")]
        rows.append(row)
    return table(header, rows)


def calibration_table(figures: Figures) -> str:
    rows = []
    for name in [*names_of(figures, "au_n"), "macro"]:
        key = "_macro" if name == "macro" else f"/{name}"
        kinds = ("au_threshold_tuned", "au_accuracy_tuned", "au_roc_auc", "au_ece")
        rows.append([name, *(number(figures, kind + key) for kind in kinds)])
    rows.append(["emotion, confidence of the answer", MISSING, MISSING, MISSING, number(figures, "emotion_ece")])
    return table(["", "threshold", "accuracy at it", "ROC-AUC", "calibration error"], rows)


def group_table(figures: Figures) -> str:
    """From keys `group/<group>/<score>`, `n` being its images."""
    groups: dict[str, dict[str, float]] = {}
    for key, value in figures.items():
        if key.startswith("group/") and key.count("/") >= 2:
            _, group, score = key.split("/", 2)
            groups.setdefault(group, {})[score] = value
    header = ["group", "n", *UNIT_TWO.values(), *EMOTION_FOUR.values()]
    rows = [
        [group, count(scores, "n"), *(number_and_interval(scores, key) for key in UNIT_TWO), *_four(scores, group)]
        for group, scores in groups.items()
    ]
    return table(header, rows)


def language_table(figures: Figures) -> str:
    told = {*LANGUAGE, *_COUNTS}
    unknown = [name for name in figures if name.startswith(_LANGUAGE_KINDS) and name not in told and "/" not in name]
    if unknown:
        logger.warning("no words for %s in language_mf2.FIGURES: left out of the card", unknown)
    rows = [
        [f"`{name}`", number(figures, name), interval(figures, name), meaning] for name, meaning in LANGUAGE.items()
    ]
    rows = [row for row in rows if row[1] != MISSING]
    return table(["figure", "value", "95 % interval", "what it is"], rows)


def without_positives(figures: Figures) -> list[str]:
    """AUs that no test image shows: their F1 is 0 by convention."""
    return [name for name in names_of(figures, "au_prevalence") if figures[f"au_prevalence/{name}"] == 0]


HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_LIBRARIES = ("torch", "transformers", "peft", "timm", "accelerate", "datasets")


def _warm_up(steps: float) -> float | str:
    """transformers reads what is less than 1 as a share."""
    return f"{steps:.0%} of all" if 0 < steps < 1 else steps


def run_facts(
    arguments: MF2Arguments,
    training: TrainingArguments,
    figures: Mapping[str, float],
    *,
    synthetic: bool,
    energy_kwh: float | None = None,
    captions: Sequence[str] | None = None,
) -> dict[str, Any]:
    """What `run.json` keeps of a run beside its scores: data, settings, cost, machine. No path of this machine.

    captions: the columns of text that a compared system learned from.
    """
    drawn = arguments.dataset == "synthetic"
    sources = {
        "model": arguments.model_name_or_path,
        "vision tower": arguments.vision_name_or_path,
        "text": arguments.text_name_or_path,
        "language model": arguments.language_model_name_or_path,
        "Q-Former": arguments.qformer_name_or_path,
    }
    sources = {part: name for part, name in sources.items() if name not in (None, "", "none")}
    settings = {
        "system": SYSTEMS[arguments.model].title if arguments.model in SYSTEMS else None,
        "task": arguments.task,
        "label set": arguments.label_set,
        "branches": arguments.branches if arguments.model == "mf2" else None,
        "model options": ", ".join(arguments.model_options) or None,
        "landmarks": {"dataset": "each face's own", "template": "the mean face's"}[arguments.landmarks],
        "labels used": arguments.use_labels if arguments.task == "tower" else None,
        "features": arguments.features
        if arguments.task in ("linear_probe", "full") and arguments.model == "exp_blip"
        else None,
        "captions used": ", ".join(captions) or False if captions is not None else learns_from_captions(arguments),
        "views of an image": arguments.views if arguments.views > 1 else None,
        "adapter options": ", ".join(arguments.adapter_options) or None,
        "states stored as": None if arguments.no_store else arguments.store_dtype,
        "augmentation": arguments.augment,
        "seed": training.seed,
        "epochs, at most": training.num_train_epochs if training.max_steps <= 0 else None,
        "steps": training.max_steps if training.max_steps > 0 else None,
        "learning rate": training.learning_rate,
        "schedule": str(getattr(training.lr_scheduler_type, "value", training.lr_scheduler_type)),
        "warm-up steps": _warm_up(training.warmup_steps),
        "weight decay": training.weight_decay,
        "batch size": training.train_batch_size * training.gradient_accumulation_steps * training.world_size,
        "precision": "bf16" if training.bf16 else "fp16" if training.fp16 else "fp32",
        "weights saved as": "fp16" if arguments.save_half else "fp32",
    }
    return {
        "kind": "compared" if arguments.model in SYSTEMS else kind_of(arguments.task),
        "system": arguments.model,
        "name": training.hub_model_id or Path(training.output_dir).resolve().name,
        "dataset": CORPUS if drawn else _public(arguments.dataset),
        "synthetic": bool(synthetic),
        "drawn": {name: getattr(arguments, name) for name in ("style", "people_seed", "num_images")} if drawn else {},
        "started_from": {part: _public(name) for part, name in sources.items()},
        "base_models": [name for name in sources.values() if _is_hub_name(name)],
        "settings": {name: value for name, value in settings.items() if value is not None},
        "cost": {name: figures[name] for name in ("cpu_seconds", "wall_seconds") if name in figures},
        "energy_kwh": energy_kwh,
        "processes": training.world_size,
        "hardware": hardware_words(training),
        "versions": {"mf2": VERSION, "python": platform.python_version(), **_library_versions()},
    }


def learns_from_captions(arguments: MF2Arguments) -> bool | str:
    return arguments.align or (arguments.use_captions and arguments.task == "pretrain")


def kind_of(task: str) -> str:
    """Of `card_mf2.KINDS`; a linear probe's heads are saved with the whole model."""
    return "tower" if task == "tower" else "adapter" if task in ADAPTERS and task != "linear_probe" else "model"


def _is_hub_name(name: str) -> bool:
    return bool(HUB_NAME.fullmatch(name)) and not Path(name).exists()


def _public(name: str) -> str:
    """Of a path the last part: where it lies is nobody's business."""
    return name if _is_hub_name(name) else Path(name).name


def hardware_words(training: TrainingArguments) -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    words = f"{cores} CPU core{'' if cores == 1 else 's'} ({_cpu_name()})"
    if training.device.type == "cuda":
        import torch

        words = f"{max(training.n_gpu, 1) * training.world_size} x {torch.cuda.get_device_name()}, {words}"
    return words


def _cpu_name() -> str:
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), flags=re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.machine()


def _library_versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


# Beside the rooms both in a checkout and where a wheel is installed.
TEMPLATE = Path(__file__).resolve().parents[2] / "model_cards" / "template.md"

KINDS: dict[str, dict[str, Any]] = {
    "model": {
        "config": MF2Config,
        "pipeline_tag": "image-classification",
        "task": "Action units and emotions of a face, from the image alone",
    },
    "tower": {
        "config": MF2VisionConfig,
        "pipeline_tag": "image-feature-extraction",
        "task": "Action units and emotions of a face, by a readout that is not part of the checkpoint",
    },
    "compared": {
        "config": None,  # of its system
        "pipeline_tag": "image-classification",
        "task": "Action units and emotions of a face, from the image alone",
    },
    "adapter": {
        "config": MF2Processor,  # an adapter has no configuration of a model; its processor knows the labels
        "pipeline_tag": "image-classification",
        "task": "Action units and emotions of a face, from the image alone",
    },
}
"""What a checkpoint can be."""

_METHODS = {"dfn": "DFN", "lora": "LoRA", "ia3": "IA3"}


def write_card(folder: str | Path, facts: Mapping[str, Any] | None = None) -> Path:
    """`README.md` of a finished run's output folder, from its metrics.json, config.json, weights and run.json.

    With `facts`, those of `run_facts`, `run.json` is written first; without, the card is made from what is there.
    """
    folder = Path(folder)
    if facts is not None:
        write_text(folder / "run.json", json.dumps(facts, indent=2) + "\n")
    run, figures = _read(folder, "run.json"), _read(folder, "metrics.json")
    if run.get("kind") not in KINDS:
        raise ValueError(f"{folder / 'run.json'}: kind is {run.get('kind')!r}, expected one of {list(KINDS)}")
    if run["kind"] == "tower" and not run["settings"]["labels used"]:  # its readouts learned nothing, and say nothing
        figures = {name: figures[name] for name in figures if not name.startswith(("au_", "emotion_", "baseline/"))}
    config = _config(folder, run)
    metadata = card_data(run, figures)
    text = _render(_fields(folder, run, figures, config), metadata)
    ModelCard(text)  # raises where the metadata cannot be read back
    write_text(folder / "README.md", text)
    return folder / "README.md"


def _config(folder: Path, run: Mapping[str, Any]) -> PreTrainedConfig:
    system = SYSTEMS.get(run.get("system", "mf2"))
    saved = _read(folder, "config.json") if system else {}
    if "exp_blip" in saved:  # a captioner, which tells of the stage that it was made of
        return system.config.from_dict(saved["exp_blip"] | {"architectures": saved["architectures"]})
    return (system.config if system else KINDS[run["kind"]]["config"]).from_pretrained(folder)


def _read(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    try:
        return read_json(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{path}: not found, expected the output folder of a finished train.py, with its run.json and metrics.json"
        ) from error


def card_data(run: Mapping[str, Any], figures: Mapping[str, float]) -> ModelCardData:
    """The metadata block: what the Hub's search, its leaderboards and its widgets read."""
    units, emotions = "au_f1_macro" in figures, "emotion_top1" in figures
    tags = [
        run.get("system", "mf2").replace("_", "-"),
        "face",
        *["facial-action-units"] * units,
        *["facial-expression-recognition"] * emotions,
    ]
    tags += ["synthetic"] * run["synthetic"]
    dataset = run["dataset"].lower() if run["dataset"] == CORPUS else run["dataset"]
    is_public = run["dataset"] == CORPUS or HUB_NAME.fullmatch(dataset)
    results = eval_results(run, figures)
    adapter = run["kind"] == "adapter"
    tags += [run["settings"]["task"]] * adapter
    return ModelCardData(
        license="apache-2.0",
        library_name="peft" if adapter else "transformers",
        pipeline_tag=_pipeline_of(run),
        tags=tags,
        base_model=run["base_models"] or None,
        **({"base_model_relation": "adapter"} if adapter and run["base_models"] else {}),
        datasets=[dataset] if is_public else None,
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=run["name"].split("/")[-1] if results else None,
        eval_results=results or None,
    )


def _pipeline_of(run: Mapping[str, Any]) -> str:
    unusual = {"pretrain": "image-feature-extraction", "caption": "image-to-text"} if run["kind"] == "compared" else {}
    return unusual.get(run["settings"]["task"], KINDS[run["kind"]]["pipeline_tag"])


def eval_results(run: Mapping[str, Any], figures: Mapping[str, float]) -> list[EvalResult]:
    """Every AU's F1 and the emotion scores, each with its threshold, its interval and the protocol."""
    dataset = {
        "task_type": "image-classification",
        "task_name": KINDS[run["kind"]]["task"],
        "dataset_type": re.sub(r"[^\w./-]+", "-", run["dataset"]).lower(),
        "dataset_name": f"{run['dataset']}{' (synthetic, drawn faces)' if run['synthetic'] else ''}",
        "dataset_split": "test",
        "dataset_args": {"protocol": "subjects unseen in training", **run["drawn"]},
    }
    names = {"au_f1_macro": ("f1", "AU F1, macro"), "au_f1_tuned_macro": ("f1", "AU F1, macro")}
    for kind in ("au_f1", "au_f1_tuned"):
        names |= {f"{kind}/{name}": ("f1", f"{name} F1") for name in names_of(figures, "au_n")}
    types = ("accuracy", "recall", "f1", "accuracy")
    names |= {key: (kind, _sentence(words)) for (key, words), kind in zip(EMOTION_FOUR.items(), types, strict=True)}
    for name in names_of(figures, "emotion_n"):
        names[f"emotion_f1/{name}"] = ("f1", f"{name} F1")
    return [
        EvalResult(
            **dataset,
            metric_type=kind,
            metric_name=words + _threshold_words(key),
            metric_value=round(figures[key], 4),
            metric_args=_metric_args(key, figures),
        )
        for key, (kind, words) in names.items()
        if key in figures
    ]


def _sentence(words: str) -> str:
    return words if words.startswith("emotion") else f"emotion {words}"


def _threshold_words(key: str) -> str:
    if not key.startswith("au_f1"):
        return ""
    return " at the threshold tuned on validation images" if key.startswith("au_f1_tuned") else " at threshold 0.5"


def _metric_args(key: str, figures: Mapping[str, float]) -> dict[str, Any] | None:
    bounds = [round(figures[f"{key}/{end}"], 4) for end in ("low", "high") if f"{key}/{end}" in figures]
    found = {"interval_95": bounds} if len(bounds) == 2 else {}
    kind, _, name = key.partition("/")
    threshold = figures.get(f"{kind.replace('_f1', '_threshold')}/{name}") if kind.startswith("au_f1") else None
    return {**found, **({} if threshold is None else {"threshold": round(threshold, 4)})} or None


def _fields(folder: Path, run: Mapping, figures: Mapping[str, float], config: Any) -> dict[str, Any]:
    """What the template fills in; an empty table leaves its section out."""
    figures = {name: value for name, value in figures.items() if isinstance(value, int | float)}
    return {
        **{"run": run, "kind": run["kind"], "config": config, "title": run["name"].split("/")[-1]},
        "figures": figures,
        "architecture": (getattr(config, "architectures", None) or [""])[0],
        "system": SYSTEMS.get(run.get("system", "mf2")),
        "method": _METHODS.get(run["settings"]["task"]),
        "parameters": _count_parameters(folder),
        "summary": summary_table(figures),
        "baselines": baseline_table(figures),
        "units": unit_table(figures) if "au_f1_macro" in figures else "",
        "emotions": emotion_table(figures),
        "calibration": calibration_table(figures),
        "groups": group_table(figures),
        "language": language_table(figures),
        "without_positives": without_positives(figures),
        "without_images": [name for name in names_of(figures, "emotion_n") if not figures[f"emotion_n/{name}"]],
        "with_intervals": any(name.endswith("/low") for name in figures),
        "picture": (folder / "metrics.png").is_file(),
        "curves": (folder / "curves.png").is_file(),
        "plain": _plain,
        "hours": lambda seconds: f"{seconds / 3600:.1f} hours" if seconds >= 5400 else f"{seconds / 60:.1f} minutes",
    }


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _count_parameters(folder: Path) -> int:
    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as weights:
            for name in weights.keys():
                size = 1
                for side in weights.get_slice(name).get_shape():
                    size *= side
                total += size
    return total


def _render(fields: Mapping[str, Any], metadata: ModelCardData) -> str:
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    text = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(metadata=metadata.to_yaml(), **fields)
    return re.sub(r"\n{3,}", "\n\n", text)


__all__ = [
    "HUB_NAME",
    "KINDS",
    "card_data",
    "eval_results",
    "hardware_words",
    "kind_of",
    "learns_from_captions",
    "run_facts",
    "write_card",
    *("baseline_table", "calibration_table", "emotion_table", "group_table", "language_table", "summary_table"),
    *("unit_table", "without_positives"),
]
