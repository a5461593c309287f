"""The tables of `tables.py`: which systems and columns each has, means over seeds, flags, and markdown."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tables_cells import CELLS, EXP_BLIP, Budget, exp_blip, stages
from tables_paper import PAPER, PaperTable


Runs = Mapping[str, Mapping[int, Mapping[str, float] | str]]
"""Cell -> seed -> its metrics, or why it has none."""

MISSING, FAILED = "–", "failed"
FLAGS = {
    "no_positive": ("*", "no test image shows it: its F1 or recall is 0 by definition, and counts in the average"),
    "untold": ("§", "not enough was said, or is known, for a score: 0 by definition"),
    "not_finite": ("‡", "a value that was no finite number is left out"),
    "fewer_seeds": ("†", "mean of fewer seeds than asked for: the other runs have no such figure"),
}


@dataclass(frozen=True)
class Column:
    """name: in JSON. key: of metrics.json. count: the figure that is `none` or less where `flag` stands; by default the
    flag says that no image shows it."""

    name: str
    title: str
    key: str
    form: str = "percent"
    count: str | None = None
    none: int = 0
    flag: str = "no_positive"


@dataclass(frozen=True)
class Table:
    """rows: cell -> title. groups: of columns, each a table of its own."""

    title: str
    rows: dict[str, str]
    groups: tuple[str, ...]


def _rows(*names: str, **titles: str) -> dict[str, str]:
    return {name: titles.get(name, CELLS[name].title) for name in names}


TABLES: dict[str, Table] = {
    "II": Table(
        "Table II: AU recognition", _rows("exp_blip", "me_graph_au", "vl_fau", "mf2", "mf2_dfn"), ("au", "au_tuned")
    ),
    "III": Table(
        "Table III: emotion recognition", _rows("exp_blip", "hsemotion", "mf2", "mf2_dfn"), ("emotion", "emotion_all")
    ),
    "IV": Table(
        "Table IV: ablations of MF²",
        _rows("mf2_dfn", "mf2", "mf2_without_emo_vl", "mf2_without_au_vl", mf2="without DFN"),
        ("emotion", "emotion_all", "cost"),
    ),
    "V": Table(
        "Table V: from AU pre-training to emotion",
        _rows("exp_blip_au_to_emotion", "mf2_au_to_emotion"),
        ("emotion_all",),
    ),
    "vlfau4": Table(
        "VL-FAU's Table 4: its parts",
        _rows("vl_fau_1", "vl_fau_2", "vl_fau_3", "vl_fau_4", "vl_fau", vl_fau="VL-FAU ⑤ MARL, LLGA, GLGA"),
        ("au", "au_tuned", "words"),
    ),
    "expblip": Table(
        "Exp-BLIP's Tables 2 and 6: what its features are worth",
        {
            exp_blip(captions, features, read_by): f"{place}({title}), {words}"
            for read_by, words in (("probe", "linear probe"), ("tuned", "fine-tuned"))
            for captions, title in EXP_BLIP.items()
            for features, place in (("vision", "tower"), ("qformer", "Q-Former"))
        },
        ("both",),
    ),
    "captions": Table(
        "What Exp-BLIP's variants write",
        _rows(*(f"exp_blip_{captions}_stage2" for captions in EXP_BLIP)),
        ("captions",),
    ),
}

ALL = "all"  # of no paper
TABLES[ALL] = Table(
    "All systems, on both tasks",
    _rows(
        *("mf2", "mf2_dfn", "vl_fau", "exp_blip", "me_graph_au", "hsemotion"),
        *("mf2_without_emo_vl", "mf2_without_au_vl"),
        **{"mf2_without_emo_vl": "MF² without Emo-VL", "mf2_without_au_vl": "MF² without AU-VL"},
    ),
    ("both",),
)

GROUPS = {
    "au": "AU F1 in % at threshold 0.5",
    "au_tuned": "AU F1 in % at thresholds tuned on validation images",
    "emotion": "Emotions, one-vs-rest accuracy in % (always no scores 87.5 on eight equally frequent emotions)",
    "both": "In %: macro AU F1 at 0.5 and at tuned thresholds, and the emotions",
    "emotion_all": "Emotions, in %: one-vs-rest accuracy flatters, and is read beside the others",
    "cost": "Cost, on a CPU; what is stored once for all epochs (of DFN the frozen part's states) is not in an epoch",
    "words": "Words that are among the five likeliest, in %",
    "captions": "Captions written for images of the test split alone (five beams), against those of the same caption "
    "set: BLEU and ROUGE-L in %, CIDEr-D from 0 to 10; and, read back from them, in %: macro F1 of the AUs called "
    "active, emotions named right, texts that name an emotion, claims that the labels contradict",
}


def _names(runs: Runs, kind: str) -> list[str]:
    found = (key for seeds in runs.values() for run in seeds.values() if isinstance(run, Mapping) for key in run)
    return list(dict.fromkeys(key.removeprefix(kind) for key in found if key.startswith(kind) and key.count("/") == 1))


def _told(name: str, title: str, key: str, count: str, **more: Any) -> Column:
    return Column(name, title, key, count=count, flag="untold", **more)


def columns_of(group: str, runs: Runs) -> list[Column]:
    if group in ("au", "au_tuned"):
        suffix = group.removeprefix("au")
        units = [Column(u + suffix, u, f"au_f1{suffix}/{u}", count=f"au_prevalence/{u}") for u in _names(runs, "au_n/")]
        return [*units, Column(f"avg{suffix}", "avg", f"au_f1{suffix}_macro")]
    if group == "emotion":
        names = _names(runs, "emotion_n/")
        shown = [Column(e, e, f"emotion_ovr_accuracy/{e}", count=f"emotion_n/{e}") for e in names]
        return [*shown, Column("avg", "avg", "emotion_ovr_accuracy")]
    emotion_all = [
        Column("avg", "one-vs-rest accuracy, avg", "emotion_ovr_accuracy"),
        Column("top1", "top-1 accuracy", "emotion_top1"),
        Column("macro_recall", "macro recall", "emotion_macro_recall"),
        Column("macro_f1", "macro F1", "emotion_macro_f1"),
    ]
    return {
        "emotion_all": emotion_all,
        "both": [
            Column("au", "AU F1 at 0.5", "au_f1_macro"),
            Column("au_tuned", "AU F1, tuned", "au_f1_tuned_macro"),
            *(Column(c.name, f"emotion {c.title}", c.key) for c in emotion_all),
        ],
        "cost": [
            Column("epoch_cpu_seconds", "training, CPU-s an epoch", "epoch_cpu_seconds", "seconds"),
            Column("inference_cpu_seconds", "inference, CPU-s", "inference_cpu_seconds", "seconds"),
            Column("trainable_parameters", "trainable parameters", "trainable_parameters", "count"),
        ],
        "words": [
            Column("local_top5", "local descriptions", "local_top5"),
            Column("global_top5", "global descriptions", "global_top5"),
        ],
        "captions": [
            _told("bleu_4", "BLEU-4", "bleu_4", "caption_pairs"),
            _told("rouge_l", "ROUGE-L", "rouge_l", "caption_pairs"),
            _told("cider", "CIDEr-D", "cider", "caption_references", form="number", none=1),
            _told("au_facts", "AU facts, F1", "fact_au_f1_macro", "fact_au_labels"),
            _told("emotion_facts", "emotion facts", "fact_emotion_accuracy", "fact_emotion_labels"),
            _told("emotion_stated", "emotion stated", "fact_emotion_stated", "caption_pairs"),
            _told("contradicted", "contradicted", "fact_contradicted", "fact_claims"),
            Column("empty", "empty texts", "caption_empty", "count"),
        ],
    }[group]


@dataclass(frozen=True)
class Value:
    """Mean and sample standard deviation over seeds; of one seed 0, and not shown. mean is None where no run has it."""

    mean: float | None
    sd: float = 0.0
    seeds: int = 0
    flags: tuple[str, ...] = field(default=())


def value_of(column: Column, seeds: Mapping[int, Mapping[str, float] | str]) -> Value:
    told = [run for run in seeds.values() if isinstance(run, Mapping) and column.key in run]
    values = [run[column.key] for run in told if _is_finite(run[column.key])]
    flags = ["not_finite"] if len(values) < len(told) else []
    if column.count and any(run.get(column.count, math.inf) <= column.none for run in told):
        flags.append(column.flag)
    if 0 < len(values) < len(seeds):
        flags.append("fewer_seeds")
    if not values:
        return Value(None, flags=tuple(flags))
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return Value(statistics.fmean(values), spread, len(values), tuple(flags))


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def figures_of(tables: Sequence[str], runs: Runs) -> dict[str, float]:
    """`<table>/<system>/<column>/mean` and `/sd`, scores as shares of 1; `/<flag>` is 1 where a flag stands."""
    figures: dict[str, float] = {}
    for name in tables:
        for row in (row for row in TABLES[name].rows if row in runs):
            for column in (column for group in TABLES[name].groups for column in columns_of(group, runs)):
                value, key = value_of(column, runs[row]), f"{name}/{row}/{column.name}"
                if value.mean is not None:
                    figures |= {f"{key}/mean": value.mean, f"{key}/sd": value.sd}
                figures |= {f"{key}/{flag}": 1.0 for flag in value.flags}
    return figures


def _shown(value: Value, form: str) -> str:
    marks = "".join(FLAGS[flag][0] for flag in value.flags)
    if value.mean is None:
        return MISSING + marks
    scale, digits = {"percent": (100, ".1f"), "seconds": (1, ".1f"), "number": (1, ".2f"), "count": (1, ",.0f")}[form]
    text = format(scale * value.mean, digits)
    if value.seeds > 1 and form != "count":
        text += f" ± {format(scale * value.sd, digits)}"
    return text + marks


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (titles, ["---"] * len(titles), *rows))


def _ours(name: str, group: str, runs: Runs, data: str) -> str:
    """Ours, and in a column of its own the paper's average, which is of other data."""
    columns, paper = columns_of(group, runs), PAPER.get(name)
    beside = group in ("au", "emotion") or name == "V"
    rows, flags = [], set()
    for row, title in TABLES[name].rows.items():
        if row not in runs:
            continue
        line = [FAILED] * len(columns)
        if any(isinstance(run, Mapping) for run in runs[row].values()):
            values = [value_of(column, runs[row]) for column in columns]
            flags.update(flag for value in values for flag in value.flags)
            line = [_shown(v, c.form) for v, c in zip(values, columns, strict=True)]
        rows.append([title, *line, *([paper.shown(row).get(paper.mean, MISSING)] if beside else [])])
    kept = [i for i in range(len(columns) + 1) if not i or any(row[i] not in (MISSING, FAILED) for row in rows)]
    kept = kept if len(kept) > 1 else list(range(len(columns) + 1))
    kept += [len(columns) + 1] if beside else []
    titles = ["", *(column.title for column in columns), *(["the paper's avg, on its data"] if beside else [])]
    shown = _table([titles[i] for i in kept], [[row[i] for i in kept] for row in rows])
    notes = [f"{FLAGS[flag][0]} {FLAGS[flag][1]}" for flag in FLAGS if flag in flags]
    return "\n\n".join(part for part in (f"{GROUPS[group]}. Ours: {data}.", shown, "; ".join(notes)) if part)


def _papers(paper: PaperTable, table: Table, runs: Runs) -> str:
    rows = [[table.rows[row], *paper.shown(row).values()] for row in paper.rows if row in runs]
    shown = _table(["the paper's", *paper.columns], rows)
    return f"The paper's own figures, not to be compared with ours. {paper.source}.\n\n{shown}"


_BACKBONES = {
    True: "the same backbone and the same pretrained weights of it",
    False: "each system's published backbone, with random weights unless --vision_name_or_path names some",
}


def budget_text(
    budget: Budget,
    data: str,
    seeds: Sequence[int],
    systems: Sequence[str],
    runs: Runs,
    backbones: Mapping[str, str | None] | None = None,
) -> str:
    """What every system had: the same backbone, images and epochs; and what that cost."""
    longer = [CELLS[n].title for n in systems if sum(budget.epochs_of(CELLS[c]) for c in stages(n)) > budget.epochs]
    text = (
        f"Data: {data}. Every system: size {budget.model_size}, {_BACKBONES[budget.model_size == 'tiny']}, "
        f"{budget.epochs} epochs in batches of {budget.batch_size}, the same images and split; seeds "
        f"{', '.join(map(str, seeds))}{'' if len(seeds) > 1 else ' (one: no spread)'}. Values are means ± standard "
        "deviations over the seeds, of test images alone, whose people were not trained on; what answers for labels "
        "is kept at its best epoch on validation images."
    )
    if longer:
        text += f" More epochs, since what learns from labels starts from what was trained before: {', '.join(longer)}."
    if budget.further:
        text += f" For all runs: `{' '.join(budget.further)}`."
    rows = []
    for name in systems:
        chain = stages(name)
        epochs = [budget.epochs_of(CELLS[stage]) for stage in chain]
        rates = [format(budget.rate_of(CELLS[stage]), "g") for stage in chain]
        costs = [value_of(Column("", "", "cpu_seconds"), runs.get(stage, {})) for stage in chain]
        known = [cost.mean for cost in costs if cost.mean is not None]
        row = [CELLS[name].title, ", then ".join(f"`{stage}`" for stage in chain)]
        row += [(backbones or {}).get(name) or MISSING, " + ".join(map(str, epochs))]
        row.append(rates[0] if len(set(rates)) == 1 else ", ".join(rates))
        for key in ("train_images", "test_images", "trainable_parameters"):
            row.append(_shown(value_of(Column("", "", key), runs.get(name, {})), "count"))
        rows.append([*row, f"{sum(known):,.0f}" if len(known) == len(chain) else MISSING])
    titles = [
        "system",
        "runs",
        "backbone",
        "epochs",
        "learning rate",
        "training images",
        "test images",
        "trainable parameters, last run",
    ]
    return f"{text}\n\n{_table([*titles, 'CPU-s, all its runs'], rows)}"


def report(
    tables: Sequence[str], runs: Runs, budget: str, data: str, notes: Sequence[str], figure: str | None = None
) -> str:
    parts = [f"# Compared systems on {data}", budget]
    for name in tables:
        parts += [f"## {TABLES[name].title}", *(_ours(name, group, runs, data) for group in TABLES[name].groups)]
        parts += [_papers(PAPER[name], TABLES[name], runs)] if name in PAPER else []
    if figure:
        parts.append(f"![F1 of each action unit]({figure})")
    if notes:
        parts += ["## Runs that failed, or lacked something", *(f"```\n{note}\n```" for note in notes)]
    return "\n\n".join(parts) + "\n"
