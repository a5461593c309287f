"""Ways to fine-tune a foundation model side by side: what each costs, and what it is worth on another drawing style.

    python examples/benchmark/finetuning.py [--size base] [--json FILE] [--markdown FILE]
    python examples/benchmark/finetuning.py --accuracy [--model FOLDER] [any of train.py's arguments]

Cost (see finetuning_cost.py): random weights of `--size`, steps on a few images, scaled to an epoch of `--images`.

Accuracy: a checkpoint trained on one style (the released one: paint) is adapted by `train.py` to another, with faces of
new people. All methods see the same images, the same seeds and as many epochs, each kept at its best epoch on the same
512 validation images, on which thresholds are tuned too; scores are of 1024 others. The fewer labelled images are the
first of the more. Each run stays in a folder of `--output_dir`; a finished one is read, not repeated.
`gap_closed_*` is (DFN - linear probe) / (full - linear probe) of the means over the seeds, `_sd` the spread by seed;
where the gap, `full_minus_probe_*`, is no larger than its spread, the share says little.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

from finetuning_cost import METHODS, RATIOS, cost_figures, measure, measure_apart
from report import write_json


sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import train
from mf2face.data.synthetic.faces import MFASynthetic
from mf2face.data.synthetic.subjects import FRAMES_PER_SUBJECT
from mf2face.training.build import RELEASED


VALIDATION, TEST = 512, 1024  # images
SCORES = {"au_f1_tuned_macro": "au", "au_f1_macro": "au_at_half", "emotion_top1": "emotion"}
SCORE_TITLES = ["method", "AU F1, tuned", "AU F1 at 0.5", "emotion top-1"]
UNTOUCHED = "untouched"
PAPER = """\
The paper's own figures, its Table IV (its data, its model, an RTX A6000; not to be compared with the columns above):

| | emotion accuracy, average % | training, min an epoch | inference, min | trainable |
|---|---|---|---|---|
| MF² + DFN | 84.40 | 12.6 | 6.4 | 52.88 M |
| without DFN | 83.48 | 62.3 | 5.1 | 373.4 M |
| without Emo-VL | 82.42 | 8.4 | 4.5 | 186.7 M |
| without AU-VL | 81.87 | 4.1 | 2.1 | 186.7 M |
"""


def measure_costs(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    one = measure if arguments.no_memory else measure_apart
    shared = {"size": arguments.size, "batch_size": arguments.batch_size, "epoch_batch": arguments.epoch_batch}
    rows = {}
    for name in arguments.methods:
        found = one(name, **shared, rounds=arguments.rounds)
        rows[name] = {key: v for key, v in found.items() if not (arguments.no_memory and key.endswith("_mb"))}
        print(f"{METHODS[name].title}: " + ", ".join(f"{key} {value:.4g}" for key, value in rows[name].items()))
    return rows


def drawn(arguments: argparse.Namespace) -> dict[int, Path]:
    """For each number of labelled images a dataset on disk; validation and test people are the same in all."""
    wrong = [count for count in arguments.labelled if count < 1 or count % FRAMES_PER_SUBJECT]
    if wrong:
        raise ValueError(f"labelled: got {wrong[0]}, expected a multiple of {FRAMES_PER_SUBJECT}, the images a person")
    root, (validation, test) = arguments.output_dir / "data", arguments.held_out
    parts = f"{arguments.style}-{arguments.people_seed}-{validation}-{test}"
    folders = {count: root / f"{parts}-{count}" for count in arguments.labelled}
    if all(folder.is_dir() for folder in folders.values()):
        return folders
    import datasets

    held = validation + test
    faces = MFASynthetic(held + max(folders), arguments.style, seed=arguments.people_seed).remove_columns("split")
    for count, folder in folders.items():
        if not folder.is_dir():
            splits = {"train": (held, held + count), "validation": (test, held), "test": (0, test)}
            made = datasets.DatasetDict({name: faces.select(range(*rows)) for name, rows in splits.items()})
            scratch = folder.with_name(folder.name + ".part")
            made.save_to_disk(scratch)
            scratch.rename(folder)
    return folders


def one_run(
    name: str, seed: int, count: int, data: Path, arguments: argparse.Namespace, rest: list[str]
) -> dict[str, float]:
    folder = arguments.output_dir / f"{name}-{count}-{seed}"
    command = ["--model_name_or_path", str(arguments.model), "--dataset", str(data), "--seed", str(seed)]
    command += ["--views", str(arguments.views), *rest]
    if name == UNTOUCHED:
        command += ["--task", "evaluate"]
    else:
        epochs = arguments.epochs[arguments.labelled.index(count)]
        command += ["--task", METHODS[name].task, "--num_train_epochs", str(epochs), "--warmup_steps", "0.1"]
        command += ["--no_store", "True"] if name == "dfn_no_store" else []
        command += ["--learning_rate", arguments.learning_rates[name]] if name in arguments.learning_rates else []
    begun = folder / "command.json"
    if begun.is_file() and (before := json.loads(begun.read_text())["command"]) != command:
        raise ValueError(
            f"{folder}: was run with {' '.join(before)}, expected {' '.join(command)}; give another --output_dir, or "
            "remove that folder"
        )
    if not (folder / "metrics.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(begun, {"command": command})
        train.main([*command, "--output_dir", str(folder)])
    return json.loads((folder / "metrics.json").read_text())


def mean_sd(values: list[float]) -> tuple[float, float]:
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def worth(runs: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    """Of each method's runs, a seed each: means, spreads, and how DFN stands between the linear probe and full."""
    figures: dict[str, float] = {}
    values = {name: {s: [run[key] for run in found] for key, s in SCORES.items()} for name, found in runs.items()}
    for name, scores in values.items():
        for short, found in scores.items():
            figures[f"{name}_{short}"], figures[f"{name}_{short}_sd"] = mean_sd(found)
    if not {"dfn", "linear_probe", "full"} <= set(values):
        return figures
    for short in SCORES.values():
        dfn, probe, full = (values[name][short] for name in ("dfn", "linear_probe", "full"))
        won = [ours - theirs for ours, theirs in zip(dfn, probe, strict=True)]
        gaps = [most - least for most, least in zip(full, probe, strict=True)]
        figures[f"dfn_minus_probe_{short}"], figures[f"dfn_minus_probe_{short}_sd"] = mean_sd(won)
        figures[f"full_minus_probe_{short}"], figures[f"full_minus_probe_{short}_sd"] = mean_sd(gaps)
        if statistics.mean(gaps) > 0:
            figures[f"gap_closed_{short}"] = statistics.mean(won) / statistics.mean(gaps)
        if min(gaps) > 0:
            shares = [part / gap for part, gap in zip(won, gaps, strict=True)]
            figures[f"gap_closed_{short}_sd"] = mean_sd(shares)[1]
    return figures


def measure_worth(arguments: argparse.Namespace, rest: list[str]) -> dict[int, dict[str, float]]:
    figures = {}
    for count, data in drawn(arguments).items():
        runs = {UNTOUCHED: [one_run(UNTOUCHED, 0, count, data, arguments, rest)]}
        for name in arguments.methods_trained:
            runs[name] = [one_run(name, seed, count, data, arguments, rest) for seed in arguments.seeds]
        figures[count] = worth(runs)
    return figures


def table(titles: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (titles, ["---"] * len(titles), *rows))


def number(figures: dict[str, float], name: str, form: str) -> str:
    return format(figures[name], form) if name in figures else "–"


def score(figures: dict[str, float], name: str) -> str:
    return f"{figures[name]:.3f} ± {figures[f'{name}_sd']:.3f}" if name in figures else "–"


def summary(costs: dict[str, float], worths: dict[int, dict[str, float]], arguments: argparse.Namespace) -> str:
    most = max(worths, default=0)
    best = worths.get(most, {})
    titles = ["method", "trainable parameters", "memory, MiB", "first epoch, s", "later epochs, s", "inference / base"]
    titles += ["AU F1", "emotion top-1"]
    rows = []
    for name, method in METHODS.items():
        row = [number(costs, f"{name}_trainable", ",.0f"), number(costs, f"{name}_memory_mb", ",.1f")]
        row += [number(costs, f"{name}_{epoch}_s", ",.2f") for epoch in ("first_epoch", "epoch")]
        row += [number(costs, f"{name}_inference_ratio", ".3f")]
        rows.append([method.title, *row, *(score(best, f"{name}_{short}") for short in ("au", "emotion"))])
    a = arguments
    parts = ["# Ways to fine-tune MF²", table(titles, rows)]
    if costs:
        text = (
            f"Cost: MF² {a.size}, random weights, one thread. Seconds are CPU-seconds of an epoch of {a.images:,} "
            f"images in batches of {a.epoch_batch}, scaled from steps on {a.batch_size} images ({a.epoch_batch} where "
            "they are read from a store), without decoding images. The first epoch builds the store. Memory: growth of "
            f"a process of its own above the loaded model while training on {a.batch_size} images"
        )
        if "dfn_building_mb" in costs:
            text += f"; DFN with store on {a.epoch_batch}: {costs['dfn_epoch_batch_memory_mb']:,.1f} MiB, while the "
            text += f"store is built: {costs['dfn_building_mb']:,.1f} MiB"
        text += ". Inference: LoRA and IA3 not merged; merged they cost what the base does, as DFN cannot. "
        parts.append(text + "Full fine-tuning and the linear probe leave the model's form as it is: 1 by construction.")
    if worths:
        parts.append(
            f"Accuracy in the table: the tiny model on synthetic faces in the style {a.style} of people seed "
            f"{a.people_seed}, adapted with {most:,} labelled images in {a.views} views each; test people are new. "
            "AU F1 is macro, at thresholds tuned on validation people; mean ± sd of seeds "
            f"{', '.join(map(str, a.seeds))}."
        )
    for count, found in worths.items():
        shown = {UNTOUCHED: "the checkpoint, untouched", **{name: METHODS[name].title for name in a.methods_trained}}
        lines = [[title, *(score(found, f"{name}_{s}") for s in SCORES.values())] for name, title in shown.items()]
        parts += [
            f"{count:,} labelled images",
            table(SCORE_TITLES, lines),
        ]
        named = [
            name
            for name in found
            if name.startswith(("dfn_minus", "full_minus", "gap_closed")) and not name.endswith("_sd")
        ]
        parts.append("\n".join(f"- {n} {found[n]:.3f} (sd {number(found, f'{n}_sd', '.3f')})" for n in named))
    parts += ["\n".join(f"- {name} {costs[name]:.4g}" for name in RATIOS if name in costs), PAPER]
    return "\n\n".join(part for part in parts if part)


def parse(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--size", default="tiny", choices=("tiny", "base"), help="cost: of the model")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="cost: which are measured")
    parser.add_argument("--images", type=int, default=2048, help="cost: of an epoch")
    parser.add_argument("--batch_size", type=int, default=4, help="cost: images of a step that is measured")
    parser.add_argument("--epoch_batch", type=int, default=64, help="cost: images of a step of the epoch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no_memory", action="store_true", help="cost: starts no further processes to measure it")
    parser.add_argument("--no_cost", action="store_true", help="accuracy alone")
    parser.add_argument("--accuracy", action="store_true", help="train and score too: many runs")
    parser.add_argument("--model", default=str(RELEASED), help="accuracy: the tiny checkpoint that is adapted")
    parser.add_argument("--style", default="sketch", help="accuracy: what it is adapted to: sketch or grain")
    parser.add_argument("--people_seed", type=int, default=7, help="accuracy: other people are drawn")
    parser.add_argument("--labelled", nargs="+", type=int, default=[2048, 256], help="accuracy: training images")
    parser.add_argument("--epochs", nargs="+", type=int, default=[10, 30], help="one for each of --labelled")
    parser.add_argument("--views", type=int, default=3, help="accuracy: forms of each image, the same for all methods")
    parser.add_argument("--held_out", nargs=2, type=int, default=[VALIDATION, TEST], help=argparse.SUPPRESS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--methods_trained", nargs="+", choices=METHODS, default=[name for name in METHODS if name != "dfn_no_store"]
    )
    parser.add_argument(
        "--learning_rates", nargs="+", default=[], metavar="METHOD=RATE", help="in place of train.py's own"
    )
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/finetuning"), help="where the runs are kept")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--markdown", type=Path, help="write the tables to this file")
    arguments, rest = parser.parse_known_args(argv)  # the rest is train.py's
    arguments.learning_rates = dict(pair.split("=") for pair in arguments.learning_rates)
    if unknown := set(arguments.learning_rates) - set(METHODS):
        parser.error(f"learning_rates: got {unknown.pop()!r}, expected METHOD=RATE with one of {list(METHODS)}")
    if len(arguments.epochs) != len(arguments.labelled):
        parser.error(f"epochs: got {len(arguments.epochs)}, expected one for each of --labelled {arguments.labelled}")
    if rest and not arguments.accuracy:
        parser.error(f"got {' '.join(rest)}, expected arguments named above; train.py's own need --accuracy")
    return arguments, rest


def main(argv: list[str] | None = None) -> dict[str, float]:
    arguments, rest = parse(argv)
    rows = {} if arguments.no_cost else measure_costs(arguments)
    costs = cost_figures(rows, arguments.images, arguments.epoch_batch)
    worths = measure_worth(arguments, rest) if arguments.accuracy else {}
    figures = dict(costs)
    for count, found in worths.items():
        suffix = "" if count == max(worths) else f"_{count}"
        figures |= {f"{name}{suffix}": value for name, value in found.items()}
    text = summary(costs, worths, arguments)
    print(f"\n{text}")
    if arguments.markdown:
        scratch = arguments.markdown.with_name(arguments.markdown.name + ".tmp")
        scratch.write_text(text, encoding="utf-8")
        scratch.replace(arguments.markdown)
    write_json(arguments.json, figures)
    return figures


if __name__ == "__main__":
    main()
