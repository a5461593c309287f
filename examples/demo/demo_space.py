"""A folder that is ready to be pushed as a Space: the page, the code that it imports, the model, and adapters.

python examples/demo/demo_space.py TARGET [--adapters FOLDER ...]
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from demo_engine import Adapter


HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
ROOMS = ("configuration_mf2", "processing_mf2", "modeling_mf2", "mf2face")
PAGE = ("*.py", "*.css", "*.js", "README.md", "requirements.txt")
MODEL = Path("model_cards", "mf2-tiny-rendered")
WEIGHTS = ("*.json", "*.safetensors", "*.txt", "README.md")


def write_space(target: Path, adapters: Sequence[Path] = ()) -> Path:
    """Assembled beside its place and renamed, so that it is whole or absent."""
    if target.exists():
        raise FileExistsError(f"target: {target} is there already; name another, or remove it")
    chosen = _chosen(adapters)
    part = target.with_name(f"{target.name}.partial")
    shutil.rmtree(part, ignore_errors=True)
    try:
        _copy(HERE, part, PAGE)
        (part / "demo_space.py").unlink()
        for room in ROOMS:
            _copy(ROOT / room, part / room, ("**/*.py",))
        _copy(ROOT / MODEL, part / MODEL, WEIGHTS)
        for name, folder in chosen.items():
            _copy(folder, part / "adapters" / name, WEIGHTS)
        part.rename(target)
    except BaseException:  # also when it is interrupted
        shutil.rmtree(part, ignore_errors=True)
        raise
    return target


def _chosen(places: Sequence[Path]) -> dict[str, Path]:
    """Name -> folder of each adapter; names must differ."""
    chosen: dict[str, Path] = {}
    for place in places:
        found = Adapter.find([place])
        if not found:
            raise ValueError(f"adapters: {place} has only checkpoints of a run, expected an adapter's folder")
        for adapter in found:
            folder = adapter.folder
            if adapter.base != MODEL.name:
                raise ValueError(
                    f"adapters: {folder} belongs to the model {adapter.base!r}, expected {MODEL.name!r}, the one "
                    "that a Space has"
                )
            if chosen.setdefault(folder.name, folder) != folder:
                raise ValueError(
                    f"adapters: {chosen[folder.name]} and {folder} are both called {folder.name!r}, expected names "
                    "that differ; rename one of the folders"
                )
    return chosen


def _copy(source: Path, target: Path, patterns: Sequence[str]) -> None:
    for file in sorted({file for pattern in patterns for file in source.glob(pattern)}):
        copy = target / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)


def main(argv: list[str] | None = None) -> Path:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path)
    about = "folders of adapters of the embedded model, or folders that hold some"
    parser.add_argument("--adapters", nargs="+", type=Path, default=[], help=about)
    given = parser.parse_args(argv)
    space = write_space(given.target, given.adapters)
    print(f"{space}: create a Space with the Gradio SDK, and push what is in this folder")
    return space


if __name__ == "__main__":
    main()
