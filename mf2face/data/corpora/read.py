"""Licensed corpora, and your own pictures, read into one schema: `read_corpus("aff_wild2", folder)`."""

from collections.abc import Callable, Mapping
from dataclasses import fields
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
    reader = OwnTable if corpus == "own" else SOURCES[corpus]
    defaults = {option.name: option.default for option in fields(reader) if option.name != "root"}
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


__all__ = ["SOURCES", "protocol", "read_corpus"]
