"""JSON that is read: whatever is wrong with it is a `ValueError` that names the file."""

import json
import os
from pathlib import Path
from typing import Any


def parse_json(text: str | bytes, name: object) -> Any:
    """name: the file, and where in it the text stands. Python itself names neither, and ends with another error at
    nesting that is too deep."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = str(error).partition(";")[0]  # of a number that is too long: a setting of Python
        raise ValueError(f"{name}: got {reason}, expected JSON; copy the file again or remove it") from error


def read_json(file: str | os.PathLike) -> Any:
    try:
        text = Path(file).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: got {error}, expected JSON in UTF-8; copy the file again or remove it") from error
    return parse_json(text, file)


__all__ = ["parse_json", "read_json"]
