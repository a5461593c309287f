"""What each branch, language, and each face's own landmarks are worth: the main job with and without, several seeds.

    python examples/benchmark/branches.py --tower FOLDER [--settings both emo ...] [--seeds 0 1 2] [--json FILE]

Every run is `train.py` with the tiny model on synthetic faces; F1 and top-1 are of subjects unseen in training, the
F1 at thresholds tuned on validation subjects. A run that has finished is not repeated: its metrics.json is read.
`emo_long` is Emo-VL alone for about as many CPU-seconds as both branches take, the best epoch chosen on validation.
"""

import argparse
from pathlib import Path

from report import mean_sd, options, run_once, write_json


SETTINGS: dict[str, tuple[str, list[str]]] = {
    "main": ("both branches, with language", []),
    "both": ("both branches, no language", ["--use_captions", "False"]),
    "template": ("the same, mean-face landmarks", ["--use_captions", "False", "--landmarks", "template"]),
    "emo": ("Emo-VL alone, as many epochs", ["--use_captions", "False", "--branches", "emo"]),
    "emo_long": ("Emo-VL alone, as many CPU-seconds", ["--use_captions", "False", "--branches", "emo"]),
}
SCORES = {"au_f1_tuned_macro": "f1", "au_f1_macro": "f1_at_half", "emotion_top1": "emotion", "cpu_seconds": "cpu_s"}


def one_run(setting: str, seed: int, arguments: argparse.Namespace, rest: list[str]) -> dict[str, float]:
    epochs = arguments.epochs * (arguments.emo_long if setting == "emo_long" else 1)
    command = ["--vision_name_or_path", arguments.tower, "--seed", str(seed), "--num_train_epochs", str(epochs)]
    return run_once(arguments.output_dir / f"{setting}-{seed}", [*command, *SETTINGS[setting][1], *rest])


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = options(__doc__, allow_abbrev=False)
    parser.add_argument("--tower", required=True, help="folder of a trained tower, or of a checkpoint")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--emo_long", type=int, default=6, help="how many times as many epochs `emo_long` gets")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/branches"), help="where the runs are kept")
    arguments, rest = parser.parse_known_args(argv)  # the rest is train.py's

    figures: dict[str, float] = {}
    lines = []
    for setting in arguments.settings:
        runs = [one_run(setting, seed, arguments, rest) for seed in arguments.seeds]
        columns = []
        for score, short in SCORES.items():
            mean, spread = mean_sd([run[score] for run in runs])
            figures |= {f"{setting}_{short}": mean, f"{setting}_{short}_sd": spread}
            columns.append(f"{mean:8.0f} ± {spread:3.0f}" if short == "cpu_s" else f"{mean:7.3f} ± {spread:.3f}")
        lines.append(f"{SETTINGS[setting][0]:<36}" + " ".join(f"{column:>16}" for column in columns))
    titles = ("F1, tuned", "F1 at 0.5", "emotion top-1", "CPU-seconds")
    print(f"\nSynthetic faces, unseen subjects; mean ± sd of seeds {arguments.seeds}, tower {arguments.tower}")
    print(" " * 36 + " ".join(f"{title:>16}" for title in titles))
    print("\n".join(lines))
    write_json(arguments.json, figures)
    return figures


if __name__ == "__main__":
    main()
