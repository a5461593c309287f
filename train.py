"""Trains, evaluates and saves MF². With no argument: the whole journey on synthetic faces with the tiny model.

accelerate launch train.py [--task pretrain|full|tower|evaluate] [--model_size tiny|base|giant]
    [--dataset synthetic|FOLDER] [--output_dir FOLDER] [any of transformers' TrainingArguments]

The same command continues a run that was interrupted.
"""

import sys

from dataset_mf2.command_line_mf2 import run_as_command
from training_mf2.arguments_mf2 import parse_arguments
from training_mf2.journey_mf2 import run


def main(argv: list[str] | None = None) -> dict[str, float]:
    return run(*parse_arguments(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    run_as_command(main)
