"""Licensed corpora, and your own pictures, read into one schema: `read_corpus("aff_wild2", folder)`."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mf2face.data.corpora.frames import Frames
from mf2face.data.corpora.images import IMAGE_CORPORA
from mf2face.data.corpora.own import OwnFolders, OwnTable, own_corpus
from mf2face.data.corpora.videos import BP4D, DISFA, GFT, AffWild2


SOURCES: Mapping[str, Callable[..., Any]] = {
    **{reader.name: reader for reader in (AffWild2, DISFA, BP4D, GFT)},
    **IMAGE_CORPORA,
    "own": own_corpus,
}
"""Each class's docstring tells its files and its protocol."""


def read_corpus(corpus: str, root: str | Path, **options: Any) -> Frames:
    """The labels of a corpus that lies in `root`; options are those of its reader."""
    if corpus not in SOURCES:
        raise ValueError(f"corpus: got {corpus!r}, expected one of {', '.join(SOURCES)}")
    known = _options(corpus)
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"{corpus}: got the options {unknown}, expected some of {', '.join(sorted(known))}")
    for name, value in options.items():
        default = known[name].default
        for kind, what in ((bool, "True or False"), (int, "a whole number"), (float, "a number"), (str, "a text")):
            if isinstance(default, kind):
                if not isinstance(value, (int, float) if kind is float else kind):
                    raise ValueError(f"{name}: got {value!r}, expected {what}")
                break
    return SOURCES[corpus](root, **options).read()


def protocol(corpus: str) -> str:
    readers = (OwnTable, OwnFolders) if corpus == "own" else (SOURCES[corpus],)
    return "\n".join(" ".join(reader.__doc__.split()) for reader in readers)


def _options(corpus: str) -> dict[str, inspect.Parameter]:
    classes = (OwnTable if corpus == "own" else SOURCES[corpus]).__mro__
    kinds = [kind for kind in reversed(classes) if "__init__" in vars(kind)]
    found = {name: told for kind in kinds for name, told in inspect.signature(kind).parameters.items()}
    return {name: told for name, told in found.items() if name not in ("self", "root", "options", "args", "kwargs")}


__all__ = ["SOURCES", "protocol", "read_corpus"]
