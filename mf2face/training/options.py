"""NAME=VALUE on the command line, for the fields of a config."""

import dataclasses
import json
from collections.abc import Collection, Sequence
from typing import Any


_WORDS = {"True": "true", "False": "false", "None": "null"}


def read_options(
    argument: str, options: Sequence[str], config_class: type, hidden: Collection[str] = ()
) -> dict[str, Any]:
    """Values are JSON, or plain words. hidden: fields of the config that are nobody's to set."""
    known = {field.name for field in dataclasses.fields(config_class)} - set(hidden)
    read: dict[str, Any] = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals or name not in known or name in read:
            raise ValueError(
                f"{argument}: got {option!r}, expected NAME=VALUE, each name once, of {config_class.__name__}: "
                f"{', '.join(sorted(known))}"
            )
        try:
            read[name] = json.loads(_WORDS.get(value, value))
        except ValueError:
            read[name] = value
    return read


__all__ = ["read_options"]
