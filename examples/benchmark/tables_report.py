"""The tables of `tables.py`: scores with intervals over people, differences of systems, flags, markdown."""

import json
import math
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
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
DATA = {"test": "report people", "style": "another style", "photographs": "photographs"}
COLUMNS = {
    "au_f1": "AU F1",
    "au_f1_half": "AU F1 at 0.5",
    "emotion_macro_recall": "emotion macro recall",
    "emotion_top1": "top-1",
    "emotion_macro_f1": "macro F1",
    "emotion_ovr_accuracy": "one-vs-rest accuracy",
    "au_auc": "AUC of an emotion's AUs against neutral",
}
FLAGS = {
    "below_chance": "no better than calling every AU active, or than one emotion for all",
    "below_probe": "below the linear probe on all of the tower's tokens",
    "not_converged": "the training loss still fell by more than 2 % in the last tenth of the epochs",
    "no_positive": "an AU or emotion that no image shows is left out",
    "fewer_seeds": "fewer seeds than asked for: the others failed, diverged or have not run",
    "missing": "failed, diverged or has not run",
}
_LANGUAGE = ("zero_shot_au_auc", "new_words_au_auc", "retrieval_au_state_over_chance", "retrieval_emotion_over_chance")
_LANGUAGE += ("caption_au_f1", "caption_emotion_top1", "itm_au_accuracy")
_CAPTIONS = ("bleu_4", "rouge_l", "cider", "fact_au_f1_macro", "fact_emotion_accuracy", "fact_contradicted")
_PROBES = ("probe_tokens", "probe_pooled", "probe_landmarks", "probe_tokens_landmarks")
_COMPARED = ("full", "vl_fau", "me_graph_au", "hsemotion", "exp_blip")


class Table(NamedTuple):
    """metrics: of metrics.json, shown as they are. against: the row that the others' differences are taken from."""

    title: str
    rows: Sequence[str]
    against: str = "mf2"
    metrics: Sequence[str] = ()
    probe: str = "probe_tokens"


TABLES = {
    "headline": Table(
        "All systems on one tower that was told no label",
        (*_PROBES, "mf2", "mf2_no_language", "mf2_no_language_cpu", "mf2_dfn", "mf2_lora", "mf2_tower", *_COMPARED),
    ),
    "language": Table(
        "What language is worth",
        (
            *("mf2", "mf2_no_language", "mf2_no_language_cpu", "mf2_equation3", "mf2_unseen"),
            *("exp_blip_contrast_exp", "exp_blip_contrast_meaning"),
        ),
        metrics=tuple(f"language/{name}" for name in _LANGUAGE),
    ),
    "adapt": Table(
        "To another style by a few labelled images",
        ("mf2", "adapt_probe", "adapt_heads", "adapt_dfn", "adapt_dfn_paper", "adapt_lora", "adapt_ia3", "adapt_full"),
        against="adapt_dfn",
        probe="adapt_probe",
    ),
    "scratch": Table(
        "From random weights, backbone too",
        ("full_scratch", "mf2_scratch", "vl_fau_scratch", "me_graph_au_scratch", "hsemotion_scratch"),
        against="mf2_scratch",
        probe="full_scratch",
    ),
    "II": Table("MF²'s Table II: AU recognition", ("exp_blip", "me_graph_au", "vl_fau", "mf2", "mf2_dfn")),
    "III": Table("MF²'s Table III: emotion recognition", ("exp_blip", "hsemotion", "mf2", "mf2_dfn")),
    "IV": Table(
        "MF²'s Table IV: its parts",
        (
            *("mf2_dfn", "mf2", "mf2_without_emo_vl", "mf2_without_au_vl", "mf2_no_geometry", "mf2_template"),
            *("mf2_dfn_paper", "mf2_ia3"),
        ),
    ),
    "V": Table("MF²'s Table V: from AU pre-training to emotion", ("exp_blip_au_to_emotion", "mf2_au_to_emotion")),
    "vlfau4": Table("VL-FAU's Table 4: its parts", ("vl_fau_1", "vl_fau_2", "vl_fau_3", "vl_fau_4", "vl_fau")),
    "expblip": Table(
        "Exp-BLIP's Tables 2 and 6: what its features are worth",
        (
            *("image_encoder_probe", "image_encoder_tuned"),
            *(exp_blip(c, f, by) for by in ("probe", "tuned") for c in EXP_BLIP for f in ("vision", "qformer")),
            *(f"exp_blip_{c}_{f}_local" for c in EXP_BLIP for f in ("vision", "qformer")),
        ),
    ),
    "captions": Table(
        "What Exp-BLIP's variants write", [f"exp_blip_{name}_stage2" for name in EXP_BLIP], metrics=_CAPTIONS
    ),
}

Values = dict[str, np.ndarray]
"""Column -> its value, and then that of each resample of the people."""


class People:
    """Rows of a split as counts by person, so that a resample is a weighted sum."""

    def __init__(self, rows: Any, label_set: str, photographs: bool) -> None:
        self.labels, names = resolve_label_set(label_set), rows.column_names
        people, self.place = np.unique(
            rows["subject"][:] if "subject" in names else range(len(rows)), return_inverse=True
        )
        draws = np.random.default_rng(0).multinomial(len(people), np.full(len(people), 1 / len(people)), RESAMPLES)
        self.weights = np.concatenate([np.ones((1, len(people))), draws])
        has_units = "au_labels" in names and self.labels.action_units and not photographs
        self.units = np.array(rows["au_labels"][:]) if has_units else None
        self.emotion = np.array(rows["emotion"][:]) if "emotion" in names else np.full(len(rows), -1)
        counts = np.bincount(self.emotion[self.emotion >= 0], minlength=len(self.labels.emotions))
        self.asked = np.flatnonzero(counts >= (LEAST if photographs else 1))
        self.photographs = photographs

    def totals(self, events: np.ndarray) -> np.ndarray:
        """(images, ...) -> (1 + resamples, ...)."""
        sums = np.zeros((self.weights.shape[1], *events.shape[1:]))
        np.add.at(sums, self.place, events)
        return np.tensordot(self.weights, sums, 1)

    def values(self, emotion: np.ndarray, units: np.ndarray, thresholds: np.ndarray | None) -> Values:
        found: Values = {}
        if self.units is not None:
            shown = (self.units == 1).any(0)
            for name, cuts in {"au_f1": thresholds, "au_f1_half": np.full(units.shape[1], 0.5)}.items():
                events = np.stack(action_unit_counts(units, self.units, cuts, axis=None), 1)
                found[name] = f1_from_counts(*np.moveaxis(self.totals(events), 1, 0))[:, shown].mean(1)
        if len(self.asked) > 1:
            truth = np.searchsorted(self.asked, self.emotion)
            size, known = len(self.asked), np.isin(self.emotion, self.asked)
            cells = truth * size + emotion[:, self.asked].argmax(1)
            events = (cells[:, None] == np.arange(size * size)) & known[:, None]
            confusion = self.totals(events).reshape(-1, size, size)
            means = confusion_scores(confusion, [str(name) for name in self.asked])
            found |= {name: means[name] for name in COLUMNS if name in means}
        if self.photographs and self.labels.action_units:
            found["au_auc"] = self._signs(units)
        return found

    def _signs(self, units: np.ndarray) -> np.ndarray:
        emotions, aucs = list(self.labels.emotions), []
        for name, signs in SIGNS.items():
            pair = [emotions.index(one) for one in (name, "Neutral")]
            if not set(pair) <= {*self.asked}:
                continue
            rows = np.flatnonzero(np.isin(self.emotion, pair))
            for unit in (unit for unit in signs if unit in self.labels.action_units):
                order = rows[np.argsort(units[rows, self.labels.action_units.index(unit)], kind="stable")]
                weights, positive = self.weights[:, self.place[order]], self.emotion[order] == pair[0]
                below = np.cumsum(weights * ~positive, axis=1)
                aucs.append((weights * positive * below).sum(1) / ((weights * positive).sum(1) * below[:, -1]))
        return np.nanmean(aucs, axis=0) if aucs else np.full(len(self.weights), np.nan)

    def chance(self) -> dict[str, float]:
        """Every AU called active; one emotion for all."""
        found = {"emotion_macro_recall": 1 / len(self.asked)} if len(self.asked) > 1 else {}
        if self.units is not None:
            counts = [(self.units == state).sum(0) for state in (1, 0)]
            seen = counts[0] > 0
            found["au_f1"] = float(f1_from_counts(counts[0], counts[1], 0 * counts[0])[seen].mean())
        return found


class Scores:
    """Values of each cell, seed and split that has been run."""

    def __init__(self, given: Namespace, data: Mapping[str, Any]) -> None:
        self.given, self.data = given, data
        self.people = {s: People(data[s], given.label_set, s == "photographs") for s in DATA if s in data}
        self.found: dict[str, dict[int, dict[str, Values]]] = {}

    def of(self, name: str) -> dict[int, dict[str, Values]]:
        if name not in self.found:
            self.found[name] = {}
            for seed in self.given.seeds:
                folder = folder_of(name, seed, self.given)
                if metrics_of(name, seed, self.given) is not None:
                    with np.load(folder / "scores.npz") as kept:
                        arrays = {key: kept[key] for key in kept.files}
                    cuts = arrays.get("thresholds")
                    self.found[name][seed] = {
                        split: people.values(arrays[f"{split}/emotion"], arrays[f"{split}/au"], cuts)
                        for split, people in self.people.items()
                        if f"{split}/au" in arrays
                    }
        return self.found[name]

    def mean(self, name: str, split: str, column: str, seeds: Sequence[int] | None = None) -> np.ndarray | None:
        runs = [
            run[split][column]
            for seed, run in self.of(name).items()
            if seeds is None or seed in seeds
            if column in run.get(split, {})
        ]
        return np.mean(runs, axis=0) if runs else None

    def difference(self, one: str, other: str, split: str, column: str) -> tuple[float, float, float] | None:
        """Of the means over the seeds that both have, with its interval: the same people are drawn for both."""
        seeds = sorted({*self.of(one)} & {*self.of(other)})
        both = [self.mean(name, split, column, seeds) for name in (one, other)]
        if not seeds or any(part is None for part in both):
            return None
        values = both[0] - both[1]
        return float(values[0]), *(float(bound) for bound in np.nanquantile(values[1:], (0.025, 0.975)))

    def best(self, names: Sequence[str], split: str, column: str) -> str | None:
        means = {name: self.mean(name, split, column) for name in names}
        known = {name: float(values[0]) for name, values in means.items() if values is not None}
        return max(known, key=known.get) if known else None

    def figures(self, name: str, split: str) -> Iterator[tuple[str, float]]:
        for column in COLUMNS:
            values = self.mean(name, split, column)
            if values is None:
                continue
            each = [float(run[split][column][0]) for run in self.of(name).values()]
            low, high = np.nanquantile(values[1:], (0.025, 0.975))
            named = {"mean": values[0], "sd": mean_sd(each)[1], "low": low, "high": high}
            yield from ((f"{column}/{kind}", float(value)) for kind, value in named.items())

    def flags(self, name: str, split: str, probe: str) -> list[str]:
        runs, people, flags = self.of(name), self.people[split], []
        if not runs:
            return ["missing"]
        flags += ["fewer_seeds"] if len(runs) < len(self.given.seeds) else []
        means = {column: self.mean(name, split, column) for column in ("au_f1", "emotion_macro_recall")}
        means = {column: float(values[0]) for column, values in means.items() if values is not None}
        chance = people.chance()
        flags += ["below_chance"] if any(means[c] <= chance.get(c, -1) for c in means) else []
        floor = self.mean(probe, split, "au_f1")
        low = floor is not None and name != probe and not name.startswith("probe") and means.get("au_f1", 1) < floor[0]
        flags += ["below_probe"] if low else []
        shown = people.units is None or (people.units == 1).any(0).all()
        all_asked = people.photographs or len(people.asked) == len(people.labels.emotions)
        flags += ["no_positive"] if not (shown and all_asked) else []
        last = [fall for seed in runs for stage in stages(name) if (fall := self.fall(stage, seed)) is not None]
        return flags + (["not_converged"] if any(fall > 0.02 for fall in last) else [])

    def fall(self, name: str, seed: int) -> float | None:
        """Share by which the training loss fell in the last tenth of the epochs."""
        kept = metrics_of(name, seed, self.given) or {}
        if "loss_before" not in kept:
            return None
        return (kept["loss_before"] - kept["loss_last"]) / max(abs(kept["loss_before"]), 1e-9)


def figures_of(given: Namespace, data: Mapping[str, Any], lacked: Mapping[str, list[str]]) -> tuple[dict, Scores]:
    scores, figures = Scores(given, data), {}
    for table, name in ((t, n) for t in given.tables for n in TABLES[t].rows if n not in lacked):
        if given.systems is not None and name not in given.systems:
            continue
        for split in scores.people:
            key = f"{table}/{name}/{split}"
            figures |= {f"{key}/{column}": value for column, value in scores.figures(name, split)}
            figures |= {f"{key}/{flag}": 1.0 for flag in scores.flags(name, split, TABLES[table].probe)}
        kept = [metrics_of(name, seed, given) for seed in given.seeds]
        costs = {
            "cpu_seconds": 0.0,
            "epochs": 0.0,
            "trainable_parameters": 0.0,
            **dict.fromkeys(TABLES[table].metrics, 0.0),
        }
        for key in costs:
            values = [run[key] for run in kept if run and math.isfinite(run.get(key, math.nan))]
            if values:
                figures[f"{table}/{name}/run/{key}/mean"], figures[f"{table}/{name}/run/{key}/sd"] = mean_sd(values)
        base = TABLES[table].against
        for split in scores.people:
            for column in ("au_f1", "emotion_macro_recall"):
                if name != base and (found := scores.difference(base, name, split, column)):
                    named = zip(("mean", "low", "high"), found, strict=True)
                    figures |= {f"{table}/{base}_minus_{name}/{split}/{column}/{kind}": v for kind, v in named}
    figures |= headlines(scores)
    failed = [folder_of(n, s, given) / "failed.txt" for n in CELLS for s in given.seeds]
    return {**figures, "failed_runs": float(sum(file.is_file() for file in failed))}, scores


def headlines(scores: Scores) -> dict[str, float]:
    figures = {}
    pairs = {
        "mf2_minus_probe": ("mf2", scores.best(_PROBES, "style", "au_f1")),
        "mf2_minus_best_baseline": ("mf2_tower", scores.best(_COMPARED, "style", "au_f1")),
        "language_worth": ("mf2", "mf2_no_language_cpu"),
    }
    for key, (one, other) in pairs.items():
        found = scores.difference(one, other, "style", "au_f1") if other and "style" in scores.people else None
        if found:
            name = f"{key}_au_f1" if key == "language_worth" else f"{key}_style_au_f1"
            figures |= {name: found[0], f"{name}/low": found[1], f"{name}/high": found[2]}
    unseen = [metrics_of("mf2_unseen", seed, scores.given) for seed in scores.given.seeds]
    values = [run[key] for run in unseen if run for key in run if key.startswith("language/zero_shot_au_auc/")]
    return figures | ({"unseen_au_auc": float(np.mean(values))} if values else {})


def shown(figures: Mapping[str, float], key: str, scale: float = 100, form: str = ".1f") -> str:
    if f"{key}/mean" not in figures:
        return "–"
    text = f"{scale * figures[f'{key}/mean']:{form}}"
    text += f" ± {scale * figures[f'{key}/sd']:{form}}" if figures.get(f"{key}/sd") else ""
    bounds = [figures.get(f"{key}/{bound}", math.nan) for bound in ("low", "high")]
    return text + (
        f" [{scale * bounds[0]:{form}}, {scale * bounds[1]:{form}}]" if all(map(math.isfinite, bounds)) else ""
    )


def markdown(given: Namespace, figures: Mapping[str, float], scores: Scores, lacked: Mapping[str, list[str]]) -> str:
    seeds = f"seeds {', '.join(map(str, given.seeds))}; mean ± sd over seeds [95 % interval over people]"
    parts = [
        "# Compared systems",
        f"Protocol: docs/protocol.md. In %; {seeds}. Command: `tables.py {' '.join(given.argv)}`",
    ]
    for table in given.tables:
        named, title = TABLES[table], {}
        for name in named.rows:
            if given.systems is None or name in given.systems:
                title[name] = CELLS[name].title
        parts.append(f"## {named.title}")
        for split in scores.people:
            columns = [c for c in COLUMNS if any(f"{table}/{n}/{split}/{c}/mean" in figures for n in title)]
            rows = []
            for name in title:
                key = f"{table}/{name}/{split}"
                flags = [flag for flag in FLAGS if f"{key}/{flag}" in figures]
                rows.append([title[name], *(shown(figures, f"{key}/{c}") for c in columns), ", ".join(flags)])
            people = scores.people[split]
            chance = ", ".join(f"{COLUMNS[c]} {100 * v:.1f}" for c, v in people.chance().items())
            about = (
                f"{DATA[split]}: {len(people.place):,} images of {people.weights.shape[1]:,} people; chance: {chance}"
            )
            if columns:
                parts += [f"{about}.", markdown_table(["", *(COLUMNS[c] for c in columns), "flags"], rows)]
        parts += [_costs(table, title, figures), _differences(table, title, figures), _papers(table, title, given)]
    used = [flag for flag in FLAGS if any(key.endswith(f"/{flag}") for key in figures)]
    notes = [f"{flag}: {FLAGS[flag]}." for flag in used] + list(_reasons(given, figures))
    notes += [
        f"{name} was not run: label set {given.label_set} has no {' and no '.join(n)}." for name, n in lacked.items()
    ]
    return "\n\n".join([part for part in parts if part] + (["## Flags", *notes] if notes else [])) + "\n"


def _costs(table: str, title: Mapping[str, str], figures: Mapping[str, float]) -> str:
    keys = {"run/epochs": "epochs", "run/cpu_seconds": "CPU-s", "run/trainable_parameters": "trained parameters"}
    rows = [[t, *(shown(figures, f"{table}/{n}/{key}", 1, ",.0f") for key in keys)] for n, t in title.items()]
    text = markdown_table(["last stage", *keys.values()], rows)
    if named := TABLES[table].metrics:
        cells = [[t, *(shown(figures, f"{table}/{n}/run/{key}", 1, ".3f") for key in named)] for n, t in title.items()]
        text += "\n\n" + markdown_table(["", *(key.rpartition("/")[2] for key in named)], cells)
    return text


def _differences(table: str, title: Mapping[str, str], figures: Mapping[str, float]) -> str:
    """A star stands where the interval has no 0."""
    base, rows = TABLES[table].against, []
    for name in title:
        line = [title[name]]
        for split in ("test", "style", "photographs"):
            for column in ("au_f1", "emotion_macro_recall"):
                key = f"{table}/{base}_minus_{name}/{split}/{column}"
                bounds = [figures.get(f"{key}/{bound}", 0.0) for bound in ("low", "high")]
                line.append(shown(figures, key) + "*" * (bounds[0] * bounds[1] > 0))
        rows += [line] if any(cell != "–" for cell in line[1:]) else []
    heads = [f"{what}, {DATA[s]}" for s in DATA for what in ("AU F1", "emotion recall")]
    return markdown_table([f"{CELLS[base].title} less", *heads], rows) if rows else ""


def _papers(table: str, title: Mapping[str, str], given: Namespace) -> str:
    """Ours by AU or emotion, as the paper prints them; and the paper's own figures, not to be compared with ours."""
    if table not in PAPERS:
        return ""
    columns = PAPERS[table]["columns"]
    emotions = table in ("III", "IV", "V")
    score, mean = ("emotion_ovr_accuracy",) * 2 if emotions else ("au_f1", "au_f1_macro")
    keys = {column: f"{score}/{column}" for column in columns} | {"avg": mean}
    keys |= {"AU F1": "au_f1_tuned_macro", "emotion": "emotion_top1"}
    rows = []
    for name in title:
        runs = [run for seed in given.seeds if (run := metrics_of(name, seed, given))]
        means = [[run[keys[c]] for run in runs if keys[c] in run] for c in columns]
        rows.append([title[name], *(f"{100 * np.mean(values):.1f}" if values else "–" for values in means)])
    theirs = [[CELLS[name].title, *line.split()] for name, line in PAPERS[table]["rows"].items()]
    ours = f"Ours, {'one-vs-rest accuracy' if emotions else 'F1 at 0.5'} in %."
    source = f"The paper's own figures, not to be compared with ours. {PAPERS[table]['source']}."
    return "\n\n".join(
        [ours, markdown_table(["", *columns], rows), source, markdown_table(["the paper's", *columns], theirs)]
    )


def _reasons(given: Namespace, figures: Mapping[str, float]) -> Iterator[str]:
    """Why a compared system is below the probe, and what failed."""
    for name, cell in CELLS.items():
        if any(key.endswith(f"/{name}/test/below_probe") for key in figures) and cell.reads:
            yield f"{cell.title} is below the linear probe on report people; it reads: {cell.reads}."
        for seed in given.seeds:
            file = folder_of(name, seed, given) / "failed.txt"
            if file.is_file():
                yield f"{name}-{seed} failed: {file.read_text(encoding='utf-8').strip().splitlines()[-1]}"
