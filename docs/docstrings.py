"""Converts this project's docstrings (plain text with `code`) to reStructuredText."""

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
    match = re.match(_ITEM, line.strip())
    return match if match and {*match[1].split(", ")} <= names else None


def _items(text: str, names: set[str]) -> Iterator[str]:
    """Prose, then a field a parameter; one begins a line, or a sentence."""
    starts = [
        match for match in re.finditer(rf"(?:(?<=\n)|(?<=[.;] )|^){_ITEM}", text) if {*match[1].split(", ")} <= names
    ]
    before = text[: starts[0].start()] if starts else text
    if before.strip():
        yield from [*map(str.strip, inline(before).split("\n")), ""]
    ends = [*(match.start() for match in starts), len(text)][1:]
    for match, end in zip(starts, ends, strict=True):
        kind = f" ({match[2]})" if match[2] else ""
        words = " ".join(text[match.end() : end].split()).rstrip(";")
        yield f":param {inline(match[1])}: {inline(f'{kind} {words}'.strip())}"


def inline(text: str) -> str:
    """`code` and [`Class`] as Sphinx writes them; other characters that Sphinx would interpret are escaped."""
    parts, last = [], 0
    for match in _TOKENS.finditer(text):
        parts.append(_plain(text[last : match.start()]))
        code = match[3] or ""
        mark = f":py:obj:`~.{match[1]}`" if match[1] else f"``{code.strip()}``"
        before, after = text[: match.start()][-1:], text[match.end() :][:1]
        parts.append(("\\ " if before.isalnum() else "") + mark + ("\\ " if after.isalnum() else ""))
        last = match.end()
    return "".join([*parts, _plain(text[last:])])


def _plain(text: str) -> str:
    return re.sub(r"([\\*|`]|_(?=\W|$))", r"\\\1", text)
