"""Trains, evaluates and saves MF². With no argument: the whole journey on synthetic faces with the tiny model.

accelerate launch train.py [--task pretrain|full|tower|evaluate] [--model_size tiny|base|giant]
    [--dataset synthetic|FOLDER] [--output_dir FOLDER] [any of transformers' TrainingArguments]

The same command continues a run that was interrupted.
"""

import sys

from mf2face.command_line import run_as_command
from mf2face.training.arguments import parse_arguments


def main(argv: list[str] | None = None) -> dict[str, float]:
    settings = parse_arguments(sys.argv[1:] if argv is None else argv)
    if settings.arguments.dry_run:  # imported here: they load torch, and --help needs none
        from mf2face.training.dry_run import dry_run

        return dry_run(settings)
    from mf2face.training.run import run

    return run(settings)


if __name__ == "__main__":
    run_as_command(main)
