"""Configurations of MF². They are imported at their first use: transformers takes seconds."""

from .lazy import lazy_names


__getattr__ = lazy_names(
    __name__, dict.fromkeys(("MF2Config", "MF2QFormerConfig", "MF2VisionConfig"), "configuration_mf2")
)
__all__ = ["MF2Config", "MF2QFormerConfig", "MF2VisionConfig"]
