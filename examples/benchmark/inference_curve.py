"""Accuracy against cost over the number of queries an AU has. Used by inference.py.

Cost is the time of the whole forward pass over that of the tower. Accuracy is of `train.py` as `TRAINING` says, with
the tiny model on synthetic faces, scored on further ones of other people, thresholds tuned on validation subjects.
A run that is finished is read, not repeated.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tables_cells import TESTED
from tables_run import draw_test_rows
from torch import nn

from configuration_mf2 import MF2Config
from modeling_mf2 import MF2ForFaceAnalysis
from modeling_mf2.export import example_inputs


sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
TRAINING = ["--task", "full", "--num_images", "2000", "--num_train_epochs", "8", "--disable_tqdm", "True"]
PEOPLE, TEST_IMAGES = 7, 1600  # a tenth of so few images would leave the order of the points to chance


def with_queries(model: MF2ForFaceAnalysis, count: int) -> None:
    """The same model with so many queries an AU, of random weights."""
    units, width = len(model.config.action_units), model.config.au_config.hidden_size
    model.mf2.au_vl.queries = nn.Parameter(torch.randn(1, count, width))
    model.classifiers.au_weight = nn.Parameter(torch.randn(units, count, width) / width)


@torch.no_grad()
def cost_curve(size: str, queries: Sequence[int], batch_size: int, rounds: int) -> dict[str, float]:
    model = MF2ForFaceAnalysis(MF2Config.from_size(size)).eval()
    pixels, landmarks = example_inputs(model, batch_size)

    def whole(count: int) -> Callable[[], object]:
        def run() -> None:
            with_queries(model, count)
            model(pixels, landmarks)

        return run

    calls = {"tower": lambda: model.mf2.vision(pixels), **{f"cost_{count}": whole(count) for count in queries}}
    ratios: dict[str, list[float]] = {name: [] for name in calls}
    by_cpu: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        times, cpu = {}, {}
        for name in sorted(calls, reverse=bool(number % 2)):
            start, start_cpu = time.perf_counter(), time.process_time()
            calls[name]()
            times[name], cpu[name] = time.perf_counter() - start, time.process_time() - start_cpu
        if number:  # the first warms up
            for name in calls:
                ratios[name].append(times[name] / times["tower"])
                by_cpu[name].append(cpu[name] / cpu["tower"])
    found = {name: statistics.median(values) for name, values in ratios.items() if name != "tower"}
    return found | {f"{name}_cpu": statistics.median(by_cpu[name]) for name in found}


def trained_scores(folder: Path, queries: Sequence[int], seeds: Sequence[int]) -> dict[str, float]:
    import train

    rows = draw_test_rows(folder / f"faces-{TEST_IMAGES}", TEST_IMAGES, "paint", PEOPLE + 1, "mfa")
    found: dict[str, float] = {}
    for count in queries:
        runs = []
        for seed in seeds:
            place = folder / f"{count}-{seed}"
            if not (place / "metrics.json").is_file():
                option = f'au_config={{"num_query_tokens": {count}}}'
                chosen = ["--model_options", option, "--seed", str(seed), "--output_dir", str(place)]
                train.main([*TRAINING, "--people_seed", str(PEOPLE), *chosen])
            tested = place / TESTED
            if not (tested / "metrics.json").is_file():
                scored = ["--task", "evaluate", "--model_name_or_path", str(place), "--dataset", str(rows)]
                train.main([*scored, "--use_captions", "False", "--output_dir", str(tested), "--disable_tqdm", "True"])
            runs.append(json.loads((tested / "metrics.json").read_text()))
        for name, score in (("f1", "au_f1_tuned_macro"), ("auc", "au_roc_auc_macro"), ("emotion", "emotion_top1")):
            values = [run[score] for run in runs]
            found[f"{name}_{count}"] = statistics.mean(values)
            found[f"{name}_{count}_sd"] = statistics.stdev(values) if len(values) > 1 else 0.0
    return found


def draw_curve(figures: dict[str, float], queries: Sequence[int], size: str, picture: Path | None) -> None:
    """A table, and the picture if there is accuracy to show."""
    print(
        f"\n{'queries an AU':>13} {f'{size}: time over tower':>24} {'by CPU time':>12} {'AU F1 (tiny)':>18}"
        f" {'emotion top-1':>18}"
    )
    for count in queries:
        cells = [f"{count:13} {figures[f'cost_{count}']:24.2f} {figures[f'cost_{count}_cpu']:12.2f}"]
        for name in ("f1", "emotion"):
            known = f"{name}_{count}" in figures
            cells.append(
                f"{figures[f'{name}_{count}']:10.3f} ± {figures[f'{name}_{count}_sd']:.3f}" if known else " " * 18
            )
        print(" ".join(f"{cell:>18}" for cell in cells))
    if picture is None or f"f1_{queries[0]}" not in figures:
        return
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plot, axis = plt.subplots(figsize=(6.4, 4.2))
    costs = [figures[f"cost_{count}"] for count in queries]
    scores = [figures[f"f1_{count}"] for count in queries]
    axis.errorbar(costs, scores, [figures[f"f1_{count}_sd"] for count in queries], marker="o", capsize=3)
    for count, cost, value in zip(queries, costs, scores, strict=True):
        axis.annotate(str(count), (cost, value), textcoords="offset points", xytext=(6, -12))
    axis.margins(x=0.1)  # the numbers beside the points have no part in the limits
    axis.set_xlabel(f"time of the whole forward pass / time of the tower ({size})")
    axis.set_ylabel("macro AU F1, tiny size, synthetic faces")
    axis.set_title("Queries an action unit: accuracy (mean ± sd over seeds) against cost", loc="left", fontsize=11)
    axis.grid(alpha=0.3)
    plot.tight_layout()
    temporary = picture.with_name(f".{picture.name}.tmp.png")
    plot.savefig(temporary, dpi=150)
    plt.close(plot)
    temporary.replace(picture)
