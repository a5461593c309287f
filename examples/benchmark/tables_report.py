"""The tables of `tables.py`: scores with intervals over people, differences of systems, flags, markdown."""

import json
import math
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from photographs import LEAST, SIGNS
from report import markdown_table, mean_sd
from tables_cells import CELLS, EXP_BLIP, exp_blip, folder_of, metrics_of, stages

from configuration_mf2.facs import resolve_label_set
from mf2face.data.metrics import action_unit_counts, confusion_scores, f1_from_counts


PAPERS = json.loads((Path(__file__).parent / "results" / "papers.json").read_text(encoding="utf-8"))
"""What the papers print, on their data and with their models."""
RESAMPLES = 1000
SPLITS = {"test": "report people", "style": "another style", "photographs": "photographs"}
COLUMNS = {
    "au_f1": "AU F1",
    "au_f1_half": "AU F1 at 0.5",
    "emotion_macro_recall": "emotion macro recall",
    "emotion_top1": "top-1",
    "emotion_macro_f1": "macro F1",
    "emotion_ovr_accuracy": "one-vs-rest accuracy",
    "au_auc": "AUC of an emotion's AUs against neutral",
}
COMPARED_BY = ("au_f1", "emotion_macro_recall")
"""Columns of which differences are taken."""
COSTS = {"epochs": "epochs", "cpu_seconds": "CPU-s", "trainable_parameters": "trained parameters"}
FLAGS = {
    "missing": "failed, diverged or has not run",
    "fewer_seeds": "a mean of fewer seeds than asked for: the others failed, diverged or have not run",
    "below_chance": "no better than calling every AU active, or than one emotion for all",
    "below_probe": "below the linear probe on all of the tower's tokens",
    "not_converged": "the training loss still fell by more than 2 % in the last tenth of the epochs",
    "no_positive": "an AU or emotion that no image shows is left out",
}
_LANGUAGE = ("zero_shot_au_auc", "new_words_au_auc", "retrieval_au_state_over_chance", "retrieval_emotion_over_chance")
_LANGUAGE += ("caption_au_f1", "caption_emotion_top1", "itm_au_accuracy")
_CAPTIONS = ("bleu_4", "rouge_l", "cider", "fact_au_f1_macro", "fact_emotion_accuracy", "fact_contradicted")
_PROBES = ("probe_tokens", "probe_pooled", "probe_landmarks", "probe_tokens_landmarks")
_COMPARED = ("full", "hsemotion", "vl_fau", "me_graph_au", "exp_blip")


class Table(NamedTuple):
    """against: the row from which the others are subtracted. metrics: of metrics.json, shown as they are. probe: the
    floor."""

    title: str
    rows: Sequence[str]
    against: str = "mf2"
    metrics: Sequence[str] = ()
    probe: str = "probe_tokens"


_HEADLINE = (*_PROBES, "mf2", "full", "mf2_no_language", *_COMPARED[1:4], "mf2_no_language_cpu", "mf2_tower")
_ADAPT = ("mf2", "adapt_probe", "adapt_heads", "adapt_dfn", "adapt_dfn_paper", "adapt_lora", "adapt_ia3", "adapt_full")
_READOUTS = [
    *("image_encoder_probe", "image_encoder_tuned"),
    *(exp_blip(c, f, by) for by in ("probe", "tuned") for c in EXP_BLIP for f in ("vision", "qformer")),
    *(f"exp_blip_{c}_{f}_local" for c in EXP_BLIP for f in ("vision", "qformer")),
]
_CONTRASTS = ("mf2_equation3", "mf2_unseen", "exp_blip_contrast_exp", "exp_blip_contrast_meaning")
_PARTS = ("mf2_without_emo_vl", "mf2_without_au_vl", "mf2_no_geometry", "mf2_no_shape", "mf2_template")
_PARTS += ("mf2_dfn_paper", "mf2_ia3")
_FROM_RANDOM = [f"{name}_scratch" for name in ("full", "mf2", "vl_fau", "me_graph_au", "hsemotion")]
TABLES = {
    "headline": Table("One tower trained without labels", (*_HEADLINE, "exp_blip", "mf2_dfn", "mf2_lora")),
    "language": Table(
        "What language is worth",
        ("mf2", "mf2_no_language", "mf2_no_language_cpu", *_CONTRASTS),
        metrics=tuple(f"language/{name}" for name in _LANGUAGE),
    ),
    "adapt": Table("To another style by few labelled images", _ADAPT, against="adapt_dfn", probe="adapt_probe"),
    "scratch": Table("From random weights, backbone too", _FROM_RANDOM, against="mf2_scratch", probe="full_scratch"),
    "II": Table("MF²'s Table II: AU recognition", ("exp_blip", "me_graph_au", "vl_fau", "mf2", "mf2_dfn")),
    "III": Table("MF²'s Table III: emotion recognition", ("exp_blip", "hsemotion", "mf2", "mf2_dfn")),
    "IV": Table("MF²'s Table IV: its parts", ("mf2_dfn", "mf2", *_PARTS)),
    "V": Table("MF²'s Table V: from AU pre-training to emotion", ("exp_blip_au_to_emotion", "mf2_au_to_emotion")),
    "vlfau4": Table("VL-FAU's Table 4: its parts", ("vl_fau_1", "vl_fau_2", "vl_fau_3", "vl_fau_4", "vl_fau")),
    "expblip": Table("Exp-BLIP's Tables 2 and 6: what its features are worth", _READOUTS),
    "captions": Table("What Exp-BLIP writes", [f"exp_blip_{name}_stage2" for name in EXP_BLIP], metrics=_CAPTIONS),
}

Values = dict[str, np.ndarray]
"""Column -> its value, and then that of each resample of the people."""


class Split:
    """The truth of a split as counts by person, so that a resample of the people is a weighted sum."""

    def __init__(self, rows: Any, label_set: str, photographs: bool) -> None:
        self.labels, names, self.photographs = resolve_label_set(label_set), rows.column_names, photographs
        people = rows["subject"][:] if "subject" in names else range(len(rows))
        count, self.person = len(set(people)), np.unique(people, return_inverse=True)[1]
        draws = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES)
        self.weights = np.concatenate([np.ones((1, count)), draws])
        has_units = "au_labels" in names and self.labels.action_units and not photographs
        self.units = np.array(rows["au_labels"][:]) if has_units else np.zeros((len(rows), 0), int)
        has_emotion = "emotion" in names and self.labels.emotions
        self.emotion = np.array(rows["emotion"][:]) if has_emotion else np.full(len(rows), -1)
        counts = np.bincount(self.emotion[self.emotion >= 0], minlength=len(self.labels.emotions))
        self.asked = np.flatnonzero(counts >= (LEAST if photographs else 1))  # emotions
        self.shown = (self.units == 1).any(0)

    def totals(self, events: np.ndarray) -> np.ndarray:
        """(images, ...) -> (1 + resamples, ...)."""
        sums = np.zeros((self.weights.shape[1], *events.shape[1:]))
        np.add.at(sums, self.person, events)
        return np.tensordot(self.weights, sums, 1)

    def values(self, emotion: np.ndarray, units: np.ndarray, thresholds: np.ndarray | None) -> Values:
        found: Values = {}
        for name, cuts in {"au_f1": thresholds, "au_f1_half": 0.5}.items() if self.shown.any() else ():
            events = np.stack(action_unit_counts(units, self.units, cuts, axis=None), 1)
            found[name] = f1_from_counts(*np.moveaxis(self.totals(events), 1, 0))[:, self.shown].mean(1)
        if (size := len(self.asked)) > 1 and emotion.shape[1]:
            cells = np.searchsorted(self.asked, self.emotion) * size + emotion[:, self.asked].argmax(1)
            events = (cells[:, None] == np.arange(size * size)) & np.isin(self.emotion, self.asked)[:, None]
            means = confusion_scores(self.totals(events).reshape(-1, size, size), [*map(str, self.asked)])
            found |= {name: means[name] for name in COLUMNS if name in means}
        aucs = list(self._aucs(units)) if self.photographs and units.shape[1] else []
        return found | ({"au_auc": np.nanmean(aucs, axis=0)} if aucs else {})

    def _aucs(self, units: np.ndarray) -> Iterator[np.ndarray]:
        """Of each AU that belongs to an emotion, between its photographs and neutral ones."""
        emotions, names = list(self.labels.emotions), list(self.labels.action_units)
        for emotion, unit in ((e, unit) for e in SIGNS for unit in SIGNS[e] if unit in names):
            pair = [emotions.index(emotion), emotions.index("Neutral")]
            if {*pair} <= {*self.asked}:
                rows = np.flatnonzero(np.isin(self.emotion, pair))
                rows = rows[np.argsort(units[rows, names.index(unit)], kind="stable")]
                weights, positive = self.weights[:, self.person[rows]], self.emotion[rows] == pair[0]
                below = np.cumsum(weights * ~positive, axis=1)
                with np.errstate(invalid="ignore"):
                    yield (weights * positive * below).sum(1) / ((weights * positive).sum(1) * below[:, -1])

    @cached_property
    def chance(self) -> dict[str, float]:
        """Every AU called active; one emotion for all."""
        found = {"emotion_macro_recall": 1 / len(self.asked)} if len(self.asked) > 1 else {}
        if self.shown.any():
            active, rest = ((self.units == state).sum(0) for state in (1, 0))
            found["au_f1"] = float(f1_from_counts(active, rest, 0 * rest)[self.shown].mean())
        return found


class Scores:
    """Values of every cell, seed and split that has run."""

    def __init__(self, given: Namespace, data: Mapping[str, Any]) -> None:
        self.given, self.cells = given, dict[str, dict[int, dict[str, Values]]]()
        self.splits = {s: Split(data[s], given.label_set, s == "photographs") for s in SPLITS if s in data}

    def runs(self, name: str) -> dict[int, dict[str, Values]]:
        if name not in self.cells:
            seeds = [seed for seed in self.given.seeds if metrics_of(name, seed, self.given)]
            self.cells[name] = {seed: self._run(folder_of(name, seed, self.given)) for seed in seeds}
        return self.cells[name]

    def _run(self, folder: Path) -> dict[str, Values]:
        with np.load(folder / "scores.npz") as kept:
            arrays = {key: kept[key] for key in kept.files}
        parts = {split: [arrays.get(f"{split}/{part}") for part in ("emotion", "au")] for split in self.splits}
        cuts = arrays.get("thresholds")
        return {s: self.splits[s].values(*pair, cuts) for s, pair in parts.items() if pair[0] is not None}

    def mean(self, name: str, split: str, column: str, seeds: Sequence[int] = ()) -> np.ndarray | None:
        """Over the seeds that there are, or over `seeds`."""
        runs = {seed: run[split] for seed, run in self.runs(name).items() if column in run.get(split, {})}
        chosen = [runs[seed][column] for seed in runs if not seeds or seed in seeds]
        return np.mean(chosen, axis=0) if chosen else None

    def difference(self, one: str, other: str, split: str, column: str) -> dict[str, float]:
        """Of the means over the seeds that both have; the same people are drawn for both."""
        seeds = sorted({*self.runs(one)} & {*self.runs(other)})
        both = [self.mean(name, split, column, seeds) for name in (one, other)] if seeds else [None]
        return {} if any(part is None for part in both) else with_interval(both[0] - both[1])

    def best(self, names: Sequence[str], split: str, column: str) -> str | None:
        means = {name: values[0] for name in names if (values := self.mean(name, split, column)) is not None}
        return max(means, key=means.get) if means else None

    def flags(self, name: str, split: str, probe: str) -> Iterator[str]:
        runs, known = self.runs(name), self.splits[split]
        if len(runs) < len(self.given.seeds):
            yield "fewer_seeds" if runs else "missing"
        means = {c: values[0] for c in COMPARED_BY if (values := self.mean(name, split, c)) is not None}
        if any(means[column] <= known.chance.get(column, -1) for column in means):
            yield "below_chance"
        floor = self.mean(probe, split, "au_f1")
        if floor is not None and "probe" not in name and means.get("au_f1", 1.0) < floor[0]:
            yield "below_probe"
        if means and not (known.shown.all() and (known.photographs or len(known.asked) == len(known.labels.emotions))):
            yield "no_positive"
        falls = [loss_fall(metrics_of(stage, seed, self.given)) for seed in runs for stage in stages(name)]
        if any(fall > 0.02 for fall in falls):
            yield "not_converged"


def with_interval(values: np.ndarray) -> dict[str, float]:
    low, high = np.nanquantile(values[1:], (0.025, 0.975))
    return {"mean": float(values[0]), "low": float(low), "high": float(high)}


def loss_fall(metrics: Mapping[str, float] | None) -> float:
    """Share by which the training loss fell in the last tenth of the epochs."""
    before, last = ((metrics or {}).get(key, 0.0) for key in ("loss_before", "loss_last"))
    return (before - last) / max(abs(before), 1e-9)


def figures_of(given: Namespace, data: Mapping[str, Any]) -> dict[str, float]:
    scores = Scores(given, data)
    figures = {f"data/{name}/chance/{c}": value for name, s in scores.splits.items() for c, value in s.chance.items()}
    for name, split in scores.splits.items():
        figures |= {f"data/{name}/images": len(split.person), f"data/{name}/people": split.weights.shape[1]}
    for table, name in [(one, name) for one in given.tables for name in rows_of(one, given)]:
        found, base = {}, TABLES[table].against
        for split in scores.splits:
            for column in COLUMNS:
                if (values := scores.mean(name, split, column)) is not None:
                    each = [float(run[split][column][0]) for run in scores.runs(name).values()]
                    found[f"{name}/{split}/{column}"] = {**with_interval(values), "sd": mean_sd(each)[1]}
            for column in COMPARED_BY if name != base else ():
                found[f"{base}_minus_{name}/{split}/{column}"] = scores.difference(base, name, split, column)
            flags = dict.fromkeys(scores.flags(name, split, TABLES[table].probe), 1.0)
            found[f"{name}/{split}"] = flags
        for key in (*COSTS, *TABLES[table].metrics):
            runs = [metrics[key] for seed in given.seeds if key in (metrics := metrics_of(name, seed, given) or {})]
            found[f"{name}/run/{key}"] = dict(zip(("mean", "sd"), mean_sd(runs), strict=True)) if runs else {}
        figures |= {f"{table}/{key}/{kind}": v for key, kinds in found.items() for kind, v in kinds.items()}
    failed = [folder_of(name, seed, given) / "failed.txt" for name in CELLS for seed in given.seeds]
    return {**figures, **headlines(scores), "failed_runs": float(sum(file.is_file() for file in failed))}


def headlines(scores: Scores) -> dict[str, float]:
    """See tables.py."""
    best = (
        scores.best(names, "style", "au_f1") if "style" in scores.splits else None for names in (_PROBES, _COMPARED)
    )
    pairs = {
        "mf2_minus_probe_style_au_f1": ("mf2", next(best)),
        "mf2_minus_best_baseline_style_au_f1": ("mf2_tower", next(best)),
        "language_worth_au_f1": ("mf2", "mf2_no_language_cpu"),
    }
    figures = {}
    for key, (one, other) in pairs.items():
        found = scores.difference(one, other, "style", "au_f1") if other else {}
        figures |= {key if kind == "mean" else f"{key}/{kind}": value for kind, value in found.items()}
    unseen = [metrics_of("mf2_unseen", seed, scores.given) or {} for seed in scores.given.seeds]
    values = [run[key] for run in unseen for key in run if key.startswith("language/zero_shot_au_auc/")]
    return figures | ({"unseen_au_auc": float(np.mean(values))} if values else {})


def rows_of(table: str, given: Namespace) -> list[str]:
    return [name for name in TABLES[table].rows if name in given.systems]


def cell(figures: Mapping[str, float], key: str, scale: float = 100, form: str = ".1f") -> str:
    parts = {
        kind: scale * figures[f"{key}/{kind}"] for kind in ("mean", "sd", "low", "high") if f"{key}/{kind}" in figures
    }
    if "mean" not in parts:
        return "–"
    text = f"{parts['mean']:{form}}" + (f" ± {parts['sd']:{form}}" if parts.get("sd") else "")
    return text + (
        f" [{parts['low']:{form}}, {parts['high']:{form}}]" if math.isfinite(parts.get("low", math.nan)) else ""
    )


def markdown(given: Namespace, figures: Mapping[str, float], lacked: Mapping[str, Sequence[str]]) -> str:
    about = f"In %; seeds {', '.join(map(str, given.seeds))}; mean ± sd over seeds [95 % interval over people]."
    parts = ["# Compared systems", f"Protocol: docs/protocol.md. {about} `tables.py {' '.join(given.argv)}`"]
    splits = [split for split in SPLITS if f"data/{split}/images" in figures]
    for table in given.tables:
        titles = {name: CELLS[name].title for name in rows_of(table, given)}
        parts += [f"## {TABLES[table].title}"] if titles else []
        for split in splits if titles else ():
            columns = [c for c in COLUMNS if any(f"{table}/{n}/{split}/{c}/mean" in figures for n in titles)]
            keys = {title: f"{table}/{name}/{split}" for name, title in titles.items()}
            rows = [
                [
                    t,
                    *(cell(figures, f"{key}/{c}") for c in columns),
                    ", ".join(f for f in FLAGS if f"{key}/{f}" in figures),
                ]
                for t, key in keys.items()
            ]
            chance = [
                f"{COLUMNS[c]} {100 * v:.1f}" for c in COMPARED_BY if (v := figures.get(f"data/{split}/chance/{c}"))
            ]
            counts = f"{figures[f'data/{split}/images']:,} images of {figures[f'data/{split}/people']:,} people"
            parts.append(f"{SPLITS[split]}: {counts}; chance: {', '.join(chance)}.")
            parts.append(markdown_table(["", *(COLUMNS[c] for c in columns), "flags"], rows))
        if titles:
            parts += [_differences(table, titles, splits, figures), _runs(table, titles, figures)]
            runs = {name: [m for seed in given.seeds if (m := metrics_of(name, seed, given))] for name in titles}
            parts += [papers_table(table, runs)] if table in PAPERS else []
    notes = [f"{flag}: {words}." for flag, words in FLAGS.items() if any(key.endswith(f"/{flag}") for key in figures)]
    for name, one in CELLS.items():
        if one.reads and any(key.endswith(f"/{name}/test/below_probe") for key in figures):
            notes.append(f"{one.title} is below the linear probe on report people; it reads: {one.reads}.")
        files = {seed: folder_of(name, seed, given) / "failed.txt" for seed in given.seeds}
        failed = {seed: file.read_text(encoding="utf-8").split("\n") for seed, file in files.items() if file.is_file()}
        notes += [f"{name}-{seed} failed: {[line for line in lines if line][-1]}" for seed, lines in failed.items()]
    notes += [f"{n} was not run: label set {given.label_set} has no {' and no '.join(lacked[n])}." for n in lacked]
    return "\n\n".join([*filter(None, parts), *(["## Notes", *notes] if notes else [])]) + "\n"


def _runs(table: str, titles: Mapping[str, str], figures: Mapping[str, float]) -> str:
    costs = [[t, *(cell(figures, f"{table}/{n}/run/{key}", 1, ",.0f") for key in COSTS)] for n, t in titles.items()]
    text, named = markdown_table(["last stage", *COSTS.values()], costs), TABLES[table].metrics
    rows = [[t, *(cell(figures, f"{table}/{n}/run/{key}", 1, ".3f") for key in named)] for n, t in titles.items()]
    return f"{text}\n\n{markdown_table(['', *(key.rpartition('/')[2] for key in named)], rows)}" if named else text


def _differences(table: str, titles: Mapping[str, str], splits: Sequence[str], figures: Mapping[str, float]) -> str:
    base, rows = TABLES[table].against, []
    for name, title in titles.items():
        keys = [f"{table}/{base}_minus_{name}/{split}/{column}" for split in splits for column in COMPARED_BY]
        stars = ["*" * (figures.get(f"{key}/low", 0.0) * figures.get(f"{key}/high", 0.0) > 0) for key in keys]
        line = [cell(figures, key) + star for key, star in zip(keys, stars, strict=True)]
        rows += [[title, *line]] if {*line} != {"–"} else []
    heads = [f"{COLUMNS[column]}, {SPLITS[split]}" for split in splits for column in COMPARED_BY]
    return markdown_table([f"{CELLS[base].title} less (* interval without 0)", *heads], rows) if rows else ""


def papers_table(table: str, runs: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Ours by AU or emotion, as the paper prints them, and apart the paper's own, which are of other data."""
    columns, emotions = PAPERS[table]["columns"], table in ("III", "IV", "V")
    kind, mean = ("emotion_ovr_accuracy",) * 2 if emotions else ("au_f1", "au_f1_macro")
    keys = {column: f"{kind}/{column}" for column in columns} | {"avg": mean}
    keys |= {"AU F1": "au_f1_tuned_macro", "emotion": "emotion_top1"}
    rows = []
    for name in (name for name in TABLES[table].rows if name in runs):
        values = [[run[keys[column]] for run in runs[name] if keys[column] in run] for column in columns]
        rows.append([CELLS[name].title, *(f"{100 * np.mean(some):.1f}" if some else "–" for some in values)])
    theirs = [[CELLS[name].title, *line.split()] for name, line in PAPERS[table]["rows"].items()]
    parts = [f"Ours: {'one-vs-rest accuracy' if emotions else 'F1 at 0.5'} in %.", markdown_table(["", *columns], rows)]
    parts.append(f"The paper's own figures, not to be compared with ours. {PAPERS[table]['source']}.")
    return "\n\n".join([*parts, markdown_table(["the paper's", *columns], theirs)])
