"""Puts a finished training run among the released checkpoints: its weights, its files, its results, not our code.

    python examples/release_checkpoint.py outputs/release model_cards/mf2-tiny-synthetic

A checkpoint on the Hub carries the code that it needs. One that lies in this repository takes the code beside it, so
that there is never a second, older copy: import `modeling_mf2` and `processing_mf2`, then load the folder.
"""

import argparse
import json
import shutil
from pathlib import Path

from configuration_mf2.json_files import read_json
from mf2face.command_line import run_as_command
from mf2face.files import write_whole
from mf2face.training.cards import EVAL_RESULTS


NAME_CODE = ("auto_map", "custom_pipelines")
LEFT_OUT = {".py", ".bin", ".lock", ".tmp"}
MOST_BYTES = 12_000_000


def without_code(content: object) -> object:
    """The same JSON, no longer naming the files of code."""
    if isinstance(content, dict):
        return {name: without_code(value) for name, value in content.items() if name not in NAME_CODE}
    return [without_code(value) for value in content] if isinstance(content, list) else content


def main(source: Path, target: Path) -> None:
    needed = ("config.json", "model.safetensors", "metrics.json", "README.md")
    missing = [name for name in needed if not (source / name).is_file()]
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
    for path in sorted(source.iterdir()):
        if not path.is_file() or path.suffix in LEFT_OUT or path.name.startswith("."):
            continue
        if path.suffix == ".json" and any(name in path.read_text(encoding="utf-8") for name in NAME_CODE):
            content = without_code(read_json(path))
            write_whole(target / path.name, json.dumps(content, indent=2) + "\n")
        else:
            temporary = target / f".{path.name}.tmp"
            shutil.copyfile(path, temporary)
            temporary.replace(target / path.name)
    if (source / EVAL_RESULTS).is_dir():
        shutil.copytree(source / EVAL_RESULTS, target / EVAL_RESULTS, dirs_exist_ok=True)
    print(f"{target}: {len(list(target.iterdir()))} files, weights {size / 1e6:.1f} MB")


if __name__ == "__main__":
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("run", type=Path, help="the folder that train.py wrote")
    parser.add_argument("released", type=Path, help="where it goes")
    run_as_command(lambda: main(*vars(parser.parse_args()).values()))
