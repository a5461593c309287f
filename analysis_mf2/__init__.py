"""Faces in images, folders, videos and the camera: `analyze(...)` and `explain(...)` in Python, `mf2` as a command."""

from typing import Any


__all__ = ["analyze", "explain", "load_model"]


def __getattr__(name: str) -> Any:
    """At the first use, for torch takes seconds to import and `mf2 --help` need not wait for it."""
    if name == "analyze":
        from .analyze_mf2 import analyze

        return analyze
    if name == "explain":
        from .explanation_mf2 import explain

        return explain
    if name == "load_model":
        from .analysis_model_mf2 import load_model

        return load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
