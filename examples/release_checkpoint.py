"""Puts a finished training run among the released checkpoints, with its code, its card, and a synthetic face to try.

    python examples/release_checkpoint.py outputs/release model_cards/mf2-tiny-rendered

Where both names are one folder, its code, configs, face and card are renewed.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from configuration_mf2 import MF2Config
from configuration_mf2.json_files import read_json
from mf2face.command_line import run_as_command
from mf2face.data.synthetic.faces import draw_example
from mf2face.files import whole_file
from mf2face.training.cards import EVAL_RESULTS, EXAMPLE_FACE, write_card
from mf2face.training.checkpoints import BEGUN
from processing_mf2 import MF2Processor
from processing_mf2.geometry import alignment_matrix, warp


NEEDED = ("config.json", "model.safetensors", "metrics.json", "run.json")
LEFT_OUT = {".py", ".bin", ".lock", ".tmp"}
MOST_BYTES = 12_000_000
FACE, SIDE = 1557, 224


def draw_face(style: str, people_seed: int, alignment: str) -> Image.Image:
    """An aligned crop of a person whom training did not see, in the first of the styles that it saw."""
    pixels, landmarks = draw_example(FACE, style=style.split("+")[0], seed=people_seed + 1, size=SIDE)
    crop = warp(pixels.transpose(2, 0, 1), alignment_matrix(landmarks, SIDE, SIDE, alignment), SIDE, SIDE)
    return Image.fromarray(np.round(crop).clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def main(source: Path, target: Path) -> None:
    missing = [name for name in NEEDED if not (source / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{source}: {', '.join(missing)} not found; expected the output folder of a finished run"
        )
    size = (source / "model.safetensors").stat().st_size
    if size > MOST_BYTES:
        raise ValueError(
            f"{source / 'model.safetensors'}: {size} bytes, expected at most {MOST_BYTES}; train with --save_half True"
        )
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()) if source.resolve() != target.resolve() else ():
        if path.is_file() and path.suffix not in LEFT_OUT and path.name != BEGUN and path.name[0] != ".":
            with whole_file(target / path.name, shared=True) as part:
                shutil.copyfile(path, part)
    if source.resolve() != target.resolve() and (source / EVAL_RESULTS).is_dir():
        shutil.copytree(source / EVAL_RESULTS, target / EVAL_RESULTS, dirs_exist_ok=True)
    # With their code; how its own losses were weighted is no default for who trains it further.
    MF2Config.from_pretrained(target, loss_weights={}).save_pretrained(target)
    MF2Processor.from_pretrained(target).save_pretrained(target)
    run = {**read_json(target / "run.json"), "name": target.name}
    if drawn := run["drawn"]:
        alignment = MF2Processor.from_pretrained(target).image_processor.alignment
        draw_face(drawn["style"], drawn["people_seed"], alignment).save(target / EXAMPLE_FACE)
    write_card(target, run)
    print(f"{target}: {len(list(target.iterdir()))} files, weights {size / 1e6:.1f} MB")


if __name__ == "__main__":
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("run", type=Path, help="the folder that train.py wrote")
    parser.add_argument("released", type=Path, help="where it goes")
    run_as_command(lambda: main(*vars(parser.parse_args()).values()))
