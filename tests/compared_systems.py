"""Small models of the compared systems."""

import torch
from conftest import captions


SMALL = {
    **{"backbone": "conv", "backbone_kwargs": {"width": 16, "num_blocks": 1}, "image_size": 64},
    **{"action_units": ["AU1", "AU6", "AU25"], "emotions": ["Neutral", "Happiness", "Other"]},
}
SWIN = {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 2), "window_size": 2, "drop_path_rate": 0.0}
SMALL_SWIN = {**SMALL, "backbone": "swin_tiny_patch4_window7_224", "backbone_kwargs": SWIN}


def small_batch(config, rows: int = 4, texts: bool = True) -> dict[str, torch.Tensor]:
    """One AU label and one emotion label are unknown; one description of either kind is missing."""
    generator = torch.Generator().manual_seed(0)
    units = len(config.action_units)
    batch = {
        "pixel_values": torch.randn(rows, 3, config.image_size, config.image_size, generator=generator),
        "au_labels": torch.randint(0, 2, (rows, units), generator=generator),
        "emotion_labels": torch.randint(0, 3, (rows,), generator=generator),
    }
    batch["au_labels"][0, 0] = batch["emotion_labels"][-1] = -1
    if texts:
        batch["input_ids"], batch["attention_mask"] = captions((rows, 7), generator)
        batch["au_input_ids"], batch["au_attention_mask"] = captions((rows, units, 5), generator)
        for name in ("input_ids", "attention_mask"):
            batch[name][1] = batch[f"au_{name}"][0, 0] = 0
    return batch
