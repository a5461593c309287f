"""The model card of a finished run: facts of the run, tables of its figures, metadata; and the push to the Hub."""

import json
import math
import os
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
import yaml
from huggingface_hub import (
    EvalResult,
    EvalResultEntry,
    HfApi,
    ModelCard,
    ModelCardData,
    eval_result_entries_to_yaml,
)
from safetensors import safe_open
from transformers import PreTrainedConfig, TrainingArguments

from configuration_mf2.baselines import ExpBlipConfig
from configuration_mf2.configuration_mf2 import MF2VisionConfig
from configuration_mf2.facs import ACTION_UNITS
from configuration_mf2.json_files import read_json
from configuration_mf2.version import VERSION
from mf2face.data.metrics import confusion_scores
from mf2face.data.reference_scores import BASELINES
from mf2face.data.synthetic.faces import CORPUS
from mf2face.files import MODEL_CARDS, write_whole
from mf2face.training.arguments import Settings, dataset_names
from mf2face.training.build import CHOSEN, LANGUAGE_TOKENIZER
from mf2face.training.evaluation import EMOTION_FOUR, UNIT_TWO
from mf2face.training.language import LANGUAGE_FIGURES
from mf2face.training.reliability import EVIDENCE, LEVELS
from mf2face.training.tasks import SYSTEMS, TASKS
from processing_mf2.processing_mf2 import MF2Processor


Figures = Mapping[str, float]
MISSING = "–"


_LANDMARKS = {
    **{"dataset": "each face's own", "template": "the mean face's"},
    "detector": "as MediaPipe's networks find them, which the model is then to be used with",
}


def names_of(figures: Figures, kind: str) -> list[str]:
    return [key.partition("/")[2] for key in figures if key.startswith(f"{kind}/") and key.count("/") == 1]


def always_yes(figures: Figures) -> dict[str, float]:
    """F1 of calling an AU active in every image: 2p / (1 + p) at prevalence p."""
    prevalences = {name: figures[f"au_prevalence/{name}"] for name in names_of(figures, "au_prevalence")}
    scores = {f"au_f1/{name}": 2 * share / (1 + share) for name, share in prevalences.items()}
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


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown, without the rows and columns in which nothing is known; empty if nothing is."""
    rows = [row for row in rows if set(row[1:]) != {MISSING}]
    kept = [0, *(i for i in range(1, len(header)) if any(row[i] != MISSING for row in rows))]
    if not rows or len(kept) == 1:
        return ""
    is_number = [all(row[i] == MISSING or row[i][:1].isdigit() for row in rows) for i in range(len(header))]
    lines = [header, ["---:" if right else "---" for right in is_number], *rows]
    return "\n".join(f"| {' | '.join(line[i].replace('|', '/') for i in kept)} |" for line in lines)


def _overall(figures: Figures) -> list[str]:
    """The AUs' two macro scores and, if all are known, the four emotion scores, each with its interval."""
    whole = all(key in figures for key in EMOTION_FOUR)
    keys = [*UNIT_TWO, *(EMOTION_FOUR if whole else [""] * len(EMOTION_FOUR))]
    cells = [(number(figures, key), interval(figures, key)) for key in keys]
    return [value if bounds == MISSING else f"{value} ({bounds})" for value, bounds in cells]


_OVERALL = (*UNIT_TWO.values(), *EMOTION_FOUR.values())


def _below(figures: Figures, kind: str) -> dict[str, float]:
    """The figures `<kind>/<name>`, by name."""
    return {key.removeprefix(f"{kind}/"): value for key, value in figures.items() if key.startswith(f"{kind}/")}


def summary_table(figures: Figures) -> str:
    lines = {"**this checkpoint**": figures, "the base without it": _below(figures, "base")}
    lines |= {"always yes": always_yes(figures), "always the commonest emotion": always_the_commonest(figures)}
    return table(["", *_OVERALL], [[label, *_overall(scores)] for label, scores in lines.items()])


def group_table(figures: Figures) -> str:
    """From keys `group/<group>/<score>`, `n` being its images."""
    grouped = _below(figures, "group")
    groups = {group: _below(grouped, group) for group in dict.fromkeys(key.partition("/")[0] for key in grouped)}
    rows = [[group, count(scores, "n"), *_overall(scores)] for group, scores in groups.items()]
    return table(["group", "n", *_OVERALL], rows)


def baseline_table(figures: Figures) -> str:
    """From keys `baseline/<name>`, the names being those of `BASELINES`."""
    rows = []
    for name, words in BASELINES.items():
        if f"baseline/{name}" in figures and name != "au_f1_all_active":  # the summary's "always yes"
            units = name.startswith("au_f1_")
            score, own = ("AU F1, macro", "au_f1_macro") if units else ("emotion top-1", "emotion_top1")
            rows.append([words, score, number(figures, f"baseline/{name}"), number(figures, own)])
    return table(["compared with", "score", "value", "this checkpoint"], rows)


Column = tuple[str, Callable[[Figures, str], str], str]
"""Its head, how a cell is written, and the kind of figure."""


def _with_interval(name: str, kind: str) -> list[Column]:
    return [(name, number, kind), ("95 % interval", interval, kind)]


def _table_of(figures: Figures, head: str, keys: Mapping[str, str], columns: Sequence[Column]) -> str:
    """keys: a row's name -> what follows the kind in the keys of its figures."""
    rows = [[name, *(write(figures, kind + key) for _, write, kind in columns)] for name, key in keys.items()]
    return table([head, *(name for name, _, _ in columns)], rows)


def _units(figures: Figures) -> dict[str, str]:
    return {name: f"/{name}" for name in names_of(figures, "au_n")} | {"macro": "_macro"}


def unit_table(figures: Figures) -> str:
    columns: list[Column] = [("n", count, "au_n"), ("prevalence", number, "au_prevalence")]
    columns.append(("always yes", number, "chance_au_f1"))
    columns += _with_interval("F1 at 0.5", "au_f1") + _with_interval("F1 at tuned threshold", "au_f1_tuned")
    figures = {**figures, **{f"chance_{key}": value for key, value in always_yes(figures).items()}}
    nouns = {name: f"{name} {ACTION_UNITS[name].noun}" for name in ACTION_UNITS}
    return _table_of(figures, "AU", {nouns.get(name, name): key for name, key in _units(figures).items()}, columns)


def emotion_table(figures: Figures) -> str:
    columns: list[Column] = [("n", count, "emotion_n")]
    for name, kind in (("recall", "recall"), ("F1", "f1"), ("one-vs-rest accuracy", "ovr_accuracy")):
        columns += _with_interval(name, f"emotion_{kind}")
    return _table_of(figures, "emotion", {name: f"/{name}" for name in names_of(figures, "emotion_n")}, columns)


def calibration_table(figures: Figures) -> str:
    kinds = {"threshold": "threshold_tuned", "accuracy at it": "accuracy_tuned", "ROC-AUC": "roc_auc"}
    columns: list[Column] = [(name, number, f"au_{kind}") for name, kind in kinds.items()]
    figures = {**figures, "au_ece_of_emotions": figures.get("emotion_ece", math.nan)}
    keys = _units(figures) | {"emotion, confidence of the answer": "_of_emotions"}
    return _table_of(figures, "", keys, [*columns, ("calibration error", number, "au_ece")])


def grade_table(evidence: Mapping[str, Any]) -> str:
    """From `reliability.json`: grade and measured evidence of each label."""
    rows = []
    for label, found in evidence.get("labels", {}).items():
        noun = f"{label} {ACTION_UNITS[label].noun}" if label in ACTION_UNITS else label
        photographs = MISSING
        if "value" in found:
            photographs = f"{found['value']:.3f} ({found['photographs']:.3f} to {found['high']:.3f})"
        cells = [number(found, "test"), number(found, "style_shift"), photographs, number(found, "recall")]
        rows.append([noun, found["grade"], *cells])
    names = ["test people", "other style", "photographs (95 % interval)", "recall, photographs"]
    return table(["", "grade", *names], rows)


def coverage_table(figures: Figures, evidence: Mapping[str, Any]) -> str:
    """What conformal prediction covers and tells on test images, and on the data of `reliability.json`."""
    data = {"test images": figures}
    data |= {what: _below(evidence["figures"], where) for where, what in evidence.get("data", {}).items()}
    rows = []
    for name, known in data.items():
        for level in LEVELS:
            percent = f"{float(level) * 100:g}"
            keys = [f"{what}_{percent}_{kind}" for kind in ("au", "emotion") for what in ("coverage", "told")]
            rows.append([name, f"{percent} %", *(number(known, key) for key in keys)])
    rows = [row for row in rows if set(row[2:]) != {MISSING}]
    return table(["faces", "asked", "AUs covered", "AUs told", "emotions covered", "emotions told"], rows)


def language_table(figures: Figures) -> str:
    rows = [[f"`{name}`", number(figures, name), interval(figures, name), w] for name, w in LANGUAGE_FIGURES.items()]
    return table(["figure", "value", "95 % interval", "what it is"], [row for row in rows if row[1] != MISSING])


def without_positives(figures: Figures) -> list[str]:
    """AUs that no test image shows: their F1 is 0 by convention."""
    return [name for name in names_of(figures, "au_prevalence") if figures[f"au_prevalence/{name}"] == 0]


HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_LIBRARIES = ("torch", "transformers", "peft", "timm", "accelerate", "datasets")


def run_facts(settings: Settings, figures: Figures, *, synthetic: bool, captions: Sequence[str] = ()) -> dict[str, Any]:
    """`run.json`: what a run was beside its scores. Local paths are never published.

    captions: the columns of text that a compared system learned from.
    """
    ours, training = settings.arguments, settings.training
    drawn = ours.dataset == "synthetic"
    parts = {"model": "model", "vision tower": "vision", "text": "text", "language model": "language_model"}
    parts |= {"Q-Former": "qformer"}
    sources = {part: getattr(ours, f"{option}_name_or_path") for part, option in parts.items()}
    sources = {part: name for part, name in sources.items() if name not in (None, "", "none")}
    return {
        "kind": settings.task.saves,
        "system": ours.model,
        "name": training.hub_model_id or settings.folder.resolve().name,
        "dataset": CORPUS if drawn else " + ".join(map(_public, dataset_names(ours.dataset))),
        "synthetic": bool(synthetic),
        "drawn": {name: getattr(ours, name) for name in ("style", "people_seed", "num_images")} if drawn else {},
        "started_from": {part: _public(name) for part, name in sources.items()},
        "base_models": [name for name in sources.values() if _is_hub_name(name)],
        "settings": _settings_shown(settings, captions, figures),
        "cost": {name: figures[name] for name in ("cpu_seconds", "wall_seconds") if name in figures},
        "energy_kwh": None,
        "processes": training.world_size,
        "hardware": _hardware(training),
        "versions": {"mf2": VERSION, "python": platform.python_version(), **{lib: version(lib) for lib in _LIBRARIES}},
    }


def _settings_shown(settings: Settings, captions: Sequence[str], figures: Mapping[str, float]) -> dict[str, Any]:
    ours, training, task = settings.arguments, settings.training, settings.task
    compared, steps, warmup = task.saves == "compared", training.max_steps, training.warmup_steps
    cut = {name.partition("/")[2]: share for name, share in figures.items() if name.startswith("captions_cut/")}
    learns_captions = ours.align or (ours.use_captions and "captions" in task.learns)
    shown = {
        "system": SYSTEMS[ours.model].title if compared else None,
        "preset": f"{ours.preset}, but {changed}" if ours.preset and (changed := settings.deviations) else ours.preset,
        "task": ours.task,
        "label set": ours.label_set,
        "branches": None if compared else ours.branches,
        "model options": ", ".join(ours.model_options) or None,
        "landmarks": _LANDMARKS[ours.landmarks],
        "tower taught by labels": ours.task == "tower_by_labels" if task.saves == "tower" else None,
        "features": None if "features" in task.unused else ours.features,
        "captions used": (", ".join(captions) or False) if compared else learns_captions,
        "captions cut at their limit": ", ".join(f"{share:.1%} of {name}" for name, share in cut.items()) or None,
        "fold tested on": f"{ours.fold} of {ours.folds}" if ours.folds else None,
        "views of an image": ours.views if ours.views > 1 else None,
        "adapter options": ", ".join(ours.adapter_options) or None,
        "states stored as": None if ours.no_store else ours.store_dtype,
        "augmentation": None if ours.augment == "none" else ours.augment,
        "emotions balanced": ours.balance or None,
        "seed": training.seed,
        "epochs, at most": training.num_train_epochs if steps <= 0 else None,
        "steps": steps if steps > 0 else None,
        "learning rate": training.learning_rate,
        "schedule": str(getattr(training.lr_scheduler_type, "value", training.lr_scheduler_type)),
        "warm-up steps": f"{warmup:.0%} of all" if 0 < warmup < 1 else warmup,  # as transformers reads it
        "weight decay": training.weight_decay,
        "batch size": training.train_batch_size * training.gradient_accumulation_steps * training.world_size,
        "precision": "bf16" if training.bf16 else "fp16" if training.fp16 else "fp32",
        "weights saved as": "fp16" if ours.save_half else "fp32",
    }
    return {name: value for name, value in shown.items() if value is not None}


def _is_hub_name(name: str) -> bool:
    return bool(HUB_NAME.fullmatch(name)) and not Path(name).exists()


def _public(name: str) -> str:
    """The basename of a local path."""
    return name if _is_hub_name(name) else Path(name).name


def _hardware(training: TrainingArguments) -> str:
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text()
    except OSError:
        cpuinfo = ""
    model = re.search(r"^model name\s*: (.+)$", cpuinfo, flags=re.MULTILINE)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    words = f"{cores} CPU core{'' if cores == 1 else 's'} ({model[1].strip() if model else platform.machine()})"
    if training.device.type == "cuda":
        words = f"{max(training.n_gpu, 1) * training.world_size} x {torch.cuda.get_device_name()}, {words}"
    return words


TEMPLATE = MODEL_CARDS / "template.md"
EXAMPLE_FACE = "face.png"
"""A released checkpoint has a synthetic face, so that its card's code runs as it stands."""
KINDS = ("model", "tower", "adapter", "compared")
_METHODS = {"dfn": "DFN", "lora": "LoRA", "ia3": "IA3"}


def write_card(folder: str | Path, facts: Mapping[str, Any] | None = None) -> Path:
    """`README.md` of a finished run's output folder, from its metrics.json, config.json, weights and run.json.

    With `facts`, those of `run_facts`, `run.json` is written first; without, the card is made from what is there.
    """
    folder = Path(folder)
    if facts is not None:
        write_whole(folder / "run.json", json.dumps(facts, indent=2) + "\n")
    run, figures = _read(folder, "run.json"), _read(folder, "metrics.json")
    if run.get("kind") not in KINDS:
        raise ValueError(f"{folder / 'run.json'}: kind is {run.get('kind')!r}, expected one of {list(KINDS)}")
    text = _render(_fields(folder, run, figures), card_data(run, figures))
    ModelCard(text)  # raises where the metadata cannot be read back
    write_eval_results(folder, run, figures)
    write_whole(folder / "README.md", text)
    return folder / "README.md"


def _config(folder: Path, run: Mapping[str, Any]) -> PreTrainedConfig | MF2Processor:
    """What tells of labels and tower; an adapter has no config, but a processor that knows the labels."""
    if run["kind"] == "adapter":
        return MF2Processor.from_pretrained(folder)
    if run["kind"] == "tower":
        return MF2VisionConfig.from_pretrained(folder)
    saved = _read(folder, "config.json")
    if "exp_blip" in saved:  # a captioner, which keeps the config of the stage 1 that it was made of
        return ExpBlipConfig.from_dict(saved["exp_blip"] | {"architectures": saved["architectures"]})
    return _task(run).model_class.config_class.from_pretrained(folder)


def _task(run: Mapping[str, Any]) -> Any:
    return TASKS[run.get("system", "mf2"), run["settings"]["task"]]


def _read(folder: Path, name: str) -> dict[str, Any]:
    try:
        return read_json(folder / name)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{folder / name}: not found, expected the output folder of a finished train.py, with its run.json and "
            "metrics.json"
        ) from error


def card_data(run: Mapping[str, Any], figures: Figures) -> ModelCardData:
    """The metadata block: what the Hub's search, its leaderboards and its widgets read."""
    adapter, synthetic_corpus = run["kind"] == "adapter", run["dataset"] == CORPUS
    tags = {
        run.get("system", "mf2").replace("_", "-"): True,
        "face": True,
        "facial-action-units": "au_f1_macro" in figures,
        "facial-expression-recognition": "emotion_top1" in figures,
        "synthetic": run["synthetic"],
        run["settings"]["task"]: adapter,
    }
    dataset = run["dataset"].lower() if synthetic_corpus else run["dataset"]
    results = eval_results(run, figures)
    return ModelCardData(
        license="apache-2.0",
        library_name="peft" if adapter else "transformers",
        pipeline_tag=_task(run).pipeline_tag,
        tags=[tag for tag, applies in tags.items() if applies],
        base_model=run["base_models"] or None,
        **({"base_model_relation": "adapter"} if adapter and run["base_models"] else {}),
        datasets=[dataset] if synthetic_corpus or HUB_NAME.fullmatch(dataset) else None,
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=run["name"].split("/")[-1] if results else None,
        eval_results=results or None,
    )


EVAL_RESULTS = ".eval_results"


def write_eval_results(folder: Path, run: Mapping[str, Any], figures: Figures) -> None:
    """`.eval_results/DATASET.yaml`, which the Hub shows beside the card's `model-index`: the overall scores."""
    keys, entries = {name: key for key, name in _OVERALL_NAMES.items()}, []
    for result in eval_results(run, figures):
        if key := keys.get(result.metric_name):
            notes = f"{result.metric_name}; {result.dataset_name}; subjects unseen in training"
            entries.append(EvalResultEntry(result.dataset_type, key, result.metric_value, notes=notes))
    if entries:
        (folder / EVAL_RESULTS).mkdir(exist_ok=True)
        file = folder / EVAL_RESULTS / f"{entries[0].dataset_id.replace('/', '--')}.yaml"
        write_whole(file, yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False))


_TASK_NAME = "Action units and emotions of a face, from the image alone"
_TOWER_TASK_NAME = "Action units and emotions of a face, by a readout that is not part of the checkpoint"
_THRESHOLDS = {"au_f1": " at threshold 0.5", "au_f1_tuned": " at the threshold tuned on validation images"}
_OVERALL_NAMES = {f"{kind}_macro": f"AU F1, macro{at}" for kind, at in _THRESHOLDS.items()}
_OVERALL_NAMES |= {key: f"emotion {words.removeprefix('emotion ')}" for key, words in EMOTION_FOUR.items()}


def eval_results(run: Mapping[str, Any], figures: Figures) -> list[EvalResult]:
    """Every AU's F1 and the emotion scores, each with its threshold, its interval and the protocol."""
    chosen = CHOSEN if figures.get("chosen_on_test_images") else ""
    dataset = {
        "task_type": "image-classification",
        "task_name": _TOWER_TASK_NAME if run["kind"] == "tower" else _TASK_NAME,
        "dataset_type": re.sub(r"[^\w./-]+", "-", run["dataset"]).lower(),
        "dataset_name": f"{run['dataset']}{' (synthetic faces)' if run['synthetic'] else ''}",
        "dataset_split": "test",
        "dataset_args": {"protocol": f"subjects unseen in training{chosen}", **run["drawn"]},
    }
    types = ("f1", "f1", "accuracy", "recall", "f1", "accuracy")
    overall = {key: (kind, name) for (key, name), kind in zip(_OVERALL_NAMES.items(), types, strict=True)}
    scores = {key: overall[key] for key in UNIT_TWO}
    for kind, at in _THRESHOLDS.items():
        scores |= {f"{kind}/{name}": ("f1", f"{name} F1{at}") for name in names_of(figures, "au_n")}
    scores |= {key: overall[key] for key in EMOTION_FOUR}
    scores |= {f"emotion_f1/{name}": ("f1", f"{name} F1") for name in names_of(figures, "emotion_n")}
    results = []
    for key in (key for key in scores if key in figures):
        result = {"metric_type": scores[key][0], "metric_name": scores[key][1], "metric_value": round(figures[key], 4)}
        results.append(EvalResult(**dataset, **result, metric_args=_metric_args(key, figures)))
    return results


def _metric_args(key: str, figures: Figures) -> dict[str, Any] | None:
    kind, _, name = key.partition("/")
    args: dict[str, Any] = {}
    if f"{key}/low" in figures and f"{key}/high" in figures:
        args["interval_95"] = [round(figures[f"{key}/{end}"], 4) for end in ("low", "high")]
    threshold = figures.get(f"{kind.replace('_f1', '_threshold')}/{name}") if kind in _THRESHOLDS else None
    return args | ({} if threshold is None else {"threshold": round(threshold, 4)}) or None


def _fields(folder: Path, run: Mapping[str, Any], figures: Figures) -> dict[str, Any]:
    """What the template fills in; an empty table leaves its section out."""
    figures = {name: value for name, value in figures.items() if isinstance(value, int | float)}
    config = _config(folder, run)
    evidence = read_json(folder / EVIDENCE) if (folder / EVIDENCE).is_file() else {}
    return {
        **{"run": run, "kind": run["kind"], "config": config, "title": run["name"].split("/")[-1]},
        "figures": figures,
        "architecture": (getattr(config, "architectures", None) or [""])[0],
        "system": SYSTEMS.get(run.get("system", "mf2")),
        "method": _METHODS.get(run["settings"]["task"]),
        "parameters": _count_parameters(folder),
        "has_face": (folder / EXAMPLE_FACE).is_file(),
        "summary": summary_table(figures),
        "baselines": baseline_table(figures),
        "units": unit_table(figures) if "au_f1_macro" in figures else "",
        "emotions": emotion_table(figures),
        "calibration": calibration_table(figures),
        "evidence": evidence,
        "grades": grade_table(evidence),
        "coverage": coverage_table(figures, evidence),
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
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="numpy") as weights:
            total += sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())
    return total


def _render(fields: Mapping[str, Any], metadata: ModelCardData) -> str:
    blocks = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, **blocks)
    text = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(metadata=metadata.to_yaml(), **fields)
    return re.sub(r"\n{3,}", "\n\n", text)


# Weights, configuration, code, card and results. Never the Trainer's pickles, its checkpoints or its lock.
PUBLISHED = ("*.safetensors", "*.json", "*.txt", "*.py", "*.md", "*.png", "*.yaml")


def publish(folder: str | Path, training: TrainingArguments, token: str | None) -> str:
    """Uploads a finished run in one commit to `hub_model_id`, by default the folder's name. -> the commit's address.

    If it is interrupted, the revision before stays as it was."""
    api, folder = HfApi(token=token), Path(folder)
    name = training.hub_model_id or folder.resolve().name
    repo = api.create_repo(name, private=training.hub_private_repo, exist_ok=True).repo_id
    kept = (LANGUAGE_TOKENIZER, EVAL_RESULTS)
    others = [path.name for path in folder.iterdir() if path.is_dir() and path.name not in kept]
    commit = api.upload_folder(
        repo_id=repo,
        folder_path=folder,
        allow_patterns=list(PUBLISHED),
        ignore_patterns=[f"{name}/*" for name in others],
        revision=training.hub_revision,
        commit_message="A finished run of train.py",
    )
    return str(commit)


def check_base(base: str | None) -> None:
    """An adapter names its base, so that has to be on the Hub."""
    if base and Path(base).exists():
        raise ValueError(
            f"push_to_hub: the adapter's base is {base}, a local folder, which others cannot load; push the base "
            "first, and give its name on the Hub as --model_name_or_path"
        )
