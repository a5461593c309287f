"""Licensed corpora, and your own pictures, read into one schema: `read_corpus("aff_wild2", folder)`."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mf2face.data.corpora.frames import Frames
from mf2face.data.corpora.images import RAFAU, RAFDB, AffectNet, EmotioNet, RAFDBCompound
from mf2face.data.corpora.own import OwnFolders, OwnTable, own_corpus
from mf2face.data.corpora.videos import BP4D, DISFA, GFT, AffWild2


_READERS = (AffWild2, DISFA, BP4D, GFT, RAFAU, EmotioNet, AffectNet, RAFDB, RAFDBCompound)
SOURCES: Mapping[str, Callable[..., Any]] = {**{reader.name: reader for reader in _READERS}, "own": own_corpus}
"""Each class's docstring states its files and its protocol."""

_KINDS = ((bool, bool, "True or False"), (int, int, "a whole number"), (float, (int, float), "a number"))
_KINDS += ((str, str, "a text"),)


def read_corpus(corpus: str, root: str | Path, **options: Any) -> Frames:
    """The labels of a corpus that lies in `root`; options are those of its reader."""
    if corpus not in SOURCES:
        raise ValueError(f"corpus: got {corpus!r}, expected one of {', '.join(SOURCES)}")
    defaults = _defaults(OwnTable if corpus == "own" else SOURCES[corpus])
    if unknown := sorted(set(options) - set(defaults)):
        raise ValueError(f"{corpus}: got the options {unknown}, expected some of {', '.join(sorted(defaults))}")
    for name, value in options.items():
        for kind, accepted, what in _KINDS:
            if isinstance(defaults[name], kind):
                if not isinstance(value, accepted):
                    raise ValueError(f"{name}: got {value!r}, expected {what}")
                break
    return SOURCES[corpus](root, **options).read()


def protocol(corpus: str) -> str:
    readers = (OwnTable, OwnFolders) if corpus == "own" else (SOURCES[corpus],)
    return "\n".join(" ".join(reader.__doc__.split()) for reader in readers)


def _defaults(reader: type) -> dict[str, Any]:
    """The options of a reader, and of the classes that it passes them on to."""
    signatures = [inspect.signature(kind) for kind in reversed(reader.__mro__) if "__init__" in vars(kind)]
    options = {name: one.default for signature in signatures for name, one in signature.parameters.items()}
    return {name: default for name, default in options.items() if name not in ("root", "options", "args", "kwargs")}


__all__ = ["SOURCES", "protocol", "read_corpus"]
