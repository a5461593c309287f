"""A checkpoint's model card, from the files that its run left: no number in it is typed by hand."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from safetensors import safe_open
from transformers import PreTrainedConfig

from configuration_mf2.configuration_mf2 import MF2Config, MF2VisionConfig
from configuration_mf2.json_mf2 import read_json
from dataset_mf2.synthetic_faces import CORPUS
from processing_mf2.processing_mf2 import MF2Processor

from .card_facts_mf2 import HUB_NAME
from .card_tables_mf2 import (
    EMOTION_FOUR,
    baseline_table,
    calibration_table,
    emotion_table,
    group_table,
    language_table,
    names_of,
    summary_table,
    unit_table,
    without_positives,
)
from .evaluation_mf2 import write_text
from .systems_mf2 import SYSTEMS


# Beside the rooms both in a checkout and where a wheel is installed.
TEMPLATE = Path(__file__).resolve().parent.parent / "model_cards" / "template.md"

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


__all__ = ["KINDS", "card_data", "eval_results", "write_card"]
