"""Entry of every command: a user's mistake ends in one sentence and an exit code, not in a traceback."""

import argparse
import ast
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from datasets.exceptions import DatasetsError
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError


# Wrong input, and failures on the way. Any other exception is a defect of the code and is not caught.
_FILE_MISTAKES = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError)
_MISTAKES = (ValueError, TypeError, ImportError, StrictDataclassError, *_FILE_MISTAKES)
_FAILURES = (OSError, RuntimeError, ArithmeticError, DatasetsError, SafetensorError, pickle.UnpicklingError)
TRACEBACK = "MF2_TRACEBACK"


def run_as_command(main: Callable[[], Any]) -> NoReturn:
    """Runs `main` and exits: 0, 2 for wrong options or input, 1 for other failures, 130 for Ctrl-C.

    MF2_TRACEBACK=1 in the environment shows where an error comes from."""
    try:
        main()
    except KeyboardInterrupt:
        _exit(130, "stopped by Ctrl-C")
    except (*_MISTAKES, *_FAILURES) as error:
        if os.environ.get(TRACEBACK, "0") != "0":
            raise
        sentence = " ".join(str(error).split()) or "no reason is given"
        if type(error).__module__ == "builtins" and isinstance(error, TypeError | RuntimeError):
            sentence += f" ({type(error).__name__}; {TRACEBACK}=1 shows where)"
        _exit(2 if isinstance(error, _MISTAKES) else 1, sentence)
    sys.exit(0)


def _exit(code: int, sentence: str) -> NoReturn:
    sys.stdout.flush()
    print(f"{Path(sys.argv[0]).name}: {sentence}", file=sys.stderr, flush=True)
    sys.exit(code)


def positive(text: str) -> int:
    """For `type=` of an argparse argument."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number above 0")
    return int(text)


def named(option: str, expected: str, read: Callable[[str], Any]) -> Callable[[str], tuple[str, Any]]:
    """The type of an argparse option that takes NAME=VALUE pairs."""

    def read_pair(word: str) -> tuple[str, Any]:
        name, equals, value = word.partition("=")
        try:
            if not (name and equals):
                raise ValueError
            return name, read(value)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{option}: got {word!r}, expected NAME={expected}") from None

    return read_pair


def python_value(text: str) -> Any:
    """A number, a truth value, a list, ... in Python's spelling; anything else is a text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


__all__ = ["named", "positive", "python_value", "run_as_command"]
