"""Faces in images, folders, videos and the camera: `analyze(...)` in Python, `mf2` on the command line."""

from typing import Any


__all__ = ["analyze", "load_model"]


def __getattr__(name: str) -> Any:
    """At the first use, for torch takes seconds to import and `mf2 --help` need not wait for it."""
    if name == "analyze":
        from .analyze_mf2 import analyze

        return analyze
    if name == "load_model":
        from .analysis_model_mf2 import load_model

        return load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
