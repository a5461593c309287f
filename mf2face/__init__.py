"""Faces in images, folders, videos and the camera: `analyze(...)` and `explain(...)` in Python, `mf2` as a command."""

import importlib
from typing import Any


_LAZY = {
    "Analyzer": ("mf2face.inference.batches", "Analyzer"),
    "__version__": ("configuration_mf2.version", "VERSION"),
    "analyze": ("mf2face.inference.analyze", "analyze"),
    "certify": ("mf2face.inference.certify", "certify"),
    "compare": ("mf2face.inference.compare", "compare"),
    "events": ("mf2face.inference.events", "events"),
    "explain": ("mf2face.inference.explain.explainer", "explain"),
    "load_model": ("mf2face.inference.model", "load_model"),
}


def __getattr__(name: str) -> Any:
    """Loaded at the first use: torch takes seconds to import, and `mf2 --help` does not need it."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _LAZY[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


__all__ = ["Analyzer", "__version__", "analyze", "certify", "compare", "events", "explain", "load_model"]
