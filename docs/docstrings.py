"""Our docstrings are plain words with `code` in them, made to be read where they stand; Sphinx wants its own marks."""

import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any


_TOKENS = re.compile(r"\[`([\w.]+)`\]|(`+)(.+?)\2", re.DOTALL)
_ITEM = r"(\w+(?:, \w+)*)(?: \(((?:[^()]|\([^()]*\))*)\))?: "


def to_rst(text: str, thing: Any = None) -> str:
    names, lines = parameters_of(thing), []
    for block in re.split(r"\n(?:[ \t]*\n)+", textwrap.dedent(text).strip("\n")):
        lines += [*_block(block, names), ""]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines).strip())


def parameters_of(thing: Any) -> set[str]:
    """Names that `name: what it is` can be about."""
    fields = {*getattr(thing, "__dataclass_fields__", ())}
    for kind in thing.__mro__ if inspect.isclass(thing) else ():
        fields |= {*inspect.get_annotations(kind)}
    try:
        return fields | {*inspect.signature(thing).parameters} - {"self", "cls"}
    except (TypeError, ValueError):
        return fields


def _block(block: str, names: set[str]) -> Iterator[str]:
    lines = [line for line in block.split("\n") if line.strip() not in ("Args:", "Parameters:")]
    if lines and all(line.startswith("    ") for line in lines) and not _about(lines[0], names):
        yield from ["::", "", *lines]
    elif re.match(r"\s*([-*]|\d+\.) ", block):
        yield from (inline(line) for line in lines)
    else:
        yield from _items(" \n".join(line.strip() for line in lines), names)


def _about(line: str, names: set[str]) -> re.Match | None:
    found = re.match(_ITEM, line.strip())
    return found if found and {*found[1].split(", ")} <= names else None


def _items(text: str, names: set[str]) -> Iterator[str]:
    """Prose, then a field a parameter; one begins a line, or a sentence."""
    starts = [
        found for found in re.finditer(rf"(?:(?<=\n)|(?<=[.;] )|^){_ITEM}", text) if {*found[1].split(", ")} <= names
    ]
    before = text[: starts[0].start()] if starts else text
    if before.strip():
        yield from [*map(str.strip, inline(before).split("\n")), ""]
    ends = [*(found.start() for found in starts), len(text)][1:]
    for found, end in zip(starts, ends, strict=True):
        kind = f" ({found[2]})" if found[2] else ""
        words = " ".join(text[found.end() : end].split()).rstrip(";")
        yield f":param {inline(found[1])}: {inline(f'{kind} {words}'.strip())}"


def inline(text: str) -> str:
    """`code` and [`Class`] as Sphinx writes them; whatever else it would take for a mark stays as it is."""
    parts, last = [], 0
    for found in _TOKENS.finditer(text):
        parts.append(_plain(text[last : found.start()]))
        code = found[3] or ""
        mark = f":py:obj:`~.{found[1]}`" if found[1] else f"``{code.strip()}``"
        before, after = text[: found.start()][-1:], text[found.end() :][:1]
        parts.append(("\\ " if before.isalnum() else "") + mark + ("\\ " if after.isalnum() else ""))
        last = found.end()
    return "".join([*parts, _plain(text[last:])])


def _plain(text: str) -> str:
    return re.sub(r"([\\*|`]|_(?=\W|$))", r"\\\1", text)
