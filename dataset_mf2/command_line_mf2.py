"""Command lines that end in a sentence and an exit code where the user can mend what is wrong."""

import argparse
import ast
import sys
from collections.abc import Callable
from typing import Any


def run_command(main: Callable[[], Any]) -> int:
    """The exit code of a script: 0, 2 with the reason on the standard error, 130 after Ctrl-C.

    Called from Python, `main` raises its errors as usual.
    """
    try:
        main()
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(f"error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


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


__all__ = ["named", "python_value", "run_command"]
