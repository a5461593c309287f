"""The systems of `tables.py` as cells: a system, or a stage of one, as a command of train.py."""

import json
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from configuration_mf2.baselines import ABLATIONS
from configuration_mf2.facs import resolve_label_set


TESTED = "tested"  # the folder, within a run's own, of its scores on further faces


class Cell(NamedTuple):
    """One run of train.py.

    title: the system that ends here, if any. after: the cell whose checkpoint it starts from. share: of the epochs, so
    that two stages see as many images as one run. rate: learning rate of the tiny size. further: scored on further
    faces, where there are some (captions for so many take long). needs: what its label set must have.
    """

    title: str
    arguments: tuple[str, ...]
    after: str | None = None
    share: float = 1.0
    rate: float = 2e-3
    further: bool = True
    needs: tuple[str, ...] = ()


def _options(**options: object) -> tuple[str, ...]:
    pairs = (f"{name}={json.dumps(value, separators=(',', ':'))}" for name, value in options.items())
    return ("--model_options", *pairs)


# Whole backbones are trained: what is good for MF²'s parts above a frozen tower is too much for them.
_BACKBONE_RATE = 1e-3
_DFN_RATE_SAME_IMAGES = 3e-4  # on the images that its base has learned: a higher rate overfits
_PROBE_RATE = 2e-2  # two linear layers on frozen features
_READ_BY = (("probe", "linear_probe", _PROBE_RATE), ("tuned", "full", _BACKBONE_RATE))
_AUS, _EMOTIONS, _BOTH = ("AUs",), ("emotions",), ("AUs", "emotions")
_NO_EMOTION = (*_options(loss_weights={"emotion": 0}), "--metric_for_best_model", "au_f1_macro")
_NO_AUS = (*_options(loss_weights={"au": 0}), "--metric_for_best_model", "emotion_macro_f1")
_EXP_BLIP, _VL_FAU, _ME_GRAPH_AU = (("--model", name) for name in ("exp_blip", "vl_fau", "me_graph_au"))
EXP_BLIP = {"emot": "Emot", "au": "AU", "mix": "Mix", "cat": "Cat", "exp": "Exp"}  # caption sets, in the paper's order
_ABLATED = {1: "① baseline", 2: "② MARL", 3: "③ MARL, LLGA", 4: "④ MARL, GLGA"}


def exp_blip(captions: str, features: str, read_by: str) -> str:
    """The cell of a variant; the other tables call the last one Exp-BLIP."""
    variant = (captions, features, read_by)
    return "exp_blip" if variant == ("exp", "qformer", "tuned") else "_".join(("exp_blip", *variant))


def _exp_blip_cells() -> dict[str, Cell]:
    """Two stages on captions, and then as many epochs on labels as every system has."""
    cells = {}
    for read_by, task, rate in _READ_BY:
        command = (*_EXP_BLIP, "--task", task, "--features", "vision")
        cells[f"image_encoder_{read_by}"] = Cell(f"image encoder without captions, {task}", command, rate=rate)
    for captions, title in EXP_BLIP.items():
        first, second = f"exp_blip_{captions}_stage1", f"exp_blip_{captions}_stage2"
        pretrain = (*_EXP_BLIP, "--task", "pretrain", "--caption_set", captions)
        cells[first] = Cell("", pretrain, share=0.5, needs={"au": _AUS, "emot": _EMOTIONS}.get(captions, ()))
        cells[second] = Cell(f"Exp-BLIP({title})", (*_EXP_BLIP, "--task", "caption"), first, 0.5, further=False)
        for features, place in (("vision", "image encoder"), ("qformer", "Q-Former")):
            for read_by, task, rate in _READ_BY:
                name = exp_blip(captions, features, read_by)
                shown = "Exp-BLIP" if name == "exp_blip" else f"Exp-BLIP({title}), {place}, {task}"
                command = (*_EXP_BLIP, "--task", task, "--features", features)
                cells[name] = Cell(shown, command, second, rate=rate)
    return cells


# The table to change: what every system is trained by. Stages that no table shows have no title.
CELLS: dict[str, Cell] = {
    "mf2": Cell("MF² (pre-train)", ("--task", "pretrain")),
    "mf2_dfn": Cell("MF² + DFN", ("--task", "dfn"), "mf2", rate=_DFN_RATE_SAME_IMAGES),
    "mf2_without_emo_vl": Cell("without Emo-VL", ("--task", "pretrain", "--branches", "au"), needs=_AUS),
    "mf2_without_au_vl": Cell("without AU-VL", ("--task", "pretrain", "--branches", "emo")),
    "me_graph_au_stage1": Cell(
        "", (*_ME_GRAPH_AU, *_options(use_edges=False)), share=0.5, rate=_BACKBONE_RATE, needs=_AUS
    ),
    "me_graph_au": Cell(
        "ME-GraphAU", (*_ME_GRAPH_AU, *_options(use_edges=True)), "me_graph_au_stage1", 0.5, _BACKBONE_RATE
    ),
    "hsemotion": Cell("HSEmotion", ("--model", "hsemotion"), rate=_BACKBONE_RATE),
    **{
        f"vl_fau_{n}": Cell(f"VL-FAU {parts}", (*_VL_FAU, *_options(**ABLATIONS[n])), rate=_BACKBONE_RATE, needs=_AUS)
        for n, parts in _ABLATED.items()
    },
    "vl_fau": Cell("VL-FAU", _VL_FAU, rate=_BACKBONE_RATE, needs=_AUS),
    **_exp_blip_cells(),
    # Table V: the first stage sees no emotion, neither as label nor in a caption; the second sees no AU.
    "mf2_au_stage1": Cell("", ("--task", "pretrain", "--branches", "au", *_NO_EMOTION), share=0.5, needs=_BOTH),
    "mf2_au_to_emotion": Cell("MF² (AU, then DFN on emotion)", ("--task", "dfn", *_NO_AUS), "mf2_au_stage1", 0.5, 3e-3),
    "exp_blip_au_to_emotion": Cell(
        "Exp-BLIP (AU captions, then emotion)",
        (*_EXP_BLIP, "--task", "full", "--features", "qformer", *_NO_AUS),
        *("exp_blip_au_stage2", 0.5, _BACKBONE_RATE),
        needs=_BOTH,
    ),
}


def stages(name: str) -> list[str]:
    """The cells of a system, the first one first."""
    before = CELLS[name].after
    return [*(stages(before) if before else []), name]


def cells_of(systems: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(stage for name in systems for stage in stages(name)))


def lacking(name: str, label_set: str) -> list[str]:
    """What a system needs and the label set does not have."""
    labels = resolve_label_set(label_set)
    has = {"AUs": bool(labels.action_units), "emotions": bool(labels.emotions)}
    return [need for need in has if not has[need] and any(need in CELLS[stage].needs for stage in stages(name))]


def epochs_of(name: str, budget: Namespace) -> int:
    return max(1, round(budget.epochs * CELLS[name].share))


def rate_of(name: str, budget: Namespace) -> str:
    """All sizes but tiny take the paper's 1e-4 for all systems."""
    return format(budget.learning_rate or (CELLS[name].rate if budget.model_size == "tiny" else 1e-4), "g")


def folder_of(name: str, seed: int, budget: Namespace) -> Path:
    return budget.work_dir / f"{name}-{seed}"


def command_of(name: str, seed: int, budget: Namespace) -> list[str]:
    cell = CELLS[name]
    base = ["--model_name_or_path", folder_of(cell.after, seed, budget)] if cell.after else []
    drawn = ["--num_images", budget.num_images, "--people_seed", budget.people_seed, "--style", budget.style]
    shared = ["--dataset", budget.dataset, *(drawn if budget.dataset == "synthetic" else [])]
    shared += ["--label_set", budget.label_set, "--model_size", budget.model_size, "--disable_tqdm", True]
    shared += ["--num_train_epochs", epochs_of(name, budget), "--warmup_steps", 0.1]
    shared += ["--per_device_train_batch_size", budget.batch_size, "--learning_rate", rate_of(name, budget)]
    return [*map(str, [*cell.arguments, *base, *shared, *budget.further, "--seed", seed])]


def test_command(name: str, seed: int, budget: Namespace) -> list[str]:
    own = CELLS[name].arguments
    model = own[:2] if own[0] == "--model" else ()
    rows = ["--dataset", str(budget.test_rows), "--captions_by_rule", str(name.startswith("vl_fau"))]
    # What MF²'s language is worth is no part of the tables, and takes long.
    rows += ["--use_captions", "False", "--disable_tqdm", "True"]
    folder = str(folder_of(name, seed, budget))
    return [*model, "--task", "evaluate", "--model_name_or_path", folder, *rows, *budget.further]
