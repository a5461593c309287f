from .configuration_mf2 import MF2Config, MF2QFormerConfig, MF2VisionConfig


__all__ = ["MF2Config", "MF2QFormerConfig", "MF2VisionConfig"]
