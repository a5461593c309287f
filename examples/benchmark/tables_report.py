"""The tables of `tables.py`: their systems and columns, means over seeds, flags, markdown, and the chart."""

import json
import math
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
from report import markdown_table, mean_sd, save_figure
from tables_cells import CELLS, EXP_BLIP, epochs_of, exp_blip, rate_of, stages


matplotlib.use("Agg")
from matplotlib import pyplot as plt


Runs = Mapping[str, Mapping[int, Mapping[str, float] | str]]
"""Cell -> seed -> its metrics, or why it has none."""

# What the papers print, on their data and with their models: table -> source, columns, and a line of values a system.
PAPERS = json.loads((Path(__file__).parent / "results" / "papers.json").read_text(encoding="utf-8"))
MISSING, FAILED = "–", "failed"
FLAGS = {
    "no_positive": ("*", "no test image shows it: its F1 or recall is 0 by definition, and counts in the average"),
    "untold": ("§", "not enough was said, or is known, for a score: 0 by definition"),
    "not_finite": ("‡", "a value that was no finite number is left out"),
    "fewer_seeds": ("†", "mean of fewer seeds than asked for: the other runs have no such figure"),
}
COUNTS = ("train_images", "test_images", "trainable_parameters")
FORMS = {"percent": (100, ".1f"), "seconds": (1, ".1f"), "number": (1, ".2f"), "count": (1, ",.0f")}
# Okabe and Ito's colours, which colour-blind readers can tell apart; hatches do so in print.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")
HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo", "--")


class Column(NamedTuple):
    """name: in JSON. key: in metrics.json, if another. count: the figure that is at most `none` where `flag` stands."""

    name: str
    title: str = ""
    key: str | None = None
    form: str = "percent"
    count: str | None = None
    none: int = 0
    flag: str = "untold"


class Table(NamedTuple):
    """rows: cell -> title. groups: of columns, each a table of its own."""

    title: str
    rows: dict[str, str]
    groups: Sequence[str]


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
        {"image_encoder_probe": "tower, untouched, linear probe", "image_encoder_tuned": "tower, fine-tuned alone"}
        | {
            exp_blip(captions, features, read_by): f"{place}({title}), {words}"
            for read_by, words in (("probe", "linear probe"), ("tuned", "fine-tuned"))
            for captions, title in EXP_BLIP.items()
            for features, place in (("vision", "tower"), ("qformer", "Q-Former"))
        },
        ("both",),
    ),
    "captions": Table(
        "What Exp-BLIP's variants write", _rows(*(f"exp_blip_{name}_stage2" for name in EXP_BLIP)), ("captions",)
    ),
    "all": Table(  # of no paper
        "All systems, on both tasks",
        _rows("mf2", "mf2_dfn", "vl_fau", "exp_blip", "me_graph_au", "hsemotion")
        | {"mf2_without_emo_vl": "MF² without Emo-VL", "mf2_without_au_vl": "MF² without AU-VL"},
        ("both",),
    ),
}

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


EMOTION_COLUMNS = [
    Column("avg", "one-vs-rest accuracy, avg", "emotion_ovr_accuracy"),
    Column("top1", "top-1 accuracy", "emotion_top1"),
    Column("macro_recall", "macro recall", "emotion_macro_recall"),
    Column("macro_f1", "macro F1", "emotion_macro_f1"),
]
COLUMNS = {
    "emotion_all": EMOTION_COLUMNS,
    "both": [
        Column("au", "AU F1 at 0.5", "au_f1_macro"),
        Column("au_tuned", "AU F1, tuned", "au_f1_tuned_macro"),
        *(Column(c.name, f"emotion {c.title}", c.key) for c in EMOTION_COLUMNS),
    ],
    "cost": [
        Column("epoch_cpu_seconds", "training, CPU-s an epoch", form="seconds"),
        Column("inference_cpu_seconds", "inference, CPU-s", form="seconds"),
        Column("trainable_parameters", "trainable parameters", form="count"),
    ],
    "words": [Column("local_top5", "local descriptions"), Column("global_top5", "global descriptions")],
    "captions": [
        Column("bleu_4", "BLEU-4", count="caption_pairs"),
        Column("rouge_l", "ROUGE-L", count="caption_pairs"),
        Column("cider", "CIDEr-D", form="number", count="caption_references", none=1),
        Column("au_facts", "AU facts, F1", "fact_au_f1_macro", count="fact_au_labels"),
        Column("emotion_facts", "emotion facts", "fact_emotion_accuracy", count="fact_emotion_labels"),
        Column("emotion_stated", "emotion stated", "fact_emotion_stated", count="caption_pairs"),
        Column("contradicted", "contradicted", "fact_contradicted", count="fact_claims"),
        Column("empty", "empty texts", "caption_empty", "count"),
    ],
}


def columns_of(group: str, runs: Runs) -> list[Column]:
    """Those of a group; for action units and emotions, one each that some run has scored, and the average."""
    if group in COLUMNS:
        return COLUMNS[group]
    task, suffix = ("emotion", "") if group == "emotion" else ("au", group.removeprefix("au"))
    score, mean, count = ("emotion_ovr_accuracy", "emotion_ovr_accuracy", "emotion_n")
    if task == "au":
        score, mean, count = (f"au_f1{suffix}", f"au_f1{suffix}_macro", "au_prevalence")
    keys = (key for seeds in runs.values() for run in seeds.values() if isinstance(run, Mapping) for key in run)
    names = dict.fromkeys(key.removeprefix(f"{task}_n/") for key in keys if key.startswith(f"{task}_n/"))
    named = [Column(n + suffix, n, f"{score}/{n}", count=f"{count}/{n}", flag="no_positive") for n in names]
    return [*named, Column(f"avg{suffix}", "avg", mean)]


class Value(NamedTuple):
    """Mean and sample standard deviation over seeds; of one seed 0, and not shown. mean is None where no run has it."""

    mean: float | None
    sd: float = 0.0
    seeds: int = 0
    flags: tuple[str, ...] = ()

    def shown(self, form: str) -> str:
        marks = "".join(FLAGS[flag][0] for flag in self.flags)
        if self.mean is None:
            return MISSING + marks
        scale, digits = FORMS[form]
        spread = f" ± {scale * self.sd:{digits}}" if self.seeds > 1 and form != "count" else ""
        return f"{scale * self.mean:{digits}}{spread}{marks}"


def value_of(column: Column, seeds: Mapping[int, Mapping[str, float] | str]) -> Value:
    key = column.key or column.name
    having = [run for run in seeds.values() if isinstance(run, Mapping) and key in run]
    values = [run[key] for run in having if math.isfinite(run[key])]
    flags = ["not_finite"] if len(values) < len(having) else []
    if column.count and any(run.get(column.count, math.inf) <= column.none for run in having):
        flags.append(column.flag)
    if not values:
        return Value(None, flags=tuple(flags))
    flags += ["fewer_seeds"] if len(values) < len(seeds) else []
    return Value(*mean_sd(values), len(values), tuple(flags))


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


def paper_row(table: str, system: str) -> dict[str, str]:
    """Column -> value, as printed; empty for a system that the paper does not have."""
    paper = PAPERS.get(table, {"columns": [], "rows": {}})
    return dict(zip(paper["columns"], paper["rows"].get(system, "").split(), strict=system in paper["rows"]))


def _ours(name: str, group: str, runs: Runs, data: str) -> str:
    """Ours, and in a column of its own the paper's average, which is of other data."""
    columns = columns_of(group, runs)
    beside = group in ("au", "emotion") or name == "V"
    rows, flags = [], set()
    for row, title in ((row, title) for row, title in TABLES[name].rows.items() if row in runs):
        line = [FAILED] * len(columns)
        if any(isinstance(run, Mapping) for run in runs[row].values()):
            values = [value_of(column, runs[row]) for column in columns]
            flags.update(flag for value in values for flag in value.flags)
            line = [value.shown(column.form) for value, column in zip(values, columns, strict=True)]
        rows.append([title, *line, *([paper_row(name, row).get("avg", MISSING)] if beside else [])])
    every = range(1, len(columns) + 1)
    kept = [i for i in every if any(row[i] not in (MISSING, FAILED) for row in rows)] or list(every)
    kept = [0, *kept, *([len(columns) + 1] if beside else [])]
    titles = ["", *(column.title for column in columns), "the paper's avg, on its data"]
    shown = markdown_table([titles[i] for i in kept], [[row[i] for i in kept] for row in rows])
    notes = [f"{FLAGS[flag][0]} {FLAGS[flag][1]}" for flag in FLAGS if flag in flags]
    return "\n\n".join(part for part in (f"{GROUPS[group]}. Ours: {data}.", shown, "; ".join(notes)) if part)


def budget_text(
    given: Namespace, data: str, systems: Sequence[str], runs: Runs, backbones: Mapping[str, str | None]
) -> str:
    """What every system had: the same backbone, images and epochs; and what that cost."""
    backbone = "the same backbone and the same pretrained weights of it"
    if given.model_size != "tiny":
        backbone = "each system's published backbone, with random weights unless --vision_name_or_path names some"
    seeds = ", ".join(map(str, given.seeds)) + ("" if len(given.seeds) > 1 else " (one: no spread)")
    text = (
        f"Data: {data}. Every system: size {given.model_size}, {backbone}, {given.epochs} epochs in batches of "
        f"{given.batch_size}, the same images and split; seeds {seeds}. Values are means ± standard "
        "deviations over the seeds, of test images alone, whose people were not trained on; what answers for labels "
        "is kept at its best epoch on validation images."
    )
    if longer := [CELLS[n].title for n in systems if sum(epochs_of(c, given) for c in stages(n)) > given.epochs]:
        text += f" More epochs, since what learns from labels starts from what was trained before: {', '.join(longer)}."
    if given.further:
        text += f" For all runs: `{' '.join(given.further)}`."
    rows = []
    for name in systems:
        chain = stages(name)
        rates = [rate_of(stage, given) for stage in chain]
        costs = [value_of(Column("cpu_seconds"), runs.get(stage, {})).mean for stage in chain]
        row = [CELLS[name].title, ", then ".join(f"`{stage}`" for stage in chain), backbones.get(name) or MISSING]
        row.append(" + ".join(str(epochs_of(stage, given)) for stage in chain))
        row.append(", ".join(rates if len({*rates}) > 1 else rates[:1]))
        counts = [value_of(Column(key), runs.get(name, {})).shown("count") for key in COUNTS]
        rows.append([*row, *counts, MISSING if None in costs else f"{sum(costs):,.0f}"])
    titles = ["system", "runs", "backbone", "epochs", "learning rate", "training images", "test images"]
    return f"{text}\n\n{markdown_table([*titles, 'trainable parameters, last run', 'CPU-s, all its runs'], rows)}"


def report(
    tables: Sequence[str], runs: Runs, budget: str, data: str, notes: Sequence[str], figure: str | None = None
) -> str:
    parts = [f"# Compared systems on {data}", budget]
    for name in (name for name in tables if TABLES[name].rows.keys() & runs):
        parts += [f"## {TABLES[name].title}", *(_ours(name, group, runs, data) for group in TABLES[name].groups)]
        if paper := PAPERS.get(name):
            rows = [[TABLES[name].rows[row], *paper_row(name, row).values()] for row in paper["rows"] if row in runs]
            parts.append(f"The paper's own figures, not to be compared with ours. {paper['source']}.")
            parts.append(markdown_table(["the paper's", *paper["columns"]], rows))
    if figure:
        parts.append(f"![F1 of each action unit]({figure})")
    if notes:
        parts += ["## Runs that failed, or lacked something", *(f"```\n{note}\n```" for note in notes)]
    return "\n\n".join(parts) + "\n"


def draw(path: Path, tables: list[str], runs: Runs, data: str, seeds: int) -> bool:
    """Bars of F1 an action unit, a panel for each table that has them; False if there is nothing to draw."""
    columns = columns_of("au", runs)
    panels: dict[str, dict[str, list[Value]]] = {}
    for name in (name for name in tables if "au" in TABLES[name].groups):
        rows = {title: runs[row] for row, title in TABLES[name].rows.items() if row in runs}
        bars = {title: [value_of(column, seeds_of) for column in columns] for title, seeds_of in rows.items()}
        panels[name] = {title: values for title, values in bars.items() if any(v.mean is not None for v in values)}
    panels = {name: bars for name, bars in panels.items() if bars}
    if not panels:
        return False
    width = max(7.0, 1.0 * len(columns))
    figure, axes = plt.subplots(len(panels), 1, figsize=(width, 3.6 * len(panels)), layout="constrained", squeeze=False)
    for axis, (name, bars) in zip(axes[:, 0], panels.items(), strict=True):
        _panel(axis, bars, [column.title for column in columns])
        spread = f"means and standard deviations of {seeds} seeds" if seeds > 1 else "one seed"
        flagged = any("no_positive" in value.flags for values in bars.values() for value in values)
        note = "; * no test image shows it" if flagged else ""
        axis.set_title(f"{TABLES[name].title}. F1 at threshold 0.5, {spread}; {data}{note}", fontsize=9)
    save_figure(figure, path)
    return True


def _panel(axis: plt.Axes, bars: dict[str, list[Value]], titles: list[str]) -> None:
    width = 0.82 / len(bars)
    for number, (title, values) in enumerate(bars.items()):
        colour, hatch = COLOURS[number % len(COLOURS)], HATCHES[number % len(HATCHES)]
        known = [(i, value) for i, value in enumerate(values) if value.mean is not None]
        places = [i + (number - (len(bars) - 1) / 2) * width for i, _ in known]
        means, spreads = [100 * value.mean for _, value in known], [100 * value.sd for _, value in known]
        axis.bar(places, means, width, color=colour, hatch=hatch, edgecolor="black", linewidth=0.5, label=title)
        if any(spreads):
            axis.errorbar(places, means, spreads, fmt="none", ecolor="black", elinewidth=0.9, capsize=1.8)
        for place, (_, value) in zip(places, known, strict=True):
            if "no_positive" in value.flags:
                axis.annotate("*", (place, 100 * value.mean), ha="center", va="bottom")
    axis.set_xticks(range(len(titles)), titles)
    axis.set(ylabel="F1, %", ylim=(0, 105), xlim=(-0.6, len(titles) - 0.4))
    axis.set_axisbelow(True)
    axis.grid(axis="y", linewidth=0.4, alpha=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(ncols=min(len(bars), 5), fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.09), frameon=False)
