"""A folder that is ready to be pushed as a Space: the page, the code that it imports, the model, and adapters.

python examples/demo/demo_space.py TARGET [--adapters FOLDER ...]
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path


HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
ROOMS = ("configuration_mf2", "processing_mf2", "modeling_mf2", "dataset_mf2", "analysis_mf2")
PAGE = ("*.py", "*.css", "*.js", "README.md", "requirements.txt")
WEIGHTS = ("*.json", "*.safetensors", "*.txt", "README.md")


def write_space(target: Path, adapters: Sequence[Path] = ()) -> Path:
    """Whole or not at all: it is put together beside its place, and moved there."""
    if target.exists():
        raise FileExistsError(f"target: {target} is there already; name another, or remove it")
    part = target.with_name(f"{target.name}.partial")
    shutil.rmtree(part, ignore_errors=True)
    _copy(HERE, part, PAGE)
    (part / "demo_space.py").unlink()
    for room in ROOMS:
        _copy(ROOT / room, part / room, ("*.py",))
    model = Path("model_cards", "mf2-tiny-synthetic")
    _copy(ROOT / model, part / model, WEIGHTS)
    for folder in adapters:
        if not (folder / "adapter_config.json").is_file():
            raise FileNotFoundError(f"adapters: {folder} has no adapter_config.json, expected an adapter's folder")
        _copy(folder, part / "adapters" / folder.resolve().name, WEIGHTS)
    part.rename(target)
    return target


def _copy(source: Path, target: Path, patterns: Sequence[str]) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted({file for pattern in patterns for file in source.glob(pattern)}):
        shutil.copyfile(file, target / file.name)


def main(argv: list[str] | None = None) -> Path:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path)
    parser.add_argument("--adapters", nargs="+", type=Path, default=[], help="of the embedded model")
    given = parser.parse_args(argv)
    space = write_space(given.target, given.adapters)
    print(f"{space}: create a Space with the Gradio SDK, and push what is in this folder")
    return space


if __name__ == "__main__":
    main()
