"""Seconds from `git clone` to a first annotated picture: the README's commands in a fresh environment, with downloads.

python examples/benchmark/first_minutes.py --photo photo.jpg [--json FILE]
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from report import options, show


ROOT = Path(__file__).resolve().parents[2]
NAMES = ("clone", "install", "setup", "picture")


def commands() -> list[str]:
    """The four that the README names; this checkout stands in for the address."""
    (block,) = re.findall(r"^```text\n(git clone .*?)^```$", (ROOT / "README.md").read_text(), re.M | re.DOTALL)
    lines = [line.partition("  #")[0].strip() for line in block.splitlines()]
    return [line.replace("ADDRESS", str(ROOT)) for line in lines]


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = options(__doc__)
    parser.add_argument("--photo", type=Path, required=True, help="a picture with a face")
    arguments = parser.parse_args(argv)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        subprocess.run([sys.executable, "-m", "venv", home / "venv"], check=True)
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        kept |= {"HOME": folder, "XDG_CACHE_HOME": f"{folder}/cache", "PATH": f"{home / 'venv' / 'bin'}:{kept['PATH']}"}
        place, start = home, time.monotonic()
        for name, command in zip(NAMES, commands(), strict=True):
            subprocess.run(command, shell=True, cwd=place, env=kept, check=True)
            if name == "clone":
                place = home / "mf2face"
                shutil.copy(arguments.photo, place / "photo.jpg")
            figures[f"{name}_s"] = round(time.monotonic() - start, 1)
        figures["minutes"] = round(figures["picture_s"] / 60, 2)
        if not list((place / "pictures").glob("*.html")):
            raise FileNotFoundError(f"{place / 'pictures'}: no page was written; expected one a face")
    show(figures, "{:12} {:8.2f}", arguments.json)
    return figures


if __name__ == "__main__":
    main()
