"""What every benchmark does with its figures."""

import json
import os
from pathlib import Path


def write_json(path: str | os.PathLike | None, figures: dict[str, float]) -> None:
    if path is None:
        return
    target = Path(path)
    temporary = target.with_name(target.name + ".tmp")
    temporary.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    temporary.replace(target)
